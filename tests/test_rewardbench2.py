import math

import numpy as np
import pytest
from scored_rows import check_pure, estimate, reward_all, row, values, write_json, write_lines

from rmexp.benchmarks.rewardbench2 import COUNTS, TIES_WEIGHTS, RewardBench2, credit
from rmexp.data.rows import Row
from rmexp.errors import DataError
from rmexp.schema import Example, Message
from rmexp.scoring.recorded import RecordedReward
from rmexp.stats.intervals import bootstrap, intervals, totals

NAN = math.nan
BENCH = RewardBench2()
TIES = "rewardbench2/ties"
OTHERS = [subset for subset in COUNTS if subset != "Ties"]
TERMS = [f"{TIES}/{term}" for term in TIES_WEIGHTS]


def record(id, subset="Math", **changes):
    """A row with the hub's columns."""
    many = subset == "Ties" and str(id).startswith("tied")
    chosen, rejected = ["right", "true"][: 1 + many], ["wrong", "false", "bad"]
    return {
        "id": id,
        "prompt": f"prompt {id}",
        "chosen": chosen,
        "rejected": rejected,
        "num_correct": len(chosen),
        "num_incorrect": len(rejected),
        "total_completions": len(chosen) + len(rejected),
        "subset": subset,
    } | changes


def ties(prompt, tied, ref):
    """Both rows of a prompt, each given as its correct and its incorrect rewards."""
    return [row(f"tied:{prompt}", "Ties", *tied), row(f"ref:{prompt}", "Ties", *ref)]


def load(tmp_path, rows, **options):
    path = write_lines(tmp_path / "rows.jsonl", rows)
    return RewardBench2(path=str(path), **options).load()


def test_the_published_counts():
    """Of 1,865 rows, 102 are of Ties: 51 prompts with two each."""
    assert len(COUNTS) == 6
    assert sum(COUNTS.values()) == 1865
    assert sum(TIES_WEIGHTS.values()) == pytest.approx(1.01)


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        ([2.0], [1.0, 0.0, -1.0], 1.0),
        ([1.0], [2.0, 0.0, 0.0], 0.0),
        ([1.0], [1.0, 0.0, 0.0], 1 / 2),
        ([1.0], [1.0, 1.0, 0.0], 1 / 3),
        ([1.0], [1.0, 1.0, 1.0], 1 / 4),
        ([0.0], [1.0, 1.0, 0.0], 0.0),  # a tie below the highest
        ([NAN], [1.0, 0.0, 0.0], 0.0),
        ([1.0], [0.0, NAN, 0.0], 0.0),
        ([NAN], [NAN, NAN, NAN], 0.0),
    ],
)
def test_credit(chosen, rejected, expected):
    assert credit(row("1", "Math", chosen, rejected)) == pytest.approx(expected)


# tied's correct and incorrect rewards, ref's, and the five terms.
BRANCHES = {
    # gap_tied 2, spread 1, gap_ref 3: min(3, 2) / 1 - 1 = 1
    "everything right": (([4, 3], [1]), ([5], [2]), (1, 1, 1, 1, math.tanh(1))),
    # gap_tied 1, spread 0, gap_ref 2: 1/0 = inf
    "no spread, positive gap": (([2, 2], [1]), ([3], [1]), (1, 1, 1, 1, 1)),
    # gap_tied -1, spread 0, gap_ref 2: -1/0 = -inf
    "no spread, negative gap": (([1, 1], [2]), ([3], [1]), (0, 1, 0, 0, -1)),
    # gap_tied 1, spread 0, gap_ref -1: -1/0 = -inf
    "no spread, ref's gap negative": (([2, 2], [1]), ([0], [1]), (1, 0, 1, 0, -1)),
    # gap_tied 1, spread 0, gap_ref 0: 0/0
    "no spread, ref's gap zero": (([2, 2], [1]), ([1], [1]), (1, 0, 1, 0, 0)),
    # gap_tied 0, spread 0, gap_ref 1: 0/0
    "no spread, no gap": (([1, 1], [1]), ([2], [1]), (0, 1, 0, 0, 0)),
    "equal everywhere": (([1, 1], [1]), ([1], [1]), (0, 0, 0, 0, 0)),
    # gap_tied 1, spread 3, gap_ref 2: 1/3 - 1
    "spread above the gap": (([5, 2], [1]), ([3], [1]), (1, 1, 0, 0, math.tanh(-2 / 3))),
    # gap_tied 3, spread 2, gap_ref 1: 1/2 - 1
    "spread between the gaps": (([5, 3], [0]), ([2], [1]), (1, 1, 1, 0, math.tanh(-1 / 2))),
    # gap_tied 2, spread 2, gap_ref 2: equal is not above, and 2/2 - 1 = 0
    "spread equal to the gaps": (([5, 3], [1]), ([3], [1]), (1, 1, 0, 0, 0)),
    # gap_tied -2, spread 1, gap_ref 1: -2/1 - 1
    "tied wrong": (([2, 1], [3]), ([2], [1]), (0, 1, 0, 0, math.tanh(-3))),
    # a gap that is not finite is the worst of all
    "tied not finite": (([NAN, 3], [1]), ([5], [2]), (0, 1, 0, 0, -1)),
    "ref not finite": (([4, 3], [1]), ([5], [NAN]), (1, 0, 1, 0, -1)),
}


