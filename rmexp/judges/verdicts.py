"""Verdicts: what a judge says of two responses, and how a benchmark gets to see it.

A judge compares each chosen response with each rejected one, in both orders. It gives rewards only
where a benchmark reads these themselves, by rating the responses one by one.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Protocol

from rmexp.errors import ScoreError
from rmexp.metrics import Mean
from rmexp.schema import Dataset, Example, Message, ScoredExample, scored_example
from rmexp.scoring.score import Scoring, Settings

Said = Sequence[str | float]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two responses to one prompt, to be compared in both orders."""

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge says of a pair.

    `share` is the chosen response's share of the point: 1, 0, or between the two. `consistent` says
    whether the same response wins in both orders, None where an order has no winner. `unparsed` is
    the share of answers that say nothing, None for a judge that does not answer in words. `said`
    are the answers or margins with the chosen response first, and those with it second.
    """

    share: float
    consistent: bool | None
    unparsed: float | None = None
    said: tuple[Said, Said] = ((), ())


@dataclass(frozen=True, slots=True)
class Rating:
    """A judge's rating of one response, NaN if no answer holds one; see `Verdict`."""

    reward: float
    unparsed: float
    said: Said


@dataclass(slots=True)
class Tally:
    """What happened on the way to the verdicts: the `scoring/...` counts, and the first example."""

    counts: dict[str, float] = field(default_factory=dict)
    first_example: str | None = None

    def add(self, **counts: float) -> None:
        """Add to the counts."""
        for name, count in counts.items():
            self.counts[name] = self.counts.get(name, 0) + count


class Judge(Protocol):
    """What judging needs of a judge."""

    @property
    def undecided(self) -> float:
        """Return the share of the point where an order has no winner."""
        ...

    @property
    def pointwise(self) -> bool:
        """Say whether all responses are to be rated, and none compared."""
        ...

    def compare(
        self, pairs: Sequence[Pair], settings: Settings, tally: Tally
    ) -> list[Verdict | None]:
        """Compare each pair in both orders; None is for one that is dropped as too long."""
        ...

    def rate(
        self,
        responses: Sequence[tuple[tuple[Message, ...], str]],
        settings: Settings,
        tally: Tally,
    ) -> list[Rating | None]:
        """Rate each response to its prompt; None is for one that is dropped as too long."""
        ...


def judge_examples(judge: Judge, data: Dataset, settings: Settings) -> Scoring:
    """Compare, or rate, the responses of every example.

    Each unique pair is compared once, and each unique response rated once. A pair of identical
    responses is undecided without being asked about. Raises ScoreError if no example is left.
    """
    examples, tally, began = data.examples, Tally(), time.monotonic()
    rated = [judge.pointwise or e.subset in data.rated or not e.rejected for e in examples]
    responses = dict.fromkeys(
        (example.prompt, response)
        for example, alone in zip(examples, rated, strict=True)
        for response in example.responses
        if alone
    )
    pairs = dict.fromkeys(
        Pair(example.prompt, good, bad)
        for example, alone in zip(examples, rated, strict=True)
        for good, bad in product(example.chosen, example.rejected)
        if not alone
    )
    verdicts: dict[Pair, Verdict | None] = {
        pair: Verdict(judge.undecided, None) for pair in pairs if pair.chosen == pair.rejected
    }
    asked = [pair for pair in pairs if pair not in verdicts]
    # Ratings first: a judge that has none says so before anything is computed.
    ratings = judge.rate(list(responses), settings, tally) if responses else []
    rating_of = dict(zip(responses, ratings, strict=True))
    verdicts |= zip(asked, judge.compare(asked, settings, tally) if asked else [], strict=True)

    scored: list[ScoredExample] = []
    lines: list[dict[str, object]] = []
    consistency: dict[int, float] = {}
    unparsed: dict[int, float] = {}
    for example, alone in zip(examples, rated, strict=True):
        found = _rated(example, rating_of) if alone else _compared(example, verdicts)
        if found is None:
            continue
        row, own_lines, consistent, silent = found
        for outcomes, values in ((consistency, consistent), (unparsed, silent)):
            if values:
                outcomes[len(scored)] = math.fsum(values) / len(values)
        scored.append(row)
        lines += own_lines
    if not scored:
        raise ScoreError("no example is left to judge: raise model.max_length")
    seconds = time.monotonic() - began
    tokens = tally.counts.get("tokens", 0)
    defaults = dict.fromkeys(("cached", "tokens", "truncated", "dropped", "non_finite"), 0)
    counts = defaults | tally.counts | {
        "responses": sum(len(example.responses) for example in examples),
        "unique": len({(e.prompt, response) for e in examples for response in e.responses}),
        "comparisons": len(pairs),
        "rated": len(responses),
        "dropped_examples": len(examples) - len(scored),
        "ties": _ties(scored),
        "seconds": seconds,
        "tokens_per_second": tokens / seconds if tokens else 0.0,
    }  # fmt: skip
    metrics = tuple(
        Mean(name, tuple(outcomes), tuple(outcomes.values()))
        for name, outcomes in (
            ("judge/position_consistency", consistency),
            ("judge/unparsed", unparsed),
        )
        if outcomes
    )
    return Scoring(scored, counts, tally.first_example, metrics=metrics, lines=tuple(lines))


