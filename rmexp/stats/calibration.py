"""Calibration: how far sigmoid(margin) is the chance that the chosen response wins.

The Bradley-Terry model says so of a reward. An example's comparisons share its weight. In a
comparison the reward model bets on the response with the higher reward, its *confidence* being
sigmoid(|margin|), from 0.5 to 1; it is right where that response was chosen, half where both are
equal. Judges' verdicts are no margins, and have no calibration.
`write` alone does I/O.
"""

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from rmexp import tables
from rmexp.metrics import Mean
from rmexp.schema import ScoredExample
from rmexp.stats.bounds import LEAST_UNITS, wilson
from rmexp.stats.intervals import Estimate

PREFIX = "calibration/"
FILE = "calibration.csv"

_BINS = 10
_FOLDS = 5
_SAMPLES = 2000
_Z = 1.959964

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Bin:
    """The comparisons of a confidence from `low` to `high`: how confident, and how often right.

    `n` counts examples, a comparison being its share of one. `accuracy_low` and `accuracy_high` are
    Wilson's 95 % interval of the accuracy.
    """

    low: float
    high: float
    n: float
    confidence: float
    accuracy: float
    accuracy_low: float
    accuracy_high: float


@dataclass(frozen=True, slots=True)
class Margins:
    """The comparisons' margins, reward of chosen less that of rejected, `(comparisons,)` all.

    `rows` are the positions of their examples, `weights` their shares of them, `prompts` numbers.
    """

    values: Array
    rows: NDArray[np.int_]
    weights: Array
    prompts: NDArray[np.int_]


def margins(scored: Sequence[ScoredExample]) -> tuple[Margins, tuple[str, ...]]:
    """Return all margins, and the ids of the examples that have one that is not finite.

    Those have none here, nor have examples that a judge compared. Responses with recorded rewards
    were ranked, and rejected by nobody.
    """
    keys: dict[str, int] = {}
    found: list[tuple[float, int, float, int]] = []
    undefined = []
    for at, row in enumerate(scored):
        rejected = row.rejected[: len(row.rejected) - len(row.recorded)]
        if row.verdicts is not None or not row.chosen or not rejected:
            continue
        own = [good - bad for good in row.chosen for bad in rejected]
        if not all(map(math.isfinite, own)):
            undefined.append(row.id)
            continue
        prompt = keys.setdefault(row.prompt, len(keys))
        found += [(margin, at, 1 / len(own), prompt) for margin in own]
    values, rows, weights, prompts = zip(*found, strict=True) if found else ((), (), (), ())
    of = Margins(
        np.array(values, dtype=float),
        np.array(rows, dtype=int),
        np.array(weights, dtype=float),
        np.array(prompts, dtype=int),
    )
    return of, tuple(undefined)


def calibration_metrics(scored: Sequence[ScoredExample]) -> list[Mean]:
    """Return the proper scores of P(chosen wins) = sigmoid(margin), lower being better.

    - `calibration/brier`: the mean of (1 - P)^2. A coin has 0.25.
    - `calibration/log_loss`: the mean of -log P, in nats. A coin has 0.693.
    - `calibration/scaled/log_loss`: the same of sigmoid(margin / temperature), each fifth of the
      prompts with the temperature that fits the others; there is none where one of them has none.
    """
    of, undefined = margins(scored)
    if not of.values.size:
        return []
    losses = {"brier": expit(-of.values) ** 2, "log_loss": np.logaddexp(0.0, -of.values)}
    scaled = np.full(len(of.values), np.nan)
    for fold in range(_FOLDS):
        held = of.prompts % _FOLDS == fold
        if (fit := _fit(of, ~held)) is not None:
            scaled[held] = np.logaddexp(0.0, -of.values[held] * fit[0])
    if not np.isnan(scaled).any():
        losses["scaled/log_loss"] = scaled
    rows = np.unique(of.rows)
    return [
        Mean(
            PREFIX + name,
            tuple(rows.tolist()),
            tuple(np.bincount(of.rows, of.weights * loss)[rows].tolist()),
            undefined=undefined if name == "brier" else (),
            bounds=(0.0, 1.0) if name == "brier" else (0.0, math.inf),
        )
        for name, loss in losses.items()
    ]


