"""Pickled weights are made safetensors of on request, and nothing in them is run."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_rewards import rewards
from tiny import tiny_adapter, tiny_policy, tiny_scalar

from rmexp.errors import ConfigError
from rmexp.models.checkpoints import find_checkpoint
from rmexp.scoring.rewards import open_reward


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "rmexp" / "converted"


def pickle(
    folder: Path, *names: str, change: Callable[[dict[str, Any]], None] | None = None
) -> Path:
    """Leave the folder's weights in such .bin files, and in no others."""
    (path,) = folder.glob("*.safetensors")
    weights: dict[str, Any] = load_file(path)
    path.unlink()
    if change is not None:
        change(weights)
    keys = sorted(weights)
    places = {key: names[at * len(names) // len(keys)] for at, key in enumerate(keys)}
    for name in names:
        torch.save({key: weights[key] for key in keys if places[key] == name}, folder / name)
    if len(names) > 1:
        index = {"metadata": {}, "weight_map": places}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    torch.save({"lr": 1.0}, folder / "training_args.bin")
    return folder


SHARDS = ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")


@pytest.mark.parametrize("names", [("pytorch_model.bin",), SHARDS])
def test_the_rewards_are_those_of_the_weights(
    names: tuple[str, ...], tmp_path: Path, cache: Path
) -> None:
    expected = rewards(tiny_scalar(tmp_path / "scalar"), tmp_path / "a")
    folder = pickle(shutil.copytree(tmp_path / "scalar", tmp_path / "pickled"), *names)
    with pytest.raises(
        ConfigError, match=r"no \*\.safetensors file but pytorch_model.*convert_bin=true"
    ):
        open_reward(path=str(folder))
    for _ in range(2):
        assert (rewards(folder, tmp_path / "b", convert_bin=True) == expected).all()
    (made,) = cache.iterdir()
    assert len(list(made.glob("*.safetensors"))) == len(names)
    found = find_checkpoint(str(folder), convert_bin=True)
    assert (found.folder, found.name) == (made, str(folder))
    if len(names) == 1:  # they are the same weights
        whole = find_checkpoint(str(tmp_path / "scalar"))
        assert found.fingerprint(tmp_path) == whole.fingerprint(tmp_path)


def test_weights_that_share_memory_and_a_reference(tmp_path: Path) -> None:
    def tie(weights: dict[str, Any]) -> None:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]

    policy = tiny_policy(tmp_path / "policy")
    other = tiny_policy(tmp_path / "other", seed=1)
    for folder in (policy, other):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
        pickle(folder, "pytorch_model.bin", change=tie)
    options: dict[str, Any] = {"reference": {"path": str(other)}, "convert_bin": True}
    found = rewards(policy, tmp_path, **options)
    assert found == pytest.approx(
        -rewards(other, tmp_path, **options | {"reference": {"path": str(policy)}})
    )
    assert abs(found).min() > 0


def test_the_form_that_torch_wrote_before_1_6(tmp_path: Path) -> None:
    expected = rewards(tiny_scalar(tmp_path / "scalar"), tmp_path / "a")
    weights = load_file(tmp_path / "scalar" / "model.safetensors")
    (tmp_path / "scalar" / "model.safetensors").unlink()
    path = tmp_path / "scalar" / "pytorch_model.bin"
    torch.save(weights, path, _use_new_zipfile_serialization=False)
    found = rewards(tmp_path / "scalar", tmp_path / "b", convert_bin=True)
    assert (found == expected).all()


def test_an_adapter_and_its_base(tmp_path: Path) -> None:
    base = tiny_policy(tmp_path / "base")
    tiny_adapter(base, tmp_path / "adapter", "SEQ_CLS")
    expected = rewards(tmp_path / "adapter", tmp_path / "a")
    pickle(base, "pytorch_model.bin")
    adapter = pickle(tmp_path / "adapter", "adapter_model.bin")
    with pytest.raises(
        ConfigError, match=r"no adapter_model\.safetensors: model\.convert_bin=true"
    ):
        open_reward(path=str(adapter))
    assert (rewards(adapter, tmp_path / "b", convert_bin=True) == expected).all()


class Harm:
    def __reduce__(self) -> Any:
        return os.mkdir, ("harm",)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"a": Harm()}, "cannot be read, it holds other things: get the model folder again"),
        ({"a": 1}, "holds 'a', which is no tensor"),
        ({1: torch.zeros(1)}, "holds 1, which is no tensor"),
        ([torch.zeros(1)], "holds no weights"),
        (b"", "cannot be read"),
        (b"PK\x03\x04 and no more", "cannot be read"),
    ],
)
def test_what_is_more_than_tensors_is_refused_and_not_run(
    content: object, words: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = pickle(tiny_scalar(tmp_path / "model"), "pytorch_model.bin")
    monkeypatch.chdir(tmp_path)
    if isinstance(content, bytes):
        (folder / "pytorch_model.bin").write_bytes(content)
    else:
        torch.save(content, folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=words):
        open_reward(path=str(folder), convert_bin=True)
    assert not (tmp_path / "harm").exists()
    assert list(cache.iterdir()) == []


def test_safetensors_come_first_and_other_files_are_no_weights(tmp_path: Path, cache: Path) -> None:
    folder = tiny_scalar(tmp_path / "model")
    torch.save({"a": Harm()}, folder / "pytorch_model.bin")
    assert find_checkpoint(str(folder), convert_bin=True).folder == folder
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").rename(folder / "optimizer.bin")
    with pytest.raises(ConfigError, match=r"holds no \*\.safetensors file: convert the weights"):
        open_reward(path=str(folder), convert_bin=True)
    assert not cache.exists()
