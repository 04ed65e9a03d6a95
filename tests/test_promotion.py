"""The registry as a gate: an alias moves to a version that is surely better."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from scored_rows import write_lines
from test_tracking import CARD, TAGS, fresh_database

from rmexp.benchmarks import Benchmark, open_benchmark
from rmexp.errors import ConfigError
from rmexp.evaluation.promotion import Promotion, check_metric, promote, read_promotion
from rmexp.schema import fingerprint
from rmexp.tracking.registry import holder, register, version_at
from rmexp.tracking.runs import MlflowClient, tracked_run
from rmexp.tracking.versions import Version

ASKED = {"alias": "champion", "bench": "preference", "metric": "preference/accuracy"}
PROMOTION = Promotion(**ASKED)
PROMPTS = 40


@dataclass(frozen=True)
class Registry:
    """A store with versions of `rm`, each evaluated on the same 40 pairs."""

    uri: str
    top: Path
    benchmark: Benchmark

    def version(self, right: int, evaluated: bool = True) -> tuple[Version, Path]:
        """Add a version that is right on so many of the pairs, in an order of its own."""
        won = random.Random(right).sample(range(PROMPTS), right)
        rows = [
            {"id": f"{at}", "subset": "", "chosen": [float(at in won)], "rejected": [0.5]}
            for at in range(PROMPTS)
        ]
        scores = write_lines(self.top / str(right) / "scores.jsonl", rows)
        (self.top / str(right) / "file").write_text("weights")
        with tracked_run(self.uri, "tests", "a training", TAGS) as run:
            run.log_dataset("pairs", "e" * 64, "somewhere", {})
            run.log_metrics({"train/loss": 0.5})
            folder = self.top / str(right)
            run.log_model(CARD, folder, {}, ["train/loss"])
            made = register(run, "rm")
        if evaluated:
            tags = {"rmexp.command": "eval_rm", "rmexp.data": self.digest}
            with tracked_run(self.uri, "tests", "an evaluation", tags) as run:
                run.use_model(CARD, made.address)
                run.log_file(scores)
        return made, scores

    @property
    def digest(self) -> str:
        return fingerprint(self.benchmark.load().examples)

    def promoted(self, version: Version, scores: Path, **more: Any) -> str:
        with tracked_run(self.uri, "tests", "a promotion", TAGS) as run:
            asked = Promotion(**(ASKED | more))
            return promote(asked, version, self.benchmark, scores, 0, run)

    def champion(self) -> str | None:
        with tracked_run(self.uri, "tests", "a look", TAGS) as run:
            found = holder(run, "rm", "champion")
        return found and found.number


@pytest.fixture
def registry(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    rows = [
        {"id": f"{at}", "prompt": f"{at}?", "chosen": "yes", "rejected": "no"}
        for at in range(PROMPTS)
    ]
    path = write_lines(tmp_path / "pairs.jsonl", rows)
    uri = fresh_database(tmp_path_factory, tmp_path / "mlflow.db")
    return Registry(uri, tmp_path, open_benchmark("preference", path=str(path)))


def test_the_alias_goes_to_what_is_surely_better_and_stays_otherwise(registry: Registry) -> None:
    first, scores = registry.version(20)
    assert "no version of rm held it before" in registry.promoted(first, scores)
    assert registry.champion() == "1"
    same, scores = registry.version(22)
    line = registry.promoted(same, scores)
    assert line.startswith(
        "models:/rm/2 does not get the alias champion: preference/accuracy 0.550"
    )
    assert line.endswith("n 40: the interval must lie above 0")
    assert registry.champion() == "1"
    better, scores = registry.version(38)
    line = registry.promoted(better, scores)
    assert "models:/rm/3 has the alias champion: preference/accuracy 0.950 against 0.500" in line
    assert registry.champion() == "3"
    assert registry.promoted(better, scores).endswith("it holds it already")
    client = MlflowClient(tracking_uri=registry.uri)
    page = client.get_model_version("rm", "3").description
    assert f"data {registry.digest[:8]}, 40 examples" in page
    assert "| preference/accuracy | 0.950 | 0.500 | +0.450 |" in page
    assert client.get_model_version("rm", "2").tags["rmexp.champion"].endswith("lie above 0")
    worse, scores = registry.version(21)
    assert "does not get" in registry.promoted(worse, scores)


def test_a_gain_below_the_one_that_is_wanted_is_not_enough(registry: Registry) -> None:
    first, scores = registry.version(20)
    registry.promoted(first, scores)
    better, scores = registry.version(38)
    assert registry.promoted(better, scores, min_gain=0.6).endswith("must lie above 0.6")
    assert registry.champion() == "1"


def test_a_champion_without_an_evaluation_is_said_to_need_one(registry: Registry) -> None:
    first, scores = registry.version(20, evaluated=False)
    registry.promoted(first, scores)
    better, scores = registry.version(38)
    line = registry.promoted(better, scores)
    assert "version 1, which holds it, has no finished evaluation on these data" in line
    assert "model.uri=models:/rm/1" in line
    assert registry.champion() == "1"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("champion", "give promote={alias: champion"),
        ({"alias": "champion"}, "give promote={alias: champion"),
        (ASKED | {"gain": 1}, r"promote.gain: nothing reads it; choose from alias, bench"),
        (ASKED | {"min_gain": "much"}, "promote.min_gain=much"),
        (ASKED | {"alias": "v2"}, "promote.alias=v2: letters"),
        (
            ASKED | {"bench": "toy"},
            "bench=toy: it is not evaluated, choose from preference",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(value: object, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_promotion(value, ["preference"])


def test_a_metric_that_the_benchmark_has_not_is_refused_before_anything(registry: Registry) -> None:
    assert read_promotion(None, []) is None
    assert read_promotion(ASKED, ["preference"]) == PROMOTION
    check_metric(PROMOTION, registry.benchmark)
    with pytest.raises(ConfigError, match="did you mean preference/accuracy"):
        check_metric(Promotion("a", "preference", "preference/acuracy"), registry.benchmark)


def test_what_is_no_version_is_refused(registry: Registry) -> None:
    made, _ = registry.version(20)
    assert version_at(registry.uri, "models:/rm/1") == made
    for address in (f"models:/{made.model_id}", "models:/rm/7", "models:/other@best"):
        with pytest.raises(ConfigError, match=r"no registered version|cannot find"):
            version_at(registry.uri, address)
