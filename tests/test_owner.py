"""Runs whose process is gone, told apart from all others."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_tracking import fresh_database

from rmexp.tracking import owner
from rmexp.tracking.runs import MlflowClient, tracked_run


@pytest.fixture
def uri(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return fresh_database(tmp_path_factory, tmp_path / "mlflow.db")


@pytest.fixture
def child() -> Iterator["subprocess.Popen[bytes]"]:
    """A process that lives until its input ends."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process


def tags_of(pid: int) -> dict[str, str]:
    """The tags of a run of another process."""
    tick = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return owner.tags() | {owner.PROCESS: f"{pid} started at tick {tick}"}


def run_with(uri: str, tags: dict[str, str], experiment: str = "tests") -> str:
    """A run with these tags that says RUNNING."""
    client = MlflowClient(tracking_uri=uri)
    there = client.get_experiment_by_name(experiment)
    place = there.experiment_id if there else client.create_experiment(experiment)
    run_id: str = client.create_run(place, tags=tags).info.run_id
    return run_id


def test_a_run_says_whose_it_is(uri):
    with tracked_run(uri, "tests", "a test", {}) as run:
        tags = run.client.get_run(run.run_id).data.tags
    assert tags_of(os.getpid()).items() <= tags.items()
    assert tags[owner.HOST] == os.uname().nodename
    assert tags[owner.KERNEL].startswith(Path("/proc/sys/kernel/random/boot_id").read_text()[:36])


def test_only_runs_whose_process_is_gone_are_ended(uri, child):
    mine, its = owner.tags(), tags_of(child.pid)
    reused = mine | {owner.PROCESS: f"{os.getpid()} started at tick 1"}
    nobody = mine | {owner.PROCESS: f"{2**22 + 1} started at tick 1"}  # Linux's ids end before
    gone = [run_with(uri, reused), run_with(uri, nobody), run_with(uri, nobody, "another")]
    left = [
        run_with(uri, tags)
        for tags in (
            mine,
            its,
            {},
            nobody | {owner.HOST: "elsewhere"},
            nobody | {owner.KERNEL: "of another boot"},
            nobody | {owner.PROCESS: "5"},
            nobody | {owner.PROCESS: f"{10**30} started at tick 1"},
            {name: value for name, value in nobody.items() if name != owner.KERNEL},
        )
    ]
    done = run_with(uri, nobody)
    client = MlflowClient(tracking_uri=uri)
    client.set_terminated(done, "FINISHED")
    with tracked_run(uri, "tests", "a command", {}) as run:
        run.end_dead()
        left.append(run.run_id)
        assert [client.get_run(each).info.status for each in left] == ["RUNNING"] * len(left)
    for each in gone:
        found = client.get_run(each)
        assert (found.info.status, found.data.tags["rmexp.error"]) == ("KILLED", "its process died")
    assert client.get_run(done).info.status == "FINISHED"


def test_a_process_that_nobody_waited_for_is_gone(uri, child):
    tags = tags_of(child.pid)
    run_id = run_with(uri, tags)
    client = MlflowClient(tracking_uri=uri)
    assert owner.dead_runs(client) == []
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and stays a zombie
    assert owner.dead_runs(client) == [run_id]


def test_a_process_whose_state_is_hidden_is_left_alone(uri, child, monkeypatch, tmp_path):
    """Another user's, where /proc shows only one's own."""
    tags = tags_of(child.pid)
    run_with(uri, tags | {owner.PROCESS: f"{child.pid} started at tick 1"})
    own = tmp_path / "proc"
    (own / "sys/kernel/random").mkdir(parents=True)
    (own / "sys/kernel/random/boot_id").write_text(tags[owner.KERNEL].split()[0])
    (own / "self").symlink_to("/proc/self")
    monkeypatch.setattr(owner, "_PROC", own)
    assert owner.dead_runs(MlflowClient(tracking_uri=uri)) == []


def test_a_system_that_does_not_tell_leaves_all_alone(uri, monkeypatch, tmp_path):
    run_with(uri, owner.tags() | {owner.PROCESS: f"{os.getpid()} started at tick 1"})
    monkeypatch.setattr(owner, "_PROC", tmp_path)
    assert owner.tags() == {owner.HOST: os.uname().nodename, owner.PROCESS: str(os.getpid())}
    assert owner.dead_runs(MlflowClient(tracking_uri=uri)) == []
