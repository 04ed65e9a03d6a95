"""Sweeps as a user runs them: one process each, or side by side with joblib."""

import csv
import json
import os
import platform
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from filelock import FileLock, Timeout
from hydra.core.plugins import Plugins
from running import Ended, run_apart, run_script
from scored_rows import score, write_lines
from test_tracking import fresh_database
from tiny import tiny_policy, tiny_scalar

from rmexp.benchmarks.toy import Toy
from rmexp.cli import jobs, sweeps
from rmexp.cli.jobs import Job, note_job
from rmexp.metrics import headline
from rmexp.models import loading
from rmexp.schema import Example, Message
from rmexp.scoring.rewards import open_reward
from rmexp.scoring.score import Settings
from rmexp.scoring.store import ScoreStore
from rmexp.stats.bestofn import Point, kl, write
from rmexp.tracking import owner
from rmexp.tracking.run_folder import hold, read_status, running, write_status
from rmexp.tracking.runs import MlflowClient, open_run


class Place:
    """Two models and two benchmarks as config files of a user's own, and a place for results."""

    def __init__(self, top: Path, root: Path) -> None:
        self.top, self.root = top, root
        for folder in ("model", "bench"):
            (top / "conf" / folder).mkdir(parents=True)
        self.config("model", "one", "/model/local", path=str(tiny_scalar(top / "one")))
        self.config("model", "two", "/model/local", path=str(tiny_policy(top / "two")))
        rows = [{"prompt": f"{i}?", "chosen": "yes" * (i + 1), "rejected": "no"} for i in range(30)]
        pairs = str(write_lines(top / "pairs.jsonl", rows))
        self.config("bench", "pairs", "/bench/preference", path=pairs)
        bad = write_lines(top / "bad.jsonl", [{"prompt": "?", "chosen": "a"}])
        self.config("bench", "bad", "/bench/preference", path=str(bad))

    def config(self, group: str, name: str, base: str, path: str) -> None:
        text = f"defaults:\n  - {base}@_here_\n  - _self_\nname: {name}\npath: {path}\n"
        if group == "bench":
            text = text.replace(f"name: {name}\n", "")
        (self.top / "conf" / group / f"{name}.yaml").write_text(text)

    def uri(self, database: str = "mlflow.db") -> str:
        return f"sqlite:///{self.top}/{database}"

    def run(
        self,
        *words: str,
        out: str = "out",
        database: str = "mlflow.db",
        code: int = 0,
        apart: bool = False,
    ) -> Ended:
        """Run it here, or `apart`, in a process of its own."""
        command = [
            "eval_rm.py",
            *words,
            f"hydra.searchpath=[file://{self.top}/conf]",
            f"out_dir={self.top / out}",
            f"store_dir={self.top / 'store'}",
            f"tracking.uri={self.uri(database)}",
            "tracking.experiment=sweeps",
        ]
        if apart:
            ended = run_apart(self.root, command)
        else:
            ended = run_script(self.root, command, [(Toy, "figures")])
        assert ended.code == code, ended.err[-3000:]
        assert "Traceback" not in ended.err
        return ended

    def runs(self, database: str = "mlflow.db") -> list[Any]:
        """Every run of every experiment."""
        client = MlflowClient(tracking_uri=self.uri(database))
        every = [experiment.experiment_id for experiment in client.search_experiments()]
        return list(client.search_runs(every))

    def job(self, number: int, out: str = "out") -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.top / out / str(number) / "run.json").read_text())
        return found


@pytest.fixture
def place(tmp_path: Path, project_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    fresh_database(tmp_path_factory, tmp_path / "mlflow.db")
    return Place(tmp_path, project_root)


def check_sweep(place: Place, out: str, database: str, statuses: list[str]) -> Any:
    """Assert on the parent and the children of the only sweep in a database; return the parent."""
    runs = place.runs(database)
    client = MlflowClient(tracking_uri=place.uri(database))
    experiment = client.get_experiment_by_name("sweeps")
    assert experiment is not None
    assert {run.info.experiment_id for run in runs} == {experiment.experiment_id}
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if run is not parent]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert {run.data.tags["rmexp.sweep"] for run in children} == {parent.info.run_id}
    left = [place.job(number, out) for number in range(len(statuses))]
    assert [job["status"] for job in left] == statuses
    by_id = {run.info.run_id: run.info.status for run in children}
    assert [by_id[job["run_id"]] for job in left if "run_id" in job] == [
        job["status"] for job in left if "run_id" in job
    ]
    return parent


