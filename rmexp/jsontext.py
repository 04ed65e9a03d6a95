"""JSON in which a key that stands twice is known, so that its record alone is bad."""

import json
from collections.abc import Sequence
from typing import Any


class _Repeated(dict[str, Any]):
    """An object in which `key` stands twice; it holds the last value."""

    key: str


def loads(text: str) -> Any:
    """Parse JSON; raise ValueError with a reason for what is none."""
    try:
        return _DECODER.decode(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def flaw(value: object) -> str | None:
    """Return which key stands twice somewhere in a value of `loads`, None if there is none."""
    left = [value]
    while left:
        part = left.pop()
        if isinstance(part, _Repeated):
            return f"the key {part.key[:60]!a} stands twice"
        if isinstance(part, dict):
            left += [inner for inner in part.values() if isinstance(inner, dict | list)]
        elif isinstance(part, list):
            left += [inner for inner in part if isinstance(inner, dict | list)]
    return None


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) == len(pairs):
        return made
    names = [name for name, _ in pairs]
    repeated = _Repeated(made)
    repeated.key = next(name for name in names if names.count(name) > 1)
    return repeated


_DECODER = json.JSONDecoder(object_pairs_hook=_object)
