"""An open run: its parameters, metrics and artifacts go through here, and it is always ended."""

import getpass
import json
import logging
import math
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from filelock import FileLock
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModel,
    LoggedModelInput,
    LoggedModelOutput,
    Metric,
    Param,
    RunTag,
)
from mlflow.entities.logged_model_status import LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import (
    MLFLOW_DATASET_CONTEXT,
    MLFLOW_GIT_COMMIT,
    MLFLOW_LOGGED_ARTIFACTS,
    MLFLOW_PARENT_RUN_ID,
    MLFLOW_RUN_NAME,
    MLFLOW_RUN_NOTE,
    MLFLOW_SOURCE_NAME,
    MLFLOW_USER,
)

from rmexp.errors import RmexpError
from rmexp.metrics import headline
from rmexp.secrets import mask, redact
from rmexp.signals import Killed, uninterrupted
from rmexp.tracking import logged_models, owner, pages
from rmexp.tracking.connection import ERRORS, connect, first_line, lock, reached
from rmexp.tracking.finished import recorded_numbers
from rmexp.tracking.logged_models import MODEL, WEIGHTS, Card
from rmexp.tracking.numbers import TABLE, write_table
from rmexp.tracking.packaging import package
from rmexp.tracking.run_folder import DIED

log = logging.getLogger(__name__)

# MLflow's limits for one call, one parameter and one tag.
_METRICS_A_CALL, _PARAMS_A_CALL, _PARAM_LENGTH, _TAG_LENGTH = 900, 90, 6000, 8000
_NAME_LENGTH = 250  # of runs; databases other than SQLite refuse a longer one

_DIGEST_LENGTH = 8  # as git shows commits
RESULT_KEY = "rmexp.key"  # the tag by which skip_done finds a finished run


class DoneBefore(Exception):  # noqa: N818 (it is no error)
    """A finished run has the result that was asked for."""

    def __init__(self, run_id: str, metrics: Mapping[str, float], headline: str) -> None:
        super().__init__(run_id)
        self.run_id, self.metrics, self.headline = run_id, dict(metrics), headline


class TrackingError(RmexpError):
    """The tracking server stopped answering during a run."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What numbers are of: a logged model on a data set, by its name and short digest."""

    model_id: str
    dataset_name: str
    dataset_digest: str

    @classmethod
    def of(cls, model_id: str, name: str, digest: str) -> "Subject":
        """Return a model on the data set with this name and whole digest."""
        return cls(model_id, data_name(name, digest), digest[:_DIGEST_LENGTH])


def data_name(name: str, digest: str) -> str:
    """Return a data set's name for MLflow, whose page of models tells data sets by that alone.

    >>> data_name("toy", "4623de1c568a2321")
    'toy #4623'
    """
    return f"{name} #{digest[:4]}"


