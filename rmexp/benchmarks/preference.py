"""Any preference data: chosen against rejected responses, from a file or the hub."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rmexp.benchmarks.rewardbench2 import credit
from rmexp.data.pairs import PairParser
from rmexp.data.selection import Selection, check_source, load_rows
from rmexp.errors import ConfigError, DataError
from rmexp.metrics import Metric, chance, mean, metric_name, won
from rmexp.schema import Dataset, ScoredExample
from rmexp.stats.intervals import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Preference:
    """The share of pairs with r(chosen) > r(rejected), and of lists with all of them in order.

    Of several chosen and rejected responses every chosen one must be rewarded above every rejected
    one; a tie is wrong. Where there are such rows, `best_of_n` is how often a chosen response is
    ranked first: 1/k of a point for each that is among k equal highest ones.

    `path` is a local file or folder, or with `split` (and `revision`) a data set of the hub, in one
    of the forms of `rmexp.data.pairs.PairParser`, which has `columns` and `pairs_per_prompt`.
    `subset_column` names the column to report by as well. `name` begins the metrics' names: two
    sets of pairs need not share them.

    Raises ConfigError or DataError at once for options that cannot work.
    """

    name = "preference"
    headline = "preference/accuracy"

    def __init__(
        self,
        *,
        name: str | None = None,
        path: str | None = None,
        split: str | None = None,
        revision: str | None = None,
        include: Sequence[str] | None = None,
        limit: int | None = None,
        offset: int = 0,
        on_bad_row: str = "error",
        subset_column: str | None = None,
        columns: Mapping[str, str] | None = None,
        pairs_per_prompt: int | None = None,
    ):
        self.name = metric_name(name or Preference.name)
        self.headline = f"{self.name}/accuracy"
        if path is None:
            raise ConfigError(
                "bench=preference needs data: set bench.path to a file or folder, or to the name "
                "of a hub data set together with bench.split"
            )
        if split is None and revision is not None:
            raise ConfigError("bench.revision is for hub data sets: set bench.split as well")
        check_source(path, split, "bench")
        self._path, self._split, self._revision = path, split, revision
        self._subset_column = subset_column
        self._selection = Selection(include, limit, on_bad_row, offset=offset)
        self._parser = PairParser(
            columns=columns,
            subset_column=subset_column,
            pairs_per_prompt=pairs_per_prompt,
            group="bench",
            lists=True,
        )

    def load(self) -> Dataset:
        """Read, check and select the pairs."""
        local = self._path if self._split is None else None
        include = self._selection.include
        rows = load_rows(local, self._path, self._split or "", self._revision, include)
        data = self._parser.load(rows, self._selection)
        names: dict[str, str] = {}
        for subset in dict.fromkeys(example.subset for example in data.examples):
            other = names.setdefault(self._subset(subset), subset)
            if other != subset:
                raise DataError(
                    f"the subsets {other!r} and {subset!r} of {data.source} have one metric, "
                    f"{self._subset(subset)}: rename one of them"
                )
        return data

    def metrics(self, scored: Sequence[ScoredExample]) -> list[Metric]:
        """Return the accuracy over all rows, then that of each subset if these were asked for."""
        outcomes, chances = [won(row) for row in scored], [chance(row) for row in scored]
        if not scored:
            return []
        metrics: list[Metric] = [mean(self.headline, outcomes, range(len(scored)), chances=chances)]
        if any(len(row.chosen) > 1 or len(row.rejected) > 1 for row in scored):
            credits = [credit(row) for row in scored]
            metrics.append(mean(f"{self.name}/best_of_n", credits, range(len(scored))))
        if self._subset_column is not None:
            for subset in dict.fromkeys(row.subset for row in scored):
                rows = [i for i, row in enumerate(scored) if row.subset == subset]
                metrics.append(mean(self._subset(subset), outcomes, rows, chances=chances))
        return metrics

    def figures(
        self, estimates: Mapping[str, Estimate], scored: Sequence[ScoredExample]
    ) -> "dict[str, Figure]":
        """Draw the accuracy of each subset."""
        from rmexp.stats import figures

        prefix = f"{self.name}/subset/"
        subsets = [e for name, e in estimates.items() if name.startswith(prefix)]
        return {"subsets.png": figures.bars(subsets)} if subsets else {}

    def _subset(self, subset: str) -> str:
        return metric_name(self.name, "subset", subset)
