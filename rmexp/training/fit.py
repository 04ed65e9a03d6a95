"""Lightning's part of training: the trainer, how long it trains, and the fit."""

import logging
from collections.abc import Callable
from pathlib import Path

import torch
from lightning import Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint

from rmexp.errors import ConfigError, no_room
from rmexp.models.memory import enough_memory
from rmexp.tracking.runs import Run
from rmexp.training.batches import Batches
from rmexp.training.logger import RunLogger, StepProgress
from rmexp.training.module import PreferenceModule
from rmexp.training.options import make_trainer
from rmexp.training.processes import watch_processes
from rmexp.training.recipe import Recipe
from rmexp.training.resuming import LastCheckpoint, WholeCheckpoints

log = logging.getLogger(__name__)

LESS_MEMORY = (
    "train anew with a recipe.batch_tokens (trainer.accumulate_grad_batches makes up for it), with "
    "recipe.gradient_checkpointing=true, with recipe.lora_rank=16 and trainer.precision=bf16-true, "
    "or on several GPUs with trainer=fsdp"
)


class Patience(EarlyStopping):
    """Stop when the validation loss no longer falls; a run that goes on has stopped as well."""

    def on_fit_start(self, trainer: Trainer, *_: object) -> None:
        """Stop a run at once that was stopped before."""
        trainer.should_stop = self.wait_count >= self.patience


def open_trainer(
    make: Callable[..., Trainer], recipe: Recipe, folder: Path, run: Run | None
) -> Trainer:
    """Make the trainer with its checkpoints: the best one, and the last of steps and epochs."""
    callbacks: list[Callback] = [StepProgress()]
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
    watch_processes(trainer)
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
        if trainer.strategy.root_device.type == "cpu" and torch.cuda.is_available():
            log.warning("training on the CPU: trainer=gpu trains on this machine's GPU")
    try:
        with enough_memory("training", LESS_MEMORY):
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
        if no_room(error):
            raise
        raise ConfigError(
            f"training stopped ({str(error).strip() or type(error).__name__}): mend that, and go "
            f"on with resume=true out_dir={folder.parent}"
        ) from error
    return Path(best) if val is not None and best else folder / "last.ckpt"
