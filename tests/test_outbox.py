"""What a run tells MLflow while its server is away: kept in its folder, and told later, once."""

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from away import Server
from test_tracking import fresh_database

from rmexp import deliver
from rmexp.errors import ConfigError, DataError
from rmexp.tracking import delivery, outbox, runs
from rmexp.tracking.connection import TrackingError
from rmexp.tracking.logged_models import Card
from rmexp.tracking.registry import register
from rmexp.tracking.run_folder import hold, undelivered, write_status
from rmexp.tracking.runs import MlflowClient, Run, tracked_run

CARD = Card("a/tiny.model", {"method": "scalar"}, {"rmexp.weights": "abc"})
TAGS = {"rmexp.command": "test"}


@pytest.fixture
def uri(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return fresh_database(tmp_path_factory, tmp_path / "mlflow.db")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    return Server(monkeypatch)


def say_all(run: Run, folder: Path) -> None:
    """Tell a run one entry of each kind."""
    (folder / "weights").mkdir(parents=True, exist_ok=True)
    (folder / "weights" / "config.json").write_text("{}")
    (folder / "a.txt").write_text("a")
    run.log_params({"seed": 1, "text": "${not.interpolated}"})
    run.add_to_name(", n 8")
    run.log_dataset("pairs", "e" * 64, "pairs.jsonl", {"num_rows": 8}, "input")
    for step in range(3):
        run.log_metrics({"train/loss": 1 / (step + 1)}, step)
    run.log_model(CARD, folder / "weights", {"objective": "bt"}, ["train/loss"])
    run.log_metrics({"toy/overall": 0.25}, of=("toy", "f" * 64))
    run.set_tags({"rmexp.bench": "toy"})
    run.note("a page")
    run.keep(folder / "a.txt", folder / "weights")
    run.log_kept()
    register(run, "mine", "its page")


def found(uri: str, run_id: str) -> dict[str, Any]:
    """Return all that MLflow has of a run, without its times."""
    client = MlflowClient(tracking_uri=uri)
    run = client.get_run(run_id)
    names = list(run.data.metrics)
    history = {
        name: [(point.step, point.value) for point in client.get_metric_history(run_id, name)]
        for name in names
    }
    tags = {name: value for name, value in run.data.tags.items() if "." not in name[6:]}
    (model,) = run.outputs.model_outputs
    own = client.get_logged_model(model.model_id)
    return {
        "status": run.info.status,
        "name": run.info.run_name,
        "params": run.data.params,
        "history": history,
        "tags": sorted(tags),
        "page": run.data.tags["mlflow.note.content"],
        "data": [(each.dataset.name, each.tags[0].value) for each in run.inputs.dataset_inputs],
        "step": model.step,
        "model": (own.name, own.status, own.params, own.source_run_id == run_id),
        "numbers": sorted((each.key, each.value, each.dataset_name) for each in own.metrics or []),
        "files": sorted(each.path for each in client.list_artifacts(run_id)),
        "versions": [
            (each.version, each.description)
            for each in client.search_model_versions(f"run_id='{run_id}'")
        ],
    }


def test_what_waits_is_all_told_once_whatever_was_told_before(uri, server, tmp_path):
    """By a run whose server was there, was away, and did each thing without saying so."""
    seen = []
    for number, attribute in enumerate(("", "away", "silent")):
        folder = tmp_path / str(number)
        with tracked_run(uri, "tests", "a test", TAGS, folder=folder) as run:
            if attribute:
                setattr(server, attribute, True)
            say_all(run, folder)
        if attribute:
            server.away = False
            assert MlflowClient(uri).get_run(run.run_id).info.status == "RUNNING"
            assert undelivered(folder) == [folder / "undelivered.jsonl"]
            kept = (folder / "undelivered.jsonl").read_text()
            assert "secret" not in kept
            write_status(folder, {"run_id": run.run_id, "status": "FINISHED"})
            while undelivered(folder):
                with suppress(TrackingError):
                    told = deliver.deliver(folder)
            server.silent = False
            assert len(told) == 1
            assert run.run_id in told[0]
            tried = len(server.tries)
            assert "was delivered before" in deliver.deliver(folder)[0]
            assert len(server.tries) == tried
        assert undelivered(folder) == []
        seen.append(found(uri, run.run_id))
    # Versions of one name are counted.
    assert [each.pop("versions") for each in seen] == [
        [(number, "its page")] for number in (1, 2, 3)
    ]
    assert seen[0]["history"]["train/loss"] == [(0, 1.0), (1, 0.5), (2, 1 / 3)]
    assert seen[0]["status"] == "FINISHED"
    assert seen[1] == seen[0]
    assert seen[2] == seen[0]


def test_a_run_goes_on_and_tells_the_rest_when_the_server_is_back(uri, server, tmp_path, caplog):
    """Without waiting: while the server is away a try is made now and then."""
    caplog.set_level("INFO")
    with tracked_run(uri, "tests", "a test", TAGS, folder=tmp_path) as run:
        run.log_metrics({"loss": 0.0}, 0)
        server.away = True
        for step in range(1, 50):
            run.log_metrics({"loss": float(step)}, step)
        run.set_tags({"done": "yes"})
        assert server.tries.count("metrics") == 2
        server.away = False
        run.set_tags({"later": "yes"})
        assert "done" not in run.client.get_run(run.run_id).data.tags
        run.outbox.flush()
        assert undelivered(tmp_path) == []
        run.log_metrics({"loss": 50.0}, 50)
    assert server.tries.count("metrics") == 4  # 49 of them in one
    seen = run.client.get_run(run.run_id)
    history = run.client.get_metric_history(run.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(at, at) for at in range(51)]
    assert {"done", "later"} <= set(seen.data.tags)
    assert seen.info.status == "FINISHED"
    assert caplog.text.count("the run goes on") == 1
    assert caplog.text.count("the tracking server is back") == 1


def test_a_try_that_is_due_is_made_by_the_run(uri, server, tmp_path, monkeypatch):
    monkeypatch.setattr(outbox, "_PAUSE", 0.0)
    monkeypatch.setattr(outbox, "_SHARE", 0)
    with tracked_run(uri, "tests", "a test", TAGS, folder=tmp_path) as run:
        server.away = True
        run.log_metrics({"loss": 1.0}, 1)
        run.log_metrics({"loss": 2.0}, 2)
        assert len((tmp_path / "undelivered.jsonl").read_text().splitlines()) == 3
        server.away = False
        run.log_metrics({"loss": 3.0}, 3)
        assert undelivered(tmp_path) == []
    history = run.client.get_metric_history(run.run_id, "loss")
    assert [point.step for point in history] == [1, 2, 3]


def test_at_its_end_a_run_waits_for_a_server_that_comes_back(uri, server, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "_POLL", 0.0)
    with tracked_run(uri, "tests", "a test", TAGS, folder=tmp_path) as run:
        server.away = True
        run.log_metrics({"loss": 1.0}, 1)
    with pytest.raises(TrackingError, match=r"^the tracking server .* does not take what the run"):
        run.deliver()
    tried = len(server.tries)

    def back(_: float) -> None:
        server.away = len(server.tries) < tried + 3

    monkeypatch.setattr(runs.time, "sleep", back)
    run.deliver(60)
    assert undelivered(tmp_path) == []
    assert run.client.get_run(run.run_id).info.status == "FINISHED"


def test_a_run_that_was_taken_for_dead_is_finished_by_its_delivery(uri, server, tmp_path):
    with tracked_run(uri, "tests", "a test", TAGS, folder=tmp_path) as run:
        server.away = True
        run.log_metrics({"loss": 1.0}, 1)
    server.away = False
    run.end_left(run.run_id)
    assert run.client.get_run(run.run_id).data.tags["rmexp.error"] == "its process died"
    run.deliver()
    seen = run.client.get_run(run.run_id)
    assert (seen.info.status, seen.data.metrics) == ("FINISHED", {"loss": 1.0})
    assert "rmexp.error" not in seen.data.tags


def test_a_run_whose_process_died_meanwhile_is_ended_as_killed(uri, server, tmp_path):
    run = runs.open_run(uri, "tests", "a test", TAGS, folder=tmp_path)
    server.away = True
    run.log_metrics({"loss": 1.0}, 1)
    run.log_metrics({"loss": 2.0}, 2)
    server.away = False
    journal = tmp_path / "undelivered.jsonl"
    journal.write_bytes(journal.read_bytes()[:-9])  # torn
    write_status(tmp_path, {"run_id": run.run_id, "status": "RUNNING"})
    with hold(tmp_path), pytest.raises(ConfigError, match="another process is at work in"):
        deliver.deliver(tmp_path)
    deliver.deliver(tmp_path)
    seen = run.client.get_run(run.run_id)
    assert (seen.info.status, seen.data.metrics) == ("KILLED", {"loss": 1.0})
    assert seen.data.tags["rmexp.error"] == "its process died"


@pytest.mark.parametrize("silent", [False, True])
def test_a_run_below_another_one_begins_while_nobody_answers(uri, server, tmp_path, silent):
    own = tmp_path / "eval" / "toy"
    with tracked_run(uri, "tests", "a test", TAGS, folder=tmp_path) as run:
        server.away = True
        tags = TAGS | {"rmexp.training_run": run.run_id}
        with tracked_run(uri, "tests", "its child", tags, run.run_id, own) as child:
            write_status(own, {"run_id": child.run_id, "status": "RUNNING"})
            assert child.where() == f"python -m rmexp.deliver {own}"
            child.log_metrics({"toy/overall": 0.5})
            with tracked_run(uri, "tests", "below it", TAGS, child.run_id, own / "below") as lower:
                lower.log_metrics({"toy/overall": 0.25})
        run.log_metrics({"loss": 1.0}, 1)
    server.away, server.silent = False, silent
    while undelivered(tmp_path):
        with suppress(TrackingError):
            run.deliver()
    client = run.client
    found = client.search_runs([run.experiment_id], order_by=["attributes.start_time"])
    assert sorted(each.info.run_name for each in found) == ["a test", "below it", "its child"]
    assert {each.info.status for each in found} == {"FINISHED"}
    by_name = {each.info.run_name: each for each in found}
    made = by_name["its child"]
    assert json.loads((own / "run.json").read_text())["run_id"] == made.info.run_id
    assert made.data.tags["mlflow.parentRunId"] == run.run_id
    assert made.data.tags["rmexp.training_run"] == run.run_id
    assert by_name["below it"].data.tags["mlflow.parentRunId"] == made.info.run_id
    assert made.data.metrics == {"toy/overall": 0.5}


def test_a_run_of_its_own_does_not_begin_without_a_server(uri, server, tmp_path):
    server.away = True
    with pytest.raises(ConfigError, match=r"^cannot use the tracking server .*nobody is at"):
        runs.open_run(uri, "tests", "a test", TAGS, folder=tmp_path)
    assert undelivered(tmp_path) == []


def test_a_server_that_refuses_keeps_nothing_from_being_sent_later(uri, tmp_path):
    """Its run was deleted while it went on: it is restored, and delivered."""
    with tracked_run(uri, "tests", "a test", TAGS, folder=tmp_path) as run:
        run.client.delete_run(run.run_id)
        run.log_metrics({"loss": 1.0}, 1)
    with pytest.raises(TrackingError, match="must be in the 'active' state"):
        run.deliver()
    run.client.restore_run(run.run_id)
    run.deliver()
    assert run.client.get_run(run.run_id).data.metrics == {"loss": 1.0}


WHOSE = '{"uri": "sqlite:////x.db", "experiment_id": "1", "run_id": "a"}'


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "line 1 is no entry"),
        ("[]\n", "line 1 has no experiment_id"),
        ('{"uri": 5}\n', "line 1 has uri: 5"),
        (f'{WHOSE}\n["run", {{}}]\n', "line 2 is no entry"),
        (f'{WHOSE}\n["tags", {{}}]\n', "line 2 has no tags"),
        (f'{WHOSE}\n["tags", {{"tags": {{"a": 5}}}}]\n', "line 2 has tags"),
        (f'{WHOSE}\n["tags", {{"tags": {{}}, "to": {{}}}}]\n', "line 2 has the key to"),
        (f"{WHOSE}\n\xff\n", "line 2 is no entry"),
    ],
)
def test_what_is_no_journal_is_named(tmp_path, text, reason):
    (tmp_path / "undelivered.jsonl").write_text(text, encoding="latin-1")
    write_status(tmp_path, {"status": "FINISHED"})
    with pytest.raises(DataError, match=rf"undelivered\.jsonl: {reason}"):
        deliver.deliver(tmp_path)


