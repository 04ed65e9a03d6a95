"""RewardBench 2 (arXiv 2506.01937): best of four, and prompts with many correct answers."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from rmexp.data.rows import Row
from rmexp.data.selection import Entry, Selection, check_path, count_notes, load_rows
from rmexp.errors import DataError
from rmexp.metrics import (
    Mean,
    Metric,
    WeightedMean,
    WeightedSum,
    chance,
    mean,
    metric_name,
    wins,
)
from rmexp.schema import Dataset, Example, Message, ScoredExample
from rmexp.stats.intervals import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Rows of each subset; Ties has two rows a prompt.
COUNTS = {
    "Factuality": 475,
    "Precise IF": 160,
    "Math": 183,
    "Safety": 450,
    "Focus": 495,
    "Ties": 102,
}
TIES = "Ties"
TIES_WEIGHTS = {
    "tied_accuracy": 0.30,
    "ref_accuracy": 0.30,
    "tied_gap_above_spread": 0.20,
    "both_gaps_above_spread": 0.20,
    "margin": 0.01,
}
_TIES_ID = re.compile(r"(ref|tied):.+")


class RewardBench2:
    """Correct against incorrect responses: six subsets, and the plain mean of their scores.

    Of one correct and three incorrect responses, the correct one gets credit 1 if it is rewarded
    highest, and 1/k if k responses share the highest reward. Ties has a score of its own, see
    `ties_metrics`.

    `path` is a local file or folder in the hub's schema (default: the hub).

    Raises ConfigError or DataError at once for options that cannot work.
    """

    name = "rewardbench2"
    headline = "rewardbench2/overall"

    def __init__(
        self,
        *,
        path: str | None = None,
        include: Sequence[str] | None = None,
        limit: int | None = None,
        on_bad_row: str = "keep",
        revision: str | None = None,
    ):
        check_path(path)
        self._path, self._revision = path, revision
        self._selection = Selection(include, limit, on_bad_row)

    def load(self) -> Dataset:
        """Read, check and select the rows."""
        include = self._selection.include
        rows = load_rows(self._path, "allenai/reward-bench-2", "test", self._revision, include)
        entries = (Entry(_example(row), row) for row in rows)
        examples, bad_rows = self._selection.select(entries, files=rows.files)
        clusters = [example.cluster for example in examples]
        alone = [e.id for e in examples if e.cluster and clusters.count(e.cluster) == 1]
        notes = [f"{TIES}: no partner for {', '.join(alone)}"] if alone else []
        notes += count_notes(examples, COUNTS)
        rated, skips = frozenset({TIES}), self._selection.skips
        return Dataset(examples, rows.source, bad_rows, tuple(notes), rated, skips)

    def metrics(self, scored: Sequence[ScoredExample]) -> list[Metric]:
        """Return the scores of the subsets, what that of Ties is made of, and the overall mean."""
        metrics: list[Metric] = []
        rows: dict[str, list[int]] = {}
        for position, example in enumerate(scored):
            rows.setdefault(example.subset, []).append(position)
        credits, chances = [credit(row) for row in scored], [chance(row) for row in scored]
        found = [subset for subset in COUNTS if subset in rows]
        for subset in found:
            if subset == TIES:
                metrics += ties_metrics(scored, rows[subset])
            else:
                name = metric_name(self.name, subset)
                metrics.append(mean(name, credits, rows[subset], chances=chances))
        missing = tuple(subset for subset in COUNTS if subset not in rows)
        if found:
            parts = tuple(metric_name(self.name, subset) for subset in found)
            metrics.append(WeightedMean(self.headline, parts, (1.0,) * len(parts), missing))
        return metrics

    def figures(
        self, estimates: Mapping[str, Estimate], scored: Sequence[ScoredExample]
    ) -> "dict[str, Figure]":
        """Draw the score of each subset."""
        from rmexp.stats import figures

        names = [metric_name(self.name, subset) for subset in COUNTS]
        subsets = [estimates[name] for name in names if name in estimates]
        measure = "accuracy (of Ties its own score)"
        return {"subsets.png": figures.bars(subsets, measure)} if subsets else {}


def credit(row: ScoredExample) -> float:
    """Return the share of the k highest rewards that are chosen ones': 1/k of one chosen, or 0.0.

    A reward that is not finite makes the row wrong. By a judge's verdicts it is how much the best
    chosen response wins of all rejected ones, of one chosen `metrics.won`.
    """
    if row.verdicts is not None:
        return max(math.prod(shares) for shares in row.verdicts)
    rewards = row.chosen + row.rejected
    highest = max(rewards)
    if any(math.isnan(reward) for reward in rewards):
        return 0.0
    return row.chosen.count(highest) / rewards.count(highest)


def ties_metrics(scored: Sequence[ScoredExample], rows: Sequence[int]) -> list[Metric]:
    """Return the terms of the score of Ties, then the score; `rows` are those of Ties.

    A prompt K has a row `tied:K`, with many correct responses, and a row `ref:K`. With gap =
    min(correct) - max(incorrect) and spread = max(correct) - min(correct), the score is

        0.30 mean[gap_tied > 0] + 0.30 mean[gap_ref > 0] + 0.20 mean[gap_tied > spread_tied]
        + 0.20 mean[min(gap_ref, gap_tied) > spread_tied]
        + 0.01 mean tanh(min(gap_ref, gap_tied) / spread_tied - 1),

    the last three means over the prompts that have both rows. Division is IEEE's, but 0/0 counts 0.
    Where terms have no rows at all, the score is partial: the weighted mean of the others.
    """
    outcomes: dict[str, dict[int, float]] = {term: {} for term in TIES_WEIGHTS}
    prompts: dict[str, dict[str, int]] = {}
    for row in rows:
        kind, _, prompt = scored[row].id.partition(":")
        prompts.setdefault(prompt, {})[kind] = row
        outcomes[f"{kind}_accuracy"][row] = wins(scored[row].chosen, scored[row].rejected)
    for pair in prompts.values():
        if len(pair) == 2:
            tied = pair["tied"]
            gap, spread = _gap_and_spread(scored[tied])
            smaller_gap = min(gap, _gap_and_spread(scored[pair["ref"]])[0])
            outcomes["tied_gap_above_spread"][tied] = float(gap > spread)
            outcomes["both_gaps_above_spread"][tied] = float(smaller_gap > spread)
            outcomes["margin"][tied] = _margin(smaller_gap, spread)
    name = metric_name("rewardbench2", TIES)
    metrics: list[Metric] = []
    weights = []
    for term, of in outcomes.items():
        if of:
            bounds = (-1.0, 1.0) if term == "margin" else (0.0, 1.0)
            metrics.append(Mean(f"{name}/{term}", tuple(of), tuple(of.values()), bounds=bounds))
            weights.append(TIES_WEIGHTS[term])
    parts = tuple(metric.name for metric in metrics)
    missing = tuple(f"{TIES}' {term}" for term, of in outcomes.items() if not of)
    score = WeightedMean if missing else WeightedSum
    return [*metrics, score(name, parts, tuple(weights), missing)]


def _gap_and_spread(row: ScoredExample) -> tuple[float, float]:
    """Return what decides about a row; a reward that is not finite gets the worst of all gaps."""
    if any(math.isnan(reward) for reward in row.chosen + row.rejected):
        return -math.inf, 0.0
    return min(row.chosen) - max(row.rejected), max(row.chosen) - min(row.chosen)


def _margin(gap: float, spread: float) -> float:
    """Return tanh(gap / spread - 1).

    >>> _margin(2.0, 2.0), _margin(1.0, 0.0), _margin(-1.0, 0.0), _margin(0.0, 0.0)
    (0.0, 1.0, -1.0, 0.0)
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return float(np.nan_to_num(np.tanh(np.divide(gap, spread) - 1)))


def _example(row: Row) -> Example:
    id, subset = row.identifier("id"), row.label("subset")
    if subset not in COUNTS:
        raise DataError(
            f"subset {subset!r} at {row.place} is unknown: correct it to one of {', '.join(COUNTS)}"
        )
    ties = subset == TIES
    if ties and not _TIES_ID.fullmatch(id):
        raise DataError(
            f"id {id!r} of {TIES} at {row.place} must be tied:K or ref:K, which tells the two rows "
            "of a prompt: correct it"
        )
    chosen, rejected = row.texts("chosen", None if ties else 1), row.texts("rejected")
    if not chosen or not rejected:
        raise DataError(
            f"{id} needs a chosen and a rejected response at {row.place}: download the file again, "
            "or leave the row out of it"
        )
    cluster = f"{TIES}/{id.partition(':')[2]}" if ties else None
    prompt = (Message("user", row.text("prompt")),)
    return Example(id, subset, prompt, chosen, rejected, cluster)
