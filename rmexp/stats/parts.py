"""The weakest part of a benchmark, beside its mean. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from rmexp.metrics import Mean, Metric, plain_name
from rmexp.schema import ScoredExample
from rmexp.stats.bounds import LEAST_UNITS
from rmexp.stats.intervals import Estimate, totals

_TENTH = 0.1


def worst_part(
    bench: str, headline: str, metrics: Sequence[Metric], estimates: Sequence[Estimate]
) -> tuple[Estimate, str] | None:
    """Return `<bench>/worst`, the lowest of the headline's parts, and that part's name.

    The parts are those of a weighted mean; of a plain mean they are the means of the same outcomes
    over some of its rows, such as a category. Parts without an interval count only where none has
    one. The interval is the part's own: that it was the lowest of several is not allowed for. None
    for fewer than two parts.
    """
    names = parts(headline, metrics)
    found = [each for each in estimates if plain_name(each.name) in names]
    if len(found) < 2:
        return None
    known = [each for each in found if each.known] or found
    lowest = min(known, key=lambda each: each.value)
    return replace(lowest, name=f"{bench}/worst", missing=()), lowest.name


def parts(headline: str, metrics: Sequence[Metric]) -> tuple[str, ...]:
    """Return the names of the metrics that are parts of the headline; see `worst_part`."""
    whole = next((metric for metric in metrics if metric.name == headline), None)
    if whole is None:
        return ()
    if not isinstance(whole, Mean):
        return whole.parts
    outcomes = dict(zip(whole.rows, whole.outcomes, strict=True))
    return tuple(
        metric.name
        for metric in metrics
        if isinstance(metric, Mean)
        and len(metric.rows) < len(whole.rows)
        and all(
            outcomes.get(row) == outcome
            for row, outcome in zip(metric.rows, metric.outcomes, strict=True)
        )
    )


def low_subsets(
    bench: str,
    headline: str,
    metrics: Callable[[Sequence[ScoredExample]], Sequence[Metric]],
    scored: Sequence[ScoredExample],
    rng: np.random.Generator,
    samples: int = 2000,
) -> Estimate | None:
    """Return `<bench>/subset_q10`, the 10 % quantile of the headline over the subsets.

    A subset's number is the headline of its examples alone; those of fewer than ten prompts are
    passed over. n counts subsets, which the bootstrap of the interval draws. None below ten.
    """
    rows: dict[str, list[ScoredExample]] = {}
    for row in scored:
        rows.setdefault(row.subset, []).append(row)
    values = []
    for of in rows.values():
        own = metrics(of)
        if len({row.prompt for row in of}) >= LEAST_UNITS and any(
            metric.name == headline and (not isinstance(metric, Mean) or metric.rows)
            for metric in own
        ):
            values.append(totals(own, of).value(headline))
    if len(values) < LEAST_UNITS:
        return None
    drawn = rng.choice(values, (samples, len(values)))
    ends = np.quantile(np.quantile(drawn, _TENTH, axis=1), [0.025, 0.975])
    low, high = map(float, ends) if ends[0] < ends[1] else (None, None)
    value = float(np.quantile(values, _TENTH))
    return Estimate(f"{bench}/subset_q10", value, len(values), low, high, ())
