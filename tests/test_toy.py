import os
import random
import re
import subprocess
import sys
from collections import Counter, deque
from itertools import islice

import numpy as np
import pytest

from rmexp.benchmarks import styles
from rmexp.benchmarks.toy import Toy
from rmexp.data import toy
from rmexp.errors import ConfigError, DataError
from rmexp.schema import Example, ScoredExample, fingerprint, prompt_key
from rmexp.stats.intervals import intervals


@pytest.fixture(scope="module")
def examples() -> tuple[Example, ...]:
    return Toy().load().examples


def question(example: Example) -> str:
    return example.prompt[-1].content


def scored(examples, reward):
    return [
        ScoredExample(
            example.id,
            example.subset,
            prompt_key(example.prompt),
            tuple(reward(example, response) for response in example.chosen),
            tuple(reward(example, response) for response in example.rejected),
        )
        for example in examples
    ]


def values(bench, rows):
    metrics = bench.metrics(rows)
    return {e.name: e for e in intervals(metrics, rows, np.random.default_rng(0), samples=20)}


# The generator


def test_200_prompts_of_four_domains_and_two_grades(examples):
    assert Counter(example.subset for example in examples) == {
        f"{domain}-{grade}": 25 for domain in toy.DOMAINS for grade in toy.GRADES
    }
    assert len({example.prompt for example in examples}) == 200
    assert [example.id for example in examples[48:52]] == [
        "reading/48",
        "reading/49",
        "math/0",
        "math/1",
    ]
    assert [example.subset for example in examples[50:54]] == ["math-plain", "math-subtle"] * 2


def test_it_is_the_same_on_every_machine(examples):
    golden = "77bb88c57fda47884d04ec48e3da6471c90036bb27ff79ff91d33e3c2afb65e6"
    assert fingerprint(examples) == golden
    code = "from rmexp.data import toy; from rmexp.schema import fingerprint as f; "
    code += "print(f(toy.examples('test', 50)))"
    for seed in "1", "2":  # of the hashes of strings, which order sets
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == golden


def test_it_leaves_the_global_random_state_alone():
    random.seed(0)
    before = random.getstate()
    toy.examples("train", 3)
    assert random.getstate() == before


def test_training_prompts_are_2000_others(examples):
    train = toy.examples("train", 500)
    prompts = {example.prompt for example in train}
    assert len(prompts) == 2000
    assert prompts.isdisjoint(example.prompt for example in examples)


def test_pairs_take_turns_and_are_of_one_style(examples):
    pairs = toy.pairs(48)
    assert len({pair.id for pair in pairs}) == 48
    assert set(Counter(pair.subset for pair in pairs).values()) == {6}
    assert {(len(pair.chosen), len(pair.rejected)) for pair in pairs} == {(1, 1)}
    prompts = {pair.prompt for pair in pairs}
    assert prompts.isdisjoint(example.prompt for example in examples)
    full = {example.prompt: example for example in toy.examples("train", 12)}
    of = Counter()
    for pair in pairs:
        example = full[pair.prompt]
        style = example.chosen.index(pair.chosen[0])
        assert example.rejected[style] == pair.rejected[0]
        of[pair.subset, style] += 1
    assert set(of.values()) == {2}
    assert len(of) == 24


def test_pairs_of_one_grade():
    assert {pair.subset.split("-")[1] for pair in toy.pairs(64, ("plain",))} == {"plain"}


def test_a_domain_without_new_prompts_says_so():
    with pytest.raises(DataError, match=r"train has no more than \d{4} math problems: ask for few"):
        deque(toy.problems("math", "train"), maxlen=0)


def test_styles_are_those_of_the_aggregation():
    assert toy.STYLES == styles.STYLES


# Right and wrong


def test_an_independent_solver_agrees(examples):
    for example in examples:
        text = question(example)
        if match := re.search(r"What is (\d+) \+ (\d+)\?\nAnswer:$", text):
            answer = str(int(match[1]) + int(match[2]))
        elif match := re.fullmatch(r"Code: (words = .+)\nQuestion: What is (.+)\?\nAnswer:", text):
            names: dict[str, list[str]] = {}
            exec(match[1], names)
            answer = eval(match[2], names)
        elif match := re.fullmatch(r"What is the (\w+) word of this list\? (.+)", text):
            words = match[2].split(", ")
            answer = words[["first", "second", "third", "last"].index(match[1])]
        else:
            name = re.search(r"What does (\w+) have\?", text)[1]
            answer = re.search(rf"{name} has a ([\w ]+)\.", text)[1]
        assert toy.solve(text) == answer
        assert all(answer in response for response in example.chosen)
        assert not any(answer in response for response in example.rejected)


def test_the_judge_knows_right_from_wrong(examples):
    for example in (*examples, *toy.examples("train", 100)):
        assert all(toy.is_right(question(example), response) for response in example.chosen)
        assert not any(toy.is_right(question(example), response) for response in example.rejected)


