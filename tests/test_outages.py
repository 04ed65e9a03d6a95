"""Commands whose tracking server goes away while they work."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from away import Server
from running import Ended, run_script
from scored_rows import write_lines
from test_tracking import fresh_database

from rmexp import deliver
from rmexp.cli import commands, sweeps
from rmexp.tracking.run_folder import undelivered
from rmexp.tracking.runs import MlflowClient

Evaluate = Callable[..., Ended]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    for owner in (commands, sweeps):
        monkeypatch.setattr(owner, "_PATIENCE", 0.0)
    return Server(monkeypatch)


@pytest.fixture
def uri(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return fresh_database(tmp_path_factory, tmp_path / "mlflow.db")


@pytest.fixture
def evaluate(tmp_path: Path, project_root: Path, uri: str) -> Evaluate:
    """`python eval_rm.py` on two recorded pairs, with its results in `out`."""
    row = {"prompt": "q", "chosen": "a", "rejected": "b"}
    pairs = write_lines(tmp_path / "pairs.jsonl", [row | {"id": "a"}, row | {"id": "b"}])
    scores = [{"id": name, "chosen": [1], "rejected": [0]} for name in "ab"]
    path = write_lines(tmp_path / "recorded.jsonl", scores)
    words = ["model=recorded", f"model.path={path}", "bench=preference", f"bench.path={pairs}"]
    words += [f"out_dir={tmp_path / 'out'}", f"tracking.uri={uri}"]
    words += [f"store_dir={tmp_path / 'store'}"]
    return lambda *more: run_script(project_root, ["eval_rm.py", *more, *words])


def runs(uri: str) -> list[Any]:
    """Return all runs, the first to begin first."""
    client = MlflowClient(tracking_uri=uri)
    ids = [each.experiment_id for each in client.search_experiments()]
    return list(client.search_runs(ids, order_by=["attributes.start_time"]))


def test_a_run_ends_whole_says_so_and_is_delivered_by_the_next_one(evaluate, uri, server, tmp_path):
    out = tmp_path / "out"
    server.until = "use"
    done = evaluate()
    assert done.code == 1
    last = done.err.strip().splitlines()[-1]
    command = f"python -m rmexp.deliver {re.escape(str(out))}"
    assert re.match(rf"the results are whole, .* with {command} \(the tracking server ", last)
    status = json.loads((out / "run.json").read_text())
    assert status["status"] == "FINISHED"
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["preference/accuracy"] == 1
    assert [run.info.status for run in runs(uri)] == ["RUNNING"]

    written = {path: path.stat().st_mtime_ns for path in out.glob("*.*") if path.suffix != ".log"}
    again = evaluate()
    assert again.code == 1
    assert re.search(rf"has a run that is not delivered .*{command}, or give another", again.err)
    assert all(path.stat().st_mtime_ns == time for path, time in written.items())

    server.back()
    third = evaluate()
    assert third.code == 0, third.err
    assert undelivered(out) == []
    first, second = runs(uri)
    assert first.info.run_id == status["run_id"]
    assert first.info.status == second.info.status == "FINISHED"
    assert first.data.metrics["headline"] == second.data.metrics["headline"] == 1
    assert first.data.params == second.data.params
    client = MlflowClient(tracking_uri=uri)
    files = [{each.path for each in client.list_artifacts(run.info.run_id)} for run in runs(uri)]
    assert files[0] == files[1] >= {"metrics.json", "run.json", "scores.jsonl", "eval_rm.log"}


@pytest.mark.parametrize("back", [False, True])
def test_a_sweep_whose_server_goes_away(evaluate, uri, server, tmp_path, monkeypatch, back):
    """Its second job begins without one; the jobs are delivered when the sweep ends, or later."""
    out = tmp_path / "out"
    server.until = "use"
    report = sweeps._report

    def reported(*args: Any) -> None:
        if back:
            server.back()
        report(*args)

    monkeypatch.setattr(sweeps, "_report", reported)
    done = evaluate("-m", "seed=1,2")
    assert done.code == (0 if back else 1), done.err
    assert "2 of 2 jobs finished" in done.out
    if not back:
        assert f"python -m rmexp.deliver {out} " in done.err.strip().splitlines()[-1]
        begun = json.loads((out / "1" / "run.json").read_text())
        assert begun["run_id"].startswith("undelivered-")
        server.back()
        assert len(deliver.deliver(out)) == 3
    assert undelivered(out) == []
    parent, *jobs = runs(uri)
    assert {run.info.status for run in (parent, *jobs)} == {"FINISHED"}
    assert [run.data.metrics["headline"] for run in jobs] == [1, 1]
    for number, run in enumerate(jobs):
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert json.loads((out / str(number) / "run.json").read_text())["run_id"] == run.info.run_id
        assert run.data.params["seed"] == str(number + 1)
