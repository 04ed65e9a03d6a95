import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from scored_rows import score
from tiny import tiny_encoder, tiny_policy, tiny_scalar

from rmexp.errors import ConfigError, ScoreError
from rmexp.models.chat import Encoded
from rmexp.models.forward import Forward
from rmexp.schema import Example, Message
from rmexp.scoring import model_reward
from rmexp.scoring.columns import Column
from rmexp.scoring.recorded import RecordedReward
from rmexp.scoring.rewards import open_reward
from rmexp.scoring.score import Settings


def example(id: str, prompt: str, chosen: Sequence[str], rejected: Sequence[str]) -> Example:
    return Example(id, "s", (Message("user", prompt),), tuple(chosen), tuple(rejected))


PAIRS = [
    example("a", "one?", ["yes"], ["no"]),
    example("b", "one?", ["yes"], ["maybe"]),
    example("c", "two?", ["yes"], ["yes"]),
]


def test_each_unique_response_is_scored_once(tmp_path: Path) -> None:
    """Six responses, of which (one?, yes) occurs twice, and (two?, yes) twice and ties."""
    reward = open_reward(path=str(tiny_scalar(tmp_path / "model")))
    first = score(reward, PAIRS, Settings(tmp_path / "store"))
    counts = first.counts
    assert (counts["responses"], counts["unique"], counts["cached"]) == (6, 4, 0)
    assert counts["ties"] == 1
    assert counts["tokens"] > 0
    assert counts["self_check_max_delta"] < 1e-5
    assert first.scored[0].chosen == first.scored[1].chosen
    assert first.first_example is not None
    assert "yes<|im_end|>" in first.first_example


