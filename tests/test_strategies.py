"""Precisions and strategies: two processes train to the weights of one, in every precision.

All that needs two processes is trained by one pair of them, for it takes seconds to start.
"""

import multiprocessing
import os
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from lightning import Callback
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from tiny import tiny_policy
from training import OBJECTIVES, quiet_trainer, start

from rmexp.scoring.score import Settings
from rmexp.training.data import ToyPairs
from rmexp.training.recipe import Recipe
from rmexp.training.sharding import Sharded
from rmexp.training.start import Training
from rmexp.training.train import Place, train


class Case(NamedTuple):
    """How to train, on two devices and on one."""

    strategy: str
    objective: str
    precision: str
    recipe: tuple[tuple[str, Any], ...] = ()
    trainer: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        more = [name for name, _ in (*self.recipe, *self.trainer)]
        return "-".join([self.strategy, self.objective, self.precision, *more])


PRECISIONS = ("32-true", "bf16-mixed", "bf16-true")
CASES = [
    Case(strategy, objective, precision)
    for strategy in ("ddp", "fsdp")
    for objective in OBJECTIVES
    for precision in PRECISIONS
    if strategy == "fsdp" or precision != "bf16-true"
] + [
    Case("fsdp", "bt", "32-true", recipe=(("gradient_checkpointing", True),)),
    Case("fsdp", "bt", "bf16-true", recipe=(("lora_rank", 2),)),
    Case(
        "fsdp",
        "bt",
        "32-true",
        trainer=(("gradient_clip_algorithm", "value"), ("gradient_clip_val", 0.001)),
    ),
]
BROKEN = Case("fsdp", "dpo", "32-true", recipe=(("val_share", 0.3),))
# A step is 1e-3 wide. In bf16 a gradient of about 0 may change its sign: the mean counts, too.
FURTHEST = {"32-true": 1e-5, "bf16-mixed": 4e-3, "bf16-true": 1e-2}
ON_AVERAGE = {"32-true": 1e-8, "bf16-mixed": 2e-5, "bf16-true": 4e-5}
FROM_LN_2 = {"32-true": 1e-6, "bf16-mixed": 1e-4, "bf16-true": 1e-4}


class Killed(Exception):  # noqa: N818
    """Stands for whatever ends a process."""


class Kill(Callback):
    """End a run in its third batch."""

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, number: int) -> None:
        if number == 2:
            raise Killed


opened = cache(start)


def run(top: Path, out: str, case: Case, devices: int, steps: int = 2, **more: Any) -> None:
    """Train on 16 pairs in batches of 4, in as many processes as there are."""
    strategy: Any = {"ddp": "ddp", "fsdp": Sharded()}[case.strategy] if devices > 1 else "auto"
    options = {"max_steps": steps, "precision": case.precision, **dict(case.trainer)}
    options |= {"devices": devices, "strategy": strategy}
    begin = opened(top / "model")
    if case.precision == "bf16-true":
        begin = replace(begin, dtype="bfloat16")
    recipe = {"weight_decay": 1.0, "checkpoint_every": 2, "val_share": 0.0, **dict(case.recipe)}
    resume = more.pop("resume", False)
    training = Training(
        begin,
        OBJECTIVES[case.objective](),
        ToyPairs(pairs=16),
        Recipe(batch_size=4, learning_rate=1e-3, warmup=0.0, **recipe),
        quiet_trainer(**options, **more),
        Settings(top / "store"),
    )
    train(training, Place(top / out, None, lambda **_: "", resume))


def process(rank: int, top: Path, port: int) -> None:
    """Train all cases as one of two processes."""
    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    for case in CASES:
        run(top, case.name, case, 2)
    run(top, "from-one", BROKEN, 2, 3, resume=True)
    with pytest.raises(Killed):
        run(top, "from-two", BROKEN, 2, 3, callbacks=[Kill()])


@pytest.fixture(scope="module")
def top(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder in which two processes have trained."""
    folder = tmp_path_factory.mktemp("strategies")
    tiny_policy(folder / "model")
    run(folder, "whole", BROKEN, 1, 3)
    with pytest.raises(Killed):
        run(folder, "from-one", BROKEN, 1, 3, callbacks=[Kill()])
    multiprocessing.get_context("forkserver").set_forkserver_preload(["rmexp.training.train"])
    arguments = folder, find_free_network_port()
    torch.multiprocessing.start_processes(process, arguments, 2, start_method="forkserver")
    return folder


def checkpoint(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    return loaded


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return how far each weight is from the other model's."""
    assert list(one) == list(other)
    assert all(one[name].dtype == other[name].dtype for name in one)
    parts = [(one[name].double() - other[name].double()).abs().flatten() for name in one]
    return torch.cat(parts)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_two_processes_give_the_weights_of_one(case: Case, top: Path) -> None:
    alone = case._replace(strategy="one")
    if not (top / alone.name).exists():
        run(top, alone.name, alone, 1)
    one, two = checkpoint(top / alone.name), checkpoint(top / case.name)
    assert one["global_step"] == two["global_step"] == 2
    differences = apart(one["state_dict"], two["state_dict"])
    assert float(differences.max()) <= FURTHEST[case.precision]
    assert float(differences.mean()) <= ON_AVERAGE[case.precision]
    states, others = (part["optimizer_states"][0] for part in (one, two))
    assert states["param_groups"] == others["param_groups"]
    assert list(states["state"]) == list(others["state"])
    first = two["rmexp"]["history"][0]["train/loss"]
    assert first == pytest.approx(one["rmexp"]["history"][0]["train/loss"], abs=1e-5)
    if case.objective == "dpo":
        assert first == pytest.approx(np.log(2), abs=FROM_LN_2[case.precision])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_heads_are_in_fp32_and_other_weights_as_asked(case: Case, top: Path) -> None:
    weights = checkpoint(top / case.name)["state_dict"]
    short = {name for name, value in weights.items() if value.dtype == torch.bfloat16}
    trained = {name for name in weights if "lora" in name or ".score." in name}
    assert short == (set(weights) - trained if case.precision == "bf16-true" else set())


def test_what_two_devices_began_one_ends(top: Path) -> None:
    assert checkpoint(top / "from-two")["global_step"] == 2
    run(top, "from-two", BROKEN, 1, 3, resume=True)
    assert_ended(top / "from-two", top)


def test_what_one_device_began_two_end(top: Path) -> None:
    assert_ended(top / "from-one", top)


def assert_ended(folder: Path, top: Path) -> None:
    whole, ended = checkpoint(top / "whole"), checkpoint(folder)
    assert whole["global_step"] == ended["global_step"] == 3
    assert float(apart(whole["state_dict"], ended["state_dict"]).max()) <= 1e-5
    assert len(ended["rmexp"]["history"]) == len(whole["rmexp"]["history"])
