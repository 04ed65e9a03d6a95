"""Fused layers run on a GPU, on the one model that is changed, and can be switched off."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama import modeling_llama

from rmexp.errors import ConfigError
from rmexp.models import fused
from rmexp.models.chat import Encoded
from rmexp.models.forward import logps_forward
from rmexp.models.fused import fuse, plain

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
IDS = torch.arange(5, 17).unsqueeze(0)


def made() -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES)).eval()


class Liger:
    """What stands in for the package: layers that compute the same and count their calls."""

    def __init__(self, error: float = 0.0) -> None:
        self.calls = {"norm": 0, "mlp": 0, "rotary": 0}
        self.error = error
        self.options: dict[str, Any] = {}
        self.module = ModuleType("liger_kernel.transformers.monkey_patch")
        self.module.MODEL_TYPE_TO_APPLY_LIGER_FN = {"llama": None}
        self.module._apply_liger_kernel_to_instance = self.apply

    def apply(self, model: Any, **options: Any) -> None:
        """Change the family's file for all models to come, and the layers of this one."""
        self.options = options
        turn = modeling_llama.apply_rotary_pos_emb

        def rotary(*parts: Tensor) -> tuple[Tensor, Tensor]:
            self.calls["rotary"] += 1
            return turn(*parts)

        modeling_llama.apply_rotary_pos_emb = rotary
        modeling_llama.LlamaRMSNorm = modeling_llama.LlamaMLP = None
        for name, module in model.named_modules():
            kind = "norm" if name.endswith("norm") else "mlp" if name.endswith("mlp") else None
            if kind is not None:
                module.forward = self.counted(kind, module, type(module).forward)
                module._get_name = lambda: "Fused"

    def counted(self, kind: str, module: Any, forward: Any) -> Any:
        def counting(states: Tensor) -> Tensor:
            self.calls[kind] += 1
            return forward(module, states) + self.error

        return counting


@pytest.fixture
def liger(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Liger:
    """Give the stand-in, as on a machine whose every tensor is on a GPU."""
    standing = Liger(getattr(request, "param", 0.0))
    package = SimpleNamespace(monkey_patch=standing.module)
    monkeypatch.setitem(sys.modules, "liger_kernel", SimpleNamespace(transformers=package))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", package)
    monkeypatch.setattr(fused, "available", lambda: True)
    monkeypatch.setattr(fused, "_on_gpu", lambda tensor: True)
    return standing


def test_one_model_is_changed_and_its_family_is_not(liger: Liger) -> None:
    before = dict(vars(modeling_llama))
    model, other = made(), made()
    with torch.inference_mode():
        expected = model(IDS).logits
        assert fuse(model)
        assert liger.options == {"cross_entropy": False, "fused_linear_cross_entropy": False}
        assert {k: v for k, v in vars(modeling_llama).items() if k in before} == before
        liger.calls = dict.fromkeys(liger.calls, 0)
        torch.testing.assert_close(model(IDS).logits, expected)
        assert liger.calls == {"norm": 5, "mlp": 2, "rotary": 2}
        other(IDS)
        LlamaForCausalLM(LlamaConfig(**SIZES))(IDS)
    assert liger.calls == {"norm": 5, "mlp": 2, "rotary": 2}
    assert "Fused" not in str(model)


def test_what_was_changed_is_not_changed_again(liger: Liger) -> None:
    model = made()
    with torch.inference_mode():
        expected = model(IDS).logits
        assert fuse(model)
        first = {name: vars(module).get("forward") for name, module in model.named_modules()}
        assert fuse(model)
        torch.testing.assert_close(model(IDS).logits, expected)
    assert {n: vars(m).get("forward") for n, m in model.named_modules()} == first


def test_the_plain_layers_run_within_plain_and_on_the_cpu(
    liger: Liger, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = made()
    assert fuse(model)
    ran = dict(liger.calls)
    assert ran == {"norm": 5, "mlp": 2, "rotary": 2}  # the probe
    with torch.inference_mode(), plain(model):
        model(IDS)
    monkeypatch.setattr(fused, "_on_gpu", lambda tensor: tensor.is_cuda)
    model(IDS).logits.sum().backward()
    assert liger.calls == ran
    with plain(made()):  # one that was not changed
        pass


def test_a_response_is_checked_alone_by_the_plain_layers(liger: Liger) -> None:
    forward = logps_forward(made())
    row = Encoded(tuple(range(5, 17)), 4, 12)
    liger.calls = dict.fromkeys(liger.calls, 0)
    (number,) = forward([row])
    ran = dict(liger.calls)
    assert min(ran.values()) > 0
    assert forward.alone(row) == pytest.approx(number, abs=1e-5)
    assert liger.calls == ran


def test_switched_off_nothing_is_changed(liger: Liger) -> None:
    model = made()
    logps_forward(model, fused=False)([Encoded(tuple(range(5, 17)), 4, 12)])
    assert liger.calls == dict.fromkeys(liger.calls, 0)


@pytest.mark.parametrize("liger", [0.5], indirect=True)
def test_other_numbers_than_the_plain_ones_are_found_by_a_probe(liger: Liger) -> None:
    """A family's layers may differ from those that liger-kernel takes them for."""
    model = made()
    with torch.inference_mode():
        expected = model(IDS).logits
        assert not fuse(model)
        assert torch.equal(model(IDS).logits, expected)
    assert not any("forward" in vars(module) for module in model.modules())


def test_what_is_left_as_it_is(liger: Liger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another family, weights over several devices, no package."""
    model = made()
    model.model._hf_hook = object()
    assert not fuse(model)
    del model.model._hf_hook
    liger.module.MODEL_TYPE_TO_APPLY_LIGER_FN = {"gemma": None}
    assert not fuse(model)
    liger.module.MODEL_TYPE_TO_APPLY_LIGER_FN = {"llama": None}
    monkeypatch.setattr(fused, "available", lambda: False)
    assert not fuse(model)
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_package_of_another_time_says_what_to_do(
    liger: Liger, monkeypatch: pytest.MonkeyPatch
) -> None:
    def apply(model: Any, **options: Any) -> None:
        modeling_llama.LlamaMLP = None
        raise TypeError("no such layer")

    before = dict(vars(modeling_llama))
    monkeypatch.setattr(liger.module, "_apply_liger_kernel_to_instance", apply)
    with pytest.raises(
        ConfigError, match=r"change LlamaModel \(no such layer\).*model.fused=false"
    ):
        fuse(made())
    assert {k: v for k, v in vars(modeling_llama).items() if k in before} == before


def test_it_is_there_with_a_gpu_and_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"package": object(), "gpu": True}
    monkeypatch.setattr(fused, "find_spec", lambda name: there["package"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there["gpu"])
    assert fused.available()
    there["gpu"] = False
    assert not fused.available()
    there.update(gpu=True, package=None)
    assert not fused.available()
