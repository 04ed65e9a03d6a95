"""Signals at seeded moments of each phase: the same command again ends as if none had come."""

import itertools
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from scored_rows import write_lines
from test_tracking import fresh_database
from tiny import tiny_policy, tiny_scalar

pytestmark = pytest.mark.real

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
# How often each signal comes in a phase of a command: 63 kills.
MATRIX = {
    ("eval_rm", "load"): 1,
    ("eval_rm", "scoring"): 3,
    ("eval_rm", "logging"): 3,
    ("eval_rm", "export"): 2,
    ("train_rm", "load"): 1,
    ("train_rm", "scoring"): 1,
    ("train_rm", "training"): 3,
    ("train_rm", "logging"): 2,
    ("train_rm", "export"): 2,
    ("score_rm", "load"): 1,
    ("score_rm", "scoring"): 1,
    ("score_rm", "export"): 1,
}
HOW_IT_WENT = (
    "cached", "tokens", "tokens_run", "tokens_padded", "seconds", "per_second", "delta", "memory",
    "_gib",
)  # fmt: skip


class Place:
    """A tiny model, some pairs, and a folder for each run of a command."""

    def __init__(self, top: Path, root: Path, database: Callable[[Path], object]) -> None:
        self.top, self.database, self.number = top, database, itertools.count()
        rows = [{"prompt": f"{i}?", "chosen": "yes" * (i + 1), "rejected": "no"} for i in range(12)]
        self.pairs = write_lines(top / "pairs.jsonl", rows)
        self.scalar, self.policy = tiny_scalar(top / "scalar"), tiny_policy(top / "policy")
        self.process = subprocess.Popen(
            [sys.executable, str(root / "tests" / "killing.py")],
            cwd=root,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def begin(self) -> Path:
        folder = self.top / str(next(self.number))
        folder.mkdir()
        self.database(folder / "mlflow.db")
        return folder

    def words(self, command: str, folder: Path) -> list[str]:
        common = [f"store_dir={folder / 'store'}", f"tracking.uri=sqlite:///{folder / 'mlflow.db'}"]
        common += [f"out_dir={folder / 'out'}", "model=local", f"{command}.py"]
        scalar = [f"model.path={self.scalar}", "batch_tokens=100"]
        own = {
            "eval_rm": [*scalar, "bench=preference", f"bench.path={self.pairs}"],
            "score_rm": [
                *(*scalar, f"data.path={self.pairs}", f"out={folder / 'scored'}", "shard_rows=5"),
            ],
            "train_rm": [
                *(f"model.path={self.policy}", "objective=dpo", "data=toy", "data.pairs=12"),
                *("recipe.batch_size=4", "recipe.checkpoint_every=1", "recipe.val_share=0.2"),
                *("trainer.max_steps=4", "resume=true", "batch_tokens=700"),
            ],
        }
        return [common.pop(), *common, *own[command]]

    def run(self, command: str, folder: Path, kill: tuple[str, int, int, bool] | None) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        request = {
            "words": self.words(command, folder),
            "log": str(folder / "log"),
            "calls": str(folder / "calls"),
            "kill": kill,
        }
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, project_root: Path) -> Iterator[Place]:
    made = Place(
        tmp_path_factory.mktemp("kills"),
        project_root,
        lambda path: fresh_database(tmp_path_factory, path),
    )
    yield made
    made.process.communicate()


@pytest.fixture(scope="module")
def undisturbed(place: Place) -> Callable[[str], Path]:
    found: dict[str, Path] = {}

    def run(command: str) -> Path:
        if command not in found:
            folder = place.begin()
            assert place.run(command, folder, None) == 0, (folder / "log").read_text()[-3000:]
            found[command] = folder
        return found[command]

    return run


def calls(folder: Path) -> Counter[str]:
    return Counter((folder / "calls").read_text().split())


def left(folder: Path) -> tuple[dict[str, Any], set[str], dict[str, bytes]]:
    """The metrics, the names of all files, and the bytes of those that hold numbers alone."""
    metrics = json.loads((folder / "out" / "metrics.json").read_text())
    metrics = {name: value for name, value in metrics.items() if not name.endswith(HOW_IT_WENT)}
    paths = [path for top in ("out", "scored") for path in (folder / top).rglob("*")]
    seen = [p for p in paths if not any(part.startswith(".") for part in p.parts)]
    names = {str(path.relative_to(folder)) for path in seen if path.is_file()}
    whole = ("*.safetensors", "scores.jsonl", "part-*")
    numbers = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in seen
        if any(path.match(pattern) for pattern in whole)
    }
    assert numbers
    for path in seen:
        if path.suffix == ".json":
            json.loads(path.read_text())
    return metrics, names, numbers


@pytest.mark.parametrize(("command", "phase"), MATRIX)
def test_a_killed_command_ends_as_if_it_had_not_been(
    command: str, phase: str, place: Place, undisturbed: Callable[[str], Path]
) -> None:
    whole = undisturbed(command)
    expected, chances = left(whole), calls(whole)
    rng = random.Random(f"{command} {phase}")
    for number, _ in itertools.product(SIGNALS, range(MATRIX[command, phase])):
        kill = (phase, rng.randint(1, chances[phase]), int(number), rng.random() < 0.5)
        folder = place.begin()
        said = f"{kill} in {folder}"
        code = place.run(command, folder, kill)
        assert code == (-number if number == signal.SIGKILL else 1), said
        assert place.run(command, folder, None) == 0, said + (folder / "log").read_text()[-3000:]
        assert "Traceback" not in (folder / "log").read_text(), said
        assert left(folder) == expected, said
        assert calls(folder)["scoring"] <= chances["scoring"] + 1, said
        with sqlite3.connect(folder / "mlflow.db") as database:
            statuses = [status for (status,) in database.execute("select status from runs")]
        assert statuses.count("FINISHED") >= 1, said
        assert "RUNNING" not in statuses, said
        print(
            f"{command} {phase} {number.name} at call {kill[1]} of {chances[phase]}: as undisturbed"
        )
        shutil.rmtree(folder)
