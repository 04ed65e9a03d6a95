"""The one writer of tables on the terminal, as Markdown and as CSV: what is written is text."""

import ast
import csv
import re
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import pytest

from rmexp import tables
from rmexp.cli import jobs
from rmexp.cli.jobs import Job
from rmexp.errors import DataError
from rmexp.evaluation import comparison
from rmexp.evaluation.figures import dots
from rmexp.evaluation.gains import Gain
from rmexp.stats import bestofn
from rmexp.stats.figures import curves
from rmexp.tables import markdown, plain, printable, read_csv, show, unshown, write_csv

HOSTILE = ["rm[/v2]", "[b]x[/b]", "[/INST]", "[red]", "[link=http://x]y", ":smile:", "{0}", "%s"]


def test_text_on_the_terminal_is_no_markup(capsys):
    show(("name", "n"), [(name, "1") for name in HOSTILE], "of [/v2] [a],[x]", right=("n",))
    said = capsys.readouterr().out
    assert "of [/v2] [a],[x]" in said
    lines = [line.replace("│", " ").split() for line in said.splitlines() if line.endswith("1 │")]
    assert lines == [[*name.split(), "1"] for name in HOSTILE]


def test_a_name_does_not_move_the_cursor(capsys):
    show(("name",), [("a\x1b[2Jb\r\x07\nc\x9b31m",)], "\x1b]0;title\x07")
    said = capsys.readouterr().out
    assert not set("\x1b\x07\r\x9b") & set(said)
    assert "a\\x1b[2Jb\\r\\x07 c\\x9b31m" in said


