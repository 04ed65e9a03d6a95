from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from scored_rows import write_lines

from rmexp.benchmarks.toy import Toy
from rmexp.evaluation.evaluate import measure
from rmexp.scoring.recorded import RecordedReward
from rmexp.scoring.score import Settings
from rmexp.stats.bestofn import HIGHEST, Point, kl
from rmexp.stats.bounds import wilson
from rmexp.stats.calibration import Bin
from rmexp.stats.figures import bars, curves, heat_maps, reliability, style_bias
from rmexp.stats.intervals import Estimate
from rmexp.training.curves import training_curve


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axis in figure.axes for text in axis.texts]


def share(right: int, n: int, chance: float | None = None) -> Estimate:
    low, high = wilson(right, n) if n > 1 else (None, None)
    return Estimate("toy/math", right / n, n, low, high, (), chance=chance)


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].texts]


@pytest.mark.parametrize("domains", [1, 2, 4, 6])
def test_heat_maps_write_every_cell(domains: int, tmp_path: object) -> None:
    styles = ("concise", "detailed", "markdown")
    cells = [[share(3 * i + j, 10) for j in range(3)] for i in range(3)]
    figure = heat_maps({f"domain {i}": cells for i in range(domains)}, styles)
    figure.savefig(f"{tmp_path}/maps.png", bbox_inches="tight")
    assert texts(figure) == [f"{i / 10:.2f}" for i in range(9)] * domains
    *maps, bar = figure.axes
    assert [axis.get_title() for axis in maps] == [f"domain {i} (n=10)" for i in range(domains)]
    ends = (maps[0].get_ylabel(), maps[0].get_xlabel())
    assert ends == ("style of the chosen", "style of the rejected")
    assert "0.5, chance" in [label.get_text() for label in bar.get_xticklabels()]
    assert "greyer: a wider 95\u00a0% interval" in bar.get_xlabel().replace("\n", " ")


def test_a_heat_map_s_colours_fade_to_grey_where_little_is_known() -> None:
    cells = [[share(500, 500), share(2, 2), share(1, 1)]]
    image = heat_maps({"d": cells}, ("a", "b", "c")).axes[0].images[0].get_array()
    sure, few, unknown = np.ptp(np.asarray(image)[0, :, :3], axis=1)  # a grey has no range
    assert sure > 2 * few > 0
    assert unknown == pytest.approx(0)


def test_bars_show_values_intervals_and_n() -> None:
    estimates = [
        Estimate("rmb/bon/helpfulness/chat", 0.5, 1234, 0.4, 0.6, ()),
        Estimate("rmb/pairwise/helpfulness/chat", 0.25, 1, None, None, ()),
    ]
    figure = bars(estimates)
    axis = figure.axes[0]
    labels = [label.get_text() for label in axis.get_yticklabels()]
    assert labels == ["bon/helpfulness/chat (n=1,234)", "pairwise/helpfulness/chat (n=1, too few)"]
    assert [to_hex(patch.get_facecolor()) for patch in axis.patches] == ["#0072b2", "#ffffff"]
    assert [patch.get_width() for patch in axis.patches] == [0.5, 0.25]
    (interval,) = axis.lines
    assert (list(interval.get_xdata()), interval.get_marker()) == ([0.4, 0.6], "|")
    assert axis.get_xlabel() == "accuracy, with its 95 % interval"
    assert not axis.collections
    assert not figure.legends


def test_bars_mark_the_chance_of_each_and_draw_zero() -> None:
    figure = bars([share(0, 4, 0.25), share(1, 2, 0.5), share(1, 2)])
    (axis,) = figure.axes
    (marks,) = axis.collections
    assert isinstance(marks, LineCollection)
    assert [segment.tolist() for segment in marks.get_segments()] == [
        [[0.25, -0.5], [0.25, 0.5]],
        [[0.5, 0.5], [0.5, 1.5]],
    ]
    assert legend(figure) == ["chance 0.25 to 0.50"]
    assert axis.get_xlim()[0] < 0
    zero = axis.patches[0]
    assert (zero.get_width(), zero.get_linewidth()) == (0, 1.5)  # an edge is seen
    assert to_hex(zero.get_edgecolor()) == "#0072b2"
    assert legend(bars([share(1, 2, 0.5)])) == ["chance 0.50"]


