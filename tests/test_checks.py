import numpy as np
import pytest
from scored_rows import reward_all, write_lines

from rmexp.benchmarks.preference import Preference
from rmexp.data.rewrites import REWRITES, rewritten, without_markdown
from rmexp.errors import ConfigError, DataError
from rmexp.evaluation.checks import Checks, check_options, overlap_estimates, rewrite_estimates
from rmexp.schema import Example, Message
from rmexp.scoring.score import Scoring, Settings


@pytest.fixture
def bench(tmp_path):
    """Forty pairs, the chosen response being longer by its Markdown alone in half of them."""
    rows = [
        {
            "prompt": f"{i}?",
            "chosen": f"**yes {i}**" if i % 2 else f"yes {i}",
            "rejected": f"no {i}",
        }
        for i in range(40)
    ]
    return Preference(path=str(write_lines(tmp_path / "pairs" / "x.jsonl", rows)))


class Longer:
    """A reward model that likes bold words, else nothing."""

    name = description = "bold"

    def __init__(self, method="scalar"):
        self.method = method

    def traits(self):
        return {"method": self.method}

    def score(self, data, settings):
        scored = reward_all(data, lambda _, text: float("**" in text))
        return Scoring(scored, {})


def generator():
    return np.random.default_rng(0)


def test_what_rewrites_change(bench):
    """Right on the twenty bold ones; without Markdown on none: -1/2. Others change nothing."""
    data, reward = bench.load(), Longer()
    before = reward.score(data, Settings()).scored
    found = {e.name: e for e in rewrite_estimates(reward, bench, data, before, Settings())}
    assert list(found) == [f"robustness/{name}" for name in ("white_space", "markdown", "closing")]
    assert found["robustness/markdown"].value == -0.5
    assert found["robustness/markdown"].low < -0.5 < found["robustness/markdown"].high
    assert found["robustness/white_space"].value == found["robustness/closing"].value == 0.0
    with pytest.raises(ConfigError, match="recorded rewards have none"):
        rewrite_estimates(Longer("recorded"), bench, data, before, Settings())


def test_the_headline_without_what_overlaps(bench, tmp_path):
    """Ten of the bold ones' prompts are trained on: clean is 10 right of 30."""
    data = bench.load()
    train = write_lines(tmp_path / "t.jsonl", [{"prompt": f"{2 * i + 1}"} for i in range(10)])
    scored = Longer().score(data, Settings()).scored
    found, note = overlap_estimates(bench, data, scored, [str(train)], generator)
    values = {each.name: each.value for each in found}
    assert values == pytest.approx(
        {"overlap/prompts": 1 / 4, "overlap/responses": 0.0, "overlap/clean": 1 / 3}
    )
    assert found[-1].n == 30
    assert note.startswith(f"10 of 40 examples overlap with {train}: 10 prompts")
    every = write_lines(tmp_path / "all.jsonl", [{"prompt": f"{i}"} for i in range(40)])
    found, _ = overlap_estimates(bench, data, scored, [str(every)], generator)
    assert "overlap/clean" not in {each.name for each in found}


def test_rewrites_keep_the_words():
    text = "# Title\n\n- **one** thing\n> said\n```\n# code\n- x\n```\n* two"
    plain = "Title\n\none thing\nsaid\n```\n# code\n- x\n```\ntwo"
    assert without_markdown(text) == plain
    assert without_markdown("2 * 3 ** 4 - 1 and snake_case") == "2 * 3 ** 4 - 1 and snake_case"
    example = Example("1", "s", (Message("user", "?"),), (text,), ("", "b"))
    for rewrite in REWRITES.values():
        after = rewritten(example, rewrite)
        assert (after.prompt, after.rejected[0]) == (example.prompt, "")
        assert after.chosen != example.chosen


def test_the_options(tmp_path):
    assert check_options(None, False) == Checks()
    assert check_options([str(tmp_path)], True) == Checks((str(tmp_path),), True)
    with pytest.raises(ConfigError, match=r"overlap\.train=x: give a list"):
        check_options("x", False)
    with pytest.raises(ConfigError, match="robustness=1: use true or false"):
        check_options([], 1)
    with pytest.raises(DataError, match="does not exist"):
        check_options([str(tmp_path / "no")], False)
