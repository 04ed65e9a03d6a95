"""What is asked of the trainer: obeyed, or refused in a line before anything is loaded."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback, LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from tiny import tiny_policy
from training import encoded, fit, module, quiet_trainer, start, toy_examples

from rmexp.errors import ConfigError
from rmexp.training.batches import Batches
from rmexp.training.fit import limited, open_trainer, steps
from rmexp.training.objectives import DPO, BradleyTerry
from rmexp.training.options import check_options, make_trainer
from rmexp.training.recipe import Recipe, read_recipe
from rmexp.training.sharding import Sharded
from rmexp.training.world import rank, slurm_tasks

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
RECIPE = Recipe(batch_size=4, learning_rate=1e-3)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_policy(tmp_path_factory.mktemp("policy") / "model")


@pytest.mark.parametrize(
    "options",
    [
        {"precision": "16-true"},
        {"precision": "64-true"},
        {"precision": "transformer-engine"},
        {"precision": 7},
        {"precision": True},
        {"precision": "16-mixed", "accelerator": "cpu"},
        {"fast_dev_run": True},
        {"fast_dev_run": 3},
        {"barebones": True},
        {"overfit_batches": 0.5},
        {"enable_checkpointing": False},
        {"default_root_dir": "elsewhere"},
        {"plugins": ["x"]},
        {"max_steps": 0},
        {"max_steps": "two"},
        {"max_epochs": 0},
        {"max_epochs": -2},
        {"accumulate_grad_batches": 0},
        {"accumulate_grad_batches": 1.5},
        {"check_val_every_n_epoch": 0},
        {"num_nodes": 0},
        {"gradient_clip_val": -1},
        {"gradient_clip_val": float("nan")},
        {"gradient_clip_val": "1"},
        {"gradient_clip_algorithm": "nope"},
        {"min_epochs": "abc"},
        {"min_steps": -1},
        {"deterministic": "perhaps"},
        {"max_time": 0},
        {"val_check_interval": 0},
        {"val_check_interval": 1.5},
        {"limit_train_batches": 0},
        {"limit_val_batches": 0.0},
    ],
    ids=str,
)
def test_options_that_cannot_be(options: dict[str, Any]) -> None:
    name = next(iter(options))
    with pytest.raises(ConfigError, match=rf"^trainer\.{name}="):
        check_options({"precision": "32-true", **options})


def test_precisions_by_their_other_names() -> None:
    names = {None: "32-true", 32: "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}
    for given, name in names.items():
        assert check_options({"precision": given})["precision"] == name
    assert check_options({})["precision"] == "32-true"


@pytest.mark.parametrize("options", [{"devices": 2}, {"devices": 1, "strategy": "ddp"}, {}])
def test_a_sweep_starts_no_processes(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where Slurm has started a task for each device, a job of a sweep may use them."""
    with pytest.raises(ConfigError, match="a sweep's jobs train on one device each"):
        check_options(options, sweep=True)
    check_options({"devices": 1, "strategy": "auto"}, sweep=True)
    slurm(monkeypatch, SLURM_PROCID="1", SLURM_NTASKS="2", SLURM_STEP_NUM_TASKS="2")
    check_options(options, sweep=True)


def test_a_recipe_says_what_it_does_not_know() -> None:
    assert read_recipe({"batch_size": 4, "learning_rate": 1e-3}, 3).seed == 3
    for name in ("optim", "seed"):
        with pytest.raises(ConfigError, match=rf"recipe\.{name}: there is no such .* batch_size, "):
            read_recipe({"batch_size": 4, "learning_rate": 1e-3, name: 1}, 3)


def test_callbacks_and_loggers_are_added_to_ours(tmp_path: Path) -> None:
    given = LearningRateMonitor(), CSVLogger(tmp_path)
    make = quiet_trainer(callbacks=[given[0]], logger=given[1])
    trainer = open_trainer(make, RECIPE, tmp_path / "checkpoints", None)
    kinds = [type(callback).__name__ for callback in trainer.callbacks]
    assert kinds.count("ModelCheckpoint") == kinds.count("LastCheckpoint") == 1
    assert given[0] in trainer.callbacks
    assert trainer.loggers == [given[1]]
    for options in ({"callbacks": ["early"]}, {"logger": True}, {"logger": False}):
        with pytest.raises(ConfigError, match=rf"^trainer\.{next(iter(options))}: .* is no "):
            make_trainer(quiet_trainer(**options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "ddp_spawn", "devices": 2}, "take auto, ddp, or trainer=fsdp"),
        ({"strategy": "fsdp"}, "cannot be made"),
        ({"strategy": "nope"}, "cannot be made"),
        ({"accelerator": "abacus"}, "cannot be made"),
        ({"devices": 0}, "cannot be made"),
        ({"devices": "x"}, "cannot be made"),
        ({"max_time": "abc"}, "cannot be made"),
        ({"profiler": "nope"}, "cannot be made"),
        pytest.param(
            {"precision": "16-mixed", "strategy": Sharded(), "devices": 2},
            "cannot be made",
            id="16-mixed with fsdp",
        ),
    ],
    ids=str,
)
def test_trainers_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        make_trainer(quiet_trainer(**options))
    assert "\n" not in str(raised.value)


