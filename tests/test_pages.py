"""What the pages in docs/ show runs as it stands there."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from running import run_script
from scored_rows import write_lines

ROWS = [
    {"id": "1", "topic": "Sea", "question": "Is it salt?", "good": "Yes.", "bad": "No."},
    {"id": "2", "topic": "Sea", "question": "Is it dry?", "good": "No.", "bad": "Yes."},
    {"id": "3", "topic": "Sky", "question": "Is it blue?", "good": "Often.", "bad": "Never."},
]
PAGES = sorted(Path(__file__).parents[1].glob("docs/*.md"))
REWARDS = {"1": (1, 0), "2": (0, 1), "3": (2, 0)}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    """The page's commands as words, the script's name first."""
    text = page.read_text().replace("\\\n", " ")
    lines = re.findall(r"python (eval_rm|train_rm|correlate)\.py([^`\n]*)", text)
    return [[name, *re.findall(r"'[^']*'|\S+", words)] for name, words in lines]


def test_the_pages_have_commands() -> None:
    assert len([words for page in PAGES for words in commands(page)]) == 6


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_of_the_pages_compose(project_root: Path, page: Path) -> None:
    for name, *words in commands(page):
        settings = [word.strip("'") for word in words if not word.startswith(("-m", "hydra"))]
        if "bench=facts" in settings:
            continue  # its file is the page's own, and is run below
        with initialize_config_dir(version_base="1.3", config_dir=str(project_root / "conf")):
            compose(name, [word.split(",")[0] if "[" not in word else word for word in settings])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)[^):]*\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_the_page_on_benchmarks_adds_one(
    project_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = project_root / "docs" / "add_a_benchmark.md"
    (code,), (settings,) = blocks(page, "python"), blocks(page, "yaml")
    (tmp_path / "bench").mkdir()
    (tmp_path / "facts.py").write_text(code)
    (tmp_path / "bench" / "facts.yaml").write_text(settings)
    scores = [
        {"id": name, "chosen": [good], "rejected": [bad]} for name, (good, bad) in REWARDS.items()
    ]
    monkeypatch.syspath_prepend(tmp_path)
    words = [
        f"hydra.searchpath=[file://{tmp_path}]",
        "bench=facts",
        f"bench.path={write_lines(tmp_path / 'facts.jsonl', ROWS)}",
        "model=recorded",
        f"model.path={write_lines(tmp_path / 'scores.jsonl', scores)}",
        f"tracking.uri=sqlite:///{tmp_path}/mlflow.db",
        f"out_dir={tmp_path / 'out'}",
    ]
    done = run_script(project_root, ["eval_rm.py", *words])
    assert done.code == 0, done.err
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["facts/accuracy"] == pytest.approx(2 / 3)
    assert (metrics["facts/sea"], metrics["facts/sky"]) == (0.5, 1.0)


def test_the_page_on_models_adds_one(project_root: Path, tmp_path: Path) -> None:
    page = project_root / "docs" / "add_a_reward_model.md"
    (tmp_path / "model").mkdir()
    for number, settings in enumerate(blocks(page, "yaml")):
        (tmp_path / "model" / f"mine{number}.yaml").write_text(settings)
        words = [f"hydra.searchpath=[file://{tmp_path}]", f"model=mine{number}", "--cfg", "job"]
        shown = subprocess.run(
            [sys.executable, "eval_rm.py", *words],
            cwd=project_root,
            capture_output=True,
            text=True,
            check=True,
        )
        assert settings.split("path: ")[1].splitlines()[0] in shown.stdout
