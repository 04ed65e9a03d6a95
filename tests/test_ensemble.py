import math

import numpy as np
import pytest
from scored_rows import score, write_lines

from rmexp.errors import ConfigError, ScoreError
from rmexp.schema import Example, Message
from rmexp.scoring.ensemble import EnsembleReward
from rmexp.scoring.recorded import RecordedReward
from rmexp.scoring.score import Settings

EXAMPLES = [
    Example(id, "s", (Message("user", id),), ("good",), ("bad", "worse")) for id in ("1", "2")
]


def recorded(tmp_path, name, **rewards):
    rows = [{"id": id[1:], "chosen": of[:1], "rejected": of[1:]} for id, of in rewards.items()]
    return RecordedReward(str(write_lines(tmp_path / f"{name}.jsonl", rows)), name)


def joined(members, rule, examples=EXAMPLES):
    scored = score(EnsembleReward(members, rule), examples, Settings(max_non_finite=9)).scored
    return {row.id: row.chosen + row.rejected for row in scored}


@pytest.fixture
def members(tmp_path):
    """Of six rewards each: mean 0 and spread 1, and mean 100 and spread 10."""
    first = recorded(tmp_path, "first", _1=[1, -1, 1], _2=[-1, 1, -1])
    second = recorded(tmp_path, "second", _1=[90, 90, 110], _2=[110, 110, 90])
    return first, second


def test_the_rules_by_hand(members):
    """z-scores 1 -1 1 | -1 1 -1, and -1 -1 1 | 1 1 -1.

    Ranks of three: (1/2 + 1) / 2 = 3/4 for two that share the highest, 1/4 for the lowest.
    """
    assert joined(members, "mean") == {"1": (0, -1, 1), "2": (0, 1, -1)}
    assert joined(members, "min") == {"1": (-1, -1, 1), "2": (-1, 1, -1)}
    first, second = (3 / 4, 0, 3 / 4), (1 / 4, 1 / 4, 1)
    third, fourth = (1 / 4, 1, 1 / 4), (3 / 4, 3 / 4, 0)
    assert joined(members, "rank") == {
        "1": tuple(np.mean([first, second], axis=0)),
        "2": tuple(np.mean([third, fourth], axis=0)),
    }


def test_units_do_not_matter(members, tmp_path):
    scaled = recorded(tmp_path, "scaled", _1=[1e4, 0, 1e4], _2=[0, 1e4, 0])
    for rule in ("mean", "min", "rank"):
        assert joined([scaled, members[1]], rule) == joined(members, rule)


def test_what_a_member_has_not(tmp_path, members):
    lost = recorded(tmp_path, "lost", _1=[None, 1, 2], _2=[3, 1, 2])
    for rule in ("mean", "min", "rank"):
        found = joined([lost, members[0]], rule)
        assert math.isnan(found["1"][0])
        assert not any(map(math.isnan, found["1"][1:] + found["2"]))
    flat = recorded(tmp_path, "flat", _1=[5, 5, 5], _2=[5, 5, 5])
    assert joined([flat, members[0]], "mean")["1"] == (0.5, -0.5, 0.5)
    with pytest.raises(ScoreError, match="lacks 1 of 2 examples"):
        joined([recorded(tmp_path, "few", _1=[1, 2, 3]), members[0]], "mean")


def test_what_an_ensemble_is(members, tmp_path):
    of = EnsembleReward(members, "min", "both")
    assert of.description == "min of first (recorded), second (recorded)"
    prints = {EnsembleReward(members, rule).fingerprints(tmp_path)["rmexp.weights"] for rule in
              ("mean", "min")}  # fmt: skip
    assert len(prints) == 2
    assert of.traits()["method"] == "ensemble"
    with pytest.raises(ConfigError, match="use one of mean, min, rank"):
        EnsembleReward(members, "max")
    with pytest.raises(ConfigError, match="give two or more"):
        EnsembleReward(members[:1])


def test_a_judge_is_no_member(members):
    class Judge:
        name, description = "j", "judge"

        def traits(self):
            return {"method": "judge"}

    with pytest.raises(ConfigError, match="j is a judge and gives no rewards"):
        EnsembleReward([members[0], Judge()])
