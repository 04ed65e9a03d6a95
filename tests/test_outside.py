"""What comes from elsewhere is data: what is read of it, and what is refused by name."""

import ast
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import yaml
from hydra import initialize_config_dir
from hydra.utils import get_class

from rmexp.cli import jobs
from rmexp.cli.configs import benchmark_config, benchmarks, rebuild
from rmexp.cli.sweeps import find_sweep
from rmexp.errors import ConfigError, DataError, RmexpError
from rmexp.evaluation import compare
from rmexp.evaluation.compare import read_run
from rmexp.files import CONF, PACKAGE
from rmexp.outside import known, parameters, parse_json, read_checkpoint, read_json, read_yaml
from rmexp.tracking.finished import TrackedRun


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": 1, "b": {"c": 1, "c": 1}}', "the key 'c' stands twice"),
        ('{"a": 1', "Expecting"),
        ("[" * 100_000, "it is nested too deeply"),
        ("1" * 5000, "Exceeds the limit"),
    ],
)
def test_what_is_no_json_is_a_value_error(text, reason):
    with pytest.raises(ValueError, match=reason):
        parse_json(text)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[1]", "holds no JSON object: get it again"),
        (b'{"a": 1, "a": 2}', "holds no JSON object .the key 'a' stands twice.: get it again"),
        (b"\xff", "holds no JSON object .*: get it again"),
        (None, "cannot read .*No such file or directory.: get it again"),
    ],
)
def test_a_json_file_that_is_no_object(tmp_path, content, reason):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=reason):
        read_json(path, "get it again")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: !!python/object/apply:os.system ['touch proof']", "could not determine a constructor"),
        ("a: !!python/name:os.system", "could not determine a constructor"),
        ("a: &x [1]\nb: *x", "the alias .x is not read"),
        ("a: 1\nb: {c: 1, c: 2}", "the key 'c' stands twice"),
        ("? [1]\n: 2", "a key is no plain value"),
        ("1: 2", "holds no YAML mapping: get it again"),
        ("- a", "holds no YAML mapping: get it again"),
        ("a: [", "holds no YAML mapping"),
        ("[" * 5000, "holds no YAML mapping"),
    ],
)
def test_yaml_makes_plain_values_or_none(tmp_path, text, reason):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match=reason):
        read_yaml(path, "get it again")


def test_yaml_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("a: ${oc.env:HOME}\nb: [1, 2.5, null, true]\n")
    assert read_yaml(path, "") == {"a": "${oc.env:HOME}", "b": [1, 2.5, None, True]}


def takes(
    *,
    path: str | None = None,
    include: Sequence[str] | None = None,
    limit: int | None = None,
    share: float = 0.5,
    flag: bool = False,
    form: Literal["a", "b"] = "a",
    columns: Mapping[str, str] | None = None,
    anything: Any = None,
    **more: object,
) -> None:
    """A function with one parameter of each kind."""


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        ("path", ["x", None], [1, ["x"], True]),
        ("include", [["a", "b"], [], None], ["a", [1], {"a": "b"}, [["a"]]]),
        ("limit", [3, None], ["3", 3.5, True, [3]]),
        ("share", [0.1, 1], [True, "0.1", None]),
        ("flag", [True, False], [0, 1, "no", None]),
        ("form", ["a", "b"], ["c", 1, ["a"]]),
        ("columns", [{"prompt": "question"}, {}, None], [{"a": 1}, ["a"], "a"]),
        ("anything", [1, "x", [[1]], {"a": {"b": None}}], [{"_target_": "x"}, [["${a}"]], {1: 2}]),
    ],
)
def test_known_keys_have_plain_values_of_their_types(key, good, bad):
    for value in good:
        assert known({key: value}, parameters(takes), "f") == {key: value}
    for value in bad:
        with pytest.raises(DataError, match=rf"^f has (the key )?{key}"):
            known({key: value}, parameters(takes), "f")


@pytest.mark.parametrize("key", ["other", "more", "self", "_target_"])
def test_other_keys_are_refused_by_name(key):
    with pytest.raises(DataError, match=f"f has the key {key}, which is not known: remove it"):
        known({key: None}, parameters(takes), "f")


TOY = "rmexp.benchmarks.toy.Toy"


