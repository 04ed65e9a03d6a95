import math

import pytest
from omegaconf import OmegaConf
from scored_rows import check_pure, estimate, negate, reward_all, row, values, write_lines

from rmexp.benchmarks.preference import Preference
from rmexp.data.pairs import read_pair
from rmexp.data.rows import Row
from rmexp.data.selection import Selection
from rmexp.errors import ConfigError, DataError
from rmexp.schema import Example, Message, ScoredExample


def turn(role, content):
    return {"role": role, "content": content}


USER, ASSISTANT = turn("user", "hi"), turn("assistant", "good")
OTHER = turn("assistant", "bad")
HI = Message("user", "hi")
FIRST = [USER, turn("assistant", "hello"), turn("user", "and?")]
LONG = (HI, Message("assistant", "hello"), Message("user", "and?"))


def read(values):
    return read_pair(Row(values, "x.jsonl", "x.jsonl:1"), "0", "preference")


FORMS = {
    "strings": ({"prompt": "hi", "chosen": "good", "rejected": "bad"}, (HI,)),
    "prompt as messages": ({"prompt": FIRST, "chosen": "good", "rejected": "bad"}, LONG),
    "conversations": ({"chosen": [*FIRST, ASSISTANT], "rejected": [*FIRST, OTHER]}, LONG),
    "conversations and null": (
        {"prompt": None, "chosen": [USER, ASSISTANT], "rejected": [USER, OTHER]},
        (HI,),
    ),
    "conversations and prompt": (
        {"prompt": "hi", "chosen": [USER, ASSISTANT], "rejected": [USER, OTHER]},
        (HI,),
    ),
    "conversations with system and prompt": (
        {
            "prompt": "hi",
            "chosen": [turn("system", "s"), USER, ASSISTANT],
            "rejected": [turn("system", "s"), USER, OTHER],
        },
        (Message("system", "s"), HI),
    ),
    "responses as messages": (
        {"prompt": FIRST, "chosen": [ASSISTANT], "rejected": [OTHER]},
        LONG,
    ),
    "responses as messages, prompt a string": (
        {"prompt": "hi", "chosen": [ASSISTANT], "rejected": [OTHER]},
        (HI,),
    ),
    "one side as messages": (
        {"prompt": "hi", "chosen": [ASSISTANT], "rejected": "bad"},
        (HI,),
    ),
    "HH-RLHF": (
        {
            "chosen": "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: and?\n\nAssistant: good",
            "rejected": "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: and?\n\nAssistant: bad",
        },
        LONG,
    ),
    "a string that looks like a dialogue, with prompt": (
        {"prompt": "\n\nHuman: hi", "chosen": "good", "rejected": "bad"},
        (Message("user", "\n\nHuman: hi"),),
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_pair(form):
    columns, prompt = FORMS[form]
    entry = read(columns)
    assert entry.example == Example("0", "preference", prompt, ("good",), ("bad",))
    assert entry.flaw is None


def test_a_dialogue_keeps_its_text_as_it_is():
    """Only the blank after the colon belongs to the format; single line ends do not end a turn."""
    chosen = "\n\nHuman:  two\n\nnext\nAssistant: no\n\nAssistant:  x \n"
    rejected = chosen.replace("x", "y")
    example = read({"chosen": chosen, "rejected": rejected}).example
    assert example.prompt == (Message("user", " two\n\nnext\nAssistant: no"),)
    assert (example.chosen, example.rejected) == ((" x \n",), (" y \n",))


DIFFERENT = [
    {"chosen": [USER, ASSISTANT], "rejected": [turn("user", "ho"), OTHER]},
    {"chosen": [USER, ASSISTANT], "rejected": [*FIRST, OTHER]},
    {"chosen": "\n\nHuman: hi\n\nAssistant: a", "rejected": "\n\nHuman: ho\n\nAssistant: b"},
    {"prompt": "ho", "chosen": [USER, ASSISTANT], "rejected": [USER, OTHER]},
    {"prompt": FIRST, "chosen": [USER, ASSISTANT], "rejected": [USER, OTHER]},
    {"prompt": "hi", "chosen": [USER, ASSISTANT], "rejected": "bad"},
]


@pytest.mark.parametrize("columns", DIFFERENT)
def test_prompts_that_differ_can_be_skipped_but_not_kept(tmp_path, columns):
    assert read(columns).flaw == "prompts differ"
    good = {"prompt": "q", "chosen": "a", "rejected": "b"}
    path = str(write_lines(tmp_path / "x.jsonl", [good, columns]))
    line = r"1: prompts differ \(x\.jsonl:2\)"
    with pytest.raises(DataError, match=rf"1 bad rows, the first of them {line}: .*row=skip$"):
        Preference(path=path).load()
    with pytest.raises(DataError, match=f"bad row {line} cannot be scored as it is: leave .*=skip"):
        Preference(path=path, on_bad_row="keep").load()
    dataset = Preference(path=path, on_bad_row="skip").load()
    assert [example.id for example in dataset.examples] == ["0"]
    assert dataset.bad_rows == ("1: prompts differ (x.jsonl:2)",)


UNREADABLE = [
    ({"chosen": "a", "rejected": "b"}, r"column 'prompt' is missing at x\.jsonl:1"),
    ({"prompt": None, "chosen": "a", "rejected": "b"}, r"column 'prompt' must hold a string"),
    ({"prompt": "q", "chosen": "a"}, r"column 'rejected' is missing .*there: prompt, chosen"),
    ({"prompt": "q", "chosen": 1, "rejected": "b"}, r"column 'chosen' must hold a string, not int"),
    ({"prompt": 1, "chosen": "a", "rejected": "b"}, r"column 'prompt' must hold a string, not int"),
    ({"prompt": [], "chosen": "a", "rejected": "b"}, r"column 'prompt' must hold a list of one or"),
    ({"chosen": [ASSISTANT], "rejected": [OTHER]}, r"column 'prompt' is missing"),
    (
        {"chosen": [turn("human", "x"), ASSISTANT], "rejected": [USER, OTHER]},
        r"role 'human' is unknown",
    ),
]


@pytest.mark.parametrize(("columns", "message"), UNREADABLE)
def test_rows_that_cannot_be_read(columns, message):
    with pytest.raises(DataError, match=message):
        read(columns)


def test_ids_are_the_column_or_the_rows_number(tmp_path):
    pair = {"prompt": "q", "chosen": "a", "rejected": "b"}
    write_lines(tmp_path / "1.jsonl", [pair, pair | {"id": "mine"}])
    write_lines(tmp_path / "2.jsonl", [pair | {"id": 7}, pair | {"id": None}])
    dataset = Preference(path=str(tmp_path)).load()
    assert [example.id for example in dataset.examples] == ["0", "mine", "7", "3"]
    write_lines(tmp_path / "3.jsonl", [pair | {"id": 3}])
    with pytest.raises(DataError, match=r"id 3 occurs twice, at 2\.jsonl:2 and at 3\.jsonl:1"):
        Preference(path=str(tmp_path)).load()


def test_the_accuracies_by_hand():
    """a: right, tie, right; b: wrong. Accuracy 2/4; a 2/3, b 0."""
    scored = [
        row("0", "a", [1.0], [0.0]),
        row("1", "a", [1.0], [1.0]),
        row("2", "b", [0.0], [1.0]),
        row("3", "a", [3.0], [-1.0]),
    ]
    bench = Preference(path=__file__)
    assert values(bench, scored) == {"preference/accuracy": 0.5}
    by_subset = Preference(path=__file__, subset_column="scenario")
    assert values(by_subset, scored) == pytest.approx(
        {
            "preference/accuracy": 1 / 2,
            "preference/subset/a": 2 / 3,
            "preference/subset/b": 0,
        }
    )
    assert bench.metrics([]) == []
    check_pure(by_subset, scored)


def test_properties():
    bench = Preference(path=__file__, subset_column="s")
    for reward in (0.0, math.nan):
        scored = [row(str(i), "ab"[i % 2], [reward], [reward]) for i in range(4)]
        assert set(values(bench, scored).values()) == {0.0}
    scored = [row(str(i), "ab"[i % 2], [i % 3], [0.5]) for i in range(8)]
    before, after = values(bench, scored), values(bench, negate(scored))
    swapped = values(bench, [row(r.id, r.subset, r.rejected, r.chosen) for r in scored])
    assert after == swapped
    assert len(before) == 3
    for name in before:
        assert before[name] + after[name] == pytest.approx(1)


def test_subsets_select_and_limit(tmp_path):
    rows = [
        {"prompt": prompt, "chosen": "a", "rejected": "b", "kind": kind}
        for kind, prompt in [("x", "A"), ("x", "B"), ("y", "A"), ("x", "A"), ("y", "C")]
    ]
    path = str(write_lines(tmp_path / "data.jsonl", rows))

    def ids(**options):
        return [example.id for example in Preference(path=path, **options).load().examples]

    assert ids() == ["0", "1", "2", "3", "4"]
    assert ids(limit=1) == ["0"]  # one part: reading ends at the second prompt
    assert ids(limit=1, subset_column="kind") == ["0", "2", "3"]
    assert ids(limit=2) == ["0", "1", "2", "3"]
    assert ids(include=OmegaConf.create(["y"]), subset_column="kind") == ["2", "4"]
    assert ids(include=["data*"]) == ["0", "1", "2", "3", "4"]
    with pytest.raises(DataError, match=r"include's 'z': choose from data\.jsonl, x, y"):
        ids(include=["z"], subset_column="kind")
    with pytest.raises(DataError, match="column 'absent' is missing"):
        ids(subset_column="absent")


def test_an_offset_passes_over_what_a_limit_took(tmp_path):
    """Whatever is done with the bad row, and though a prompt comes again later."""
    rows = [
        {"prompt": prompt, "chosen": "a", "rejected": "a" if prompt == "B" else "b"}
        for prompt in "ABCADEAF"
    ]
    path = str(write_lines(tmp_path / "data.jsonl", rows))

    def ids(**options):
        return [example.id for example in Preference(path=path, **options).load().examples]

    assert ids(limit=2, on_bad_row="skip") == ["0", "2", "3"]
    for policy in ("skip", "keep"):
        assert ids(offset=2, on_bad_row=policy) == ["4", "5", "7"]
        assert ids(offset=2, limit=1, on_bad_row=policy) == ["4"]
    with pytest.raises(DataError, match=r"bench\.offset=6 leaves nothing"):
        ids(offset=6, on_bad_row="skip")


def test_the_hub(monkeypatch):
    asked = []

    def rows(*args):
        asked.append(args)
        return [Row(FORMS["strings"][0], "", "row 0")]

    monkeypatch.setattr("rmexp.data.selection.hub_rows", rows)
    dataset = Preference(path="owner/data", split="test", revision="v1").load()
    assert asked == [("owner/data", "test", "v1")]
    assert len(dataset.examples) == 1
    assert dataset.source == "owner/data (test, v1)"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ConfigError, r"bench=preference needs data: set bench\.path"),
        (
            {"path": "owner/data"},
            DataError,
            r"does not exist.*or set bench\.split for a hub data set",
        ),
        ({"path": __file__, "split": "test"}, ConfigError, r"is local: leave bench\.split out"),
        (
            {"path": __file__, "revision": "v1"},
            ConfigError,
            r"bench\.revision is for hub data sets",
        ),
        ({"path": __file__, "limit": 0}, ConfigError, r"bench\.limit must be a positive whole"),
        ({"path": __file__, "offset": -1}, ConfigError, r"bench\.offset must be a whole number"),
        ({"path": __file__, "include": "x"}, ConfigError, r"bench\.include must be a list"),
        ({"path": __file__, "on_bad_row": None}, ConfigError, r"bench\.on_bad_row must be one of"),
    ],
)
def test_options_are_checked_before_anything_is_read(options, error, message):
    with pytest.raises(error, match=message):
        Preference(**options)


