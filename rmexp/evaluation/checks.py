"""Checks of an evaluation that are asked for: overlap with training data, rewritten responses."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rmexp.benchmarks import Benchmark
from rmexp.data.overlap import GRAM, Overlap, overlaps
from rmexp.data.rewrites import REWRITES, rewritten
from rmexp.data.selection import check_path
from rmexp.errors import ConfigError
from rmexp.metrics import Metric, mean, plain_name, reported_name
from rmexp.schema import Dataset, ScoredExample
from rmexp.scoring.score import Reward, Settings
from rmexp.stats.intervals import Estimate, intervals
from rmexp.stats.paired import differences

log = logging.getLogger(__name__)

Generator = Callable[[], np.random.Generator]


@dataclass(frozen=True, slots=True)
class Checks:
    """What to check besides: files or folders of training data, and whether rewrites matter."""

    train: tuple[str, ...] = ()
    rewrites: bool = False


NO_CHECKS = Checks()


def check_options(train: object, rewrites: object) -> Checks:
    """Return the checks; raise ConfigError for values that cannot be meant.

    Raises DataError for a path that does not exist.
    """
    train = [] if train is None else train
    if not isinstance(train, list) or not all(isinstance(path, str) for path in train):
        raise ConfigError(f"overlap.train={train}: give a list of files or folders")
    if not isinstance(rewrites, bool):
        raise ConfigError(f"robustness={rewrites}: use true or false")
    for path in train:
        check_path(path)
    return Checks(tuple(train), rewrites)


def overlap_estimates(
    benchmark: Benchmark,
    data: Dataset,
    scored: Sequence[ScoredExample],
    train: Sequence[str],
    generator: Generator,
) -> tuple[list[Estimate], str]:
    """Return what of the examples occurs in training data, and the headline without it; and a line.

    - `overlap/prompts`: the share of examples whose prompt's last turn occurs.
    - `overlap/responses`: the share of responses that do.
    - `overlap/ngrams`: the share of the 13-grams of both.
    - `overlap/clean`: the headline of the examples of which no text and less than half of the
      13-grams occur, by the benchmark's own rule. There is none where all do.
    """
    by_id = dict(zip((e.id for e in data.examples), overlaps(data.examples, train), strict=True))
    found = [by_id[row.id] for row in scored]
    every = range(len(scored))
    known = [at for at, of in enumerate(found) if of.grams is not None]
    metrics: list[Metric] = [
        mean("overlap/prompts", [float(of.prompt) for of in found], every),
        mean("overlap/responses", [of.responses for of in found], every),
        mean("overlap/ngrams", [of.grams or 0.0 for of in found], known),
    ]
    estimates = intervals(metrics, scored, generator())
    clean = [row for row, of in zip(scored, found, strict=True) if not of.any]
    for each in intervals(benchmark.metrics(clean), clean, generator()) if clean else ():
        if plain_name(each.name) == benchmark.headline:
            estimates.append(replace(each, name=reported_name("overlap/clean", each.missing)))
    return estimates, _overlap_note(found, train)


def _overlap_note(found: Sequence[Overlap], train: Sequence[str]) -> str:
    count = sum(of.any for of in found)
    prompts = sum(of.prompt for of in found)
    return (
        f"{count} of {len(found)} examples overlap with {', '.join(train)}: {prompts} prompts, "
        f"{sum(of.responses > 0 for of in found)} with a response there, others by half of their "
        f"{GRAM}-grams or more"
    )


def rewrite_estimates(
    reward: Reward,
    benchmark: Benchmark,
    data: Dataset,
    scored: Sequence[ScoredExample],
    settings: Settings,
) -> list[Estimate]:
    """Return `robustness/<rewrite>`, how much higher the headline is once responses are rewritten.

    All responses are, by a rule that leaves their meaning: more white space, no marks of Markdown,
    a closing politeness. The difference is over the same prompts, with its paired interval.

    Raises ConfigError for rewards from a file, which know nothing of other texts.
    """
    if reward.traits().get("method") == "recorded":
        raise ConfigError("robustness=true scores rewritten responses: recorded rewards have none")

    def headline(rows: Sequence[ScoredExample]) -> list[Metric]:
        return list(benchmark.metrics(rows))

    estimates = []
    for name, rewrite in REWRITES.items():
        changed = replace(data, examples=tuple(rewritten(e, rewrite) for e in data.examples))
        log.info("%s: responses rewritten (%s)", benchmark.name, name)
        after = reward.score(changed, settings).scored
        ids = {row.id for row in after}
        before = [row for row in scored if row.id in ids]
        kept = {row.id for row in before}
        after = [row for row in after if row.id in kept]
        rng = np.random.default_rng(settings.seed)
        for each in differences(after, before, headline, rng):
            if each.name == benchmark.headline:
                reported = reported_name(f"robustness/{name}", each.missing)
                estimates.append(
                    Estimate(reported, each.value, each.n, each.low, each.high, each.missing)
                )
    return estimates
