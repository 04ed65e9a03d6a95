"""How long a command takes to answer, where nothing large has to be imported for it."""

import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import NamedTuple

_ROOT = Path(__file__).parents[2]
# What is typed, and within how many seconds it is to be answered.
TYPED = {
    "eval_rm.py bench.limit=1": 1.0,  # its first line
    "eval_rm.py --help": 3.0,
    "eval_rm.py --cfg job": 3.0,
    "eval_rm.py model=smolm2": 3.0,
    "eval_rm.py model=recorded model.path=none.jsonl": 3.0,
    "train_rm.py --help": 3.0,
    "train_rm.py data=preference data.path=none.jsonl": 3.0,
    "correlate.py --help": 3.0,
}


class Answered(NamedTuple):
    """Seconds by the clock, and of the processor, to the first line that a command prints."""

    wall: float
    cpu: float


def first_line(words: str) -> Answered:
    """Type a command, and end it at its first line; what it has begun to write is deleted."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    with (
        TemporaryDirectory() as folder,
        subprocess.Popen(
            [sys.executable, *words.split(), f"out_dir={folder}/out"],
            cwd=_ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        assert process.stdout is not None
        line = process.stdout.readline()
        wall = time.perf_counter() - began
        process.kill()
        process.stdout.read()
    assert line.strip(), f"{words} printed nothing"
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    took = (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)
    return Answered(wall, took)


def rows(rounds: int) -> list[str]:
    """Return a Markdown table: a row a command, the medians of so many rounds."""
    table = ["| typed | first line, s | processor, s | wanted, s |", "|---|---|---|---|"]
    for words, wanted in TYPED.items():
        took = [first_line(words) for _ in range(rounds)]
        wall, cpu = (median(part) for part in zip(*took, strict=True))
        table.append(f"| `python {words}` | {wall:.2f} | {cpu:.2f} | {wanted:g} |")
    return table


if __name__ == "__main__":
    print("\n".join(rows(3)))
