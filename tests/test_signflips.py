"""Sign flips against every exchange, made by hand; Holm's correction; what chance would give."""

from itertools import product

import numpy as np
import pytest
from scipy.stats import binomtest

from rmexp.metrics import Mean, WeightedMean, WeightedSum, wins
from rmexp.schema import ScoredExample
from rmexp.stats.paired import differences, mcnemar
from rmexp.stats.signflips import chance_line, count_flips, holm


def scored(rights, prompts=None):
    prompts = prompts or range(len(rights))
    return [
        ScoredExample(str(at), "s", f"prompt {prompt}", (float(right),), (0.5,))
        for at, (right, prompt) in enumerate(zip(rights, prompts, strict=True))
    ]


def accuracy(rows):
    outcomes = tuple(wins(row.chosen, row.rejected) for row in rows)
    return [Mean("accuracy", tuple(range(len(rows))), outcomes)]


def p_of(first, second, metrics=accuracy, samples=999):
    found = differences(first, second, metrics, np.random.default_rng(0), samples)
    return {each.name: each.p for each in found}


def by_hand(first, second, value):
    """Exchange the two on every choice of prompts, and make the difference anew."""
    prompts = list(dict.fromkeys(row.prompt for row in first))
    found = []
    for choice in product([False, True], repeat=len(prompts)):
        flipped = {prompt for prompt, flip in zip(prompts, choice, strict=True) if flip}
        one = [b if a.prompt in flipped else a for a, b in zip(first, second, strict=True)]
        two = [a if a.prompt in flipped else b for a, b in zip(first, second, strict=True)]
        found.append(value(one) - value(two))
    return float((np.abs(found) >= abs(found[0]) - 1e-12).mean())


@pytest.mark.parametrize(("prompts", "p"), [(2, 1 / 2), (3, 1 / 4), (6, 1 / 32), (20, 2 / 2**20)])
def test_the_least_p_of_few_prompts(prompts, p):
    """All differ in one direction: two of the 2^n signs are as far from 0."""
    right, wrong = scored([1] * prompts), scored([0] * prompts)
    assert p_of(right, wrong) == p_of(wrong, right) == {"accuracy": p}


def test_beyond_20_prompts_p_is_drawn_and_never_below_its_resolution():
    right, wrong = scored([1] * 21), scored([0] * 21)
    assert p_of(right, wrong, samples=99) == {"accuracy": 1 / 100}
    # Those that do not differ change nothing: 12 of 500 are counted.
    assert p_of(scored([1] * 500), scored([1] * 488 + [0] * 12)) == {"accuracy": 2 / 2**12}


def test_a_drawn_p_is_near_the_exact_one():
    """45 prompts differ, 30 in one direction: the sign test of a fair coin."""
    first, second = scored([1] * 30 + [0] * 15), scored([0] * 30 + [1] * 15)
    exact = binomtest(30, 45).pvalue
    drawn = p_of(first, second, samples=20_000)["accuracy"]
    assert drawn == pytest.approx(exact, abs=4 * np.sqrt(exact / 20_000))


def test_a_prompt_s_examples_are_exchanged_together():
    """Nine examples of three prompts: 2 of 8 signs, and McNemar's p is the same."""
    first, second = scored([1] * 9, [0, 1, 2] * 3), scored([0] * 9, [0, 1, 2] * 3)
    assert p_of(first, second) == {"accuracy": 1 / 4}
    test = mcnemar(first, second, wins)
    assert (test.first, test.second, test.n, test.p) == (9, 0, 9, 1 / 4)


def test_aggregates_are_made_anew_of_the_exchanged_outcomes():
    """Parts of unequal size and weight, sums and means of them, against every exchange."""
    rng = np.random.default_rng(3)
    first, second = (scored(rng.integers(2, size=11), [*range(8), 0, 1, 1]) for _ in range(2))

    def metrics(rows):
        (whole,) = accuracy(rows)
        return [
            Mean("a", whole.rows[:3], whole.outcomes[:3]),
            Mean("b", whole.rows[3:], whole.outcomes[3:]),
            WeightedSum("c", ("a", "b"), (0.3, 0.9)),
            WeightedMean("d", ("c", "a"), (1.0, 2.0)),
        ]

    def values(rows):
        outcomes = metrics(rows)
        a, b = (np.mean(outcomes[at].outcomes) for at in (0, 1))
        return {"a": a, "b": b, "c": 0.3 * a + 0.9 * b, "d": (0.3 * a + 0.9 * b + 2 * a) / 3}

    found = p_of(first, second, metrics)
    expected = {
        name: by_hand(first, second, lambda rows, name=name: values(rows)[name]) for name in "abcd"
    }
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("prompts", [7, 24])
def test_outcomes_that_one_of_the_two_lacks_move_with_the_others(prompts):
    """The mean of what is defined, here above 0.2: an exchange changes how many there are."""
    rng = np.random.default_rng(4)
    first, second = (scored(rng.random(prompts)) for _ in range(2))

    def metrics(rows):
        kept = [at for at, row in enumerate(rows) if row.chosen[0] > 0.2]
        return [Mean("m", tuple(kept), tuple(rows[at].chosen[0] for at in kept))]

    (p,) = p_of(first, second, metrics, samples=20_000).values()
    if prompts == 7:
        assert p == by_hand(first, second, lambda rows: np.mean(metrics(rows)[0].outcomes))
    else:
        mean = [np.mean(metrics(rows)[0].outcomes) for rows in (first, second)]
        assert 0 < p <= 1
        assert p > 0.05 or abs(mean[0] - mean[1]) > 0.15


def test_equal_models_have_p_1():
    assert p_of(scored([1, 0, 1]), scored([1, 0, 1])) == {"accuracy": 1.0}


def test_count_flips_is_exact():
    """Sizes 1, 1, 2: |sum| is 4, 2, 2, 0 and their negatives; at least 2 in 6 of 8."""
    assert count_flips([1, 1, 2]) == pytest.approx(2 / 8)
    assert count_flips([-1, 1, 2]) == pytest.approx(6 / 8)
    assert count_flips([1] * 700 + [-1] * 600) == pytest.approx(binomtest(700, 1300).pvalue)


def test_holm_by_hand():
    """0.01 * 4, 0.02 * 3, 0.03 * 2 not below the one before, 0.6 * 1; never above 1."""
    assert holm([0.6, 0.01, 0.03, None, 0.02]) == pytest.approx(
        [0.6, 0.04, 0.06, None, 0.06], nan_ok=True
    )
    assert holm([0.7, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_line_about_chance():
    ps = [0.001, 0.03, *[0.5] * 26]
    assert chance_line(ps, holm(ps), "a.csv") == (
        "Of the 28 p values in a.csv up to 1.4 would be below 0.05 by chance if nothing differed. "
        "Below are 2, and 1 by Holm's p, which allows for their number."
    )
    assert chance_line([0.01, None], [0.01, None], "a.csv") is None
