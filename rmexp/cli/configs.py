"""Configs as Hydra composed them: to plain values that are checked, and to what they name."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from textwrap import fill
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rmexp.cli.called import called
from rmexp.cli.local_copies import check_root, located
from rmexp.errors import ConfigError, DataError, RmexpError
from rmexp.files import is_hub_name, make_folder, root
from rmexp.outside import known, parameters
from rmexp.secrets import learn


def _choices(group: str, what: str) -> str:
    """Return what `--help` says of a group: what it is for, and the names of its files."""
    from hydra.core.global_hydra import GlobalHydra

    loader = GlobalHydra.instance().config_loader()
    names = ", ".join(loader.get_group_options(group))
    indent = "    "
    return f"{group}: {what}\n" + fill(
        names, _HELP_WIDTH, initial_indent=indent, subsequent_indent=indent
    )


_HELP_WIDTH = 100
OmegaConf.register_new_resolver("choices", _choices)
OmegaConf.register_new_resolver("called", called)
OmegaConf.register_new_resolver("root", lambda name="": str(root() / name))
OmegaConf.register_new_resolver("pid", os.getpid, use_cache=True)

# Settings that name folders to be made, and such as may name what is there.
_FOLDERS, _PATHS = {"out_dir", "out", "store_dir", "data_root"}, {"path", "prior_sets", "compare"}
_NO_PATH = "embedded"
_MISSING = "???"  # what OmegaConf writes for a value that must be given
# Modules whose objects are cheap to make; they import no torch, no transformers and no mlflow.
_QUICK = (
    "rmexp.benchmarks.",
    "rmexp.scoring.recorded.",
    "rmexp.correlation.tables.",
    "rmexp.training.data.",
)
_SQLITE = re.compile(r"(sqlite(?:\+\w+)?:///)(?!/|:memory:|$)(.+)")


def resolve(config: DictConfig) -> dict[str, Any]:
    """Return the config as plain values, with absolute paths and those below `data_root`.

    Paths were given in the folder in which the command was started, where a job may not run. Raises
    ConfigError for a value that is missing or loops.
    """
    try:
        resolved = OmegaConf.to_container(config, resolve=True)
        missing = OmegaConf.missing_keys(config)
    except OmegaConfBaseException as error:
        where = f"{error.full_key}: " if error.full_key else ""
        raise ConfigError(f"{where}{str(error).splitlines()[0]}; give another value") from error
    assert isinstance(resolved, dict)
    learn(resolved)
    started = HydraConfig.get().runtime.cwd if HydraConfig.initialized() else os.getcwd()
    plain = {str(key): absolute(value, started, str(key)) for key, value in resolved.items()}
    check_root(plain.get("data_root"))
    for group in ("bench", "data"):
        if isinstance(plain.get(group), dict):
            plain[group] = located(plain[group], _choice(group), plain.get("data_root"))
    if missing := {key for key in missing if _at(plain, key) == _MISSING}:
        first = min(missing)
        raise ConfigError(f"{first} has no value: give one, {first}=VALUE")
    whole(plain, "seed")
    model = plain.get("model")
    if isinstance(model, dict):
        plain["model"] = model | {"name": _name(model)}
    if isinstance(plain.get("bench"), dict) and HydraConfig.initialized():
        plain["bench"] = _named(plain["bench"], HydraConfig.get().runtime.choices["bench"])
    return plain


def _choice(group: str) -> str:
    """Return the name of the file that was chosen of a group."""
    choices = HydraConfig.get().runtime.choices if HydraConfig.initialized() else {}
    return str(choices.get(group) or group)


def _at(config: Mapping[str, Any], key: str) -> object:
    """Return the value of a key such as `bench.path`, that of a missing one within a list."""
    value: object = config
    for part in key.split("."):
        value = value.get(part, _MISSING) if isinstance(value, Mapping) else _MISSING
    return value


def _name(model: Mapping[str, Any]) -> str | None:
    """Return what to call a model: its name, which may be a number, or that of its path.

    A path is shortened to its folder's name, and that of a training, `.../RUN/model`, to `RUN`.
    """
    name = model.get("name")
    if name is None:
        name = None if model.get("url") or model.get("path") == _NO_PATH else model.get("path")
    if name is None:
        return None
    path = Path(str(name))
    if not path.is_absolute() and not path.expanduser().exists():
        return str(name)
    at = path.expanduser().resolve()
    return at.parent.name if at.name == "model" and at.parent.name else at.name


def absolute(value: Any, folder: str, name: str) -> Any:
    """Make the paths in a setting absolute that are relative to a folder; `name` is the setting's.

    A database of SQLite is a path, as is what lies at a `path`; what does not may be a hub's name.
    """
    if isinstance(value, Mapping):
        return {key: absolute(inner, folder, str(key)) for key, inner in value.items()}
    if isinstance(value, list):
        return [absolute(inner, folder, name) for inner in value]
    if not isinstance(value, str) or value in ("", _MISSING):
        return value
    if database := _SQLITE.fullmatch(value):
        return database[1] + os.path.abspath(os.path.join(folder, database[2]))
    path = os.path.join(folder, os.path.expanduser(value))
    if name in _FOLDERS or (name in _PATHS and value != _NO_PATH and os.path.exists(path)):
        return os.path.abspath(path)
    return value


def whole(config: Mapping[str, Any], name: str, least: int = 0) -> int:
    """Return the setting if it is a whole number of at least `least`, else raise ConfigError."""
    value = config[name]
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{name}={value}: give a whole number of {least} or more")
    return value


def folder(config: Mapping[str, Any], name: str) -> Path:
    """Return the setting as a folder, made if needed; raise ConfigError where that fails."""
    value = config[name]
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{name}={json.dumps(value)}: give a folder")
    return make_folder(Path(value).expanduser(), name)


def build(config: Mapping[str, Any], **more: object) -> Any:
    """Instantiate a config's `_target_`; our own errors come through as they are.

    Raises ConfigError for a target that is not there, or that does not take these settings.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    target = config.get("_target_")
    if not isinstance(target, str) or not target:
        raise ConfigError(f"_target_={target}: name a class, as the files in conf/ do")
    try:
        return instantiate(dict(config), _convert_="all", **more)
    except InstantiationException as error:
        if isinstance(error.__cause__, RmexpError):
            raise error.__cause__ from None
        if str(error).startswith(("Error locating target", "Expected a callable")):
            raise ConfigError(
                f"_target_={target}: there is no such class: check its name, and that its module "
                "can be imported (PYTHONPATH=FOLDER)"
            ) from error
        if target.startswith("rmexp."):
            _refuse_types(config, target)
        if isinstance(error.__cause__, TypeError):
            raise ConfigError(f"{target}: {error.__cause__}") from error
        raise


