"""Model folders: found locally or on the hub, fingerprinted, and read without loading weights."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from rmexp.errors import ConfigError

EMBEDDED = "embedded"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken"]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A local folder in Hugging Face's layout, and where it is from (`name`, `revision`)."""

    folder: Path
    name: str
    revision: str | None = None
    trust_remote_code: bool = False

    @property
    def config(self) -> dict[str, Any]:
        """Return `config.json`."""
        return _read_json(self.folder / "config.json")

    @property
    def architecture(self) -> str:
        """Return the class that the weights were saved from, or an empty string."""
        return str((self.config.get("architectures") or [""])[0])

    def rmexp(self) -> dict[str, Any] | None:
        """Return `rmexp.json`, which training leaves beside the weights, if there is one."""
        path = self.folder / "rmexp.json"
        return _read_json(path) if path.exists() else None

    def fingerprint(self, cache: Path) -> str:
        """Return a digest of the weights and the configuration.

        The digest of each weights file is kept in `cache` by its path, size and time, so that large
        weights are read for it once.
        """
        digest = hashlib.sha256()
        for path in sorted(self.folder.glob("*.safetensors")):
            digest.update(f"{path.name}:{_file_digest(path, cache)}\n".encode())
        digest.update((self.folder / "config.json").read_bytes())
        return digest.hexdigest()


def find_checkpoint(
    path: str, revision: str | None = None, trust_remote_code: bool = False
) -> Checkpoint:
    """Return the checkpoint at a local folder, on the hub, or the embedded one.

    Raises ConfigError for a folder that is missing or not a model's, a name that the hub does not
    serve, weights that are no safetensors, and remote code without a pinned revision.
    """
    if path == EMBEDDED:
        from rmexp.embedded import smollm2

        return Checkpoint(smollm2(), "SmolLM2-135M-Instruct")
    folder = Path(path).expanduser()
    if folder.is_dir():
        return _check(Checkpoint(folder.resolve(), path, revision, trust_remote_code))
    if folder.exists() or not _HUB_NAME.fullmatch(path) or path.startswith("."):
        raise ConfigError(f"model.path={path}: there is no such folder, and it is no hub name")
    if trust_remote_code and not re.fullmatch(r"[0-9a-f]{40}", revision or ""):
        raise ConfigError(
            f"{path} runs its own code: pin the commit that you have read, model.revision=<40 hex>"
        )
    return _check(_download(path, revision, trust_remote_code))


def _download(name: str, revision: str | None, trust_remote_code: bool) -> Checkpoint:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    code = ["*.py"] if trust_remote_code else []
    try:
        folder = snapshot_download(name, revision=revision, allow_patterns=_HUB_FILES + code)
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"cannot get {name} from the hub ({reason}): check the name and the network, or point "
            "model.path at a local folder"
        ) from error
    return Checkpoint(Path(folder), name, revision or Path(folder).name, trust_remote_code)


def _check(checkpoint: Checkpoint) -> Checkpoint:
    folder = checkpoint.folder
    if not (folder / "config.json").exists():
        raise ConfigError(
            f"{folder} holds no config.json: give a model folder as save_pretrained writes it"
        )
    if not any(folder.glob("*.safetensors")):
        other = ", ".join(sorted(path.name for path in folder.glob("*.bin"))) or "no weights at all"
        raise ConfigError(
            f"{folder} holds no *.safetensors file ({other}): convert the weights to safetensors, "
            "nothing else is read"
        )
    for path in folder.glob("*.safetensors"):
        try:
            with safe_open(path, "numpy"):
                pass
        except (SafetensorError, OSError) as error:
            raise ConfigError(f"{path} is damaged ({error}): get the model folder again") from error
    return checkpoint


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ConfigError(f"cannot read {path} ({error}): get the model folder again") from error
    if not isinstance(content, Mapping):
        raise ConfigError(f"{path} holds no JSON object: get the model folder again")
    return dict(content)


def _file_digest(path: Path, cache: Path) -> str:
    real = path.resolve()
    stat = real.stat()
    key = hashlib.sha256(f"{real}\n{stat.st_size}\n{stat.st_mtime_ns}".encode()).hexdigest()
    kept = cache / "fingerprints" / key
    if kept.exists():
        return kept.read_text(encoding="utf-8")
    with real.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    kept.parent.mkdir(parents=True, exist_ok=True)
    draft = kept.with_suffix(f".{os.getpid()}")
    draft.write_text(digest, encoding="utf-8")
    draft.replace(kept)
    return digest
