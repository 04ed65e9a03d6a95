import numpy as np
import pytest
from scipy.stats import norm
from scored_rows import row

from rmexp.benchmarks.toy import Toy
from rmexp.errors import DataError
from rmexp.metrics import WeightedMean, mean, wins
from rmexp.schema import ScoredExample
from rmexp.stats.intervals import intervals
from rmexp.stats.paired import differences, match, mcnemar


def scored(outcomes, prompts=None):
    prompts = prompts or [f"prompt {number}" for number in range(len(outcomes))]
    return [
        ScoredExample(str(number), "a", prompt, (float(right),), (0.5,))
        for number, (right, prompt) in enumerate(zip(outcomes, prompts, strict=True))
    ]


def accuracy(rows):
    return [mean("accuracy", [wins(r.chosen, r.rejected) for r in rows], range(len(rows)))]


def compared(first, second, metrics=accuracy, seed=0, samples=4000):
    return differences(first, second, metrics, np.random.default_rng(seed), samples)


def outcomes(n, share, seed):
    return list(np.random.default_rng(seed).random(n) < share)


def test_a_difference_and_its_values():
    """Right on 1, 1, 1, 0 and on 1, 0, 0, 0: 3/4 - 1/4 = 1/2."""
    (found,) = compared(scored([1, 1, 1, 0]), scored([1, 0, 0, 0]))
    assert (found.name, found.n, found.missing) == ("accuracy", 4, ())
    assert (found.first, found.second, found.value) == (0.75, 0.25, 0.5)
    assert (found.low, found.high) == (None, None)  # of four prompts
    assert found.p == 0.5  # two differ, both in one direction: 2 of 4 signs


def test_the_interval_is_that_of_the_paired_differences():
    """The mean of d = a - b over n prompts: standard error sd(d) / sqrt(n), p from the normal."""
    a, b = outcomes(400, 0.75, 1), outcomes(400, 0.70, 2)
    (found,) = compared(scored(a), scored(b))
    d = np.array(a, float) - np.array(b, float)
    error = d.std() / 20
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.08)
    assert found.p == pytest.approx(2 * norm.sf(abs(d.mean()) / error), abs=0.04)


def test_what_both_share_falls_away():
    """Two RMs that differ on 5 of 400 examples differ by 0.0125, whatever the rest is like.

    Of the 2^5 signs of what differs two are as far from 0.
    """
    a = outcomes(400, 0.7, 3)
    b = [right and number % 45 != 0 for number, right in enumerate(a)]
    (found,) = compared(scored(a), scored(b))
    (alone,) = intervals(accuracy(scored(a)), scored(a), np.random.default_rng(0))
    assert found.low > 0
    assert found.high - found.low < 0.4 * (alone.high - alone.low)
    assert found.p == 2 / 2**5


def test_swapping_the_two_changes_signs_only():
    a, b = scored(outcomes(60, 0.7, 4)), scored(outcomes(60, 0.6, 5))
    (there,), (back,) = compared(a, b), compared(b, a)
    assert (back.value, back.low, back.high) == (-there.value, -there.high, -there.low)
    assert back.p == there.p


def test_an_rm_against_itself():
    """None of 30 prompts tells them apart: a share of 1 - 0.025^(1/30) may do so."""
    a = scored(outcomes(30, 0.5, 6))
    (found,) = compared(a, a)
    assert (found.value, found.p) == (0, 1)
    unseen = 1 - 0.025 ** (1 / 30)
    assert (found.low, found.high) == pytest.approx((-unseen, unseen))


def test_examples_of_one_prompt_are_resampled_together():
    """Every example four times under its prompt is no more evidence."""
    a, b = outcomes(50, 0.7, 7), outcomes(50, 0.5, 8)
    prompts = [f"prompt {number % 50}" for number in range(200)]
    (once,) = compared(scored(a), scored(b))
    (four,) = compared(scored(a * 4, prompts), scored(b * 4, prompts))
    assert (four.low, four.high, four.p) == (once.low, once.high, once.p)
    (apart,) = compared(scored(a * 4), scored(b * 4))
    assert apart.high - apart.low < 0.6 * (once.high - once.low)


