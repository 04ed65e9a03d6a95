"""The files of a model folder: weights as safetensors, own code, and their digests."""

import hashlib
import os
from pathlib import Path

from safetensors import SafetensorError, safe_open

from rmexp.errors import ConfigError
from rmexp.outside import read_json

ADAPTER_WEIGHTS = "adapter_model.safetensors"
INDEX = "model.safetensors.index.json"
# What makes tokens of a text, and what configures a model.
_BESIDE_WEIGHTS = (
    "[!.]*.json",
    "*.jinja",
    "*.txt",
    "*.model",
    "*.tiktoken",
    "additional_chat_templates/*.jinja",
)
# Pickled weights of a model or an adapter, as the libraries name them.
_PICKLED = ("pytorch_model.bin", "pytorch_model-*-of-*.bin", "adapter_model.bin")
_MEND = "get the model folder again"


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes in a safetensors file, from its header.

    Raises ConfigError for a file that is damaged.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{path} is damaged ({error}): get the model folder again") from error


def safetensors_names(folder: Path) -> list[str]:
    """Return the names of the folder's safetensors files, but for an adapter's."""
    names = (path.name for path in folder.glob("*.safetensors"))
    return sorted(name for name in names if name != ADAPTER_WEIGHTS)


def beside_weights(folder: Path) -> list[Path]:
    """Return the folder's configuration, tokenizer and templates."""
    return [path for pattern in _BESIDE_WEIGHTS for path in sorted(folder.glob(pattern))]


def pickled_files(folder: Path) -> list[Path]:
    """Return the folder's pickled weights, no other .bin such as training_args.bin."""
    return sorted(path for pattern in _PICKLED for path in folder.glob(pattern))


def weight_files(folder: Path) -> list[Path]:
    """Return the files that the weights are read from: model.safetensors, or what the index names.

    Raises ConfigError where the folder holds less or more than that: the library would not say so.
    """
    found, index = safetensors_names(folder), folder / INDEX
    if not found and not index.exists():
        if pickled := pickled_files(folder):
            raise ConfigError(
                f"{folder} holds no *.safetensors file but {pickled[0].name}: "
                "model.convert_bin=true makes one of it, and runs nothing in that"
            )
        raise ConfigError(
            f"{folder} holds no *.safetensors file: convert the weights, nothing else is read"
        )
    read, how = {"model.safetensors"}, "without an index"
    if index.exists():
        named = read_json(index, _MEND).get("weight_map")
        if not isinstance(named, dict) or {type(name) for name in named.values()} - {str}:
            raise ConfigError(f"{index} has no weight_map of names: get the model folder again")
        read, how = set(named.values()), f"by {INDEX}"
    if missing := sorted(read - set(found)):
        raise ConfigError(
            f"{folder} lacks {missing[0]}, which is read {how}: get the model folder again"
        )
    if unread := sorted(set(found) - read):
        raise ConfigError(
            f"{folder / unread[0]} is not read {how}: take it out of the folder if it is not "
            "part of the model, else get the folder again"
        )
    return [inside(folder, folder / name) for name in found]


def inside(folder: Path, path: Path) -> Path:
    """Return the folder's file; raise ConfigError for a link that leads out of the folder.

    The hub's cache keeps the files themselves beside the folders of its snapshots.
    """
    real, root = path.resolve(), folder.resolve()
    blobs = root.parent.parent / "blobs" if root.parent.name == "snapshots" else root
    if not (real.is_relative_to(root) or real.is_relative_to(blobs)):
        raise ConfigError(
            f"{path} is a link to {real}, out of the model folder: put the file itself there"
        )
    return path


def code_files(folder: Path) -> list[Path]:
    """Return the folder's Python files."""
    return [inside(folder, path) for path in sorted(folder.rglob("*.py"))]


def kept_digest(path: Path, cache: Path) -> str:
    """Return a large file's digest, kept in `cache` by its path, size and time."""
    real = path.resolve()
    stat = real.stat()
    key = hashlib.sha256(f"{real}\n{stat.st_size}\n{stat.st_mtime_ns}".encode()).hexdigest()
    kept = cache / "fingerprints" / key
    if kept.exists():
        return kept.read_text(encoding="utf-8")
    digest = digest_of(real)
    kept.parent.mkdir(parents=True, exist_ok=True)
    draft = kept.with_suffix(f".{os.getpid()}")
    draft.write_text(digest, encoding="utf-8")
    draft.replace(kept)
    return digest


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
