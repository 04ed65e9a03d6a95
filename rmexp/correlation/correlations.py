"""Correlations over reward models, with what keeps one such number from misleading.

Pure: arrays and a generator in, values out. A reward model is the unit of everything: its points
are permuted, resampled and left out together.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
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
_RESAMPLED = 20  # RMs from which the bootstrap's interval is shown first
_LEAST_OF_Z = 4
_Z, _Z_POWER = 1.959964, 0.841621  # the normal distribution's quantiles of 0.975 and 0.8
_MUCH = 0.2  # a change of a correlation that the summary points out
_ALMOST = 1e-9  # rounding, when a permuted correlation is compared with the observed one


@dataclass(frozen=True, slots=True)
class Correlation:
    """A coefficient with its 95 % bootstrap interval and its two-sided permutation p.

    `low` and `high` are None where the RMs are too few to be resampled (see `bounds`). `formula` is
    the interval of Fisher's z, of Spearman's coefficient with the variance of Bonett and Wright
    (2000), None where none is known: for Kendall's, for several points of an RM, for fewer than
    four RMs and at 1 and -1.
    """

    value: float
    low: float | None
    high: float | None
    p: float
    formula: tuple[float, float] | None = None

    def shown(self, rms: int) -> tuple[float | None, float | None]:
        """Return the interval to show first: the formula's for fewer than 20 RMs, if it is known.

        The bootstrap of Pearson's coefficient covers only 87 to 92 % at 9 to 17.
        """
        return self.formula if self.formula and rms < _RESAMPLED else (self.low, self.high)


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
        Correlation(float(value), low, high, float(chance), _formula(name, float(value), points))
        for name, value, (low, high), chance in zip(COEFFICIENTS, observed, ends, p, strict=True)
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
    least = detectable(correlations.rms)
    if least is not None and correlations.rms < _RESAMPLED:
        lines.append(
            f"With {correlations.rms} reward models a correlation of {least:.2f} or more would be "
            "found in 80 % of such studies: a smaller one could be missed, or stand here by chance."
        )
    if correlations.rms < LEAST_UNITS:
        few = f"{correlations.rms} reward models are {TOO_FEW} to be resampled"
        lines.append(f"{few}: they say little about others.")
    return lines


def detectable(rms: int) -> float | None:
    """Return the |r| that would be found (p < 0.05) in 80 % of studies of so many RMs.

    By Fisher's z: tanh((1.96 + 0.84) / sqrt(n - 3)). None for fewer than four.

    >>> round(detectable(6), 2), round(detectable(17), 2)
    (0.92, 0.63)
    """
    return None if rms < _LEAST_OF_Z else math.tanh((_Z + _Z_POWER) / math.sqrt(rms - 3))


def max_t(every: Sequence[Points], rng: np.random.Generator) -> list[float]:
    """Return for each score's Pearson a p that allows for their number (Westfall and Young 1993).

    The scores are set against one policy measure, which is permuted over all RMs at once: p is the
    share of orders whose highest |r| of any score is at least the observed one. Orders are counted
    or drawn as in `correlate`; a score is correlated over the RMs that have it.

    Raises ValueError for several points of an RM, or for policies that differ.
    """
    policy = {rm: float(y[0]) for of in every for rm, y in zip(of.rms, of.y, strict=True)}
    for of in every:
        if of.x.shape[1] != 1 or [policy[rm] for rm in of.rms] != of.y.ravel().tolist():
            raise ValueError("max-T needs one point of an RM and one policy for all scores")
    rms = tuple(policy)
    y = np.array(list(policy.values()))
    columns = [[rms.index(rm) for rm in of.rms] for of in every]
    observed = np.array([_pearsons(of.x.ravel(), of.y.reshape(1, -1))[0] for of in every])
    hits, orders = np.zeros(len(every)), 0
    enumerated = math.factorial(min(len(rms), 20)) <= _ENUMERATED
    for chunk in _orders(Points(rms, y[:, None], y[:, None]), enumerated, rng):
        moved = y[chunk]
        found = np.stack(
            [
                abs(_pearsons(of.x.ravel(), moved[:, own]))
                for of, own in zip(every, columns, strict=True)
            ]
        )
        hits += (found.max(axis=0) >= abs(observed)[:, None] - _ALMOST).sum(axis=1)
        orders += len(chunk)
    p = hits / orders if enumerated else (1 + hits) / (1 + orders)
    return [float(each) for each in p]


def _pearsons(x: Array, y: Array) -> Array:
    """Return the Pearson of x `(points,)` with each row of y `(orders, points)`.

    It is 1 where a row is constant: nothing is then known of it.
    """
    x = x - x.mean()
    y = y - y.mean(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        r: Array = y @ x / np.sqrt((x @ x) * (y * y).sum(axis=1))
    return np.where(np.isnan(r), 1.0, r)


def _formula(name: str, value: float, points: Points) -> tuple[float, float] | None:
    """Return tanh(atanh r +- 1.96 s), s^2 being 1 / (n - 3), times 1 + r^2 / 2 for Spearman's."""
    rms = len(points.rms)
    known = name != "kendall" and points.x.shape[1] == 1 and rms >= _LEAST_OF_Z
    if not known or abs(value) > 1 - _ALMOST:
        return None
    error = math.sqrt((1 + value**2 / 2 if name == "spearman" else 1) / (rms - 3))
    z = math.atanh(value)
    return math.tanh(z - _Z * error), math.tanh(z + _Z * error)


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
