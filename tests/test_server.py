"""Runs against real MLflow servers, over HTTP: on SQLite and on PostgreSQL, stopped and started."""

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from running import free_port, mlflow_serving, run_apart
from scored_rows import write_lines
from tiny import tiny_policy

from rmexp.tracking.run_folder import undelivered
from rmexp.tracking.runs import MlflowClient

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]
Serving = Callable[[], contextlib.AbstractContextManager[str]]


def serving_at(database: str, artifacts: Path) -> Serving:
    """A server on a database, which has the same address whenever it is started."""
    port = free_port()
    words = ["server", "--workers", "2", "--backend-store-uri", database]
    words += ["--artifacts-destination", str(artifacts)]
    return lambda: mlflow_serving(*words, port=port)


@pytest.fixture
def serving(tmp_path: Path) -> Serving:
    """A server on SQLite, which keeps the artifacts itself."""
    return serving_at(f"sqlite:///{tmp_path}/server.db", tmp_path / "artifacts")


@pytest.fixture
def postgresql() -> Iterator[str]:
    """The address of a database of our own in PostgreSQL."""
    programs = [Path(found) for found in [shutil.which("initdb")] if found]
    programs += sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not programs:
        pytest.skip("no initdb: PostgreSQL is not installed here")
    if importlib.util.find_spec("psycopg") is None:
        pytest.skip("no psycopg, which MLflow's server needs for PostgreSQL")
    folder, port = Path(tempfile.mkdtemp(prefix="rmexp-postgresql-")), free_port()
    user = None
    if os.getuid() == 0:  # which it refuses
        user = "nobody"
        shutil.chown(folder, user)
    try:
        initdb = [programs[-1], "-D", folder / "data", "-A", "trust", "-U", "rmexp", "-E", "UTF8"]
        subprocess.run(initdb, user=user, cwd=folder, check=True, capture_output=True)
        words = ["-D", folder / "data", "-h", "127.0.0.1", "-p", str(port), "-k", folder]
        with (
            (folder / "log").open("wb") as log,
            subprocess.Popen(
                [programs[-1].with_name("postgres"), *words],
                user=user,
                cwd=folder,
                stdout=log,
                stderr=log,
            ) as process,
        ):
            ready = [programs[-1].with_name("pg_isready"), "-h", "127.0.0.1", "-p", str(port)]
            for _ in range(240):
                if subprocess.run(ready, capture_output=True).returncode == 0:
                    break
                time.sleep(0.25)
            yield f"postgresql+psycopg://rmexp@127.0.0.1:{port}/postgres"
            process.send_signal(signal.SIGINT)  # which does not wait for clients
    finally:
        shutil.rmtree(folder)


def runs(address: str, experiment: str) -> list[Any]:
    client = MlflowClient(tracking_uri=address)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    there = client.search_runs([found.experiment_id], order_by=["attributes.start_time"])
    return [client.get_run(run.info.run_id) for run in there]  # with their models


def test_a_run_on_a_server(serving: Serving, tmp_path: Path, project_root: Path) -> None:
    with serving() as server:
        words = ["model=local", f"model.path={tiny_policy(tmp_path / 'model')}", "bench=toy"]
        words += ["bench.limit=2", f"out_dir={tmp_path / 'out'}", f"store_dir={tmp_path / 'store'}"]
        words += [f"tracking.uri={server}", "tracking.experiment=remote"]
        done = run_apart(project_root, ["eval_rm.py", *words])
        assert done.code == 0, done.err[-3000:]
        (run,) = runs(server, "remote")
        assert run.info.status == "FINISHED"
        page = f"{server}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
        assert page in done.out
        assert run.data.metrics["headline/n"] == 8
        client = MlflowClient(tracking_uri=server)
        names = {entry.path for entry in client.list_artifacts(run.info.run_id)}
    assert {"scores.jsonl", "metrics.json", "style_matrix.png", "run.json"} <= names


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_eight_jobs_at_once(
    database: str, request: pytest.FixtureRequest, tmp_path: Path, project_root: Path
) -> None:
    """None is lost, misfiled or left running: each has its own numbers, parameters and files."""
    uri = f"sqlite:///{tmp_path}/server.db"
    if database == "postgresql":
        uri = request.getfixturevalue("postgresql")
    row = {"prompt": "q", "chosen": "a", "rejected": "b"}
    pairs = [row | {"id": str(at), "prompt": f"q{at}"} for at in range(8)]
    data = write_lines(tmp_path / "pairs.jsonl", pairs)
    started = []
    with serving_at(uri, tmp_path / "artifacts")() as server:
        for job in range(8):
            rewards = [
                {"id": str(at), "chosen": [1], "rejected": [2 * (at >= job)]} for at in range(8)
            ]
            scores = write_lines(tmp_path / f"rm{job}.jsonl", rewards)
            words = ["model=recorded", f"model.path={scores}", "bench=preference"]
            words += [f"bench.path={data}", f"out_dir={tmp_path / str(job)}", f"seed={job}"]
            words += [f"tracking.uri={server}", f"tracking.experiment=of {job % 2}"]
            words += [f"store_dir={tmp_path / 'store'}"]
            started.append(
                subprocess.Popen(
                    [sys.executable, "eval_rm.py", *words],
                    cwd=project_root,
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                    stderr=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                )
            )
        said = [process.communicate()[1].decode() for process in started]
        assert [process.returncode for process in started] == [0] * 8, said
        client = MlflowClient(tracking_uri=server)
        left = {}
        for part in range(2):
            for run in runs(server, f"of {part}"):
                assert run.info.status == "FINISHED"
                job = int(run.data.params["seed"])
                assert job % 2 == part
                assert run.data.metrics["headline"] == job / 8
                names = {entry.path for entry in client.list_artifacts(run.info.run_id)}
                assert {"scores.jsonl", "metrics.json", "run.json", "config.yaml"} <= names
                left[job] = run
        assert sorted(left) == [*range(8)]
        for job, run in left.items():
            status = json.loads((tmp_path / str(job) / "run.json").read_text())
            assert (status["status"], status["run_id"]) == ("FINISHED", run.info.run_id)
        models = {run.inputs.model_inputs[0].model_id for run in left.values()}
        assert len(models) == 8
        assert {run.inputs.dataset_inputs[0].dataset.name for run in left.values()} == {
            left[0].inputs.dataset_inputs[0].dataset.name
        }


