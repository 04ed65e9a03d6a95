import math

import numpy as np
import pytest
from scored_rows import row

from rmexp.schema import ScoredExample
from rmexp.stats.calibration import (
    Bin,
    calibration_estimates,
    calibration_metrics,
    margins,
    reliability,
    write,
)
from rmexp.tables import read_csv

THREE = math.log(3)  # sigmoid is 3/4


def pair(id, margin):
    return row(id, "s", [margin], [0.0])


def means(scored):
    found = calibration_metrics(scored)
    return {m.name: sum(m.outcomes) / len(m.outcomes) for m in found}


def estimates(scored):
    return {e.name: e for e in calibration_estimates(scored, np.random.default_rng(0))}


def test_the_scores_by_hand():
    """P is 3/4, 1/4 and 1/2: Brier (1/16 + 9/16 + 1/4) / 3 = 7/24.

    Log loss -(log 3/4 + log 1/4 + log 1/2) / 3.
    """
    scored = [pair("1", THREE), pair("2", -THREE), pair("3", 0.0)]
    found = means(scored)
    assert found["calibration/brier"] == pytest.approx(7 / 24)
    assert found["calibration/log_loss"] == pytest.approx(-math.log(3 / 32) / 3)


def test_comparisons_share_an_examples_weight():
    """Margins log 3 and 0 of one example, -log 3 of another: (1/16 + 1/4) / 2, and 9/16."""
    scored = [row("1", "s", [THREE], [0.0, THREE]), pair("2", -THREE)]
    assert means(scored)["calibration/brier"] == pytest.approx((5 / 32 + 9 / 16) / 2)
    (first, second) = reliability(scored)
    # Confidence 1/2: half an example, half right. 3/4: one and a half, of which half is right.
    assert (first.n, first.confidence, first.accuracy) == pytest.approx((0.5, 0.5, 0.5))
    assert (second.low, second.high) == pytest.approx((0.75, 0.8))
    assert (second.n, second.confidence, second.accuracy) == pytest.approx((1.5, 0.75, 1 / 3))


def test_the_error_by_hand():
    """Confidence 3/4 in eight, six of them right: none. In eight of which four are: 1/4."""
    right, half = [1] * 6 + [0] * 2, [1] * 4 + [0] * 4
    for outcomes, error in ((right, 0.0), (half, 0.25)):
        scored = [pair(str(i), THREE if won else -THREE) for i, won in enumerate(outcomes)]
        found = estimates(scored)
        assert found["calibration/ece"].value == pytest.approx(error, abs=1e-12)
        assert found["calibration/ece"].n == 8
        assert not found["calibration/ece"].known  # eight prompts are too few
    # With 3/4 right a margin of 2 log 3 is twice what fits: the temperature is 2.
    scored = [pair(str(i), 2 * THREE if won else -2 * THREE) for i, won in enumerate(right * 5)]
    found = estimates(scored)
    assert found["calibration/temperature"].value == pytest.approx(2.0)
    # d log loss / d slope of 40: variance 40 m^2 p q; the sandwich is the same where it fits.
    error = 1 / (2 * THREE * math.sqrt(40 * 3 / 16))
    low, high = 1 / (0.5 + 1.959964 * error), 1 / (0.5 - 1.959964 * error)
    assert found["calibration/temperature"].low == pytest.approx(low, rel=1e-6)
    assert found["calibration/temperature"].high == pytest.approx(high, rel=1e-6)
    assert found["calibration/ece"].low <= found["calibration/ece"].value
    # Each fifth of the prompts has 3/4 right, so that any other four fit it as well.
    best = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert means(scored)["calibration/scaled/log_loss"] == pytest.approx(best, abs=0.01)


def test_where_no_temperature_fits():
    above = [pair(str(i), 1.0 + i) for i in range(12)]
    below = [pair(str(i), -1.0 if i else 0.5) for i in range(12)]
    for scored in (above, below):
        assert set(estimates(scored)) == {"calibration/ece"}
        assert "calibration/scaled/log_loss" not in means(scored)


def test_noise_is_taken_off_the_error():
    """A perfectly calibrated model: its error is noise, the interval lies mostly below it."""
    rng = np.random.default_rng(3)
    size = rng.exponential(2.0, 400)
    signs = np.where(rng.random(400) < 1 / (1 + np.exp(-size)), 1, -1)
    scored = [pair(str(i), float(m)) for i, m in enumerate(size * signs)]
    found = estimates(scored)
    error = found["calibration/ece"]
    assert 0 < error.low < error.value / 2
    assert error.high - error.value < error.value - error.low
    temperature = found["calibration/temperature"]
    assert temperature.low < 1.0 < temperature.high


def test_what_has_no_margin():
    judged = ScoredExample("1", "s", "p", (1.0,), (0.0,), verdicts=((1.0,),))
    ranked = ScoredExample("2", "s", "q", (), (1.0, 2.0), (0.5, 0.7))
    lost = pair("3", math.nan)
    of, undefined = margins([judged, ranked, lost, pair("4", 2.0)])
    assert (of.values.tolist(), of.rows.tolist(), undefined) == ([2.0], [3], ("3",))
    assert calibration_metrics([judged, ranked]) == []
    assert calibration_estimates([judged], np.random.default_rng(0)) == []
    assert reliability([lost]) == ()
    first = calibration_metrics([lost, pair("4", 2.0)])[0]
    assert (first.rows, first.undefined) == ((1,), ("3",))


def test_extreme_margins_stay_finite(tmp_path):
    scored = [pair("1", 1e6), pair("2", -1e6), *(pair(str(i), 1e6) for i in range(3, 20))]
    assert means(scored)["calibration/log_loss"] == pytest.approx(1e6 / 19)
    assert estimates(scored)["calibration/temperature"].value > 1e5
    bins = reliability(scored)
    assert tuple(read_csv(write(tmp_path / "c.csv", bins), Bin, "x")) == bins
