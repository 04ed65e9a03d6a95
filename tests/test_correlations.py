"""Against scipy, closed forms, brute force and simulation."""

import itertools

import numpy as np
import pytest
from scipy import stats

from rmexp.correlation.correlations import correlate, difference, max_t, refusal, remarks
from rmexp.errors import DataError
from rmexp.stats.coefficients import COEFFICIENTS, Points, coefficients


def points(x, y, standardised=False):
    shape = (len(x), -1 if len(x) else 1)
    x, y = (np.asarray(side, float).reshape(shape) for side in (x, y))
    return Points(tuple(f"rm {number}" for number in range(len(x))), x, y, standardised)


def drawn(n, seed=0, ties=False, width=1):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, width)), rng.normal(size=(n, width))
    y = y + 0.7 * x
    return points(np.round(x), np.round(y)) if ties else points(x, y)


def scipys(x, y):
    with np.errstate(invalid="ignore"):
        return (
            stats.pearsonr(x, y).statistic,
            stats.spearmanr(x, y).statistic,
            stats.kendalltau(x, y).statistic,
        )


def made(sample, seed=0, samples=500):
    return correlate(sample, np.random.default_rng(seed), samples)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("n", [3, 6, 17, 60])
def test_the_coefficients_are_scipys(n, ties):
    sample = drawn(n, seed=n, ties=ties)
    found = made(sample).named()
    assert [found[name].value for name in COEFFICIENTS] == pytest.approx(
        scipys(sample.x.ravel(), sample.y.ravel())
    )


def test_a_resample_is_what_scipy_makes_of_the_repeated_points():
    """A weight of two is the same as the point written twice, ties and all."""
    sample, rng = drawn(9, ties=True, width=2), np.random.default_rng(1)
    weights = rng.multinomial(9, np.full(9, 1 / 9), size=40)
    got = coefficients(sample, weights.astype(float))
    for row, each in enumerate(weights):
        x, y = (np.repeat(side, each, axis=0).ravel() for side in (sample.x, sample.y))
        assert got[:, row] == pytest.approx(scipys(x, y))


def test_a_line_and_a_curve():
    """y = 2x + 1 gives 1 throughout; the order of y = x^3 is that of x, its line is not."""
    line = made(points(range(8), [2 * x + 1 for x in range(8)]))
    assert [each.value for each in line.named().values()] == pytest.approx([1, 1, 1])
    curve = made(points(range(8), [x**3 for x in range(8)]))
    assert curve.spearman.value == curve.kendall.value == pytest.approx(1.0)
    assert curve.pearson.value < 0.95
    swapped = made(points(range(8), [-(x**3) for x in range(8)]))
    assert swapped.pearson.value == pytest.approx(-curve.pearson.value)


def test_all_orders_are_counted_up_to_seven_rms():
    """Counted by hand here: every order, with scipy's coefficients."""
    sample = drawn(5, seed=3)
    x, y = sample.x.ravel(), sample.y.ravel()
    every = np.array([scipys(x, y[list(o)]) for o in itertools.permutations(range(5))])
    expected = (abs(every) >= abs(every[0]) - 1e-9).mean(axis=0)
    found = made(sample)
    assert [found.named()[name].p for name in COEFFICIENTS] == pytest.approx(expected)
    assert (found.orders, found.enumerated) == (120, True)
    assert made(drawn(7)).orders == 5040
    assert (made(drawn(8)).orders, made(drawn(8)).enumerated) == (9999, False)


def test_p_is_scipys():
    sample = drawn(6, seed=2)
    x, y = sample.x.ravel(), sample.y.ravel()
    expected = stats.permutation_test(
        (y,),
        lambda y: abs(stats.pearsonr(x, y).statistic),
        permutation_type="pairings",
        n_resamples=9999,
        alternative="greater",
    )
    assert made(sample).pearson.p == pytest.approx(expected.pvalue)
    assert made(sample).kendall.p == pytest.approx(stats.kendalltau(x, y, method="exact").pvalue)
    large = drawn(20, seed=2)
    exact = stats.kendalltau(large.x, large.y, method="exact").pvalue
    assert made(large).kendall.p == pytest.approx(exact, abs=4 * np.sqrt(exact / 9999))


