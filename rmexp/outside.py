"""What comes from elsewhere is data: the one place that decides what is read of it.

A recorded config, `rmexp.json`, a model's configuration, a result file: each becomes plain values.
Nothing in it is instantiated, imported, unpickled or interpolated. `known` lets through known keys
with plain values of their types, and names the key that it refuses. A key that stands twice makes a
file one that cannot be read, and of a file of records the one record bad.
"""

import inspect
import json
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin
from zipfile import is_zipfile

import yaml

from rmexp.errors import ConfigError, DataError, RmexpError

if TYPE_CHECKING:
    import torch

_SHOWN = 60  # characters of a value that a message repeats


def parse_json(text: str) -> Any:
    """Return JSON's value. Raises ValueError for what is none, a key that stands twice included.

    >>> parse_json('{"a": 1, "a": 2}')
    Traceback (most recent call last):
    ValueError: the key 'a' stands twice
    """
    value = parse_record(text)
    if flaw := repeated_key(value):
        raise ValueError(flaw)
    return value


def parse_record(text: str) -> Any:
    """Return JSON's value, of which `repeated_key` tells whether it is bad.

    Raises ValueError for what is none.
    """
    try:
        return _DECODER.decode(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def repeated_key(value: object) -> str | None:
    """Say which key stands twice somewhere in a value of `parse_record`, None if there is none."""
    left = [value]
    while left:
        part = left.pop()
        if isinstance(part, _Repeated):
            return f"the key {part.key[:_SHOWN]!a} stands twice"
        if isinstance(part, dict):
            left += [inner for inner in part.values() if isinstance(inner, dict | list)]
        elif isinstance(part, list):
            left += [inner for inner in part if isinstance(inner, dict | list)]
    return None


def read_json(path: Path, mend: str, raised: type[RmexpError] = DataError) -> dict[str, Any]:
    """Return a file's JSON object. Raises an error that ends in `mend`, what to do about it."""
    return _read(path, parse_json, "JSON object", mend, raised)


def read_yaml(path: Path, mend: str) -> dict[str, Any]:
    """Return a YAML file's mapping, without tags and aliases; see `read_json`."""
    return _read(path, lambda text: yaml.load(text, _PlainLoader), "YAML mapping", mend, DataError)


def read_checkpoint(path: Path, mend: str) -> dict[str, Any]:
    """Return a training's checkpoint, weights on the CPU; of its pickle plain values alone.

    Raises ConfigError that ends in `mend`.
    """
    saved = _unpickled(path, mend)
    if not isinstance(saved, dict):
        raise ConfigError(f"{path} is no checkpoint of a training: {mend}")
    return saved


def read_tensors(path: Path, mend: str) -> "dict[str, torch.Tensor]":
    """Return the tensors of pickled weights by their names, on the CPU.

    Raises ConfigError that ends in `mend`, for anything else in the file too.
    """
    import torch

    saved = _unpickled(path, mend)
    if not isinstance(saved, dict) or not saved:
        raise ConfigError(f"{path} holds no weights: {mend}")
    for name, value in saved.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise ConfigError(f"{path} holds {_shown(name)}, which is no tensor: {mend}")
    return dict(saved)


def _unpickled(path: Path, mend: str) -> Any:
    """Return what plain values and tensors a pickle holds; nothing in it is called."""
    import torch

    try:
        mapped = is_zipfile(path)  # which it has been since torch 1.6
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # it can, or says why not
            saved = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except UnpicklingError as error:
        raise ConfigError(f"{path} cannot be read, it holds other things: {mend}") from error
    except (OSError, RuntimeError, ValueError, KeyError, EOFError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(f"{path} cannot be read ({reason}): {mend}") from error
    return saved


def known(
    values: Mapping[str, object], hints: Mapping[str, Any], where: str, *, literally: bool = False
) -> dict[str, Any]:
    """Return the values if each has a key of `hints`, and a plain value of the type given there.

    `where` begins the message. Raises DataError that names the key: it is not known, its value is
    of another type, or has an interpolation or a key such as `_target_` in it. These may stand in
    what is told on `literally`, and becomes no config.
    """
    for key, value in values.items():
        if key not in hints:
            raise DataError(f"{where} has the key {key}, which is not known: remove it")
        if not literally:
            _refuse_code(value, key, where)
        if not _fits(value, hints[key]):
            raise DataError(
                f"{where} has {key}: {_shown(value)}, which is no value for it: give "
                f"{_named(hints[key])}"
            )
    return dict(values)


def parameters(function: Callable[..., object]) -> dict[str, Any]:
    """Return the types of what a function or a class takes by keyword, as `known` needs them."""
    named = {
        each.name: each.annotation
        for each in inspect.signature(function, eval_str=True).parameters.values()
        if each.kind in (each.KEYWORD_ONLY, each.POSITIONAL_OR_KEYWORD)
    }
    return {name: Any if hint is inspect.Parameter.empty else hint for name, hint in named.items()}


def _read(
    path: Path, parse: Callable[[str], object], form: str, mend: str, raised: type[RmexpError]
) -> dict[str, Any]:
    try:
        value = parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise raised(f"cannot read {path} ({error.strerror}): {mend}") from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        reason = str(error).strip().replace("\n", " ")
        raise raised(f"{path} holds no {form} ({reason}): {mend}") from error
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise raised(f"{path} holds no {form}: {mend}")
    return value


def _refuse_code(value: object, key: str, where: str) -> None:
    """Refuse what a config could make into more than data: interpolations and Hydra's own keys."""
    if isinstance(value, str) and "${" in value:
        raise DataError(f"{where} has {key}: {_shown(value)}, and nothing is interpolated there")
    if isinstance(value, dict):
        for name, part in value.items():
            if not isinstance(name, str) or name.startswith("_"):
                raise DataError(f"{where} has the key {key}.{name}, which is not known: remove it")
            _refuse_code(part, f"{key}.{name}", where)
    elif isinstance(value, list):
        for part in value:
            _refuse_code(part, key, where)
    elif value is not None and not isinstance(value, str | int | float):
        raise DataError(f"{where} has {key}: {_shown(value)}, which is no plain value")


def _fits(value: object, hint: Any) -> bool:
    """Say whether a plain value is one of a type; a list is a sequence, a whole number a float."""
    origin, within = get_origin(hint), get_args(hint)
    if hint is Any or hint is object:
        return True
    if hint is None:
        return value is None
    if origin in (Union, UnionType):
        return any(_fits(value, each) for each in within)
    if origin is Literal:
        return any(type(value) is type(each) and value == each for each in within)
    if isinstance(value, bool) or hint in (bool, NoneType):
        return type(value) is hint
    if hint is float:
        return isinstance(value, int | float)
    kind = origin or hint
    if isinstance(value, list):
        listed = inspect.isclass(kind) and issubclass(kind, Sequence) and kind is not str
        return listed and all(_fits(part, each) for part in value for each in within[:1])
    if isinstance(value, dict):
        mapped = inspect.isclass(kind) and issubclass(kind, Mapping)
        return mapped and all(_fits(part, each) for part in value.values() for each in within[1:])
    return type(value) is kind


def _named(hint: Any) -> str:
    """Return a type in words.

    >>> _named(Literal["a", "b"] | None)
    'a or b or null'
    """
    origin, within = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType, Literal):
        names = [str(each) if origin is Literal else _named(each) for each in within]
        several = ", ".join(names)
        return " or ".join(several.rsplit(", ", 1))
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    if hint in words:
        return words[hint]
    if hint in (None, NoneType):
        return "null"
    kind = origin or hint
    return "an object" if inspect.isclass(kind) and issubclass(kind, Mapping) else "a list"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


class _Repeated(dict[str, Any]):
    """An object in which `key` stands twice; it holds the last value."""

    key: str


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    plain = dict(pairs)
    if len(plain) == len(pairs):
        return plain
    names = [name for name, _ in pairs]
    repeated = _Repeated(plain)
    repeated.key = next(name for name in names if names.count(name) > 1)
    return repeated


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


class _PlainLoader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML without aliases, by which a few lines can stand for gigabytes, and without twice a key.

    A SafeLoader makes no objects but plain ones and dates; `known` refuses the latter.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise ValueError(f"the alias *{self.peek_event().anchor} is not read")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        names = [self.construct_object(key, deep=True) for key, _ in node.value]
        for name in names:
            if not isinstance(name, Hashable):
                raise ValueError("a key is no plain value")
            if names.count(name) > 1:
                raise ValueError(f"the key {name!r} stands twice")
        return super().construct_mapping(node, deep)  # type: ignore[no-any-return]
