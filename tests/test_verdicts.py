"""What becomes of a judge's verdicts in the benchmarks, with chat models that are functions."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import test_judgebench
import test_ppe
import test_rewardbench
import test_rewardbench2
import test_rewardmath
import test_rmb
import test_rmbench
from chat_stub import Stub, by_length, stub_judge
from scored_rows import values, write_json, write_lines
from test_rewardbench2 import OTHERS

from rmexp.benchmarks import Benchmark
from rmexp.benchmarks.bon100 import BestOf100
from rmexp.benchmarks.judgebench import CATEGORIES, JudgeBench
from rmexp.benchmarks.ppe import PPECorrectness, PPEPreference
from rmexp.benchmarks.preference import Preference
from rmexp.benchmarks.rewardbench import RewardBench
from rmexp.benchmarks.rewardbench2 import RewardBench2
from rmexp.benchmarks.rewardmath import RewardMath
from rmexp.benchmarks.rmb import RMB
from rmexp.benchmarks.rmbench import RMBench
from rmexp.benchmarks.toy import Toy
from rmexp.errors import DataError, ScoreError
from rmexp.evaluation.result import write_scores
from rmexp.judges.verdicts import judge_examples
from rmexp.schema import Dataset, Example, Message
from rmexp.scoring.recorded import RecordedReward
from rmexp.scoring.score import Scoring, Settings
from rmexp.stats.intervals import intervals


def example(id: str, chosen: tuple[str, ...], rejected: tuple[str, ...]) -> Example:
    return Example(id, "a", (Message("user", f"prompt {id}"),), chosen, rejected)


def benchmark(name: str, folder: Path) -> Benchmark:
    """A benchmark over a few rows of its own layout, all parts of it there."""
    if name == "preference":
        rows = [{"prompt": f"{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(3)]
        return Preference(path=str(write_lines(folder / "pairs.jsonl", rows)))
    if name == "rewardbench":
        subsets = test_rewardbench.COUNTS
        rows = [test_rewardbench.record(i, subset) for i, subset in enumerate(subsets)]
        return RewardBench(path=str(write_lines(folder / "rows.jsonl", rows)))
    if name == "rmbench":
        for domain in test_rmbench.COUNTS:
            write_json(folder / f"{domain}_filtered.json", [test_rmbench.record(1)])
        return RMBench(path=str(folder))
    if name == "rmb":
        for where in (test_rmb.DISCUSSION, test_rmb.S5):
            kinds = {"Pairwise_set": test_rmb.pair, "BoN_set": test_rmb.best_of_n}
            for kind, row in kinds.items():
                write_json(folder / f"RMB_dataset/{kind}/{where}.json", [row(where[-2:], where)])
        return RMB(path=str(folder))
    if name == "judgebench":
        sources = enumerate(CATEGORIES.values())
        rows = [
            test_judgebench.pair(str(i), f"{source}x", label=("A>B", "B>A")[i % 2])
            for i, source in sources
        ]
        return JudgeBench(path=str(write_lines(folder / test_judgebench.GPT, rows)))
    if name == "rewardmath":
        rows = [*test_rewardmath.solutions(0), *test_rewardmath.solutions(1)]
        return RewardMath(path=str(write_json(folder / "direct.json", rows)))
    if name == "ppe_preference":
        rows = [test_ppe.vote("a", "model_a"), test_ppe.vote("b", "model_b")]
        return PPEPreference(path=str(write_lines(folder / "votes.jsonl", rows)))
    if name == "ppe_correctness":
        for of in test_ppe.SETS:
            rows = [test_ppe.question(of, [True, False, True], [[0, 1], [1, 2]])]
            write_lines(folder / f"{of}.jsonl", rows)
        return PPECorrectness(path=str(folder))
    return Toy(limit=2)


BENCHMARKS = ("preference", "rewardbench", "rmbench", "rmb", "toy")
OTHER_RULES = ("judgebench", "rewardmath", "ppe_preference", "ppe_correctness")


@pytest.mark.parametrize("name", BENCHMARKS + OTHER_RULES)
@pytest.mark.parametrize(("right", "expected"), [(True, 1.0), (False, 0.0)])
def test_a_perfect_judge_gets_every_point_and_its_opposite_none(name, right, expected, tmp_path):
    bench = benchmark(name, tmp_path)
    data = bench.load()
    good = {response for each in data.examples for response in each.chosen}
    judge = stub_judge(lambda shown, _: "[[A]]" if (shown[0] in good) is right else "[[B]]")
    judging = judge_examples(judge, data, Settings(tmp_path / "store"))
    assert values(bench, judging.scored)[bench.headline] == expected
    assert own_metrics(judging) == {"judge/position_consistency": 1.0, "judge/unparsed": 0.0}


@pytest.mark.parametrize("name", BENCHMARKS)
@pytest.mark.parametrize("letter", ["A", "B"])
def test_a_judge_that_always_takes_one_position_gets_half_and_is_never_consistent(
    name, letter, tmp_path
):
    bench = benchmark(name, tmp_path)
    judging = judge_examples(
        stub_judge(lambda *_: f"[[{letter}]]"), bench.load(), Settings(tmp_path / "store")
    )
    # A list of RMB, one winner against two losers, is won if two coins show heads.
    expected = (0.5 + 0.25) / 2 if name == "rmb" else 0.5
    assert values(bench, judging.scored)[bench.headline] == pytest.approx(expected)
    assert own_metrics(judging) == {"judge/position_consistency": 0.0, "judge/unparsed": 0.0}


def own_metrics(judging: Scoring) -> dict[str, float]:
    found = intervals(judging.metrics, judging.scored, np.random.default_rng(0), samples=2)
    return {estimate.name: estimate.value for estimate in found}


def test_the_matrix_holds_each_comparison_and_rewards_are_mean_shares(tmp_path):
    data = Dataset((example("1", ("aaa", "a"), ("bb", "bbbb", "")),), "here")
    judging = judge_examples(stub_judge(by_length), data, Settings(tmp_path))
    (row,) = judging.scored
    assert row.verdicts == ((1, 0, 1), (0, 0, 1))
    assert row.chosen == pytest.approx((2 / 3, 1 / 3))
    assert row.rejected == pytest.approx((1 / 2, 1, 0))
    assert [line["verdict"] for line in judging.lines] == [1, 0, 1, 0, 0, 1]
    assert judging.lines[1] == {
        "id": "1", "chosen": 0, "rejected": 1, "verdict": 0.0,
        "chosen_first": ["[[B]]"], "rejected_first": ["[[A]]"],
    }  # fmt: skip


def test_each_pair_is_asked_once_in_each_order_and_identical_ones_never(tmp_path):
    """A pair, a list that holds it, and an example whose responses are one."""
    prompt = (Message("user", "p"),)
    data = Dataset(
        (
            Example("pair", "a", prompt, ("aa",), ("b",)),
            Example("list", "b", prompt, ("aa",), ("b", "c")),
            Example("same", "a", prompt, ("x",), ("x",)),
        ),
        "here",
    )
    stub = Stub(by_length)
    judging = judge_examples(stub_judge(stub), data, Settings(tmp_path))
    assert Counter(question.sample for question in stub.asked) == {0: 4}
    assert len({question.text for question in stub.asked}) == 4
    assert [row.verdicts for row in judging.scored] == [((1,),), ((1, 1),), ((0.5,),)]
    assert judging.counts["comparisons"] == 3
    assert judging.counts["answers"] == 4
    assert judging.counts["tokens"] == 4 * 12
    assert (judging.counts["prompt_tokens"], judging.counts["completion_tokens"]) == (40, 8)
    assert judging.counts["ties"] == 1
    consistency = judging.metrics[0]
    assert consistency.rows == (0, 1)  # nothing was asked about the third
    wrong = judge_examples(stub_judge(stub, undecided=0.0), data, Settings(tmp_path))
    assert wrong.scored[2].verdicts == ((0.0,),)
    assert wrong.counts["cached"] == 4
    assert wrong.counts["tokens"] == 0


@pytest.mark.parametrize(
    ("replies", "half", "wrong", "consistent", "unparsed"),
    [
        (("[[A]]", "[[B]]"), 1.0, 1.0, True, 0.0),
        (("[[B]]", "[[A]]"), 0.0, 0.0, False, 0.0),
        (("[[A]]", "[[A]]"), 0.5, 0.5, False, 0.0),
        (("[[A]]", "hm"), 0.75, 0.5, None, 0.5),
        (("hm", "[[A]]"), 0.25, 0.0, None, 0.5),
        (("hm", "hm"), 0.5, 0.0, None, 1.0),
    ],
)
def test_an_order_without_a_winner_is_half_a_point_or_wrong(
    replies, half, wrong, consistent, unparsed, tmp_path
):
    """`replies` are those with the chosen response first, and second."""
    data = Dataset((example("1", ("aa",), ("b",)),), "here")

    def reply(shown: list[str], sample: int) -> str:
        return replies[0] if shown[0] == "aa" else replies[1]

    for undecided, share in ((0.5, half), (0.0, wrong)):
        judge = stub_judge(reply, undecided=undecided)
        judging = judge_examples(judge, data, Settings(tmp_path))
        assert judging.scored[0].verdicts == ((share,),)
        # A consistent judge that is always wrong is consistent all the same.
        expected = {} if consistent is None else {"judge/position_consistency": None}
        assert {m.name for m in judging.metrics} == {*expected, "judge/unparsed"}
        if consistent is not None:
            same = (replies[0] == "[[A]]") == (replies[1] == "[[B]]")
            assert judging.metrics[0].outcomes == (float(same),)
        assert judging.metrics[-1].outcomes == (unparsed,)
        assert judging.counts["unparsed"] == 2 * unparsed


@pytest.mark.parametrize(
    ("said", "winner"),
    [
        (("A", "A", "B"), 1.0),
        (("B", "A", "B"), 0.0),
        (("A", "?", "?"), 1.0),  # one vote is more than none
        (("A", "B", "?"), 0.5),
        (("?", "?", "?"), 0.5),
    ],
)
def test_the_majority_of_the_samples_decides_an_order(said, winner, tmp_path):
    """`said` is what is answered with the chosen response first; the other order mirrors it."""
    other = {"A": "B", "B": "A", "?": "?"}
    data = Dataset((example("1", ("aa",), ("b",)),), "here")

    def reply(shown: list[str], sample: int) -> str:
        letter = said[sample] if shown[0] == "aa" else other[said[sample]]
        return f"[[{letter}]]"

    judging = judge_examples(stub_judge(reply, samples=3), data, Settings(tmp_path))
    assert judging.scored[0].verdicts == ((winner,),)
    assert judging.counts["answers"] == 6
    assert judging.counts["unparsed"] == 2 * said.count("?")


def test_what_a_benchmark_reads_as_a_reward_is_rated(tmp_path):
    """Subset b is to be rated, and so is what has nothing to be compared with."""
    data = Dataset(
        (
            example("1", ("aa",), ("b",)),
            Example("2", "b", (Message("user", "q"),), ("ccc", "c"), ("dd",)),
            example("3", ("aaaa",), ()),
        ),
        "here",
        rated=frozenset({"b"}),
    )
    replies = {1: ["[[1]]"], 2: ["[[2]]"], 3: ["[[3]]", "[[4]]"], 4: ["?"]}

    def reply(shown: list[str], sample: int) -> str:
        if len(shown) == 2:
            return by_length(shown, sample)
        said = replies[len(shown[0])]
        return said[sample % len(said)]

    judging = judge_examples(stub_judge(reply, samples=2), data, Settings(tmp_path))
    pair, rated, alone = judging.scored
    assert pair.verdicts == ((1,),)
    assert (rated.verdicts, rated.chosen, rated.rejected) == (None, (3.5, 1.0), (2.0,))
    assert math.isnan(alone.chosen[0])
    assert judging.counts["non_finite"] == 1
    assert judging.counts["rated"] == 4
    assert judging.metrics[1].outcomes == (0.0, 0.0, 1.0)
    everything = judge_examples(stub_judge(reply, pointwise=True), data, Settings(tmp_path))
    assert [row.verdicts for row in everything.scored] == [None] * 3
    assert everything.scored[0].chosen == (2.0,)


def test_verdicts_survive_the_file(tmp_path):
    examples = (example("1", ("aaa", "a"), ("bb", "bbbb")), example("2", ("aa",), ("bb",)))
    judging = judge_examples(stub_judge(by_length), Dataset(examples, "here"), Settings(tmp_path))
    write_scores(tmp_path / "scores.jsonl", judging.scored)
    again, ignored = RecordedReward(str(tmp_path / "scores.jsonl")).lookup(examples)
    assert again == judging.scored
    assert again[1].verdicts == ((0.5,),)
    assert ignored == 0


def test_a_run_that_was_killed_asks_only_what_is_missing(tmp_path):
    data = Dataset(tuple(example(str(i), ("aa",), ("b",)) for i in range(5)), "here")
    killed = Stub(by_length, killed_after=3)
    with pytest.raises(KeyboardInterrupt):
        judge_examples(stub_judge(killed), data, Settings(tmp_path))
    resumed = Stub(by_length)
    judging = judge_examples(stub_judge(resumed), data, Settings(tmp_path))
    assert len(resumed.asked) == 10 - 3
    assert not set(resumed.asked) & set(killed.asked)
    assert judging.counts["cached"] == 3
    unbroken = judge_examples(stub_judge(by_length), data, Settings(tmp_path / "other"))
    assert judging.scored == unbroken.scored
    assert judging.lines == unbroken.lines


def test_questions_that_are_too_long(tmp_path):
    data = Dataset((example("1", ("aa",), ("b",)),), "here")
    judge = stub_judge(Stub(lambda *_: "", ended="too_long"))
    judging = judge_examples(judge, data, Settings(tmp_path))
    assert judging.scored[0].verdicts == ((0.5,),)
    assert judging.counts["too_long"] == 2
    # Nothing of that is kept: the model may run with more room tomorrow.
    roomier = judge_examples(stub_judge(by_length), data, Settings(tmp_path))
    assert roomier.scored[0].verdicts == ((1.0,),)
    assert roomier.counts["cached"] == 0
    with pytest.raises(DataError, match="longer than the judge takes"):
        judge_examples(judge, data, Settings(tmp_path / "b", on_overlength="error"))
    with pytest.raises(ScoreError, match="no example is left"):
        judge_examples(judge, data, Settings(tmp_path / "b", on_overlength="drop"))
    rated = stub_judge(Stub(lambda *_: "", ended="too_long"), pointwise=True)
    with pytest.raises(ScoreError, match="no example is left"):
        judge_examples(rated, data, Settings(tmp_path, on_overlength="drop"))


def test_the_first_example_is_a_question_with_its_answer(tmp_path):
    data = Dataset((example("1", ("aa",), ("b",)),), "here")
    first = judge_examples(stub_judge(by_length), data, Settings(tmp_path)).first_example
    assert first is not None
    assert first.index("prompt 1") < first.index("aa") < first.index("--- answer\n[[A]]")


@pytest.mark.parametrize(("right", "expected"), [(True, (5 + 1.01) / 6), (False, -0.01 / 6)])
def test_a_judge_compares_in_rewardbench_2_and_rates_its_ties(right, expected, tmp_path):
    """Equal ratings of the correct responses have no spread: the last term is 1, or -1, by tanh."""
    rows = [test_rewardbench2.record(i, subset) for i, subset in enumerate(OTHERS)]
    rows += [test_rewardbench2.record(f"{kind}:1", "Ties") for kind in ("tied", "ref")]
    bench = RewardBench2(path=str(write_lines(tmp_path / "rows.jsonl", rows)))
    data = bench.load()
    good = {response for each in data.examples for response in each.chosen}

    def reply(shown, _):
        answers = ("[[10]]", "[[1]]") if len(shown) == 1 else ("[[A]]", "[[B]]")
        return answers[(shown[0] in good) is not right]

    judging = judge_examples(stub_judge(reply), data, Settings(tmp_path / "store"))
    assert [row.verdicts is None for row in judging.scored] == [False] * 5 + [True] * 2
    assert values(bench, judging.scored)[bench.headline] == pytest.approx(expected)


def test_a_judge_rates_what_has_recorded_rewards(tmp_path):
    row: dict[str, object] = {"prompt": "?"}
    for i in (1, 2, 3):
        row |= {f"response_{i}": "a" * i, f"reward_{i}": float(i)}
    rows = [row]
    bench = BestOf100(path=str(write_lines(tmp_path / "rows.jsonl", rows)))
    judge = stub_judge(lambda shown, _: f"[[{len(shown[0])}]]")
    judging = judge_examples(judge, bench.load(), Settings(tmp_path / "store"))
    assert values(bench, judging.scored)["bon100/spearman"] == pytest.approx(1.0)
    assert values(bench, judging.scored)["bon100/best_of/3"] == 3.0