def test_an_epoch_that_is_too_short(tmp_path: Path) -> None:
    def trainer(**options: Any) -> Any:
        return open_trainer(quiet_trainer(**options), RECIPE, tmp_path / "checkpoints", None)

    with pytest.raises(ConfigError, match="val_check_interval=10: an epoch has 4 batches"):
        steps(trainer(val_check_interval=10), 4)
    over_epochs = trainer(val_check_interval=10, check_val_every_n_epoch=None, max_epochs=3)
    assert steps(over_epochs, 4) == 12
    with pytest.raises(ConfigError, match="no batch to train on"):
        steps(trainer(limit_train_batches=0.1), 4)
    assert limited(trainer(limit_train_batches=3), 4) == steps(trainer(limit_train_batches=3), 4)


def test_a_limited_epochs_last_step_is_the_mean_of_its_pairs(policy: Path, tmp_path: Path) -> None:
    """Of 5 batches 3 are seen, in steps of 2: the second step has one batch, and its weight."""
    pairs = encoded(start(policy), BradleyTerry(), toy_examples(20), tmp_path)
    batches = Batches(pairs, 4, accumulate=2, most=3)
    assert len(batches) == 3
    sums = [float(batch.weights.sum()) for batch in batches]
    assert sums == pytest.approx([1.0, 1.0, 2.0])  # Lightning halves each


class Watch(Callback):
    """Keep the largest entry of each step's gradient, as the optimiser gets it."""

    def __init__(self) -> None:
        self.largest: list[float] = []

    def on_before_zero_grad(self, trainer: Any, module: Any, optimizer: Any) -> None:
        grads = [p.grad for p in module.parameters() if p.grad is not None]
        if grads:
            self.largest.append(max(float(grad.abs().max()) for grad in grads))


@pytest.mark.parametrize(
    ("options", "largest"),
    [
        ({"gradient_clip_val": None}, None),
        ({"gradient_clip_val": 0}, None),
        ({"gradient_clip_val": 1e-3}, 1e-3),
        ({"gradient_clip_val": 1e-4, "gradient_clip_algorithm": "value"}, 1e-4),
    ],
    ids=str,
)
def test_gradients_are_clipped_as_asked(
    options: dict[str, Any], largest: float | None, policy: Path, tmp_path: Path
) -> None:
    pairs = encoded(start(policy), BradleyTerry(), toy_examples(8), tmp_path)
    watch, made = Watch(), module(start(policy), BradleyTerry())
    fit(made, pairs, 4, callbacks=[watch], **options)
    assert made.history[0]["train/gradient_norm"] > 0.01
    if largest is None:
        assert max(watch.largest) > 1e-3
    elif "gradient_clip_algorithm" in options:
        assert max(watch.largest) == pytest.approx(largest)
    else:
        assert 0 < max(watch.largest) <= largest


def test_a_sanity_check_is_no_validation(policy: Path, tmp_path: Path) -> None:
    pairs = encoded(start(policy), BradleyTerry(), toy_examples(8), tmp_path)
    made = module(start(policy), BradleyTerry())
    trainer = quiet_trainer(num_sanity_val_steps=1, max_steps=1, limit_val_batches=1)(
        logger=False, enable_checkpointing=False
    )
    trainer.fit(made, Batches(pairs, 4, seed=0), Batches(pairs, 4))
    assert [row["step"] for row in made.history] == [0.0]
    assert "train/loss" in made.history[0]


