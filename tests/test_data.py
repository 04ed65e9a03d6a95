"""Pairs to train on: where they are from, how they are split, encoded and put into batches."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scored_rows import write_lines
from tiny import THINKING, tiny_tokenizer

from rmexp.data import toy
from rmexp.errors import ConfigError, DataError
from rmexp.models.chat import Chat, Encoded
from rmexp.schema import Example, Message, prompt_key
from rmexp.training.batches import Batches
from rmexp.training.data import PreferencePairs, RecordedPairs, ToyPairs
from rmexp.training.encoded import EncodedPair, encode_pairs
from rmexp.training.split import split_by_prompt


def examples(prompts: int, each: int = 2) -> list[Example]:
    return [
        Example(f"{p}/{i}", "s", (Message("user", f"Question {p}?"),), (f"yes {i}",), (f"no {i}",))
        for p in range(prompts)
        for i in range(each)
    ]


def pairs(count: int) -> list[EncodedPair]:
    """Pairs whose ids differ, of one to three tokens more than the prompt's two."""
    rows = [Encoded(tuple(range(5, 8 + i % 3)), 2, 3 + i % 3) for i in range(count)]
    return [EncodedPair(str(i), row, Encoded((5, 6, 9), 2, 3)) for i, row in enumerate(rows)]


def write_pairs(path: Path, rows: list[dict[str, Any]]) -> str:
    return str(write_lines(path, rows))


def test_toy_pairs_share_no_prompt_with_the_benchmark() -> None:
    data = ToyPairs(pairs=64).load()
    assert len(data.examples) == 64
    tested = {prompt_key(example.prompt) for example in toy.examples("test", 50)}
    assert tested.isdisjoint(prompt_key(example.prompt) for example in data.examples)


def test_bad_rows_are_left_out_and_named(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "chosen": "x", "rejected": "y"},
        {"prompt": "b", "chosen": "x", "rejected": "x"},
        {"prompt": "c", "chosen": " ", "rejected": "y"},
    ]
    path = write_pairs(tmp_path / "pairs.jsonl", rows)
    data = PreferencePairs(path=path).load()
    assert [example.id for example in data.examples] == ["0"]
    assert len(data.bad_rows) == 2
    assert "identical chosen and rejected" in data.bad_rows[0]
    assert "empty response" in data.bad_rows[1]
    with pytest.raises(DataError, match=r"data\.on_bad_row=skip"):
        PreferencePairs(path=path, on_bad_row="error").load()


def test_a_column_that_is_missing_is_an_error(tmp_path: Path) -> None:
    path = write_pairs(tmp_path / "pairs.jsonl", [{"prompt": "a", "better": "x", "worse": "y"}])
    with pytest.raises(DataError, match=r"column 'chosen' is missing .*better, worse"):
        PreferencePairs(path=path).load()


def test_hh_rlhf_dialogues(shared: Path) -> None:
    path = shared / "data/preferences/hh_rlhf_harmless_base_test.jsonl.gz"
    data = PreferencePairs(path=str(path)).load()
    assert len(data.examples) + len(data.bad_rows) == 2312
    assert len(data.bad_rows) >= 9  # 4 empty responses, 5 pairs whose prompts differ
    assert all(example.prompt[-1].role == "user" for example in data.examples)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "no/such/file.jsonl"}, "does not exist"),
        ({"path": "owner/name"}, r"data\.split"),
        ({"path": ""}, r"data\.path is empty"),
        ({"path": "owner/name", "split": "train", "limit": 0}, r"data\.limit"),
        ({"path": "owner/name", "split": "train", "include": "a"}, r"data\.include"),
    ],
)
def test_options_that_cannot_work(options: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        PreferencePairs(**options)


@pytest.mark.parametrize("options", [{"pairs": 1}, {"pairs": True}, {"grades": ["hard"]}])
def test_toy_options_that_cannot_work(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="data"):
        ToyPairs(**options)


def recorded(tmp_path: Path, rewards: list[float]) -> str:
    row: dict[str, Any] = {"prompt": "Which?", "subset": "s"}
    for i, reward in enumerate(rewards, start=1):
        row |= {f"response_{i}": f"answer {i}", f"reward_{i}": reward}
    return write_pairs(tmp_path / "bon.jsonl", [row])


def test_recorded_rewards_pair_best_with_worst(tmp_path: Path) -> None:
    """Rewards 0, 0.01, ..., 0.99: 100 over 1 by 0.99, then 99 over 2 by 0.97, then 0.95."""
    path = recorded(tmp_path, [i / 100 for i in range(100)])
    data = RecordedPairs(path=path, pairs_per_prompt=3, smallest_gap=0.96).load()
    found = [(example.chosen[0], example.rejected[0]) for example in data.examples]
    assert found == [("answer 100", "answer 1"), ("answer 99", "answer 2")]
    assert [example.id for example in data.examples] == ["0/0", "0/1"]
    with pytest.raises(DataError, match="give a smaller one"):
        RecordedPairs(path=path, smallest_gap=1.0).load()
    flat = recorded(tmp_path, [0.5] * 100)
    with pytest.raises(DataError, match="smallest_gap=0"):
        RecordedPairs(path=flat).load()


def test_recorded_rewards_of_any_number_of_responses(tmp_path: Path) -> None:
    """Of five responses, at most two pairs; the one in the middle has no partner."""
    path = recorded(tmp_path, [3.0, 1.0, 4.0, 5.0, 2.0])
    data = RecordedPairs(path=path, pairs_per_prompt=9).load()
    found = [(example.chosen[0], example.rejected[0]) for example in data.examples]
    assert found == [("answer 4", "answer 2"), ("answer 3", "answer 5")]
    with pytest.raises(ConfigError, match=r"data\.pairs_per_prompt=0"):
        RecordedPairs(path=path, pairs_per_prompt=0)


def test_a_limit_of_recorded_rewards_counts_in_each_subset(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"{i}?", "subset": "ab"[i % 2], "response_1": "x", "reward_1": 1}
        | {"response_2": "y", "reward_2": 0}
        for i in range(6)
    ]
    path = write_pairs(tmp_path / "bon.jsonl", rows)
    data = RecordedPairs(path=path, limit=1).load()
    assert [example.id for example in data.examples] == ["0/0", "1/0"]
    rows[0] |= {"response_2": None}
    write_pairs(tmp_path / "bon.jsonl", rows)
    data = RecordedPairs(path=path, limit=1).load()
    assert [example.id for example in data.examples] == ["1/0", "2/0"]
    assert data.bad_rows == ("0: column 'response_2' is missing (bon.jsonl:1)",)


