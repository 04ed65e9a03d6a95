import math

import numpy as np
import pytest
from scipy import stats
from scored_rows import check_pure, estimate, reward_all, values, write_json, write_lines

from rmexp.benchmarks.bon100 import BestOf100, ranked
from rmexp.data.rows import Row
from rmexp.errors import ConfigError, DataError
from rmexp.schema import Example, Message, ScoredExample, fingerprint
from rmexp.stats.bestofn import expected_best
from rmexp.stats.intervals import intervals

NAN = math.nan
BENCH = BestOf100()


def record(rewards, prompt="Why?", **changes):
    """A row with the hub's columns."""
    row = {
        "prompt": prompt,
        "subset": "hep-go",
        "rewardbench_chosen": "good",
        "rewardbench_chosen_model": "m",
        "rewardbench_rejected": "bad",
        "rewardbench_rejected_model": "m",
    }
    for i, reward in enumerate(rewards, start=1):
        row |= {f"response_{i}": f"text {i}", f"response_{i}_model": "m", f"reward_{i}": reward}
    return row | changes


def load(tmp_path, rows, **options):
    return BestOf100(path=str(write_lines(tmp_path / "rows.jsonl", rows)), **options).load()


def scored(id, rewards, recorded, pair=(5.0, -5.0)):
    chosen, rejected = pair[:1], pair[1:]
    return ScoredExample(id, "s", f"p{id}", chosen, (*rejected, *rewards), tuple(recorded))


def curve(bench, rows, name):
    found = intervals(bench.metrics(rows), rows, np.random.default_rng(0), 20)
    return [e for e in found if e.name.startswith(f"bon100/recorded_reward/{name}/")]


def test_rows_become_examples(tmp_path):
    (example,) = load(tmp_path, [record([0.5, -1.0, 2])]).examples
    assert example == Example(
        "0",
        "hep-go",
        (Message("user", "Why?"),),
        ("good",),
        ("bad", "text 1", "text 2", "text 3"),
        recorded=(0.5, -1.0, 2.0),
    )


def test_rows_without_rewardbenchs_responses(tmp_path):
    row = {"prompt": "Why?", "response_1": "a", "reward_1": 1, "response_2": "b", "reward_2": 0}
    (example,) = load(tmp_path, [row]).examples
    assert (example.subset, example.chosen, example.rejected) == ("bon100", (), ("a", "b"))
    rows = reward_all(load(tmp_path, [row]), lambda example, response: float(response == "a"))
    found = values(BENCH, rows)
    assert found["bon100/spearman"] == pytest.approx(1)
    assert not any(name.startswith("bon100/share_below") for name in found)


def test_a_table_may_pad_shorter_rows(tmp_path):
    rows = [record([1, 2, 3]), record([1, 2, 3], response_3=None, reward_3=None)]
    dataset = BestOf100(path=str(write_json(tmp_path / "rows.json", rows))).load()
    assert [len(example.recorded) for example in dataset.examples] == [3, 2]
    assert dataset.notes == ("2 to 3 responses a prompt: the curve ends at 2",)
    found = reward_all(dataset, lambda example, response: float(len(response)))
    assert [point.at for point in curve(BENCH, found, "selected")] == [1, 2]


def test_rewards_may_be_text(tmp_path):
    assert load(tmp_path, [record(["0.5", "1e-1"])]).examples[0].recorded == (0.5, 0.1)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (record([1, NAN]), r"'reward_2' must hold a finite number, not nan, at rows\.jsonl:1"),
        (record([1, True]), r"'reward_2' must hold a finite number, not True"),
        (record([1], response_3="c", reward_3=1), r"column 'response_2' is missing"),
        (record([]), r"column 'response_1' is missing at rows\.jsonl:1"),
        (record([1, 2], reward_2=None), r"'reward_2' must hold a finite number, not None"),
        (record([1], rewardbench_chosen=None), r"'rewardbench_chosen' must hold a string"),
        (record([1], prompt=3), r"'prompt' must hold a string"),
    ],
)
def test_rows_that_cannot_be_read(tmp_path, row, message):
    with pytest.raises(DataError, match=message):
        load(tmp_path, [row])


