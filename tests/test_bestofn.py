import math
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from rmexp.stats.bestofn import Point, expected_best, kl, points, read, shown, winner_rates, write
from rmexp.stats.intervals import Estimate

NAN = math.nan


def brute_force(rewards, recorded, n):
    """Every choice of n responses; of those ranked first, each as likely as another."""
    found = []
    for drawn in combinations(range(len(rewards)), n):
        highest = max(rewards[i] for i in drawn)
        first = [recorded[i] for i in drawn if rewards[i] == highest]
        found.append(sum(first) / len(first))
    return sum(found) / len(found)


@pytest.mark.parametrize(
    "rewards",
    [
        [3.0, 1.0, 2.0, 6.0, 5.0, 4.0, 0.0],
        [1.0, 1.0, 2.0, 2.0, 2.0, 0.0, 3.0],  # ties below the top
        [1.0, 0.0, 2.0, 2.0, 1.0, 0.0, 2.0],  # and at it
        [5.0] * 7,
    ],
)
def test_expected_best_is_that_of_all_draws(rewards):
    recorded = [0.3, -1.0, 4.0, 0.0, 2.5, 2.5, -3.0]
    expected = [brute_force(rewards, recorded, n) for n in range(1, 8)]
    assert expected_best(rewards, recorded).tolist() == pytest.approx(expected)


def test_expected_best_by_the_closed_form():
    """N = 100: the sum over i of g_(i) C(i - 1, n - 1) / C(100, n), in whole numbers."""
    rng = np.random.default_rng(0)
    rewards, recorded = rng.normal(size=100), rng.normal(size=100)
    ranked = recorded[np.argsort(rewards)]
    expected = [
        math.fsum(
            g * (math.comb(i - 1, n - 1) / math.comb(100, n)) for i, g in enumerate(ranked, 1)
        )
        for n in range(1, 101)
    ]
    assert expected_best(rewards, recorded).tolist() == pytest.approx(expected, rel=1e-10)


def test_ends_of_the_curve():
    """One response is any of them, N of them always the first; large N does not overflow."""
    rng = np.random.default_rng(1)
    rewards, recorded = rng.normal(size=1500), rng.normal(size=1500)
    curve = expected_best(rewards, recorded)
    assert curve[0] == pytest.approx(recorded.mean())
    assert curve[-1] == pytest.approx(recorded[rewards.argmax()])
    assert np.isfinite(curve).all()
    highest = expected_best(recorded, recorded)
    assert (np.diff(highest) >= 0).all()
    assert (highest >= curve - 1e-9).all()
    assert expected_best([1.0], [7.0]).tolist() == [7.0]


def test_a_reward_that_is_not_finite_ranks_last():
    recorded = [1.0, 2.0, 3.0]
    assert expected_best([NAN, 0.0, 1.0], recorded).tolist() == pytest.approx(
        expected_best([-9.0, 0.0, 1.0], recorded).tolist()
    )
    # With n = 2: 1.0 against each of the others gives 3, the two others are equal and give 3/2.
    assert expected_best([NAN, -math.inf, 1.0], recorded)[1] == pytest.approx((3 + 3 + 1.5) / 3)


def test_kl_by_hand():
    assert kl(1) == 0
    assert kl(2) == pytest.approx(math.log(2) - 1 / 2)
    assert kl(100) == pytest.approx(math.log(100) - 0.99)


@pytest.mark.parametrize("winner", [0.0, 1.0, 2.0, 3.0, NAN])
def test_winner_rates_are_those_of_all_draws(winner):
    losers = [0.0, 1.0, 1.0, 2.0, 2.5]
    expected = []
    for n in range(2, 7):
        draws = list(combinations(losers, n - 1))
        expected.append(sum(all(winner > loser for loser in drawn) for drawn in draws) / len(draws))
    assert winner_rates(winner, losers) == pytest.approx(expected)


def test_shown():
    assert shown(1) == [1]
    assert shown(16) == [1, 2, 4, 8, 16]
    assert shown(20) == [1, 2, 4, 8, 16, 20]


ESTIMATES = [
    Estimate("bon100/spearman", 0.5, 3, None, None, ()),
    Estimate("bon100/recorded_reward/selected/1", -1.0, 3, -2.0, 0.5, (), 1),
    Estimate("bon100/recorded_reward/selected/2", 1.5, 3, None, None, (), 2),
    Estimate("rmb/winner_rate/helpfulness/2", 0.25, 9, 0.0, 1.0, (), 2),
]


def test_points_are_written_and_read(tmp_path: Path):
    found = points(ESTIMATES)
    assert found == [
        Point("recorded_reward", "selected", 1, 0.0, -1.0, -2.0, 0.5, 3),
        Point("recorded_reward", "selected", 2, kl(2), 1.5, None, None, 3),
        Point("winner_rate", "helpfulness", 2, None, 0.25, 0.0, 1.0, 9),
    ]
    write(tmp_path / "curve.csv", found)
    assert read(tmp_path / "curve.csv") == found
    lines = (tmp_path / "curve.csv").read_text().splitlines()
    assert lines[0] == "measure,series,n,kl,value,low,high,count"
    assert lines[1] == "recorded_reward,selected,1,0.0,-1.0,-2.0,0.5,3"
