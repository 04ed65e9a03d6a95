"""What all figures share: colours, panels, and how heading, chance and intervals are drawn."""

import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.font_manager import get_font_names
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

matplotlib.rcParams["text.parse_math"] = False  # a name with two $ is no formula
# Names in Chinese, Japanese or Korean take the first of these fonts that the machine has.
_CJK = (
    "Noto Sans CJK SC", "WenQuanYi Micro Hei", "PingFang SC", "Microsoft YaHei", "Malgun Gothic",
)  # fmt: skip
matplotlib.rcParams["font.family"] = [
    "DejaVu Sans",
    *sorted(set(_CJK) & set(get_font_names()), key=_CJK.index),
]

# Okabe and Ito's colours, told apart by every kind of sight; each with a marker of its own.
BLUE, ORANGE = "#0072B2", "#D55E00"
COLOURS = (BLUE, ORANGE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
CHANCE: dict[str, Any] = {
    "color": "black",
    "linestyle": (0, (3, 2)),
    "linewidth": 1.1,
    "path_effects": [withStroke(linewidth=2.4, foreground="white", alpha=0.6)],
}
FADING = "greyer: a wider 95\u00a0% interval; grey: too few for one"

_UNKNOWN = (0.83, 0.83, 0.83)  # the grey of a number that nothing is known of
_LETTERS_AN_INCH = 12  # of size 10


def panels(
    count: int, most: int, size: tuple[float, float], beside: float = 0.0, shared: bool = False
) -> Figure:
    """Return a figure of so many panels of `size` inches each, at most so many in a row.

    What stands `beside` them needs so many inches. Their axes may be `shared`.
    """
    rows = -(-count // most)
    columns = -(-count // rows)
    inches = (size[0] * columns + beside, size[1] * rows + 0.8)
    figure = Figure(inches, dpi=150, layout="compressed")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=shared, sharey=shared).ravel()
    for spare in axes[count:]:
        spare.remove()
    return figure


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as a picture and return its path. A letter that no font has is a box."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ ", UserWarning)
        figure.savefig(path, bbox_inches="tight")
    return path


def head(figure: Figure, text: str) -> None:
    """Write above a figure whose numbers these are, of what, and how many."""
    text = text.replace(" = ", "\u00a0=\u00a0")  # which stay in one line
    figure.suptitle(wrapped(text, int(figure.get_figwidth() * _LETTERS_AN_INCH)), fontsize=10)


def wrapped(text: str, letters: int) -> str:
    r"""Return the text in lines of at most so many letters, ending between words or at a sign.

    >>> wrapped("pairwise/helpfulness", 12)
    'pairwise/\nhelpfulness'
    """
    lines = [""]
    word = rf".{{1,{letters}}}?(?:[/_ -]+|$)|.{{{letters}}}"
    for piece in re.findall(word, text, re.DOTALL):
        if lines[-1] and len(lines[-1]) + len(piece.rstrip(" ")) > letters:
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.rstrip(" ") for line in lines)


def chance_label(values: Iterable[float]) -> str:
    """Say in a legend what level is drawn as chance: what rewards drawn at random have."""
    return f"chance {span(values, '.2f')}"


def span(values: Iterable[float], form: str = ",") -> str:
    """Write the least and the highest of these, once where they read alike."""
    every = list(values)
    return " to ".join(dict.fromkeys(f"{end:{form}}" for end in (min(every), max(every))))


def whisker(axis: Axes, low: float, high: float, at: float, upright: bool = False) -> None:
    """Draw an interval with its ends, so that one of no width is seen."""
    places, ends = [at, at], [low, high]
    line = (places, ends) if upright else (ends, places)
    axis.plot(*line, marker="_" if upright else "|", ms=5, color="black", lw=1.2, clip_on=False)


def faded(colours: NDArray[np.float64], doubt: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the colours `(..., 4)` nearer to grey, by doubts `(...)` from 0 to 1."""
    kept = colours.copy()
    kept[..., :3] += doubt[..., None] * (np.array(_UNKNOWN) - colours[..., :3])
    return kept


def ink(colour: NDArray[np.float64]) -> str:
    """Return the colour of a text that can be read on this one."""
    return "white" if np.array(colour[:3]) @ (0.299, 0.587, 0.114) < 0.5 else "black"


def colour_bar(
    figure: Figure, colours: ScalarMappable, ticks: Mapping[float, str], label: str
) -> None:
    """Draw below all panels what their colours mean, and that they fade."""
    bar = figure.colorbar(colours, ax=figure.axes, orientation="horizontal", aspect=40, pad=0.03)
    bar.set_ticks(list(ticks), labels=list(ticks.values()))
    bar.ax.tick_params(labelsize=8)
    letters = int(figure.get_figwidth() * _LETTERS_AN_INCH)
    bar.set_label(wrapped(f"{label} ({FADING})", letters), fontsize=8)


def tidy(axis: Axes) -> None:
    """Leave out the frame where nothing is read, and make the numbers small."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)


def key(figure: Figure, columns: int = 3) -> None:
    """Write the legend of all panels below them, each entry once."""
    entries: dict[str, Any] = {}
    for axis in figure.axes:
        for mark, label in zip(*axis.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, mark)
    labels, marks = list(entries), list(entries.values())
    figure.legend(
        marks, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=8
    )
