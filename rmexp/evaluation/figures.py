"""The figure of what training gained."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from rmexp.evaluation.gains import Gain, short
from rmexp.stats.bounds import TOO_FEW
from rmexp.stats.drawing import (
    BLUE,
    CHANCE,
    chance_label,
    head,
    key,
    panels,
    span,
    tidy,
    whisker,
    wrapped,
)


def dots(rows: Sequence[Gain]) -> Figure:
    """Draw a panel for each overall number or average: the reward models' values and intervals.

    Models that surely differ from the start (`Gain.sure`) are filled, all others are hollow. Where
    a number has no interval, the panel says so.
    """
    rows = short(rows)
    names = list(dict.fromkeys(row.name for row in rows))
    models = list(dict.fromkeys(row.rm for row in rows))
    labels = [wrapped(model, 36) for model in models]
    lines = sum(label.count("\n") + 1 for label in labels)
    figure = panels(len(names), 3, (3.0, 0.24 * lines + 0.8), 2.5, shared=True)
    chances = {row.name: row.chance for row in rows if row.chance is not None}
    for axis, name in zip(figure.axes, names, strict=True):
        own = [row for row in rows if row.name == name]
        for row in own:
            place = models.index(row.rm)
            if row.low is not None and row.high is not None:
                whisker(axis, row.low, row.high, place)
            face = BLUE if row.sure else "white"
            (point,) = axis.plot(row.value, place, "o", color=BLUE, markersize=6)
            point.set(markerfacecolor=face, clip_on=False, zorder=4)
        if name in chances:
            axis.axvline(chances[name], label=chance_label(chances.values()), zorder=0, **CHANCE)
        few = f", {TOO_FEW}" if any(row.low is None for row in own) else ""
        axis.set_title(wrapped(f"{name} (n={span(row.n for row in own)}{few})", 40), fontsize=9)
        tidy(axis)
        axis.set_yticks(range(len(models)), labels)
        axis.tick_params(axis="x", labelbottom=True)
    ends = [end for row in rows for end in (row.value, row.low, row.high) if end is not None]
    figure.axes[0].set_xlim(min(0.0, *ends) - 0.01, max(1.0, *ends) + 0.01)
    figure.axes[0].set_ylim(len(models) - 0.5, -0.5)
    head(
        figure,
        "Value with its 95 % interval; filled: differs from the model before training "
        "(Holm's p < 0.05)",
    )
    if chances:
        key(figure)
    return figure
