"""The command as a user runs it: what it leaves, what it refuses, and how it ends.

Most runs happen in this process, as the script that they are: a process of its own takes seconds.
"""

import errno
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import yaml
from omegaconf import OmegaConf
from running import Done, files_of_at_most, one_thread, run_apart, run_script
from scored_rows import score, write_lines
from test_tracking import fresh_database
from tiny import tiny_policy, tiny_scalar

from rmexp.benchmarks.toy import Toy
from rmexp.cli import commands, configs
from rmexp.errors import ConfigError, no_room
from rmexp.evaluation import evaluate
from rmexp.metrics import headline
from rmexp.models.checkpoints import find_checkpoint
from rmexp.schema import fingerprint
from rmexp.scoring.rewards import open_reward
from rmexp.scoring.score import Settings
from rmexp.scoring.store import ScoreStore
from rmexp.signals import Killed
from rmexp.tracking import entries, owner
from rmexp.tracking.run_folder import hold, running, write_status
from rmexp.tracking.runs import MlflowClient, open_run

# What may differ between a run that was interrupted and one that was not.
HOW_IT_WENT = {
    "cached", "tokens", "tokens_run", "tokens_padded", "seconds", "tokens_per_second",
    "self_check_max_delta",
}  # fmt: skip


class Command:
    """`python eval_rm.py`, with all that it writes below one folder.

    In this process it draws only where `figures` is set: drawing takes most of a small run's time.
    """

    figures = False

    def __init__(self, root: Path, top: Path, uri: str, model: Path) -> None:
        self.root, self.top, self.uri, self.model = root, top, uri, model

    def __call__(self, *overrides: str, out: str = "out", options: Sequence[str] = ()) -> Done:
        """Run it in this process."""
        words = ["eval_rm.py", *options, *self.arguments(overrides, out)]
        undrawn = () if self.figures else ((Toy, "figures"),)
        return Done(*run_script(self.root, words, undrawn), self.top / out, self.uri)

    def start(self, *overrides: str, out: str = "out", options: Sequence[str] = ()) -> Any:
        """Start it as a process; `end` waits for it."""
        command = [sys.executable, "eval_rm.py", *options, *self.arguments(overrides, out)]
        return self.process(command)

    def process(self, command: Sequence[str]) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            command,
            cwd=self.root,
            env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def end(self, process: "subprocess.Popen[str]", out: str = "out") -> Done:
        with process:
            stdout, stderr = process.communicate()
        return Done(process.returncode, stdout, stderr, self.top / out, self.uri)

    def arguments(self, overrides: Iterable[str], out: str = "out") -> list[str]:
        own = [
            "model=local",
            f"model.path={self.model}",
            f"out_dir={self.top / out}",
            f"store_dir={self.top / 'store'}",
            f"tracking.uri={self.uri}",
        ]
        given = {override.partition("=")[0] for override in overrides}
        if "model" in given:
            given.add("model.path")
        return [word for word in own if word.partition("=")[0] not in given] + list(overrides)

    def runs(self) -> list[Any]:
        """What MLflow has of all runs, in the right experiment."""
        client = MlflowClient(tracking_uri=self.uri)
        names = {e.experiment_id: e.name for e in client.search_experiments()}
        runs = client.search_runs(list(names))
        assert {names[run.info.experiment_id] for run in runs} <= {"rmexp"}
        return list(runs)

    def stored(self) -> int:
        """How many rewards the store holds."""
        files = (self.top / "store").glob("*/*.jsonl")
        return sum(file.read_bytes().count(b"\n") for file in files)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("models")
    tiny_scalar(top / "scalar")
    tiny_policy(top / "policy")
    return top


@pytest.fixture(scope="session")
def command_in(
    project_root: Path, models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Path], Command]:
    def make(top: Path) -> Command:
        uri = fresh_database(tmp_path_factory, top / "mlflow.db")
        return Command(project_root, top, uri, models / "scalar")

    return make


@pytest.fixture
def command(command_in: Callable[[Path], Command], tmp_path: Path) -> Command:
    return command_in(tmp_path)


@pytest.fixture(scope="session")
def good(command_in: Callable[[Path], Command], tmp_path_factory: pytest.TempPathFactory) -> Done:
    """A run that nothing disturbs, which no test may write to."""
    command = command_in(tmp_path_factory.mktemp("good"))
    command.figures = True
    done = command("bench.limit=2")
    assert done.code == 0, done.err
    return done


# ---------------------------------------------------------------- what a good run leaves


def test_the_files(good):
    assert {path.name for path in good.folder.iterdir()} == {
        "bad_rows.txt", "calibration.csv", "config.yaml", "eval_rm.log", "first_example.txt",
        "metrics.csv", "metrics.json", "metrics_table.json", "run.json", "scores.jsonl",
        "style_bias.png", "style_matrix.png", "summary.md",
    } - {"bad_rows.txt"}  # fmt: skip
    assert set(good.status) >= {"run_id", "experiment_id", "status"}
    assert good.status["status"] == "FINISHED"
    *_, what, number, where = good.out.splitlines()
    assert what == f"scalar on toy: results in {good.folder}"
    assert good.run().info.run_name == "scalar on toy, n 8"
    assert number == headline(good.metrics, "toy/overall")
    assert good.status["run_id"] in where
    assert "loading" in good.err


def test_the_scores_are_those_of_the_model(good, models, tmp_path):
    examples = Toy(limit=2).load().examples
    reward = open_reward(path=str(models / "scalar"))
    expected = score(reward, examples, Settings(tmp_path / "store")).scored
    assert [set(row) for row in good.scores] == [{"id", "subset", "chosen", "rejected"}] * 8
    assert [(row["id"], row["subset"]) for row in good.scores] == [
        (example.id, example.subset) for example in examples
    ]
    for row, other in zip(good.scores, expected, strict=True):
        assert row["chosen"] == pytest.approx(other.chosen, abs=1e-5)
        assert row["rejected"] == pytest.approx(other.rejected, abs=1e-5)


