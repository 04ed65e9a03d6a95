"""Correlations over reward models, with what keeps one such number from misleading.

Pure: arrays and a generator in, values out. A reward model is the unit of everything: its points
are permuted, resampled and left out together.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rmexp.errors import DataError
from rmexp.stats.bounds import LEAST_UNITS, TOO_FEW
from rmexp.stats.coefficients import (
    COEFFICIENTS,
    LEAST_POINTS,
    PAIRS_AT_ONCE,
    Array,
    Points,
    coefficients,
    ranks,
    signs,
    standardise,
)

_ENUMERATED = 5040  # orders of seven RMs: up to here all are counted, beyond they are drawn
_DRAWN = 9999
_PAIRS_IN_ALL = 2_000_000_000  # of points, which bounds the time
_MUCH = 0.2  # a change of a correlation that the summary points out
_ALMOST = 1e-9  # rounding, when a permuted correlation is compared with the observed one


@dataclass(frozen=True, slots=True)
class Correlation:
    """A coefficient with its 95 % bootstrap interval and its two-sided permutation p.

    `low` and `high` are None where the RMs are too few to be resampled (see `bounds`).
    """

    value: float
    low: float | None
    high: float | None
    p: float


@dataclass(frozen=True, slots=True)
class Correlations:
    """The coefficients of `n` points of `rms` reward models.

    `least` and `most` are the ends of the leave-one-out range: the Pearson without the named RM.
    They are None where what is left has no Pearson. `orders` is how many orders of the RMs gave the
    p values: all there are if `enumerated`, random ones otherwise.
    """

    pearson: Correlation
    spearman: Correlation
    kendall: Correlation
    n: int
    rms: int
    least: tuple[str, float] | None
    most: tuple[str, float] | None
    orders: int
    enumerated: bool

    def named(self) -> dict[str, Correlation]:
        """Return the coefficients by name."""
        return {name: getattr(self, name) for name in COEFFICIENTS}


@dataclass(frozen=True, slots=True)
class CorrelationDifference:
    """How much larger one correlation is than another, with the 95 % interval if it has one."""

    value: float
    low: float | None
    high: float | None


def refusal(points: Points) -> str | None:
    """Say why these points have no correlation, None if they have one."""
    if points.n < LEAST_POINTS:
        return f"{points.n} points are fewer than three"
    for side, values in (("score", points.x), ("policy", points.y)):
        if np.ptp(values) == 0:
            return f"the {side} side is constant, {values.flat[0]:g} everywhere"
    if points.standardised and (np.ptp(points.x, axis=0) == 0).any():
        return "the score side is constant in one domain"
    return None


def correlate(points: Points, rng: np.random.Generator, samples: int = 2000) -> Correlations:
    """Correlate x with y: Pearson, Spearman and Kendall's tau-b.

    The interval is a percentile bootstrap over whole RMs, from ten of them on. A resample with
    fewer than three points or with a constant side has no correlation; such resamples count as -1
    for the lower bound and as 1 for the upper one, so that an interval is never short because too
    little is known.

    p is the share of the orders of the RMs on one side whose coefficient is at least as far from 0.
    With up to seven RMs all orders are counted, so that p is never below 1 in their number; else
    (1 + hits) / (1 + draws).

    Raises DataError where there is no correlation: fewer than three points, or a constant side.
    """
    if reason := refusal(points):
        raise DataError(f"no correlation: {reason}; compare more reward models")
    count = len(points.rms)
    observed = coefficients(points, np.ones((1, count)))[:, 0]
    ends = _bounds(coefficients(points, _draw(count, samples, rng)), 1.0, count)
    p, orders, enumerated = _permutation_p(points, rng)
    pearson, spearman, kendall = (
        Correlation(float(value), low, high, float(chance))
        for value, (low, high), chance in zip(observed, ends, p, strict=True)
    )
    without = coefficients(points, 1.0 - np.eye(count))[0]
    least = most = None
    if not np.isnan(without).any():
        at, to = int(without.argmin()), int(without.argmax())
        least, most = (points.rms[at], float(without[at])), (points.rms[to], float(without[to]))
    return Correlations(
        pearson, spearman, kendall, points.n, count, least, most, orders, enumerated
    )


def difference(
    first: Points, second: Points, rng: np.random.Generator, samples: int = 2000
) -> dict[str, CorrelationDifference]:
    """Return by coefficient how much larger the first correlation is, resampling the RMs of both.

    A resample where one of the two is undefined counts as -2 for the lower and 2 for the upper
    bound. Raises DataError where either has no correlation, ValueError for different RMs.
    """
    if first.rms != second.rms:
        raise ValueError("the difference of correlations over different reward models")
    for points in (first, second):
        if reason := refusal(points):
            raise DataError(f"no correlation: {reason}; compare more reward models")
    count = len(first.rms)
    whole, weights = np.ones((1, count)), _draw(count, samples, rng)
    values = (coefficients(first, whole) - coefficients(second, whole))[:, 0]
    drawn = coefficients(first, weights) - coefficients(second, weights)
    return {
        name: CorrelationDifference(float(value), *ends)
        for name, value, ends in zip(COEFFICIENTS, values, _bounds(drawn, 2.0, count), strict=True)
    }


def remarks(correlations: Correlations) -> list[str]:
    """Say in plain words what a reader of the numbers alone would miss."""
    lines = []
    pearson, spearman = correlations.pearson.value, correlations.spearman.value
    if abs(pearson - spearman) >= _MUCH:
        lines.append(
            f"Linear and rank correlation disagree (Pearson {pearson:z.2f}, Spearman "
            f"{spearman:z.2f}): the relation is no straight line, or few points make it."
        )
    ends = [end for end in (correlations.least, correlations.most) if end is not None]
    if ends:
        name, without = max(ends, key=lambda end: abs(end[1] - pearson))
        if abs(without - pearson) >= _MUCH:
            lines.append(
                f"One point carries the result: without {name} the Pearson is {without:z.2f} "
                f"instead of {pearson:z.2f}."
            )
    if correlations.enumerated:
        orders = correlations.orders
        lines.append(
            f"With {correlations.rms} reward models there are {orders:,} orders, so p cannot fall "
            f"below 1/{orders:,} = {1 / orders:.2g}."
        )
    if correlations.rms < LEAST_UNITS:
        few = f"{correlations.rms} reward models are {TOO_FEW} for an interval"
        lines.append(f"{few}: they say little about others.")
    return lines


def _draw(count: int, samples: int, rng: np.random.Generator) -> Array:
    return rng.multinomial(count, np.full(count, 1 / count), size=samples).astype(float)


def _bounds(drawn: Array, end: float, rms: int) -> list[tuple[float, float] | tuple[None, None]]:
    """Return each row's 95 % percentile bounds; what is undefined counts as the end on that side.

    Too few RMs have none, nor have coefficients that are the same in every resample.
    """
    bounds: list[tuple[float, float] | tuple[None, None]] = []
    for row in drawn:
        low = float(np.quantile(np.where(np.isnan(row), -end, row), 0.025))
        high = float(np.quantile(np.where(np.isnan(row), end, row), 0.975))
        wide = rms >= LEAST_UNITS and high - low > _ALMOST
        bounds.append((low, high) if wide else (None, None))
    return bounds


def _permutation_p(points: Points, rng: np.random.Generator) -> tuple[Array, int, bool]:
    """Return the coefficients' p values, the number of orders and whether these are all."""
    count, width = points.x.shape
    whole = np.ones((1, count))
    w = np.ones((1, points.n))
    x = standardise(points.x, whole) if points.standardised else points.x.reshape(1, -1)
    y = points.y.reshape(1, -1)
    # Only the numerators differ between orders.
    linear = [(_centre(a)[0], _centre(b)[0]) for a, b in ((x, y), (ranks(x, w), ranks(y, w)))]
    x_signs, y_signs = signs(x)[0], signs(y)[0]
    observed = np.array([a @ b for a, b in linear] + [(x_signs * y_signs).sum()])
    least = abs(observed) - _ALMOST * np.array(
        [np.sqrt((a @ a) * (b @ b)) for a, b in linear] + [float(points.n)]
    )
    hits, orders = np.zeros(len(COEFFICIENTS)), 0
    enumerated = math.factorial(min(count, 20)) <= _ENUMERATED
    for chunk in _orders(points, enumerated, rng):
        index = (chunk[:, :, None] * width + np.arange(width)).reshape(len(chunk), -1)
        moved = [b[index] @ a for a, b in linear]
        moved.append((y_signs[index[:, :, None], index[:, None, :]] * x_signs).sum(axis=(1, 2)))
        hits += (abs(np.stack(moved)) >= least[:, None]).sum(axis=1)
        orders += len(chunk)
    return (hits / orders if enumerated else (1 + hits) / (1 + orders)), orders, enumerated


def _orders(
    points: Points, enumerated: bool, rng: np.random.Generator
) -> Iterator[NDArray[np.int_]]:
    """Yield orders of the RMs `(orders, RMs)`, some at a time: all, or random ones."""
    count = len(points.rms)
    step = max(1, PAIRS_AT_ONCE // points.n**2)
    if enumerated:
        everything = itertools.permutations(range(count))
        while chunk := list(itertools.islice(everything, step)):
            yield np.array(chunk)
        return
    left = max(999, min(_DRAWN, _PAIRS_IN_ALL // points.n**2))
    while left:
        size = min(step, left)
        yield rng.permuted(np.tile(np.arange(count), (size, 1)), axis=1)
        left -= size


def _centre(values: Array) -> Array:
    centred: Array = values - values.mean(axis=1, keepdims=True)
    return centred
