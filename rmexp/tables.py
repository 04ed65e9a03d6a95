"""Tables: the one place that writes them to the terminal, as Markdown and as CSV.

What is written is text, whoever chose it: a name such as `[/b]`, `**x**` or `=1+1` is no markup, no
Markdown and no formula.
"""

import csv
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Literal, TypeVar, get_type_hints

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rmexp.errors import DataError

_NARROWEST = 12  # what a column of names keeps on any terminal
_shown: ContextVar[bool] = ContextVar("shown", default=True)
# What a spreadsheet takes for a formula, whatever number of marks is put before it.
_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_Row = TypeVar("_Row")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    r"""Return a text for the terminal, without what would move its cursor or change its colours.

    >>> printable("a\x1b[2Jb\n")
    'a\\x1b[2Jb '
    """
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], re.sub(r"\s*\n\s*", " ", text))


def named(columns: Iterable[object]) -> str:
    """Return columns' names for messages, whatever stands in them."""
    names = [str(column)[:60] for column in columns]
    return ", ".join(name if name.isprintable() else ascii(name) for name in names)


@contextmanager
def unshown() -> Iterator[None]:
    """Let `show` print nothing meanwhile."""
    token = _shown.set(False)
    try:
        yield
    finally:
        _shown.reset(token)


def show(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    title: str | None = None,
    right: Collection[str] = (),
    line_before: int | None = None,
    thin: Collection[int] = (),
    frame: box.Box = box.HEAVY_HEAD,
) -> None:
    """Print a table that fits the terminal; in a pipe or a file it is as wide as it has to be.

    A number is never cut. Where there is no room, names are folded, and where the numbers alone are
    wider than the terminal, each row becomes a few lines. `right` are the columns of numbers;
    `line_before` is a row that a line sets apart, and `thin` are rows that stand back.
    """
    if not _shown.get():
        return
    lines = [[printable(cell) for cell in row] for row in rows]
    numbers = [column in right for column in columns]
    console = Console()
    widths = [max(map(cell_len, cells)) for cells in zip(columns, *lines, strict=True)]
    if console.is_terminal:
        fitting = _fitting(widths, numbers, console.width)
        if fitting is None:
            _show_lines(console, columns, lines, title)
            return
        widths = fitting
    console.width = max(console.width, sum(widths) + _edges(len(columns)))
    table = Table(title=None if title is None else Text(printable(title)), box=frame)
    for column, wide, number in zip(columns, widths, numbers, strict=True):
        side: Literal["left", "right"] = "right" if number else "left"
        # A heading may be folded where its numbers are short, a number is not.
        table.add_column(Text(column), justify=side, width=wide, overflow="fold")
    for at, line in enumerate(lines):
        style = "dim" if at in thin else None
        table.add_row(*map(Text, line), end_section=at + 1 == line_before, style=style)
    console.print(table)


def _edges(columns: int) -> int:
    return 3 * columns + 1


def _fitting(widths: Sequence[int], numbers: Sequence[bool], room: int) -> list[int] | None:
    """Return widths of columns that fit into the room, None if they cannot.

    The widest columns of names give way first, down to `_NARROWEST`.
    """
    fitting = list(widths)
    names = [at for at, number in enumerate(numbers) if not number]
    for _ in range(sum(fitting) + _edges(len(fitting)) - room):
        widest = max(names, key=lambda at: fitting[at], default=None)
        if widest is None or fitting[widest] <= _NARROWEST:
            return None
        fitting[widest] -= 1
    return fitting


def _show_lines(
    console: Console, columns: Sequence[str], lines: Sequence[Sequence[str]], title: str | None
) -> None:
    """Print each row as its first cell, with a line below it for each other one that says more."""
    if title is not None:
        console.print(Text(printable(title)), style="italic")
    for line in lines:
        console.print(Text(line[0]), style="bold")
        for column, cell in zip(columns[1:], line[1:], strict=True):
            if cell:
                console.print(Text(f"  {column}: {cell}"))


class Markdown(str):
    """A text that is Markdown already: `plain` leaves it as it is."""

    __slots__ = ()


def plain(text: str) -> str:
    r"""Return a text in one line of Markdown, without what Markdown or HTML would make of it.

    >>> plain("a_b *c* <d> | [e](f)")
    'a_b \\*c\\* \\<d\\> \\| \\[e\\](f)'
    """
    if isinstance(text, Markdown):
        return text
    line = " ".join(text.split())
    line = re.sub(r"([\\`*\[\]<>|~&]|(?<!\w)_|_(?!\w))", r"\\\1", line)
    return re.sub(r"^(\d*|#*)([#+.)-])(?= )", r"\1\\\2", line)  # a list, a heading


def markdown(
    columns: Sequence[str], rows: Iterable[Sequence[str]], right: Collection[str] = ()
) -> list[str]:
    """Return the lines of a Markdown table; `right` are the columns of numbers."""
    rule = ["---:" if column in right else "---" for column in columns]
    lines = [rule if row is rule else map(plain, row) for row in (columns, rule, *rows)]
    return [f"| {' | '.join(line)} |" for line in lines]


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    """Write a CSV file that `read_csv` reads. A text that would be a formula gets a mark before it.

    What is None becomes an empty cell.
    """
    with path.open("w", encoding="utf-8", newline="") as file:
        written = csv.writer(file)
        written.writerow(columns)
        written.writerows([_marked(cell) for cell in row] for row in rows)
    return path


def read_csv(path: Path, kind: type[_Row], mend: str) -> list[_Row]:
    """Return the rows of a CSV file as `write_csv` wrote them, of a dataclass with its columns.

    Raises DataError that ends in `mend`, what to do about it.
    """
    hints = get_type_hints(kind)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            rows = list(reader)
            there = list(reader.fieldnames or ())
        if there != list(hints):
            raise ValueError(f"its columns are not {', '.join(hints)}")
        return [kind(**{name: _value(row[name], hints[name]) for name in row}) for row in rows]
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise DataError(f"cannot read {path} ({error}): {mend}") from error


def unmarked(cell: str) -> str:
    """Return a cell's text as it was before `write_csv` put a mark before it."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def _value(cell: str, hint: object) -> object:
    if hint is str:
        return unmarked(cell)
    if hint is int:
        return int(cell)
    return float(cell) if cell or hint is float else None


def _marked(cell: object) -> object:
    return f"'{cell}" if isinstance(cell, str) and _FORMULA.match(cell) else cell
