import math
from dataclasses import replace
from zlib import crc32

import numpy as np
import pytest
from omegaconf import OmegaConf
from scored_rows import check_pure, estimate, negate, reward_all, row, values, write_json

from rmexp.benchmarks.rmbench import COUNTS, DOMAINS, RMBench
from rmexp.benchmarks.styles import correctness_and_verbosity
from rmexp.errors import ConfigError, DataError
from rmexp.schema import Example, Message

BENCH = RMBench()
STYLES = ("concise", "detailed", "markdown")


def record(id, domain=None, prompt=None, **changes):
    responses = {
        "chosen": [f"{id} good {style}" for style in STYLES],
        "rejected": [f"{id} bad {style}" for style in STYLES],
    }
    own = {} if domain is None else {"domain": domain}
    return {"id": id, "prompt": prompt or f"prompt {id}", **responses, **own, **changes}


@pytest.fixture
def folder(tmp_path):
    """Upstream's per-domain files, with two prompts each."""
    for domain in COUNTS:
        write_json(tmp_path / f"{domain}_filtered.json", [record(1), record(2)])
    return tmp_path


def test_the_matrix_by_hand():
    """Two chat prompts.

    First: chosen 3, 1, 5 and rejected 2, 4, 5. Chosen beats rejected in the cells
    [1 0 0 / 0 0 0 / 1 1 0] (5 against 5 is a tie).
    Second: chosen 1, 2, 3 and rejected 0, 0, 0: all ones.
    Means: [1 .5 .5 / .5 .5 .5 / 1 1 .5].
    easy = (.5 + 1 + 1) / 3 = 5/6, normal = (1 + .5 + .5) / 3 = 2/3, hard = 3 * .5 / 3 = 1/2;
    average = (5/6 + 4/6 + 3/6) / 3 = 2/3.
    """
    scored = [
        row("chat/1", "chat", [3, 1, 5], [2, 4, 5]),
        row("chat/2", "chat", [1, 2, 3], [0] * 3),
    ]
    found = values(BENCH, scored)
    cells = [[1, 0.5, 0.5], [0.5, 0.5, 0.5], [1, 1, 0.5]]
    for i, chosen in enumerate(STYLES):
        for j, rejected in enumerate(STYLES):
            assert found[f"rmbench/chat/matrix/{chosen}_{rejected}"] == cells[i][j]
    expected = {"easy": 5 / 6, "normal": 2 / 3, "hard": 1 / 2, "average": 2 / 3}
    for name, value in expected.items():
        assert found[f"rmbench/chat/{name}"] == pytest.approx(value)
    assert found["rmbench/overall/partial"] == pytest.approx(2 / 3)
    assert len(found) == 9 + 4 + 4


def test_safety_pools_its_halves_and_the_overall_is_the_mean_of_four_domains():
    """Every cell is 1 or 0 for a prompt: right throughout, or wrong throughout.

    chat 1 of 2, math 1 of 1, code 0 of 1; safety-refuse 1 of 3 and safety-response 1 of 1.
    safety pools: 2 of 4 = 1/2, and is not the mean (1/3 + 1) / 2 = 2/3 of its halves.
    overall = (1/2 + 1 + 0 + 1/2) / 4 = 1/2, and so are easy, normal and hard.
    """
    right, wrong = ([1] * 3, [0] * 3), ([0] * 3, [1] * 3)
    parts = {
        "chat": [right, wrong],
        "math": [right],
        "code": [wrong],
        "safety-refuse": [right, wrong, wrong],
        "safety-response": [right],
    }
    scored = [
        row(f"{part}/{i}", part, *rewards)
        for part, prompts in parts.items()
        for i, rewards in enumerate(prompts)
    ]
    found = estimate(BENCH, scored)
    assert found["rmbench/safety/average"].value == pytest.approx(1 / 2)
    assert found["rmbench/safety/average"].n == 4
    assert found["rmbench/safety_refuse/average"].value == pytest.approx(1 / 3)
    assert found["rmbench/safety_response/average"].value == 1
    for name in ("easy", "normal", "hard", "overall"):
        assert found[f"rmbench/{name}"].value == pytest.approx(1 / 2)
        assert found[f"rmbench/{name}"].n == 8
    assert not any(name.endswith("/partial") for name in found)
    assert len(found) == 6 * (9 + 4) + 4


