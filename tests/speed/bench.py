"""Measure scoring and training against what the field uses: `make bench DATA=FOLDER`.

FOLDER holds `RMB_dataset/`, `rm_bench/` and `preferences/auto_j.jsonl`, in upstream's layouts; what
is not there is left out, and said. Contenders take turns, each round in fresh processes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import random

import startup
from contenders import BATCH, LENGTH, to_json
from growth import draw, examples, linear, points
from sample import Line, faster, padded_tokens, peer_order, share_of_rate, table, whole_prompts

from rmexp.benchmarks.preference import Preference
from rmexp.benchmarks.rmb import RMB
from rmexp.benchmarks.rmbench import RMBench
from rmexp.models.embedded import smollm2
from rmexp.schema import Example
from rmexp.scoring.rewards import open_reward

TOKENS = {"float32": 60_000, "bfloat16": 150_000}  # of the peers, in all of the scoring
_RMB_SHARE = 2 / 3  # of them; the rest is RM-Bench's
_PARTS = ("startup", "rmb", "rmbench", "bt", "dpo", "growth")
_COMPARED = 3  # examples whose scores are compared with transformers alone


class Bench:
    """Run contenders and turn what they took into lines."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.policy = smollm2()
        self.classifier = with_head(self.policy, folder / "model")
        self.chat = open_reward(path=str(self.classifier), device="cpu").chat
        self.lengths: dict[Any, int] = {}
        # Small products: a processor without bf16 ones takes minutes for large ones.
        rates = {name: self.run("matrix_rate", dtype=name, size=512)["rate"] for name in TOKENS}
        self.dtype = faster(rates)
        shown = ", ".join(f"{name} {rate / 1e9:,.0f}" for name, rate in rates.items())
        print(f"GFLOP/s of small products: {shown}; training and growth in {self.dtype}")

    def run(self, name: str, **arguments: Any) -> dict[str, float]:
        """Run a contender in a process of its own."""
        file = self.folder / "arguments.json"
        file.write_text(json.dumps(arguments))
        threads = str(self.options.threads)
        root = Path(__file__).parents[2]
        paths = [str(root), os.environ.get("PYTHONPATH", "")]
        done = subprocess.run(
            [sys.executable, str(Path(__file__).with_name("contenders.py")), name, str(file)],
            env={
                **os.environ,
                "OMP_NUM_THREADS": threads,
                "HF_HUB_OFFLINE": "1",
                "PYTHONPATH": os.pathsep.join(path for path in paths if path),
            },
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            sys.exit(f"{name} failed:\n{done.stderr[-3000:]}")
        found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
        shown = ", ".join(f"{key} {value:,.4g}" for key, value in found.items())
        print(f"{name} {arguments.get('dtype', '')}: {shown}", file=sys.stderr, flush=True)
        return found

    def rounds(self, ours: str, peer: str, **arguments: Any) -> tuple[list[Any], list[Any]]:
        """Run the two in turns; return what they took in each round."""
        took = [
            (self.run(ours, **arguments), self.run(peer, **arguments))
            for _ in range(self.options.rounds)
        ]
        return [one for one, _ in took], [other for _, other in took]

    def tokens(self, prompt: Any, response: str) -> int:
        """Return the tokens of a conversation."""
        if (prompt, response) not in self.lengths:
            (row,) = self.chat.encode([(prompt, response)])
            assert row is not None
            self.lengths[prompt, response] = len(row.ids)
        return self.lengths[prompt, response]

    def padded(self, examples: list[Example]) -> int:
        """Return the tokens that the peer runs, with padding."""
        return padded_tokens([self.tokens(*at) for at in peer_order(examples)])

    def scoring(self, what: str, parts: list[list[Example]], budget: int, dtype: str) -> list[Line]:
        """Score a sample of all parts, and return a line for the first and one for all."""
        parts = whole_prompts(parts, self.tokens, budget, self.options.seed)
        rate = self.run("matrix_rate", dtype=dtype)["rate"]
        arguments = {"model": str(self.classifier), "dtype": dtype}
        ours, peer = self.rounds(
            "score_ours", "score_pipeline", **arguments, parts=[to_json(part) for part in parts]
        )
        flop = flop_per_token(self.policy)
        run = int(ours[0]["run"])
        lines = []
        for last in range(len(parts)):
            seconds = [
                tuple(sum(took[f"seconds{n}"] for n in range(last + 1)) for took in side)
                for side in (ours, peer)
            ]
            median = sorted(seconds[0])[len(seconds[0]) // 2]
            lines.append(
                Line(
                    f"{what[last]}, {dtype}",
                    *seconds,
                    bound=sum(self.padded(part) for part in parts[: last + 1]) / run,
                    run=run,
                    share=share_of_rate(run, flop, median, rate),
                    memory=(max(t["memory"] for t in ours), max(t["memory"] for t in peer)),
                )
            )
        if len(parts) > 1:
            computed = [int(took["computed1"]) for took in ours]
            seconds_after = max(took["seconds1"] for took in ours)
            print(f"the lists after the pairs: {computed} computed, {seconds_after:.2f} s")
        return lines

    def training(self, objective: str, examples: list[Example]) -> Line:
        """Train on a sample of pairs."""
        model = str(self.classifier if objective == "bt" else self.policy)
        ours, peer = self.rounds(
            "train_ours",
            "train_trl",
            model=model,
            dtype=self.dtype,
            objective=objective,
            examples=to_json(examples),
        )
        return Line(
            f"{objective.upper()} training, {len(examples)} pairs, {self.dtype}",
            tuple(took["seconds0"] for took in ours),
            tuple(took["seconds0"] for took in peer),
            memory=(max(t["memory"] for t in ours), max(t["memory"] for t in peer)),
        )


def main() -> None:
    """Measure what the options name and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with the data")
    parser.add_argument("--tokens", type=int, help="the peers' tokens of each dtype's scoring")
    parser.add_argument("--pairs", type=int, default=16, help="pairs to train on")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtypes", nargs="*", choices=list(TOKENS))
    parser.add_argument("--only", nargs="*", default=_PARTS, choices=_PARTS)
    parser.add_argument("--figure", type=Path, help="where to draw how the cost grows")
    options = parser.parse_args()
    if "startup" in options.only:
        print("\n".join(startup.rows(options.rounds)), end="\n\n")
    if set(options.only) == {"startup"}:
        return
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, Path(folder))
        lines = list(measure(bench))
        if "growth" in options.only:
            grow(bench)
    print(f"\nthreads {options.threads}, rounds {options.rounds}, seed {options.seed}\n")
    print(table(lines))


def measure(bench: Bench) -> Iterator[Line]:
    """Yield the lines of whatever the options name and the folder holds."""
    options = bench.options
    scored: dict[str, tuple[list[str], list[list[Example]], float]] = {}
    if "rmb" in options.only and (path := found(options.data / "RMB_dataset")):
        groups = ["*/Helpfulness/Chat/*", "*/Helpfulness/Reasoning/*"]
        examples = RMB(path=path, include=groups).load().examples
        pairs = [e for e in examples if e.id.startswith("pairwise/")]
        lists = [e for e in examples if e.id.startswith("bon/")]
        names = ["RMB, pairs alone", "RMB, pairs and lists"]
        scored["rmb"] = names, [pairs, lists], _RMB_SHARE
    if "rmbench" in options.only and (path := found(options.data / "rm_bench")):
        examples = RMBench(path=path, include=["chat"]).load().examples
        scored["rmbench"] = ["RM-Bench chat"], [list(examples)], 1 - _RMB_SHARE
    for dtype in options.dtypes or dict.fromkeys(["float32", bench.dtype]):
        for names, parts, share in scored.values():
            budget = int(share * (options.tokens or TOKENS[dtype]))
            yield from bench.scoring(names, parts, budget, dtype)
    if scored:
        _, parts, _ = next(iter(scored.values()))
        drawn = random.Random(options.seed).sample(parts[0], _COMPARED)
        bench.run("compare", model=str(bench.classifier), examples=to_json(drawn))
    wanted = [objective for objective in ("bt", "dpo") if objective in options.only]
    if wanted and find_spec("trl") is None:
        print("TRL is not installed (extra `trl`): training is left out", file=sys.stderr)
    elif wanted and (path := found(options.data / "preferences" / "auto_j.jsonl")):
        examples = Preference(path=path, on_bad_row="skip").load().examples
        fitting = [
            e for e in examples if max(bench.tokens(e.prompt, t) for t in e.responses) <= LENGTH
        ]
        drawn = random.Random(options.seed).sample(fitting, options.pairs - options.pairs % BATCH)
        for objective in wanted:
            yield bench.training(objective, drawn)


def grow(bench: Bench) -> None:
    """Measure how the cost grows, in one round: print what a line explains of it."""
    parts = [to_json(examples(point, bench.options.seed)) for point in points()]
    arguments = {"model": str(bench.classifier), "dtype": bench.dtype, "parts": parts}
    seconds = {}
    for name, contender in (("rmexp", "score_ours"), ("pipeline", "score_pipeline")):
        took = bench.run(contender, **arguments)
        seconds[name] = [took[f"seconds{n}"] for n in range(len(parts))]
    for axis in dict.fromkeys(point.axis for point in points()):
        at = [n for n, point in enumerate(points()) if point.axis == axis]
        x = [points()[n].value for n in at]
        for name, values in seconds.items():
            y = [values[n] for n in at]
            intercept, slope, explained = linear(x, y)
            shown = ", ".join(f"{value}: {took:.2f} s" for value, took in zip(x, y, strict=True))
            print(
                f"{name}, {axis}: {shown}; line {intercept:.2f} s + {1000 * slope:.2f} ms each, "
                f"R^2 {explained:.4f}"
            )
    if bench.options.figure is not None:
        title = f"{bench.policy.name}, {bench.dtype}, {bench.options.threads} threads, one round"
        draw(seconds, title).savefig(bench.options.figure, bbox_inches="tight")


def found(path: Path) -> str | None:
    """Return the path if it is there, else say that it is not."""
    if path.exists():
        return str(path)
    print(f"{path} is not there: left out", file=sys.stderr)
    return None


def with_head(policy: Path, folder: Path) -> Path:
    """Save the policy's backbone with a random score head, for our and the peers' use alike."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils import logging

    torch.manual_seed(0)
    logging.set_verbosity_error()  # the head is missed on purpose
    model = AutoModelForSequenceClassification.from_pretrained(policy, num_labels=1)
    torch.nn.init.normal_(model.score.weight, std=0.04)
    tokenizer = AutoTokenizer.from_pretrained(policy)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def flop_per_token(policy: Path) -> float:
    """Return the FLOP of the backbone's matrices for a token: two for each of their weights."""
    from transformers import AutoConfig, AutoModel

    model = AutoModel.from_config(AutoConfig.from_pretrained(policy))
    weights = sum(p.numel() for n, p in model.named_parameters() if p.dim() == 2)
    return 2.0 * (weights - model.get_input_embeddings().weight.numel())


if __name__ == "__main__":
    main()
