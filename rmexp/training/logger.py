"""What is seen of a training: its numbers in the run, its validations and its progress here."""

import logging
from collections.abc import Mapping
from typing import Any

from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers.logger import Logger

from rmexp.progress import WorkProgress
from rmexp.tracking.runs import Run

log = logging.getLogger(__name__)


class StepProgress(Callback):
    """Show which share of the steps is done, how many a second, the time left and the loss."""

    def __init__(self) -> None:
        self._done = 0
        self._progress: WorkProgress | None = None

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Begin to count; a run that goes on counts what is left of it."""
        self._done = trainer.global_step
        left = max(pl_module.steps - self._done, 1)
        self._progress = WorkProgress("training", left, "steps", shown=trainer.is_global_zero)
        self._progress.__enter__()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: object) -> None:
        """Count the step that a batch ended."""
        if self._progress is not None and trainer.global_step > self._done:
            made, self._done = trainer.global_step - self._done, trainer.global_step
            losses = [row["train/loss"] for row in pl_module.history[-1:] if "train/loss" in row]
            self._progress.advance(made, f"loss {losses[0]:.4g}" if losses else "")

    def teardown(self, *_: object, **__: object) -> None:
        """Leave the terminal as it was, however the training ended."""
        if self._progress is not None:
            self._progress.__exit__(None, None, None)
            self._progress = None


class RunLogger(Logger):
    """Send what Lightning logs to the run, and print a line for each validation."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self._run = run

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
        """Log metrics by how many steps are done; Lightning does not count a step's own yet."""
        kept = {name: value for name, value in metrics.items() if name != "epoch"}
        done = (step or 0) + ("train/loss" in kept)
        self._run.log_metrics(kept, done)
        if "val/loss" in kept:
            shown = ", ".join(f"{name} {value:.4g}" for name, value in list(kept.items())[:3])
            log.info("step %d: %s", done, shown)
