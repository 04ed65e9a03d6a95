"""Small problems with right and wrong answers that a program can check, the same on every machine.

A question is put about facts; its wrong answer is the right one to the same question about other
facts, in the same words and of the same length, and a coin decides which of the two sets of facts
the prompt holds. So nothing in a response alone tells right from wrong. A plain error is about
facts that share nothing with the prompt's; a subtle one about facts that are one step away: things
swapped between two owners, a sum off by one, two neighbours of a list swapped.
"""

import hashlib
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, cycle, islice
from typing import Literal

from rmexp.errors import DataError
from rmexp.schema import Example, Message

Split = Literal["train", "test"]

DOMAINS = ("reading", "math", "code", "lists")
GRADES = ("plain", "subtle")
STYLES = ("concise", "detailed", "markdown")

_NAMES, _COLOURS, _WORDS = (
    words.split()
    for words in (
        "Adam Alice Anna Ben Bob Carl Clara David Emma Eric Eva Frank Grace Henry Jack James Jane "
        "John Kate Leo Lisa Lucy Max Mia Nina Oscar Paul Peter Rosa Ruth Sam Sara Tom Victor",
        "black blue brown green pink purple red silver white yellow",
        "ball basket bell bird boat bottle bread bridge brush bus button cake camera candle cap "
        "cat chair clock cloud coat coin cup desk dish dog door dress drum farm fish flag flower "
        "forest fork garden gate glove guitar hammer hat horse house jacket kettle kite knife "
        "ladder lake lamp leaf lion mirror moon mountain mouse pen pencil phone piano pillow pipe "
        "plate pot ring river robot rope sail ship shirt shoe snake spoon star stone tent tower "
        "train tree truck watch wheel window",
    )
)
_LABELS = {"code": ("0", "1", "2"), "lists": ("first", "second", "third", "last")}

_PROMPTS = {
    "reading": "Text: {items}\nQuestion: What does {asked} have?\nAnswer:",
    # Without the worked example the smallest models do not answer with a number at all.
    "math": (
        "Question: What is 312 + 4?\nAnswer: 312 + 4 = 316.\n\nQuestion: What is {items}?\nAnswer:"
    ),
    "code": "Code: words = [{items}]\nQuestion: What is words[{asked}]?\nAnswer:",
    "lists": "What is the {asked} word of this list? {items}",
}
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_THING = re.compile(rf"\b(?:(?:{'|'.join(_COLOURS)}) )?(?:{'|'.join(_WORDS)})\b")

# The words around a value, which stands at "@", and NAME. Problems draw one of each row.
_CONCISE = {
    "reading": ("NAME has a @.", "It is a @.", "The text says a @."),
    "math": ("The sum is @.", "It is @.", "That makes @."),
    "code": ("It is @.", "The value is @.", "This gives @."),
    "lists": ("It is @.", "The word is @.", "That word is @."),
}
_STEPS = {
    "reading": (
        ("I read the text from its start to its end.", "I went through the text name by name."),
        ("Only one part of it is about NAME.", "It says only once what NAME has."),
    ),
    "math": (
        ("I wrote the two numbers under each other.", "I lined up the digits of both numbers."),
        ("Then I added them digit by digit.", "Then I added the digits from right to left."),
    ),
    "code": (
        ("I looked at the list and at the index.", "The code takes one word from the list."),
        ("Indices in Python start at zero.", "Python counts from zero."),
    ),
    "lists": (
        ("I read the list from left to right.", "I went through the list word by word."),
        ("Then I counted up to the place asked for.", "Then I looked for the right place."),
    ),
}
_CLOSING = ("So the answer is", "So my answer is", "The answer is thus")
_TRIES = 1_000  # in vain: then a domain counts as exhausted


@dataclass(frozen=True, slots=True)
class Facts:
    """What a question is about.

    `items` are things, a list's words or two summands. `labels` are what asks for each of them:
    owners, indices, ordinals, none in math. `asked` is the position asked for.
    """

    domain: str
    items: tuple[str, ...]
    labels: tuple[str, ...] = ()
    asked: int = 0


def problems(domain: str, split: Split, grades: Sequence[str] = GRADES) -> Iterator[Example]:
    """Yield problems of a domain without end, the grades by turns.

    Each has three right and three wrong responses, in the order of `STYLES`. No prompt occurs twice
    or in both splits.

    Raises DataError when no new prompt is found.
    """
    rng = random.Random(f"toy/{domain}/{split}")
    seen: set[str] = set()
    for number, grade in enumerate(cycle(grades)):
        facts, other = _contrast(domain, grade, split, seen, rng)
        frames = _frames(facts, rng)
        yield Example(
            id=f"{domain}/{number}",
            subset=f"{domain}-{grade}",
            prompt=(Message("user", _ask(facts)),),
            chosen=tuple(frame.replace("@", _answer(facts)) for frame in frames),
            rejected=tuple(frame.replace("@", _answer(other)) for frame in frames),
        )


def examples(split: Split, count: int) -> tuple[Example, ...]:
    """Return the first `count` problems of each domain."""
    return tuple(chain.from_iterable(islice(problems(name, split), count) for name in DOMAINS))


def pairs(count: int, grades: Sequence[str] = GRADES) -> tuple[Example, ...]:
    """Return `count` pairs of one style each to train on; domains, grades and styles take turns."""
    streams = {domain: problems(domain, "train", grades) for domain in DOMAINS}
    chosen = []
    for number, domain in enumerate(islice(cycle(DOMAINS), count)):
        example = next(streams[domain])
        style = number // (len(DOMAINS) * len(grades)) % len(STYLES)
        right, wrong = example.chosen[style : style + 1], example.rejected[style : style + 1]
        chosen.append(replace(example, chosen=right, rejected=wrong))
    return tuple(chosen)


