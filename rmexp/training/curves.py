"""The figure of a training's course."""

import math
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rmexp.stats.drawing import BLUE, CHANCE, ORANGE, head, key, panels, tidy

# What a panel shows, in its unit, and what rewards drawn at random or all alike have of it.
_PANELS = {
    "loss": ("loss, in nats a pair", math.log(2)),
    "accuracy": ("accuracy, share of pairs", 0.5),
    "margin": ("margin, in units of reward", 0.0),
}
_MARKED = 50  # steps, up to which each has a dot
_STAGES = {"train": ("a step's pairs", BLUE, "."), "val": ("validation", ORANGE, "o")}


def training_curve(history: Sequence[Mapping[str, float]], title: str) -> Figure:
    """Draw loss, accuracy and margin by step; `history` has a row with `step` for each log."""
    figure = panels(len(_PANELS), len(_PANELS), (3.4, 2.6))
    for axis, (name, (words, chance)) in zip(figure.axes, _PANELS.items(), strict=True):
        for stage, (label, colour, marker) in _STAGES.items():
            value = f"{stage}/{name}"
            rows = [(row["step"], row[value]) for row in history if value in row]
            if rows:
                look = "-" if len(rows) > _MARKED else f"{marker}-"
                axis.plot(*zip(*rows, strict=True), look, color=colour, label=label, lw=1.2, ms=5)
        axis.axhline(chance, label="chance: no difference between the two", **CHANCE)
        axis.set_ylabel(words, fontsize=9)
        axis.set_xlabel("steps done", fontsize=9)
        last = max(1.0, *(row["step"] for row in history))
        axis.set_xlim(-0.03 * last, 1.03 * last)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        tidy(axis)
    accuracy = figure.axes[1]
    accuracy.set_ylim(min(accuracy.get_ylim()[0], 0.48), 1.02)
    key(figure)
    head(figure, title)
    return figure
