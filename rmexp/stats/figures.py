"""Figures, drawn from numbers alone; no pyplot."""

from collections.abc import Collection, Mapping, Sequence
from itertools import cycle

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from rmexp.stats.bestofn import HIGHEST, Point, shown
from rmexp.stats.bounds import TOO_FEW
from rmexp.stats.calibration import Bin
from rmexp.stats.intervals import Estimate

matplotlib.rcParams["text.parse_math"] = False  # a name with two $ is no formula

# Okabe and Ito's colours, told apart by every kind of sight; each with a marker of its own.
BLUE, ORANGE = "#0072B2", "#D55E00"
_COLOURS = (BLUE, ORANGE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_MAPS_A_ROW = 4
PANELS_A_ROW = 3
_MEASURES = {
    "recorded_reward": "expected recorded reward",
    "winner_rate": "winner ranked first",
}


def heat_maps(matrices: Mapping[str, NDArray[np.float64]], styles: Sequence[str]) -> Figure:
    """Draw a style matrix per domain: chosen styles down, rejected styles across.

    Each matrix is `(styles, styles)`, shares between 0 and 1; NaN cells stay blank. White is a
    coin's one half, blue is above and red below it.
    """
    columns = min(len(matrices), _MAPS_A_ROW)
    rows = -(-len(matrices) // columns)
    figure = Figure(figsize=(2.9 * columns + 0.9, 3.1 * rows), dpi=150, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[len(matrices) :]:
        axis.axis("off")
    image = None
    for axis, (domain, matrix) in zip(axes, matrices.items(), strict=False):
        image = axis.imshow(matrix, cmap="RdBu", vmin=0, vmax=1)
        for i, j in np.ndindex(matrix.shape):
            if not np.isnan(matrix[i, j]):
                strong = abs(matrix[i, j] - 0.5) > 0.3
                color = "white" if strong else "black"
                axis.text(j, i, f"{matrix[i, j]:.2f}", ha="center", va="center", color=color)
        axis.set_title(domain, fontsize=11)
        axis.set_xticks(range(len(styles)), styles, fontsize=8)
        axis.set_yticks(range(len(styles)), styles, fontsize=8, rotation=90, va="center")
        axis.set_xlabel("rejected", fontsize=9)
    axes[0].set_ylabel("chosen", fontsize=9)
    if image is not None:
        bar = figure.colorbar(image, ax=list(axes), shrink=0.8, pad=0.01)
        bar.set_label("share of prompts with chosen above rejected", fontsize=8)
    return figure


def style_bias(domains: Mapping[str, NDArray[np.float64]]) -> Figure:
    """Draw a dot a prompt: what its rewards pay for correctness across, for verbosity up.

    Each domain's array is `(prompts, 2)`, with NaN for a reward that is not finite. Both axes have
    one scale, so that a model that looks at length makes an upright cloud, one that looks at
    correctness one that lies to the right.
    """
    columns = min(len(domains), 2)
    rows = -(-len(domains) // columns)
    figure = Figure(figsize=(3.5 * columns, 3.7 * rows), dpi=150, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[len(domains) :]:
        axis.axis("off")
    for axis, (domain, pairs) in zip(axes, domains.items(), strict=False):
        there = pairs[np.isfinite(pairs).all(axis=1)]
        limit = 1.08 * np.abs(there).max(initial=0) or 1.0
        axis.axhline(0, color="0.6", lw=0.8)
        axis.axvline(0, color="0.6", lw=0.8)
        axis.plot([-limit, limit], [-limit, limit], ":", color="0.5", lw=1, label="equal in size")
        axis.plot([-limit, limit], [limit, -limit], ":", color="0.5", lw=1)
        axis.scatter(there[:, 0], there[:, 1], s=12, color=BLUE, alpha=0.45, lw=0)
        if len(there):
            axis.plot(*there.mean(axis=0), "D", color=ORANGE, mec="white", ms=7, label="mean")
            right, more = (there[:, 0] > 0).mean(), (there[:, 1] > 0).mean()
            shares = f"correctness > 0: {right:.0%}\nverbosity > 0: {more:.0%}"
            axis.set_title(f"{domain} (n={len(there):,})\n{shares}", fontsize=9)
        axis.set_xlim(-limit, limit)
        axis.set_ylim(-limit, limit)
        axis.set_aspect("equal")
        axis.tick_params(labelsize=8)
        axis.set_xlabel("reward for correctness", fontsize=9)
        axis.set_ylabel("reward for verbosity", fontsize=9)
    lines, labels = axes[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def bars(estimates: Sequence[Estimate], title: str) -> Figure:
    """Draw a bar per estimate with its 95 % interval; names lose the part that all share.

    Bars without an interval are hollow, and their names say why.
    """
    names = [estimate.name.split("/") for estimate in estimates]
    shared = 0
    while len({tuple(name[: shared + 1]) for name in names}) == 1 < min(map(len, names)) - shared:
        shared += 1
    labels = [
        f"{'/'.join(name[shared:])} (n={estimate.n:,}{'' if estimate.known else f', {TOO_FEW}'})"
        for name, estimate in zip(names, estimates, strict=True)
    ]
    height = 0.24 * len(estimates) + 1.1
    figure = Figure(figsize=(7.5, height), dpi=150, layout="constrained")
    axis = figure.subplots()
    places = np.arange(len(estimates))
    faces = [BLUE if estimate.known else "white" for estimate in estimates]
    values = [estimate.value for estimate in estimates]
    axis.barh(places, values, color=faces, edgecolor=BLUE, height=0.7)
    for place, estimate in zip(places, estimates, strict=True):
        if estimate.low is not None and estimate.high is not None:
            axis.plot([estimate.low, estimate.high], [place, place], color="black", lw=1.2)
    axis.set_yticks(places, labels, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(0, 1)
    axis.set_xlabel("accuracy, with its 95 % interval", fontsize=9)
    axis.set_title(title, fontsize=10)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    return figure


def reliability(bins: Sequence[Bin]) -> Figure:
    """Draw how often a reward model is right against how confident it is, and how many are so.

    On the diagonal it is as often right as it says; below it, it is too sure.
    """
    figure = Figure(figsize=(4.6, 5.4), dpi=150, layout="constrained")
    axis, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    axis.plot([0.5, 1], [0.5, 1], "--", color="0.5", lw=1.2, label="as often right as confident")
    for one in bins:
        ends = [one.accuracy_low, one.accuracy_high]
        axis.plot([one.confidence, one.confidence], ends, color="black", lw=1)
    confidence, accuracy = [one.confidence for one in bins], [one.accuracy for one in bins]
    axis.plot(confidence, accuracy, "o-", color=BLUE, ms=5, lw=1.2, label="reward model")
    axis.set_ylim(0, 1)
    axis.set_ylabel("share that is right, with its 95 % interval", fontsize=9)
    axis.legend(frameon=False, fontsize=8, loc="lower right")
    width = 0.9 * (bins[0].high - bins[0].low)
    below.bar(
        [(one.low + one.high) / 2 for one in bins], [one.n for one in bins], width, color=BLUE
    )
    below.set_ylabel("examples", fontsize=9)
    below.set_xlabel("confidence, sigmoid(|margin|)", fontsize=9)
    below.set_xlim(0.49, 1.01)
    for each in (axis, below):
        each.tick_params(labelsize=8)
        for side in ("top", "right"):
            each.spines[side].set_visible(False)
    return figure


def curves(runs: Mapping[str, Sequence[Point]]) -> dict[str, Figure]:
    """Draw the best-of-n curves of named runs: a figure for each measure, by file name."""
    drawn = {}
    for measure in dict.fromkeys(point.measure for of in runs.values() for point in of):
        of_measure = {name: [p for p in of if p.measure == measure] for name, of in runs.items()}
        drawn[f"curve_{measure}.png"] = _curves({name: of for name, of in of_measure.items() if of})
    return drawn


def _curves(runs: Mapping[str, Sequence[Point]]) -> Figure:
    """Draw best-of-n curves with their bands: a panel a series, a colour and a marker a run.

    All points are of one measure. A dashed line, the same for all runs, is what no ranking exceeds.
    The upper axis is the KL divergence of choosing the best of n.
    """
    points = [point for of in runs.values() for point in of]
    series = [name for name in dict.fromkeys(p.series for p in points) if name != HIGHEST]
    bounds = dict.fromkeys(
        tuple((p.n, p.value) for p in of if p.series == HIGHEST) for of in runs.values()
    )
    width = 7.0 if len(series) == 1 else 3.7 * len(series)
    figure = Figure(figsize=(width, 4.2 + 0.2 * len(runs)), dpi=150, layout="constrained")
    axes = figure.subplots(1, len(series), sharey=True, squeeze=False).ravel()
    for axis, name in zip(axes, series, strict=True):
        for (label, of), colour, marker in zip(
            runs.items(), cycle(_COLOURS), cycle(_MARKERS), strict=False
        ):
            if there := [p for p in of if p.series == name]:
                _curve(axis, there, label, colour, marker)
        for bound in filter(None, bounds):
            at, values = zip(*bound, strict=True)
            axis.plot(at, values, "--", color="0.4", lw=1.2, label="highest possible")
        _n_axis(axis, {p.n: p.kl for p in points})
        if len(series) > 1:
            axis.set_title(name, fontsize=10)
    axes[0].set_ylabel(_MEASURES[points[0].measure], fontsize=9)
    lines, labels = axes[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower center", ncols=1, frameon=False, fontsize=9)
    return figure


def _curve(axis: Axes, points: Sequence[Point], label: str, colour: str, marker: str) -> None:
    at = [p.n for p in points]
    marked = [at.index(n) for n in _ticks(at)]
    values = [p.value for p in points]
    bounds = np.array([(p.low, p.high) for p in points], dtype=float)  # None is NaN: no band
    face = colour
    if np.isnan(bounds).all():
        label, face = f"{label} (n={points[0].count:,}, {TOO_FEW} for a band)", "white"
    (line,) = axis.plot(at, values, marker, ls="-", markevery=marked, color=colour, label=label)
    line.set(markersize=5, linewidth=1.5, markerfacecolor=face)
    axis.fill_between(at, bounds[:, 0], bounds[:, 1], color=colour, alpha=0.18, lw=0)


def _n_axis(axis: Axes, kl: Mapping[int, float | None]) -> None:
    """Scale the axis of n by powers of two; `kl` has the divergence of each n, if there is one."""
    ticks = _ticks(kl)
    axis.set_xscale("log", base=2)
    axis.set_xticks(ticks, [str(n) for n in ticks], fontsize=8)
    axis.minorticks_off()
    axis.tick_params(axis="y", labelsize=8)
    axis.set_xlabel("n, the responses to choose from", fontsize=9)
    axis.grid(color="0.9", lw=0.6)
    axis.set_axisbelow(True)
    axis.spines["right"].set_visible(False)
    labels = [f"{nats:.2f}" for n in ticks if (nats := kl[n]) is not None]
    if not labels:
        axis.spines["top"].set_visible(False)
        return
    above = axis.secondary_xaxis("top")
    above.set_xticks(ticks, labels, fontsize=8)
    above.minorticks_off()
    above.set_xlabel("KL(n) = ln n - (n - 1) / n, in nats", fontsize=9)


def _ticks(at: Collection[int]) -> list[int]:
    """Return the n to mark: few n all of them, many by powers of two."""
    return sorted(at) if len(at) <= 8 else [n for n in shown(max(at)) if n in at]
