"""Model folders: found locally or on the hub, fingerprinted, and read without loading weights."""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rmexp.errors import ConfigError
from rmexp.files import is_hub_name
from rmexp.models.bin_weights import converted
from rmexp.models.model_files import (
    ADAPTER_WEIGHTS,
    beside_weights,
    code_files,
    digest_of,
    inside,
    kept_digest,
    pickled_files,
    safetensors_names,
    tensor_shapes,
    weight_files,
)
from rmexp.models.reward_settings import RewardSettings, read_reward_settings
from rmexp.outside import known, read_json

EMBEDDED = "embedded"
ADAPTER_CONFIG = "adapter_config.json"
_HUB_TEXTS = ["*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken"]  # tokenizer, template, config
_NOT_READ = ["consolidated*", "original/*"]  # the same weights once more, in another layout
# Their positions are counted from behind the pad token's number.
_OFFSET_POSITIONS = frozenset(
    "camembert data2vec-text ibert lilt longformer luke mpnet roberta roberta-prelayernorm "
    "xlm-roberta xlm-roberta-xl xmod".split()
)
_HEAD = re.compile(r"\.(score|classifier|classifier\.out_proj)\.(modules_to_save\.)?weight$")

_MEND = "get the model folder again"
# What is read of config.json here; the library reads more, and says itself what it cannot use.
_CONFIG: Mapping[str, Any] = {
    "architectures": Sequence[str] | None,
    "model_type": str | None,
    "num_labels": int | None,
    "vocab_size": int | None,
    "max_position_embeddings": int | None,
    "n_positions": int | None,
    "pad_token_id": int | None,
    "dtype": str | None,
    "torch_dtype": str | None,
    "transformers_weights": None,
}
_OBJECTS = ("id2label", "text_config", "auto_map")  # objects, or nothing
_POSITIVE = ("num_labels", "vocab_size", "max_position_embeddings", "n_positions")
_BASE: Mapping[str, Any] = {"base_model_name_or_path": str | None, "revision": str | None}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A local folder in Hugging Face's layout, and where it is from (`name`, `revision`).

    `adapter` is the folder of a LoRA adapter that is added to the weights of `folder`; it may be
    the same one.
    """

    folder: Path
    name: str
    revision: str | None = None
    trust_remote_code: bool = False
    adapter: Path | None = None

    @property
    def config(self) -> dict[str, Any]:
        """Return `config.json`; raise ConfigError for values of the wrong kind."""
        path = self.folder / "config.json"
        config = read_json(path, _MEND)
        _check_config(config, str(path))
        _check_config(config.get("text_config") or {}, f"text_config in {path}")
        return config

    @property
    def architecture(self) -> str:
        """Return the class that the weights were saved from, or an empty string."""
        return str((self.config.get("architectures") or [""])[0])

    @property
    def is_classifier(self) -> bool:
        """Say whether the folder, or the adapter in it, has the head of a sequence classifier."""
        return bool(self._adapted_head()) or self.architecture.endswith("ForSequenceClassification")

    @property
    def outputs(self) -> int:
        """Return how many outputs a sequence classifier's head has; the library's default is 2."""
        if (rows := self._adapted_head()) is not None:
            return rows
        config = self.config
        labels = config.get("id2label")
        return int(config.get("num_labels") or 2) if labels is None else len(labels)

    @property
    def vocabulary(self) -> int | None:
        """Return how many tokens config.json says that the embedding has."""
        config = self.config
        size = (config.get("text_config") or config).get("vocab_size")
        return None if size is None else int(size)

    @property
    def max_length(self) -> int | None:
        """Return how many positions config.json says that the model has."""
        limits = []
        for config in (self.config, self.config.get("text_config") or {}):
            for key in ("max_position_embeddings", "n_positions"):
                if config.get(key):
                    offset = config.get("model_type") in _OFFSET_POSITIONS
                    pad = config.get("pad_token_id", 1)
                    limits.append(int(config[key]) - (int(pad or 0) + 1 if offset else 0))
        return min(limits, default=None)

    @property
    def weights(self) -> list[Path]:
        """Return the files that the weights are read from; see `weight_files`."""
        return weight_files(self.folder)

    @property
    def size(self) -> int:
        """Return the number of parameters in the weights files, without an adapter's."""
        shapes = (shape for path in self.weights for shape in tensor_shapes(path).values())
        return sum(math.prod(shape) for shape in shapes)

    def rmexp(self) -> RewardSettings | None:
        """Return `rmexp.json`, which training leaves beside the weights, if there is one."""
        path = (self.adapter or self.folder) / "rmexp.json"
        return read_reward_settings(path) if path.exists() else None

    def fingerprint(self, cache: Path) -> str:
        """Return a digest of all that makes numbers of token ids.

        That is weights and configuration, a LoRA adapter's too, and own code where it is trusted.
        The index decides nothing beyond the list of files, which must be the folder's. What makes
        tokens of a text is no part of it, since stored numbers are found by their token ids; see
        `reading`. The digest of each weights file is kept in `cache` by its path, size and time, so
        that large weights are read for it once.
        """
        digest = hashlib.sha256()
        for path in self.weights:
            digest.update(f"{path.name}:{kept_digest(path, cache)}\n".encode())
        digest.update((self.folder / "config.json").read_bytes())
        if self.trust_remote_code:
            for path in code_files(self.folder):
                digest.update(f"\n{path.relative_to(self.folder)}:{digest_of(path)}".encode())
        if self.adapter is not None:
            weights = kept_digest(self.adapter / ADAPTER_WEIGHTS, cache)
            digest.update(f"\n{digest_of(self.adapter / ADAPTER_CONFIG)}:{weights}".encode())
        return digest.hexdigest()

    def reading(self) -> str:
        """Return a digest of the files that make tokens of a text and a reward of the numbers.

        Those are tokenizer, chat templates and `rmexp.json`, in the folder and in the adapter's.
        """
        digest = hashlib.sha256()
        for folder in dict.fromkeys((self.folder, self.adapter or self.folder)):
            for path in beside_weights(folder):
                digest.update(f"{path.relative_to(folder)}:{digest_of(path)}\n".encode())
        return digest.hexdigest()

    def _adapted_head(self) -> int | None:
        """Return the outputs of the score head that the adapter brings, if it brings one."""
        if self.adapter is None:
            return None
        shapes = tensor_shapes(self.adapter / ADAPTER_WEIGHTS)
        return next((shape[0] for name, shape in shapes.items() if _HEAD.search(name)), None)


