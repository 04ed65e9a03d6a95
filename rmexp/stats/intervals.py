"""Intervals by bootstrap over prompts. Pure: every function takes its own generator."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rmexp.errors import DataError
from rmexp.metrics import Mean, Metric, WeightedMean, reported_name
from rmexp.schema import ScoredExample
from rmexp.stats.bounds import Array, Contributions, interval

_CHUNK = 250  # bootstrap samples held in memory at once


@dataclass(frozen=True, slots=True)
class Estimate:
    """A metric's value over n examples, with its 95 % interval.

    `low` and `high` are None where the prompts cannot carry one (see `bounds`), or one of the
    parts has a single prompt. `missing` names the parts without any example, which `name` tells:
    it is `metrics.reported_name`. `at` is the place on a curve of a point of one. `chance` is what
    rewards drawn at random are expected to give, None where that is not known.
    """

    name: str
    value: float
    n: int
    low: float | None
    high: float | None
    missing: tuple[str, ...]
    at: int | None = None
    chance: float | None = None

    @property
    def known(self) -> bool:
        """Say whether there is an interval."""
        return self.low is not None


def intervals(
    metrics: Sequence[Metric],
    scored: Sequence[ScoredExample],
    rng: np.random.Generator,
    samples: int = 2000,
) -> list[Estimate]:
    """Estimate each metric with a percentile interval, resampling whole prompts.

    Prompts are drawn within strata, a stratum being the prompts that occur in the same subsets, so
    that every resample keeps the benchmark's composition (Efron and Tibshirani 1993, chapter 8).
    What few prompts carry instead is said in `bounds`. `metrics` must name the parts of a weighted
    mean or sum before it. A mean of no rows has no estimate.

    Raises DataError for two metrics of one name.
    """
    of = totals(metrics, scored)
    (drawn,) = bootstrap([of], rng, samples)
    estimates = []
    for each in of.measured():
        low, high = None, None
        if each.varies:
            low, high = interval(drawn[each.name], of.by_prompt(each.name))
        name = reported_name(each.name, each.missing)
        estimates.append(
            Estimate(name, each.value, each.n, low, high, each.missing, each.at, each.chance)
        )
    return estimates


@dataclass(frozen=True, slots=True)
class Measured:
    """A metric's value over its n examples, of `prompts` prompts.

    It `varies` unless all examples, or all of one part, answer one prompt.
    """

    name: str
    value: float
    n: int
    prompts: int
    varies: bool
    missing: tuple[str, ...]
    at: int | None
    chance: float | None


@dataclass(frozen=True, slots=True)
class Totals:
    """What metrics are made of: their means' sums and counts by prompt, `(prompts, means)` each.

    `prompt_of` has each example's prompt; `strata` are the prompts that are resampled together.
    """

    metrics: tuple[Metric, ...]
    sums: Array
    counts: Array
    prompt_of: NDArray[np.int_]
    strata: Sequence[NDArray[np.int_]]

    def values(self, sums: Array, counts: Array) -> dict[str, Array]:
        """Return each metric `(samples,)` of its means' sums and counts `(samples, means)`."""
        # A small part can be empty in a resample: its 0/0 is NaN there, and is left out.
        with np.errstate(invalid="ignore", divide="ignore"):
            return self._combined(sums / counts)

    def value(self, name: str) -> float:
        """Return a metric."""
        every = self.values(self.sums.sum(0, keepdims=True), self.counts.sum(0, keepdims=True))
        return float(every[name][0])

    def only(self, name: str) -> "Totals":
        """Return a metric with what it is made of."""
        wanted = {name}
        for metric in reversed(self.metrics):
            if metric.name in wanted and not isinstance(metric, Mean):
                wanted.update(metric.parts)
        kept = tuple(metric for metric in self.metrics if metric.name in wanted)
        means = [metric.name for metric in self.metrics if isinstance(metric, Mean)]
        columns = [at for at, mean in enumerate(means) if mean in wanted]
        sums, counts = self.sums[:, columns], self.counts[:, columns]
        return Totals(kept, sums, counts, self.prompt_of, self.strata)

    def by_prompt(self, name: str) -> Contributions:
        """Return what each prompt adds to a metric, all means keeping their counts."""
        of = self.only(name)
        bounds = np.array([metric.bounds for metric in of.metrics if isinstance(metric, Mean)])
        counts = of.counts.sum(0)
        with np.errstate(invalid="ignore"):  # 0 times what has no bound
            least, most = (
                np.where(of.counts > 0, of.counts / counts * ends, 0.0) for ends in bounds.T
            )
        values, least, most = (of._combined(part)[name] for part in (of.sums / counts, least, most))
        return Contributions(values, least, most, self.strata)

    def measured(self) -> list[Measured]:
        """Return the metrics with what is known of their examples."""
        rows_of: dict[str, frozenset[int]] = {}
        by_name: dict[str, Measured] = {}
        values = self.values(self.sums.sum(0, keepdims=True), self.counts.sum(0, keepdims=True))
        means = [metric for metric in self.metrics if isinstance(metric, Mean)]
        chances = self._combined(np.array([[m.chance for m in means]], dtype=float))  # None is NaN
        for metric in self.metrics:
            if metric.name in by_name:
                raise DataError(
                    f"two metrics are called {metric.name}: rename one of the two subsets"
                )
            if isinstance(metric, Mean):
                rows, missing = frozenset(metric.rows), metric.missing
            else:
                rows = frozenset().union(*(rows_of[part] for part in metric.parts))
                inherited = [name for part in metric.parts for name in by_name[part].missing]
                missing = tuple(dict.fromkeys([*metric.missing, *inherited]))
            rows_of[metric.name] = rows
            prompts = len(set(self.prompt_of[list(rows)].tolist()))
            varies = prompts > 1
            if not isinstance(metric, Mean):
                varies = all(by_name[part].varies for part in metric.parts)
            value, chance = (float(of[metric.name][0]) for of in (values, chances))
            at = metric.at if isinstance(metric, Mean) else None
            by_name[metric.name] = Measured(
                metric.name,
                value,
                len(rows),
                prompts,
                varies,
                missing,
                at,
                None if math.isnan(chance) else chance,
            )
        return list(by_name.values())

    def _combined(self, means: Array) -> dict[str, Array]:
        """Return each metric `(samples,)` of its means `(samples, means)`."""
        values: dict[str, Array] = {}
        column = 0
        for metric in self.metrics:
            if isinstance(metric, Mean):
                values[metric.name] = means[:, column]
                column += 1
            else:
                parts = np.stack([values[part] for part in metric.parts])
                total = np.array(metric.weights) @ parts
                mean = isinstance(metric, WeightedMean)
                values[metric.name] = total / sum(metric.weights) if mean else total
        return values