@dataclass(frozen=True, slots=True)
class Run:
    """A run that is open: what a command logs goes through here."""

    client: MlflowClient
    uri: str
    experiment_id: str
    run_id: str
    name: str = ""
    kept: dict[Path, None] = field(default_factory=dict)  # what the run has written, in order
    notes: list[str] = field(default_factory=list)  # the texts of its page

    def log_params(self, params: Mapping[str, object]) -> None:
        """Log the parameters; nested ones become `a.b`, secrets are masked."""
        flat = _flat(mask(params))
        rows = [Param(name, value[:_PARAM_LENGTH]) for name, value in flat.items()]
        for at in range(0, len(rows), _PARAMS_A_CALL):
            self._call(self.client.log_batch, params=rows[at : at + _PARAMS_A_CALL])

    def log_metrics(
        self, metrics: Mapping[str, float], step: int = 0, of: "Subject | None" = None
    ) -> None:
        """Log finite numbers; with `of`, those of a model on a data set as well as the run's.

        Raises ValueError for one that is not finite, which has no meaning in a table.
        """
        now = int(time.time() * 1000)
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise ValueError(f"the metric {name} is {value}")
        subject = {} if of is None else {**asdict(of), "run_id": self.run_id}
        rows = [Metric(name, value, now, step, **subject) for name, value in metrics.items()]
        for at in range(0, len(rows), _METRICS_A_CALL):
            self._call(self.client.log_batch, metrics=rows[at : at + _METRICS_A_CALL])

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags."""
        rows = [RunTag(name, redact(value)[:_TAG_LENGTH]) for name, value in tags.items()]
        self._call(self.client.log_batch, tags=rows)

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
        Under a lock: MLflow looks a data set up and then inserts it, and jobs that start together
        would insert it twice, which its database refuses.
        """
        data = Dataset(
            data_name(name, digest),
            digest[:_DIGEST_LENGTH],
            "local",
            json.dumps({"uri": redact(source)}),
            profile=json.dumps(dict(profile)),
        )
        with FileLock(lock(self.uri)):
            tags = [] if context is None else [InputTag(MLFLOW_DATASET_CONTEXT, context)]
            self._call(self.client.log_inputs, datasets=[DatasetInput(data, tags)])

    def use_model(self, card: Card, address: str | None = None) -> LoggedModel:
        """Link the reward model that the run evaluates, adding it where the experiment has none.

        `address` is where it was found if it is one of MLflow's. Under a lock, so that jobs that
        start together add it once.
        """
        with FileLock(lock(self.uri)):
            model = None
            if address is not None:
                model = self.attempt(logged_models.at, self.client, address)
            if model is None or model.experiment_id != self.experiment_id:
                arguments = (self.client, self.experiment_id, card)
                model = self.attempt(logged_models.find, *arguments)
                if model is None:
                    model = self.attempt(logged_models.add_external, *arguments)
            self._call(self.client.log_inputs, models=[LoggedModelInput(model.model_id)])
        self.set_tags({MODEL: model.model_id})
        found: LoggedModel = model
        return found

    def log_model(
        self,
        card: Card,
        folder: Path,
        params: Mapping[str, str],
        metrics: Mapping[str, float],
    ) -> str:
        """Log the model that the run has made, from its folder, and return its id.

        `metrics` are some of the run's that are the model's, too, on the data that the run used.
        """
        arguments = (self.client, self.experiment_id, self.run_id, card, params)
        model_id: str = self.attempt(logged_models.add_output, *arguments).model_id
        self.attempt(self.client.log_model_artifacts, model_id, str(folder), WEIGHTS)
        with TemporaryDirectory() as around:
            package(Path(around), model_id, self.run_id)
            self.attempt(self.client.log_model_artifacts, model_id, around)
        self.attempt(self.client.finalize_logged_model, model_id, LoggedModelStatus.READY)
        history = self.attempt(self.client.get_metric_history, self.run_id, next(iter(metrics)))
        step = max(point.step for point in history)
        self._call(self.client.log_outputs, [LoggedModelOutput(model_id, step)])
        used = self.attempt(self.client.get_run, self.run_id).inputs.dataset_inputs[0].dataset
        self.log_metrics(metrics, step, Subject(model_id, used.name, used.digest))
        self.set_tags({MODEL: model_id})
        return model_id

    def add_to_name(self, text: str) -> None:
        """Add to the run's name what was not known when it began."""
        name = f"{self.name}{text}"[:_NAME_LENGTH]
        self._call(self.client.update_run, name=name)

    def log_table(self, folder: Path, metrics: Mapping[str, float]) -> None:
        """Write all numbers as a table into the run's folder, to be kept beside its files."""
        self.keep(write_table(folder, metrics))
        self.set_tags({MLFLOW_LOGGED_ARTIFACTS: json.dumps([{"path": TABLE, "type": "table"}])})

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

    def note(self, markdown: str) -> None:
        """Show a text on the run's page, above those before."""
        self.notes.insert(0, markdown)
        self.set_tags({MLFLOW_RUN_NOTE: "\n".join(self.notes)})

    def skip_if_done(self, key: str, name: str) -> None:
        """Raise `DoneBefore` if a run of the experiment has finished with this key.

        `name` is the metric that its headline shows.
        """
        query = f"tags.`{RESULT_KEY}` = '{key}' and attributes.status = 'FINISHED'"
        search = self.client.search_runs
        for run in self.attempt(search, [self.experiment_id], query, max_results=1):
            metrics = recorded_numbers(self.uri, run.info.run_id)
            raise DoneBefore(run.info.run_id, metrics, headline(metrics, name))

    def end(self, run_id: str, status: str) -> None:
        """End this run, or one of its children."""
        with uninterrupted():
            try:
                self.client.set_terminated(run_id, status)
            except ERRORS as lost:
                log.warning("could not end the run %s (%s)", run_id, first_line(lost))

    def end_left(self, run_id: str) -> None:
        """End a run whose process died, where it still says that it is running."""
        try:
            with uninterrupted():
                if self.client.get_run(run_id).info.status == "RUNNING":
                    self.client.set_tag(run_id, "rmexp.error", DIED)
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

    def _call(self, function: Any, *args: object, **kwargs: object) -> None:
        self.attempt(function, self.run_id, *args, **kwargs)

    def attempt(self, function: Any, *args: object, **kwargs: object) -> Any:
        """Call the server; raise TrackingError where it stopped answering."""
        try:
            return function(*args, **kwargs)
        except ERRORS as error:
            raise TrackingError(
                f"the tracking server {redact(self.uri)} stopped answering ({first_line(error)}): "
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
    client, experiment_id = connect(uri, experiment)
    named = {
        MLFLOW_RUN_NAME: redact(name)[:_NAME_LENGTH],
        MLFLOW_SOURCE_NAME: tags.get("rmexp.command", name),
        **_who(),
        **owner.tags(),
        **tags,
    }
    if parent is not None:
        named[MLFLOW_PARENT_RUN_ID] = parent
    named = {name: redact(value)[:_TAG_LENGTH] for name, value in named.items()}
    with reached(uri):
        created = client.create_run(experiment_id, tags=named, run_name=named[MLFLOW_RUN_NAME])
        if not created.info.run_id:
            raise MlflowException("it answers, but gives a run no id")
    return Run(client, uri, experiment_id, created.info.run_id, named[MLFLOW_RUN_NAME])


def _end(client: MlflowClient, run_id: str, error: BaseException) -> None:
    """End a run that did not finish, and say why; delete one that turned out to be done before."""
    killed = isinstance(error, Killed | KeyboardInterrupt)
    reason = f"killed by {error.name}" if isinstance(error, Killed) else first_line(error)
    try:
        with uninterrupted():
            if isinstance(error, DoneBefore):
                client.set_terminated(run_id, "FINISHED")
                client.delete_run(run_id)
                return
            client.set_tag(run_id, "rmexp.error", redact(reason)[:_TAG_LENGTH])
            client.set_terminated(run_id, "KILLED" if killed else "FAILED")
    except ERRORS as lost:
        log.warning("could not end the run %s (%s)", run_id, first_line(lost))


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
