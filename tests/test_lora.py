"""LoRA's layers give what PEFT's own do, and are trained in fp32 whatever lies below them."""

import pytest
import torch
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn

from rmexp.training.lora import add_lora, merge_lora
from rmexp.training.lora_linear import LoraLinear


class Model(nn.Module):
    """A linear layer with a bias, named as a decoder's are."""

    base_model_prefix = "model"

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(24, 40)).to(dtype)

    def get_output_embeddings(self) -> None:
        """Return none: this model has no head."""


def made(dtype: torch.dtype, dropout: float = 0.0) -> Model:
    model = Model(dtype)
    add_lora(model, 4, 8, dropout)
    for name, part in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(part)
    return model


def given(dtype: torch.dtype) -> Tensor:
    return torch.randn(3, 7, 24, generator=torch.Generator().manual_seed(1)).to(dtype)


def gradients(model: Model, states: Tensor) -> list[Tensor]:
    states = states.clone().requires_grad_()
    out = model.model(states)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
    (out.float() * weights).sum().backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in trained if p.grad is not None)
    return [out.detach(), *(part.grad for part in (states, *trained) if part.grad is not None)]


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_outputs_and_gradients_are_pefts(
    dtype: torch.dtype, limit: float, dropout: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = made(dtype, dropout)
    assert isinstance(model.model[0], LoraLinear)
    torch.manual_seed(3)
    found = gradients(model, given(dtype))
    assert found[0].dtype == dtype
    monkeypatch.setattr(LoraLinear, "forward", Linear.forward)
    torch.manual_seed(3)
    model.zero_grad()
    for one, other in zip(found, gradients(model, given(dtype)), strict=True):
        assert float((one - other).float().norm()) <= limit * float(other.float().norm())


def test_a_merged_layer_gives_the_same() -> None:
    model = made(torch.float32)
    expected = model.model(given(torch.float32))
    merge_lora(model)
    assert type(model.model[0]) is nn.Linear
    torch.testing.assert_close(model.model(given(torch.float32)), expected)


def test_one_step_begins_at_the_model_below() -> None:
    model, plain = Model(torch.bfloat16), Model(torch.bfloat16)
    add_lora(model, 4, 8, 0.0)
    states = given(torch.bfloat16)
    assert torch.equal(model.model(states), plain.model(states))
