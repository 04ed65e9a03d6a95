"""What was typed and does not exist: one line, with what may have been meant."""

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import SequenceMatcher, get_close_matches
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from rmexp.cli.called import COMMANDS, called, command_of
from rmexp.errors import ConfigError
from rmexp.files import CONF
from rmexp.outside import read_yaml

_FEW = 20  # choices that one line names all
_NEAREST = 3
_FULL = "HYDRA_FULL_ERROR"


def hand_over() -> bool:
    """Let Hydra raise what it refuses, for `said` to say it; False where a user wants all of it."""
    if os.environ.get(_FULL):
        return False
    os.environ[_FULL] = "1"
    return True


def take_back() -> None:
    """Undo `hand_over`, for the processes that are started later."""
    os.environ.pop(_FULL, None)


def said(error: HydraException | OmegaConfBaseException) -> str:
    """Return what Hydra refuses in one line, where it is a name that does not exist.

    Its other messages stay as they are.
    """
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, name = error.missing_cfg_file.rpartition("/")
        return no_choice(group, name, error.options)
    cause = error.__cause__
    key = getattr(cause, "full_key", None)
    if (
        isinstance(cause, ConfigAttributeError | ConfigKeyError)
        and key
        and "override" in str(error)
    ):
        return f"{key}: {str(cause).splitlines()[0]}; {_meant(key, _settings(_typed()))}"
    below = f"\n{cause}" if isinstance(cause, OmegaConfBaseException) else ""
    return f"{error}{below}"


def stopped(error: Exception) -> str:
    """Say that a sweep ended by its sweeper or launcher: of a worker that was killed, say."""
    first = (str(error) or "no reason given").splitlines()[0]
    return (
        f"the sweep was stopped ({type(error).__name__}: {first}): the table says what each job "
        f"did, the same command with skip_done=true does the rest; {_FULL}=1 shows the traceback"
    )


def no_choice(group: str, name: str, options: Sequence[str]) -> str:
    """Say that a group has no file of this name, and which ones it has, or the nearest ones."""
    begin = f"{group}={name}: Could not find '{group}/{name}'"
    if len(options) <= _FEW:
        return f"{begin}; choose from {', '.join(sorted(options))}"
    near = sorted(options, key=lambda one: -SequenceMatcher(None, name, one).ratio())[:_NEAREST]
    return f"{begin}; did you mean {_or(near)}? {called(_command())} --help lists all"


def refuse_unknown(config: DictConfig, words: Iterable[str]) -> None:
    """Refuse settings that were added and that nothing reads: `+limit=2`, `+objective=bt`.

    `words` are those of the command; an experiment's file may have keys of its own. Raises
    ConfigError with what may have been meant.
    """
    known = _top_level(_command())
    typed = {word.lstrip("+").partition("=")[0].partition(".")[0] for word in words}
    for key in map(str, config):
        if known and key not in known and key in typed:
            settings = [s for s in _leaves(config) if s.partition(".")[0] in known]
            raise ConfigError(f"{key}: nothing reads it; {_meant(key, settings)}")
    tracking = known.get("tracking", {}) | _top_level("tracking/sqlite")
    for key in map(str, config.get("tracking", {})):
        if known and key not in tracking:
            raise ConfigError(
                f"tracking.{key}: nothing reads it; choose from "
                + ", ".join(f"tracking.{one}" for one in tracking)
            )


def refuse_words(
    words: Iterable[Override], config: DictConfig, options_of: Callable[[str], Sequence[str]]
) -> None:
    """Refuse words of a sweep that no job could be composed of, before there is one.

    `options_of` returns the names of a group's files. Raises ConfigError for a setting or a file of
    a group that does not exist.
    """
    for word in words:
        name = str(word.key_or_group)
        top = name.partition(".")[0].partition("@")[0]
        options = options_of(top)
        if top not in config and not options:
            raise ConfigError(f"{name}: nothing reads it; {_meant(name, _leaves(config))}")
        if top == name and options and not word.is_delete():
            values = (
                word.sweep_string_iterator() if word.is_sweep_override() else [str(word.value())]
            )
            for value in values:
                if value not in (*options, "null", "None") and not value.startswith("["):
                    raise ConfigError(no_choice(top, value, options))


def _meant(key: str, settings: Sequence[str]) -> str:
    """Say which settings are nearest: those that end in the same word, else those alike.

    A group of files that another command has is said to be that one's.
    """
    if (CONF / key).is_dir():
        others = [called(one) for one in COMMANDS if key in _top_level(one)]
        return f"it is a group of {_or(others)}"
    last = key.rpartition(".")[2]
    near = [one for one in settings if one.rpartition(".")[2] == last and one != key]
    if not near:
        near = get_close_matches(key, settings, _NEAREST, 0.7)
        ends = {one: one.rpartition(".")[2] for one in settings}
        close = get_close_matches(last, set(ends.values()), _NEAREST, 0.75)
        near += [one for one, end in ends.items() if end in close and one not in near]
    if not near:
        return f"{called(_command())} --help lists all settings"
    return f"did you mean {_or(near[:_NEAREST])}?"


def _or(names: Sequence[str]) -> str:
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _command() -> str:
    return command_of(Path(sys.argv[0]).stem)


def _typed() -> list[str]:
    """Return the words of the command that choose a file of a group."""
    words = [word for word in sys.argv[1:] if "=" in word and not word.startswith("-")]
    return [w for w in words if (CONF / w.lstrip("+").partition("=")[0]).is_dir() and "," not in w]


def _settings(words: Sequence[str]) -> list[str]:
    """Return the names of all settings that a command has with these choices."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        try:
            return _leaves(compose(_command(), overrides=list(words)))
        except HydraException:  # of another folder, or wrong too
            return _leaves(compose(_command()))


def _leaves(config: DictConfig) -> list[str]:
    plain = OmegaConf.to_container(config, resolve=False)
    assert isinstance(plain, dict)
    return list(_named(plain))


def _named(values: Mapping[Any, Any], prefix: str = "") -> Iterable[str]:
    for name, value in values.items():
        yield f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from _named(value, f"{prefix}{name}.")


def _top_level(name: str) -> dict[str, dict[str, Any]]:
    """Return what a config has at its top by its files here, with what is below each."""
    path = CONF / f"{name}.yaml"
    if not path.is_file():  # a config of the user's own
        return {}
    found: dict[str, dict[str, Any]] = {}
    values = read_yaml(path, "get the file again")
    for entry in values.pop("defaults", ()):
        if isinstance(entry, dict):
            found |= {str(group).removeprefix("optional "): {} for group in entry}
        elif entry != "_self_":
            found |= _top_level(entry)
    return found | {key: value if isinstance(value, dict) else {} for key, value in values.items()}
