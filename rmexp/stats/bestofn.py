"""Best of n: what the response is worth that a reward model ranks first among n.

The curves are exact: nothing is drawn, every choice of n responses is counted. Pure but for the
two functions that write and read `curve.csv`.
"""

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rmexp import tables
from rmexp.stats.intervals import Estimate

FILE = "curve.csv"
RECORDED = "recorded_reward"  # the measure of a policy that chooses the best of n
HIGHEST = "highest"  # the series that no reward model can be above


@dataclass(frozen=True, slots=True)
class Point:
    """A row of `curve.csv`: the mean over `count` examples at n, with its 95 % interval.

    `kl` is that of choosing the best of n, in nats, None for a winner's rate, which belongs to no
    policy. `series` tells the curves of one run apart.
    """

    measure: str
    series: str
    n: int
    kl: float | None
    value: float
    low: float | None
    high: float | None
    count: int


def kl(n: int) -> float:
    """Return KL(best of n || one response) = ln n - (n - 1) / n, in nats."""
    return math.log(n) - (n - 1) / n


def expected_best(rewards: Sequence[float], recorded: Sequence[float]) -> NDArray[np.float64]:
    """Return the expected recorded reward `(N,)` of the response ranked first among n = 1..N drawn.

    With g_(i) the recorded rewards in ascending order of `rewards`, and draws without replacement,
    it is the sum over i of g_(i) C(i - 1, n - 1) / C(N, n). Responses with equal `rewards` are each
    as likely to be taken, so each counts with their mean. A NaN ranks below everything.
    """
    _, level = np.unique(np.where(np.isnan(rewards), -np.inf, rewards), return_inverse=True)
    means = np.bincount(level, recorded) / np.bincount(level)
    return _chances(len(level)) @ means[np.sort(level)]


@lru_cache(maxsize=8)
def _chances(count: int) -> NDArray[np.float64]:
    """Return C(i, n - 1) / C(count, n) for n = 1..count down and i = 0..count - 1 across.

    Row by row: C(i, n - 1) = C(i, n - 2) (i - n + 2) / (n - 1), without large numbers.
    """
    position = np.arange(count)
    rows = [np.full(count, 1 / count)]
    for n in range(2, count + 1):
        factor = np.maximum(position - n + 2, 0) / (n - 1) * (n / (count - n + 1))
        rows.append(rows[-1] * factor)
    return np.stack(rows)


def winner_rates(winner: float, losers: Sequence[float]) -> list[float]:
    """Return the chance that the winner is above all others, for n = 2..len(losers) + 1.

    The n responses are the winner and n - 1 of its losers, any of them as likely as another. With b
    losers strictly below the winner it is C(b, n - 1) / C(len(losers), n - 1): the share of pairs
    that are right at n = 2, and whether the whole list is at the end.

    >>> winner_rates(1.0, [0.0, 0.5, 2.0])
    [0.6666666666666666, 0.3333333333333333, 0.0]
    """
    below = sum(winner > loser for loser in losers)
    return [math.comb(below, k) / math.comb(len(losers), k) for k in range(1, len(losers) + 1)]


def shown(count: int) -> list[int]:
    """Return the n that metrics are reported at.

    >>> shown(100)
    [1, 2, 4, 8, 16, 32, 64, 100]
    """
    powers = [2**k for k in range(count.bit_length())]
    return [*(n for n in powers if n < count), count]


def points(estimates: Sequence[Estimate]) -> list[Point]:
    """Return the points of curves among estimates, which are named `bench/measure/series/n`."""
    curve = []
    for e in estimates:
        if e.at is not None:
            _, measure, series, _ = e.name.split("/")
            nats = kl(e.at) if measure == RECORDED else None
            curve.append(Point(measure, series, e.at, nats, e.value, e.low, e.high, e.n))
    return curve


def write(path: Path, points: Sequence[Point]) -> Path:
    """Write the points as CSV."""
    return tables.write_csv(path, [field.name for field in fields(Point)], map(astuple, points))


def read(path: Path) -> list[Point]:
    """Read what `write` wrote. Raises DataError for another table."""
    return tables.read_csv(path, Point, "remove it, or run the job again")
