"""Paired tests that flip signs: what could have come out if two models were exchangeable. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from rmexp.stats.bounds import Array
from rmexp.stats.intervals import Totals

SURE = 0.05  # a p below it counts as a difference

_EXACT = 20  # prompts whose exchanges are all counted, 2^20 of them
_CHUNK = 250  # random exchanges held in memory at once
_ALMOST = 1e-9  # of the two numbers: a difference that is nearer to the observed one is equal


@dataclass(frozen=True, slots=True)
class _Exchange:
    """How a difference changes with the prompts on which the two models are exchanged.

    `moved` `(prompts, columns)` is what an exchange of a prompt adds to the columns, of whose sums
    `(exchanges, columns)` the `difference` `(exchanges,)` is made. `least` is how far from 0 it is
    without any exchange, less rounding.
    """

    moved: Array
    difference: Callable[[Array], Array]
    least: float

    @property
    def matters(self) -> NDArray[np.bool_]:
        """Say on which prompts the two models differ at all."""
        return np.asarray(self.moved.any(axis=1), dtype=np.bool_)

    def as_far(self, sums: Array) -> NDArray[np.bool_]:
        """Say which differences are as far from 0 as the observed; one that is undefined is."""
        return np.asarray(~(abs(self.difference(sums)) < self.least), dtype=np.bool_)


def sign_flips(
    names: Sequence[str], ours: Totals, theirs: Totals, rng: np.random.Generator, samples: int
) -> list[float]:
    """Return the two-sided p of each metric's difference between two models.

    If the models were equally good, their outcomes on a prompt could be exchanged, which flips the
    sign of that prompt's difference. p is the share of such exchanges of whole prompts whose
    difference, the metric made anew of the exchanged outcomes, is at least as far from 0. With up
    to 20 prompts on which the two differ (the others change nothing) all exchanges are counted,
    else `samples` random ones, as (1 + hits) / (1 + samples).
    """
    exchanges = [_exchange(name, ours.only(name), theirs.only(name)) for name in names]
    return _chances(exchanges, len(ours.sums), rng, samples)


def flips_of_pairs(
    name: str, pairs: Sequence[tuple[Totals, Totals]], rng: np.random.Generator, samples: int
) -> list[float]:
    """Return the p of `sign_flips` of one metric for pairs of models on the same prompts."""
    exchanges = [_exchange(name, ours.only(name), theirs.only(name)) for ours, theirs in pairs]
    return _chances(exchanges, len(pairs[0][0].sums), rng, samples) if pairs else []


def _chances(
    exchanges: Sequence[_Exchange], prompts: int, rng: np.random.Generator, samples: int
) -> list[float]:
    drawn = [each for each in exchanges if each.matters.sum() > _EXACT]
    hits = _hits(drawn, prompts, rng, samples) if drawn else []
    sampled = iter([(1 + count) / (1 + samples) for count in hits])
    return [next(sampled) if each.matters.sum() > _EXACT else _exact(each) for each in exchanges]


def _exchange(name: str, ours: Totals, theirs: Totals) -> _Exchange:
    a, b = ours.value(name), theirs.value(name)
    least = abs(a - b) - _ALMOST * max(abs(a), abs(b))
    if np.array_equal(ours.counts, theirs.counts):  # then the difference is a sum over prompts
        apart = ours.by_prompt(name).values - theirs.by_prompt(name).values
        apart[(ours.sums == theirs.sums).all(axis=1)] = 0.0  # without rounding
        return _Exchange(-2 * apart[:, None], lambda sums: a - b + sums[:, 0], least)
    moved = np.hstack([theirs.sums - ours.sums, theirs.counts - ours.counts])

    def difference(sums: Array) -> Array:
        outcomes, counts = np.hsplit(sums, 2)
        first = ours.values(ours.sums.sum(0) + outcomes, ours.counts.sum(0) + counts)
        second = theirs.values(theirs.sums.sum(0) - outcomes, theirs.counts.sum(0) - counts)
        return first[name] - second[name]

    return _Exchange(moved, difference, least)


def _exact(exchange: _Exchange) -> float:
    """Count all exchanges. Those of all other prompts flip the sign of all: half are enough."""
    sums = np.zeros((1, exchange.moved.shape[1]))
    for moved in exchange.moved[exchange.matters][1:]:
        sums = np.concatenate([sums, sums + moved])
    return float(exchange.as_far(sums).mean())


def _hits(
    exchanges: Sequence[_Exchange], prompts: int, rng: np.random.Generator, samples: int
) -> list[int]:
    """Count, for each, the random exchanges whose difference is as far from 0."""
    moved = np.hstack([each.moved for each in exchanges])
    ends = np.cumsum([each.moved.shape[1] for each in exchanges])[:-1]
    hits = np.zeros(len(exchanges), dtype=int)
    for start in range(0, samples, _CHUNK):
        size = (min(_CHUNK, samples - start), prompts)
        sums = rng.integers(2, size=size).astype(float) @ moved
        parts = np.split(sums, ends, axis=1)
        hits += [each.as_far(part).sum() for each, part in zip(exchanges, parts, strict=True)]
    return [int(count) for count in hits]


def count_flips(differences: Sequence[int]) -> float:
    """Return the two-sided p of a sum of whole numbers whose signs are a fair coin's, exactly.

    >>> count_flips([1] * 5 + [-1]), count_flips([2]), count_flips([0])
    (0.21875, 1.0, 1.0)
    """
    sizes, counts = np.unique(np.abs(differences), return_counts=True)
    chances = np.ones(1)  # of the sums from -total to total
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        if size:
            own = np.zeros(2 * size * count + 1)
            own[:: 2 * size] = binom.pmf(np.arange(count + 1), count, 0.5)
            chances = np.convolve(chances, own)
    total = len(chances) // 2
    far = abs(np.arange(-total, total + 1)) >= abs(sum(differences))
    return min(1.0, round(float(chances[far].sum()), 15))


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Return p values corrected for their number (Holm 1979); what is None stays None.

    >>> holm([0.01, None, 0.04, 0.03])
    [0.03, None, 0.06, 0.06]
    """
    order = sorted((p, at) for at, p in enumerate(ps) if p is not None)
    corrected: list[float | None] = [None] * len(ps)
    highest = 0.0
    for place, (p, at) in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - place) * p))
        corrected[at] = highest
    return corrected


def chance_line(
    ps: Sequence[float | None], corrected: Sequence[float | None], file: str
) -> str | None:
    """Say how many of a file's p values would be low by chance; None for fewer than two."""
    known = [p for p in ps if p is not None]
    if len(known) < 2:
        return None
    low, still = (sum(p is not None and p < SURE for p in of) for of in (ps, corrected))
    return (
        f"Of the {len(known)} p values in {file} up to {SURE * len(known):.2g} would be below "
        f"{SURE} by chance if nothing differed. Below are {low}, and {still} by Holm's p, which "
        "allows for their number."
    )
