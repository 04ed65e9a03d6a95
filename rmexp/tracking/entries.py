"""What a run tells MLflow, each kind of entry a function of plain values.

An entry may be told again, after an attempt of which the end is not known or from the journal of
a run that has ended: nothing is then there twice. Entries are told in order, so that each finds
what those before it have made.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_TIMEOUT
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import (
    MLFLOW_DATASET_CONTEXT,
)

from rmexp.outside import known, parameters
from rmexp.tracking import logged_models, run_folder, versions
from rmexp.tracking.connection import connect, impatient, lock
from rmexp.tracking.logged_models import MODEL, WEIGHTS, Card
from rmexp.tracking.packaging import package
from rmexp.tracking.versions import Version

log = logging.getLogger(__name__)

# MLflow's limits for one call.
_METRICS_A_CALL, _PARAMS_A_CALL = 900, 90
_SECONDS = 20  # that a server gets for an answer while a run goes on
TOKEN = "rmexp.token"  # the tag by which a run is known whose id is not
_UNTOLD = "undelivered-"  # what such tokens begin with
ERROR = "rmexp.error"  # the tag that says why a run did not finish
_Row = list[Any]  # of a metric: its name, value, step and time in ms


@dataclass(slots=True)
class Destination:
    """A run on its server, and the folder of its files.

    Of a run that began while there was no server, `run_id` is a token and `reached` None until it
    is made there. `again` says that an entry may have been told before.
    """

    reached: MlflowClient | None
    uri: str
    experiment_id: str
    run_id: str
    folder: Path | None = None
    model_id: str | None = None
    again: bool = False

    @property
    def client(self) -> MlflowClient:
        """Return the server's client; raise MlflowException where the run is not made yet."""
        if self.reached is None:
            raise MlflowException("the run could not be made there yet")
        return self.reached

    @property
    def is_made(self) -> bool:
        """Say whether the server has the run."""
        return not self.run_id.startswith(_UNTOLD)


def token(unique: str) -> str:
    """Return what a run is called until a server has given it an id."""
    return f"{_UNTOLD}{unique}"


def tell(to: Destination, kind: str, values: dict[str, Any]) -> Any:
    """Tell MLflow an entry, and return what it is to know of it.

    Raises `connection.ERRORS` where that fails, within a minute where nobody answers.
    """
    function, slow = ENTRIES[kind]
    seconds: Any = MLFLOW_HTTP_REQUEST_TIMEOUT  # which has no types
    with impatient(seconds.get() if slow else _SECONDS):
        return function(to, **values)


def _make(to: Destination, experiment: str, name: str, tags: dict[str, str], time: int) -> None:
    """Make the run, in an experiment that is made as well if need be."""
    client, experiment_id = connect(to.uri, experiment)
    to.reached = client
    named = {key: _run_id(to, experiment_id, value) for key, value in tags.items()}
    found = None
    if to.again and TOKEN in tags:
        found = _find(client, experiment_id, tags[TOKEN])
    if found is None:
        made = client.create_run(experiment_id, time, named, name)
        found = made.info.run_id
        if not found:
            raise MlflowException("it answers, but gives a run no id")
    to.experiment_id = experiment_id
    if to.folder is not None and not to.is_made:
        run_folder.adopt(to.folder, to.run_id, {"run_id": found, "experiment_id": experiment_id})
    to.run_id = found


def _run_id(to: Destination, experiment_id: str, value: str) -> str:
    """Return a tag's value; of a run's token, the id that it has got since."""
    if not value.startswith(_UNTOLD) or value == to.run_id:
        return value
    found = _find(to.client, experiment_id, value)
    if found is None:
        raise MlflowException("the run above it is not delivered yet")
    return found


def _find(client: MlflowClient, experiment_id: str, its_token: str) -> str | None:
    query = f"tags.`{TOKEN}` = '{its_token}'"
    found = client.search_runs([experiment_id], query, max_results=1)
    return found[0].info.run_id if found else None


def _params(to: Destination, params: dict[str, str]) -> None:
    rows = [Param(name, value) for name, value in params.items()]
    for at in range(0, len(rows), _PARAMS_A_CALL):
        to.client.log_batch(to.run_id, params=rows[at : at + _PARAMS_A_CALL])


def _metrics(to: Destination, rows: list[_Row], of: list[str] | None) -> None:
    """Log metrics; `of` is a data set's name and digest where they are the model's on it, too."""
    more: dict[str, Any] = {}
    try:
        if of is not None:
            name, digest = of
            more = {"dataset_name": name, "dataset_digest": digest, "run_id": to.run_id}
            more["model_id"] = _model_id(to)
        metrics = [Metric(name, value, time, step, **more) for name, value, step, time in rows]
    except (ValueError, TypeError) as error:
        raise MlflowException(f"it is no metric ({error})") from error
    for at in range(0, len(metrics), _METRICS_A_CALL):
        to.client.log_batch(to.run_id, metrics=metrics[at : at + _METRICS_A_CALL])


def _tags(to: Destination, tags: dict[str, str]) -> None:
    to.client.log_batch(to.run_id, tags=[RunTag(name, value) for name, value in tags.items()])


def _name(to: Destination, name: str) -> None:
    to.client.update_run(to.run_id, name=name)


