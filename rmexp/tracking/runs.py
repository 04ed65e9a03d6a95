"""MLflow: runs, their parameters, metrics and artifacts. The only file that imports mlflow."""

import gc
import getpass
import hashlib
import json
import logging
import math
import os
import subprocess
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import mlflow
from filelock import FileLock
from google.protobuf.json_format import ParseError
from mlflow.entities import Dataset, DatasetInput, Metric, Param, RunTag
from mlflow.entities.logged_model_status import LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode
from mlflow.store.artifact.utils.models import get_model_name_and_version
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import (
    MLFLOW_GIT_COMMIT,
    MLFLOW_PARENT_RUN_ID,
    MLFLOW_RUN_NAME,
    MLFLOW_RUN_NOTE,
    MLFLOW_SOURCE_NAME,
    MLFLOW_USER,
)
from sqlalchemy.exc import SQLAlchemyError

from rmexp.errors import ConfigError, RmexpError
from rmexp.files import ROOT, make_cache
from rmexp.metrics import headline
from rmexp.secrets import mask, redact
from rmexp.signals import Killed, uninterrupted
from rmexp.tracking.run_folder import DIED

log = logging.getLogger(__name__)

# MLflow's limits for one call, one parameter and one tag.
_METRICS_A_CALL, _PARAMS_A_CALL, _PARAM_LENGTH, _TAG_LENGTH = 900, 90, 6000, 8000
_NAME_LENGTH = 250  # of runs; databases other than SQLite refuse a longer one
_EXPERIMENT_LENGTH = 500
_FOLDER_LENGTH = 150  # a file system's limit is 255 bytes
# The UI then opens the experiment as a table of runs; by default it shows the traces of agents.
_SHOWN_AS = {"mlflow.experimentKind": "custom_model_development"}
_RUNS_A_PAGE = 200
# A server may answer nonsense, and a database's driver be missing.
_ERRORS = (MlflowException, SQLAlchemyError, OSError, ParseError, ImportError)
# The seconds and the tries that a first contact gets; MLflow's own settings wait for minutes.
_FIRST_SECONDS, _FIRST_RETRIES = 7, 1


RESULT_KEY = "rmexp.key"  # the tag by which skip_done finds a finished run


class DoneBefore(Exception):  # noqa: N818 (it is no error)
    """A finished run has the result that was asked for."""

    def __init__(self, run_id: str, metrics: Mapping[str, float], headline: str) -> None:
        super().__init__(run_id)
        self.run_id, self.metrics, self.headline = run_id, dict(metrics), headline


class TrackingError(RmexpError):
    """The tracking server stopped answering during a run."""


