"""Who shares a column's first place: by paired tests on the runs' own scores."""

from html import unescape
from pathlib import Path

import pytest
from scored_rows import write_lines
from test_leaderboard import one

from rmexp.benchmarks.preference import Preference
from rmexp.errors import ConfigError
from rmexp.evaluation.compare import Evaluated
from rmexp.evaluation.first_place import with_first_places
from rmexp.evaluation.leaderboard import Board, make_board
from rmexp.evaluation.leaderboard_page import to_html, to_markdown

PROMPTS = 40
RIGHT = {"first": 36, "second": 34, "third": 8}  # of 40, each right on the first so many
HEADLINE = "preference/accuracy"


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, Evaluated]:
    rows = [
        {"id": str(i), "prompt": f"{i}?", "chosen": "a", "rejected": "b"} for i in range(PROMPTS)
    ]
    path = write_lines(tmp_path / "pairs.jsonl", rows)
    found = {}
    for name, right in RIGHT.items():
        scores = [
            {"id": str(i), "chosen": [float(i < right)], "rejected": [0.5]} for i in range(PROMPTS)
        ]
        kept = write_lines(tmp_path / f"{name}.jsonl", scores)
        found[name] = Evaluated(name, kept, Preference(path=str(path)), None)
    return found


def board(*names: str) -> Board:
    return make_board(
        [one(name, HEADLINE, RIGHT[name] / PROMPTS, n=PROMPTS, run_id=name) for name in names],
        [HEADLINE],
    )


def marked(found: Board) -> list[str]:
    return [line.rm for line in found.lines if (cell := line.cells[0]) is not None and cell.best]


def test_what_cannot_be_told_apart_from_the_best_shares_its_place(runs):
    found = with_first_places(board(*RIGHT), runs.__getitem__, 0)
    # First and second differ on two prompts, p 1/2; the third differs from the second on 26.
    assert marked(found) == ["first", "second"]
    (shared, more) = found.standing
    assert shared.startswith("preference/accuracy: first and second share the first place")
    assert "would take" in more
    page = to_markdown("t", "a", {"Measured": found})
    assert page.count("★ 0.") == 2
    assert shared in page.replace("\\", "")
    assert shared in unescape(to_html("t", "a", {"Measured": found}, str))


def test_one_that_is_apart_from_all_others_is_first_alone(runs):
    found = with_first_places(board("first", "third"), runs.__getitem__, 0)
    assert marked(found) == ["first"]
    assert "first is first" in found.standing[0]


def test_where_examples_are_not_to_be_had_nothing_is_marked(runs):
    def absent(run_id: str) -> Evaluated:
        raise ConfigError(f"cannot get scores.jsonl of the run {run_id}")

    found = with_first_places(board("first", "second"), absent, 0)
    assert marked(found) == []
    assert found.standing == (
        "preference/accuracy: who shares the first place is not known: "
        "cannot get scores.jsonl of the run first",
    )


def test_one_model_alone_is_not_first_of_any(runs):
    found = with_first_places(board("first"), runs.__getitem__, 0)
    assert (marked(found), found.standing) == ([], ())
