"""What the commands make of their configs in the same way."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from rmexp.cli.configs import choice_config, choices, folder, whole
from rmexp.errors import ConfigError
from rmexp.tracking.identity import result_key

if TYPE_CHECKING:
    from rmexp.scoring.score import Settings
    from rmexp.tracking.runs import Run


def keyed(config: Mapping[str, Any], run: "Run | None", headline: str) -> Callable[..., str]:
    """Return what makes a result's key of the fingerprints of what it depends on.

    It raises `DoneBefore` if `skip_done` is set and a run has finished with this key; `headline` is
    the metric that is shown of that run. `run` is None in a process that only helps another one.
    """

    def key(**fingerprints: str) -> str:
        digest = result_key(config, **fingerprints)
        if run is not None and config["skip_done"]:
            run.skip_if_done(digest, headline)
        return digest

    return key


def settings(config: Mapping[str, Any]) -> "Settings":
    """Return how to score, of what evaluations and trainings both set."""
    from rmexp.models.chat import check_on_overlength
    from rmexp.scoring.score import Settings

    tokens = config["batch_tokens"]
    return Settings(
        folder(config, "store_dir"),
        check_on_overlength(config["on_overlength"]),
        None if tokens is None else whole(config, "batch_tokens", least=1),
        seed=config["seed"],
    )


def model_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the model's config, where `path` is a copy of what `model.uri` names, if it does.

    An ensemble's members become the configs that their names stand for.
    """
    model = dict(config["model"])
    if "members" in model:
        model["members"] = _members(config, model["members"])
    if uri := model.pop("uri", None):
        from rmexp.tracking.models import fetch_model

        downloads = folder(config, "store_dir") / "downloaded"
        model["path"] = str(fetch_model(config["tracking"]["uri"], uri, downloads))
    return model


def _members(config: Mapping[str, Any], members: object) -> list[dict[str, Any]]:
    """Return the configs of an ensemble's members, names or mappings with a name and settings."""
    wanted = "give names of models, or {name: recorded, path: FILE}, as model.members=[A,B]"
    if not isinstance(members, list):
        raise ConfigError(f"model.members={members}: {wanted}")
    found = []
    for member in members:
        more = dict(member) if isinstance(member, Mapping) else {"name": member}
        name = more.pop("name", None)
        if name not in choices("model") or name == "ensemble":
            raise ConfigError(f"model.members: there is no model {name}; {wanted}")
        model = choice_config("model", name)
        if unknown := sorted(set(more) - set(model)):
            keys = ", ".join(model)
            raise ConfigError(f"model.members: {name} has no {unknown[0]}, choose from {keys}")
        if missing := [key for key, value in (model | more).items() if value == "???"]:
            raise ConfigError(f"model.members: {name} needs {missing[0]}: give one")
        # A file of conf/model may refer to its own keys, and to the seed.
        own = OmegaConf.create({"seed": config["seed"], "model": model | more})
        found.append(
            model_config({**config, "model": OmegaConf.to_container(own.model, resolve=True)})
        )
    return found
