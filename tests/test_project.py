import ast
import os
import re
import shutil
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

TOO_OLD = f"""#!/bin/sh
exec {sys.executable} -c "import sys; sys.version_info = (3, 9, 2); $2"
"""
# Stands for a Python whose pip fails as long as the file `offline` exists.
STAND_IN = """#!/bin/sh
echo "$*" >> calls
case "$*" in
    -m\\ venv*) mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
    -m\\ pip*) test ! -e offline ;;
esac
"""


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # Under `make test` the outer make's own variables would reach this one.
    environment = {name: value for name, value in os.environ.items() if "MAKE" not in name}
    return subprocess.run(
        ["make", *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )


@pytest.fixture
def fresh(project_root, tmp_path) -> Path:
    """A folder that `make setup` has not seen."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(project_root / name, tmp_path)
    return tmp_path


def script(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return f"PYTHON={path}"


def test_help_lists_every_target(project_root):
    targets = re.findall(r"^([a-z]+):", (project_root / "Makefile").read_text(), re.MULTILINE)
    phony = re.search(r"^\.PHONY: (.*)$", (project_root / "Makefile").read_text(), re.MULTILINE)
    listed = re.findall(r"^make (\w+) +\S", make(project_root, "help").stdout, re.MULTILINE)
    assert len(targets) == 13
    assert sorted(listed) == sorted(targets) == sorted(phony[1].split())


@pytest.mark.parametrize(
    ("target", "last"), [("demo", "train_rm.py experiment=demo"), ("test", "-m pytest")]
)
def test_each_works_first_on_a_fresh_machine(fresh, target, last):
    steps = make(fresh, "-n", target).stdout
    order = ["-m venv", "-m pip install", "-m rmexp.models.embedded", last]
    found = [steps.find(step) for step in order]
    assert -1 not in found
    assert found == sorted(found)


def test_setup_that_failed_is_done_again_and_one_that_worked_is_not(fresh):
    python = script(fresh / "python", STAND_IN)
    (fresh / "offline").touch()
    assert make(fresh, "setup", python).returncode != 0
    assert make(fresh, "setup", python).returncode != 0
    (fresh / "offline").unlink()
    assert make(fresh, "setup", python).returncode == 0
    calls = (fresh / "calls").read_text().splitlines()
    installs = [call for call in calls if call.startswith("-m pip install")]
    assert len(installs) == 3
    assert all("-c constraints.txt -e .[dev,optuna,sweep]" in call for call in installs)
    assert make(fresh, "setup", python).returncode == 0
    assert (fresh / "calls").read_text().splitlines() == calls


def test_setup_without_a_fit_python_says_what_to_do(fresh):
    old = make(fresh, "setup", script(fresh / "old", TOO_OLD))
    absent = make(fresh, "setup", "PYTHON=absent")
    for done, what in ((old, "is 3.9"), (absent, "no absent here")):
        assert done.returncode != 0
        assert what in done.stdout + done.stderr
        assert "make setup PYTHON=python3.11" in done.stdout + done.stderr
        assert not (fresh / ".venv").exists()


def test_the_constraints_pin_what_the_project_asks_for(project_root):
    lines = (project_root / "constraints.txt").read_text().splitlines()
    pins = dict(line.lower().replace("_", "-").split("==") for line in lines)
    assert len(pins) == len(lines)
    assert pins["torch"] == "2.13.0"
    project = tomllib.loads((project_root / "pyproject.toml").read_text())["project"]
    wanted = list(project["dependencies"])
    for extra in project["optional-dependencies"].values():
        wanted += extra
    for text in wanted:
        requirement = Requirement(text)
        assert requirement.specifier.contains(pins[requirement.name]), text
    assert len(wanted) > 20


def test_text_files_are_utf8_whatever_the_locale(project_root):
    """Every call that opens a file as text names its encoding."""
    seen = 0
    for path in [*project_root.glob("*.py"), *project_root.glob("rmexp/**/*.py")]:
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(call, ast.Call):
                continue
            name = getattr(call.func, "attr", getattr(call.func, "id", ""))
            words = {keyword.arg for keyword in call.keywords}
            modes = [each.value for each in call.args if isinstance(each, ast.Constant)]
            of_others = {"archive.open", "os.open"}  # bytes, or a descriptor
            if name in ("read_text", "write_text", "open") and "encoding" not in words:
                binary = name == "open" and any("b" in str(mode) for mode in modes)
                assert binary or ast.unparse(call.func) in of_others, f"{path}:{call.lineno}"
            seen += name in ("read_text", "write_text", "open")
    assert seen > 40


def test_no_module_uses_what_is_private_to_another(project_root):
    """A name that begins with `_` is used in its own module alone."""
    imports = 0
    for path in [*project_root.glob("*.py"), *project_root.glob("rmexp/**/*.py")]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        modules = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rmexp"):
                names = [alias.name for alias in node.names]
                assert not any(name.startswith("_") for name in names), f"{path}:{node.lineno}"
                modules |= {alias.asname or alias.name for alias in node.names}
                imports += 1
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                private = node.attr.startswith("_") and not node.attr.startswith("__")
                assert not (private and node.value.id in modules), f"{path}:{node.lineno}"
    assert imports > 300


def test_the_package_says_what_there_is(project_root):
    done = subprocess.run(
        [sys.executable, "-m", "rmexp"], cwd=project_root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    scripts = {path.name for path in project_root.glob("*.py")}
    assert scripts == set(re.findall(r"^  python (\w+\.py)  ", done.stdout, re.MULTILINE))
    assert "rmexp.evaluate" in done.stdout


@pytest.mark.parametrize("target", ["ui", "leaderboard", "models"])
def test_what_only_uses_the_environment_installs_nothing(project_root, tmp_path, target):
    """A checkout newer than the stamp, with an environment that is a link."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / ".installed").touch()
    os.utime(tmp_path / "elsewhere" / ".installed", (0, 0))
    (tmp_path / ".venv").symlink_to("elsewhere")
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_bytes((project_root / name).read_bytes())
    bin = tmp_path / "elsewhere" / "bin"
    bin.mkdir()
    for name in ("python", "mlflow"):
        (bin / name).write_text("#!/bin/sh\necho ran $0 $*\n")
        (bin / name).chmod(0o755)
    done = make(tmp_path, target)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ran .venv/bin/")
    assert (tmp_path / "elsewhere" / ".installed").exists()