def test_parts_that_are_missing():
    scored = [
        row("chat/1", "chat", [1] * 3, [0] * 3),
        row("r/1", "safety-refuse", [1] * 3, [0] * 3),
    ]
    found = estimate(BENCH, scored)
    assert found["rmbench/overall/partial"].missing == ("math", "code", "safety-response")
    assert found["rmbench/safety/hard/partial"].missing == ("safety-response",)
    assert "rmbench/chat/hard" in found
    assert "rmbench/safety_refuse/matrix/concise_concise" in found
    assert not any(name.startswith(("rmbench/math", "rmbench/safety_response")) for name in found)
    assert BENCH.metrics([]) == []


def test_properties(folder):
    dataset = RMBench(path=str(folder)).load()
    constant = reward_all(dataset, lambda example, response: 1.5)
    nan = reward_all(dataset, lambda example, response: math.nan)
    half_nan = reward_all(
        dataset, lambda example, response: math.nan if "good" in response else 0.0
    )
    for scored in (constant, nan, half_nan):
        found = values(BENCH, scored)
        assert len(found) == 82
        assert set(found.values()) == {0.0}
    perfect = reward_all(dataset, lambda example, response: float("good" in response))
    assert set(values(BENCH, perfect).values()) == {1.0}
    check_pure(BENCH, perfect)


def test_swapping_turns_easy_into_what_hard_lacks(folder):
    """Without ties the rejected one wins where the chosen one does not: M' = 1 - M transposed."""
    dataset = RMBench(path=str(folder)).load()
    scored = reward_all(
        dataset, lambda example, response: crc32(f"{example.id} {response}".encode())
    )
    swapped = [row(one.id, one.subset, one.rejected, one.chosen) for one in scored]
    before, after, negated = (values(BENCH, rows) for rows in (scored, swapped, negate(scored)))
    assert before["rmbench/easy"] + after["rmbench/hard"] == pytest.approx(1)
    assert before["rmbench/hard"] + after["rmbench/easy"] == pytest.approx(1)
    for name in ("easy", "normal", "hard", "overall"):
        assert before[f"rmbench/{name}"] + negated[f"rmbench/{name}"] == pytest.approx(1)


def test_a_longer_is_better_reward_is_easy_only():
    """A reward that sees the style alone: all of easy, ties on the diagonal, none of hard."""
    found = values(BENCH, [row("chat/1", "chat", [1, 2, 3], [1, 2, 3])])
    figures = [found[f"rmbench/chat/{name}"] for name in ("easy", "normal", "hard")]
    assert figures == [1.0, 0.0, 0.0]


def test_upstreams_files(folder):
    dataset = RMBench(path=str(folder)).load()
    assert len(dataset.examples) == 10
    ids = [example.id for example in dataset.examples]
    assert ids[:2] == ["chat/1", "chat/2"]
    assert ids[-2:] == ["safety-response/1", "safety-response/2"]
    assert dataset.examples[0] == Example(
        "chat/1",
        "chat",
        (Message("user", "prompt 1"),),
        ("1 good concise", "1 good detailed", "1 good markdown"),
        ("1 bad concise", "1 bad detailed", "1 bad markdown"),
    )
    assert dataset.notes == tuple(
        f"{domain}: 2 of {COUNTS[domain]} examples"
        for domain in ("chat", "code", "math", "safety-refuse", "safety-response")
    )


def test_the_column_domain_and_the_file_of_all_domains(tmp_path):
    path = write_json(tmp_path / "total_dataset.json", [record(1, domain) for domain in COUNTS])
    ids = {f"{domain}/1" for domain in COUNTS}
    assert {example.id for example in RMBench(path=str(path)).load().examples} == ids
    write_json(tmp_path / "chat_filtered.json", [record(1), record(2)])
    dataset = RMBench(path=str(tmp_path)).load()
    assert {example.id for example in dataset.examples} == ids | {"chat/2"}
    assert dataset.notes[0] == (
        "total_dataset: 1 rows left out, their domains have their own files"
    )


