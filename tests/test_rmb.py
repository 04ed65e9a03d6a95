import math
import shutil
from collections import Counter

import numpy as np
import pytest
from scored_rows import check_pure, estimate, negate, reward_all, row, values, write_json

from rmexp.benchmarks.rmb import COUNTS, RMB, SCENARIOS
from rmexp.errors import DataError
from rmexp.schema import Example, Message
from rmexp.stats.intervals import intervals

BENCH = RMB()
DISCUSSION, S5 = "Helpfulness/Chat/Discussion", "Harmlessness/S5"


def turns(text):
    return [{"role": "user", "content": text, "language": "English"}]


def answer(text):
    return {"llm_name": "m", "answer": text}


def pair(uid, where=DISCUSSION, prompt=None, **changes):
    return {
        "pair_uid": uid,
        "conversation_input": turns(prompt or f"prompt {uid}"),
        "chosen": answer(f"good {uid}"),
        "reject": answer(f"bad {uid}"),
        "category_path": f"Pairwise_set/{where}",
    } | changes


def best_of_n(uid, where=DISCUSSION, **changes):
    return {
        "bon_uid": uid,
        "conversation_input": turns(f"prompt {uid}"),
        "bon_best": answer(f"good {uid}"),
        "loser_list": [answer(f"bad {uid}"), answer(f"worse {uid}")],
        "category_path": f"BoN_set/{where}",
    } | changes


@pytest.fixture
def parent(tmp_path):
    """The authors' repository with two scenarios, and a folder that is not data."""
    for where in (DISCUSSION, S5):
        start = {DISCUSSION: 10, S5: 20}[where]
        top = tmp_path / "RMB_dataset"
        write_json(
            top / f"Pairwise_set/{where}.json", [pair(str(start + i), where) for i in range(3)]
        )
        write_json(
            top / f"BoN_set/{where}.json", [best_of_n(str(start + i), where) for i in range(2)]
        )
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "result.json").write_text('{"accuracy": 1}')
    return tmp_path


def scored_set(kind, goal, name, outcomes):
    """Right: winner 2 over losers 0 and 1; wrong: 1 against 0 and 1, a tie with the second."""
    losers = [0.0, 1.0] if kind == "bon" else [1.0]
    return [
        row(f"{kind}/{goal}{name}{i}", f"{kind}/{goal}/{name}", [2.0 if right else 1.0], losers)
        for i, right in enumerate(outcomes)
    ]


def test_the_metrics_by_hand():
    """Micro-averages within a goal: Chat 2 of 3 and S-like categories apart.

    pairwise/Helpfulness: Discussion 1, 1, 0 and Casual Conversation 0, both of Chat, and
    Rewrite/Paraphrasing 1: Chat 2/4, goal 3/5 (the mean of the categories were 3/4, of the
    scenarios 5/9).
    pairwise/Harmlessness: S5 1, 0 and multi 1: 2/3. bon/Helpfulness: 1/2. bon/Harmlessness: 0/1.
    Overall = (3/5 + 2/3 + 1/2 + 0) / 4 = 53/120.
    """
    scored = [
        *scored_set("pairwise", "Helpfulness", "Chat/Discussion", [1, 1, 0]),
        *scored_set("pairwise", "Helpfulness", "Chat/Casual Conversation", [0]),
        *scored_set("pairwise", "Helpfulness", "Rewrite/Paraphrasing", [1]),
        *scored_set("pairwise", "Harmlessness", "S5", [1, 0]),
        *scored_set("pairwise", "Harmlessness", "multi", [1]),
        *scored_set("bon", "Helpfulness", "Closed QA/ContextBased", [1, 0]),
        *scored_set("bon", "Harmlessness", "S11", [0]),
    ]
    found = values(BENCH, scored)
    expected = {
        "rmb/pairwise/helpfulness": 3 / 5,
        "rmb/pairwise/harmlessness": 2 / 3,
        "rmb/bon/helpfulness": 1 / 2,
        "rmb/bon/harmlessness": 0,
        "rmb/overall": 53 / 120,
        "rmb/pairwise/helpfulness/chat": 2 / 4,
        "rmb/pairwise/helpfulness/chat/discussion": 2 / 3,
        "rmb/pairwise/helpfulness/chat/casual_conversation": 0,
        "rmb/pairwise/helpfulness/rewrite": 1,
        "rmb/pairwise/helpfulness/rewrite/paraphrasing": 1,
        "rmb/pairwise/harmlessness/s5": 1 / 2,  # category and scenario at once
        "rmb/pairwise/harmlessness/multi": 1,
        "rmb/bon/helpfulness/closed_qa": 1 / 2,
        "rmb/bon/helpfulness/closed_qa/contextbased": 1 / 2,
        "rmb/bon/harmlessness/s11": 0,
    }
    assert found == pytest.approx(expected)
    assert list(found)[:5] == list(expected)[:5]
    assert estimate(BENCH, scored)["rmb/overall"].n == 11


