"""An open run: its parameters, metrics and artifacts go through here, and it is always ended."""

import getpass
import json
import logging
import math
import re
import subprocess
import time
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock
from mlflow.entities import LoggedModel
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import (
    MLFLOW_GIT_COMMIT,
    MLFLOW_LOGGED_ARTIFACTS,
    MLFLOW_PARENT_RUN_ID,
    MLFLOW_RUN_NAME,
    MLFLOW_RUN_NOTE,
    MLFLOW_SOURCE_NAME,
    MLFLOW_USER,
)

from rmexp.errors import ConfigError
from rmexp.metrics import headline
from rmexp.secrets import mask, redact
from rmexp.signals import Killed, uninterrupted
from rmexp.tracking import owner, pages
from rmexp.tracking.connection import ERRORS, TrackingError, first_line, lock, reached
from rmexp.tracking.delivery import deliver_all
from rmexp.tracking.entries import ERROR, TOKEN, Destination, tell, token
from rmexp.tracking.finished import recorded_numbers
from rmexp.tracking.logged_models import Card
from rmexp.tracking.numbers import TABLE, write_table
from rmexp.tracking.outbox import Outbox
from rmexp.tracking.run_folder import DIED, how_to_deliver, undelivered

log = logging.getLogger(__name__)

_PARAM_LENGTH, _TAG_LENGTH = 6000, 8000  # MLflow's limits
_NO_NAME = re.compile(r"[^\w\-. :/]")  # what MLflow refuses in a parameter's name
_NAME_LENGTH = 250  # of runs; databases other than SQLite refuse a longer one

_DIGEST_LENGTH = 8  # as git shows commits
_POLL = 1.0  # seconds between two looks for a server that is away
RESULT_KEY = "rmexp.key"  # the tag by which skip_done finds a finished run


class DoneBefore(Exception):  # noqa: N818 (it is no error)
    """A finished run has the result that was asked for."""

    def __init__(self, run_id: str, metrics: Mapping[str, float], headline: str) -> None:
        super().__init__(run_id)
        self.run_id, self.metrics, self.headline = run_id, dict(metrics), headline


def _data(name: str, digest: str) -> list[str]:
    """Return a data set's name for MLflow, and as much of its digest as tells data sets apart."""
    return [data_name(name, digest), digest[:_DIGEST_LENGTH]]


def data_name(name: str, digest: str) -> str:
    """Return a data set's name for MLflow, whose page of models tells data sets by that alone.

    >>> data_name("toy", "4623de1c568a2321")
    'toy #4623'
    """
    return f"{name} #{digest[:4]}"


