"""Several devices: each response on exactly one of them, and the scores of one."""

import json
import logging
from collections import Counter
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from scored_rows import score
from tiny import tiny_scalar

from rmexp.errors import ConfigError, ScoreError
from rmexp.models.chat import Chat, Encoded
from rmexp.models.forks import count_tokens, find_forks
from rmexp.schema import Example, Message
from rmexp.scoring.columns import Column
from rmexp.scoring.plan import shares
from rmexp.scoring.rewards import open_reward
from rmexp.scoring.score import Settings
from rmexp.scoring.store import ScoreStore


def examples(prompts: int, responses: int) -> list[Example]:
    return [
        Example(
            f"{n}",
            "",
            (Message("user", f"Question {n}? " * (n + 2)),),
            ("yes",),
            tuple("no" * (at + 1) for at in range(responses - 1)),
        )
        for n in range(prompts)
    ]


def row(prompt: int, shared: int, own: int, tail: int) -> Encoded:
    """Return tokens that begin with the prompt's own ones and end in a token of its own."""
    ids = (prompt,) * shared + (1000 + tail,) * own
    return Encoded(ids, shared, len(ids))


def test_shares_by_hand() -> None:
    """The prompts run 20 + 3 + 3, 20 + 2, and 5 tokens: the last joins the second."""
    rows = [row(1, 20, 3, 0), row(2, 20, 2, 0), row(1, 20, 3, 1), row(3, 4, 1, 0)]
    assert shares(rows, 2) == [[0, 2], [1, 3]]
    assert shares(rows, 1) == [[0, 1, 2, 3]]
    assert sorted(shares(rows, 9)) == [[0, 2], [1], [3]]


@pytest.mark.parametrize("count", [2, 3, 7])
def test_shares_hold_each_row_once_and_run_about_as_much(count: int) -> None:
    """Each of the 20 prompts is in one share only."""
    rows = [row(n % 20, 30 + n % 20, 1 + n % 13, n) for n in range(200)]
    made = shares(rows, count)
    assert Counter(at for share in made for at in share) == Counter(range(200))
    assert sum(len({rows[at].ids[0] for at in share}) for share in made) == 20
    lengths = [len(r.ids) for r in rows]
    loads = []
    for share in made:
        forks = find_forks([rows[at] for at in share])
        loads.append(sum(count_tokens(fork, [lengths[at] for at in share]) for fork in forks))
    assert max(loads) - min(loads) <= max(
        count_tokens(fork, lengths) for fork in find_forks(rows)
    )  # the heaviest prompt's


def test_two_processes_give_the_scores_of_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each response is in the store once, in the file of one of the two processes."""
    caplog.set_level(logging.INFO)
    reward = open_reward(path=str(tiny_scalar(tmp_path / "model")), device="cpu")
    data = examples(6, 3)
    alone = score(reward, data, Settings(tmp_path / "one"))
    capfd.readouterr()
    both = score(reward, data, Settings(tmp_path / "two", devices=2))
    told = [line.split()[:2] for line in capfd.readouterr().err.splitlines() if line]
    assert told == [["loading", str(tmp_path / "model")], [str(tmp_path / "model"), "runs"]]
    for one, other in zip(alone.scored, both.scored, strict=True):
        assert one.id == other.id
        assert other.chosen + other.rejected == pytest.approx(one.chosen + one.rejected, abs=1e-6)
    files = list((tmp_path / "two").glob("*/*.jsonl"))
    keys = [json.loads(line)[0] for file in files for line in file.read_text().splitlines()]
    assert (len(files), len(keys), len(set(keys))) == (2, 18, 18)
    for count in ("unique", "cached", "tokens", "tokens_run", "tokens_padded"):
        assert both.counts[count] == alone.counts[count]
    assert both.counts["self_check_max_delta"] < 1e-5
    assert "2 devices score a share of them each" in caplog.text
    again = score(reward, data, Settings(tmp_path / "two", devices=2))
    assert (again.counts["cached"], again.scored) == (18, both.scored)


def test_what_a_device_cannot_do_is_said_in_one_line(tmp_path: Path) -> None:
    file = tiny_scalar(tmp_path / "model") / "model.safetensors"
    weights = load_file(file)
    del weights["score.weight"]
    save_file(weights, file, {"format": "pt"})
    reward = open_reward(path=str(file.parent), device="cpu")
    with pytest.raises(ScoreError, match=r"^\S*model lacks 1 of the weights of Llama[^\n]*$"):
        score(reward, examples(2, 2), Settings(tmp_path / "store", devices=2))


def test_devices_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="devices=0: give how many, or auto"):
        Settings(tmp_path, devices=0)
    with pytest.raises(ConfigError, match="devices=all: give how many, or auto"):
        Settings(tmp_path, devices="all")
    spread = open_reward(path=str(tiny_scalar(tmp_path / "model")), device_map="auto")
    with pytest.raises(ConfigError, match=r"a copy of the model on each: leave out model\.device"):
        score(spread, examples(2, 2), Settings(tmp_path / "store", devices=2))


def test_weights_are_loaded_while_the_rest_is_tokenized(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tokens of all responses wait for the weights, which so must be loaded beside them."""
    reward = open_reward(path=str(tiny_scalar(tmp_path / "model")))
    expected = score(reward, examples(2, 2), Settings(tmp_path / "before")).scored
    loaded = Event()
    encode, load = Chat.encode, Column.load

    def waiting(chat: Chat, conversations: Any, *options: Any) -> Any:
        if len(conversations) > 1:
            assert loaded.wait(60)
        return encode(chat, conversations, *options)

    def noted(column: Column, pad: int | None) -> Any:
        forward = load(column, pad)
        assert not loaded.is_set()
        loaded.set()
        return forward

    monkeypatch.setattr(Chat, "encode", waiting)
    monkeypatch.setattr(Column, "load", noted)
    assert score(reward, examples(2, 2), Settings(tmp_path / "store")).scored == expected


def test_what_another_process_computes_is_not_loaded_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While another one holds a claim, its weights may be the only ones that are needed."""
    reward = open_reward(path=str(tiny_scalar(tmp_path / "model")))
    column, seen = reward.columns[0], []
    load = Column.load
    with ScoreStore(tmp_path, column.identity(tmp_path)) as store, store.claim(["some"]):

        def noted(column: Column, pad: int | None) -> Any:
            seen.append(len(encoded))
            return load(column, pad)

        encoded: list[int] = []
        encode = Chat.encode

        def counted(chat: Chat, conversations: Any, *options: Any) -> Any:
            rows = encode(chat, conversations, *options)
            encoded.extend(range(len(rows)))
            return rows

        monkeypatch.setattr(Column, "load", noted)
        monkeypatch.setattr(Chat, "encode", counted)
        score(reward, examples(2, 2), Settings(tmp_path))
    assert seen == [1 + 4]  # after the first response, and then all of them
