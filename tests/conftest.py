import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# Set before any library reads it. No test may wait for a hub or report to one. Workers side by side
# share the processor's cores: one thread each, also in the processes that tests start.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"

from rmexp.models import embedded


@pytest.fixture(scope="session")
def project_root() -> Path:
    """The folder with pyproject.toml."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared(project_root: Path) -> Path:
    """The folder `shared` beside the project, with samples of the real data."""
    folder = project_root.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"needs the real data's samples in {folder}")
    return folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Make an empty disk of a size such as "100k"; it is taken away after the test."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(size: str) -> Path:
        subprocess.run(["umount", folder], capture_output=True)
        words = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
        return folder

    yield mount
    subprocess.run(["umount", folder], capture_output=True)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The folder of the embedded model, fetched once a machine."""
    return embedded.smollm2()
