import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from rmexp.stats.bestofn import HIGHEST, Point, kl
from rmexp.stats.figures import bars, curves, heat_maps, style_bias
from rmexp.stats.intervals import Estimate


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axis in figure.axes for text in axis.texts]


@pytest.mark.parametrize("domains", [1, 2, 4, 6])
def test_heat_maps_write_every_cell(domains: int, tmp_path: object) -> None:
    styles = ("concise", "detailed", "markdown")
    cells = np.arange(9).reshape(3, 3) / 10
    figure = heat_maps({f"domain {i}": cells for i in range(domains)}, styles)
    figure.savefig(f"{tmp_path}/maps.png", bbox_inches="tight")
    assert texts(figure) == [f"{i / 10:.2f}" for i in range(9)] * domains
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert titles == [f"domain {i}" for i in range(domains)]
    first = figure.axes[0]
    assert (first.get_ylabel(), first.get_xlabel()) == ("chosen", "rejected")


def test_heat_maps_leave_unknown_cells_blank() -> None:
    assert texts(heat_maps({"d": np.array([[0.5, np.nan]])}, ("a", "b"))) == ["0.50"]


def test_bars_show_values_intervals_and_n() -> None:
    estimates = [
        Estimate("rmb/bon/helpfulness/chat", 0.5, 1234, 0.4, 0.6, ()),
        Estimate("rmb/pairwise/helpfulness/chat", 0.25, 1, None, None, ()),
    ]
    axis = bars(estimates, "RMB").axes[0]
    labels = [label.get_text() for label in axis.get_yticklabels()]
    assert labels == ["bon/helpfulness/chat (n=1,234)", "pairwise/helpfulness/chat (n=1, too few)"]
    assert [to_hex(patch.get_facecolor()) for patch in axis.patches] == ["#0072b2", "#ffffff"]
    assert [patch.get_width() for patch in axis.patches] == [0.5, 0.25]
    (interval,) = axis.lines
    assert list(interval.get_xdata()) == [0.4, 0.6]


def test_a_single_bar_keeps_its_name() -> None:
    axis = bars([Estimate("preference/accuracy", 1.0, 2, None, None, ())], "t").axes[0]
    assert axis.get_yticklabels()[0].get_text() == "accuracy (n=2, too few)"


def curve(series: str, count: int, step: float) -> list[Point]:
    return [
        Point("recorded_reward", series, n, kl(n), step * n, step * n - 1, step * n + 1, 5)
        for n in range(1, count + 1)
    ]


def test_curves_have_a_line_and_a_band_a_run() -> None:
    highest = curve(HIGHEST, 100, 2.0)
    runs = {"a": [*curve("selected", 100, 1.0), *highest], "b": [*curve("selected", 100, 0.5)]}
    (figure,) = curves(runs).values()
    (axis,) = figure.axes
    assert [line.get_label() for line in axis.lines] == ["a", "b", "highest possible"]
    assert list(axis.lines[1].get_ydata())[-1] == 50.0
    assert len(axis.collections) == 2
    assert [label.get_text() for label in axis.get_xticklabels()] == [
        *("1", "2", "4", "8", "16", "32", "64", "100")
    ]
    (above,) = axis.child_axes
    assert [label.get_text() for label in above.get_xticklabels()][-1] == f"{kl(100):.2f}"
    assert axis.get_ylabel() == "expected recorded reward"


def test_curves_have_a_panel_a_series(tmp_path: object) -> None:
    def points(series: str) -> list[Point]:
        return [Point("winner_rate", series, n, None, 0.5, None, None, 5) for n in (2, 3)]

    both = points("helpfulness") + points("harmlessness")
    drawn = curves({"a": both, "b": points("harmlessness"), "c": curve("selected", 2, 1.0)})
    assert list(drawn) == ["curve_winner_rate.png", "curve_recorded_reward.png"]
    figure = drawn["curve_winner_rate.png"]
    figure.savefig(f"{tmp_path}/curves.png", bbox_inches="tight")
    assert [axis.get_title() for axis in figure.axes] == ["helpfulness", "harmlessness"]
    assert [len(axis.lines) for axis in figure.axes] == [1, 2]
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["2", "3"]
    assert not figure.axes[0].child_axes


def test_many_runs_have_colours_and_markers_of_their_own() -> None:
    (figure,) = curves({str(i): curve("selected", 4, float(i)) for i in range(7)}).values()
    looks = {(str(line.get_color()), str(line.get_marker())) for line in figure.axes[0].lines}
    assert len({colour for colour, _ in looks}) == len({marker for _, marker in looks}) == 7


@pytest.mark.parametrize("domains", [1, 2, 5])
def test_style_bias_has_a_dot_a_prompt(domains: int, tmp_path: object) -> None:
    pairs = np.array([[1.0, 3.0], [-1.0, 2.0], [3.0, -1.0], [np.nan, 1.0]])
    figure = style_bias({f"domain {i}": pairs for i in range(domains)})
    figure.savefig(f"{tmp_path}/bias.png", bbox_inches="tight")
    shown = [axis for axis in figure.axes if axis.get_title()]
    assert len(shown) == domains
    title = shown[0].get_title().splitlines()
    assert title == ["domain 0 (n=3)", "correctness > 0: 67%", "verbosity > 0: 67%"]
    (dots,) = shown[0].collections
    assert np.asarray(dots.get_offsets()).tolist() == pairs[:3].tolist()
    assert shown[0].get_xlim() == shown[0].get_ylim()
    (mean,) = (line for line in shown[0].lines if line.get_label() == "mean")
    assert [*mean.get_xdata(), *mean.get_ydata()] == pytest.approx([1.0, 4 / 3])


def test_style_bias_of_no_finite_reward() -> None:
    assert style_bias({"d": np.full((2, 2), np.nan)}).axes[0].get_title() == ""


def test_curves_of_few_prompts_have_no_band_and_say_so() -> None:
    few = [Point("winner_rate", "all", n, None, 0.5, None, None, 4) for n in (2, 3)]
    (figure,) = curves({"a": few}).values()
    (line,) = figure.axes[0].lines
    assert line.get_label() == "a (n=4, too few for a band)"
    assert line.get_markerfacecolor() == "white"
