"""Scoring: each unique (prompt, response) once, whatever asks for it, and never again."""

import logging
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rmexp.errors import ConfigError, ScoreError
from rmexp.models.chat import Encoded, OnOverlength, refuse_unplaced, unplaced
from rmexp.schema import Example, Message, ScoredExample, scored_example
from rmexp.scoring.computing import Request, Work, compute, load
from rmexp.scoring.recorded import RecordedReward
from rmexp.scoring.rewards import Column, ModelReward, Values, check_vocabulary
from rmexp.scoring.store import ScoreStore, response_key

if TYPE_CHECKING:
    from rmexp.models.forward import Reader

log = logging.getLogger(__name__)

Conversation = tuple[tuple[Message, ...], str]  # a prompt and a response


@dataclass(frozen=True, slots=True)
class Settings:
    """How to score, whatever the model.

    `batch_tokens` bounds the tokens that a batch runs, with padding; None leaves it to the reader.
    More than `max_non_finite` rewards that are not finite fail the run. `seed` chooses the
    responses of the self-check. The responses are shared among so many `devices`, all GPUs of this
    machine for "auto".
    """

    store_dir: Path
    on_overlength: OnOverlength = "left_truncate"
    batch_tokens: int | None = None
    max_non_finite: int = 0
    seed: int = 0
    devices: int | str = 1

    def __post_init__(self) -> None:
        if self.batch_tokens is not None and self.batch_tokens < 1:
            raise ConfigError(f"batch_tokens={self.batch_tokens}: give a positive number of tokens")
        if self.max_non_finite < 0:
            raise ConfigError(f"max_non_finite={self.max_non_finite}: give 0 or more rewards")
        if self.devices != "auto" and (type(self.devices) is not int or self.devices < 1):
            raise ConfigError(f"devices={self.devices}: give how many, or auto for all GPUs")


@dataclass(frozen=True, slots=True)
class Scoring:
    """The examples' rewards, the `scoring/...` counts, and the first example as the model saw it.

    Of the counts, `tokens` are those of the responses that were newly scored, each with its prompt;
    `tokens_run` are those that the model ran, what responses share counting once; `tokens_padded`
    are these with padding.

    Examples with a response that was dropped as too long are not in `scored`, nor are those whose
    place in the template is not known where log-probabilities are read: `bad_rows` names them.
    """

    scored: list[ScoredExample]
    counts: dict[str, float]
    first_example: str | None = None
    bad_rows: tuple[str, ...] = ()


@dataclass(slots=True)
class _Seen:
    """What happened on the way to the rewards."""

    cached: int = 0
    truncated: int = 0
    dropped: int = 0
    first_example: str | None = None
    loaded: "Reader | None" = None
    work: Work = field(default_factory=Work)


def score(
    reward: ModelReward | RecordedReward,
    examples: Sequence[Example],
    settings: Settings,
    skips: bool = False,
) -> Scoring:
    """Give every response of the examples its reward.

    `skips` leaves out examples with a response whose log-probability cannot be read. Raises
    DataError for such ones otherwise, ScoreError for more non-finite rewards than allowed, or if no
    example is left.
    """
    unique = dict.fromkeys((e.prompt, response) for e in examples for response in e.responses)
    counts: dict[str, float] = {
        "responses": sum(len(example.responses) for example in examples),
        "unique": len(unique),
    }
    seen = _Seen()
    bad_rows: tuple[str, ...] = ()
    if isinstance(reward, RecordedReward):
        scored, ignored = reward.lookup(examples)
        counts["recorded_ignored"] = ignored
        if ignored:
            log.info("%s: %d rows belong to no selected example", reward.path, ignored)
    else:
        encoded = _encode_and_load(reward, list(unique), settings, seen)
        if any(column.reads == "logps" for column in reward.columns):
            encoded, bad_rows = _placed(encoded, examples)
            if not skips:
                refuse_unplaced(bad_rows, "bench")
        rows, pad = list(encoded.values()), reward.chat.tokenizer.pad_token_id
        columns = [_column(column, rows, settings, pad, seen) for column in reward.columns]
        rewards = dict(zip(encoded, reward.rewards(columns, rows).tolist(), strict=True))
        scored = [
            scored_example(
                example,
                (rewards[example.prompt, text] for text in example.chosen),
                (rewards[example.prompt, text] for text in example.rejected),
            )
            for example in examples
            if all((example.prompt, text) in rewards for text in example.responses)
        ]
    if not scored:
        raise ScoreError(
            "no example is left to score: raise model.max_length"
            + (f"; {len(bad_rows)} are bad rows ({bad_rows[0]})" if bad_rows else "")
        )
    counts |= {
        "cached": seen.cached,
        "tokens": seen.work.tokens,
        "tokens_run": seen.work.tokens_run,
        "tokens_padded": seen.work.tokens_padded,
        "seconds": seen.work.seconds,
        "tokens_per_second": seen.work.tokens / seen.work.seconds if seen.work.tokens else 0.0,
        "truncated": seen.truncated,
        "dropped": seen.dropped,
        "dropped_examples": len(examples) - len(scored),
        "non_finite": _check_finite(scored, settings.max_non_finite),
        "ties": sum(
            good == bad for row in scored for good, bad in product(row.chosen, row.rejected)
        ),
    }
    if not math.isnan(seen.work.max_delta):
        counts["self_check_max_delta"] = seen.work.max_delta
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
    reward: ModelReward, conversations: Sequence[Conversation], settings: Settings, seen: _Seen
) -> dict[Conversation, Encoded]:
    """Encode while the weights are loaded, which are needed if the first response has no value."""
    column, chat = reward.columns[0], reward.chat
    (first,) = chat.encode(conversations[:1], settings.on_overlength)
    with ThreadPoolExecutor(max_workers=1) as beside:
        encoding = beside.submit(_encode, reward, conversations, settings, seen)
        if settings.devices == 1 and first is not None:
            with ScoreStore(settings.store_dir, column.identity(settings.store_dir)) as store:
                needed = _key(column, first) not in store.read() and not store.is_claimed()
            if needed:
                seen.loaded = load(column, chat.tokenizer.pad_token_id)
        return encoding.result()