def test_long_names_of_bars_go_on_in_the_next_line() -> None:
    long = Estimate(f"preference/subset/{'a_word_' * 12}", 0.5, 9, 0.2, 0.8, ())
    (label,) = bars([long]).axes[0].get_yticklabels()
    lines = label.get_text().split("\n")
    assert max(map(len, lines)) <= 44 < len(lines) * 44
    assert "".join(lines) == f"{'a_word_' * 12}(n=9)"


def test_a_single_bar_keeps_its_name() -> None:
    axis = bars([Estimate("preference/accuracy", 1.0, 2, None, None, ())]).axes[0]
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
    names = ["a", "b", "highest possible", "chance: one at random", "chance: one at random"]
    assert [line.get_label() for line in axis.lines] == names
    assert legend(figure) == names[:4]
    chance = axis.lines[3]
    assert set(chance.get_ydata()) == {1.0}  # what the one response at n = 1 is worth
    assert axis.get_xlabel() == "n, the responses to choose from (5 examples)"
    assert list(axis.lines[1].get_ydata())[-1] == 50.0
    assert len(axis.collections) == 2
    assert [label.get_text() for label in axis.get_xticklabels()] == [
        *("1", "2", "4", "8", "16", "32", "64", "100")
    ]
    (above,) = axis.child_axes
    assert [label.get_text() for label in above.get_xticklabels()][-1] == f"{kl(100):.2f}"
    assert axis.get_ylabel() == "expected recorded reward of the choice"


def test_curves_have_a_panel_a_series(tmp_path: object) -> None:
    def points(series: str) -> list[Point]:
        return [Point("winner_rate", series, n, None, 0.5, None, None, 5) for n in (2, 3)]

    both = points("helpfulness") + points("harmlessness")
    drawn = curves({"a": both, "b": points("harmlessness"), "c": curve("selected", 2, 1.0)})
    assert list(drawn) == ["curve_winner_rate.png", "curve_recorded_reward.png"]
    figure = drawn["curve_winner_rate.png"]
    figure.savefig(f"{tmp_path}/curves.png", bbox_inches="tight")
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == ["helpfulness", "harmlessness"]
    assert [len(axis.lines) for axis in figure.axes] == [2, 3]
    assert list(figure.axes[0].lines[-1].get_ydata()) == [1 / 2, 1 / 3]  # a coin, a die
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["2", "3"]
    assert not figure.axes[0].child_axes


def test_many_runs_have_colours_and_markers_of_their_own() -> None:
    (figure,) = curves({str(i): curve("selected", 4, float(i)) for i in range(7)}).values()
    looks = {(str(line.get_color()), str(line.get_marker())) for line in figure.axes[0].lines[:7]}
    assert len({colour for colour, _ in looks}) == len({marker for _, marker in looks}) == 7


@pytest.mark.parametrize("domains", [1, 2, 5])
def test_style_bias_has_a_dot_a_prompt(domains: int, tmp_path: object) -> None:
    pairs = np.array([[1.0, 3.0], [-1.0, 2.0], [3.0, -1.0]])
    figure = style_bias({f"domain {i}": pairs for i in range(domains)})
    figure.savefig(f"{tmp_path}/bias.png", bbox_inches="tight")
    shown = figure.axes
    assert len(shown) == domains  # and no empty panel
    words = [a for axis in shown for a in (axis.title, axis.xaxis.label, axis.yaxis.label)]
    boxes = [text.get_window_extent() for text in words]
    assert not any(a.overlaps(b) for at, a in enumerate(boxes) for b in boxes[at + 1 :])
    assert "in units of reward" in shown[0].get_xlabel()
    title = shown[0].get_title().splitlines()
    assert title == ["domain 0 (n=3)", "correctness > 0: 67%", "verbosity > 0: 67%"]
    (dots,) = shown[0].collections
    assert np.asarray(dots.get_offsets()).tolist() == pairs.tolist()
    assert shown[0].get_xlim() == shown[0].get_ylim()
    (mean,) = (line for line in shown[0].lines if line.get_label() == "mean")
    assert [*mean.get_xdata(), *mean.get_ydata()] == pytest.approx([1.0, 4 / 3])


