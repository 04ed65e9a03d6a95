"""What the pages in docs/ show runs as it stands there."""

import json
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from running import run_script
from scored_rows import write_lines
from tiny import tiny_policy

from rmexp.benchmarks.preference import Preference
from rmexp.benchmarks.toy import Toy
from rmexp.correlation.tables import Score, read_table
from rmexp.scoring.recorded import RecordedReward

ROWS = [
    {"id": "1", "topic": "Sea", "question": "Is it salt?", "good": "Yes.", "bad": "No."},
    {"id": "2", "topic": "Sea", "question": "Is it dry?", "good": "No.", "bad": "Yes."},
    {"id": "3", "topic": "Sky", "question": "Is it blue?", "good": "Often.", "bad": "Never."},
]
TOP = Path(__file__).parents[1]
PAGES = sorted(TOP.glob("docs/*.md"))
# Whose commands are run, in test_docs.py and below; those of the others are composed.
RUN = {"evaluate.md", "train.md", "correlate.md", "first_hour.md", "score_a_data_set.md"}
COMPOSED = [page for page in PAGES if page.name not in RUN]
REWARDS = {"1": (1, 0), "2": (0, 1), "3": (2, 0)}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    """The page's commands as words, the script's name first."""
    text = page.read_text().replace("\\\n", " ")
    lines = re.findall(
        r"python (eval_rm|train_rm|score_rm|correlate|leaderboard)\.py([^`\n]*)", text
    )
    return [
        [name, *re.findall(r"'[^']*'|\S+", words)] for name, words in lines if "--help" not in words
    ]


def test_the_pages_have_commands() -> None:
    assert len([words for page in COMPOSED for words in commands(page)]) == 12
    assert {page.name for page in PAGES} > RUN


@pytest.mark.parametrize("page", COMPOSED, ids=lambda page: page.stem)
def test_the_commands_of_the_pages_compose(project_root: Path, page: Path) -> None:
    for name, *words in commands(page):
        settings = [word.strip("'") for word in words if not word.startswith(("-m", "hydra"))]
        settings = [re.sub(r"\w+\((.*),.*\)", r"\1", word) for word in settings]
        if "bench=facts" in settings:
            continue  # its file is the page's own, and is run below
        with initialize_config_dir(version_base="1.3", config_dir=str(project_root / "conf")):
            compose(
                name,
                [word if "[" in word or "{" in word else word.split(",")[0] for word in settings],
            )


@pytest.mark.parametrize("page", [TOP / "README.md", *PAGES], ids=str)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target, _, heading in re.findall(r"\]\(([^)#:]+)(#([^):]*))?\)", page.read_text()):
        assert (page.parent / target).exists(), target
        headings = re.findall(
            r"^#+ (.*)$", (page.parent / target).read_text("latin-1"), re.MULTILINE
        )
        assert not heading or heading in [each.lower().replace(" ", "-") for each in headings]


def test_every_page_stands_in_the_list_of_documents() -> None:
    listed = re.findall(r"\]\((\w+\.md)\)", (TOP / "docs" / "README.md").read_text())
    assert sorted(listed) == [page.name for page in PAGES if page.name != "README.md"]


def test_every_picture_is_shown() -> None:
    shown = {
        (page.parent / target).resolve()
        for page in [TOP / "README.md", *PAGES]
        for target in re.findall(r"!\[[^]]+\]\(([^)]+)\)", page.read_text())
    }
    assert shown == set((TOP / "docs").glob("*.png"))


def test_the_readme_s_first_screen() -> None:
    """What it is, one picture, two commands; and the whole is short."""
    text = (TOP / "README.md").read_text()
    first = text.partition("\n## ")[0]
    assert len(first.splitlines()) < 25
    assert len(re.findall(r"!\[", first)) == 1
    assert re.findall(r"^make (\w+) ", first, re.MULTILINE) == ["demo", "test"]
    assert len(text.encode()) < 10_000


def test_the_first_hour_runs_in_its_order(project_root: Path, tmp_path: Path) -> None:
    """On a tiny policy and fewer prompts, with a store and a database of its own."""
    page = project_root / "docs" / "first_hour.md"
    (pairs,) = blocks(page, "json")
    (tmp_path / "pairs.jsonl").write_text(pairs)
    policy = tiny_policy(tmp_path / "policy")
    typed = re.findall(r"^python (\w+\.py)( .*)?$", page.read_text(), re.MULTILINE)
    assert len(typed) == 7
    for number, (script, line) in enumerate(typed):
        line = (
            line.replace("limit=8", "limit=2")
            .replace("limit: 8", "limit: 2")
            .replace("pairs=16", "pairs=8")
        )
        words = [word.strip("'") for word in re.findall(r"'[^']*'|\S+", line)]
        words += [f"model.path={policy}"] if "model=smollm2" in words else []
        words += (
            [] if any(word.startswith("out_dir=") for word in words) else [f"out_dir=o{number}"]
        )
        words += ["tracking.uri=sqlite:///mlflow.db", "store_dir=scores", "quiet=true"]
        script = str(project_root / script)
        done = run_script(tmp_path, [script, *words], [(Toy, "figures")])
        assert done.code == 0, done.err
    assert (tmp_path / f"o{len(typed) - 1}" / "leaderboard.html").exists()
    accuracy = json.loads((tmp_path / "o1" / "metrics.json").read_text())
    assert accuracy["preference/accuracy/n"] == 3


