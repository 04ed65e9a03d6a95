"""Data of any size, scored part by part with the weights loaded once.

A part's tokens may be made while the part before is scored, so that a GPU does not wait for them.
The scores of a part are in a store of its own, which the caller deletes in the end: the store of
evaluations would grow with the data.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from rmexp.errors import ConfigError
from rmexp.models.chat import Encoded
from rmexp.schema import Dataset
from rmexp.scoring.columns import Column
from rmexp.scoring.computing import Request, load
from rmexp.scoring.model_reward import (
    Conversation,
    ModelReward,
    Seen,
    check_vocabulary,
    conversations,
    encode,
    fill_column,
    finish,
    placed,
)
from rmexp.scoring.score import Reward, Scoring, Settings
from rmexp.scoring.served import ServedReward
from rmexp.scoring.store import ScoreStore

if TYPE_CHECKING:
    from rmexp.models.forward import Forward

Told = Callable[[int], None]  # hears of the tokens that were run


@dataclass(frozen=True, slots=True)
class Tokens:
    """The responses of a part as tokens, and a line for each bad row.

    `work` is how many tokens are to be run.
    """

    data: Dataset
    encoded: Mapping[Conversation, Encoded]
    seen: Seen
    work: int
    bad_rows: tuple[str, ...] = ()


class PartScorer(Protocol):
    """What scores the parts of a data set, in one process."""

    def load(self) -> None:
        """Load what scoring needs, unless it is there."""
        ...

    def encode(self, data: Dataset) -> Tokens:
        """Make a part's tokens, while another thread may score. Raises as an evaluation does."""
        ...

    def score(self, tokens: Tokens, folder: Path) -> Scoring:
        """Score a part, whose scores are in the folder as they are made, and were before an end.

        Any number of rewards may be not finite, and any number of examples left out.
        """
        ...


def part_scorer(reward: Reward, settings: Settings, told: Told) -> PartScorer:
    """Return what scores parts with the reward model; raise ConfigError where nothing does."""
    if isinstance(reward, ModelReward):
        return _Model(reward, settings, told)
    if isinstance(reward, ServedReward):
        return _Server(reward, settings, told)
    raise ConfigError(
        f"{reward.name} ({reward.description}) does not score data part by part: give a reward "
        "model with weights, or one behind a server"
    )


class _Model:
    def __init__(self, reward: ModelReward, settings: Settings, told: Told) -> None:
        self._reward, self._settings, self._told = reward, settings, told
        self._loaded: list[tuple[Column, Forward]] = []

    def load(self) -> None:
        pad = self._reward.chat.tokenizer.pad_token_id
        if not self._loaded:
            self._loaded = [(column, load(column, pad)) for column in self._reward.columns]

    def encode(self, data: Dataset) -> Tokens:
        seen = Seen()
        chat, on_overlength = self._reward.chat, self._settings.on_overlength
        encoded = encode(chat, conversations(data), on_overlength, seen)
        check_vocabulary(self._reward, list(encoded.values()))
        kept, bad_rows = placed(self._reward, encoded, data, "data")
        work = _count(kept) * len(self._reward.columns)
        return Tokens(data, kept, seen, work, bad_rows)

    def score(self, tokens: Tokens, folder: Path) -> Scoring:
        rows, seen = list(tokens.encoded.values()), tokens.seen
        settings, pad = self._settings, self._reward.chat.tokenizer.pad_token_id
        options = (settings.store_dir, pad, settings.batch_tokens, settings.seed)
        columns = []
        for column, forward in self._loaded:
            request = Request(column, {}, *options, forward, self._told)
            with ScoreStore(folder, column.identity(settings.store_dir)) as store:
                columns.append(fill_column(request, rows, store, 1, seen))
        rewards = self._reward.rewards(columns, rows).tolist()
        every = dict(zip(tokens.encoded, rewards, strict=True))
        return finish(tokens.data, every, seen, tokens.bad_rows)


class _Server:
    def __init__(self, reward: ServedReward, settings: Settings, told: Told) -> None:
        self._reward, self._settings, self._told = reward, settings, told

    def load(self) -> None:
        pass

    def encode(self, data: Dataset) -> Tokens:
        seen = Seen()
        chat, on_overlength = self._reward.chat, self._settings.on_overlength
        encoded = encode(chat, conversations(data), on_overlength, seen)
        return Tokens(data, encoded, seen, _count(encoded))

    def score(self, tokens: Tokens, folder: Path) -> Scoring:
        identity, seen = self._reward.column.identity(self._settings.store_dir), tokens.seen
        with ScoreStore(folder, identity) as store:
            seed = self._settings.seed
            rewards = self._reward.fill(tokens.encoded, store, seed, seen, self._told)
        return finish(tokens.data, rewards, seen)


def _count(encoded: Mapping[Conversation, Encoded]) -> int:
    return sum(len(row.ids) for row in encoded.values())
