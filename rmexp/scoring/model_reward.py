"""Rewards of models: each unique (prompt, response) is scored once, whatever asks for it."""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rmexp.errors import ConfigError, ScoreError
from rmexp.models.chat import Chat, Encoded, refuse_unplaced, unplaced
from rmexp.models.checkpoints import short_count
from rmexp.schema import Dataset, Example, Message, scored_example
from rmexp.scoring.columns import Column, Values
from rmexp.scoring.computing import Request, Work, compute, load
from rmexp.scoring.score import Scoring, Settings, count
from rmexp.scoring.store import ScoreStore, response_key

if TYPE_CHECKING:
    from rmexp.models.forward import Forward

log = logging.getLogger(__name__)

Conversation = tuple[tuple[Message, ...], str]  # a prompt and a response


@dataclass(slots=True)
class Seen:
    """What happened on the way to the rewards."""

    cached: int = 0
    truncated: int = 0
    dropped: int = 0
    first_example: str | None = None
    loaded: "Forward | None" = None
    work: Work = field(default_factory=Work)

    def counts(self) -> dict[str, float]:
        """Return the counts of the work; the self-check's is left out where nothing was checked."""
        work = self.work
        counts = {
            "cached": self.cached,
            "tokens": work.tokens,
            "tokens_run": work.tokens_run,
            "tokens_padded": work.tokens_padded,
            "seconds": work.seconds,
            "tokens_per_second": work.tokens / work.seconds if work.tokens else 0.0,
            "truncated": self.truncated,
            "dropped": self.dropped,
        }
        if not math.isnan(work.max_delta):
            counts["self_check_max_delta"] = work.max_delta
        return counts


@dataclass(frozen=True, slots=True)
class ModelReward(ABC):
    """A reward that is a pure function of columns, with the tokens that it is read from."""

    name: str
    chat: Chat
    columns: tuple[Column, ...]

    @property
    @abstractmethod
    def description(self) -> str:
        """Say how the rewards are read."""

    @abstractmethod
    def rewards(self, columns: Sequence[Values], encoded: Sequence[Encoded]) -> Values:
        """Return the rewards of the columns' values, `(responses,)` each."""

    def without_reference(self) -> "ModelReward | None":
        """Return the same model read without a reference model; None where none is ever read."""
        return None

    def fingerprints(self, cache: Path) -> dict[str, str]:
        """Return digests of the weights, and of what the folder says of how to read them."""
        model, *references = (column.checkpoint for column in self.columns)
        tags = {"rmexp.weights": model.fingerprint(cache), "rmexp.reading": model.reading()}
        for reference in references:
            tags["rmexp.reference"] = reference.fingerprint(cache)
        if self.chat.dated:
            tags["rmexp.date"] = self.chat.dated
        return tags

    def traits(self) -> dict[str, str]:
        """Return the method, how it is read, the parameters, the dtype and the template's hash."""
        column = self.columns[0]
        return {
            "method": "scalar" if column.quantity == "score" else "implicit",
            "reader": self.description,
            "size": short_count(column.checkpoint.size),
            "dtype": column.dtype,
            "template": str(self.chat.identity()["template"])[:8],
        }

    def score(self, data: Dataset, settings: Settings) -> Scoring:
        """Give every response of the examples its reward.

        Raises DataError for a response whose log-probability cannot be read, unless the data leave
        such rows out; ScoreError for more non-finite rewards than allowed, or if no example is
        left.
        """
        seen, examples = Seen(), data.examples
        unique = dict.fromkeys((e.prompt, response) for e in examples for response in e.responses)
        encoded = _encode_and_load(self, list(unique), settings, seen)
        bad_rows: tuple[str, ...] = ()
        if any(column.quantity == "logps" for column in self.columns):
            encoded, bad_rows = _placed(encoded, examples)
            if not data.skips:
                refuse_unplaced(bad_rows, "bench" if settings.stream is None else "data")
        rows, pad = list(encoded.values()), self.chat.tokenizer.pad_token_id
        columns = [_column(column, rows, settings, pad, seen) for column in self.columns]
        rewards = dict(zip(encoded, self.rewards(columns, rows).tolist(), strict=True))
        return finish(data, rewards, settings, seen, bad_rows)


def finish(
    data: Dataset,
    rewards: Mapping[Conversation, float],
    settings: Settings,
    seen: Seen,
    bad_rows: tuple[str, ...] = (),
) -> Scoring:
    """Return the scoring of the examples whose responses all have rewards.

    Raises ScoreError for more non-finite rewards than allowed, or if no example is left.
    """
    scored = [
        scored_example(
            example,
            (rewards[example.prompt, text] for text in example.chosen),
            (rewards[example.prompt, text] for text in example.rejected),
        )
        for example in data.examples
        if all((example.prompt, text) in rewards for text in example.responses)
    ]
    if not scored and settings.stream is None:
        bad = f", {len(bad_rows)} are bad rows ({bad_rows[0]})" if bad_rows else ""
        advice = "raise model.max_length"
        if bad and not seen.dropped:
            advice = "give another template as model.chat_template"
        raise ScoreError(f"no example is left to score{bad}: {advice}")
    counts = seen.counts() | count(data.examples, scored, settings)
    return Scoring(scored, counts, seen.first_example, bad_rows)


