"""The arithmetic of `make bench`, and its sampling; the measuring itself is no test."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "speed"))
from contenders import from_json, to_json
from growth import draw, examples, linear, points
from sample import Line, faster, padded_tokens, peer_order, share_of_rate, table, whole_prompts

from rmexp.schema import Example, Message


def example(id: str, prompt: str, chosen: str, rejected: str) -> Example:
    return Example(
        id, "", (Message("user", prompt),), tuple(chosen.split()), tuple(rejected.split())
    )


PAIRS = [
    example("p0", "one", "a", "b"),
    example("p1", "two", "a", "c"),
    example("p2", "one", "c", "b"),
]
LISTS = [example("l0", "one", "a", "b c d"), example("l1", "three", "a", "b")]


def length(prompt: tuple[Message, ...], response: str) -> int:
    return 10 if prompt[0].content == "one" else 100


def test_peers_score_all_chosen_and_then_all_rejected() -> None:
    texts = [(prompt[0].content, response) for prompt, response in peer_order(PAIRS)]
    assert texts == [
        ("one", "a"), ("two", "a"), ("one", "c"), ("one", "b"), ("two", "c"), ("one", "b")
    ]  # fmt: skip


def test_padding_by_hand() -> None:
    """Batches of 2: (3, 5) run 10 tokens, (4, 4) run 8, and 7 is alone."""
    assert padded_tokens([3, 5, 4, 4, 7], 2) == 25
    assert padded_tokens([3, 5, 4, 4, 7]) == 35


def test_prompts_are_drawn_with_all_that_asks_about_them() -> None:
    """The pairs about "one" run 4 * 10 tokens, the list 4 * 10; the other prompts 2 * 100 each."""
    for seed in range(9):
        pairs, lists = whole_prompts([PAIRS, LISTS], length, 290, seed)
        drawn = {e.prompt[0].content for e in (*pairs, *lists)}
        assert [e.id for e in pairs] == [e.id for e in PAIRS if e.prompt[0].content in drawn]
        assert [e.id for e in lists] == [e.id for e in LISTS if e.prompt[0].content in drawn]
        assert sum({"one": 80, "two": 200, "three": 200}[name] for name in drawn) <= 290
    assert whole_prompts([PAIRS, LISTS], length, 290, 0) == whole_prompts(
        [PAIRS, LISTS], length, 290, 0
    )
    assert any(whole_prompts([PAIRS, LISTS], length, 1, 0))


def test_padding_counts_among_the_tokens_drawn() -> None:
    """Both prompts together are one batch of the peers: 6 pairs' texts of up to 100 tokens."""
    for seed in range(9):
        assert whole_prompts([PAIRS], length, 600, seed) == [PAIRS]
        assert len(whole_prompts([PAIRS], length, 599, seed)[0]) < len(PAIRS)


def test_the_ratio_is_that_of_medians() -> None:
    line = Line("x", (2.0, 1.0, 9.0), (8.0, 6.0, 5.0), 3.5, 1200, 0.5, (1.0, 4.0))
    assert line.ratio == 3.0
    assert table([line]).splitlines()[-1] == (
        "| x | 2.0 (1.0 to 9.0) | 6.0 (5.0 to 8.0) | 3.00 | 3.50 | 1,200 | 50% | 1.0, 4.0 (0.25) |"
    )
    assert table([Line("y", (2.0,), (3.0,))]).endswith("| 1.50 |  |  |  |  |\n")


def test_training_is_in_bf16_where_the_processor_has_such_products() -> None:
    assert faster({"float32": 135e9, "bfloat16": 353e9}) == "bfloat16"
    assert faster({"float32": 60e9, "bfloat16": 2e9}) == "float32"


def test_share_of_the_matrix_rate() -> None:
    """1,000 tokens of 0.2 GFLOP in 4 s are 50 GFLOP/s of 100."""
    assert share_of_rate(1000, 0.2e9, 4.0, 100e9) == pytest.approx(0.5)


def test_examples_travel_as_json() -> None:
    assert from_json(to_json(LISTS)) == LISTS


def test_conversations_grow_by_one_measure_at_a_time() -> None:
    """Every point of an axis has what it says, and no text occurs twice."""
    texts: list[str] = []
    for point in points():
        made = examples(point, seed=0)
        assert len(made) == point.prompts
        for e in made:
            assert len(e.chosen) == point.responses
            texts += [e.prompt[0].content, *e.chosen]
    assert {len(text.split()) for text in texts} == {point.length for point in points()}
    assert len(set(texts)) == len(texts)


def test_a_line_explains_all_of_a_line_and_less_of_a_parabola() -> None:
    """Of 0, 1, 4 at 0, 1, 2: the line is -1/3 + 2 x, which leaves 2/3 of 26/3."""
    assert linear([1, 2, 3], [5, 7, 9]) == (3, 2, 1)
    assert linear([0, 1, 2], [0, 1, 4]) == pytest.approx((-1 / 3, 2, 1 - (2 / 3) / (26 / 3)))


def test_the_figure_has_a_panel_an_axis() -> None:
    seconds = [float(point.value) for point in points()]
    figure = draw({"one": seconds, "other": [2 * value for value in seconds]})
    assert [axis.get_xlabel() for axis in figure.axes] == [
        "prompts", "responses to a prompt", "tokens of prompt and of response"
    ]  # fmt: skip
