import json
import logging
import runpy
import sys

import pytest
from test_tracked import evaluated
from test_tracking import fresh_database

from rmexp.evaluation.leaderboard import make_board
from rmexp.tracking.finished import fetch_files, finished_runs
from rmexp.tracking.runs import MlflowClient
from rmexp.tracking.tracked import Evaluation, Measured

HEADLINES = ("rmb/overall", "rmbench/overall", "toy/overall")


def one(rm, metric, value, n=100, data="data", run_id="r", published=False, **tags):
    given = {"rmexp.data": data} if data else {}
    bench = metric.partition("/")[0]
    measured = {metric: Measured(value, n, value - 0.1, value + 0.1)}
    more = {f"rmexp.{name}": text for name, text in tags.items()}
    return Evaluation(run_id, rm, bench, measured, given | more, published)


def shown(board, column=0):
    """Each line's RM, value, group and whether it is the best."""
    cells = [(line.rm, line.cells[column]) for line in board.lines]
    return [(rm, c.measured.value, c.group, c.best) if c else (rm, None) for rm, c in cells]


def test_lines_are_sorted_by_the_fullest_column_and_empty_columns_left_out():
    board = make_board(
        [
            one("A", "rmb/overall", 0.9), one("A", "toy/overall", 0.2),
            one("B", "toy/overall", 0.3), one("C", "rmbench/hard", 0.9),
            one("D", "rmb/overall", 0.1), one("E", "toy/overall", 0.3),
        ],
        HEADLINES,
    )  # fmt: skip
    assert board.columns == ("rmb/overall", "toy/overall")
    assert board.sorted_by == 1
    assert shown(board, 1) == [
        ("B", 0.3, 0, True), ("E", 0.3, 0, True), ("A", 0.2, 0, False), ("D", None),
    ]  # fmt: skip
    assert shown(board, 0) == [("B", None), ("E", None), ("A", 0.9, 0, True), ("D", 0.1, 0, False)]
    assert board.notes == ()
    assert not board.mixed(0)
    assert not board.mixed(1)


def test_numbers_on_other_data_are_no_rivals():
    """C lacks some examples of the data that A and B share, D and E have others."""
    board = make_board(
        [
            one("A", "toy/overall", 0.5), one("B", "toy/overall", 0.6),
            one("C", "toy/overall", 0.9, n=60), one("D", "toy/overall", 0.95, data="another one"),
            one("E", "toy/overall", 0.99, data=None),
        ],
        HEADLINES,
    )  # fmt: skip
    assert [(rm, value, best) for rm, value, _, best in shown(board)][:2] == [
        ("B", 0.6, True), ("A", 0.5, False),
    ]  # fmt: skip
    assert {rm: group for rm, _, group, _ in shown(board)[2:]} == {"C": 1, "D": 2, "E": 3}
    assert not any(best for _, _, _, best in shown(board)[2:])
    assert board.mixed(0)
    apart = "not comparable with the rest of the column"
    assert board.notes == (
        f"toy/overall: on other examples of the same data, n 60, {apart}",
        f"toy/overall: on other data (another ), n 100, {apart}",
        f"toy/overall: on data that were not recorded, n 100, {apart}",
    )


def test_an_rm_is_shown_on_the_data_that_most_share_or_else_by_its_newest_run():
    found = [
        one("A", "toy/overall", 0.1, n=5, data="few"),  # the newest
        one("A", "toy/overall", 0.2),
        one("A", "toy/overall", 0.3),
        one("B", "toy/overall", 0.4),
        one("C", "toy/overall", 0.5, n=5, data="some"),
        one("C", "toy/overall", 0.6, n=9, data="more"),
    ]
    assert [row[:2] for row in shown(make_board(found, HEADLINES))] == [
        ("B", 0.4), ("A", 0.2), ("C", 0.5),
    ]  # fmt: skip


def test_between_bases_of_equally_many_the_complete_and_larger_one_counts():
    part = one("A", "toy/overall/partial", 0.9, n=500, data="part", missing="math")
    few = one("B", "toy/overall", 0.8, n=10, data="few")
    many = one("C", "toy/overall", 0.7, n=20, data="many")
    board = make_board([part, few, many], HEADLINES)
    assert shown(board)[0] == ("C", 0.7, 0, False)
    assert not any(best for *_, best in shown(board))  # nobody to be better than


def test_what_a_partial_number_lacks_is_said():
    board = make_board(
        [
            one("A", "toy/overall/partial", 0.9, missing="math, code"),
            one("B", "toy/overall/partial", 0.8, n=7),
        ],
        HEADLINES,
    )
    assert board.columns == ("toy/overall",)
    assert all(line.cells[0].partial for line in board.lines)
    notes = {line.rm: [board.notes[at] for at in line.cells[0].notes] for line in board.lines}
    assert notes["A"] == ["toy/overall: partial, nothing of math, code"]
    assert notes["B"][0] == "toy/overall: partial, what it lacks was not recorded"
    assert "not comparable" in notes["B"][1]


