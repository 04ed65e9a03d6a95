import math

import numpy as np
import pytest
from scipy import stats
from scored_rows import row

from rmexp.schema import Example, Message, ScoredExample, scored_example
from rmexp.stats.intervals import intervals
from rmexp.stats.lengths import length_metrics, tau_b

NAN = math.nan
CORRELATION, LONGER, SHORTER = (
    "style/length_correlation",
    "style/accuracy_rejected_longer",
    "style/accuracy_rejected_shorter",
)


def scored(chosen, rejected, lengths, id="0", recorded=()):
    return ScoredExample(
        id, "s", f"prompt {id}", tuple(chosen), tuple(rejected), tuple(recorded), tuple(lengths)
    )


def measure(rows):
    found = intervals(length_metrics(rows), rows, np.random.default_rng(0), 20)
    return {e.name: (pytest.approx(e.value), e.n) for e in found}


def test_lengths_are_characters():
    example = Example("0", "s", (Message("user", "?"),), ("abc", ""), ("ünïcode",))
    assert scored_example(example, [1.0, 2.0], [3.0]).lengths == (3, 0, 7)


def test_pairs_by_hand():
    """Longer wins, shorter wins, longer wins; the pair of equal lengths tells nothing.

    The rejected response is longer in a, which is wrong, and in b, which is right; shorter in c.
    """
    rows = [
        scored([0.0], [1.0], [3, 9], "a"),
        scored([1.0], [0.0], [3, 9], "b"),
        scored([1.0], [0.0], [9, 3], "c"),
        scored([1.0], [0.0], [5, 5], "d"),
    ]
    assert measure(rows) == {CORRELATION: (1 / 3, 3), LONGER: (1 / 2, 2), SHORTER: (1.0, 1)}


def test_a_list_by_hand():
    """Winner 2.0 of 5 characters against losers of 9, 7, 5 and 1 with 1.0, 3.0, 0.0 and 2.0.

    Longer: right against 9, wrong against 7. Shorter: a tie, which is wrong. Equal: neither.
    """
    found = measure([scored([2.0], [1.0, 3.0, 0.0, 2.0], [5, 9, 7, 5, 1])])
    expected = stats.kendalltau([2.0, 1.0, 3.0, 0.0, 2.0], [5, 9, 7, 5, 1]).statistic
    assert found == {CORRELATION: (expected, 1), LONGER: (1 / 2, 1), SHORTER: (0.0, 1)}


def test_every_example_counts_the_same():
    """Three by three with all rejected longer and right, and one pair that is wrong: 1/2."""
    rows = [
        scored([2.0] * 3, [1.0] * 3, [1, 1, 1, 2, 2, 2], "a"),
        scored([0.0], [1.0], [1, 2], "b"),
    ]
    assert measure(rows)[LONGER] == (1 / 2, 2)


def test_what_is_undefined_is_not_reported():
    assert measure([scored([1.0], [1.0], [3, 3])]) == {}
    assert measure([scored([1.0], [1.0], [3, 5])]) == {LONGER: (0.0, 1)}  # a tie is wrong
    assert measure([row("0", "s", [1.0], [0.0])]) == {}  # lengths are not known
    assert length_metrics([]) == length_metrics([row("0", "s", [1.0], [0.0])])


def test_a_reward_that_is_not_finite():
    """It is wrong where it is compared, and has no correlation with anything."""
    found = measure([scored([NAN], [0.0, 1.0], [1, 5, 9])])
    assert found == {CORRELATION: (1.0, 1), LONGER: (0.0, 1)}


def test_ranked_responses_are_rejected_by_nobody():
    """The last two have recorded rewards: only the first rejected one is compared."""
    found = measure([scored([1.0], [0.0, 9.0, 9.0], [5, 9, 6, 7], recorded=[1.0, 2.0])])
    assert found[LONGER] == (1.0, 1)
    assert SHORTER not in found
    assert CORRELATION in found
    alone = measure([scored([], [1.0, 2.0], [5, 9], recorded=[1.0, 2.0])])
    assert alone == {CORRELATION: (1.0, 1)}


def test_tau_b_is_scipys():
    rng = np.random.default_rng(0)
    for size in (2, 3, 6, 40):
        for _ in range(20):
            rewards = rng.integers(0, size, size).astype(float).tolist()
            lengths = rng.integers(0, size, size).tolist()
            if len(set(rewards)) == 1 or len(set(lengths)) == 1:
                assert tau_b(rewards, lengths) is None
                continue
            expected = stats.kendalltau(rewards, lengths).statistic
            assert tau_b(rewards, lengths) == pytest.approx(expected)


def test_swapping_chosen_and_rejected():
    """The correlation stays; longer and shorter change places, and right with wrong."""
    rng = np.random.default_rng(1)
    rows = [
        scored(*rng.normal(size=(2, 3)).tolist(), rng.permutation(6).tolist(), str(i))
        for i in range(9)
    ]
    swapped = [scored(r.rejected, r.chosen, (*r.lengths[3:], *r.lengths[:3]), r.id) for r in rows]
    one, other = ({m.name: m for m in length_metrics(of)} for of in (rows, swapped))
    assert other[CORRELATION].outcomes == pytest.approx(one[CORRELATION].outcomes)
    assert other[SHORTER].rows == one[LONGER].rows
    assert other[SHORTER].outcomes == pytest.approx([1 - x for x in one[LONGER].outcomes])