def test_shared_prompts_are_run_once_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What the responses share is counted by hand; an encoder runs it for each of them."""
    caplog.set_level("INFO")
    examples = [example("a", "one? " * 9, ["yes"], ["no", "maybe"])]
    reward = open_reward(path=str(tiny_scalar(tmp_path / "decoder")))
    rows = reward.chat.encode([(examples[0].prompt, t) for t in examples[0].responses])
    ids = [row.ids for row in rows if row is not None]
    shared = next(n for n, at in enumerate(zip(*ids, strict=False)) if len(set(at)) > 1)
    assert shared > 16
    counts = score(reward, examples, Settings(tmp_path / "store")).counts
    assert counts["tokens"] == sum(map(len, ids))
    assert counts["tokens_run"] == counts["tokens_padded"] == sum(map(len, ids)) - 2 * shared
    assert "decoder runs what the responses to a prompt share once" in caplog.text
    encoder = open_reward(path=str(tiny_encoder(tmp_path / "encoder")))
    counts = score(encoder, examples, Settings(tmp_path / "store")).counts
    assert counts["tokens_run"] == counts["tokens"] == sum(map(len, ids))
    assert counts["tokens_padded"] == 3 * max(map(len, ids))
    assert "encoder runs padded batches: an encoder attends both ways" in caplog.text


def test_what_is_known_is_not_computed_and_needs_no_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = str(tiny_scalar(tmp_path / "model"))
    settings = Settings(tmp_path / "store")
    before = score(open_reward(path=model), PAIRS, settings)
    more = [*PAIRS, example("d", "two?", ["no"], ["yes"])]
    again = score(open_reward(path=model), more, settings)
    assert (again.counts["unique"], again.counts["cached"]) == (5, 4)
    assert again.scored[:3] == before.scored

    def load(column: Column, pad: int | None) -> None:
        raise AssertionError("the weights were loaded")

    monkeypatch.setattr(Column, "load", load)
    last = score(open_reward(path=model), more, settings)
    assert last.scored == again.scored
    assert (last.counts["cached"], last.counts["tokens"]) == (5, 0)
    assert "self_check_max_delta" not in last.counts


def test_policies_share_their_reference_and_beta_is_free(tmp_path: Path) -> None:
    """The second policy computes its own four responses only; another beta computes nothing."""
    base = {"path": str(tiny_policy(tmp_path / "base"))}
    settings = Settings(tmp_path / "store")
    cached = []
    for seed, beta in ((1, 0.1), (2, 0.1), (2, 0.5)):
        path = str(tiny_policy(tmp_path / f"policy{seed}", seed))
        reward = open_reward(path=path, reference=base, beta=beta)
        cached.append(score(reward, PAIRS, settings).counts["cached"])
    assert cached == [0, 4, 8]


@pytest.mark.parametrize(
    "change", [{"dtype": "bfloat16"}, {"attention": "eager"}, {"reader": "implicit"}]
)
def test_another_way_to_compute_is_another_column(tmp_path: Path, change: dict[str, str]) -> None:
    model = str(tiny_policy(tmp_path / "model"))
    before = open_reward(path=model, reader="scalar").columns[0].identity(tmp_path)
    same = open_reward(path=model, reader="scalar", name="other").columns[0].identity(tmp_path)
    other = open_reward(**{"path": model, "reader": "scalar", **change}).columns[0]
    assert before == same
    assert before != other.identity(tmp_path)


def test_changed_weights_are_other_weights(tmp_path: Path) -> None:
    first = open_reward(path=str(tiny_scalar(tmp_path / "model", seed=0))).columns[0]
    before = first.checkpoint.fingerprint(tmp_path)
    assert first.checkpoint.fingerprint(tmp_path) == before
    assert len(list((tmp_path / "fingerprints").iterdir())) == 1
    tiny_scalar(tmp_path / "model", seed=1)
    assert first.checkpoint.fingerprint(tmp_path) != before


def test_overlong_examples_are_dropped_and_counted(tmp_path: Path) -> None:
    reward = open_reward(path=str(tiny_scalar(tmp_path / "model")), max_length=60)
    long = example("d", "two?", ["yes"], ["word " * 80])
    cut = score(reward, [*PAIRS, long], Settings(tmp_path / "store"))
    assert (cut.counts["truncated"], len(cut.scored)) == (1, 4)
    dropped = score(reward, [*PAIRS, long], Settings(tmp_path / "store", on_overlength="drop"))
    assert [row.id for row in dropped.scored] == ["a", "b", "c"]
    assert (dropped.counts["dropped"], dropped.counts["dropped_examples"]) == (1, 1)
    with pytest.raises(ScoreError, match="no example is left"):
        score(reward, [long], Settings(tmp_path / "store", on_overlength="drop"))


def test_non_finite_rewards_fail_the_run_above_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(column: Column, pad: int | None) -> object:
        return Forward(lambda batch, forks: torch.full((len(batch),), math.nan))

    monkeypatch.setattr(Column, "load", load)
    reward = open_reward(path=str(tiny_scalar(tmp_path / "model")))
    with pytest.raises(ScoreError, match=r"6 rewards are not finite \(first in a, b, c\)"):
        score(reward, PAIRS, Settings(tmp_path / "store", max_non_finite=5))
    tolerated = score(reward, PAIRS, Settings(tmp_path / "store", max_non_finite=6))
    assert tolerated.counts["non_finite"] == 6
    assert tolerated.counts["ties"] == 0


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="batch_tokens=0"):
        Settings(Path(), batch_tokens=0)
    with pytest.raises(ConfigError, match="max_non_finite=-1"):
        Settings(Path(), max_non_finite=-1)


def test_a_large_difference_in_the_self_check_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A forward that depends on its batch is what the check is there to find."""

    def load(column: Column, pad: int | None) -> object:
        return Forward(lambda batch, forks: torch.full((len(batch),), float(len(batch))))

    monkeypatch.setattr(Column, "load", load)
    reward = open_reward(path=str(tiny_scalar(tmp_path / "model")))
    counts = score(reward, PAIRS, Settings(tmp_path / "store")).counts
    assert counts["self_check_max_delta"] == 3.0
    assert "scored 1 alone and 4 in its batch" in caplog.text


