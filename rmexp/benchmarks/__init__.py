"""Benchmarks: how to load their examples, and how to aggregate the rewards of these."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from rmexp.metrics import Metric
from rmexp.schema import Dataset, ScoredExample
from rmexp.stats.intervals import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Benchmark(Protocol):
    """What a benchmark offers. `headline` is the name of its most important metric."""

    name: str
    headline: str

    def load(self) -> Dataset:
        """Read, check and select the examples."""
        ...

    def metrics(self, scored: Sequence[ScoredExample]) -> list[Metric]:
        """Return the metrics of the scored examples; pure, in the order in which to show them."""
        ...

    def figures(
        self, estimates: Mapping[str, Estimate], scored: Sequence[ScoredExample]
    ) -> "dict[str, Figure]":
        """Draw the figures by file name; `estimates` are keyed by `metrics.plain_name`."""
        ...
