import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import mlflow
import pytest
from filelock import FileLock

from rmexp.errors import ConfigError, DataError
from rmexp.signals import Killed, killable
from rmexp.tracking import connection, entries, pages
from rmexp.tracking import runs as tracking
from rmexp.tracking.entries import Destination
from rmexp.tracking.logged_models import Card
from rmexp.tracking.models import fetch_model
from rmexp.tracking.outbox import Outbox
from rmexp.tracking.registry import register
from rmexp.tracking.runs import MlflowClient, Run, TrackingError, redact, tracked_run
from rmexp.tracking.system import watched

TAGS = {"rmexp.command": "test"}


def fresh_database(factory: pytest.TempPathFactory, path: Path) -> str:
    """Put a database with no experiment but MLflow's own at `path`, and return its address.

    Making one takes seconds, so all tests copy the same one.
    """
    top = factory.getbasetemp()
    made = (top.parent if top.name.startswith("popen-") else top) / "mlflow" / "empty.db"
    made.parent.mkdir(exist_ok=True)
    with FileLock(f"{made}.lock"):
        if not made.exists():
            draft = made.with_name("draft.db")
            MlflowClient(tracking_uri=f"sqlite:///{draft}").search_experiments()
            draft.rename(made)
    shutil.copy(made, path)
    return f"sqlite:///{path}"


@pytest.fixture
def uri(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return fresh_database(tmp_path_factory, tmp_path / "mlflow.db")


def opened(uri: str, work: Callable[[Run], None] = lambda run: None, **more: Any) -> Any:
    """Do the work within a run, and return what MLflow has of it."""
    with tracked_run(uri, "tests", "a test", TAGS, **more) as run:
        work(run)
    return run.client.get_run(run.run_id)


def ended(uri: str) -> Any:
    """Return the only run there is."""
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("tests")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    return run


def test_a_run_that_ends_well(uri, tmp_path, project_root):
    def work(run: Run) -> None:
        assert run.client.get_run(run.run_id).info.status == "RUNNING"

    run = opened(uri, work)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "a test"
    assert run.data.tags["rmexp.command"] == "test"
    assert run.data.tags["mlflow.source.git.commit"] == tracking.git_commit(project_root)
    assert "rmexp.error" not in run.data.tags
    assert run.info.artifact_uri.startswith((tmp_path / "mlartifacts" / "tests").as_uri())


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (ValueError("went\nwrong"), "FAILED", "went"),
        (ZeroDivisionError(), "FAILED", "ZeroDivisionError"),
        (SystemExit(3), "FAILED", "3"),
        (KeyboardInterrupt(), "KILLED", "KeyboardInterrupt"),
        (Killed(signal.SIGTERM), "KILLED", "killed by SIGTERM"),
        (OSError("no way to http://me:secret@host/x"), "FAILED", "no way to http://host/x"),
    ],
)
def test_a_run_that_does_not(uri, error, status, reason):
    def work(run: Run) -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        opened(uri, work)
    assert caught.value is error
    run = ended(uri)
    assert run.info.status == status
    assert run.info.end_time is not None
    assert run.data.tags["rmexp.error"] == reason


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_run_begins_is_held_back(uri, monkeypatch, number):
    create = MlflowClient.create_run
    began = []

    def create_run(self: MlflowClient, *args: Any, **kwargs: Any) -> Any:
        made = create(self, *args, **kwargs)
        os.kill(os.getpid(), number)
        began.append(made.info.run_id)
        return made

    monkeypatch.setattr(MlflowClient, "create_run", create_run)
    with pytest.raises(Killed) as caught, killable():
        opened(uri, lambda run: pytest.fail("the work began"))
    assert caught.value.code == 1
    run = ended(uri)
    assert began == [run.info.run_id]
    assert run.info.status == "KILLED"
    assert run.data.tags["rmexp.error"] == f"killed by {signal.Signals(number).name}"


def test_a_signal_just_after_the_run_began(uri):
    with pytest.raises(Killed), killable():
        opened(uri, lambda run: os.kill(os.getpid(), signal.SIGTERM))
    assert ended(uri).info.status == "KILLED"


