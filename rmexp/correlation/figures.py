"""Figures of correlations: points with names and their line, ranks side by side, agreement."""

from collections.abc import Mapping, Sequence
from itertools import takewhile

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import rankdata

from rmexp.correlation.correlations import Correlation, Correlations
from rmexp.correlation.labels import place_names
from rmexp.stats.bounds import interval_text
from rmexp.stats.coefficients import Points
from rmexp.stats.drawing import (
    COLOURS,
    MARKERS,
    colour_bar,
    faded,
    head,
    ink,
    tidy,
    wrapped,
)

_KINDS = tuple(zip(COLOURS[:5], MARKERS[:5], strict=True))
_OTHER = ("#555555", "P")
_BAND, _GREY = "#9ecae1", "#666666"
_DRAWS = 400  # of the band
_LABEL_SIZE, _LONGEST, _KEY_COLUMNS = 8, 28, 3


def scatter(
    points: Points,
    correlations: Correlations,
    labels: tuple[str, str],
    groups: Mapping[str, str],
    columns: Sequence[str],
    rng: np.random.Generator,
) -> Figure:
    """Draw the points with their RMs' names, the least-squares line and its 95 % band.

    The band is where the lines of resampled RMs run, if these are enough; dotted lines are fitted
    without the RM at either end of the leave-one-out range. Colours tell groups of RMs, or else an
    RM's `columns`.
    """
    labels_of = dict(zip(points.rms, _labels(points.rms), strict=True))
    figure = _scatter(points, correlations, labels, groups, columns, rng.spawn(1)[0], labels_of, ())
    if figure is None:  # the names do not fit: numbers, with a key
        key = [f"{at}  {name}" for at, name in enumerate(labels_of.values(), 1)]
        numbers = {rm: str(at) for at, rm in enumerate(points.rms, 1)}
        figure = _scatter(
            points, correlations, labels, groups, columns, rng.spawn(1)[0], numbers, key
        )
    assert figure is not None
    return figure


