"""What is trained: the model to start from, and all that decides what becomes of it."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from lightning import Trainer

from rmexp.models.backbone import Model, enable_packing
from rmexp.models.fused import fuse
from rmexp.scoring.columns import Column
from rmexp.scoring.model_reward import ModelReward
from rmexp.scoring.rewards import open_reward
from rmexp.scoring.score import Settings
from rmexp.training.data import Source
from rmexp.training.lora import add_lora
from rmexp.training.objectives import Objective
from rmexp.training.recipe import Recipe

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Start:
    """The model to train, read as `reward` reads it, and what a DPO policy is compared with.

    `dtype` is that of the trained weights. `path` and `reference_path` are what loads the two again
    on any machine: a hub name, or a folder. `base` is what was given as the model below the one of
    them that is the reference, where that is an adapter.
    """

    reward: ModelReward
    path: str
    dtype: str
    reference_path: str | None = None
    base: str | None = None

    @property
    def column(self) -> Column:
        """Return the model's own column."""
        return self.reward.columns[0]

    @property
    def reference(self) -> Column:
        """Return the column of log pi_ref: the given reference's, else the start's own."""
        if self.reference_path is not None:
            return self.reward.columns[1]
        return replace(self.column, quantity="logps")

    def trained(self, folder: Path, name: str) -> ModelReward:
        """Open the model that training left in a folder, to be read as the start was."""
        column, chat = self.column, self.reward.chat
        return open_reward(
            path=str(folder),
            name=name,
            dtype=column.dtype,
            max_length=chat.max_length,
            date=chat.date,
            attention=column.attention,
            device=column.device,
            fused=column.fused,
            convert_bin=True,  # what there is of it was converted for the start
        )


@dataclass(frozen=True, slots=True)
class Training:
    """A model to start from, what to minimise on which pairs, and how.

    `make_trainer` takes further keyword arguments of Lightning's trainer. `settings` are those with
    which a reference is scored; their `on_overlength` holds for the pairs, too.
    """

    start: Start
    objective: Objective
    source: Source
    recipe: Recipe
    make_trainer: Callable[..., Trainer]
    settings: Settings


def build_model(start: Start, objective: Objective, recipe: Recipe, device: str = "cpu") -> Model:
    """Return the model as training changes it: all weights, or LoRA layers on them.

    Random numbers are those of the recipe's seed.
    """
    torch.manual_seed(recipe.seed)
    column = start.column
    given = column.checkpoint, start.reward.chat.tokenizer, start.dtype, column.attention
    model = objective.load(*given, recipe.seed, device)
    enable_packing(model)
    if column.fused:
        fuse(model)
    model.train()
    if recipe.lora_rank is not None:
        add_lora(model, recipe.lora_rank, recipe.lora_alpha, recipe.lora_dropout)
    if recipe.gradient_checkpointing:
        old = "gradient_checkpointing_enable"  # its name in earlier versions of the library
        enable = getattr(model, "activation_checkpointing_enable", None) or getattr(model, old)
        enable({"use_reentrant": False})
    return model


def build_where_it_fits(start: Start, objective: Objective, recipe: Recipe, device: str) -> Model:
    """Return the model on the device, or on the CPU where that has too little memory for it."""
    try:
        return build_model(start, objective, recipe, device)
    except torch.OutOfMemoryError:
        log.info("%s does not fit one GPU: it is loaded on the CPU", start.column.checkpoint.name)
    torch.cuda.empty_cache()  # outside the handler, whose error holds on to what did not fit
    return build_model(start, objective, recipe)
