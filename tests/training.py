"""What the tests of training share: small data, a start, and a trainer that says nothing."""

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer

from rmexp.schema import Example
from rmexp.scoring.rewards import open_reward
from rmexp.scoring.score import Settings
from rmexp.training.batches import Batches
from rmexp.training.data import ToyPairs
from rmexp.training.encoded import EncodedPair, encode_pairs
from rmexp.training.module import PreferenceModule
from rmexp.training.objectives import DPO, BradleyTerry
from rmexp.training.recipe import Recipe
from rmexp.training.references import with_references
from rmexp.training.start import Start, build_model

OBJECTIVES: dict[str, Callable[..., Any]] = {"bt": BradleyTerry, "dpo": DPO}


def toy_examples(count: int) -> tuple[Example, ...]:
    return ToyPairs(pairs=count).load().examples


def start(path: Path, **options: Any) -> Start:
    return Start(open_reward(path=str(path), **options), str(path), "float32")


def encoded(begin: Start, objective: Any, examples: Any, store: Path) -> tuple[EncodedPair, ...]:
    pairs = encode_pairs(begin.reward.chat, examples, "left_truncate").pairs
    if objective.uses_reference:
        store.mkdir(exist_ok=True)
        pairs = with_references(pairs, begin.reference, Settings(store), None)
    return pairs


def module(begin: Start, objective: Any, steps: int = 8, **recipe: Any) -> PreferenceModule:
    torch.manual_seed(0)
    made = Recipe(**{"batch_size": 4, "learning_rate": 1e-3, **recipe})
    return PreferenceModule(
        build_model(begin, objective, made),
        objective,
        steps=steps,
        learning_rate=made.learning_rate,
        weight_decay=made.weight_decay,
        warmup=made.warmup,
    )


def quiet_trainer(**options: Any) -> Callable[..., Trainer]:
    defaults = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        "gradient_clip_val": 1.0,
    }
    return partial(Trainer, **{**defaults, **options})


def fit(made: PreferenceModule, pairs: Any, size: int, accumulate: int = 1, **options: Any) -> None:
    trainer = quiet_trainer(accumulate_grad_batches=accumulate, **options)(
        logger=False, enable_checkpointing=False
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*no .val_dataloader.")  # as these tests want it
        trainer.fit(made, Batches(pairs, size, accumulate=accumulate, seed=0))
