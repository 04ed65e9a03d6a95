"""Chat templates, rendered in a process of their own whose time and memory are limited.

A template comes with a model from elsewhere. jinja2's sandbox keeps it from files and code, but not
from a loop without end or a text of gigabytes, which no thread could stop. The process runs this
file, which therefore imports nothing of the project; it starts once, and ends with its parent.
"""

import atexit
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from types import TracebackType
from typing import Any

DATE = "%d %b %Y"
SECONDS = 10.0  # of the processor, for a conversation
_MEMORY = 2**30  # bytes that the process may address
_ADDED = 200_000  # characters that a template may add to four times those that it was given

Turns = Sequence[Mapping[str, str]]


class RenderError(Exception):
    """A template that does not render, whatever the conversation; its text says why."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """What a template says of a conversation that it does not take."""

    reason: str


class Renderer:
    """The process that renders, started when it is first needed. Threads take turns."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._parent = 0
        atexit.register(self.close)

    def render(
        self,
        template: str,
        conversations: Sequence[Turns],
        variables: Mapping[str, object],
        date: str,
        seconds: float = SECONDS,
    ) -> list[str | Refusal]:
        """Return each conversation's text, as transformers' `apply_chat_template` makes it.

        `variables` are what the template knows besides the turns. `date`, such as "26 Jul 2024", is
        its today. Raises RenderError for a template that is none, that fails otherwise than by
        refusing a conversation, or that takes more than `seconds` of the processor, 1 GiB of memory
        or 200,000 characters of its own.
        """
        asked = {"template": template, "conversations": conversations, "variables": variables}
        request = json.dumps(asked | {"date": date, "seconds": seconds}).encode() + b"\n"
        with self._lock:
            process = self._started()
            try:
                lines = _ask(process, request, len(conversations))
            except BaseException:  # it would go on to speak of what nobody waits for
                process.kill()
                self._end()
                raise
            if lines is None:
                raise RenderError(self._end() or f"it takes more than {seconds:g} seconds")
        answers = [json.loads(line) for line in lines]
        return [Refusal(text) if refused else text for text, refused in answers]

    def close(self) -> None:
        """End the process, if there is one."""
        if self._process is not None and self._parent == os.getpid():
            self._end()

    def _started(self) -> "subprocess.Popen[bytes]":
        if self._process is None or self._parent != os.getpid():  # a fork starts its own
            self._parent = os.getpid()
            pipe = subprocess.PIPE
            words = [sys.executable, "-P", __file__]  # -P: without the modules beside this one
            self._process = subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe)
        return self._process

    def _end(self) -> str:
        """Return what the process said at its end; nothing if its time was over."""
        process, self._process = self._process, None
        assert process is not None
        _, said = process.communicate()
        if process.returncode < 0 and process.returncode != -signal.SIGPROF:
            return f"its process was ended by {signal.Signals(-process.returncode).name}"
        return said.decode(errors="replace").strip()


def _ask(process: "subprocess.Popen[bytes]", request: bytes, count: int) -> list[bytes] | None:
    """Return the lines of the answer, None if the process ends instead."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(request)
        process.stdin.flush()
    except BrokenPipeError:
        return None
    lines = [process.stdout.readline() for _ in range(count)]
    return lines if all(line.endswith(b"\n") for line in lines) else None


def _serve() -> None:
    """Answer requests until there are no more; whatever a template raises ends the process."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    for name in (signal.SIGINT, signal.SIGTERM):  # the parent decides when it is over
        signal.signal(name, signal.SIG_IGN)
    sys.excepthook = _say
    from jinja2 import TemplateError

    for line in sys.stdin.buffer:
        request = json.loads(line)
        _limit(request["seconds"])
        template = _compiled(request["template"], request["date"])
        for turns in request["conversations"]:
            _limit(request["seconds"])
            try:
                text, refused = template.render(messages=turns, **request["variables"]), False
            except TemplateError as error:
                text, refused = str(error), True
            given = sum(len(turn["content"]) for turn in turns)
            if len(text) > _ADDED + 4 * given:
                raise OverflowError(f"it makes {len(text):,} characters of {given:,}")
            answer = json.dumps([text, refused], ensure_ascii=False).encode()
            sys.stdout.buffer.write(answer + b"\n")
        _limit(0)
        sys.stdout.flush()


def _limit(seconds: float) -> None:
    """End this process after so many seconds of the processor; 0 takes the limit away."""
    signal.setitimer(signal.ITIMER_PROF, seconds)


def _say(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    print(" ".join(f"{kind.__name__}: {error}".split())[:300], file=sys.stderr)


@lru_cache(maxsize=8)
def _compiled(source: str, date: str) -> Any:
    """Return the template in an environment like that of transformers, but for today's date."""
    from datetime import datetime

    from jinja2 import TemplateError, nodes
    from jinja2.exceptions import SecurityError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class Generation(Extension):
        """`{% generation %}`, which marks what the assistant says."""

        tags = {"generation"}  # noqa: RUF012  jinja2 reads it from the class

        def parse(self, parser: Any) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

        def _body(self, caller: Any) -> Any:
            return caller()

    class PlainDict:
        """`dict` without what Python's own has besides."""

        def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
            return dict(*args, **kwargs)

        def fromkeys(self, *args: Any) -> dict[Any, Any]:
            return dict.fromkeys(*args)

    class PlainNamespace(Namespace):
        """`namespace` without names that begin with an underscore."""

        def __init__(*args: Any, **kwargs: Any) -> None:
            own, *rest = args
            values = dict(*rest, **kwargs)
            for name in values:
                _check(name)
            Namespace.__init__(own, values)

        def __setitem__(self, name: str, value: Any) -> None:
            _check(name)
            super().__setitem__(name, value)

    def _check(name: object) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"a namespace has no {name}")

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: Any = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    del environment.filters["random"], environment.globals["lipsum"]  # a text is to be repeatable
    environment.filters["tojson"] = tojson
    environment.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": datetime.strptime(date, DATE).strftime,
        "dict": PlainDict(),
        "namespace": PlainNamespace,
    }
    return environment.from_string(source)


if __name__ == "__main__":
    _serve()
