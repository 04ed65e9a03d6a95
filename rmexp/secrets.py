"""Secrets: kept out of whatever is written or shown.

Addresses lose their passwords and tokens, and settings whose names speak of a secret their values.
What was found to be a secret is then taken out of any text, another library's error among it.
"""

import copy
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO, cast
from urllib.parse import quote, quote_plus, unquote

from rmexp.tables import printable

MASK = "***"

# An address in a text, up to the next one.
_ADDRESS = re.compile(r"[A-Za-z][\w+.-]{0,30}://(?:(?![A-Za-z][\w+.-]{0,30}://)[^\s\"'<>])*")
_PARAMETER = re.compile(r"(?<=[?&;#])([^=?&;#\s]+)=([^&;#\s\"'<>]*)")
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")
_SECRET_WORDS = frozenset(
    "key apikey password passwd pwd passphrase secret token credential credentials sig signature "
    "authorization".split()
)
_OPEN = "viewStateShareKey"  # which view MLflow's page shows
_SETTING = re.compile(r"[\w.+~@/-]+")
_VARIABLE = re.compile(r"[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+")
_WEB = ("http", "https")  # their user may be a token, without a password
# Shorter ones are masked where they stand, but not looked for: they may be words like any other.
_LEAST_LENGTH = 6
_WORD_LENGTH = 12  # shorter ones are looked for as whole words

_known: set[str] = set()  # the secrets of this process, in the forms in which they are written


def is_secret(name: str) -> bool:
    """Say whether a setting or a parameter of this name holds a secret.

    >>> [is_secret(name) for name in ("api-key", "accessToken", "max_tokens")]
    [True, True, False]
    """
    words = _WORD.findall(name)
    return name != _OPEN and any(word.lower() in _SECRET_WORDS for word in words)


def is_variable(value: str) -> bool:
    """Say whether a text is the name of an environment variable, as `OPENAI_API_KEY` is."""
    return value in os.environ or _VARIABLE.fullmatch(value) is not None


def redact(text: str) -> str:
    """Take users, passwords and tokens out of a text's addresses, and every known secret.

    >>> redact("https://me:secret@host/x?token=abc")
    'https://host/x?token=***'
    """
    for secret in sorted(_known, key=len, reverse=True):
        if secret in text:
            ends = (r"(?<!\w)", r"(?!\w)") if len(secret) < _WORD_LENGTH else ("", "")
            text = re.sub(re.escape(secret).join(ends), MASK, text)
    text = _ADDRESS.sub(lambda found: _without_user(found[0]), text)
    return _PARAMETER.sub(lambda found: f"{found[1]}={_masked(found[1], found[2])}", text)


def redact_word(word: str) -> str:
    """Redact an override as it was typed, `model.endpoint.key=VALUE`."""
    name, equals, value = word.partition("=")
    if equals and _SETTING.fullmatch(name) and _holds(name.rpartition(".")[2], value):
        return f"{name}={MASK}"
    return redact(word)


def mask(values: Any, name: str = "") -> Any:
    """Return a copy of a config in which nothing secret is left; `name` is that of the setting."""
    if isinstance(values, Mapping):
        return {key: mask(value, f"{name}.{key}") for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [mask(value, name) for value in values]
    if not isinstance(values, str):
        return values
    return MASK if _holds(name.rpartition(".")[2], values) else redact_word(values)


def learn(values: Any, name: str = "") -> None:
    """Note the secrets in a config, so that `redact` finds them wherever they turn up."""
    if isinstance(values, Mapping):
        for key, value in values.items():
            learn(value, str(key))
    elif isinstance(values, list | tuple):
        for value in values:
            learn(value, name)
    elif isinstance(values, str):
        for found in (values if _holds(name, values) else "", *_in_addresses(values)):
            for secret in (found, unquote(found)):
                if len(secret) >= _LEAST_LENGTH:
                    forms = (quote(secret, safe=""), quote_plus(secret), json.dumps(secret)[1:-1])
                    _known.update({secret, secret.replace("'", "''"), repr(secret)[1:-1], *forms})


def _holds(name: str, value: str) -> bool:
    """Say whether the setting's value is a secret itself."""
    return is_secret(name) and value not in ("", "null") and not is_variable(value)


def _masked(name: str, value: str) -> str:
    return MASK if value and is_secret(unquote(name)) else value


def _split(address: str) -> tuple[str, str, str]:
    """Return an address's scheme, its user with the password, and the rest.

    A password may hold signs that end the host by the standard: a database's driver takes all up to
    the last @, and a port that is no number is a password's beginning.
    """
    scheme, _, rest = address.partition("://")
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    _, colon, port = authority.rpartition(":")
    end = len(authority)
    if colon and port and not port.isdigit() and "@" not in authority and "]" not in port:
        end = len(rest)
    elif colon and scheme.lower() not in _WEB:
        head = rest.partition("?")[0]
        end = len(head if "/" in head else rest)
    user = rest[:end].rpartition("@")[0]
    return scheme, user, rest[len(user) + 1 :] if user else rest


def _without_user(address: str) -> str:
    scheme, _, rest = _split(address)
    return f"{scheme}://{rest}"


def _in_addresses(text: str) -> Iterator[str]:
    """Yield the secrets in the addresses of a setting, which may be all of it."""
    addresses = [text] if "://" in text and " " in text else []
    for address in [*addresses, *_ADDRESS.findall(text)]:
        scheme, user, _ = _split(address)
        yield user.partition(":")[2] or (user if scheme.lower() in _WEB else "")
        yield from (value for name, value in _PARAMETER.findall(address) if is_secret(name))


class RedactingFormatter(logging.Formatter):
    """A log formatter that leaves secrets out; `conf/base.yaml` gives it to every handler."""

    def format(self, record: logging.LogRecord) -> str:
        """Format the record without its secrets."""
        return redact(super().format(record))


class TerminalFormatter(RedactingFormatter):
    """Leave tracebacks out, too: they are in the log file."""

    def format(self, record: logging.LogRecord) -> str:
        """Format the record's message alone, in which no name moves the cursor."""
        short = copy.copy(record)
        short.exc_info = short.exc_text = short.stack_info = None
        return "\n".join(map(printable, super().format(short).split("\n")))


class _Redacted:
    """A text stream that leaves secrets out of what is written to it.

    Where the reader goes, as `head` does, the rest is dropped, and the work goes on.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with self._read_or_dropped():
            self._stream.write(redact(text))
        return len(text)

    def flush(self) -> None:
        with self._read_or_dropped():
            self._stream.flush()

    @contextmanager
    def _read_or_dropped(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def redacted_output(stdout: TextIO, stderr: TextIO) -> Iterator[None]:
    """Leave secrets out of what anything prints, Hydra's messages about an override among it."""
    out, err = _Redacted(stdout), _Redacted(stderr)
    with redirect_stdout(cast("TextIO", out)), redirect_stderr(cast("TextIO", err)):
        try:
            yield
        finally:
            out.flush()
            err.flush()
