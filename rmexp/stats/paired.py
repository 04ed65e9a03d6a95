"""Two reward models on the same examples: which one is better, and by how much. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rmexp.errors import DataError
from rmexp.metrics import Metric
from rmexp.schema import ScoredExample
from rmexp.stats.bounds import difference_interval
from rmexp.stats.intervals import bootstrap, totals
from rmexp.stats.signflips import count_flips, holm, sign_flips

_NAMED = 5  # how many examples an error names


@dataclass(frozen=True, slots=True)
class Difference:
    """By how much the first RM's metric is higher than the second's, over the same n examples.

    `low` and `high` bound the difference `value` at 95 %, None below ten prompts and where a part
    has only one. `p` is two-sided, None for a single prompt; `p_holm` allows for the number of
    differences. `missing` is as in an `Estimate`.
    """

    name: str
    first: float
    second: float
    value: float
    n: int
    low: float | None
    high: float | None
    p: float | None
    missing: tuple[str, ...]
    p_holm: float | None = None


@dataclass(frozen=True, slots=True)
class McNemar:
    """On how many of n examples only the first, and only the second RM is right; the exact p."""

    first: int
    second: int
    n: int
    p: float


def differences(
    first: Sequence[ScoredExample],
    second: Sequence[ScoredExample],
    metrics: Callable[[Sequence[ScoredExample]], Sequence[Metric]],
    rng: np.random.Generator,
    samples: int = 10_000,
) -> list[Difference]:
    """Estimate by how much two RMs differ in each of a benchmark's `metrics`.

    The interval is a paired bootstrap: both RMs get the same resamples of whole prompts, in the
    strata of `stats.intervals`. p is that of `signflips.sign_flips`.

    Raises DataError where the two are not scores of the same examples.
    """
    second = match(first, second)
    ours, theirs = totals(metrics(first), first), totals(metrics(second), first)
    others = {each.name: each for each in theirs.measured()}
    both = [each for each in ours.measured() if each.name in others]
    drawn, other = bootstrap([ours, theirs], rng, samples)
    tested = [each.name for each in both if each.prompts > 1]
    p_of = dict(zip(tested, sign_flips(tested, ours, theirs, rng, samples), strict=True))
    compared = []
    for a, b in ((each, others[each.name]) for each in both):
        low, high = None, None
        if a.varies and b.varies:
            by_prompt = ours.by_prompt(a.name) - theirs.by_prompt(a.name)
            low, high = difference_interval(drawn[a.name] - other[a.name], by_prompt)
        numbers = (a.value, b.value, a.value - b.value, a.n, low, high, p_of.get(a.name))
        compared.append(Difference(a.name, *numbers, a.missing))
    corrected = holm([each.p for each in compared])
    return [replace(each, p_holm=p) for each, p in zip(compared, corrected, strict=True)]


def mcnemar(
    first: Sequence[ScoredExample],
    second: Sequence[ScoredExample],
    outcome: Callable[[Sequence[float], Sequence[float]], float],
) -> McNemar:
    """Test whether two RMs are right on equally many examples (McNemar 1947, exact).

    `outcome` maps an example's chosen and rejected rewards to 1.0 for right and 0.0 for wrong. The
    two-sided p is that of a fair coin for the examples on which the two differ; one coin decides
    about all examples of a prompt.

    Raises DataError where the two are not scores of the same examples.
    """
    only_first = only_second = 0
    by_prompt: dict[str, int] = {}
    for a, b in zip(first, match(first, second), strict=True):
        one, other = outcome(a.chosen, a.rejected), outcome(b.chosen, b.rejected)
        only_first += one > other
        only_second += one < other
        by_prompt[a.prompt] = by_prompt.get(a.prompt, 0) + (one > other) - (one < other)
    p = count_flips(list(by_prompt.values()))
    return McNemar(only_first, only_second, len(first), p)


def match(first: Sequence[ScoredExample], second: Sequence[ScoredExample]) -> list[ScoredExample]:
    """Return the second RM's examples in the order of the first's.

    Raises DataError for examples that only one has, or that have another prompt or other responses.
    """
    ids, by_id = {row.id for row in first}, {row.id: row for row in second}
    alone = {
        "first": [row.id for row in first if row.id not in by_id],
        "second": [row.id for row in second if row.id not in ids],
    }
    lines = [
        f"{len(names)} examples are in the {which} one only ({_some(names)})"
        for which, names in alone.items()
        if names
    ]
    if lines:
        raise DataError(f"{'; '.join(lines)}: compare runs on the same examples")
    other = [row.id for row in first if _asked(row) != _asked(by_id[row.id])]
    if other:
        raise DataError(
            f"{len(other)} examples have another prompt, subset or number of responses in the "
            f"second one ({_some(other)}): compare runs on the same data"
        )
    return [by_id[row.id] for row in first]


def _asked(row: ScoredExample) -> tuple[str, str, int, int]:
    return row.prompt, row.subset, len(row.chosen), len(row.rejected)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
