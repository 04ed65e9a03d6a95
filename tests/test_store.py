import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rmexp.errors import ConfigError, ScoreError
from rmexp.scoring.store import ScoreStore, response_key

IDENTITY = {"weights": "w", "reads": "score"}


def test_values_outlive_the_writer_and_are_exact(tmp_path: Path) -> None:
    values = [("a", 0.1 + 0.2), ("b", -1e-30), ("c", float("nan"))]
    with ScoreStore(tmp_path, IDENTITY) as store:
        store.append(values[:2])
        store.append(values[2:])
        read = ScoreStore(tmp_path, dict(reversed(IDENTITY.items()))).read()
    assert read["a"] == 0.1 + 0.2
    assert read["b"] == -1e-30
    assert read["c"] != read["c"]


def test_other_identities_are_kept_apart(tmp_path: Path) -> None:
    with ScoreStore(tmp_path, IDENTITY) as store:
        store.append([("a", 1.0)])
    assert ScoreStore(tmp_path, IDENTITY | {"reads": "logps"}).read() == {}


def test_a_torn_last_line_is_passed_over(tmp_path: Path) -> None:
    with ScoreStore(tmp_path, IDENTITY) as store:
        store.append([("a", 1.0), ("b", 2.0)])
    (file,) = store.folder.glob("*.jsonl")
    file.write_bytes(file.read_bytes()[:-4])
    assert ScoreStore(tmp_path, IDENTITY).read() == {"a": 1.0}
    with ScoreStore(tmp_path, IDENTITY) as again:
        again.append([("b", 2.0)])
    assert ScoreStore(tmp_path, IDENTITY).read() == {"a": 1.0, "b": 2.0}


@pytest.mark.parametrize(
    "line", ['["b", 2.0, "of now"]', '{"key": "b", "value": 2.0}', '["b", "2.0"]', "[5, 2.0]", "5"]
)
def test_lines_of_another_version_are_refused_with_their_place(tmp_path: Path, line: str) -> None:
    with ScoreStore(tmp_path, IDENTITY) as store:
        store.append([("a", 1.0)])
    (file,) = store.folder.glob("*.jsonl")
    file.write_text(file.read_text() + line + "\n")
    with pytest.raises(ScoreError, match=rf"^{file}:2 of the score store is damaged, or of anoth"):
        ScoreStore(tmp_path, IDENTITY).read()


def test_each_process_writes_to_its_own_file(tmp_path: Path) -> None:
    with ScoreStore(tmp_path, IDENTITY) as one, ScoreStore(tmp_path, IDENTITY) as other:
        one.append([("a", 1.0)])
        other.append([("b", 2.0)])
        assert len(list(one.folder.glob("*.jsonl"))) == 2
        assert one.read() == {"a": 1.0, "b": 2.0}


def test_nothing_is_written_for_nothing(tmp_path: Path) -> None:
    with ScoreStore(tmp_path, IDENTITY) as store:
        pass
    assert [path.name for path in store.folder.iterdir()] == ["column.json"]


def test_a_store_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="give another folder as store_dir"):
        ScoreStore(tmp_path / "file", IDENTITY)


def test_keys_tell_tokens_and_spans_apart() -> None:
    keys = {
        response_key([1, 23]),
        response_key([12, 3]),
        response_key([1, 23], (0, 2)),
        response_key([1, 23], (1, 2)),
    }
    assert len(keys) == 4
    assert response_key((1, 23)) == response_key([1, 23])


def test_a_claim_leaves_the_rest_to_others(tmp_path: Path) -> None:
    one, other = ScoreStore(tmp_path, IDENTITY), ScoreStore(tmp_path, IDENTITY)
    with one.claim(["a", "b"]) as mine:
        assert mine == ["a", "b"]
        with other.claim(["b", "c"]) as rest:
            assert rest == ["c"]
    with other.claim(["b", "c"]) as all_of_them:
        assert all_of_them == ["b", "c"]
    other.wait(["a", "b"])
    assert [path.name for path in (one.folder / "claims").iterdir()] == ["all.lock"]


def test_a_claim_ends_with_its_process(tmp_path: Path) -> None:
    """One process is killed while it holds a claim; another waits for one that ends by itself."""
    code = (
        "import os, sys, time, pathlib; from rmexp.scoring.store import ScoreStore\n"
        f"store = ScoreStore(pathlib.Path({str(tmp_path)!r}), {IDENTITY!r})\n"
        "with store.claim(['a']):\n"
        "    print('claimed', flush=True)\n"
        "    sys.stdin.read()\n"
        "    store.append([('a', 1.0)])\n"
    )
    store = ScoreStore(tmp_path, IDENTITY)
    for end_by_itself in (False, True):
        with subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stdin is not None
            assert process.stdout.readline() == "claimed\n"
            with store.claim(["a", "b"]) as mine:
                assert mine == ["b"]
            if end_by_itself:
                process.stdin.close()
                store.wait(["a"])
                assert store.read() == {"a": 1.0}
            else:
                process.kill()
                process.wait()
                with store.claim(["a"]) as mine:
                    assert mine == ["a"]


def test_filling_makes_only_what_is_missing(tmp_path: Path) -> None:
    asked = []
    with ScoreStore(tmp_path, IDENTITY) as store:
        store.append([("a", 1.0), ("elsewhere", 9.0)])

        def make(keys: list[str]) -> dict[str, float]:
            asked.extend(keys)
            store.append([(key, 2.0) for key in keys])
            return dict.fromkeys(keys, 2.0)

        assert store.fill(["b", "a", "c"], make) == (
            {"a": 1.0, "b": 2.0, "c": 2.0, "elsewhere": 9.0},
            2,
        )
        assert store.fill(["a", "b", "c"], make)[1] == 0
    assert asked == ["b", "c"]


def test_filling_waits_for_what_another_makes(tmp_path: Path) -> None:
    asked: list[str] = []
    with ScoreStore(tmp_path, IDENTITY) as other, ScoreStore(tmp_path, IDENTITY) as store:

        def make(keys: list[str]) -> dict[str, float]:
            asked.extend(keys)
            store.append([(key, 2.0) for key in keys])
            return dict.fromkeys(keys, 2.0)

        with ThreadPoolExecutor(1) as pool:
            with other.claim(["a"]):
                filled = pool.submit(store.fill, ["a", "b"], make)
                while "b" not in other.read():
                    time.sleep(0.01)
                other.append([("a", 1.0)])
            assert filled.result() == ({"a": 1.0, "b": 2.0}, 1)
    assert asked == ["b"]


def test_nobody_waits_for_what_he_does_not_need(tmp_path: Path) -> None:
    """It would wait for ever: the other claim is held by this same thread."""
    one, other = ScoreStore(tmp_path, IDENTITY), ScoreStore(tmp_path, IDENTITY)
    with one.claim(["a", "b"]):
        other.wait(["c"])
