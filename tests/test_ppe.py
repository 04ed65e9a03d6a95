import math

import numpy as np
import pytest
from scored_rows import check_pure, estimate, reward_all, values, write_lines

from rmexp.benchmarks.ppe import SETS, PPECorrectness, PPEPreference
from rmexp.errors import DataError
from rmexp.schema import ScoredExample
from rmexp.stats.intervals import intervals


def vote(id, winner, language="English", **kinds):
    return {
        "question_id": id,
        "model_a": "m",
        "model_b": "n",
        "winner": winner,
        "prompt": f"prompt {id}",
        "response_1": f"first of {id}",
        "response_2": f"second of {id}",
        "language": language,
        "is_code": False,
        "hard_prompt": False,
    } | kinds


def question(id, scores, pairs):
    """A row of the correctness sets, with as many responses as scores."""
    responses = {f"response_{at}": f"answer {at} to {id}" for at in range(1, len(scores) + 1)}
    return {
        "question_id": id,
        "model_name": "m",
        "prompt": f"prompt {id}",
        **responses,
        "scores": scores,
        "sampled_conflict_pairs": pairs,
    }


def test_people_vote_and_ties_are_left_out(tmp_path):
    votes = [
        vote("a", "model_a"),
        vote("b", "model_b", is_code=True, hard_prompt=True),
        vote("c", "tie"),
        vote("d", "tie (bothbad)"),
        vote("e", "model_b", "German", hard_prompt=True),
    ]
    data = PPEPreference(path=str(write_lines(tmp_path / "votes.jsonl", votes))).load()
    assert [(e.id, e.subset, e.chosen) for e in data.examples] == [
        ("a", "English/", ("first of a",)),
        ("b", "English/code+hard_prompt", ("second of b",)),
        ("e", "German/hard_prompt", ("second of e",)),
    ]
    assert data.notes == ("5 of 16038 rows", "2 rows whose label is a tie left out")
    # Right on a and e, a tie of rewards on b: 2/3; hard prompts 1/2.
    scored = reward_all(data, lambda e, response: float(e.id == "b" or response in e.chosen))
    assert values(PPEPreference(), scored) == pytest.approx(
        {
            "ppe/preference": 2 / 3,
            "ppe/preference/kind/code": 0.0,
            "ppe/preference/kind/hard_prompt": 1 / 2,
            "ppe/preference/language/english": 1 / 2,
            "ppe/preference/language/german": 1.0,
        }
    )
    check_pure(PPEPreference(), scored)
    assert PPEPreference().metrics([]) == []
    chosen = PPEPreference(path=str(tmp_path), include=["*/*hard_prompt"]).load()
    assert [example.id for example in chosen.examples] == ["b", "e"]
    write_lines(tmp_path / "votes.jsonl", [vote("a", "both")])
    with pytest.raises(DataError, match=r"winner 'both' at votes\.jsonl:1 is unknown"):
        PPEPreference(path=str(tmp_path)).load()


@pytest.fixture
def folder(tmp_path):
    """The five data sets as the hub's repositories are cloned."""
    for name in SETS.values():
        rows = [question("q", [True, False, False, True], [[0, 1], [2, 3], [0, 1]])]
        write_lines(tmp_path / f"PPE-{name}-Best-of-K" / "data" / "train.jsonl", rows)
    return tmp_path


def test_conflict_pairs_count_as_often_as_they_occur(folder):
    data = PPECorrectness(path=str(folder)).load()
    assert data.notes == ()
    assert len(data.examples) == 15
    of_math = [example for example in data.examples if example.subset == "math"]
    assert [(e.id, e.chosen, e.rejected) for e in of_math] == [
        ("math/q/0", ("answer 1 to q",), ("answer 2 to q",)),
        ("math/q/1", ("answer 4 to q",), ("answer 3 to q",)),
        ("math/q/2", ("answer 1 to q",), ("answer 2 to q",)),
    ]
    # The second of three is wrong in math and nowhere else.
    scored = reward_all(
        data, lambda e, response: float(response in e.chosen and e.id != "math/q/1")
    )
    found = values(PPECorrectness(), scored)
    assert list(found) == [*(f"ppe/{name}" for name in SETS), "ppe/correctness"]
    assert found["ppe/math"] == pytest.approx(2 / 3)
    assert found["ppe/correctness"] == pytest.approx((4 + 2 / 3) / 5)
    some = PPECorrectness(path=str(folder / "PPE-MMLU-Pro-Best-of-K" / "data" / "train.jsonl"))
    assert {example.subset for example in some.load().examples} == {"mmlu_pro"}
    missing = estimate(PPECorrectness(), scored[:3])
    assert missing["ppe/correctness/partial"].missing == tuple(
        name for name in SETS if name != scored[0].subset
    )


