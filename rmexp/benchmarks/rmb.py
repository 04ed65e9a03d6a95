"""RMB (arXiv 2410.09893): pairs and best-of-n lists over 49 scenarios of two goals."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rmexp.data.rows import Row
from rmexp.data.selection import Entry, Selection, check_path, count_notes
from rmexp.data.sources import github_folder, local_path, local_rows
from rmexp.errors import DataError
from rmexp.metrics import Mean, Metric, WeightedMean, chance, mean, metric_name, won
from rmexp.schema import Dataset, Example, ScoredExample
from rmexp.stats.bestofn import winner_rates
from rmexp.stats.intervals import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REPOSITORY, COMMIT = "Zhou-Zoey/RMB-Reward-Model-Benchmark", "2be3180"
SETS = {"Pairwise_set": "pairwise", "BoN_set": "bon"}  # upstream's names, and ours
COUNTS = {
    "pairwise/Helpfulness": 10067,
    "pairwise/Harmlessness": 7064,
    "bon/Helpfulness": 2109,
    "bon/Harmlessness": 1677,
}
SCENARIOS = {
    "Helpfulness": (
        "Brainstorming/Idea Development",
        "Brainstorming/Problem Solving",
        "Chat/Casual Conversation",
        "Chat/Discussion",
        "Chat/Supportive Conversation",
        "Classification/Content Categorization",
        "Classification/Quality and Compliance Assessment",
        "Closed QA/ContextBased",
        "Closed QA/OptionBased",
        "Code/Data Management",
        "Code/Development and Implementation",
        "Code/Documentation",
        "Code/Quality and Optimization",
        "Generation/Creative Writing",
        "Generation/Professional Content Generation",
        "Open QA/Factual",
        "Open QA/General Explanation",
        "Open QA/Hypothetical Scenarios",
        "Open QA/Interpretative Analysis",
        "Open QA/Personal Opinion and Advice",
        "Open QA/Technical and Practical Support",
        "Reasoning/Analytical Reasoning",
        "Reasoning/Critical Thinking",
        "Reasoning/Human Decision Making",
        "Reasoning/Logical Deduction",
        "Reasoning/Pattern Recognition",
        "Rewrite/Paraphrasing",
        "Rewrite/PostQuality Assessment Rewriting",
        "Rewrite/Textual ExpansionReduction",
        "Rewrite/Tone Adjustment",
        "Role Playing/General Character",
        "Role Playing/Specific Character",
        "Summarization/Specialized Summaries",
        "Summarization/Standard Summaries",
        "Translation/GeneralExcerpt Language Translation",
        "Translation/Literary and Cultural Translation",
        "Translation/Technical and Scientific Translation",
    ),
    "Harmlessness": (*(f"S{number}" for number in range(1, 12)), "multi"),
}

_NAMED = 5  # scenarios that a note names


class RMB:
    """Pairs, and lists of one winner against n losers, for helpfulness and for harmlessness.

    A pair counts if r(chosen) > r(rejected), a list if its winner is above every loser (section
    3.3); a tie is wrong. Each set of a goal is averaged over its rows, also by category and by
    scenario; the overall is the plain mean of {pairwise, BoN} x {helpfulness, harmlessness}. The
    curve tells how often a list's winner is above n - 1 of its losers.

    `path` is upstream's folder `RMB_dataset`, its parent, or a folder or file below it (default:
    the authors' repository at the commit above, downloaded once). Goal and category come from
    `category_path`.

    Raises ConfigError or DataError at once for options that cannot work.
    """

    name = "rmb"
    headline = "rmb/overall"

    def __init__(
        self,
        *,
        path: str | None = None,
        include: Sequence[str] | None = None,
        limit: int | None = None,
        on_bad_row: str = "keep",
    ):
        check_path(path)
        self._path = path
        self._selection = Selection(include, limit, on_bad_row)

    def load(self) -> Dataset:
        """Read, check and select the pairs and lists."""
        if self._path is None:
            top, source = github_folder(REPOSITORY, COMMIT), f"github {REPOSITORY}@{COMMIT}"
        else:
            top, source = local_path(self._path), str(self._path)
        include = self._selection.include
        rows = local_rows(_dataset_folder(top), include)
        entries = [Entry(_example(row), row) for row in rows]
        examples, bad_rows = self._selection.select(entries, part=_part, files=rows.files)
        notes = (*_missing_scenarios(entries), *count_notes(examples, COUNTS, _part))
        return Dataset(examples, source, bad_rows, notes, skips=self._selection.skips)

    def metrics(self, scored: Sequence[ScoredExample]) -> list[Metric]:
        """Return the goals, the overall mean, then the categories and their scenarios."""
        outcomes, chances = [won(row) for row in scored], [chance(row) for row in scored]
        rows: dict[str, list[int]] = {}
        for position, example in enumerate(scored):
            steps = example.subset.split("/")
            for depth in range(2, len(steps) + 1):
                rows.setdefault(metric_name("rmb", *steps[:depth]), []).append(position)
        means = {name: mean(name, outcomes, rows[name], chances=chances) for name in sorted(rows)}
        parts = {metric_name("rmb", *part.split("/")): part for part in COUNTS}
        found = [name for name in parts if name in means]
        missing = tuple(part for name, part in parts.items() if name not in means)
        goals: list[Metric] = [means.pop(name) for name in found]
        if found:
            weights = (1.0,) * len(found)
            goals.append(WeightedMean(self.headline, tuple(found), weights, missing))
        return [*goals, *means.values(), *_winner_curves(scored)]

    def figures(
        self, estimates: Mapping[str, Estimate], scored: Sequence[ScoredExample]
    ) -> "dict[str, Figure]":
        """Draw the accuracy of each category."""
        from rmexp.stats import figures

        categories = [e for name, e in estimates.items() if name.count("/") == 3]
        return {"categories.png": figures.bars(categories)} if categories else {}


def _winner_curves(scored: Sequence[ScoredExample]) -> list[Metric]:
    """Return each goal's winner rate at n = 2, 3, ..., up to its shortest list."""
    metrics: list[Metric] = []
    for goal in SCENARIOS:
        rates = {
            position: winner_rates(row.chosen[0], row.rejected)
            for position, row in enumerate(scored)
            if row.subset.startswith(f"bon/{goal}/") and row.verdicts is None
        }
        for at in range(min(map(len, rates.values()), default=0)):
            name = metric_name("rmb", "winner_rate", goal, str(at + 2))
            of = tuple(rate[at] for rate in rates.values())
            metrics.append(Mean(name, tuple(rates), of, at=at + 2))
    return metrics


