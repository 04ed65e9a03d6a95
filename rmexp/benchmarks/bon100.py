"""Best of 100: how a reward model ranks responses whose rewards were recorded (RAFT-GSHF)."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rmexp.data.rankings import read_ranking
from rmexp.data.selection import Selection, check_path, load_rows
from rmexp.metrics import ANY, Mean, Metric
from rmexp.schema import Dataset, ScoredExample
from rmexp.stats.bestofn import HIGHEST, RECORDED, expected_best, shown
from rmexp.stats.intervals import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HUB = "andrewsiah/rewarded-Mistral-RM-for-RAFT-GSHF-v0"


class BestOf100:
    """N responses to each prompt, ranked by the reward model under test.

    - `best_of/<n>`: the expected recorded reward of the response ranked first among n drawn, for
      every n in `curve.csv`, beside the highest that a ranking can reach.
    - `spearman`, `kendall` (tau-b): the rank correlation with the recorded rewards, prompt by
      prompt. It is undefined where either side is constant: such prompts are left out and named.
    - `share_below/{chosen,rejected}`: where RewardBench's two responses fall, as the share of the N
      responses that are ranked below, equal ones counting half.

    `path` is a local file or folder in the hub's schema (default: the hub). Rows may have any
    number of responses; the curve ends at the smallest.

    Raises ConfigError or DataError at once for options that cannot work.
    """

    name = "bon100"
    headline = "bon100/spearman"

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
        """Read, check and select the prompts with their responses."""
        include = self._selection.include
        rows = load_rows(self._path, HUB, "train", self._revision, include)
        entries = (read_ranking(row, str(number)) for number, row in enumerate(rows))
        examples, bad_rows = self._selection.select(
            entries, part=lambda example: self.name, files=rows.files, whole=True
        )
        counts = [len(example.recorded) for example in examples]
        note = f"{min(counts)} to {max(counts)} responses a prompt: the curve ends at {min(counts)}"
        notes = (*rows.notes, note) if len(set(counts)) > 1 else rows.notes
        rated = frozenset(example.subset for example in examples)
        return Dataset(examples, rows.source, bad_rows, notes, rated, self._selection.skips)

    def metrics(self, scored: Sequence[ScoredExample]) -> list[Metric]:
        """Return the agreement, the curve, and the places of RewardBench's responses."""
        if not scored:
            return []
        rewards = [ranked(row) for row in scored]
        return [
            *agreement_metrics(self.name, scored, rewards),
            *curve_metrics(self.name, scored, rewards),
            *_places(self.name, scored, rewards),
        ]

    def figures(
        self, estimates: Mapping[str, Estimate], scored: Sequence[ScoredExample]
    ) -> "dict[str, Figure]":
        """Draw nothing besides the curve, which every evaluation draws."""
        return {}


def ranked(row: ScoredExample) -> tuple[float, ...]:
    """Return the rewards of the responses that have recorded ones, -inf for one that is NaN."""
    rewards = row.rejected[-len(row.recorded) :]
    return tuple(-math.inf if math.isnan(reward) else reward for reward in rewards)


def agreement_metrics(
    name: str, scored: Sequence[ScoredExample], rewards: Sequence[Sequence[float]]
) -> list[Metric]:
    """Return the rank correlations of `rewards` with the recorded ones, prompt by prompt."""
    from scipy.stats import kendalltau, spearmanr

    rows = [
        position
        for position, row in enumerate(scored)
        if len(set(row.recorded)) > 1 and len(set(rewards[position])) > 1
    ]
    undefined = tuple(row.id for position, row in enumerate(scored) if position not in set(rows))
    return [
        Mean(
            f"{name}/{agreement}",
            tuple(rows),
            tuple(float(measure(rewards[i], scored[i].recorded).statistic) for i in rows),
            undefined=undefined,
            bounds=(-1.0, 1.0),
        )
        for agreement, measure in (("spearman", spearmanr), ("kendall", kendalltau))
    ]


def curve_metrics(
    name: str, scored: Sequence[ScoredExample], rewards: Sequence[Sequence[float]]
) -> list[Metric]:
    """Return the best-of-n curve by `rewards`, the highest possible, and some of its points."""
    count = min(len(row.recorded) for row in scored)
    every = range(len(scored))
    series = {
        "selected": [
            expected_best(of, row.recorded) for of, row in zip(rewards, scored, strict=True)
        ],
        HIGHEST: [expected_best(row.recorded, row.recorded) for row in scored],
    }
    metrics: list[Metric] = [
        Mean(
            f"{name}/best_of/{n}",
            tuple(every),
            tuple(float(one[n - 1]) for one in series["selected"]),
            bounds=ANY,
        )
        for n in shown(count)
    ]
    for own, curves in series.items():
        metrics += [
            Mean(
                f"{name}/{RECORDED}/{own}/{n}",
                tuple(every),
                tuple(float(one[n - 1]) for one in curves),
                at=n,
                bounds=ANY,
            )
            for n in range(1, count + 1)
        ]
    return metrics


def _places(
    name: str, scored: Sequence[ScoredExample], rewards: Sequence[Sequence[float]]
) -> list[Metric]:
    """Return the share of the responses below RewardBench's; a NaN is below everything."""
    metrics: list[Metric] = []
    rows = [position for position, row in enumerate(scored) if row.chosen]
    for side in ("chosen", "rejected") if rows else ():
        places = []
        for position in rows:
            row = scored[position]
            reference = (row.chosen if side == "chosen" else row.rejected)[0]
            reference = -math.inf if math.isnan(reference) else reference
            below = sum(
                (reward < reference) + (reward == reference) / 2 for reward in rewards[position]
            )
            places.append(below / len(rewards[position]))
        metrics.append(Mean(f"{name}/share_below/{side}", tuple(rows), tuple(places)))
    return metrics
