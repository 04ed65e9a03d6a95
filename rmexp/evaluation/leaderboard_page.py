"""Boards as one self-contained HTML page, and as Markdown."""

from collections.abc import Mapping
from html import escape

from rmexp.evaluation.leaderboard import Board, Cell
from rmexp.stats.bounds import TOO_FEW
from rmexp.tables import plain

_LEGEND = (
    "Small print: the 95 % interval, or that there are too few prompts for one, and the number of "
    "examples n. Numbers of a column that rest on "
    "different examples carry a note, and are sorted behind the others.",
    "★ marks the highest of the comparable numbers of a column. Whether a difference is more than "
    "chance says a comparison of the two runs, example by example (correlate.py).",
)
_MIXED = "not all comparable"

_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1f24; --dim: #57606a; --line: #d0d7de;
  --head: #f3f5f7; --best: #e3f3e6; }
@media (prefers-color-scheme: dark) { :root { --paper: #12161b; --ink: #e6e9ed; --dim: #a3acb6;
  --line: #39424c; --head: #1c232b; --best: #173a24; } }
body { margin: 2rem auto; padding: 0 1rem; max-width: 90rem; background: var(--paper);
  color: var(--ink); font: 16px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
p, ol { margin: .5rem 0; max-width: 60rem; }
.about, .legend, ol { color: var(--dim); font-size: .875rem; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: separate; border-spacing: 0; width: 100%; }
th, td { padding: .45rem .8rem; border-top: 1px solid var(--line); text-align: right;
  vertical-align: top; font-variant-numeric: tabular-nums; }
td b, td span, .name { white-space: nowrap; }
th:first-child { position: sticky; left: 0; min-width: 9rem; width: 22rem; text-align: left;
  overflow-wrap: anywhere; background: var(--paper); font-weight: 600;
  border-right: 1px solid var(--line); }
thead th, thead th:first-child { background: var(--head); border-top: 0; vertical-align: bottom; }
small { display: block; color: var(--dim); font-size: .8rem; font-weight: 400; }
td.best { background: var(--best); }
td.best b, td.best sup { font-weight: 700; }
td b { font-weight: 400; }
td.other b { font-style: italic; }
sup { font-size: .7rem; line-height: 0; margin-left: .15em; }
button { font: inherit; color: inherit; background: none; border: 0; padding: 0; cursor: pointer;
  text-align: inherit; }
button:hover { text-decoration: underline; }
button:focus-visible, .scroll:focus-visible { outline: 2px solid currentColor; }
[aria-sort=ascending] .name::after { content: " \\25B2"; }
[aria-sort=descending] .name::after { content: " \\25BC"; }
@media (max-width: 40rem) { body { margin: 1rem auto; }
  th, td { padding: .4rem .5rem; } th:first-child { min-width: 7rem; font-size: .875rem; } }
"""

# Numbers first from the highest, names from A; what is not comparable, or absent, stays last.
_SCRIPT = """
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, at) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const first = at ? "descending" : "ascending", other = at ? "ascending" : "descending";
      const order = head.getAttribute("aria-sort") === first ? other : first;
      const sign = order === "ascending" ? 1 : -1;
      const key = row => row.cells[at].dataset;
      const compare = (a, b) => at
        ? (a.group ?? Infinity) - (b.group ?? Infinity) || sign * (a.value - b.value)
        : sign * a.value.localeCompare(b.value, undefined, {numeric: true});
      const rows = [...body.rows].sort((a, b) => compare(key(a), key(b)) || 0);
      heads.forEach(each => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order);
      body.append(...rows);
    });
  });
}
"""


def to_html(title: str, about: str, boards: Mapping[str, Board]) -> str:
    """Return the page with a section a board; it needs nothing from outside, nor its script."""
    sections = "".join(_section(name, board) for name, board in boards.items())
    legend = "".join(f"<p>{escape(line)}</p>\n" for line in _LEGEND)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f'<h1>{escape(title)}</h1>\n<p class="about">{escape(about)}</p>\n{sections}'
        f'<div class="legend">\n{legend}</div>\n<script>{_SCRIPT}</script>\n</body>\n</html>\n'
    )


def to_markdown(title: str, about: str, boards: Mapping[str, Board]) -> str:
    """Return the boards as Markdown tables, in the same order."""
    lines = [f"# {plain(title)}", "", plain(about)]
    for name, board in boards.items():
        heads = [
            plain(column) + (f" ({_MIXED})" if board.mixed(at) else "")
            for at, column in enumerate(board.columns)
        ]
        rows = [["RM", *heads], ["---", *["---:"] * len(heads)]]
        for line in board.lines:
            rm = f"{plain(line.rm)} ({plain(line.reading)})" if line.reading else plain(line.rm)
            rows.append([rm, *map(_text, line.cells)])
        lines += ["", f"## {plain(name)}", "", *(f"| {' | '.join(row)} |" for row in rows)]
        if board.notes:
            lines += ["", *(f"{at}. {plain(note)}" for at, note in enumerate(board.notes, 1))]
    lines += [part for line in _LEGEND for part in ("", plain(line))]
    return "\n".join(lines) + "\n"


def _section(name: str, board: Board) -> str:
    heads = ['<th scope="col"><span class="name">RM</span></th>']
    for at, column in enumerate(board.columns):
        bench, _, metric = column.partition("/")
        order = ' aria-sort="descending"' if at == board.sorted_by else ""
        mixed = f"<small>{_MIXED}</small>" if board.mixed(at) else ""
        heads.append(
            f'<th scope="col"{order}><span class="name">{escape(bench)}</span>'
            f"<small>{escape(metric)}</small>{mixed}</th>"
        )
    rows = []
    for line in board.lines:
        reading = f"<small>{escape(line.reading)}</small>" if line.reading else ""
        cells = "".join(map(_cell, line.cells))
        rows.append(
            f'<tr><th scope="row" data-value="{escape(line.rm)}">{escape(line.rm)}{reading}</th>'
            f"{cells}</tr>\n"
        )
    notes = "".join(f"<li>{escape(note)}</li>\n" for note in board.notes)
    return (
        f'<h2>{escape(name)}</h2>\n<div class="scroll" role="region" tabindex="0" '
        f'aria-label="{escape(name)}">\n<table>\n<thead><tr>{"".join(heads)}</tr></thead>\n'
        f"<tbody>\n{''.join(rows)}</tbody>\n</table>\n</div>\n"
        + (f"<ol>\n{notes}</ol>\n" if notes else "")
    )


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return "<td>-</td>"
    kind = ' class="best"' if cell.best else ' class="other"' if cell.group else ""
    marks = "".join(f"[{note + 1}]" for note in cell.notes)
    spans = ", ".join(f"<span>{part}</span>" for part in _details(cell))
    small = f"<small>{spans}</small>" if spans else ""
    return (
        f'<td{kind} data-value="{cell.measured.value!r}" data-group="{cell.group}" '
        f'title="run {escape(cell.run_id)}"><b>{_value(cell)}</b>'
        + (f"<sup>{marks}</sup>" if marks else "")
        + f"{small}</td>"
    )


def _text(cell: Cell | None) -> str:
    if cell is None:
        return "-"
    details = ", ".join(_details(cell))
    marks = "".join(f" [{note + 1}]" for note in cell.notes)
    return _value(cell) + (f" ({details})" if details else "") + marks


def _value(cell: Cell) -> str:
    return ("★ " if cell.best else "") + f"{cell.measured.value:.3f}"


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
