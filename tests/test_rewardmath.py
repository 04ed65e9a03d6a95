import json
import math

import pytest
from scored_rows import check_pure, estimate, reward_all, row, values, write_json

from rmexp.benchmarks.rewardmath import RewardMath
from rmexp.errors import DataError
from rmexp.schema import ScoredExample
from rmexp.scoring.recorded import RecordedReward

BENCH = RewardMath()


def solutions(problem, wrong=9, subject="Algebra"):
    """Upstream's layout of single solutions, the right one first."""
    return [
        {
            "problem": f"problem {problem}",
            "eval_solution": ["Let x be 1.", f"So x = {at} in {problem}."],
            "solution_type": "rejected" if at else "chosen",
            "subject": subject,
            "problem_id": problem,
            "id": 10 * problem + at,
        }
        for at in range(wrong + 1)
    ]


def pairs(problem, wrong=9):
    """Upstream's layout of pairs of the same solutions, the right one B in every second."""
    good, *bad = solutions(problem, wrong)
    rows = []
    for at, other in enumerate(bad):
        sides = (good, other) if at % 2 == 0 else (other, good)
        rows.append(
            {
                "problem": good["problem"],
                "eval_solution_A": sides[0]["eval_solution"],
                "eval_solution_B": sides[1]["eval_solution"],
                "chosen_position": "AB"[at % 2],
                "subject": "Algebra",
                "problem_id": problem,
                "id": 9 * problem + at,
            }
        )
    return rows


def test_the_metrics_by_hand():
    """Ranks 1, 3 (one above, one equal) and 10 of ten.

    Accuracy 1/3; mrr (1 + 1/3 + 1/10) / 3 = 43/90; pairs (9 + 7 + 0) / 27.
    """
    rows = [
        row("0", "Algebra", [5.0], range(-4, 5)),
        row("1", "Algebra", [5.0], [6.0, 5.0, *range(-2, 5)]),
        row("2", "Geometry", [math.nan], range(9)),
    ]
    found = values(BENCH, rows)
    assert found == pytest.approx(
        {
            "rewardmath/accuracy": 1 / 3,
            "rewardmath/mrr": 43 / 90,
            "rewardmath/pairs": 16 / 27,
            "rewardmath/subject/algebra": 1 / 2,
            "rewardmath/subject/geometry": 0.0,
        }
    )
    assert estimate(BENCH, rows)["rewardmath/pairs"].n == 3
    check_pure(BENCH, rows)
    assert BENCH.metrics([]) == []


def test_a_judge_wins_shares():
    """Against two: 1 and 1/2. All of it 1/2; the rank is 1 + 0 + 1/2; of the pairs 3/4."""
    judged = ScoredExample("0", "A", "p", (0.75,), (0.0, 0.5), verdicts=((1.0, 0.5),))
    found = values(BENCH, [judged])
    assert found["rewardmath/accuracy"] == 0.5
    assert found["rewardmath/mrr"] == pytest.approx(2 / 3)
    assert found["rewardmath/pairs"] == 0.75


def test_both_layouts_give_the_same_problems(tmp_path):
    single = write_json(tmp_path / "direct.json", [*solutions(0), *solutions(7)])
    paired = write_json(tmp_path / "pairwise.json", [*pairs(0), *pairs(7)])
    data = RewardMath(path=str(single)).load()
    assert [example.id for example in data.examples] == ["0", "7"]
    first = data.examples[0]
    assert first.prompt[0].content == "problem 0"
    assert first.chosen == ("Let x be 1.\nSo x = 0 in 0.",)
    assert len(first.rejected) == 9
    assert RewardMath(path=str(paired)).load().examples == data.examples
    both = RewardMath(path=str(tmp_path)).load()
    assert both.examples == data.examples
    assert both.notes == (
        "18 pairs left out, their problems are there as solutions",
        "2 of 483 problems",
    )
    right = reward_all(data, lambda example, response: float(response in example.chosen))
    assert set(values(BENCH, right).values()) == {1.0}
    assert values(BENCH, reward_all(data, lambda *_: 0.0))["rewardmath/mrr"] == 1 / 10
    assert [e.id for e in RewardMath(path=str(single), limit=1).load().examples] == ["0"]


def test_a_problem_without_its_one_right_solution(tmp_path):
    rows = solutions(3)
    for rows_of, flaw in ((rows[1:], "0 right solutions"), (rows[:1], "no wrong solution")):
        file = write_json(tmp_path / "direct.json", rows_of)
        with pytest.raises(DataError, match=f"3: {flaw}.* cannot be scored as it is"):
            RewardMath(path=str(file)).load()
    few = write_json(tmp_path / "direct.json", solutions(3, wrong=2))
    assert "1 problems have not 9 wrong solutions: 3, ..." in RewardMath(path=str(few)).load().notes


@pytest.mark.parametrize(
    ("name", "accuracy", "mrr", "share"),
    [
        ("internlm2", 0.3727, 0.5517, 0.7598),
        ("grm_llama3", 0.2443, 0.4580, 0.7030),
        ("ArmoRM", 0.2050, 0.4218, 0.6731),
    ],
)
def test_the_published_figures(shared, tmp_path, name, accuracy, mrr, share):
    """All 483 problems, the solutions of all but two being stand-ins: texts enter no metric."""
    folder = shared / "data" / "rewardmath"
    recorded = folder / "recorded" / f"{name}_reward.json"
    problems = [record["problem"] for record in json.loads(recorded.read_text())]
    real = RewardMath(path=str(folder)).load()
    assert [problems.index(e.prompt[0].content) for e in real.examples] == [0, 399]
    rows = [
        solution | {"problem": problem}
        for number, problem in enumerate(problems)
        for solution in solutions(number)
    ]
    data = RewardMath(path=str(write_json(tmp_path / "direct.json", rows))).load()
    assert data.notes == ()
    scored, ignored = RecordedReward(str(recorded), format="rewardmath").lookup(data.examples)
    assert ignored == 0
    found = estimate(BENCH, scored)
    assert found["rewardmath/accuracy"].n == 483
    for metric, published in (("accuracy", accuracy), ("mrr", mrr), ("pairs", share)):
        assert found[f"rewardmath/{metric}"].value == pytest.approx(published, abs=5e-5)
