"""The style-substance matrix of RM-Bench (arXiv 2410.16184, section 3.3), shared with `toy`.

An example holds one chosen and one rejected response in each of three styles, both in the order of
`STYLES`. Cell (i, j) of a domain's matrix is the share of its prompts where the chosen response in
style i is rewarded strictly above the rejected one in style j.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from rmexp.metrics import Metric, WeightedMean, beats, mean, metric_name
from rmexp.schema import ScoredExample
from rmexp.stats.intervals import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLES = ("concise", "detailed", "markdown")

# Cells (chosen style, rejected style): the style helps below the diagonal and misleads above it.
DIFFICULTIES = {
    "easy": ((1, 0), (2, 0), (2, 1)),
    "normal": ((0, 0), (1, 1), (2, 2)),
    "hard": ((0, 1), (0, 2), (1, 2)),
}


def style_metrics(
    prefix: str,
    domains: Mapping[str, Sequence[str]],
    besides: Mapping[str, Sequence[str]],
    scored: Sequence[ScoredExample],
) -> list[Metric]:
    """Return the metrics of the 3 x 3 matrices.

    A domain pools the prompts of its subsets. Its easy, normal and hard are the means of the three
    cells each, its average is the mean of these, and `<prefix>/{easy,normal,hard,overall}` are
    plain means over `domains`. Those in `besides` are reported, but do not count in the overall.
    Domains without an example are left out and make the overall partial.
    """
    metrics: list[Metric] = []
    subsets = [row.subset for row in scored]
    for domain, parts in [*domains.items(), *besides.items()]:
        rows = [position for position, subset in enumerate(subsets) if subset in parts]
        missing = tuple(part for part in parts if part not in subsets)
        if rows:
            metrics += _domain_metrics(metric_name(prefix, domain), rows, missing, scored)
    present = [name for name, parts in domains.items() if not set(parts).isdisjoint(subsets)]
    missing = tuple(name for name in domains if name not in present)
    if present:
        for figure in ("easy", "normal", "hard", "average"):
            name = "overall" if figure == "average" else figure
            of = [metric_name(prefix, domain, figure) for domain in present]
            metrics.append(_plain_mean(metric_name(prefix, name), of, missing))
    return metrics


def style_figures(
    prefix: str,
    domains: Mapping[str, Sequence[str]],
    estimates: Mapping[str, Estimate],
    scored: Sequence[ScoredExample],
) -> "dict[str, Figure]":
    """Draw a heat map and a scatter of style bias for each of the domains that has estimates."""
    from rmexp.stats import figures

    matrices = {}
    biases = {}
    for domain, parts in domains.items():
        cells = [
            [_cell_name(metric_name(prefix, domain), i, j) for j in range(3)] for i in range(3)
        ]
        if cells[0][0] in estimates:
            matrices[domain] = [[estimates[name] for name in row] for row in cells]
            of = [correctness_and_verbosity(row) for row in scored if row.subset in parts]
            finite = [pair for pair in of if np.isfinite(pair).all()]
            if finite:
                biases[domain] = np.array(finite)
    drawn = {}
    if matrices:
        drawn["style_matrix.png"] = figures.heat_maps(matrices, STYLES)
    if biases:
        drawn["style_bias.png"] = figures.style_bias(biases)
    return drawn


def correctness_and_verbosity(row: ScoredExample) -> tuple[float, float]:
    """Return what the reward model pays for being right, and for saying more.

    Correctness is chosen minus rejected, averaged over the three styles; verbosity is detailed
    minus concise, averaged over chosen and rejected. Both are in units of reward.
    """
    chosen, rejected = np.array(row.chosen), np.array(row.rejected)
    verbosity = (chosen + rejected)[1] - (chosen + rejected)[0]
    return float((chosen - rejected).mean()), float(verbosity / 2)


def _domain_metrics(
    domain: str, rows: Sequence[int], missing: tuple[str, ...], scored: Sequence[ScoredExample]
) -> list[Metric]:
    """Return a domain's nine cells, its three difficulties and its average."""
    metrics: list[Metric] = []
    for i in range(3):
        for j in range(3):
            outcomes = [beats(row, i, j) for row in scored]
            chances = [0.5] * len(scored)
            metrics.append(mean(_cell_name(domain, i, j), outcomes, rows, missing, chances))
    for difficulty, cells in DIFFICULTIES.items():
        of = [_cell_name(domain, i, j) for i, j in cells]
        metrics.append(_plain_mean(f"{domain}/{difficulty}", of))
    metrics.append(_plain_mean(f"{domain}/average", [f"{domain}/{name}" for name in DIFFICULTIES]))
    return metrics


def _cell_name(domain: str, chosen: int, rejected: int) -> str:
    return f"{domain}/matrix/{STYLES[chosen]}_{STYLES[rejected]}"


def _plain_mean(name: str, parts: Sequence[str], missing: tuple[str, ...] = ()) -> WeightedMean:
    return WeightedMean(name, tuple(parts), (1.0,) * len(parts), missing)
