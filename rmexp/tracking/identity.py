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
    "tracking",
    "batch_tokens",
    "devices",
    "skip_done",
    "fail_fast",
    "then",
}


def result_key(config: Mapping[str, Any], **fingerprints: str) -> str:
    """Return a digest of what determines a result: the config, the code, and what they work on."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).resolve().parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    kept = {name: value for name, value in config.items() if name not in _NO_PART_OF_A_RESULT}
    digest.update(json.dumps([kept, fingerprints], sort_keys=True).encode())
    return digest.hexdigest()
