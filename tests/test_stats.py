import numpy as np
import pytest
from scored_rows import row

from rmexp.errors import DataError
from rmexp.metrics import ANY, Mean, WeightedMean, WeightedSum, mean
from rmexp.schema import ScoredExample
from rmexp.stats.intervals import bootstrap, intervals, totals

OUTCOMES = [float(value) for value in np.random.default_rng(5).random(40) < 0.7]


def scored_rows(n, subset="a", prefix="p"):
    return [row(f"{prefix}{i}", subset, [1.0], [0.0]) for i in range(n)]


def one(metrics, scored, seed=0, samples=500):
    return intervals(metrics, scored, np.random.default_rng(seed), samples)[-1]


def test_a_mean_and_its_number():
    """Outcomes 1, 0, 0, 1, 1 over all rows: 3/5; over rows 1, 2, 3: 1/3."""
    scored = scored_rows(5)
    outcomes = [1.0, 0.0, 0.0, 1.0, 1.0]
    metrics = [mean("all", outcomes, range(5)), mean("some", outcomes, [1, 2, 3])]
    every, some = intervals(metrics, scored, np.random.default_rng(0), 50)
    assert (every.name, every.value, every.n) == ("all", pytest.approx(3 / 5), 5)
    assert (some.name, some.value, some.n) == ("some", pytest.approx(1 / 3), 3)
    assert every.low <= every.value <= every.high
    assert every.missing == ()


def test_a_weighted_mean_of_means_and_of_weighted_means():
    """a = 1/2, b = 1; c = (3 * 1/2 + 1 * 1) / 4 = 5/8; d = (c + b) / 2 = 13/16."""
    scored = scored_rows(2, "a", "a") + scored_rows(2, "b", "b")
    outcomes = [1.0, 0.0, 1.0, 1.0]
    metrics = [
        mean("a", outcomes, [0, 1]),
        mean("b", outcomes, [2, 3]),
        WeightedMean("c", ("a", "b"), (3.0, 1.0)),
        WeightedMean("d", ("c", "b"), (1.0, 1.0)),
    ]
    found = {e.name: e for e in intervals(metrics, scored, np.random.default_rng(0), 50)}
    assert found["c"].value == pytest.approx(5 / 8)
    assert found["d"].value == pytest.approx(13 / 16)
    assert (found["c"].n, found["d"].n) == (4, 4)


def test_a_weighted_sum_keeps_its_weights():
    """a = 1/2, b = 1; 0.3 * 1/2 + 0.9 * 1 = 1.05, and half of it in the mean with b: 1.025."""
    scored = scored_rows(2, "a", "a") + scored_rows(2, "b", "b")
    outcomes = [1.0, 0.0, 1.0, 1.0]
    metrics = [
        mean("a", outcomes, [0, 1]),
        mean("b", outcomes, [2, 3]),
        WeightedSum("c", ("a", "b"), (0.3, 0.9)),
        WeightedMean("d", ("c", "b"), (1.0, 1.0)),
        WeightedSum("e", ("a",), (0.3,), ("gone",)),
    ]
    found = {e.name: e for e in intervals(metrics, scored, np.random.default_rng(0), 500)}
    assert found["c"].value == pytest.approx(1.05)
    assert found["c"].low is None  # of four prompts
    assert found["d"].value == pytest.approx(1.025)
    assert found["e/partial"].value == pytest.approx(0.15)


def test_the_interval_of_a_weighted_sum_has_its_weights():
    """b does not vary: 0.3 times the ends of a, and 0.9."""
    scored = scored_rows(100, "a", "a") + scored_rows(20, "b", "b")
    metrics = [
        mean("a", [1.0, 0.0] * 50 + [1.0] * 20, range(100)),
        mean("b", [1.0] * 120, range(100, 120)),
        WeightedSum("c", ("a", "b"), (0.3, 0.9)),
    ]
    a, _, c = intervals(metrics, scored, np.random.default_rng(0), 500)
    assert a.low < 0.5 < a.high
    assert (c.low, c.high) == pytest.approx((0.3 * a.low + 0.9, 0.3 * a.high + 0.9))


def test_one_prompt_has_no_interval():
    scored = [ScoredExample(str(i), "a", "the same", (1.0,), (0.0,)) for i in range(5)]
    estimate = one([mean("m", OUTCOMES[:5], range(5))], scored)
    assert (estimate.low, estimate.high) == (None, None)
    assert estimate.n == 5