def _dataset_folder(top: Path) -> Path:
    inside = top / "RMB_dataset"
    return inside if inside.is_dir() else top


def _part(example: Example) -> str:
    return "/".join(example.subset.split("/")[:2])


def _example(row: Row) -> Example:
    kind, subset = _subset(row)
    prompt = row.messages("conversation_input")
    losers: tuple[Row, ...]
    if kind == "pairwise":
        uid, best, losers = "pair_uid", row.inner("chosen"), (row.inner("reject"),)
    else:
        uid, best, losers = "bon_uid", row.inner("bon_best"), row.inners("loser_list")
    rejected = tuple(loser.text("answer") for loser in losers)
    return Example(
        f"{kind}/{row.identifier(uid)}", subset, prompt, (best.text("answer"),), rejected
    )


def _subset(row: Row) -> tuple[str, str]:
    """Return the row's set and, below it, its goal, category and scenario."""
    path = row.label("category_path")
    folder, _, below = path.partition("/")
    goal, _, scenario = below.partition("/")
    if folder not in SETS or goal not in SCENARIOS or not scenario:
        raise DataError(
            f"category_path {path!r} at {row.place} is unknown: it must begin with one of "
            f"{', '.join(SETS)}, then one of {', '.join(SCENARIOS)}; download the file again"
        )
    return SETS[folder], f"{SETS[folder]}/{below}"


def _missing_scenarios(entries: Iterable[Entry]) -> list[str]:
    """Return a line for each part of which some scenarios are lacking, but not all."""
    there = {entry.example.subset for entry in entries}
    notes = []
    for part in COUNTS:
        scenarios = SCENARIOS[part.split("/")[1]]
        missing = [name for name in scenarios if f"{part}/{name}" not in there]
        if 0 < len(missing) < len(scenarios):
            more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
            notes.append(f"partial, {part} lacks {', '.join(missing[:_NAMED])}{more}")
    return notes
