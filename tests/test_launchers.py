"""Sweeps under each of Hydra's launchers: one job fails, one is killed, the rest is done later."""

import importlib.util
import json
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from running import Ended, run_apart
from scored_rows import write_lines
from tiny import tiny_policy

pytestmark = pytest.mark.real

# Recorded rewards of which one benchmark's send their process a signal, as long as a file with its
# number is there, and another's cannot be read, as long as a file says so.
MORTAL = """
import os
from rmexp.errors import DataError
from rmexp.scoring.recorded import RecordedReward

class Mortal(RecordedReward):
    def score(self, data, settings):
        what = self.name, data.examples[0].id.partition("-")[0]
        order, broken = self.path.parent / "signal", self.path.parent / "broken"
        if what == ("two", "safe") and broken.exists():
            raise DataError("nothing can be read")
        if what == ("one", "doomed") and order.exists():
            number = int(order.read_text())
            if number != 9:
                order.unlink()
            os.kill(os.getpid(), number)
        return super().score(data, settings)
"""
LAUNCHERS = {
    "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "submitit": ["hydra/launcher=submitit_local"],
    "ray": ["hydra/launcher=ray", "+hydra.launcher.ray.init.num_cpus=2"],
}
BENCHES = ("safe", "doomed")
GRID = [("one", "safe"), ("one", "doomed"), ("two", "safe"), ("two", "doomed")]


class Place:
    """Two models' recorded rewards for two benchmarks."""

    def __init__(self, top: Path, root: Path) -> None:
        self.top, self.root = top, root
        (top / "mortal.py").write_text(MORTAL)
        for bench in BENCHES:
            rows = [
                {"id": f"{bench}-{i}", "prompt": f"{bench} {i}?", "chosen": "yes", "rejected": "no"}
                for i in range(4)
            ]
            path = write_lines(top / f"{bench}.jsonl", rows)
            self.config("bench", bench, f"defaults: [preference, _self_]\npath: {path}\n")
        for model in ("one", "two"):
            lines = [
                {"id": f"{bench}-{i}", "chosen": [1.0], "rejected": [0.5]}
                for bench in BENCHES
                for i in range(4)
            ]
            path = write_lines(top / f"{model}.jsonl", lines)
            text = f"_target_: mortal.Mortal\nname: {model}\npath: {path}\n"
            self.config("model", model, text)

    def config(self, group: str, name: str, text: str) -> None:
        (self.top / "conf" / group).mkdir(parents=True, exist_ok=True)
        (self.top / "conf" / group / f"{name}.yaml").write_text(text)

    def sweep(self, *words: str) -> Ended:
        found = os.pathsep.join([str(self.top), os.environ.get("PYTHONPATH", "")])
        return run_apart(
            self.root,
            [
                *("eval_rm.py", "-m", "model=one,two", "bench=safe,doomed"),
                f"hydra.searchpath=[file://{self.top}/conf]",
                *(f"out_dir={self.top}/out", f"store_dir={self.top}/store"),
                *(f"tracking.uri=sqlite:///{self.top}/mlflow.db", "tracking.experiment=grid"),
                *words,
            ],
            PYTHONPATH=found,
        )

    @property
    def jobs(self) -> list[dict[str, Any] | None]:
        paths = [self.top / "out" / str(number) / "run.json" for number in range(len(GRID))]
        return [json.loads(path.read_text()) if path.exists() else None for path in paths]

    def tracked(self) -> list[tuple[str, str]]:
        """The name and the status of each run that MLflow has."""
        with sqlite3.connect(self.top / "mlflow.db") as database:
            rows = database.execute(
                "select name, status from runs where lifecycle_stage = 'active' order by start_time"
            )
            return list(rows)