def test_four_rms_have_24_orders_and_never_a_p_below_one_in_24():
    found = made(points([1, 2, 3, 5], [1, 2, 3, 5]))
    assert found.orders == 24
    assert found.pearson.p == pytest.approx(1 / 24)
    (line,) = [line for line in remarks(found) if "orders" in line]
    assert "p cannot fall below 1/24 = 0.042" in line


def test_the_points_of_an_rm_move_together():
    """Each RM three times is no more evidence: the same p and interval as once."""
    once = drawn(6, seed=4)
    thrice = points(np.repeat(once.x, 3, axis=1), np.repeat(once.y, 3, axis=1))
    one, three = made(once), made(thrice)
    assert three.n == 18
    assert three.rms == 6
    assert three.pearson.value == pytest.approx(one.pearson.value)
    assert three.pearson.p == pytest.approx(one.pearson.p)
    assert three.orders == one.orders == 720
    assert (three.least[0], three.most[0]) == (one.least[0], one.most[0])
    assert three.least[1] == pytest.approx(one.least[1])
    apart = made(points(thrice.x.ravel(), thrice.y.ravel()))
    assert apart.pearson.p < 0.5 * three.pearson.p


def test_standardised_columns_are_z_scores_made_anew_in_each_resample():
    rng = np.random.default_rng(6)
    x, y = rng.normal(size=(5, 3)) * [1, 10, 100] + [0, 5, -7], rng.normal(size=(5, 3))
    sample = points(x, y, standardised=True)
    weights = np.array([[1, 1, 1, 1, 1], [2, 0, 1, 1, 1], [0, 0, 0, 2, 3]], dtype=float)
    got = coefficients(sample, weights)
    for row, each in enumerate(weights.astype(int)):
        a, b = np.repeat(x, each, axis=0), np.repeat(y, each, axis=0)
        expected = scipys(stats.zscore(a, axis=0).round(12).ravel(), b.ravel())
        assert got[:, row] == pytest.approx(expected, abs=1e-6)


def test_standardising_makes_domains_alike():
    """Within each domain y follows x; without z-scores the domains' levels hide it."""
    x = np.array([[1, 900, -50], [2, 800, -40], [3, 950, -60], [4, 990, -30]], float)
    y = stats.zscore(x, axis=0)
    assert made(points(x, y, standardised=True)).pearson.value == pytest.approx(1.0)
    assert abs(made(points(x, y)).pearson.value) < 0.2


def test_leaving_one_out():
    sample = points([1, 2, 3, 4, 20], [2, 1, 3, 2, 30])
    x, y = sample.x.ravel(), sample.y.ravel()
    without = [stats.pearsonr(np.delete(x, i), np.delete(y, i)).statistic for i in range(5)]
    found = made(sample)
    assert found.least == ("rm 4", pytest.approx(min(without)))
    assert found.most == (f"rm {np.argmax(without)}", pytest.approx(max(without)))
    assert made(points([1, 2, 3], [1, 3, 2])).least is None


def test_the_summary_says_when_one_point_carries_the_result():
    found = made(points([1, 2, 3, 4, 5, 6, 7, 40], [2, 1, 3, 2, 1, 3, 2, 30]))
    text = " ".join(remarks(found))
    assert "Linear and rank correlation disagree (Pearson 0.99, Spearman 0.4" in text
    assert "One point carries the result: without rm 7 the Pearson is 0.1" in text
    assert remarks(made(points(range(20), [x + (x % 3) for x in range(20)]))) == []


def test_the_generator_decides_the_interval_and_nothing_else_does():
    sample = drawn(12)
    np.random.seed(1)
    first = made(sample, seed=3)
    np.random.seed(2)
    assert made(sample, seed=3) == first
    assert made(sample, seed=4).pearson.low != first.pearson.low
    assert made(sample, seed=4).pearson.value == first.pearson.value


@pytest.mark.parametrize("n", [3, 5, 9])
def test_fewer_than_ten_rms_have_no_interval(n):
    found = made(drawn(n))
    assert {each.low for each in found.named().values()} == {None}
    assert f"{n} reward models are too few to be resampled" in remarks(found)[-1]
    sample = drawn(n)
    apart = difference(sample, points(sample.y, sample.x), np.random.default_rng(0), 50)
    assert {each.high for each in apart.values()} == {None}


