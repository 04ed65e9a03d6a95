"""The project's own benchmark: the problems of `rmexp.data.toy`, aggregated as RM-Bench is."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rmexp.benchmarks.styles import style_figures, style_metrics
from rmexp.data import toy
from rmexp.data.rows import Row
from rmexp.data.selection import Entry, Selection
from rmexp.metrics import Metric
from rmexp.schema import Dataset, Example, ScoredExample
from rmexp.stats.intervals import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROMPTS = 50  # of each domain

DOMAINS = {domain: tuple(f"{domain}-{grade}" for grade in toy.GRADES) for domain in toy.DOMAINS}
GRADES = {grade: tuple(f"{domain}-{grade}" for domain in toy.DOMAINS) for grade in toy.GRADES}


class Toy:
    """Three right against three wrong responses: concise, detailed, and with markdown.

    Four domains of 50 prompts, whose errors are plain and subtle by turns. `include` selects
    domains or subsets, and `limit` takes the first prompts of each domain.

    Raises ConfigError at once for options that cannot work.
    """

    name = "toy"
    headline = "toy/overall"

    def __init__(self, *, include: Sequence[str] | None = None, limit: int | None = None):
        self._selection = Selection(include, limit, "error")

    def load(self) -> Dataset:
        """Generate the examples, and select from them."""
        entries = [
            Entry(example, Row({}, file=_domain(example), place=example.id))
            for example in toy.examples("test", PROMPTS)
        ]
        examples, _ = self._selection.select(entries, part=_domain)
        return Dataset(examples, source="rmexp.data.toy")

    def metrics(self, scored: Sequence[ScoredExample]) -> list[Metric]:
        """Return the matrices of domains and grades, and the means over the domains."""
        return style_metrics(self.name, DOMAINS, GRADES, scored)

    def figures(
        self, estimates: Mapping[str, Estimate], scored: Sequence[ScoredExample]
    ) -> "dict[str, Figure]":
        """Draw the style-substance matrix and the style bias of each domain and each grade."""
        return style_figures(self.name, {**DOMAINS, **GRADES}, estimates, scored)


def _domain(example: Example) -> str:
    return example.subset.split("-")[0]
