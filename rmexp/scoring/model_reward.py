"""Rewards of models: each unique (prompt, response) is scored once, whatever asks for it."""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rmexp.errors import ConfigError, ScoreError
from rmexp.models.chat import Chat, Encoded, OnOverlength, refuse_unplaced, unplaced
from rmexp.models.checkpoints import short_count
from rmexp.schema import Dataset, Message, scored_example
from rmexp.scoring.columns import Column, Values
from rmexp.scoring.computing import Request, Work, compute, load
from rmexp.scoring.score import Scoring, Settings, check_finite, count
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

    def warn_of_length(self, chat: Chat) -> None:
        """Say how many responses were longer than the model takes."""
        if self.truncated or self.dropped:
            log.warning(
                "%d responses were cut on the left and %d dropped: longer than %d tokens",
                *(self.truncated, self.dropped, chat.max_length),
            )


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
        seen = Seen()
        encoded = _encode_and_load(self, conversations(data), settings, seen)
        seen.warn_of_length(self.chat)
        encoded, bad_rows = placed(self, encoded, data, "bench")
        rows, pad = list(encoded.values()), self.chat.tokenizer.pad_token_id
        columns = [_column(column, rows, settings, pad, seen) for column in self.columns]
        rewards = dict(zip(encoded, self.rewards(columns, rows).tolist(), strict=True))
        scoring = finish(data, rewards, seen, bad_rows)
        check_scoring(scoring, settings)
        return scoring


def conversations(data: Dataset) -> list[Conversation]:
    """Return each prompt with each of its responses, once."""
    unique = dict.fromkeys((e.prompt, response) for e in data.examples for response in e.responses)
    return list(unique)


def finish(
    data: Dataset,
    rewards: Mapping[Conversation, float],
    seen: Seen,
    bad_rows: tuple[str, ...] = (),
) -> Scoring:
    """Return the scoring of the examples whose responses all have rewards."""
    scored = [
        scored_example(
            example,
            (rewards[example.prompt, text] for text in example.chosen),
            (rewards[example.prompt, text] for text in example.rejected),
        )
        for example in data.examples
        if all((example.prompt, text) in rewards for text in example.responses)
    ]
    counts = seen.counts() | count(data.examples, scored)
    return Scoring(scored, counts, seen.first_example, bad_rows)


def check_scoring(scoring: Scoring, settings: Settings) -> None:
    """Raise ScoreError for more non-finite rewards than allowed, or if no example is left."""
    if not scoring.scored:
        bad_rows = scoring.bad_rows
        bad = f", {len(bad_rows)} are bad rows ({bad_rows[0]})" if bad_rows else ""
        advice = "raise model.max_length"
        if bad and not scoring.counts["dropped"]:
            advice = "give another template as model.chat_template"
        raise ScoreError(f"no example is left to score{bad}: {advice}")
    check_finite(scoring.scored, settings.max_non_finite)


def placed(
    reward: ModelReward, encoded: Mapping[Conversation, Encoded], data: Dataset, group: str
) -> tuple[Mapping[Conversation, Encoded], tuple[str, ...]]:
    """Return the responses whose place is known, and a line for each example with another one.

    They are all responses where no log-probability is read. Raises DataError for such lines if the
    data, of the config's `group`, leave no rows out.
    """
    if all(column.quantity == "score" for column in reward.columns):
        return encoded, ()
    lines = []
    for example in data.examples:
        others = (
            text
            for text in example.responses
            if (row := encoded.get((example.prompt, text))) is not None and not row.placed
        )
        if (text := next(others, None)) is not None:
            lines.append(unplaced(example.id, text))
    if not data.skips:
        refuse_unplaced(lines, group)
    found = {conversation: row for conversation, row in encoded.items() if row.placed}
    return found, tuple(lines)


def _encode_and_load(
    reward: ModelReward, conversations: Sequence[Conversation], settings: Settings, seen: Seen
) -> Mapping[Conversation, Encoded]:
    """Encode while the weights are loaded, which are needed if the first response has no value."""
    column, chat = reward.columns[0], reward.chat
    (first,) = chat.encode(conversations[:1], settings.on_overlength)
    with ThreadPoolExecutor(max_workers=1) as beside:
        encoding = beside.submit(encode, chat, conversations, settings.on_overlength, seen)
        if settings.devices == 1 and first is not None:
            identity = column.identity(settings.store_dir)
            with ScoreStore(settings.store_dir, identity) as store:
                needed = _key(column, first) not in store.read() and not store.is_claimed()
            if needed:
                seen.loaded = load(column, chat.tokenizer.pad_token_id)
        encoded = encoding.result()
    check_vocabulary(reward, list(encoded.values()))
    return encoded


def encode(
    chat: Chat, conversations: Sequence[Conversation], on_overlength: OnOverlength, seen: Seen
) -> dict[Conversation, Encoded]:
    """Return the conversations' tokens, without those dropped as too long; count these."""
    encoded = chat.encode(conversations, on_overlength)
    kept = {
        conversation: row
        for conversation, row in zip(conversations, encoded, strict=True)
        if row is not None
    }
    seen.truncated = sum(row.truncated for row in kept.values())
    seen.dropped = len(conversations) - len(kept)
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
    options = (settings.store_dir, pad, settings.batch_tokens, settings.seed)
    request = Request(column, {}, *options, seen.loaded)
    with ScoreStore(settings.store_dir, column.identity(settings.store_dir)) as store:
        values = fill_column(request, rows, store, settings.devices, seen)
    seen.loaded = None  # it is the first column's, and the next one's weights may need the room
    return values


def fill_column(
    request: Request,
    rows: Sequence[Encoded],
    store: ScoreStore,
    devices: int | str,
    seen: Seen,
) -> Values:
    """Return the rows' values; what the store lacks is computed as the request says."""
    keys = [_key(request.column, row) for row in rows]
    unique = dict(zip(keys, rows, strict=True))

    def make(new: list[str]) -> Mapping[str, float]:
        asked = replace(request, rows={key: unique[key] for key in new})
        values, work = compute(asked, store, devices)
        seen.work.add(work)
        return values

    known, computed = store.fill(unique, make)
    seen.cached += len(unique) - computed
    return np.array([known[key] for key in keys], dtype=np.float64)


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