def test_a_signal_while_connecting_leaves_nothing_running(uri, monkeypatch):
    connect = entries.connect

    def slow(*args: Any) -> Any:
        found = connect(*args)
        os.kill(os.getpid(), signal.SIGTERM)
        return found

    monkeypatch.setattr(entries, "connect", slow)
    with pytest.raises(Killed), killable():
        opened(uri, lambda run: pytest.fail("the work began"))
    client = MlflowClient(tracking_uri=uri)
    experiments = [found.experiment_id for found in client.search_experiments()]
    assert {run.info.status for run in client.search_runs(experiments)} <= {"KILLED"}


def test_a_signal_sent_twice_does_not_keep_the_run_from_ending(uri, monkeypatch):
    end = tracking._end

    def again(*args: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        end(*args)

    monkeypatch.setattr(tracking, "_end", again)
    with pytest.raises(Killed), killable():
        opened(uri, lambda run: os.kill(os.getpid(), signal.SIGTERM))
    assert ended(uri).info.status == "KILLED"


def test_a_run_that_cannot_be_ended_is_reported_besides_its_error(uri, monkeypatch, caplog):
    def gone(*args: Any) -> None:
        raise OSError("the server http://me:secret@host is gone")

    def work(run: Run) -> None:
        monkeypatch.setattr(MlflowClient, "set_tag", gone)
        raise ValueError("the reason")

    with pytest.raises(ValueError, match="the reason"):
        opened(uri, work)
    assert "could not end the run" in caplog.text
    assert "http://host is gone" in caplog.text
    assert "secret" not in caplog.text


def test_a_server_that_stops_answering_is_named(uri, monkeypatch):
    def gone(*args: Any, **kwargs: Any) -> None:
        raise OSError("no answer")

    def work(run: Run) -> None:
        monkeypatch.setattr(MlflowClient, "log_batch", gone)
        run.log_metrics({"a": 1.0})

    with pytest.raises(TrackingError, match=r"sqlite:.*no answer.*run the command again"):
        opened(uri, work)
    assert ended(uri).info.status == "FAILED"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_metric_that_is_not_finite_is_refused_before_any_is_logged(uri, value):
    def work(run: Run) -> None:
        with pytest.raises(ValueError, match=r"metric toy/easy is -?(nan|inf)"):
            run.log_metrics({"toy/hard": 0.5, "toy/easy": value})

    assert opened(uri, work).data.metrics == {}


def test_more_metrics_and_parameters_than_one_call_takes(uri, monkeypatch):
    """A server refuses more than 1,000 metrics or 100 parameters at once, SQLite does not."""
    log_batch = MlflowClient.log_batch

    def strict(self: MlflowClient, run_id: str, **rows: Any) -> None:
        assert len(rows.get("metrics", ())) <= 1000
        assert len(rows.get("params", ())) <= 100
        log_batch(self, run_id, **rows)

    monkeypatch.setattr(MlflowClient, "log_batch", strict)
    metrics = {f"toy/matrix/{number}/low": number / 7 for number in range(2001)}
    params = {"model": {f"key{number}": number for number in range(250)}}

    def work(run: Run) -> None:
        run.log_metrics(metrics)
        run.log_params(params)

    data = opened(uri, work).data
    assert data.metrics == metrics
    assert data.params == {f"model.key{number}": str(number) for number in range(250)}


def test_parameters_keep_their_kinds(uri):
    params = {
        "text": "a b",
        "empty": "",
        "none": None,
        "yes": True,
        "number": 1e-05,
        "list": ["a", 1],
        "nothing": {},
        "names": {"UltraFeedback (FG) PPO": "uf"},
        "model": {"reference": {"path": "x"}, "uri": "http://me:secret@host/x"},
    }
    assert opened(uri, lambda run: run.log_params(params)).data.params == {
        "text": "a b",
        "empty": "",
        "none": "null",
        "yes": "true",
        "number": "1e-05",
        "list": '["a", 1]',
        "nothing": "{}",
        "names.UltraFeedback _FG_ PPO": "uf",
        "model.reference.path": "x",
        "model.uri": "http://host/x",
    }


def test_what_is_too_long_is_cut(uri):
    def work(run: Run) -> None:
        run.log_params({"prompt": "x" * 7000})
        run.note("y" * 9000)

    data = opened(uri, work).data
    assert data.params == {"prompt": "x" * 6000}
    assert data.tags["mlflow.note.content"] == "y" * 8000


def test_the_series_of_a_metric_is_kept(uri):
    def work(run: Run) -> None:
        for step in (0, 10, 20):
            run.log_metrics({"train/loss": 1 / (step + 1)}, step)
        history = run.client.get_metric_history(run.run_id, "train/loss")
        assert [(p.step, p.value) for p in history] == [(0, 1), (10, 1 / 11), (20, 1 / 21)]

    assert opened(uri, work).data.metrics == {"train/loss": 1 / 21}


def test_a_data_set_is_linked(uri):
    def work(run: Run) -> None:
        run.log_dataset("toy", "f" * 64, "http://me:secret@host/toy", {"num_rows": 8})

    (used,) = opened(uri, work).inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("toy #ffff", "f" * 8)
    assert json.loads(used.dataset.profile) == {"num_rows": 8}
    assert json.loads(used.dataset.source) == {"uri": "http://host/toy"}


def test_runs_that_start_together_do_not_insert_a_data_set_twice(uri, monkeypatch):
    """MLflow's database refuses the second of two insertions at once: only one may be under way."""
    inside, most = [], []

    def log_inputs(self: MlflowClient, run_id: str, datasets: Any) -> None:
        inside.append(run_id)
        most.append(len(inside))
        time.sleep(0.05)
        inside.remove(run_id)

    monkeypatch.setattr(MlflowClient, "log_inputs", log_inputs)

    def start(_: int) -> Any:
        return opened(uri, lambda run: run.log_dataset("toy", "f", "toy", {"num_rows": 8}))

    with ThreadPoolExecutor(4) as pool:
        runs = list(pool.map(start, range(4)))
    assert len({run.info.run_id for run in runs}) == len(most) == 4
    assert max(most) == 1


def test_files_that_the_run_wrote_become_artifacts(uri, tmp_path):
    folder = tmp_path / "out"
    (folder / "below").mkdir(parents=True)
    (folder / "a.txt").write_text("a")
    (folder / "below" / "b.txt").write_text("b")
    (folder / "somebody's.txt").write_text("c")

    def work(run: Run) -> None:
        run.keep(folder / "a.txt", folder / "below", folder / "absent.log")
        run.log_kept()
        (folder / "a.txt").write_text("new")
        run.log_file(folder / "a.txt")

    run = opened(uri, work)
    kept = Path(run.info.artifact_uri.removeprefix("file://"))
    found = {str(path.relative_to(kept)) for path in kept.rglob("*") if path.is_file()}
    assert found == {"a.txt", "below/b.txt"}
    assert (kept / "a.txt").read_text() == "new"


def test_a_child_names_its_parent(uri):
    parent = opened(uri)
    child = opened(uri, parent=parent.info.run_id)
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert "mlflow.parentRunId" not in parent.data.tags
    assert child.info.experiment_id == parent.info.experiment_id


def test_an_experiment_is_made_once_and_found_again(uri):
    first, second = opened(uri), opened(uri)
    assert first.info.experiment_id == second.info.experiment_id
    names = [e.name for e in MlflowClient(tracking_uri=uri).search_experiments()]
    assert sorted(names) == ["Default", "tests"]


@pytest.mark.parametrize("name", ["..", ".", "../../up", "a/b", "ü" * 200, "-m x=1"])
def test_an_experiments_artifacts_stay_beside_the_database(uri, tmp_path, name):
    with tracked_run(uri, name, "a test", TAGS) as run:
        (tmp_path / "a.txt").write_text("a")
        run.log_file(tmp_path / "a.txt")
    (kept,) = (tmp_path / "mlartifacts").glob("*/*/artifacts/a.txt")
    assert kept.read_text() == "a"
    client = MlflowClient(tracking_uri=uri)
    found = client.get_experiment(run.experiment_id)
    assert found.name == name
    assert {path.name for path in tmp_path.iterdir()} == {
        "a.txt", "mlartifacts", "mlflow.db", "mlflow.db.lock"
    }  # fmt: skip


@pytest.mark.parametrize("name", [" ", "a\nb", "a\0b", "x" * 501])
def test_an_experiments_name_that_mlflow_cannot_keep_is_refused(uri, name):
    with (
        pytest.raises(ConfigError, match=r"^tracking\.experiment=.*1 to 500 printable"),
        tracked_run(uri, name, "a test", TAGS),
    ):
        pass


@pytest.mark.parametrize(
    "uri",
    [
        "sqlite:///",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///{folder}",
        "sqlite:///{folder}/x/",
    ],
)
def test_an_address_of_sqlite_without_a_file_is_refused(uri, tmp_path):
    uri = uri.format(folder=tmp_path)
    with pytest.raises(ConfigError, match=rf"^tracking\.uri={uri} names no file: give sqlite:////"):
        opened(uri)


def test_artifacts_of_another_database_go_to_the_projects_root(project_root):
    """MLflow would take the folder in which the command was started."""
    found = connection._artifacts("postgresql://me:x@host/db", "a b")
    assert found == (project_root / "mlartifacts" / "a%20b").as_uri()
    assert connection._artifacts("http://host:5000", "a") is None


def test_a_run_with_a_long_name(uri):
    with tracked_run(uri, "tests", "x" * 300, TAGS) as run:
        pass
    assert run.client.get_run(run.run_id).info.run_name == "x" * 250


def test_a_cache_folder_that_cannot_be_made_is_named(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"^the cache folder .*file/.cache/rmexp .*XDG_CACHE_HOME"):
        opened("http://127.0.0.1:9")


def test_servers_share_a_lock_which_says_nothing_of_them(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    uris = [f"http://127.0.0.1:{port}/?token=abc" for port in range(9)]
    assert {connection.lock(uri) for uri in uris} == {tmp_path / "rmexp" / "tracking.lock"}


def test_fetching_a_model_leaves_the_environment_alone(uri, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ConfigError):
        fetch_model(uri, "models:/no/1", tmp_path / "fetched")
    assert "MLFLOW_TRACKING_URI" not in os.environ


def test_a_deleted_experiment_is_named(uri):
    client = MlflowClient(tracking_uri=uri)
    client.delete_experiment(opened(uri).info.experiment_id)
    with pytest.raises(ConfigError, match=r"experiment tests was deleted: restore it, or give .*"):
        opened(uri)


def test_a_server_that_never_answers_is_given_up_soon(monkeypatch, tmp_path):
    # A connection, and no word: the slowest of the ways in which a server can be away.
    assert connection._FIRST_SECONDS * (1 + connection._FIRST_RETRIES) <= 15
    monkeypatch.setattr(connection, "_FIRST_SECONDS", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "5")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT", raising=False)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        with pytest.raises(ConfigError) as caught:
            opened(f"http://me:secret@127.0.0.1:{port}")
    message = str(caught.value)
    assert message.startswith(f"cannot use the tracking server http://127.0.0.1:{port} (")
    assert "tracking.uri" in message
    assert "secret" not in message
    # What others ask of MLflow in this process is as it was.
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "5"
    assert "MLFLOW_HTTP_REQUEST_TIMEOUT" not in os.environ


@pytest.mark.parametrize(
    "answer",
    [b"<html>", b"[]", b"null", b"\xff\xfe", b"{}", b'{"experiment": 5}', b'{"run": {"info": []}}'],
)
def test_a_server_that_answers_nonsense_is_named(monkeypatch, tmp_path, answer):
    class Nonsense(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("content-length") or 0))
            self.send_response(200)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), Nonsense) as server:
        threading.Thread(target=server.serve_forever).start()
        uri = f"http://127.0.0.1:{server.server_port}"
        try:
            with pytest.raises(
                ConfigError, match=rf"^cannot use the tracking server {uri} \("
            ) as caught:
                opened(uri)
        finally:
            server.shutdown()
    assert "\n" not in str(caught.value)


