"""Whole training runs on tiny models: what they leave behind, going on, and what cannot work."""

import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import get_method
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from peft import PeftModel
from running import one_thread, run_apart, run_script
from scored_rows import write_lines
from tiny import tiny_adapter, tiny_policy, tiny_scalar
from training import OBJECTIVES, quiet_trainer, start
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from rmexp import signals
from rmexp.benchmarks.toy import Toy
from rmexp.cli import configs  # noqa: F401  it registers the resolvers
from rmexp.errors import ConfigError, ScoreError
from rmexp.evaluation import comparison
from rmexp.evaluation.followups import read_follow_ups
from rmexp.schema import Message
from rmexp.scoring.rewards import open_reward
from rmexp.scoring.score import Settings
from rmexp.tracking.runs import MlflowClient, Run
from rmexp.training import train as train_module
from rmexp.training.data import ToyPairs
from rmexp.training.module import PreferenceModule
from rmexp.training.objectives import BradleyTerry
from rmexp.training.recipe import Recipe
from rmexp.training.split import split_by_prompt
from rmexp.training.start import Start, Training
from rmexp.training.train import Place, train


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_policy(tmp_path_factory.mktemp("policy") / "model")


class Killed(Exception):  # noqa: N818
    """Stands for whatever ends a process."""


class Kill(Callback):
    """End a run when a hook is called for the n-th time, before anything is saved there."""

    def __init__(self, hook: str, times: int) -> None:
        self._left = times
        setattr(self, hook, self._count)

    def _count(self, *args: Any) -> None:
        self._left -= 1
        if self._left == 0:
            raise Killed


class KillAfter(Kill, Checkpoint):
    """End a run in a hook when the checkpoints have been saved."""


SILENT = Mock(spec=Run, run_id="none")
SILENT.name = "a run"


def run_train(
    begin: Start,
    out_dir: Path,
    objective: Any = None,
    kill: int | Kill | None = None,
    resume: bool = False,
    pairs: int = 20,
    trainer: dict[str, Any] | None = None,
    run: Any = None,
    **recipe: Any,
) -> dict[str, Any]:
    """Train without tracking, and return the last checkpoint."""
    options = {"max_epochs": 2, **(trainer or {})}

    def make(callbacks: list[Callback], **others: Any) -> Trainer:
        ending = Kill("on_train_batch_end", kill) if isinstance(kill, int) else kill
        more = [ending] if ending is not None else []
        return quiet_trainer(callbacks=callbacks + more, **options)(**others)

    defaults = {"batch_size": 4, "learning_rate": 1e-3, "checkpoint_every": 1, "val_share": 0.2}
    training = Training(
        begin,
        objective or OBJECTIVES["bt"](),
        ToyPairs(pairs=pairs),
        Recipe(**{**defaults, **recipe}),
        make,
        Settings(out_dir.parent / "store"),
    )
    train(training, Place(out_dir, run, lambda **_: "", resume))
    loaded: dict[str, Any] = torch.load(out_dir / "checkpoints" / "last.ckpt", weights_only=True)
    return loaded


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one["global_step"] == other["global_step"]
    assert list(one["state_dict"]) == list(other["state_dict"])
    for name, value in one["state_dict"].items():
        assert torch.equal(value, other["state_dict"][name]), name
    drop = ("seconds", "per_second", "memory")
    for row, same in zip(one["rmexp"]["history"], other["rmexp"]["history"], strict=True):
        for name, value in row.items():
            if not name.endswith(drop) and "memory" not in name:
                assert value == same[name], name


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("kill", [1, 4, 5, 7])
def test_resume_equals_unbroken(name: str, kill: int, policy: Path, tmp_path: Path) -> None:
    """16 pairs in four batches an epoch: killed early, at an epoch's end and in the second one."""
    objective = OBJECTIVES[name]()
    begin = start(policy)
    whole = run_train(begin, tmp_path / "whole", objective)
    with pytest.raises(Killed):
        run_train(begin, tmp_path / "broken", objective, kill=kill)
    assert_same(whole, run_train(begin, tmp_path / "broken", objective, resume=True))