@pytest.mark.parametrize("value", ["absent", None])
def test_a_row_without_its_last_response_is_a_bad_row(tmp_path, value):
    row = record([1, 2, 3], response_3=None)
    if value == "absent":
        del row["response_3"]
    rows = [record([1, 2], prompt="b?"), row]
    flaw = "1: column 'response_3' is missing (rows.jsonl:2)"
    data = load(tmp_path, rows, on_bad_row="skip")
    assert ([example.id for example in data.examples], data.bad_rows) == (["0"], (flaw,))
    for policy in ("keep", "error"):
        with pytest.raises(DataError, match="column 'response_3' is missing"):
            load(tmp_path, rows, on_bad_row=policy)


def test_a_limit_reads_what_it_needs(tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", [record([1, 2], prompt=p) for p in "ab"])
    path.write_text(path.read_text() + "{")
    data = BestOf100(path=str(path), limit=1).load()
    assert data.notes == ("only the first 2 rows were read: they fill the limit",)


def test_half_a_pair_is_an_error(tmp_path):
    row = record([1])
    del row["rewardbench_rejected"]
    with pytest.raises(DataError, match="'rewardbench_rejected' is missing"):
        load(tmp_path, [row])


def test_limit_counts_prompts_whatever_their_subset(tmp_path):
    rows = [record([1, 2], prompt=f"{i}?", subset=f"s{i}") for i in range(5)]
    assert [e.id for e in load(tmp_path, rows, limit=2).examples] == ["0", "1"]
    assert [e.id for e in load(tmp_path, rows, include=["s[34]"], limit=1).examples] == ["3"]


def test_recorded_rewards_are_part_of_the_data(tmp_path):
    one, other = (load(tmp_path, [record([1, reward])]) for reward in (2, 3))
    assert fingerprint(one.examples) != fingerprint(other.examples)


def test_bad_rows_are_counted(tmp_path):
    rows = [record([1, 2], response_1=" "), record([1, 2], prompt="b?")]
    assert load(tmp_path, rows).bad_rows == ("0: empty response (rows.jsonl:1)",)
    assert len(load(tmp_path, rows, on_bad_row="skip").examples) == 1


def test_the_metrics_by_hand():
    """Three responses; the second prompt is ranked the wrong way round.

    First prompt: recorded 0, 1, 5 by ascending reward. n = 1: 2; n = 2: (1 + 5 + 5) / 3; n = 3: 5.
    Second: recorded 3, 2, 1. n = 1: 2; n = 2: (2 + 1 + 1) / 3; n = 3: 1.
    Below RewardBench's chosen, rewarded 0.5 and 9: 2/3 (with half of an equal one) and 1.
    """
    rows = [
        scored("0", [0.0, 0.5, 1.0], [0, 1, 5], pair=(0.5, -1.0)),
        scored("1", [1.0, 2.0, 3.0], [3, 2, 1], pair=(9.0, 2.5)),
    ]
    found = values(BENCH, rows)
    assert found == pytest.approx(
        {
            "bon100/spearman": 0.0,
            "bon100/kendall": 0.0,
            "bon100/best_of/1": 2.0,
            "bon100/best_of/2": (11 / 3 + 4 / 3) / 2,
            "bon100/best_of/3": 3.0,
            "bon100/share_below/chosen": (1.5 / 3 + 1) / 2,
            "bon100/share_below/rejected": (0 + 2 / 3) / 2,
        }
    )
    assert [e.value for e in curve(BENCH, rows, "highest")] == pytest.approx(
        [2.0, (11 / 3 + 8 / 3) / 2, 4.0]
    )
    check_pure(BENCH, rows)


def test_agreement_is_scipys():
    rng = np.random.default_rng(3)
    recorded = rng.normal(size=(4, 30)).tolist()
    rewards = rng.integers(0, 8, size=(4, 30)).astype(float).tolist()
    rows = [scored(str(i), rewards[i], recorded[i]) for i in range(4)]
    found = values(BENCH, rows)
    spearman = [stats.spearmanr(rewards[i], recorded[i]).statistic for i in range(4)]
    kendall = [stats.kendalltau(rewards[i], recorded[i]).statistic for i in range(4)]
    assert found["bon100/spearman"] == pytest.approx(np.mean(spearman))
    assert found["bon100/kendall"] == pytest.approx(np.mean(kendall))
    expected = np.mean([expected_best(rewards[i], recorded[i])[15] for i in range(4)])
    assert found["bon100/best_of/16"] == pytest.approx(expected)


def test_where_the_agreement_is_undefined():
    """Constant recorded rewards, and a constant reward model: left out and named, never 0."""
    rows = [
        scored("a", [1.0, 2.0], [1, 2]),
        scored("b", [1.0, 2.0], [3, 3]),
        scored("c", [4.0, 4.0], [1, 2]),
    ]
    metrics = {metric.name: metric for metric in BENCH.metrics(rows)}
    assert metrics["bon100/spearman"].undefined == ("b", "c")
    assert metrics["bon100/kendall"].undefined == ("b", "c")
    found = estimate(BENCH, rows)
    assert found["bon100/spearman"].value == pytest.approx(1)
    assert found["bon100/spearman"].n == 1
    assert found["bon100/best_of/2"].n == 3
    alone = estimate(BENCH, rows[1:])
    assert "bon100/spearman" not in alone
    assert alone["bon100/best_of/1"].value == pytest.approx((3 + 1.5) / 2)


def test_a_constant_reward_model_is_worth_nothing():
    rows = [scored(str(i), [0.0] * 8, range(i, i + 8), pair=(0.0, 0.0)) for i in range(3)]
    found = values(BENCH, rows)
    assert [found[f"bon100/best_of/{n}"] for n in (1, 2, 4, 8)] == pytest.approx([4.5] * 4)
    assert found["bon100/share_below/chosen"] == found["bon100/share_below/rejected"] == 0.5
    assert "bon100/spearman" not in found


def test_the_recorded_model_itself_reaches_the_highest():
    rng = np.random.default_rng(4)
    rows = [scored(str(i), *[rng.normal(size=20).tolist()] * 2) for i in range(5)]
    found = values(BENCH, rows)
    assert found["bon100/spearman"] == found["bon100/kendall"] == pytest.approx(1)
    own, highest = curve(BENCH, rows, "selected"), curve(BENCH, rows, "highest")
    assert [e.value for e in own] == pytest.approx([e.value for e in highest])
    assert [e.at for e in own] == list(range(1, 21))


def test_rewards_that_are_not_finite_rank_last():
    rows = [scored("0", [NAN, 1.0, NAN], [5, 1, 3], pair=(NAN, 0.0))]
    assert ranked(rows[0]) == (-math.inf, 1.0, -math.inf)
    found = values(BENCH, rows)
    assert found["bon100/best_of/3"] == 1
    assert found["bon100/share_below/chosen"] == pytest.approx(1 / 3)
    assert found["bon100/share_below/rejected"] == pytest.approx(2 / 3)


def test_the_curve_has_the_metrics_intervals():
    rng = np.random.default_rng(5)
    rows = [scored(str(i), rng.normal(size=9), rng.normal(size=9).tolist()) for i in range(30)]
    found = intervals(BENCH.metrics(rows), rows, np.random.default_rng(0), 200)
    by_name = {e.name: e for e in found}
    for n in (1, 2, 4, 8, 9):
        metric, point = (
            by_name[f"bon100/{of}/{n}"] for of in ("best_of", "recorded_reward/selected")
        )
        assert (metric.value, metric.low, metric.high) == (point.value, point.low, point.high)
        assert (metric.at, point.at) == (None, n)
    assert BENCH.metrics([]) == []


def test_the_hub(monkeypatch):
    asked = []

    def rows(name, split, revision):
        asked.append((name, split, revision))
        return [Row(record([1, 2]), "", "row 0")]

    monkeypatch.setattr("rmexp.data.selection.hub_rows", rows)
    assert len(BestOf100(revision="v1").load().examples) == 1
    assert asked == [("andrewsiah/rewarded-Mistral-RM-for-RAFT-GSHF-v0", "train", "v1")]


def test_options_are_checked_before_anything_is_read():
    with pytest.raises(DataError, match="/no/where does not exist"):
        BestOf100(path="/no/where")
    with pytest.raises(ConfigError, match=r"bench\.limit"):
        BestOf100(limit=0)
