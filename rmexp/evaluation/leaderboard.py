"""The finished evaluations of an experiment as a table: a line an RM, a column a headline number.

Pure: evaluations in, values out. Only numbers that rest on the same examples are ranked.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from rmexp.errors import RmexpError
from rmexp.metrics import partial_name, plain_name
from rmexp.stats.nulls import CHANCE, null_name
from rmexp.tracking.tracked import Basis, Evaluation, Measured


@dataclass(frozen=True, slots=True)
class Cell:
    """An RM's number in a column, and the notes that belong to it, counted from 0.

    Cells of a column are comparable within a `group`; group 0 is that of most RMs. `best` is the
    highest of at least two in group 0, or shares the first place with it; see `first_place`.
    """

    measured: Measured
    partial: bool
    run_id: str
    group: int
    best: bool
    notes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Line:
    """An RM as it was read, with a cell a column, None where it was not evaluated.

    `reading` is how it was read, and the fingerprints of its weights or its recorded scores.
    """

    rm: str
    reading: str
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True, slots=True)
class Board:
    """The lines, best first in the column `sorted_by`; columns that nobody has are left out.

    `data` is each column's fingerprint of the examples that most RMs share, "" where none is known.
    `standing` says of each column who shares its first place; see `first_place`. `chance` is what
    random rewards reach in each column, None where that is not known.
    """

    columns: tuple[str, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...]
    sorted_by: int
    data: tuple[str, ...]
    standing: tuple[str, ...] = ()
    chance: tuple[float | None, ...] = ()

    def cells(self, column: int) -> list[Cell]:
        """Return a column's cells."""
        return [cell for line in self.lines if (cell := line.cells[column]) is not None]

    def mixed(self, column: int) -> bool:
        """Say whether a column's cells are not all comparable."""
        return any(cell.group > 0 for cell in self.cells(column))


_Key = tuple[str, str, str]  # which RM a line is


@dataclass(frozen=True, slots=True)
class _Found:
    evaluation: Evaluation
    name: str

    @property
    def measured(self) -> Measured:
        """Return the number."""
        return self.evaluation.metrics[self.name]

    @property
    def key(self) -> _Key:
        """Tell RMs apart: those of one name may be read in several ways, or have new weights."""
        rm = self.evaluation.rm
        return (rm, "", "") if self.evaluation.published else (rm, *self.evaluation.version)

    @property
    def basis(self) -> Basis:
        """Return what the number must share with others to be comparable."""
        return self.evaluation.basis(self.name)


def make_board(found: Iterable[Evaluation], headlines: Sequence[str]) -> Board:
    """Return the board of evaluations that are all measured, or all published, the newest first.

    An RM's cell is its newest evaluation on the data that most RMs of the column share, else its
    newest one.
    """
    columns: dict[str, dict[_Key, _Found]] = {}
    groups: dict[str, dict[Basis, int]] = {}
    evaluations = list(found)
    for headline in headlines:
        every = [one for each in evaluations if (one := _find(each, headline)) is not None]
        if every:
            main = _main_basis(every)
            chosen: dict[_Key, _Found] = {}
            for one in sorted(every, key=lambda one: one.basis != main):
                chosen.setdefault(one.key, one)
            columns[headline] = chosen
            bases = Counter(one.basis for one in chosen.values())
            order = sorted(bases, key=lambda basis: (basis != main, -bases[basis]))
            groups[headline] = {basis: at for at, basis in enumerate(order)}

    notes: dict[str, int] = {}
    keys = sorted({key for chosen in columns.values() for key in chosen})
    cells = {
        headline: _cells(headline, chosen, groups[headline], notes)
        for headline, chosen in columns.items()
    }
    lines = [
        Line(
            key[0],
            ", ".join(filter(None, key[1:])),
            tuple(cells[headline].get(key) for headline in columns),
        )
        for key in keys
    ]
    counts = [sum(cell.group == 0 for cell in column.values()) for column in cells.values()]
    sorted_by = counts.index(max(counts)) if counts else 0
    lines.sort(key=lambda line: (_rank(line.cells[sorted_by]), line.rm.casefold(), line.reading))
    measured = not any(each.published for each in evaluations)
    data = tuple((next(iter(groups[name])).data or "")[:8] if measured else "" for name in columns)
    return Board(tuple(columns), tuple(lines), tuple(notes), sorted_by, data)


def with_chance(board: Board, numbers: Callable[[str], Mapping[str, float]]) -> Board:
    """Add what random rewards reach in each column, from all numbers of one run of it."""
    return replace(
        board, chance=tuple(_chance(board, at, numbers) for at in range(len(board.data)))
    )


def _chance(
    board: Board, column: int, numbers: Callable[[str], Mapping[str, float]]
) -> float | None:
    run = min(board.cells(column), key=lambda cell: cell.group).run_id
    try:
        found = numbers(run)
    except RmexpError:  # its files are not to be had
        return None
    wanted = null_name(board.columns[column].partition("/")[0], CHANCE)
    return next((value for name, value in found.items() if plain_name(name) == wanted), None)


def _find(evaluation: Evaluation, headline: str) -> _Found | None:
    for name in (headline, partial_name(headline)):
        if name in evaluation.metrics:
            return _Found(evaluation, name)
    return None


def _main_basis(every: Sequence[_Found]) -> Basis:
    """Return the basis of most RMs; between equals a complete one, then the largest."""
    holders: dict[Basis, set[_Key]] = {}
    for one in every:
        holders.setdefault(one.basis, set()).add(one.key)
    return max(
        holders, key=lambda basis: (len(holders[basis]), basis.missing is None, basis.n or 0)
    )


def _cells(
    headline: str, chosen: dict[_Key, _Found], groups: dict[Basis, int], notes: dict[str, int]
) -> dict[_Key, Cell]:
    """Return a column's cells; a note that is not there yet is added to `notes`."""
    main = next(iter(groups))
    cells = {}
    for key, one in sorted(chosen.items()):
        group = groups[one.basis]
        said = _notes(headline, one, main if group else None)
        numbers = tuple(notes.setdefault(note, len(notes)) for note in said)
        partial = one.basis.missing is not None
        cells[key] = Cell(
            one.measured, partial, one.evaluation.run_id, group, best=False, notes=numbers
        )
    # Without a record of the data nobody knows whether two numbers are comparable.
    ranked = [cell.measured.value for cell in cells.values() if not cell.group and main.data]
    if len(ranked) < 2:
        return cells
    return {
        key: replace(cell, best=not cell.group and cell.measured.value == max(ranked))
        for key, cell in cells.items()
    }


def _notes(headline: str, one: _Found, main: Basis | None) -> list[str]:
    """Say what a number alone does not; `main` is the column's basis if this is another one."""
    if one.evaluation.published:
        return [one.basis.data or "source not recorded"]
    notes = []
    data, n, missing = one.basis.data, one.basis.n, one.basis.missing
    if missing is not None:
        lacking = f"nothing of {missing}" if missing else "what it lacks was not recorded"
        notes.append(f"{headline}: partial, {lacking}")
    if main is not None:
        if data is None:
            what = "on data that were not recorded"
        elif data != main.data:
            what = f"on other data ({data[:8]})"
        elif n != main.n:
            what = "on other examples of the same data"
        else:
            what = "by another rule"
        size = "" if n is None else f", n {n:,}"
        notes.append(f"{headline}: {what}{size}, not comparable with the rest of the column")
    return notes


def _rank(cell: Cell | None) -> tuple[float, float]:
    """Sort comparable cells from the best, then other groups, then none."""
    return (float("inf"), 0.0) if cell is None else (cell.group, -cell.measured.value)
