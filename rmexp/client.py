"""Requests to a server: many at once, asked again where that may help."""

import asyncio
import email.utils
import json
import logging
import math
import os
import random
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Generic, TypeVar

import httpx2

from rmexp.errors import ConfigError, ScoreError
from rmexp.outside import parse_json
from rmexp.secrets import is_variable, learn, redact

log = logging.getLogger(__name__)
logging.getLogger("httpx2").setLevel(logging.WARNING)  # it would log every request

_AGAIN = {408, 409, 425, 429}  # and whatever is the server's own fault: 500 and above
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 60.0  # seconds, of our own choice; doubled with each try
_LONGEST_TOLD = 600.0  # seconds that a server may tell us to wait
_SECONDS_BETWEEN_WARNINGS = 5.0  # many requests fail at once
_SHOWN = 200  # characters of a server's answer in a message
_TOO_LONG = ("context_length_exceeded", "context length", "too many tokens")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Refused:
    """A server's answer of a status that asking again would not change."""

    status: int
    text: str

    @property
    def too_long(self) -> bool:
        """Say whether the input is longer than the model takes, in the words of known servers."""
        said = self.text.lower()
        return self.status in (400, 413) and any(words in said for words in _TOO_LONG)


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """A request to `path` below the client's address: a POST of a JSON `body`, or a GET without.

    `read` makes the answer of the JSON that comes back; what it raises of ValueError, LookupError,
    TypeError or AttributeError is an answer that cannot be read, and asked for again. `refused` may
    make an answer of a refusal, or raise its own error; None leaves it to the client.
    """

    path: str
    body: Mapping[str, Any] | None
    read: Callable[[Any], T]
    refused: Callable[[Refused], T | None] = lambda _: None


