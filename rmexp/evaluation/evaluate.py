"""Evaluation: load a benchmark, score it, measure; a result comes out, and nothing is written."""

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rmexp.benchmarks import Benchmark, open_benchmark
from rmexp.evaluation.checks import NO_CHECKS, Checks, overlap_estimates, rewrite_estimates
from rmexp.evaluation.quality import quality_estimates, quality_metrics
from rmexp.evaluation.result import Result, flat_metrics, is_style, summarise
from rmexp.metrics import Mean, Metric, WeightedMean, WeightedSum, is_coarse, plain_name
from rmexp.schema import Dataset
from rmexp.scoring.score import Reward, Settings
from rmexp.stats import bestofn
from rmexp.stats.calibration import PREFIX as CALIBRATION
from rmexp.stats.intervals import Estimate, intervals
from rmexp.stats.lengths import length_metrics
from rmexp.stats.nulls import is_null, is_part

log = logging.getLogger(__name__)

_NAMED_ROWS = 5


def evaluate(
    reward: Reward, benchmark: Benchmark | str, settings: Settings | None = None
) -> Result:
    """Evaluate a reward model on a benchmark, or on the one that `bench=` knows by this name.

    Raises RmexpError for whatever cannot work.
    """
    if isinstance(benchmark, str):
        benchmark = open_benchmark(benchmark)
    return measure(reward, benchmark, load(benchmark), settings or Settings())


def load(benchmark: Benchmark) -> Dataset:
    """Load a benchmark's examples, and say what they are."""
    data = benchmark.load()
    log.info("%s: %d examples from %s", benchmark.name, len(data.examples), data.source)
    for note in data.notes:
        log.warning("%s", note)
    _warn_of_bad_rows(data.bad_rows)
    return data


def measure(
    reward: Reward,
    benchmark: Benchmark,
    data: Dataset,
    settings: Settings,
    checks: Checks = NO_CHECKS,
) -> Result:
    """Score the examples, and estimate the benchmark's metrics and what they owe to length.

    `checks` are made besides; see `evaluation.checks`.
    """
    log.info("%s is read as: %s", reward.name, reward.description)
    scoring = reward.score(data, settings)
    _warn_of_bad_rows(scoring.bad_rows)
    own = benchmark.metrics(scoring.scored)

    def generator() -> np.random.Generator:
        return np.random.default_rng(settings.seed)

    measured = [
        *own,
        *length_metrics(scoring.scored),
        *scoring.metrics,
        *quality_metrics(benchmark, scoring.scored, generator()),
    ]
    every = intervals(measured, scoring.scored, generator())
    every = [estimate for estimate in every if not is_part(estimate.name)]
    quality, said = quality_estimates(benchmark, own, every, scoring.scored, generator)
    if checks.train:
        found, note = overlap_estimates(benchmark, data, scoring.scored, checks.train, generator)
        quality, said = [*quality, *found], [*said, note]
    if checks.rewrites:
        quality += rewrite_estimates(reward, benchmark, data, scoring.scored, settings)
    estimates = _in_order([*every, *quality], benchmark.headline)
    _warn_of_partial(estimates)
    undefined = {m.name: m.undefined for m in measured if isinstance(m, Mean) and m.undefined}
    notes = [*said, *(_undefined_note(name, ids) for name, ids in undefined.items())]
    for note in notes:
        log.warning("%s", note)
    data = replace(
        data,
        bad_rows=(*data.bad_rows, *scoring.bad_rows),
        notes=(*data.notes, *notes),
    )
    counts = {name: len(ids) for name, ids in undefined.items()}
    metrics = flat_metrics(estimates, scoring, data, counts)
    return Result(
        reward=reward.name,
        description=reward.description,
        benchmark=benchmark,
        data=data,
        scoring=scoring,
        estimates=estimates,
        curve=tuple(bestofn.points(every)),
        metrics=metrics,
        summary=summarise(reward, benchmark, estimates, metrics, data),
        coarse=_coarse(measured, estimates, benchmark.headline),
    )


def _in_order(every: Sequence[Estimate], headline: str) -> tuple[Estimate, ...]:
    """Return the estimates to read: the headline, the same without a model, from coarse to fine.

    Calibration and style are at the end. Points of curves are left out.
    """

    def place(estimate: Estimate) -> tuple[bool, bool, bool, bool, int]:
        name = plain_name(estimate.name)
        last = is_style(estimate), not name.startswith(CALIBRATION)
        return *last, name != headline, not is_null(name), name.count("/")

    return tuple(sorted((estimate for estimate in every if estimate.at is None), key=place))


def _coarse(
    measured: Sequence[Metric], estimates: Sequence[Estimate], headline: str
) -> tuple[str, ...]:
    """Return the reported names of the coarse metrics, in the order in which to read them."""
    whole = next((metric for metric in measured if metric.name == headline), None)
    parts = whole.parts if isinstance(whole, WeightedMean | WeightedSum) else ()
    return tuple(e.name for e in estimates if is_coarse(plain_name(e.name), parts))


def _warn_of_bad_rows(rows: Sequence[str]) -> None:
    if rows:
        more = "; ..." if len(rows) > _NAMED_ROWS else ""
        log.warning("%d bad rows: %s", len(rows), "; ".join(rows[:_NAMED_ROWS]) + more)


def _warn_of_partial(estimates: Sequence[Estimate]) -> None:
    lacking: dict[tuple[str, ...], list[str]] = {}
    for estimate in estimates:
        if estimate.missing:
            lacking.setdefault(estimate.missing, []).append(plain_name(estimate.name))
    for missing, names in lacking.items():
        more = f" and {len(names) - _NAMED_ROWS} more" if len(names) > _NAMED_ROWS else ""
        aggregates = ", ".join(names[:_NAMED_ROWS]) + more
        log.warning("partial, nothing of %s is there: %s", ", ".join(missing), aggregates)


def _undefined_note(name: str, ids: Sequence[str]) -> str:
    more = ", ..." if len(ids) > _NAMED_ROWS else ""
    return f"{name} is undefined for {len(ids)} examples: {', '.join(ids[:_NAMED_ROWS])}{more}"