def test_the_command(uri, server, tmp_path, monkeypatch, capsys):
    def called(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["deliver.py", *words])
        code: object = 0
        try:
            deliver.main()
        except SystemExit as end:
            code = end.code
        said = capsys.readouterr()
        assert isinstance(code, int)
        return code, said.out + said.err

    with tracked_run(uri, "tests", "a test", TAGS, folder=tmp_path / "run") as run:
        server.away = True
        run.log_metrics({"loss": 1.0}, 1)
    write_status(tmp_path / "run", {"run_id": run.run_id, "status": "FINISHED"})
    assert called("--help") == (0, f"{deliver._USAGE}\n")
    assert called() == (2, f"{deliver._USAGE}\n")
    (tmp_path / "empty").mkdir()
    code, text = called(str(tmp_path / "empty"))
    assert (code, text.count("has no run")) == (1, 1)
    code, text = called(str(tmp_path / "run"))
    assert (code, "nobody is at http://host" in text) == (1, True)
    server.away = False
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    code, text = called(str(moved), uri)
    assert (code, run.run_id in text) == (0, True)
    code, text = called(str(moved))
    assert (code, "was delivered before" in text) == (0, True)


def test_a_password_is_that_of_the_process_or_of_the_caller(tmp_path, monkeypatch):
    (tmp_path / "undelivered.jsonl").write_text(WHOSE.replace("sqlite:////x.db", "http://h") + "\n")
    asked = []

    def client(uri: str) -> None:
        asked.append(uri)
        raise OSError("nobody is there")

    monkeypatch.setattr(delivery, "MlflowClient", client)
    for uri, held in (("http://me:x@h", True), ("http://me:x@i", True), ("http://me:x@i", False)):
        with pytest.raises(TrackingError):
            delivery.deliver_all(tmp_path, uri, held=held)
    assert asked == ["http://me:x@h", "http://h", "http://me:x@i"]
