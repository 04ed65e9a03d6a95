"""Sources of preference pairs to train on: a name for each in conf/data."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from rmexp.data import toy
from rmexp.data.pairs import PairParser, check_pairs_per_prompt, pairs_apart
from rmexp.data.rankings import read_ranking
from rmexp.data.rows import Row
from rmexp.data.selection import Entry, Selection, load_rows
from rmexp.data.sources import is_there, local_path
from rmexp.errors import ConfigError, DataError
from rmexp.files import is_hub_name
from rmexp.schema import Dataset, Example


class Source(Protocol):
    """What training needs of data: examples with one chosen and one rejected response."""

    name: str

    def load(self) -> Dataset:
        """Read, check and select the pairs."""
        ...


class ToyPairs:
    """Pairs of `rmexp.data.toy`'s training split, whose prompts are in no benchmark.

    Domains, `grades` and styles come by turns. Raises ConfigError at once for options that cannot
    work.
    """

    name = "toy"

    def __init__(self, *, pairs: int = 64, grades: Sequence[str] = toy.GRADES):
        if isinstance(pairs, bool) or not isinstance(pairs, int) or pairs < 2:
            raise ConfigError(f"data.pairs={pairs}: give a whole number of 2 or more pairs")
        if isinstance(grades, str) or not grades or not set(grades) <= set(toy.GRADES):
            raise ConfigError(
                f"data.grades={grades}: give a list of one or more of {', '.join(toy.GRADES)}"
            )
        self._pairs, self._grades = pairs, tuple(grades)

    def load(self) -> Dataset:
        """Generate the pairs."""
        return Dataset(toy.pairs(self._pairs, self._grades), source="rmexp.data.toy (train)")


class PreferencePairs:
    """Pairs from a local file or folder, or from a split of a hub data set.

    `path` is the one if something lies there, else the name of the other. The data have one of the
    forms of `rmexp.data.pairs.PairParser`, which has `columns` and `pairs_per_prompt`;
    `subset_column` names the column that `include` may select by and `limit` counts in. Bad rows
    are left out by default; they are always counted.

    Raises ConfigError or DataError at once for options that cannot work.
    """

    name = "preference"

    def __init__(
        self,
        *,
        path: str,
        split: str | None = None,
        revision: str | None = None,
        include: Sequence[str] | None = None,
        limit: int | None = None,
        offset: int = 0,
        on_bad_row: str = "skip",
        subset_column: str | None = None,
        columns: Mapping[str, str] | None = None,
        pairs_per_prompt: int | None = None,
    ):
        self._local = _local(path, split)
        self._path, self._split, self._revision = path, split, revision
        self._selection = Selection(include, limit, on_bad_row, group="data", offset=offset)
        self._parser = PairParser(
            columns=columns,
            subset_column=subset_column,
            pairs_per_prompt=pairs_per_prompt,
            group="data",
        )

    def load(self) -> Dataset:
        """Read, check and select the pairs."""
        local = self._path if self._local else None
        include = self._selection.include
        rows = load_rows(local, self._path, self._split or "", self._revision, include)
        return self._parser.load(rows, self._selection)


class RecordedPairs:
    """Pairs from responses with recorded rewards, which rank the responses of a prompt.

    Rows hold what `rmexp.data.rankings.read_ranking` describes. The pairs are those of
    `rmexp.data.pairs.pairs_apart`, by default the best with the worst, whose rewards differ
    by more than `smallest_gap`. Where and from what: see `PreferencePairs`.
    """

    name = "bon100"

    def __init__(
        self,
        *,
        path: str,
        split: str | None = None,
        revision: str | None = None,
        pairs_per_prompt: int | None = 1,
        smallest_gap: float = 0.0,
        include: Sequence[str] | None = None,
        limit: int | None = None,
        on_bad_row: str = "skip",
    ):
        if not isinstance(smallest_gap, int | float) or not 0 <= smallest_gap < math.inf:
            raise ConfigError(f"data.smallest_gap={smallest_gap}: give a reward of 0 or more")
        self._local = _local(path, split)
        self._path, self._split, self._revision = path, split, revision
        self._pairs, self._gap = check_pairs_per_prompt(pairs_per_prompt, "data"), smallest_gap
        self._selection = Selection(include, limit, on_bad_row, group="data")

    def load(self) -> Dataset:
        """Read the responses, rank them, and pair them."""
        local = self._path if self._local else None
        include = self._selection.include
        rows = load_rows(local, self._path, self._split or "", self._revision, include)
        with_pairs: set[str] = set()
        examples, bad_rows = self._selection.select(
            self._entries(rows, with_pairs), files=rows.files
        )
        if not examples:
            raise DataError(
                f"no two responses of {rows.source} differ by more than data.smallest_gap="
                f"{self._gap}: give a smaller one"
            )
        note = f"{len(with_pairs)} of {rows.count} prompts have responses far enough apart"
        notes = (note,) if len(with_pairs) < rows.count else ()
        return Dataset(examples, rows.source, bad_rows, notes, skips=self._selection.skips)

    def _entries(self, rows: Iterable[Row], with_pairs: set[str]) -> Iterator[Entry]:
        for number, row in enumerate(rows):
            read = read_ranking(row, str(number))
            example = read.example
            if row.flaw or read.flaw:
                yield read
                continue
            responses = example.rejected[-len(example.recorded) :]
            ranked = list(zip(example.recorded, responses, strict=True))
            pairs, _ = pairs_apart(ranked, self._pairs, self._gap)
            with_pairs |= {row.place} if pairs else set()
            for rank, (best, worst) in enumerate(pairs):
                id = f"{number}/{rank}"
                yield Entry(Example(id, example.subset, example.prompt, (best,), (worst,)), row)


def _local(path: str, split: str | None) -> bool:
    """Return whether the data lie on this machine; raise DataError where they lie nowhere."""
    if not isinstance(path, str) or not path:
        raise ConfigError("data.path is empty: give a file, a folder, or a hub data set's name")
    if is_there(path):
        return True
    if not is_hub_name(path):
        local_path(path)
    if split is None:
        raise DataError(
            f"{path} does not exist here: check data.path, or set data.split for a hub data set"
        )
    return False
