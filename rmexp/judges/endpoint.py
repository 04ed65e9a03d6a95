"""A chat model behind an OpenAI-compatible endpoint."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rmexp.client import Call, Client, Refused
from rmexp.judges.engine import TOO_LONG, Answer, Done, Question, Sampling
from rmexp.progress import WorkProgress
from rmexp.scoring.score import Settings
from rmexp.secrets import mask

log = logging.getLogger(__name__)


class Endpoint:
    """The chat model `model` at `url`, which ends before "/chat/completions".

    `extra` goes into every request; `connection` are the further arguments of `Client`. Raises
    ConfigError for an address or a number that cannot work.
    """

    def __init__(
        self, url: str, model: str, *, extra: Mapping[str, Any] | None = None, **connection: Any
    ) -> None:
        settings = "model.url, model.path, the key or the settings"
        self._client = Client(url, model, settings, **connection)
        self._model, self._extra = model, dict(extra or {})

    def identity(self, cache: Path) -> dict[str, object]:
        """Return the model's name and what goes into every request; the address may change."""
        return {"endpoint model": self._model, "extra": mask(self._extra)}

    def traits(self) -> dict[str, str]:
        """Return nothing: an endpoint does not tell."""
        return {}

    def answer(
        self, questions: Sequence[Question], sampling: Sampling, settings: Settings, done: Done
    ) -> None:
        """Ask all questions; raise ScoreError for one that has no answer after the last try."""
        log.info("asking %s %d questions", self._model, len(questions))
        calls = [
            Call("/chat/completions", self._body(question, sampling), _read, _unanswered)
            for question in questions
        ]
        with WorkProgress(self._model, len(questions), "answers") as progress:

            def answered(at: int, answer: Answer) -> None:
                done([(questions[at], answer)])
                progress.advance(1)

            self._client.ask(calls, answered)

    def _body(self, question: Question, sampling: Sampling) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [{"role": "user", "content": question.text}],
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "seed": None if sampling.seed is None else sampling.seed + question.sample,
        }
        return {name: value for name, value in body.items() if value is not None} | self._extra


def _read(content: Any) -> Answer:
    """Return the answer in a chat completion; an empty one is an answer."""
    choice = content["choices"][0]
    text = choice["message"].get("content")
    if not isinstance(text, str | None):
        raise TypeError("its content is no text")
    usage = content.get("usage") or {}
    tokens = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
    return Answer(text or "", *tokens, str(choice.get("finish_reason") or "stop"))


def _unanswered(refusal: Refused) -> Answer | None:
    """Return an empty answer where this question in particular gets none."""
    if refusal.too_long:
        return Answer("", 0, 0, TOO_LONG)
    filtered = refusal.status in (400, 413) and "content_filter" in refusal.text.lower()
    return Answer("", 0, 0, "content_filter") if filtered else None