def test_the_reference_runs_where_the_policy_is_trained(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU that is there rounds otherwise than the CPU that was asked for."""

    def seen(pairs: Any, reference: Any, settings: Settings, pad: int | None) -> None:
        raise Killed(f"on {reference.device}, {settings.devices}")

    begin = start(policy)
    column = replace(begin.column, device="cuda")
    begin = replace(begin, reward=replace(begin.reward, columns=(column,)))
    monkeypatch.setattr(train_module, "with_references", seen)
    with pytest.raises(Killed, match="on cpu, 1"):
        run_train(begin, tmp_path / "out", OBJECTIVES["dpo"]())


def test_a_gpu_that_is_not_trained_on_is_named(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    begin, once = start(policy), {"max_steps": 1}
    run_train(begin, tmp_path / "one", trainer=once)
    assert "trainer=gpu" not in caplog.text
    there = SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: True))
    monkeypatch.setattr("rmexp.training.fit.torch", there)  # there alone: Lightning asks it, too
    run_train(begin, tmp_path / "other", trainer=once)
    assert "training on the CPU: trainer=gpu trains on this machine's GPU" in caplog.messages


# 16 pairs in four or eight batches an epoch; validated in mid-epoch, at steps that are saved too.
VALIDATED: dict[str, Any] = {"trainer": {"val_check_interval": 2}, "checkpoint_every": 2}
ACCUMULATED: dict[str, Any] = {
    "trainer": {"val_check_interval": 2, "accumulate_grad_batches": 3},
    "batch_size": 2,
    "checkpoint_every": 2,
}
STOPPED: dict[str, Any] = {"learning_rate": 0.0, "patience": 1, "trainer": {"max_epochs": 9}}
KILLS: list[tuple[dict[str, Any], type[Kill], str, int]] = [
    (VALIDATED, Kill, "on_before_optimizer_step", 3),
    (VALIDATED, Kill, "on_train_batch_end", 6),
    (VALIDATED, KillAfter, "on_train_batch_end", 6),
    (VALIDATED, Kill, "on_validation_batch_end", 1),
    (VALIDATED, Kill, "on_validation_batch_end", 2),
    (VALIDATED, KillAfter, "on_validation_end", 3),
    (VALIDATED, Kill, "on_train_epoch_end", 1),
    (VALIDATED, KillAfter, "on_train_epoch_end", 1),
    (VALIDATED, Kill, "on_train_end", 1),
    (ACCUMULATED, KillAfter, "on_train_batch_end", 7),
    (ACCUMULATED, Kill, "on_validation_batch_end", 3),
    (ACCUMULATED, KillAfter, "on_validation_end", 4),
    (STOPPED, Kill, "on_validation_batch_end", 2),
    (STOPPED, Kill, "on_train_end", 1),
]


@pytest.fixture(scope="module")
def unbroken(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return the folder of a whole training with these settings."""
    folders: dict[str, Path] = {}

    def train_once(options: dict[str, Any]) -> Path:
        if str(options) not in folders:
            folders[str(options)] = tmp_path_factory.mktemp("unbroken") / "run"
            run_train(start(policy), folders[str(options)], **options)
        return folders[str(options)]

    return train_once


@pytest.mark.parametrize(("options", "kind", "hook", "times"), KILLS)
def test_resume_equals_unbroken_wherever_it_is_killed(
    options: dict[str, Any],
    kind: type[Kill],
    hook: str,
    times: int,
    policy: Path,
    unbroken: Callable[..., Path],
    tmp_path: Path,
) -> None:
    whole, broken = unbroken(options), tmp_path / "run"
    with pytest.raises(Killed):
        run_train(start(policy), broken, kill=kind(hook, times), **options)
    run_train(start(policy), broken, resume=True, **options)
    for name in ("best.ckpt", "last.ckpt"):
        assert_same(
            *(torch.load(run / "checkpoints" / name, weights_only=True) for run in (whole, broken))
        )


def test_a_kill_in_the_export_leaves_nothing_but_the_model_in_the_end(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model of the run that goes on equals that of one that was not killed, file by file."""
    monkeypatch.setattr(train_module, "training_curve", lambda *_: Figure())
    folders = tmp_path / "whole", tmp_path / "broken"
    run_train(start(policy), folders[0], run=SILENT)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(Killed()))
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        with pytest.raises(Killed):
            run_train(start(policy), folders[1], run=SILENT)
    assert [path.name for path in folders[1].iterdir() if "model" in path.name] == [".model.draft"]
    run_train(start(policy), folders[1], run=SILENT, resume=True)
    files = [{path.name: path.read_bytes() for path in (f / "model").iterdir()} for f in folders]
    assert files[0] == files[1]
    assert not list(folders[1].glob(".*"))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_lora_layers_alone_are_what_peft_reads(
    name: str, policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The export has compared the rewards that evaluation reads; PEFT gives the same."""
    monkeypatch.setattr(train_module, "training_curve", lambda *_: Figure())
    recipe = {"lora_rank": 2, "lora_export": "adapter", "learning_rate": 0.1}
    begin, out = start(policy), tmp_path / "run"
    run_train(begin, out, OBJECTIVES[name](), run=SILENT, pairs=8, **recipe)
    assert not list((out / "model").glob("model*"))
    auto = AutoModelForSequenceClassification if name == "bt" else AutoModelForCausalLM
    model = auto.from_pretrained(policy, **({"num_labels": 1} if name == "bt" else {})).eval()
    model.config.pad_token_id = None
    wrapped = PeftModel.from_pretrained(model, out / "model").eval()
    reward = open_reward(path=str(out / "model"))
    row = reward.chat.encode([((Message("user", "Hi?"),), "Hello there")])[0]
    assert row is not None
    (found,) = reward.columns[0].load(reward.chat.tokenizer.pad_token_id)([row])
    with torch.inference_mode():
        logits = wrapped(input_ids=torch.tensor([row.ids])).logits[0]
    if name == "bt":
        expected = float(logits[0])
    else:
        logps = logits[row.start - 1 : row.end - 1].log_softmax(-1)
        ids = torch.tensor(row.ids[row.start : row.end])
        expected = float(logps.gather(-1, ids[:, None]).sum())
    assert found == pytest.approx(expected, rel=1e-4)
    again = start(out / "model")
    with pytest.raises(ConfigError, match=r"is an adapter itself, below which none is read"):
        run_train(again, tmp_path / "again", pairs=8, **recipe)


def test_a_signal_ends_a_fit_at_once(policy: Path, tmp_path: Path) -> None:
    """The trainer's own handlers, which only note it, do not take the place of ours."""

    class Signal(Kill):
        def _count(self, *args: Any) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            pytest.fail("the training goes on")

    with pytest.raises(signals.Killed), signals.killable():
        run_train(start(policy), tmp_path / "run", kill=Signal("on_train_batch_end", 1))


def test_resume_with_accumulation_and_dropout_equals_unbroken(policy: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "batch_size": 2,
        "lora_rank": 2,
        "lora_dropout": 0.3,
        "trainer": {"accumulate_grad_batches": 2},
    }
    whole = run_train(start(policy), tmp_path / "whole", **options)
    with pytest.raises(Killed):
        run_train(start(policy), tmp_path / "broken", kill=11, **options)
    assert_same(whole, run_train(start(policy), tmp_path / "broken", resume=True, **options))


def test_resume_twice_and_after_the_end(policy: Path, tmp_path: Path) -> None:
    whole = run_train(start(policy), tmp_path / "whole")
    for kill in (2, 3):
        with pytest.raises(Killed):
            run_train(start(policy), tmp_path / "broken", kill=kill, resume=kill == 3)
    assert_same(whole, run_train(start(policy), tmp_path / "broken", resume=True))
    assert_same(whole, run_train(start(policy), tmp_path / "broken", resume=True))


def test_early_stopping_ends_a_run(policy: Path, tmp_path: Path) -> None:
    last = run_train(
        start(policy), tmp_path / "run", learning_rate=0.0, patience=2, trainer={"max_epochs": 9}
    )
    assert last["epoch"] == 2  # the first validation, and two that are no better


def test_going_on_with_what_cannot_be(policy: Path, tmp_path: Path) -> None:
    run_train(start(policy), tmp_path / "run", resume=True)  # begins where there is nothing
    other = start(tiny_policy(tmp_path / "other", seed=7))
    with pytest.raises(ConfigError, match=r"is of another run \(weights differ\)"):
        run_train(other, tmp_path / "run", resume=True)
    with pytest.raises(ConfigError, match=r"another run \(data, learning_rate differ\)"):
        run_train(start(policy), tmp_path / "run", resume=True, pairs=24, learning_rate=1e-4)
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:1000])
    with pytest.raises(ConfigError, match="cannot be read"):
        run_train(start(policy), tmp_path / "run", resume=True)


