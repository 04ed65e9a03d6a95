"""Rows to examples: each row is a pair of responses, or one response."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from rmexp.data.pairs import CONVERSATION, check_columns, read_pair, read_response
from rmexp.data.rows import Row
from rmexp.data.selection import bad_row, check_on_bad_row
from rmexp.data.streams import Content, Span
from rmexp.errors import DataError
from rmexp.schema import Example

Kind = Literal["pairs", "responses"]
# What each row gets, first what it is judged by.
NUMBERS: Mapping[Kind, tuple[str, ...]] = {
    "pairs": ("margin", "reward_chosen", "reward_rejected"),
    "responses": ("reward",),
}


@dataclass(frozen=True, slots=True)
class Read:
    """The examples of a span with their places in it, and a line for each bad row.

    An example's id is the row's number in all data.
    """

    examples: tuple[Example, ...]
    places: tuple[int, ...]
    bad_rows: tuple[str, ...]


class RowReader:
    """Read rows by the names of their columns, all of one kind, and say which are bad.

    Raises ConfigError at once for options that cannot work.
    """

    def __init__(self, columns: Mapping[str, str] | None, on_bad_row: str) -> None:
        self._columns, self._on_bad_row = check_columns(columns, "data"), on_bad_row
        check_on_bad_row(on_bad_row, "data")

    def kind(self, row: Row) -> Kind:
        """Return what a row is by its columns; raise DataError where it is neither."""
        names = self._columns
        if names.chosen in row.values or names.rejected in row.values:
            return "pairs"
        if names.response in row.values or CONVERSATION in row.values:
            return "responses"
        raise DataError(
            f"{row.place} has none of the columns {names.chosen!r}, {names.response!r} and "
            f"{CONVERSATION!r} (columns there: {row.columns}): name them, as in "
            "data.columns={prompt: NAME, response: NAME}"
        )

    def read(self, content: Content, span: Span, kind: Kind) -> Read:
        """Return the rows as examples of this kind.

        Raises DataError for a row of the other kind, and for a bad row that may not or cannot be
        kept.
        """
        examples, places, bad_rows = [], [], []
        for place, row in enumerate(content.rows):
            example, reason, unfit = self._example(row, str(span.start + place), kind)
            if reason:
                line = f"{row.place}: {reason}"
                if self._on_bad_row == "error" or (self._on_bad_row == "keep" and unfit):
                    keep = "" if unfit else ", or score them as they are with keep"
                    raise DataError(
                        f"bad row {line}: correct it, or leave such rows out with "
                        f"data.on_bad_row=skip{keep}"
                    )
                bad_rows.append(line)
                if self._on_bad_row == "skip":
                    continue
            examples.append(example)
            places.append(place)
        return Read(tuple(examples), tuple(places), tuple(bad_rows))

    def _example(self, row: Row, id: str, kind: Kind) -> tuple[Example, str | None, bool]:
        """Return a row's example, why it is bad, and whether it cannot even be scored."""
        if row.flaw:
            return Example(id, "", (), (), ()), row.flaw, True
        if (found := self.kind(row)) != kind:
            raise DataError(
                f"{row.place} is of {found}, the first row of {kind}: score them apart, as "
                "data.include=[PATTERN] selects files"
            )
        read = read_pair if kind == "pairs" else read_response
        entry = read(row, id, "", self._columns)
        return entry.example, entry.flaw or bad_row(entry.example), entry.flaw is not None