@pytest.mark.parametrize(
    ("bench", "message"),
    [
        ({"_target_": "os.system", "command": "touch PROOF"}, "names os.system, which is no bench"),
        (
            {"_target_": TOY, "include": {"_target_": "pathlib.Path.touch", "path": "PROOF"}},
            "bench has the key include._target_, which is not known",
        ),
        (
            {"_target_": TOY, "include": [{"_target_": "os.system", "command": "touch PROOF"}]},
            "bench has the key include._target_, which is not known",
        ),
        (
            {"_target_": TOY, "include": ["${oc.env:SECRET_OF_MINE}"]},
            "bench has include: '${oc.env:SECRET_OF_MINE}', and nothing is interpolated there",
        ),
        ({"_target_": TOY, "trust_remote_code": True}, "the key trust_remote_code, which is not"),
        ({"_target_": TOY, "_partial_": True}, "bench has the key _partial_, which is not known"),
        ({"_target_": TOY, "limit": "6"}, "bench has limit: '6', which is no value for it"),
        ({"_target_": TOY, "limit": -1}, "bench.limit must be a positive whole number"),
        ({"_target_": {"_target_": "os.getcwd"}}, "names no benchmark"),
        ({"limit": 6}, "names no benchmark"),
        ([TOY], "names no benchmark"),
        (None, "names no benchmark"),
    ],
)
def test_nothing_of_a_recorded_config_runs(tmp_path, monkeypatch, bench, message):
    """It is not imported, called or resolved; what is refused is named, before data are loaded."""
    monkeypatch.setenv("SECRET_OF_MINE", "hunter2")
    proof = tmp_path / "proof"
    config = {"model": {"name": "m"}, "bench": bench}
    written = yaml.safe_dump(config, sort_keys=False).replace("PROOF", str(proof))
    (tmp_path / "config.yaml").write_text(written)
    (tmp_path / "scores.jsonl").touch()
    with (
        initialize_config_dir(str(CONF), version_base="1.3"),
        pytest.raises(RmexpError) as raised,
    ):
        read_run(str(tmp_path), "", tmp_path, rebuild)
    assert message in str(raised.value)
    assert "hunter2" not in str(raised.value)
    assert not proof.exists()


def test_a_run_that_was_fetched_is_named_by_its_id(tmp_path, monkeypatch):
    """Where its files lie in the meantime is nothing to the user."""

    def fetched(uri, run_id, names, folder):
        (folder / "config.yaml").write_text("bench: {_target_: os.system}\n")
        return TrackedRun(run_id, "", {}, {})

    monkeypatch.setattr(compare, "fetch_files", fetched)
    with (
        initialize_config_dir(str(CONF), version_base="1.3"),
        pytest.raises(DataError, match=r"^config\.yaml of the run 0f names os\.system"),
    ):
        read_run("0f", "", tmp_path / "files", rebuild)


def test_each_benchmark_is_rebuilt_from_what_its_run_records(tmp_path):
    """What eval_rm.py writes for the options of conf/bench is what comparing reads."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for name in benchmarks():
            config = benchmark_config(name)
            if config.get("path") == "???":
                config["path"] = str(tmp_path)
            assert type(rebuild(config, "")) is get_class(config["_target_"])


class Evil:
    """What a pickle makes of this is a file."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> Any:
        return Path.touch, (self.proof,)


@pytest.mark.parametrize("form", ["checkpoint", "old", "pickle"])
def test_a_checkpoint_does_not_run(tmp_path, form):
    proof, path = tmp_path / "proof", tmp_path / "last.ckpt"
    saved = {"rmexp": {"identity": {}}, "state_dict": {}, "callbacks": Evil(proof)}
    if form == "pickle":
        path.write_bytes(pickle.dumps(saved))
    else:
        torch.save(saved, path, _use_new_zipfile_serialization=form == "checkpoint")
    with pytest.raises(ConfigError, match=r"last\.ckpt cannot be read.*: train anew$") as raised:
        read_checkpoint(path, "train anew")
    assert "weights_only" not in str(raised.value)  # no advice to read it all the same
    assert not proof.exists()


@pytest.mark.parametrize("saved", [[1, 2], torch.ones(2), "text"])
def test_a_checkpoint_that_holds_something_else(tmp_path, saved):
    torch.save(saved, tmp_path / "last.ckpt")
    with pytest.raises(ConfigError, match="is no checkpoint of a training: train anew"):
        read_checkpoint(tmp_path / "last.ckpt", "train anew")
    with pytest.raises(ConfigError, match=r"none\.ckpt cannot be read"):
        read_checkpoint(tmp_path / "none.ckpt", "train anew")


