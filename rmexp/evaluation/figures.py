"""The figure of what training gained."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from rmexp.evaluation.gains import Gain
from rmexp.stats.bounds import TOO_FEW
from rmexp.stats.figures import BLUE, PANELS_A_ROW


def dots(rows: Sequence[Gain]) -> Figure:
    """Draw a panel for each overall number or average: the reward models' values and intervals.

    Models that surely differ from the start (`Gain.sure`) are filled, all others are hollow. Where
    a number has no interval, the panel says so.
    """
    rows = [row for row in rows if row.shown]
    names = list(dict.fromkeys(row.name for row in rows))
    models = list(dict.fromkeys(row.rm for row in rows))
    columns = min(len(names), PANELS_A_ROW)
    lines = -(-len(names) // columns)
    size = (3.1 * columns + 1.6, lines * (0.24 * len(models) + 0.9))
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for axis in axes[len(names) :]:
        axis.axis("off")
    for axis, name in zip(axes, names, strict=False):
        own = [row for row in rows if row.name == name]
        for row in own:
            place = models.index(row.rm)
            if row.low is not None and row.high is not None:
                axis.plot([row.low, row.high], [place, place], color="black", lw=1)
            face = BLUE if row.sure else "white"
            (point,) = axis.plot(row.value, place, "o", color=BLUE, markersize=6)
            point.set(markerfacecolor=face, clip_on=False, zorder=3)
        axis.axvline(0.5, color="0.75", lw=0.8, zorder=0)
        few = min((row.n for row in own if row.low is None), default=None)
        axis.set_title(name if few is None else f"{name}\n(n {few}, {TOO_FEW})", fontsize=9)
        axis.set_yticks(range(len(models)), models, fontsize=8)
        axis.tick_params(axis="x", labelsize=8, labelbottom=True)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    axes[0].set_xlim(0, 1)
    axes[0].set_ylim(len(models) - 0.5, -0.5)
    figure.supxlabel(
        "value with its 95 % interval; filled: differs from the model before training "
        "(Holm's p < 0.05)",
        fontsize=8,
    )
    return figure
