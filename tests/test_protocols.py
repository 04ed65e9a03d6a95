"""The joins, on made tables whose answers are known."""

import numpy as np
import pytest

from rmexp.correlation.correlations import correlate
from rmexp.correlation.protocols import agreement, join
from rmexp.correlation.tables import Score, Table
from rmexp.errors import ConfigError, DataError

TASKS = {"math": ("GSM8K", "BBH"), "safety": ("ToxiGen", "XSTest"), "code": ("HumanEval+", "MBPP+")}
SCORES = {
    "math": "rmbench/math/hard",
    "safety": "rmbench/safety/hard",
    "code": "rmbench/code/normal",
}


def tables(scores, policies):
    return Table(tuple(scores), "scores"), Table(tuple(policies), "policies")


def made_study(rms="ABCD", spell=lambda task: task):
    """RM k is better by k steps; its policies gain 1 % a step over starts that differ by task."""
    scores, policies = [], []
    for k, rm in enumerate(rms):
        for d, domain in enumerate(TASKS):
            scores.append(Score(rm, SCORES[domain], 0.3 + 0.1 * d + 0.02 * (d + 1) * k))
            for t, task in enumerate(TASKS[domain]):
                base = 20.0 + 10 * t + 5 * d
                policies.append(Score(rm, spell(task), base * (1 + 0.01 * k), base))
    return scores, policies


def test_plain_joins_by_rm_and_names_who_is_missing():
    scores, policies = tables(
        [Score(rm, "b", at) for at, rm in enumerate("ABCD")],
        [Score(rm, task, at) for task in "pq" for at, rm in enumerate("DBCE") if rm + task != "Bq"],
    )
    joined = join("plain", scores, policies)
    assert [(pair.score, pair.policy, pair.group) for pair in joined.pairs] == [
        ("b", "p", "all"),
        ("b", "q", "all"),
    ]
    points = joined.pairs[0].points
    assert points.rms == ("B", "C", "D")
    assert points.x.tolist() == [[1], [2], [3]]
    assert points.y.tolist() == [[1], [2], [0]]
    assert joined.pairs[1].points.rms == ("C", "D")
    assert joined.missing == (
        "1 RMs have no policy: A",
        "1 RMs have no score: E",
        "1 RMs lack q: B",
    )


def test_groups_of_either_side_are_joined_by_themselves():
    scores, policies = tables(
        [Score("A", "b", 1, group="x"), Score("B", "b", 2), Score("C", "b", 3, group="y")],
        [Score("A", "p", 1), Score("B", "p", 2, group="y"), Score("C", "p", 3)],
    )
    joined = join("plain", scores, policies)
    assert [(pair.group, pair.points.rms) for pair in joined.pairs] == [
        ("all", ("A", "B", "C")),
        ("x", ("A",)),
        ("y", ("B", "C")),
    ]
    assert joined.groups == {"A": "x", "B": "y", "C": "y"}


def test_the_protocol_of_rmbench_on_a_made_study():
    """x: z-scores of 0, 1, 2, 3 in each domain; y: 0, 1, 2, 3 %: all on one line."""
    (pair,) = join("rmbench", *tables(*made_study())).pairs
    assert pair.columns == ("math", "safety", "code")
    assert pair.points.rms == ("A", "B", "C", "D")
    assert pair.points.y == pytest.approx(np.repeat([[0], [0.01], [0.02], [0.03]], 3, axis=1))
    found = correlate(pair.points, np.random.default_rng(0))
    assert found.pearson.value == pytest.approx(1)
    assert (found.n, found.rms, found.orders) == (12, 4, 24)
    # The reversed order gives -1, which is as far from 0: the RMs are evenly spaced.
    assert found.pearson.p == pytest.approx(2 / 24)


