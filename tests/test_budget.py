"""What a GPU's memory holds, with torch's own functions replaced: measured, halved, or refused."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from scored_rows import score
from tiny import tiny_policy, tiny_scalar

from rmexp.errors import ConfigError, ScoreError
from rmexp.judges import generation
from rmexp.models import loading
from rmexp.models.chat import Encoded
from rmexp.models.forward import Forward
from rmexp.schema import Example, Message
from rmexp.scoring import computing
from rmexp.scoring.budget import measured_budget, run_halving
from rmexp.scoring.plan import Batch
from rmexp.scoring.rewards import open_reward
from rmexp.scoring.score import Settings

MIB = 2**20


class Card:
    """A GPU of 1,000 MiB: other programs hold 100, weights 200, and torch 50 that it does not use.

    A token takes so many bytes, and a batch that has too many of them fails as torch does.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, bytes_per_token: int) -> None:
        self.bytes_per_token = bytes_per_token
        self.peak = 0
        self.ran: list[int] = []
        for name, function in {
            "mem_get_info": lambda device=None: (650 * MIB, 1000 * MIB),
            "memory_reserved": lambda device: 250 * MIB,
            "memory_allocated": lambda device: 200 * MIB,
            "max_memory_allocated": lambda device: 200 * MIB + self.peak,
            "reset_peak_memory_stats": lambda device: None,
            "empty_cache": lambda: None,
        }.items():
            monkeypatch.setattr(torch.cuda, name, function)

    def start(self, batch: Sequence[Encoded], forks: object) -> torch.Tensor:
        tokens = sum(len(row.ids) for row in batch)
        self.ran.append(tokens)
        self.peak = self.bytes_per_token * tokens
        if self.peak > 700 * MIB:
            raise torch.OutOfMemoryError
        return torch.tensor([float(len(row.ids)) for row in batch])

    def forward(self, budget: int = 65536) -> Forward:
        return Forward(self.start, 4096, None, budget, budget, devices=("cuda:0",))


def rows(count: int, length: int) -> list[Encoded]:
    return [Encoded((n,) * length, 1, length) for n in range(count)]


@pytest.mark.parametrize(
    ("kib", "expected"),
    [
        (10, 49152),  # 0.9 * 700 MiB hold 64,512 of them
        (9.8, 65536),  # 65,828
        (1, 65536),  # more are not faster
        (100, 6144),  # 6,451
        (200, 3072),  # 3,225: 4,096 did not fit, 2,048 did
        (2000, 256),  # 322
    ],
)
def test_the_budget_is_what_fits_90_percent(
    kib: float, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Free are 650 MiB and the 50 that torch keeps."""
    card = Card(monkeypatch, int(kib * 1024))
    assert measured_budget(card.forward(), rows(400, 256)) == expected
    tried = [4096, 2048, 1024, 512, 256]
    assert card.ran == tried[: len(card.ran)]
    assert card.ran[-1] * int(kib * 1024) <= 700 * MIB


def test_what_one_batch_holds_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(monkeypatch, 1)
    assert measured_budget(card.forward(), rows(10, 100)) == 65536
    assert measured_budget(card.forward(), []) == 65536
    assert not card.ran


def test_scoring_on_a_gpu_measures_and_runs_one_batch_ahead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """100 KiB a token: 6,144 tokens a batch, each begun before the one before is waited for."""
    card = Card(monkeypatch, 100 * 1024)
    given = rows(100, 128)
    seen = []
    for batch, numbers in computing._batches(card.forward(), given, None):
        assert numbers == [128.0] * len(batch.rows)
        seen.append((batch.tokens, len(card.ran)))
    assert [tokens for tokens, _ in seen] == [6144, 6144, 512]
    assert card.ran == [4096, 6144, 6144, 512]
    assert [ran for _, ran in seen] == [3, 4, 4]  # the probe's among them
    given_tokens = computing._batches(card.forward(), given, 1280)
    assert [batch.tokens for batch, _ in given_tokens] == [1280] * 10


@pytest.mark.parametrize("ahead", [False, True])
def test_out_of_memory_halves_and_runs_each_item_once(ahead: bool) -> None:
    """Batches of up to 8 items; 3 fit: 8 fail, then 4 fail, then two at a time."""
    ran: list[tuple[int, ...]] = []

    def make(left: Sequence[int], limit: int) -> Iterator[Batch]:
        for at in range(0, len(left), limit):
            some = tuple(range(len(left)))[at : at + limit]
            yield Batch(some, None, len(some), len(some))

    def begin(batch: Batch) -> Callable[[], tuple[int, ...]]:
        if len(batch.rows) > 3:
            raise torch.OutOfMemoryError
        ran.append(batch.rows)
        return lambda: batch.rows

    given = [made for _, made in run_halving(11, make, begin, 8, "an item", ahead)]
    assert given == ran == [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9), (10,)]


def test_one_that_does_not_fit_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def begin(batch: Batch) -> Callable[[], None]:
        raise torch.OutOfMemoryError

    def make(left: Sequence[int], limit: int) -> Iterator[Batch]:
        yield Batch((0,), None, 77, 77)

    with pytest.raises(ScoreError, match=r"hold an item of 77 tokens: give a smaller model\.max_"):
        list(run_halving(1, make, begin, 8, "an item"))


def full(*_: Any, **__: Any) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")


ADVICE = r"model in float32 does not fit the GPU's memory: give model\.dtype=bfloat16, spread .*"


@pytest.mark.parametrize("quantity", ["score", "logps"])
def test_weights_that_do_not_fit_say_what_to_do(
    quantity: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the library runs out of memory as it loads, or a probe after it."""
    make = {"score": tiny_scalar, "logps": tiny_policy}[quantity]
    reward = open_reward(path=str(make(tmp_path / "model")), device="cpu")
    example = Example("a", "s", (Message("user", "?"),), ("yes",), ("no",))
    monkeypatch.setattr(loading, "check_causal", full)
    with pytest.raises(ConfigError, match=ADVICE) as caught:
        score(reward, [example], Settings(tmp_path / "store"))
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", full)
    for auto in ("AutoModelForSequenceClassification", "AutoModelForCausalLM"):
        monkeypatch.setattr(getattr(loading, auto), "from_pretrained", full)
    with pytest.raises(ConfigError, match=ADVICE):
        score(reward, [example], Settings(tmp_path / "store"))
    if quantity == "logps":  # a judge's
        with pytest.raises(ConfigError, match=ADVICE):
            generation.load_generator(reward.columns[0])


def test_weights_go_where_they_are_to_lie_as_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU; the same way to the CPU gives the same model."""
    reward = open_reward(path=str(tiny_scalar(tmp_path / "model")), device="cpu")
    checkpoint = reward.columns[0].checkpoint
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    places = [loading.place_of(device, None) for device in ("cpu", "cuda", "cuda:1")]
    assert places == [None, {"": "cuda:3"}, {"": "cuda:1"}]
    assert loading.place_of("cuda", "auto") == "auto"
    plain = loading.load_scalar(checkpoint, "float32", None, "cpu")
    monkeypatch.setattr(loading, "place_of", lambda *_: {"": "cpu"})
    streamed = loading.load_scalar(checkpoint, "float32", None, "cpu")
    for name, weight in plain.state_dict().items():
        assert torch.equal(weight, streamed.state_dict()[name])
    assert not any(hasattr(part, "_hf_hook") for part in streamed.modules())