def test_a_missing_part_makes_the_overall_partial():
    scored = scored_set("pairwise", "Helpfulness", "Chat/Discussion", [1, 0])
    found = estimate(BENCH, scored)
    assert found["rmb/overall/partial"].missing == (
        "pairwise/Harmlessness",
        "bon/Helpfulness",
        "bon/Harmlessness",
    )
    assert found["rmb/overall/partial"].value == 1 / 2
    # Scenarios missing inside a part keep the name.
    assert found["rmb/pairwise/helpfulness"].missing == ()
    assert BENCH.metrics([]) == []


def test_properties(parent):
    dataset = RMB(path=str(parent)).load()
    for reward in (1.0, math.nan):
        found = values(BENCH, reward_all(dataset, lambda *_, reward=reward: reward))
        assert len(found) == 4 + 1 + 4 + 2
        assert set(found.values()) == {0.0}
    perfect = reward_all(dataset, lambda example, response: float(response.startswith("good")))
    assert set(values(BENCH, perfect).values()) == {1.0}
    assert set(values(BENCH, negate(perfect)).values()) == {0.0}
    check_pure(BENCH, perfect)
    one_tie = reward_all(dataset, lambda example, response: float(not response.startswith("bad")))
    found = values(BENCH, one_tie)
    assert found["rmb/pairwise/helpfulness"] == 1
    assert found["rmb/bon/helpfulness"] == 0  # the winner ties with "worse"


def test_swapping_a_pair_flips_it(parent):
    dataset = RMB(path=str(parent), include=["pairwise/*"]).load()
    scored = reward_all(dataset, lambda example, response: len(example.id) + int(response[-1]) % 2)
    scored = [
        row(r.id, r.subset, [r.chosen[0] + i % 2 - 0.5], r.rejected) for i, r in enumerate(scored)
    ]
    swapped = [row(r.id, r.subset, r.rejected, r.chosen) for r in scored]
    before, after = values(BENCH, scored), values(BENCH, swapped)
    assert 0 < before["rmb/pairwise/helpfulness"] < 1
    for name in before:
        assert before[name] + after[name] == pytest.approx(1)


def test_upstreams_rows_become_examples(parent):
    dataset = RMB(path=str(parent)).load()
    by_id = {example.id: example for example in dataset.examples}
    assert len(by_id) == 10
    assert by_id["pairwise/10"] == Example(
        "pairwise/10",
        "pairwise/Helpfulness/Chat/Discussion",
        (Message("user", "prompt 10"),),
        ("good 10",),
        ("bad 10",),
    )
    assert by_id["bon/21"] == Example(
        "bon/21",
        "bon/Harmlessness/S5",
        (Message("user", "prompt 21"),),
        ("good 21",),
        ("bad 21", "worse 21"),
    )


@pytest.mark.parametrize(
    ("below", "count"),
    [
        ("", 10),
        ("RMB_dataset", 10),
        ("RMB_dataset/Pairwise_set", 6),
        ("RMB_dataset/BoN_set/Helpfulness/Chat", 2),
        ("RMB_dataset/Pairwise_set/Harmlessness/S5.json", 3),
    ],
)
def test_any_folder_or_file_gives_the_same_examples(parent, below, count):
    whole = {example.id: example for example in RMB(path=str(parent)).load().examples}
    examples = RMB(path=str(parent / below)).load().examples
    assert len(examples) == count
    assert all(whole[example.id] == example for example in examples)


@pytest.mark.parametrize(
    ("include", "count"),
    [
        (["pairwise/*"], 6),
        (["pairwise/Helpfulness/*"], 3),
        (["*/Chat/*"], 5),
        (["S5"], 5),
        (["BoN_set/Harmlessness/S5.json"], 2),
        (["bon/Harmlessness/S5", "Pairwise_set/*/S5"], 5),
    ],
)
def test_include(parent, include, count):
    for path in (parent, parent / "RMB_dataset"):
        assert len(RMB(path=str(path), include=include).load().examples) == count


