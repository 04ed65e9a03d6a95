"""The course of a training run: sent to MLflow as it goes, and drawn at the end."""

import logging
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from matplotlib.figure import Figure

from rmexp.tracking.runs import Run

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 30.0
_BLUE, _ORANGE = "#0072B2", "#D55E00"  # of Okabe and Ito's colours


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
        """Log the metrics of a step."""
        kept = {name: value for name, value in metrics.items() if name != "epoch"}
        self._run.log_metrics(kept, step or 0)
        now = time.monotonic()
        due = now - self._last_line >= _SECONDS_BETWEEN_LINES or "val/loss" in kept
        if due and not sys.stderr.isatty():
            self._last_line = now
            shown = ", ".join(f"{name} {value:.4g}" for name, value in list(kept.items())[:3])
            log.info("step %d: %s", step or 0, shown)


def training_curve(history: Sequence[Mapping[str, float]]) -> Figure:
    """Draw loss, accuracy and margin by step; `history` has a row with `step` for each log."""
    figure = Figure(figsize=(10, 3), dpi=150, layout="constrained")
    for axis, name in zip(figure.subplots(1, 3), ("loss", "accuracy", "margin"), strict=True):
        for stage, colour, style in (("train", _BLUE, "-"), ("val", _ORANGE, "o-")):
            key = f"{stage}/{name}"
            rows = [(row["step"], row[key]) for row in history if key in row]
            if rows:
                steps, values = zip(*rows, strict=True)
                axis.plot(steps, values, style, color=colour, label=stage, lw=1.2, ms=3)
        if name == "accuracy":
            axis.set_ylim(0, 1.02)
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("step", fontsize=9)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    figure.axes[0].legend(frameon=False, fontsize=8)
    return figure