def test_the_intervals_of_fishers_z():
    """Twelve signs of which ten agree: Pearson and Spearman 2/3 (10/12 - 2/12).

    atanh 2/3 = ln(5) / 2 = 0.80472, +- 1.96 / 3, for Spearman times sqrt(1 + 2/9) = 1.10554:
    0.15139 to 1.45804, and 0.08245 to 1.52700. Their tanh is what is asserted.
    """
    x = np.array([1.0, -1.0] * 6)
    y = np.array([1.0, -1.0] * 5 + [-1.0, 1.0])
    found = made(points(x, y))
    assert found.pearson.value == found.spearman.value == pytest.approx(2 / 3)
    assert found.pearson.formula == pytest.approx((0.15025, 0.89728), abs=2e-5)
    assert found.spearman.formula == pytest.approx((0.08226, 0.90991), abs=2e-5)
    exact = stats.pearsonr(x, y).confidence_interval(0.95)
    assert found.pearson.formula == pytest.approx((exact.low, exact.high), abs=1e-6)
    assert found.kendall.formula is None


def test_which_interval_is_shown_first_follows_the_number_of_rms():
    few, many = made(drawn(12)), made(drawn(20))
    assert few.pearson.shown(few.rms) == few.pearson.formula
    assert few.kendall.shown(few.rms) == (few.kendall.low, few.kendall.high)
    assert many.pearson.shown(many.rms) == (many.pearson.low, many.pearson.high)
    assert many.pearson.formula is not None  # beside it
    for sample in (drawn(3), drawn(6, width=2), points(range(5), range(5))):
        assert made(sample).pearson.formula is None


