"""Figures, drawn from numbers alone; no pyplot."""

from collections.abc import Collection, Mapping, Sequence
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from numpy.typing import NDArray

from rmexp.stats.bestofn import HIGHEST, RECORDED, Point, shown
from rmexp.stats.bounds import TOO_FEW
from rmexp.stats.calibration import Bin
from rmexp.stats.drawing import (
    BLUE,
    CHANCE,
    COLOURS,
    MARKERS,
    ORANGE,
    chance_label,
    colour_bar,
    faded,
    ink,
    key,
    panels,
    span,
    tidy,
    whisker,
    wrapped,
)
from rmexp.stats.intervals import Estimate

_MEASURES = {
    RECORDED: "expected recorded reward of the choice",
    "winner_rate": "share of lists with the winner ranked first",
}
_LETTERS = 44  # of a bar's name, before a new line


def heat_maps(
    matrices: Mapping[str, Sequence[Sequence[Estimate]]], styles: Sequence[str]
) -> Figure:
    """Draw a style matrix per domain: chosen styles down, rejected styles across.

    The estimates are shares of a domain's prompts. White is a coin's one half, blue is above and
    red below it, the greyer the less is known.
    """
    figure = panels(len(matrices), 4, (3.0, 3.0))
    colours = ScalarMappable(cmap="RdBu")
    colours.set_clim(0, 1)
    for axis, (domain, matrix) in zip(figure.axes, matrices.items(), strict=True):
        values = np.array([[cell.value for cell in row] for row in matrix])
        doubt = np.array([[_width(cell) for cell in row] for row in matrix])
        image = faded(colours.to_rgba(values), doubt)
        axis.imshow(image)
        for i, j in np.ndindex(values.shape):
            colour = ink(image[i, j])
            axis.text(j, i, f"{values[i, j]:.2f}", ha="center", va="center", color=colour)
        axis.set_title(f"{domain} (n={matrix[0][0].n:,})", fontsize=10)
        axis.set_xticks(range(len(styles)), styles, fontsize=8)
        axis.set_yticks(range(len(styles)), styles, fontsize=8, rotation=90, va="center")
        axis.set_xlabel("style of the rejected", fontsize=9)
        axis.set_ylabel("style of the chosen", fontsize=9)
    ticks = {0.0: "0", 0.25: "0.25", 0.5: "0.5, chance", 0.75: "0.75", 1.0: "1"}
    colour_bar(figure, colours, ticks, "share of prompts with chosen above rejected")
    return figure


def _width(estimate: Estimate) -> float:
    """Return how wide a share's interval is, 1 without one."""
    if estimate.low is None or estimate.high is None:
        return 1.0
    return estimate.high - estimate.low


def style_bias(domains: Mapping[str, NDArray[np.float64]]) -> Figure:
    """Draw a dot a prompt: what its rewards pay for correctness across, for verbosity up.

    Each domain's array is `(prompts, 2)`. Both axes have one scale, so that a model that looks at
    length makes an upright cloud, one that looks at correctness one that lies to the right.
    """
    figure = panels(len(domains), 4, (3.3, 3.6))
    for axis, (domain, pairs) in zip(figure.axes, domains.items(), strict=True):
        limit = 1.08 * np.abs(pairs).max() or 1.0
        axis.axhline(0, color="0.6", lw=0.8)
        axis.axvline(0, color="0.6", lw=0.8)
        axis.plot([-limit, limit], [-limit, limit], ":", color="0.5", lw=1, label="equal in size")
        axis.plot([-limit, limit], [limit, -limit], ":", color="0.5", lw=1)
        axis.scatter(pairs[:, 0], pairs[:, 1], s=12, color=BLUE, alpha=0.45, lw=0, label="a prompt")
        axis.plot(*pairs.mean(axis=0), "D", color=ORANGE, mec="white", ms=7, label="mean")
        right, more = (pairs > 0).mean(axis=0)
        shares = f"correctness > 0: {right:.0%}\nverbosity > 0: {more:.0%}"
        axis.set_title(f"{domain} (n={len(pairs):,})\n{shares}", fontsize=9)
        axis.set_xlim(-limit, limit)
        axis.set_ylim(-limit, limit)
        axis.set_box_aspect(1)
        axis.tick_params(labelsize=8)
        axis.set_xlabel("for correctness, in units of reward", fontsize=9)
        axis.set_ylabel("for verbosity, in units of reward", fontsize=9)
    key(figure)
    return figure