def test_messages_name_the_group_that_selects():
    with pytest.raises(ConfigError, match=r"data\.limit must be"):
        Selection(None, 0, "skip", group="data")


def test_the_real_auto_j_pairs(shared):
    path = str(shared / "data" / "preferences" / "auto_j.jsonl")
    dataset = Preference(path=path, on_bad_row="keep", subset_column="scenario").load()
    assert len(dataset.examples) == 1019
    assert len({example.subset for example in dataset.examples}) == 58
    assert [line.split(" (")[0] for line in dataset.bad_rows] == [
        "423: empty response",
        "924: identical chosen and rejected response",
    ]
    assert len(Preference(path=path, on_bad_row="skip").load().examples) == 1017
    first = r"2 bad rows, the first of them 423: empty response .*row=skip, or score .* with keep$"
    with pytest.raises(DataError, match=first):
        Preference(path=path).load()
    bench = Preference(path=path, subset_column="scenario")
    found = values(bench, reward_all(dataset, lambda example, response: len(response)))
    assert len(found) == 59
    assert found["preference/accuracy"] > 0.5  # people prefer longer answers


def test_the_real_dialogues(shared):
    path = str(shared / "data" / "preferences" / "hh_rlhf_harmless_base_test.jsonl.gz")
    dataset = Preference(path=path, on_bad_row="skip").load()
    assert len(dataset.examples) == 2312 - 9
    reasons = [line.split(": ")[1].split(" (")[0] for line in dataset.bad_rows]
    assert sorted(reasons) == ["empty response"] * 4 + ["prompts differ"] * 5
    assert {example.prompt[-1].role for example in dataset.examples} == {"user"}
    with pytest.raises(DataError, match=r"prompts differ .*cannot be scored as it is"):
        Preference(path=path, on_bad_row="keep").load()


