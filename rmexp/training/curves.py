"""The figure of a training's course."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from rmexp.stats.figures import BLUE, ORANGE


def training_curve(history: Sequence[Mapping[str, float]]) -> Figure:
    """Draw loss, accuracy and margin by step; `history` has a row with `step` for each log."""
    figure = Figure(figsize=(10, 3), dpi=150, layout="constrained")
    for axis, name in zip(figure.subplots(1, 3), ("loss", "accuracy", "margin"), strict=True):
        for stage, colour, style in (("train", BLUE, "-"), ("val", ORANGE, "o-")):
            key = f"{stage}/{name}"
            rows = [(row["step"], row[key]) for row in history if key in row]
            if rows:
                steps, values = zip(*rows, strict=True)
                axis.plot(steps, values, style, color=colour, label=stage, lw=1.2, ms=3)
        if name == "accuracy":
            axis.set_ylim(0, 1.02)
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("step", fontsize=9)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    figure.axes[0].legend(frameon=False, fontsize=8)
    return figure