def test_the_metrics_have_the_names_and_forms_that_were_agreed(good):
    assert all(isinstance(value, int | float) for value in good.metrics.values())
    parts = ["", "reading/", "math/", "code/", "lists/", "plain/", "subtle/"]
    styles = ["concise", "detailed", "markdown"]
    values = {f"toy/{part}{grade}" for part in parts for grade in ("easy", "normal", "hard")}
    values |= {f"toy/{part}average" for part in parts[1:]} | {"toy/overall"}
    values |= {f"toy/{part}matrix/{c}_{r}" for part in parts[1:] for c in styles for r in styles}
    toy = {name for name in good.metrics if name.startswith("toy/")}
    ends = {name for name in toy if name.endswith(("/low", "/high"))}
    beside = {f"toy/null/{null}" for null in ("longer", "shorter", "random", "markdown")}
    beside |= {"toy/worst"}
    assert toy - ends == {name + end for name in values | beside for end in ("", "/n")}
    cells = {name for name in values if "/matrix/" in name}
    # Of few prompts a share alone has an interval; parts of reading, math, code and lists have two.
    assert ends >= {name + end for name in cells for end in ("/low", "/high")}
    scoring = {name for name in good.metrics if name.startswith("scoring/")}
    assert scoring >= {
        f"scoring/{name}"
        for name in (
            "responses", "unique", "cached", "tokens", "tokens_run", "tokens_padded", "seconds",
            "tokens_per_second", "truncated", "non_finite", "ties", "self_check_max_delta",
        )
    }  # fmt: skip
    lengths = {"length_correlation", "accuracy_rejected_longer", "accuracy_rejected_shorter"}
    style = {f"style/{name}{end}" for name in lengths for end in ("", "/n")}
    found = {name for name in good.metrics if not name.endswith(("/low", "/high"))}
    calibration = {name for name in found if name.startswith("calibration/")}
    scores = {f"calibration/{name}{end}" for name in ("brier", "log_loss") for end in ("", "/n")}
    assert calibration >= scores | {"calibration/ece", "calibration/ece/n"}
    found -= calibration
    assert found - toy - scoring == style | {"data/examples", "data/bad_rows"}
    for name in values:
        n = good.metrics[f"{name}/n"]
        assert n == (8 if "/" not in name.removeprefix("toy/") else n)
        if f"{name}/low" in ends:
            assert good.metrics[f"{name}/low"] <= good.metrics[name] <= good.metrics[f"{name}/high"]
            assert good.metrics[f"{name}/low"] < good.metrics[f"{name}/high"]
    assert {good.metrics[f"toy/{part}easy/n"] for part in parts[1:5]} == {2}
    assert good.metrics["scoring/responses"] == good.metrics["scoring/unique"] == 48
    assert good.metrics["scoring/cached"] == 0
    assert good.metrics["scoring/tokens"] > 1000


def test_the_metrics_are_those_of_the_scores(good):
    """Counted by hand from scores.jsonl, whose styles are concise, detailed, markdown."""
    won = np.array(
        [[[c > r for r in row["rejected"]] for c in row["chosen"]] for row in good.scores]
    )
    domains = np.array([row["subset"].split("-")[0] for row in good.scores])
    averages = []
    for domain in ("reading", "math", "code", "lists"):
        matrix = won[domains == domain].mean(axis=0)
        assert good.metrics[f"toy/{domain}/matrix/detailed_concise"] == pytest.approx(matrix[1, 0])
        easy, hard = matrix[np.tril_indices(3, -1)].mean(), matrix[np.triu_indices(3, 1)].mean()
        assert good.metrics[f"toy/{domain}/easy"] == pytest.approx(easy)
        assert good.metrics[f"toy/{domain}/hard"] == pytest.approx(hard)
        averages.append((easy + matrix.trace() / 3 + hard) / 3)
    assert good.metrics["toy/overall"] == pytest.approx(np.mean(averages))


def test_mlflow_has_the_headline_numbers(good):
    run = good.run()
    assert run.info.status == "FINISHED"
    assert run.info.experiment_id == good.status["experiment_id"]
    found = run.data.metrics
    own = {name: found.pop(name) for name in list(found) if name.startswith("headline")}
    assert own == {"headline": good.metrics["toy/overall"], "headline/n": 8}  # too few for ends
    assert run.data.tags["rmexp.headline"] == "toy/overall"
    assert found == {name: good.metrics[name] for name in found}
    domains = ("reading", "math", "code", "lists", "plain", "subtle")
    toy = {f"toy/{name}" for name in ("easy", "normal", "hard", "overall")}
    assert {name for name in found if name.startswith("toy/")} == toy | {"toy/worst"} | {
        f"toy/{domain}/average" for domain in domains
    }
    assert not any(name.endswith(("/n", "/low", "/high")) for name in found)
    assert {"scoring/responses", "style/length_correlation"} <= set(found)
    assert len(found) < 40 < 250 < len(good.metrics)


def test_mlflow_has_all_numbers_as_a_table(good, monkeypatch):
    columns = ["metric", "value", "low", "high", "n", "p"]
    run = good.run()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", good.uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", run.info.experiment_id)
    table = mlflow.load_table("metrics_table.json", [run.info.run_id], ["run_id"])
    assert list(table) == [*columns, "run_id"]
    found = {}
    for row in table.to_dict("records"):
        found[row["metric"]] = row["value"]
        parts = {f"{row['metric']}/{part}": row[part] for part in columns[2:]}
        found |= {name: value for name, value in parts.items() if value == value}
    assert found == pytest.approx(good.metrics)


def test_mlflow_has_every_setting_that_explains(good, models):
    config = yaml.safe_load((good.folder / "config.yaml").read_text())
    assert "${" not in (good.folder / "config.yaml").read_text()
    flat: dict[str, str] = {}

    def flatten(values: dict[str, Any], prefix: str = "") -> None:
        for name, value in values.items():
            if isinstance(value, dict):
                flatten(value, f"{prefix}{name}.")
            else:
                flat[prefix + name] = value if isinstance(value, str) else json.dumps(value)

    flatten(config)
    operational = {"out_dir", "store_dir", "data_root", "quiet", "skip_done", "fail_fast", "then"}
    operational |= {name for name in flat if name.startswith("tracking.")}
    assert operational <= set(flat)
    unset = {name for name, value in flat.items() if value == "null" or name.endswith("_target_")}
    explaining = {name: flat[name] for name in flat.keys() - operational - unset}
    assert flat["bench.limit"] == "2"
    assert (flat["model.name"], flat["model.dtype"]) == ("scalar", "null")
    found = {"model": "local", "bench": "toy", "model.dtype": "float32"}
    found |= {"bench.examples": "8", "bench.bad_rows": "0"}
    assert good.run().data.params == explaining | found


def test_mlflow_says_what_was_evaluated(good, models):
    run = good.run()
    examples = Toy(limit=2).load().examples
    tags = run.data.tags
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", tags["mlflow.source.git.commit"])
    assert tags["rmexp.data"] == fingerprint(examples)
    weights = find_checkpoint(str(models / "scalar")).fingerprint(good.folder.parent / "store")
    assert tags["rmexp.weights"] == weights
    assert tags["rmexp.command"] == "eval_rm"
    assert tags["rmexp.bench"] == "toy"
    # model.name is null, which takes that of the path's folder.
    assert tags["rmexp.model"] == "scalar"
    assert run.info.run_name == "scalar on toy, n 8"
    assert "rmexp.error" not in tags
    (used,) = run.inputs.dataset_inputs
    digest = fingerprint(examples)
    assert used.dataset.name == f"toy #{digest[:4]}"
    assert used.dataset.digest == digest[:8]
    assert json.loads(used.dataset.profile) == {"num_rows": 8}


def test_the_page_of_the_run_shows_a_table(good):
    note = good.run().data.tags["mlflow.note.content"]
    assert note == (good.folder / "summary.md").read_text()
    assert re.search(r"^\| toy/overall \| 0\.\d{3} \| too few \| 8 \|$", note, re.M)


