"""Rows of data of any size: a span of them at a time, and nothing but the span in memory."""

import hashlib
import json
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

from rmexp.data.formats import (
    json_lines,
    json_row,
    known_suffix,
    matches,
    open_parquet,
    read_rows,
    table_rows,
)
from rmexp.data.rows import Row
from rmexp.data.selection import check_include, check_source
from rmexp.data.sources import data_files, hub_table, local_path
from rmexp.errors import ConfigError, DataError

_BATCH = 1024  # rows of a Parquet file that are read at a time


@dataclass(frozen=True, slots=True)
class Span:
    """So many `rows` of a file, from its row `first` on, which is row `start` of all data."""

    number: int
    file: str
    first: int
    rows: int
    start: int


@dataclass(frozen=True, slots=True)
class Content:
    """The rows of a span, and the same as an Arrow table where they are stored as one."""

    rows: list[Row]
    table: Any = None


class _File(ABC):
    """The rows of one file, of which spans are asked for in their order, mostly."""

    form = "jsonl"  # in which rows like these are written again

    @abstractmethod
    def count(self) -> int:
        """Return how many rows there are."""

    @abstractmethod
    def read(self, first: int, rows: int) -> Content:
        """Return so many rows from `first` on."""

    @abstractmethod
    def digest(self) -> str:
        """Return what is equal for equal content."""


class _Local(_File):
    def __init__(self, path: Path, name: str) -> None:
        self._path, self._name = path, name

    def digest(self) -> str:
        """Return the SHA-256 of the file's bytes."""
        with self._path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


class _Records(_Local):
    """A file that is read from its beginning; what is passed over of JSON lines is not parsed."""

    def __init__(self, path: Path, name: str) -> None:
        super().__init__(path, name)
        self._at = 0
        self._left: Iterator[Callable[[], Row]] = iter(())
        suffix = (known_suffix(path.name) or "").lower()
        self._lines = suffix.startswith(".jsonl")

    def _begin(self) -> Iterator[Callable[[], Row]]:
        if self._lines:
            for place, line in json_lines(self._path, self._name):
                yield partial(json_row, line, self._name, place)
        else:
            for row in read_rows(self._path, self._name):
                yield partial(_itself, row)

    def count(self) -> int:
        return sum(1 for _ in self._begin())

    def read(self, first: int, rows: int) -> Content:
        if first < self._at or self._at == 0:
            self._at, self._left = 0, self._begin()
        for _ in islice(self._left, first - self._at):
            pass
        self._at = first + rows
        return Content([parse() for parse in islice(self._left, rows)])


def _itself(row: Row) -> Row:
    return row


class _Parquet(_Local):
    """A Parquet file, of which the row groups before what is asked for are passed over."""

    form = "parquet"

    def __init__(self, path: Path, name: str) -> None:
        super().__init__(path, name)
        self._at = 0
        self._rest: Any = None
        self._left: Iterator[Any] = iter(())
        with open_parquet(path) as file:
            sizes = [file.metadata.row_group(at).num_rows for at in range(file.num_row_groups)]
            self._schema = file.schema_arrow
        self._ends = list(accumulate(sizes))

    def count(self) -> int:
        return self._ends[-1] if self._ends else 0

    def read(self, first: int, rows: int) -> Content:
        import pyarrow

        group = bisect_right(self._ends, first)
        begin = self._ends[group - 1] if group else 0
        if not self._at or first < self._at or begin > self._at:
            self._at, self._rest, self._left = begin, None, self._batches(group)
        found, end = [], first + rows
        while self._at < end and (batch := self._next()) is not None:
            until = self._at + batch.num_rows
            if until > first:
                found.append(batch.slice(max(0, first - self._at), end - max(first, self._at)))
            if until > end:
                self._rest = batch.slice(end - self._at)
            self._at = min(until, end)
        table = pyarrow.Table.from_batches(found, self._schema)
        return Content(list(table_rows(table, self._name, first)), table)

    def _next(self) -> Any:
        """Return what is left of the last batch, else the next one, None at the end."""
        rest, self._rest = self._rest, None
        return next(self._left, None) if rest is None else rest

    def _batches(self, group: int) -> Iterator[Any]:
        with open_parquet(self._path) as file:
            yield from file.iter_batches(_BATCH, row_groups=range(group, len(self._ends)))


