"""What a command asks of Lightning's Trainer, checked before a model or data are loaded."""

import logging
import math
import os
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from lightning import Trainer
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins import HalfPrecision, Precision
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from transformers.utils.logging import disable_progress_bar

from rmexp.errors import ConfigError
from rmexp.training.sharding import Sharded
from rmexp.training.world import slurm_tasks, together

_PRECISIONS = {
    "32-true": (None, 32, "32"),
    "bf16-mixed": ("bf16",),
    "bf16-true": (),
    "16-mixed": (16, "16"),
}
# What would change what is trained or kept behind the command's back, and what does the same here.
_REFUSED = {
    "fast_dev_run": "it keeps no checkpoint to save the model from; give trainer.max_steps=1",
    "barebones": "it keeps no checkpoint to save the model from",
    "overfit_batches": "each epoch has an order of its own; train on fewer pairs instead",
    "default_root_dir": "give out_dir",
    "plugins": "precision, checkpoints and processes are set here",
}
_WHOLE: dict[str, tuple[int, tuple[Any, ...]]] = {
    "max_epochs": (1, (None, -1)),
    "max_steps": (1, (-1,)),
    "min_epochs": (0, (None,)),
    "min_steps": (0, (None,)),
    "accumulate_grad_batches": (1, ()),
    "check_val_every_n_epoch": (1, (None,)),
    "num_sanity_val_steps": (0, (None, -1)),
    "log_every_n_steps": (1, (None,)),
    "num_nodes": (1, ()),
}
_SHARES = ("limit_train_batches", "limit_val_batches", "val_check_interval")


def check_options(options: Mapping[str, Any], sweep: bool = False) -> dict[str, Any]:
    """Return the trainer's options, with the precision by its full name.

    Raises ConfigError for what cannot be meant or would not train right here, among it several
    devices for a job of a `sweep`, unless Slurm started a task for each.
    """
    for name, reason in _REFUSED.items():
        if options.get(name) not in (None, False, 0):
            raise ConfigError(f"trainer.{name}={options[name]}: {reason}")
    if not options.get("enable_checkpointing", True):
        raise ConfigError(
            "trainer.enable_checkpointing=false: the model is saved from a checkpoint"
        )
    for name, (least, others) in _WHOLE.items():
        if name in options and options[name] not in others:
            _check(
                name,
                options[name],
                type(options[name]) is int and options[name] >= least,
                f"a whole number of {least} or more",
            )
    for name in _SHARES:
        value = options.get(name)
        if type(value) is float:
            _check(name, value, 0 < value <= 1, "a share above 0 and up to 1, or a whole number")
        elif type(value) is int:
            _check(name, value, value > 0, "a share above 0 and up to 1, or a whole number")
    exact = options.get("deterministic")
    _check("deterministic", exact, exact in (None, True, False, "warn"), "true, false or warn")
    time = options.get("max_time")
    _check("max_time", time, isinstance(time, str | Mapping | None), "it as 'DD:HH:MM:SS'")
    clip = options.get("gradient_clip_val")
    fits = type(clip) in (int, float) and 0 <= clip < math.inf if clip is not None else True
    _check("gradient_clip_val", clip, fits, "a number above 0, or 0 for no clipping")
    if options.get("gradient_clip_algorithm") not in (None, "norm", "value"):
        _check(
            "gradient_clip_algorithm", options["gradient_clip_algorithm"], False, "norm or value"
        )
    if sweep and together(options) != (slurm_tasks() > 1):
        raise ConfigError(
            "a sweep's jobs train on one device each, for every other process would start the sweep"
            " again: take trainer=cpu or gpu, or run the jobs one by one (those of Slurm may have"
            " a task for each device: hydra.launcher.tasks_per_node)"
        )
    return {**options, **_own_gpu(options, sweep), "precision": _precision(options)}


def _own_gpu(options: Mapping[str, Any], sweep: bool) -> dict[str, Any]:
    """Return the device of a sweep's job by its number: Lightning would take the first one."""
    several = options.get("accelerator") != "cpu" and torch.cuda.device_count() > 1
    if not (sweep and several and options.get("devices") in (1, "1")):
        return {}
    return {"devices": [torch.cuda.current_device()]}


def _check(name: str, value: Any, fits: bool, wanted: str) -> None:
    if not fits:
        raise ConfigError(f"trainer.{name}={value}: give {wanted}")


def _precision(options: Mapping[str, Any]) -> str:
    asked = options.get("precision")
    for name, others in _PRECISIONS.items():
        if asked == name or any(asked == other and type(asked) is type(other) for other in others):
            if name == "16-mixed" and options.get("accelerator") == "cpu":
                raise ConfigError(
                    "trainer.precision=16-mixed needs a GPU: take bf16-mixed or 32-true"
                )
            return name
    raise ConfigError(
        f"trainer.precision={asked}: choose from {', '.join(_PRECISIONS)}, of which training is "
        "known to be right"
    )


