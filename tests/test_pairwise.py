"""Pairwise preference models: random weights, and margins that are made up."""

from pathlib import Path

import pytest
import torch
from tiny import tiny_encoder, tiny_policy, tiny_scalar
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rmexp.errors import ConfigError
from rmexp.judges.pairwise import PairwiseJudge, open_pairwise
from rmexp.judges.verdicts import Pair, Tally, judge_examples
from rmexp.schema import Dataset, Example, Message, ScoredExample
from rmexp.scoring.model_reward import ModelReward
from rmexp.scoring.score import Scoring, Settings

TEMPLATE = (
    "<s>{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{{ message['content'] }}{% if not loop.last %}<|im_end|>{% endif %}{% endfor %}"
)
QUESTION = "What is 17 + 25?"
PROMPT = (Message("user", QUESTION),)
DATA = Dataset(
    (
        Example("1", "a", PROMPT, ("The answer is 42.",), ("The answer is 41.",)),
        Example("2", "a", PROMPT, ("42, because", "42"), ("41", "The answer is 41.", "")),
        Example("3", "b", (Message("user", "Who?"),), ("three",), ("three",)),
    ),
    "here",
)


def text(*turns: str) -> str:
    """The text of a pair's turns: the prompt, A and B, and of a language model its answer."""
    roles = ("user", "response_a", *(["response_b"] if len(turns) == 4 else []), "assistant")
    said = [f"<|im_start|>{role}\n{turn}" for role, turn in zip(roles, turns, strict=True)]
    return "<s>" + "<|im_end|>".join(said)


def open_tiny(folder: Path, **settings: object) -> PairwiseJudge:
    given = {"chat_template": TEMPLATE, "device": "cpu", "dtype": "float32"} | settings
    return open_pairwise(path=str(folder), **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [tiny_scalar, tiny_encoder])
