import pytest
from scored_rows import check_pure, estimate, negate, reward_all, row, values, write_lines

from rmexp.benchmarks.judgebench import JudgeBench
from rmexp.errors import ConfigError, DataError
from rmexp.schema import ScoredExample
from rmexp.scoring.recorded import RecordedReward

BENCH = JudgeBench()
GPT = "dataset=judgebench,response_model=gpt-4o-2024-05-13.jsonl"
CLAUDE = "dataset=judgebench,response_model=claude-3-5-sonnet-20240620.jsonl"


def pair(id, source="mmlu-pro-law", label="A>B", model="gpt-4o-2024-05-13", **changes):
    return {
        "pair_id": id,
        "source": source,
        "question": f"question {id}",
        "response_model": model,
        "response_A": f"A of {id}",
        "response_B": f"B of {id}",
        "label": label,
    } | changes


@pytest.fixture
def folder(tmp_path):
    """The two files, and a file of results as the authors' script writes them."""
    ours = [
        pair("1"),
        pair("2", "mmlu-pro-math", "B>A"),
        pair("3", "livebench-reasoning"),
        pair("4", "livebench-math"),
        pair("5", "livecodebench"),
    ]
    write_lines(tmp_path / GPT, ours)
    write_lines(tmp_path / CLAUDE, [pair("6", model="claude-3-5-sonnet-20240620")])
    write_lines(tmp_path / "outputs" / "of_a_judge.jsonl", [pair("1", judgments=[])])
    return tmp_path


def scored(subset, outcomes):
    """Right: 1 over 0; wrong: a tie."""
    return [
        row(f"{subset}{at}", f"gpt-4o-2024-05-13/{subset}", [1.0], [0.0 if right else 1.0])
        for at, right in enumerate(outcomes)
    ]


def test_the_metrics_by_hand():
    """Knowledge 2/3 (law 1/2 and math 1/1 of mmlu-pro), the others 1/2, 0 and 1.

    Overall over all pairs: (2 + 1 + 0 + 1) / 7; the mean over categories were 13/24.
    """
    rows = [
        *scored("mmlu-pro-law", [1, 0]),
        *scored("mmlu-pro-math", [1]),
        *scored("livebench-reasoning", [1, 0]),
        *scored("livebench-math", [0]),
        *scored("livecodebench", [1]),
    ]
    found = values(BENCH, rows)
    assert found == pytest.approx(
        {
            "judgebench/overall": 4 / 7,
            "judgebench/knowledge": 2 / 3,
            "judgebench/reasoning": 1 / 2,
            "judgebench/math": 0.0,
            "judgebench/coding": 1.0,
        }
    )
    check_pure(BENCH, rows)
    few = estimate(BENCH, rows[:3])
    assert few["judgebench/overall/partial"].missing == ("reasoning", "math", "coding")
    assert BENCH.metrics([]) == []


@pytest.mark.parametrize(
    ("share", "strict", "authors"),
    [
        (1.0, 1.0, 1.0),  # both games won
        (0.75, 0.0, 1.0),  # one won, one not parsed: +1 and 0 are above 0
        (0.5, 0.0, 0.0),  # one won, one lost
        (0.25, 0.0, 0.0),
        (0.0, 0.0, 0.0),
    ],
)
def test_the_two_rules_of_a_judge(share, strict, authors):
    judged = ScoredExample(
        "1", "gpt-4o/livecodebench", "p", (share,), (1 - share,), verdicts=((share,),)
    )
    for rule, right in (("strict", strict), ("authors", authors)):
        assert values(JudgeBench(rule=rule), [judged])["judgebench/coding"] == right


def test_gpt_4o_by_default_claude_when_asked_for(folder):
    data = JudgeBench(path=str(folder)).load()
    assert [example.id for example in data.examples] == ["1", "2", "3", "4", "5"]
    assert (data.examples[1].chosen, data.examples[1].rejected) == (("B of 2",), ("A of 2",))
    assert data.notes[0] == "a judge's two games by the rule strict"
    assert "gpt-4o/knowledge: 2 of 154 examples" in data.notes
    assert "1 rows left out, which are results of judges and reward models" in data.notes
    claude = JudgeBench(path=str(folder), include=["claude*"]).load()
    assert [example.id for example in claude.examples] == ["6"]
    assert "claude/knowledge: 1 of 154 examples" in claude.notes
    of_file = JudgeBench(path=str(folder / CLAUDE)).load()
    assert of_file.examples == claude.examples
    law = JudgeBench(path=str(folder), include=["*/mmlu-pro-law"]).load()
    assert [example.id for example in law.examples] == ["6", "1"]


def test_a_limit_is_of_each_category(folder):
    limited = JudgeBench(path=str(folder), limit=1).load()
    assert [example.id for example in limited.examples] == ["1", "3", "4", "5"]


def test_properties(folder):
    data = JudgeBench(path=str(folder)).load()
    assert set(values(BENCH, reward_all(data, lambda *_: 1.0)).values()) == {0.0}
    right = reward_all(data, lambda example, response: float(response in example.chosen))
    assert set(values(BENCH, right).values()) == {1.0}
    assert set(values(BENCH, negate(right)).values()) == {0.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": "A=B"}, "label 'A=B' at .* is neither A>B nor B>A"),
        ({"source": "gsm8k"}, "source 'gsm8k' at .* is unknown"),
        ({"source": "mmlu-pro/law"}, "source 'mmlu-pro/law' at .* is unknown"),
        ({"question": None}, "column 'question' must hold a string"),
    ],
)
def test_rows_that_cannot_be_used(tmp_path, changes, message):
    file = write_lines(tmp_path / GPT, [pair("1", **changes)])
    with pytest.raises(DataError, match=message):
        JudgeBench(path=str(file)).load()
    with pytest.raises(ConfigError, match=r"bench\.rule must be one of strict, authors"):
        JudgeBench(rule="lenient")


def test_a_model_of_an_owner(tmp_path):
    rows = [pair("1", model="meta-llama/Llama-3"), pair("2", "livebench-math", model="a/b/c")]
    data = JudgeBench(path=str(write_lines(tmp_path / GPT, rows))).load()
    found = values(BENCH, reward_all(data, lambda example, text: float(text in example.chosen)))
    assert (found["judgebench/knowledge"], found["judgebench/math"]) == (1.0, 1.0)


def test_the_published_figures(shared):
    """Table 3 of the paper, as right answers of all: one of Skywork's 350 is a tie, and wrong."""
    folder = shared / "data" / "judgebench"
    data = JudgeBench(path=str(folder)).load()
    assert len(data.examples) == 350
    assert len(JudgeBench(path=str(folder), include=["claude*"]).load().examples) == 270
    published = {
        "Skywork_Skywork-Reward-Llama-3.1-8B": (218, 91, 63, 43, 21, 1),
        "Ray2333_GRM-Gemma-2B-rewardmodel-ft": (208, 97, 52, 36, 23, 0),
    }
    for name, (*right, ties) in published.items():
        file = folder / "recorded" / f"{name}.jsonl"
        rows, ignored = RecordedReward(str(file), format="judgebench").lookup(data.examples)
        found = estimate(BENCH, rows)
        counts = [round(each.value * each.n) for each in found.values()]
        assert (counts, ignored) == (right, 0)
        assert sum(row.chosen == row.rejected for row in rows) == ties
