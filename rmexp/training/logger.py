"""Lightning's logger: what a training logs goes to its run in MLflow."""

import logging
import sys
import time
from collections.abc import Mapping
from typing import Any

from lightning.pytorch.loggers.logger import Logger

from rmexp.tracking.runs import Run

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 30.0


class RunLogger(Logger):
    """Send what Lightning logs to the run; off a terminal, print a line now and then."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self._run = run
        self._last_line = time.monotonic()

    @property
    def name(self) -> str:
        """Return the project's name, which Lightning asks for."""
        return "rmexp"

    @property
    def version(self) -> str:
        """Return the run's id."""
        return self._run.run_id

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the command logs its whole config."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics by how many steps are done; a step's own come while it is not counted yet."""
        kept = {name: value for name, value in metrics.items() if name != "epoch"}
        done = (step or 0) + ("train/loss" in kept)
        self._run.log_metrics(kept, done)
        now = time.monotonic()
        due = now - self._last_line >= _SECONDS_BETWEEN_LINES or "val/loss" in kept
        if due and not sys.stderr.isatty():
            self._last_line = now
            shown = ", ".join(f"{name} {value:.4g}" for name, value in list(kept.items())[:3])
            log.info("step %d: %s", done, shown)