def test_a_classifiers_margin_is_its_output_for_the_pair(kind, tmp_path):
    folder = kind(tmp_path / "model")
    judge = open_tiny(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = judge.reward.chat.tokenizer
    tally = Tally()
    settings = Settings(tmp_path / "store")
    (verdict,) = judge.compare([Pair(PROMPT, "forty-two", "43")], settings, tally)
    margins = []
    for a, b in (("forty-two", "43"), ("43", "forty-two")):
        ids = tokenizer(text(QUESTION, a, b), add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            margins.append(model(torch.tensor([ids])).logits.item())
    assert verdict is not None
    assert [said[0] for said in verdict.said] == pytest.approx(margins, abs=1e-4)
    assert verdict.share == float(margins[0] > margins[1])
    assert verdict.consistent == ((margins[0] > 0) != (margins[1] > 0))
    assert verdict.unparsed is None
    assert tally.counts["tokens"] > 0
    assert tally.first_example is not None
    assert "<|im_start|>response_a\nforty-two<|im_end|>" in tally.first_example


def test_a_language_models_margin_is_that_of_its_two_words(tmp_path):
    folder = tiny_policy(tmp_path / "model")
    judge = open_tiny(folder, labels=["A", "B"])
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = judge.reward.chat.tokenizer
    settings = Settings(tmp_path / "store")
    (verdict,) = judge.compare([Pair(PROMPT, "forty-two", "43")], settings, Tally())
    margins = []
    a_or_b = [tokenizer.convert_tokens_to_ids(word) for word in "AB"]
    for a, b in (("forty-two", "43"), ("43", "forty-two")):
        ids = tokenizer(text(QUESTION, a, b, ""), add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            logits = model(torch.tensor([ids])).logits[0, -1, a_or_b]
        margins.append(float(logits[0] - logits[1]))
    assert verdict is not None
    assert [said[0] for said in verdict.said] == pytest.approx(margins, abs=1e-4)
    # The mean of both orders' probabilities that the chosen response is better.
    first, second = (torch.tensor(margin).sigmoid() for margin in margins)
    assert verdict.share == float((first + 1 - second) / 2 > 0.5)


@pytest.mark.parametrize(
    ("first", "second", "share", "consistent"),
    [
        (2.0, -1.0, 1.0, True),
        (-2.0, 1.0, 0.0, True),
        (2.0, 1.0, 1.0, False),  # surer of the chosen response
        (1.0, 2.0, 0.0, False),
        (1.0, 1.0, 0.5, False),  # always A, and as sure of it
        (0.0, 0.0, 0.5, None),
        (0.0, -1.0, 1.0, None),
    ],
)
def test_the_higher_sum_of_margins_wins(first, second, share, consistent, tmp_path, monkeypatch):
    """`first` is the margin of A with the chosen response as A, `second` with it as B."""
    margins = {"good": first, "bad": second}  # by what stands first

    def score(reward: object, data: Dataset, settings: Settings) -> Scoring:
        examples = data.examples
        rewards = [margins[example.prompt[-1].content] for example in examples]
        rows = [
            ScoredExample(example.id, "", "", (reward,), ())
            for example, reward in zip(examples, rewards, strict=True)
        ]
        return Scoring(rows, {})

    monkeypatch.setattr(ModelReward, "score", score)
    judge = open_tiny(tiny_scalar(tmp_path / "model"))
    found = judge.compare([Pair(PROMPT, "good", "bad")], Settings(tmp_path / "store"), Tally())
    (verdict,) = found
    assert verdict is not None
    assert (verdict.share, verdict.consistent) == (share, consistent)


def test_swapping_chosen_and_rejected_turns_every_verdict_round(tmp_path):
    judge = open_tiny(tiny_scalar(tmp_path / "model"))
    settings = Settings(tmp_path / "store")
    judging = judge_examples(judge, DATA, settings)
    swapped = Dataset(
        tuple(Example(e.id, e.subset, e.prompt, e.rejected, e.chosen) for e in DATA.examples), ""
    )
    again = judge_examples(judge, swapped, settings)
    assert judging.counts["tokens"] > 0
    assert again.counts["tokens"] == 0  # the same texts: nothing new
    for row, turned in zip(judging.scored, again.scored, strict=True):
        assert row.verdicts is not None
        expected = tuple(
            tuple(1 - share for share in side) for side in zip(*row.verdicts, strict=True)
        )
        assert turned.verdicts == expected
        assert turned.chosen == pytest.approx(row.rejected)
    assert judging.scored[2].verdicts == ((0.5,),)
    assert judging.counts["comparisons"] == 1 + 6 + 1
    assert [metric.name for metric in judging.metrics] == ["judge/position_consistency"]


def test_pairs_that_are_too_long_are_dropped_with_their_example(tmp_path):
    judge = open_tiny(tiny_scalar(tmp_path / "model"), max_length=120)
    long = Example("long", "a", PROMPT, ("word " * 100,), ("b",))
    data = Dataset((*DATA.examples, long), "here")
    settings = Settings(tmp_path / "store", on_overlength="drop")
    judging = judge_examples(judge, data, settings)
    assert [row.id for row in judging.scored] == ["1", "2", "3"]
    assert judging.counts["dropped_examples"] == 1
    assert judging.counts["dropped"] == 2


def test_it_rates_nothing(tmp_path):
    judge = open_tiny(tiny_scalar(tmp_path / "model"))
    data = Dataset(DATA.examples, "here", rated=frozenset({"b"}))
    with pytest.raises(ConfigError, match="compares two responses and rates none"):
        judge_examples(judge, data, Settings(tmp_path / "store"))


def test_settings_that_cannot_work(tmp_path):
    folder = tiny_policy(tmp_path / "model")
    for labels in ("AB", ["A"], ["A", "B", "C"]):
        with pytest.raises(ConfigError, match=r"give two, \[A,B\]"):
            open_tiny(folder, labels=labels)


def test_a_template_in_which_the_label_changes_the_pair_is_refused_at_once(tmp_path):
    folder = tiny_policy(tmp_path / "model")
    changing = "{% if messages[-1]['content'] == 'A' %}Hm. {% endif %}" + TEMPLATE
    with pytest.raises(ConfigError, match=r"another pair before A than before B: give another one"):
        open_tiny(folder, labels=["A", "B"], chat_template=changing)


def test_it_says_how_it_judges(tmp_path):
    assert open_tiny(tiny_scalar(tmp_path / "a")).description == "pairwise, head, both orders"
    policy = open_tiny(tiny_policy(tmp_path / "b"), labels=["A", "B"])
    assert policy.description == "pairwise, A or B as next tokens, both orders"
    assert set(policy.fingerprints(tmp_path)) == {"rmexp.weights", "rmexp.reading"}