def test_models_of_two_runs_do_not_mix(uri, tmp_path):
    def model(*files: str) -> str:
        folder = tmp_path / "model"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name in files:
            (folder / name).write_text(str(files))
        with tracked_run(uri, "tests", "a test", TAGS) as run:
            run.client.log_artifacts(run.run_id, str(folder), "model")
        return f"runs:/{run.run_id}/model"

    one, two = model("1-of-2", "2-of-2"), model("1-of-1")
    fetched = [fetch_model(uri, name, tmp_path / "fetched") for name in (one, two, one)]
    assert fetched[0] == fetched[2] != fetched[1]
    assert {path.name for path in fetched[0].iterdir()} == {"1-of-2", "2-of-2"}
    assert {path.name for path in fetched[1].iterdir()} == {"1-of-1"}
    left = {path for path in (tmp_path / "fetched").iterdir() if path.suffix != ".lock"}
    assert left == set(fetched)


def logged(folder: Path, text: str) -> Callable[[Run], None]:
    """Return what logs a model of one file, in pieces that a reader could tell apart."""

    def work(run: Run) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "file").write_text(text)
        run.client.log_artifacts(run.run_id, str(folder), "model")

    return work


CARD = Card("a/tiny.model", {"method": "scalar", "size": "1k"}, {"rmexp.weights": "abc"})


