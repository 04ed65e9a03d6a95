"""What a GPU must do as a CPU does: `pytest -m gpu`, where there is one.

The same functions run on the CPU in the suite, in the same tiny shapes; what needs a GPU, or two of
them, is skipped with its reason elsewhere.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Callback
from running import run_apart
from scored_rows import score
from tiny import tiny_policy, tiny_scalar
from training import OBJECTIVES, encoded, fit, module, quiet_trainer, start, toy_examples
from transformers import AutoConfig, AutoModelForSequenceClassification

from rmexp.models.chat import Encoded
from rmexp.models.forks import find_forks
from rmexp.models.forward import scalar_forward
from rmexp.models.loading import to_float
from rmexp.schema import Example, Message
from rmexp.scoring.rewards import open_reward
from rmexp.scoring.score import Settings
from rmexp.training.batches import Batches
from rmexp.training.data import ToyPairs
from rmexp.training.recipe import Recipe
from rmexp.training.start import Training
from rmexp.training.train import Place, train

_SHAPE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
}
_GROUPED = _SHAPE | {"num_key_value_heads": 2, "head_dim": 16}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": _GROUPED,
    "qwen2": _GROUPED,
    "qwen3": _GROUPED,
    "mistral": _GROUPED | {"sliding_window": None},
    "gemma2": _GROUPED,  # in padded batches: it caps its attention's logits
    "gemma3_text": _GROUPED | {"sliding_window": 128},
    "phi3": _GROUPED,
    "olmo2": _GROUPED,
    "gpt_neox": _SHAPE,
}


def gpus() -> int:
    return torch.cuda.device_count()


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """The CPU and, where there is one, a GPU."""
    if request.param == "cuda" and not gpus():
        pytest.skip("this machine shows no GPU")
    return str(request.param)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a policy and a classifier."""
    folder = tmp_path_factory.mktemp("made")
    tiny_policy(folder / "policy")
    tiny_scalar(folder / "scalar")
    return folder


def classifier(kind: str, device: str, dtype: torch.dtype = torch.float32) -> Any:
    """Return a family's classifier with random weights and its head in fp32."""
    config = AutoConfig.for_model(kind, **FAMILIES[kind], num_labels=1)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    model = model.to(dtype)
    to_float(model.score)
    return model.to(device)


def rows() -> list[Encoded]:
    """Return three responses to a prompt, three to another one, and one of one token alone."""
    draw = torch.Generator().manual_seed(0)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(5, 97, (count,), generator=draw).tolist())

    one, other = tokens(40), tokens(23)
    found = [Encoded(one + tokens(n), 40, 40 + n) for n in (9, 30, 4)]
    found += [Encoded(other + tokens(n), 23, 23 + n) for n in (60, 1, 17)]
    return [*found, Encoded(tokens(1), 0, 1)]


@torch.inference_mode()
def plain(model: Any, device: str) -> np.ndarray[Any, Any]:
    """Return the rewards of the library's model, one response at a time."""
    ids = [torch.tensor([row.ids], device=device) for row in rows()]
    return np.array([float(model(input_ids=one, use_cache=False).logits[0, 0]) for one in ids])


@pytest.mark.parametrize("kind", FAMILIES)
def test_fp32_rewards_are_the_plain_models(kind: str, device: str) -> None:
    """In packed rows, where the family has them, and in padded batches."""
    model = classifier(kind, device)
    expected = plain(model, device)
    forward = scalar_forward(model, 0)
    assert (forward.obstacle is None) == (kind != "gemma2")
    for forks in (find_forks(rows()) if forward.packs else None, None):
        found = np.array(forward(rows(), forks))
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("kind", FAMILIES)
def test_bf16_rewards_are_as_near_to_fp32_as_the_plain_models(kind: str, device: str) -> None:
    exact = plain(classifier(kind, device), device)
    model = classifier(kind, device, torch.bfloat16)
    alone = np.abs(plain(model, device) - exact)
    forward = scalar_forward(model, 0)
    found = np.array(forward(rows(), find_forks(rows()) if forward.packs else None))
    assert np.abs(found - exact).mean() <= 2 * alone.mean() + 1e-3 * np.abs(exact).max()


