"""A local chat model as a judge's engine: random weights, against one token at a time by hand."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import END, tiny_policy
from transformers import AutoModelForCausalLM

from rmexp.errors import ConfigError
from rmexp.judges.engine import TOO_LONG, Answer, Question, Sampling
from rmexp.judges.generation import generate, load_generator
from rmexp.judges.llm import open_judge
from rmexp.judges.local import Local, open_local
from rmexp.judges.verdicts import judge_examples
from rmexp.schema import Dataset, Example, Message
from rmexp.scoring.score import Settings

GREEDY = Sampling(0.0, 1.0, 12, None)
DRAWN = Sampling(1.0, 1.0, 12, 0)
TEXTS = ("Who came first?", "What is 17 + 25, and why is that so? Say it slowly.", "One")
LOCAL = {"device": "cpu", "dtype": "float32"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_policy(tmp_path_factory.mktemp("model"))


def answers(
    engine: Local, questions: Sequence[Question], sampling: Sampling, settings: Settings
) -> dict[Question, Answer]:
    made: dict[Question, Answer] = {}
    engine.answer(questions, sampling, settings, lambda some: made.update(some))
    return made


def greedy_by_hand(
    model: Any, ids: list[int], stops: set[int], count: int
) -> tuple[list[int], str]:
    """The likeliest next token, again and again, each from the whole text without a cache."""
    made: list[int] = []
    for _ in range(count):
        with torch.inference_mode():
            logits = model(torch.tensor([ids + made]), use_cache=False).logits[0, -1]
        token = int(logits.argmax())
        if token in stops:
            return made, "stop"
        made.append(token)
    return made, "length"


@pytest.mark.parametrize("batch_tokens", [1, 100, 4096])
def test_greedy_answers_are_the_likeliest_tokens_whatever_the_batch(folder, tmp_path, batch_tokens):
    engine = open_local(str(folder), GREEDY, **LOCAL)
    questions = [Question(text, 0) for text in TEXTS]
    made = answers(engine, questions, GREEDY, Settings(tmp_path, batch_tokens=batch_tokens))
    tokenizer = engine.policy.chat.tokenizer
    model = AutoModelForCausalLM.from_pretrained(folder)
    stops = {tokenizer.eos_token_id}
    for question in questions:
        text = f"<s><|im_start|>user\n{question.text}<|im_end|>\n<|im_start|>assistant\n"
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        expected, ended = greedy_by_hand(model, ids, stops, 12)
        answer = made[question]
        assert answer.text == tokenizer.decode(expected, skip_special_tokens=True)
        assert answer.prompt_tokens == len(ids)
        assert answer.completion_tokens == len(expected) + (ended == "stop")
        assert answer.ended == ended


def test_an_answer_ends_at_any_of_the_models_stops(folder):
    """The stops of generation_config.json: here the third token that comes anyway."""
    engine = open_local(str(folder), GREEDY, **LOCAL)
    tokenizer = engine.policy.chat.tokenizer
    model = load_generator(engine.policy.columns[0])
    ids = tokenizer("<s>One", add_special_tokens=False)["input_ids"]
    whole, _ = greedy_by_hand(model, ids, set(), 12)
    third = whole[2]
    model.generation_config.eos_token_id = [tokenizer.convert_tokens_to_ids(END), third]
    (answer,) = generate(model, tokenizer, [ids], GREEDY, seed=0)
    at = whole.index(third)
    assert answer.ended == "stop"
    assert answer.completion_tokens == at + 1
    assert answer.text == tokenizer.decode(whole[:at], skip_special_tokens=True)


def test_draws_follow_from_the_seed_and_the_sample(folder, tmp_path):
    engine = open_local(str(folder), DRAWN, **LOCAL)
    questions = [Question(TEXTS[0], sample) for sample in range(3)]
    state = torch.random.get_rng_state()
    first = answers(engine, questions, DRAWN, Settings(tmp_path))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert answers(engine, questions, DRAWN, Settings(tmp_path)) == first
    assert len({answer.text for answer in first.values()}) == 3
    other = answers(engine, questions, Sampling(1.0, 1.0, 12, 1), Settings(tmp_path))
    assert other != first


def test_a_low_temperature_or_a_small_top_p_is_greedy(folder, tmp_path):
    settings, questions = Settings(tmp_path), [Question(text, 0) for text in TEXTS]
    engine = open_local(str(folder), GREEDY, **LOCAL)
    greedy = answers(engine, questions, GREEDY, settings)
    assert answers(engine, questions, Sampling(1e-4, 1.0, 12, 0), settings) == greedy
    assert answers(engine, questions, Sampling(1.0, 1e-6, 12, 0), settings) == greedy


def test_the_models_own_settings_of_sampling_are_left_out(folder, tmp_path):
    """A top_k of 1 in generation_config.json would make every draw the likeliest token."""
    engine = open_local(str(folder), DRAWN, **LOCAL)
    questions = [Question(TEXTS[0], 0)]
    drawn = answers(engine, questions, DRAWN, Settings(tmp_path))
    own = tiny_policy(tmp_path / "own")
    (own / "generation_config.json").write_text(
        '{"top_k": 1, "do_sample": true, "repetition_penalty": 9.0, "eos_token_id": 1}'
    )
    engine = open_local(str(own), DRAWN, **LOCAL)
    assert answers(engine, questions, DRAWN, Settings(tmp_path)) == drawn


def test_a_question_that_leaves_no_room_for_an_answer_is_too_long(folder, tmp_path):
    length = 40
    engine = open_local(str(folder), GREEDY, max_length=length, **LOCAL)
    made = answers(engine, [Question(text, 0) for text in TEXTS], GREEDY, Settings(tmp_path))
    ended = {question.text: answer.ended for question, answer in made.items()}
    assert ended[TEXTS[1]] == TOO_LONG
    assert ended[TEXTS[2]] != TOO_LONG


def test_only_an_endpoint_fills_what_is_left_open(folder):
    for sampling in (Sampling(None, 1.0, 1, 0), Sampling(0, None, 1, 0), Sampling(0, 1.0, None, 0)):
        with pytest.raises(ConfigError, match="which only an endpoint can fill"):
            open_local(str(folder), sampling, **LOCAL)


def judge(folder: Path, **settings: Any) -> Any:
    given = {"prompt": "brief", "max_tokens": 8, "endpoint": {}, "local": LOCAL} | settings
    return open_judge(path=str(folder), **given)


def test_a_run_that_was_killed_ends_with_the_same_answers(folder, tmp_path, monkeypatch):
    """Draws too: a batch's seed follows from the batch, and the same batches are left."""
    data = Dataset(
        tuple(
            Example(str(i), "", (Message("user", f"{i} " * i),), ("yes",), ("no",))
            for i in range(1, 6)
        ),
        "here",
    )
    settings = {"temperature": 1.0, "samples": 2}
    whole = judge_examples(
        judge(folder, **settings), data, Settings(tmp_path / "whole", batch_tokens=700)
    )
    kill_after(2, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        judge_examples(
            judge(folder, **settings), data, Settings(tmp_path / "cut", batch_tokens=700)
        )
    monkeypatch.undo()
    resumed = judge_examples(
        judge(folder, **settings), data, Settings(tmp_path / "cut", batch_tokens=700)
    )
    assert 0 < resumed.counts["cached"] < resumed.counts["answers"] == 20
    assert resumed.lines == whole.lines


def kill_after(batches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from rmexp.judges import generation

    original: Callable[..., list[Answer]] = generation.generate
    made = []

    def stop(*arguments: Any) -> list[Answer]:
        if len(made) == batches:
            raise KeyboardInterrupt
        made.append(1)
        return original(*arguments)

    monkeypatch.setattr(generation, "generate", stop)


def test_the_identity_knows_weights_and_template(folder, tmp_path):
    plain = judge(folder).fingerprints(tmp_path)
    assert judge(folder).fingerprints(tmp_path) == plain
    other = judge(tiny_policy(tmp_path / "other", seed=1)).fingerprints(tmp_path)
    template = "{{ messages[0]['content'] }}"
    own = judge(folder, local=LOCAL | {"chat_template": template}).fingerprints(tmp_path)
    asked = judge(folder, criteria="correctness").fingerprints(tmp_path)
    assert len({each["rmexp.weights"] for each in (plain, other, own, asked)}) == 3
    assert len({each["rmexp.prompts"] for each in (plain, other, own, asked)}) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"unparsed": "ignore"}, r"model\.unparsed=ignore: use one of half, wrong"),
        ({"samples": 0}, r"model\.samples=0"),
        ({"samples": 3}, r"model\.samples=3 at model\.temperature=0"),
        ({"max_tokens": 0}, r"model\.max_tokens=0"),
        ({"temperature": -1.0}, r"model\.temperature=-1"),
        ({"prompt": "nope"}, r"model\.prompt=nope"),
    ],
)
def test_settings_that_cannot_work(folder, settings, message):
    with pytest.raises(ConfigError, match=message):
        judge(folder, **settings)


@pytest.mark.parametrize(
    ("settings", "description"),
    [
        ({}, "judge, brief prompt, both orders, greedy, unparsed half a point"),
        (
            {"temperature": 0.7, "samples": 3, "unparsed": "wrong", "pointwise": True},
            "judge, brief prompt, rates each response, 3 samples, unparsed wrong",
        ),
    ],
)
def test_it_says_how_it_judges(folder, settings, description):
    assert judge(folder, **settings).description == description