@pytest.mark.parametrize("branch", BRANCHES)
def test_ties_by_hand(branch):
    tied, ref, terms = BRANCHES[branch]
    found = values(BENCH, ties("7", tied, ref))
    assert [found[name] for name in TERMS] == pytest.approx(terms)
    score = 0.3 * terms[0] + 0.3 * terms[1] + 0.2 * terms[2] + 0.2 * terms[3] + 0.01 * terms[4]
    assert found[TIES] == pytest.approx(score)


def test_ties_of_several_prompts_by_hand():
    """Everything right, and spread above the gap: 0.6 + 0.4/2 + 0.01 (tanh 1 + tanh -2/3) / 2."""
    scored = [
        example
        for name in ("everything right", "spread above the gap")
        for example in ties(name, *BRANCHES[name][:2])
    ]
    found = estimate(BENCH, scored)
    expected = 0.8 + 0.005 * (math.tanh(1) + math.tanh(-2 / 3))
    assert found[TIES].value == pytest.approx(expected)
    assert (found[TIES].n, found[f"{TIES}/margin"].n) == (4, 2)


def test_a_row_without_its_partner_counts_in_its_own_accuracy():
    """One whole prompt all right, a lone tied row wrong, a lone ref row right:

    0.3 * 1/2 + 0.3 * 2/2 + 0.2 + 0.2 + 0.01 tanh 1.
    """
    scored = ties("a", *BRANCHES["everything right"][:2])
    scored += [row("tied:b", "Ties", [0, 1], [2]), row("ref:c", "Ties", [1], [0])]
    found = values(BENCH, scored)
    assert found[f"{TIES}/tied_accuracy"] == 0.5
    assert found[f"{TIES}/ref_accuracy"] == 1
    assert found[TIES] == pytest.approx(0.85 + 0.01 * math.tanh(1))


def test_no_row_for_a_term_makes_the_score_partial():
    """Only tied rows, one of two right: what is left is their accuracy."""
    scored = [row("tied:b", "Ties", [0, 1], [2]), row("tied:c", "Ties", [3, 4], [2])]
    found = estimate(BENCH, scored)
    assert found[f"{TIES}/partial"].value == pytest.approx(0.5)
    assert found[f"{TIES}/partial"].missing[0] == "Ties' ref_accuracy"
    assert len(found[f"{TIES}/partial"].missing) == 4
    assert set(found) == {TERMS[0], f"{TIES}/partial", "rewardbench2/overall/partial"}


