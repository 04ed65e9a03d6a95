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
        self._began = time.monotonic()
        self._next_line = self._began + _SECONDS_TO_FIRST_LINE
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
        rate = self._done / max(now - self._began, 1e-9)
        if self._bar is not None:
            said = f"{self._label}, {note}" if note else self._label
            self._bar.update(self._task, advance=work, rate=rate, description=said)
        elif self._shown and now >= self._next_line:
            self._next_line = now + _SECONDS_BETWEEN_LINES
            log.info(
                "%s: %.0f %% of %s %s, %s a second, %s left%s",
                self._label,
                100 * self._done / self._work,
                f"{self._work:,}",
                self._unit,
                f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}",
                timedelta(seconds=round((self._work - self._done) / rate)) if rate else "much",
                f"; {note}" if note else "",
            )

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
