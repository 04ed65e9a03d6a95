"""Progress of long work: a bar on a terminal, a plain line now and then elsewhere."""

import logging
import time
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

log = logging.getLogger(__name__)

_SECONDS_TO_FIRST_LINE, _SECONDS_BETWEEN_LINES = 5.0, 30.0


class WorkProgress:
    """Show which share of the work is done, how much of it a second, and the time left.

    Work is counted in tokens, not in responses: the longest come first. `unit` names what stands in
    for tokens where these are not known before. One of several that go on side by side is `shown`.
    Where `told` hears of the work done, it is a part of other work, and nothing is shown of it.
    """

    def __init__(
        self,
        label: str,
        work: int,
        unit: str = "tokens",
        shown: bool = True,
        told: Callable[[int], None] | None = None,
    ) -> None:
        shown = shown and told is None
        self._label, self._work, self._unit, self._shown, self._told = (
            label,
            work,
            unit,
            shown,
            told,
        )
        self._done = 0
        self._first: tuple[float, int] | None = None  # when a first piece was done, and how much
        self._next_line = time.monotonic() + _SECONDS_TO_FIRST_LINE
        console = Console(stderr=True)
        self._bar: Progress | None = None
        if shown and console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TaskProgressColumn(),
                TextColumn(f"of {work:,} {unit},"),
                TextColumn("{task.fields[rate]:,.0f} a second,"),
                TimeRemainingColumn(),
                TextColumn("left"),
                console=console,
            )
            self._task = self._bar.add_task(label, total=work, rate=0)

    def advance(self, work: int, note: str = "") -> None:
        """Count work as done; a line of the log ends in the note, what the work gave so far."""
        self._done += work
        if self._told is not None:
            self._told(work)
        now = time.monotonic()
        if self._first is None:  # before it there was loading, which says nothing of the rest
            self._first = now, self._done
        began, before = self._first
        rate = (self._done - before) / (now - began) if now > began else 0.0
        if self._bar is not None:
            said = f"{self._label}, {note}" if note else self._label
            self._bar.update(self._task, advance=work, rate=rate, description=said)
        elif self._shown and now >= self._next_line:
            self._next_line = now + (_SECONDS_BETWEEN_LINES if rate else _SECONDS_TO_FIRST_LINE)
            log.info(
                "%s: %.0f %% of %s %s%s%s",
                self._label,
                100 * self._done / self._work,
                f"{self._work:,}",
                self._unit,
                self._speed(rate) if rate else "",
                f"; {note}" if note else "",
            )

    def _speed(self, rate: float) -> str:
        said = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
        left = timedelta(seconds=round((self._work - self._done) / rate))
        return f", {said} a second, {left} left"

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