def test_batch_and_order_change_nothing(device: str) -> None:
    forward = scalar_forward(classifier("llama", device), 0)
    given = rows()
    expected = np.array([forward([row])[0] for row in given])
    for order in ([6, 0, 5, 1, 4, 2, 3], list(range(7))):
        for size in (2, 3, 7):
            found = np.zeros(7)
            for at in range(0, 7, size):
                part = order[at : at + size]
                some = [given[n] for n in part]
                found[part] = forward(some, find_forks(some))
            assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def moved(batch: Any, device: str) -> Any:
    """Return the batch with its tensors on the device."""
    parts = {field.name: getattr(batch, field.name) for field in fields(batch)}
    tensors = {name: part for name, part in parts.items() if isinstance(part, torch.Tensor)}
    return replace(batch, **{name: part.to(device) for name, part in tensors.items()})


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_are_those_of_padded_batches_on_the_cpu(
    name: str, device: str, made: Path, tmp_path: Path
) -> None:
    """To rounding in fp32, and under bf16's autocast as near as padded batches come."""
    begin, objective = start(made / "policy", device="cpu"), OBJECTIVES[name]()
    (batch,) = Batches(encoded(begin, objective, toy_examples(4), tmp_path), 4)

    def gradient(place: str, forks: Any, bf16: bool) -> torch.Tensor:
        one = module(begin, objective).to(place)
        with torch.autocast(place, torch.bfloat16, enabled=bf16):
            losses, _, _ = one.read(moved(replace(batch, forks=forks), place))
        losses.mean().backward()
        return torch.cat([p.grad.flatten().cpu() for p in one.parameters() if p.grad is not None])

    expected = gradient("cpu", None, False)
    found = gradient(device, batch.forks, False)
    assert float((found - expected).norm()) <= 1e-5 * float(expected.norm())
    packed, padded = (gradient(device, forks, True) - expected for forks in (batch.forks, None))
    assert float(packed.norm()) <= 2 * float(padded.norm()) + 1e-3 * float(expected.norm())


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true", "16-mixed"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_steps_in_every_precision(
    name: str, precision: str, device: str, made: Path, tmp_path: Path
) -> None:
    """Every weight moves, and DPO begins at ln 2."""
    if device == "cpu" and precision == "16-mixed":
        pytest.skip("a CPU trains in no 16-mixed")
    history, before, after = steps(name, precision, device, made, tmp_path)
    assert len(history) == 3
    assert all(np.isfinite(list(row.values())).all() for row in history)
    assert not any(torch.equal(before[n], after[n]) for n in before)
    if name == "dpo":
        assert history[0]["train/loss"] == pytest.approx(np.log(2), abs=1e-3)


def steps(
    name: str, precision: str, device: str, made: Path, tmp_path: Path, **recipe: Any
) -> tuple[list[dict[str, float]], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Train three steps; return their metrics, and the weights before and after."""
    begin = start(made / "policy", device=device)
    if precision == "bf16-true":
        begin = replace(begin, dtype="bfloat16")
    mixed = {"bf16-mixed": "bfloat16", "16-mixed": "float16"}.get(precision)
    objective = OBJECTIVES[name]()
    column = replace(begin.reward.columns[0], dtype=begin.dtype, autocast=mixed)
    read_as_trained = replace(begin, reward=replace(begin.reward, columns=(column,)))
    pairs = encoded(read_as_trained, objective, toy_examples(12), tmp_path / "store")
    one = module(begin, objective, steps=3, learning_rate=1e-2, warmup=0.0, **recipe)
    before = {n: p.detach().cpu().clone() for n, p in one.named_parameters()}
    options: dict[str, Any] = {"accelerator": "gpu" if device == "cuda" else "cpu"}
    if precision != "bf16-true":  # whose weights are what they are
        options["precision"] = precision
    fit(one, pairs, 4, **options)
    return one.history, before, {n: p.detach().cpu() for n, p in one.named_parameters()}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_lora_trains_adapters_in_fp32_on_a_frozen_base_in_bf16(
    name: str, device: str, made: Path, tmp_path: Path
) -> None:
    """As an 8B model needs it on one card, activations being computed again."""
    recipe = {"lora_rank": 2, "gradient_checkpointing": True}
    _, before, after = steps(name, "bf16-true", device, made, tmp_path, **recipe)
    trained = {n for n in before if "lora" in n or n.startswith("model.score")}
    assert {n for n in before if not torch.equal(before[n], after[n])} == trained
    assert {before[n].dtype for n in trained} == {torch.float32}
    assert {before[n].dtype for n in set(before) - trained} == {torch.bfloat16}


EXAMPLES = [
    Example(str(n), "s", (Message("user", f"{n}? " * (n + 1)),), (f"yes {n}",), ("no",))
    for n in range(24)
]


def rewards(path: Path, device: str, store: Path, **options: Any) -> list[float]:
    found = score(open_reward(path=str(path), device=device), EXAMPLES, Settings(store, **options))
    return [value for row in found.scored for value in row.chosen + row.rejected]


def test_a_gpu_gives_the_rewards_of_the_cpu(device: str, made: Path, tmp_path: Path) -> None:
    expected = rewards(made / "scalar", "cpu", tmp_path / "cpu")
    found = rewards(made / "scalar", device, tmp_path / "other")
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.fixture
def little_memory(device: str) -> Iterator[None]:
    """Leave this process some megabytes of the GPU's memory."""
    if device != "cuda":
        pytest.skip(
            "a CPU's memory has no such limit here; test_scoring.py raises the error itself"
        )
    torch.cuda.empty_cache()
    _, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 48 * 2**20) / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