def test_readings_and_weights_of_one_name_are_lines_of_their_own():
    board = make_board(
        [
            one("A", "toy/overall", 0.1, reward="sum", weights="1234567890"),
            one("A", "toy/overall", 0.2, reward="mean", weights="1234567890"),
            one("B", "toy/overall", 0.3, reward="sum", weights="1234567890"),
            one("B", "toy/overall", 0.4, reward="sum", weights="abcdefgh", reference="0123456789"),
        ],
        HEADLINES,
    )  # fmt: skip
    assert [(line.rm, line.reading) for line in board.lines] == [
        ("B", "sum, abcdefgh/01234567"), ("B", "sum, 12345678"),
        ("A", "mean, 12345678"), ("A", "sum, 12345678"),
    ]  # fmt: skip


def test_published_numbers_of_one_source_are_comparable():
    rows = {"A": (0.7, "x"), "B": (0.8, "x"), "C": (0.9, "y")}
    board = make_board(
        [
            one(rm, "rmb/overall", value, None, None, published=True, source=source)
            for rm, (value, source) in rows.items()
        ],
        HEADLINES,
    )
    assert shown(board) == [
        ("B", 0.8, 0, True), ("A", 0.7, 0, False), ("C", 0.9, 1, False),
    ]  # fmt: skip
    assert board.notes == ("x", "y")


def test_nothing_makes_an_empty_board():
    assert make_board([], HEADLINES).lines == ()


@pytest.fixture
def command(project_root, tmp_path, tmp_path_factory, monkeypatch):
    """The command on a database of its own, in this process; returns its exit code."""
    uri = fresh_database(tmp_path_factory, tmp_path / "mlflow.db")
    monkeypatch.chdir(project_root)

    def run(*overrides):
        handlers, level = logging.root.handlers[:], logging.root.level
        words = [f"tracking.uri={uri}", f"out_dir={tmp_path}/out", *overrides]
        monkeypatch.setattr(sys, "argv", ["leaderboard.py", *words])
        monkeypatch.setattr("rmexp.cli.commands._failed", [])
        with pytest.raises(SystemExit) as end:
            runpy.run_path("leaderboard.py", run_name="__main__")
        for handler in logging.root.handlers:
            if handler not in handlers:
                handler.close()
        logging.root.handlers[:] = handlers
        logging.root.setLevel(level)
        return end.value.code

    return uri, run


def test_the_command_logs_the_page_with_a_run(command, tmp_path, capsys):
    uri, run = command
    overall = {"toy/overall": 0.25, "toy/overall/n": 8, "toy/overall/low": 0.1}
    evaluated(uri, "A <b>", "toy", overall | {"toy/overall/high": 0.4}, **{"rmexp.data": "d"})
    evaluated(uri, "B", "toy", {"toy/overall/partial": 0.5, "toy/overall/partial/n": 4})
    source = {"rmexp.published": "true", "rmexp.source": "a paper"}
    evaluated(uri, "C", "rmb", {"rmb/overall": 0.75}, **source)
    evaluated(uri, "D", "toy", {"toy/reading/easy": 0.5})
    assert run("tracking.experiment=e") == 0
    assert "2 measured, 1 published" in capsys.readouterr().out
    page = (tmp_path / "out" / "leaderboard.html").read_text()
    measured, published = page.split("<h2>Published")
    assert "A &lt;b&gt;" in measured
    assert "0.750" in published
    assert "0.750" not in measured
    status = json.loads((tmp_path / "out" / "run.json").read_text())
    assert status["status"] == "FINISHED"
    copy = tmp_path / "copy"
    copy.mkdir()
    made = fetch_files(uri, status["run_id"], ("leaderboard.html", "leaderboard.md"), copy)
    assert (copy / "leaderboard.html").read_text() == page
    assert made.tags["rmexp.command"] == "leaderboard"
    assert made.tags["mlflow.note.content"] == (copy / "leaderboard.md").read_text()


def test_a_benchmark_of_ones_own_is_a_column(command, tmp_path, monkeypatch):
    """Its file in conf/bench builds on another one, in a folder that is searched."""
    uri, run = command
    (tmp_path / "conf" / "bench").mkdir(parents=True)
    own = tmp_path / "conf" / "bench" / "mine.yaml"
    own.write_text("defaults: [preference, _self_]\nname: mine\npath: pairs.jsonl\n")
    evaluated(uri, "A", "mine", {"mine/accuracy": 0.5, "mine/accuracy/n": 4}, **{"rmexp.data": "d"})
    assert run("tracking.experiment=e", f"hydra.searchpath=[file://{tmp_path}/conf]") == 0
    assert "mine/accuracy (data d)" in (tmp_path / "out" / "leaderboard.md").read_text()


def test_an_empty_or_unknown_experiment_is_refused_before_a_run_is_made(command, capfd):
    uri, run = command
    evaluated(uri, "A", "toy", {"toy/reading/easy": 0.1})
    assert run("tracking.experiment=e") == 1
    assert run("tracking.experiment=absent") == 1
    assert run("tracking.experiment=e", "query=\"tags.x = 'y'\"") == 1
    said = capfd.readouterr().err
    assert "the experiment e has no finished evaluation with a benchmark's headline" in said
    assert "there is no experiment absent: choose from Default, e" in said
    assert "no finished evaluation that matches" in said
    assert MlflowClient(tracking_uri=uri).get_experiment_by_name("absent") is None
    assert not finished_runs(uri, "e", "tags.rmexp.command = 'leaderboard'")