@dataclass(frozen=True, slots=True)
class Run:
    """A run that is open: what a command logs goes through here."""

    client: MlflowClient
    uri: str
    experiment_id: str
    run_id: str
    kept: dict[Path, None] = field(default_factory=dict)  # what the run has written, in order

    def log_params(self, params: Mapping[str, object]) -> None:
        """Log the parameters; nested ones become `a.b`, secrets are masked."""
        flat = _flat(mask(params))
        rows = [Param(name, value[:_PARAM_LENGTH]) for name, value in flat.items()]
        for at in range(0, len(rows), _PARAMS_A_CALL):
            self._call(self.client.log_batch, params=rows[at : at + _PARAMS_A_CALL])

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log finite numbers. Raises ValueError for another, which has no meaning in a table."""
        now = int(time.time() * 1000)
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise ValueError(f"the metric {name} is {value}")
        rows = [Metric(name, value, now, step) for name, value in metrics.items()]
        for at in range(0, len(rows), _METRICS_A_CALL):
            self._call(self.client.log_batch, metrics=rows[at : at + _METRICS_A_CALL])

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags."""
        rows = [RunTag(name, redact(value)[:_TAG_LENGTH]) for name, value in tags.items()]
        self._call(self.client.log_batch, tags=rows)

    def log_dataset(self, name: str, digest: str, source: str, profile: Mapping[str, int]) -> None:
        """Link the data that the run used.

        Under a lock: MLflow looks a data set up and then inserts it, and jobs that start together
        would insert it twice, which its database refuses.
        """
        data = Dataset(
            name,
            digest[:36],
            "local",
            json.dumps({"uri": redact(source)}),
            profile=json.dumps(dict(profile)),
        )
        with FileLock(_lock(self.uri)):
            self._call(self.client.log_inputs, datasets=[DatasetInput(data)])

    def keep(self, *paths: Path) -> None:
        """Note files or folders that the run has written: `log_kept` logs them and no others."""
        self.kept.update(dict.fromkeys(paths))

    def log_kept(self) -> None:
        """Log what the run has written as artifacts, those that are there."""
        for path in self.kept:
            if path.is_dir():
                self._call(self.client.log_artifacts, str(path), path.name)
            elif path.is_file():
                self.log_file(path)

    def log_file(self, path: Path) -> None:
        """Log a file as an artifact."""
        self._call(self.client.log_artifact, str(path))

    def register(self, name: str) -> str:
        """Register the run's artifact `model` under a name, and return its address.

        The files follow with the run's other ones, when the command ends. Raises TrackingError
        where the server refuses the name, or has no registry.
        """
        source = f"runs:/{self.run_id}/model"
        try:
            try:
                self.client.create_registered_model(name)
            except MlflowException as error:
                if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
                    raise
            version = self.client.create_model_version(name, source, self.run_id)
        except _ERRORS as error:
            raise TrackingError(
                f"cannot register the model as {name} ({_first_line(error)}): the model is kept in "
                "the run's folder; give another name as tracking.register"
            ) from error
        return f"models:/{name}/{version.version}"

    def note(self, markdown: str) -> None:
        """Show a text on the run's page."""
        self.set_tags({MLFLOW_RUN_NOTE: markdown})

    def skip_if_done(self, key: str, name: str) -> None:
        """Raise `DoneBefore` if a run of the experiment has finished with this key.

        `name` is the metric that its headline shows.
        """
        query = f"tags.`{RESULT_KEY}` = '{key}' and attributes.status = 'FINISHED'"
        search = self.client.search_runs
        for run in self._try(search, [self.experiment_id], query, max_results=1):
            raise DoneBefore(run.info.run_id, run.data.metrics, headline(run.data.metrics, name))

    def end(self, run_id: str, status: str) -> None:
        """End this run, or one of its children."""
        with uninterrupted():
            try:
                self.client.set_terminated(run_id, status)
            except _ERRORS as lost:
                log.warning("could not end the run %s (%s)", run_id, _first_line(lost))

    def end_left(self, run_id: str) -> None:
        """End a run whose process died, where it still says that it is running."""
        try:
            with uninterrupted():
                if self.client.get_run(run_id).info.status == "RUNNING":
                    self.client.set_tag(run_id, "rmexp.error", DIED)
                    self.client.set_terminated(run_id, "KILLED")
        except _ERRORS as lost:
            log.warning("could not end the run %s (%s)", run_id, _first_line(lost))

    def where(self) -> str:
        """Say how to look at the run."""
        if self.uri.startswith("http"):
            return redact(f"{self.uri}/#/experiments/{self.experiment_id}/runs/{self.run_id}")
        return f"mlflow ui --backend-store-uri {redact(self.uri)}   # run {self.run_id}"

    def _call(self, function: Any, *args: object, **kwargs: object) -> None:
        self._try(function, self.run_id, *args, **kwargs)

    def _try(self, function: Any, *args: object, **kwargs: object) -> Any:
        try:
            return function(*args, **kwargs)
        except _ERRORS as error:
            raise TrackingError(
                f"the tracking server {redact(self.uri)} stopped answering ({_first_line(error)}): "
                "bring it back and run the command again, the scores are kept"
            ) from error


@contextmanager
def tracked_run(
    uri: str, experiment: str, name: str, tags: Mapping[str, str], parent: str | None = None
) -> Iterator[Run]:
    """Open a run and end it FINISHED, FAILED or KILLED, whatever happens inside.

    Raises ConfigError where the tracking server cannot be reached.
    """
    run: Run | None = None
    try:
        with uninterrupted():
            run = open_run(uri, experiment, name, tags, parent)
        yield run
        with uninterrupted():
            run._call(run.client.set_terminated, "FINISHED")
    except BaseException as error:
        if run is not None:
            _end(run.client, run.run_id, error)
        raise


def open_run(
    uri: str, experiment: str, name: str, tags: Mapping[str, str], parent: str | None = None
) -> Run:
    """Open a run that the caller ends. Raises ConfigError where the server cannot be reached."""
    client, experiment_id = _connect(uri, experiment)
    given = {
        MLFLOW_RUN_NAME: redact(name)[:_NAME_LENGTH],
        MLFLOW_SOURCE_NAME: tags.get("rmexp.command", name),
        **_who(),
        **tags,
    }
    if parent is not None:
        given[MLFLOW_PARENT_RUN_ID] = parent
    given = {name: redact(value)[:_TAG_LENGTH] for name, value in given.items()}
    with _reached(uri):
        created = client.create_run(experiment_id, tags=given, run_name=given[MLFLOW_RUN_NAME])
        if not created.info.run_id:
            raise MlflowException("it answers, but gives a run no id")
    return Run(client, uri, experiment_id, created.info.run_id)