def made(run: Run, folder: Path, text: str) -> str:
    """Log a model that the run has trained, and return its id."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / "file").write_text(text)
    run.log_dataset("pairs", "e" * 64, "pairs.jsonl", {"num_rows": 8})
    run.log_metrics({"train/loss": 0.5}, 7)
    return run.log_model(CARD, folder, {"objective": "bt"}, ["train/loss"])


def numbers_of(client: MlflowClient, model_id: str) -> list[tuple[Any, ...]]:
    """Return the numbers that MLflow has of a model: name, value, data set and its digest."""
    found = client.get_logged_model(model_id).metrics or []
    return [(m.key, m.value, m.dataset_name, m.dataset_digest) for m in found]


def test_models_with_the_same_weights_are_one(uri):
    ids = []
    for number, name in enumerate(("a/tiny.model", "other")):
        with tracked_run(uri, "tests", "a test", TAGS) as run:
            model = run.use_model(replace(CARD, name=name))
            run.log_metrics({"toy/overall": number / 2}, of=("toy", "fedc" * 9))
        assert run.client.get_run(run.run_id).inputs.model_inputs[0].model_id == model.model_id
        assert run.client.get_run(run.run_id).data.tags["rmexp.logged_model"] == model.model_id
        ids.append(model.model_id)
    assert ids[0] == ids[1]
    assert model.name == "tiny_model"
    assert model.tags["mlflow.model.isExternal"] == "true"
    assert model.tags.items() >= {"method": "scalar", "size": "1k", "rmexp.weights": "abc"}.items()
    assert numbers_of(run.client, ids[0])[-1] == ("toy/overall", 0.5, "toy #fedc", "fedcfedc")
    with tracked_run(uri, "tests", "a test", TAGS) as run:
        assert run.use_model(replace(CARD, traits={"dtype": "bfloat16"})).model_id != ids[0]
    with tracked_run(uri, "another", "a test", TAGS) as run:
        assert run.use_model(CARD).model_id != ids[0]


def test_jobs_that_start_together_add_a_model_once(uri):
    with ThreadPoolExecutor(4) as pool:
        runs = pool.map(lambda _: opened(uri, lambda run: run.use_model(CARD)), range(4))
    assert len({run.data.tags["rmexp.logged_model"] for run in runs}) == 1


def test_a_trained_model_is_the_origin_of_its_evaluations(uri, tmp_path):
    """By its weights, wherever these lie, and by each of its addresses."""
    with tracked_run(uri, "tests", "a test", TAGS) as run:
        model_id = made(run, tmp_path / "model", "weights")
        version = register(run, "mine").address
    trained = run.client.get_run(run.run_id)
    (output,) = trained.outputs.model_outputs
    assert (output.model_id, output.step) == (model_id, 7)
    assert numbers_of(run.client, model_id) == [("train/loss", 0.5, "pairs #eeee", "e" * 8)]
    model = run.client.get_logged_model(model_id)
    assert (model.source_run_id, model.params) == (run.run_id, {"objective": "bt"})
    other = Card("another reading", {"method": "implicit"}, {})
    addresses = [version, f"models:/{model_id}", f"runs:/{run.run_id}/model"]
    for card, address in ((CARD, None), *((other, address) for address in addresses)):
        with tracked_run(uri, "tests", "a test", TAGS) as run:
            assert run.use_model(card, address).model_id == model_id
    fetched = fetch_model(uri, version, tmp_path / "fetched")
    assert (fetched / "file").read_text() == "weights"


def test_an_experiment_carries_its_view(uri):
    run = opened(uri)
    client = MlflowClient(tracking_uri=uri)
    client.delete_experiment_tag(run.info.experiment_id, pages.VIEW_TAG)
    opened(uri)  # one that is older than the view gets it
    tags = client.get_experiment(run.info.experiment_id).tags
    state = json.loads(tags["mlflow.sharedViewState.evaluations"])
    assert state["orderByKey"] == "metrics.`headline`"
    query = state["searchFilter"]
    assert client.search_runs([run.info.experiment_id], query) == []
    shown = opened(uri, lambda run: run.set_tags({"rmexp.headline": "toy/overall"}))
    (found,) = client.search_runs([run.info.experiment_id], query)
    assert found.info.run_id == shown.info.run_id
    assert "a row a reward model" in tags["mlflow.note.content"]


def run_at(uri: str) -> Run:
    return Run(Outbox(Destination(None, uri, "7", "abc")))


def test_the_pages_of_a_server_and_of_a_database():
    kind = "workflowType=machine_learning"
    server = run_at("https://me:secret@host/ml/")
    assert server.where() == f"https://host/ml/#/experiments/7/runs/abc?{kind}"
    here = run_at("sqlite:////a/b.db")
    page = f"http://127.0.0.1:5000/#/experiments/7/runs/abc?{kind}"
    opens = "mlflow ui --backend-store-uri sqlite:////a/b.db --host 127.0.0.1"
    assert here.where() == f"{opens}   # then {page}"
    assert here.others().split() == [
        "models", f"http://127.0.0.1:5000/#/experiments/7/models?{kind}", "runs",
        f"http://127.0.0.1:5000/#/experiments/7/runs?{kind}&viewStateShareKey=evaluations",
    ]  # fmt: skip
    assert redact(here.others()) == here.others()


def test_what_cannot_change_is_downloaded_once(uri, tmp_path, monkeypatch):
    """A finished run's model and a version; an alias is asked for its version each time."""
    downloads = []
    download = mlflow.artifacts.download_artifacts

    def counted(model_uri: str, **options: Any) -> str:
        downloads.append(model_uri)
        return str(download(model_uri, **options))

    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", counted)
    addresses = []
    for number in range(2):
        with tracked_run(uri, "tests", "a test", TAGS) as run:
            model_id = made(run, tmp_path / "model", str(number))
            addresses.append(register(run, "mine").address)
    assert addresses == ["models:/mine/1", "models:/mine/2"]
    client, fetched = MlflowClient(tracking_uri=uri), tmp_path / "fetched"
    runs = f"runs:/{run.run_id}/model"
    seen = []
    for version in ("1", "2", "1"):
        client.set_registered_model_alias("mine", "best", version)
        seen += [fetch_model(uri, name, fetched) for name in ("models:/mine@best", runs)]
    assert [(folder / "file").read_text() for folder in seen] == ["0", "1", "1", "1", "0", "1"]
    assert len(downloads) == 3
    client = MlflowClient(tracking_uri=uri)
    assert downloads[1] == client.get_logged_model(model_id).artifact_location
    assert fetch_model(uri, "models:/mine/2", fetched) == seen[2]
    assert len(downloads) == 3