def test_a_nan_keeps_the_last_good_checkpoint(policy: Path, tmp_path: Path) -> None:
    """Every row of the embeddings is shifted beyond measure by the second of the steps."""
    with pytest.raises(ScoreError, match=r"not finite in step \d+ .*resume=true goes on"):
        run_train(start(policy), tmp_path / "run", learning_rate=1e25, warmup=0.5)
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] >= 1
    assert all(value.isfinite().all() for value in last["state_dict"].values())


def test_a_reference_with_another_tokenizer_is_refused(
    policy: Path, smollm2: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="another tokenizer"):
        start(policy, reader="implicit", reference={"path": str(smollm2)})


def test_a_given_reference_is_the_one_that_is_used(policy: Path, tmp_path: Path) -> None:
    """With another model as reference the first loss is not log 2."""
    other = tiny_policy(tmp_path / "other", seed=9)
    reward = open_reward(path=str(policy), reader="implicit", reference={"path": str(other)})
    begin = Start(reward, str(policy), "float32", str(other))
    first = run_train(begin, tmp_path / "run", OBJECTIVES["dpo"](beta=1.0))["rmexp"]["history"][0]
    assert abs(first["train/loss"] - np.log(2)) > 0.1


def test_models_that_do_not_fit_the_objective(policy: Path, tmp_path: Path) -> None:
    scalar = tiny_scalar(tmp_path / "scalar")
    with pytest.raises(ConfigError, match="lacks 1 of the weights"):
        run_train(start(scalar), tmp_path / "run", OBJECTIVES["dpo"]())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, r"recipe\.batch_size=0"),
        ({"learning_rate": "fast"}, r"recipe\.learning_rate=fast"),
        ({"warmup": 1.0}, r"recipe\.warmup=1"),
        ({"val_share": 0, "patience": 2}, "needs validation"),
        ({"lora_rank": 1.5}, r"recipe\.lora_rank=1\.5"),
        ({"lora_rank": 2, "lora_export": "both"}, r"recipe\.lora_export=both: use merged or"),
        ({"lora_export": "adapter"}, r"needs LoRA: give a recipe\.lora_rank"),
    ],
)
def test_recipes_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Recipe(**{"batch_size": 4, "learning_rate": 1e-3, **options})


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("bt", {"margin": -1}),
        ("bt", {"label_smoothing": 0.5}),
        ("dpo", {"beta": 0}),
        ("dpo", {"beta": "x"}),
    ],
)
def test_objectives_that_cannot_be(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"objective\."):
        OBJECTIVES[name](**options)


