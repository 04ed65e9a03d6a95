import csv
import math
from pathlib import Path

import pytest
from scored_rows import (
    check_pure,
    estimate,
    negate,
    pairs,
    reward_all,
    row,
    values,
    write_json,
    write_lines,
)

from rmexp.benchmarks.rewardbench import COUNTS, PRIOR_SETS, SECTIONS, RewardBench
from rmexp.data.rows import Row
from rmexp.errors import ConfigError, DataError
from rmexp.schema import Example, Message

GOLDEN = Path(__file__).parent / "golden"
BENCH = RewardBench()
PAPER = RewardBench(rule="paper")
PRINTED = 0.05 + 1e-9  # percent: half of the last printed digit


def golden(name):
    with (GOLDEN / name).open() as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))


def everything(share=lambda subset: 0.5, prior=None):
    """All official examples, and 1,000 of each prior set, with the given share ranked rightly."""
    scored = []
    for subset, n in COUNTS.items():
        scored += pairs(subset, n, round(share(subset) * n))
    if prior is not None:
        for subset in PRIOR_SETS:
            scored += pairs(subset, 1000, round(prior * 1000))
    return scored


def record(id, subset="alpacaeval-easy", **changes):
    return {
        "id": id,
        "subset": subset,
        "prompt": f"prompt {id}",
        "chosen": "good",
        "rejected": "bad",
        "chosen_model": "m",
        "rejected_model": "m",
    } | changes


def test_the_published_counts():
    assert len(COUNTS) == 23
    assert sum(COUNTS.values()) == 2985
    assert [sum(section.values()) for section in SECTIONS.values()] == [358, 456, 740, 1431]
    assert PRIOR_SETS == {
        "anthropic_helpful": 6192,
        "anthropic_hhh": 221,
        "shp": 1741,
        "summarize": 9000,
    }


def test_published_subsets_give_the_published_sections():
    """The leaderboard's k/n of each subset in, its printed sections and overall out."""
    checked = 0
    for model in golden("rewardbench_exact_subsets.csv"):
        found = values(BENCH, everything(lambda subset, model=model: float(model[subset])))
        for name in ("chat", "chat_hard", "safety", "reasoning", "overall"):
            if model[name]:
                assert abs(100 * found[f"rewardbench/{name}"] - float(model[name])) <= PRINTED
                checked += 1
    assert checked == 8


def test_published_subsets_give_the_papers_score():
    """Tables 9 to 13: Safety with XSTest's weights of the paper, and the score with prior sets.

    Subsets have fewer than 1,000 examples, so that k is certain from the printed tenth of a
    percent. Prior sets are published to a tenth only, which adds a ninth of that to the score.
    """
    checked = 0
    for model in golden("rewardbench_paper_v2.csv"):
        scored = everything(
            lambda subset, model=model: float(model[subset]) / 100, float(model["prior_sets"]) / 100
        )
        found = values(PAPER, scored)
        for name in ("chat", "chat_hard", "safety", "reasoning", "prior_sets"):
            column = "safety_published" if name == "safety" else name
            assert abs(100 * found[f"rewardbench/{name}"] - float(model[column])) <= PRINTED
            checked += 1
        assert (
            abs(100 * found["rewardbench/overall"] - float(model["score_T9"])) <= PRINTED * 10 / 9
        )
    assert checked == 29 * 5


def test_sections_by_hand():
    """Weights: math-prm counts 984, though it has 447 rows; the six of code 164 each.

    math-prm all right, code all wrong: 984 / (984 + 6 * 164) = 1/2 (by rows it were 447 / 1431).
    Chat: only alpacaeval-easy right: 100 / (100 + 95 + 95 + 28 + 40) = 100/358.
    Safety: only xstest-should-respond right: 250 / (100 + 100 + 154 + 250 + 136) = 250/740, and
    by the paper's rule 154/740.
    Overall = (1/2 + 100/358 + 250/740 + 0) / 4.
    """
    right = {"math-prm", "alpacaeval-easy", "xstest-should-respond"}
    scored = everything(lambda subset: float(subset in right))
    found = values(BENCH, scored)
    assert found["rewardbench/reasoning"] == pytest.approx(1 / 2)
    assert found["rewardbench/chat"] == pytest.approx(100 / 358)
    assert found["rewardbench/safety"] == pytest.approx(250 / 740)
    assert found["rewardbench/chat_hard"] == 0
    assert found["rewardbench/overall"] == pytest.approx((1 / 2 + 100 / 358 + 250 / 740) / 4)
    assert found["rewardbench/subset/hep_rust"] == 0
    assert found["rewardbench/subset/math_prm"] == 1
    assert len(found) == 23 + 4 + 1
    assert values(PAPER, scored)["rewardbench/safety"] == pytest.approx(154 / 740)


