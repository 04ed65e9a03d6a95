"""Scores of single responses as the authors of benchmarks published them."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rmexp.outside import parse_json
from rmexp.schema import Example


@dataclass(frozen=True, slots=True)
class Upstream:
    """A record's scores by the places that `Example.upstream` names.

    `key` is what the record shares with its example, `texts` are the responses where they are there
    too; `place` is the line or the row.
    """

    key: str
    place: int
    scores: tuple[object, ...]
    texts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Format:
    """A form of files: how to read a text, and what of an example is the key in it.

    `read` raises ValueError, TypeError, KeyError or IndexError for another form, which `form`
    describes.
    """

    bench: str
    form: str
    read: Callable[[str], Iterator[Upstream]]
    key: Callable[[Example], str]


def _judgebench(text: str) -> Iterator[Upstream]:
    """Read a line a pair, with the two scores, or as the authors' script writes it."""
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        row = parse_json(line)
        if "judgments" in row:
            scores = row["judgments"][0]["judgment"]["scores"]
            yield Upstream(str(row["pair_id"]), number, tuple(scores), _texts(row))
        else:
            yield Upstream(str(row["pair_id"]), number, (row["score_A"], row["score_B"]))


def _texts(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (row["response_A"], row["response_B"]) if "response_A" in row else ()


def _rewardmath(text: str) -> Iterator[Upstream]:
    """Read a list of problems, each with the score of the right solution and then of the wrong."""
    for number, row in enumerate(parse_json(text)):
        yield Upstream(str(row["problem"]), number, tuple(row["score"]))


FORMATS: Mapping[str, Format] = {
    "judgebench": Format(
        "judgebench",
        'lines {"pair_id": text, "score_A": number, "score_B": number}, or those of JudgeBench\'s '
        "run_judge.py for reward models",
        _judgebench,
        lambda example: example.id,
    ),
    "rewardmath": Format(
        "rewardmath",
        'a list of {"problem": text, "score": [numbers]}',
        _rewardmath,
        lambda example: example.prompt[-1].content,
    ),
}
