"""SIGTERM and SIGINT as an exception, so that a run that is ended gets its status."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# `timeout`, a terminal with a wrapper and some schedulers send a signal twice: the second must not
# interrupt what the first has set off.
_REPEATED_WITHIN = 2.0
_deferred: list[int] | None = None
_last = float("-inf")


class Killed(SystemExit):
    """A signal ended the command; the exit code is 1."""

    def __init__(self, number: int) -> None:
        super().__init__(1)
        self.name = signal.Signals(number).name


@contextmanager
def killable() -> Iterator[None]:
    """Raise `Killed` in the main thread when SIGTERM or SIGINT arrives; once for one sent twice."""
    global _last
    _last = float("-inf")
    before = {number: signal.signal(number, _raise) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold signals back until the block ends, so that what begins together also ends together."""
    global _deferred
    _deferred = []
    try:
        yield
    finally:
        pending, _deferred = _deferred, None
    if pending:
        raise Killed(pending[0])


def _raise(number: int, frame: FrameType | None) -> None:
    global _last
    last, _last = _last, time.monotonic()
    if _last - last < _REPEATED_WITHIN:
        return
    if _deferred is not None:
        _deferred.append(number)
        return
    raise Killed(number)
