"""How the seconds of scoring grow: made-up conversations, of which one measure grows at a time."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from rmexp.schema import Example, Message
from rmexp.stats.drawing import COLOURS, MARKERS, head, key, panels, tidy

_WORDS = "the of a to in is was for on that with as it by at from his an were are".split()
_AXES = {
    "prompts": (2, 4, 8, 16),
    "responses to a prompt": (1, 2, 4, 8, 16),
    "tokens of prompt and of response": (128, 256, 512, 1024, 2048),
}


@dataclass(frozen=True, slots=True)
class Point:
    """Conversations: `prompts` with `responses` of `length` each; `axis` has the `value`."""

    axis: str
    value: int
    prompts: int
    responses: int
    length: int


def points() -> list[Point]:
    """Return the points of all axes; what an axis does not change is small."""
    made = []
    for axis, values in _AXES.items():
        for value in values:
            prompts, responses, length = {
                "prompts": (value, 4, 256),
                "responses to a prompt": (2, value, 256),
                "tokens of prompt and of response": (1, 2, value),
            }[axis]
            made.append(Point(axis, value, prompts, responses, length))
    return made


def examples(point: Point, seed: int) -> list[Example]:
    """Return an example a prompt: words that are a token each, no two texts the same."""
    words = random.Random(f"{seed} {point}")

    def text() -> str:
        return " ".join(words.choices(_WORDS, k=point.length))

    return [
        Example(
            f"{point.axis}/{point.value}/{number}",
            "",
            (Message("user", text()),),
            tuple(text() for _ in range(point.responses)),
            (),
        )
        for number in range(point.prompts)
    ]


def linear(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float]:
    """Return the intercept and slope of the line of least squares, and its share of the variance.

    >>> linear([1, 2, 3], [5, 7, 9])
    (3.0, 2.0, 1.0)
    """
    slope, intercept = (float(v) for v in np.polyfit(x, y, 1))
    left = np.asarray(y) - (intercept + slope * np.asarray(x))
    explained = 1 - float((left**2).sum() / ((y - np.mean(y)) ** 2).sum())
    return round(intercept, 9), round(slope, 9), round(explained, 9)


def draw(seconds: Mapping[str, Sequence[float]], title: str) -> Figure:
    """Draw a panel an axis; `seconds` are those of all `points` by the contender's name."""
    figure = panels(len(_AXES), len(_AXES), (3.6, 2.8))
    for panel, axis in zip(figure.axes, _AXES, strict=True):
        at = [n for n, point in enumerate(points()) if point.axis == axis]
        x: NDArray[np.float64] = np.array([points()[n].value for n in at], dtype=float)
        looks = zip(COLOURS, MARKERS, strict=True)
        for (name, values), (colour, marker) in zip(seconds.items(), looks, strict=False):
            y = [values[n] for n in at]
            intercept, slope, _ = linear(x.tolist(), y)
            panel.plot(x, y, marker, color=colour, label=name)
            panel.plot(x, intercept + slope * x, "-", color=colour, linewidth=0.8)
        panel.set_xlabel(axis, fontsize=9)
        panel.set_ylabel("seconds", fontsize=9)
        panel.set_ylim(bottom=0)
        tidy(panel)
    key(figure)
    head(figure, title)
    return figure