def test_the_artifacts_are_the_files(good):
    kept = Path(good.run().info.artifact_uri.removeprefix("file://"))
    assert {path.name for path in kept.iterdir()} == {path.name for path in good.folder.iterdir()}
    for name in ("metrics.json", "scores.jsonl", "config.yaml", "run.json", "style_matrix.png"):
        assert (kept / name).read_bytes() == (good.folder / name).read_bytes(), name


# ---------------------------------------------------------------- again, and from a file


def test_the_same_again_computes_nothing(command):
    first = command("bench.limit=2", out="first")
    second = command("bench.limit=2", out="second")
    assert (first.code, second.code) == (0, 0)
    assert second.metrics["scoring/tokens"] == 0
    assert second.metrics["scoring/cached"] == 48
    assert "scoring/self_check_max_delta" not in second.metrics
    assert "loading" in first.err
    assert "loading" not in second.err
    assert_same_numbers(first, second)
    more = command("bench.limit=3", out="more")
    assert more.metrics["scoring/cached"] == 48
    assert more.metrics["scoring/unique"] == 72


def test_recorded_scores_give_the_same_metrics_without_a_model_library(good, command):
    recorded = good.folder / "scores.jsonl"
    script = (
        "import runpy, sys\n"
        "try:\n"
        "    runpy.run_path('eval_rm.py', run_name='__main__')\n"
        "finally:\n"
        "    heavy = {'torch', 'transformers', 'lightning', 'datasets'}\n"
        "    print('IMPORTED', sorted(heavy & set(sys.modules)))\n"
    )
    words = command.arguments(["model=recorded", f"model.path={recorded}", "bench.limit=2"])
    done = command.end(command.process([sys.executable, "-c", script, *words]))
    assert done.code == 0, done.err
    assert "IMPORTED []" in done.out
    assert done.scores == good.scores
    benchmark = {name: value for name, value in good.metrics.items() if name.startswith("toy/")}
    assert {n: value for n, value in done.metrics.items() if n.startswith("toy/")} == benchmark
    assert done.metrics["scoring/recorded_ignored"] == 0
    assert done.metrics["scoring/ties"] == good.metrics["scoring/ties"]
    assert done.run().data.tags["rmexp.model"] == "recorded"
    assert "rmexp.weights" not in done.run().data.tags
    assert not (command.top / "store").exists() or not command.stored()


def test_recorded_rows_beyond_the_selected_are_ignored_and_counted(good, command):
    extra = {"id": "of no example\u2028at all", "chosen": [], "rejected": [None], "note": "x"}
    rows = [extra, *reversed(good.scores)]
    path = command.top / "scores.jsonl"
    path.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\r\n\n" for row in rows), encoding="utf-8"
    )
    words = ["model=recorded", f"model.path={path}", "bench.limit=1", "bench.include=[*math*]"]
    done = command(*words)
    assert done.code == 0, done.err
    assert done.metrics["scoring/recorded_ignored"] == 8
    assert done.metrics["data/examples"] == 1
    assert "8 rows belong to no selected example" in done.err
    assert done.scores == [row for row in good.scores if row["id"] == "math/0"]


def test_ties_and_rewards_that_are_not_finite_are_counted(good, command):
    rows = good.scores
    rows[0] |= {"chosen": [1, 1, 2], "rejected": [1, 3, 2]}  # 3 ties
    rows[1]["chosen"] = [None, float("nan"), 1]
    rows[1]["rejected"] = [2, 3, 10**400]
    path = write_lines(command.top / "scores.jsonl", rows)
    words = ["model=recorded", f"model.path={path}", "bench.limit=2"]
    refused = command(*words, "max_non_finite=2", out="refused")
    assert refused.code == 1
    assert re.search(rf"^3 rewards are not finite \(first in {rows[1]['id']}\)", refused.last)
    done = command(*words, "max_non_finite=3")
    assert done.code == 0, done.err
    assert done.metrics["scoring/non_finite"] == 3
    assert done.metrics["scoring/ties"] == 3 + sum(
        c == r for row in rows[2:] for c in row["chosen"] for r in row["rejected"]
    )


# ---------------------------------------------------------------- bad input


@pytest.fixture(scope="session")
def bad(tmp_path_factory: pytest.TempPathFactory, models: Path, good: Done) -> Path:
    """A folder of files and folders that cannot be used."""
    top = tmp_path_factory.mktemp("bad")
    pair = {"prompt": "p", "chosen": "c", "rejected": "r"}
    line = json.dumps(pair)
    (top / "broken.jsonl").write_text(f'{line}\n{{"prompt": "p", \n{line}\n')
    (top / "bytes.jsonl").write_bytes(b"\xff\xfe\x00" * 9)
    (top / "empty.jsonl").write_text("\n")
    (top / "none.json").write_text("[]")
    (top / "text.txt").write_text(line)
    (top / "text.parquet").write_text(line)
    (top / "text.jsonl.gz").write_text(line)
    (top / "folder").mkdir()
    write_lines(top / "twice.jsonl", [pair | {"id": "a"}, pair | {"id": "b"}, pair | {"id": "a"}])
    write_lines(top / "column.jsonl", [pair, {"prompt": "p", "chosen": "c"}])
    write_lines(top / "blank.jsonl", [pair, pair | {"rejected": " "}])

    rows = good.scores
    write_lines(top / "missing.scores", rows[2:])
    write_lines(top / "nan.scores", [rows[0] | {"chosen": [None, 1, 2]}, *rows[1:]])
    write_lines(top / "twice.scores", [*rows, rows[0]])
    write_lines(top / "short.scores", [rows[0] | {"chosen": [1, 2]}, *rows[1:]])
    write_lines(top / "words.scores", [rows[0] | {"chosen": ["high", 1, 2]}, *rows[1:]])
    (top / "broken.scores").write_text(json.dumps(rows[0]) + '\n{"id": "math/0", "cho\n')
    (top / "bytes.scores").write_bytes(b"\xff\xfe\x00" * 9)

    def altered(source: str, name: str, file: str, content: str | None) -> None:
        shutil.copytree(models / source, top / name)
        if content is None:
            (top / name / file).unlink()
        else:
            (top / name / file).write_text(content)

    altered("scalar", "no_weights", "model.safetensors", None)
    altered("scalar", "text_weights", "model.safetensors", "no weights at all")
    altered("scalar", "no_config", "config.json", None)
    altered("scalar", "broken_config", "config.json", '{"architectures": [')
    altered("scalar", "no_template", "chat_template.jinja", None)
    altered("scalar", "no_tokenizer", "tokenizer.json", None)
    config = json.loads((models / "policy" / "config.json").read_text())
    config |= {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "LABEL_0"}}
    altered("policy", "headless", "config.json", json.dumps(config))
    config |= {"architectures": ["LlamaModel"]}
    altered("policy", "backbone", "config.json", json.dumps(config))
    return top