def test_a_recorded_reward_that_is_no_number(tmp_path: Path) -> None:
    path = recorded(tmp_path, [float(i) for i in range(99)] + [float("nan")])
    with pytest.raises(DataError, match="'reward_100' must hold a finite number"):
        RecordedPairs(path=path).load()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.99])
def test_no_prompt_is_on_both_sides(share: float) -> None:
    split = split_by_prompt(examples(20), share, seed=1)
    train, val = ({prompt_key(e.prompt) for e in part} for part in (split.train, split.val))
    assert train.isdisjoint(val)
    assert len(split.train) + len(split.val) == 40
    assert len(val) == {0.0: 0, 0.01: 1, 0.3: 6, 0.99: 19}[share]


def test_a_prompts_side_does_not_depend_on_the_rows_beside_it() -> None:
    whole = split_by_prompt(examples(20), 0.5, seed=1)
    again = split_by_prompt(list(reversed(examples(20))), 0.5, seed=1)
    assert set(whole.val) == set(again.val)
    assert set(whole.val) != set(split_by_prompt(examples(20), 0.5, seed=2).val)


def test_splits_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="val_share=1"):
        split_by_prompt(examples(3), 1, seed=0)
    with pytest.raises(DataError, match="2 pairs of 1 prompts"):
        split_by_prompt(examples(1), 0.1, seed=0)
    with pytest.raises(DataError, match="0 pairs"):
        split_by_prompt([], 0.0, seed=0)


def test_a_pair_is_cut_or_left_out_whole() -> None:
    """The chosen answer alone is too long: cut, it keeps its end; left out, both are."""
    long = Example("1", "s", (Message("user", "Why?"),), ("word " * 60,), ("short",))
    short = Example("2", "s", (Message("user", "Why?"),), ("yes",), ("no",))
    chat = Chat(tiny_tokenizer(), 64)
    cut = encode_pairs(chat, [long, short], "left_truncate")
    assert (len(cut.pairs), cut.truncated, cut.dropped) == (2, 1, 0)
    assert len(cut.pairs[0].chosen.ids) == 64
    assert not cut.pairs[0].rejected.truncated
    left = encode_pairs(chat, [long, short], "drop")
    assert ([pair.id for pair in left.pairs], left.truncated, left.dropped) == (["2"], 0, 1)
    with pytest.raises(
        DataError,
        match=r"all 1 pairs are longer than the limit of 64 tokens: raise recipe\.max_length",
    ):
        encode_pairs(chat, [long], "drop")
    with pytest.raises(DataError, match="one of each"):
        encode_pairs(chat, [toy.examples("train", 1)[0]], "drop")


