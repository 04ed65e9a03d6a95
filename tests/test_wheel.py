"""As a wheel, the commands have names, the configs are inside, results lie where one is."""

import importlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_policy

from rmexp.cli.called import COMMANDS, called, command_of


def run(words: list[str], folder: Path, **environment: str) -> str:
    """Run a command in a folder, and return what it printed."""
    environment = {**os.environ, **environment}
    environment.pop("MLFLOW_TRACKING_URI", None)
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def project(root: Path) -> dict[str, Any]:
    return tomllib.loads((root / "pyproject.toml").read_text())


def test_every_script_is_a_command_of_the_wheel(project_root: Path) -> None:
    scripts = project(project_root)["project"]["scripts"]
    assert scripts == {name: f"rmexp.cli.{command}:run" for command, name in COMMANDS.items()}
    assert set(COMMANDS) == {path.stem for path in project_root.glob("*.py")}
    for command, name in COMMANDS.items():
        assert callable(importlib.import_module(f"rmexp.cli.{command}").run)
        assert (
            f"from rmexp.cli.{command} import run" in (project_root / f"{command}.py").read_text()
        )
        assert called(command) == f"python {command}.py"
        assert command_of(name) == command_of(command) == command


def test_every_package_is_in_the_wheel(project_root: Path) -> None:
    tools = project(project_root)["tool"]["setuptools"]
    found = [path.parent for path in (project_root / "rmexp").rglob("__init__.py")]
    real = {".".join(path.relative_to(project_root).parts) for path in found}
    assert set(tools["packages"]) == real | {"rmexp.conf"}
    kinds = {path.suffix for path in (project_root / "rmexp").rglob("*.*") if path.is_file()}
    assert kinds - {".py", ".pyc"} == {word[4:] for word in tools["package-data"]["rmexp"]}


def test_with_its_configs_inside_it_is_installed(project_root: Path, tmp_path: Path) -> None:
    """A copy in the wheel's layout, started in another folder."""
    site, here = tmp_path / "site", tmp_path / "here"
    here.mkdir()
    unwanted = shutil.ignore_patterns("__pycache__")
    shutil.copytree(project_root / "rmexp", site / "rmexp", ignore=unwanted)
    shutil.copytree(project_root / "conf", site / "rmexp" / "conf")
    script = (
        "import json, runpy, sys\n"
        "from rmexp.benchmarks import open_benchmark\n"
        "from rmexp.cli.eval_rm import run\n"
        "from rmexp.files import CONF, root\n"
        "from rmexp.models.catalogue import catalogue\n"
        "from rmexp.scoring.score import Settings\n"
        "print(json.dumps([str(CONF), str(root()), str(Settings().store_dir), len(catalogue())]))\n"
        "print(json.dumps(open_benchmark('toy').headline))\n"
        "runpy.run_module('rmexp', run_name='__main__')\n"
        "for words in (['--help'], ['--cfg', 'job', '--resolve']):\n"
        "    sys.argv = ['rmexp-eval', *words]\n"
        "    try:\n"
        "        run()\n"
        "    except SystemExit as end:\n"
        "        assert not end.code\n"
    )
    out = run([sys.executable, "-c", script], here, PYTHONPATH=str(site))
    first, headline = out.splitlines()[:2]
    conf, root, store, models = json.loads(first)
    assert (conf, root, store) == (str(site / "rmexp" / "conf"), str(here), str(here / "scores"))
    assert models > 40
    assert json.loads(headline) == "toy/overall"
    assert "\n  rmexp-train        Train a reward model" in out
    assert "\n    rmexp-eval model=skywork bench=rmb\n" in out
    assert 'eval "$(rmexp-eval -sc install=bash)"' in out
    assert f"\nstore_dir: {here / 'scores'}\n" in out
    assert f"\nout_dir: {here / 'outputs'}/" in out
    assert list(here.iterdir()) == []


@pytest.mark.real
@pytest.mark.timeout(900)
def test_a_wheel_in_a_fresh_environment_evaluates_and_trains(
    project_root: Path, tmp_path: Path
) -> None:
    """With the packages of this environment, in an empty folder."""
    tree, here, fresh = tmp_path / "tree", tmp_path / "here", tmp_path / "fresh"
    here.mkdir()
    for name in ("rmexp", "conf"):
        unwanted = shutil.ignore_patterns("__pycache__")
        shutil.copytree(project_root / name, tree / name, ignore=unwanted)
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(project_root / name, tree)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    run([*pip, "wheel", ".", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)], tree)
    (wheel,) = tmp_path.glob("rmexp-*.whl")
    run([sys.executable, "-m", "venv", str(fresh)], tmp_path)
    python = str(fresh / "bin" / "python")
    run([python, "-m", "pip", "install", "--no-deps", "--no-index", str(wheel)], here)
    site = run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], here)
    others = sysconfig.get_path("purelib")
    Path(site.strip(), "others.pth").write_text(others + "\n")
    where = run([python, "-c", "import rmexp; print(rmexp.__file__)"], here).strip()
    assert Path(where).is_relative_to(fresh)

    policy = tiny_policy(tmp_path / "policy")
    common = [f"model.path={policy}", "quiet=true"]
    alone = {"OMP_NUM_THREADS": "1"}
    words = [*common, "bench=toy", "bench.limit=1,2", "out_dir=sweep"]
    words += ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "then=[leaderboard.py]"]
    run([str(fresh / "bin" / "rmexp-eval"), "-m", *words], here, **alone)
    words = [*common, "data.pairs=8", "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
    words += ["trainer.max_steps=2", "out_dir=trained"]
    run([str(fresh / "bin" / "rmexp-train"), *words], here, **alone)
    runs = [here / name / "run.json" for name in ("sweep/0", "sweep/1", "sweep/then", "trained")]
    assert [json.loads(path.read_text())["status"] for path in runs] == ["FINISHED"] * 4
    assert (here / "sweep" / "then" / "leaderboard.html").exists()
    assert (here / "trained" / "model" / "model.safetensors").exists()
    made = {path.name for path in here.iterdir()}
    assert made == {"mlartifacts", "mlflow.db", "mlflow.db.lock", "scores", "sweep", "trained"}
