"""Whatever gives numbers: the one protocol, how it is asked, what it answers."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Protocol

from rmexp.errors import ConfigError, ScoreError
from rmexp.files import root
from rmexp.metrics import Mean
from rmexp.models.chat import OnOverlength
from rmexp.schema import Dataset, Example, Message, ScoredExample

log = logging.getLogger(__name__)

# A user's turn, or a conversation's turns with `role` and `content`.
Prompt = str | Sequence[Message | Mapping[str, str]]

# What was computed where nothing was.
NOTHING_COMPUTED: Mapping[str, float] = {
    "cached": 0,
    "tokens": 0,
    "tokens_run": 0,
    "tokens_padded": 0,
    "seconds": 0.0,
    "tokens_per_second": 0.0,
    "truncated": 0,
    "dropped": 0,
}


@dataclass(frozen=True, slots=True)
class Settings:
    """How to score, whatever the model.

    `batch_tokens` bounds the tokens that a batch runs, with padding; None leaves it to the model.
    More than `max_non_finite` rewards that are not finite fail the run. `seed` chooses the
    responses of the self-check. The responses are shared among so many `devices`, all GPUs of this
    machine for "auto".
    """

    store_dir: Path = field(default_factory=lambda: root() / "scores")
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
        check_devices(self.devices)


@dataclass(frozen=True, slots=True)
class Scoring:
    """The examples' rewards, the `scoring/...` counts, and the first example as the model saw it.

    Of the counts, `tokens` are those of the responses that were newly scored, each with its prompt;
    `tokens_run` are those that the model ran, what responses share counting once; `tokens_padded`
    are these with padding.

    Examples with a response that was dropped as too long are not in `scored`, nor are those whose
    place in the template is not known where log-probabilities are read: `bad_rows` names them.
    A judge's scoring has metrics of its own, how consistent it is, and a line for each verdict.
    """

    scored: list[ScoredExample]
    counts: dict[str, float]
    first_example: str | None = None
    bad_rows: tuple[str, ...] = ()
    metrics: tuple[Mean, ...] = ()
    lines: tuple[Mapping[str, object], ...] = ()


class Reward(Protocol):
    """What gives numbers: a score head, a policy, a file of rewards, a judge."""

    @property
    def name(self) -> str:
        """Return what tables and runs call it."""
        ...

    @property
    def description(self) -> str:
        """Say how the numbers are made, in a few words."""
        ...

    def fingerprints(self, cache: Path) -> dict[str, str]:
        """Return digests of all that makes the numbers, by the names of the run's tags."""
        ...

    def traits(self) -> dict[str, str]:
        """Return what tells it from others, for people: method, reader, size, dtype, template.

        The method is scalar, implicit, judge or recorded; what is not known is left out.
        """
        ...

    def score(self, data: Dataset, settings: Settings) -> Scoring:
        """Give every response of the examples its reward, or every comparison its verdict.

        Raises ScoreError for more non-finite rewards than allowed, or if no example is left, and
        DataError for a response that cannot be read where the data leave none out.
        """
        ...


def score(
    reward: Reward,
    conversations: Sequence[tuple[Prompt, str]],
    settings: Settings | None = None,
) -> list[float]:
    """Return the reward of each response to its prompt.

    It is NaN where the conversation was dropped as too long, or is not finite and allowed to be so.
    Raises as `Reward.score` does.
    """
    if not conversations:
        return []
    examples = tuple(
        Example(str(at), "", turns(prompt), (response,), ())
        for at, (prompt, response) in enumerate(conversations)
    )
    scored = reward.score(Dataset(examples, "conversations"), settings or Settings()).scored
    rewards = {row.id: row.chosen[0] for row in scored}
    return [rewards.get(example.id, math.nan) for example in examples]


def count(examples: Sequence[Example], scored: Sequence[ScoredExample]) -> dict[str, float]:
    """Return the counts that all scorings by rewards have."""
    return {
        "responses": sum(len(example.responses) for example in examples),
        "unique": len({(e.prompt, response) for e in examples for response in e.responses}),
        "dropped_examples": len(examples) - len(scored),
        "non_finite": len(_non_finite(scored)),
        "ties": sum(
            good == bad for row in scored for good, bad in product(row.chosen, row.rejected)
        ),
    }


def turns(prompt: Prompt) -> tuple[Message, ...]:
    """Return a prompt's turns: a text is one turn of the user."""
    if isinstance(prompt, str):
        return (Message("user", prompt),)
    return tuple(
        turn if isinstance(turn, Message) else Message(turn["role"], turn["content"])
        for turn in prompt
    )


def check_devices(devices: int | str) -> None:
    """Raise ConfigError for what is no number of devices."""
    if devices != "auto" and (type(devices) is not int or devices < 1):
        raise ConfigError(f"devices={devices}: give how many, or auto for all GPUs")


def check_finite(scored: Sequence[ScoredExample], limit: int) -> None:
    """Raise ScoreError for more than `limit` rewards that are not finite, and warn of fewer."""
    bad = _non_finite(scored)
    if len(bad) > limit:
        names = ", ".join(list(dict.fromkeys(bad))[:5])
        raise ScoreError(
            f"{len(bad)} rewards are not finite (first in {names}), allowed are {limit}: try "
            f"model.dtype=float32 or another model.attention, or accept them as wrong answers with "
            f"max_non_finite={len(bad)}"
        )
    if bad:
        log.warning("%d rewards are not finite: their comparisons count as wrong", len(bad))


def _non_finite(scored: Sequence[ScoredExample]) -> list[str]:
    """Return the example of each reward that is not finite."""
    return [
        row.id for row in scored for reward in (*row.chosen, *row.rejected) if math.isnan(reward)
    ]