def test_fishers_z_covers_what_it_says():
    """At n = 9 the bootstrap's interval holds rho = 0.5 in some 88 % of samples, z's in 95."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(300):
        x = rng.normal(size=9)
        y = 0.5 * x + np.sqrt(0.75) * rng.normal(size=9)
        low, high = made(points(x, y), samples=2).pearson.formula
        held += low < 0.5 < high
    assert held / 300 == pytest.approx(0.95, abs=0.03)


def test_max_t_is_the_share_of_orders_whose_highest_is_as_far():
    """Counted here: every order of five RMs, two scores, of which the second lacks an RM."""
    y = np.array([1.0, 4.0, 2.0, 5.0, 3.0])
    first, second = np.array([1.0, 3.0, 2.0, 4.0, 5.0]), np.array([5.0, 1.0, 4.0, 2.0])
    both = [points(first, y), points(second, y[:4])]
    orders = [y[list(order)] for order in itertools.permutations(range(5))]
    highest = [
        max(abs(scipys(first, each)[0]), abs(scipys(second, each[:4])[0])) for each in orders
    ]
    expected = [
        np.mean([most >= abs(scipys(x, y[: len(x)])[0]) - 1e-9 for most in highest])
        for x in (first, second)
    ]
    assert max_t(both, np.random.default_rng(0)) == pytest.approx(expected)
    alone = max_t(both[:1], np.random.default_rng(0))
    assert alone == pytest.approx([made(both[0]).pearson.p])
    with pytest.raises(ValueError, match="one policy for all"):
        max_t([both[0], points(second, y[1:])], np.random.default_rng(0))


def test_a_line_has_no_interval_of_no_width():
    assert made(points(range(12), range(12))).pearson.low is None
    assert made(drawn(10)).pearson.low < made(drawn(10)).pearson.high


def test_a_resample_without_a_correlation_counts_at_both_ends():
    """Ten RMs, of which one alone differs: without it (1 in 3 resamples) one side is constant."""
    y = [0.1, 0.2, 0, 0.1, 0, 0.2, 0.1, 0, 0.1, 1]
    found = made(points([0] * 9 + [1], y), samples=2000)
    assert found.pearson.value > 0.9
    assert found.pearson.low == -1


@pytest.mark.parametrize(
    ("x", "y", "reason"),
    [
        ([1, 2], [1, 2], "2 points are fewer than three"),
        ([], [], "0 points are fewer than three"),
        ([1, 1, 1], [1, 2, 3], "the score side is constant, 1 everywhere"),
        ([1, 2, 3], [0.5, 0.5, 0.5], "the policy side is constant, 0.5 everywhere"),
    ],
)
def test_what_has_no_correlation_is_refused(x, y, reason):
    sample = points(x, y)
    assert refusal(sample) == reason
    with pytest.raises(DataError, match=f"no correlation: {reason}"):
        made(sample)


def test_a_domain_that_is_constant_has_no_z_score():
    sample = points([[1, 2], [1, 3], [1, 4]], [[1, 2], [3, 4], [5, 6]], standardised=True)
    assert refusal(sample) == "the score side is constant in one domain"


def test_the_intervals_cover_the_truth():
    """200 samples of 17 RMs from a normal with rho = 0.6, with the closed forms for the ranks.

    Spearman's is 6/pi asin(rho/2), Kendall's 2/pi asin(rho). The percentile interval is a little
    short for the Pearson of so few (90 % over 1,000 samples), hence the lower limit.
    """
    rho, runs, rng = 0.6, 200, np.random.default_rng(8)
    truth = [rho, 6 / np.pi * np.arcsin(rho / 2), 2 / np.pi * np.arcsin(rho)]
    covered = np.zeros(3)
    for _ in range(runs):
        x = rng.normal(size=17)
        sample = points(x, rho * x + np.sqrt(1 - rho**2) * rng.normal(size=17))
        resampled = coefficients(
            sample, rng.multinomial(17, np.full(17, 1 / 17), size=400).astype(float)
        )
        low, high = np.quantile(resampled, [0.025, 0.975], axis=1)
        covered += (low <= truth) & (truth <= high)
    assert (covered / runs >= 0.85).all()
    assert (covered / runs <= 0.99).all()


def test_p_is_uniform_where_there_is_nothing():
    """Of 300 samples of 6 unrelated RMs about 5 % have p below 0.05, never clearly more."""
    rng = np.random.default_rng(9)
    p = []
    for _ in range(300):
        found = correlate(points(rng.normal(size=6), rng.normal(size=6)), rng, samples=2)
        p.append([each.p for each in found.named().values()])
    share = (np.array(p) <= 0.05).mean(axis=0)
    assert (share <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300)).all()
    assert share[0] >= 0.015


def test_the_difference_of_two_benchmarks_is_paired():
    """Two benchmarks with the same noise: their difference is known better than either."""
    rng = np.random.default_rng(10)
    x = rng.normal(size=40)
    y = x + 0.5 * rng.normal(size=40)
    one, two = points(x + 0.5 * rng.normal(size=40), y), points(x, y)
    found = difference(two, one, np.random.default_rng(0), 500)
    assert found["pearson"].value == pytest.approx(
        made(two).pearson.value - made(one).pearson.value
    )
    assert found["pearson"].low < found["pearson"].value < found["pearson"].high
    back = difference(one, two, np.random.default_rng(0), 500)
    assert back["kendall"].value == pytest.approx(-found["kendall"].value)
    assert back["kendall"].low == pytest.approx(-found["kendall"].high)
    same = difference(one, one, np.random.default_rng(0), 500)["spearman"]
    assert (same.value, same.low, same.high) == (0, None, None)
    # Unpaired, the two intervals add up; paired, what both share falls away.
    near = points(one.x.ravel() + 0.01 * rng.normal(size=40), y)
    paired = difference(one, near, np.random.default_rng(0), 500)["pearson"]
    alone = made(one, samples=2000).pearson
    assert paired.high - paired.low < 0.2 * (alone.high - alone.low)


def test_the_difference_over_other_rms_is_refused():
    one, two = drawn(5), drawn(6)
    with pytest.raises(ValueError, match="different reward models"):
        difference(one, two, np.random.default_rng(0))
    with pytest.raises(DataError, match="constant"):
        difference(
            points([1, 1, 1], [1, 2, 3]), points([1, 2, 3], [1, 2, 3]), np.random.default_rng(0)
        )


def test_the_input_is_left_alone():
    sample = drawn(6)
    x, y = sample.x.copy(), sample.y.copy()
    made(sample)
    assert (sample.x == x).all()
    assert (sample.y == y).all()