def test_a_part_with_one_prompt_leaves_what_is_made_of_it_without_interval():
    """One prompt does not tell how its part varies: no interval rather than a short one."""
    scored = scored_rows(8, "a", "a") + scored_rows(1, "b", "b") + scored_rows(1, "c", "c")
    metrics = [
        mean("all", OUTCOMES[:10], range(10)),
        mean("a", OUTCOMES[:10], range(8)),
        mean("b", OUTCOMES[:10], [8]),
        WeightedMean("d", ("a", "b"), (1.0, 1.0)),
        WeightedMean("e", ("d",), (1.0,)),
        WeightedMean("f", ("a",), (1.0,)),
    ]
    found = {e.name: e for e in intervals(metrics, scored, np.random.default_rng(0), 200)}
    assert {name for name, e in found.items() if e.low is None} == {"b", "d", "e"}
    assert found["d"].value == pytest.approx((np.mean(OUTCOMES[:8]) + OUTCOMES[8]) / 2)


def test_prompts_alone_in_their_subset_are_resampled_together():
    """One prompt a subset: resampling within subsets would give an interval of no width."""
    scored = [row(str(i), f"subset {i}", [1.0], [0.0]) for i in range(40)]
    estimate = one([mean("m", OUTCOMES, range(40))], scored)
    assert 0.15 < estimate.high - estimate.low < 0.45  # 2 * 1.96 * sqrt(0.21 / 40) = 0.28


def test_the_interval_depends_on_the_generator_alone():
    scored, metrics = scored_rows(120), [mean("m", OUTCOMES * 3, range(120))]
    np.random.seed(1)
    first = one(metrics, scored, seed=3)
    np.random.seed(2)
    assert one(metrics, scored, seed=3) == first
    assert one(metrics, scored, seed=4) != first


def test_responses_to_one_prompt_are_resampled_together():
    """Each row twice under its own prompt tells nothing new; under other prompts it does."""
    scored, outcomes = scored_rows(40), OUTCOMES
    single = one([mean("m", outcomes, range(40))], scored)
    together = one([mean("m", outcomes * 2, range(80))], scored * 2)
    apart = one([mean("m", outcomes * 2, range(80))], scored + scored_rows(40, "a", "other"))
    assert (together.low, together.high) == (single.low, single.high)
    assert (single.n, together.n, apart.n) == (40, 80, 80)
    assert apart.high - apart.low < 0.85 * (single.high - single.low)  # 1/sqrt(2), about 0.71


def test_resamples_keep_the_composition_of_subsets():
    """Subset a is always right and b always wrong: with 10 rows each, every resample has 1/2.

    The interval has a width all the same: Wilson's of 10 out of 20.
    """
    scored = scored_rows(10, "a", "a") + scored_rows(10, "b", "b")
    metrics = [mean("m", [1.0] * 10 + [0.0] * 10, range(20))]
    (drawn,) = bootstrap([totals(metrics, scored)], np.random.default_rng(0), 500)
    assert set(drawn["m"]) == {0.5}
    estimate = one(metrics, scored)
    assert (estimate.low, estimate.high) == pytest.approx((0.2993, 0.7007), abs=5e-5)


def test_the_interval_covers_the_truth():
    """Of 200 samples of 60 prompts, about 95 % of the intervals hold 0.7; 3 sigma are 4.6 %.

    The percentile interval of a proportion is a little short at this size, hence the lower limit.
    """
    rng, truth, n, runs = np.random.default_rng(11), 0.7, 60, 200
    scored = scored_rows(n)
    covered = 0
    for _ in range(runs):
        outcomes = [float(value) for value in rng.random(n) < truth]
        (estimate,) = intervals([mean("m", outcomes, range(n))], scored, rng, samples=300)
        covered += estimate.low <= truth <= estimate.high
    assert 0.88 <= covered / runs <= 0.99


def test_the_width_is_that_of_the_mean():
    """A mean of 400 outcomes with standard deviation s: 2 * 1.96 * s / 20."""
    rng = np.random.default_rng(2)
    outcomes = [float(value) for value in rng.random(400)]
    estimate = one([mean("m", outcomes, range(400))], scored_rows(400), samples=4000)
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * np.std(outcomes) / 20, rel=0.08)


def test_missing_parts_make_a_metric_and_what_is_made_of_it_partial():
    scored = scored_rows(4)
    metrics = [
        mean("a", OUTCOMES[:4], [0, 1], ("lost",)),
        mean("b", OUTCOMES[:4], [2, 3]),
        WeightedMean("c", ("a", "b"), (1.0, 1.0), ("gone",)),
        WeightedMean("d", ("c",), (1.0,)),
        WeightedMean("e", ("b",), (1.0,)),
    ]
    found = intervals(metrics, scored, np.random.default_rng(0), 20)
    assert [(e.name, e.missing) for e in found] == [
        ("a/partial", ("lost",)),
        ("b", ()),
        ("c/partial", ("gone", "lost")),
        ("d/partial", ("gone", "lost")),
        ("e", ()),
    ]


