"""MLflow's registry: versions of a model, their pages, and the alias that one of them holds."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode
from mlflow.store.artifact.utils.models import get_model_name_and_version
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS

from rmexp.errors import ConfigError
from rmexp.outside import parse_json
from rmexp.secrets import redact
from rmexp.tracking.connection import ERRORS, first_line
from rmexp.tracking.finished import TrackedRun
from rmexp.tracking.logged_models import MODEL, model_of
from rmexp.tracking.runs import Run, TrackingError

_ALIAS = re.compile(r"(?!(?i:latest|v\d+)$)[\w-]+")  # MLflow's own rule
_TAG_LENGTH = 5000


@dataclass(frozen=True, slots=True)
class Version:
    """A version of a registered model, and the logged model that it is."""

    name: str
    number: str
    model_id: str

    @property
    def address(self) -> str:
        """Return where MLflow finds it."""
        return f"models:/{self.name}/{self.number}"


def register(run: Run, name: str, model_id: str) -> Version:
    """Register a logged model under a name as its next version.

    Raises TrackingError where the server refuses the name, or has no registry.
    """
    client = run.client
    try:
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
                raise
        model = client.get_logged_model(model_id)
        made = client.create_model_version(
            name, model.artifact_location, run.run_id, {MODEL: model_id}, model_id=model_id
        )
        # The Models page and the model's own show its versions by this tag.
        versions = parse_json(model.tags.get(MLFLOW_MODEL_VERSIONS, "[]"))
        versions.append({"name": name, "version": str(made.version)})
        client.set_logged_model_tags(model_id, {MLFLOW_MODEL_VERSIONS: json.dumps(versions)})
    except ERRORS as error:
        raise TrackingError(
            f"cannot register the model as {name} ({first_line(error)}): the model is kept in "
            "the run's folder; give another name as tracking.register"
        ) from error
    return Version(name, str(made.version), model_id)


def version_at(uri: str, address: str) -> Version:
    """Return the version at `models:/NAME/3` or `models:/NAME@ALIAS`.

    Raises ConfigError for what is no registered version.
    """
    try:
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        name, *number = get_model_name_and_version(client, address)  # type: ignore[no-untyped-call]
        if number:
            return _version(client, name, number[0])
    except ERRORS as error:
        raise ConfigError(
            f"cannot find {address} at {redact(uri)} ({first_line(error)}): check the name and the "
            "version"
        ) from error
    raise ConfigError(f"{address} is no registered version: give models:/NAME/VERSION")


def is_alias(text: str) -> bool:
    """Say whether MLflow takes a text as an alias.

    >>> is_alias("champion"), is_alias("latest"), is_alias("v 2")
    (True, False, False)
    """
    return _ALIAS.fullmatch(text) is not None


def holder(run: Run, name: str, alias: str) -> Version | None:
    """Return the version of a registered model that holds the alias, None where none does."""
    number = run.attempt(run.client.get_registered_model, name).aliases.get(alias)
    return None if number is None else run.attempt(_version, run.client, name, number)


def give(run: Run, version: Version, alias: str) -> None:
    """Give the alias to a version, which takes it from the one that has it."""
    run.attempt(run.client.set_registered_model_alias, version.name, alias, version.number)


def add_to_page(run: Run, version: Version, markdown: str, tags: Mapping[str, str]) -> None:
    """Add a paragraph to the version's page, where it stands above what was said before; set tags.

    A paragraph that is there already is not added again.
    """
    client, place = run.client, (version.name, version.number)
    before = run.attempt(client.get_model_version, *place).description or ""
    text = redact(markdown).strip()
    if text not in before:
        run.attempt(client.update_model_version, *place, f"{text}\n\n{before}".strip())
    for key, value in tags.items():
        run.attempt(client.set_model_version_tag, *place, key, redact(value)[:_TAG_LENGTH])


def evaluation_of(run: Run, version: Version, data: str) -> TrackedRun | None:
    """Return the newest finished evaluation of a version on the data with this fingerprint."""
    model = run.attempt(run.client.get_logged_model, version.model_id)
    query = (
        f"tags.`{MODEL}` = '{version.model_id}' and tags.`rmexp.data` = '{data}' and "
        "tags.`rmexp.command` = 'eval_rm' and attributes.status = 'FINISHED'"
    )
    found = run.attempt(
        run.client.search_runs,
        list(dict.fromkeys([run.experiment_id, model.experiment_id])),
        query,
        order_by=["attributes.start_time DESC"],
        max_results=1,
    )
    return next(
        (
            TrackedRun(each.info.run_id, each.info.run_name, each.data.tags, each.data.metrics)
            for each in found
        ),
        None,
    )


def _version(client: MlflowClient, name: str, number: str) -> Version:
    model_id = model_of(client.get_model_version(name, number))
    if not model_id:
        raise MlflowException(f"version {number} of {name} was not registered by rmexp")
    return Version(name, str(number), model_id)
