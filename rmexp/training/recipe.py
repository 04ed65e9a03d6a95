"""How to train and what to start from, checked as values before anything is loaded."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from rmexp.errors import ConfigError
from rmexp.models.backbone import Model, enable_packing
from rmexp.scoring.columns import Column
from rmexp.scoring.model_reward import ModelReward
from rmexp.scoring.rewards import open_reward
from rmexp.training.objectives import Objective
from rmexp.training.starts import add_lora


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to train, whatever the model, the data and the objective.

    A batch has up to `batch_size` pairs, and up to `batch_tokens` tokens if these are given, over
    all devices together; `warmup` is a share of the steps, `val_share` one of the prompts. A
    checkpoint is written every `checkpoint_every` steps. Training stops when the validation loss
    has not fallen for `patience` validations. `max_length` bounds a training sequence in tokens,
    below the model's own limit. `lora_rank` is None for full training.
    Raises ConfigError for a value that cannot be meant.
    """

    batch_size: int
    learning_rate: float
    batch_tokens: int | None = None
    weight_decay: float = 0.0
    warmup: float = 0.1
    val_share: float = 0.1
    patience: int | None = None
    max_length: int | None = None
    checkpoint_every: int = 100
    gradient_checkpointing: bool = False
    lora_rank: int | None = None
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        optional = ("batch_tokens", "patience", "max_length", "lora_rank")
        for name in ("batch_size", "checkpoint_every", "lora_alpha", *optional):
            value = getattr(self, name)
            missing = value is None and name in optional
            if not missing and (type(value) is not int or value < 1):
                raise ConfigError(f"recipe.{name}={value}: give a whole number of 1 or more")
        for name, below in (
            ("learning_rate", math.inf),
            ("weight_decay", math.inf),
            ("warmup", 1),
            ("val_share", 1),
            ("lora_dropout", 1),
        ):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 <= value < below:
                limit = "" if below == math.inf else f", below {below}"
                raise ConfigError(f"recipe.{name}={value}: give a number of 0 or more{limit}")
        if self.patience is not None and not self.val_share:
            raise ConfigError("recipe.patience needs validation: give a recipe.val_share above 0")


def read_recipe(settings: Mapping[str, Any], seed: int) -> Recipe:
    """Return the recipe with these settings; raise ConfigError for one that does not exist."""
    known = [field.name for field in fields(Recipe) if field.name != "seed"]
    if unknown := sorted(set(settings) - set(known)):
        raise ConfigError(
            f"recipe.{unknown[0]}: there is no such setting, choose from {', '.join(known)}"
        )
    return Recipe(seed=seed, **settings)


@dataclass(frozen=True, slots=True)
class Start:
    """The model to train, read as `reward` reads it, and what a DPO policy is compared with.

    `dtype` is that of the trained weights. `path` and `reference_path` are what loads the two again
    on any machine: a hub name, or a folder.
    """

    reward: ModelReward
    path: str
    dtype: str
    reference_path: str | None = None

    @property
    def column(self) -> Column:
        """Return the model's own column."""
        return self.reward.columns[0]

    @property
    def reference(self) -> Column:
        """Return the column of log pi_ref: the given reference's, else the start's own."""
        if self.reference_path is not None:
            return self.reward.columns[1]
        return replace(self.column, reads="logps")

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
        )


def build_model(start: Start, objective: Objective, recipe: Recipe) -> Model:
    """Return the model as training changes it: all weights, or LoRA layers on them."""
    column = start.column
    tokenizer = start.reward.chat.tokenizer
    model = objective.load(column.checkpoint, tokenizer, start.dtype, column.attention, recipe.seed)
    enable_packing(model)
    model.train()
    if recipe.lora_rank is not None:
        add_lora(model, recipe.lora_rank, recipe.lora_alpha, recipe.lora_dropout)
    if recipe.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    return model