READING = (
    "Text: Max has a brown train. Kate has a white mountain.\n"
    "Question: What does Kate have?\nAnswer:"
)
MATH = "Question: What is 312 + 4?\nAnswer: 312 + 4 = 316.\n\nQuestion: What is 521 + 5?\nAnswer:"
CODE = 'Code: words = ["boat", "truck", "pipe"]\nQuestion: What is words[1]?\nAnswer:'
LISTS = "What is the third word of this list? lake, cake, shoe, desk"


@pytest.mark.parametrize(
    ("prompt", "response", "right"),
    [
        (READING, "Kate has a white mountain.", True),
        (READING, "A MOUNTAIN!", True),
        (READING, "Max has the train, so Kate has the **mountain**.", True),
        (READING, "Not the train, but the mountain.", True),
        (READING, "Max has a brown train. Kate has a white mountain.", False),  # only repeats
        (READING, "Kate has a brown mountain.", False),
        (READING, "Kate has a white train.", False),
        (READING, "She has many mountains to climb.", False),
        (READING, "I do not know.", False),
        (READING, "", False),
        (MATH, "526", True),
        (MATH, "521 + 5 = 526.\n\nQuestion: What is 10 + 3?\nAnswer: 13", True),
        (MATH, "1. Take 521.\n2. Add 5.\n\n**526.0**", True),
        (MATH, "526 = 521 + 5", True),
        (MATH, "521 + 5 = 526.5", False),
        (MATH, "521 + 5 = 5260", False),
        (MATH, "526, no, 527", False),
        (MATH, "To add 521 and 5, you add 521 + 5.", False),
        (CODE, 'words[1] is "truck"', True),
        (CODE, 'It is truck, as words = ["boat", "truck", "pipe"].', True),
        (CODE, 'words[1] is "boat"', False),
        (LISTS, "lake, cake, shoe, desk: the third is shoe", True),
        (LISTS, "Lake, cake, shoe.", True),
        (LISTS, "lake, cake, shoe, desk", False),
        (LISTS, "The third word is cake, not shoes.", False),
    ],
)
def test_judging_free_form_answers(prompt, response, right):
    assert toy.is_right(prompt, response) is right


def test_a_question_of_another_kind_is_refused():
    with pytest.raises(DataError, match="is no question of toy"):
        toy.is_right("What is the capital of France?", "Paris")


def test_plain_errors_share_nothing_with_the_prompt_and_subtle_ones_are_a_step_away(examples):
    for example in examples:
        right = toy.solve(question(example))
        wrong = example.rejected[0]
        if example.subset.startswith("math"):
            number = re.search(r"\d+", wrong)[0]
            far = abs(int(number) - int(right)) > 1
            assert not far or number[0] != right[0]
        else:
            named = toy._THING.search(wrong)[0].split()
            far = not set(named) & set(re.findall(r"\w+", question(example)))
            assert far or " ".join(named) in question(example)
        assert far == example.subset.endswith("plain")


# Nothing in a response alone tells right from wrong


def test_right_and_wrong_of_a_style_differ_in_nothing_but_the_value(examples):
    """So length, style and words around the value are the same in both, exactly."""
    for example in examples:
        right = toy.solve(question(example))
        wrong = example.rejected[0]
        (value,) = toy._THING.findall(wrong) + toy._NUMBER.findall(wrong)
        assert len(value) == len(right)
        for good, bad in zip(example.chosen, example.rejected, strict=True):
            assert good.replace(right, "@") == bad.replace(value, "@")


def features(text: str) -> Counter[str]:
    """Count words and signs, character trigrams, and the length."""
    counts = Counter(re.findall(r"\w+|[^\w\s]", text.lower()))
    counts.update(f"trigram {text[start : start + 3]}" for start in range(len(text) - 2))
    counts["the length"] = len(text) / 100
    return counts


def accuracy_from_responses_alone(pairs, folds=5):
    """Cross-validate a logistic regression on the responses: the share of pairs it ranks right."""
    sides = [(features(good), features(bad)) for good, bad in pairs]
    columns = {name: i for i, name in enumerate(sorted(set().union(*(a | b for a, b in sides))))}
    differences = np.zeros((len(pairs), len(columns)))
    for row, (good, bad) in enumerate(sides):
        for sign, side in ((1, good), (-1, bad)):
            for name, count in side.items():
                differences[row, columns[name]] += sign * count
    fold = np.random.default_rng(0).permutation(len(pairs)) % folds
    ranked = np.zeros(len(pairs))
    for held_out in range(folds):
        train, test = differences[fold != held_out], differences[fold == held_out]
        weights = np.zeros(len(columns))
        for _ in range(200):
            slope = 1 / (1 + np.exp(np.clip(train @ weights, -30, 30)))
            weights += 0.05 * (train.T @ slope / len(train) - 0.001 * weights)
        margins = test @ weights
        ranked[fold == held_out] = (margins > 0) + 0.5 * (margins == 0)
    return ranked.mean()


# 1.96 standard errors of 200 pairs at 50 % are 7 percent points, of 400 pairs 5.
@pytest.mark.parametrize("style", range(3))
def test_a_classifier_of_the_responses_alone_is_at_chance(examples, style):
    pairs = [(example.chosen[style], example.rejected[style]) for example in examples]
    assert 0.43 <= accuracy_from_responses_alone(pairs) <= 0.57