def solve(question: str) -> str:
    """Work out the right answer from the question's text.

    Raises DataError for a question that is not of this module.
    """
    return _answer(_parse(question))


def is_right(question: str, response: str) -> bool:
    """Judge a response in free form by the last answer that it names.

    All of the question's things, words or numbers in their order are a repetition, not an answer,
    and what follows a question of the response's own does not count. A thing may be named without
    its colour.
    """
    facts = _parse(question)
    answer = _answer(facts)
    response, _, _ = response.partition("\nQuestion:")
    if facts.domain == "math":
        named = [f"{float(number):g}" for number in _NUMBER.findall(response)]
    else:
        named = _THING.findall(response.lower())
    size = len(facts.items)
    while named and named[-size:] == list(facts.items):
        del named[-size:]
    return bool(named) and named[-1] in (answer, answer.split()[-1])


def _contrast(
    domain: str, grade: str, split: Split, seen: set[str], rng: random.Random
) -> tuple[Facts, Facts]:
    """Draw facts whose question is new, and other facts for the wrong answer; add to `seen`."""
    for _ in range(_TRIES):
        facts = _draw(domain, rng)
        other = _vary(facts, grade, rng)
        if rng.random() < 0.5:
            facts, other = other, facts
        question = _ask(facts)
        if (
            len(_answer(facts)) == len(_answer(other))
            and question not in seen
            and _split(question) == split
        ):
            seen.add(question)
            return facts, other
    raise DataError(f"{split} has no more than {len(seen)} {domain} problems: ask for fewer")


def _split(question: str) -> Split:
    """Assign a question to a split by its text alone, so that the splits cannot meet."""
    return "test" if hashlib.sha256(question.encode()).digest()[0] % 2 else "train"


def _draw(domain: str, rng: random.Random) -> Facts:
    if domain == "math":
        return Facts(domain, (str(rng.randrange(110, 980)), str(rng.randrange(2, 9))))
    if domain == "reading":
        things = zip(rng.sample(_COLOURS, 2), rng.sample(_WORDS, 2), strict=True)
        items, labels = [" ".join(thing) for thing in things], tuple(rng.sample(_NAMES, 2))
    else:
        labels = _LABELS[domain]
        items = rng.sample(_WORDS, len(labels))
    return Facts(domain, tuple(items), labels, rng.randrange(len(labels)))


def _vary(facts: Facts, grade: str, rng: random.Random) -> Facts:
    """Return facts for the same question: unrelated ones if plain, else one step away."""
    if grade == "plain":
        other = replace(facts, items=_draw(facts.domain, rng).items)
        return other if _unrelated(facts, other) else _vary(facts, grade, rng)
    items = list(facts.items)
    if facts.domain == "math":
        items[1] = str(int(items[1]) + rng.choice((-1, 1)))
    else:
        last = len(items) - 1
        near = facts.asked + rng.choice((-1, 1)) if 0 < facts.asked < last else abs(facts.asked - 1)
        items[facts.asked], items[near] = items[near], items[facts.asked]
    return replace(facts, items=tuple(items))


def _unrelated(facts: Facts, other: Facts) -> bool:
    if facts.domain == "math":
        return _answer(facts)[0] != _answer(other)[0]
    return set(" ".join(facts.items).split()).isdisjoint(" ".join(other.items).split())


def _ask(facts: Facts) -> str:
    if facts.domain == "reading":
        owned = zip(facts.labels, facts.items, strict=True)
        items = " ".join(f"{name} has a {item}." for name, item in owned)
    elif facts.domain == "math":
        items = " + ".join(facts.items)
    else:
        quote = '"' if facts.domain == "code" else ""
        items = ", ".join(f"{quote}{item}{quote}" for item in facts.items)
    asked = facts.labels[facts.asked] if facts.labels else ""
    return _PROMPTS[facts.domain].format(items=items, asked=asked)


def _parse(question: str) -> Facts:
    """Read the facts from a question's text."""
    for domain, prompt in _PROMPTS.items():
        pattern = re.escape(prompt).replace(r"\{items\}", "(?P<items>.+)")
        match = re.fullmatch(pattern.replace(r"\{asked\}", r"(?P<asked>\w+)"), question)
        if match and domain == "math":
            return Facts(domain, tuple(match["items"].split(" + ")))
        if match:
            items = tuple(_THING.findall(match["items"]))
            names = tuple(re.findall(r"(\w+) has a", match["items"]))
            labels = names or _LABELS[domain]
            return Facts(domain, items, labels, labels.index(match["asked"]))
    raise DataError(f"{question!r} is no question of toy: judge only answers to its prompts")


def _answer(facts: Facts) -> str:
    if facts.domain == "math":
        return str(sum(int(item) for item in facts.items))
    return facts.items[facts.asked]


def _frames(facts: Facts, rng: random.Random) -> tuple[str, ...]:
    """Draw the words around the value, a frame for each of `STYLES`.

    Each frame ends with the value, near the token at which a reward is read.
    """
    concise = rng.choice(_CONCISE[facts.domain])
    first, second = (rng.choice(sentences) for sentences in _STEPS[facts.domain])
    closing = rng.choice(_CLOSING)
    value = "a @" if facts.domain == "reading" else "@"
    frames = (
        concise,
        f"{concise} {first} {second} {closing} {value}.",
        f"**{concise}**\n\n- {first}\n- {second}\n\n{closing} **{value}**.",
    )
    name = facts.labels[facts.asked] if facts.labels else ""
    return tuple(frame.replace("NAME", name) for frame in frames)