def _scatter(
    points: Points,
    correlations: Correlations,
    labels: tuple[str, str],
    groups: Mapping[str, str],
    columns: Sequence[str],
    rng: np.random.Generator,
    names: Mapping[str, str],
    key: Sequence[str],
) -> Figure | None:
    """Draw the scatter with these names, and a key below; None if the names would overlap."""
    x, y = _shown(points)
    lines = -(-len(key) // _KEY_COLUMNS)
    figure = Figure(figsize=(7, 5 + 0.16 * lines), dpi=150, layout="constrained")
    axis, *below = (
        figure.subplots(2, height_ratios=[5, 0.16 * lines]) if key else [figure.subplots()]
    )
    for at, line in enumerate(key):
        place = (at // lines / _KEY_COLUMNS, 1 - (at % lines + 0.5) / lines)
        below[0].text(*place, line, fontsize=7, va="center")
        below[0].axis("off")
    kinds = [
        columns[column] if len(columns) > 1 else groups.get(rm, "")
        for rm in points.rms
        for column in range(len(columns))
    ]
    order = list(dict.fromkeys(kinds))
    axis.margins(0.08, 0.1)
    for at, kind in enumerate(order):
        colour, marker = _kind(at)
        here = np.array([each == kind for each in kinds])
        label = kind or ("other" if len(order) > 1 else None)
        axis.scatter(
            x.ravel()[here],
            y.ravel()[here],
            s=34,
            color=colour,
            marker=marker,
            label=label,
            zorder=5,
        )
    _lines(axis, x, y, points.rms, correlations, names, rng)
    axis.set_xlabel(wrapped(f"score of the reward model: {labels[0]}", 80), fontsize=9)
    axis.set_ylabel(wrapped(f"score of the policy: {labels[1]}", 60), fontsize=9)
    tidy(axis)
    axis.set_title(_title(correlations), fontsize=9, loc="left")
    figure.legend(
        *axis.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=3,
        fontsize=8,
        frameon=False,
    )
    beside = [names[rm] for rm in points.rms for _ in columns]
    return (
        figure
        if place_names(figure, axis, x.ravel(), y.ravel(), beside, _LABEL_SIZE) or key
        else None
    )


def ranks(points: Points, labels: tuple[str, str], groups: Mapping[str, str]) -> Figure:
    """Draw each RM's rank by score on the left, and by policy on the right, 1 being the best.

    An RM with several points counts by their mean.
    """
    x, y = (side.mean(axis=1) for side in _shown(points))
    names = _labels(points.rms)
    figure = Figure(figsize=(7, 0.23 * len(names) + 1.2), dpi=150, layout="constrained")
    axis = figure.subplots()
    order = list(dict.fromkeys(groups.get(rm, "") for rm in points.rms))
    places = []
    for values, place, align in ((x, -0.03, "right"), (y, 1.03, "left")):
        at = np.empty(len(names))
        at[np.argsort(-values, kind="stable")] = np.arange(len(names))
        places.append(at)
        for name, rank, line in zip(names, rankdata(-values), at, strict=True):
            words = [name, f"{rank:g}"]
            text = "   ".join(words if align == "right" else words[::-1])
            axis.text(place, line, text, ha=align, va="center", fontsize=_LABEL_SIZE)
    for side, label in enumerate(labels):
        axis.text(side, -0.8, wrapped(label, 30), ha="center", va="bottom", fontsize=9)
    drawn: set[str] = set()
    for rm, a, b in zip(points.rms, *places, strict=True):
        group = groups.get(rm, "")
        colour, marker = _kind(order.index(group))
        entry = None if group in drawn else group or "other"
        drawn.add(group)
        axis.plot([0, 1], [a, b], color=colour, marker=marker, ms=5, lw=1.3, label=entry)
    if len(order) > 1:
        figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    head(figure, f"Ranks of {len(names)} reward models, 1 being the best: by score, and by policy")
    axis.set_xlim(-0.8, 1.8)
    axis.set_ylim(len(names) - 0.5, -1.6)
    axis.axis("off")
    return figure


def matrix(
    names: Sequence[str], cells: Mapping[tuple[str, str], tuple[Correlation, int]]
) -> Figure:
    """Draw the rank correlation of every two benchmarks, with the number of RMs that have both.

    `cells` has each pair once; those that are missing stay blank.
    """
    size = len(names)
    image = np.ones((size, size, 4))
    figure = Figure(figsize=(7, 0.75 * size + 2.2), dpi=150, layout="constrained")
    axis = figure.subplots()
    colours = ScalarMappable(cmap="RdBu")
    colours.set_clim(-1, 1)
    for (a, b), (correlation, n) in cells.items():
        low, high = correlation.shown(n)
        doubt = 1.0 if low is None or high is None else min(1.0, (high - low) / 2)
        colour = faded(np.array(colours.to_rgba(np.array(correlation.value))), np.array(doubt))
        for i, j in ((names.index(a), names.index(b)), (names.index(b), names.index(a))):
            image[i, j] = colour
            text = f"{correlation.value:z.2f}\nn {n}"
            axis.text(j, i, text, ha="center", va="center", color=ink(colour), fontsize=8)
    axis.imshow(image)
    shown = [wrapped(name, 16) for name in names]
    axis.set_xticks(range(size), shown, fontsize=8, rotation=45, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(size), shown, fontsize=8)
    ticks = {-1.0: "-1", -0.5: "-0.5", 0.0: "0, chance", 0.5: "0.5", 1.0: "1"}
    colour_bar(figure, colours, ticks, "Spearman's rank correlation")
    head(figure, "How scores rank reward models alike, n being the models that have both")
    return figure


def _kind(at: int) -> tuple[str, str]:
    """Return the colour and the marker of the group at this place; the later ones share one."""
    return _KINDS[at] if at < len(_KINDS) else _OTHER


def _shown(points: Points) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return what the axes show: x as z-scores where these are asked for."""
    if not points.standardised:
        return points.x, points.y
    return (points.x - points.x.mean(axis=0)) / points.x.std(axis=0), points.y


def _lines(
    axis: Axes,
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    rms: Sequence[str],
    correlations: Correlations,
    names: Mapping[str, str],
    rng: np.random.Generator,
) -> None:
    """Draw the least-squares line, its band, and the lines without one RM."""
    low, high = axis.get_xlim()
    along = np.linspace(low, high, 100)
    bottom, top = axis.get_ylim()
    draws = rng.integers(len(rms), size=(_DRAWS, len(rms)))
    fits = [_fit(x[draw].ravel(), y[draw].ravel()) for draw in draws]
    heights = np.array([a + b * along for fit in fits if fit is not None for a, b in [fit]])
    if len(heights) and correlations.pearson.low is not None:
        edges = np.quantile(heights, [0.025, 0.975], axis=0)
        axis.fill_between(
            along, *edges, color=_BAND, alpha=0.45, lw=0, label="95 % band of the line"
        )
    whole = _fit(x.ravel(), y.ravel())
    assert whole is not None
    axis.plot(along, whole[0] + whole[1] * along, color="black", lw=1.4, label="least squares")
    for end, style in ((correlations.least, ":"), (correlations.most, "--")):
        if end is None:
            continue
        kept = [at for at, rm in enumerate(rms) if rm != end[0]]
        fit = _fit(x[kept].ravel(), y[kept].ravel())
        if fit is not None:
            label = f"without {names[end[0]]}: r {end[1]:z.2f}"
            axis.plot(along, fit[0] + fit[1] * along, style, color=_GREY, lw=1.4, label=label)
    axis.set_xlim(low, high)
    axis.set_ylim(bottom, top)


def _fit(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, float] | None:
    """Return intercept and slope, None where all x are one."""
    spread = x - x.mean()
    if not np.ptp(x):
        return None
    slope = float(spread @ y / (spread @ spread))
    return float(y.mean() - slope * x.mean()), slope


def _title(correlations: Correlations) -> str:
    pearson, spearman = correlations.pearson, correlations.spearman
    rms = correlations.rms
    linear, ranked = (interval_text(*each.shown(rms), "z.2f") for each in (pearson, spearman))
    text = (
        f"Pearson {pearson.value:z.2f} ({linear}, p {pearson.p:.2g}), "
        f"Spearman {spearman.value:z.2f} ({ranked})"
    )
    n = correlations.n
    count = f"n {n} reward models" if n == rms else f"n {n} of {rms} reward models"
    least, most = correlations.least, correlations.most
    if least is None or most is None:
        return f"{text}, {count}"
    return f"{text}\n{count}; Pearson without one RM: {least[1]:z.2f} to {most[1]:z.2f}"


def _labels(rms: Sequence[str]) -> list[str]:
    """Return names that fit beside a point: without owner, what all begin with, and the middle."""
    names = [rm.rpartition("/")[2] for rm in rms]
    if len(set(names)) < len(names):
        names = list(rms)
    alike = sum(1 for _ in takewhile(lambda signs: len(set(signs)) == 1, zip(*names, strict=False)))
    cut = max(names[0].rfind(sign, 0, alike) for sign in "-_/") + 1
    names = [name[cut:] for name in names]
    half = _LONGEST // 2
    return [name if len(name) <= _LONGEST else f"{name[:half]}…{name[-half:]}" for name in names]
