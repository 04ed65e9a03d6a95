"""Which interval a number can carry: the one rule for all that is resampled. Pure.

A share of fewer than 100 resampled units, or of all or none of them, has Wilson's interval (1927).
For any other number a bootstrap is believed from ten units on, and below it has none. Where nothing
varies a bootstrap has no width, and a bound that needs no variation takes its place.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEAST_UNITS = 10  # from which a bootstrap is believed
TOO_FEW = "too few"  # what tables and figures say where there is no interval

_MANY = 100  # prompts, from which a share is resampled
_TAIL = 0.025
_Z = 1.959964  # the normal distribution's quantile of 1 - _TAIL
_ALMOST = 1e-9  # of a number: what is nearer is rounding

Array = NDArray[np.float64]
Interval = tuple[float, float] | tuple[None, None]


@dataclass(frozen=True, slots=True)
class Contributions:
    """What each prompt adds to a number `(prompts,)`, and the least and most that it could add.

    The number is the sum of `values`. `strata` are the prompts that are resampled together.
    """

    values: Array
    least: Array
    most: Array
    strata: Sequence[NDArray[np.int_]]

    def __sub__(self, other: "Contributions") -> "Contributions":
        return Contributions(
            self.values - other.values,
            self.least - other.most,
            self.most - other.least,
            self.strata,
        )

    @property
    def units(self) -> NDArray[np.bool_]:
        """Say which prompts decide about the number `(prompts,)`."""
        return np.asarray(self.most > self.least, dtype=np.bool_)


def interval(drawn: Array, by_prompt: Contributions) -> Interval:
    """Return the 95 % interval of a number from its resamples `(samples,)`, None without one."""
    share = _share(by_prompt)
    if share is not None and (share[1] < _MANY or share[0] in (0, share[1])):
        units = by_prompt.units
        span = float((by_prompt.most - by_prompt.least)[units].sum())
        low, high = wilson(*share)
        least = float(by_prompt.least.sum())
        return _rounded(least + low * span, least + high * span)
    return difference_interval(drawn, by_prompt)


def difference_interval(drawn: Array, by_prompt: Contributions) -> Interval:
    """Return the same of a difference, which is no share."""
    drawn = drawn[~np.isnan(drawn)]
    if by_prompt.units.sum() < LEAST_UNITS or not drawn.size:
        return None, None
    low, high = np.quantile(drawn, [_TAIL, 1 - _TAIL])
    if high - low > _ALMOST * max(abs(low), abs(high)):
        return float(low), float(high)
    return _unvaried_interval(by_prompt)


def interval_text(low: float | None, high: float | None, form: str = "z.3f") -> str:
    """Write an interval as tables and figures do.

    >>> interval_text(-0.0001, 0.5), interval_text(None, None)
    ('0.000 to 0.500', 'too few')
    """
    return TOO_FEW if low is None or high is None else f"{low:{form}} to {high:{form}}"


def wilson(right: float, n: float) -> tuple[float, float]:
    """Return Wilson's (1927) 95 % interval of a share; of weighted ones `right` may be no whole.

    >>> [round(end, 4) for end in wilson(9, 10)]
    [0.5958, 0.9821]
    """
    share, z = right / n, _Z**2 / n
    centre = (share + z / 2) / (1 + z)
    half = _Z / (1 + z) * math.sqrt((share * (1 - share) + z / 4) / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def _share(by_prompt: Contributions) -> tuple[int, int] | None:
    """Return how many of n prompts add all, where at least two add all or nothing, and as much."""
    units = by_prompt.units
    could = (by_prompt.most - by_prompt.least)[units]
    if len(could) < 2 or not np.isfinite(could).all() or not np.allclose(could, could[0]):
        return None
    shares = (by_prompt.values - by_prompt.least)[units] / could
    right = np.round(shares)
    return (int(right.sum()), len(could)) if np.allclose(shares, right) else None


def _unvaried_interval(by_prompt: Contributions) -> Interval:
    """Bound a number of which every resample is the same, from what a prompt could add.

    If a share e of a stratum's prompts were unlike the n that were seen, none of these would be
    one of them with probability (1 - e)^n. An end of the interval is as far as the number can be
    with such shares that the product over the strata is still 2.5 %.
    """
    units = by_prompt.units
    n = np.array([units[stratum].sum() for stratum in by_prompt.strata], dtype=float)
    below, above = by_prompt.values - by_prompt.least, by_prompt.most - by_prompt.values
    lost, gained = (
        _unseen(np.array([room[stratum].sum() for stratum in by_prompt.strata]), n)
        for room in (below, above)
    )
    if not np.isfinite([lost, gained]).all():
        return None, None
    value = by_prompt.values.sum()
    return _rounded(value - lost, value + gained)


def _rounded(low: float, high: float) -> tuple[float, float]:
    """Return the ends without what sums leave behind the twelfth place: 1 is not exceeded."""
    return round(float(low), 12), round(float(high), 12)


def _unseen(room: Array, n: Array) -> float:
    """Return the highest sum of room * e with the product of (1 - e)^n at least 2.5 %.

    At the highest 1 - e is proportional to n / room, in those strata where that is below 1.
    """
    there = room > _ALMOST
    room, n = room[there], n[there]
    if not room.size or not np.isfinite(room).all():
        return float(room.sum())
    order = np.argsort(n / room)
    room, n = room[order], n[order]
    logs = np.log(n / room)
    scale = 0.0
    for count in range(1, len(room) + 1):
        scale = (np.log(_TAIL) - n[:count] @ logs[:count]) / n[:count].sum()
        if count == len(room) or scale + logs[count] >= 0:
            break
    return float(room[:count] @ (1 - np.exp(scale + logs[:count])))