def test_out_of_memory_halves_the_budget_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A device that holds 100 tokens: what is left is planned anew, and each is scored once."""
    scored: list[tuple[int, ...]] = []

    def start(batch: Sequence[Encoded], forks: object) -> torch.Tensor:
        assert forks is None
        if len(batch) * max(len(row.ids) for row in batch) > 100:
            raise torch.OutOfMemoryError
        scored.extend(row.ids for row in batch)
        return torch.tensor([float(len(row.ids)) for row in batch])

    monkeypatch.setattr(Column, "load", lambda column, pad: Forward(start, budget=300))
    reward = open_reward(path=str(tiny_scalar(tmp_path / "model")))
    examples = [example(str(n), f"{n}?" * (n + 1), ["yes"], ["no"]) for n in range(6)]
    found = score(reward, examples, Settings(tmp_path / "store"))
    assert len(set(map(tuple, scored))) == 12
    assert len(scored) == 12 + 3  # the self-check's
    rows = reward.chat.encode([(e.prompt, text) for e in examples for text in e.responses])
    rewards = [value for row in found.scored for value in row.chosen + row.rejected]
    assert rewards == [len(row.ids) for row in rows if row is not None]
    assert "out of memory: on with batches of 1" in caplog.text


def test_a_response_that_no_memory_holds_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(batch: object, forks: object) -> torch.Tensor:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Column, "load", lambda column, pad: Forward(start))
    reward = open_reward(path=str(tiny_scalar(tmp_path / "model")))
    with pytest.raises(ScoreError, match=r"a response of \d+ tokens: give a smaller model.max_len"):
        score(reward, PAIRS, Settings(tmp_path / "store"))


def test_recorded_rewards(tmp_path: Path) -> None:
    file = tmp_path / "scores.jsonl"
    rows = [
        {"id": "a", "chosen": [2], "rejected": [1.5], "note": "other keys are allowed"},
        {"id": "b", "chosen": [1], "rejected": [1]},
        {"id": "c", "chosen": [0], "rejected": [3]},
        {"id": "elsewhere", "chosen": [0], "rejected": [3]},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = score(RecordedReward(str(file)), PAIRS, Settings(tmp_path / "store"))
    assert [row.chosen + row.rejected for row in found.scored] == [(2, 1.5), (1, 1), (0, 3)]
    assert found.counts["ties"] == 1
    assert found.counts["recorded_ignored"] == 1
    assert not (tmp_path / "store").exists()


def test_recorded_verdicts_come_with_the_rewards(tmp_path: Path) -> None:
    file = tmp_path / "scores.jsonl"
    file.write_text('{"id": "a", "chosen": [0.5], "rejected": [0.5], "verdicts": [[0.5]]}\n')
    found = score(RecordedReward(str(file)), PAIRS[:1], Settings(tmp_path / "store"))
    assert found.scored[0].verdicts == ((0.5,),)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('{"id": "a", "chosen": [1], "rejected": [0]}', r"lacks 2 of 3 examples \(b, c\)"),
        ('{"id": "a", "chosen": [1', r"scores\.jsonl:1: expected"),
        ('{"id": "a", "chosen": ["1"], "rejected": [0]}', r"scores\.jsonl:1: expected"),
        ('{"id": "a", "chosen": [true], "rejected": [0]}', r"scores\.jsonl:1: expected"),
        ('{"id": "a", "chosen": [1]}', r"scores\.jsonl:1: expected"),
        ('{"id": "a", "chosen": [1], "rejected": [0], "verdicts": [1]}', r":1: expected"),
        ('{"id": "a", "chosen": [1], "rejected": [0], "verdicts": [[1.5]]}', r":1: expected"),
        ('{"id": "a", "chosen": [1], "rejected": [0], "verdicts": [[null]]}', r":1: expected"),
        ('{"id": "a", "chosen": [1], "rejected": [0], "verdicts": [[1, 0]]}', r":1: expected"),
        ('{"id": "a", "chosen": [], "rejected": []}\n' * 2, r":2: a stands in line 1 already"),
    ],
)
def test_recorded_files_that_cannot_be_used(tmp_path: Path, lines: str, message: str) -> None:
    file = tmp_path / "scores.jsonl"
    file.write_text(lines)
    with pytest.raises(ScoreError, match=message):
        score(RecordedReward(str(file)), PAIRS, Settings(tmp_path / "store"))


def test_recorded_rewards_of_another_number(tmp_path: Path) -> None:
    file = tmp_path / "scores.jsonl"
    file.write_text('{"id": "a", "chosen": [1, 2], "rejected": [0]}\n')
    with pytest.raises(ScoreError, match="a has 2 chosen and 1 rejected rewards"):
        score(RecordedReward(str(file)), PAIRS[:1], Settings(tmp_path / "store"))


def test_recorded_nan_fails(tmp_path: Path) -> None:
    file = tmp_path / "scores.jsonl"
    file.write_text('{"id": "a", "chosen": [NaN], "rejected": [null]}\n')
    with pytest.raises(ScoreError, match=r"2 rewards are not finite \(first in a\)"):
        score(RecordedReward(str(file)), PAIRS[:1], Settings(tmp_path / "store"))


def test_scoring_module_keeps_no_state() -> None:
    """A sweep's second job must equal the same job alone."""
    kept = {
        name: value
        for name, value in vars(model_reward).items()
        if isinstance(value, dict | list | set) and not name.startswith("__")
    }
    assert kept == {}
