"""Records as rows that know where they are from.

Every failure is a DataError that says what, where and what to do.
"""

import ast
import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rmexp.errors import DataError
from rmexp.outside import parse_record, repeated_key
from rmexp.schema import Message
from rmexp.tables import named

_ROLES = ("system", "user", "assistant")
_MESSAGES = re.compile(r"\s*\[\s*\{\s*['\"](role|content|from|value)['\"]\s*:")
_SHOWN = 20  # columns that a message names
_LONGEST_LABEL = 1000
_short = reprlib.Repr()
_short.maxstring = _short.maxother = 60


@dataclass(frozen=True, slots=True)
class Row:
    """One record, and where it is from.

    `file` is its file's path below the source, "" on the hub. `place` is for messages: file and
    line of JSON lines, else the file and the row's number, counted from 0 as ids are. `flaw` says
    why the record as such is bad, None if it is not.
    """

    values: Mapping[str, Any]
    file: str
    place: str
    flaw: str | None = None

    def get(self, column: str) -> Any:
        """Return a column's value, which may be of any type."""
        if column not in self.values:
            raise DataError(
                f"column {column!r} is missing at {self.place} (columns there: {self.columns}): "
                "check that this is the right file, or download it again"
            )
        return self.values[column]

    @property
    def columns(self) -> str:
        """Return the names of the first columns, for messages."""
        more = ", ..." if len(self.values) > _SHOWN else ""
        return named(list(self.values)[:_SHOWN]) + more or "none"

    def has(self, column: str) -> bool:
        """Return whether a column is there and not null."""
        return self.values.get(column) is not None

    def label(self, column: str) -> str:
        """Return a column that must hold a name: a string of one line."""
        return self._one_line(column, self.text(column))

    def text(self, column: str) -> str:
        """Return a column that must hold a string."""
        value = self.get(column)
        if not isinstance(value, str):
            raise self._wrong_type(column, "a string", value)
        return self._whole(column, value)

    def texts(self, column: str, count: int | None = None) -> tuple[str, ...]:
        """Return a column that must hold a list of strings, `count` of them unless None."""
        value = self.get(column)
        wanted = "a list of strings" if count is None else f"a list of {count} strings"
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise self._wrong_type(column, wanted, value)
        if count is not None and len(value) != count:
            raise self._wrong_type(column, wanted, value)
        return tuple(self._whole(column, text) for text in value)

    def items(self, column: str) -> list[Any]:
        """Return a column that must hold a list, of whatever."""
        value = self.get(column)
        if not isinstance(value, list):
            raise self._wrong_type(column, "a list", value)
        return value

    def number(self, column: str) -> float:
        """Return a column that must hold a finite number, which may be written as text."""
        value = self.get(column)
        try:
            number = float("nan") if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = float("nan")
        if not abs(number) < float("inf"):
            raise DataError(
                f"column {column!r} must hold a finite number, not {_short.repr(value)}, at "
                f"{self.place}: correct the row, or leave it out of the file"
            )
        return number

    def identifier(self, column: str) -> str:
        """Return a column that must hold an integer or a string that is not empty, as a string."""
        value = self.get(column)
        if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
            raise self._wrong_type(column, "an integer or a string that is not empty", value)
        return self._one_line(column, self._whole(column, str(value)))

    def inner(self, column: str) -> "Row":
        """Return a column that must hold an object, as a row."""
        value = self.get(column)
        if not isinstance(value, dict):
            raise self._wrong_type(column, "an object", value)
        return Row(value, self.file, f"{self.place}, {column!r}")

    def inners(self, column: str) -> "tuple[Row, ...]":
        """Return a column that must hold a list of objects that is not empty, as rows."""
        value = self.get(column)
        if not isinstance(value, list) or not value or not all(isinstance(v, dict) for v in value):
            raise self._wrong_type(column, "a list of one or more objects", value)
        places = [f"{self.place}, {column!r} {number}" for number in range(len(value))]
        return tuple(Row(item, self.file, place) for item, place in zip(value, places, strict=True))

    def messages(self, column: str) -> tuple[Message, ...]:
        """Return a column that must hold a list of objects with `role` and `content`."""
        messages = []
        for turn in self.inners(column):
            role = turn.text("role")
            if role not in _ROLES:
                raise DataError(
                    f"role {_short.repr(role)} is unknown at {turn.place}: rename it to one of "
                    + ", ".join(_ROLES)
                )
            messages.append(Message(role, turn.text("content")))
        return tuple(messages)

    def text_or_messages(self, column: str) -> str | tuple[Message, ...]:
        """Return a column that must hold a string or a list of messages.

        A list that was written into a string, as JSON or as Python prints it, is read as what it
        is: tables such as CSV know nothing else.
        """
        value = self.get(column)
        if isinstance(value, list):
            return self.messages(column)
        text = self.text(column)
        if not _MESSAGES.match(text):
            return text
        return Row({column: self._written_list(column, text)}, self.file, self.place).messages(
            column
        )

    def _written_list(self, column: str, text: str) -> object:
        try:
            value = parse_record(text)
        except ValueError:
            try:
                value = ast.literal_eval(text.strip())
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                raise DataError(
                    f"column {column!r} at {self.place} begins like a list of messages, but is "
                    "neither JSON nor as Python prints a list: write it as JSON"
                ) from None
        if flaw := repeated_key(value):
            raise DataError(f"column {column!r} at {self.place}: {flaw}: correct the row")
        return value

    def _one_line(self, column: str, text: str) -> str:
        if len(text) > _LONGEST_LABEL or len(text.splitlines()) > 1:
            wanted = f"one line of up to {_LONGEST_LABEL} characters, as it is a name,"
            raise self._wrong_type(column, wanted, text)
        return text

    def _whole(self, column: str, text: str) -> str:
        """Return the text, which must be such that UTF-8 can write it."""
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise DataError(
                    f"column {column!r} at {self.place} holds half of a character, "
                    f"\\u{ord(text[error.start]):04x}, as character {error.start}: the text was "
                    "cut within a pair of surrogates; correct the row, or leave it out of the file"
                ) from None
        return text

    def _wrong_type(self, column: str, wanted: str, value: object) -> DataError:
        shown = _short.repr(value)
        shown = shown if len(shown) <= 60 else f"{shown[:60]}..."
        return DataError(
            f"column {column!r} must hold {wanted}, not {type(value).__name__} {shown}, "
            f"at {self.place}: correct the row, or leave it out of the file"
        )


class Rows:
    """The rows of a source, read as they are asked for, once.

    `source` names it, `files` are those that are read, by their paths below it. `count` rows have
    been read so far; `whole` tells whether there are no more.
    """

    def __init__(self, rows: Iterable[Row], source: str, files: Sequence[str] = ()):
        self.source, self.files = source, tuple(files)
        self.count, self.whole = 0, False
        self._rows = rows

    def __iter__(self) -> Iterator[Row]:
        """Yield the rows in their order."""
        for row in self._rows:
            self.count += 1
            yield row
        self.whole = True

    @property
    def notes(self) -> tuple[str, ...]:
        """Return a line on what was not read, if that is so."""
        return (
            ()
            if self.whole
            else (f"only the first {self.count} rows were read: they fill the limit",)
        )