# Whatever makes values, or more, of a file's text or bytes.
READERS = re.compile(
    r"(torch|json|yaml|np|numpy|pickle|cloudpickle|dill|joblib|marshal|shelve|ast)"
    r"\.(load|loads|load_all|safe_load|full_load|unsafe_load|open|literal_eval)"
    r"|json\.JSONDecoder|OmegaConf\.(load|create)|.*\b(instantiate|get_class|get_method|get_object|import_module)"
    r"|(loads|parse_record|safe_load|eval|exec|compile|__import__)|runpy\..*|pd\.read_pickle"
)
READ_ELSEWHERE = {
    ("__init__.py", "import_module"): "of a name that stands there",
    ("rows.py", "parse_record"): "a row with a key twice is a bad row, not a bad file",
    ("formats.py", "parse_record"): "as in rows.py",
    ("rows.py", "ast.literal_eval"): "messages in Python's form: it makes plain values alone",
    ("output.py", "np.load"): "the numbers that the command wrote: no pickles, plain arrays",
    ("rendering.py", "json.loads"): "what the project's own process for templates answers",
    ("commands.py", "OmegaConf.load"): "the multirun.yaml that Hydra has just written",
    ("configs.py", "instantiate"): "of what Hydra composed from conf/ and the command's words",
    ("configs.py", "get_class"): "of a target that stands in conf/ or in --config-dir",
    ("configs.py", "get_object"): "the same, of rmexp's own alone",
    ("leaderboard.py", "hydra.utils.get_class"): "as in configs.py",
    ("parts.py", "OmegaConf.create"): "a file of conf/model and what the user typed",
}


def test_every_reader_is_the_one_place_or_has_a_reason():
    found = set()
    files = [*PACKAGE.rglob("*.py"), *PACKAGE.parent.glob("*.py")]
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and READERS.fullmatch(name := ast.unparse(node.func)):
                found.add((path.name, name))
    own = {name for file, name in found if file == "outside.py"}
    assert own == {"torch.load", "yaml.load", "json.JSONDecoder", "parse_record"}
    assert {each for each in found if each[0] != "outside.py"} == set(READ_ELSEWHERE)
    assert len(files) > 80


def test_no_code_of_a_model_folder_runs_unasked():
    """`trust_remote_code` and `weights_only` are never set but from a setting, or to be safe."""
    seen = 0
    for path in [*PACKAGE.rglob("*.py"), *PACKAGE.parent.glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg in ("trust_remote_code", "weights_only"):
                safe = {"weights_only": True, "trust_remote_code": False}[node.arg]
                literal = isinstance(node.value, ast.Constant)
                assert not literal or node.value.value is safe, f"{path}:{node.value.lineno}"
                seen += 1
    assert seen >= 3


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[]", "holds no JSON object"),
        ('{"status": 1}', "has status: 1, which is no value for it"),
        ('{"status": "FINISHED", "overrides": "a"}', "has overrides: 'a', which is no value"),
        ('{"status": "FINISHED", "headline": {"_target_": "os.getcwd"}}', "headline._target_"),
        ("{}", "has no status: remove it, or run the job again"),
        ('{"status": "FINISHED", "status": "FAILED"}', "the key 'status' stands twice"),
    ],
)
def test_a_job_s_file_of_another_kind_is_a_failed_job(tmp_path, content, reason):
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "run.json").write_text(content)
    jobs.note_job(tmp_path, 0, tmp_path / "0")
    (job,) = jobs.read_jobs(tmp_path)
    assert job.failed
    assert reason in job.result


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"run_id": 1, "varied": []}', "has run_id: 1, which is no value for it"),
        ('{"run_id": "a", "varied": "model"}', "has varied: 'model', which is no value for it"),
        ('{"run_id": "a", "varied": [], "then": "x"}', "has the key then, which is not known"),
        ('{"run_id": "a"}', "has no varied: start the sweep again"),
        ("sweep", "holds no JSON object"),
    ],
)
def test_a_sweep_s_file_of_another_kind_is_refused(tmp_path, content, reason):
    (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(DataError, match=reason):
        find_sweep(tmp_path)