def test_the_protocol_knows_hard_from_normal_and_relative_from_absolute():
    """Only the columns that the protocol names count, and only relative to the start."""
    scores, policies = made_study()
    noise = [Score(rm, "rmbench/code/hard", -k) for k, rm in enumerate("ABCD")]
    noise += [Score(rm, "rmbench/math/normal", -k) for k, rm in enumerate("ABCD")]
    shifted = [
        Score(row.rm, row.task, row.score * factor, row.base_score * factor)
        for factor, row in zip(np.linspace(1, 9, len(policies)), policies, strict=True)
    ]
    (pair,) = join("rmbench", *tables(scores + noise, shifted)).pairs
    assert correlate(pair.points, np.random.default_rng(0)).pearson.value == pytest.approx(1)


def test_with_one_domain_reversed_the_correlation_is_a_third():
    """The slope is +1 in two domains and -1 in one: r = (1 + 1 - 1) / 3."""
    scores, policies = made_study()
    scores = [
        Score(row.rm, row.task, -row.score if row.task == SCORES["math"] else row.score)
        for row in scores
    ]
    (pair,) = join("rmbench", *tables(scores, policies)).pairs
    found = correlate(pair.points, np.random.default_rng(0))
    assert found.pearson.value == pytest.approx(1 / 3)


def test_tasks_may_be_spelt_otherwise():
    scores, policies = made_study(spell=lambda task: task.lower().replace("+", "_plus"))
    (pair,) = join("rmbench", *tables(scores, policies)).pairs
    assert pair.points.n == 12


def test_an_rm_that_lacks_a_task_is_left_out_and_named():
    scores, policies = made_study("ABCDE")
    policies = [row for row in policies if (row.rm, row.task) != ("E", "BBH")]
    joined = join("rmbench", *tables([*scores, Score("F", SCORES["math"], 0.5)], policies))
    assert joined.pairs[0].points.rms == ("A", "B", "C", "D")
    assert joined.missing[0] == "E is left out, it lacks BBH"
    assert joined.missing[1].startswith("F is left out, it lacks rmbench/safety/hard, rmbench/code")


def test_what_the_protocol_needs_is_said():
    scores, policies = made_study()
    with pytest.raises(ConfigError, match=r"nobody has MBPP\+: add them"):
        join("rmbench", *tables(scores, [row for row in policies if row.task != "MBPP+"]))
    without = [Score(row.rm, row.task, row.score) for row in policies]
    with pytest.raises(DataError, match="GSM8K has no base_score for A, B, C, D"):
        join("rmbench", *tables(scores, without))
    zero = [Score(row.rm, row.task, row.score, 0.0) for row in policies]
    with pytest.raises(DataError, match="base_score of GSM8K is 0 for A, B"):
        join("rmbench", *tables(scores, zero))
    with pytest.raises(
        ConfigError, match="protocol=best: choose from plain, rmbench, style_control"
    ):
        join("best", *tables(scores, policies))


def test_style_control():
    """Drops of 50, 25 and 10 % against hard accuracies of 0.1, 0.2 and 0.4."""
    scores = [
        Score(rm, "rmbench/chat/hard", x) for rm, x in zip("ABC", (0.1, 0.2, 0.4), strict=True)
    ]
    policies = [Score(rm, "Arena-Hard", y) for rm, y in zip("ABC", (40, 20, 50), strict=True)]
    policies += [
        Score(rm, "Arena-Hard-style-control", y) for rm, y in zip("ABC", (20, 15, 45), strict=True)
    ]
    (pair,) = join("style_control", *tables(scores, policies)).pairs
    assert pair.points.x.ravel().tolist() == [0.1, 0.2, 0.4]
    assert pair.points.y.ravel() == pytest.approx([0.5, 0.25, 0.1])
    assert correlate(pair.points, np.random.default_rng(0)).spearman.value == pytest.approx(-1)


def test_agreement_takes_for_each_two_scores_the_rms_that_have_both():
    rows = [Score(rm, task, len(rm + task)) for task in ("a", "b", "c") for rm in "ABCD"]
    rows.remove(Score("B", "b", 2))
    found = agreement(Table(tuple(rows), "s"))
    assert [(pair.score, pair.policy, pair.points.n) for pair in found] == [
        ("a", "b", 3),
        ("a", "c", 4),
        ("b", "c", 3),
    ]
