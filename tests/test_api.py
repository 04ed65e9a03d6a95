"""What `import rmexp` offers to a notebook."""

import re
import sys
from pathlib import Path

import pytest
import yaml
from running import run_apart
from tiny import tiny_policy

import rmexp
from rmexp import benchmarks
from rmexp.errors import ConfigError, ScoreError
from rmexp.evaluation.result import Result
from rmexp.schema import Message
from rmexp.scoring.rewards import open_reward
from rmexp.scoring.score import Reward, Settings


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_policy(tmp_path_factory.mktemp("policy") / "model")


@pytest.fixture
def reward(policy: Path) -> Reward:
    return rmexp.open_reward(path=str(policy))


def test_the_readmes_example_runs(
    policy: Path,
    project_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On a tiny policy in place of the embedded one, with a store of its own."""
    monkeypatch.setattr("rmexp.scoring.score.root", lambda: tmp_path)
    text = (project_root / "README.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert '"embedded"' in example
    there: dict[str, object] = {}
    exec(example.replace('"embedded"', repr(str(policy))), there)
    result = there["result"]
    assert isinstance(result, Result)
    assert "toy/overall" in capsys.readouterr().out
    headline, *_ = result.table()
    assert headline["metric"] == "toy/overall"
    assert headline["value"] == result.metrics["toy/overall"]
    assert headline["n"] == result.metrics["toy/overall/n"] == 8
    assert result.metrics["scoring/unique"] == 48
    assert [path.name for path in tmp_path.iterdir()] == ["scores"]


def test_a_benchmark_by_its_name_and_a_result_that_is_written(
    reward: Reward, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rmexp.benchmarks.toy.PROMPTS", 1)
    monkeypatch.setattr("rmexp.benchmarks.toy.Toy.figures", lambda *_: {})
    result = rmexp.evaluate(reward, "toy", rmexp.Settings(tmp_path / "store"))
    assert result.metrics["data/examples"] == 4
    names = ["scores.jsonl", "metrics.csv", "metrics.json", "summary.md", "first_example.txt"]
    names.append("calibration.csv")
    assert [path.name for path in result.write(tmp_path)] == names


def test_rewards_of_conversations(reward: Reward, tmp_path: Path) -> None:
    """A prompt as a text, as messages or as mappings is one; the order is kept."""
    settings = rmexp.Settings(tmp_path)
    turns = [{"role": "user", "content": "one?"}]
    asked = [("two?", "no"), ("one?", "yes"), ([Message("user", "one?")], "yes"), (turns, "yes")]
    two, one, *others = rmexp.score(reward, asked, settings)
    assert two != one
    assert others == [one, one]
    assert rmexp.score(reward, [("one?", "yes")], settings) == [one]
    assert rmexp.score(reward, [], settings) == []


def test_a_conversation_that_is_dropped_has_no_reward(policy: Path, tmp_path: Path) -> None:
    reward = open_reward(path=str(policy), max_length=60)
    settings = rmexp.Settings(tmp_path, on_overlength="drop")
    long, short = rmexp.score(reward, [("one?", "yes " * 100), ("one?", "yes")], settings)
    assert long != long
    assert short == short
    with pytest.raises(ScoreError, match=r"raise model\.max_length"):
        rmexp.score(reward, [("one?", "yes " * 100)], settings)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("toys", {}, "there is no benchmark toys, choose from bon100, judgebench"),
        ("toy", {"limits": 2}, "toy has no option limits, choose from include, limit"),
        ("preference", {}, "preference needs path: give one"),
        ("toy", {"limit": -1}, "limit"),
    ],
)
def test_a_benchmark_that_cannot_be_opened(
    name: str, options: dict[str, object], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        rmexp.open_benchmark(name, **options)


def test_a_file_of_ones_own_has_its_defaults_and_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"prompt": "?", "chosen": "yes", "rejected": "no"}\n')
    for name, text in {
        "preference": (benchmarks.FOLDER / "preference.yaml").read_text(),
        "mine": f"defaults: [preference, _self_]\npath: {pairs}\n",
    }.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    monkeypatch.setattr(benchmarks, "FOLDER", tmp_path)
    assert rmexp.open_benchmark("mine").headline == "mine/accuracy"
    assert rmexp.open_benchmark("preference", path=str(pairs)).headline == "preference/accuracy"


def test_the_store_is_the_one_of_the_commands(project_root: Path) -> None:
    config = yaml.safe_load((project_root / "conf" / "base.yaml").read_text())
    assert config["store_dir"] == "${root:scores}"
    assert Settings().store_dir == project_root / "scores"


def test_names_are_imported_when_they_are_used(project_root: Path) -> None:
    for name in rmexp.__all__:
        assert callable(getattr(rmexp, name))
    with pytest.raises(AttributeError, match="module 'rmexp' has no attribute 'evaluated'"):
        getattr(rmexp, "evaluated")  # noqa: B009
    script = "import sys, rmexp; print([n for n in sys.modules if n.partition('.')[0] in "
    script += "('rmexp', 'numpy', 'torch', 'mlflow', 'hydra')])"
    done = run_apart(project_root, ["-c", script])
    assert done.out.strip() == "['rmexp']", (sys.executable, done.err)