def test_what_may_still_change_is_downloaded_anew_beside_the_old(uri, tmp_path):
    """A reader of the first copy keeps it, whatever the run logs meanwhile."""
    with tracked_run(uri, "tests", "a test", TAGS) as run:
        name, copies = f"runs:/{run.run_id}/model", []
        for text in ("first", "second", "second"):
            logged(tmp_path / "model", text)(run)
            copies.append(fetch_model(uri, name, tmp_path / "fetched"))
    assert [(folder / "file").read_text() for folder in copies] == ["first", "second", "second"]
    assert copies[1] == copies[2]


def test_a_name_behind_a_hundred_others_is_registered_again(uri):
    client = MlflowClient(tracking_uri=uri)
    for number in range(101):
        client.create_registered_model(f"a{number:03}")
    with tracked_run(uri, "tests", "a test", TAGS) as run:
        model = run.use_model(CARD).model_id
        versions = [register(run, "z").address, register(run, "z").address]
        assert versions == ["models:/z/1", "models:/z/2"]
        shown = run.client.get_logged_model(model).tags["mlflow.modelVersions"]
        assert json.loads(shown) == [{"name": "z", "version": number} for number in "12"]
        with pytest.raises(TrackingError, match="cannot register the model as a/b"):
            register(run, "a/b")