def test_a_trainer_that_cannot_be(policy: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the trainer cannot be made"):
        run_train(start(policy), tmp_path / "run", trainer={"accelerator": "abacus"})
    with pytest.raises(ConfigError, match="no end"):
        run_train(start(policy), tmp_path / "run", trainer={"max_epochs": -1})


def test_plans_of_follow_ups() -> None:
    files = {
        "toy": {"_target_": "t", "limit": None},
        "preference": {"_target_": "p", "path": "???"},
    }

    def read(name: str) -> dict[str, Any]:
        return dict(files[name])

    made = read_follow_ups(["toy", {"name": "toy", "limit": 3}], read, lambda config: config)
    assert [wanted.folder for wanted in made] == ["toy", "toy-2"]
    assert [wanted.config["limit"] for wanted in made] == [None, 3]
    for wrong, message in (
        ("toy", "give a list"),
        ([{"limit": 3}], "give a benchmark's name"),
        ([{"name": "toy", "size": 3}], "no option size, choose from limit"),
        (["preference"], r"needs path, write it as \{name: preference, path: VALUE\}"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_follow_ups(wrong, read, lambda config: config)


CONF = Path(__file__).resolve().parent.parent / "conf"
FILES = [
    (group, path.stem)
    for group in ("data", "objective", "trainer")
    for path in sorted((CONF / group).glob("*.yaml"))
]


def test_every_file_is_a_case() -> None:
    groups = [group for group, _ in FILES]
    assert [groups.count(name) for name in ("data", "objective", "trainer")] == [10, 2, 4]


@pytest.mark.parametrize(("group", "name"), FILES)
def test_a_file_composes_and_fits_its_target(group: str, name: str) -> None:
    words = [f"{group}={name}"] + (["data.path=X"] if name in ("preference", "auto_j") else [])
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        config = compose("train_rm", overrides=words)
    assert OmegaConf.missing_keys(config) == set()
    values = OmegaConf.to_container(config, resolve=True)
    Recipe(**values["recipe"])
    target = get_method(values[group].pop("_target_"))
    values[group].pop("_partial_", None)
    inspect.signature(target).bind(**values[group])
    assert set(values[group]) <= set(inspect.signature(target).parameters)


def read_json(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, policy: Path) -> Callable[..., list[str]]:
    top = tmp_path_factory.mktemp("commands")

    def words(name: str) -> list[str]:
        return [
            "model=local",
            f"model.path={policy}",
            f"store_dir={top / 'store'}",
            f"tracking.uri=sqlite:///{top / 'mlflow.db'}",
            f"out_dir={top / name}",
        ]

    return words


def folder_of(words: list[str]) -> Path:
    return Path(words[-1].removeprefix("out_dir="))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_loop(
    objective: str, places: Callable[..., list[str]], project_root: Path, tmp_path: Path
) -> None:
    """Train, evaluate afterwards; validation's accuracy is that of `eval_rm.py` on the same pairs.

    BT's model is read once more by `eval_rm.py`, out of the registry.
    """
    examples = ToyPairs(pairs=24).load().examples
    rows = [
        {
            "id": e.id,
            "prompt": e.prompt[0].content,
            "chosen": e.chosen[0],
            "rejected": e.rejected[0],
        }
        for e in examples
    ]
    held = {example.id for example in split_by_prompt(examples, 0.5, 0).val}
    data = write_lines(tmp_path / "pairs.jsonl", rows)
    val = write_lines(tmp_path / "val.jsonl", [row for row in rows if row["id"] in held])
    words = places(objective)
    out = folder_of(words)
    words += [f"objective={objective}", "data=preference", f"data.path={data}"]
    words += ["recipe.val_share=0.5", "recipe.learning_rate=1e-3", "trainer.max_epochs=2"]
    words += ["recipe.batch_size=3", "trainer.val_check_interval=2", "trainer.log_every_n_steps=1"]
    words += ["tracking.register=tiny"]
    words += [f"eval_after=[{{name: toy, limit: 2}},{{name: preference, path: {val}}}]"]
    another = write_lines(tmp_path / "another" / "config.json", [{}]).parent
    out.mkdir(parents=True)
    (out / "model").symlink_to(another)
    done = run_script(project_root, ["train_rm.py", *words])
    assert done.code == 0, done.err[-3000:]
    assert [path.name for path in another.iterdir()] == ["config.json"]  # nor written to
    assert not (out / "model").is_symlink()
    metrics = read_json(out / "metrics.json")
    assert metrics["data/train_pairs"] == metrics["data/val_pairs"] == 12
    assert metrics["preference/accuracy/n"] == 12
    assert metrics["preference/accuracy"] == pytest.approx(metrics["val/accuracy"])
    assert {"train/loss", "train/accuracy", "train/margin", "val/loss", "toy/overall"} <= set(
        metrics
    )
    assert metrics["train/pairs_per_second"] > 0
    assert metrics["train/reload_max_delta"] < 1e-4
    assert read_json(out / "run.json")["status"] == "FINISHED"
    check_page(out, words, metrics)
    for name in ("toy", "preference"):
        assert read_json(out / "eval" / name / "run.json")["status"] == "FINISHED"
        assert (out / "eval" / name / "scores.jsonl").exists()
    left = read_json(out / "model" / "rmexp.json")
    if objective == "dpo":
        assert (left["reader"], left["beta"]) == ("implicit", 0.1)
        assert left["reference"]["fingerprint"]
        return
    assert left["reader"] == "scalar"
    check_pad_token(out / "model")
    config = read_json(out / "model" / "config.json")  # what vLLM finds the head by
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert config["pad_token_id"] is not None
    assert len(config["id2label"]) == 1
    words = ["model=mlflow", "model.uri=models:/tiny/1", *places("registered")[2:]]
    words += ["bench=preference", f"bench.path={val}"]
    done = run_script(project_root, ["eval_rm.py", *words])
    assert done.code == 0, done.err[-3000:]
    assert (out.parent / "registered" / "scores.jsonl").read_text() == (
        out / "eval" / "preference" / "scores.jsonl"
    ).read_text()


def check_page(out: Path, words: Sequence[str], metrics: Mapping[str, float]) -> None:
    """The run says what came out first, and has a point a step, each number in one unit."""
    uri = next(word for word in words if word.startswith("tracking.uri=")).partition("=")[2]
    client = MlflowClient(tracking_uri=uri)
    run = client.get_run(read_json(out / "run.json")["run_id"])
    note = run.data.tags["mlflow.note.content"]
    assert note.startswith(f"- toy/overall {metrics['toy/overall']:.3f} (")
    assert f"| {metrics['val/loss']:.3f} | {metrics['val/accuracy']:.3f} |" in note
    points = {m.step: m.value for m in client.get_metric_history(run.info.run_id, "train/loss")}
    assert sorted(points) == [*range(1, 9)]
    assert {m.step for m in client.get_metric_history(run.info.run_id, "val/loss")} == {2, 4, 6, 8}
    took = client.get_metric_history(run.info.run_id, "train/step_seconds")
    assert metrics["train/seconds"] == pytest.approx(sum({m.step: m.value for m in took}.values()))
    assert not any(name.startswith("data/") for name in run.data.metrics)
    assert run.data.params["data.train_pairs"] == run.data.params["data.val_pairs"] == "12"
    child = client.get_run(read_json(out / "eval" / "toy" / "run.json")["run_id"])
    assert child.info.run_name == f"{run.info.run_name} on toy, n 8"
    assert child.data.params.items() >= {
        "bench": "toy", "bench.limit": "2", "seed": "0", "model.dtype": "float32",
        "training_run": run.info.run_id, "objective": run.data.params["objective"],
        "data": "preference",
    }.items()  # fmt: skip


def check_pad_token(folder: Path) -> None:
    """The library alone, which looks for the last token that is no padding, reads our rewards."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    assert tokenizer.pad_token_id == model.config.pad_token_id != tokenizer.eos_token_id
    reward = open_reward(path=str(folder))
    prompt = (Message("user", "A?"),)
    rows = reward.chat.encode([(prompt, "B"), (prompt, "B" * 40)])
    texts = [tokenizer.decode(row.ids) for row in rows if row is not None]
    batch = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
    with torch.inference_mode():
        expected = model(**batch).logits[:, 0]
    found = reward.columns[0].load(tokenizer.pad_token_id)(rows)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_a_model_whose_pad_is_its_eos_gets_a_pad_token(tmp_path: Path) -> None:
    folder = tiny_policy(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(folder)
    column = open_reward(path=str(folder)).columns[0]
    model = BradleyTerry().load(column.checkpoint, tokenizer, "float32", None, 0)
    assert tokenizer.pad_token_id == model.config.pad_token_id != tokenizer.eos_token_id
    assert model.get_input_embeddings().num_embeddings >= len(tokenizer)


def test_two_processes_give_the_losses_of_one(
    places: Callable[..., list[str]], project_root: Path
) -> None:
    """22 pairs in batches of 4: the last batch and the last validation batch are uneven."""
    common = ["data.pairs=25", "recipe.batch_size=4", "recipe.learning_rate=1e-3"]
    common += ["trainer.max_epochs=2", "objective=dpo"]
    two = "trainer=ddp trainer.accelerator=cpu trainer.devices=2 trainer.precision=32-true".split()
    histories = []
    for name, more, run in (("one", [], run_script), ("two", two, run_apart)):
        words = places(name)
        done = run(project_root, ["train_rm.py", *words, *common, *more])
        assert done.code == 0, done.err[-3000:]
        checkpoint = folder_of(words) / "checkpoints" / "last.ckpt"
        histories.append(torch.load(checkpoint, weights_only=True)["rmexp"]["history"])
    assert len(histories[0]) == len(histories[1]) > 8
    for row, same in zip(*histories, strict=True):
        for name, value in row.items():
            if "second" not in name and "memory" not in name:
                assert value == pytest.approx(same[name], abs=2e-5, rel=1e-4), name


@pytest.mark.parametrize(
    ("size", "left"), [("8k", []), ("100k", []), ("450k", ["best"]), ("560k", ["best", "last"])]
)
def test_a_full_disk_is_one_line_and_keeps_what_was_whole(
    size: str,
    left: list[str],
    small_disk: Callable[[str], Path],
    places: Callable[..., list[str]],
    project_root: Path,
) -> None:
    """Room for the log only, for no checkpoint, for the smaller one, for no model folder."""
    disk = small_disk(size)
    words = [*places("")[:-1], f"out_dir={disk / 'out'}", "data.pairs=8"]
    done = run_script(project_root, ["train_rm.py", *words])
    assert done.code == 1
    assert "Traceback" not in done.err
    assert "no space left on the disk: make room for" in done.err
    out = disk / "out"
    found = sorted(path.name for path in (out / "checkpoints").glob("*"))
    assert found == [f"{name}.ckpt" for name in left]
    for name in left:
        torch.load(out / "checkpoints" / f"{name}.ckpt", weights_only=True)
    assert not (out / "model").exists()
    assert not list(out.rglob(".*"))


def test_a_run_that_was_killed_goes_on_to_the_same_weights(
    places: Callable[..., list[str]], project_root: Path
) -> None:
    """SIGTERM as a scheduler sends it, in the middle of a fit."""
    common = ["data.pairs=40", "recipe.batch_size=4", "recipe.learning_rate=1e-3"]
    common += ["recipe.checkpoint_every=2", "trainer.max_epochs=5"]
    whole, broken = places("unbroken"), places("broken")
    with one_thread():
        assert run_script(project_root, ["train_rm.py", *whole, *common]).code == 0
    checkpoint = folder_of(broken) / "checkpoints" / "last.ckpt"
    begun = subprocess.Popen(
        [sys.executable, "train_rm.py", *broken, *common],
        cwd=project_root,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not checkpoint.exists() and begun.poll() is None:
        time.sleep(0.01)
    begun.terminate()
    assert begun.wait() != 0
    assert read_json(folder_of(broken) / "run.json")["status"] == "KILLED"
    stopped = torch.load(checkpoint, weights_only=True)["global_step"]
    with one_thread():
        done = run_script(project_root, ["train_rm.py", *broken, *common, "resume=true"])
    assert done.code == 0, done.err[-3000:]
    ends = [
        torch.load(folder_of(words) / "checkpoints" / "last.ckpt", weights_only=True)
        for words in (whole, broken)
    ]
    assert 0 < stopped < ends[0]["global_step"] == 45
    assert_same(*ends)


SHORT = ["data.pairs=20", "recipe.batch_size=4", "recipe.checkpoint_every=1", "trainer.max_steps=4"]


def test_dpo_from_an_adapter_whose_base_was_given(
    places: Callable[..., list[str]], project_root: Path, tmp_path: Path
) -> None:
    """The base that the adapter names is not there; the trained policy's reference needs it."""
    base, adapter = tiny_policy(tmp_path / "base"), tmp_path / "adapter"
    tiny_adapter(base, adapter, "CAUSAL_LM")
    settings = read_json(adapter / "adapter_config.json") | {"base_model_name_or_path": "/gone"}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    place = places("from_adapter")
    words = ["objective=dpo", "data.pairs=8", "trainer.max_steps=1"]
    words += [f"model.path={adapter}", f"model.base={base}"]
    done = run_script(project_root, ["train_rm.py", *place, *words])
    assert done.code == 0, done.err[-3000:]
    trained = open_reward(path=str(folder_of(place) / "model"))
    assert [column.checkpoint.adapter for column in trained.columns] == [None, adapter]
    assert trained.columns[1].checkpoint.folder == base


def test_a_finished_training_again_with_resume_trains_no_more(
    places: Callable[..., list[str]], project_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*SHORT, "resume=true", *places("finished")]
    first = run_script(project_root, ["train_rm.py", *words])
    assert first.code == 0, first.err[-3000:]
    metrics = read_json(folder_of(words) / "metrics.json")
    monkeypatch.setattr(PreferenceModule, "training_step", lambda *_: pytest.fail("it trains"))
    again = run_script(project_root, ["train_rm.py", *words])
    assert again.code == 0, again.err[-3000:]
    assert read_json(folder_of(words) / "run.json")["status"] == "FINISHED"
    assert read_json(folder_of(words) / "metrics.json") == metrics


@pytest.mark.parametrize("sweep", [[], ["-m", "seed=1,2"]], ids=["run", "sweep"])
def test_a_killed_training_goes_on_as_its_advice_says(
    sweep: list[str],
    places: Callable[..., list[str]],
    project_root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A signal in the third step of a training, or of a sweep's first job."""
    words = [*sweep, *SHORT, *places(f"advice{len(sweep)}")]
    out = folder_of(words)
    step = PreferenceModule.training_step
    trained: list[int] = []

    def killed(module: PreferenceModule, batch: Any, number: int) -> Any:
        trained.append(module.global_step)
        if len(trained) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(module, batch, number)

    monkeypatch.setattr(PreferenceModule, "training_step", killed)
    done = run_script(project_root, ["train_rm.py", *words])
    assert done.code == 1
    assert f"run the command again with resume=true out_dir={out}," in done.err
    done = run_script(project_root, ["train_rm.py", *words, "resume=true"])
    assert done.code == 0, done.err[-3000:]
    assert trained == [0, 1, 2, 2, 3, *([0, 1, 2, 3] if sweep else [])]
    for job in (out / "0", out / "1") if sweep else (out,):
        assert read_json(job / "run.json")["status"] == "FINISHED"
        assert (job / "model" / "rmexp.json").exists()


def test_long_pairs_are_measured_by_the_recipes_limit_in_training_only(
    places: Callable[..., list[str]], project_root: Path
) -> None:
    words = places("long")
    more = ["data.pairs=24", "recipe.max_length=160", "on_overlength=drop", "trainer.max_steps=1"]
    more += ["eval_after=[{name: toy, limit: 1}]"]
    done = run_script(project_root, ["train_rm.py", *words, *more])
    assert done.code == 0, done.err[-3000:]
    metrics = read_json(folder_of(words) / "metrics.json")
    assert metrics["data/train_pairs"] + metrics["data/val_pairs"] + metrics["data/dropped"] == 24
    assert 0 < metrics["data/dropped"] < 24
    evaluated = read_json(folder_of(words) / "eval" / "toy" / "metrics.json")
    assert evaluated["scoring/dropped"] == evaluated["scoring/truncated"] == 0


def test_dropped_responses_leave_a_comparison_of_the_others(
    places: Callable[..., list[str]], project_root: Path
) -> None:
    words = places("dropped")
    more = ["data.pairs=8", "on_overlength=drop", "trainer.max_steps=1", "model.max_length=170"]
    more += ["eval_after=[{name: toy, limit: 2}]", "eval_beside=[start]"]
    done = run_script(project_root, ["train_rm.py", *words, *more], [(Toy, "figures")])
    assert done.code == 0, done.err[-3000:]
    evaluated = read_json(folder_of(words) / "eval" / "toy" / "metrics.json")
    dropped = evaluated["scoring/dropped_examples"]
    assert 0 < dropped < evaluated["data/examples"]
    assert f"toy: {dropped:.0f} of {evaluated['data/examples']} examples have no reward" in done.err
    rows = comparison.read(folder_of(words) / comparison.FILE)
    assert {row.n for row in rows if row.name.startswith("toy/overall")} == {
        evaluated["data/examples"] - dropped
    }


def test_a_benchmark_of_ones_own_folder_follows_a_training(
    places: Callable[..., list[str]], tmp_path: Path, project_root: Path
) -> None:
    (tmp_path / "conf" / "bench").mkdir(parents=True)
    text = "defaults:\n  - toy\n  - _self_\nlimit: 2\n"
    (tmp_path / "conf" / "bench" / "mine.yaml").write_text(text)
    words = places("mine")
    more = [f"hydra.searchpath=[file://{tmp_path}/conf]", "eval_after=[mine]"]
    more += ["data.pairs=8", "trainer.max_steps=1"]
    done = run_script(project_root, ["train_rm.py", *words, *more], [(Toy, "figures")])
    assert done.code == 0, done.err[-3000:]
    assert read_json(folder_of(words) / "eval/mine/metrics.json")["data/examples"] > 0


@pytest.mark.real
def test_the_seeds_of_a_sweep_are_models_of_their_own(
    places: Callable[..., list[str]], project_root: Path
) -> None:
    words = places("seeds")
    more = ["seed=1,2", "data.pairs=8", "trainer.max_steps=1", "recipe.val_share=0"]
    more += ["eval_after=[{name: toy, limit: 1}]", "eval_beside=[start]"]
    done = run_script(project_root, ["train_rm.py", "-m", *more, *words], [(Toy, "figures")])
    assert done.code == 0, done.err[-3000:]
    out = folder_of(words)
    trained = {row.rm for row in comparison.read(out / comparison.FILE) if row.gain is not None}
    assert len(trained) == 2
    for seed, rm in zip("12", sorted(trained), strict=True):
        assert rm.endswith(f"bt toy, seed={seed}")


@pytest.mark.real
def test_a_grid_trains_evaluates_and_skips_what_is_done(
    places: Callable[..., list[str]], project_root: Path, tmp_path: Path
) -> None:
    """Two objectives on two data sets; again with `skip_done`, which leaves all of them out."""
    rows = [{"prompt": f"{i}?", "chosen": "yes" * (i + 1), "rejected": "no"} for i in range(8)]
    data = write_lines(tmp_path / "pairs.jsonl", rows)
    conf = tmp_path / "conf" / "data"
    conf.mkdir(parents=True)
    (conf / "own.yaml").write_text(f"defaults:\n  - preference\n  - _self_\npath: {data}\n")
    words = ["-m", "objective=bt,dpo", "data=toy,own", f"hydra.searchpath=[file://{tmp_path}/conf]"]
    words += ["eval_after=[{name: toy, limit: 2}]", "eval_beside=[start,without_reference]"]
    words += ["trainer.max_steps=1"]
    undrawn = [(Toy, "figures")]
    first = places("grid")
    done = run_script(project_root, ["train_rm.py", *words, *first], undrawn)
    assert done.code == 0, done.err[-3000:]
    out = folder_of(first)
    names = {path.name for path in out.glob("[0-3]/eval/*")}
    assert names == {"toy", "toy-start", "toy-without_reference"}
    evaluated = sorted(str(path.relative_to(out).parent) for path in out.glob("*/eval/*/run.json"))
    assert len(evaluated) == 4 * 2 + 2
    start = {(out / str(job) / "eval/toy-start/scores.jsonl").read_text() for job in range(4)}
    assert len(start) == 1
    metrics = read_json(out / "2" / "metrics.json")
    assert {"toy/overall", "toy-start/overall", "toy-without_reference/overall/n"} <= set(metrics)
    again = places("again")
    done = run_script(project_root, ["train_rm.py", *words, *again, "skip_done=true"], undrawn)
    assert done.code == 0, done.err[-3000:]
    status = [read_json(path) for path in folder_of(again).glob("[0-9]/run.json")]
    assert [row["skipped"] for row in status] == [True] * 4


MISTAKES = {
    "recorded rewards cannot be trained": "model=recorded model.path=README.md",
    "nowhere does not exist": "data=preference data.path=nowhere",
    "the trainer cannot be made (Trainer.__init__() got an unexpected": "+trainer.nonsense=1",
    "there is no benchmark nothing": "eval_after=[nothing]",
    "recipe.batch_size=0": "recipe.batch_size=0",
    "recipe.optim: there is no such setting": "+recipe.optim=adam",
    "trainer.max_steps=0: give a whole number": "trainer.max_steps=0",
    "trainer.val_check_interval=10: an epoch has": "trainer.val_check_interval=10 data.pairs=20",
    "eval_beside=['nothing']": "eval_beside=[nothing]",
}


def test_mistakes_end_in_one_line(places: Callable[..., list[str]], project_root: Path) -> None:
    for number, (message, more) in enumerate(MISTAKES.items()):
        words = [word for word in places(f"mistake{number}") if not word.startswith("model")]
        model = [] if "model=" in more else places("")[:2]
        done = run_script(project_root, ["train_rm.py", *model, *more.split(), *words])
        assert done.code == 1
        assert "Traceback" not in done.err
        status = read_json(folder_of(words) / "run.json")
        assert status["status"] == "FAILED"
        assert message in status["error"]
