"""Lightning's part of training: the trainer, its checkpoints, and going on from one."""

import logging
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from lightning import Trainer
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from transformers.utils.logging import disable_progress_bar

from rmexp.errors import ConfigError
from rmexp.tracking import Run
from rmexp.training.batches import Batches
from rmexp.training.curves import RunLogger
from rmexp.training.module import PreferenceModule
from rmexp.training.options import make_trainer
from rmexp.training.recipe import Recipe

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


def open_trainer(
    make: Callable[..., Trainer], recipe: Recipe, folder: Path, run: Run | None
) -> Trainer:
    """Make the trainer with its checkpoints: the best one, and the last of steps and epochs."""
    _quieten()
    kept: dict[str, Any] = {"dirpath": folder, "enable_version_counter": False}
    callbacks: list[Callback] = []
    if recipe.val_share:
        callbacks.append(
            ModelCheckpoint(
                filename="best", monitor="val/loss", mode="min", save_weights_only=True, **kept
            )
        )
    if recipe.patience is not None:
        callbacks.append(EarlyStopping("val/loss", patience=recipe.patience))
    callbacks += [
        ModelCheckpoint(filename="last", every_n_train_steps=recipe.checkpoint_every, **kept),
        ModelCheckpoint(filename="last", save_on_train_epoch_end=True, **kept),
    ]
    trainer = make_trainer(
        make,
        callbacks=callbacks,
        logger=[RunLogger(run)] if run is not None else [],
        default_root_dir=folder.parent,
    )
    trainer.strategy.checkpoint_io = WholeCheckpoints()
    return trainer


def _quieten() -> None:
    """Keep the terminal for what is about the run."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if not sys.stderr.isatty():
        disable_progress_bar()  # type: ignore[no-untyped-call]
    for message in (
        ".isinstance.treespec, LeafSpec.. is deprecated",  # lightning's own call
        "Checkpoint directory .* exists and is not empty",  # a run that goes on
        "You defined a `validation_step` but have no `val_dataloader`",  # recipe.val_share=0
        "Detected call of `lr_scheduler.step\\(\\)` before",  # a first step that overflows fp16
        # Training ends between two validations; another one follows.
        ".*could not find the monitored key in the returned metrics",
        "The number of training batches .* is smaller than the logging interval",
    ):
        warnings.filterwarnings("ignore", message)


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
        best = trainer.checkpoint_callback.best_model_path  # type: ignore[union-attr]
        if val is not None and not best:  # training ended before its first validation
            trainer.validate(module, val, verbose=False)
    except MisconfigurationException as error:
        raise ConfigError(
            f"training cannot begin ({str(error).strip().splitlines()[0]}): mend the trainer's "
            "settings"
        ) from error
    except OSError as error:
        raise ConfigError(
            f"cannot write to {folder} ({error.strerror or error}): make room, and go on with "
            f"resume=true out_dir={folder.parent}"
        ) from error
    return Path(best) if val is not None and best else folder / "last.ckpt"


def resumed(last: Path, identity: Mapping[str, Any]) -> Path | None:
    """Return the checkpoint to go on from, None where the run ended before its first.

    Raises ConfigError for one that cannot be read, or that another run has written.
    """
    if not last.exists():
        log.warning("%s has no checkpoint yet: training begins at its start", last.parent)
        return None
    try:
        saved = torch.load(last, map_location="cpu", weights_only=True, mmap=True)["rmexp"]
        before = saved["identity"]
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, UnpicklingError) as error:
        raise ConfigError(
            f"{last} cannot be read ({str(error).splitlines()[0]}): delete it and train anew"
        ) from error
    changed = [name for name, value in identity.items() if before.get(name) != value]
    if changed:
        raise ConfigError(
            f"{last} is of another run ({', '.join(changed)} differ): go on with the settings that "
            "it began with, or give another out_dir"
        )
    return last
