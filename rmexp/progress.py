"""Progress of long work: a bar on a terminal, a plain line now and then elsewhere."""

import logging
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 30.0


class ScoringProgress:
    """Show how many responses are scored, how many tokens a second, and the time left.

    The time left follows from tokens, since responses are scored longest first. `unit` names what
    stands in for tokens where these are not known before. One of several that go on side by side is
    `shown`.
    """

    def __init__(
        self, label: str, responses: int, tokens: int, unit: str = "tokens", shown: bool = True
    ) -> None:
        self._unit, self._shown = unit, shown
        self._label, self._responses, self._tokens = label, responses, tokens
        self._done_responses = self._done_tokens = 0
        self._began = self._last_line = time.monotonic()
        console = Console(stderr=True)
        self._bar: Progress | None = None
        if shown and console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("{task.fields[responses]}/{task.fields[of]} responses"),
                TextColumn("{task.fields[rate]:,.1f} " + f"{unit}/s"),
                TimeRemainingColumn(),
                console=console,
            )
            self._task = self._bar.add_task(label, total=tokens, responses=0, of=responses, rate=0)

    def advance(self, responses: int, tokens: int) -> None:
        """Count responses and their tokens as scored."""
        self._done_responses += responses
        self._done_tokens += tokens
        now = time.monotonic()
        rate = self._done_tokens / max(now - self._began, 1e-9)
        if self._bar is not None:
            self._bar.update(self._task, advance=tokens, responses=self._done_responses, rate=rate)
        elif self._shown and now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = now
            log.info(
                "%s: %d/%d responses, %.1f %s/s, %.0f s left",
                self._label,
                self._done_responses,
                self._responses,
                rate,
                self._unit,
                (self._tokens - self._done_tokens) / rate,
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
