"""Lightning's part of training: the trainer, its checkpoints, and going on from one."""

import logging
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, Checkpoint, EarlyStopping, ModelCheckpoint

from rmexp.errors import ConfigError, is_full_disk
from rmexp.outside import read_checkpoint
from rmexp.signals import Killed
from rmexp.tracking.runs import Run
from rmexp.training.batches import Batches
from rmexp.training.logger import RunLogger
from rmexp.training.module import PreferenceModule
from rmexp.training.options import make_trainer
from rmexp.training.recipe import Recipe

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


class Patience(EarlyStopping):
    """Stop when the validation loss no longer falls; a run that goes on has stopped as well."""

    def on_fit_start(self, trainer: Trainer, *_: object) -> None:
        """Stop a run at once that was stopped before."""
        trainer.should_stop = self.wait_count >= self.patience


def open_trainer(
    make: Callable[..., Trainer], recipe: Recipe, folder: Path, run: Run | None
) -> Trainer:
    """Make the trainer with its checkpoints: the best one, and the last of steps and epochs."""
    callbacks: list[Callback] = []
    if recipe.val_share:
        callbacks.append(
            ModelCheckpoint(
                folder,
                "best",
                monitor="val/loss",
                mode="min",
                save_weights_only=True,
                enable_version_counter=False,
            )
        )
    if recipe.patience is not None:
        callbacks.append(Patience("val/loss", patience=recipe.patience))
    callbacks.append(LastCheckpoint(folder / "last.ckpt", recipe.checkpoint_every))
    trainer = make_trainer(
        make,
        callbacks=callbacks,
        logger=[RunLogger(run)] if run is not None else [],
        default_root_dir=folder.parent,
    )
    trainer.strategy.checkpoint_io = WholeCheckpoints()
    # Its own talk to the other processes within the handler, which may wait for ever, and requeue.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    return trainer


def steps(trainer: Trainer, batches: int) -> int:
    """Return how many steps the optimiser will make in epochs of so many batches.

    Lightning's own estimate sets up the loaders too early for a run that goes on in an epoch.
    Raises ConfigError where there is no end or no step, and where an epoch is too short for what is
    to happen in it.
    """
    batches = limited(trainer, batches)
    interval = trainer.val_check_interval
    too_long = isinstance(interval, int) and interval > batches
    if too_long and trainer.check_val_every_n_epoch is not None:
        raise ConfigError(
            f"trainer.val_check_interval={interval}: an epoch has {batches} batches: give fewer, "
            "or a share of the epoch, or trainer.check_val_every_n_epoch=null to count over epochs"
        )
    an_epoch = -(-batches // trainer.accumulate_grad_batches)
    ends = [] if trainer.max_epochs in (None, -1) else [int(trainer.max_epochs or 0) * an_epoch]
    ends += [] if trainer.max_steps == -1 else [trainer.max_steps]
    if not ends:
        raise ConfigError("training has no end: give trainer.max_epochs or trainer.max_steps")
    if not min(ends):
        raise ConfigError("there is no batch to train on: give more pairs, or raise the limits")
    return min(ends)


def limited(trainer: Trainer, batches: int) -> int:
    """Return how many of an epoch's batches are trained on."""
    limit = trainer.limit_train_batches
    if limit is None:
        return batches
    return min(batches, limit if isinstance(limit, int) else int(batches * limit))


def fit(
    trainer: Trainer,
    module: PreferenceModule,
    batches: Batches,
    val: Batches | None,
    folder: Path,
    ckpt_path: Path | None,
) -> Path:
    """Fit, and return the checkpoint to keep: the best validated, else the last."""
    parameters = list(module.parameters())
    if trainer.is_global_zero:
        log.info(
            "training %s of %s parameters in %d steps, %d batches an epoch",
            f"{sum(p.numel() for p in parameters if p.requires_grad):,}",
            f"{sum(p.numel() for p in parameters):,}",
            module.steps,
            len(batches),
        )
    try:
        trainer.fit(module, batches, val, ckpt_path=ckpt_path, weights_only=True)
        if not trainer.global_step:
            raise ConfigError("training ended before its first step: raise trainer.max_time")
        callback = trainer.checkpoint_callback  # the first one
        best = callback.best_model_path if isinstance(callback, ModelCheckpoint) else ""
        if val is not None and not best:  # training ended before its first validation
            trainer.validate(module, val, verbose=False)
    except MisconfigurationException as error:
        raise ConfigError(
            f"training cannot begin ({str(error).strip().splitlines()[0]}): mend the trainer's "
            "settings"
        ) from error
    except OSError as error:
        if is_full_disk(error):
            raise
        raise ConfigError(
            f"training stopped ({str(error).strip() or type(error).__name__}): mend that, and go "
            f"on with resume=true out_dir={folder.parent}"
        ) from error
    except Killed:
        if trainer.strategy.launcher is not None:
            trainer.strategy.launcher.kill(signal.SIGTERM)
        raise
    return Path(best) if val is not None and best else folder / "last.ckpt"


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