def test_the_figure_has_a_bar_for_each_subset():
    scored = [row(str(i), "ab"[i % 2], [i % 3], [0.5]) for i in range(8)]
    bench = Preference(path=__file__, subset_column="s")
    figures = bench.figures(estimate(bench, scored), scored)
    assert list(figures) == ["subsets.png"]
    assert len(figures["subsets.png"].axes[0].patches) >= 2
    plain = Preference(path=__file__)
    assert plain.figures(estimate(plain, scored), scored) == {}


def test_lists_of_responses(tmp_path):
    """Every chosen one above every rejected one: 1/2; a chosen one is ranked first in both."""
    rows = [
        {"prompt": FIRST, "chosen": ["a2", "a3"], "rejected": ["b1"]},
        {"prompt": "hi", "chosen": "a3", "rejected": ["b1", "b3"]},
        {"prompt": "hi", "chosen": "a2", "rejected": "b1"},
        {"prompt": "hi", "system": "short", "chosen": ["a0", "a5"], "rejected": ["b1", "b4"]},
    ]
    bench = Preference(path=str(write_lines(tmp_path / "x.jsonl", rows)))
    data = bench.load()
    assert data.examples[0].prompt == LONG
    assert data.examples[0].chosen == ("a2", "a3")
    assert data.examples[1].rejected == ("b1", "b3")
    assert data.examples[3].prompt == (Message("system", "short"), HI)
    scored = reward_all(data, lambda example, response: float(response[1]))
    # The second has a tie for the highest, the last a chosen one below a rejected one.
    assert values(bench, scored) == {
        "preference/accuracy": 2 / 4,
        "preference/best_of_n": (1 + 1 / 2 + 1 + 1) / 4,
    }
    pairs_only = values(bench, scored[2:3])
    assert pairs_only == {"preference/accuracy": 1.0}
    write_lines(tmp_path / "x.jsonl", [{"prompt": "hi", "chosen": [], "rejected": ["b"]}])
    with pytest.raises(DataError, match="'chosen' is empty"):
        Preference(path=str(tmp_path)).load()


def test_a_judge_of_lists_gives_shares(tmp_path):
    judged = ScoredExample(
        "1", "preference", "p", (0.75, 0.5), (0.0, 0.5), verdicts=((1.0, 0.5), (0.5, 0.5))
    )
    assert values(Preference(path=str(tmp_path)), [judged]) == {
        "preference/accuracy": 1 / 8,  # all four
        "preference/best_of_n": 1 / 2,  # the first against both
    }