@pytest.mark.parametrize("columns", ["20", "80", "200"])
def test_long_names_are_folded_and_nothing_is_cut(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    name, number = "owner/" + "x" * 160, "0.123 (0.100 to 0.146, n 2,109)"
    show(("name", *"abc"), [(name, *[number] * 3)], right=("a", "b", "c"))
    lines = [line.split("│") for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert "".join(line[1].strip() for line in lines) == name
    assert [cell.strip() for cell in lines[0][2:5]] == [number] * 3


def test_names_of_usual_length_stay_on_one_line_in_a_file(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    names = ["x" * 50, "Skywork/Skywork-Reward-Llama-3.1-8B", "a word or two"]
    show(("name", "other"), [(name, name) for name in names])
    said = capsys.readouterr().out
    assert all(said.count(name) == 2 for name in names)


def test_a_line_sets_rows_apart(capsys):
    show(("name",), [("a",), ("b",), ("c",)], line_before=2)
    lines = capsys.readouterr().out.splitlines()
    assert [line.strip("│ ")[:1] for line in lines[3:-1]] == ["a", "b", "├", "c"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("**a** `b`", r"\*\*a\*\* \`b\`"),
        ("a|b\\|c", r"a\|b\\\|c"),
        ("[x](javascript:1) ![y](z)", r"\[x\](javascript:1) !\[y\](z)"),
        ("<script>&lt;", r"\<script\>\&lt;"),
        ("two\n\nlines\r# x", "two lines # x"),
        ("_a_ b_c", r"\_a\_ b_c"),
        ("# x", r"\# x"),
        ("## x", r"#\# x"),
        ("- x", r"\- x"),
        ("+ x", r"\+ x"),
        ("12. x", r"12\. x"),
        ("3.1-8B", "3.1-8B"),
        ("-0.5", "-0.5"),
        ("rmb/bon/help_a", "rmb/bon/help_a"),
    ],
)
def test_text_in_markdown_is_no_markdown(text, shown):
    assert plain(text) == shown


def test_a_markdown_table_has_its_cells():
    lines = markdown(("a|b", "n"), [("x|y\nz", "1"), ("-", "+0.5")], right=("n",))
    assert lines == [r"| a\|b | n |", "| --- | ---: |", r"| x\|y z | 1 |", "| - | +0.5 |"]


@dataclass(frozen=True)
class Line:
    name: str
    n: int
    value: float
    low: float | None


NAMES = ["=1+1", "+x", "-x", "@x", "\tx", "\rx", "'=x", "''=x", "'x", "x=1", "", 'a,b\n"c"', "日"]


def test_a_name_is_no_formula_and_read_back_as_it_was(tmp_path):
    rows = [Line(name, at, -0.5, None if at % 2 else -1e-9) for at, name in enumerate(NAMES)]
    path = tmp_path / "t.csv"
    write_csv(path, [field.name for field in fields(Line)], map(astuple, rows))
    with path.open(encoding="utf-8", newline="") as file:
        cells = list(csv.reader(file))[1:]
    assert not any(row[0].startswith(("=", "+", "-", "@", "\t", "\r")) for row in cells)
    assert [row[2] for row in cells] == ["-0.5"] * len(rows)  # numbers stay numbers
    assert read_csv(path, Line, "mend it") == rows


@pytest.mark.parametrize(
    "text",
    [
        "name,n,value\nx,1,2\n", "name,n,value,low\nx,1\n", "name,n,value,low\nx,1,2,3,4\n",
        "name,n,value,low\nx,one,2,3\n", "name,n,value,low\nx,1,,3\n", 'name,n,value,low\n"x',
        "", "name,n,value,low\n\udcff,1,2,3\n",
    ],
)  # fmt: skip
def test_another_table_is_refused(tmp_path, text):
    path = tmp_path / "t.csv"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=r"cannot read .*t\.csv \(.*\): mend it"):
        read_csv(path, Line, "mend it")


def test_jobs_gains_and_curves_keep_any_name(tmp_path, capsys):
    done = [
        Job(tmp_path, at, (f"bench.include={what}",), "FAILED", "id", error)
        for at, (what, error) in enumerate([("[a]", "holds [/INST]"), ("[x]", "=cmd|'x'!A0")])
    ]
    jobs.show(done)
    said = capsys.readouterr().out
    assert all(text in said for text in ("bench.include=[a]", "bench.include=[x]", "[/INST]"))
    assert r"| 1 | bench.include=\[x\] | FAILED | =cmd\|'x'!A0 |" in jobs.markdown(done)
    jobs.write_table(tmp_path / "sweep.csv", done)
    assert ",'=cmd|'x'!A0,id" in (tmp_path / "sweep.csv").read_text()
    gains = [Gain(name, "b", "b/overall", 0.5, None, None, 3, *[None] * 4) for name in NAMES]
    comparison.write(tmp_path / comparison.FILE, gains)
    assert comparison.gather([tmp_path]) == gains
    curve = [bestofn.Point(name, "=s", 2, None, 0.5, 0.25, 0.75, 4) for name in NAMES]
    bestofn.write(tmp_path / bestofn.FILE, curve)
    assert bestofn.read(tmp_path / bestofn.FILE) == curve


def test_a_name_is_no_formula_in_a_figure(tmp_path):
    """Two dollar signs would be TeX, and an unknown command an error after all scoring."""
    name = r"$\nothing$ a_b"
    points = [bestofn.Point("recorded_reward", "s", n, 0.1, 0.5, 0.4, 0.6, 9) for n in (1, 2)]
    row = Gain(name, "b", "b/overall", 0.5, 0.4, 0.6, 30, *[None] * 4)
    drawn = [*curves({name: points}).values(), dots([row])]
    for figure in drawn:
        figure.savefig(tmp_path / "figure.svg")


def test_no_other_module_writes_tables():
    """Markup is off, formulas are marked and Markdown is escaped in one place."""
    package = Path(tables.__file__).parent
    seen = 0
    for path in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            module = node.module if isinstance(node, ast.ImportFrom) else None
            if module in ("rich.console", "rich.table", "rich.text", "rich"):
                assert path.name in ("tables.py", "progress.py"), path
                seen += 1
            if isinstance(node, ast.Attribute) and ast.unparse(node) in (
                "csv.writer",
                "csv.DictWriter",
            ):
                assert path.name == "tables.py", path
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert node.value != " | " or path.name == "tables.py", path
    assert seen == 5


def test_printable_keeps_what_is_printed():
    assert printable("日 é 'x' [b] \\n") == "日 é 'x' [b] \\n"


def uncoloured(text: str) -> str:
    return re.sub(r"\x1b\[[\d;]*m", "", text)


@pytest.mark.parametrize("columns", [60, 80, 100, 200])
def test_a_table_fits_the_terminal_and_no_number_is_cut(capsys, monkeypatch, columns):
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    monkeypatch.setenv("COLUMNS", str(columns))
    number = "0.556 (0.468 to 0.645)"
    show(("metric", "model", "value"), [("x" * 60, "y" * 40, number)] * 2, right=("value",))
    lines = uncoloured(capsys.readouterr().out).splitlines()
    assert max(map(len, lines)) <= columns
    assert sum(number in line for line in lines) == 2
    assert not any("…" in line for line in lines)


def test_numbers_wider_than_the_terminal_stand_below_each_other(capsys, monkeypatch):
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    monkeypatch.setenv("COLUMNS", "40")
    show(("metric", "value", "gain"), [("a/b", "0.5 (0.4 to 0.6)", "+0.1 (+0.0 to +0.2)")],
         "title", right=("value", "gain"))  # fmt: skip
    assert uncoloured(capsys.readouterr().out).splitlines() == [
        "title", "a/b", "  value: 0.5 (0.4 to 0.6)", "  gain: +0.1 (+0.0 to +0.2)",
    ]  # fmt: skip


def test_in_a_pipe_a_row_is_one_line_however_wide(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    show(("name", "n"), [("x" * 300, "1")], right=("n",))
    assert f"{'x' * 300} │ 1" in capsys.readouterr().out


def test_a_table_can_be_left_out(capsys):
    with unshown():
        show(("name",), [("a",)])
    assert not capsys.readouterr().out
    show(("name",), [("a",)])
    assert "a" in capsys.readouterr().out
