"""Preference data in the field's forms: which pairs of which prompts they give."""

import csv
import json

import pytest
from omegaconf import OmegaConf
from scored_rows import write_lines

from rmexp.benchmarks.preference import Preference
from rmexp.data.pairs import read_pair
from rmexp.data.rows import Row
from rmexp.errors import ConfigError, DataError
from rmexp.schema import Message
from rmexp.training.data import PreferencePairs

HI = Message("user", "Hi")
PAIR = {"prompt": "Hi", "chosen": "a", "rejected": "b"}
TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]
OTHER = [TURNS[0], {"role": "assistant", "content": "No"}]


def read(columns):
    return read_pair(Row(columns, "x.jsonl", "x.jsonl:1"), "0", "preference")


def load(tmp_path, rows, kind=Preference, **options):
    return kind(path=str(write_lines(tmp_path / "x.jsonl", rows)), **options).load()


def pairs(dataset):
    return [(e.id, e.chosen[0], e.rejected[0]) for e in dataset.examples]


READERS = pytest.mark.parametrize("kind", [Preference, PreferencePairs])


@READERS
def test_a_system_column_is_the_system_turn(tmp_path, kind):
    rows = [PAIR | {"system": text} for text in ("Be rude", "", None)]
    rows.append({"system": "Be rude", "chosen": TURNS, "rejected": OTHER})
    same = [{"role": "system", "content": "Be rude"}]
    rows.append({"system": "Be rude", "chosen": same + TURNS, "rejected": same + OTHER})
    prompts = [example.prompt for example in load(tmp_path, rows, kind).examples]
    with_system = (Message("system", "Be rude"), HI)
    assert prompts == [with_system, (HI,), (HI,), with_system, with_system]
    assert read(rows[4] | {"system": "Be kind"}).flaw == "'system' and the system turn differ"


@READERS
def test_columns_that_are_not_read_are_named_once(tmp_path, kind):
    rows = [PAIR | {"margin": 2.0}, PAIR | {"margin": 1.0, "score": 1}]
    assert load(tmp_path, rows, kind).notes == ("columns that are not read: margin, score",)
    assert load(tmp_path, [PAIR | {"id": 1, "kind": "k"}], kind, subset_column="kind").notes == ()


@READERS
def test_columns_of_other_names(tmp_path, kind):
    rows = [{"question": "Hi", "better": "a", "worse": "b", "prompt": "not this"}]
    columns = OmegaConf.create({"prompt": "question", "chosen": "better", "rejected": "worse"})
    data = load(tmp_path, rows, kind, columns=columns)
    assert data.examples[0].prompt == (HI,)
    assert data.notes == ("columns that are not read: prompt",)
    group = "bench" if kind is Preference else "data"
    with pytest.raises(DataError, match=rf"'chosen' is missing at x\.jsonl:1.* {group}\.columns="):
        load(tmp_path, rows, kind)
    for wrong in ({"promt": "x"}, {"prompt": 1}, {"prompt": ""}, ["prompt"], "prompt"):
        with pytest.raises(ConfigError, match=rf"{group}\.columns=.*one or more of id, system"):
            load(tmp_path, rows, kind, columns=wrong)


NOT_THE_ASSISTANT = [
    {"chosen": TURNS[:1], "rejected": OTHER},
    {
        "chosen": "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: thanks",
        "rejected": "\n\nHuman: Hi\n\nAssistant: Go!",
    },
    {"chosen": "\n\nHuman: Hi", "rejected": "\n\nHuman: Hi"},
]


@pytest.mark.parametrize("columns", NOT_THE_ASSISTANT)
def test_what_does_not_end_with_the_assistant_is_a_bad_row(tmp_path, columns):
    flaw = "'chosen' ends with the user's turn, not the assistant's"
    assert read(columns).flaw == flaw
    data = load(tmp_path, [PAIR, columns], on_bad_row="skip")
    assert data.bad_rows == (f"1: {flaw} (x.jsonl:2)",)
    with pytest.raises(DataError, match="cannot be scored as it is"):
        load(tmp_path, [columns], on_bad_row="keep")


@READERS
def test_when_all_rows_are_bad_the_first_ones_reason_is_told(tmp_path, kind):
    turns = "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: x\n\nAssistant: y"
    rows = [{"chosen": turns, "rejected": "\n\nHuman: Hi\n\nAssistant: Go!"}, PAIR | {"chosen": ""}]
    with pytest.raises(
        DataError, match=r"^all 2 rows are bad, the first of them 0: prompts differ \(x\.jsonl:1\)"
    ):
        load(tmp_path, rows, kind, on_bad_row="skip")


