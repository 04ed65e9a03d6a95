"""Reward models as MLflow's own models: those with the same weights, read in the same way, are one.

A model that was trained here is the output of its run; any other one is external: it is known by
its fingerprints, and its weights stay where they are.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from mlflow.entities import LoggedModel
from mlflow.entities.logged_model_status import LoggedModelStatus
from mlflow.entities.model_registry import ModelVersion
from mlflow.store.artifact.utils.models import get_model_name_and_version
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_IS_EXTERNAL

from rmexp.secrets import redact

WEIGHTS = "model"  # the weights' folder in a model's files
# The tag that names the model which a run evaluates or has made, or which a version is.
MODEL = "rmexp.logged_model"
KIND = "reward model"  # MLflow's type of these models
_KEY = "rmexp.model_key"
_NAME_LENGTH, _PARAM_LENGTH = 200, 500
_NOT_IN_NAMES = re.compile(r"[/:.%\"']+")


@dataclass(frozen=True, slots=True)
class Card:
    """What the Models page says of a reward model.

    `traits` are those of the reward, `prints` its fingerprints: models with the same ones are one.
    """

    name: str
    traits: Mapping[str, str]
    prints: Mapping[str, str]

    @property
    def key(self) -> str:
        """Return what is equal for equal models, whatever they are called."""
        text = json.dumps([dict(self.traits), dict(self.prints)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    @property
    def tags(self) -> dict[str, str]:
        """Return the tags: the traits, the fingerprints, and the key to find the model by."""
        return {**self.traits, **self.prints, "rmexp.model": redact(self.name), _KEY: self.key}

    @property
    def label(self) -> str:
        """Return the name as MLflow takes it: of a path, the last part.

        >>> [Card(name, {}, {}).label for name in ("/models/Llama-3.1", "models:/tiny/1")]
        ['Llama-3_1', 'tiny_1']
        """
        _, address, name = redact(self.name).rpartition(":/")
        name = name if address else name.rstrip("/").rpartition("/")[2] or "model"
        return _NOT_IN_NAMES.sub("_", name)[:_NAME_LENGTH]


def find(client: MlflowClient, experiment_id: str, card: Card) -> LoggedModel | None:
    """Return the experiment's model with these traits and fingerprints, the newest of several."""
    found = client.search_logged_models(
        [experiment_id],
        filter_string=f"tags.`{_KEY}` = '{card.key}'",
        order_by=[{"field_name": "creation_time", "ascending": False}],
        max_results=1,
    )
    return found[0] if found else None


def find_output(client: MlflowClient, experiment_id: str, run_id: str) -> LoggedModel | None:
    """Return the model that a run has made."""
    query = f"source_run_id = '{run_id}'"
    found = client.search_logged_models([experiment_id], filter_string=query, max_results=1)
    return found[0] if found else None


def add_external(client: MlflowClient, experiment_id: str, card: Card) -> LoggedModel:
    """Add a model whose weights lie elsewhere."""
    model = client.create_logged_model(
        experiment_id,
        name=card.label,
        tags={**card.tags, MLFLOW_MODEL_IS_EXTERNAL: "true"},
        model_type=KIND,
    )
    return client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)


def add_output(
    client: MlflowClient, experiment_id: str, run_id: str, card: Card, params: Mapping[str, str]
) -> LoggedModel:
    """Add a model that a run has made; its files are still to come."""
    return client.create_logged_model(
        experiment_id,
        name=card.label,
        source_run_id=run_id,
        tags=card.tags,
        params={name: redact(value)[:_PARAM_LENGTH] for name, value in params.items()},
        model_type=KIND,
    )


def at(client: MlflowClient, address: str) -> LoggedModel | None:
    """Return the model at an address such as `models:/NAME/1`, None where it is none of these."""
    if address.startswith("runs:/"):
        outputs = client.get_run(address.removeprefix("runs:/").partition("/")[0]).outputs
        made = outputs.model_outputs if outputs else []
        return client.get_logged_model(made[0].model_id) if made else None
    name, *version = get_model_name_and_version(client, address)  # type: ignore[no-untyped-call]
    if version:
        name = model_of(client.get_model_version(name, version[0]))
    return client.get_logged_model(name) if name else None


def model_of(version: ModelVersion) -> str | None:
    """Return the id of the logged model that a registered version is, None for another's."""
    return version.model_id or version.tags.get(MODEL)  # not every registry keeps the first