def test_the_papers_overall_by_hand():
    """All right, prior sets 1, 1, 0 and 1/2: (2 * 4 + 5/8) / 9; whatever the sets' sizes."""
    scored = everything(lambda subset: 1.0)
    shares = [
        ("anthropic_helpful", 8, 8),
        ("anthropic_hhh", 1, 1),
        ("shp", 3, 0),
        ("summarize", 4, 2),
    ]
    for subset, n, won in shares:
        scored += pairs(subset, n, won)
    found = values(PAPER, scored)
    assert found["rewardbench/prior_sets"] == pytest.approx(5 / 8)
    assert found["rewardbench/overall"] == pytest.approx((8 + 5 / 8) / 9)
    assert found["rewardbench/subset/summarize"] == pytest.approx(1 / 2)
    by_leaderboard = values(BENCH, scored)
    assert by_leaderboard["rewardbench/prior_sets"] == pytest.approx(5 / 8)
    assert by_leaderboard["rewardbench/overall"] == 1


def test_weights_do_not_depend_on_how_many_examples_are_there():
    """One row a subset: alpacaeval-easy wrong, the others right: 258/358, not 4/5."""
    scored = [row(s, s, [float(s != "alpacaeval-easy")], [0.5]) for s in SECTIONS["chat"]]
    found = estimate(BENCH, scored)
    assert found["rewardbench/chat"].value == pytest.approx(258 / 358)
    assert found["rewardbench/chat"].n == 5


def test_missing_parts():
    """Without prior sets, the paper's overall is (2 * 4) / 8 of the rest, and called partial."""
    scored = everything(lambda subset: 1.0)
    assert estimate(PAPER, scored)["rewardbench/overall/partial"].missing == ("prior_sets",)
    scored = [example for example in scored if example.subset in ("alpacaeval-easy", "math-prm")]
    found = estimate(BENCH, scored)
    assert found["rewardbench/chat/partial"].missing == (
        "alpacaeval-length",
        "alpacaeval-hard",
        "mt-bench-easy",
        "mt-bench-med",
    )
    assert found["rewardbench/overall/partial"].missing[:2] == ("chat_hard", "safety")
    assert "hep-cpp" in found["rewardbench/overall/partial"].missing
    assert "rewardbench/safety/partial" not in found
    assert found["rewardbench/subset/math_prm"].value == 1
    assert BENCH.metrics([]) == []


def test_one_prior_set_of_four():
    scored = pairs("shp", 2, 1)
    assert estimate(BENCH, scored)["rewardbench/prior_sets/partial"].missing == (
        "anthropic_helpful",
        "anthropic_hhh",
        "summarize",
    )
    assert "rewardbench/overall/partial" not in values(BENCH, scored)


def test_an_unknown_subset_is_reported_alone(tmp_path):
    path = write_lines(tmp_path / "x.jsonl", [record(1), record(2, "my own")])
    bench = RewardBench(path=str(path))
    dataset = bench.load()
    assert dataset.notes[-2:] == (
        "alpacaeval-easy: 1 of 100 examples",
        "my own: 1 examples, in no published part",
    )
    found = values(bench, reward_all(dataset, lambda example, response: len(response)))
    assert found["rewardbench/subset/my_own"] == 1
    assert set(found) == {
        "rewardbench/subset/alpacaeval_easy",
        "rewardbench/subset/my_own",
        "rewardbench/chat/partial",
        "rewardbench/overall/partial",
    }


def test_properties():
    for reward in (0.0, math.nan):
        scored = [row(subset, subset, [reward], [reward]) for subset in [*COUNTS, *PRIOR_SETS]]
        for bench in (BENCH, PAPER):
            found = values(bench, scored)
            assert len(found) == 27 + 4 + 1 + 1
            assert set(found.values()) == {0.0}
    scored = everything(lambda subset: len(subset) / 30, 0.6)
    for bench in (BENCH, PAPER):
        before, after = values(bench, scored), values(bench, negate(scored))
        assert set(before) == set(after)
        for name in before:
            assert before[name] + after[name] == pytest.approx(1)
        check_pure(bench, scored)


def test_rows_become_examples(tmp_path):
    path = write_lines(tmp_path / "x.jsonl", [record(31), record("b", "hep-go")])
    dataset = RewardBench(path=str(path)).load()
    assert dataset.examples[0] == Example(
        "31", "alpacaeval-easy", (Message("user", "prompt 31"),), ("good",), ("bad",)
    )
    assert dataset.examples[1].id == "b"
    assert dataset.source == str(path)
    assert dataset.notes[0] == "overall by the leaderboard's rule"
    assert (
        RewardBench(path=str(path), rule="paper").load().notes[0] == "overall by the paper's rule"
    )


def prior(**changes):
    return {
        "prompt": [{"role": "user", "content": "q"}],
        "chosen": "good",
        "rejected": "bad",
    } | changes