PREFERENCE, RECORDED = "bench=preference bench.path={bad}/", "model=recorded model.path={bad}/"
MODEL = "bench.limit=1 model.path={bad}/"
MISTAKES = {
    # data
    "bench=preference bench.path={bad}/absent": r"absent does not exist: check the path",
    "bench=rmbench bench.path={bad}/absent": r"absent does not exist: check the path",
    "bench=rmb bench.path={bad}/absent": r"absent does not exist: check the path",
    "bench=rewardbench bench.path={bad}/absent": r"absent does not exist: check the path",
    PREFERENCE + "folder": r"folder holds no file of a known format .*check the path",
    "bench=rmbench bench.path={bad}/folder": r"folder holds no file of a known format",
    "bench=rmb bench.path={bad}/folder": r"folder.*(check|give|download)",
    PREFERENCE + "empty.jsonl": r"empty\.jsonl holds no rows: download it again",
    PREFERENCE + "none.json": r"none\.json holds no rows: download it again",
    PREFERENCE + "text.txt": r"the format of .*text\.txt is unknown: known are \.jsonl",
    PREFERENCE + "text.parquet": r"text\.parquet cannot be read as Parquet .*download it again",
    PREFERENCE + "text.jsonl.gz": r"text\.jsonl\.gz cannot be read .*download it again",
    PREFERENCE + "broken.jsonl": r"broken\.jsonl:2 is no valid JSON .*correct the line",
    PREFERENCE + "bytes.jsonl": r"bytes\.jsonl:1 is no UTF-8 text .*save the file as UTF-8",
    PREFERENCE + "twice.jsonl": r"id a occurs twice, at twice.jsonl:1 and at twice.jsonl:3: remove",
    PREFERENCE + "column.jsonl": r"column 'rejected' is missing at column\.jsonl:2 .*check",
    PREFERENCE + "blank.jsonl": r"1 bad rows.*empty response.*bench\.on_bad_row=skip",
    "bench=rmbench bench.path={bad}/twice.jsonl": r"domain of twice\.jsonl:1 is unknown: add",
    # the benchmark's settings
    "bench.limit=-1": r"^bench\.limit must be a positive whole number, not -1: give",
    "bench.limit=0": r"^bench\.limit must be a positive whole number, not 0: give",
    "bench.limit=many": r"^bench\.limit must be a positive whole number, not 'many': give",
    "bench.include=[nothing]": r"no file or subset matches bench\.include's 'nothing': choose from",
    "bench.include=math": r"^bench\.include must be a list of patterns",
    "bench.include=[]": r"^bench\.include must be a list of patterns",
    PREFERENCE + "blank.jsonl bench.on_bad_row=drop": r"on_bad_row must be one of keep, skip",
    # recorded scores
    RECORDED + "absent": r"absent: there is no such file; give a scores\.jsonl",
    RECORDED + "folder": r"folder: there is no such file; give a scores\.jsonl",
    RECORDED + "missing.scores bench.limit=2": r"lacks 2 of 8 examples \(reading/0, .*score these",
    RECORDED + "nan.scores bench.limit=2": r"1 rewards are not finite \(first in reading/0\)",
    RECORDED + "twice.scores bench.limit=2": r":9: reading/0 stands in line 1 already: keep one",
    RECORDED + "short.scores bench.limit=2": r":1: reading/0 has 2 chosen .* the benchmark 3 and 3",
    RECORDED + "words.scores bench.limit=2": r"words\.scores:1: expected .* mend or remove",
    RECORDED + "broken.scores bench.limit=2": r"broken\.scores:2: expected .* mend or remove",
    RECORDED + "bytes.scores bench.limit=2": r"bytes\.scores is no text: give a file of scores",
    RECORDED + "empty.jsonl bench.limit=2": r"empty\.jsonl lacks 8 of 8 examples",
    # models
    "model.path={bad}/absent": r"absent: there is no such folder, and it is no hub name",
    "model.path={bad}/text.txt": r"text\.txt: there is no such folder, and it is no hub name",
    MODEL + "folder": r"folder holds no config\.json: give a model folder",
    MODEL + "no_config": r"no_config holds no config\.json: give a model folder",
    MODEL + "broken_config": r"broken_config/config\.json holds no JSON object .*get the model",
    MODEL + "no_weights": r"no_weights holds no \*\.safetensors file: convert",
    MODEL + "text_weights": r"model.safetensors is damaged .*get the model folder again",
    MODEL + "no_template": r"no_template has no chat template: give .*model\.chat_template",
    MODEL + "no_tokenizer": r"no_tokenizer has no tokenizer that loads",
    MODEL + "headless": r"headless lacks 1 of the weights of Llama\w+ \(score\.weight\): .*give",
    MODEL + "backbone": r"backbone was saved from LlamaModel: say how to read it, model\.reader=",
    "bench.limit=1 model.path={models}/policy model.reader=scalar": r"2 outputs.*model\.reader=",
    "bench.limit=1 model.path={models}/scalar model.reader=implicit": r"lacks 1 of .*lm_head",
    "model.dtype=float8": r"^model\.dtype=float8: use one of float32",
    "model.reader=head": r"^model\.reader=head: use auto, scalar or implicit",
    "model.max_length=0": r"^model\.max_length=0: give a positive number",
    "model.max_length=long": r"model\.max_length=long: give a positive number of tokens",
    "model.chat_template={bad}/absent": r"^model\.chat_template=.*absent: cannot read it",
    "+model.nonsense=1": r"open_reward: .*unexpected keyword argument 'nonsense'",
    f"model=mlflow model.uri=runs:/{'7' * 32}/model": r"^cannot get model\.uri=runs:/7+/model",
    # the command's own
    "seed=-1": r"^seed=-1: give a whole number of 0 or more",
    "seed=a": r"^seed=a: give a whole number of 0 or more",
    "batch_tokens=0": r"^batch_tokens=0: give a whole number of 1 or more",
    "batch_tokens=a": r"^batch_tokens=a: give a whole number of 1 or more",
    "max_non_finite=-1": r"^max_non_finite=-1: give a whole number of 0 or more",
    "on_overlength=cut": r"^on_overlength=cut: use one of left_truncate, drop, error",
    "store_dir={bad}/text.txt": r"^store_dir=.*text\.txt: cannot make this folder .*give another",
    "store_dir={bad}/text.txt/below": r"^store_dir=.*below: cannot make this folder .*give another",
    "store_dir=null": r"^store_dir=null: give a folder",
    "model=recorded": r"^model\.path has no value: give one, model\.path=VALUE",
    "bench=preference": r"^bench\.path has no value: give one, bench\.path=VALUE",
    "model.name=${{nothing}}": r"^model\.name: Interpolation key 'nothing' not found; give",
    # tracking
    "tracking.uri=null": r"^tracking\.uri is empty: give",
    "tracking.uri=''": r"^tracking\.uri is empty: give",
    "tracking.experiment=null": r"^tracking\.experiment is empty: give",
    "tracking.uri=http://me:secret@127.0.0.1:9": r"^cannot use .* http://127\.0\.0\.1:9 .*start it",
    "tracking.uri=sqlite:///{bad}/text.txt": r"^cannot use the tracking server .*not a database",
    "tracking.uri=sqlite:///{bad}/text.txt/mlflow.db": r"^cannot use the tracking server sqlite",
    "tracking.uri=file://{bad}/folder": r"^cannot use the tracking server file:.*sqlite:////path",
    "tracking.uri=nonsense://x": r"^cannot use the tracking server nonsense:.*sqlite:////path",
}  # fmt: skip
# What is found before a run is opened, beside what is no choice or no number at all.
FOUND_EARLY = (
    "path={bad}/absent",
    "model.path={bad}/text.txt",
    RECORDED + "folder",
    "bench.limit=-1",
    "bench.limit=0",
    "bench.limit=many",
    "bench.include=math",
    "bench.include=[]",
    "bench.on_bad_row=drop",
)
# Only what scoring needs is found after a model begins to load.
FOUND_IN_WEIGHTS = ("headless", "model.reader=scalar", "model.reader=implicit")


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_is_one_line_that_says_what_to_do(command, bad, models, words):
    done = command(*words.format(bad=bad, models=models).split())
    assert done.code == 1
    assert re.search(MISTAKES[words], done.last), done.err
    assert "Traceback" not in done.out + done.err
    assert "secret" not in done.out + done.err + (done.folder / "eval_rm.log").read_text()
    assert not done.out
    assert not (done.folder / "metrics.json").exists()
    if not any(name in words for name in FOUND_IN_WEIGHTS):
        assert "loading" not in done.err
    status = done.status
    assert status["status"] == "FAILED"
    assert status["error"] == done.last
    if "run_id" in status:
        assert done.run().info.status == "FAILED"
        assert done.run().data.tags["rmexp.error"] == done.last
    else:
        assert command.runs() == []
    # A run fails by what is in files and in the data alone.
    assert "run_id" not in status or any(
        part in words for part in ("{bad}", "[nothing]", *FOUND_IN_WEIGHTS)
    )