def make_trainer(make: Callable[..., Trainer], **ours: Any) -> Trainer:
    """Make a trainer, with the callbacks and loggers that are given added to ours.

    It finds its devices' processes, and takes bf16 weights as the model brings them: Lightning's
    own way would round the head and the references, too. Raises ConfigError where it cannot be.
    """
    _quieten()
    options = make.keywords if isinstance(make, partial) else {}
    callbacks = _all_of(Callback, "callbacks", options.get("callbacks"))
    loggers = _all_of(Logger, "logger", options.get("logger"))
    ours["callbacks"] = [*callbacks, *ours.get("callbacks", [])]
    ours["logger"] = [*ours.get("logger", []), *loggers] or False
    if environment := _environment():
        ours["plugins"] = [environment]
    try:
        trainer = make(**ours)
    except (MisconfigurationException, TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"the trainer cannot be made ({str(error).strip().splitlines()[0]}): choose another "
            "one with trainer=cpu, gpu, ddp or fsdp, or mend its settings"
        ) from error
    strategy = trainer.strategy
    spawning = isinstance(strategy, DDPStrategy) and strategy._start_method != "popen"
    if not isinstance(strategy, SingleDeviceStrategy | DDPStrategy | Sharded) or spawning:
        raise ConfigError(
            f"trainer.strategy of {type(strategy).__name__} is not known to train right here: take "
            "auto, ddp, or trainer=fsdp"
        )
    tasks, devices = slurm_tasks(), trainer.num_devices * trainer.num_nodes
    if isinstance(environment, SLURMEnvironment) and devices > 1 and devices != tasks:
        raise ConfigError(
            f"Slurm started {tasks} tasks for {devices} devices: give a task for each (srun "
            f"--ntasks-per-node=N with trainer.devices=N, and +trainer.num_nodes), or one for all"
        )
    if isinstance(strategy.precision_plugin, HalfPrecision):
        strategy.precision_plugin = OwnPrecision()
    return trainer


def _quieten() -> None:
    """Keep the terminal for what is about the run."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in ("callbacks.model_summary", "profilers"):  # which speak where they are asked to
        logging.getLogger(f"lightning.pytorch.{name}").setLevel(logging.INFO)
    disable_progress_bar()  # type: ignore[no-untyped-call]
    for message in (
        ".isinstance.treespec, LeafSpec.. is deprecated",  # lightning's own call
        "Checkpoint directory .* exists and is not empty",  # a run that goes on
        "GPU available but not used",  # which is said by `fit`, in this project's words
        "You defined a `validation_step` but have no `val_dataloader`",  # recipe.val_share=0
        "Detected call of `lr_scheduler.step\\(\\)` before",  # a first step that overflows fp16
        # Training ends between two validations; another one follows.
        ".*could not find the monitored key in the returned metrics",
        "The number of training batches .* is smaller than the logging interval",
    ):
        warnings.filterwarnings("ignore", message)


class OwnPrecision(Precision):
    """Leave everything in the dtype that it has: weights in bf16, heads and losses in fp32."""

    precision = "bf16-true"


class SlurmTasks(SLURMEnvironment):
    """The tasks of a Slurm step, with whatever option their number was given."""

    def __init__(self) -> None:
        super().__init__(auto_requeue=False)

    def world_size(self) -> int:
        """Return the number of tasks."""
        return slurm_tasks()

    @staticmethod
    def _validate_srun_variables() -> None:
        """Take `--ntasks` for as good as `--ntasks-per-node`; the devices are counted later."""


def _environment() -> ClusterEnvironment | None:
    """Return what says who the processes are where Lightning would take Slurm's job for a step."""
    if "SLURM_NTASKS" not in os.environ or torch.distributed.is_torchelastic_launched():
        return None
    external = "LOCAL_RANK" in os.environ  # Lightning, or the user, has started this process
    return SlurmTasks() if slurm_tasks() > 1 and not external else LightningEnvironment()


def _all_of(kind: type[Any], name: str, option: Any) -> list[Any]:
    """Return what the option holds, one or a list, each of the kind."""
    parts = [] if option is None else option if isinstance(option, list) else [option]
    for one in parts:
        if not isinstance(one, kind):
            raise ConfigError(
                f"trainer.{name}: {one} is no {kind.__name__} of Lightning: give a list such as "
                f"[{{_target_: its class}}], which is added to rmexp's own"
            )
    return parts
