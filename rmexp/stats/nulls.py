"""A benchmark's headline without a model: longer wins, shorter wins, chance, more markdown. Pure.

A benchmark on which one of these is far above chance can be won without reading.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from rmexp.metrics import Mean, Metric, WeightedMean, WeightedSum, plain_name
from rmexp.schema import ScoredExample
from rmexp.stats.intervals import Estimate

NULLS = ("longer", "shorter", "random", "markdown")
CHANCE = "random"

_DRAWS = 4  # of random rewards, each also with its sign changed: a pair is then right in half
_FAR = 0.1  # above chance, which a benchmark's page says


def null_metrics(
    bench: str,
    headline: str,
    metrics: Callable[[Sequence[ScoredExample]], Sequence[Metric]],
    scored: Sequence[ScoredExample],
    rng: np.random.Generator,
) -> list[Metric]:
    """Return `<bench>/null/<null>`, the headline under each null, after what it is made of.

    The benchmark's own rule decides, ties being wrong where they are. The rewards are a response's
    length in characters, the same negative, and its marks of Markdown; of random ones the metric is
    a mean over draws. `is_part` tells what is only a part. There is nothing where the headline has
    no highest value: it is no score that a null could reach.
    """
    if not all(row.lengths for row in scored):
        return []
    needed = _needed(metrics(scored), headline)
    if any(isinstance(one, Mean) and one.bounds[1] == math.inf for one in needed):
        return []
    found: list[Metric] = []
    for null in NULLS:
        draws = [_needed(metrics(rows), headline) for rows in _rewarded(null, scored, rng)]
        prefix = null_name(bench, null)
        names = {metric.name: f"{prefix}/{metric.name}" for metric in draws[0]} | {headline: prefix}
        found += [_renamed(_averaged(same), names) for same in zip(*draws, strict=True)]
    return found


def null_name(bench: str, null: str) -> str:
    """Return the name of a benchmark's headline under a null."""
    return f"{bench}/null/{null}"


def is_null(name: str) -> bool:
    """Say whether a metric, whole or partial, is the headline under a null."""
    levels = plain_name(name).split("/")
    return len(levels) == 3 and levels[1] == "null"


def is_part(name: str) -> bool:
    """Say whether a metric is only a part of the headline under a null."""
    levels = plain_name(name).split("/")
    return len(levels) > 3 and levels[1] == "null"


def null_note(estimates: Sequence[Estimate]) -> str | None:
    """Say which null is far above chance on this benchmark, None if none is."""
    values = {e.name.split("/")[2]: e for e in estimates if is_null(e.name)}
    if CHANCE not in values:
        return None
    far = [
        each
        for null, each in values.items()
        if null != CHANCE and each.low is not None and each.low > values[CHANCE].value
        if each.value >= values[CHANCE].value + _FAR
    ]
    said = ", ".join(f"{each.name} {each.value:.2f}" for each in far)
    chance = f"chance is {values[CHANCE].value:.2f}"
    return f"this benchmark can be won without reading: {said}; {chance}" if far else None


def _rewarded(
    null: str, scored: Sequence[ScoredExample], rng: np.random.Generator
) -> Iterator[list[ScoredExample]]:
    """Yield the examples with a null's rewards; random ones several times."""
    if null != CHANCE:
        sign = -1.0 if null == "shorter" else 1.0
        counts = [row.marks if null == "markdown" else row.lengths for row in scored]
        yield [_with(row, [sign * n for n in of]) for row, of in zip(scored, counts, strict=True)]
        return
    for _ in range(_DRAWS):
        drawn = [rng.standard_normal(len(row.lengths)).tolist() for row in scored]
        for sign in (1.0, -1.0):
            yield [
                _with(row, [sign * n for n in of]) for row, of in zip(scored, drawn, strict=True)
            ]


def _with(row: ScoredExample, rewards: Sequence[float]) -> ScoredExample:
    split = len(row.chosen)
    return replace(
        row, chosen=tuple(rewards[:split]), rejected=tuple(rewards[split:]), verdicts=None
    )


def _needed(metrics: Sequence[Metric], headline: str) -> list[Metric]:
    """Return the headline with what it is made of, in their order; nothing without a headline."""
    wanted = {headline}
    for metric in reversed(metrics):
        if metric.name in wanted and not isinstance(metric, Mean):
            wanted.update(metric.parts)
    kept = [metric for metric in metrics if metric.name in wanted]
    return kept if any(metric.name == headline for metric in kept) else []


def _averaged(same: Sequence[Metric]) -> Metric:
    """Return a metric whose outcomes are the means of those of the draws."""
    first = same[0]
    if not isinstance(first, Mean) or len(same) == 1:
        return first
    outcomes = np.mean([each.outcomes for each in same if isinstance(each, Mean)], axis=0)
    return replace(first, outcomes=tuple(outcomes.tolist()))


def _renamed(metric: Metric, names: dict[str, str]) -> Metric:
    if isinstance(metric, WeightedMean | WeightedSum):
        return replace(
            metric, name=names[metric.name], parts=tuple(names[part] for part in metric.parts)
        )
    return replace(metric, name=names[metric.name])
