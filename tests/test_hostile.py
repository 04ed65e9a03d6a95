"""Names, rows and templates from elsewhere, through whole commands: text, that stays in place."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import run_script
from scored_rows import write_lines
from tiny import tiny_scalar, tiny_tokenizer

import rmexp
from rmexp.benchmarks.preference import Preference
from rmexp.errors import RmexpError
from rmexp.models.rendering import Refusal, Renderer

NAMES = (
    "../../../up", "/etc/up", "<script>alert(1)</script>", "=1+1", "@SUM(A1)", "[red]x[/red]",
    "a\x1b]0;b\x07", "${oc.env:HOME}", "{{ 7 * 7 }}", "%s", "|a|b|", "[x](javascript:alert(1))",
)  # fmt: skip


@pytest.fixture(scope="module")
def left(project_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """What an evaluation and the leaderboard leave of hostile names, and what they print."""
    top = tmp_path_factory.mktemp("top")
    here = top / "a" / "b" / "c"
    here.mkdir(parents=True)
    rows = [
        {"id": name, "prompt": f"{name}?", "chosen": f"yes {name}", "rejected": name, "part": name}
        for name in NAMES
    ]
    scores = [{"id": name, "chosen": [1.0], "rejected": [at % 2]} for at, name in enumerate(NAMES)]
    uri = f"tracking.uri=sqlite:///{here}/mlflow.db"
    experiment = "tracking.experiment='../../<script>alert(2)</script>'"
    words = [
        "eval_rm.py", "model=recorded", f"model.path={write_lines(here / 'scores.jsonl', scores)}",
        "model.name='../../<script>alert(3)</script> =1+1 [red] \x1b]0;x\x07'", "bench=preference",
        f"bench.path={write_lines(here / 'pairs.jsonl', rows)}", "bench.subset_column=part",
        f"out_dir={here}/out", f"store_dir={here}/store", uri, experiment,
    ]  # fmt: skip
    done = run_script(project_root, words, [(Preference, "figures")])
    assert done.code == 0, done.err
    board = ["leaderboard.py", f"out_dir={here}/board", f"store_dir={here}/store", uri, experiment]
    page = run_script(project_root, board)
    assert page.code == 0, page.err
    return here, done.out + done.err + page.out + page.err


def test_nothing_is_written_outside(left: tuple[Path, str]) -> None:
    here, _ = left
    assert [path.name for path in here.parents[2].rglob("*") if not path.is_relative_to(here)] == [
        "a",
        "b",
    ]
    made = {path.name for path in here.iterdir()}
    assert made <= {
        "scores.jsonl", "pairs.jsonl", "out", "store", "board", "mlflow.db", "mlflow.db.lock",
        "mlartifacts",
    }  # fmt: skip


def test_the_terminal_shows_names_as_they_are(left: tuple[Path, str]) -> None:
    _, said = left
    assert not {"\x1b", "\x07"} & set(said)
    assert "=1+1 [red]" in said


def test_no_cell_of_a_table_is_a_formula(left: tuple[Path, str]) -> None:
    here, _ = left
    seen = 0
    for path in here.glob("*/*.csv"):
        with path.open(encoding="utf-8", newline="") as file:
            for cell in (cell for row in csv.reader(file) for cell in row):
                number = cell.lstrip("-").replace(".", "").replace("e-", "").isdigit()
                assert number or not cell.startswith(("=", "+", "-", "@", "\t", "\r")), cell
                seen += 1
    assert seen > 20


def test_pages_hold_no_markup_of_a_name(left: tuple[Path, str]) -> None:
    here, _ = left
    pages = [here / "out" / "summary.md", here / "board" / "leaderboard.html"]
    pages += [here / "board" / "leaderboard.md"]
    assert len(pages) == 3
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert "<script>alert" not in text
        assert "](javascript:" not in text.replace("\\](", "")
        assert "alert" in text


def test_what_was_written_is_what_was_given(left: tuple[Path, str]) -> None:
    """Nothing was interpolated, and the files are read again."""
    here, _ = left
    lines = (here / "out" / "scores.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["id"] for line in lines] == list(NAMES)
    assert [json.loads(line)["subset"] for line in lines] == list(NAMES)


CODE = (
    "cycler.__init__.__globals__.os.system('touch PROOF')",
    "joiner.__init__.__globals__['os'].system('touch PROOF')",
    "raise_exception.__globals__['os'].system('touch PROOF')",
    "messages.__class__.__mro__[1].__subclasses__()",
    "(messages | attr('__class__')).__mro__",
    "''.join.__globals__",
    "'{0.__class__}'.format(messages)",
    "'{a.__class__}'.format_map({'a': 1})",
    "'%s' | format(messages.__class__)",
    "strftime_now.__globals__",
    "self._TemplateReference__context",
)


@pytest.mark.parametrize("code", CODE)
def test_a_template_that_would_run_code_does_not(
    code: str, renderer: Renderer, tmp_path: Path
) -> None:
    proof = tmp_path / "proof"
    template = f"{{{{ {code.replace('PROOF', str(proof))} }}}}"
    turns = [{"role": "user", "content": "a?"}]
    (said,) = renderer.render(template, [turns], {}, "26 Jul 2024")
    assert said == "" or (isinstance(said, Refusal) and said.reason.endswith("unsafe."))
    assert not proof.exists()


@pytest.fixture(scope="module")
def renderer() -> Iterator[Renderer]:
    made = Renderer()
    yield made
    made.close()


def test_a_folder_whose_template_would_run_code_is_refused(tmp_path: Path) -> None:
    folder, proof = tiny_scalar(tmp_path / "model"), tmp_path / "proof"
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ " + CODE[0].replace("PROOF", str(proof)) + " }}"
    tokenizer.save_pretrained(folder)
    reward = rmexp.open_reward(path=str(folder))
    with pytest.raises(RmexpError, match=r"'__init__' of 'type' object is unsafe"):
        rmexp.score(reward, [("a?", "b")], rmexp.Settings(tmp_path / "s"))
    assert not proof.exists()