def bars(estimates: Sequence[Estimate], measure: str = "accuracy") -> Figure:
    """Draw a bar per estimate with its 95 % interval; names lose the part that all share.

    Bars without an interval are hollow, and their names say why. Each has its own chance.
    """
    names = [estimate.name.split("/") for estimate in estimates]
    shared = 0
    while len({tuple(name[: shared + 1]) for name in names}) == 1 < min(map(len, names)) - shared:
        shared += 1
    labels = [
        wrapped(
            f"{'/'.join(name[shared:])} (n={e.n:,}{'' if e.known else f', {TOO_FEW}'})", _LETTERS
        )
        for name, e in zip(names, estimates, strict=True)
    ]
    lines = sum(label.count("\n") + 1 for label in labels)
    figure = Figure((7.5, 0.24 * lines + 1.6), dpi=150, layout="constrained")
    axis = figure.subplots()
    places = np.arange(len(estimates))
    faces = [BLUE if estimate.known else "white" for estimate in estimates]
    values = [estimate.value for estimate in estimates]
    axis.barh(places, values, color=faces, edgecolor=BLUE, lw=1.5, height=0.7)
    for place, estimate in enumerate(estimates):
        if estimate.low is not None and estimate.high is not None:
            whisker(axis, estimate.low, estimate.high, place)
    if chances := {at: e.chance for at, e in enumerate(estimates) if e.chance is not None}:
        at = np.array(list(chances))
        axis.vlines(
            list(chances.values()),
            at - 0.5,
            at + 0.5,
            label=chance_label(chances.values()),
            **CHANCE,
        )
        key(figure)
    axis.set_yticks(places, labels)
    axis.set_ylim(len(estimates) - 0.5, -0.5)
    axis.set_xlim(-0.01, 1.01)
    axis.set_xlabel(f"{measure}, with its 95 % interval", fontsize=9)
    tidy(axis)
    return figure


def reliability(bins: Sequence[Bin]) -> Figure:
    """Draw how often a reward model is right against how confident it is, and how many are so.

    On the diagonal it is as often right as it says; below it, it is too sure.
    """
    figure = Figure((5.2, 5.8), dpi=150, layout="constrained")
    axis, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    axis.plot([0.5, 1], [0.5, 1], "-", color="0.6", lw=1.2, label="as often right as confident")
    axis.axhline(0.5, label=chance_label([0.5]), **CHANCE)
    for one in bins:
        whisker(axis, one.accuracy_low, one.accuracy_high, one.confidence, upright=True)
    confidence, accuracy = [one.confidence for one in bins], [one.accuracy for one in bins]
    axis.plot(confidence, accuracy, "o-", color=BLUE, ms=5, lw=1.2, label="reward model")
    axis.set_ylim(-0.01, 1.01)
    axis.set_ylabel("share that is right, with its 95 % interval", fontsize=9)
    width = 0.9 * (bins[0].high - bins[0].low)
    middles = [(one.low + one.high) / 2 for one in bins]
    below.bar(middles, [one.n for one in bins], width, color=BLUE)
    below.set_ylabel("examples", fontsize=9)
    below.set_xlabel("confidence, sigmoid(|margin|)", fontsize=9)
    below.set_xlim(0.49, 1.01)
    for each in (axis, below):
        tidy(each)
    key(figure)
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

    All points are of one measure. Dashed lines, the same for all runs of the same data, are what no
    ranking exceeds, and what a choice at random has. The upper axis is the KL divergence of
    choosing the best of n.
    """
    points = [point for of in runs.values() for point in of]
    series = [name for name in dict.fromkeys(p.series for p in points) if name != HIGHEST]
    bounds = dict.fromkeys(
        tuple((p.n, p.value) for p in of if p.series == HIGHEST) for of in runs.values()
    )
    width = 7.0 if len(series) == 1 else 3.7 * len(series)
    figure = Figure((width, 4.6 + 0.2 * len(runs)), dpi=150, layout="constrained")
    axes = figure.subplots(1, len(series), sharey=True, squeeze=False).ravel()
    for axis, name in zip(axes, series, strict=True):
        own = {run: there for run, of in runs.items() if (there := _of(of, name))}
        looks = dict(zip(runs, zip(cycle(COLOURS), cycle(MARKERS), strict=False), strict=False))
        for run, of in own.items():
            _curve(axis, of, run, *looks[run])
        for bound in filter(None, bounds):
            axis.plot(
                *zip(*bound, strict=True), "-.", color="0.4", lw=1.2, label="highest possible"
            )
        for level in dict.fromkeys(map(_chance, own.values())):
            axis.plot(*zip(*level, strict=True), label="chance: one at random", **CHANCE)
        _n_axis(axis, {p.n: p.kl for p in points})
        count = span(of[0].count for of in own.values())
        axis.set_xlabel(f"n, the responses to choose from ({count} examples)", fontsize=9)
        if len(series) > 1:
            axis.set_title(name, fontsize=10)
    axes[0].set_ylabel(_MEASURES[points[0].measure], fontsize=9)
    key(figure, columns=1)
    return figure


def _of(points: Sequence[Point], series: str) -> list[Point]:
    return [point for point in points if point.series == series]


def _chance(points: Sequence[Point]) -> tuple[tuple[int, float], ...]:
    """Return what a choice at random has at each n: 1/n of the lists, or what a response is worth.

    That is its value at n = 1.
    """
    if points[0].measure != RECORDED:
        return tuple((point.n, 1 / point.n) for point in points)
    return tuple((point.n, points[0].value) for point in points)


def _curve(axis: Axes, points: Sequence[Point], label: str, colour: str, marker: str) -> None:
    at = [p.n for p in points]
    marked = [at.index(n) for n in _ticks(at)]
    values = [p.value for p in points]
    bounds = np.array([(p.low, p.high) for p in points], dtype=float)  # None is NaN: no band
    face = colour
    if np.isnan(bounds).all():
        label, face = f"{label} ({TOO_FEW} for a band)", "white"
    label = wrapped(label, 80)
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