@pytest.mark.real
def test_side_by_side_on_a_fresh_database(place: Place) -> None:
    """Four jobs, of which two fail; the models' files are fine. Then the same with skip_done."""
    words = ["-m", "model=one,two", "bench=toy,bad", "bench.limit=2"]
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    database = "not-there-yet.db"
    done = place.run(*words, *launcher, code=1, database=database, apart=True)
    parent = check_sweep(place, "out", database, ["FINISHED", "FAILED"] * 2)
    assert parent.info.status == "FAILED"
    note = parent.data.tags["mlflow.note.content"]
    assert note.count("| FINISHED | toy/overall 0.") == 2
    assert "model=two bench=bad" in note
    assert "toy/overall" in done.out
    with (place.top / "out" / "sweep.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["status"] for row in table] == ["FINISHED", "FAILED"] * 2
    assert [row["run_id"] for row in table] == [place.job(i)["run_id"] for i in range(4)]
    children = {run.info.run_id: run for run in place.runs(database)}
    error = children[place.job(1)["run_id"]].data.tags["rmexp.error"]
    assert "rejected" in error
    assert error in (place.top / "out/1/eval_rm.log").read_text()
    kept = children[place.job(2)["run_id"]].data
    assert kept.params["model.name"] == "two"
    assert "toy/overall" in kept.metrics

    again = place.run(*words, "skip_done=true", out="again", code=1, database=database)
    assert place.job(0, "again")["run_id"] == place.job(0)["run_id"]
    assert place.job(0, "again")["skipped"] is True
    assert place.job(1, "again")["status"] == "FAILED"
    assert "done before" in again.out
    for number in (0, 2):
        first = json.loads((place.top / f"out/{number}/metrics.json").read_text())
        second = json.loads((place.top / f"again/{number}/metrics.json").read_text())
        assert first == second
    assert sum(run.info.status == "FINISHED" for run in place.runs(database)) == 2


def test_the_models_page_compares_models_by_data_set(place: Place) -> None:
    """Two models on two data sets, one of them pairs with a file of their own; read by MLflow."""
    path = place.top / "pairs.jsonl"
    text = f"defaults:\n  - preference\n  - _self_\npath: {path}\n"
    (place.top / "conf" / "bench" / "mine.yaml").write_text(text)
    place.run("-m", "model=one,two", "bench=toy,mine", "bench.limit=2")
    client = MlflowClient(tracking_uri=place.uri())
    experiment = client.get_experiment_by_name("sweeps")
    assert experiment is not None
    models = {m.name: m for m in client.search_logged_models([experiment.experiment_id])}
    assert sorted(models) == ["one", "two"]
    for at, name in enumerate(sorted(models)):
        found = models[name].metrics or []
        assert len(found) <= 40
        names = [m.dataset_name.partition(" #")[0] for m in found]
        assert set(names) == {"toy", "mine"}
        assert all(m.key.startswith(f"{n}/") for m, n in zip(found, names, strict=True))
        shown = {m.key: m.value for m in found}
        for job, headline_name in ((2 * at, "toy/overall"), (2 * at + 1, "mine/accuracy")):
            numbers = json.loads((place.top / f"out/{job}/metrics.json").read_text())
            assert shown[headline_name] == pytest.approx(numbers[headline_name])
    params = [client.get_run(place.job(job)["run_id"]).data.params for job in range(4)]
    assert differing(params[0], params[1]) == {"bench", "bench.name", *OF_PAIRS}
    assert differing(params[0], params[2]) == {"model", "model.name", "model.path"}


OF_PAIRS = {"bench.examples", "bench.offset", "bench.on_bad_row", "bench.path"}


def differing(one: dict[str, str], other: dict[str, str]) -> set[str]:
    """What MLflow's page of two runs marks."""
    return {name for name in one | other if one.get(name) != other.get(name)}


def test_jobs_side_by_side_compute_nothing_twice(place: Place) -> None:
    """Two jobs need the same 60 responses: together they compute 60."""
    words = ["-m", "model=one", "bench=pairs", "seed=0,1", "batch_tokens=64"]
    place.run(*words, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", apart=True)
    counts = [
        json.loads((place.top / f"out/{number}/metrics.json").read_text()) for number in range(2)
    ]
    computed = [row["scoring/unique"] - row["scoring/cached"] for row in counts]
    assert sum(computed) == 60
    scores = {(place.top / f"out/{number}/scores.jsonl").read_text() for number in range(2)}
    assert len(scores) == 1


@pytest.mark.real
def test_one_after_the_other_leaks_nothing(place: Place) -> None:
    """The second job of a sweep gives what it gives alone, in a store of its own."""
    place.run("-m", "model=two,one", "bench=toy", "bench.limit=2")
    check_sweep(place, "out", "mlflow.db", ["FINISHED", "FINISHED"])
    for kept in (place.top / "store").glob("*/*.jsonl"):
        kept.unlink()
    place.run("model=one", "bench=toy", "bench.limit=2", out="alone", apart=True)
    for name in ("scores.jsonl", "metrics.csv", "first_example.txt"):
        alone = (place.top / "alone" / name).read_text()
        assert (place.top / "out/1" / name).read_text() == alone
    assert (
        "rmexp.sweep"
        not in MlflowClient(tracking_uri=place.uri())
        .get_run(json.loads((place.top / "alone/run.json").read_text())["run_id"])
        .data.tags
    )


@pytest.mark.parametrize("subdir", ["job_${hydra.job.num}", "${model.name}/${hydra.job.num}"])
def test_jobs_are_found_whatever_their_folders_are_called(place: Place, subdir: str) -> None:
    """Another sweep's folders and the database lie there, too."""
    words = ["-m", "model=one", "bench=pairs,bad", f"hydra.sweep.subdir='{subdir}'"]
    for _ in range(2):
        done = place.run(*words, code=1)
        assert "bench=pairs" in done.out
    folders = [place.top / "out" / subdir.replace("${hydra.job.num}", n) for n in "01"]
    folders = [Path(str(folder).replace("${model.name}", "one")) for folder in folders]
    statuses = [json.loads((folder / "run.json").read_text()) for folder in folders]
    assert [status["status"] for status in statuses] == ["FINISHED", "FAILED"]
    parents = [run for run in place.runs() if "mlflow.parentRunId" not in run.data.tags]
    assert [run.info.status for run in parents] == ["FAILED", "FAILED"]
    with (place.top / "out" / "sweep.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["run_id"] for row in table] == [status["run_id"] for status in statuses]


def test_jobs_in_one_folder_are_refused(place: Place) -> None:
    words = ["-m", "model=one", "bench=pairs", "seed=0,1", "hydra.sweep.subdir=same"]
    done = place.run(*words, code=1)
    assert "the jobs 0, 1 have one folder" in done.err
    assert "hydra.sweep.subdir" in done.err


def test_a_sweep_with_a_job_whose_config_does_not_compose_is_not_begun(place: Place) -> None:
    done = place.run("-m", "model=one", "bench=nothing_of_the_kind,pairs", code=1)
    assert "Could not find 'bench/nothing_of_the_kind'" in done.err
    assert not place.runs()


def test_fail_fast_stops_at_the_first_failure(place: Place) -> None:
    done = place.run("-m", "model=one", "bench=bad,toy", "fail_fast=true", code=1)
    parent = check_sweep(place, "out", "mlflow.db", ["FAILED", "NOT_RUN"])
    assert parent.info.status == "FAILED"
    assert len(place.runs()) == 2
    assert "fail_fast" in done.out


@pytest.mark.parametrize("words", [["bench=[toy,rmb]"], ["model=[one,two]", "bench=toy"]])
def test_a_list_that_would_be_merged_is_refused(place: Place, words: list[str]) -> None:
    group, _, choices = words[0].partition("=")
    done = place.run(*words, code=1)
    assert f"-m {group}={choices.strip('[]')}" in done.err.strip().splitlines()[-1]


def test_a_killed_sweep_leaves_nothing_running(place: Place) -> None:
    """Its jobs wait for the store, so that none can end before."""
    (column,) = open_reward(path=str(place.top / "one")).columns
    with ScoreStore(place.top / "store", column.identity(place.top / "store")) as store:
        claims = store.folder / "claims"
    claims.mkdir()
    with FileLock(claims / "all.lock"):
        kill_once_a_job_has_begun(place)
    statuses = [run.info.status for run in place.runs()]
    assert len(statuses) >= 2
    assert set(statuses) == {"KILLED"}


def kill_once_a_job_has_begun(place: Place) -> None:
    words = ["-m", "model=one", "bench=toy", "bench.limit=1", "seed=0,1"]
    process = subprocess.Popen(
        [
            sys.executable, "eval_rm.py", *words,
            "hydra/launcher=joblib", "hydra.launcher.n_jobs=2",
            f"hydra.searchpath=[file://{place.top}/conf]", f"out_dir={place.top / 'out'}",
            f"store_dir={place.top / 'store'}", f"tracking.uri={place.uri()}",
            "tracking.experiment=sweeps",
        ],
        cwd=place.root, env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    with process:
        while not any(
            "run_id" in read_status(path.parent) for path in place.top.glob("out/*/run.json")
        ):
            assert process.poll() is None
            time.sleep(0.05)
        process.terminate()
        assert process.wait() == 1


def test_a_sweep_that_died_is_ended_by_the_next_one_in_its_folder(place: Place) -> None:
    """Its second job is none of the new sweep's; a third one is still at work."""
    dead = [open_run(place.uri(), "sweeps", str(number), {}) for number in range(4)]
    reused = owner.tags() | {owner.PROCESS: f"{os.getpid()} started at tick 1"}
    dead.append(open_run(place.uri(), "elsewhere", "of another folder", reused))
    for number, run in enumerate(dead[:3]):
        (place.top / "out" / str(number)).mkdir(parents=True)
        found = {"run_id": run.run_id, "sweep": dead[3].run_id, **running()}
        write_status(place.top / "out" / str(number), found)
        note_job(place.top / "out", number, place.top / "out" / str(number))
    found = {"run_id": dead[3].run_id, "varied": []}
    (place.top / "out" / "sweep.json").write_text(json.dumps(found))
    with hold(place.top / "out" / "2"):
        place.run("-m", "model=one", "bench=toy", "bench.limit=1", "seed=0")
    client = MlflowClient(tracking_uri=place.uri())
    statuses = [client.get_run(run.run_id).info.status for run in dead]
    assert statuses == ["KILLED", "KILLED", "RUNNING", "KILLED", "KILLED"]
    with hold(place.top / "out"):
        done = place.run("-m", "model=one", "bench=toy", "seed=0", code=1)
    assert "another process is at work" in done.err


def test_a_sweep_that_is_stopped_says_what_each_job_of_its_grid_did(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first job is still at work, as one of a cluster may be; the second has died."""

    def launch(words: Sequence[Sequence[str]], initial_job_idx: int) -> None:
        assert len(words) == 4
        for number in range(2):
            folder = place.top / "out" / str(number)
            folder.mkdir(exist_ok=True)
            write_status(folder, {"overrides": list(words[number]), **running()})
            note_job(folder.parent, number, folder)
        raise OSError("a worker died")

    launcher = SimpleNamespace(launch=launch)
    monkeypatch.setattr(Plugins, "instantiate_launcher", lambda *_, **__: launcher)
    with hold(place.top / "out" / "0"):
        done = place.run("-m", "model=one,two", "bench=pairs,bad", code=1)
    with (place.top / "out" / "sweep.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["status"] for row in table] == ["RUNNING", "KILLED", "NOT_RUN", "NOT_RUN"]
    assert table[0]["headline metric or error"].startswith(f"still at work, process {os.getpid()}")
    assert table[3]["overrides"] == "model=two bench=bad"
    assert "0 of 4 jobs finished, 4 did not" in done.out
    assert "skip_done=true does the rest" in done.err


def test_the_weights_are_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    load = loading.load_scalar

    def watched(*args: Any) -> Any:
        model = load(*args)
        seen.append(weakref.ref(model))
        return model

    monkeypatch.setattr(loading, "load_scalar", watched)
    example = Example("a", "s", (Message("user", "?"),), ("yes",), ("no",))
    reward = open_reward(path=str(tiny_scalar(tmp_path / "model")))
    score(reward, [example], Settings(tmp_path / "store"))
    sweeps.free_memory()
    assert len(seen) == 1
    assert seen[0]() is None


def test_jobs_get_a_gpu_each_and_wait_for_a_free_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two devices and five jobs: never more than one on each, and all of them run."""
    said: list[str] = []  # whatever an earlier command made of the loggers
    monkeypatch.setattr(sweeps.log, "info", lambda text, *words: said.append(text % words))
    monkeypatch.setattr(sweeps, "_POLL", 0.01)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    here = threading.local()
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: setattr(here, "at", device))
    at_work: list[int] = []
    most, done = 0, []
    both, watched = threading.Barrier(2, timeout=60), threading.Lock()

    def job(number: int) -> None:
        nonlocal most
        with sweeps.one_gpu(tmp_path):
            with watched:
                assert here.at not in at_work
                at_work.append(here.at)
                most = max(most, len(at_work))
            if number < 2:
                both.wait()  # the first two are there together
            with watched:
                at_work.remove(here.at)
                done.append(here.at)

    with ThreadPoolExecutor(2) as first:
        list(first.map(job, range(2)))
    with ThreadPoolExecutor(3) as rest:
        list(rest.map(job, range(2, 5)))
    assert (most, len(done), set(done)) == (2, 5, {0, 1})
    third = threading.Thread(target=job, args=(9,))
    with sweeps.one_gpu(tmp_path), sweeps.one_gpu(tmp_path):
        third.start()
        while "waiting for a free one of 2 GPUs" not in said:
            time.sleep(0.01)
        assert len(done) == 5
        taken = FileLock(tmp_path / f"{platform.node()}-gpu0.lock", blocking=False)
        with pytest.raises(Timeout), taken:
            pass
    third.join(60)
    assert len(done) == 6


def test_jobs_to_which_the_launcher_showed_a_gpu_each_do_not_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Ray does: each job's only device has the number 0."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    with ExitStack() as held:
        for shown in ("2", "3"):
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
            held.enter_context(sweeps.one_gpu(tmp_path))


def test_a_machine_without_gpu_has_none_to_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with sweeps.one_gpu(tmp_path):
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("config", "uses"),
    [
        ({"model": {"device": "auto"}}, True),
        ({"model": {"device": "cuda:1"}}, False),  # which is the user's choice
        ({"model": {"device": "cpu"}, "trainer": {"accelerator": "cpu"}}, False),
        ({"model": {"device": "cpu"}, "trainer": {"accelerator": "gpu"}}, True),
        ({"model": {"path": "scores.jsonl"}}, False),
        ({"model": {"url": None, "local": {"device": "auto"}}}, True),
        ({"model": {"url": "http://127.0.0.1:1/v1", "local": {"device": "auto"}}}, False),
        ({"scores": {}, "policy": {}}, False),
    ],
)
def test_only_a_job_with_weights_of_its_own_takes_a_gpu(config: Any, uses: bool) -> None:
    assert sweeps.uses_gpu(config) == uses


def test_the_curves_of_the_jobs_share_a_figure(tmp_path: Path) -> None:
    """Two of three jobs left a curve; the third was on another benchmark."""
    words = [("model=a", "bench=bon100"), ("model=a", "bench=rmb"), ("model=b", "bench=bon100")]
    done = [
        Job(tmp_path / str(i), i, word, "FINISHED", f"r{i}", "") for i, word in enumerate(words)
    ]
    for job in done:
        (tmp_path / str(job.number)).mkdir()
    assert sweeps._curves(tmp_path, done) == []
    for job in (done[0], done[2]):
        points = [Point("recorded_reward", "selected", n, kl(n), n, n, n, 1) for n in (1, 2)]
        write(tmp_path / str(job.number) / "curve.csv", points)
    assert sweeps._curves(tmp_path, done[:2]) == []
    paths = sweeps._curves(tmp_path, done)
    assert paths == [tmp_path / "curve_recorded_reward.png"]
    assert paths[0].stat().st_size > 10_000


def test_the_table_shows_what_differs() -> None:
    table = [
        Job(Path("0"), 0, ("model=a", "bench=rmb", "seed=1"), "FINISHED", "r0", "rmb/overall 0.5"),
        Job(
            Path("1"), 1, ("model=b", "bench=rmb", "seed=1"), "FAILED", "", "no such | file\nat all"
        ),
    ]
    assert jobs.job_rows(table) == [
        ("0", "model=a", "FINISHED", "rmb/overall 0.5"),
        ("1", "model=b", "FAILED", "no such | file\nat all"),
    ]
    assert [job.failed for job in table] == [False, True]
    assert jobs.markdown(table).splitlines()[2:] == [
        "| 0 | model=a | FINISHED | rmb/overall 0.5 |",
        "| 1 | model=b | FAILED | no such \\| file at all |",
    ]


def test_headline() -> None:
    metrics = {"a/overall/partial": 0.5, "a/overall/partial/n": 1200.0}
    assert headline(metrics, "a/overall") == "a/overall/partial 0.500 (n 1,200)"
    metrics |= {"a/overall/partial/low": 0.25, "a/overall/partial/high": 0.75}
    assert headline(metrics, "a/overall") == "a/overall/partial 0.500 (0.250 to 0.750, n 1,200)"
    assert headline({}, "a/overall") == ""


@pytest.mark.real
@pytest.mark.timeout(3000)
def test_four_real_jobs_six_times(tmp_path: Path, project_root: Path, shared: Path) -> None:
    """SmolLM2 and a tiny scalar model on two benchmarks, one of which fails; never misfiled."""
    for turn in range(6):
        place = Place(tmp_path / str(turn), project_root)
        llmbar = str(shared / "data/reward_bench/llmbar.jsonl")
        place.config("bench", "llmbar", "/bench/rewardbench", path=llmbar)
        words = ["-m", "model=smollm2,one", "bench=llmbar,toy", "bench.limit=1"]
        words += ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
        place.config("model", "one", "/model/local", path=str(place.top / "nowhere"))
        place.run(*words, code=1, apart=True)
        check_sweep(place, "out", "mlflow.db", ["FINISHED"] * 2 + ["FAILED"] * 2)
        tiny = str(place.top / "one")
        place.config("model", "one", "/model/local", path=tiny)
        place.run(*words, "skip_done=true", out="again", apart=True)
        left = [place.job(number, "again") for number in range(4)]
        assert [job.get("skipped", False) for job in left] == [True, True, False, False]
        assert {job["status"] for job in left} == {"FINISHED"}
        runs = place.runs()
        assert len({run.info.experiment_id for run in runs}) == 1
        assert "RUNNING" not in {run.info.status for run in runs}
        parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
        assert len(runs) == 2 + 4 + 2 == len(parents) + 6


def test_a_command_follows_a_sweep_that_went_well(place: Place) -> None:
    script = place.top / "then.py"
    script.write_text(
        "import json, pathlib, sys\n"
        "place = pathlib.Path(__file__).parent\n"
        "(place / 'words.json').write_text(json.dumps(sys.argv[1:]))\n"
        "sys.exit(3)\n"
    )
    words = ["-m", "model=one", "bench.limit=1,2", f"then=['{script}','a=b']"]
    place.run(*words, "bench=bad", out="bad", code=1)
    assert not (place.top / "words.json").exists()
    place.run(*words, "bench=pairs", code=3)
    got = json.loads((place.top / "words.json").read_text())
    assert got == [
        "a=b",
        f"tracking.uri='{place.uri()}'",
        "tracking.experiment='sweeps'",
        f"out_dir='{place.top / 'out' / 'then'}'",
    ]
