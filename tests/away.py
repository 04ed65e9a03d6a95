"""A tracking server that may be away."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from rmexp.tracking import entries


class Server:
    """What a run talks to: it may be away, or do each thing once without saying so.

    With `until` it goes away when the first entry of that kind is told.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.away = self.silent = False
        self.until = ""
        self.tries: list[str] = []
        self._said: set[str] = set()
        for kind, (function, slow) in list(entries.ENTRIES.items()):
            monkeypatch.setitem(entries.ENTRIES, kind, (self._between(kind, function), slow))

    def _between(self, kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def told(to: Any, **values: Any) -> Any:
            self.tries.append(kind)
            self.away = self.away or kind == self.until
            if self.away:
                raise OSError("nobody is at http://me:secret@host")
            found = function(to, **values)
            if self.silent and (text := repr(values)) not in self._said:
                self._said.add(text)
                raise OSError("it was done, and nobody said so")
            return found

        told.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
        return told

    def back(self) -> None:
        """Let it answer from here on."""
        self.away, self.until = False, ""
