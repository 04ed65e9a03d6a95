"""`rmexp.json`: how a trained model is read, as training leaves it beside the weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rmexp.errors import ConfigError
from rmexp.outside import known, read_json

_MEND = "get the model folder again"
_REWARD_SETTINGS: Mapping[str, Any] = {
    "reader": Literal["scalar", "implicit"],
    "beta": float | None,
    "length_normalised": bool | None,
    "reference": Mapping[str, Any] | None,
}
_REFERENCE: Mapping[str, Any] = {
    "path": str,
    "base": str | None,
    "name": str | None,
    "revision": str | None,
    "fingerprint": str | None,
}


@dataclass(frozen=True, slots=True)
class RewardSettings:
    """What `rmexp.json` says of how a trained model is read; None is left to the default."""

    reader: str
    beta: float | None
    length_normalised: bool | None
    reference: Mapping[str, str | None] | None


def read_reward_settings(path: Path) -> RewardSettings:
    """Return what `rmexp.json` says; raise RmexpError for an unknown key or a wrong value."""
    content = known(
        {"reader": None} | read_json(path, _MEND),
        _REWARD_SETTINGS,
        str(path),
    )
    if (reference := content.get("reference")) is not None:
        known({"path": None} | reference, _REFERENCE, f"reference in {path}")
    beta = content.get("beta")
    if beta is not None and not is_beta(beta):
        raise ConfigError(f"{path} has beta: {beta}, which is no value for it: give one above 0")
    return RewardSettings(
        reader=content["reader"],
        beta=None if beta is None else float(beta),
        length_normalised=content.get("length_normalised"),
        reference=reference,
    )


def is_beta(value: object) -> bool:
    """Say whether the value is a finite number above 0."""
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")
    )
