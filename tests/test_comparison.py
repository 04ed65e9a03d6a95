"""Gains over the start by hand, the table's way to a file and back, and what a sweep gathers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rmexp.evaluation import comparison, figures
from rmexp.evaluation.comparison import compare, gather, markdown, read, table, write
from rmexp.evaluation.gains import Gain, short
from rmexp.metrics import chance, mean, won
from rmexp.schema import ScoredExample


def scored(*right: bool) -> list[ScoredExample]:
    return [
        ScoredExample(str(i), "s", f"prompt {i}", (float(one),), (0.5,))
        for i, one in enumerate(right)
    ]


def metrics(rows):
    outcomes, chances = zip(*((won(row), chance(row)) for row in rows), strict=True)
    return [
        mean(f"preference/{name}", outcomes, range(len(rows)), chances=chances)
        for name in ("accuracy", "subset/s")
    ]


START, TRAINED = scored(*[True, False] * 20), scored(*[True] * 40)


def test_gains_by_hand():
    rows = compare({"new": TRAINED, "old": START}, "old", "held", metrics, 0)
    assert [(row.rm, row.metric) for row in rows] == [
        (rm, name)
        for rm in ("old", "new")
        for name in ("preference/accuracy", "preference/subset/s")
    ]
    assert {row.chance for row in rows} == {0.5}
    old, _, new, _ = rows
    assert (old.value, old.n, old.gain, old.gain_p) == (0.5, 40, None, None)
    assert (new.value, new.high) == (1.0, 1.0)
    assert new.low == pytest.approx(40 / (40 + 3.84146), abs=1e-6)  # Wilson's
    assert new.gain == 0.5
    assert 0.3 < new.gain_low < 0.5 < new.gain_high < 0.7
    assert new.gain_p == 2 / 2**20  # 20 prompts differ, all in one direction
    assert new.gain_p_holm == 2 * new.gain_p  # of two gains
    assert new.name == "held/accuracy"
    assert compare({"new": TRAINED}, None, "held", metrics, 0)[0].gain is None


def test_the_interval_is_that_of_the_evaluation():
    from rmexp.stats.intervals import intervals

    (row, _) = compare({"old": START}, None, "held", metrics, 3)
    (estimate, _) = intervals(metrics(START), START, np.random.default_rng(3))
    assert (row.low, row.high) == (estimate.low, estimate.high)


def test_a_file_keeps_every_cell_and_a_sweep_gathers_each_row_once(tmp_path: Path):
    rows = compare({"new": TRAINED, "old": START}, "old", "held", metrics, 0)
    other = [replace(row, rm="other") if row.rm == "new" else replace(row, low=0.1) for row in rows]
    for name, written in (("0", rows), ("1", other)):
        (tmp_path / name).mkdir()
        write(tmp_path / name / comparison.FILE, written)
    assert read(tmp_path / "0" / comparison.FILE) == rows
    found = gather(tmp_path / name for name in ("0", "1", "2"))
    assert found == [*rows, *[row for row in other if row.rm == "other"]]


def test_models_of_one_name_with_other_numbers_stand_side_by_side(tmp_path: Path):
    """Two seeds trained under one name, beside one start."""
    poorer = scored(*[True] * 30, *[False] * 10)
    for name, trained in (("0", TRAINED), ("1", poorer), ("2", TRAINED)):
        (tmp_path / name).mkdir()
        rows = compare({"new": trained, "old": START}, "old", "held", metrics, int(name))
        write(tmp_path / name / comparison.FILE, rows)
    found = gather(tmp_path / name for name in ("0", "1", "2"))
    values = {row.rm: row.value for row in found if row.metric == "preference/accuracy"}
    assert values == {"old": 0.5, "new": 1.0, "new (1)": 0.75}


def test_the_short_table_has_overall_numbers_and_averages_side_by_side():
    names = ("toy/overall/partial", "toy/easy", "toy/plain/average", "toy/plain/matrix/a_b")
    rows = [
        Gain(rm, "toy-2", name, 0.5, 0.4, 0.6, 9, *(None,) * 4) for rm in "ab" for name in names
    ]
    assert [cells[:2] for cells in table(rows)] == [
        ("toy-2/overall/partial (9)", "a"),
        ("toy-2/overall/partial (9)", "b"),
        ("toy-2/plain/average (9)", "a"),
        ("toy-2/plain/average (9)", "b"),
    ]
    assert "| toy-2/plain/average (9) | a | 0.500 (0.400 to 0.600) |  |  |  |" in markdown(rows)


def test_the_figure_has_a_panel_for_each_number_and_a_line_for_each_model():
    rows = compare({"new": TRAINED, "old": START}, "old", "held", metrics, 0)
    figure = figures.dots([*rows, *(replace(row, bench="other") for row in rows)])
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == ["held/accuracy (n=40)", "other/accuracy (n=40)"]
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["old", "new"]
    filled = [
        line.get_markerfacecolor() for line in figure.axes[0].lines if line.get_marker() == "o"
    ]
    assert filled == ["white", "#0072B2"]


def test_the_figure_marks_the_chance_of_each_number_and_intervals_of_no_width():
    rows = [
        Gain("a", "rmb", "rmb/overall", 0.5, 0.5, 0.5, 30, *(None,) * 5, chance=0.4),
        Gain("a", "toy", "toy/overall", 0.0, 0.0, 0.2, 30, *(None,) * 5, chance=0.5),
        Gain("a", "rb2", "rb2/overall", 0.7, 0.6, 0.8, 30, *(None,) * 5),
    ]
    figure = figures.dots(rows)
    levels = [
        [line.get_xdata()[0] for line in axis.lines if line.get_label().startswith("chance")]
        for axis in figure.axes
    ]
    assert levels == [[0.4], [0.5], []]
    assert [text.get_text() for text in figure.legends[0].texts] == ["chance 0.40 to 0.50"]
    whisker = figure.axes[0].lines[0]
    assert (list(whisker.get_xdata()), whisker.get_marker()) == ([0.5, 0.5], "|")
    assert figure.axes[0].get_xlim()[0] < 0


def test_a_benchmark_without_an_overall_number_shows_those_of_one_level():
    names = ("toy/overall", "toy/easy", "ppe/preference", "ppe/preference/kind/code", "bon100/tau")
    rows = [
        Gain("a", name.partition("/")[0], name, -0.25, None, None, 9, *(None,) * 4)
        for name in names
    ]
    assert [row.metric for row in short(rows)] == [names[0], names[2], names[4]]
    assert figures.dots(rows).axes[2].get_xlim()[0] < -0.25


def test_two_prompts_carry_no_interval_and_no_certainty():
    """Right on both against wrong on both: p 1/2, Wilson's interval of 2 of 2, hollow points."""
    rows = compare({"new": scored(True, True), "old": scored(False, False)}, "old", "t", metrics, 0)
    new = rows[2]
    assert (new.gain, new.gain_low, new.gain_high, new.gain_p, new.gain_p_holm) == (
        *(1.0, None, None, 0.5, 1.0),
    )
    assert (new.low, new.high) == (pytest.approx(2 / (2 + 3.84146), abs=1e-6), 1.0)
    text = markdown(rows)
    assert (
        "| t/accuracy (2) | new | 1.000 (0.342 to 1.000) | +1.000 (too few) | 0.5000 | 1.0000 |"
        in text
    )
    assert "Of the 2 p values in comparison.csv up to 0.1 would be below 0.05 by chance" in text
    axis = figures.dots([replace(row, low=None, high=None) for row in rows]).axes[0]
    assert axis.get_title() == "t/accuracy (n=2, too few)"
    points = [line for line in axis.lines if line.get_marker() == "o"]
    assert [line.get_markerfacecolor() for line in points] == ["white", "white"]
    assert len(axis.lines) == 3  # the points and the line at chance: no whisker