def _data(
    to: Destination, name: str, digest: str, source: str, profile: str, context: str | None
) -> None:
    """Link a data set.

    Under a lock: MLflow looks a data set up and then inserts it, and jobs that start together would
    insert it twice, which its database refuses.
    """
    data = Dataset(name, digest, "local", source, profile=profile)
    tags = [] if context is None else [InputTag(MLFLOW_DATASET_CONTEXT, context)]
    with FileLock(lock(to.uri)):
        to.client.log_inputs(to.run_id, datasets=[DatasetInput(data, tags)])


def _use(to: Destination, card: dict[str, Any], address: str | None) -> LoggedModel:
    """Link the reward model that the run evaluates, adding it where the experiment has none.

    Under a lock, so that jobs that start together add it once. What is known of its training
    becomes the run's parameters.
    """
    client, its = to.client, _card(card)
    with FileLock(lock(to.uri)):
        model = None if address is None else logged_models.at(client, address)
        if model is None or model.experiment_id != to.experiment_id:
            model = logged_models.find(client, to.experiment_id, its)
        if model is None:
            model = logged_models.add_external(client, to.experiment_id, its)
        before = client.get_run(to.run_id).inputs if to.again else None
        if before is None or not before.model_inputs:
            client.log_inputs(to.run_id, models=[LoggedModelInput(model.model_id)])
    to.model_id = model.model_id
    _tags(to, {MODEL: model.model_id})
    if model.source_run_id:
        _params(to, {**model.params, "training_run": model.source_run_id})
    return model


def _trained(
    to: Destination, card: dict[str, Any], folder: str, params: dict[str, str], of: list[str]
) -> str:
    """Log the model that the run has made, from its folder, and return its id.

    `of` names metrics of the run that are the model's, too, on the data that the run used.
    """
    client = to.client
    model = logged_models.find_output(client, to.experiment_id, to.run_id) if to.again else None
    if model is None:
        arguments = (to.experiment_id, to.run_id, _card(card), params)
        model = logged_models.add_output(client, *arguments)
    model_id = to.model_id = model.model_id
    client.log_model_artifacts(model_id, str(_path(to, folder)), WEIGHTS)
    with TemporaryDirectory() as around:
        package(Path(around), model_id, to.run_id)
        client.log_model_artifacts(model_id, around)
    client.finalize_logged_model(model_id, LoggedModelStatus.READY)
    last = [_last(client.get_metric_history(to.run_id, name)) for name in of]
    run = client.get_run(to.run_id)
    if not (run.outputs and run.outputs.model_outputs):
        step = max(point.step for point in last)
        client.log_outputs(to.run_id, [LoggedModelOutput(model_id, step)])
    assert run.inputs is not None  # the data that it was trained on
    used = run.inputs.dataset_inputs[0].dataset
    # As they are in the run, which then has none of them twice.
    rows = [[point.key, point.value, point.step, point.timestamp] for point in last]
    _metrics(to, rows, [used.name, used.digest])
    _tags(to, {MODEL: model_id})
    return model_id


def _card(values: dict[str, Any]) -> Card:
    return Card(**known(values, parameters(Card), "the card of a model", literally=True))


def _last(history: list[Metric]) -> Metric:
    return max(history, key=lambda point: (point.step, point.timestamp))


def _files(to: Destination, paths: list[str]) -> None:
    """Log files and folders as artifacts; what is gone by now is named."""
    for path in (_path(to, each) for each in paths):
        if path.is_dir():
            to.client.log_artifacts(to.run_id, str(path), path.name)
        elif path.is_file():
            to.client.log_artifact(to.run_id, str(path))
        else:
            log.warning("%s is gone, the run %s goes without it", path, to.run_id)


def _register(to: Destination, name: str, page: str) -> Version:
    """Register the model that the run has made as the next version under a name."""
    return versions.register(to.client, to.run_id, _model_id(to), name, page, again=to.again)


def _end(to: Destination, status: str, time: int, error: str | None) -> None:
    """End the run, and say why if it did not finish.

    Under a lock, so that no other process ends it for one that died.
    """
    with FileLock(lock(to.uri)):
        if error is not None:
            to.client.set_tag(to.run_id, ERROR, error)
        if to.again and status == "FINISHED" and ERROR in to.client.get_run(to.run_id).data.tags:
            to.client.delete_tag(to.run_id, ERROR)  # that its process died, which has done its work
        to.client.set_terminated(to.run_id, status, time)


def _path(to: Destination, path: str) -> Path:
    return Path(path) if to.folder is None else to.folder / path


def _model_id(to: Destination) -> str:
    if to.model_id is None:
        to.model_id = to.client.get_run(to.run_id).data.tags[MODEL]
    return to.model_id


# By the kind of an entry, and whether it may take long though the server answers.
ENTRIES: dict[str, tuple[Callable[..., Any], bool]] = {
    "make": (_make, False),
    "params": (_params, False),
    "metrics": (_metrics, False),
    "tags": (_tags, False),
    "name": (_name, False),
    "data": (_data, False),
    "use": (_use, False),
    "trained": (_trained, True),
    "files": (_files, True),
    "register": (_register, False),
    "end": (_end, False),
}


def merged(entries: Sequence[tuple[str, dict[str, Any]]]) -> list[tuple[str, dict[str, Any]]]:
    """Return the same entries with metrics that follow one another as one entry."""
    found: list[tuple[str, dict[str, Any]]] = []
    for kind, values in entries:
        before = found[-1] if found else None
        if before and kind == before[0] == "metrics" and values["of"] == before[1]["of"]:
            before[1]["rows"].extend(values["rows"])
        else:
            found.append((kind, values))
    return found