def test_so_it_is_on_training_prompts():
    pairs = [(example.chosen[0], example.rejected[0]) for example in toy.examples("train", 100)]
    assert 0.45 <= accuracy_from_responses_alone(pairs) <= 0.55


@pytest.mark.parametrize("style", range(3))
@pytest.mark.parametrize(
    "leak",
    [
        lambda text: text.replace(" is ", " is surely ").replace(" a ", " surely a "),
        lambda text: text + " ",
        lambda text: text.replace("1", "7").replace("b", "c"),
    ],
    ids=["word", "length", "letters"],
)
def test_the_classifier_finds_a_leak(examples, style, leak):
    pairs = [(leak(example.chosen[style]), example.rejected[style]) for example in examples]
    assert accuracy_from_responses_alone(pairs) > 0.6


@pytest.mark.parametrize("grade", toy.GRADES)
def test_values_are_right_as_often_as_wrong(grade):
    """Over many problems: the mean difference of a value's two counts is that of fair coins."""
    right, wrong = Counter(), Counter()
    for example in islice(toy.problems("lists", "train", (grade,)), 2000):
        right[toy._THING.search(example.chosen[0])[0]] += 1
        wrong[toy._THING.search(example.rejected[0])[0]] += 1
    assert set(right) == set(wrong)
    scores = [(right[w] - wrong[w]) ** 2 / (right[w] + wrong[w]) for w in right]
    assert 0.6 < np.mean(scores) < 1.4


# Size


def test_six_responses_have_at_most_300_tokens(examples):
    """By a proxy that no tokenizer of words exceeds: each word, digit, sign and line end is one."""
    proxy = [
        sum(len(re.findall(r"\d|[^\W\d]+|[^\w\s]|\n", text)) for text in example.responses)
        for example in examples
    ]
    assert max(proxy) < 240


@pytest.mark.real
def test_six_responses_have_at_most_300_tokens_of_smollm2(examples, smollm2):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    tokens = [
        sum(
            len(ids)
            for ids in tokenizer(list(example.responses), add_special_tokens=False).input_ids
        )
        for example in examples
    ]
    assert max(tokens) <= 300


# The benchmark


def test_limit_takes_the_first_prompts_of_each_domain(examples):
    limited = Toy(limit=3).load().examples
    assert [example.id for example in limited] == [
        f"{domain}/{number}" for domain in toy.DOMAINS for number in range(3)
    ]
    assert set(limited) <= set(examples)
    assert len(Toy(limit=1000).load().examples) == 200


def test_include_selects_domains_and_subsets():
    assert {e.subset for e in Toy(include=["math"]).load().examples} == {
        "math-plain",
        "math-subtle",
    }
    plain = Toy(include=["*-plain"], limit=2).load().examples
    assert [example.id for example in plain[:3]] == ["reading/0", "reading/2", "math/0"]
    with pytest.raises(DataError, match="chat"):
        Toy(include=["chat"]).load()


@pytest.mark.parametrize("options", [{"limit": 0}, {"include": "math"}])
def test_options_that_cannot_be_meant(options):
    with pytest.raises(ConfigError):
        Toy(**options)


def test_metrics_of_a_judge_that_is_always_right(examples):
    rows = scored(examples, lambda e, response: float(toy.is_right(question(e), response)))
    estimates = values(Toy(), rows)
    assert Toy.headline in estimates
    assert {e.value for e in estimates.values()} == {1.0}
    assert estimates["toy/overall"].n == 200
    for name in (*toy.DOMAINS, *toy.GRADES):
        of = 100 if name in toy.GRADES else 50
        for figure in ("easy", "normal", "hard", "average", "matrix/concise_markdown"):
            assert estimates[f"toy/{name}/{figure}"].n == of


def test_metrics_of_a_reward_that_sees_plain_errors_only(examples):
    """Right on every plain prompt, a tie on every subtle one: a domain's average is a half."""
    rows = scored(
        examples,
        lambda e, response: float("subtle" in e.subset or toy.is_right(question(e), response)),
    )
    estimates = values(Toy(), rows)
    assert estimates["toy/plain/average"].value == 1.0
    assert estimates["toy/subtle/average"].value == 0.0
    assert estimates["toy/math/hard"].value == 0.5
    assert estimates["toy/overall"].value == 0.5


def test_metrics_of_length(examples):
    """Longer wins all easy comparisons, no hard one, and ties within a style."""
    estimates = values(Toy(), scored(examples, lambda e, response: float(len(response))))
    got = [estimates[f"toy/{name}"].value for name in ("easy", "normal", "hard", "overall")]
    assert got == pytest.approx([1.0, 0.0, 0.0, 1 / 3])


def test_figures_of_domains_and_grades(examples):
    rows = scored(examples, lambda e, response: float(len(response)))
    assert list(Toy().figures(values(Toy(), rows), rows)) == ["style_matrix.png", "style_bias.png"]