@dataclass(frozen=True, slots=True)
class Run:
    """A run that is open: what a command logs goes through here."""

    outbox: Outbox
    name: str = ""
    kept: dict[Path, None] = field(default_factory=dict)  # what the run has written, in order
    notes: list[str] = field(default_factory=list)  # the texts of its page

    @property
    def client(self) -> MlflowClient:
        """Return the server's client, for what needs an answer."""
        return self.outbox.to.client

    @property
    def uri(self) -> str:
        """Return the server's address."""
        return self.outbox.to.uri

    @property
    def experiment_id(self) -> str:
        """Return the experiment's id."""
        return self.outbox.to.experiment_id

    @property
    def run_id(self) -> str:
        """Return the run's id, or what stands for it until a server has given it one."""
        return self.outbox.to.run_id

    @property
    def folder(self) -> Path | None:
        """Return the folder of the run's files."""
        return self.outbox.to.folder

    def send(self, kind: str, **values: Any) -> Any:
        """Tell MLflow an entry (see `entries`), at once or later; None for one that waits."""
        return self.outbox.send(kind, **values)

    def log_params(self, params: Mapping[str, object]) -> None:
        """Log the parameters; nested ones become `a.b`, secrets are masked."""
        flat = _flat(mask(params))
        self.send("params", params={name: text[:_PARAM_LENGTH] for name, text in flat.items()})

    def log_metrics(
        self, metrics: Mapping[str, float], step: int = 0, of: tuple[str, str] | None = None
    ) -> None:
        """Log finite numbers; with `of`, those of the run's model on a data set as well.

        `of` has the name and the digest of the data set.

        Raises ValueError for one that is not finite, which has no meaning in a table.
        """
        now = _now()
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise ValueError(f"the metric {name} is {value}")
        rows = [[name, value, step, now] for name, value in metrics.items()]
        self.send("metrics", rows=rows, of=None if of is None else _data(*of))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags."""
        self.send("tags", tags={name: _tag(value) for name, value in tags.items()})

    def log_dataset(
        self,
        name: str,
        digest: str,
        source: str,
        profile: Mapping[str, int],
        context: str | None = None,
    ) -> None:
        """Link the data that the run used; of the digest as much as tells data sets apart.

        `context` says what for, where there are several: "input" or "output".
        """
        known, short = _data(name, digest)
        self.send(
            "data",
            name=known,
            digest=short,
            source=json.dumps({"uri": redact(source)}),
            profile=json.dumps(dict(profile)),
            context=context,
        )

    def use_model(self, card: Card, address: str | None = None) -> LoggedModel | None:
        """Link the reward model that the run evaluates, adding it where the experiment has none.

        `address` is where it was found if it is one of MLflow's. What is known of its training is
        logged as parameters. Returns None where that has to wait for the server.
        """
        found: LoggedModel | None = self.send("use", card=asdict(card), address=address)
        return found

    def log_model(
        self, card: Card, folder: Path, params: Mapping[str, str], metrics: Collection[str]
    ) -> str | None:
        """Log the model that the run has made, from its folder, and return its id.

        `metrics` names some of the run's that are the model's, too, on the data that the run used.
        Returns None where that has to wait for the server.
        """
        made: str | None = self.send(
            "trained",
            card=asdict(card),
            folder=self._relative(folder),
            params=dict(params),
            of=list(metrics),
        )
        return made

    def add_to_name(self, text: str) -> None:
        """Add to the run's name what was not known when it began."""
        name = f"{self.name}{text}"[:_NAME_LENGTH]
        self.send("name", name=name)

    def log_table(self, folder: Path, metrics: Mapping[str, float]) -> None:
        """Write all numbers as a table into the run's folder, to be kept beside its files."""
        self.keep(write_table(folder, metrics))
        self.set_tags({MLFLOW_LOGGED_ARTIFACTS: json.dumps([{"path": TABLE, "type": "table"}])})

    def keep(self, *paths: Path) -> None:
        """Note files or folders that the run has written: `log_kept` logs them and no others."""
        self.kept.update(dict.fromkeys(paths))

    def log_kept(self) -> None:
        """Log what the run has written as artifacts, those that are there."""
        self._log_files([path for path in self.kept if path.exists()])

    def log_file(self, path: Path) -> None:
        """Log a file as an artifact."""
        self._log_files([path])

    def _log_files(self, paths: Sequence[Path]) -> None:
        self.send("files", paths=[self._relative(path) for path in paths])

    def _relative(self, path: Path) -> str:
        """Return a path as the run's folder may be moved with it."""
        if self.folder is not None and path.is_relative_to(self.folder):
            return str(path.relative_to(self.folder))
        return str(path.absolute())

    def note(self, markdown: str) -> None:
        """Show a text on the run's page, above those before."""
        self.notes.insert(0, markdown)
        self.set_tags({MLFLOW_RUN_NOTE: "\n".join(self.notes)})

    def skip_if_done(self, key: str, name: str) -> None:
        """Raise `DoneBefore` if a run of the experiment has finished with this key.

        `name` is the metric that its headline shows.
        """
        query = f"tags.`{RESULT_KEY}` = '{key}' and attributes.status = 'FINISHED'"
        try:
            found = self.client.search_runs([self.experiment_id], query, max_results=1)
        except ERRORS as lost:
            log.warning("nobody says whether this was done before (%s)", first_line(lost))
            return
        for run in found:
            metrics = recorded_numbers(self.uri, run.info.run_id)
            raise DoneBefore(run.info.run_id, metrics, headline(metrics, name))

    def end(self, status: str, reason: str | None = None) -> None:
        """End the run, and say why if it did not finish."""
        error = None if reason is None else _tag(reason)
        self.send("end", status=status, time=_now(), error=error)

    def deliver(self, seconds: float = 0) -> None:
        """Tell what waits of this run and of those in its folder; a server gets time to come back.

        Raises TrackingError where it does not take all, ConfigError where another process is at
        work in one of the folders.
        """
        if self.folder is None or not undelivered(self.folder):
            return
        if seconds:
            log.info("waiting up to %.0f s for the tracking server", seconds)
        until = time.monotonic() + seconds
        while True:
            try:
                self.outbox.flush()
                deliver_all(self.folder, self.uri, held=True)
            except TrackingError:
                if time.monotonic() > until:
                    raise
                time.sleep(_POLL)
            else:
                return

    def end_left(self, run_id: str) -> None:
        """End a run whose process died, where it still says that it is running."""
        try:
            with uninterrupted():
                if self.client.get_run(run_id).info.status == "RUNNING":
                    self.client.set_tag(run_id, ERROR, DIED)
                    self.client.set_terminated(run_id, "KILLED")
        except ERRORS as lost:
            log.warning("could not end the run %s (%s)", run_id, first_line(lost))

    def end_dead(self) -> None:
        """End the runs of this machine, in any experiment of the server, whose process is gone."""
        try:
            with FileLock(lock(self.uri)):
                for run_id in owner.dead_runs(self.client):
                    self.end_left(run_id)
        except ERRORS as lost:
            log.warning("could not look for runs whose process died (%s)", first_line(lost))

    def where(self) -> str:
        """Say how to look at the run: its page, after what opens it if that is needed."""
        if not self.outbox.to.is_made:
            return how_to_deliver(self.folder or Path())
        page, opens = (
            pages.run_page(self.uri, self.experiment_id, self.run_id),
            pages.command(self.uri),
        )
        return f"{opens}   # then {page}" if opens else page

    def others(self) -> str:
        """Return the pages of the experiment's models and evaluations, a line each."""
        models = pages.models_page(self.uri, self.experiment_id)
        evaluations = pages.runs_page(self.uri, self.experiment_id)
        return f"models   {models}\nruns     {evaluations}"

    def attempt(self, function: Any, *args: object, **kwargs: object) -> Any:
        """Ask the server what cannot wait; raise TrackingError where it does not answer."""
        try:
            return function(*args, **kwargs)
        except ERRORS as error:
            raise TrackingError(
                f"the tracking server {redact(self.uri)} stopped answering ({first_line(error)}): "
                "bring it back and run the command again, the scores are kept"
            ) from error


