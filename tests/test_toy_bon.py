"""Best of n on a model's own samples: the prompts are held out, the judge is a program."""

import pytest

from rmexp.benchmarks import toy_bon
from rmexp.benchmarks.toy import Toy
from rmexp.benchmarks.toy_bon import ToyBestOfN, sample
from rmexp.data import toy
from rmexp.errors import ConfigError
from rmexp.schema import scored_example


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """Let a stand-in answer, every other time right; return what it was asked for."""
    seen = []

    def answer(folder, prompts, count, temperature, seed):
        seen.append((len(prompts), count, temperature, seed))
        return [
            [toy.solve(text) if i % 2 == 0 else "I do not know." for i in range(count)]
            for text in prompts
        ]

    monkeypatch.setattr(toy_bon, "sample", answer)
    monkeypatch.setattr(toy_bon, "smollm2", lambda: tmp_path)
    monkeypatch.setattr(toy_bon, "make_cache", lambda: tmp_path)
    return seen


def test_responses_are_judged_and_sampled_once(asked, tmp_path):
    for _ in range(2):
        data = ToyBestOfN(prompts=3, responses=4).load()
        assert [example.recorded for example in data.examples] == [(1.0, 0.0, 1.0, 0.0)] * 12
    assert asked == [(12, 4, 0.7, 0)]
    ToyBestOfN(prompts=3, responses=4, seed=1).load()
    ToyBestOfN(prompts=3, responses=4, domains=["math"]).load()
    assert asked[1:] == [(12, 4, 0.7, 1), (3, 4, 0.7, 0)]
    assert len(list(tmp_path.glob("*.jsonl"))) == 3


def test_a_limit_in_the_toy_benchmark_keeps_the_prompts_apart(asked):
    held_out = {example.prompt for example in ToyBestOfN().load().examples}
    evaluated = {example.prompt for example in Toy(limit=40).load().examples}
    assert len(held_out) == 40
    assert not held_out & evaluated
    assert held_out < {example.prompt for example in Toy().load().examples}


def test_the_policy_is_as_good_as_its_reward_model(asked):
    bench = ToyBestOfN(prompts=2, responses=4)
    examples = bench.load().examples

    def best_of(n, rewards):
        scored = [scored_example(e, rewards[: len(e.chosen)], rewards) for e in examples]
        found = {metric.name: metric for metric in bench.metrics(scored)}
        outcomes = found[f"toy_bon/best_of/{n}"].outcomes
        return sum(outcomes) / len(outcomes)

    assert best_of(1, [0.0, 1.0, 2.0, 3.0]) == 0.5
    assert best_of(4, [3.0, 0.0, 2.0, 1.0]) == 1.0
    assert best_of(4, [0.0, 3.0, 1.0, 2.0]) == 0.0
    assert best_of(4, [0.0] * 4) == 0.5


def test_samples_of_a_model_are_those_of_their_seed(tmp_path):
    from tiny import tiny_policy

    folder = tiny_policy(tmp_path / "model")
    first, again = (sample(folder, ["A?", "B?"], 3, 1.0, 0) for _ in range(2))
    assert first == again
    assert [len(answers) for answers in first] == [3, 3]
    assert sample(folder, ["A?", "B?"], 3, 1.0, 1) != first


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": 0}, r"bench\.prompts=0"),
        ({"prompts": 51}, "from 1 to 50"),
        ({"responses": True}, r"bench\.responses"),
        ({"temperature": 0}, r"bench\.temperature"),
        ({"domains": "math"}, r"bench\.domains"),
        ({"domains": ["maths"]}, "reading, math, code, lists"),
    ],
)
def test_options_that_cannot_work(options, message):
    with pytest.raises(ConfigError, match=message):
        ToyBestOfN(**options)