def _encode(
    reward: ModelReward, conversations: Sequence[Conversation], settings: Settings, seen: _Seen
) -> dict[Conversation, Encoded]:
    """Return the conversations' tokens, without those dropped as too long; count these."""
    encoded = reward.chat.encode(conversations, settings.on_overlength)
    kept = {
        conversation: row
        for conversation, row in zip(conversations, encoded, strict=True)
        if row is not None
    }
    check_vocabulary(reward, list(kept.values()))
    seen.truncated = sum(row.truncated for row in kept.values())
    seen.dropped = len(conversations) - len(kept)
    if seen.truncated or seen.dropped:
        log.warning(
            "%d responses were cut on the left and %d dropped: longer than %d tokens",
            seen.truncated,
            seen.dropped,
            reward.chat.max_length,
        )
    if kept:
        seen.first_example = _as_seen(reward, next(iter(kept.values())))
    return kept


def column_values(
    column: Column, rows: Sequence[Encoded], settings: Settings, pad: int | None
) -> Values:
    """Return the column's values `(responses,)`, computing and storing those that are new."""
    return _column(column, rows, settings, pad, _Seen())


def _column(
    column: Column, rows: Sequence[Encoded], settings: Settings, pad: int | None, seen: _Seen
) -> Values:
    """Return the column's values, and add to `seen` what was computed."""
    keys = [_key(column, row) for row in rows]
    unique = dict(zip(keys, rows, strict=True))
    with ScoreStore(settings.store_dir, column.identity(settings.store_dir)) as store:

        def make(new: list[str]) -> Mapping[str, float]:
            rows = {key: unique[key] for key in new}
            options = (settings.store_dir, pad, settings.batch_tokens, settings.seed)
            request = Request(column, rows, *options, seen.loaded)
            made, work = compute(request, store, settings.devices)
            seen.work.add(work)
            return made

        known, computed = store.fill(unique, make)
    seen.loaded = None  # it is the first column's, and the next one's weights may need the room
    seen.cached += len(unique) - computed
    return np.array([known[key] for key in keys], dtype=np.float64)


def _key(column: Column, row: Encoded) -> str:
    """Return the key of a response in the column's store."""
    return response_key(row.ids, (row.start, row.end) if column.reads == "logps" else None)


def _check_finite(scored: Sequence[ScoredExample], limit: int) -> int:
    """Return how many rewards are not finite; raise ScoreError above the limit."""
    bad = [
        row.id for row in scored for reward in (*row.chosen, *row.rejected) if math.isnan(reward)
    ]
    if len(bad) > limit:
        names = ", ".join(list(dict.fromkeys(bad))[:5])
        raise ScoreError(
            f"{len(bad)} rewards are not finite (first in {names}), allowed are {limit}: try "
            f"model.dtype=float32 or another model.attention, or accept them as wrong answers with "
            f"max_non_finite={len(bad)}"
        )
    if bad:
        log.warning("%d rewards are not finite: their comparisons count as wrong", len(bad))
    return len(bad)


def _as_seen(reward: ModelReward, row: Encoded) -> str:
    decode = reward.chat.tokenizer.decode
    ids = list(row.ids)
    cut = ", cut on the left" if row.truncated else ""
    if not row.placed:
        return f"{len(ids)} tokens, the response among them{cut}\n--- all\n{decode(ids)}\n"
    return (
        f"{len(ids)} tokens, the response being tokens {row.start} to {row.end}{cut}\n"
        f"--- all\n{decode(ids)}\n--- response\n{decode(ids[row.start : row.end])}\n"
    )