def test_the_mistakes_are_all_tried():
    assert len(MISTAKES) == 75


@pytest.mark.parametrize(
    ("word", "options"),
    [
        ("model=nope", "did you mean python eval_rm py help lists all"),
        ("bench=nope", "bon100 preference rewardbench rewardbench2 rmb rmbench toy"),
    ],
)
def test_an_unknown_choice_lists_the_others(command, word, options):
    done = command(word)
    assert done.code == 1
    assert f"Could not find '{word.replace('=', '/')}'" in done.err
    assert set(options.split()) <= set(re.findall(r"\w+", done.err))
    assert "Traceback" not in done.err
    assert command.runs() == []


def test_an_ensemble_of_two_files(command):
    """Where one member is always right and the other undecided, both together are right."""
    examples = Toy(limit=2).load().examples
    files = []
    for name, chosen in (("right", [1, 2, 3]), ("flat", [0, 0, 0])):
        rows = [{"id": e.id, "chosen": chosen, "rejected": [0, 0, 0]} for e in examples]
        files.append(write_lines(command.top / f"{name}.jsonl", rows))
    members = ",".join(f"{{name: recorded, path: {file}}}" for file in files)
    done = command("model=ensemble", f"model.members=[{members}]", "bench.limit=2")
    assert done.code == 0, done.err
    assert done.metrics["toy/reading/average"] == 1.0
    assert (
        done.run().data.tags["rmexp.reward"] == "mean of recorded (recorded), recorded (recorded)"
    )
    for words, message in (
        ("[right,recorded]", "model.members: there is no model right"),
        ("right", "model.members=right: give names of models"),
        ("[{name: recorded, pth: x}]", "model.members: recorded has no pth"),
        ("[{name: recorded}]", "model.members: recorded needs path: give one"),
    ):
        refused = command("model=ensemble", f"model.members={words}", out="refused")
        assert refused.code == 1
        assert message in refused.err


def test_an_unknown_key_is_hydras_own_message(command):
    done = command("bench.nonsense=1")
    assert done.code == 1
    assert "Key 'nonsense' is not in struct" in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("options", [(), ("-m",)])
@pytest.mark.parametrize("out", ["file", "file/below"])
def test_an_output_folder_that_cannot_be_made(command, options, out):
    (command.top / "file").touch()
    done = command("bench.limit=1", out=out, options=options)
    assert done.code == 1
    assert done.err.count("\n") == 1
    assert re.fullmatch(
        r"out_dir=.*file.*: cannot make this folder .*, give another one", done.last
    )
    assert command.runs() == []


def test_a_mistake_in_a_process_of_its_own(command):
    done = command.end(command.start("bench.limit=-1"))
    assert done.code == 1
    assert done.err.count("\n") == 2  # what was asked for, and the mistake
    assert done.last.startswith("bench.limit must be a positive whole number, not -1")
    assert not done.out
    assert command.runs() == []


def test_a_full_disk_is_found_among_the_causes_even_in_a_circle():
    error, cause = ConfigError("a"), ValueError("b")
    error.__cause__, cause.__context__ = cause, error
    assert no_room(error) is None
    disk, file = "no space left on the disk", "a file has the size that ulimit -f allows"
    for number, reason in ((errno.ENOSPC, disk), (errno.EDQUOT, disk), (errno.EFBIG, file)):
        cause.__context__ = OSError(number, "full")
        assert (no_room(error) or ("",))[0].startswith(reason)
    for words, reason in (
        ("I/O error: No space left on device (os error 28)", disk),
        ("database or disk is full", disk),
        ("I/O error: File too large (os error 27)", file),
    ):
        assert (no_room(RuntimeError(words)) or ("",))[0].startswith(reason)
    assert no_room(RuntimeError("disk I/O error")) is None  # there is no limit here


def test_a_full_database_is_a_full_disk_in_one_line(command, monkeypatch):
    def full(*_: Any, **__: Any) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(MlflowClient, "log_inputs", full)
    done = command("bench.limit=1")
    assert done.code == 1
    assert "Traceback" not in done.err
    assert done.last.startswith("no space left on the disk: make room for ")
    assert done.run().info.status == "FAILED"


