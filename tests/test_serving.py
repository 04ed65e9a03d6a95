"""A registered model is one that MLflow loads and serves, with the rewards of an evaluation."""

import json
import os
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import pytest
from running import mlflow_serving
from test_tracking import CARD, TAGS, fresh_database
from tiny import tiny_policy, tiny_scalar

import rmexp
from rmexp.errors import DataError
from rmexp.files import PACKAGE
from rmexp.scoring.pyfunc import Served
from rmexp.tracking.registry import register
from rmexp.tracking.runs import MlflowClient, tracked_run

TURNS = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Who asks?"}]
ASKED: list[tuple[Any, str]] = [
    ("What is 2 + 2?", "4"),
    ("What is 2 + 2?", "five"),
    ([*TURNS, {"role": "user", "content": "Me."}], "So."),
]
ROWS = [{"prompt": prompt, "response": response} for prompt, response in ASKED]


@pytest.fixture(scope="module", params=["scalar", "implicit"])
def registered(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, list[float]]:
    """The tracking address of a store with the model `rm`, whose alias is `best`; its rewards."""
    top = tmp_path_factory.mktemp("registered")
    make = tiny_scalar if request.param == "scalar" else tiny_policy
    reward = rmexp.open_reward(path=str(make(top / "made")))
    uri = fresh_database(tmp_path_factory, top / "mlflow.db")
    with tracked_run(uri, "tests", "a training", TAGS) as run:
        run.log_dataset("pairs", "e" * 64, "somewhere", {})
        run.log_metrics({"train/loss": 0.5})
        run.log_model(CARD, top / "made", {}, ["train/loss"])
        register(run, "rm")
    MlflowClient(tracking_uri=uri).set_registered_model_alias("rm", "best", "1")
    return uri, rmexp.score(reward, ASKED, rmexp.Settings(top / "store"))


def test_what_is_registered_loads_in_a_notebook(
    registered: tuple[str, list[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, expected = registered
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setattr(sys, "path", list(sys.path))  # it adds the code of the model
    model = mlflow.pyfunc.load_model("models:/rm@best")
    assert model.predict(ROWS) == pytest.approx(expected, abs=1e-5)
    assert [column.name for column in model.metadata.signature.inputs] == ["prompt", "response"]
    (folder,) = (Path(path) for path in sys.path if path.endswith("code"))
    there = {path.relative_to(folder / "rmexp") for path in folder.rglob("*.py")}
    assert there == {path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py")}
    assert "torch==" in (folder.parent / "requirements.txt").read_text()


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": 3, "response": "4"}, "row 1: prompt is neither a text nor a list of messages"),
        ({"prompt": [{"role": "user"}], "response": "4"}, "row 1: prompt is neither"),
        ({"prompt": "A?", "response": None}, "row 1: response is no text"),
    ],
)
def test_a_row_that_is_none_is_named(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    served = Served(rmexp.open_reward(path=str(tiny_scalar(tmp_path / "model"))))
    rows = [ROWS[0], row]
    with pytest.raises(DataError, match=said):
        served.predict({name: [each[name] for each in rows] for name in ("prompt", "response")})
    assert served.predict({"prompt": [], "response": []}) == []


@pytest.fixture
def server(registered: tuple[str, list[float]]) -> Iterator[str]:
    words = ["models", "serve", "-m", "models:/rm@best", "--env-manager", "local"]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {"PATH": path, "MLFLOW_TRACKING_URI": registered[0], "OMP_NUM_THREADS": "1"}
    with mlflow_serving(*words, **environment) as address:
        yield address


@pytest.mark.real
def test_mlflow_serves_the_rewards_of_an_evaluation(
    registered: tuple[str, list[float]], server: str
) -> None:
    request = urllib.request.Request(
        f"{server}/invocations",
        json.dumps({"dataframe_records": ROWS}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert json.load(answer)["predictions"] == pytest.approx(registered[1], abs=1e-5)
