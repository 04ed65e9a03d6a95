"""MLflow's registry: versions of a model, their pages, and the alias that one of them holds."""

import re
from collections.abc import Mapping

from mlflow.exceptions import MlflowException
from mlflow.store.artifact.utils.models import get_model_name_and_version
from mlflow.tracking import MlflowClient

from rmexp.errors import ConfigError
from rmexp.secrets import redact
from rmexp.tracking import versions
from rmexp.tracking.connection import ERRORS, first_line
from rmexp.tracking.finished import TrackedRun
from rmexp.tracking.logged_models import MODEL, model_of
from rmexp.tracking.runs import Run
from rmexp.tracking.versions import Version

_ALIAS = re.compile(r"(?!(?i:latest|v\d+)$)[\w-]+")  # MLflow's own rule


def register(run: Run, name: str, page: str = "") -> Version | None:
    """Register the model that a run has made as the next version under a name, with a page.

    Returns None where no server answers: it gets the version once the run is delivered. Raises
    TrackingError where the server refuses the name, or has no registry.
    """
    made: Version | None = run.send("register", name=name, page=page)
    return made


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
    """Add a paragraph to the version's page, and set its tags; see `versions.add_to_page`."""
    run.attempt(versions.add_to_page, run.client, version, markdown, tags)


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
