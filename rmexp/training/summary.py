"""What a training's page says of it, in Markdown."""

from collections.abc import Mapping

from rmexp import tables
from rmexp.training.start import Training

_PARTS = {"train": "training, the last step", "val": "validation, the weights that are kept"}
_NUMBERS = ("loss", "accuracy", "margin")


def summarise(name: str, training: Training, metrics: Mapping[str, float], steps: int) -> str:
    """Return what was trained from what, on how much, and what became of it."""
    count = {part: f"{metrics[f'data/{part}_pairs']:,.0f}" for part in _PARTS}
    rows = [
        (title, count[part], *(f"{metrics[f'{part}/{number}']:.3f}" for number in _NUMBERS))
        for part, title in _PARTS.items()
        if f"{part}/loss" in metrics
    ]
    columns = ("", "pairs", *_NUMBERS)
    rate = metrics.get("train/pairs_per_second")
    pace = "" if rate is None else f", {rate:,.1f} pairs a second"
    done = f"{steps:,} step" if steps == 1 else f"{steps:,} steps"
    lines = [
        f"**{tables.plain(name)}**: {tables.plain(_subject(training))}, {done}{pace}.",
        "",
        *tables.markdown(columns, rows, right=columns[1:]),
        "",
        "A margin is the chosen response's reward less the rejected one's, accuracy the share of "
        "margins above 0. The x axis of the charts is steps done.",
    ]
    return "\n".join(lines) + "\n"


def title(training: Training, metrics: Mapping[str, float]) -> str:
    """Return the heading of the figure: what was trained on what, and on how many pairs."""
    train, val = (metrics[f"data/{part}_pairs"] for part in _PARTS)
    return f"{_subject(training)}, n = {train:,.0f} pairs, {val:,.0f} for validation"


def _subject(training: Training) -> str:
    start, source = training.start.reward.name, training.source.name
    return f"{start} trained by {training.objective.name} on {source}"