def test_the_hub(monkeypatch):
    from rmexp.data.rows import Row

    asked = []

    def rows(*args):
        asked.append(args)
        return [Row(record(7, "math"), "", "hub, row 0")]

    monkeypatch.setattr("rmexp.data.selection.hub_rows", rows)
    dataset = RMBench().load()
    assert asked == [("THU-KEG/RM-Bench", "train", None)]
    assert [example.id for example in dataset.examples] == ["math/7"]
    assert dataset.source == "THU-KEG/RM-Bench (train)"
    assert dataset.notes == (
        "no examples of chat, code, safety-refuse, safety-response",
        "math: 1 of 529 examples",
    )


@pytest.mark.parametrize(
    ("include", "expected"),
    [
        (["chat"], {"chat"}),
        (["chat_filtered.json"], {"chat"}),
        (["chat_filtered"], {"chat"}),
        (["safety-*"], {"safety-refuse", "safety-response"}),
        (["math", "*response*"], {"math", "safety-response"}),
        (["*"], set(COUNTS)),
    ],
)
def test_include(folder, include, expected):
    for form in (include, tuple(include), OmegaConf.create(include)):
        dataset = RMBench(path=str(folder), include=form).load()
        assert {example.subset for example in dataset.examples} == expected


def test_an_include_that_matches_nothing(folder):
    with pytest.raises(DataError, match=r"matches bench\.include's 'poetry'.*chat, chat_filtered"):
        RMBench(path=str(folder), include=["chat", "poetry"]).load()


def test_limit_takes_the_first_prompts_of_each_part_with_all_their_examples(tmp_path):
    """Prompts A, B, A, C: the first two are A and B, and A has two examples."""
    rows = [record(i, "chat", prompt) for i, prompt in enumerate("ABAC")]
    rows += [record(i, "math", prompt) for i, prompt in enumerate("AX")]
    path = write_json(tmp_path / "all.json", rows)
    ids = [example.id for example in RMBench(path=str(path), limit=2).load().examples]
    assert ids == ["chat/0", "chat/1", "chat/2", "math/0", "math/1"]
    ids = [example.id for example in RMBench(path=str(path), limit=1).load().examples]
    assert ids == ["chat/0", "chat/2", "math/0"]


def bad_rows():
    good = ["a", "b", "c"]
    return [
        record(0, "chat"),
        record(1, "chat", prompt="\n "),
        record(2, "chat", rejected=["x", "", "y"]),
        record(3, "chat", chosen=good, rejected=["c", "x", "y"]),
    ]


BAD = (
    "chat/1: empty turn (all.json, row 1)",
    "chat/2: empty response (all.json, row 2)",
    "chat/3: identical chosen and rejected response (all.json, row 3)",
)


def test_bad_rows_are_kept_or_skipped_and_named(tmp_path):
    path = str(write_json(tmp_path / "all.json", bad_rows()))
    kept = RMBench(path=path).load()
    assert (len(kept.examples), kept.bad_rows) == (4, BAD)
    skipped = RMBench(path=path, on_bad_row="skip").load()
    assert ([example.id for example in skipped.examples], skipped.bad_rows) == (["chat/0"], BAD)
    limited = RMBench(path=path, limit=1).load()
    assert (len(limited.examples), limited.bad_rows) == (1, ())
    with pytest.raises(DataError, match=r"3 bad rows, the first of them chat/1: empty turn"):
        RMBench(path=path, on_bad_row="error").load()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [record(1, "chat"), record(1, "chat")],
            r"id chat/1 occurs twice, at .*row 0 and at .*row 1",
        ),
        ([record(1, "poetry")], r"domain 'poetry' at x\.json, row 0 is unknown: .*chat, math"),
        ([record(1)], r"domain of x\.json, row 0 is unknown: add a column 'domain', or begin"),
        ([record(1, "chat", chosen=["a", "b"])], r"'chosen' must hold a list of 3 strings"),
        ([record(1, "chat", rejected="abc")], r"'rejected' must hold a list of 3 strings"),
        ([record(None, "chat")], r"'id' must hold an integer or a string"),
        ([{"id": 1, "domain": "chat"}], r"column 'prompt' is missing at x\.json, row 0"),
    ],
)
def test_rows_that_cannot_be_read(tmp_path, rows, message):
    path = write_json(tmp_path / "x.json", rows)
    with pytest.raises(DataError, match=message):
        RMBench(path=str(path)).load()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"include": "chat"}, ConfigError, r"bench\.include must be a list .*not 'chat': write it"),
        ({"include": []}, ConfigError, r"bench\.include must be a list"),
        ({"include": [1]}, ConfigError, r"bench\.include must be a list"),
        ({"include": {"a": 1}}, ConfigError, r"bench\.include must be a list"),
        ({"limit": 0}, ConfigError, r"bench\.limit must be a positive whole number, not 0"),
        ({"limit": -3}, ConfigError, r"bench\.limit must be"),
        ({"limit": 2.0}, ConfigError, r"bench\.limit must be"),
        ({"limit": True}, ConfigError, r"bench\.limit must be"),
        ({"limit": "5"}, ConfigError, r"bench\.limit must be"),
        (
            {"on_bad_row": "drop"},
            ConfigError,
            r"bench\.on_bad_row must be one of keep, skip, error",
        ),
        ({"path": "/no/where"}, DataError, r"/no/where does not exist"),
    ],
)
def test_options_are_checked_before_anything_is_read(options, error, message):
    with pytest.raises(error, match=message):
        RMBench(**options)


