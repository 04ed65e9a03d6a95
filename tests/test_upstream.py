import json
import math

import pytest
from scored_rows import write_json, write_lines

from rmexp.errors import ConfigError, ScoreError
from rmexp.schema import Example, Message
from rmexp.scoring.recorded import RecordedReward

TURN = (Message("user", "2 + 2?"),)
B_IS_RIGHT = Example("1", "s", TURN, ("b",), ("a",), upstream=(1, 0))
A_IS_RIGHT = Example("2", "s", TURN, ("a",), ("b",), upstream=(0, 1))


def line(id, a, b):
    return {"pair_id": id, "score_A": a, "score_B": b}


def by_script(id, scores, texts=("a", "b")):
    """A line of the authors' script: the answers, and a judgment of each order."""
    judgments = [{"judgment": {"scores": list(scores)}}, {"judgment": {"scores": scores[::-1]}}]
    answers = {"response_A": texts[0], "response_B": texts[1]}
    return {"pair_id": id, **answers, "judgments": judgments}


def test_scores_go_to_the_answers_that_they_are_of(tmp_path):
    file = write_lines(tmp_path / "s.jsonl", [line("2", 3, None), line("9", 0, 0), line("1", 1, 2)])
    reward = RecordedReward(str(file), format="judgebench")
    (first, second), ignored = reward.lookup([B_IS_RIGHT, A_IS_RIGHT])
    assert (first.chosen, first.rejected) == ((2.0,), (1.0,))
    assert second.chosen == (3.0,)
    assert math.isnan(second.rejected[0])
    assert ignored == 1
    write_lines(file, [by_script("1", [1, 2])])
    assert reward.lookup([B_IS_RIGHT])[0] == [first]


def test_solutions_are_known_by_their_problem(tmp_path):
    file = write_json(tmp_path / "s.json", [{"problem": "2 + 2?", "score": [3, 1, 2]}])
    example = Example("7", "s", TURN, ("4",), ("5", "6"), upstream=(0, 1, 2))
    ((row,), ignored) = RecordedReward(str(file), format="rewardmath").lookup([example])
    assert (row.id, row.chosen, row.rejected, ignored) == ("7", (3.0,), (1.0, 2.0), 0)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([line("3", 1, 2)], "lacks 1 of 1 examples"),
        ([line("1", 1, 2), line("1", 1, 2)], ":2: '1' stands in 1 already"),
        ([{"pair_id": "1", "score_A": 1}], r"not in the form judgebench.*KeyError\('score_B'\)"),
        ([line("1", "high", 2)], "not in the form judgebench"),
        ([by_script("1", [1, 2, 3])], "1 has 3 scores, the benchmark 2 responses"),
        ([by_script("1", [1, 2], ("a", "c"))], "1 has other responses than the benchmark"),
    ],
)
def test_files_that_are_not_of_these_examples(tmp_path, rows, message):
    file = write_lines(tmp_path / "s.jsonl", rows)
    with pytest.raises(ScoreError, match=message):
        RecordedReward(str(file), format="judgebench").lookup([B_IS_RIGHT])


def test_another_benchmark_or_format(tmp_path):
    file = tmp_path / "s.json"
    file.write_text(json.dumps({"problem": "?"}))
    plain = Example("1", "s", TURN, ("b",), ("a",))
    with pytest.raises(ScoreError, match=r"model\.format=judgebench is for bench=judgebench"):
        RecordedReward(str(file), format="judgebench").lookup([plain])
    with pytest.raises(ScoreError, match="not in the form rewardmath, a list of"):
        RecordedReward(str(file), format="rewardmath").lookup([A_IS_RIGHT])
    with pytest.raises(ConfigError, match="choose from rmexp, judgebench, rewardmath"):
        RecordedReward(str(file), format="csv")