def find_checkpoint(
    path: str,
    revision: str | None = None,
    trust_remote_code: bool = False,
    base: str | None = None,
    convert_bin: bool = False,
) -> Checkpoint:
    """Return the checkpoint at a local folder, on the hub, or the embedded one.

    `base` is the model below a LoRA adapter, in place of the one that adapter_config.json names.
    `convert_bin` reads pickled weights where there are no others; see `converted`.
    Raises ConfigError for a folder that is missing or not a model's, a name that the hub does not
    serve, weights that are no safetensors, and remote code without a pinned revision.
    """
    if path == EMBEDDED:
        from rmexp.models.embedded import smollm2

        found = Checkpoint(smollm2(), "SmolLM2-135M-Instruct")
    else:
        found = _find(path, revision, trust_remote_code, convert_bin=convert_bin)
    if (found.folder / ADAPTER_CONFIG).exists():
        return _on_its_base(found, base, convert_bin)
    if base is not None:
        raise ConfigError(
            f"model.base={base}: {found.folder} holds no {ADAPTER_CONFIG}, so it has no base; "
            "leave it out"
        )
    return _check(found)


def find_tokenizer(path: str, revision: str | None = None) -> Checkpoint:
    """Return the checkpoint whose tokenizer and template are wanted; its weights may be elsewhere.

    Raises ConfigError for a folder that is missing, and a name that the hub does not serve.
    """
    if path == EMBEDDED:
        return find_checkpoint(path)
    return _find(path, revision, trust_remote_code=False, weights=False)


def _find(
    path: str,
    revision: str | None,
    trust_remote_code: bool,
    weights: bool = True,
    convert_bin: bool = False,
) -> Checkpoint:
    folder = Path(path).expanduser()
    if folder.is_dir():
        folder = folder.resolve()
        if convert_bin and _only_pickled(folder):
            folder = converted(folder)
        return Checkpoint(folder, path, revision, trust_remote_code)
    if folder.exists() or not is_hub_name(path):
        raise ConfigError(f"model.path={path}: there is no such folder, and it is no hub name")
    if trust_remote_code and not re.fullmatch(r"[0-9a-f]{40}", revision or ""):
        raise ConfigError(
            f"{path} runs its own code: pin the commit that you have read, model.revision=<40 hex>"
        )
    patterns = ["*.safetensors"] * weights
    found = _download(path, revision, trust_remote_code, patterns)
    if convert_bin and not list(found.folder.glob("*.safetensors")):
        found = _download(path, found.revision, trust_remote_code, ["*.bin"])
        if _only_pickled(found.folder):
            found = replace(found, folder=converted(found.folder))
    return found