@pytest.fixture
def place(tmp_path: Path, project_root: Path) -> Place:
    return Place(tmp_path, project_root)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_one_fails_one_is_killed_and_the_same_command_does_the_rest(
    launcher: str, place: Place
) -> None:
    if importlib.util.find_spec(f"hydra_plugins.hydra_{launcher}_launcher") is None:
        pytest.skip(f"hydra-{launcher}-launcher is not installed")
    (place.top / "signal").write_text("9")
    (place.top / "broken").touch()
    done = place.sweep(*LAUNCHERS[launcher])
    assert done.code == 1
    assert "Traceback" not in done.err
    assert "the same command with skip_done=true does the rest" in done.err
    first = place.jobs
    ended = [job["status"] if job else "NOT_RUN" for job in first]
    # joblib ends all workers with the one that died: who was at work then has to begin again.
    if launcher == "joblib":
        assert ended[1] == "KILLED"
        assert set(ended) <= {"KILLED", "FINISHED", "FAILED", "NOT_RUN"}
    else:
        assert ended == ["FINISHED", "KILLED", "FAILED", "FINISHED"]
    table = (place.top / "out" / "sweep.csv").read_text().splitlines()[1:]
    assert [row.split(",")[2] for row in table] == ended
    finished = ended.count("FINISHED")
    assert f"{finished} of 4 jobs finished, {4 - finished} did not" in done.out
    statuses = [status for _, status in place.tracked()]
    assert statuses.count("FINISHED") == finished
    assert "RUNNING" not in statuses

    for order in ("signal", "broken"):
        (place.top / order).unlink()
    done = place.sweep(*LAUNCHERS[launcher], "skip_done=true")
    assert done.code == 0, done.err[-3000:]
    again = place.jobs
    assert all(job and job["status"] == "FINISHED" for job in again)
    for before, after in zip(first, again, strict=True):
        assert after is not None
        kept = before is not None and before["status"] == "FINISHED"
        assert after.get("skipped", False) == kept
        assert not kept or after["run_id"] == before["run_id"]
    children = [f"{model} on {bench}, n 4" for model, bench in GRID]
    tracked = place.tracked()
    assert [tracked.count((name, "FINISHED")) for name in children] == [1] * 4
    assert "RUNNING" not in [status for _, status in tracked]


def test_a_preempted_job_of_submitit_begins_again_by_itself(place: Place) -> None:
    """At submitit's signal the run is ended before the job is put in the queue again."""
    (place.top / "signal").write_text(str(int(signal.SIGUSR2)))
    done = place.sweep(*LAUNCHERS["submitit"])
    assert done.code == 0, done.err[-3000:]
    assert [job and job["status"] for job in place.jobs] == ["FINISHED"] * 4
    ends = [status for name, status in place.tracked() if "one on doomed" in name]
    assert ends == ["KILLED", "FINISHED"]
    logs = (place.top / "out" / "1" / "eval_rm.log").read_text()
    assert "killed by SIGUSR2: run the command again, what was scored is kept" in logs


SRUN = """#!{python}
import os, subprocess, sys, time
from pathlib import Path
words = [w for w in sys.argv[2:] if w.partition("=")[0] not in ("model", "data", "trainer")]
process = subprocess.Popen([sys.executable, *words, *{words!r}])
if {kill}:
    while not list(Path({top!r}).glob("run/checkpoints/*.ckpt")) and process.poll() is None:
        time.sleep(0.01)
    process.terminate()
sys.exit(process.wait())
"""


def test_the_documented_slurm_file_queues_what_was_killed_and_nothing_else(
    tmp_path: Path, project_root: Path
) -> None:
    """Its own words, but for what is trained; srun and scontrol are stand-ins."""
    text = (project_root / "docs" / "cluster.md").read_text(encoding="utf-8")
    script = next(part for part in text.split("```") if part.startswith("bash\n#!/bin/bash"))[5:]
    assert "\n#SBATCH --requeue\n#SBATCH --signal=TERM@60\n" in script
    (tmp_path / "job.sh").write_text(script.replace("/shared/runs/rm", str(tmp_path / "run")))
    small = ["model=local", f"model.path={tiny_policy(tmp_path / 'model')}", "data=toy"]
    small += ["data.pairs=20", "recipe.batch_size=4", "recipe.checkpoint_every=1"]
    small += ["trainer=cpu", "trainer.max_steps=12", f"store_dir={tmp_path / 'store'}"]
    small += [f"tracking.uri=sqlite:///{tmp_path / 'mlflow.db'}"]

    def program(name: str, text: str) -> None:
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)

    def submit(*more: str, kill: bool = False) -> tuple[int, list[str], str]:
        given = {"python": sys.executable, "top": str(tmp_path), "kill": kill}
        program("srun", SRUN.format(words=[*small, *more], **given))
        found = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
        words = ["bash", str(tmp_path / "job.sh")]
        more_environment = {"PATH": found, "SLURM_JOB_ID": "7", "OMP_NUM_THREADS": "1"}
        code = subprocess.run(words, cwd=project_root, env={**os.environ, **more_environment})
        queued = tmp_path / "queued"
        calls = queued.read_text().splitlines() if queued.exists() else []
        queued.unlink(missing_ok=True)
        status = json.loads((tmp_path / "run" / "run.json").read_text())["status"]
        return code.returncode, calls, status

    program("scontrol", f"#!/bin/bash\necho $* >> {tmp_path / 'queued'}\n")
    assert submit(kill=True) == (1, ["requeue 7"], "KILLED")
    assert submit("recipe.batch_size=3") == (1, [], "FAILED")
    assert submit() == (0, [], "FINISHED")
