"""Weights in pickled .bin files, made safetensors of once; nothing in a pickle is run."""

import hashlib
import json
import logging
import shutil
import uuid
from collections.abc import Iterable
from pathlib import Path

from rmexp.files import make_cache
from rmexp.models.model_files import (
    INDEX,
    beside_weights,
    code_files,
    digest_of,
    inside,
    kept_digest,
    pickled_files,
)
from rmexp.outside import read_tensors

log = logging.getLogger(__name__)

_PICKLED_INDEX = "pytorch_model.bin.index.json"


def converted(folder: Path) -> Path:
    """Return a folder with the same model and its weights as safetensors, in the user's cache.

    It is made where it is not there yet, and takes the weights' size. Raises ConfigError for a file
    that holds more than tensors, or that is damaged.
    """
    files = [inside(folder, path) for path in pickled_files(folder)]
    beside = [inside(folder, p) for p in beside_weights(folder) if p.name != _PICKLED_INDEX]
    beside += code_files(folder)
    cache = make_cache()
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.name}:{kept_digest(path, cache)}\n".encode())
    for path in beside:
        digest.update(f"{path.relative_to(folder)}:{digest_of(path)}\n".encode())
    made = cache / "converted" / digest.hexdigest()[:32]
    if not made.is_dir():
        log.info("making safetensors of the .bin files in %s, once, in %s", folder, made)
        _make(files, beside, folder, made)
    return made


def _make(files: Iterable[Path], beside: Iterable[Path], folder: Path, made: Path) -> None:
    draft = made.with_name(f".{made.name}.{uuid.uuid4().hex}")
    draft.mkdir(parents=True)
    try:
        _save(files, draft)
        for path in beside:
            copy = draft / path.relative_to(folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        try:
            draft.rename(made)
        except OSError:
            if not made.is_dir():  # or another process has made it meanwhile
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _save(files: Iterable[Path], draft: Path) -> None:
    places: dict[str, str] = {}
    for path in files:
        name = path.name.replace("pytorch_model", "model").removesuffix(".bin") + ".safetensors"
        places |= dict.fromkeys(_convert(path, draft / name), name)
    if len(set(places.values())) > 1:
        index = {"metadata": {}, "weight_map": places}
        (draft / INDEX).write_text(json.dumps(index), encoding="utf-8")


def _convert(path: Path, to: Path) -> list[str]:
    """Write the tensors of a pickle as safetensors, and return their names."""
    from safetensors.torch import save_file

    tensors = read_tensors(path, "get the model folder again, or convert it yourself")
    storages: set[int] = set()
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage().data_ptr()
        # What shares its memory, as an output embedding does, is written twice.
        tensors[name] = tensor.clone() if storage in storages else tensor.contiguous()
        storages.add(storage)
    save_file(tensors, to, {"format": "pt"})
    return list(tensors)
