"""score_rm.py killed at any moment, and on Ray: the files of an undisturbed run, nothing twice."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
from running import one_thread, run_apart
from scored_rows import write_lines
from tiny import tiny_scalar

from rmexp.data.streams import RowStream
from rmexp.labelling.on_ray import OnRay
from rmexp.labelling.output import Output
from rmexp.labelling.parts import Task
from rmexp.labelling.processes import here
from rmexp.progress import WorkProgress
from rmexp.schema import Message
from rmexp.scoring.by_parts import PartScorer, Told, part_scorer
from rmexp.scoring.rewards import open_reward
from rmexp.scoring.score import Settings
from rmexp.scoring.store import response_key

KILLS = 6
pytestmark = pytest.mark.real


def rows(count: int) -> list[dict[str, str]]:
    return [
        {
            "prompt": f"What is {n} + {n}?",
            "chosen": f"It is {2 * n}. " * (n % 9 + 1),
            "rejected": "No",
        }
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def scalar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_scalar(tmp_path_factory.mktemp("models") / "scalar")


def files(output: Output) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in output.data.iterdir() if path.name[0] != "."}


def stored(output: Output) -> dict[int, list[str]]:
    """The keys of the scores that are written of each part that is being made."""
    found: dict[int, list[str]] = {}
    for path in (output.folder / ".rmexp" / "scores").glob("*/*/*.jsonl"):
        with contextlib.suppress(FileNotFoundError):  # its part has become whole since
            lines = path.read_bytes().split(b"\n")[:-1]  # the last may be torn
            keys = [json.loads(line)[0] for line in lines]
            found.setdefault(int(path.parts[-3]), []).extend(keys)
    return found


@pytest.mark.timeout(900)
def test_a_command_that_is_killed_again_and_again_loses_doubles_and_repeats_nothing(
    project_root, scalar, tmp_path
):
    path, size, count = tmp_path / "rows.jsonl", 400, 4000
    write_lines(path, rows(count))
    uri = f"sqlite:///{tmp_path}/mlflow.db"

    def words(out: str) -> list[str]:
        given = [f"model.path={scalar}", f"data.path={path}", f"out={tmp_path / out}"]
        more = [f"shard_rows={size}", f"tracking.uri={uri}", f"store_dir={tmp_path}/store"]
        return ["score_rm.py", "model=local", *given, *more, "batch_tokens=1024"]

    assert run_apart(project_root, words("whole")).code == 0
    whole, output = Output(tmp_path / "whole", "jsonl"), Output(tmp_path / "out", "jsonl")
    lengths = tokens_by_key(scalar, path)
    before: dict[str, tuple[int, float]] = {}
    chance, written = random.Random(0), 0
    for _ in range(KILLS):
        began = stored(output)
        made = set(files(output)) if output.data.exists() else set()
        kill_while_scoring(project_root, words("out"), output, chance.uniform(0, 1.5))
        for part in output.data.glob("part-*"):
            account = output.part(int(part.stem[5:]))
            if part.name not in made:
                known = sum(lengths[key] for key in began.get(account.number, ()))
                assert account.tokens + known == whole.part(account.number).tokens
        for keys in stored(output).values():
            assert len(keys) == len(set(keys))
        now = {p.name: (p.stat().st_ino, p.stat().st_mtime) for p in output.data.glob("part-*")}
        assert now.items() >= before.items()  # what is made stays as it is
        before, written = now, max(written, len(now) + len(stored(output)))
    assert written > 1
    assert run_apart(project_root, words("out")).code == 0
    assert files(output) == files(whole)
    found = [
        json.loads(line)
        for name in sorted(files(output))
        for line in files(output)[name].splitlines()
    ]
    assert [row["row"] for row in found] == list(range(count))


def tokens_by_key(model: Path, path: Path) -> Mapping[str, int]:
    chat = open_reward(path=str(model)).chat
    asked = [
        ((Message("user", row["prompt"]),), row[side])
        for row in map(json.loads, path.read_text().splitlines())
        for side in ("chosen", "rejected")
    ]
    return {response_key(row.ids): len(row.ids) for row in chat.encode(asked) if row}


def kill_while_scoring(root: Path, words: list[str], output: Output, after: float) -> None:
    """SIGKILL the command so many seconds after it has written something."""
    was = stored(output), len(list(output.data.glob("part-*")))
    process = subprocess.Popen(
        [sys.executable, *words],
        cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while process.poll() is None:
            if (stored(output), len(list(output.data.glob("part-*")))) != was:
                break
            time.sleep(0.02)
        time.sleep(after)
        assert process.poll() is None  # or there was nothing left to interrupt
    finally:
        process.kill()
        process.wait()


# On Ray


@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed (the extra `ray`)")
@pytest.mark.timeout(600)
def test_two_actors_write_what_one_process_writes_and_one_that_dies_loses_nothing(
    project_root, scalar, tmp_path, monkeypatch
):
    places = [str(Path(__file__).parent), str(project_root), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(places))  # the actors import this file
    path = write_lines(tmp_path / "rows.jsonl", rows(240))
    stream = RowStream(str(path))
    spans = stream.spans(20)

    def task(out: str, opener: partial[PartScorer]) -> Task:
        made = Task(
            {"path": str(path)}, None, "error", "pairs", tmp_path / out, "jsonl", "", opener
        )
        made.output().prepare({"data": "", "kind": "", "form": "jsonl", "rows": 20})
        return made

    with WorkProgress("", 240, "rows") as progress:
        one = task("one", partial(opened, str(scalar), tmp_path / "store"))
        with one_thread():  # as an actor has, or sums are rounded otherwise
            here(one, spans, progress)
        flag = tmp_path / "died"
        two = task("two", partial(dying, flag, str(scalar), tmp_path / "store"))
        OnRay("local", 2, 0)(two, spans, progress)
    assert files(two.output()) == files(one.output())
    died = int(flag.read_text())
    assert 0 < two.output().part(died).tokens < one.output().part(died).tokens
    shutil.rmtree(tmp_path / "two")


def opened(path: str, store: Path, device: str | None, told: Told) -> PartScorer:
    settings = Settings(store, batch_tokens=200)
    return part_scorer(open_reward(path=path, device="cpu"), settings, told)


def dying(flag: Path, path: str, store: Path, device: str | None, told: Told) -> PartScorer:
    """Open what kills its process in the middle of a part, once."""

    def tell(tokens: int) -> None:
        told(tokens)
        parts = sorted((flag.parent / "two" / ".rmexp" / "scores").glob("*/*/*.jsonl"))
        late = [part for part in parts if int(part.parts[-3]) >= 4]
        if late and not flag.exists():
            flag.write_text(late[0].parts[-3])
            os.kill(os.getpid(), signal.SIGKILL)

    return opened(path, store, device, tell)
