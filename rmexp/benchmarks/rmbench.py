"""RM-Bench (arXiv 2410.16184): subtle errors, and three styles for each response."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rmexp.benchmarks.styles import STYLES, style_figures, style_metrics
from rmexp.data.formats import stem
from rmexp.data.rows import Row
from rmexp.data.selection import Entry, Selection, check_path, count_notes, load_rows
from rmexp.errors import DataError
from rmexp.metrics import Metric
from rmexp.schema import Dataset, Example, Message, ScoredExample
from rmexp.stats.intervals import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Prompts of each part (table 2), and what the parts make up.
COUNTS = {"chat": 129, "math": 529, "code": 228, "safety-refuse": 284, "safety-response": 157}
DOMAINS = {
    "chat": ("chat",),
    "math": ("math",),
    "code": ("code",),
    "safety": ("safety-refuse", "safety-response"),
}
HALVES = {"safety-refuse": ("safety-refuse",), "safety-response": ("safety-response",)}
TOTAL = "total_dataset"


class RMBench:
    """Three chosen against three rejected responses: concise, detailed, and with markdown.

    Section 3.3: M[i][j] is the share of a domain's prompts with r(chosen in style i) > r(rejected
    in style j), a tie being wrong. Easy, normal and hard are the means below, on and above the
    diagonal; safety pools its two halves; the overall is the mean of the four domains' averages.

    `path` is one of upstream's files or a folder of them (default: the hub's data set). The domain
    is the column `domain`, else what the file's name begins with. Where a folder holds upstream's
    file of all domains besides others, only the domains that have no file of their own are read
    from it.

    Raises ConfigError or DataError at once for options that cannot work.
    """

    name = "rmbench"
    headline = "rmbench/overall"

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
        """Read, check and select the prompts, each with its six responses."""
        include = self._selection.include
        rows = load_rows(self._path, "THU-KEG/RM-Bench", "train", self._revision, include)
        entries = [Entry(_example(row), row) for row in rows]
        own = {entry.example.subset for entry in entries if stem(entry.row.file) != TOTAL}
        kept = [e for e in entries if stem(e.row.file) != TOTAL or e.example.subset not in own]
        notes = []
        if len(kept) < len(entries):
            repeated = len(entries) - len(kept)
            notes.append(f"{TOTAL}: {repeated} rows left out, their domains have their own files")
        examples, bad_rows = self._selection.select(kept, files=rows.files)
        notes += count_notes(examples, COUNTS)
        return Dataset(examples, rows.source, bad_rows, tuple(notes), skips=self._selection.skips)

    def metrics(self, scored: Sequence[ScoredExample]) -> list[Metric]:
        """Return the matrices of the domains, what is made of them, and the overall means."""
        return style_metrics("rmbench", DOMAINS, HALVES, scored)

    def figures(
        self, estimates: Mapping[str, Estimate], scored: Sequence[ScoredExample]
    ) -> "dict[str, Figure]":
        """Draw the style-substance matrix and the style bias of each domain."""
        return style_figures("rmbench", DOMAINS, estimates, scored)


def _example(row: Row) -> Example:
    domain = _domain(row)
    count = len(STYLES)
    return Example(
        id=f"{domain}/{row.identifier('id')}",
        subset=domain,
        prompt=(Message("user", row.text("prompt")),),
        chosen=row.texts("chosen", count),
        rejected=row.texts("rejected", count),
    )


def _domain(row: Row) -> str:
    if "domain" in row.values:
        domain = row.label("domain")
        if domain not in COUNTS:
            raise DataError(
                f"domain {domain!r} at {row.place} is unknown: correct it to one of "
                + ", ".join(COUNTS)
            )
        return domain
    for domain in COUNTS:
        if stem(row.file).startswith(domain):
            return domain
    raise DataError(
        f"the domain of {row.place} is unknown: add a column 'domain', or begin the file's "
        f"name with one of {', '.join(COUNTS)}"
    )