@pytest.mark.parametrize("options", [(), ("-m",)])
def test_a_database_that_may_not_grow_is_one_line(command, options):
    """SQLite says of it what it says of a broken disk, and MLflow writes down the traceback."""
    size = Path(command.uri.removeprefix("sqlite:///")).stat().st_size
    with files_of_at_most(size // 2):
        done = command("bench.limit=1", options=options)
    assert done.code == 1
    *begin, end = done.err.splitlines()
    assert [line.partition(":")[0] for line in begin] == ([] if options else ["eval_rm"])
    assert end.startswith("a file has the size that ulimit -f allows this process: raise that")


def test_a_number_is_a_name_too(command):
    done = command("tracking.experiment=7", "model.name=8", "bench.limit=1")
    assert done.code == 0, done.err
    client = MlflowClient(tracking_uri=command.uri)
    assert client.get_experiment(done.status["experiment_id"]).name == "7"
    assert done.run().data.tags["rmexp.model"] == "8"


def test_the_password_of_a_server_is_written_nowhere(command, monkeypatch):
    """With a server that is reached: only the client is told the whole address."""
    whole = "http://me:p@ss-hunter2@127.0.0.1:5000"
    connect = entries.connect

    def here(uri: str, experiment: str) -> Any:
        assert uri == whole
        return connect(command.uri, experiment)

    monkeypatch.setattr(entries, "connect", here)
    words = ["bench.limit=1", f"tracking.uri='{whole}'"]
    one = command(*words, out="one")
    several = command(*words, out="several", options=("-m",))
    assert (one.code, several.code) == (0, 0), one.err + several.err
    assert "127.0.0.1:5000" in (one.folder / "config.yaml").read_text()
    assert (several.folder / "multirun.yaml").is_file()
    written = [path for path in command.top.rglob("*") if path.is_file()]
    assert len(written) > 20
    assert [path for path in written if b"hunter2" in path.read_bytes()] == []
    assert "hunter2" not in one.out + one.err + several.out + several.err


# ---------------------------------------------------------------- sweeps


def test_a_mistake_in_one_job_of_a_sweep(command):
    done = command("bench.limit=2,-1,1", options=("-m",))
    assert done.code == 1
    assert "Traceback" not in done.out + done.err
    assert "bench.limit must be a positive whole number, not -1" in done.err
    statuses = {}
    for folder in sorted(path for path in done.folder.iterdir() if path.is_dir()):
        statuses[folder.name] = done.status_of(folder.name)
        config = yaml.safe_load((folder / "config.yaml").read_text())
        assert config["bench"]["limit"] == [2, -1, 1][int(folder.name)]
    assert {name: row["status"] for name, row in statuses.items()} == {
        "0": "FINISHED", "1": "FAILED", "2": "FINISHED",
    }  # fmt: skip
    runs = {run.info.run_id: run.info.status for run in command.runs()}
    parent = done.run("2").data.tags["mlflow.parentRunId"]
    assert runs.pop(parent) == "FAILED"
    assert "run_id" not in statuses.pop("1")  # what is seen before a run leaves none
    assert runs == {row["run_id"]: row["status"] for row in statuses.values()}
    metrics = json.loads((done.folder / "2" / "metrics.json").read_text())
    assert metrics["scoring/cached"] == metrics["scoring/unique"] == 24


def test_a_sweep_that_ends_well_in_the_folder_of_one_that_did_not(command):
    assert command("bench.limit=1,-1", options=("-m",)).code == 1
    assert command("bench.limit=1", options=("-m",)).code == 0
    assert command("bench.limit=-1", options=("-m",)).code == 1


def test_an_exception_in_one_job_lets_the_others_run(command, monkeypatch):
    monkeypatch.setattr(evaluate, "summarise", break_once(evaluate.summarise))
    done = command("bench.limit=1,2", options=("-m",))
    assert done.code == 1
    assert [done.status_of(job)["status"] for job in ("0", "1")] == ["FAILED", "FINISHED"]
    assert [done.run(job).info.status for job in ("0", "1")] == ["FAILED", "FINISHED"]


# ---------------------------------------------------------------- runs that are cut off


def break_once(function: Callable[..., Any]) -> Callable[..., Any]:
    calls: list[int] = []

    def broken(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise ZeroDivisionError("broken at http://me:secret@host/x")
        return function(*args, **kwargs)

    return broken


def assert_same_numbers(done: Done, other: Done) -> None:
    def settled(metrics: dict[str, float]) -> dict[str, float]:
        return {
            name: value
            for name, value in metrics.items()
            if name.removeprefix("scoring/") not in HOW_IT_WENT
        }

    assert settled(done.metrics) == settled(other.metrics)
    for name in ("scores.jsonl", "metrics.csv"):
        assert (done.folder / name).read_bytes() == (other.folder / name).read_bytes()


def test_an_exception_ends_the_run_as_failed(command, monkeypatch):
    monkeypatch.setattr(evaluate, "summarise", break_once(evaluate.summarise))
    done = command("bench.limit=1")
    assert done.code == 1
    assert done.status["status"] == "FAILED"
    assert done.status["error"] == "broken at http://host/x"
    assert done.run().info.status == "FAILED"
    assert done.run().data.tags["rmexp.error"] == "broken at http://host/x"


SLOW = ("bench.limit=25", "batch_tokens=700")  # some 150 batches, and seconds of work


@pytest.fixture(scope="session")
def unbroken(
    command_in: Callable[[Path], Command], tmp_path_factory: pytest.TempPathFactory
) -> Done:
    with one_thread():  # as in the processes that are cut off
        done = command_in(tmp_path_factory.mktemp("unbroken"))(*SLOW)
    assert done.code == 0, done.err
    return done


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.real)]
)
def test_a_run_that_is_killed_goes_on_from_there(command, unbroken, number):
    process = command.start(*SLOW, out="killed")
    while command.stored() < 30:
        assert process.poll() is None, command.end(process).err
        time.sleep(0.005)
    process.send_signal(number)
    killed = command.end(process, "killed")
    kept = command.stored()
    assert 30 <= kept < 600
    assert not (killed.folder / "metrics.json").exists()
    if number == signal.SIGKILL:
        assert killed.code == -number
        assert killed.status["status"] == "RUNNING"  # nothing can be done about that
    else:
        reason = f"killed by {number.name}"
        assert killed.code == 1
        assert killed.last == f"{reason}: run the command again, what was scored is kept"
        assert "Traceback" not in killed.err
        assert (killed.status["status"], killed.status["error"]) == ("KILLED", reason)
        assert killed.run().info.status == "KILLED"
        assert killed.run().data.tags["rmexp.error"] == reason

    before = killed.status["run_id"]
    with one_thread():
        done = command(*SLOW, out="killed")
    assert done.code == 0, done.err
    assert done.metrics["scoring/cached"] == kept
    assert done.metrics["scoring/unique"] == 600
    assert 0 < done.metrics["scoring/tokens"] < unbroken.metrics["scoring/tokens"]
    assert command.stored() == 600
    assert_same_numbers(done, unbroken)
    assert done.run().info.status == "FINISHED"
    ended = MlflowClient(tracking_uri=command.uri).get_run(before)
    assert ended.info.status == "KILLED"
    reason = "its process died" if number == signal.SIGKILL else "killed by SIGTERM"
    assert ended.data.tags["rmexp.error"] == reason


REUSED = f"{os.getpid()} started at tick 1"  # an id of a process that is another one's by now


