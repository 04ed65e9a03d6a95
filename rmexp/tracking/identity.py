"""What a result depends on."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# What does not change a result: where it goes, what it runs on, and what happens to other jobs.
_NO_PART_OF_A_RESULT = {
    "out_dir",
    "store_dir",
    "data_root",
    "quiet",
    "tracking",
    "batch_tokens",
    "devices",
    "skip_done",
    "fail_fast",
    "then",
    "objective_metric",
    "promote",
}

# What explains no result, besides: it stands in config.yaml alone.
_OPERATIONAL = _NO_PART_OF_A_RESULT - {"batch_tokens", "devices"}


def explaining(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that tell a reader of the run what it is, those that are set.

    Two runs side by side then differ in what was changed. Hydra's own keys say nothing that the
    name of a group's choice does not.
    """
    kept = {name: value for name, value in config.items() if name not in _OPERATIONAL}
    return _set(kept)


def _set(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that have a value, in sections as well."""
    kept = {}
    for name, value in settings.items():
        value = _set(value) if isinstance(value, Mapping) else value
        if not name.startswith("_") and value is not None and value != {}:
            kept[name] = value
    return kept


def result_key(config: Mapping[str, Any], **fingerprints: str) -> str:
    """Return a digest of what determines a result: the config, the code, and what they work on."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).resolve().parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    kept = {name: value for name, value in config.items() if name not in _NO_PART_OF_A_RESULT}
    digest.update(json.dumps([kept, fingerprints], sort_keys=True).encode())
    return digest.hexdigest()