class Client:
    """The server at `url`, whose query goes into every request, where there is one.

    `concurrency` requests are under way at once, each for `timeout` seconds a try and `tries`
    tries: after a connection that fails, a time-out, a status of 429 or from 500 on and an answer
    that cannot be read. Waits double from one try to the next; where the server says how long to
    wait, nothing is asked before. `key` names the environment variable with the key, if there is
    one. `label` is the server's name in the log, `settings` are those to mend after a refusal.

    Raises ConfigError for an address or a number that cannot work.
    """

    def __init__(
        self,
        url: str,
        label: str,
        settings: str,
        *,
        key: str | None = None,
        concurrency: int = 16,
        timeout: float = 300.0,
        tries: int = 8,
    ) -> None:
        try:
            known = httpx2.URL(url).scheme in ("http", "https") and httpx2.URL(url).host
        except httpx2.InvalidURL:
            known = ""
        if not known:
            raise ConfigError(f"model.url={redact(url)}: give an address, http://HOST:PORT")
        for name, value in (("concurrency", concurrency), ("timeout", timeout), ("tries", tries)):
            if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
                raise ConfigError(f"model.endpoint.{name}={value}: give a number above 0")
        self._url, self._label, self._settings = httpx2.URL(url), label, settings
        if key and not is_variable(str(key)):
            raise ConfigError(
                "model.endpoint.key is no environment variable: give the name of the one that "
                "holds the key, never the key itself, which would be written down"
            )
        self._key = os.environ.get(key, "").strip() if key else ""
        learn(self._key, "key")
        if not (self._key.isascii() and self._key.isprintable()):
            raise ConfigError(f"the key in {key} holds signs that no key has: set {key} again")
        self.concurrency, self._timeout, self._tries = int(concurrency), timeout, int(tries)
        self._not_before = 0.0
        self._last_warning = -math.inf

    def address(self, path: str) -> str:
        """Return the address of a path below the client's, with its query."""
        return str(self._url.copy_with(path=self._url.path.rstrip("/") + path))

    def ask(
        self,
        calls: Sequence[Call[T]],
        done: Callable[[int, T], None],
        tries: int | None = None,
    ) -> None:
        """Make all calls, and hand over the answer of each, with its position, as it comes.

        `tries` may be fewer than the client's. Raises ScoreError for a call that has no answer
        after the last of them, and for a refusal; what was handed over remains.
        """
        try:
            asyncio.run(self._ask_all(calls, done, min(tries or self._tries, self._tries)))
        except ExceptionGroup as group:  # of the calls under way, the first that failed
            raise group.exceptions[0] from None

    def ask_one(self, call: Call[T], tries: int | None = None) -> T:
        """Return the answer of one call; see `ask`."""
        answers: list[T] = []
        self.ask([call], lambda _, answer: answers.append(answer), tries)
        return answers[0]

    async def _ask_all(
        self, calls: Sequence[Call[T]], done: Callable[[int, T], None], tries: int
    ) -> None:
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        limits = httpx2.Limits(max_connections=self.concurrency)
        waiting = iter(enumerate(calls))
        options: dict[str, Any] = {"limits": limits, "timeout": None, "verify": _certificates()}
        async with httpx2.AsyncClient(headers=headers, **options) as client:

            async def work() -> None:
                for at, call in waiting:  # shared: each call is taken once
                    done(at, await self._ask(client, call, tries))

            async with asyncio.TaskGroup() as group:
                for _ in range(min(self.concurrency, len(calls))):
                    group.create_task(work())

    async def _ask(self, client: httpx2.AsyncClient, call: Call[T], tries: int) -> T:
        """Make one call until it is answered, at most `tries` times."""
        address = self.address(call.path)
        content = None if call.body is None else json.dumps(call.body).encode()
        reason = ""
        for attempt in range(tries):
            while (wait := self._not_before - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            told: float | None = None
            try:
                # For the whole exchange: a server that sends a byte now and then hangs as well.
                async with asyncio.timeout(self._timeout):
                    method = "GET" if content is None else "POST"
                    response = await client.request(method, address, content=content)
                if response.status_code == 200:
                    return call.read(parse_json(response.text))
                said = self._quote(response.text)
                reason = f"status {response.status_code}" + (f": {said}" if said else "")
                refusal = Refused(response.status_code, response.text)
                if response.status_code not in _AGAIN and response.status_code < 500:
                    if (answer := call.refused(refusal)) is not None:
                        return answer
                    raise ScoreError(
                        f"{redact(address)} refuses a question with {reason}: mend "
                        f"{self._settings}; what is answered is kept"
                    )
                told = _retry_after(response)
            except TimeoutError:
                reason = f"no answer within {self._timeout:g} s"
            except httpx2.RequestError as error:
                reason = f"{type(error).__name__}: {self._quote(str(error))}"
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                reason = f"an answer that cannot be read ({self._quote(str(error))})"
            if attempt + 1 < tries:
                await self._back_off(address, attempt, told, reason)
        times = "1 try" if tries == 1 else f"{tries} tries"
        raise ScoreError(
            f"{redact(address)} gave no answer in {times}, the last time {reason}: "
            "run the command again, it goes on from what is answered"
        )

    async def _back_off(self, address: str, attempt: int, told: float | None, reason: str) -> None:
        """Wait twice as long as the last time; and let everyone wait as long as the server says."""
        wait = min(_FIRST_WAIT * 2**attempt, _LONGEST_WAIT) * random.uniform(0.5, 1.0)
        if told is not None:
            if told > _LONGEST_TOLD:
                raise ScoreError(
                    f"{redact(address)} wants {told:.0f} s of rest ({reason}): run the command "
                    "again then, it goes on from what is answered"
                )
            self._not_before = max(self._not_before, time.monotonic() + told)
        now = time.monotonic()
        if now - self._last_warning > _SECONDS_BETWEEN_WARNINGS:
            self._last_warning = now
            rest = max(wait, told or 0.0)
            log.warning("%s: asking again in %.1f s (%s)", self._label, rest, reason)
        await asyncio.sleep(wait)

    def _quote(self, text: str) -> str:
        """Return the beginning of what a server says, without the key."""
        if self._key:
            text = text.replace(self._key, "(key)")  # however short it is
        return redact(" ".join(text.split()))[:_SHOWN]


@cache
def _certificates() -> ssl.SSLContext:
    """Return the authorities that are trusted, which take a while to read."""
    return httpx2.create_ssl_context()


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