@pytest.mark.parametrize("write", [json.dumps, repr])
def test_messages_that_a_table_holds_as_text(tmp_path, write):
    with (tmp_path / "x.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerows([["chosen", "rejected"], [write(TURNS), write(OTHER)]])
    (example,) = Preference(path=str(tmp_path / "x.csv")).load().examples
    assert (example.prompt, example.chosen, example.rejected) == ((HI,), ("Yes",), ("No",))


TEXTS = {
    "[{'role': 'user', 'content': 'Hi'}\n {'role': 'assistant', 'content': 'Yes'}]": "neither JSON",
    '[{"role": "user", "content": "Hi': "neither JSON nor",
    '[{"from": "human", "value": "Hi"}]': "column 'role' is missing",
    "[{'role': __import__('os').getcwd()}]": "neither JSON nor",
    '[{"role": "user", "role": "assistant", "content": ""}]': "the key 'role' stands twice",
    '[{"role": ' + "[" * 5000: "neither JSON nor",
}


@pytest.mark.parametrize("text", TEXTS)
def test_what_begins_like_messages_and_is_none_is_refused(text):
    with pytest.raises(DataError, match=TEXTS[text]):
        read(PAIR | {"chosen": text})
    assert read(PAIR | {"chosen": '[{"name": "x"}]'}).example.chosen == ('[{"name": "x"}]',)


def nectar(ranks, prompt="\n\nHuman: Hi\n\nAssistant: "):
    answers = [{"answer": f"{name}", "rank": rank} for name, rank in ranks.items()]
    return {"prompt": prompt, "answers": answers}


@READERS
def test_ranked_answers(tmp_path, kind):
    """Ranks 1, 2, 2, 3: every two but the tie; inwards two pairs, the second the tie."""
    rows = [nectar({"c": 2.0, "a": 1, "d": 3, "b": 2.0}), nectar({"x": 1, "y": 1})]
    data = load(tmp_path, rows, kind)
    found = [("a", "c"), ("a", "b"), ("a", "d"), ("c", "d"), ("b", "d")]
    assert pairs(data) == [(f"0/{i}", *pair) for i, pair in enumerate(found)]
    assert {example.prompt for example in data.examples} == {(HI,)}
    left_out = "2 pairs of equal rank or rating left out"
    assert data.notes == (left_out, "1 of 2 prompts give no pair")
    assert pairs(load(tmp_path, rows, kind, pairs_per_prompt=2)) == [("0/0", "a", "d")]
    assert pairs(load(tmp_path, rows, kind, pairs_per_prompt=1)) == [("0/0", "a", "d")]
    with pytest.raises(ConfigError, match=r"\.pairs_per_prompt=0: give a whole number"):
        load(tmp_path, rows, kind, pairs_per_prompt=0)
    with pytest.raises(DataError, match="gives no pairs: 1 pairs of equal rank"):
        load(tmp_path, rows[1:], kind)


def test_rated_answers_in_a_list(tmp_path):
    """As UltraFeedback has them."""
    completions = [{"response": text, "overall_score": i} for i, text in enumerate("ab")]
    columns = {"prompt": "instruction", "answers": "completions", "answer": "response"}
    rows = [{"instruction": "Hi", "completions": completions}]
    data = load(tmp_path, rows, columns=columns | {"rating": "overall_score"})
    assert pairs(data) == [("0/0", "b", "a")]
    assert data.notes == ("answers are rated by overall_score",)
    with pytest.raises(DataError, match=r"'rating' is missing at x\.jsonl:1, 'completions' 0"):
        load(tmp_path, rows, columns=columns)


@READERS
def test_rated_rows_belong_together_by_their_prompt(tmp_path, kind):
    rows = [
        {"prompt": prompt, "response": text, "helpfulness": rating, "verbosity": 4 - rating}
        for prompt, text, rating in [("A", "no", 1), ("B", "x", 2), ("A", "yes", 4), ("C", "y", 0)]
    ]
    data = load(tmp_path, [*rows, rows[1]], kind)
    assert pairs(data) == [("0/0", "yes", "no")]
    assert data.notes == (
        "columns that are not read: verbosity",
        "answers are rated by helpfulness",
        "1 pairs of equal rank or rating left out",
        "2 of 3 prompts give no pair",
    )
    by_subset = [row | {"kind": str(i)} for i, row in enumerate(rows)]
    with pytest.raises(DataError, match=r"gives no pairs: .*4 of 4 prompts give no pair"):
        load(tmp_path, by_subset, kind, subset_column="kind")
    other = load(tmp_path, rows, kind, columns={"rating": "verbosity"})
    assert pairs(other) == [("0/0", "no", "yes")]


@pytest.mark.parametrize("rating", [None, "high", True, float("nan"), 10**400])
def test_a_rating_that_is_no_number(tmp_path, rating):
    row = {"prompt": "A", "response": "x", "helpfulness": rating}
    with pytest.raises(DataError, match=r"'helpfulness' must hold a finite number, not .*x\.jsonl"):
        load(tmp_path, [row])


def test_prompts_of_many_turns_in_one_string():
    steer = "One?\n<extra_id_1>Assistant\nTwo.\n\n<extra_id_1>User\nThree?"
    nectar = "\n\nHuman: One?\n\nAssistant: Two.\n\nHuman: Three?\n\nAssistant:"
    found = [read(PAIR | {"prompt": prompt}).example.prompt for prompt in (steer, nectar)]
    assert found[0] == (
        Message("user", "One?"),
        Message("assistant", "Two.\n"),
        Message("user", "Three?"),
    )
    assert found[1] == (found[0][0], Message("assistant", "Two."), found[0][2])


def test_whole_dialogues_beside_their_prompt():
    dialogues = {
        "chosen": "\n\nHuman: Hi\n\nAssistant: a",
        "rejected": "\n\nHuman: Hi\n\nAssistant: b",
    }
    for prompt in ("Hi", "\n\nHuman: Hi\n\nAssistant:", None):
        entry = read(dialogues | {"prompt": prompt})
        assert (entry.example.prompt, entry.example.chosen, entry.flaw) == ((HI,), ("a",), None)
    assert read(dialogues | {"prompt": "Ho"}).flaw == "prompts differ"


LONE = "\ud83d"


@pytest.mark.parametrize(
    ("changes", "column"),
    [
        ({"chosen": f"hi {LONE}"}, "chosen"),
        ({"prompt": LONE}, "prompt"),
        ({"system": LONE}, "system"),
        ({"id": f"1{LONE}"}, "id"),
        ({"kind": LONE}, "kind"),
        ({"rejected": [{"role": "assistant", "content": LONE}]}, "content"),
        ({"rejected": json.dumps([{"role": "assistant", "content": LONE}])}, "content"),
    ],
)
@READERS
def test_half_a_character_is_named_when_loading(tmp_path, kind, changes, column):
    with pytest.raises(DataError, match=rf"'{column}' at x\.jsonl:2.* half of a char") as caught:
        load(
            tmp_path,
            [PAIR | {"kind": "k"}, PAIR | {"kind": "k"} | changes],
            kind,
            subset_column="kind",
        )
    str(caught.value).encode()


@READERS
def test_a_key_that_stands_twice_makes_a_bad_row(tmp_path, kind):
    path = tmp_path / "x.jsonl"
    twice = '{"prompt": "Hi", "chosen": "a", "chosen": "c", "rejected": "b"}'
    path.write_text(f"{json.dumps(PAIR)}\n{twice}\n", encoding="utf-8")
    data = kind(path=str(path), on_bad_row="skip").load()
    assert data.bad_rows == ("1: the key 'chosen' stands twice (x.jsonl:2)",)
    assert [example.id for example in data.examples] == ["0"]
    for policy in ("keep", "error"):
        with pytest.raises(DataError, match=r"1: the key 'chosen' stands twice \(x\.jsonl:2\)"):
            kind(path=str(path), on_bad_row=policy).load()


@READERS
def test_a_limit_reads_what_it_needs(tmp_path, kind):
    """A, A, B, and what follows is no JSON at all."""
    rows = [PAIR | {"prompt": prompt} for prompt in "AAB"]
    path = write_lines(tmp_path / "x.jsonl", rows)
    with path.open("a", encoding="utf-8") as file:
        file.write("{")
    data = kind(path=str(path), limit=1).load()
    assert [example.id for example in data.examples] == ["0", "1"]
    assert data.notes == ("only the first 3 rows were read: they fill the limit",)
    offset = kind(path=str(path), include=["x"], offset=1, limit=1)
    with pytest.raises(DataError, match=r"x\.jsonl:4 is no valid JSON"):
        offset.load()
    with pytest.raises(DataError, match="is no valid JSON"):
        kind(path=str(path), include=["x", "z"], limit=1).load()


@READERS
def test_what_is_not_included_is_not_read(tmp_path, kind):
    (tmp_path / "dataset_infos.json").write_text('{"default": {}}')
    rows = [PAIR | {"id": i, "kind": "k"} for i in range(2)]
    for name in ("data/train-0.jsonl", "data/test-0.jsonl"):
        write_lines(tmp_path / name, rows)
    for include in (["data/train*"], ["train-0"]):
        data = kind(path=str(tmp_path), include=include, subset_column="kind").load()
        assert [example.id for example in data.examples] == ["0", "1"]
    with pytest.raises(DataError, match=r"id 0 occurs twice, at data/test-0.*:1 and at data/train"):
        kind(path=str(tmp_path)).load()
    (tmp_path / "data" / "test-0.jsonl").unlink()
    with pytest.raises(DataError, match="or select the others with include"):
        kind(path=str(tmp_path)).load()
    (tmp_path / "dataset_infos.json").unlink()
    with pytest.raises(DataError, match=r"include's 'dev': choose from data/train-0\.jsonl"):
        kind(path=str(tmp_path), include=["train-0", "dev"]).load()


def test_subsets_of_one_metric_name_are_refused(tmp_path):
    rows = [PAIR | {"kind": kind} for kind in ("a b", "a_b")]
    with pytest.raises(DataError, match=r"'a b' and 'a_b' of .* preference/subset/a_b: rename"):
        load(tmp_path, rows, subset_column="kind")
    assert len(load(tmp_path, rows, PreferencePairs, subset_column="kind").examples) == 2