@contextmanager
def tracked_run(
    uri: str,
    experiment: str,
    name: str,
    tags: Mapping[str, str],
    parent: str | None = None,
    folder: Path | None = None,
) -> Iterator[Run]:
    """Open a run and end it FINISHED, FAILED or KILLED, whatever happens inside.

    What a server does not take is kept in `folder`, see `outbox`. Raises ConfigError where the
    tracking server cannot be reached.
    """
    run: Run | None = None
    try:
        with uninterrupted():
            run = open_run(uri, experiment, name, tags, parent, folder)
        yield run
        with uninterrupted():
            run.end("FINISHED")
    except BaseException as error:
        if run is not None:
            _end(run, error)
        raise


def open_run(
    uri: str,
    experiment: str,
    name: str,
    tags: Mapping[str, str],
    parent: str | None = None,
    folder: Path | None = None,
) -> Run:
    """Open a run that the caller ends.

    Raises ConfigError where the server cannot be reached; a run below another one then begins in
    its folder, and is made on the server when that is back.
    """
    to = Destination(None, uri, "", token(uuid.uuid4().hex), folder)
    named = {
        MLFLOW_RUN_NAME: redact(name)[:_NAME_LENGTH],
        MLFLOW_SOURCE_NAME: tags.get("rmexp.command", name),
        **_who(),
        **owner.tags(),
        **tags,
    }
    if parent is not None:
        named |= {MLFLOW_PARENT_RUN_ID: parent, TOKEN: to.run_id}
    named = {name: _tag(value) for name, value in named.items()}
    outbox, own = Outbox(to), named[MLFLOW_RUN_NAME]
    values = {"experiment": experiment, "name": own, "tags": named, "time": _now()}
    try:
        with reached(uri):
            tell(to, "make", values)
    except ConfigError as error:
        if parent is None or folder is None:
            raise
        outbox.keep("make", values, error)
    return Run(outbox, own)


def _end(run: Run, error: BaseException) -> None:
    """End a run that did not finish, and say why; delete one that turned out to be done before."""
    killed = isinstance(error, Killed | KeyboardInterrupt)
    reason = f"killed by {error.name}" if isinstance(error, Killed) else first_line(error)
    try:
        with uninterrupted():
            if isinstance(error, DoneBefore):
                run.end("FINISHED")
                run.client.delete_run(run.run_id)
                return
            run.end("KILLED" if killed else "FAILED", reason)
    except (*ERRORS, TrackingError) as lost:
        log.warning("could not end the run %s (%s)", run.run_id, first_line(lost))


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


def _now() -> int:
    return int(time.time() * 1000)


def _tag(value: str) -> str:
    return redact(value)[:_TAG_LENGTH]


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return "unknown"


def _flat(values: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    rows: dict[str, str] = {}
    for key, value in values.items():
        name = _NO_NAME.sub("_", key)
        if isinstance(value, Mapping) and value:
            rows |= _flat(value, f"{prefix}{name}.")
        else:
            rows[f"{prefix}{name}"] = value if isinstance(value, str) else json.dumps(value)
    return rows
