import numpy as np
import pytest
from scored_rows import pairs

from rmexp.benchmarks.preference import Preference
from rmexp.benchmarks.rewardbench2 import RewardBench2
from rmexp.metrics import Mean
from rmexp.stats.intervals import intervals
from rmexp.stats.parts import low_subsets, parts, worst_part


@pytest.fixture
def bench(tmp_path):
    return Preference(path=str(tmp_path), subset_column="kind")


def test_the_worst_part_of_a_mean(bench):
    """12 of 20, 5 of 20, and 0 of 2, which has no bootstrap but the exact interval of a share."""
    scored = [*pairs("a", 20, 12), *pairs("b", 20, 5), *pairs("c", 1, 0)]
    metrics = bench.metrics(scored)
    assert parts(bench.headline, metrics) == tuple(f"preference/subset/{s}" for s in "abc")
    found = intervals(metrics, scored, np.random.default_rng(0), samples=200)
    worst, name = worst_part(bench.name, bench.headline, metrics, found)
    assert (worst.name, name) == ("preference/worst", "preference/subset/b")
    assert (worst.value, worst.n) == (0.25, 20)
    assert worst.low < 0.25 < worst.high
    one = bench.metrics(scored[:20])
    assert worst_part(bench.name, bench.headline, one, found[:1]) is None


def test_the_worst_part_of_a_weighted_mean_is_one_of_its_parts():
    scored = [*pairs("Math", 12, 6), *pairs("Focus", 12, 9)]
    bench = RewardBench2()
    metrics = bench.metrics(scored)
    found = intervals(metrics, scored, np.random.default_rng(0), samples=50)
    worst, name = worst_part(bench.name, bench.headline, metrics, found)
    assert (worst.value, name) == (0.5, "rewardbench2/math")


def test_a_mean_of_other_outcomes_is_no_part():
    whole = Mean("b/all", (0, 1, 2), (1.0, 0.0, 1.0))
    same, other = Mean("b/same", (0, 1), (1.0, 0.0)), Mean("b/other", (0, 1), (0.5, 0.0))
    twin = Mean("b/twin", (0, 1, 2), (1.0, 0.0, 1.0))
    assert parts("b/all", [whole, same, other, twin]) == ("b/same",)
    assert parts("b/none", [whole]) == ()


def test_the_tenth_percent_of_subsets(bench):
    """Eleven subsets of ten with 0 to 10 right: the 10 % quantile of 0.0, 0.1, ... is 0.1.

    A subset of nine prompts does not count.
    """
    scored = [one for k in range(11) for one in pairs(f"s{k}", 10, k)]
    scored += pairs("few", 9, 0)
    low = low_subsets(bench.name, bench.headline, bench.metrics, scored, np.random.default_rng(0))
    assert low.name == "preference/subset_q10"
    assert (low.value, low.n) == (pytest.approx(0.1), 11)
    assert low.low <= 0.1 <= low.high
    few = low_subsets(
        bench.name, bench.headline, bench.metrics, scored[:90], np.random.default_rng(0)
    )
    assert few is None
