import json
import time
from pathlib import Path

import pytest
from mlflow.entities import Metric, Param, RunTag
from test_tracking import fresh_database

from rmexp.correlation.published_runs import log_published
from rmexp.correlation.tables import Score, Table
from rmexp.correlation.tracked import log_policy, tracked_policies, tracked_scores
from rmexp.errors import ConfigError
from rmexp.tracking import finished
from rmexp.tracking.finished import finished_runs
from rmexp.tracking.numbers import as_headline
from rmexp.tracking.runs import MlflowClient, tracked_run
from rmexp.tracking.tracked import Measured, evaluations


@pytest.fixture
def uri(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return fresh_database(tmp_path_factory, tmp_path / "mlflow.db")


def evaluated(uri, rm, bench, metrics, *, experiment="e", fails=False, **tags):
    tags = {"rmexp.command": "eval_rm", "rmexp.model": rm, "rmexp.bench": bench, **tags}
    try:
        with tracked_run(uri, experiment, f"{rm} on {bench}", tags) as run:
            run.log_metrics(metrics)
            if fails:
                raise RuntimeError
    except RuntimeError:
        pass
    time.sleep(0.002)  # runs are told apart by the millisecond of their start
    return run.run_id


def scores(uri, *metrics, **more):
    found = tracked_scores(metrics=list(metrics), uri=uri, experiment="e", **more)
    return {(row.rm, row.task): row.score for row in found.rows}


def test_the_newest_finished_run_of_each_rm_and_benchmark(uri):
    evaluated(uri, "A", "toy", {"toy/overall": 0.1})
    newest = evaluated(
        uri, "A", "toy", {"toy/overall": 0.2, "toy/overall/n": 8, "toy/overall/low": 0.1,
                          "toy/overall/high": 0.3, "scoring/seconds": 5.0},
    )  # fmt: skip
    evaluated(uri, "A", "toy", {"toy/overall": 0.9}, fails=True)
    evaluated(uri, "A", "toy", {"toy/reading/easy": 0.5})  # of a part, without what was chosen
    evaluated(uri, "A", "rmb", {"rmb/overall": 0.3})
    evaluated(uri, "B", "toy", {"toy/overall": 0.4})
    evaluated(uri, "C", "toy", {"toy/overall": 0.5}, experiment="other")
    evaluated(uri, "D", "toy", {"toy/overall": 0.6}, **{"rmexp.command": "train_rm"})
    found = evaluations(uri, "e", ["toy/overall", "rmb/overall"])
    assert {(run.rm, run.bench) for run in found} == {("A", "toy"), ("A", "rmb"), ("B", "toy")}
    (run,) = [run for run in found if (run.rm, run.bench) == ("A", "toy")]
    assert run.run_id == newest
    assert run.metrics == {"toy/overall": Measured(0.2, 8, 0.1, 0.3)}
    assert run.tags["rmexp.command"] == "eval_rm"
    assert not run.published
    assert scores(uri, "toy/overall", "rmb/overall") == {
        ("A", "toy/overall"): 0.2, ("A", "rmb/overall"): 0.3, ("B", "toy/overall"): 0.4,
    }  # fmt: skip
    everything = evaluations(uri, "e")
    assert next(run for run in everything if run.rm == "A" and run.bench == "toy").metrics == {
        "toy/reading/easy": Measured(0.5)
    }


def test_weights_of_one_name_are_told_apart(uri):
    """Of each version the newest run; where only the reading differs, the name says that."""
    tags = {"rmexp.reward": "scalar head"}
    for weights, score in (("1" * 64, 0.1), ("2" * 64, 0.2), ("1" * 64, 0.3)):
        evaluated(uri, "A", "toy", {"toy/overall": score}, **tags, **{"rmexp.weights": weights})
    for reading, score in (("sum", 0.4), ("mean per token", 0.5)):
        tags = {"rmexp.reward": reading, "rmexp.weights": "3" * 64}
        evaluated(uri, "B", "toy", {"toy/overall": score}, **tags)
    assert {rm: score for (rm, _), score in scores(uri, "toy/overall").items()} == {
        "A (11111111)": 0.3, "A (22222222)": 0.2, "B (sum)": 0.4, "B (mean per token)": 0.5,
    }  # fmt: skip
    found = tracked_scores(metrics=["toy/overall"], uri=uri, experiment="e")
    assert any(
        note.startswith("A means 2 models, told apart as A (11111111), A (22222222): choose with")
        for note in found.notes
    )
    query = "tags.`rmexp.weights` LIKE '22222222%'"
    assert scores(uri, "toy/overall", query=query) == {("A", "toy/overall"): 0.2}


def test_a_filter_selects_runs(uri):
    evaluated(uri, "A", "toy", {"toy/overall": 0.1}, sweep="one")
    evaluated(uri, "A", "toy", {"toy/overall": 0.2}, sweep="two")
    assert scores(uri, "toy/overall", query="tags.sweep = 'one'") == {("A", "toy/overall"): 0.1}
    with pytest.raises(
        ConfigError, match=r"cannot read the runs of e .*correct the filter 'sweep\?"
    ):
        scores(uri, "toy/overall", query="sweep?")


def test_scores_on_different_examples_are_refused_or_asked_for(uri):
    """2 of the prompts against all of them, and the same data with dropped responses."""
    name = "rmbench/overall"
    evaluated(uri, "A", "rmbench", {name: 0.1, f"{name}/n": 2}, **{"rmexp.data": "aaaaaaaaaa"})
    for rm in "BC":
        tags = {"rmexp.data": "bbbbbbbbbb"}
        evaluated(uri, rm, "rmbench", {name: 0.5, f"{name}/n": 2985}, **tags)
    with pytest.raises(ConfigError) as caught:
        scores(uri, name)
    said = str(caught.value)
    assert "rmbench/overall rests on different examples: " in said
    assert "A (n 2, data aaaaaaaa)" in said
    assert "C, B (n 2,985, data bbbbbbbb)" in said
    assert said.endswith("LIKE 'DATA%'\", or set scores.mixed=true")
    both = scores(uri, name, query="tags.`rmexp.data` LIKE 'bbbbbbbb%'")
    assert both == {("B", name): 0.5, ("C", name): 0.5}
    joined = tracked_scores(metrics=[name], uri=uri, experiment="e", mixed=True)
    assert {(row.rm, row.n) for row in joined.rows} == {("A", 2), ("B", 2985), ("C", 2985)}
    assert joined.notes[0].startswith("rmbench/overall rests on different examples: ")
    with pytest.raises(ConfigError, match=r"scores\.mixed=maybe: give true or false"):
        scores(uri, name, mixed="maybe")

    evaluated(uri, "A", "rmbench", {name: 0.1, f"{name}/n": 2980}, **{"rmexp.data": "bbbbbbbbbb"})
    with pytest.raises(ConfigError, match=r"A \(n 2,980, data bbbbbbbb\)"):
        scores(uri, name)


def test_a_partial_headline_keeps_its_parts_and_stands_apart_from_whole_ones(uri):
    numbers = {"rmb/overall/partial": 0.5, "rmb/overall/partial/n": 8}
    shared = as_headline(numbers, "rmb/overall/partial")
    assert shared == {"headline/partial": 0.5, "headline/partial/n": 8}
    tags = {"rmexp.command": "eval_rm", "rmexp.model": "A", "rmexp.bench": "rmb"}
    with tracked_run(uri, "e", "A", tags | {"rmexp.headline": "rmb/overall/partial"}) as run:
        run.log_metrics({"rmb/overall/partial": 0.5, **shared})
    (found,) = evaluations(uri, "e")
    assert found.metrics == {"rmb/overall/partial": Measured(0.5, 8)}


def test_what_a_runs_table_lacks_is_read_from_its_files(uri, tmp_path, monkeypatch):
    """The headline's n and interval are in the table, all others in metrics.json."""
    numbers = {f"toy/{name}{end}": value for name in ("overall", "easy", "math/easy")
               for end, value in (("", 0.5), ("/n", 8), ("/low", 0.4), ("/high", 0.6))}  # fmt: skip
    (tmp_path / "metrics.json").write_text(json.dumps(numbers))
    tags = {"rmexp.command": "eval_rm", "rmexp.model": "A", "rmexp.bench": "toy"}
    with tracked_run(uri, "e", "A on toy", tags | {"rmexp.headline": "toy/overall"}) as run:
        run.log_metrics(
            {"toy/overall": 0.5, "toy/easy": 0.5, **as_headline(numbers, "toy/overall")}
        )
        run.log_file(tmp_path / "metrics.json")
    fetched = []
    fetch = finished.fetch_files
    monkeypatch.setattr(finished, "fetch_files", lambda *a: fetched.append(a[1]) or fetch(*a))
    measured = Measured(0.5, 8, 0.4, 0.6)
    (found,) = evaluations(uri, "e", ["toy/overall", "toy/overall/partial", "rmb/overall"])
    assert found.metrics == {"toy/overall": measured}
    assert not fetched
    for name in ("toy/easy", "toy/math/easy"):
        (found,) = evaluations(uri, "e", [name])
        assert found.metrics == {name: measured}
        assert fetched.pop() == run.run_id
    (found,) = evaluations(uri, "e")
    assert found.metrics == {"toy/overall": measured, "toy/easy": Measured(0.5)}


def test_a_partial_score_is_never_joined_with_a_whole_one(uri):
    name = "rmbench/overall"
    tags = {"rmexp.data": "aaaaaaaaaa"}
    evaluated(uri, "A", "rmbench", {name: 0.1}, **tags)
    evaluated(uri, "B", "rmbench", {f"{name}/partial": 0.9}, **tags, **{"rmexp.missing": "math"})
    evaluated(uri, "C", "rmbench", {f"{name}/partial": 0.8}, **tags, **{"rmexp.missing": "code"})
    found = tracked_scores(metrics=[name], uri=uri, experiment="e")
    assert [row.rm for row in found.rows] == ["A"]
    assert found.notes == ("only rmbench/overall/partial, left out: B, C",)
    with pytest.raises(ConfigError, match=r"nothing of code\).*nothing of math\)"):
        scores(uri, f"{name}/partial")


def test_policies_of_a_task_have_one_n(uri):
    for rm, n in (("A", 2), ("B", 40)):
        with tracked_run(uri, "e", rm, {}) as run:
            log_policy(run, [Score(rm, "bbh", 0.5, None, n)], {})
    with pytest.raises(ConfigError, match=r"bbh rests on .*n 2, .*set policy\.mixed=true$"):
        tracked_policies(uri=uri, experiment="e")
    assert len(tracked_policies(uri=uri, experiment="e", mixed=True).rows) == 2


def test_what_is_not_there_is_named(uri):
    evaluated(uri, "A", "toy", {"toy/overall": 0.1})
    with pytest.raises(ConfigError, match=r"there is no experiment f: choose from Default, e$"):
        evaluations(uri, "f")
    with pytest.raises(ConfigError, match=r"no finished evaluation .* has rmb/overall: evaluate"):
        scores(uri, "toy/overall", "rmb/overall")
    with pytest.raises(ConfigError, match=r"scores\.metrics=toy/overall: give a list"):
        tracked_scores(metrics="toy/overall", uri=uri, experiment="e")
    with pytest.raises(ConfigError, match="0 policy runs of e: log some first"):
        tracked_policies(uri=uri, experiment="e")


def test_pages_are_read_to_the_end(uri, monkeypatch):
    from rmexp.tracking import finished

    for rm in "ABCDE":
        evaluated(uri, rm, "toy", {"toy/overall": 0.1})
    monkeypatch.setattr(finished, "_RUNS_A_PAGE", 2)
    found = finished_runs(uri, "e", "tags.rmexp.bench = 'toy'")
    assert [run.tags["rmexp.model"] for run in found] == list("EDCBA")


def test_policies_are_read_as_they_were_logged(uri):
    rows = [Score("A", "HumanEval", 0.5, 0.4, 40), Score("A", "bbh", 0.7)]
    with tracked_run(uri, "e", "best of 8 with A", {}) as run:
        log_policy(run, rows, {"HumanEval": (0.4, 0.6)})
    data = run.client.get_run(run.run_id).data
    assert data.metrics == {
        "policy/humaneval/score": 0.5,
        "policy/humaneval/score/n": 40,
        "policy/humaneval/score/low": 0.4,
        "policy/humaneval/score/high": 0.6,
        "policy/humaneval/base_score": 0.4,
        "policy/bbh/score": 0.7,
    }
    found = tracked_policies(uri=uri, experiment="e")
    assert set(found.rows) == {Score("A", "humaneval", 0.5, 0.4, 40), Score("A", "bbh", 0.7)}
    assert tracked_policies(uri=uri, experiment="e", tasks=["bbh"]).tasks == ("bbh",)
    with tracked_run(uri, "e", "again", {}) as run:
        log_policy(run, [Score("A", "bbh", 0.8)], {})
    newest = tracked_policies(uri=uri, experiment="e")
    assert {row.task: row.score for row in newest.rows} == {"humaneval": 0.5, "bbh": 0.8}


def test_published_rows_become_runs_once_and_stay_apart(uri):
    rows = (
        Score("A", "rmbench/overall", 0.7), Score("A", "rmbench/hard", 0.5),
        Score("B", "rmbench/overall", 0.6), Score("A", "rmb/overall", 0.65),
    )  # fmt: skip
    table = Table(rows, "a paper, table 1")
    evaluated(uri, "A", "rmbench", {"rmbench/overall": 0.1})
    with tracked_run(uri, "e", "import", {}) as run:
        assert log_published(table, "e", run) == {"published/logged": 3, "published/there": 0}
        assert log_published(table, "e", run) == {"published/logged": 0, "published/there": 3}
    found = evaluations(uri, "e")
    imported = {(each.rm, each.bench): each for each in found if each.published}
    assert set(imported) == {("A", "rmbench"), ("B", "rmbench"), ("A", "rmb")}
    one = imported["A", "rmbench"]
    assert one.metrics == {"rmbench/overall": Measured(0.7), "rmbench/hard": Measured(0.5)}
    assert one.tags["rmexp.source"] == "a paper, table 1"
    assert one.tags["rmexp.published"] == "true"
    assert one.tags["mlflow.parentRunId"] == run.run_id
    assert "Not measured here" in one.tags["mlflow.note.content"]
    assert scores(uri, "rmbench/overall") == {("A", "rmbench/overall"): 0.1}


@pytest.mark.real
@pytest.mark.timeout(3600)  # writing them takes minutes
def test_a_thousand_runs_are_read_within_ten_seconds(uri):
    """Runs of 300 metrics, 50 parameters and a page of text, as evaluations leave them.

    The processor's time counts: on a machine that others use as well the clock runs on.
    """
    client = MlflowClient(tracking_uri=uri)
    experiment = client.create_experiment("e")
    names = [
        f"rmbench/cell{cell}{part}" for cell in range(74) for part in ("", "/n", "/low", "/high")
    ]
    names += ["rmbench/overall" + part for part in ("", "/n", "/low", "/high")]
    for number in range(1000):
        tags = {"rmexp.command": "eval_rm", "rmexp.model": f"rm {number}", "rmexp.bench": "rmbench"}
        run = client.create_run(experiment, tags=tags)
        client.log_batch(
            run.info.run_id,
            metrics=[Metric(name, number / 1000, 0, 0) for name in names],
            params=[Param(f"model.key{key}", "value") for key in range(50)],
            tags=[RunTag("mlflow.note.content", "x" * 3000)],
        )
        client.set_terminated(run.info.run_id)
    began, clock = time.process_time(), time.monotonic()
    found = evaluations(uri, "e", ["rmbench/overall"])
    taken = time.process_time() - began
    print(f"{taken:.1f} s of the processor, {time.monotonic() - clock:.1f} s by the clock")
    assert len(found) == 1000
    assert {run.metrics["rmbench/overall"].low for run in found} == {n / 1000 for n in range(1000)}
    assert taken < 10