@pytest.mark.parametrize("name", ["runs:/0123456789abcdef0123456789abcdef/model", "models:/no/1"])
def test_a_model_that_is_not_there_is_named(uri, tmp_path, name):
    with pytest.raises(ConfigError, match=rf"cannot get model\.uri={name} .*check the run"):
        fetch_model(uri, name, tmp_path / "fetched")


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("https://me:secret@host/x", "https://host/x"),
        ("postgresql+psycopg2://me:s3cret@host:5432/db", "postgresql+psycopg2://host:5432/db"),
        ("http://me:p@ss@host/x", "http://host/x"),
        ("http://token@host", "http://host"),
        ("a: http://me:x@one/ b: http://you:y@two/", "a: http://one/ b: http://two/"),
        ("http://host/me@home", "http://host/me@home"),
        ("sqlite:////data/me@home/mlflow.db", "sqlite:////data/me@home/mlflow.db"),
        ("me@home", "me@home"),
        ("postgresql://me:pa/ss@host/db", "postgresql://host/db"),
        ("postgresql://me:12/ss@host/db", "postgresql://host/db"),
        ("postgresql://me:1?2/s#s@host/db", "postgresql://host/db"),
        ("http://me:pa/ss@host/x", "http://host/x"),
        ("http://host:8080/me@home", "http://host:8080/me@home"),
        ("http://[::1]:50/me@x", "http://[::1]:50/me@x"),
        ("http://u:a@one,http://u:b@two", "http://one,http://two"),
        ("sqlite:////data/me:x@home/mlflow.db", "sqlite:////data/me:x@home/mlflow.db"),
        ("postgresql://h/db?password=abc&x=1", "postgresql://h/db?password=***&x=1"),
        ("http://h/v1?api-key=abc", "http://h/v1?api-key=***"),
        (
            "{'uri': 'http://h/?max_tokens=9&token=abc'}",
            "{'uri': 'http://h/?max_tokens=9&token=***'}",
        ),
        ("https://h/#access_token=abc", "https://h/#access_token=***"),
    ],
)
def test_addresses_lose_their_passwords(text, clean):
    assert redact(text) == clean


