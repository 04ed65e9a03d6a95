"""A run against a real MLflow server, over HTTP."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import mlflow_serving
from tiny import tiny_policy

from rmexp.tracking.runs import MlflowClient


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address of a server of our own, which keeps the artifacts itself."""
    words = ["server", "--workers", "1", "--backend-store-uri", f"sqlite:///{tmp_path}/server.db"]
    with mlflow_serving(*words, "--artifacts-destination", str(tmp_path / "artifacts")) as address:
        yield address


@pytest.mark.real
def test_a_run_on_a_server(server: str, tmp_path: Path, project_root: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "eval_rm.py",
            "model=local",
            f"model.path={tiny_policy(tmp_path / 'model')}",
            "bench=toy",
            "bench.limit=2",
            f"out_dir={tmp_path / 'out'}",
            f"store_dir={tmp_path / 'store'}",
            f"tracking.uri={server}",
            "tracking.experiment=remote",
        ],
        cwd=project_root,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    client = MlflowClient(tracking_uri=server)
    experiment = client.get_experiment_by_name("remote")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert (
        f"{server}/#/experiments/{experiment.experiment_id}/runs/{run.info.run_id}" in done.stdout
    )
    assert run.data.metrics["headline/n"] == 8
    names = {entry.path for entry in client.list_artifacts(run.info.run_id)}
    assert {"scores.jsonl", "metrics.json", "style_matrix.png", "run.json"} <= names
