"""Boards as one self-contained HTML page, and as Markdown."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from rmexp.evaluation.leaderboard import Board, Cell
from rmexp.stats.bounds import TOO_FEW
from rmexp.tables import Markdown, markdown, plain

_LEGEND = (
    "Small print: the 95 % interval, or that there are too few prompts for one, and the number of "
    "examples n; behind a model how it was read and the fingerprint of its weights or recorded "
    "scores, behind a column the fingerprint of its examples. Numbers of a column that rest on "
    "different examples carry a note, and are sorted behind the others.",
    "★ marks what shares the first place of a column: the highest of the comparable numbers, and "
    "those that no paired test over the same prompts tells apart from it (Holm's p from 0.05). Of "
    "published numbers, whose examples are not known, it is the highest.",
)
_CHART = (
    "Below each number is the number with its interval, on one scale for the whole column; the "
    "vertical line is what random rewards reach. Each number is a link to its run."
)
_MIXED = "not all comparable"

Link = Callable[[str], str]  # the address of the page of a run


@dataclass(frozen=True, slots=True)
class Strip:
    """A cell's number and interval as a picture, in percent of the column's width."""

    at: float
    low: float
    high: float
    chance: float | None


def to_html(title: str, about: str, boards: Mapping[str, Board], link: Link) -> str:
    """Return the page with a section a board; it needs nothing from outside, nor its script."""
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return templates.get_template("leaderboard.html.jinja").render(
        title=title,
        about=about,
        boards=boards,
        heading=heading,
        legend=(*_LEGEND, _CHART),
        link=link,
        strip=strip,
        value=_value,
        details=_details,
        few=_few,
    )


def to_markdown(title: str, about: str, boards: Mapping[str, Board]) -> str:
    """Return the boards as Markdown tables, in the same order."""
    lines = [f"# {plain(title)}", "", plain(about)]
    for name, board in boards.items():
        heads = [
            column + (f" ({', '.join(said)})" if (said := heading(board, at)) else "")
            for at, column in enumerate(board.columns)
        ]
        rows = [
            (f"{line.rm} ({line.reading})" if line.reading else line.rm, *map(_text, line.cells))
            for line in board.lines
        ]
        lines += ["", f"## {plain(name)}", "", *markdown(("RM", *heads), rows, right=heads)]
        lines += [part for line in board.standing for part in ("", plain(line))]
        if board.notes:
            lines += ["", *(f"{at}. {plain(note)}" for at, note in enumerate(board.notes, 1))]
    lines += [part for line in _LEGEND for part in ("", plain(line))]
    return "\n".join(lines) + "\n"


def heading(board: Board, column: int) -> list[str]:
    """Return what is said of a column's examples."""
    data, mixed = board.data[column], board.mixed(column)
    return ([f"data {data}"] if data else []) + ([_MIXED] if mixed else [])


def strip(board: Board, column: int, cell: Cell) -> Strip:
    """Return where a cell's number lies between the column's lowest and highest end."""
    chance = board.chance[column] if board.chance else None
    ends = [end for each in board.cells(column) for end in _ends(each)]
    ends += [] if chance is None else [chance]
    lowest, width = min(ends), max(ends) - min(ends) or 1.0

    def place(value: float) -> float:
        return round(4 + 92 * (value - lowest) / width, 2)  # a dot at an end is not cut

    low, high = _ends(cell)
    at = place(cell.measured.value)
    return Strip(at, place(low), place(high), None if chance is None else place(chance))


def _ends(cell: Cell) -> tuple[float, float]:
    measured = cell.measured
    if measured.low is None or measured.high is None:
        return measured.value, measured.value
    return measured.low, measured.high


def _text(cell: Cell | None) -> str:
    if cell is None:
        return "-"
    details = ", ".join(_details(cell))
    marks = "".join(f" [{note + 1}]" for note in cell.notes)
    return Markdown(_value(cell) + (f" ({details})" if details else "") + marks)


def _value(cell: Cell) -> str:
    return ("★ " if cell.best else "") + f"{cell.measured.value:.3f}"


def _few(cell: Cell) -> bool:
    """Say whether the number rests on too few prompts for an interval."""
    return cell.measured.n is not None and cell.measured.low is None


def _details(cell: Cell) -> list[str]:
    """Return the interval, n and whether the number is partial, as far as there are any."""
    measured = cell.measured
    parts = ["partial"] if cell.partial else []
    if measured.low is not None and measured.high is not None:
        parts.append(f"{measured.low:.3f} to {measured.high:.3f}")
    elif measured.n is not None:
        parts.append(TOO_FEW)
    if measured.n is not None:
        parts.append(f"n {measured.n:,}")
    return parts
