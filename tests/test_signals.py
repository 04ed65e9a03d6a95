"""Signals wherever they may arrive: none is lost, none comes twice. Waits are without an end."""

import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable

import pytest

from rmexp.signals import Killed, killable, uninterrupted

TERM, INT = signal.SIGTERM, signal.SIGINT


def send(number: int = TERM) -> None:
    os.kill(os.getpid(), number)


def wait_for_ever() -> None:
    while True:
        time.sleep(0.001)


def killed(work: Callable[[], object]) -> str:
    """Return the name of the signal that ends this work."""
    with pytest.raises(Killed) as caught, killable():
        work()
    assert caught.value.code == 1
    return caught.value.name


class Finalised:
    """Sends a signal while it is finalised, as part of a cycle."""

    def __init__(self, ended: list[str]) -> None:
        self.itself, self.ended = self, ended

    def __del__(self) -> None:
        send()
        self.ended.append("the finaliser")


def test_a_signal_in_a_finaliser_is_raised_behind_it() -> None:
    ended: list[str] = []

    def work() -> None:
        Finalised(ended)
        gc.collect()
        assert ended == ["the finaliser"]
        wait_for_ever()

    assert killed(work) == "SIGTERM"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_in_a_callback_of_the_collector_is_raised_behind_it() -> None:
    """Python prints what such a callback raises, and goes on."""

    class Thing:
        pass

    def work() -> None:
        thing = Thing()
        reference = weakref.ref(thing, lambda _: send())
        del thing
        assert reference() is None
        wait_for_ever()

    assert killed(work) == "SIGTERM"


def swallow(function: Callable[[], None] = send) -> None:
    """Do what a library may do that lets no exception through."""
    with contextlib.suppress(BaseException):
        function()


ENDLESS = "import time; time.sleep(1e6)"
WAITS: dict[str, Callable[[], object]] = {
    "sleep": lambda: time.sleep(1e6),
    "lock": lambda: [lock.acquire() for lock in [threading.Lock()] for _ in range(2)],
    "event": lambda: threading.Event().wait(),
    "process": lambda: subprocess.run([sys.executable, "-c", ENDLESS]),
    "loop": wait_for_ever,
}


@pytest.mark.parametrize("name", [*WAITS])
def test_a_signal_that_was_caught_ends_whatever_waits_afterwards(name: str) -> None:
    def work() -> None:
        swallow()
        WAITS[name]()

    assert killed(work) == "SIGTERM"


def test_a_signal_that_was_caught_is_raised_at_the_end_of_the_block() -> None:
    assert killed(swallow) == "SIGTERM"
    assert killed(lambda: swallow(lambda: swallow(lambda: send(INT)))) == "SIGINT"


def test_a_signal_is_held_back_to_the_end_of_the_outer_block() -> None:
    done: list[str] = []

    def work() -> None:
        with uninterrupted():
            with uninterrupted():
                send()
                done.append("inner")
            done.append("outer")
        done.append("behind it")

    assert killed(work) == "SIGTERM"
    assert done == ["inner", "outer"]


def test_an_error_in_an_uninterrupted_block_does_not_lose_the_signal() -> None:
    def work() -> None:
        with uninterrupted():
            send()
            raise ValueError

    assert killed(work) == "SIGTERM"


@pytest.mark.parametrize("second", [TERM, INT])
def test_a_second_signal_does_not_interrupt_what_the_first_has_set_off(second: int) -> None:
    done: list[str] = []

    def work() -> None:
        try:
            send()
        finally:
            for _ in range(300):  # longer than it takes until a lost signal is raised again
                time.sleep(0.001)
            send(second)
            done.append("tidied up")

    assert killed(work) == "SIGTERM"
    assert done == ["tidied up"]


def test_a_signal_behind_another_ones_end_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who sends it again after a while does not want to wait for the tidying up."""
    monkeypatch.setattr("rmexp.signals._REPEATED_WITHIN", 0.0)

    def work() -> None:
        try:
            send()
        finally:
            send(INT)

    assert killed(work) == "SIGINT"


def test_a_block_in_another_leaves_the_signal_to_it() -> None:
    done: list[str] = []

    def work() -> None:
        with killable():
            send()
        done.append("behind it")

    assert killed(work) == "SIGTERM"
    assert not done


def test_signals_are_as_before_afterwards_and_none_is_left() -> None:
    before = [signal.getsignal(number) for number in (TERM, INT)]
    for work in (swallow, send):
        assert killed(work) == "SIGTERM"
        assert [signal.getsignal(number) for number in (TERM, INT)] == before
    with killable():
        assert signal.getsignal(TERM) is not before[0]
        time.sleep(0.3)


def test_a_launchers_own_signal_ends_the_run_and_is_handed_on() -> None:
    """As submitit's for preemption, which ends the process and has the job begin again."""
    requeued: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: requeued.append(number))
    try:
        with pytest.raises(Killed) as caught, killable():
            send(signal.SIGUSR2)
        assert (caught.value.name, requeued) == ("SIGUSR2", [])
        caught.value.hand_on()
        assert requeued == [signal.SIGUSR2]
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_a_signal_that_no_launcher_handles_is_left_to_the_system() -> None:
    with killable():
        assert signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL
    with pytest.raises(Killed) as caught, killable():
        send()
    caught.value.hand_on()  # nobody else's