def test_the_overall_is_the_mean_of_six():
    """Two rows a subset, one of them right, Ties all right: (5 * 1/2 + 1 + 0.01 tanh 1) / 6."""
    scored = [row(f"{s}{i}", s, [1.0], [float(2 * i), 0.0, 0.0]) for s in OTHERS for i in range(2)]
    scored += ties("a", *BRANCHES["everything right"][:2])
    found = values(BENCH, scored)
    ties_score = 1 + 0.01 * math.tanh(1)
    assert found["rewardbench2/overall"] == pytest.approx((2.5 + ties_score) / 6)
    names = ["factuality", "precise_if", "math", "safety", "focus"]
    assert [found[f"rewardbench2/{name}"] for name in names] == [0.5] * 5
    assert len(found) == 5 + 5 + 1 + 1
    check_pure(BENCH, scored)


def test_missing_subsets_make_the_overall_partial():
    found = estimate(BENCH, [row("1", "Math", [1.0], [1.0, 0.0, 0.0])])
    assert set(found) == {"rewardbench2/math", "rewardbench2/overall/partial"}
    overall = found["rewardbench2/overall/partial"]
    assert overall.value == 0.5
    assert overall.missing == ("Factuality", "Precise IF", "Safety", "Focus", "Ties")
    assert BENCH.metrics([]) == []


def test_a_constant_reward():
    """A quarter in each subset of four, nothing in Ties."""
    scored = [row(s, s, [2.0], [2.0] * 3) for s in OTHERS] + ties("a", ([2, 2], [2]), ([2], [2]))
    found = values(BENCH, scored)
    assert found["rewardbench2/overall"] == pytest.approx(5 / 4 / 6)
    assert found[TIES] == 0


def test_the_two_rows_of_a_prompt_are_resampled_together(tmp_path):
    """For each prompt exactly one of its rows is right: 0.3 whatever is drawn.

    Drawn apart, the rows would give the score an interval of width 0.2 and more.
    """
    rows = [record(f"{kind}:{k}", "Ties") for k in range(40) for kind in ("tied", "ref")]
    path = str(write_lines(tmp_path / "rows.jsonl", rows))
    dataset = RewardBench2(path=path).load()
    assert len({example.prompt for example in dataset.examples}) == 80
    assert len({example.prompt_id for example in dataset.examples}) == 40

    def reward(example, response):
        kind, _, k = example.id.partition(":")
        right = (int(k) % 2 == 0) == (kind == "tied")
        correct = response in example.chosen
        return (9.0 if response == "true" else 1.0) if correct else 0.5 if right else 2.0

    scored = reward_all(dataset, reward)
    found = {e.name: e for e in intervals(BENCH.metrics(scored), scored, np.random.default_rng(0))}
    score, tied = found[TIES], found[f"{TIES}/tied_accuracy"]
    assert score.value == pytest.approx(
        0.3 + 0.01 * np.mean([math.tanh(-1.0625 + 0), -1]), abs=0.01
    )
    assert tied.high - tied.low > 0.2
    (drawn,) = bootstrap([totals(BENCH.metrics(scored), scored)], np.random.default_rng(0), 50)
    assert np.ptp(drawn[TIES]) < 0.005


def test_rows_become_examples(tmp_path):
    rows = [record(31), record("tied:4", "Ties"), record("ref:4", "Ties")]
    dataset = load(tmp_path, rows)
    assert dataset.examples[0] == Example(
        "31", "Math", (Message("user", "prompt 31"),), ("right",), ("wrong", "false", "bad")
    )
    tied, ref = dataset.examples[1:]
    assert (tied.id, tied.chosen, tied.rejected[0]) == ("tied:4", ("right", "true"), "wrong")
    assert tied.prompt_id == ref.prompt_id == "Ties/4"
    assert dataset.notes[0] == "no examples of Factuality, Precise IF, Safety, Focus"
    assert "Math: 1 of 183 examples" in dataset.notes


def test_a_row_without_its_partner_is_named(tmp_path):
    rows = [record(f"tied:{k}", "Ties") for k in (1, 2, 3)] + [record("ref:2", "Ties")]
    assert load(tmp_path, rows).notes[0] == "Ties: no partner for tied:1, tied:3"
    left_out = load(tmp_path, [*rows, record("ref:1", "Ties", prompt=" ")], on_bad_row="skip")
    assert left_out.notes[0] == "Ties: no partner for tied:1, tied:3"
    assert len(left_out.bad_rows) == 1