def _placed(
    encoded: Mapping[Conversation, Encoded], examples: Sequence[Example]
) -> tuple[dict[Conversation, Encoded], tuple[str, ...]]:
    """Return the responses whose place is known, and a line for each example with another one."""
    placed = {conversation: row for conversation, row in encoded.items() if row.placed}
    lines = []
    for example in examples:
        others = (
            text
            for text in example.responses
            if (row := encoded.get((example.prompt, text))) is not None and not row.placed
        )
        if (text := next(others, None)) is not None:
            lines.append(unplaced(example.id, text))
    return placed, tuple(lines)


def _encode_and_load(
    reward: ModelReward, conversations: Sequence[Conversation], settings: Settings, seen: Seen
) -> dict[Conversation, Encoded]:
    """Encode while the weights are loaded, which are needed if the first response has no value."""
    column, chat = reward.columns[0], reward.chat
    if settings.stream is not None and column in settings.stream.loaded:
        encoded = encode(chat, conversations, settings, seen)
        check_vocabulary(reward, list(encoded.values()))
        return encoded
    (first,) = chat.encode(conversations[:1], settings.on_overlength)
    with ThreadPoolExecutor(max_workers=1) as beside:
        encoding = beside.submit(encode, chat, conversations, settings, seen)
        if settings.devices == 1 and first is not None:
            with _open_store(column, settings) as store:
                needed = _key(column, first) not in store.read() and not store.is_claimed()
            if needed:
                seen.loaded = load(column, chat.tokenizer.pad_token_id)
        encoded = encoding.result()
    check_vocabulary(reward, list(encoded.values()))
    return encoded


def encode(
    chat: Chat, conversations: Sequence[Conversation], settings: Settings, seen: Seen
) -> dict[Conversation, Encoded]:
    """Return the conversations' tokens, without those dropped as too long; count these."""
    encoded = chat.encode(conversations, settings.on_overlength)
    kept = {
        conversation: row
        for conversation, row in zip(conversations, encoded, strict=True)
        if row is not None
    }
    seen.truncated = sum(row.truncated for row in kept.values())
    seen.dropped = len(conversations) - len(kept)
    if (seen.truncated or seen.dropped) and settings.stream is None:
        log.warning(
            "%d responses were cut on the left and %d dropped: longer than %d tokens",
            seen.truncated,
            seen.dropped,
            chat.max_length,
        )
    if kept:
        seen.first_example = _as_seen(chat, next(iter(kept.values())))
    return kept


def check_vocabulary(reward: ModelReward, rows: Sequence[Encoded]) -> None:
    """Raise ConfigError for a token of the rows that one of the reward's models does not have."""
    highest = max((max(row.ids, default=0) for row in rows), default=0)
    for column in reward.columns:
        size = column.checkpoint.vocabulary
        if size is not None and highest >= size:
            token = reward.chat.tokenizer.convert_ids_to_tokens(highest)
            raise ConfigError(
                f"the tokenizer of {reward.name} makes the token {token!r} (number {highest}), and "
                f"{column.checkpoint.name} has {size} of them: give the tokenizer that the model "
                "was trained with, or a template without that token as model.chat_template"
            )


def column_values(
    column: Column, rows: Sequence[Encoded], settings: Settings, pad: int | None
) -> Values:
    """Return the column's values `(responses,)`, computing and storing those that are new."""
    return _column(column, rows, settings, pad, Seen())


def _column(
    column: Column, rows: Sequence[Encoded], settings: Settings, pad: int | None, seen: Seen
) -> Values:
    """Return the column's values, and add to `seen` what was computed."""
    keys = [_key(column, row) for row in rows]
    unique = dict(zip(keys, rows, strict=True))
    stream = settings.stream
    told = None if stream is None else stream.told
    if stream is not None and column in stream.loaded:
        seen.loaded = stream.loaded[column]
    with _open_store(column, settings) as store:

        def make(new: list[str]) -> Mapping[str, float]:
            rows = {key: unique[key] for key in new}
            options = (settings.store_dir, pad, settings.batch_tokens, settings.seed)
            if stream is not None and column not in stream.loaded:
                seen.loaded = stream.loaded[column] = seen.loaded or load(column, pad)
            request = Request(column, rows, *options, seen.loaded, told)
            values, work = compute(request, store, settings.devices)
            seen.work.add(work)
            return values

        known, computed = store.fill(unique, make)
    seen.loaded = None  # it is the first column's, and the next one's weights may need the room
    seen.cached += len(unique) - computed
    return np.array([known[key] for key in keys], dtype=np.float64)


def _open_store(column: Column, settings: Settings) -> ScoreStore:
    folder = settings.store_dir if settings.stream is None else settings.stream.folder
    return ScoreStore(folder, column.identity(settings.store_dir))


def _key(column: Column, row: Encoded) -> str:
    """Return the key of a response in the column's store."""
    return response_key(row.ids, (row.start, row.end) if column.quantity == "logps" else None)


def _as_seen(chat: Chat, row: Encoded) -> str:
    decode = chat.tokenizer.decode
    ids = list(row.ids)
    cut = ", cut on the left" if row.truncated else ""
    if not row.placed:
        return f"{len(ids)} tokens, the response among them{cut}\n--- all\n{decode(ids)}\n"
    return (
        f"{len(ids)} tokens, the response being tokens {row.start} to {row.end}{cut}\n"
        f"--- all\n{decode(ids)}\n--- response\n{decode(ids[row.start : row.end])}\n"
    )
