"""Which scores are set against which policies: tables joined by RM into points. Pure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rmexp.correlation.tables import Score, Table
from rmexp.errors import ConfigError, DataError
from rmexp.stats.coefficients import Points

ALL = "all"  # the group of every RM
_NAMED = 20  # how many RMs a line names

# RM-Bench (arXiv 2410.16184): a domain's score of the RM, and its policies' tasks.
RMBENCH_DOMAINS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "math": ("rmbench/math/hard", ("GSM8K", "BBH")),
    "safety": ("rmbench/safety/hard", ("ToxiGen", "XSTest")),
    "code": ("rmbench/code/normal", ("HumanEval+", "MBPP+")),
}
STYLE_SCORE = "rmbench/chat/hard"
STYLE_TASKS = ("Arena-Hard", "Arena-Hard-style-control")


@dataclass(frozen=True, slots=True)
class Pairing:
    """A score against a policy over a group of RMs; `columns` name the points that an RM has.

    `x` and `y` say what the axes show.
    """

    score: str
    policy: str
    group: str
    points: Points
    x: str
    y: str
    columns: tuple[str, ...] = ("",)


@dataclass(frozen=True, slots=True)
class Joined:
    """The pairs, the chosen one first, and a line for each RM that is on one side only."""

    pairs: tuple[Pairing, ...]
    missing: tuple[str, ...]
    groups: Mapping[str, str]


def plain(scores: Table, policies: Table) -> Joined:
    """Join every score with every policy, one point an RM, and every group of RMs by itself.

    The first pair is that of the two first tasks over all RMs; after it come its groups, then the
    further policies, then the further scores.
    """
    groups = {row.rm: row.group for row in (*policies.rows, *scores.rows) if row.group}
    pairs = []
    for score in scores.tasks:
        for policy in policies.tasks:
            scored, trained = scores.of(score), policies.of(policy)
            rms = [rm for rm in scored if rm in trained]
            parts = {ALL: rms}
            for rm in rms:
                if rm in groups:
                    parts.setdefault(groups[rm], []).append(rm)
            for group, members in parts.items():
                x = _column([scored[rm].score for rm in members])
                y = _column([trained[rm].score for rm in members])
                points = Points(tuple(members), x, y)
                pairs.append(Pairing(score, policy, group, points, score, policy))
    return Joined(tuple(pairs), _missing(scores, policies), groups)


def rmbench(scores: Table, policies: Table) -> Joined:
    """Join as RM-Bench does (arXiv 2410.16184): a point for each RM and domain.

    x is the RM's score in the domain, hard accuracy for math and safety and normal for code, as a
    z-score over the RMs. y is the policy's change relative to where its training began, (score -
    base) / base, as the mean of the domain's tasks; more must be better on each of them.

    Raises DataError where no RM has all of it, ConfigError where nobody has one of the tasks.
    """
    wanted = [score for score, _ in RMBENCH_DOMAINS.values()]
    tasks = [task for _, tasks in RMBENCH_DOMAINS.values() for task in tasks]
    rms, missing = _complete(scores, wanted, policies, tasks)
    x = np.array([[scores.of(score)[rm].score for score in wanted] for rm in rms])
    change = {task: _relative(policies, task, rms) for task in tasks}
    y = [np.mean([change[task] for task in part], axis=0) for _, part in RMBENCH_DOMAINS.values()]
    pair = Pairing(
        "rmbench",
        "rmbench_protocol",
        ALL,
        Points(tuple(rms), x, np.array(y).T, standardised=True),
        "score, standardised in each domain",
        "policy, relative to its start",
        tuple(RMBENCH_DOMAINS),
    )
    return Joined((pair,), missing, {})


def style_control(scores: Table, policies: Table) -> Joined:
    """Join RM-Bench's chat hard accuracy with how much a policy owes to its style.

    y is the relative drop of the policy's score on Arena-Hard when style is controlled,
    (score - controlled score) / score: less is better.

    Raises as `rmbench` does.
    """
    rms, missing = _complete(scores, [STYLE_SCORE], policies, STYLE_TASKS)
    x = _column([scores.of(STYLE_SCORE)[rm].score for rm in rms])
    free, controlled = (
        np.array([_of(policies, task)[rm].score for rm in rms]) for task in STYLE_TASKS
    )
    _no_zero(free, rms, STYLE_TASKS[0])
    pair = Pairing(
        STYLE_SCORE,
        "style_control_drop",
        ALL,
        Points(tuple(rms), x, ((free - controlled) / free)[:, None]),
        STYLE_SCORE,
        "relative drop when style is controlled",
    )
    return Joined((pair,), missing, {})


PROTOCOLS: Mapping[str, Callable[[Table, Table], Joined]] = {
    "plain": plain,
    "rmbench": rmbench,
    "style_control": style_control,
}


def join(protocol: object, scores: Table, policies: Table) -> Joined:
    """Join by the protocol of this name. Raises ConfigError where there is none."""
    if protocol not in PROTOCOLS:
        raise ConfigError(f"protocol={protocol}: choose from {', '.join(PROTOCOLS)}")
    return PROTOCOLS[str(protocol)](scores, policies)


def agreement(scores: Table) -> list[Pairing]:
    """Join every score with every later one, over the RMs that have both."""
    pairings = []
    for at, first in enumerate(scores.tasks):
        for second in scores.tasks[at + 1 :]:
            a, b = scores.of(first), scores.of(second)
            rms = [rm for rm in a if rm in b]
            x, y = (_column([side[rm].score for rm in rms]) for side in (a, b))
            pairings.append(Pairing(first, second, ALL, Points(tuple(rms), x, y), first, second))
    return pairings


def _column(values: Sequence[float]) -> NDArray[np.float64]:
    return np.array(values, dtype=float).reshape(-1, 1)


def _missing(scores: Table, policies: Table) -> tuple[str, ...]:
    """Return a line for the RMs that are on one side only, and for those that lack a task."""
    lines = []
    for side, other, what in ((scores, policies, "policy"), (policies, scores, "score")):
        rms = dict.fromkeys(row.rm for row in side.rows)
        there = {row.rm for row in other.rows}
        lines.append((f"have no {what}", [rm for rm in rms if rm not in there]))
        for task in side.tasks:
            rows = side.of(task)
            lines.append((f"lack {task}", [rm for rm in rms if rm in there and rm not in rows]))
    return tuple(
        f"{len(names)} RMs {lack}: {', '.join(names[:_NAMED])}"
        + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
        for lack, names in lines
        if names
    )


def _of(policies: Table, task: str) -> dict[str, Score]:
    """Return a task's rows, however its name is spelt."""
    return {row.rm: row for row in policies.rows if _plain(row.task) == _plain(task)}


