"""Checkpoints from which a training goes on to the same bits, wherever it was killed."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from rmexp.errors import ConfigError
from rmexp.outside import read_checkpoint

_ANEW = "delete it and train anew"

log = logging.getLogger(__name__)


class WholeCheckpoints(TorchCheckpointIO):
    """Write each checkpoint beside the one that it replaces, which a full disk or a kill leaves."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write to a draft, then put it in the checkpoint's place."""
        target = Path(path)
        draft = target.with_name(f".{target.name}.draft")
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with draft.open("wb") as file:
                torch.save(checkpoint, file)
            draft.replace(target)
        finally:
            draft.unlink(missing_ok=True)


class LastCheckpoint(Checkpoint):
    """Save `last.ckpt` every so many steps and at an epoch's end, where a run goes on exactly.

    Lightning takes the validation that follows a saved step for done, and an epoch whose last step
    was saved for begun anew: so a step that a validation follows is saved behind it, and an epoch's
    last step with the epoch. Between the steps of accumulation nothing is saved, for the gradient
    is no part of a checkpoint.
    """

    def __init__(self, path: Path, every: int) -> None:
        super().__init__()
        self._path, self._every, self._due = path, every, False

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        """Save a step that nothing follows but the next one."""
        loop = trainer.fit_loop.epoch_loop
        stepped = not loop._should_accumulate() and not loop._is_training_done
        self._due = stepped and trainer.global_step % self._every == 0
        fetcher = trainer.fit_loop._data_fetcher
        assert fetcher is not None
        if self._due and not loop._should_check_val_fx(fetcher):
            self._save(trainer)

    def on_validation_end(self, trainer: Trainer, *_: object) -> None:
        """Save the step that was validated, if it is due."""
        if self._due:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, *_: object) -> None:
        """Save the epoch."""
        self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        self._due = False
        trainer.save_checkpoint(self._path)


def resumed(last: Path, identity: Mapping[str, Any]) -> Path | None:
    """Return the checkpoint to go on from, None where there is none yet.

    Raises ConfigError for one that cannot be read, or that another run has written.
    """
    if not last.exists():
        log.info("%s has no checkpoint to go on from: training begins", last.parent)
        return None
    saved = read_checkpoint(last, _ANEW).get("rmexp")
    before = saved.get("identity") if isinstance(saved, dict) else None
    if not isinstance(before, dict):
        raise ConfigError(f"{last} is no checkpoint of a training: {_ANEW}")
    changed = [name for name, value in identity.items() if before.get(name) != value]
    if changed:
        raise ConfigError(
            f"{last} is of another run ({', '.join(changed)} differ): go on with the settings that "
            "it began with, or give another out_dir"
        )
    return last
