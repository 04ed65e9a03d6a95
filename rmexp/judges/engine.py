"""What runs a chat model: questions, answers, and how they are drawn."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from rmexp.scoring.score import Settings

TOO_LONG = "too_long"  # how an answer ended that was never begun


@dataclass(frozen=True, slots=True)
class Question:
    """A text for a chat model, asked for the `sample`-th time."""

    text: str
    sample: int

    @property
    def key(self) -> str:
        """Return the key in the store."""
        return hashlib.sha256(json.dumps([self.text, self.sample]).encode()).hexdigest()[:32]


class Answer(NamedTuple):
    """A chat model's answer; `ended` is "stop", "length" where it was cut off, or `TOO_LONG`."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    ended: str


@dataclass(frozen=True, slots=True)
class Sampling:
    """How answers are drawn; null leaves a setting to the endpoint. Temperature 0 is greedy."""

    temperature: float | None
    top_p: float | None
    max_tokens: int | None
    seed: int | None  # None where nothing is drawn


Done = Callable[[Sequence[tuple[Question, Answer]]], None]


class Engine(Protocol):
    """What runs a chat model."""

    def identity(self, cache: Path) -> dict[str, object]:
        """Return what determines the answers, besides question and sampling."""
        ...

    def traits(self) -> dict[str, str]:
        """Return what is known of the chat model: size, dtype, template."""
        ...

    def answer(
        self, questions: Sequence[Question], sampling: Sampling, settings: Settings, done: Done
    ) -> None:
        """Answer the questions, and hand over each answer as soon as it is made."""
        ...