def test_an_overflow_of_fp16_is_left_to_the_scaler(policy: Path, tmp_path: Path) -> None:
    """The first step is left out and the scale lowered; then it trains."""
    pairs = encoded(start(policy), BradleyTerry(), toy_examples(12), tmp_path)
    made = module(start(policy), BradleyTerry())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, backoff_factor=2.0**-30)
    before = {name: p.detach().clone() for name, p in made.named_parameters()}
    after: list[bool] = []

    class Moved(Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            after.append(all(torch.equal(before[n], p) for n, p in made.named_parameters()))

    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    with pytest.warns(UserWarning, match=r"lr_scheduler.step\(\)` before `optimizer.step"):
        fit(made, pairs, 4, plugins=[plugin], callbacks=[Moved()])
    assert after == [True, False, False]
    assert ["train/gradient_norm" in row for row in made.history] == [False, True, True]
    assert scaler.get_scale() == 2.0**10


def test_bf16_weights_keep_references_and_buffers(policy: Path, tmp_path: Path) -> None:
    begin = start(policy)
    made = module(type(begin)(begin.reward, begin.path, "bfloat16"), DPO())
    options = {"precision": "bf16-true", "max_steps": 1, "enable_checkpointing": False}
    trainer = make_trainer(quiet_trainer(**options))
    seen: list[torch.dtype] = []
    read = made.read
    made.read = lambda batch: seen.append(batch.references.dtype) or read(batch)  # type: ignore
    batches = Batches(encoded(begin, DPO(), toy_examples(4), tmp_path), 4)
    trainer.fit(made, batches, batches)
    assert seen == [torch.float32] * 2
    assert made.model.model.rotary_emb.inv_freq.dtype == torch.float32
    assert {p.dtype for p in made.model.parameters()} == {torch.bfloat16}


def slurm(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"SLURM_LOCALID": "0", "SLURM_NODEID": "0", **variables}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_JOB_ID", "123456")


STARTS = {
    "srun, second task": (
        {"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "1"},
        (1, 2, True),
    ),
    "srun within a larger job": (
        {"SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"},
        (0, 2, True),
    ),
    "srun in a batch script": (
        {
            "ENVIRONMENT": "BATCH",
            "SLURM_NTASKS": "2",
            "SLURM_STEP_NUM_TASKS": "2",
            "SLURM_PROCID": "1",
            "SLURM_LOCALID": "1",
        },
        (1, 2, True),
    ),
    "a batch script alone": (
        {"ENVIRONMENT": "BATCH", "SLURM_NTASKS": "2", "SLURM_PROCID": "0"},
        (0, 2, False),
    ),
    "one task": ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, (0, 2, False)),
    "salloc": ({"SLURM_NTASKS": "2"}, (0, 2, False)),
    "a shell": (
        {"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_JOB_NAME": "bash"},
        (0, 2, False),
    ),
    "a number alone": ({"SLURM_PROCID": "1"}, (0, 2, False)),
    "Lightning's child in one task": (
        {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "LOCAL_RANK": "1"},
        (1, 2, True),
    ),
}


@pytest.mark.parametrize("name", STARTS)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_who_a_process_is_under_slurm(
    strategy: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables, (number, world, external) = STARTS[name]
    slurm(monkeypatch, **variables)
    made: Any = Sharded() if strategy == "fsdp" else "ddp"
    trainer = make_trainer(quiet_trainer(devices=2, strategy=made))
    assert rank() == trainer.global_rank == number
    assert trainer.world_size == world
    environment = trainer.strategy.cluster_environment
    assert environment.creates_processes_externally == external


def test_tasks_that_are_not_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    slurm(monkeypatch, SLURM_NTASKS="3", SLURM_PROCID="0")
    assert slurm_tasks() == 3
    with pytest.raises(ConfigError, match="Slurm started 3 tasks for 2 devices"):
        make_trainer(quiet_trainer(devices=2))


def test_lightning_says_only_what_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A profile is; which devices there are, the precision, and what else it sells are not."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        monkeypatch.setattr(logging.getLogger(name), "level", logging.INFO)
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
    trainer = make_trainer(quiet_trainer(precision="bf16-mixed", profiler="simple"))
    assert not caplog.messages
    trainer.profiler.describe()  # type: ignore[attr-defined]
    assert "Profiler Report" in caplog.text


def test_a_job_of_a_sweep_trains_on_the_gpu_that_it_was_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By number, where there are several: all would train on the first one."""
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    options = {"accelerator": "gpu", "devices": 1, "strategy": "auto", "precision": "bf16-mixed"}
    for count, sweep, expected in ((2, True, [1]), (2, False, 1), (1, True, 1), (0, True, 1)):
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        assert check_options(options, sweep)["devices"] == expected
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert check_options(options | {"accelerator": "cpu"}, True)["devices"] == 1
