"""SIGTERM and SIGINT as an exception, so that a run that is ended gets its status.

The handler raises in whatever the main thread does, so that a signal ends waiting of every kind.
Not everything lets an exception through: Python ignores those of finalisers, and a library may
catch what it does not know. So a signal stays pending until its exception has left `killable`, and
is raised again, a moment later, where it has got lost.

A launcher may have a signal of its own, as submitit has for Slurm's preemption: at that one the run
is ended as well, and the launcher gets its signal when that is done, to have the job begin again.
"""

import _thread
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_OF_LAUNCHERS = (signal.SIGUSR1, signal.SIGUSR2)
# `timeout`, a terminal with a wrapper and some schedulers send a signal twice: the second must not
# interrupt what the first has set off. One that comes later is meant.
_REPEATED_WITHIN = 2.0
_FIRST_WAIT, _LONGEST_WAIT = 0.1, 1.0  # seconds until a signal is raised again

_pending: int | None = None
_last = float("-inf")  # when a signal came
_held = 0  # how many blocks hold signals back
_blocks = 0  # of `killable`, one in another
_again = False  # the signal that comes next is no new one
_lock = threading.Lock()  # no old signal is sent once its handler is gone


class Killed(SystemExit):
    """A signal ended the command; the exit code is 1."""

    def __init__(self, number: int) -> None:
        super().__init__(1)
        self._number = number
        self.name = signal.Signals(number).name

    def hand_on(self) -> None:
        """Give the signal to the launcher whose own one it is; it may end the process."""
        handler = signal.getsignal(self._number)
        if self._number in _OF_LAUNCHERS and callable(handler):
            handler(self._number, None)


@contextmanager
def killable() -> Iterator[None]:
    """Raise `Killed` in the main thread when SIGTERM or SIGINT arrives; once for one sent twice.

    So it is at a signal that a launcher handles when the block begins.

    One that comes at any time within the block is raised before the block is left.
    """
    global _blocks, _held
    before = {number: signal.getsignal(number) for number in (*_SIGNALS, *_OF_LAUNCHERS)}
    for number in _OF_LAUNCHERS:
        if not callable(before[number]):
            del before[number]
    _blocks += 1
    try:
        for number in before:
            signal.signal(number, _handle)
        yield
    finally:
        _held += 1
        _blocks -= 1
        for number, handler in before.items():
            signal.signal(number, handler)
        left = _pending if _blocks else _take()
        _held -= 1
        if left is not None and not _is_killed():
            raise Killed(left)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold signals back until the block ends, so that what begins together also ends together."""
    global _held
    _held += 1
    try:
        yield
    finally:
        _held -= 1
    if _pending is not None and not _held and not _is_killed():
        raise Killed(_pending)


def _handle(number: int, frame: FrameType | None) -> None:
    global _pending, _last, _again
    again, _again = _again, False
    if again and (_pending is None or _is_killed()):
        return
    if not again:
        last, _last = _last, time.monotonic()
        if _is_killed() and (_held or _last - last < _REPEATED_WITHIN):
            return
        first, _pending = _pending is None, number
        if first:
            _thread.start_new_thread(_send_again, ())  # takes no lock that may be held here
    assert _pending is not None
    if not _held and not _in_finaliser(frame):
        raise Killed(_pending)


def _send_again() -> None:
    """Send the main thread the signal until it is no longer pending."""
    global _again
    wait = _FIRST_WAIT
    while True:
        time.sleep(wait)
        wait = min(2 * wait, _LONGEST_WAIT)
        with _lock:
            if _pending is None:
                return
            _again = True
            signal.pthread_kill(threading.main_thread().ident or 0, _pending)


def _take() -> int | None:
    global _pending
    with _lock:
        number, _pending = _pending, None
    return number


def _is_killed() -> bool:
    """Say whether `Killed` is on its way: an exception that is handled now is it or came of it."""
    error, seen = sys.exc_info()[1], set[int]()
    while error is not None and id(error) not in seen:
        if isinstance(error, Killed):
            return True
        seen.add(id(error))
        error = error.__context__
    return False


def _in_finaliser(frame: FrameType | None) -> bool:
    """Say whether the frame runs within `__del__`, which has to end what it began."""
    while frame is not None:
        if frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False