def test_the_curve_and_the_area_by_hand(folder):
    """Four responses of which the first and the last are right, rewards 4, 3, 2, 1.

    Best of 1: 2/4. Of 2 out of 6 choices the first-ranked is the first in 3, the second in 2, the
    third in 1: right in 3/6. Of 3: the first in 3 of 4, else the second: 3/4. Of 4: 1.
    Area: the first is above both wrong ones, the last above none: 2/4.
    """
    data = PPECorrectness(path=str(folder), include=["gpqa*"], curves=True).load()
    assert [e.id for e in data.examples][-1] == "gpqa/q/best_of_k"
    assert "gpqa/best_of_k" in data.rated
    every = data.examples[-1]
    assert (every.chosen, every.recorded) == ((), (1.0, 0.0, 0.0, 1.0))
    scored = reward_all(data, lambda e, response: -float(response.split()[1]))
    metrics = PPECorrectness().metrics(scored)
    found = {e.name: e for e in intervals(metrics, scored, np.random.default_rng(0), samples=2)}
    for k, right in ((1, 1 / 2), (2, 1 / 2), (4, 1.0)):
        assert found[f"ppe/gpqa/best_of/{k}"].value == pytest.approx(right)
    assert found["ppe/recorded_reward/gpqa/3"].value == pytest.approx(3 / 4)
    assert found["ppe/gpqa/area"].value == pytest.approx(1 / 2)
    # What is wrong throughout has no area, and an equal or a lost reward counts as it should.
    lines = [
        ScoredExample("a", "gpqa/best_of_k", "a", (), (1.0, 1.0), (1.0, 0.0)),
        ScoredExample("b", "gpqa/best_of_k", "b", (), (math.nan, 1.0), (1.0, 0.0)),
        ScoredExample("c", "gpqa/best_of_k", "c", (), (1.0, 2.0), (0.0, 0.0)),
    ]
    area = PPECorrectness().metrics(lines)[-1]
    assert (area.outcomes, area.undefined) == ((0.5, 0.0), ("c",))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": [True]}, "2 responses and 1 scores"),
        ({"scores": [0.5, 1]}, "holds 0.5, which is neither right nor wrong"),
        ({"sampled_conflict_pairs": [[0, 2]]}, r"\[0, 2\], which are no two of 2 responses"),
        ({"sampled_conflict_pairs": [[1, 1]]}, r"\[1, 1\], which are no two"),
        ({"sampled_conflict_pairs": [[0, 1, 0]]}, r"\[0, 1, 0\], which are no two"),
        ({"sampled_conflict_pairs": 3}, "'sampled_conflict_pairs' must hold a list, not int 3"),
        ({"scores": 1}, "'scores' must hold a list, not int 1"),
        ({"scores": [1, 1]}, "gpqa/q/0: both responses of the pair are scored alike"),
    ],
)
def test_questions_that_cannot_be_used(tmp_path, changes, message):
    rows = [question("q", [True, False], [[0, 1]]) | changes]
    file = write_lines(tmp_path / "gpqa_best_of_k.jsonl", rows)
    with pytest.raises(DataError, match=message):
        PPECorrectness(path=str(file)).load()
    unknown = write_lines(tmp_path / "elsewhere" / "rows.jsonl", rows)
    with pytest.raises(DataError, match=r"the set of rows\.jsonl:1 is unknown"):
        PPECorrectness(path=str(unknown)).load()


def test_a_judge_wins_its_share():
    judged = ScoredExample("1", "math", "p", (0.75,), (0.25,), verdicts=((0.75,),))
    assert values(PPECorrectness(), [judged])["ppe/math"] == 0.75
    judged = ScoredExample("1", "English/", "p", (0.75,), (0.25,), verdicts=((0.75,),))
    assert values(PPEPreference(), [judged])["ppe/preference"] == 0.75