def _end(client: MlflowClient, run_id: str, error: BaseException) -> None:
    """End a run that did not finish, and say why; delete one that turned out to be done before."""
    killed = isinstance(error, Killed | KeyboardInterrupt)
    reason = f"killed by {error.name}" if isinstance(error, Killed) else _first_line(error)
    try:
        with uninterrupted():
            if isinstance(error, DoneBefore):
                client.set_terminated(run_id, "FINISHED")
                client.delete_run(run_id)
                return
            client.set_tag(run_id, "rmexp.error", redact(reason)[:_TAG_LENGTH])
            client.set_terminated(run_id, "KILLED" if killed else "FAILED")
    except _ERRORS as lost:
        log.warning("could not end the run %s (%s)", run_id, _first_line(lost))


def _connect(uri: str, experiment: str) -> tuple[MlflowClient, str]:
    """Return a client and the experiment's id, making database and experiment once, under a lock.

    Two processes that create an SQLite database at the same time crash, and the loser of a race for
    an experiment would file its run elsewhere.
    """
    for noisy in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # Its retries are followed by our own message, or by success.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    _check_experiment(experiment)
    with _reached(uri), FileLock(_lock(uri)), _impatient():
        client = MlflowClient(tracking_uri=uri)
        found = client.get_experiment_by_name(experiment)
        if found is not None and found.lifecycle_stage == "deleted":
            raise ConfigError(
                f"the experiment {experiment} was deleted: restore it, or give another "
                "tracking.experiment"
            )
        if found is not None:
            return client, str(found.experiment_id)
        location = _artifacts(uri, experiment)
        return client, str(client.create_experiment(experiment, location, tags=_SHOWN_AS))


@contextmanager
def _reached(uri: str) -> Iterator[None]:
    """Turn a tracking server's first errors into a ConfigError."""
    try:
        yield
    except _ERRORS as error:
        raise ConfigError(
            f"cannot use the tracking server {redact(uri)} ({_first_line(error)}): start it, or "
            "give another one as tracking.uri (sqlite:////path/mlflow.db or http://host:port)"
        ) from error


def _check_experiment(name: str) -> None:
    if not name.strip() or not name.isprintable() or len(name) > _EXPERIMENT_LENGTH:
        raise ConfigError(
            f"tracking.experiment={name[:50]!r}: give a name of 1 to {_EXPERIMENT_LENGTH} "
            "printable characters"
        )


def _database(uri: str) -> Path | None:
    """Return the file of a database of SQLite, None for any other server."""
    if not uri.startswith(("sqlite:", "sqlite+")):
        return None
    path = uri.partition("://")[2].partition("?")[0].removeprefix("/")
    if path in ("", ":memory:") or path.endswith("/") or Path(path).is_dir():
        raise ConfigError(f"tracking.uri={uri} names no file: give sqlite:////path/mlflow.db")
    return Path(path)


def _artifacts(uri: str, experiment: str) -> str | None:
    """Return where the artifacts of a new experiment go; a server of MLflow's decides itself.

    Beside the database of SQLite; for another one in the project's root, where MLflow would take
    the folder in which the command was started.
    """
    if uri.startswith(("http:", "https:")):
        return None
    database = _database(uri)
    top = ROOT if database is None else database.absolute().parent
    name = quote(experiment, safe="")
    if not name.strip("."):  # no name of a folder
        name = name.replace(".", "%2E")
    if len(name) > _FOLDER_LENGTH:
        name = f"{name[: _FOLDER_LENGTH - 17]}-{_digest(experiment)}"
    return (top / "mlartifacts" / name).as_uri()


