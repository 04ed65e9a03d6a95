"""What a scored data set is like: counts, quantiles, ties.

Eight bytes are held for each row, and of single responses eight more.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmexp import tables
from rmexp.labelling.output import Output, Part
from rmexp.labelling.parts import PROMPT
from rmexp.labelling.rows import NUMBERS, Kind

_QUANTILES = {"min": 0, "q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95, "max": 1}
_SHOWN_BAD_ROWS = 20


@dataclass(frozen=True, slots=True)
class Summary:
    """The numbers of a scored data set by their metric names, and its first bad rows."""

    metrics: Mapping[str, float]
    bad_rows: tuple[str, ...]

    def table(self, kind: Kind) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Return the quantiles as a table, its columns' names first."""
        stats = ("mean", "std", *_QUANTILES)
        rows = [
            (name, *(_said(self.metrics.get(f"rewards/{name}/{stat}")) for stat in stats))
            for name in NUMBERS[kind]
        ]
        return ("", *stats), rows

    def line(self) -> str:
        """Say the counts in a line."""
        names = {
            "rewards/rows": "rows with a reward",
            "scoring/ties": "ties",
            "scoring/truncated": "responses cut on the left",
            "scoring/dropped": "rows dropped as too long",
            "scoring/non_finite": "not finite",
            "data/bad_rows": "bad rows",
        }
        return ", ".join(f"{int(self.metrics[name]):,} {what}" for name, what in names.items())

    def show(self, kind: Kind, title: str) -> None:
        """Print the table."""
        columns, rows = self.table(kind)
        tables.show(columns, rows, title, right=columns[1:])

    def markdown(self, kind: Kind) -> str:
        """Return the counts and the table for the run's page."""
        return "\n".join([self.line(), "", *tables.markdown(*self.table(kind))]) + "\n"


def summarise(output: Output, numbers: Sequence[int], kind: Kind) -> Summary:
    """Summarise these parts, which are made."""
    parts = [output.part(number) for number in numbers]
    judged, *others = NUMBERS[kind]
    metrics: dict[str, float] = {
        "rewards/rows": sum(part.written for part in parts),
        "scoring/responses": sum(part.responses for part in parts),
        "scoring/truncated": sum(part.truncated for part in parts),
        "scoring/dropped": sum(part.dropped for part in parts),
        "data/bad_rows": sum(len(part.bad_rows) for part in parts),
    }
    arrays = output.arrays(numbers, (judged, PROMPT) if kind == "responses" else (judged,))
    values = arrays[judged]
    metrics["scoring/non_finite"] = int(np.isnan(values).sum())
    if kind == "pairs":
        metrics["scoring/ties"] = int((values == 0).sum())
        metrics["rewards/positive_margins"] = int((values > 0).sum())
    else:
        metrics["scoring/ties"] = count_ties(arrays[PROMPT], values)
    metrics |= _quantiles(judged, values)
    for name in others:
        metrics |= _quantiles(name, output.arrays(numbers, (name,))[name])
    bad_rows = tuple(line for part in parts for line in part.bad_rows)[:_SHOWN_BAD_ROWS]
    return Summary(metrics, bad_rows)


def count_ties(prompts: NDArray[Any], rewards: NDArray[Any]) -> int:
    """Return how many responses have the reward of another one to the same prompt.

    >>> count_ties(np.array([1, 2, 1, 1]), np.array([0.5, 0.5, 0.5, 0.1]))
    2
    """
    order = np.lexsort((rewards, prompts))
    prompts, rewards = prompts[order], rewards[order]
    equal = (prompts[1:] == prompts[:-1]) & (rewards[1:] == rewards[:-1])
    tied = np.zeros(len(rewards), dtype=bool)
    tied[1:] |= equal
    tied[:-1] |= equal
    return int(tied.sum())


def total(parts: Sequence[Part], name: str) -> float:
    """Return the sum of a count over the parts."""
    return float(sum(getattr(part, name) for part in parts))


def _quantiles(name: str, values: NDArray[Any]) -> dict[str, float]:
    """Return mean, standard deviation and quantiles of the finite values; nothing where none is."""
    finite = values[~np.isnan(values)]
    if not len(finite):
        return {}
    quantiles = np.quantile(finite, list(_QUANTILES.values()))
    stats = dict(zip(_QUANTILES, quantiles, strict=True))
    stats |= {"mean": finite.mean(), "std": finite.std()}
    return {f"rewards/{name}/{stat}": float(value) for stat, value in stats.items()}


def _said(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
