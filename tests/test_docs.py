"""What the documents say is true: their commands run, their tree is the real one."""

import ast
import json
import re
import tomllib
from pathlib import Path

import pytest
from running import run_script
from scored_rows import write_json, write_lines
from tiny import tiny_adapter, tiny_policy, tiny_scalar

from rmexp.benchmarks.toy import Toy

# Where the commands stand that are run below; test_pages.py has the other pages.
DOCUMENTS = ("README.md", "docs/evaluate.md", "docs/train.md", "docs/correlate.md")
# What a command needs to run here, where there is no hub: overrides that come last, or the words to
# put in place of its own.
STAND_INS: dict[str, dict[str, str]] = {
    "model=smollm2 bench=toy bench.limit=2": {"+": "model.path={policy}"},
    "model=skywork bench=rmb": {"+": "model.path={scalar} bench.path={rmb}"},
    "model=local model.path=FOLDER bench=rmbench": {
        "FOLDER": "{scalar}",
        "+": "bench.path={rmbench}",
    },
    "model=local model.path=POLICY model.reference={path: REFERENCE}": {
        "POLICY": "{policy}",
        "REFERENCE": "{policy}",
        "+": "bench.limit=2",
    },
    "bench=rmb bench.path=RMB_dataset": {"RMB_dataset": "{rmb}", "+": "model.path={policy}"},
    "bench=rewardbench bench.include=[llmbar-*] bench.limit=50": {
        "+": "bench.path={rewardbench} model.path={policy}"
    },
    "bench=preference bench.path=pairs.jsonl": {
        "pairs.jsonl": "{pairs}",
        "+": "model.path={policy}",
    },
    "model=recorded model.path=scores.jsonl": {"scores.jsonl": "{scores}", "+": "bench.limit=2"},
    "-m model=smollm2,skywork bench=toy,rmbench": {
        "bench=toy,rmbench": "bench=toy",
        "+": "model.path={scalar} model.reader=auto bench.limit=1,2",
    },
    "tracking.uri=http://HOST:PORT tracking.experiment=NAME": {
        "http://HOST:PORT": "{tracking}",
        "+": "bench.limit=2 model.path={policy}",
    },
}
# The sweep over published models, with stand-ins for their weights and data.
STAND_INS["-m model=skywork,skywork_v02 bench=rmb,rmbench"] = {
    "bench=rmb,rmbench": "bench=toy",
    "+": "model.path={scalar} bench.limit=1,2",
}
STAND_INS["model=smollm2 objective=bt data=toy trainer.max_steps=2"] = {"+": "model.path={policy}"}
STAND_INS["model=judge model.path=FOLDER bench=rewardbench"] = {
    "FOLDER": "{policy}",
    "+": "bench.path={rewardbench} model.max_tokens=4",
}
STAND_INS["model=local model.path=ADAPTER model.base=BASE"] = {
    "ADAPTER": "{adapter}",
    "BASE": "{policy}",
    "+": "bench.limit=2",
}
STAND_INS["experiment=demo"] = {"+": "model.path={policy} data.pairs=8"}
STAND_INS |= {
    "": {"+": ""},
    "scores=skywork_v2_seven_benchmarks policy=none": {"+": ""},
    "import=true scores=rmbench_leaderboard": {"+": ""},
    "compare=[RUN_A,RUN_B]": {"RUN_A": "{top}/{toy}", "RUN_B": "{top}/{recorded}", "+": ""},
    "scores=table scores.path=scores.csv policy=table policy.path=policies.csv": {
        "scores.csv": "{two_scores}",
        "policies.csv": "{policies}",
        "+": "",
    },
    "scores=mlflow scores.metrics=[rmbench/overall] policy=table policy.path=policies.csv": {
        "scores=mlflow": "scores=table",
        "scores.metrics=[rmbench/overall]": "scores.path={two_scores}",
        "policies.csv": "{policies}",
        "+": "",
    },
}