def _only_pickled(folder: Path) -> bool:
    """Say whether a model's weights, or an adapter's, are there in pickled files alone."""
    if (folder / ADAPTER_CONFIG).exists():
        return not (folder / ADAPTER_WEIGHTS).exists() and bool(pickled_files(folder))
    return not safetensors_names(folder) and bool(pickled_files(folder))


def _on_its_base(found: Checkpoint, base: str | None, convert_bin: bool) -> Checkpoint:
    """Return the base with the LoRA adapter that was found; it may have its base beside it."""
    folder = found.folder
    settings = read_json(folder / ADAPTER_CONFIG, _MEND)
    if not (folder / ADAPTER_WEIGHTS).exists():
        raise ConfigError(
            f"{folder} holds an {ADAPTER_CONFIG} and no {ADAPTER_WEIGHTS}: "
            + (
                "model.convert_bin=true makes it of the .bin file, and runs nothing in that"
                if pickled_files(folder)
                else "get the adapter again"
            )
        )
    if base is None and safetensors_names(folder):
        return _check(replace(found, adapter=folder))
    said = {key: value for key, value in settings.items() if key in _BASE}
    known(said, _BASE, str(folder / ADAPTER_CONFIG))
    below = base or settings.get("base_model_name_or_path")
    if not below:
        raise ConfigError(f"{folder} is an adapter that names no base: give one, model.base=FOLDER")
    if base is None and found.trust_remote_code:
        raise ConfigError(
            f"model.trust_remote_code would run the code of {below}, which {ADAPTER_CONFIG} of "
            f"{folder} names: if you have read it, name it yourself, model.base=FOLDER"
        )
    revision = None if base else settings.get("revision")
    try:
        under = find_checkpoint(below, revision, found.trust_remote_code, convert_bin=convert_bin)
    except ConfigError as error:
        raise ConfigError(
            f"the base of the adapter {folder}: {error} (model.base=FOLDER gives another base)"
        ) from error
    if under.adapter is not None:
        raise ConfigError(
            f"{under.folder}, the base of the adapter {folder}, is an adapter itself: merge it "
            "into its own base first"
        )
    return _check(replace(found, folder=under.folder, adapter=folder))


def _download(
    name: str, revision: str | None, trust_remote_code: bool, weights: Sequence[str]
) -> Checkpoint:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    more = [*weights, *["*.py"] * trust_remote_code]
    try:
        folder = snapshot_download(
            name,
            revision=revision,
            allow_patterns=_HUB_TEXTS + more,
            ignore_patterns=_NOT_READ,
        )
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
        if several := sorted(path.parent.name for path in folder.glob(f"*/{ADAPTER_CONFIG}")):
            raise ConfigError(
                f"{folder} holds the adapters {', '.join(several)}: give one of them, "
                f"model.path={folder / several[0]}"
            )
        raise ConfigError(
            f"{folder} holds no config.json: give a model folder as save_pretrained writes it"
        )
    files = [*checkpoint.weights]
    if checkpoint.adapter is not None:
        files.append(inside(checkpoint.adapter, checkpoint.adapter / ADAPTER_WEIGHTS))
    for path in files:
        tensor_shapes(path)
    if checkpoint.trust_remote_code:
        _check_own_code(checkpoint)
    checkpoint.rmexp()
    return checkpoint


def _check_own_code(checkpoint: Checkpoint) -> None:
    """Raise ConfigError where a file names code that lies in another repository."""
    for path in (checkpoint.folder / "config.json", checkpoint.folder / "tokenizer_config.json"):
        if path.exists() and "--" in json.dumps(read_json(path, _MEND).get("auto_map")):
            raise ConfigError(
                f"auto_map in {path} names code in another repository, of which no commit is "
                "pinned: put that code into the folder, and its bare name into auto_map"
            )


def _check_config(config: Mapping[str, Any], where: str) -> None:
    known({key: value for key, value in config.items() if key in _CONFIG}, _CONFIG, where)
    for key in _OBJECTS:
        if not isinstance(config.get(key) or {}, dict):
            raise ConfigError(f"{where} has {key}, which is no object: {_MEND}")
    for key in _POSITIVE:
        if config.get(key) is not None and config[key] < 1:
            raise ConfigError(f"{where} has {key}: {config[key]}, it must be above 0: {_MEND}")


def short_count(number: int) -> str:
    """Return a number of parameters as people say it.

    >>> short_count(134_515_008), short_count(8_030_261_248), short_count(900)
    ('135M', '8.03B', '900')
    """
    for unit, letter in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= unit:
            return f"{number / unit:.3g}{letter}"
    return str(number)
