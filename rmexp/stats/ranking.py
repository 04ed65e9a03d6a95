"""Which of several reward models share the first place, and what it would take to tell. Pure."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from rmexp.metrics import Metric
from rmexp.schema import ScoredExample
from rmexp.stats.intervals import totals
from rmexp.stats.paired import match
from rmexp.stats.signflips import SURE, flips_of_pairs, holm

_FOUND = 2.8  # standard errors: 1.96 for p < 0.05, and 0.84 to find it in 80 % of samples


@dataclass(frozen=True, slots=True)
class Apart:
    """By how much the first model's number is above the second's, over the same prompts.

    `p` is that of `signflips.sign_flips`, `p_holm` allows for the number of pairs. `detectable` is
    the difference that would be found (p < 0.05) in 80 % of such samples of prompts.
    """

    first: str
    second: str
    difference: float
    p: float
    p_holm: float
    detectable: float


@dataclass(frozen=True, slots=True)
class Ranking:
    """Models by a number, the highest first, over the same `prompts`; `pairs` are in that order."""

    values: Mapping[str, float]
    pairs: tuple[Apart, ...]
    prompts: int

    @property
    def first_place(self) -> tuple[str, ...]:
        """Return the best model and those that cannot be told apart from it."""
        best, *others = self.values
        surely = {each.second for each in self.pairs if each.first == best and each.p_holm < SURE}
        return best, *(name for name in others if name not in surely)

    @property
    def more_prompts(self) -> int | None:
        """Return how many more prompts would tell the best two apart in 80 % of samples.

        0 where they are apart already, None where they are equal or there is one model.
        """
        if not self.pairs or self.pairs[0].difference == 0:
            return None
        best = self.pairs[0]
        if best.p_holm < SURE:
            return 0
        needed = self.prompts * (best.detectable / best.difference) ** 2
        return max(0, math.ceil(needed) - self.prompts)

    def say(self) -> list[str]:
        """Say who shares the first place, and with how many more prompts the best two would not."""
        if not self.pairs:
            return []
        shared = self.first_place
        if len(shared) == 1:
            lines = [f"{shared[0]} is first: apart from each other one (Holm's p below {SURE})."]
        else:
            named = f"{', '.join(shared[:-1])} and {shared[-1]}"
            count = len(self.pairs)
            lines = [
                f"{named} share the first place: over {self.prompts:,} prompts none of them is "
                f"apart from the best, {shared[0]} (Holm's p, {count} pairs)."
            ]
        best = self.pairs[0]
        if self.more_prompts:
            lines.append(
                f"{best.first} and {best.second} differ by {best.difference:.3f}; so many prompts "
                f"find a difference of {best.detectable:.3f} in 80 % of samples. That of the two "
                f"would take {self.more_prompts:,} more."
            )
        return lines


def rank_models(
    scored: Mapping[str, Sequence[ScoredExample]],
    metrics: Callable[[Sequence[ScoredExample]], Sequence[Metric]],
    headline: str,
    rng: np.random.Generator,
    samples: int = 10_000,
) -> Ranking:
    """Rank models by a benchmark's headline and test every two of them on the same prompts.

    `scored` has each model's examples by its name: of runs those of `scores.jsonl`, read with
    `scoring.recorded.lookup_shared`, which leaves out what one model has not. `metrics` and
    `headline` are the benchmark's: `rank_models(scored, bench.metrics, bench.headline, rng)`.

    The detectable difference is 2.8 standard errors of the paired difference. Of shares that is
    2.8 sqrt(d / n), d being the share of the n prompts on which just one of the two is right.

    Raises DataError where two models' examples are not the same ones, ValueError where one has no
    headline.
    """
    names = list(scored)
    rows = scored[names[0]] if names else ()
    of = {}
    for name in names:
        matched = match(rows, scored[name])
        of[name] = totals(metrics(matched), rows)
        if not any(metric.name == headline for metric in of[name].metrics):
            raise ValueError(f"{name} has no {headline}")
    values = {name: of[name].value(headline) for name in names}
    order = sorted(names, key=lambda name: -values[name])
    couples = list(combinations(order, 2))
    ps = flips_of_pairs(headline, [(of[a], of[b]) for a, b in couples], rng, samples)
    corrected = [1.0 if p is None else p for p in holm(ps)]
    pairs = []
    for (a, b), p, p_holm in zip(couples, ps, corrected, strict=True):
        by_prompt = of[a].by_prompt(headline) - of[b].by_prompt(headline)
        error = math.sqrt(float((by_prompt.values**2).sum()))
        pairs.append(Apart(a, b, values[a] - values[b], p, p_holm, _FOUND * error))
    prompts = len({row.prompt for row in rows})
    return Ranking({name: values[name] for name in order}, tuple(pairs), prompts)
