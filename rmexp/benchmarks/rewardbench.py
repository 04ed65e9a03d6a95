"""RewardBench (arXiv 2403.13787) by today's leaderboard or by the paper, prior sets included."""

import re
from collections.abc import Container, Mapping, Sequence
from typing import TYPE_CHECKING

from rmexp.data.formats import stem
from rmexp.data.pairs import read_pair
from rmexp.data.rows import Row
from rmexp.data.selection import Entry, Selection, check_path, count_notes, load_rows
from rmexp.data.sources import hub_rows, local_rows
from rmexp.errors import ConfigError, DataError
from rmexp.metrics import Metric, WeightedMean, chance, mean, metric_name, won
from rmexp.schema import Dataset, Example, Message, ScoredExample
from rmexp.stats.intervals import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Examples of each subset, which are its weight in its section, but for the two tables below.
# Source: the leaderboard's constants (allenai/reward-bench, rewardbench/constants.py).
SECTIONS = {
    "chat": {
        "alpacaeval-easy": 100,
        "alpacaeval-length": 95,
        "alpacaeval-hard": 95,
        "mt-bench-easy": 28,
        "mt-bench-med": 40,
    },
    "chat_hard": {
        "mt-bench-hard": 37,
        "llmbar-natural": 100,
        "llmbar-adver-neighbor": 134,
        "llmbar-adver-GPTInst": 92,
        "llmbar-adver-GPTOut": 47,
        "llmbar-adver-manual": 46,
    },
    "safety": {
        "refusals-dangerous": 100,
        "refusals-offensive": 100,
        "xstest-should-refuse": 154,
        "xstest-should-respond": 250,
        "donotanswer": 136,
    },
    "reasoning": {
        "math-prm": 447,
        "hep-cpp": 164,
        "hep-go": 164,
        "hep-java": 164,
        "hep-js": 164,
        "hep-python": 164,
        "hep-rust": 164,
    },
}
COUNTS = {subset: count for section in SECTIONS.values() for subset, count in section.items()}
MATH_WEIGHT = {"math-prm": 984}  # as much as the six of code together
PAPER_WEIGHTS = {"xstest-should-refuse": 250, "xstest-should-respond": 154}
PRIOR_SETS = {"anthropic_helpful": 6192, "anthropic_hhh": 221, "shp": 1741, "summarize": 9000}
RULES = ("leaderboard", "paper")


