"""A trained model in MLflow's own form: what `mlflow models serve` and `load_model` need."""

import re
import shutil
import tomllib
from importlib.metadata import requires, version
from pathlib import Path
from platform import python_version

import yaml
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import AnyType

from rmexp.files import INSTALLED, PACKAGE
from rmexp.tracking.logged_models import WEIGHTS

_LOADER = "rmexp.scoring.pyfunc"
_CODE, _PACKAGES, _PYTHON = "code", "requirements.txt", "python_env.yaml"


def package(folder: Path, model_id: str, run_id: str) -> None:
    """Write what stands beside the weights' folder into a folder that is there.

    That is the MLmodel with its signature, this package's code, and the versions of what it needs
    here, so that a server without rmexp can make an environment for it.
    """
    prompt = AnyType()  # type: ignore[no-untyped-call]  # a text, or a list of messages
    inputs = Schema([ColSpec(prompt, "prompt"), ColSpec(DataType.string, "response")])
    signature = ModelSignature(inputs, Schema([ColSpec(DataType.double)]))
    model = Model(run_id=run_id, model_id=model_id, signature=signature)
    # What mlflow.pyfunc.add_to_model writes; to import that warns of MLflow's own types.
    model.add_flavor(
        "python_function",
        loader_module=_LOADER,
        python_version=python_version(),
        data=WEIGHTS,
        code=_CODE,
        env={"virtualenv": _PYTHON},
    )
    model.save(str(folder / "MLmodel"))
    (folder / _PACKAGES).write_text("".join(f"{line}\n" for line in _pinned()), encoding="utf-8")
    environment = {"python": python_version(), "dependencies": [f"-r {_PACKAGES}"]}
    (folder / _PYTHON).write_text(yaml.safe_dump(environment), encoding="utf-8")
    unneeded = shutil.ignore_patterns("__pycache__", "*.pyc")
    shutil.copytree(PACKAGE, folder / _CODE / PACKAGE.name, ignore=unneeded)


def _pinned() -> list[str]:
    """Return the packages that this one needs, each at the version that is installed."""
    if INSTALLED:
        wanted = [line for line in requires("rmexp") or [] if "extra ==" not in line]
    else:
        project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))
        wanted = project["project"]["dependencies"]
    names = [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in wanted]
    return [f"{name}=={version(name).partition('+')[0]}" for name in names]