_Found = tuple[ScoredExample, list[dict[str, object]], list[float], list[float]]


def _compared(example: Example, verdicts: Mapping[Pair, Verdict | None]) -> _Found | None:
    """Return the example with its verdicts, and what goes into the metrics and the file."""
    matrix: list[tuple[float, ...]] = []
    lines: list[dict[str, object]] = []
    consistent, unparsed = [], []
    for i, good in enumerate(example.chosen):
        shares = []
        for j, bad in enumerate(example.rejected):
            verdict = verdicts[Pair(example.prompt, good, bad)]
            if verdict is None:
                return None
            shares.append(verdict.share)
            if verdict.consistent is not None:
                consistent.append(float(verdict.consistent))
            if verdict.unparsed is not None:
                unparsed.append(verdict.unparsed)
            lines.append(
                {
                    "id": example.id,
                    "chosen": i,
                    "rejected": j,
                    "verdict": verdict.share,
                    "chosen_first": list(verdict.said[0]),
                    "rejected_first": list(verdict.said[1]),
                }
            )
        matrix.append(tuple(shares))
    row = scored_example(
        example,
        (math.fsum(shares) / len(shares) for shares in matrix),
        (1 - math.fsum(column) / len(column) for column in zip(*matrix, strict=True)),
        tuple(matrix),
    )
    return row, lines, consistent, unparsed


def _rated(
    example: Example, ratings: Mapping[tuple[tuple[Message, ...], str], Rating | None]
) -> _Found | None:
    """Return the example with ratings for rewards, as `_compared` does."""
    found = [ratings[example.prompt, response] for response in example.responses]
    kept = [rating for rating in found if rating is not None]
    if len(kept) < len(found):
        return None
    rewards = tuple(rating.reward for rating in kept)
    lines: list[dict[str, object]] = [
        {"id": example.id, "response": at, "rating": rating.reward, "answers": list(rating.said)}
        for at, rating in enumerate(kept)
    ]
    split = len(example.chosen)
    row = scored_example(example, rewards[:split], rewards[split:])
    return row, lines, [], [rating.unparsed for rating in kept]


def _ties(scored: Sequence[ScoredExample]) -> int:
    """Count the comparisons of which each side gets half of the point, and equal ratings."""
    ties = 0
    for row in scored:
        if row.verdicts is not None:
            ties += sum(share == 0.5 for shares in row.verdicts for share in shares)
        else:
            ties += sum(good == bad for good, bad in product(row.chosen, row.rejected))
    return ties
