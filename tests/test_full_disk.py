"""What has no room is one line, and the same command with room ends as if it had always had it."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from running import Ended, files_of_at_most, run_script
from scored_rows import write_lines
from test_tracking import fresh_database
from tiny import tiny_scalar

from rmexp.errors import ConfigError
from rmexp.scoring.store import ScoreStore

Typed = Callable[[str, Path], Ended]


def write_pairs(folder: Path, note: str = "") -> Path:
    rows = [{"prompt": f"{i}?", "chosen": "yes" * (i + 1), "rejected": "no"} for i in range(200)]
    return write_lines(folder / "pairs.jsonl", [{**row, "note": note} for row in rows])


@pytest.fixture
def typed(project_root: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Typed:
    """Type a command that leaves all it writes, but for the tracking, in a folder."""
    fresh_database(tmp_path_factory, tmp_path / "mlflow.db")

    pairs, model = write_pairs(tmp_path), tiny_scalar(tmp_path / "model")

    def run(command: str, folder: Path) -> Ended:
        words = [
            f"{command}.py",
            "model=local",
            f"model.path={model}",
            "batch_tokens=2000",
            f"out_dir={folder}/out",
        ]
        words += [f"store_dir={folder}/store", f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"]
        words += {
            "eval_rm": ["bench=preference", f"bench.path={pairs}"],
            "score_rm": [f"out={folder}/scored", f"data.path={pairs}", "shard_rows=60"],
        }[command]
        return run_script(project_root, words)

    return run


def left(folder: Path) -> tuple[set[str], list[float]]:
    """The names of all files, and the rewards of the chosen responses."""
    paths = [path for top in ("out", "scored") for path in (folder / top).rglob("*")]
    names = {str(path.relative_to(folder)) for path in paths if path.is_file()}
    files = [folder / "out" / "scores.jsonl", *sorted(folder.glob("scored/data/*"))]
    texts = [path.read_text() for path in files if path.exists()]
    rows = [json.loads(line) for text in texts for line in text.splitlines()]
    rewards = [row.get("reward_chosen") or row["chosen"][0] for row in rows]
    assert len(rewards) == 200
    return names, rewards


@pytest.mark.real
@pytest.mark.parametrize("size", ["12k", "40k", "80k"])
@pytest.mark.parametrize("command", ["eval_rm", "score_rm"])
def test_a_full_disk(
    command: str, size: str, typed: Typed, small_disk: Callable[[str], Path], tmp_path: Path
) -> None:
    disk = small_disk(size)
    done = typed(command, disk)
    assert done.code == 1
    assert "Traceback" not in done.err
    assert "no space left on the disk: make room for" in done.err
    subprocess.run(["mount", "-o", "remount,size=16m", disk], check=True)
    again = typed(command, disk)
    assert again.code == 0, again.err
    elsewhere = tmp_path / "elsewhere"
    assert typed(command, elsewhere).code == 0
    (names, rewards), (wanted, expected) = left(disk), left(elsewhere)
    assert names == wanted
    assert rewards == pytest.approx(expected, abs=1e-6)  # other batches, other last bits


@pytest.mark.real
def test_a_part_that_may_not_grow(typed: Typed, tmp_path: Path) -> None:
    """Rows are larger than the limit; the database is not."""
    size = (tmp_path / "mlflow.db").stat().st_size + 200_000
    folder, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    write_pairs(tmp_path, "n" * (size // 50))
    with files_of_at_most(size):
        done = typed("score_rm", folder)
    assert done.code == 1
    assert "Traceback" not in done.err
    assert "a file has the size that ulimit -f allows this process: raise that" in done.err
    assert not list(folder.glob("scored/data/part-*"))
    assert typed("score_rm", folder).code == typed("score_rm", elsewhere).code == 0
    assert left(folder) == left(elsewhere)


def test_a_store_whose_file_may_not_grow(tmp_path: Path) -> None:
    with ScoreStore(tmp_path, {"weights": "w"}) as store:
        store.append([("a", 1.0)])
        with files_of_at_most(30), pytest.raises(ConfigError, match="File too large"):
            store.append([("b", 2.0), ("c", 3.0)])
    with ScoreStore(tmp_path, {"weights": "w"}) as again:
        assert again.read() == {"a": 1.0, "b": 2.0}  # the line of the third is torn
        again.append([("c", 3.0)])
        assert again.read() == {"a": 1.0, "b": 2.0, "c": 3.0}
