import math

import numpy as np
import pytest
from scored_rows import row

from rmexp.benchmarks.judgebench import JudgeBench
from rmexp.benchmarks.rewardbench2 import RewardBench2
from rmexp.errors import DataError
from rmexp.metrics import mean, won
from rmexp.stats.ranking import rank_models


def model(outcomes, subset="a"):
    return [row(f"{i}", subset, [1.0 if right else 0.0], [0.5]) for i, right in enumerate(outcomes)]


def accuracy(scored):
    return [mean("b/all", [won(one) for one in scored], range(len(scored)))]


def rank(scored, metrics=accuracy, headline="b/all"):
    return rank_models(scored, metrics, headline, np.random.default_rng(0), samples=2000)


def test_who_shares_the_first_place():
    """Of 40: A right on all, B on all but two, C on the first ten.

    A and B differ on two prompts: p = 2 / 2^2. A and C on thirty, B and C on 28: told apart.
    Detectable for A and B: d = 2 / 40, 2.8 sqrt(0.05 / 40) = 0.0990, twice the difference 0.05;
    40 * 0.0990^2 / 0.05^2 = 156.8 prompts, so 117 more.
    """
    found = rank(
        {"C": model([1] * 10 + [0] * 30), "A": model([1] * 40), "B": model([0, 0] + [1] * 38)}
    )
    assert found.values == {"A": 1.0, "B": 0.95, "C": 0.25}
    assert [(each.first, each.second) for each in found.pairs] == [
        ("A", "B"), ("A", "C"), ("B", "C"),
    ]  # fmt: skip
    first = found.pairs[0]
    assert (first.difference, first.p) == pytest.approx((0.05, 0.5))
    assert first.detectable == pytest.approx(2.8 * math.sqrt(2 / 40 / 40))
    assert first.p_holm == pytest.approx(0.5)
    assert found.pairs[1].p_holm == pytest.approx(3 * found.pairs[1].p)
    assert found.first_place == ("A", "B")
    assert found.more_prompts == math.ceil(156.8) - 40
    shares, more = found.say()
    assert shares.startswith("A and B share the first place: over 40 prompts")
    assert "That of the two would take 117 more." in more


def test_one_that_is_apart_is_first_alone():
    found = rank({"A": model([1] * 40), "B": model([1] * 10 + [0] * 30)})
    assert found.first_place == ("A",)
    assert found.more_prompts == 0
    assert found.say() == ["A is first: apart from each other one (Holm's p below 0.05)."]


def test_equal_models_and_a_single_one():
    found = rank({"A": model([1, 0] * 10), "B": model([1, 0] * 10)})
    assert found.first_place == ("A", "B")
    assert (found.pairs[0].p, found.more_prompts, len(found.say())) == (1.0, None, 1)
    alone = rank({"A": model([1, 0])})
    assert (alone.first_place, alone.more_prompts, alone.say()) == (("A",), None, [])


def test_holms_correction_joins_what_a_pair_alone_would_tell_apart():
    """Six prompts all won: p = 2 / 2^6 = 0.031 for a pair alone, three times that among three."""
    two = {"A": model([1] * 6 + [1] * 30), "B": model([0] * 6 + [1] * 30)}
    assert rank(two).first_place == ("A",)
    assert rank(two).pairs[0].p == pytest.approx(2 / 64)
    three = rank(two | {"C": model([0] * 6 + [1] * 30)})
    assert three.first_place == ("A", "B", "C")


def test_a_weighted_headline_and_the_order_of_examples():
    """Parts of other sizes weigh alike: a prompt of Math counts 1/2 / 2, of Focus 1/2 / 4."""
    bench = RewardBench2()
    ids = ["m0", "m1", "f0", "f1", "f2", "f3"]
    subsets = ["Math"] * 2 + ["Focus"] * 4

    def of(outcomes):
        return [
            row(i, s, [float(o)], [0.5]) for i, s, o in zip(ids, subsets, outcomes, strict=True)
        ]

    best, other = of([1, 1, 1, 1, 1, 1]), of([0, 1, 0, 1, 1, 1])
    found = rank({"A": best, "B": other[::-1]}, bench.metrics, bench.headline)
    assert found.values["B"] == pytest.approx(1 / 4 + 3 / 8)
    error = math.sqrt((1 / 4) ** 2 + (1 / 8) ** 2)
    assert found.pairs[0].detectable == pytest.approx(2.8 * error)
    with pytest.raises(DataError, match="compare runs on the same examples"):
        rank({"A": best, "B": other[:5]}, bench.metrics, bench.headline)
    with pytest.raises(ValueError, match="A has no judgebench/overall"):
        rank({"A": best}, bench.metrics, JudgeBench.headline)
