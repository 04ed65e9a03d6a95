import math

import pytest

from rmexp.metrics import (
    Mean,
    beats,
    is_partial,
    mean,
    metric_name,
    partial_name,
    plain_name,
    reported_name,
    wins,
    won,
)
from rmexp.schema import ScoredExample

NAN = math.nan


@pytest.mark.parametrize(
    ("components", "expected"),
    [
        (("rmb", "bon", "Helpfulness", "Role Playing"), "rmb/bon/helpfulness/role_playing"),
        (
            ("rewardbench", "subset", "llmbar-adver-GPTInst"),
            "rewardbench/subset/llmbar_adver_gptinst",
        ),
        (("rewardbench2", "Precise IF"), "rewardbench2/precise_if"),
        (("preference", "subset", "a/b (c)"), "preference/subset/a_b_c_"),
        (("rmbench", "safety-refuse"), "rmbench/safety_refuse"),
    ],
)
def test_names_are_lower_case_without_blanks_and_signs(components, expected):
    assert metric_name(*components) == expected


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        ([2.0], [1.0], 1.0),
        ([1.0], [2.0], 0.0),
        ([1.0], [1.0], 0.0),  # a tie is wrong
        ([3.0], [1.0, 2.0], 1.0),
        ([3.0], [1.0, 3.0], 0.0),  # a tie with one of the losers is
        ([3.0], [1.0, 4.0], 0.0),
        ([3.0, 2.0], [1.0], 1.0),
        ([3.0, 1.0], [2.0], 0.0),
        ([NAN], [0.0], 0.0),
        ([0.0], [NAN], 0.0),
        ([NAN], [NAN], 0.0),
        ([3.0], [1.0, NAN], 0.0),
        ([math.inf], [1.0], 1.0),
    ],
)
def test_wins_is_strict_and_nan_never_wins(chosen, rejected, expected):
    assert wins(chosen, rejected) == expected


def test_mean_keeps_the_outcomes_of_its_rows():
    assert mean("a", [1.0, 0.0, 0.5], [2, 0]) == Mean("a", (2, 0), (0.5, 1.0), ())
    assert mean("a", [1.0], [0], ("b",)).missing == ("b",)


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (((1.0,),), 1.0),
        (((0.5,),), 0.5),
        (((0.0,),), 0.0),
        (((1.0, 1.0, 1.0),), 1.0),
        (((1.0, 0.5, 0.5),), 0.25),  # two coins, both must show heads
        (((1.0, 0.0, 1.0),), 0.0),
        (((1.0, 1.0), (1.0, 0.5)), 0.5),
    ],
)
def test_a_judge_wins_shares_of_the_point(verdicts, expected):
    rewards = (9.0,) * len(verdicts), (0.0,) * len(verdicts[0])
    row = ScoredExample("1", "a", "p", *rewards, verdicts=verdicts)
    assert won(row) == expected
    assert beats(row, len(verdicts) - 1, len(verdicts[0]) - 1) == verdicts[-1][-1]


@pytest.mark.parametrize(("chosen", "rejected"), [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (NAN, 0.0)])
def test_without_verdicts_the_rewards_decide(chosen, rejected):
    row = ScoredExample("1", "a", "p", (chosen,), (rejected,))
    assert won(row) == beats(row, 0, 0) == wins([chosen], [rejected])


def test_a_long_name_is_cut_and_stays_distinct():
    """Names of up to 200 characters stay; suffixes of ours still fit into MLflow's 250."""
    fits = "x" * (200 - len("preference/subset/"))
    assert metric_name("preference", "subset", fits) == f"preference/subset/{fits}"
    one, other = (metric_name("preference", "subset", "x" * 300 + end) for end in "ab")
    assert one != other
    assert one[:70] == other[:70] == f"preference/subset/{'x' * 52}"
    assert len(one) <= 200
    assert len(metric_name(*["y" * 300] * 5)) <= 200


def test_what_lacks_a_part_is_reported_by_another_name():
    assert reported_name("a/b", ()) == "a/b"
    assert reported_name("a/b", ("c",)) == partial_name("a/b") == "a/b/partial"
    assert plain_name("a/b/partial") == plain_name("a/b") == "a/b"
    assert is_partial("a/b/partial")
    assert not is_partial("a/partial/b")


def test_how_partial_aggregates_are_called_is_written_once(project_root):
    modules = project_root.glob("rmexp/**/*.py")
    wrote = {path.name for path in modules if "/partial" in path.read_text(encoding="utf-8")}
    assert wrote == {"metrics.py"}
