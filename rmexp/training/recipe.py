"""How to train, checked as values before anything is loaded."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from rmexp.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to train, whatever the model, the data and the objective.

    A batch has up to `batch_size` pairs, and up to `batch_tokens` tokens if these are given, over
    all devices together; `warmup` is a share of the steps, `val_share` one of the prompts. A
    checkpoint is written every `checkpoint_every` steps. Training stops when the validation loss
    has not fallen for `patience` validations. `max_length` bounds a training sequence in tokens,
    below the model's own limit. `lora_rank` is None for full training; `lora_export` is "merged",
    or "adapter" for a folder of the LoRA layers alone.
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
    lora_export: str = "merged"
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
        if self.lora_export not in ("merged", "adapter"):
            raise ConfigError(f"recipe.lora_export={self.lora_export}: use merged or adapter")
        if self.lora_export == "adapter" and self.lora_rank is None:
            raise ConfigError("recipe.lora_export=adapter needs LoRA: give a recipe.lora_rank")
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
