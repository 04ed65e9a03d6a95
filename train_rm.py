"""Train a reward model, and evaluate it.

python train_rm.py model=smollm2 objective=bt data=toy eval_after=[toy]
"""

from rmexp.cli.train_rm import run

if __name__ == "__main__":
    run()
