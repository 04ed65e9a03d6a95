"""What of a benchmark occurs in a training set: texts as a whole, and by their 13-grams.

Texts are compared without case, punctuation and white space. The training set is read once, a row
at a time, and only what the benchmark holds is kept of it.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rmexp.data.sources import local_rows
from rmexp.schema import Example

GRAM = 13  # words, as in the GPT-3 paper (arXiv 2005.14165, appendix C)
MUCH = 0.5  # of an example's 13-grams, from which it counts as overlapping

_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Overlap:
    """What of an example occurs in the training set.

    `prompt` says whether its last turn does, `responses` which share of them, `grams` which share
    of the 13-grams of both, None where there is none.
    """

    prompt: bool
    responses: float
    grams: float | None

    @property
    def any(self) -> bool:
        """Say whether the example counts as overlapping: a whole text, or half of the 13-grams."""
        return self.prompt or self.responses > 0 or (self.grams or 0.0) >= MUCH


def overlaps(examples: Sequence[Example], train: Iterable[str]) -> list[Overlap]:
    """Look the examples up in the training set's files or folders.

    Raises DataError for a path that does not exist, or a file that cannot be read.
    """
    parts = [(example.prompt[-1].content, *example.responses) for example in examples]
    words = [[_words(text) for text in texts] for texts in parts]
    grams = [{gram for text in of for gram in _grams(text)} for of in words]
    texts_left = {" ".join(text) for of in words for text in of if text}
    grams_left = set().union(*grams)
    texts_found: set[str] = set()
    grams_found: set[int] = set()
    for path in train:
        for row in local_rows(path):
            for text in _strings(row.values):
                read = _words(text)
                joined = " ".join(read)
                if joined in texts_left:
                    texts_found.add(joined)
                grams_found.update(gram for gram in _grams(read) if gram in grams_left)
    found = []
    for of, own in zip(words, grams, strict=True):
        there = [" ".join(text) in texts_found for text in of]
        responses = there[1:]
        share = len(own & grams_found) / len(own) if own else None
        found.append(Overlap(there[0], sum(responses) / len(responses), share))
    return found


def _strings(value: object) -> Iterator[str]:
    """Yield all texts of a row, those of messages and lists among them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _grams(words: Sequence[str]) -> Iterator[int]:
    for start in range(len(words) - GRAM + 1):
        yield hash(tuple(words[start : start + GRAM]))
