"""Trained models beside the one that they started from: the table of a training or of a sweep."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, fields, replace
from pathlib import Path

import numpy as np

from rmexp import tables
from rmexp.evaluation.gains import Gain, short
from rmexp.metrics import Metric, plain_name
from rmexp.schema import ScoredExample
from rmexp.stats.bounds import interval_text
from rmexp.stats.intervals import intervals
from rmexp.stats.paired import differences
from rmexp.stats.signflips import chance_line, holm

FILE, FIGURE = "comparison.csv", "comparison.png"

_COLUMNS = ("metric (n)", "reward model", "value", "gain over the start", "p", "Holm's p")


def compare(
    scored: Mapping[str, Sequence[ScoredExample]],
    start: str | None,
    bench: str,
    metrics: Callable[[Sequence[ScoredExample]], Sequence[Metric]],
    seed: int,
) -> list[Gain]:
    """Return each reward model's metrics on the same examples, with gains over the one at `start`.

    `scored` holds the models' rewards by their names. Intervals and gains are the bootstraps of
    `stats.intervals` and `paired.differences`. Without `start` there are no gains.
    """
    rows = []
    for rm, examples in sorted(scored.items(), key=lambda one: one[0] != start):
        rng = np.random.default_rng(seed)
        gains = {}
        if start is not None and rm != start:
            before = scored[start]
            gains = {
                d.name: d
                for d in differences(examples, before, metrics, np.random.default_rng(seed))
            }
        estimates = [e for e in intervals(metrics(examples), examples, rng) if e.at is None]
        for estimate in sorted(estimates, key=lambda e: e.name.count("/")):  # from coarse to fine
            value = (estimate.value, estimate.low, estimate.high, estimate.n)
            gain = gains.get(plain_name(estimate.name))
            more = (gain.value, gain.low, gain.high, gain.p) if gain else (None,) * 4
            row = Gain(rm, bench, estimate.name, *value, *more)
            rows.append(replace(row, chance=estimate.chance))
    return corrected(rows)


def corrected(rows: Sequence[Gain]) -> list[Gain]:
    """Return the rows with Holm's p for the number of gains among them."""
    ps = holm([row.gain_p for row in rows])
    return [replace(row, gain_p_holm=p) for row, p in zip(rows, ps, strict=True)]


def report(rows: Sequence[Gain], folder: Path) -> str:
    """Leave the rows and their figure in a folder, print the short table and return it."""
    from rmexp.evaluation import figures
    from rmexp.stats import drawing

    rows = corrected(rows)
    write(folder / FILE, rows)
    drawing.save(figures.dots(rows), folder / FIGURE)
    show(rows)
    return markdown(rows)


def write(path: Path, rows: Iterable[Gain]) -> None:
    """Write the rows as CSV; what is None becomes an empty cell."""
    tables.write_csv(path, [field.name for field in fields(Gain)], map(astuple, rows))


def read(path: Path) -> list[Gain]:
    """Read what `write` wrote. Raises DataError for another table."""
    return tables.read_csv(path, Gain, "remove it, or run the job again")


def gather(folders: Iterable[Path]) -> list[Gain]:
    """Return the rows of several runs; what they have in common, such as their start, once.

    A model with the name of another one, but other numbers, gets its run's folder beside the name.
    """
    gathered: dict[str, dict[str, Gain]] = {}
    for folder in folders:
        if not (folder / FILE).exists():
            continue
        models: dict[str, list[Gain]] = {}
        for row in read(folder / FILE):
            models.setdefault(row.rm, []).append(row)
        for rm, rows in models.items():
            known = gathered.get(rm, {})
            same = all(_number(row) == _number(known.get(row.name, row)) for row in rows)
            name = rm if same else f"{rm} ({folder.name})"
            kept = gathered.setdefault(name, {})
            for row in rows:
                kept.setdefault(row.name, replace(row, rm=name))
    return [row for rows in gathered.values() for row in rows.values()]


def _number(row: Gain) -> tuple[float, int]:
    return row.value, row.n


def markdown(rows: Sequence[Gain]) -> str:
    """Return the short table."""
    chance = _chance(rows)
    lines = tables.markdown(_COLUMNS, table(rows)) + (["", chance] if chance else [])
    return "\n".join(lines) + "\n"


def show(rows: Sequence[Gain]) -> None:
    """Print the short table on the terminal."""
    tables.show(_COLUMNS, table(rows), "beside the model before training", right=_COLUMNS[2:])
    if chance := _chance(rows):
        print(chance)


def table(rows: Sequence[Gain]) -> list[tuple[str, ...]]:
    """Return the short table's cells, with the reward models of a metric one below the other."""
    shown = short(rows)
    order = {name: place for place, name in enumerate(dict.fromkeys(row.name for row in shown))}
    cells: list[tuple[str, ...]] = []
    for row in sorted(shown, key=lambda row: order[row.name]):
        gain = "" if row.gain is None else _cell(row.gain, row.gain_low, row.gain_high, "+")
        ps = ["" if p is None else f"{p:.4f}" for p in (row.gain_p, row.gain_p_holm)]
        value = _cell(row.value, row.low, row.high)
        cells.append((f"{row.name} ({row.n:,})", row.rm, value, gain, *ps))
    return cells


def _chance(rows: Sequence[Gain]) -> str | None:
    return chance_line([row.gain_p for row in rows], [row.gain_p_holm for row in rows], FILE)


def _cell(value: float, low: float | None, high: float | None, sign: str = "") -> str:
    return f"{value:{sign}z.3f} ({interval_text(low, high, f'{sign}z.3f')})"