def test_runs_whose_process_died_are_ended_by_the_next_one_that_begins(command):
    """The command between fails before anything is tracked, and forgets none."""
    own, child, old = (open_run(command.uri, "rmexp", name, {}) for name in ("a", "b", "c"))
    gone = open_run(command.uri, "rmexp", "d", owner.tags() | {owner.PROCESS: REUSED})
    folder = command.top / "out"
    for place, run in ((folder, own), (folder / "eval" / "toy", child)):
        place.mkdir(parents=True)
        write_status(place, {"run_id": run.run_id, **running()})
    assert command("tracking.experiment=null").status["unended"] == [own.run_id, child.run_id]
    assert json.loads((folder / "eval" / "toy" / "run.json").read_text())["status"] == "KILLED"
    done = command("bench.limit=1")
    assert done.code == 0, done.err
    assert "unended" not in done.status
    statuses = {run.info.run_id: run.info.status for run in command.runs()}
    ids = (done.status["run_id"], own.run_id, child.run_id, old.run_id)
    assert [statuses[run_id] for run_id in ids] == ["FINISHED", "KILLED", "KILLED", "RUNNING"]
    assert gone.client.get_run(gone.run_id).info.status == "KILLED"


def test_a_folder_in_which_another_process_works_is_left_alone(command):
    folder = command.top / "out"
    folder.mkdir()
    write_status(folder, {"run_id": "theirs", **running()})
    with hold(folder):
        done = command("bench.limit=1")
    assert done.code == 1
    assert re.search(r"another process \(\d+ on .*\) is at work in .*give another", done.last)
    assert done.status["run_id"] == "theirs"
    assert command.runs() == []


def test_a_signal_while_nothing_is_tracked_yet(command, monkeypatch):
    def resolve(config: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(commands, "resolve", resolve)
    done = command("bench.limit=1")
    assert done.code == 1
    assert done.last == "killed by SIGTERM: run the command again, what was scored is kept"
    assert done.status == {"status": "KILLED", "error": "killed by SIGTERM"}
    assert command.runs() == []


@pytest.mark.parametrize("options", [(), ("-m",)])
def test_control_c_ends_a_run_and_a_whole_sweep(command, monkeypatch, options):
    append = ScoreStore.append

    def killing(self: ScoreStore, values: Iterable[tuple[str, float]]) -> None:
        append(self, values)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(ScoreStore, "append", killing)
    done = command("bench.limit=1,2" if options else "bench.limit=1", options=options)
    job = "0" if options else ""
    assert done.code == 1
    assert "killed by SIGINT: run the command again, what was scored is kept" in done.err
    assert done.status_of(job)["status"] == done.run(job).info.status == "KILLED"
    assert {run.info.status for run in command.runs()} == {"KILLED"}
    assert not (done.folder / "1").exists()


def test_a_damaged_store_is_named(command):
    assert command("bench.limit=1", out="first").code == 0
    (file,) = (command.top / "store").glob("*/*.jsonl")
    file.write_bytes(b"\x00\x00\n" + file.read_bytes())
    done = command("bench.limit=1")
    assert done.code == 1
    assert (
        f"{file}:1 of the score store is damaged, or of another version: delete this file"
        in done.last
    )


@pytest.mark.real
def test_two_at_once_share_a_store_and_make_the_database_once(command):
    Path(command.uri.removeprefix("sqlite:///")).unlink()
    names = ("one", "other")
    processes = [command.start("bench.limit=4", out=name) for name in names]
    one, other = (command.end(p, name) for p, name in zip(processes, names, strict=True))
    assert (one.code, other.code) == (0, 0), one.err + other.err
    assert_same_numbers(one, other)
    runs = {run.info.run_id: run.info.status for run in command.runs()}
    assert runs == {done.status["run_id"]: "FINISHED" for done in (one, other)}
    assert one.status["experiment_id"] == other.status["experiment_id"]
    again = command("bench.limit=4", out="again")
    assert again.metrics["scoring/cached"] == again.metrics["scoring/unique"] == 96
    assert_same_numbers(again, one)


def recorded_pairs(top: Path) -> list[str]:
    """The words for a small evaluation of files in a folder, with the paths relative to it."""
    row = {"prompt": "q", "chosen": "a", "rejected": "b"}
    write_lines(top / "pairs.jsonl", [row | {"id": "a"}, row | {"id": "b"}])
    scores = [{"id": name, "chosen": [1], "rejected": [0]} for name in "ab"]
    write_lines(top / "recorded.jsonl", scores)
    return ["model=recorded", "model.path=recorded.jsonl", "bench=preference",
            "bench.path=pairs.jsonl"]  # fmt: skip


def here(command: Command, words: Sequence[str], options: Sequence[str] = ()) -> Done:
    """Run the command from another folder than the project's."""
    script = str(command.root / "eval_rm.py")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate.bestofn, "points", lambda _: [])
        ended = run_script(command.top, [script, *options, *words])
    return Done(*ended, command.top / "out", command.uri)


@pytest.mark.parametrize("options", [(), ("-m", "hydra.job.chdir=true")])
def test_relative_paths_are_made_absolute_where_they_are_given(command, options):
    words = recorded_pairs(command.top)
    words += ["out_dir=out", "store_dir=store", "tracking.uri=sqlite:///mlflow.db"]
    job = "0" if options else ""
    done = here(command, words, options)
    assert done.code == 0, done.err
    config = yaml.safe_load((done.folder / job / "config.yaml").read_text(encoding="utf-8"))
    assert config["model"]["path"] == str(command.top / "recorded.jsonl")
    assert config["bench"]["path"] == str(command.top / "pairs.jsonl")
    assert config["out_dir"] == str(done.folder)
    assert config["store_dir"] == str(command.top / "store")
    assert config["tracking"]["uri"] == command.uri
    assert done.run(job).info.status == "FINISHED"
    assert not (done.folder / job / "store").exists()


def test_what_follows_a_sweep_is_tracked_in_the_same_place(command):
    words = [*recorded_pairs(command.top), "out_dir=out", "tracking.uri=sqlite:///mlflow.db"]
    done = here(command, [*words, "then=[leaderboard.py]"], ["-m"])
    assert done.code == 0, done.err
    assert (done.folder / "then" / "leaderboard.md").is_file()
    assert {run.info.status for run in command.runs()} == {"FINISHED"}
    assert len(command.runs()) == 3


def test_a_signal_ends_what_follows_a_sweep_as_well(tmp_path):
    """It waits for the end of the command that follows."""
    begun, ended = tmp_path / "begun", tmp_path / "ended"
    script = tmp_path / "follows.py"
    script.write_text(
        "import pathlib, signal, sys, time\n"
        "def end(*_):\n"
        f"    pathlib.Path({str(ended)!r}).touch()\n"
        "    sys.exit(1)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        f"pathlib.Path({str(begun)!r}).touch()\n"
        "while True:\n"
        "    time.sleep(1)\n"
    )

    def send() -> None:
        while not begun.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    sender = threading.Thread(target=send)
    sender.start()
    with pytest.raises(Killed):
        commands._follow([str(script)])
    sender.join()
    assert ended.exists()