def _refuse_types(config: Mapping[str, Any], target: str) -> None:
    """Raise DataError that names a setting whose value is of no type that the target takes."""
    from hydra.utils import get_object

    hints = parameters(get_object(target))
    known({key: value for key, value in config.items() if key in hints}, hints, target)


def benchmarks() -> list[str]:
    """Return the names that `bench=` takes; see `choices`."""
    return choices("bench")


def choices(group: str) -> list[str]:
    """Return the names that a group takes: its files in conf/ and in one's own folders.

    Own folders are those of `--config-dir` and `hydra.searchpath`; a command is running.
    """
    from hydra.core.global_hydra import GlobalHydra

    loader = GlobalHydra.instance().config_loader()
    names: list[str] = loader.get_group_options(group, overrides=_searchpath())
    return names


def benchmark_config(name: str) -> dict[str, Any]:
    """Return the config that `bench=<name>` stands for, as its file and its defaults say."""
    return choice_config("bench", name)


def choice_config(group: str, name: str) -> dict[str, Any]:
    """Return the config that `<group>=<name>` stands for, as its file and its defaults say."""
    from hydra import compose

    config = OmegaConf.to_container(compose(overrides=[f"+{group}={name}", *_searchpath()]))
    assert isinstance(config, dict)
    plain = {str(key): value for key, value in config[group].items()}
    return _named(plain, name) if group == "bench" else plain


def _named(bench: dict[str, Any], choice: str) -> dict[str, Any]:
    """Give a set of pairs the name of its file in conf/bench, where it has none of its own."""
    takes_name = bench.get("_target_") == "rmexp.benchmarks.preference.Preference"
    return bench | {"name": choice} if takes_name and bench.get("name") is None else bench


def _searchpath() -> list[str]:
    """Return the override of `hydra.searchpath` with which this command was started, if any."""
    words = HydraConfig.get().overrides.hydra if HydraConfig.initialized() else []
    return [str(word) for word in words if str(word).startswith("hydra.searchpath=")]


def check_early(config: Mapping[str, Any]) -> None:
    """Refuse, before anything large is imported, what cannot work or is not there.

    Benchmarks, data and tables check their options when they are made. Raises RmexpError.
    """
    model = config.get("model")
    if isinstance(model, Mapping) and "trust_remote_code" in model:
        reference = model.get("reference")
        below = reference.get("path") if isinstance(reference, Mapping) else None
        for path in (model.get("path"), model.get("base"), below):
            there = isinstance(path, str) and os.path.isdir(os.path.expanduser(path))
            if isinstance(path, str) and path != _NO_PATH and not there and not is_hub_name(path):
                raise ConfigError(
                    f"model.path={path}: there is no such folder, and it is no hub name"
                )
    for section in config.values():
        if isinstance(section, Mapping) and str(section.get("_target_")).startswith(_QUICK):
            build(section)


def rebuild(recorded: object, where: str) -> Any:
    """Return the benchmark of another run from what its config.yaml, `where`, says of it.

    The config comes from elsewhere, so that nothing in it is instantiated or resolved: `_target_`
    is compared with those of the benchmarks that `bench=` takes, and the options are plain values
    for this benchmark's parameters. Raises DataError for anything else, ConfigError for values that
    the benchmark refuses.
    """
    from hydra.utils import get_class

    if not isinstance(recorded, Mapping) or not isinstance(recorded.get("_target_"), str):
        raise DataError(f"{where} names no benchmark: give a run of eval_rm.py")
    target = recorded["_target_"]
    likely = sorted(benchmarks(), key=lambda name: name not in target)  # composing takes a while
    if target not in (benchmark_config(name).get("_target_") for name in likely):
        raise DataError(
            f"{where} names {target}, which is no benchmark of this project or of --config-dir"
        )
    benchmark = get_class(target)
    options = {name: value for name, value in recorded.items() if name != "_target_"}
    return benchmark(**known(options, parameters(benchmark), f"{where}: bench"))


def given(tracking: Mapping[Any, Any], name: str) -> str:
    """Return `tracking.<name>` as text; raise ConfigError where it is empty."""
    if tracking[name] in (None, ""):
        example = {"uri": "sqlite:////path/mlflow.db or http://host:port", "experiment": "a name"}
        raise ConfigError(f"tracking.{name} is empty: give {example[name]}")
    return str(tracking[name])