def test_limit_counts_the_prompts_of_each_set_of_a_goal(tmp_path):
    """Parts are {pairwise, BoN} x {goals}: two scenarios of helpfulness share one limit."""
    prompts = ["A", "A", "B", "C"]
    rows = [pair(str(i), "Helpfulness/Chat/Discussion", text) for i, text in enumerate(prompts)]
    write_json(tmp_path / "1.json", rows)
    write_json(tmp_path / "2.json", [pair("9", "Helpfulness/Rewrite/Paraphrasing"), pair("10", S5)])
    ids = [example.id for example in RMB(path=str(tmp_path), limit=2).load().examples]
    assert ids == ["pairwise/0", "pairwise/1", "pairwise/2", "pairwise/10"]


def test_what_is_missing_is_noted(parent):
    notes = RMB(path=str(parent), limit=1).load().notes
    assert notes[0].startswith("partial, pairwise/Helpfulness lacks Brainstorming/Idea Develop")
    assert "Chat/Discussion" not in notes[0]
    assert notes[1] == "partial, pairwise/Harmlessness lacks S1, S2, S3, S4, S6 and 6 more"
    assert set(notes[4:]) == {f"{part}: 1 of {count} examples" for part, count in COUNTS.items()}
    assert len(notes) == 8


def test_there_are_49_scenarios():
    assert [len(scenarios) for scenarios in SCENARIOS.values()] == [37, 12]
    assert len({scenario.split("/")[0] for scenario in SCENARIOS["Helpfulness"]}) == 12


def test_bad_rows(tmp_path):
    rows = [
        pair("0"),
        pair("1", conversation_input=[*turns(""), *turns("x")]),
        pair("2", reject=answer("\n \n")),
        pair("3", reject=answer("good 3")),
        best_of_n("4", loser_list=[answer("x"), answer("good 4")]),
    ]
    path = str(write_json(tmp_path / "x.json", rows))
    kept = RMB(path=path).load()
    assert len(kept.examples) == 5
    assert kept.bad_rows == (
        "pairwise/1: empty turn (x.json, row 1)",
        "pairwise/2: empty response (x.json, row 2)",
        "pairwise/3: identical chosen and rejected response (x.json, row 3)",
        "bon/4: identical chosen and rejected response (x.json, row 4)",
    )
    assert [e.id for e in RMB(path=path, on_bad_row="skip").load().examples] == ["pairwise/0"]
    with pytest.raises(DataError, match="4 bad rows, the first of them pairwise/1: empty turn"):
        RMB(path=path, on_bad_row="error").load()


def without(row, column):
    return {name: value for name, value in row.items() if name != column}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [pair("1"), pair("1")],
            "id pairwise/1 occurs twice, at x.json, row 0 and at x.json, row 1",
        ),
        ([without(pair("1"), "category_path")], "column 'category_path' is missing"),
        ([pair("1", category_path="Chat/Discussion")], "category_path 'Chat/Discussion' .*unknown"),
        ([pair("1", category_path="Pairwise_set/Fun/S1")], "category_path .*unknown.*download"),
        ([pair("1", category_path="BoN_set/Harmlessness/S1")], "column 'bon_best' is missing"),
        ([pair("1", category_path="BoN_set/Harmlessness")], "category_path .*unknown"),
        ([without(pair("1"), "reject")], "column 'reject' is missing at x.json, row 0"),
        ([pair("1", reject={"llm_name": "m"})], "'answer' is missing at x.json, row 0, 'reject'"),
        ([pair("1", chosen="text")], "column 'chosen' must hold an object"),
        ([best_of_n("1", loser_list=[])], "'loser_list' must hold a list of one or more objects"),
        (
            [pair("1", conversation_input=[])],
            "'conversation_input' must hold a list of one or more",
        ),
    ],
)
def test_rows_that_cannot_be_read(tmp_path, rows, message):
    path = write_json(tmp_path / "x.json", rows)
    with pytest.raises(DataError, match=message):
        RMB(path=str(path)).load()


def test_the_authors_repository(parent, tmp_path, monkeypatch):
    """Without a path, the repository is fetched at the pinned commit."""
    asked = []

    def folder(repository, commit):
        asked.append((repository, commit))
        return parent

    monkeypatch.setattr("rmexp.benchmarks.rmb.github_folder", folder)
    dataset = RMB().load()
    assert asked == [("Zhou-Zoey/RMB-Reward-Model-Benchmark", "2be3180")]
    assert len(dataset.examples) == 10
    assert dataset.source == "github Zhou-Zoey/RMB-Reward-Model-Benchmark@2be3180"


