"""Is the number any good? What is measured beside a benchmark's own metrics, on every benchmark."""

from collections.abc import Callable, Sequence

import numpy as np

from rmexp.benchmarks import Benchmark
from rmexp.metrics import Metric, plain_name
from rmexp.schema import ScoredExample
from rmexp.stats import calibration, nulls
from rmexp.stats.intervals import Estimate
from rmexp.stats.parts import low_subsets, worst_part


def quality_metrics(
    benchmark: Benchmark, scored: Sequence[ScoredExample], rng: np.random.Generator
) -> list[Metric]:
    """Return the headline without a model, and the proper scores of calibration."""
    name, headline = benchmark.name, benchmark.headline
    without = nulls.null_metrics(name, headline, benchmark.metrics, scored, rng)
    return [*without, *calibration.calibration_metrics(scored)]


def quality_estimates(
    benchmark: Benchmark,
    own: Sequence[Metric],
    estimates: Sequence[Estimate],
    scored: Sequence[ScoredExample],
    generator: Callable[[], np.random.Generator],
) -> tuple[list[Estimate], list[str]]:
    """Return the weakest parts and what else of calibration there is, and lines for the log.

    `own` are the benchmark's metrics, `estimates` those of all metrics so far. Each number is drawn
    with a `generator` of its own.
    """
    name, headline = benchmark.name, benchmark.headline
    found, notes = [], []
    if worst := worst_part(name, headline, own, estimates):
        found.append(worst[0])
        notes.append(f"{name}/worst is {plain_name(worst[1])}")
    low = low_subsets(name, headline, benchmark.metrics, scored, generator())
    found += [low] if low else []
    found += calibration.calibration_estimates(scored, generator())
    note = nulls.null_note(estimates)
    return found, [*notes, note] if note else notes
