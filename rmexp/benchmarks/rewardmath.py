"""RewardMATH (arXiv 2410.01729): one right solution against nine wrong ones of nine models."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rmexp.data.rows import Row
from rmexp.data.selection import Entry, Selection, check_path, load_rows
from rmexp.metrics import Metric, beats, chance, mean, metric_name, won
from rmexp.schema import Dataset, Example, Message, ScoredExample
from rmexp.stats.intervals import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROBLEMS, WRONG = 483, 9


class RewardMath:
    """The share of MATH-500 problems whose right solution is rewarded above nine wrong ones.

    That is `accuracy`; a tie is wrong. `mrr` is the mean reciprocal rank of the right one, which an
    equal reward comes before, and `pairs` the share of the wrong ones that it is above.

    A judge compares the right solution with each wrong one, in both orders; what it does not win
    of a point counts as so much of a rank.

    `path` is upstream's file of single solutions or of pairs, or a folder (default: the hub). The
    response is a solution's steps, a line each. Of a problem that is in both layouts the pairs are
    left out.

    Raises ConfigError or DataError at once for options that cannot work.
    """

    name = "rewardmath"
    headline = "rewardmath/accuracy"

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
        """Read the solutions, gather them by problem, check and select."""
        include = self._selection.include
        rows = load_rows(self._path, "RewardMATH/RewardMATH", "train", self._revision, include)
        data = [row for row in rows if "score" not in row.values]
        problems, repeated = _gather(data)
        entries = [problem.entry(id) for id, problem in problems.items()]
        examples, bad_rows = self._selection.select(
            entries, part=lambda example: self.name, files=rows.files
        )
        notes = []
        if results := rows.count - len(data):
            notes.append(f"{results} rows left out, which are results of reward models")
        if repeated:
            notes.append(f"{repeated} pairs left out, their problems are there as solutions")
        if len(examples) != PROBLEMS:
            notes.append(f"{len(examples)} of {PROBLEMS} problems")
        if few := [e.id for e in examples if len(e.rejected) != WRONG]:
            notes.append(f"{len(few)} problems have not {WRONG} wrong solutions: {few[0]}, ...")
        return Dataset(examples, rows.source, bad_rows, tuple(notes), skips=self._selection.skips)

    def metrics(self, scored: Sequence[ScoredExample]) -> list[Metric]:
        """Return the accuracy, the mean reciprocal rank, the share of pairs; then by subject."""
        if not scored:
            return []
        outcomes, chances = [won(row) for row in scored], [chance(row) for row in scored]
        beaten = [[beats(row, 0, at) for at in range(len(row.rejected))] for row in scored]
        ranks = [1 / (1 + sum(1 - share for share in of)) for of in beaten]
        shares = [sum(of) / len(of) for of in beaten]
        every = range(len(scored))
        metrics: list[Metric] = [
            mean(self.headline, outcomes, every, chances=chances),
            mean(f"{self.name}/mrr", ranks, every),
            mean(f"{self.name}/pairs", shares, every),
        ]
        for subject in dict.fromkeys(row.subset for row in scored):
            rows = [at for at, row in enumerate(scored) if row.subset == subject]
            name = metric_name(self.name, "subject", subject)
            metrics.append(mean(name, outcomes, rows, chances=chances))
        return metrics

    def figures(
        self, estimates: Mapping[str, Estimate], scored: Sequence[ScoredExample]
    ) -> "dict[str, Figure]":
        """Draw the accuracy of each subject."""
        from rmexp.stats import figures

        start = f"{self.name}/subject/"
        subjects = [e for name, e in estimates.items() if name.startswith(start)]
        return {"subjects.png": figures.bars(subjects)} if subjects else {}


@dataclass(slots=True)
class _Problem:
    """A problem's solutions as they were met; `singly` says that they were not met as pairs."""

    row: Row
    singly: bool
    right: dict[str, None] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def entry(self, id: str) -> Entry:
        flaw = None
        if len(self.right) != 1:
            flaw = f"{len(self.right)} right solutions, not one"
        elif not self.wrong:
            flaw = "no wrong solution"
        responses = tuple(self.right)[:1], tuple(self.wrong)
        example = Example(
            id,
            self.row.label("subject") if self.row.has("subject") else "unknown",
            (Message("user", self.row.text("problem")),),
            *responses,
            upstream=tuple(range(len(self.wrong) + 1)),
        )
        return Entry(example, self.row, flaw)


def _gather(rows: Iterable[Row]) -> tuple[dict[str, _Problem], int]:
    """Return the problems by id, and how many rows of pairs repeat what is there singly."""
    problems: dict[str, _Problem] = {}
    pairs: list[Row] = []
    for row in rows:
        if "eval_solution_A" in row.values:
            pairs.append(row)
            continue
        id = row.identifier("problem_id")
        problem = problems.setdefault(id, _Problem(row, singly=True))
        if row.label("solution_type") == "chosen":
            problem.right[_response(row, "eval_solution")] = None
        else:
            problem.wrong.append(_response(row, "eval_solution"))
    repeated = 0
    for row in pairs:
        id = row.identifier("problem_id")
        problem = problems.setdefault(id, _Problem(row, singly=False))
        if problem.singly:
            repeated += 1
            continue
        good, bad = ("A", "B") if row.label("chosen_position") == "A" else ("B", "A")
        problem.right[_response(row, f"eval_solution_{good}")] = None
        problem.wrong.append(_response(row, f"eval_solution_{bad}"))
    return problems, repeated


def _response(row: Row, column: str) -> str:
    """Return a solution: its steps, a line each, or its text."""
    value = row.get(column)
    return row.text(column) if isinstance(value, str) else "\n".join(row.texts(column))