@pytest.fixture(scope="module")
def real(shared):
    return RMB(path=str(shared / "data" / "RMB_dataset")).load()


def test_the_real_files(real):
    parts = Counter("/".join(example.subset.split("/")[:2]) for example in real.examples)
    assert parts == {
        "pairwise/Helpfulness": 3421,
        "pairwise/Harmlessness": 1388,
        "bon/Helpfulness": 720,
        "bon/Harmlessness": 326,
    }
    reasons = Counter(
        (line.split("/")[0], line.split(": ")[1].split(" (")[0]) for line in real.bad_rows
    )
    assert reasons == {
        ("pairwise", "empty turn"): 5,
        ("pairwise", "empty response"): 2,
        ("pairwise", "identical chosen and rejected response"): 2,
        ("bon", "identical chosen and rejected response"): 1,
    }
    subsets = {example.subset for example in real.examples}
    assert len(subsets) == 40
    for subset in subsets:
        _, goal, scenario = subset.split("/", 2)
        assert scenario in SCENARIOS[goal]


def test_the_real_files_through_the_metrics(real):
    found = estimate(BENCH, reward_all(real, lambda example, response: len(response)))
    assert found["rmb/overall"].n == 5855
    assert 0.3 < found["rmb/overall"].value < 0.7
    assert found["rmb/pairwise/helpfulness/chat"].n == sum(
        example.subset.startswith("pairwise/Helpfulness/Chat/") for example in real.examples
    )


def test_a_copy_of_one_real_file_below_any_name(shared, tmp_path):
    """Goal and category come from the rows, not from where the file lies."""
    name = "Casual Conversation.json"
    source = shared / "data" / "RMB_dataset" / "BoN_set" / "Helpfulness" / "Chat" / name
    shutil.copy(source, tmp_path / "mine.json")
    subsets = {example.subset for example in RMB(path=str(tmp_path / "mine.json")).load().examples}
    assert subsets == {"bon/Helpfulness/Chat/Casual Conversation"}


def test_the_figure_has_a_bar_for_each_category(monkeypatch):
    from rmexp.stats import figures

    drawn = []
    monkeypatch.setattr(figures, "bars", lambda *args: drawn.append(args) or "figure")
    scored = scored_set("pairwise", "Helpfulness", "Chat/Discussion", [1, 0])
    scored += scored_set("bon", "Harmlessness", "S5", [1])
    by_name = {name.removesuffix("/partial"): e for name, e in estimate(BENCH, scored).items()}
    assert BENCH.figures(by_name, scored) == {"categories.png": "figure"}
    ((estimates,),) = drawn
    assert [one.name for one in estimates] == [
        "rmb/bon/harmlessness/s5",
        "rmb/pairwise/helpfulness/chat",
    ]
    losers = len(scored[-1].rejected)
    assert [one.chance for one in estimates] == [1 / (losers + 1), 0.5]
    assert by_name["rmb/overall"].chance == pytest.approx((1 / (losers + 1) + 0.5) / 2)
    assert BENCH.figures({}, []) == {}


def test_the_winner_rates_by_hand():
    """Lists of three and four: the winner is above 2 of 2, and above 2 of 3.

    n = 2: (1 + 2/3) / 2; n = 3: (1 + 1/3) / 2, since one of three pairs of losers is below it; no
    n = 4, which one of the lists does not have.
    """
    lists = [
        row("bon/a", "bon/Helpfulness/Chat/Discussion", [2.0], [0.0, 1.0]),
        row("bon/b", "bon/Helpfulness/Chat/Discussion", [2.0], [0.0, 2.0, 1.0]),
        row("bon/c", "bon/Harmlessness/S5", [0.0], [1.0]),
    ]
    pair = row("pairwise/d", "pairwise/Helpfulness/Chat/Discussion", [1.0], [0.0])
    found = intervals(BENCH.metrics([*lists, pair]), [*lists, pair], np.random.default_rng(0), 20)
    curve = {e.name: (e.at, e.value, e.n) for e in found if e.at is not None}
    assert curve == {
        "rmb/winner_rate/helpfulness/2": (2, pytest.approx(5 / 6), 2),
        "rmb/winner_rate/helpfulness/3": (3, pytest.approx(2 / 3), 2),
        "rmb/winner_rate/harmlessness/2": (2, 0.0, 1),
    }
