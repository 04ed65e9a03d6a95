import numpy as np
import pytest
from scored_rows import row

from rmexp.benchmarks.preference import Preference
from rmexp.benchmarks.rewardbench2 import RewardBench2
from rmexp.schema import Example, Message, scored_example
from rmexp.stats.intervals import Estimate, intervals
from rmexp.stats.nulls import is_null, is_part, null_metrics, null_note


def example(id, subset, chosen, rejected):
    texts = [chosen] if isinstance(chosen, str) else chosen
    found = Example(id, subset, (Message("user", id),), tuple(texts), tuple(rejected))
    return scored_example(found, [9.0] * len(texts), [0.0] * len(rejected))


def estimates(bench, scored):
    rng = np.random.default_rng(0)
    metrics = null_metrics(bench.name, bench.headline, bench.metrics, scored, rng)
    found = intervals(metrics, scored, rng, samples=50)
    assert {is_null(each.name) for each in found if not is_part(each.name)} == {True}
    return {each.name: each for each in found if not is_part(each.name)}


def test_the_nulls_by_hand(tmp_path):
    """Lengths 5 > 3, 2 < 4, 3 = 3: longer 1/3, shorter 1/3, ties wrong. Markdown 1 > 0 once."""
    scored = [
        example("1", "preference", "- abc", ["abc"]),
        example("2", "preference", "ab", ["abcd"]),
        example("3", "preference", "abc", ["abd"]),
    ]
    found = estimates(Preference(path=str(tmp_path)), scored)
    values = {name: each.value for name, each in found.items()}
    assert values == pytest.approx(
        {
            "preference/null/longer": 1 / 3,
            "preference/null/shorter": 1 / 3,
            "preference/null/random": 1 / 2,
            "preference/null/markdown": 1 / 3,
        }
    )
    assert found["preference/null/longer"].n == 3


def test_a_weighted_headline_is_made_by_the_benchmarks_rule():
    """Best of four: the right one is longest in Math (1 of 1), and in 1 of 2 of Focus.

    Overall, of two of six subsets: 3/4, partial. By chance one in four, about.
    """
    scored = [
        example("1", "Math", "abcd", ["abc", "ab", "a"]),
        example("2", "Focus", "abcd", ["abc", "ab", "a"]),
        example("3", "Focus", "a", ["abc", "ab", "abcd"]),
    ] + [example(f"r{i}", "Math", "abcd", ["abc", "ab", "a"]) for i in range(40)]
    found = estimates(RewardBench2(), scored)
    assert found["rewardbench2/null/longer/partial"].value == pytest.approx(3 / 4)
    assert found["rewardbench2/null/longer/partial"].missing[0] == "Factuality"
    assert found["rewardbench2/null/shorter/partial"].value == pytest.approx(1 / 4)
    assert 0.1 < found["rewardbench2/null/random/partial"].value < 0.4


def test_marks_of_markdown_are_counted():
    text = (
        "# Title\n\n- one\n* two\n1. three\n> no\n**bold** and **more**\n| a | b |\n```\nx - y\n```"
    )
    assert example("1", "s", text, ["a * b", "#no"]).marks == (9, 0, 0)


def test_without_texts_there_is_nothing():
    bench = RewardBench2()
    scored = [row("1", "Math", [1.0], [0.0])]
    assert null_metrics("x", bench.headline, bench.metrics, scored, np.random.default_rng(0)) == []
    assert null_metrics("x", bench.headline, bench.metrics, [], np.random.default_rng(0)) == []


def test_a_benchmark_that_length_wins_says_so():
    def null(name, value, low):
        return Estimate(f"b/null/{name}", value, 100, low, 1.0, ())

    chance, longer = null("random", 0.5, 0.4), null("longer", 0.65, 0.55)
    said = "this benchmark can be won without reading: b/null/longer 0.65; chance is 0.50"
    assert null_note([chance, longer, null("shorter", 0.35, 0.25)]) == said
    assert null_note([chance, null("longer", 0.65, 0.49)]) is None  # may be chance
    assert null_note([chance, null("longer", 0.59, 0.55)]) is None
    assert null_note([longer]) is None