class _Hub(_File):
    """A split of a hub's data set, which its library keeps on disk as Arrow."""

    form = "parquet"

    def __init__(self, name: str, split: str, revision: str | None) -> None:
        self._name = f"{name} ({split})"
        self._named = [name, split, revision]
        self._table = hub_table(name, split, revision).with_format("arrow")

    def count(self) -> int:
        return len(self._table)

    def read(self, first: int, rows: int) -> Content:
        table = self._table[first : first + rows]
        return Content(list(table_rows(table, self._name, first)), table)

    def digest(self) -> str:
        """Return a digest of the names, and of the folders in which the library keeps the data.

        It names these by the commit, or by what the files are.
        """
        kept = [Path(each["filename"]).parent.name for each in self._table.cache_files]
        said = json.dumps([*self._named, kept, self.count()])
        return hashlib.sha256(said.encode()).hexdigest()


class RowStream:
    """Data of any size: how many rows each file has, and the rows of any span.

    `path` is a file, a folder of files of known formats, or with `split` (and `revision`) a data
    set of the hub. `include` selects files by patterns. `form` is in what form such rows are
    written. Counting reads all files but Parquet's once, and so does the `digest`. Raises DataError
    or ConfigError for what cannot be read.
    """

    def __init__(
        self,
        path: str,
        split: str | None = None,
        revision: str | None = None,
        include: Sequence[str] | None = None,
    ) -> None:
        self.source = path
        check_source(path, split, "data")
        include = check_include(include, "data")
        if split is not None:
            if include is not None:
                raise ConfigError("data.include selects files of a folder, data.split has none")
            self.source = f"{path} ({split}{f', {revision}' if revision else ''})"
            self._files: dict[str, _File] = {"": _Hub(path, split, revision)}
        else:
            files = _included(data_files(local_path(path)), include)
            self._files = {name: _open(file, name) for name, file in files.items()}
        forms = {file.form for file in self._files.values()}
        if len(forms) > 1:
            raise DataError(
                f"{path} holds Parquet and other files: select one kind, data.include=['*.parquet']"
            )
        (self.form,) = forms

    @cached_property
    def counts(self) -> dict[str, int]:
        """Return how many rows each file has. Raises DataError for a file without any."""
        counts = {name: file.count() for name, file in self._files.items()}
        for name, count in counts.items():
            if count == 0:
                raise DataError(f"{name or self.source} holds no rows: get it again")
        return counts

    @cached_property
    def digest(self) -> str:
        """Return a digest of the files' names and of all that is in them."""
        parts = [[name, file.digest()] for name, file in self._files.items()]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def spans(self, rows: int, limit: int | None = None) -> tuple[Span, ...]:
        """Divide the data, or their first `limit` rows, into spans of so many rows of one file."""
        spans: list[Span] = []
        start = 0
        for file, count in self.counts.items():
            if limit is not None:
                count = min(count, limit - start)
            for first in range(0, count, rows):
                size = min(rows, count - first)
                spans.append(Span(len(spans), file, first, size, start + first))
            start += max(count, 0)
        return tuple(spans)

    def read(self, span: Span) -> Content:
        """Return the rows of a span. Raises DataError where there are fewer than were counted."""
        content = self._files[span.file].read(span.first, span.rows)
        if len(content.rows) < span.rows:
            raise DataError(f"{span.file or self.source} has lost rows meanwhile: run it again")
        return content


def _open(path: Path, name: str) -> _File:
    suffix = known_suffix(path.name)
    if suffix is None:
        next(read_rows(path, name))  # which says so
    return _Parquet(path, name) if (suffix or "").lower() == ".parquet" else _Records(path, name)


def _included(files: dict[str, Path], include: Sequence[str] | None) -> dict[str, Path]:
    if include is None:
        return files
    for pattern in include:
        if not any(matches(pattern, name) for name in files):
            raise DataError(
                f"no file matches data.include's {pattern!r}: choose from "
                + ", ".join(list(files)[:100])
            )
    return {n: path for n, path in files.items() if any(matches(p, n) for p in include)}