def totals(metrics: Sequence[Metric], scored: Sequence[ScoredExample]) -> Totals:
    """Add up by prompt what the metrics are made of; means of no rows are left out."""
    keys: dict[str, int] = {}
    prompt_of = np.array([keys.setdefault(row.prompt, len(keys)) for row in scored], dtype=int)
    there = tuple(m for m in metrics if not isinstance(m, Mean) or m.rows)
    means = [metric for metric in there if isinstance(metric, Mean)]
    sums, counts = np.zeros((2, len(keys), len(means)))
    for column, one in enumerate(means):
        np.add.at(sums[:, column], prompt_of[list(one.rows)], one.outcomes)
        np.add.at(counts[:, column], prompt_of[list(one.rows)], 1.0)
    return Totals(there, sums, counts, prompt_of, _strata(scored, prompt_of, len(keys)))


def bootstrap(
    of: Sequence[Totals], rng: np.random.Generator, samples: int
) -> list[dict[str, Array]]:
    """Return all metrics `(samples,)`, all in the same resamples of the prompts of the first."""
    chunks: list[list[dict[str, Array]]] = [[] for _ in of]
    for start in range(0, samples, _CHUNK):
        weights = _resample(of[0].strata, min(_CHUNK, samples - start), rng)
        for each, drawn in zip(of, chunks, strict=True):
            drawn.append(each.values(weights @ each.sums, weights @ each.counts))
    return [
        {name: np.concatenate([chunk[name] for chunk in drawn]) for name in drawn[0]}
        for drawn in chunks
    ]


def _strata(
    scored: Sequence[ScoredExample], prompt_of: NDArray[np.int_], prompts: int
) -> list[NDArray[np.int_]]:
    """Group the prompts by the set of subsets that they occur in.

    Prompts that are alone in theirs form one stratum together: alone they would never vary.
    """
    subsets: list[set[str]] = [set() for _ in range(prompts)]
    for row, example in enumerate(scored):
        subsets[prompt_of[row]].add(example.subset)
    groups: dict[frozenset[str], list[int]] = {}
    for prompt, names in enumerate(subsets):
        groups.setdefault(frozenset(names), []).append(prompt)
    strata = [np.array(group) for group in groups.values() if len(group) > 1]
    alone = [group[0] for group in groups.values() if len(group) == 1]
    return [*strata, np.array(alone)] if alone else strata


def _resample(
    strata: Sequence[NDArray[np.int_]], samples: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Return how often each prompt is drawn: `(samples, prompts)`."""
    weights = np.zeros((samples, sum(len(stratum) for stratum in strata)))
    for stratum in strata:
        share = np.full(len(stratum), 1 / len(stratum))
        weights[:, stratum] = rng.multinomial(len(stratum), share, size=samples)
    return weights