def test_the_real_files(shared):
    dataset = RMBench(path=str(shared / "data" / "rm_bench")).load()
    counts = {
        domain: sum(example.subset == domain for example in dataset.examples) for domain in COUNTS
    }
    assert counts == {
        "chat": 129,
        "math": 0,
        "code": 0,
        "safety-refuse": 284,
        "safety-response": 157,
    }
    assert dataset.bad_rows == ()
    assert dataset.notes == ("no examples of math, code",)
    found = estimate(BENCH, reward_all(dataset, lambda example, response: len(response)))
    assert found["rmbench/overall/partial"].n == 129 + 284 + 157
    assert found["rmbench/safety/average"].n == 441
    # Detailed and markdown responses are longer than concise ones.
    assert found["rmbench/easy/partial"].value > 0.8
    assert found["rmbench/hard/partial"].value < 0.2
    assert len(DOMAINS) == 4


def test_the_figure_has_a_map_for_each_domain_that_is_there(monkeypatch):
    from rmexp.stats import figures

    drawn = []
    monkeypatch.setattr(figures, "heat_maps", lambda *args: drawn.append(args) or "figure")
    scored = [
        row("chat/1", "chat", [3, 1, 5], [2, 4, 5]),
        row("r/1", "safety-refuse", [0] * 3, [1] * 3),
    ]
    monkeypatch.setattr(figures, "style_bias", lambda *args: drawn.append(args) or "scatter")
    by_name = {name.removesuffix("/partial"): e for name, e in estimate(BENCH, scored).items()}
    assert BENCH.figures(by_name, scored) == {
        "style_matrix.png": "figure",
        "style_bias.png": "scatter",
    }
    (matrices, styles), (biases,) = drawn
    assert list(matrices) == ["chat", "safety"]
    assert list(biases) == ["chat", "safety"]
    values = [[cell.value for cell in row] for row in matrices["chat"]]
    assert values == [[1, 0, 0], [0, 0, 0], [1, 1, 0]]
    assert {cell.chance for row in matrices["chat"] for cell in row} == {0.5}
    assert tuple(styles) == STYLES
    # chat: (1 - 3 + 0) / 3 and (-2 + 2) / 2; safety: -1, and every style the same
    assert biases["chat"] == pytest.approx(np.array([[-2 / 3, 0.0]]))
    assert biases["safety"].tolist() == [[-1.0, 0.0]]
    assert BENCH.figures({}, []) == {}
    lost = [replace(one, chosen=(math.nan,) * 3) for one in scored]
    assert list(BENCH.figures(by_name, lost)) == ["style_matrix.png"]  # no dot, no figure


def test_correctness_and_verbosity_by_hand():
    """Chosen minus rejected: 3, 1, 2, on average 2. Detailed minus concise: 4 and 6, half of 10."""
    assert correctness_and_verbosity(row("1", "chat", [1, 5, 9], [-2, 4, 7])) == (2.0, 5.0)
    nan = correctness_and_verbosity(row("1", "chat", [1, 5, math.nan], [-2, 4, 7]))
    assert math.isnan(nan[0])
    assert nan[1] == 5.0
