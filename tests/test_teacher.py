import math
from dataclasses import replace

import numpy as np
import pytest
from scored_rows import check_pure, estimate, reward_all, write_lines

from rmexp.benchmarks.teacher import Teacher
from rmexp.errors import ConfigError, DataError
from rmexp.schema import ScoredExample
from rmexp.stats.nulls import null_metrics


def sample(id, responses, **more):
    return {"id": id, "prompt": f"prompt {id}", "responses": responses} | more


@pytest.fixture
def bench(tmp_path):
    """Two prompts of four responses, whose rewards stand in them, with gold scores."""
    rows = [
        sample("a", ["r0", "r0", "r4", "r4"], gold=[0, 1, 0, 1]),
        sample("b", ["r1", "**r2**", "r3", "- r2"], gold=[0, 0, 1, 0], system="short"),
    ]
    return Teacher(path=str(write_lines(tmp_path / "samples.jsonl", rows)))


def scored_by(bench):
    return reward_all(bench.load(), lambda _, response: float(response.strip("*- r")))


def test_the_numbers_by_hand(bench):
    """Rewards 0 0 4 4 and 1 2 3 2, all with mean 2: nothing is between the prompts.

    With 2 more in b the mean of all is 3, the mean square from it 5 in a and 3/2 in b; the variance
    is 4 in a and 1/2 in b as before: a share of (9/4) / (13/4).
    Ties: 2 of 6 pairs, 1 of 6. Entropy: two levels of two, ln 2 / ln 4 = 1/2; levels of 1, 2 and 1
    of four, (2 ln 4 / 4 + ln 2 / 2) / ln 4 = 3/4.
    Markdown 0 1 0 1 in b: of four pairs that differ, (1 2) (3 2) (1 2) (3 2) for 1, -1, 1, -1.
    """
    scored = scored_by(bench)
    found = estimate(bench, scored)
    assert found["teacher/within"].value == pytest.approx(1.0)
    apart = [scored[0], replace(scored[1], rejected=(3.0, 4.0, 5.0, 4.0))]
    assert estimate(bench, apart)["teacher/within"].value == pytest.approx(9 / 13)
    assert found["teacher/ties"].value == pytest.approx((2 / 6 + 1 / 6) / 2)
    assert found["teacher/rank_entropy"].value == pytest.approx((1 / 2 + 3 / 4) / 2)
    markdown = found["teacher/markdown_correlation"]
    assert (markdown.value, markdown.n) == (0.0, 1)
    # The best of one: 1/2 and 1/4. The best of four: 4 and 4 share the choice, 1/2; 3 is right.
    assert found["teacher/best_of/1"].value == pytest.approx((1 / 2 + 1 / 4) / 2)
    assert found["teacher/best_of/4"].value == pytest.approx((1 / 2 + 1) / 2)
    check_pure(bench, scored)


def test_what_prompts_explain_teaches_nothing(bench):
    data = bench.load()
    of_prompts = reward_all(data, lambda example, _: float(example.id == "a"))
    found = estimate(bench, of_prompts)
    assert found["teacher/within"].value == 0.0
    assert found["teacher/ties"].value == 1.0
    assert found["teacher/rank_entropy"].value == 0.0
    constant = estimate(bench, reward_all(data, lambda *_: 1.0))
    assert "teacher/within" not in constant
    assert found["teacher/best_of/4"].value == pytest.approx((1 / 2 + 1 / 4) / 2)


def test_the_unit_of_rewards_does_not_matter(bench):
    scored = scored_by(bench)
    other = [
        ScoredExample(
            row.id, row.subset, row.prompt, (), tuple(7 - 3 * r for r in row.rejected), row.recorded
        )
        for row in scored
    ]
    for name in ("within", "ties", "rank_entropy"):
        first, second = (estimate(bench, of)[f"teacher/{name}"].value for of in (scored, other))
        assert first == pytest.approx(second)


def test_a_reward_that_is_not_finite_leaves_its_prompt_out(bench):
    first, second = scored_by(bench)
    lost = ScoredExample("a", "teacher", "a", (), (math.nan, 0.0, 4.0, 4.0), first.recorded)
    within = bench.metrics([lost, second])[0]
    assert (within.rows, within.undefined) == ((1,), ("a",))
    assert bench.metrics([lost]) == []


def test_there_is_no_null_of_what_is_no_score(bench):
    found = null_metrics(
        bench.name, bench.headline, bench.metrics, scored_by(bench), np.random.default_rng(0)
    )
    assert found == []


def test_what_is_read(bench, tmp_path):
    data = bench.load()
    assert [message.role for message in data.examples[1].prompt] == ["system", "user"]
    assert data.examples[0].recorded == (0.0, 1.0, 0.0, 1.0)
    assert data.notes == ("with gold scores",)
    assert data.rated == {"teacher"}
    ranking = {"prompt": "?", "response_1": "a", "response_2": "b", "reward_1": 0.5, "reward_2": 1}
    path = write_lines(tmp_path / "other" / "x.jsonl", [ranking | {"subset": "s"}])
    (example,) = Teacher(path=str(path)).load().examples
    assert (example.chosen, example.rejected) == ((), ("a", "b"))
    assert (example.recorded, example.subset) == ((0.5, 1.0), "s")
    write_lines(path, [sample("a", ["x", "y"])])
    assert Teacher(path=str(path)).load().notes[0].startswith("no gold scores")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([sample("a", ["x"])], "1 responses, where two or more"),
        ([sample("a", ["x", "y"], gold=[1])], "2 responses and 1 gold scores"),
        ([sample("a", ["x", "y"], gold=False)], "'gold' must hold a list, not bool False"),
        ([sample("a", ["x", "y"], gold=[1, "high"])], "'gold' must hold a finite number"),
        ([sample("a", ["x", "y"], gold=[1, 2]), sample("b", ["x", "y"])], "1 of 2 prompts"),
    ],
)
def test_samples_that_cannot_be_used(tmp_path, rows, message):
    path = write_lines(tmp_path / "x.jsonl", rows)
    with pytest.raises(DataError, match=message):
        Teacher(path=str(path)).load()
    with pytest.raises(ConfigError, match="set bench"):
        Teacher()
