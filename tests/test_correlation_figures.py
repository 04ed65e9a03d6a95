import numpy as np
import pytest
from matplotlib.figure import Figure

from rmexp.correlation.correlations import Correlation, correlate
from rmexp.correlation.figures import matrix, ranks, scatter
from rmexp.stats.coefficients import Points


def points(names, width=1, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.random((len(names), width))
    return Points(tuple(names), x, x + 0.1 * rng.random((len(names), width)))


def drawn(sample, groups=None, columns=("",)):
    rng = np.random.default_rng(0)
    found = correlate(sample, rng, 50)
    return scatter(sample, found, ("score", "policy"), groups or {}, columns, rng)


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axis in figure.axes for text in axis.texts]


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].texts]


def overlaps(figure: Figure) -> int:
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    return sum(a.overlaps(b) for at, a in enumerate(boxes) for b in boxes[at + 1 :])


@pytest.mark.parametrize("count", [3, 17])
def test_a_scatter_names_every_point_and_no_two_names_overlap(count, tmp_path):
    names = [f"RM {number}" for number in range(count)]
    figure = drawn(points(names))
    figure.savefig(tmp_path / "scatter.png", bbox_inches="tight")
    assert sorted(texts(figure)) == sorted(names)
    assert overlaps(figure) == 0
    axis = figure.axes[0]
    assert (axis.get_xlabel(), axis.get_ylabel()) == (
        *("score of the reward model: score", "score of the policy: policy"),
    )
    assert axis.get_title(loc="left").startswith("Pearson 1.00 (")


def test_a_scatter_shows_the_line_its_band_and_the_leave_one_out_range():
    sample = points([f"RM {number}" for number in range(10)])
    found = correlate(sample, np.random.default_rng(0), 50)
    lines = legend(drawn(sample))
    assert lines[:2] == ["95 % band of the line", "least squares"]
    assert lines[2:] == [
        f"without {name}: r {value:.2f}" for name, value in (found.least, found.most)
    ]


def test_a_scatter_of_fewer_than_ten_rms_has_no_band():
    figure = drawn(points([f"RM {number}" for number in range(9)]))
    assert legend(figure)[0] == "least squares"
    assert "Pearson" in (title := figure.axes[0].get_title(loc="left"))
    assert " to " in title.partition(", p ")[0]  # Fisher's z needs no resampling


def test_names_that_do_not_fit_become_numbers_with_a_key(tmp_path):
    """Forty long names: the key has them, the points their numbers."""
    names = [f"{number} is a reward model of some name" for number in range(40)]
    sample = points(names)
    near = Points(sample.rms, sample.x * 0.05, sample.y * 0.05)
    near.x[0] = near.y[0] = 1.0
    figure = drawn(near)
    figure.savefig(tmp_path / "scatter.png", bbox_inches="tight")
    plot, key = figure.axes
    assert sorted(text.get_text() for text in plot.texts) == sorted(str(n + 1) for n in range(40))
    assert len(key.texts) == 40
    assert key.texts[21].get_text() == "22  21 is a reward…l of some name"


def test_groups_and_domains_have_colours_and_markers_of_their_own():
    names = ["A", "B", "C", "D"]
    figure = drawn(points(names), {"A": "one", "B": "two", "C": "two"})
    assert legend(figure)[:3] == ["one", "two", "other"]
    figure = drawn(points(names, width=3), columns=("math", "safety", "code"))
    assert legend(figure)[:3] == ["math", "safety", "code"]
    assert len(texts(figure)) == 12
    colours = {tuple(dots.get_facecolor()[0]) for dots in figure.axes[0].collections[:3]}
    assert len(colours) == 3


def test_names_lose_what_all_share_and_their_owner():
    names = ["me/tulu-dpo-nectar", "me/tulu-dpo-hh", "me/tulu-dpo-a"]
    assert sorted(texts(drawn(points(names)))) == ["a", "hh", "nectar"]
    same = ["one/model", "two/model", "three/model"]
    assert sorted(texts(drawn(points(same)))) == sorted(same)


def test_ranks_have_a_line_an_rm_and_tied_ones_share_their_rank(tmp_path):
    sample = Points(
        ("A", "B", "C"), np.array([[3.0], [1.0], [1.0]]), np.array([[1.0], [2.0], [3.0]])
    )
    figure = ranks(sample, ("score", "policy"), {"A": "one"})
    figure.savefig(tmp_path / "ranks.png", bbox_inches="tight")
    assert texts(figure) == [
        "A   1", "B   2.5", "C   2.5", "3   A", "2   B", "1   C", "score", "policy",
    ]  # fmt: skip
    places = [list(line.get_ydata()) for line in figure.axes[0].lines]
    assert places == [[0, 2], [1, 1], [2, 0]]
    assert legend(figure) == ["one", "other"]


def test_the_matrix_writes_both_halves_and_leaves_unknown_cells_blank(tmp_path):
    cells = {
        ("a", "b"): (Correlation(0.5, 0, 1, 0.1), 12),
        ("b", "c"): (Correlation(-1, -1, -1, 0), 3),
    }
    figure = matrix(("a", "b", "c"), cells)
    figure.savefig(tmp_path / "matrix.png", bbox_inches="tight")
    assert sorted(texts(figure)) == ["-1.00\nn 3"] * 2 + ["0.50\nn 12"] * 2
    image = np.asarray(figure.axes[0].images[0].get_array())
    assert (image[0, 1] == image[1, 0]).all()
    assert (image[0, 2] == 1).all()
    assert figure.get_suptitle().endswith("n being the models that have both")


def test_the_matrix_s_colours_fade_to_grey_where_little_is_known():
    known = {40: (0.85, 0.95), 12: (0.6, 0.97), 3: (None, None)}
    cells = {("a", str(n)): (Correlation(0.9, *ends, 0.1), n) for n, ends in known.items()}
    image = matrix(("a", *map(str, known)), cells).axes[0].images[0].get_array()
    sure, few, unknown = np.ptp(np.asarray(image)[0, 1:, :3], axis=1)  # a grey has no range
    assert sure > few > 0
    assert unknown == pytest.approx(0)
