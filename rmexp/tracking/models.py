"""Models that were logged or registered, as folders on this machine."""

import hashlib
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path

import mlflow
from filelock import FileLock
from mlflow.entities.logged_model_status import LoggedModelStatus
from mlflow.store.artifact.utils.models import get_model_name_and_version
from mlflow.tracking import MlflowClient

from rmexp.errors import ConfigError
from rmexp.secrets import redact
from rmexp.tracking import logged_models
from rmexp.tracking.connection import ERRORS, first_line, without_bars
from rmexp.tracking.logged_models import WEIGHTS


def fetch_model(uri: str, model_uri: str, folder: Path) -> Path:
    """Return a local copy of a logged or registered model (`runs:/...` or `models:/...`).

    Each model has a folder of its own in `folder`, which appears complete or not at all and is
    never changed. A version, or what a finished run has logged, is downloaded once; an alias is
    asked for its version each time. What may still change has a folder for each content. Of a
    model in MLflow's form, with the files around the weights' folder, that folder is returned.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        copy = _copy_of(folder, uri, model_uri)
        if copy.exists():
            return _weights_in(copy)
        pinned, place, settled = _pinned(client, model_uri)
        copy = _copy_of(folder, uri, pinned)
        with FileLock(f"{copy}.lock"), tempfile.TemporaryDirectory(dir=folder) as draft:
            if copy.exists():
                return _weights_in(copy)
            with nullcontext() if sys.stderr.isatty() else without_bars():
                downloaded = mlflow.artifacts.download_artifacts(
                    place, dst_path=f"{draft}/new", tracking_uri=uri, registry_uri=uri
                )
            if not settled:
                copy = _copy_of(folder, uri, pinned, _content(Path(downloaded)))
            if not copy.exists():
                Path(downloaded).rename(copy)
        return _weights_in(copy)
    except ERRORS as error:
        raise ConfigError(
            f"cannot get model.uri={model_uri} from {redact(uri)} ({first_line(error)}): check "
            "the run, the name and the version"
        ) from error


def _weights_in(copy: Path) -> Path:
    """Return the folder of the weights in the copy of a model."""
    return copy / WEIGHTS if (copy / WEIGHTS / "config.json").is_file() else copy


def _copy_of(folder: Path, *names: str) -> Path:
    """Return where the copy of a model lies, by its server, its address and its content."""
    uri, *others = names
    key = "\n".join(["copy", redact(uri), *others])
    return folder / hashlib.sha256(key.encode()).hexdigest()[:16]


def _pinned(client: MlflowClient, model_uri: str) -> tuple[str, str, bool]:
    """Return the address with its version, where the files lie, and if they are settled.

    MLflow itself would look for a registered model in the registry of the whole process.
    """
    if model_uri.startswith("runs:/"):
        run_id: str | None
        run_id, _, path = model_uri.removeprefix("runs:/").partition("/")
        pinned = place = model_uri
        made = logged_models.at(client, model_uri) if path == WEIGHTS else None
        if made is not None:
            return pinned, made.artifact_location, made.status is LoggedModelStatus.READY
    else:
        name, *version = get_model_name_and_version(client, model_uri)  # type: ignore[no-untyped-call]
        if not version:
            model = client.get_logged_model(name)
            return model_uri, model.artifact_location, model.status is LoggedModelStatus.READY
        pinned = f"models:/{name}/{version[0]}"
        place = client.get_model_version_download_uri(name, version[0])
        run_id = client.get_model_version(name, version[0]).run_id
    # A model is registered a moment before its run has logged the files.
    return pinned, place, not run_id or client.get_run(run_id).info.status == "FINISHED"


def _content(folder: Path) -> str:
    """Return a digest of all files in a folder."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.relative_to(folder)}:{content}\n".encode())
    return digest.hexdigest()
