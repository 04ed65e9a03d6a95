"""JudgeBench (arXiv 2410.12784): hard pairs of one model's answers, of which one is correct."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rmexp.data.rows import Row, Rows
from rmexp.data.selection import Entry, Selection, check_path, count_notes
from rmexp.data.sources import hub_rows, local_rows
from rmexp.errors import ConfigError, DataError
from rmexp.metrics import Metric, chance, mean, wins
from rmexp.schema import Dataset, Example, Message, ScoredExample
from rmexp.stats.intervals import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What a category's sources begin with, and the pairs of each answering model (table 1 and 7).
CATEGORIES = {
    "knowledge": "mmlu-pro-",
    "reasoning": "livebench-reasoning",
    "math": "livebench-math",
    "coding": "livecodebench",
}
COUNTS = {
    "gpt-4o": {"knowledge": 154, "reasoning": 98, "math": 56, "coding": 42},
    "claude": {"knowledge": 154, "reasoning": 51, "math": 34, "coding": 31},
}
DEFAULT = ("gpt-4o*",)
RULES = ("strict", "authors")


class JudgeBench:
    """The share of pairs whose correct answer gets the higher reward; a tie is wrong.

    The overall is over all pairs, not over the categories. A judge plays two games, the answers
    swapped. `rule="strict"`: it is right where it wins both. `rule="authors"` counts +1 for a game
    won and -1 for one lost, and is right above 0: one won and one that was not parsed will do. A
    classifier of pairs has one verdict of both games, and the rules are the same for it.

    `path` is one of upstream's two files or a folder of them (default: the hub). The subsets are
    `<answering model>/<source>`, and `include` is null for GPT-4o's answers, or of one file for
    all that is in it.

    Raises ConfigError or DataError at once for options that cannot work.
    """

    name = "judgebench"
    headline = "judgebench/overall"

    def __init__(
        self,
        *,
        path: str | None = None,
        include: Sequence[str] | None = None,
        limit: int | None = None,
        on_bad_row: str = "keep",
        revision: str | None = None,
        rule: str = "strict",
    ):
        if rule not in RULES:
            raise ConfigError(f"bench.rule must be one of {', '.join(RULES)}, not {rule!r}")
        check_path(path)
        self._path, self._revision, self._rule = path, revision, rule
        one_file = path is not None and Path(path).expanduser().is_file()
        chosen = include if include is not None or one_file else DEFAULT
        self._selection = Selection(chosen, limit, on_bad_row)

    def load(self) -> Dataset:
        """Read, check and select the pairs."""
        rows = self._rows()
        data = [row for row in rows if not {"judgments", "score_A"} & set(row.values)]
        results = rows.count - len(data)
        entries = (Entry(_example(row), row) for row in data)
        examples, bad_rows = self._selection.select(entries, part=_part, files=rows.files)
        models = {name for name in COUNTS for e in examples if e.subset.startswith(name)}
        official = {
            f"{model}/{category}": count
            for model in sorted(models)
            for category, count in COUNTS[model].items()
        }
        notes = [
            f"a judge's two games by the rule {self._rule}",
            *count_notes(examples, official, _part),
        ]
        if results:
            notes.append(f"{results} rows left out, which are results of judges and reward models")
        return Dataset(examples, rows.source, bad_rows, tuple(notes), skips=self._selection.skips)

    def metrics(self, scored: Sequence[ScoredExample]) -> list[Metric]:
        """Return the accuracy over all pairs, then that of the categories."""
        outcomes, chances = [self._right(row) for row in scored], [chance(row) for row in scored]
        rows: dict[str, list[int]] = {name: [] for name in CATEGORIES}
        for position, row in enumerate(scored):
            rows[_category(row.subset.rpartition("/")[2])].append(position)
        missing = tuple(name for name, of in rows.items() if not of)
        every = mean(self.headline, outcomes, range(len(scored)), missing, chances)
        parts = [
            mean(f"{self.name}/{name}", outcomes, of, chances=chances)
            for name, of in rows.items()
            if of
        ]
        return [every, *parts] if scored else []

    def figures(
        self, estimates: Mapping[str, Estimate], scored: Sequence[ScoredExample]
    ) -> "dict[str, Figure]":
        """Draw the accuracy of each category."""
        from rmexp.stats import figures

        names = [f"{self.name}/{name}" for name in CATEGORIES]
        there = [estimates[name] for name in names if name in estimates]
        return {"categories.png": figures.bars(there)} if there else {}

    def _rows(self) -> Rows:
        if self._path is not None:
            return local_rows(self._path)
        splits = ["gpt"] if self._selection.include == DEFAULT else ["gpt", "claude"]

        def of_splits() -> Iterator[Row]:
            for split in splits:
                yield from hub_rows("ScalerLab/JudgeBench", split, self._revision)

        revision = f", {self._revision}" if self._revision else ""
        return Rows(of_splits(), f"ScalerLab/JudgeBench ({' and '.join(splits)}{revision})")

    def _right(self, row: ScoredExample) -> float:
        if row.verdicts is None:
            return wins(row.chosen, row.rejected)
        share = row.verdicts[0][0]
        return float(share == 1.0 if self._rule == "strict" else share > 0.5)


def _category(source: str) -> str:
    return next(name for name, start in CATEGORIES.items() if source.startswith(start))


def _part(example: Example) -> str:
    model, _, source = example.subset.rpartition("/")
    known = next((name for name in COUNTS if model.startswith(name)), model)
    return f"{known}/{_category(source)}"


def _example(row: Row) -> Example:
    source, label = row.label("source"), row.label("label")
    if not source.startswith(tuple(CATEGORIES.values())) or "/" in source:
        raise DataError(
            f"source {source!r} at {row.place} is unknown: it must begin with one of "
            f"{', '.join(CATEGORIES.values())}; download the file again"
        )
    if label not in ("A>B", "B>A"):
        raise DataError(
            f"label {label!r} at {row.place} is neither A>B nor B>A: download the file again"
        )
    answers = row.text("response_A"), row.text("response_B")
    good = 0 if label == "A>B" else 1
    return Example(
        id=row.identifier("pair_id"),
        subset=f"{row.label('response_model')}/{source}",
        prompt=(Message("user", row.text("question")),),
        chosen=(answers[good],),
        rejected=(answers[1 - good],),
        upstream=(good, 1 - good),
    )
