"""The file formats that rows are read from, a row at a time where the format allows it.

JSON that is one list is parsed as a whole. Every failure is a DataError that says what, where and
what to do.
"""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from rmexp.data.rows import Row
from rmexp.errors import DataError
from rmexp.outside import parse_record, repeated_key
from rmexp.tables import named

if TYPE_CHECKING:
    import pyarrow.parquet

FORMATS = ".jsonl, .json, .csv, each also with .gz, and .parquet"
_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".jsonl.gz", ".json.gz", ".csv.gz")
_LONGEST_FIELD = 2**31 - 1  # responses may exceed csv's default of 128 KiB
_PARQUET_ROWS = 256  # that are turned into Python's values at a time


def known_suffix(name: str) -> str | None:
    """Return the end of a file's name that tells its format, None if there is none."""
    matching = [suffix for suffix in _SUFFIXES if name.lower().endswith(suffix)]
    return name[-len(matching[0]) :] if matching else None


def stem(file: str) -> str:
    """Return a file's name without folders and known suffixes."""
    name = PurePosixPath(file).name
    suffix = known_suffix(name)
    return name.removesuffix(suffix) if suffix else name


def matches(pattern: str, file: str) -> bool:
    """Return whether a pattern is for a file, by its path, with or without suffix, or its stem."""
    plain = file.removesuffix(known_suffix(file) or "")
    return any(fnmatchcase(name, pattern) for name in (file, plain, stem(file)) if name)


def read_rows(path: Path, name: str) -> Iterator[Row]:
    """Read a file of a known format; messages and `Row.file` call it `name`."""
    suffix = known_suffix(path.name)
    if suffix is None:
        raise DataError(f"the format of {path} is unknown: known are {FORMATS}")
    readers: dict[str, Callable[[Path, str], Iterator[Row]]] = {
        ".jsonl": _json_lines,
        ".json": _json_rows,
        ".csv": _csv_rows,
        ".parquet": _parquet_rows,
    }
    empty = True
    for row in readers[suffix.lower().removesuffix(".gz")](path, name):
        empty = False
        yield row
    if empty:
        raise DataError(f"{path} holds no rows: download it again, or leave it out")


def _lines(path: Path, name: str) -> Iterator[str]:
    """Yield a text's lines with their ends; only line feeds end them, as strings hold others."""
    try:
        with path.open("rb") as raw:
            file = gzip.GzipFile(fileobj=raw) if path.name.lower().endswith(".gz") else raw
            for number, line in enumerate(file, start=1):
                try:
                    text = line.decode("utf-8")
                except UnicodeDecodeError as error:
                    raise DataError(
                        f"{name}:{number} is no UTF-8 text (byte {error.start}): save the file as "
                        "UTF-8, or download it again"
                    ) from error
                yield text.removeprefix("\ufeff") if number == 1 else text
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}): download it again") from error


def _row(value: object, name: str, place: str) -> Row:
    if not isinstance(value, dict):
        raise DataError(
            f"{place} is not an object but {type(value).__name__}: every row needs named columns"
        )
    return Row(value, name, place, repeated_key(value))


def json_lines(path: Path, name: str) -> Iterator[tuple[str, str]]:
    """Yield the lines of JSON that are not empty, each with its place; `json_row` reads one."""
    for number, line in enumerate(_lines(path, name), start=1):
        if line.strip():
            yield f"{name}:{number}", line


def json_row(line: str, name: str, place: str) -> Row:
    """Return a line of JSON as a row of the file `name`."""
    try:
        value = parse_record(line)
    except ValueError as error:
        raise DataError(
            f"{place} is no valid JSON ({error}): correct the line, or download the file again"
        ) from error
    return _row(value, name, place)


def _json_lines(path: Path, name: str) -> Iterator[Row]:
    for place, line in json_lines(path, name):
        yield json_row(line, name, place)


def _json_rows(path: Path, name: str) -> Iterator[Row]:
    text = "".join(_lines(path, name))
    try:
        values = parse_record(text) if text.strip() else []
    except ValueError as error:
        line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise DataError(
            f"{name}{line} is no valid JSON ({error}): download the file again, or call "
            "it .jsonl if it holds one object a line"
        ) from error
    if not isinstance(values, list):
        raise DataError(
            f"{name} must hold a list of objects, not {type(values).__name__}: convert it, or "
            "select the others with include"
        )
    for row, value in enumerate(values):
        yield _row(value, name, f"{name}, row {row}")


def _csv_rows(path: Path, name: str) -> Iterator[Row]:
    # A line may hold other line ends, which csv wants apart.
    lines = (part for line in _lines(path, name) for part in io.StringIO(line, newline=""))
    records = _csv_records(lines, name)
    header = next(records, [])
    if len(set(header)) < len(header) or "" in header:
        raise DataError(
            f"{name} needs a header of distinct column names, not {named(header[:20])}: correct it"
        )
    for row, fields in enumerate(records):
        place = f"{name}, row {row}"
        if len(fields) != len(header):
            raise DataError(
                f"{place} has {len(fields)} fields where the header has {len(header)}: quote "
                "fields that hold commas or line ends"
            )
        yield Row(dict(zip(header, fields, strict=True)), name, place)


def _csv_records(lines: Iterator[str], name: str) -> Iterator[list[str]]:
    """Yield the records that are not empty lines, with csv's global limit set for each alone."""
    reader = csv.reader(lines, strict=True)
    while True:
        before = csv.field_size_limit(_LONGEST_FIELD)
        try:
            fields: Sequence[str] = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(
                f"{name}:{reader.line_num} is no valid CSV ({error}): correct it"
            ) from error
        finally:
            csv.field_size_limit(before)
        if fields:
            yield list(fields)


def _parquet_rows(path: Path, name: str) -> Iterator[Row]:
    row = 0
    with open_parquet(path) as file:
        for batch in file.iter_batches(_PARQUET_ROWS):
            yield from table_rows(batch, name, row)
            row += batch.num_rows


@contextmanager
def open_parquet(path: Path) -> "Iterator[pyarrow.parquet.ParquetFile]":
    """Open a Parquet file that is read within the block, a row group at a time.

    With `pre_buffer` the library would keep all that it has read until the file is closed.
    """
    import pyarrow.lib
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path, pre_buffer=False) as file:
            names = file.schema_arrow.names
            if len(set(names)) < len(names):
                raise DataError(f"{path} has two columns of one name ({named(names)}): rename one")
            yield file
    except (OSError, ValueError, OverflowError, pyarrow.lib.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{path} cannot be read as Parquet ({reason}): download it again"
        ) from error


def table_rows(table: Any, name: str, first: int) -> Iterator[Row]:
    """Yield the rows of an Arrow table that begins with row `first` of the file `name`."""
    for row, value in enumerate(table.to_pylist(), start=first):
        yield _row(value, name, f"{name}, row {row}")
