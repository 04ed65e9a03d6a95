"""Versions of registered models: how one is made, and its page."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, RESOURCE_ALREADY_EXISTS, ErrorCode
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS

from rmexp.outside import parse_json
from rmexp.secrets import redact
from rmexp.tracking.connection import TrackingError, first_line
from rmexp.tracking.logged_models import MODEL

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


def register(
    client: MlflowClient, run_id: str, model_id: str, name: str, page: str, *, again: bool
) -> Version:
    """Register a run's logged model under a name as its next version, with a text as its page.

    With `again` a version that the run has there already is the one. Raises TrackingError where the
    server refuses the name or has no registry.
    """
    try:
        there = (
            client.search_model_versions(f"name='{name}' and run_id='{run_id}'") if again else ()
        )
        version = next((Version(name, str(each.version), model_id) for each in there), None)
        if version is None:
            version = _add(client, run_id, model_id, name)
    except MlflowException as error:
        if error.error_code == ErrorCode.Name(INTERNAL_ERROR):
            raise  # it has not answered about this
        raise TrackingError(
            f"cannot register the model as {name} ({first_line(error)}): the model is kept in "
            "the run's folder; give another name as tracking.register"
        ) from error
    if page:
        add_to_page(client, version, page, {})
    return version


def _add(client: MlflowClient, run_id: str, model_id: str, name: str) -> Version:
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
            raise
    model = client.get_logged_model(model_id)
    made = client.create_model_version(
        name, model.artifact_location, run_id, {MODEL: model_id}, model_id=model_id
    )
    # The Models page and the model's own show its versions by this tag.
    versions = parse_json(model.tags.get(MLFLOW_MODEL_VERSIONS, "[]"))
    versions.append({"name": name, "version": str(made.version)})
    client.set_logged_model_tags(model_id, {MLFLOW_MODEL_VERSIONS: json.dumps(versions)})
    return Version(name, str(made.version), model_id)


def add_to_page(
    client: MlflowClient, version: Version, markdown: str, tags: Mapping[str, str]
) -> None:
    """Add a paragraph to the version's page, where it stands above what was said before; set tags.

    A paragraph that is there already is not added again.
    """
    place = version.name, version.number
    before = client.get_model_version(*place).description or ""
    text = redact(markdown).strip()
    if text not in before:
        client.update_model_version(*place, f"{text}\n\n{before}".strip())
    for key, value in tags.items():
        client.set_model_version_tag(*place, key, redact(value)[:_TAG_LENGTH])