def test_the_files_that_users_bring_are_read(tmp_path: Path) -> None:
    page = TOP / "docs" / "files.md"
    *forms, recorded = blocks(page, "json")
    found = []
    for number, lines in enumerate(forms):
        (tmp_path / f"{number}.jsonl").write_text(lines)
        found.append(Preference(path=str(tmp_path / f"{number}.jsonl")).load().examples)
    assert [len(examples) for examples in found] == [1, 3, 1]
    assert {example.prompt[-1].content for one in found for example in one} == {"Is the sea salt?"}
    assert [example.chosen[0] for example in found[1]] == ["Yes.", "Yes.", "A bit."]
    assert (found[2][0].chosen, found[2][0].rejected) == (("Yes.",), ("No.",))
    (tmp_path / "scores.jsonl").write_text(recorded)
    (scored,), _ = RecordedReward(str(tmp_path / "scores.jsonl")).lookup(found[0])
    assert (scored.chosen, scored.rejected) == ((1.5,), (-0.3,))
    (table,) = blocks(page, "csv")
    (tmp_path / "scores.csv").write_text(table)
    rows = read_table(path=str(tmp_path / "scores.csv")).of("math")
    assert {rm: (row.score, row.base_score, row.n) for rm, row in rows.items()} == {
        "a": (0.41, 0.3, 500), "b": (0.44, 0.3, 500), "c": (0.52, 0.3, 500), "d": (0.47, 0.3, 500)
    }  # fmt: skip
    columns = [field.name for field in fields(Score)]
    assert re.findall(r"^\| `(\w+)` \| [^|]* \|$", page.read_text(), re.MULTILINE) == columns


def test_the_page_on_data_sets_runs(project_root: Path, tmp_path: Path) -> None:
    """Its commands on its rows, and on rollouts; here alone what is for a cluster."""
    page = project_root / "docs" / "score_a_data_set.md"
    (rows,) = blocks(page, "json")
    (tmp_path / "rows.jsonl").write_text(rows)
    rollouts = [{"prompt": "?", "response": "yes"}, {"prompt": "?", "response": "no"}]
    write_lines(tmp_path / "rollouts.jsonl", rollouts)
    policy = tiny_policy(tmp_path / "policy")
    typed = commands(page)
    assert len(typed) == 5
    for number, (name, *words) in enumerate(typed):
        line = " ".join(word.strip("'") if "{" not in word else "" for word in words)
        keep = [word.strip("'") for word in words if "{" in word]
        line = line.replace("/shared/rows", "rows").replace("rows.parquet", "rows.jsonl")
        line = line.replace("/shared/", "shared_").replace(
            "=ray engine.address=HOST:6379", "=local"
        )
        line = line.replace("$SLURM_ARRAY_TASK_ID", "1").replace("model=skywork", "model=smollm2")
        words = [*line.split(), *keep, f"model.path={policy}", f"out_dir=o{number}", "quiet=true"]
        words += ["tracking.uri=sqlite:///mlflow.db", "store_dir=scores"]
        done = run_script(tmp_path, [str(project_root / f"{name}.py"), *words])
        assert done.code == 0, done.err
    assert len((tmp_path / "scored/data/part-00000.jsonl").read_text().splitlines()) == 4
    assert len((tmp_path / "scored/kept/part-00000.jsonl").read_text().splitlines()) == 2
    assert len((tmp_path / "best/kept/part-00000.jsonl").read_text().splitlines()) == 1


def test_the_page_on_the_python_api_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rmexp.scoring.score.root", lambda: tmp_path)
    policy = tiny_policy(tmp_path / "policy")
    code = "\n".join(blocks(TOP / "docs" / "python_api.md", "python"))
    assert code.count('"embedded"') == 1
    there: dict[str, Any] = {}
    exec(code.replace('"embedded"', repr(str(policy))), there)
    assert there["low"] <= there["accuracy"] <= there["high"]
    assert len(there["rewards"]) == 2
    assert there["rewards"][0] != there["rewards"][1]
    assert there["worst"] in {row.id for row in there["result"].scoring.scored}
    value, n = capsys.readouterr().out.splitlines()[-1].split()
    assert (float(value), n) == (there["short"].metrics["toy/null/shorter"], "200")


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