def test_scoring_goes_on_in_less_memory(
    device: str, made: Path, tmp_path: Path, little_memory: None, caplog: pytest.LogCaptureFixture
) -> None:
    """All responses at once do not fit: the batches halve until they do."""
    long = [
        Example(str(n), "s", (Message("user", f"{n} is a number, " * 40),), ("yes",), ("no",))
        for n in range(200)
    ]
    reward = open_reward(path=str(made / "scalar"), device=device)
    found = score(reward, long, Settings(tmp_path / "one", batch_tokens=10**6))
    assert "out of memory: on with batches of" in caplog.text
    fewer = score(reward, long, Settings(tmp_path / "two", batch_tokens=2000))
    for one, other in zip(found.scored, fewer.scored, strict=True):
        assert one.chosen + one.rejected == pytest.approx(other.chosen + other.rejected, abs=1e-4)


def test_all_devices_give_the_rewards_of_one(device: str, made: Path, tmp_path: Path) -> None:
    one = rewards(made / "scalar", device, tmp_path / "one")
    every = rewards(made / "scalar", device, tmp_path / "every", devices="auto")
    assert every == pytest.approx(one, rel=1e-4, abs=1e-5)


class _Killed(Exception):  # noqa: N818
    """Stands for whatever ends a process."""


class _Kill(Callback):
    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, number: int) -> None:
        if number == 2:
            raise _Killed


def test_a_killed_training_goes_on(device: str, made: Path, tmp_path: Path) -> None:
    """To the weights of an unbroken one: the CPU's bits, and a GPU's but for the order of sums."""

    def run(out: str, resume: bool = False, **options: Any) -> dict[str, Any]:
        training = Training(
            start(made / "policy", device=device),
            OBJECTIVES["dpo"](),
            ToyPairs(pairs=16),
            Recipe(batch_size=4, learning_rate=1e-3, checkpoint_every=1, val_share=0.0),
            quiet_trainer(accelerator="gpu" if device == "cuda" else "cpu", **options),
            Settings(tmp_path / "store"),
        )
        train(training, Place(tmp_path / out, None, lambda **_: "", resume))
        path = tmp_path / out / "checkpoints" / "last.ckpt"
        loaded: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
        return loaded

    whole = run("whole")
    with pytest.raises(_Killed):
        run("broken", callbacks=[_Kill()])
    ended = run("broken", resume=True)
    assert ended["global_step"] == whole["global_step"] == 4
    assert len(ended["rmexp"]["history"]) == len(whole["rmexp"]["history"]) == 4
    for name, value in whole["state_dict"].items():
        near = 0.0 if device == "cpu" else 1e-4
        torch.testing.assert_close(ended["state_dict"][name], value, rtol=0, atol=near)


@pytest.mark.gpu
def test_a_sweep_trains_on_all_gpus(project_root: Path, made: Path, tmp_path: Path) -> None:
    """Three jobs on two GPUs: the third waits for the first that is free."""
    if gpus() < 2:
        pytest.skip(f"this machine shows {gpus()} GPUs, the sweep needs two")
    words = ["train_rm.py", "-m", f"model.path={made / 'policy'}", "data.pairs=8", "trainer=gpu"]
    words += ["hydra/launcher=joblib", "hydra.launcher.n_jobs=3", "seed=1,2,3"]
    words += [f"out_dir={tmp_path / 'sweep'}", f"tracking.uri=sqlite:///{tmp_path / 'mlflow.db'}"]
    done = run_apart(project_root, [*words, f"store_dir={tmp_path / 'store'}"])
    assert done.code == 0, done.err
    taken = []
    for job in "012":
        assert json.loads((tmp_path / "sweep" / job / "run.json").read_text())["status"]
        log = (tmp_path / "sweep" / job / "train_rm.log").read_text()
        taken += re.findall(r"on GPU (\d) of", log)
    assert set(taken) == {str(n) for n in range(min(3, gpus()))}
    assert len(taken) == 3
