"""An OpenAI-compatible chat endpoint: many questions at once, asked again where that may help."""

import asyncio
import email.utils
import json
import logging
import math
import os
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx2

from rmexp.errors import ConfigError, ScoreError
from rmexp.judges.engine import TOO_LONG, Answer, Done, Question, Sampling
from rmexp.outside import parse_json
from rmexp.progress import WorkProgress
from rmexp.scoring.score import Settings
from rmexp.secrets import is_variable, learn, mask, redact

log = logging.getLogger(__name__)
logging.getLogger("httpx2").setLevel(logging.WARNING)  # it would log every request

_AGAIN = {408, 409, 425, 429}  # and whatever is the server's own fault: 500 and above
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 60.0  # seconds, of our own choice; doubled with each try
_LONGEST_TOLD = 600.0  # seconds that a server may tell us to wait
_SECONDS_BETWEEN_WARNINGS = 5.0  # many questions fail at once
_SHOWN = 200  # characters of a server's answer in a message
_TOO_LONG = ("context_length_exceeded", "context length", "too many tokens")


class Endpoint:
    """The chat model `model` at `url`, which ends before "/chat/completions".

    `concurrency` questions are under way at once, each for `timeout` seconds a try and `tries`
    tries: after a connection that fails, a time-out, a status of 429 or from 500 on and an answer
    that cannot be read. Waits double from one try to the next; where the server says how long to
    wait, nothing is asked before. `key` names the environment variable with the key, if there is
    one. `extra` goes into every request.

    Raises ConfigError for an address or a number that cannot work.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key: str | None = None,
        concurrency: int = 16,
        timeout: float = 300.0,
        tries: int = 8,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        try:
            known = httpx2.URL(url).scheme in ("http", "https") and httpx2.URL(url).host
        except httpx2.InvalidURL:
            known = ""
        if not known:
            raise ConfigError(f"model.url={redact(url)}: give an address, http://HOST:PORT/v1")
        for name, value in (("concurrency", concurrency), ("timeout", timeout), ("tries", tries)):
            if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
                raise ConfigError(f"model.endpoint.{name}={value}: give a number above 0")
        address = httpx2.URL(url)
        path = address.path.rstrip("/") + "/chat/completions"
        self._url = str(address.copy_with(path=path))  # with its query, where there is one
        self._model, self._extra = model, dict(extra or {})
        if key and not is_variable(str(key)):
            raise ConfigError(
                "model.endpoint.key is no environment variable: give the name of the one that "
                "holds the key, never the key itself, which would be written down"
            )
        self._key = os.environ.get(key, "").strip() if key else ""
        learn(self._key, "key")
        if not (self._key.isascii() and self._key.isprintable()):
            raise ConfigError(f"the key in {key} holds signs that no key has: set {key} again")
        self._concurrency, self._timeout, self._tries = int(concurrency), timeout, int(tries)
        self._not_before = 0.0
        self._last_warning = -math.inf

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
        try:
            asyncio.run(self._answer(questions, sampling, done))
        except ExceptionGroup as group:  # of the questions under way, the first that failed
            raise group.exceptions[0] from None

    async def _answer(self, questions: Sequence[Question], sampling: Sampling, done: Done) -> None:
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        limits = httpx2.Limits(max_connections=self._concurrency)
        waiting, count = iter(questions), len(questions)
        async with httpx2.AsyncClient(headers=headers, limits=limits, timeout=None) as client:
            with WorkProgress(self._model, count, "answers") as progress:

                async def work() -> None:
                    for question in waiting:  # shared: each question is taken once
                        done([(question, await self._ask(client, question, sampling))])
                        progress.advance(1)

                async with asyncio.TaskGroup() as group:
                    for _ in range(min(self._concurrency, count)):
                        group.create_task(work())

    async def _ask(
        self, client: httpx2.AsyncClient, question: Question, sampling: Sampling
    ) -> Answer:
        """Ask one question until it is answered, at most `tries` times."""
        body = self._body(question, sampling)
        reason = ""
        for attempt in range(self._tries):
            while (wait := self._not_before - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            told: float | None = None
            try:
                # For the whole exchange: a server that sends a byte now and then hangs as well.
                async with asyncio.timeout(self._timeout):
                    response = await client.post(self._url, content=body)
                if response.status_code == 200:
                    return _read(response)
                if ended := _unanswered(response):
                    return Answer("", 0, 0, ended)
                reason = f"status {response.status_code}: {self._quote(response.text)}"
                if response.status_code not in _AGAIN and response.status_code < 500:
                    raise ScoreError(
                        f"{redact(self._url)} refuses a question with {reason}: mend model.url, "
                        "model.path, the key or the settings; what is answered is kept"
                    )
                told = _retry_after(response)
            except TimeoutError:
                reason = f"no answer within {self._timeout:g} s"
            except httpx2.RequestError as error:
                reason = f"{type(error).__name__}: {self._quote(str(error))}"
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                reason = f"an answer that is no chat completion ({self._quote(str(error))})"
            if attempt + 1 < self._tries:
                await self._back_off(attempt, told, reason)
        raise ScoreError(
            f"{redact(self._url)} gave no answer in {self._tries} tries, the last time {reason}: "
            "run the command again, it goes on from what is answered"
        )

    def _body(self, question: Question, sampling: Sampling) -> bytes:
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [{"role": "user", "content": question.text}],
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "seed": None if sampling.seed is None else sampling.seed + question.sample,
        }
        given = {name: value for name, value in body.items() if value is not None}
        return json.dumps(given | self._extra).encode()

    async def _back_off(self, attempt: int, told: float | None, reason: str) -> None:
        """Wait twice as long as the last time; and let everyone wait as long as the server says."""
        wait = min(_FIRST_WAIT * 2**attempt, _LONGEST_WAIT) * random.uniform(0.5, 1.0)
        if told is not None:
            if told > _LONGEST_TOLD:
                raise ScoreError(
                    f"{redact(self._url)} wants {told:.0f} s of rest ({reason}): run the command "
                    "again then, it goes on from what is answered"
                )
            self._not_before = max(self._not_before, time.monotonic() + told)
        now = time.monotonic()
        if now - self._last_warning > _SECONDS_BETWEEN_WARNINGS:
            self._last_warning = now
            rest = max(wait, told or 0.0)
            log.warning("%s: asking again in %.1f s (%s)", self._model, rest, reason)
        await asyncio.sleep(wait)

    def _quote(self, text: str) -> str:
        """Return the beginning of what a server says, without the key."""
        if self._key:
            text = text.replace(self._key, "(key)")  # however short it is
        return redact(" ".join(text.split()))[:_SHOWN]


def _read(response: httpx2.Response) -> Answer:
    """Return the answer in a chat completion; an empty one is an answer."""
    content = parse_json(response.text)
    choice = content["choices"][0]
    text = choice["message"].get("content")
    if not isinstance(text, str | None):
        raise TypeError("its content is no text")
    usage = content.get("usage") or {}
    tokens = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
    return Answer(text or "", *tokens, str(choice.get("finish_reason") or "stop"))


def _unanswered(response: httpx2.Response) -> str | None:
    """Return why this question in particular gets no answer, in the words of known servers."""
    if response.status_code not in (400, 413):
        return None
    said = response.text.lower()
    if any(words in said for words in _TOO_LONG):
        return TOO_LONG
    return "content_filter" if "content_filter" in said else None


def _retry_after(response: httpx2.Response) -> float | None:
    """Return the seconds to wait that a header names, as a number or as a date."""
    value = response.headers.get("retry-after", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
