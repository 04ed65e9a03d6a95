"""Evaluate a reward model on a benchmark.

python eval_rm.py model=smollm2 bench=toy
"""

from rmexp.cli.eval_rm import run

if __name__ == "__main__":
    run()
