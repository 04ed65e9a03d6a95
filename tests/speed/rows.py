"""Measure score_rm.py on many rows: `python tests/speed/rows.py PAIRS --rows 100000`.

PAIRS is a file of preference pairs (JSONL, may be gzipped); they are repeated, each time with a
change, as one Parquet file. The reward model is a random one of a layer with SmolLM2's tokenizer;
with `--constant` there is none, and every reward is 0. Further words go to score_rm.py.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from rmexp.data.formats import read_rows
from rmexp.data.streams import RowStream
from rmexp.labelling.choosing import check_choice, choose
from rmexp.labelling.parts import Task
from rmexp.labelling.processes import here
from rmexp.labelling.summary import summarise
from rmexp.models.embedded import smollm2
from rmexp.progress import WorkProgress
from rmexp.schema import Dataset, scored_example
from rmexp.scoring.by_parts import Tokens, Told
from rmexp.scoring.model_reward import Seen
from rmexp.scoring.score import Scoring

_GROUP = 10_000  # rows that are made at a time
_PART = 8192


def write_pairs(source: Path, target: Path, count: int) -> None:
    """Write so many pairs, those of the source again and again, each time with a number more."""
    pairs = [dict(row.values) for row in read_rows(source, source.name)]

    def groups() -> Iterator[Any]:
        for start in range(0, count, _GROUP):
            some = [
                {
                    name: f"{text} ({at // len(pairs)})" if name in ("chosen", "rejected") else text
                    for name, text in pairs[at % len(pairs)].items()
                }
                for at in range(start, min(count, start + _GROUP))
            ]
            yield pyarrow.Table.from_pylist(some)

    first = next(groups())
    with pyarrow.parquet.ParquetWriter(target, first.schema) as writer:
        for table in groups():
            writer.write_table(table)


def write_model(folder: Path) -> None:
    """Write a random model of one small layer with SmolLM2's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(smollm2())
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        max_position_embeddings=2048,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForSequenceClassification(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


class Constant:
    """Give every response the reward 0."""

    def load(self) -> None:
        """Load nothing."""

    def encode(self, data: Dataset) -> Tokens:
        """Make no tokens."""
        return Tokens(data, {}, Seen(), 0)

    def score(self, tokens: Tokens, folder: Path) -> Scoring:
        """Score nothing."""
        return Scoring([scored_example(e, [0.0], [0.0]) for e in tokens.data.examples], {})


def constant(device: str | None, told: Told) -> Constant:
    """Open what gives no thought to rewards."""
    return Constant()


def score_here(path: Path, out: Path) -> dict[str, float]:
    """Score with constant rewards in this process, and return what that took."""
    rows = RowStream(str(path))
    spans = rows.spans(_PART)
    task = Task({"path": str(path)}, None, "skip", "pairs", out, rows.form, "", constant)
    output = task.output()
    output.prepare({"data": rows.digest, "kind": "pairs", "form": rows.form, "rows": _PART})
    began, count = time.monotonic(), sum(span.rows for span in spans)
    took: dict[str, float] = {"libraries, MB": peak(resource.RUSAGE_SELF)}
    with WorkProgress("constant", count, "rows") as progress:
        here(task, spans, progress)
    took["rows a second"] = count / (time.monotonic() - began)
    took["parts, MB"] = peak(resource.RUSAGE_SELF)
    numbers = [span.number for span in spans]
    summarise(output, numbers, "pairs")
    choice = check_choice({"top": 0.5}, None, "pairs")
    assert choice is not None
    choose(output, numbers, "pairs", choice)
    return took | {"end, MB": peak(resource.RUSAGE_SELF)}


def score_apart(path: Path, model: Path, folder: Path, words: list[str]) -> dict[str, float]:
    """Run the command, and return what it took; its peak memory is that of its largest process."""
    given = [f"model.path={model}", f"data.path={path}", f"out={folder / 'out'}"]
    more = [f"out_dir={folder / 'run'}", f"store_dir={folder / 'store'}"]
    uri = f"tracking.uri=sqlite:///{folder}/mlflow.db"
    root = Path(__file__).parents[2]
    command = ["score_rm.py", "model=local", "data.on_bad_row=skip", *given, *more, uri, *words]
    began = time.monotonic()
    subprocess.run([sys.executable, *command], cwd=root, check=True)
    found = json.loads((folder / "run" / "metrics.json").read_text())
    return {
        "rows a second": found.get("rewards/rows_per_second", 0.0),
        "tokens a second": found.get("scoring/tokens_per_second", 0.0),
        "seconds, all": time.monotonic() - began,
        "peak, MB": peak(resource.RUSAGE_CHILDREN),
    }


def peak(whose: int) -> float:
    """Return the peak memory in MB."""
    return resource.getrusage(whose).ru_maxrss / 1024


def main() -> None:
    """Measure what the options name, and print it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--constant", action="store_true")
    parser.add_argument("--folder", type=Path, help="where all is kept, to go on with it")
    options, words = parser.parse_known_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        path, model = folder / f"rows{options.rows}.parquet", folder / "model"
        if not path.exists():
            write_pairs(options.pairs, path, options.rows)
        if options.constant:
            took = score_here(path, folder / "constant")
        else:
            if not model.exists():
                write_model(model)
            took = score_apart(path, model, folder, words)
    print(json.dumps({"rows": options.rows, **took}))


if __name__ == "__main__":
    main()
