"""What the benchmarks' tests share: rewards for loaded examples, and the metrics' values."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from rmexp.benchmarks import Benchmark
from rmexp.schema import Dataset, Example, ScoredExample, scored_example
from rmexp.scoring.score import Reward, Scoring, Settings
from rmexp.stats.intervals import Estimate, intervals


def write_lines(path: Path, rows: Iterable[object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_json(path: Path, rows: Iterable[object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(list(rows)), encoding="utf-8")
    return path


def score(reward: Reward, examples: Iterable[Example], settings: Settings) -> Scoring:
    """Score examples that come from nowhere."""
    return reward.score(Dataset(tuple(examples), "a test"), settings)


def row(id: str, subset: str, chosen: Sequence[float], rejected: Sequence[float]) -> ScoredExample:
    """A scored example with a prompt of its own."""
    return ScoredExample(id, subset, f"prompt of {id}", tuple(chosen), tuple(rejected))


def pairs(subset: str, n: int, won: int) -> list[ScoredExample]:
    """`n` pairs, of which `won` are ranked rightly."""
    return [row(f"{subset}/{i}", subset, [float(i < won)], [0.5]) for i in range(n)]


def reward_all(dataset: Dataset, reward: Callable[[Example, str], float]) -> list[ScoredExample]:
    return [
        scored_example(
            example,
            [reward(example, response) for response in example.chosen],
            [reward(example, response) for response in example.rejected],
        )
        for example in dataset.examples
    ]


def negate(scored: Iterable[ScoredExample]) -> list[ScoredExample]:
    return [
        row.__class__(
            row.id,
            row.subset,
            row.prompt,
            tuple(-reward for reward in row.chosen),
            tuple(-reward for reward in row.rejected),
        )
        for row in scored
    ]


def estimate(bench: Benchmark, scored: Sequence[ScoredExample]) -> dict[str, Estimate]:
    """The estimates by name, with a token number of bootstrap samples; no points of curves."""
    every = intervals(bench.metrics(scored), scored, np.random.default_rng(0), samples=2)
    found = [estimate for estimate in every if estimate.at is None]
    by_name = {estimate.name: estimate for estimate in found}
    assert len(by_name) == len(found)
    return by_name


def values(bench: Benchmark, scored: Sequence[ScoredExample]) -> dict[str, float]:
    return {name: estimate.value for name, estimate in estimate(bench, scored).items()}


def check_pure(bench: Benchmark, scored: Sequence[ScoredExample]) -> None:
    """Metrics computed twice are the same, and leave their input alone."""
    before = list(scored)
    first, second = bench.metrics(scored), bench.metrics(scored)
    assert first
    assert first == second
    assert list(scored) == before