@contextlib.contextmanager
def started(project_root: Path, words: list[str]) -> Iterator["subprocess.Popen[str]"]:
    """Start a command, and yield it once its run has begun."""
    with subprocess.Popen(
        [sys.executable, *words],
        cwd=project_root,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        status = Path(words[-1].removeprefix("out_dir=")) / "run.json"
        while not status.exists() or "run_id" not in json.loads(status.read_text()):
            assert process.poll() is None
            time.sleep(0.05)
        yield process


def test_a_server_that_is_started_again(
    serving: Serving, tmp_path: Path, project_root: Path
) -> None:
    """Stopped in the middle of an evaluation; the run goes on, and has all in the end."""
    words = ["eval_rm.py", "model=local", f"model.path={tiny_policy(tmp_path / 'model')}"]
    words += ["bench=toy", "bench.limit=25", "batch_tokens=700", "tracking.experiment=e"]
    words += [f"store_dir={tmp_path / 'store'}"]
    out = tmp_path / "out"
    with contextlib.ExitStack() as first:
        server = first.enter_context(serving())
        words.append(f"tracking.uri={server}")
        with started(project_root, [*words, f"out_dir={out}"]) as process:
            first.close()
            while process.poll() is None and not undelivered(out):
                time.sleep(0.05)
            assert process.poll() is None
            with serving():
                _, said = process.communicate()
                assert process.returncode == 0, said
                assert "the tracking server is back, and has been told all" in said
                words[-2] = f"store_dir={tmp_path / 'another'}"
                done = run_apart(project_root, [*words, f"out_dir={tmp_path / 'undisturbed'}"])
                assert done.code == 0, done.err
                disturbed, undisturbed = runs(server, "e")
    assert undelivered(out) == []
    assert disturbed.info.status == undisturbed.info.status == "FINISHED"
    assert disturbed.data.params == undisturbed.data.params
    assert set(disturbed.data.metrics) == set(undisturbed.data.metrics)
    assert disturbed.data.metrics["headline"] == undisturbed.data.metrics["headline"]


def test_a_server_that_is_gone_for_good(
    serving: Serving, tmp_path: Path, project_root: Path
) -> None:
    """Stopped in the middle of a training: all is done and whole, and delivered later, once."""
    out = tmp_path / "out"
    words = ["train_rm.py", "model=local", f"model.path={tiny_policy(tmp_path / 'model')}"]
    words += ["data.pairs=24", "trainer.max_steps=40", "recipe.batch_size=2"]
    words += ["trainer.log_every_n_steps=1", "eval_after=[{name: toy, limit: 2}]"]
    words += ["tracking.register=tiny", "tracking.experiment=e", "trainer.max_epochs=9"]
    words += [f"store_dir={tmp_path / 'store'}"]
    with contextlib.ExitStack() as first:
        server = first.enter_context(serving())
        words.append(f"tracking.uri={server}")
        with started(project_root, [*words, f"out_dir={out}"]) as process:
            first.close()
            _, said = process.communicate()
    assert process.returncode == 1
    assert f"send the rest with python -m rmexp.deliver {out} " in said.strip().splitlines()[-1]
    assert json.loads((out / "run.json").read_text())["status"] == "FINISHED"
    assert (out / "model" / "config.json").exists()
    assert (out / "eval" / "toy" / "scores.jsonl").exists()
    assert len(undelivered(out)) == 2
    deliver = ["-m", "rmexp.deliver", str(out)]
    assert run_apart(project_root, deliver).code == 1
    with serving():
        done = run_apart(project_root, deliver)
        assert (done.code, done.out.count("delivered: ")) == (0, 2), done.err
        again = run_apart(project_root, deliver)
        assert (again.code, "was delivered before" in again.out) == (0, True)
        client = MlflowClient(tracking_uri=server)
        training, child = runs(server, "e")
        history = client.get_metric_history(training.info.run_id, "train/loss")
        versions = client.search_model_versions("name='tiny'")
        status = json.loads((out / "eval" / "toy" / "run.json").read_text())
    assert training.info.status == child.info.status == "FINISHED"
    # Each step once; the last one is said again with all numbers of the end.
    assert sorted(point.step for point in history) == [*range(1, 40), 40, 40]
    assert child.info.run_id == status["run_id"]
    assert child.data.tags["mlflow.parentRunId"] == training.info.run_id
    numbers = json.loads((out / "eval" / "toy" / "metrics.json").read_text())
    assert child.data.metrics["headline"] == numbers["toy/overall"]
    assert [version.run_id for version in versions] == [training.info.run_id]
    assert len(training.outputs.model_outputs) == 1
