"""Metrics as values: means of per-example outcomes, and weighted means and sums of those.

A benchmark's `metrics` returns them as a list; `stats.intervals` turns the list into numbers with
n and an interval. Nothing here does I/O.
"""

import hashlib
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from rmexp.schema import ScoredExample


@dataclass(frozen=True, slots=True)
class Mean:
    """The mean of one outcome per example, for instance 1.0 where chosen beats rejected.

    `rows` are positions in the scored examples, `outcomes` the values there, of equal length.
    `missing` names the parts that the mean should cover and that have no rows at all: with any,
    the metric is reported as partial; see `reported_name`. `undefined` names the examples that have
    no such outcome. A mean with `at` is a point of a curve there, and goes to its file instead of
    the tracked metrics. `bounds` are the lowest and the highest outcome that is possible. `chance`
    is what rewards drawn at random are expected to give, where that is known.
    """

    name: str
    rows: tuple[int, ...]
    outcomes: tuple[float, ...]
    missing: tuple[str, ...] = ()
    undefined: tuple[str, ...] = ()
    at: int | None = None
    bounds: tuple[float, float] = (0.0, 1.0)
    chance: float | None = None


@dataclass(frozen=True, slots=True)
class WeightedMean:
    """The weighted mean of other metrics, named by `parts`; weights need not sum to 1.

    A part that is itself partial makes this one partial too. `missing` is as for `Mean`.
    """

    name: str
    parts: tuple[str, ...]
    weights: tuple[float, ...]
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class WeightedSum:
    """The sum of other metrics times weights, which stay as they are; else a `WeightedMean`."""

    name: str
    parts: tuple[str, ...]
    weights: tuple[float, ...]
    missing: tuple[str, ...] = ()


ANY = (-math.inf, math.inf)  # the bounds of an outcome that has none

Metric = Mean | WeightedMean | WeightedSum
_LONGEST_NAME = 200  # characters, which leaves room for what is added
_PARTIAL = "/partial"  # ends the name of a number that lacks a part


def metric_name(*components: str) -> str:
    """Join components by "/", each in lower case with blanks and signs as "_".

    MLflow takes names of up to 250 characters, suffixes among them. In a longer one the long
    components are cut, and end in a digest of the whole component instead.

    >>> metric_name("rmb", "bon", "Helpfulness", "Role Playing")
    'rmb/bon/helpfulness/role_playing'
    """
    names = [re.sub(r"[\W_]+", "_", component.lower()) for component in components]
    room = _LONGEST_NAME // len(names) - 1
    if len("/".join(names)) > _LONGEST_NAME:
        names = [name if len(name) <= room else _cut(name, room) for name in names]
    return "/".join(names)


def _cut(name: str, length: int) -> str:
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name[: length - 9]}_{digest}"


def reported_name(name: str, missing: Collection[str]) -> str:
    """Return the name under which a metric is reported: it ends in "/partial" with parts missing.

    >>> reported_name("rmb/overall", ("bon/harmlessness",))
    'rmb/overall/partial'
    """
    return partial_name(name) if missing else name


def partial_name(name: str) -> str:
    """Return the name under which a metric that lacks a part is reported."""
    return name + _PARTIAL


def plain_name(reported: str) -> str:
    """Return a metric's own name, whether or not it lacks a part."""
    return reported.removesuffix(_PARTIAL)


def is_partial(reported: str) -> bool:
    """Say whether this is the name of a metric that lacks a part."""
    return reported.endswith(_PARTIAL)


def mean(
    name: str,
    outcomes: Sequence[float],
    keep: Sequence[int],
    missing: tuple[str, ...] = (),
    chances: Sequence[float] | None = None,
) -> Mean:
    """Return the `Mean` of `outcomes`, one per scored example, over the positions in `keep`.

    `chances` are what outcomes rewards drawn at random are expected to have, see `chance`.
    """
    expected = math.fsum(chances[row] for row in keep) / len(keep) if chances and keep else None
    return Mean(name, tuple(keep), tuple(outcomes[row] for row in keep), missing, chance=expected)


def wins(chosen: Sequence[float], rejected: Sequence[float]) -> float:
    """Return 1.0 if every chosen reward is strictly above every rejected one, else 0.0.

    A tie is wrong, and so is any comparison with a NaN.

    >>> wins([2.0], [1.0, 1.5]), wins([1.0], [1.0]), wins([1.0], [float("nan")])
    (1.0, 0.0, 0.0)
    """
    return float(all(good > bad for good in chosen for bad in rejected))


def beats(row: ScoredExample, chosen: int, rejected: int) -> float:
    """Return the share of the point that one chosen response wins against one rejected response.

    A reward that is strictly higher wins all of it, any other nothing; a judge's verdict is it.
    """
    if row.verdicts is not None:
        return row.verdicts[chosen][rejected]
    return float(row.chosen[chosen] > row.rejected[rejected])


def won(row: ScoredExample) -> float:
    """Return the share of the point that the chosen responses win: each must beat each rejected.

    By rewards that is `wins`. Of verdicts it is the product: each of them is the chance to win in
    an order drawn at random, independently of the others, and half a point is a coin tossed.

    >>> won(ScoredExample("1", "a", "p", (0.75,), (0.0, 0.5), verdicts=((1.0, 0.5),)))
    0.5
    """
    if row.verdicts is not None:
        return math.prod(share for shares in row.verdicts for share in shares)
    return wins(row.chosen, row.rejected)


def chance(row: ScoredExample) -> float:
    """Return how often `won` holds of rewards drawn at random: every order is as likely.

    >>> chance(ScoredExample("1", "a", "p", (0.75,), (0.0, 0.5, 1.0)))
    0.25
    """
    return 1 / math.comb(len(row.chosen) + len(row.rejected), len(row.chosen))


def is_coarse(name: str, parts: Collection[str]) -> bool:
    """Say whether a metric is one of the ten or so that a benchmark is known by.

    They have one level, are the `parts` of the headline, the averages of domains, or best of n. The
    others are the long tail: in files, in no table of runs.

    >>> [is_coarse(name, ()) for name in ("rmbench/hard", "rmbench/math/average", "toy/math/hard")]
    [True, True, False]
    """
    levels = name.split("/")
    return len(levels) < 3 or name in parts or levels[-1] == "average" or levels[1] == "best_of"


def headline(metrics: Mapping[str, float], name: str) -> str:
    """Write a metric, with n and interval where they are known.

    As in `rmb/overall 0.61 (0.58 to 0.64, n 2,109)`.
    """
    name = name if name in metrics else partial_name(name)
    if name not in metrics:
        return ""
    if f"{name}/n" not in metrics:
        return f"{name} {metrics[name]:.3f}"
    text = f"n {metrics[f'{name}/n']:,.0f}"
    if f"{name}/low" in metrics:
        text = f"{metrics[f'{name}/low']:.3f} to {metrics[f'{name}/high']:.3f}, {text}"
    return f"{name} {metrics[name]:.3f} ({text})"