def calibration_estimates(
    scored: Sequence[ScoredExample], rng: np.random.Generator
) -> list[Estimate]:
    """Return what is no mean over examples.

    - `calibration/ece`: the expected calibration error over ten bins of equal width, the mean
      distance of confidence and accuracy. Noise alone makes some; its interval, the basic bootstrap
      over prompts, takes as much off as resampling adds.
    - `calibration/temperature`: what margins are to be divided by so that they fit best (maximum
      likelihood), its interval by the variance between prompts. There is none where all chosen
      responses are above (it would be 0), or where a coin fits best.
    """
    of, _ = margins(scored)
    if not of.values.size:
        return []
    n = len(set(of.rows.tolist()))
    prompts = int(of.prompts.max()) + 1
    sums = _by_bin(of, prompts)
    ece = float(_error(sums.sum(axis=1)[:, None, :])[0])
    low = high = None
    if prompts >= LEAST_UNITS:
        drawn = rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=_SAMPLES)
        errors = _error(np.stack([drawn @ part for part in sums]))
        low, high = (max(0.0, 2 * ece - float(np.quantile(errors, q))) for q in (0.975, 0.025))
    estimates = [Estimate(f"{PREFIX}ece", ece, n, low, high, ())]
    fit = _fit(of, np.ones(len(of.values), dtype=bool))
    if fit is not None:
        slope, error = fit
        least = slope - _Z * error
        bounded = prompts >= LEAST_UNITS and least > 0
        low, high = (1 / (slope + _Z * error), 1 / least) if bounded else (None, None)
        estimates.append(Estimate(f"{PREFIX}temperature", 1 / slope, n, low, high, ()))
    return estimates


def reliability(scored: Sequence[ScoredExample]) -> tuple[Bin, ...]:
    """Return the bins that hold comparisons, in the order of their confidence."""
    of, _ = margins(scored)
    if not of.values.size:
        return ()
    count, confidence, right = _by_bin(of, int(of.prompts.max()) + 1).sum(axis=1)
    edges = np.linspace(0.5, 1.0, _BINS + 1)
    return tuple(
        Bin(
            float(edges[at]),
            float(edges[at + 1]),
            float(count[at]),
            float(confidence[at] / count[at]),
            float(right[at] / count[at]),
            *wilson(float(right[at]), float(count[at])),
        )
        for at in range(_BINS)
        if count[at] > 0
    )


def write(path: Path, bins: Sequence[Bin]) -> Path:
    """Write the bins as CSV."""
    return tables.write_csv(path, [field.name for field in fields(Bin)], map(astuple, bins))


def _by_bin(of: Margins, prompts: int) -> Array:
    """Return by prompt and bin the weights, and the sums of confidence and of right ones.

    The shape is `(3, prompts, bins)`.
    """
    confidence = expit(abs(of.values))
    bins = np.minimum((confidence - 0.5) * 2 * _BINS, _BINS - 1).astype(int)
    right = (np.sign(of.values) + 1) / 2
    sums = np.zeros((3, prompts, _BINS))
    for part, value in zip(sums, (np.ones_like(confidence), confidence, right), strict=True):
        np.add.at(part, (of.prompts, bins), of.weights * value)
    return sums


def _error(sums: Array) -> Array:
    """Return the calibration error `(samples,)` of sums `(3, samples, bins)`."""
    count, confidence, right = sums
    return np.asarray(abs(confidence - right).sum(axis=1) / count.sum(axis=1))


def _fit(of: Margins, kept: NDArray[np.bool_]) -> tuple[float, float] | None:
    """Return the slope 1 / temperature of the kept comparisons and its standard error.

    The error is the sandwich's, comparisons of one prompt counting together. None where no slope
    above 0 fits best: the loss falls for ever, or from 0 on not at all.
    """
    values, weights = of.values[kept], of.weights[kept]
    if not values.size or values.min() >= 0 or weights @ values <= 0:
        return None
    unit = float(abs(values).max())
    scaled = values / unit
    low, high = 0.0, 1.0
    while weights @ (scaled * expit(-high * scaled)) > 0:
        low, high = high, 2 * high
    for _ in range(100):
        middle = (low + high) / 2
        rising = weights @ (scaled * expit(-middle * scaled)) > 0
        low, high = (middle, high) if rising else (low, middle)
    slope = (low + high) / 2
    chance = expit(slope * scaled)
    curvature = weights @ (scaled**2 * chance * (1 - chance))
    scores = np.bincount(of.prompts[kept], weights * scaled * (1 - chance))
    return slope / unit, float(np.sqrt((scores**2).sum()) / curvature) / unit