def _lock(uri: str) -> Path:
    """Return the file that processes lock to write to a tracking server what must not be doubled.

    It lies beside the database of SQLite, else in the user's cache folder.
    """
    if database := _database(uri):
        database.parent.mkdir(parents=True, exist_ok=True)
        return database.with_name(f"{database.name}.lock")
    return make_cache() / f"tracking-{_digest(redact(uri))}.lock"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Make objects by the 100,000s in a third of the time: nothing of them is garbage yet."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def _impatient() -> Iterator[None]:
    """Let MLflow's requests fail within about twenty seconds, whatever the server does."""
    settings = {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(_FIRST_SECONDS),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(_FIRST_RETRIES),
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def fetch_model(uri: str, model_uri: str, folder: Path) -> Path:
    """Return a local copy of a logged or registered model (`runs:/...` or `models:/...`).

    Each model has a folder of its own in `folder`, which appears complete or not at all and is
    never changed. A version, or what a finished run has logged, is downloaded once; an alias is
    asked for its version each time. What may still change has a folder for each content.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        own = _copy_of(folder, uri, model_uri)
        if own.exists():
            return own
        pinned, place, settled = _pinned(client, model_uri)
        own = _copy_of(folder, uri, pinned)
        with FileLock(f"{own}.lock"), tempfile.TemporaryDirectory(dir=folder) as draft:
            if own.exists():
                return own
            made = mlflow.artifacts.download_artifacts(
                place, dst_path=f"{draft}/new", tracking_uri=uri, registry_uri=uri
            )
            if not settled:
                own = _copy_of(folder, uri, pinned, _content(Path(made)))
            if not own.exists():
                Path(made).rename(own)
        return own
    except _ERRORS as error:
        raise ConfigError(
            f"cannot get model.uri={model_uri} from {redact(uri)} ({_first_line(error)}): check "
            "the run, the name and the version"
        ) from error


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
        run_id: str | None = model_uri.removeprefix("runs:/").partition("/")[0]
        pinned = place = model_uri
    else:
        name, *version = get_model_name_and_version(client, model_uri)  # type: ignore[no-untyped-call]
        if not version:
            status = client.get_logged_model(name).status
            return model_uri, model_uri, status is LoggedModelStatus.READY
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


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """A run as it was tracked, with the last value of each metric."""

    run_id: str
    name: str
    tags: Mapping[str, str]
    metrics: Mapping[str, float]


def finished_runs(
    uri: str, experiment: str, query: str, more: str | None = None
) -> list[TrackedRun]:
    """Return an experiment's finished runs that match MLflow's filters, the newest first.

    `query` is our own filter, `more` the user's. Raises ConfigError for an experiment that is not
    there, a user's filter that MLflow does not take, and a server that does not answer.
    """
    runs: list[TrackedRun] = []
    conditions = ["attributes.status = 'FINISHED'", query, *([more] if more else [])]
    try:
        with _impatient():
            client = MlflowClient(tracking_uri=uri)
            found = client.get_experiment_by_name(experiment)
        if found is None:
            names = ", ".join(sorted(each.name for each in client.search_experiments()))
            raise ConfigError(f"there is no experiment {experiment}: choose from {names}")
        token: str | None = ""
        while token is not None:
            with _no_garbage_collection():
                page = client.search_runs(
                    [found.experiment_id],
                    " and ".join(conditions),
                    max_results=_RUNS_A_PAGE,
                    order_by=["attributes.start_time DESC"],
                    page_token=token or None,
                )
            runs += [
                TrackedRun(run.info.run_id, run.info.run_name, run.data.tags, run.data.metrics)
                for run in page
            ]
            token = page.token or None
    except _ERRORS as error:
        mend = (
            f"correct the filter {more!r}, or check that the server is up" if more else "start it"
        )
        raise ConfigError(
            f"cannot read the runs of {experiment} at {redact(uri)} ({_first_line(error)}): {mend}"
        ) from error
    return runs


def fetch_files(uri: str, run_id: str, names: Collection[str], folder: Path) -> TrackedRun:
    """Copy these artifacts of a run into a folder, and return the run.

    Raises ConfigError where the run or one of the files is not to be had.
    """
    try:
        with _impatient():
            client = MlflowClient(tracking_uri=uri)
            run = client.get_run(run_id)
        for name in names:
            client.download_artifacts(run_id, name, str(folder))
    except _ERRORS as error:
        raise ConfigError(
            f"cannot get {', '.join(names)} of the run {run_id} from {redact(uri)} "
            f"({_first_line(error)}): give a finished run of eval_rm.py, or its folder"
        ) from error
    return TrackedRun(run_id, run.info.run_name, run.data.tags, run.data.metrics)


def git_commit(root: Path) -> str | None:
    """Return the commit that is checked out, with "-dirty" where files differ from it."""
    try:
        commit = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip()


def _who() -> dict[str, str]:
    tags = {MLFLOW_USER: _user()}
    commit = git_commit(Path(__file__).parent)
    return tags if commit is None else tags | {MLFLOW_GIT_COMMIT: commit}


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return "unknown"


def _flat(values: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    rows: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            rows |= _flat(value, f"{prefix}{name}.")
        else:
            rows[f"{prefix}{name}"] = value if isinstance(value, str) else json.dumps(value)
    return rows


def _first_line(error: BaseException) -> str:
    """Return what an error says, without the addresses' passwords."""
    return redact((str(error).strip() or type(error).__name__).splitlines()[0])