def test_curves_of_few_prompts_have_no_band_and_say_so() -> None:
    few = [Point("winner_rate", "all", n, None, 0.5, None, None, 4) for n in (2, 3)]
    (figure,) = curves({"a": few}).values()
    line = figure.axes[0].lines[0]
    assert line.get_label() == "a (too few for a band)"
    assert line.get_markerfacecolor() == "white"


def test_reliability_has_its_diagonal_chance_and_whiskers() -> None:
    bins = [Bin(0.5, 0.55, 12.0, 0.52, 0.5, 0.25, 0.75), Bin(0.95, 1.0, 3.0, 0.97, 1.0, 0.44, 1.0)]
    figure = reliability(bins)
    assert legend(figure) == ["as often right as confident", "chance 0.50", "reward model"]
    above, below = figure.axes
    chance = next(line for line in above.lines if line.get_label() == "chance 0.50")
    assert set(chance.get_ydata()) == {0.5}
    whiskers = [line for line in above.lines if line.get_marker() == "_"]
    assert [list(line.get_ydata()) for line in whiskers] == [[0.25, 0.75], [0.44, 1.0]]
    assert [patch.get_height() for patch in below.patches] == [12.0, 3.0]


def history(steps: int, *, validated: bool) -> list[dict[str, float]]:
    def row(stage: str, step: int) -> dict[str, float]:
        numbers = {"loss": 0.6, "accuracy": 0.75, "margin": 0.2}
        return {"step": float(step), **{f"{stage}/{name}": v for name, v in numbers.items()}}

    rows = [row("train", step) for step in range(1, steps + 1)]
    return [*rows, row("val", steps)] if validated else rows


@pytest.mark.parametrize("validated", [True, False])
def test_a_training_s_course_with_its_validation_beside_chance(validated: bool) -> None:
    figure = training_curve(history(2, validated=validated), "m trained by bt on d, n = 4 pairs")
    assert [axis.get_ylabel() for axis in figure.axes] == [
        *("loss, in nats a pair", "accuracy, share of pairs", "margin, in units of reward")
    ]
    joined = ["validation"] if validated else []
    chances = []
    for axis in figure.axes:
        *curves, chance = axis.lines
        assert [line.get_label() for line in curves] == ["a step's pairs", *joined]
        chances.append(chance.get_ydata()[0])
        assert axis.get_xlim()[0] == pytest.approx(-0.06)
        assert axis.get_xlabel() == "steps done"
    assert chances == [pytest.approx(np.log(2)), 0.5, 0.0]
    assert figure.axes[1].get_ylim()[0] < 0.5
    assert figure.get_suptitle() == "m trained by bt on d, n\u00a0=\u00a04 pairs"
    assert legend(figure)[-1] == "chance: no difference between the two"


def test_each_step_has_a_dot_where_they_are_few() -> None:
    looks = [training_curve(history(n, validated=False), "").axes[0].lines[0] for n in (1, 51)]
    assert [line.get_marker() for line in looks] == [".", "None"]


def test_all_figures_of_an_evaluation_say_model_benchmark_and_n(tmp_path: Path) -> None:
    bench = Toy(limit=3)
    data = bench.load()
    lines = [{"id": e.id, "chosen": [3, 1, 2], "rejected": [2, 0, 1]} for e in data.examples]
    reward = RecordedReward(str(write_lines(tmp_path / "scores.jsonl", lines)), "longest")
    drawn = measure(reward, bench, data, Settings(tmp_path / "store")).figures()
    assert list(drawn) == ["style_matrix.png", "style_bias.png", "reliability.png"]
    heads = {figure.get_suptitle() for figure in drawn.values()}
    assert heads == {"longest on toy, n\u00a0=\u00a012"}


def test_a_heading_keeps_within_its_figure() -> None:
    figure = training_curve(history(2, validated=False), f"{'a-long-name-' * 20} on toy, n = 3")
    figure.draw_without_rendering()
    assert len(figure.get_suptitle().split("\n")) == 3
    (head,) = [text for text in figure.texts if "toy" in text.get_text()]
    assert head.get_window_extent().width < figure.bbox.width
