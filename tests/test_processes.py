"""The processes of several devices: one that dies ends the training, and is named.

Waits are without an end.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from running import run_script
from training import quiet_trainer

from rmexp.errors import ConfigError, ScoreError
from rmexp.signals import Killed, killable
from rmexp.training import processes
from rmexp.training.options import make_trainer
from rmexp.training.processes import Launcher, watch_processes

DIES = "import os; os.kill(os.getpid(), 9)"
FAILS = "raise SystemExit(3)"
WAITS = "import time; time.sleep(1e6)"
Launch = Callable[[str, Callable[[], object]], object]


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Give what the launcher of `launch` has started, once it has."""
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()


@pytest.fixture
def launch(started: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch) -> Launch:
    """Return how to launch a function beside a process with this code."""
    monkeypatch.delenv("LOCAL_RANK", raising=False)

    def launched(code: str, function: Callable[[], object]) -> object:
        class Beside(Launcher):
            def _call_children_scripts(self) -> None:
                started.append(subprocess.Popen([sys.executable, "-c", code]))
                self.procs = started

        return Beside(LightningEnvironment(), 2, 1).launch(function)

    return launched


def lose_connection() -> None:
    """Raise what torch raises for it."""
    raise RuntimeError("Connection reset by peer")


def wait() -> None:
    while True:
        time.sleep(0.001)


@pytest.mark.parametrize(
    ("code", "words"),
    [(DIES, "process 1 was killed by SIGKILL"), (FAILS, "process 1 ended with code 3")],
)
def test_a_process_that_dies_is_named(
    code: str,
    words: str,
    launch: Launch,
    started: list[subprocess.Popen[bytes]],
) -> None:
    def work() -> None:
        started[0].wait()
        lose_connection()

    with pytest.raises(ConfigError, match=rf"^{words}, .* go on with resume=true out_dir="):
        launch(code, work)


def test_waiting_for_a_process_that_died_has_an_end(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "_BETWEEN", 0.01)
    monkeypatch.setattr(processes, "_NOTICED", 0.01)
    with pytest.raises(ConfigError, match="process 1 ended with code 3"), killable():
        launch(FAILS, wait)


def test_the_first_process_has_errors_of_its_own(
    launch: Launch,
    started: list[subprocess.Popen[bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They end the other one, which would wait for it."""
    monkeypatch.setattr(processes, "_BETWEEN", 0.01)
    with pytest.raises(RuntimeError, match="Connection reset"):
        launch(WAITS, lose_connection)
    assert started[0].wait() == -signal.SIGTERM


def test_a_mistake_that_both_meet_is_told_as_such(
    launch: Launch, started: list[subprocess.Popen[bytes]]
) -> None:
    def work() -> None:
        started[0].wait()
        raise ScoreError("the loss is NaN")

    with pytest.raises(ScoreError, match="the loss is NaN"):
        launch(FAILS, work)


def test_a_signal_to_all_of_them_is_no_death(
    launch: Launch, started: list[subprocess.Popen[bytes]]
) -> None:
    def work() -> None:
        started[0].wait()
        os.kill(os.getpid(), signal.SIGTERM)
        wait()

    with pytest.raises(Killed) as caught, killable():
        launch(FAILS, work)
    assert caught.value.name == "SIGTERM"


def test_what_the_function_returns_is_returned(launch: Launch) -> None:
    assert launch(WAITS, lambda: "done") == "done"


def test_the_first_process_is_missed_by_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_BETWEEN", 0.01)
    monkeypatch.setenv("LOCAL_RANK", "1")
    launcher = Launcher(LightningEnvironment(), 2, 1)
    with pytest.raises(RuntimeError, match="Connection reset"):
        launcher.launch(lose_connection)
    monkeypatch.setattr(os, "getppid", lambda: 1)
    with pytest.raises(ConfigError, match=r"^the first process has died: "):
        launcher.launch(lose_connection)


def test_trainers_of_several_processes_start_them_so() -> None:
    for options, kind in (({"devices": 2, "strategy": "ddp"}, Launcher), ({}, type(None))):
        trainer: Any = make_trainer(quiet_trainer(**options))
        watch_processes(trainer)
        assert type(trainer.strategy.launcher) is kind


def test_another_process_says_its_mistake_in_a_line(
    project_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    words = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "recipe.batch_size=0"]
    words += [f"out_dir={tmp_path}", "trainer.precision=32-true"]
    done = run_script(project_root, ["train_rm.py", *words])
    assert done.code == 1
    assert done.err.startswith("process 1: recipe.batch_size=0: ")
    assert done.err.count("\n") == 1
