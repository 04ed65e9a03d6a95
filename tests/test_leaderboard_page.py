import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from test_leaderboard import one

from rmexp.errors import ConfigError
from rmexp.evaluation.leaderboard import make_board, with_chance
from rmexp.evaluation.leaderboard_page import strip, to_html, to_markdown
from rmexp.tracking.tracked import Evaluation, Measured

PAGE = "http://127.0.0.1:5000/#/experiments/1/runs/"
HEADLINES = ("rmb/overall", "toy/overall")
EVIL = "<script>x</script> \"&' |a*b_c|\n_d_"
MEASURED = [
    one("b", "rmb/overall", 0.25, n=2000),
    one("a10", "rmb/overall", 0.5, n=2000),
    one("c", "rmb/overall", 0.9, n=7, data="other data"),
    one("a9", "toy/overall", 0.75, reward="scalar head"),
    one("d", "toy/overall/partial", 0.5, missing="<math>", run_id='"r'),
]


def boards():
    source = {"rmexp.source": "A <paper>"}
    chance = {"rmb/overall": 0.5, "rmb/null/random": 0.45, "toy/null/random/partial": 0.0}
    numbers = {"rmb/overall": Measured(0.125)}
    published = Evaluation("r", EVIL, "rmb", numbers, source, published=True)
    return {
        "Measured": with_chance(make_board(MEASURED, HEADLINES), lambda run: chance),
        "Published": make_board([published], HEADLINES),
    }


def page_of(given=None):
    return to_html(f"Leaderboard of {EVIL}", "about <it>", given or boards(), PAGE.__add__)


class Page(HTMLParser):
    """What the page holds: tags with their attributes, and the text of each."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.texts, self.open = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))


def cells(page):
    return [attributes for tag, attributes in page.tags if tag == "td"]


def test_the_page_is_well_formed_and_needs_nothing_from_outside():
    html = page_of()
    page = Page(html)
    assert page.open == []
    assert not re.search(r"https?:|//|@import|url\(", html.replace("</", "").replace(PAGE, ""))
    assert not any("src" in attributes for _, attributes in page.tags)
    assert {tag for tag, attributes in page.tags if "href" in attributes} == {"a"}
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert ("th", EVIL) in page.texts
    assert ("li", "A <paper>") in page.texts
    assert ("p", "about <it>") in page.texts
    assert ("li", "toy/overall: partial, nothing of <math>") in page.texts
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert links == [f"{PAGE}{run}" for run in ("r", "r", "r", "r", '"r', "r")]


def test_a_strip_shows_number_interval_and_chance_on_the_columns_scale():
    """rmb goes from b's lower end 0.15 to c's higher end 1, toy from chance at 0 to 0.85."""
    board = boards()["Measured"]
    _, b, c, a9, _ = board.lines

    def at(length):
        return pytest.approx(4 + 92 * length / 0.85, abs=0.01)

    assert vars_of(strip(board, 0, c.cells[0])) == [at(0.75), at(0.65), 96, at(0.3)]
    assert vars_of(strip(board, 0, b.cells[0])) == [at(0.1), 4, at(0.2), at(0.3)]
    assert vars_of(strip(board, 1, a9.cells[1])) == [at(0.75), at(0.65), 96, 4]
    alone = boards()["Published"]
    assert vars_of(strip(alone, 0, alone.lines[0].cells[0])) == [4, 4, 4, None]
    html = page_of()
    assert html.count("<circle") == 6
    assert html.count('class="chance"') == 5


def test_without_the_files_of_a_run_chance_is_not_known():
    def gone(run):
        raise ConfigError("not there")

    assert with_chance(make_board(MEASURED, HEADLINES), gone).chance == (None, None)


def vars_of(strip):
    return [strip.at, strip.low, strip.high, strip.chance]


def test_cells_carry_what_sorting_needs_and_a_sign_for_the_best():
    html = page_of()
    keys = [(each.get("data-value"), each.get("data-group")) for each in cells(Page(html))]
    absent = (None, None)
    assert keys == [
        ("0.5", "0"), absent,  # a10
        ("0.25", "0"), absent,  # b
        ("0.9", "1"), absent,  # c
        absent, ("0.75", "0"),  # a9
        absent, ("0.5", "1"),  # d
        ("0.125", "0"),
    ]  # fmt: skip
    assert re.findall(r">★ ([\d.]+)</a></b>", html) == ["0.500"]
    assert "<small><span>0.400 to 0.600</span>, <span>n 2,000</span></small>" in html
    assert "<span>partial</span>, <span>0.400 to 0.600</span>" in html
    assert html.count('aria-sort="descending"') == 2  # a table
    measured, published = html.split("<h2>Published</h2>")
    assert "0.125" in published
    assert "0.125" not in measured


def test_markdown_has_the_same_numbers():
    text = to_markdown(f"Of {EVIL}", "about", boards())
    lines = text.splitlines()
    assert lines[0] == "# Of \\<script\\>x\\</script\\> \"\\&' \\|a\\*b_c\\| \\_d\\_"
    apart = "(data data, not all comparable)"
    heads = f"| RM | rmb/overall {apart} | toy/overall {apart} |"
    at = lines.index(heads)
    apart = "not comparable with the rest of the column"
    assert lines[at + 2 : at + 12] == [
        "| a10 | ★ 0.500 (0.400 to 0.600, n 2,000) | - |",
        "| b | 0.250 (0.150 to 0.350, n 2,000) | - |",
        "| c | 0.900 (0.800 to 1.000, n 7) [1] | - |",
        "| a9 (scalar head) | - | 0.750 (0.650 to 0.850, n 100) |",
        "| d | - | 0.500 (partial, 0.400 to 0.600, n 100) [2] [3] |",
        "",
        f"1. rmb/overall: on other data (other da), n 7, {apart}",
        "2. toy/overall: partial, nothing of \\<math\\>",
        f"3. toy/overall: by another rule, n 100, {apart}",
        "",
    ]
    assert "| 0.125 [1] |" in text.split("## Published")[1]


@pytest.mark.real
@pytest.mark.parametrize(
    ("clicks", "order"),
    [
        ([], ["a10", "b", "c", "a9", "d"]),
        ([0], ["a9", "a10", "b", "c", "d"]),
        ([0, 0], ["d", "c", "b", "a10", "a9"]),
        ([1], ["b", "a10", "c", "a9", "d"]),  # the page comes sorted by this column
        ([2], ["a9", "d", "a10", "b", "c"]),
        ([2, 1], ["a10", "b", "c", "a9", "d"]),
        ([2, 1, 1], ["b", "a10", "c", "a9", "d"]),
    ],
)
def test_sorting_in_a_browser(tmp_path, clicks, order):
    """From the highest first; what is not comparable, or absent, stays behind."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs chromium")
    script = "".join(f"document.querySelectorAll('button')[{at}].click();" for at in clicks)
    html = page_of({"Measured": make_board(MEASURED, HEADLINES)})
    page = tmp_path / "page.html"
    page.write_text(html.replace("</body>", f"<script>{script}</script></body>"))
    words = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    done = subprocess.run([*words, profile, page.as_uri()], capture_output=True, text=True)
    assert re.findall(r'<th scope="row" data-value="(\w+)"', done.stdout) == order
