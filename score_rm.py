"""Score every row of a data set with a reward model.

python score_rm.py model=smollm2 data.path=rows.jsonl out=scored
"""

from rmexp.cli.score_rm import run

if __name__ == "__main__":
    run()
