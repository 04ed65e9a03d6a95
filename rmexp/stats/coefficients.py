"""Pearson, Spearman and Kendall of weighted points, many resamples at a time. Pure."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

COEFFICIENTS = ("pearson", "spearman", "kendall")
LEAST_POINTS = 3  # two lie on a line, whatever they are
PAIRS_AT_ONCE = 2_000_000  # of points, which bounds the memory

_ALMOST = 1e-9  # of a column's range: a standard deviation below it is rounding
_DECIMALS = 9  # of a z-score

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Points:
    """What is correlated: `x` and `y` are `(RMs, points of an RM)`, one point an RM as a rule.

    `standardised` asks for each column of `x` as z-scores over the RMs, made anew in each resample.
    """

    rms: tuple[str, ...]
    x: Array
    y: Array
    standardised: bool = False

    @property
    def n(self) -> int:
        """Return the number of points."""
        return self.x.size


def coefficients(points: Points, weights: Array) -> Array:
    """Return the coefficients `(3, samples)` of resamples, NaN where there is none.

    `weights` `(samples, RMs)` says how often each RM is in a resample: a point that is drawn twice
    is two points, tied with each other.
    """
    step = max(1, PAIRS_AT_ONCE // points.n**2)
    chunks = [weights[at : at + step] for at in range(0, len(weights), step)]
    return np.concatenate([_coefficients(points, chunk) for chunk in chunks], axis=1)


def _coefficients(points: Points, weights: Array) -> Array:
    w = np.repeat(weights, points.x.shape[1], axis=1)
    y = points.y.reshape(1, -1)
    with np.errstate(invalid="ignore", divide="ignore"):
        x = standardise(points.x, weights) if points.standardised else points.x.reshape(1, -1)
        values = np.stack(
            [
                _pearson(x, y, w),
                _pearson(ranks(x, w), ranks(y, w), w),
                _kendall(signs(x), signs(y), w),
            ]
        )
    drawn = (weights > 0).sum(axis=1) * points.x.shape[1]
    defined = (drawn >= LEAST_POINTS) & _varies(x, w) & _varies(y, w)
    return np.where(defined, np.clip(values, -1.0, 1.0), np.nan)


def standardise(x: Array, weights: Array) -> Array:
    """Return the z-scores `(samples, points)` of each column; NaN where a column is constant."""
    total = weights.sum(axis=1)[:, None, None]
    w = weights[:, :, None]
    centred = x - (w * x).sum(axis=1, keepdims=True) / total
    scale = np.sqrt((w * centred**2).sum(axis=1, keepdims=True) / total)
    z = np.where(scale > _ALMOST * np.ptp(x, axis=0), centred / scale, np.nan)
    # Without its rounding, for equal z-scores of two columns are to tie.
    return z.round(_DECIMALS).reshape(len(weights), -1)


def _pearson(x: Array, y: Array, w: Array) -> Array:
    total = w.sum(axis=1, keepdims=True)
    x = x - (w * x).sum(axis=1, keepdims=True) / total
    y = y - (w * y).sum(axis=1, keepdims=True) / total
    r: Array = (w * x * y).sum(axis=1) / np.sqrt((w * x * x).sum(axis=1) * (w * y * y).sum(axis=1))
    return r


def ranks(values: Array, w: Array) -> Array:
    """Return each point's rank in its resample; equal values share the mean of their ranks."""
    above = values[:, :, None] - values[:, None, :]
    return _apply((above > 0) + 0.5 * (above == 0), w) + 0.5


def _apply(matrices: Array, w: Array) -> Array:
    """Return each sample's matrix times its weights; one matrix may serve all samples."""
    if len(matrices) == 1:
        shared: Array = w @ matrices[0].T
        return shared
    each: Array = np.matmul(matrices, w[:, :, None])[:, :, 0]
    return each


def signs(values: Array) -> Array:
    """Return the signs of all differences `(samples, points, points)`."""
    return np.sign(values[:, :, None] - values[:, None, :])


def _kendall(x: Array, y: Array, w: Array) -> Array:
    """Return tau-b from the signs of all differences, each pair twice."""

    def pairs(signs: Array) -> Array:
        sums: Array = (_apply(signs, w) * w).sum(axis=1)
        return sums

    return pairs(x * y) / np.sqrt(pairs(abs(x)) * pairs(abs(y)))


def _varies(values: Array, w: Array) -> NDArray[np.bool_]:
    there = w > 0
    top = np.where(there, values, -np.inf).max(axis=1)
    bottom = np.where(there, values, np.inf).min(axis=1)
    varies: NDArray[np.bool_] = top > bottom  # False for NaN
    return varies