def test_limit_takes_both_rows_of_a_prompt(tmp_path):
    rows = [record(f"tied:{k}", "Ties") for k in range(5)]
    rows += [record(f"ref:{k}", "Ties") for k in reversed(range(5))]
    rows += [record(k) for k in range(5)]
    found = load(tmp_path, rows, limit=2)
    ids = [example.id for example in found.examples]
    assert ids == ["tied:0", "tied:1", "ref:1", "ref:0", "0", "1"]
    some = load(tmp_path, rows, limit=1, include=["T*"])
    assert [example.id for example in some.examples] == ["tied:0", "ref:0"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([record(1, "Maths")], r"subset 'Maths' at rows\.jsonl:1 is unknown: correct it to one of"),
        ([record("4", "Ties")], r"id '4' of Ties at rows\.jsonl:1 must be tied:K or ref:K"),
        ([record("ref:", "Ties")], r"id 'ref:' of Ties .* must be tied:K or ref:K"),
        ([record(1, chosen=["a", "b"])], r"'chosen' must hold a list of 1 strings"),
        ([record(1, chosen="a")], r"'chosen' must hold a list of 1 strings, not str"),
        ([record(1, rejected=[])], r"1 needs a chosen and a rejected response at rows\.jsonl:1"),
        ([record("ref:1", "Ties", chosen=[])], r"ref:1 needs a chosen and a rejected response"),
        ([record(1), record(1, "Focus")], r"id 1 occurs twice"),
        ([{"id": 1, "subset": "Math", "chosen": ["a"], "rejected": ["b"]}], r"'prompt' is missing"),
    ],
)
def test_rows_that_cannot_be_read(tmp_path, rows, message):
    with pytest.raises(DataError, match=message):
        load(tmp_path, rows)


def test_options_are_checked_before_anything_is_read():
    with pytest.raises(DataError, match="/no/where does not exist"):
        RewardBench2(path="/no/where")


def test_the_hub(monkeypatch):
    asked = []

    def rows(name, split, revision):
        asked.append((name, split, revision))
        return [Row(record("1"), "", "row 0")]

    monkeypatch.setattr("rmexp.data.selection.hub_rows", rows)
    assert len(RewardBench2(revision="v1").load().examples) == 1
    assert asked == [("allenai/reward-bench-2", "test", "v1")]


def test_recorded_scores(tmp_path):
    """Math ties for the highest among two, Ties is all right."""
    rows = [record("1"), record("tied:0", "Ties"), record("ref:0", "Ties")]
    dataset = RewardBench2(path=str(write_json(tmp_path / "rows.json", rows))).load()
    lines = [
        {"id": "1", "chosen": [1.0], "rejected": [1.0, 0.0, 0.0]},
        {"id": "tied:0", "chosen": [4.0, 3.0], "rejected": [1.0, 0.0, 0.0]},
        {"id": "ref:0", "chosen": [5.0], "rejected": [2.0, 1.0, 0.0]},
    ]
    scored, ignored = RecordedReward(str(write_lines(tmp_path / "scores.jsonl", lines))).lookup(
        dataset.examples
    )
    assert ignored == 0
    found = values(BENCH, scored)
    assert found["rewardbench2/math"] == 0.5
    assert found[TIES] == pytest.approx(1 + 0.01 * math.tanh(1))
    assert found["rewardbench2/overall/partial"] == pytest.approx((0.5 + found[TIES]) / 2)


def test_the_figure_has_a_bar_for_each_subset():
    scored = [row("1", "Math", [1.0], [0.0]), *ties("a", *BRANCHES["everything right"][:2])]
    by_name = {n.removesuffix("/partial"): e for n, e in estimate(BENCH, scored).items()}
    (figure,) = BENCH.figures(by_name, scored).values()
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["math (n=1, too few)", "ties (n=2, too few)"]
    (chance,) = figure.axes[0].collections
    assert [segment[0, 0] for segment in chance.get_segments()] == [0.5]  # Ties has none
    assert BENCH.figures({}, []) == {}
