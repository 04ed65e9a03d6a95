"""The connection to a tracking server: reached once under a lock, with errors in one line."""

import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from urllib.parse import quote

from filelock import FileLock
from google.protobuf.json_format import ParseError
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE
from sqlalchemy import create_engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from rmexp.errors import ConfigError, RmexpError
from rmexp.files import make_cache, root
from rmexp.secrets import redact
from rmexp.tracking.pages import VIEW, VIEW_STATE, VIEW_TAG

_EXPERIMENT_LENGTH = 500
_FOLDER_LENGTH = 150  # a file system's limit is 255 bytes
# The UI then opens the experiment as a table of runs; by default it shows the traces of agents.
_SHOWN_AS = {"mlflow.experimentKind": "custom_model_development", VIEW_TAG: VIEW_STATE}
_ABOUT = (
    "Reward models, trained and evaluated with rmexp. *Models* has a row a reward model and its "
    "numbers by data set; *Runs* has a run a training or an evaluation, with settings, files and a "
    f"summary. The view `{VIEW}` shows finished evaluations with interval and n, best first. "
    "Numbers are shares from 0 to 1 unless their names say otherwise; losses are in nats, margins "
    "and rewards in the reward model's own unit."
)
# A server may answer nonsense, and a database's driver be missing.
ERRORS = (MlflowException, SQLAlchemyError, OSError, ParseError, ImportError)
# The seconds and the tries that a first contact gets; MLflow's own settings wait for minutes.
_FIRST_SECONDS, _FIRST_RETRIES = 7, 1
_setting = RLock()


class TrackingError(RmexpError):
    """The tracking server takes nothing more of a run."""


def connect(uri: str, experiment: str) -> tuple[MlflowClient, str]:
    """Return a client and the experiment's id, making database and experiment once, under a lock.

    Two processes that create an SQLite database at the same time crash, and the loser of a race for
    an experiment would file its run elsewhere.
    """
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # Its retries are followed by our own message, or by success.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    # It writes down the traceback of what it raises.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    _check_experiment(experiment)
    with reached(uri):
        _try_database(uri)
    with reached(uri), FileLock(lock(uri)), impatient():
        client = MlflowClient(tracking_uri=uri)
        existing = client.get_experiment_by_name(experiment)
        if existing is not None and existing.lifecycle_stage == "deleted":
            raise ConfigError(
                f"the experiment {experiment} was deleted: restore it, or give another "
                "tracking.experiment"
            )
        if existing is not None:
            if existing.tags.get(VIEW_TAG) != VIEW_STATE:
                client.set_experiment_tag(existing.experiment_id, VIEW_TAG, VIEW_STATE)
            return client, str(existing.experiment_id)
        location = _artifacts(uri, experiment)
        tags = {**_SHOWN_AS, MLFLOW_RUN_NOTE: _ABOUT}
        return client, str(client.create_experiment(experiment, location, tags=tags))


@contextmanager
def reached(uri: str) -> Iterator[None]:
    """Turn a tracking server's first errors into a ConfigError."""
    try:
        yield
    except ERRORS as error:
        raise ConfigError(
            f"cannot use the tracking server {redact(uri)} ({first_line(error)}): start it, or "
            "give another one as tracking.uri (sqlite:////path/mlflow.db or http://host:port)"
        ) from error


@contextmanager
def impatient(seconds: int | None = None) -> Iterator[None]:
    """Let MLflow's requests fail soon, whatever the server does: without `seconds` within twenty.

    With `seconds` each of the two tries gets so many.
    """
    with _environment(
        MLFLOW_HTTP_REQUEST_TIMEOUT=str(seconds or _FIRST_SECONDS),
        MLFLOW_HTTP_REQUEST_MAX_RETRIES=str(_FIRST_RETRIES),
    ):
        yield


@contextmanager
def without_bars() -> Iterator[None]:
    """Let MLflow download without its bars."""
    with _environment(MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR="false"):
        yield


@contextmanager
def _environment(**settings: str) -> Iterator[None]:
    """Set variables of the environment, which MLflow reads with each call, within the block.

    One thread at a time, so that each leaves them as they were.
    """
    with _setting:
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


def _try_database(uri: str) -> None:
    """Connect to a database server once: MLflow tries for 100 s, whatever the reason is."""
    if uri.partition("://")[0].partition("+")[0] in ("postgresql", "mysql", "mssql"):
        engine = create_engine(uri, poolclass=NullPool)
        engine.connect().close()


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
    top = root() if database is None else database.absolute().parent
    name = quote(experiment, safe="")
    if not name.strip("."):  # no name of a folder
        name = name.replace(".", "%2E")
    if len(name) > _FOLDER_LENGTH:
        name = f"{name[: _FOLDER_LENGTH - 17]}-{_digest(experiment)}"
    return (top / "mlartifacts" / name).as_uri()


def lock(uri: str) -> Path:
    """Return the file that processes lock to write to a tracking server what must not be doubled.

    It lies beside the database of SQLite; all others share one in the user's cache folder, as it is
    held for moments.
    """
    if database := _database(uri):
        database.parent.mkdir(parents=True, exist_ok=True)
        return database.with_name(f"{database.name}.lock")
    return make_cache() / "tracking.lock"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def first_line(error: BaseException) -> str:
    """Return what an error says, without the addresses' passwords."""
    return redact((str(error).strip() or type(error).__name__).splitlines()[0])