def _plain(task: str) -> str:
    """Return a task's name without case, blanks and hyphens.

    >>> _plain("HumanEval Plus"), _plain("arena_hard")
    ('humaneval+', 'arenahard')
    """
    plain = "".join(sign for sign in task.lower() if sign not in " -_")
    return plain.replace("plus", "+")


def _complete(
    scores: Table, wanted: Sequence[str], policies: Table, tasks: Sequence[str]
) -> tuple[list[str], tuple[str, ...]]:
    """Return the RMs that have all scores and tasks, and a line for each that lacks some."""
    sides = {score: scores.of(score) for score in wanted}
    sides |= {task: _of(policies, task) for task in tasks}
    if absent := [name for name, rows in sides.items() if not rows]:
        raise ConfigError(
            f"the protocol needs the scores {', '.join(wanted)} and the policies' tasks "
            f"{', '.join(tasks)}; nobody has {', '.join(absent)}: add them to the tables"
        )
    everyone = list(dict.fromkeys(rm for rows in sides.values() for rm in rows))
    lacking = {rm: [name for name in sides if rm not in sides[name]] for rm in everyone}
    lines = [
        f"{rm} is left out, it lacks {', '.join(names)}" for rm, names in lacking.items() if names
    ]
    return [rm for rm, names in lacking.items() if not names], tuple(lines)


def _relative(policies: Table, task: str, rms: Sequence[str]) -> NDArray[np.float64]:
    rows = [_of(policies, task)[rm] for rm in rms]
    without = [row.rm for row in rows if row.base_score is None]
    if without:
        raise DataError(
            f"{task} has no base_score for {', '.join(without)}: the protocol compares a policy "
            "with its start, add that column"
        )
    base = np.array([row.base_score for row in rows], dtype=float)
    _no_zero(base, rms, f"base_score of {task}")
    change: NDArray[np.float64] = (np.array([row.score for row in rows]) - base) / base
    return change


def _no_zero(values: NDArray[np.float64], rms: Sequence[str], what: str) -> None:
    if (values == 0).any():
        named = ", ".join(rm for rm, value in zip(rms, values, strict=True) if value == 0)
        raise DataError(f"the {what} is 0 for {named}: nothing is relative to that, leave it out")