def test_where_says_how_to_look_at_a_run():
    run = run_at("http://me:secret@127.0.0.1:5000")
    page = "http://127.0.0.1:5000/#/experiments/7/runs/abc?workflowType=machine_learning"
    assert run.where() == page


def test_the_commit_says_whether_files_differ(tmp_path, monkeypatch):
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=me", "-c", "user.email=me@example.org"]
        command = ["git", *identity, *arguments]
        return subprocess.run(
            command, cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert tracking.git_commit(tmp_path) is None
    git("init")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-m", "one")
    git("tag", "-a", "v1", "-m", "one")
    head = git("rev-parse", "HEAD")
    assert tracking.git_commit(tmp_path) == head
    (tmp_path / "file").write_text("two")
    assert tracking.git_commit(tmp_path) == f"{head}-dirty"
    monkeypatch.setenv("PATH", "")
    assert tracking.git_commit(tmp_path) is None


@pytest.mark.parametrize("on", [True, False])
def test_the_machine_is_watched_while_a_run_goes_on(
    uri: str, on: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.01")

    def logged(run: Run) -> set[str]:
        return set(run.client.get_run(run.run_id).data.metrics)

    def work(run: Run) -> None:
        with watched(run, on):
            while on and not logged(run):
                time.sleep(0.01)
        assert {"system/cpu_utilization_percentage"} & logged(run) == (
            {"system/cpu_utilization_percentage"} if on else set()
        )

    opened(uri, work)
    assert not [thread for thread in threading.enumerate() if "SystemMetrics" in thread.name]