def test_what_follows_a_sweep_decides_about_its_exit_code(tmp_path):
    (tmp_path / "follows.py").write_text("import sys\nsys.exit(int(sys.argv[1]))\n")
    assert commands._follow([str(tmp_path / "follows.py"), "3"]) == 3


def test_the_environments_server_counts_where_none_is_given(command, monkeypatch):
    words = [*recorded_pairs(command.top), "out_dir=out"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    done = here(command, words)
    assert done.code == 0, done.err
    assert done.run().info.status == "FINISHED"  # in the store of `command.uri`
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert here(command, [*words, f"tracking.uri={command.uri}"]).code == 0
    assert len(command.runs()) == 2


def test_the_environments_experiment_counts_where_none_is_given(command, monkeypatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "everybody's")
    words = [*recorded_pairs(command.top), f"tracking.uri={command.uri}"]
    client, names = MlflowClient(tracking_uri=command.uri), []
    for more in ([], ["tracking.experiment=my"]):
        done = here(command, [*words, "out_dir=out", *more])
        names.append(client.get_experiment(done.status["experiment_id"]).name)
    assert names == ["everybody's", "my"]


def test_an_objective_that_is_not_measured_names_the_nearest(command):
    words = [*recorded_pairs(command.top), f"tracking.uri={command.uri}", "out_dir=out"]
    done = here(command, [*words, "objective_metric=preference/acuracy"])
    assert done.code == 1
    assert "no such number; did you mean preference/accuracy" in done.last
    assert done.run().info.status == "FAILED"


def test_only_what_the_run_wrote_is_logged(command):
    """The database and its artifacts lie in the output folder, as do somebody's files."""
    words = recorded_pairs(command.top)
    folder = command.top / "out"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    (folder / "below").mkdir()
    (folder / "below" / "notes.txt").write_text("mine")
    Path(command.uri.removeprefix("sqlite:///")).rename(folder / "mlflow.db")
    words += ["out_dir=out", "store_dir=out/store", "tracking.uri=sqlite:///out/mlflow.db"]
    for _ in range(2):
        done = here(command, words)
        assert done.code == 0, done.err
    kept = [path.name for path in (folder / "mlartifacts").glob("*/*/artifacts/*")]
    names = {"config.yaml", "eval_rm.log", "metrics.csv", "metrics.json", "run.json"}
    assert set(kept) >= names | {"scores.jsonl", "summary.md"}
    assert not {"notes.txt", "below", "mlflow.db", "mlartifacts", "store"} & set(kept)
    assert len(kept) == 2 * len(set(kept))


def test_files_are_utf8_in_an_ascii_locale(command):
    """The subsets' and the model's names, the bad rows and a reason to warn, in every file."""
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "subset": "größe", "id": "é1"}
    pairs = write_lines(command.top / "pairs.jsonl", [row, row | {"id": "日", "chosen": ""}])
    scores = write_lines(command.top / "s.jsonl", [{"id": "é1", "chosen": [1], "rejected": [0]}])
    words = [
        "model=recorded", f"model.path={scores}", "model.name='modèle'", "bench=preference",
        f"bench.path={pairs}", "bench.subset_column=subset", "bench.on_bad_row=skip",
    ]  # fmt: skip
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0"}
    ended = run_apart(command.root, ["eval_rm.py", *command.arguments(words)], **locale)
    assert ended.code == 0, ended.err
    folder = command.top / "out"
    for name, text in {
        "bad_rows.txt": "日", "eval_rm.log": "日", "summary.md": "modèle", "run.json": "FINISHED",
        "metrics.csv": "größe", "scores.jsonl": "é1",
    }.items():  # fmt: skip
        assert text in (folder / name).read_text(encoding="utf-8"), name


# ---------------------------------------------------------------- help, and the parts of a command


def test_help_is_complete_and_imports_nothing_slow(command):
    script = [sys.executable, "-X", "importtime", "eval_rm.py", "--help"]
    done = command.end(command.process(script))
    assert done.code == 0
    imported = {line.rpartition("|")[2].strip() for line in done.err.splitlines()}
    assert "hydra" in imported
    assert not imported & {"torch", "transformers", "mlflow", "datasets", "pandas", "matplotlib"}
    groups = {line.partition(":")[0] for line in done.out.splitlines() if ": " in line}
    assert {"model", "bench", "tracking", "seed", "store_dir", "batch_tokens"} <= groups
    assert "smollm2" in done.out
    assert "rewardbench" in done.out


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": True}, r"^seed=True: give a whole number of 0 or more$"),
        ({"seed": 1.5}, r"^seed=1.5: give a whole number of 0 or more$"),
        ({"seed": 0, "out": "???"}, r"^out has no value: give one, out=VALUE$"),
        ({"seed": "???"}, r"^seed has no value: give one, seed=VALUE$"),
        ({"seed": 0, "a": {"b": "???"}}, r"^a\.b has no value: give one, a\.b=VALUE$"),
        ({"seed": 0, "a": "${a}"}, r"^a: Recursive interpolation"),
        ({"seed": 0, "a": "${oc.env:RMEXP_NO_SUCH_VARIABLE}"}, r"^a: .*RMEXP_NO_SUCH_VARIABLE"),
    ],
)
def test_settings_that_cannot_be_meant(settings, message):
    with pytest.raises(ConfigError, match=message) as caught:
        configs.resolve(OmegaConf.create(settings))
    assert "\n" not in str(caught.value)


def test_settings_are_resolved_and_left_alone():
    config = OmegaConf.create({"seed": 3, "a": {"b": "${seed}"}})
    before = config.copy()
    assert configs.resolve(config) == {"seed": 3, "a": {"b": 3}}
    assert config == before


def test_a_folder_setting_is_made(tmp_path):
    path = tmp_path / "a" / "b"
    assert configs.folder({"store_dir": str(path)}, "store_dir") == path
    assert path.is_dir()


def test_skip_done_sees_what_has_changed(command, tmp_path):
    """A finished run is not done again, unless the file behind the same config has changed."""
    file = write_lines(
        tmp_path / "scores.jsonl",
        [
            {"id": example.id, "chosen": [2, 2, 2], "rejected": [1, 1, 1]}
            for example in Toy().load().examples
        ],
    )
    words = ("model=recorded", f"model.path={file}", "bench.limit=2", "skip_done=true")
    first = command(*words, out="first")
    second = command(*words, out="second")
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert second.status["run_id"] == first.status["run_id"]
    assert second.status["skipped"]
    assert second.metrics == first.metrics
    assert not (second.folder / "scores.jsonl").exists()
    file.write_text(file.read_text().replace("2, 2, 2", "0, 2, 2"))
    third = command(*words, out="third")
    assert third.status["run_id"] != first.status["run_id"]
    assert third.metrics["toy/overall"] < first.metrics["toy/overall"] == 1.0
    assert {run.info.run_id for run in command.runs()} == {
        first.status["run_id"],
        third.status["run_id"],
    }
