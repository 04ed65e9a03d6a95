"""Boards as one self-contained HTML page, and as Markdown."""

from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from rmexp.evaluation.leaderboard import Board, Cell
from rmexp.stats.bounds import TOO_FEW
from rmexp.tables import Markdown, markdown, plain

_LEGEND = (
    "Small print: the 95 % interval, or that there are too few prompts for one, and the number of "
    "examples n. Numbers of a column that rest on "
    "different examples carry a note, and are sorted behind the others.",
    "★ marks what shares the first place of a column: the highest of the comparable numbers, and "
    "those that no paired test over the same prompts tells apart from it (Holm's p from 0.05). Of "
    "published numbers, whose examples are not known, it is the highest.",
)
_MIXED = "not all comparable"


def to_html(title: str, about: str, boards: Mapping[str, Board]) -> str:
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
        mixed=_MIXED,
        legend=_LEGEND,
        value=_value,
        details=_details,
        few=_few,
    )


def to_markdown(title: str, about: str, boards: Mapping[str, Board]) -> str:
    """Return the boards as Markdown tables, in the same order."""
    lines = [f"# {plain(title)}", "", plain(about)]
    for name, board in boards.items():
        heads = [
            f"{column} ({_MIXED})" if board.mixed(at) else column
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