def readme_commands(root: Path) -> list[list[str]]:
    """The documents' commands as words, the script first; one that stands twice is run once."""
    scripts = r"python ((?:eval_rm|train_rm|correlate)\.py[^`\n]*)"
    texts = "\n".join((root / name).read_text() for name in DOCUMENTS)
    found = dict.fromkeys(re.findall(scripts, texts))
    return [
        [word.strip("'") for word in re.findall(r"'[^']*'|\S+", line)]
        for line in found
        if not line.strip().endswith("--help")
    ]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Small models and data in the upstream layouts."""
    top = tmp_path_factory.mktemp("readme")
    turn = [{"role": "user", "content": "What is 2 + 2?"}]
    pair = {
        "pair_uid": "1",
        "conversation_input": turn,
        "chosen": {"answer": "4"},
        "reject": {"answer": "5"},
        "category_path": "Pairwise_set/Helpfulness/Chat/Discussion",
    }
    chat = [
        {"id": i, "prompt": f"{i}?", "chosen": ["a", "b", "c"], "rejected": ["d", "e", "f"]}
        for i in range(2)
    ]
    bench_row = {"id": 1, "subset": "llmbar-natural", "prompt": "?", "chosen": "a", "rejected": "b"}
    scored = top / "scored"
    policy = tiny_policy(top / "policy")
    tiny_adapter(policy, top / "adapter", "CAUSAL_LM")
    toy = [example.id for example in Toy().load().examples]
    return {
        "policy": str(policy),
        "adapter": str(top / "adapter"),
        "scalar": str(tiny_scalar(top / "scalar")),
        "rmb": str(
            write_json(
                top / "RMB_dataset/Pairwise_set/Helpfulness/Chat/Discussion.json", [pair]
            ).parents[3]
        ),
        "rmbench": str(write_json(top / "rm_bench/chat_filtered.json", chat).parent),
        "rewardbench": str(write_lines(top / "rewardbench.jsonl", [bench_row])),
        "pairs": str(
            write_lines(top / "pairs.jsonl", [{"prompt": "?", "chosen": "a", "rejected": "b"}])
        ),
        "scores": str(
            write_lines(
                scored / "scores.jsonl",
                [{"id": name, "chosen": [1, 1, 1], "rejected": [0, 0, 0]} for name in toy],
            )
        ),
        "two_scores": str(write_table(top / "two_scores.csv", ("first", "second"))),
        "policies": str(write_table(top / "policies.csv", ("policy",))),
        "tracking": f"sqlite:///{top}/other.db",
        "top": str(top),
    }


def write_table(path: Path, tasks: tuple[str, ...]) -> Path:
    """Write a table of made scores of six reward models."""
    rows = [
        f"rm {i},{task},{(i + 2) * 7 % 11 + at * i % 3}"
        for at, task in enumerate(tasks)
        for i in range(6)
    ]
    path.write_text("\n".join(["rm,task,score", *rows]) + "\n")
    return path


@pytest.mark.real
@pytest.mark.timeout(1500)  # a dozen commands, each its own start
def test_readme_commands_run(project_root: Path, places: dict[str, str]) -> None:
    commands = readme_commands(project_root)
    assert {" ".join(words) for _, *words in commands} == set(STAND_INS)
    for name in ("toy", "recorded"):  # two runs on the same examples
        model = "model=smollm2" if name == "toy" else "model=recorded"
        places[name] = str(
            next(i for i, (_, *words) in enumerate(commands) if words and words[0] == model)
        )
    for number, (script, *words) in enumerate(commands):
        changes = STAND_INS[" ".join(words)]
        for old, new in changes.items():
            words = [word.replace(old, new) for word in words]
        words = [*words, *changes["+"].split()]
        words = [re.sub(r"\{(\w+)\}", lambda m: places.get(m[1], m[0]), word) for word in words]
        if not any(word.startswith("tracking.uri") for word in words):
            words.append(f"tracking.uri=sqlite:///{places['top']}/mlflow.db")
        words += [f"out_dir={places['top']}/{number}", f"store_dir={places['top']}/s"]
        done = run_script(project_root, [script, *words], [(Toy, "figures")] if number else [])
        assert done.code == 0, done.err[-3000:]
    assert len(commands) == 21
    statuses = list(Path(places["top"]).glob("[0-9]*/**/run.json"))
    # Eighteen single runs, two sweeps of four, and one of two trainings with two evaluations each.
    assert len(statuses) == 18 + 2 * 4 + 2 * (1 + 2)
    for status in statuses:
        assert json.loads(status.read_text())["status"] == "FINISHED", status


def test_the_make_targets_exist(project_root: Path) -> None:
    pages = [project_root / "README.md", *(project_root / "docs").glob("*.md")]
    text = "\n".join(page.read_text() for page in pages)
    named = set(re.findall(r"(?:^|`)make ([a-z]+)", text, re.MULTILINE))
    targets = set(re.findall(r"^([a-z]+):", (project_root / "Makefile").read_text(), re.MULTILINE))
    assert {"demo", "test", "help", "ui"} <= named <= targets


def test_the_tree_is_the_real_one(project_root: Path) -> None:
    """Every module of the package stands in the tree, and nothing else does."""
    text = (project_root / "ARCHITECTURE.md").read_text()
    tree = text.split("## Where things are")[1].split("```")[1]
    named = set(re.findall(r"[\w/]+(?:\.py|/(?=\s))", tree))
    package = project_root / "rmexp"
    real = {path.name for path in package.glob("*.py")} - {"__init__.py"}
    real |= {f"{path.name}/" for path in package.iterdir() if path.is_dir()} - {"__pycache__/"}
    real |= {path.name for path in project_root.glob("*.py")} | {
        "conf/",
        "rmexp/",
        "tests/",
        "docs/",
    }
    named -= {"golden/", "speed/"}  # of tests/
    assert named == real


def test_architecture_says_what_each_folder_imports(project_root: Path) -> None:
    """The last column of the table is what the folder's modules import, read from the code."""
    text = (project_root / "ARCHITECTURE.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \|[^|]+\| ?([\w, ]*) ?\|$", text, re.MULTILINE)
    said = {folder: {name.strip() for name in names.split(",")} - {""} for folder, names in rows}
    package = project_root / "rmexp"
    folders = {path.parent.name for path in package.glob("*/__init__.py")}
    real: dict[str, set[str]] = {folder: set() for folder in folders}
    for path in package.glob("*/*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rmexp."):
                real[path.parent.name].add(str(node.module).split(".")[1])
    assert said == {folder: names & folders - {folder} for folder, names in real.items()}
    assert len(said) == 12


def test_architecture_shows_the_layers_that_are_checked(project_root: Path) -> None:
    text = (project_root / "ARCHITECTURE.md").read_text().split("## Layers")[1].split("```")[1]
    shown = [re.findall(r"\w+", line[:50]) for line in text.strip().splitlines()]
    project = tomllib.loads((project_root / "pyproject.toml").read_text())
    layers = project["tool"]["importlinter"]["contracts"][0]["layers"]
    assert shown[:-1] == [re.findall(r"\w+", layer) for layer in layers[:-1]]
    modules = set(re.findall(r"\w+", layers[-1]))
    assert modules == {path.stem for path in (project_root / "rmexp").glob("*.py")} - {
        "__init__",
        "__main__",
        "deliver",
    }
    assert len(modules) <= 10


def test_architecture_names_real_modules(project_root: Path) -> None:
    text = (project_root / "ARCHITECTURE.md").read_text()
    package = project_root / "rmexp"
    named = re.findall(r"`([a-z_]+)\.([a-z_]+)`", text)
    parts = [(folder, name) for folder, name in named if (package / folder).is_dir()]
    assert len(parts) > 15
    for folder, name in parts:
        assert (package / folder / f"{name}.py").exists(), f"{folder}.{name}"