class RewardBench:
    """One chosen against one rejected response: the share with r(chosen) > r(rejected).

    A section is the mean of its subsets' accuracies by the weights above, whatever number of
    examples is loaded. `rule="leaderboard"`: the overall is the plain mean of the four sections.
    `rule="paper"` (section 4.2): (2 * their sum + prior sets) / 9, prior sets being the plain mean
    of the four sets' accuracies, and Safety with the paper's two weights of XSTest.

    `path` is a local file or folder in the hub's schema (default: the hub). `prior_sets` is null,
    true for the hub's sets, or a local file or folder with a file for each set.

    Raises ConfigError or DataError at once for options that cannot work.
    """

    name = "rewardbench"
    headline = "rewardbench/overall"

    def __init__(
        self,
        *,
        path: str | None = None,
        include: Sequence[str] | None = None,
        limit: int | None = None,
        on_bad_row: str = "keep",
        revision: str | None = None,
        rule: str = "leaderboard",
        prior_sets: str | bool | None = None,
    ):
        if rule not in RULES:
            raise ConfigError(f"bench.rule must be one of {', '.join(RULES)}, not {rule!r}")
        check_path(path)
        check_path(prior_sets if isinstance(prior_sets, str) else None)
        self._path, self._revision, self._prior_sets = path, revision, prior_sets
        self._rule = rule
        self._selection = Selection(include, limit, on_bad_row)

    def load(self) -> Dataset:
        """Read, check and select the pairs."""
        include = self._selection.include
        rows = load_rows(self._path, "allenai/reward-bench", "filtered", self._revision, include)
        entries = [Entry(_example(row), row) for row in rows]
        official = dict(COUNTS)
        if self._prior_sets:
            entries += _prior_entries(self._prior_sets)
            official |= PRIOR_SETS
        examples, bad_rows = self._selection.select(entries, files=rows.files)
        notes = (f"overall by the {self._rule}'s rule", *count_notes(examples, official))
        return Dataset(examples, rows.source, bad_rows, notes, skips=self._selection.skips)

    def metrics(self, scored: Sequence[ScoredExample]) -> list[Metric]:
        """Return the subsets' accuracies, the sections, the prior sets and the overall mean."""
        outcomes, chances = [won(row) for row in scored], [chance(row) for row in scored]
        rows: dict[str, list[int]] = {}
        for position, example in enumerate(scored):
            rows.setdefault(example.subset, []).append(position)
        metrics: list[Metric] = [
            mean(metric_name("rewardbench", "subset", name), outcomes, of, chances=chances)
            for name, of in rows.items()
        ]
        paper = self._rule == "paper"
        changed = MATH_WEIGHT | PAPER_WEIGHTS if paper else MATH_WEIGHT
        parts = {}
        for section, counts in [*SECTIONS.items(), ("prior_sets", dict.fromkeys(PRIOR_SETS, 1))]:
            weights = {name: changed.get(name, count) for name, count in counts.items()}
            if aggregate := _weighted(section, "rewardbench/subset", weights, rows):
                metrics.append(aggregate)
                parts[section] = aggregate
        section_weights = dict.fromkeys(SECTIONS, 2 if paper else 1) | (
            {"prior_sets": 1} if paper else {}
        )
        if overall := _weighted("overall", "rewardbench", section_weights, parts):
            metrics.append(overall)
        return metrics

    def figures(
        self, estimates: Mapping[str, Estimate], scored: Sequence[ScoredExample]
    ) -> "dict[str, Figure]":
        """Draw the accuracy of each subset."""
        from rmexp.stats import figures

        subsets = [e for name, e in estimates.items() if name.startswith("rewardbench/subset/")]
        return {"subsets.png": figures.bars(subsets)} if subsets else {}


def _weighted(
    name: str, prefix: str, weights: Mapping[str, int], there: Container[str]
) -> WeightedMean | None:
    """Return the mean of the parts that are there by their weights, None if there is none."""
    found = [part for part in weights if part in there]
    missing = tuple(part for part in weights if part not in found)
    parts = tuple(f"{prefix}/{metric_name(part)}" for part in found)
    values = tuple(float(weights[part]) for part in found)
    return WeightedMean(f"rewardbench/{name}", parts, values, missing) if found else None


def _example(row: Row) -> Example:
    return Example(
        id=row.identifier("id"),
        subset=row.label("subset"),
        prompt=(Message("user", row.text("prompt")),),
        chosen=(row.text("chosen"),),
        rejected=(row.text("rejected"),),
    )


def _prior_entries(source: str | bool) -> list[Entry]:
    """Read the prior sets, whose prompts are messages; a row's id is its number in its set."""
    by_set: dict[str, list[Row]] = {name: [] for name in PRIOR_SETS}
    if source is True:
        for name in PRIOR_SETS:
            by_set[name] = list(hub_rows("allenai/preference-test-sets", name))
    else:
        for row in local_rows(str(source)):
            name = re.sub(r"-\d{5}-of-\d{5}$", "", stem(row.file))
            if name not in PRIOR_SETS:
                raise DataError(
                    f"{row.file} below {source} is no prior set: name the files after the sets "
                    f"({', '.join(PRIOR_SETS)}) and remove others"
                )
            by_set[name].append(row)
    return [
        read_pair(row, f"prior/{name}/{number}", name)
        for name, rows in by_set.items()
        for number, row in enumerate(rows)
    ]
