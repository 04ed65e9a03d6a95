"""One training step after another, on models of a few thousand weights."""

import logging
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scored_rows import score
from tiny import tiny_encoder, tiny_policy, tiny_scalar
from torch.distributed.utils import _to_kwargs
from training import OBJECTIVES, encoded, fit, module, quiet_trainer, start, toy_examples

from rmexp.errors import ConfigError, ScoreError
from rmexp.metrics import wins
from rmexp.scoring.score import Settings
from rmexp.training import fit as fit_file
from rmexp.training import module as module_file
from rmexp.training.batches import Batches
from rmexp.training.module import PreferenceModule
from rmexp.training.objectives import DPO, BradleyTerry

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_policy(tmp_path_factory.mktemp("policy") / "model")


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def assert_equal(one: torch.nn.Module, other: torch.nn.Module, atol: float = 0.0) -> None:
    others = dict(other.named_parameters())
    for name, parameter in one.named_parameters():
        torch.testing.assert_close(parameter, others[name], rtol=0, atol=atol)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("options", [{}, {"lora_rank": 2}, {"gradient_checkpointing": True}])
def test_every_trainable_parameter_moves(
    name: str, options: dict[str, Any], policy: Path, tmp_path: Path
) -> None:
    begin, objective = start(policy), OBJECTIVES[name]()
    made = module(begin, objective, **options)
    before = weights(made)
    fit(made, encoded(begin, objective, toy_examples(16), tmp_path), 4)
    moved = {n: not torch.equal(before[n], p) for n, p in made.named_parameters()}
    trainable = {n for n, p in made.named_parameters() if p.requires_grad}
    assert {n for n, changed in moved.items() if changed} == trainable
    assert len(trainable) == len(moved) or options == {"lora_rank": 2}
    if options == {"lora_rank": 2}:
        heads = {n for n in trainable if "lora" not in n}
        assert heads == ({"model.score.weight"} if name == "bt" else set())


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("count", [16, 14, 9])
def test_batch_4_equals_2_accumulated(name: str, count: int, policy: Path, tmp_path: Path) -> None:
    """Also where the last step has fewer pairs, or fewer batches."""
    begin, objective = start(policy), OBJECTIVES[name]()
    pairs = encoded(begin, objective, toy_examples(count), tmp_path)
    one, other = module(begin, objective), module(begin, objective)
    fit(one, pairs, 4)
    fit(other, pairs, 2, accumulate=2)
    assert len(one.history) == len(other.history) == -(-count // 4)
    for row, same in zip(one.history, other.history, strict=True):
        assert row["train/loss"] == pytest.approx(same["train/loss"], abs=1e-5)
        assert row["train/gradient_norm"] == pytest.approx(same["train/gradient_norm"], rel=1e-4)
    assert_equal(one, other, atol=2e-5)


def test_gradient_checkpointing_changes_nothing(policy: Path, tmp_path: Path) -> None:
    begin = start(policy)
    pairs = encoded(begin, BradleyTerry(), toy_examples(8), tmp_path)
    plain, again = (
        module(begin, BradleyTerry(), gradient_checkpointing=on) for on in (False, True)
    )
    fit(plain, pairs, 4)
    fit(again, pairs, 4)
    assert_equal(plain, again, atol=1e-6)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_shared_prompts_leave_the_gradient_as_it_is(
    name: str, checkpointing: bool, policy: Path, tmp_path: Path
) -> None:
    """What chosen and rejected share runs once; every gradient is that of padded sequences."""
    begin, objective = start(policy), OBJECTIVES[name]()
    pairs = encoded(begin, objective, toy_examples(6), tmp_path)
    (batch,) = Batches(pairs, 6)
    assert all(fork.shared > 16 for fork in batch.forks)
    assert len(batch.forks) <= 6
    gradients = []
    for forks in (batch.forks, None):
        made = module(begin, objective, gradient_checkpointing=checkpointing)
        losses, _, _ = made.read(replace(batch, forks=forks))
        losses.mean().backward()
        gradients.append({n: p.grad for n, p in made.named_parameters()})
    packed, padded = gradients
    assert max(float(gradient.abs().max()) for gradient in padded.values()) > 0.01
    for parameter, gradient in padded.items():
        torch.testing.assert_close(packed[parameter], gradient, rtol=0, atol=1e-5)


def test_a_wrapper_of_several_devices_leaves_the_tokens_where_they_are_packed(
    policy: Path, tmp_path: Path
) -> None:
    """DDP and FSDP send tensors and tuples of tensors to their device; a batch is neither."""
    pairs = encoded(start(policy), DPO(), toy_examples(2), tmp_path)
    (batch,) = Batches(pairs, 2)
    assert _to_kwargs((batch,), {}, torch.device("meta"), False)[0][0][0] is batch


def test_a_fused_optimiser_steps_as_the_plain_one_and_leaves_out_what_is_not_finite(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: what is not logged is not read, and a bad step is found where one is logged."""
    begin = start(policy)
    pairs = encoded(begin, BradleyTerry(), toy_examples(24), tmp_path)
    plain, fused, broken = (module(begin, BradleyTerry()) for _ in range(3))
    fit(plain, pairs, 4)
    monkeypatch.setattr(module_file, "_FUSED", ("cpu",))
    reads: list[int] = []
    read = PreferenceModule._read_steps

    def noted(self: PreferenceModule) -> dict[str, float]:
        if self._unread:
            reads.append(len(self._unread))
        return read(self)

    monkeypatch.setattr(PreferenceModule, "_read_steps", noted)
    fit(fused, pairs, 4, log_every_n_steps=4)
    assert reads == [4, 2]
    assert_equal(plain, fused, atol=1e-6)
    assert [row["step"] for row in fused.history] == [row["step"] for row in plain.history]
    for row, same in zip(fused.history, plain.history, strict=True):
        for name in ("train/loss", "train/gradient_norm", "train/learning_rate"):
            assert row[name] == pytest.approx(same[name], rel=1e-4)
    seen: list[dict[str, torch.Tensor]] = []
    loss = BradleyTerry.loss

    def breaks(self: Any, chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
        seen.append(weights(broken))
        return loss(self, chosen, rejected) * (float("nan") if len(seen) == 2 else 1.0)

    monkeypatch.setattr(BradleyTerry, "loss", breaks)
    with pytest.raises(ScoreError, match=r"the loss is not finite in step 2 at pair "):
        fit(broken, pairs, 4, log_every_n_steps=4)
    assert len(seen) == 4
    moved = [any(not torch.equal(one[n], other[n]) for n in one) for one, other in pairwise(seen)]
    assert moved == [False, False, True]  # the first step's rate is 0 yet, the second is left out


def test_training_out_of_memory_says_what_to_do(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")

    begin = start(policy)
    pairs = encoded(begin, BradleyTerry(), toy_examples(4), tmp_path)
    monkeypatch.setattr(BradleyTerry, "loss", full)
    trainer = quiet_trainer()(logger=False, enable_checkpointing=False)
    made = module(begin, BradleyTerry())
    with pytest.raises(ConfigError, match=r"^training does not fit the GPU's memory: train anew"):
        fit_file.fit(trainer, made, Batches(pairs, 4), Batches(pairs, 4), tmp_path, None)


@pytest.mark.parametrize("normalised", [False, True])
def test_an_implicit_reward_is_zero_at_step_0(
    normalised: bool, policy: Path, tmp_path: Path
) -> None:
    """So the first loss is log 2, whatever beta is."""
    begin, objective = start(policy), DPO(beta=2.0, length_normalised=normalised)
    made = module(begin, objective)
    pairs = encoded(begin, objective, toy_examples(8), tmp_path)
    for batch in Batches(pairs, 3):
        rewards = objective.rewards(made.model, batch)
        torch.testing.assert_close(rewards, torch.zeros_like(rewards), rtol=0, atol=1e-3)
    fit(made, pairs, 8)
    assert made.history[0]["train/loss"] == pytest.approx(np.log(2), abs=1e-3)


@pytest.mark.parametrize("make", [tiny_scalar, tiny_encoder])
def test_scalar_rewards_are_those_of_evaluation(make: Any, tmp_path: Path) -> None:
    begin, objective = start(make(tmp_path / "model")), BradleyTerry()
    examples = toy_examples(8)
    scored = score(begin.reward, examples, Settings(tmp_path / "store")).scored
    expected = [row.chosen[0] for row in scored] + [row.rejected[0] for row in scored]
    made = module(begin, objective).eval()
    pad = begin.reward.chat.tokenizer.pad_token_id
    (batch,) = Batches(encoded(begin, objective, examples, tmp_path), 8, pad=pad)
    found = objective.rewards(made.model, batch)
    np.testing.assert_allclose(found.detach(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_validation_is_that_of_the_rewards(name: str, policy: Path, tmp_path: Path) -> None:
    """Means over 7 pairs in batches of 3, against the plain mean over all."""
    begin, objective = start(policy), OBJECTIVES[name]()
    pairs = encoded(begin, objective, toy_examples(7), tmp_path)
    made = module(begin, objective, learning_rate=1e-2)
    fit(made, pairs, 4, max_epochs=3)
    (batch,) = Batches(pairs, 7)
    with torch.inference_mode():
        losses, chosen, rejected = made.read(batch)
    trainer = quiet_trainer()(logger=False, enable_checkpointing=False)
    trainer.validate(made, Batches(pairs, 3), verbose=False)
    right = [wins([c], [r]) for c, r in zip(chosen.tolist(), rejected.tolist(), strict=True)]
    assert made.validation["val/accuracy"] == pytest.approx(np.mean(right))
    assert made.validation["val/loss"] == pytest.approx(float(losses.mean()), abs=1e-5)
    assert made.validation["val/margin"] == pytest.approx(
        float((chosen - rejected).mean()), abs=1e-5
    )


def test_training_lowers_the_loss(policy: Path, tmp_path: Path) -> None:
    begin = start(policy)
    made = module(begin, BradleyTerry(), steps=30, learning_rate=1e-2)
    fit(made, encoded(begin, BradleyTerry(), toy_examples(8), tmp_path), 8, max_epochs=30)
    assert made.history[-1]["train/loss"] < 0.2 < made.history[0]["train/loss"]
    assert made.history[-1]["train/accuracy"] == 1.0


def test_a_new_head_depends_on_the_seed_alone(policy: Path) -> None:
    heads = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(heads))
        tokenizer = start(policy).reward.chat.tokenizer
        column = start(policy).column
        model = BradleyTerry().load(column.checkpoint, tokenizer, "float32", None, seed)
        heads.append(model.score.weight.detach())
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    assert 0.05 < float(heads[0].std()) < 0.4  # 1 / sqrt(33) = 0.174


def test_a_loss_that_is_nan_stops_and_names_the_pair(policy: Path, tmp_path: Path) -> None:
    begin, objective = start(policy), DPO()
    pairs = list(encoded(begin, objective, toy_examples(4), tmp_path))
    broken = pairs[2]
    pairs[2] = type(broken)(broken.id, broken.chosen, broken.rejected, (float("nan"), 0.0))
    made = module(begin, objective)
    before = weights(made)
    with pytest.raises(ScoreError, match=f"the loss is not finite in step 1 at pair {broken.id}:"):
        fit(made, pairs, 4)
    for name, parameter in made.named_parameters():
        assert torch.equal(before[name], parameter), name


def test_a_gradient_that_is_nan_stops(policy: Path, tmp_path: Path) -> None:
    begin, objective = start(policy), BradleyTerry()
    made = module(begin, objective)
    made.model.score.weight.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(ScoreError, match="the gradient is not finite in step 1: give a lower"):
        fit(made, encoded(begin, objective, toy_examples(4), tmp_path), 4)