def test_the_resamples_are_those_of_the_intervals():
    """Where the second RM is always wrong, the difference is the first one's metric."""
    a = scored(outcomes(120, 0.6, 9))
    (found,) = compared(a, scored([0] * 120), samples=2000)
    (alone,) = intervals(accuracy(a), a, np.random.default_rng(0), samples=2000)
    assert (found.value, found.low, found.high) == (alone.value, alone.low, alone.high)


def test_all_metrics_of_a_benchmark():
    """A reward that knows what is chosen against one that prefers length, on the toy set."""
    from scored_rows import reward_all

    bench = Toy(limit=4)
    data = bench.load()
    knows = reward_all(data, lambda example, response: float(response in example.chosen))
    length = reward_all(data, lambda example, response: float(len(response)))
    found = {each.name: each for each in compared(knows, length, bench.metrics, samples=200)}
    assert [*found] == [metric.name for metric in bench.metrics(knows)]
    assert found["toy/overall"].first == 1
    assert found["toy/hard"].value > 0.5
    for each in found.values():
        assert each.value == each.first - each.second


def test_p_is_uniform_where_there_is_no_difference():
    """Of 200 pairs of equally good RMs about 5 % have p below 0.05; 3 sigma are 4.6 %."""
    rng = np.random.default_rng(10)
    low = 0
    for _ in range(200):
        a, b = (scored(list(rng.random(100) < 0.7)) for _ in range(2))
        (found,) = differences(a, b, accuracy, rng, 400)
        low += found.p <= 0.05
    assert 0.004 <= low / 200 <= 0.096


def test_what_cannot_be_resampled_has_no_interval_and_no_p():
    a, b = scored([1, 0, 1], ["same"] * 3), scored([1, 0, 0], ["same"] * 3)
    (found,) = compared(a, b)
    assert (found.low, found.high, found.p) == (None, None, None)
    assert found.value == pytest.approx(1 / 3)


def test_a_partial_metric_stays_partial():
    def partial(rows):
        part = accuracy(rows)[0]
        return [part, WeightedMean("all", ("accuracy",), (1.0,), ("gone",))]

    found = compared(scored([1, 1]), scored([1, 0]), partial)
    assert [(each.name, each.missing) for each in found] == [("accuracy", ()), ("all", ("gone",))]


def test_mcnemar_counts_and_tests_the_examples_on_which_the_two_differ():
    """5 against 1 discordant: 2 * (C(6,0) + C(6,1)) / 2^6 = 14/64."""
    a = scored([1] * 10 + [1] * 5 + [0])
    b = scored([1] * 10 + [0] * 5 + [1])
    found = mcnemar(a, b, wins)
    assert (found.first, found.second, found.n) == (5, 1, 16)
    assert found.p == pytest.approx(14 / 64)
    assert mcnemar(a, a, wins).p == 1


def test_the_order_of_the_rows_does_not_matter():
    a, b = scored(outcomes(20, 0.7, 11)), scored(outcomes(20, 0.6, 12))
    assert compared(a, b[::-1]) == compared(a, b)
    assert mcnemar(a, b[::-1], wins) == mcnemar(a, b, wins)


def test_differing_examples_are_counted_and_named():
    a = [row(str(number), "a", [1.0], [0.0]) for number in range(9)]
    with pytest.raises(
        DataError,
        match=r"7 examples are in the first one only \(2, 3, 4, 5, 6, \.\.\.\); 1 examples are in "
        r"the second one only \(new\): compare runs on the same examples",
    ):
        match(a, [*a[:2], row("new", "a", [1.0], [0.0])])
    other = [ScoredExample("0", "a", "another prompt", (1.0,), (0.0,)), *a[1:]]
    with pytest.raises(DataError, match=r"1 examples have another prompt.* \(0\): compare"):
        match(a, other)