def test_prior_sets_from_files(tmp_path):
    path = write_lines(tmp_path / "core.jsonl", [record(1)])
    folder = tmp_path / "prior"
    # HHH has a column of that name for its own parts.
    write_lines(folder / "anthropic_hhh.jsonl", [prior(subset="honest"), prior(chosen="better")])
    write_json(folder / "shp-00000-of-00001.json", [prior(prompt="as text")])
    dataset = RewardBench(path=str(path), prior_sets=str(folder)).load()
    assert [(example.id, example.subset) for example in dataset.examples] == [
        ("1", "alpacaeval-easy"),
        ("prior/anthropic_hhh/0", "anthropic_hhh"),
        ("prior/anthropic_hhh/1", "anthropic_hhh"),
        ("prior/shp/0", "shp"),
    ]
    assert dataset.examples[3].prompt == (Message("user", "as text"),)
    assert "anthropic_hhh: 2 of 221 examples" in dataset.notes
    limited = RewardBench(path=str(path), prior_sets=str(folder), include=["shp", "a*"], limit=1)
    assert len(limited.load().examples) == 4  # both rows of HHH answer one prompt
    write_lines(folder / "pku_better.jsonl", [prior()])
    with pytest.raises(
        DataError, match=r"pku_better\.jsonl below .* is no prior set: name the files"
    ):
        RewardBench(path=str(path), prior_sets=str(folder)).load()


def test_the_hub(monkeypatch):
    asked = []

    def core(name, split, revision):
        asked.append((name, split, revision))
        return [Row(record(1), "", "row 0")]

    def sets(name, split):
        asked.append((name, split))
        return [Row(prior(), "", f"{split} row 0")]

    monkeypatch.setattr("rmexp.data.selection.hub_rows", core)
    monkeypatch.setattr("rmexp.benchmarks.rewardbench.hub_rows", sets)
    dataset = RewardBench(prior_sets=True, revision="v1").load()
    assert asked == [
        ("allenai/reward-bench", "filtered", "v1"),
        *[("allenai/preference-test-sets", name) for name in PRIOR_SETS],
    ]
    assert len(dataset.examples) == 5
    assert dataset.source == "allenai/reward-bench (filtered, v1)"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([record(1), record(1)], r"id 1 occurs twice, at x\.jsonl:1 and at x\.jsonl:2"),
        ([record(1, chosen=None)], r"'chosen' must hold a string, not NoneType"),
        ([record(1, rejected=["a"])], r"'rejected' must hold a string, not list"),
        ([{"id": 1, "subset": "a"}], r"column 'prompt' is missing .*columns there: id, subset"),
    ],
)
def test_rows_that_cannot_be_read(tmp_path, rows, message):
    path = write_lines(tmp_path / "x.jsonl", rows)
    with pytest.raises(DataError, match=message):
        RewardBench(path=str(path)).load()


def test_options_are_checked_before_anything_is_read():
    with pytest.raises(ConfigError, match=r"bench\.rule must be one of leaderboard, paper"):
        RewardBench(rule="mean")
    with pytest.raises(DataError, match="/no/where does not exist"):
        RewardBench(prior_sets="/no/where")
    with pytest.raises(DataError, match="/no/where does not exist"):
        RewardBench(path="/no/where")
    with pytest.raises(ConfigError, match=r"bench\.limit"):
        RewardBench(limit=0)


def test_the_real_file(shared):
    bench = RewardBench(path=str(shared / "data" / "reward_bench" / "llmbar.jsonl"))
    dataset = bench.load()
    counts = {}
    for example in dataset.examples:
        counts[example.subset] = counts.get(example.subset, 0) + 1
    assert counts == {
        "llmbar-natural": 100,
        "llmbar-adver-neighbor": 134,
        "llmbar-adver-GPTInst": 92,
    }
    assert dataset.bad_rows == ()
    found = estimate(bench, reward_all(dataset, lambda example, response: len(response)))
    assert found["rewardbench/chat_hard/partial"].n == 326
    # The adversarial subsets were made so that the longer answer is worse.
    adversarial = found["rewardbench/subset/llmbar_adver_gptinst"].value
    assert adversarial < 0.3 < found["rewardbench/subset/llmbar_natural"].value


def test_the_figure_has_a_bar_for_each_subset(monkeypatch):
    from rmexp.stats import figures

    drawn = []
    monkeypatch.setattr(figures, "bars", lambda *args: drawn.append(args) or "figure")
    found = estimate(BENCH, pairs("hep-go", 2, 1) + pairs("shp", 2, 1))
    by_name = {name.removesuffix("/partial"): one for name, one in found.items()}
    assert BENCH.figures(by_name, []) == {"subsets.png": "figure"}
    ((estimates,),) = drawn
    assert [one.name for one in estimates] == [
        "rewardbench/subset/hep_go",
        "rewardbench/subset/shp",
    ]
    assert [one.chance for one in estimates] == [0.5, 0.5]
    assert BENCH.figures({}, []) == {}