def test_a_batch_by_hand() -> None:
    """Ids 5 6 7, 5 6 7 8 against 5 6 9 twice, padded to 4 with 1."""
    (batch,) = Batches(pairs(2), 2, pad=1)
    assert batch.ids.tolist() == [[5, 6, 7, 1], [5, 6, 7, 8], [5, 6, 9, 1], [5, 6, 9, 1]]
    assert batch.lengths.tolist() == [3, 4, 3, 3]
    assert batch.starts.tolist() == [2, 2, 2, 2]
    assert batch.ends.tolist() == [3, 4, 3, 3]
    assert batch.weights.tolist() == [0.5, 0.5]
    assert batch.names == ["0", "1"]


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("accumulate", [1, 2, 3])
@pytest.mark.parametrize(("size", "tokens"), [(1, None), (2, None), (4, None), (4, 20)])
def test_every_pair_weighs_the_same_in_its_step(
    world: int, accumulate: int, size: int, tokens: int | None
) -> None:
    """Lightning divides by `accumulate`, DDP by `world`: one over the step's pairs is left."""
    count = 11
    shares = [
        list(Batches(pairs(count), size, (rank, world), 0, accumulate, seed=3, tokens=tokens))
        for rank in range(world)
    ]
    assert len({len(batches) for batches in shares}) == 1
    seen: list[str] = []
    for first in range(0, len(shares[0]), accumulate):
        weights: dict[str, float] = {}
        for batches in shares:
            for batch in batches[first : first + accumulate]:
                rows = zip(batch.names, batch.weights.tolist(), batch.real.tolist(), strict=True)
                for name, weight, real in rows:
                    assert bool(real) == bool(weight)
                    if real:
                        assert name not in weights
                        weights[name] = weight / accumulate / world
        assert list(weights.values()) == pytest.approx([1 / len(weights)] * len(weights))
        seen += weights
    assert sorted(seen, key=int) == [str(i) for i in range(count)]


def names(batches: Batches, epoch: int = 0) -> list[str]:
    batches.set_epoch(epoch)
    return [name for batch in batches for name in batch.names]


def test_the_order_depends_on_seed_and_epoch() -> None:
    batches = Batches(pairs(16), 4, seed=0)
    first, second = names(batches, 0), names(batches, 1)
    assert first != second
    assert sorted(first) == sorted(second)
    assert names(Batches(pairs(16), 4, seed=0), 1) == second
    assert names(Batches(pairs(16), 4, seed=1)) != first
    assert names(Batches(pairs(16), 4)) == [str(i) for i in range(16)]


def test_tokens_bound_a_batch() -> None:
    """The pairs have 6, 7 and 8 tokens in turn, none shared: three fit 21, and none fits 5."""
    assert [batch.names for batch in Batches(pairs(7), 9, tokens=21)] == [
        ["0", "1", "2"], ["3", "4", "5"], ["6"]
    ]  # fmt: skip
    assert [batch.names for batch in Batches(pairs(3), 9, tokens=5)] == [["0"], ["1"], ["2"]]
    assert len(Batches(pairs(7), 2, tokens=21)) == 4


def test_pairs_that_tokens_bound_stay_together_in_another_order() -> None:
    def epoch(number: int) -> list[tuple[str, ...]]:
        batches.set_epoch(number)
        return [tuple(batch.names) for batch in batches]

    batches = Batches(pairs(32), 4, seed=0, tokens=20)
    first, second = epoch(0), epoch(1)
    assert first != second
    assert sorted(first) == sorted(second)
    assert len(first) == len(batches)
    assert sorted(int(name) for names in first for name in names) == list(range(32))


@pytest.mark.parametrize("stop", [1, 3, 4])
def test_going_on_gives_the_batches_that_are_left(stop: int) -> None:
    """At an epoch's end it is the whole next epoch."""
    broken = Batches(pairs(16), 4, seed=0)
    states = []
    for _ in broken:
        states.append(broken.state_dict())
    later = Batches(pairs(16), 4, seed=0)
    later.load_state_dict(states[stop - 1])
    whole = Batches(pairs(16), 4, seed=0)
    assert names(later) == names(whole)[4 * stop % 16 :]
    assert names(later, 1) == names(whole, 1)


def test_padding_pairs_do_not_count() -> None:
    (batch,) = Batches(pairs(1), 4, (1, 2))
    assert batch.real.tolist() == [0.0]
    assert batch.weights.tolist() == [0.0]
    assert torch.equal(batch.ids[0], torch.tensor([5, 6, 7]))


def test_a_pair_without_a_place_is_a_bad_row_where_the_objective_needs_it() -> None:
    chat = Chat(tiny_tokenizer(), 500, THINKING)
    plain, moved = examples(2, each=1)
    moved = replace(moved, rejected=("hm</think>no",))
    both = [plain, moved]
    assert [pair.id for pair in encode_pairs(chat, both, "error").pairs] == ["0/0", "1/0"]
    left = encode_pairs(chat, both, "error", needs_place=True, skips=True)
    assert ([pair.id for pair in left.pairs], left.dropped) == (["0/0"], 0)
    line = "1/0: the chat template changes the prompt for the response 'hm</think>no'"
    assert left.bad_rows == (line,)
    with pytest.raises(DataError, match=r"1 bad rows have no .*data\.on_bad_row=skip"):
        encode_pairs(chat, both, "error", needs_place=True)
    with pytest.raises(DataError, match="no pair is left: 1 are bad rows"):
        encode_pairs(chat, [moved], "error", needs_place=True, skips=True)