def test_two_metrics_of_one_name_are_refused():
    scored = scored_rows(2)
    metrics = [mean("m", [1.0, 0.0], [0]), mean("m", [1.0, 0.0], [1])]
    with pytest.raises(DataError, match="two metrics are called m: rename"):
        intervals(metrics, scored, np.random.default_rng(0), 20)


def test_the_input_is_left_alone():
    scored, metrics = scored_rows(4), [mean("m", OUTCOMES[:4], range(4))]
    before = list(scored), list(metrics)
    intervals(metrics, scored, np.random.default_rng(0), 20)
    assert (scored, metrics) == before


# ---------------------------------------------------------------- what few prompts carry


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [
        (2, 2, 2 / (2 + 3.84146), 1.0),  # at an end it is n / (n + z^2)
        (0, 2, 0.0, 3.84146 / (2 + 3.84146)),
        (3, 9, 0.12058, 0.64580),
        (81, 90, 0.82076, 0.94649),
        (40, 40, 40 / (40 + 3.84146), 1.0),
        (0, 400, 0.0, 3.84146 / (400 + 3.84146)),
    ],
)
def test_a_share_of_few_or_at_an_end_has_wilsons_interval(right, n, low, high):
    outcomes = [float(row < right) for row in range(n)]
    estimate = one([mean("m", outcomes, range(n))], scored_rows(n))
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=5e-5)


def test_below_ten_prompts_only_shares_have_an_interval():
    """Points, and means of two unequal parts, are no shares; two equal halves are one of 8."""
    scored = scored_rows(4, "a", "a") + scored_rows(4, "b", "b")
    halves = [0.0, 0.5, 0.5, 1.0]
    metrics = [
        mean("points", halves * 2, range(8)),
        mean("a", [1.0, 1.0, 1.0, 0.0] * 2, range(4)),
        mean("b", [1.0, 1.0, 1.0, 0.0] * 2, range(4, 8)),
        WeightedMean("even", ("a", "b"), (1.0, 1.0)),
        WeightedMean("uneven", ("a", "b"), (1.0, 2.0)),
    ]
    found = {e.name: e for e in intervals(metrics, scored, np.random.default_rng(0), 50)}
    assert found["points"].low is found["uneven"].low is None
    assert (found["a"].low, found["a"].high) == pytest.approx((0.3006, 0.9544), abs=5e-5)
    assert (found["even"].low, found["even"].high) == pytest.approx((0.4093, 0.9285), abs=5e-5)


def test_ten_prompts_with_many_rows_each_are_ten():
    """All right: the ends are those of 10 prompts, however many rows they have."""
    scored = scored_rows(10) * 5
    estimate = one([mean("m", [1.0] * 50, range(50))], scored)
    assert (estimate.n, estimate.high) == (50, 1.0)
    assert estimate.low == pytest.approx(10 / (10 + 3.84146), abs=1e-6)


def test_an_aggregate_that_is_right_throughout_is_bounded_by_its_parts():
    """Shares e and f of errors in parts of 10 and 40 prompts: (1 - e)^10 (1 - f)^40 = 0.025.

    At the largest e + f, Lagrange's 1 - e = 10 s and 1 - f = 40 s; the second is above 1, so f = 0
    and e = 1 - 0.025^(1/10).
    """
    scored = scored_rows(10, "a", "a") + scored_rows(40, "b", "b")
    metrics = [
        mean("a", [1.0] * 50, range(10)),
        mean("b", [1.0] * 50, range(10, 50)),
        WeightedMean("c", ("a", "b"), (1.0, 1.0)),
    ]
    found = one(metrics, scored)
    assert (found.low, found.high) == (pytest.approx(1 - (1 - 0.025**0.1) / 2), 1.0)


def test_what_has_no_bounds_and_does_not_vary_has_no_interval():
    metrics = [Mean("m", tuple(range(20)), (3.0,) * 20, bounds=ANY)]
    found = one(metrics, scored_rows(20))
    assert (found.value, found.low) == (3.0, None)


def test_a_correlation_of_one_is_bounded_from_minus_one():
    """Outcomes from -1 to 1, all at 1: a share of 20 / (20 + z^2), twice as wide."""
    metrics = [Mean("m", tuple(range(20)), (1.0,) * 20, bounds=(-1.0, 1.0))]
    found = one(metrics, scored_rows(20))
    assert (found.low, found.high) == (pytest.approx(2 * 20 / (20 + 3.84146) - 1, abs=1e-6), 1.0)
