"""Log-probabilities of tokens and their gradient, in one pass over the output embedding."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import tiny_policy
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from training import encoded, start, toy_examples

from rmexp.models import output
from rmexp.models.backbone import enable_packing
from rmexp.models.forward import logps_forward
from rmexp.models.loading import load_policy
from rmexp.models.output import output_weight, token_logits, token_logps
from rmexp.training.batches import PairBatch, collate
from rmexp.training.objectives import DPO

COUNT, WIDTH, VOCABULARY = 23, 16, 50
SCALINGS: dict[str, dict[str, float]] = {
    "plain": {},
    "capped": {"final_logit_softcapping": 3.0},
    "scaled": {"logit_scale": 0.25, "final_logit_softcapping": 1.0},
    "divided": {"logits_scaling": 4.0},
}


class Decoder(nn.Module):
    """An output embedding and a config, which is all that is read."""

    def __init__(self, bias: bool, **scaling: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=bias)
        self.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(**scaling))

    def get_output_embeddings(self) -> nn.Linear:
        return self.head

    get_input_embeddings = get_output_embeddings


def some() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    hidden = torch.randn(COUNT, WIDTH).requires_grad_()
    return hidden, torch.randint(VOCABULARY, (COUNT,)), torch.randn(COUNT)


def by_hand(model: Decoder, hidden: Tensor, targets: Tensor) -> Tensor:
    config = model.config.get_text_config()
    logits = model.head(hidden)
    logits = logits * getattr(config, "logit_scale", 1) / getattr(config, "logits_scaling", 1)
    if cap := getattr(config, "final_logit_softcapping", None):
        logits = cap * torch.tanh(logits / cap)
    return logits.log_softmax(-1)[torch.arange(COUNT), targets]


@pytest.fixture(params=["all", "some", "none"])
def room(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hold the logits of 4 rows at once, and keep the gradients of all rows, of 10 or of none."""
    monkeypatch.setattr(output, "_LOGITS_BYTES", 4 * 4 * VOCABULARY)
    kept = {"all": COUNT, "some": 10, "none": 0}[request.param]
    monkeypatch.setitem(output._KEPT_BYTES, "cpu", 4 * VOCABULARY * kept)


@pytest.mark.usefixtures("room")
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("scaling", SCALINGS)
def test_the_gradient_is_that_of_the_logits(scaling: str, bias: bool) -> None:
    model = Decoder(bias, **SCALINGS[scaling])
    hidden, targets, weights = some()
    given = [hidden, *model.head.parameters()]
    expected = by_hand(model, hidden, targets)
    found = token_logps(model, hidden, model.head.weight, targets)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    for one, other in zip(
        torch.autograd.grad(found, given, weights),
        torch.autograd.grad(expected, given, weights),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=3e-6)
    with torch.inference_mode():
        alone = token_logps(model, hidden, output_weight(model), targets)
        torch.testing.assert_close(alone, expected, rtol=0, atol=1e-6)
        logits = token_logits(model, hidden, output_weight(model))
        torch.testing.assert_close(
            logits.log_softmax(-1)[torch.arange(COUNT), targets], expected, rtol=0, atol=1e-6
        )


def test_no_token_and_autocast_while_going_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without tokens the gradient is 0; and what autocast would lower stays fp32."""
    model = Decoder(False)
    hidden, targets, weights = some()
    none = token_logps(model, hidden[:0], model.head.weight, targets[:0])
    assert not torch.autograd.grad(none.sum(), [model.head.weight])[0].any()
    monkeypatch.setitem(output._KEPT_BYTES, "cpu", 0)
    expected = torch.autograd.grad(by_hand(model, hidden, targets), [model.head.weight], weights)
    with torch.autocast("cpu", torch.bfloat16):
        logps = token_logps(model, hidden, model.head.weight, targets)
        found = torch.autograd.grad(logps, [model.head.weight], weights)
    torch.testing.assert_close(found, expected, rtol=0, atol=3e-6)


@pytest.mark.parametrize("trained", [False, True])
def test_a_frozen_embedding_keeps_nothing(trained: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under LoRA the states' gradient alone is made, and with the logits: no pass comes after."""
    model = Decoder(False).requires_grad_(trained)
    hidden, targets, weights = some()
    calls: list[tuple[int, ...]] = []
    product = output._product
    monkeypatch.setattr(
        output, "_product", lambda a, b: calls.append((*a.shape, b.shape[1])) or product(a, b)
    )
    found = token_logps(model, hidden, model.head.weight, targets)
    forward = [(COUNT, WIDTH, VOCABULARY), (COUNT, VOCABULARY, WIDTH)]
    assert calls == forward
    (gradient,) = torch.autograd.grad(found, [hidden], weights, retain_graph=True)
    assert calls == forward + [(VOCABULARY, COUNT, WIDTH)] * trained
    expected = torch.autograd.grad(by_hand(model, hidden, targets), [hidden], weights)[0]
    torch.testing.assert_close(gradient, expected, rtol=0, atol=3e-6)


def test_what_is_multiplied(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 bits on a GPU alone, where its sums are fp32: as the weights are, or as autocast would."""
    kinds = [(device, dtype) for device in ("cpu", "cuda") for dtype in (torch.float32, torch.half)]
    with FakeTensorMode():
        weights = [torch.empty(1, device=device, dtype=dtype) for device, dtype in kinds]
    found = [output._multiplied(weight) for weight in weights]
    assert found == [torch.float32, torch.float32, torch.float32, torch.half]
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: True)
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda kind: torch.bfloat16)
    found = [output._multiplied(weight) for weight in weights]
    assert found == [torch.float32, torch.float32, torch.bfloat16, torch.bfloat16]


@pytest.fixture
def bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Multiply as a GPU does in bf16 mixed precision: 16 bits, with fp32 sums."""
    monkeypatch.setattr(output, "_multiplied", lambda weight: torch.bfloat16)


@pytest.mark.usefixtures("room", "bf16")
def test_bf16_products_give_bf16s_error() -> None:
    model = Decoder(True)
    hidden, targets, weights = some()
    given = [hidden, *model.head.parameters()]
    found = token_logps(model, hidden, model.head.weight, targets)
    expected = by_hand(model, hidden, targets)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02)
    for one, other in zip(
        torch.autograd.grad(found, given, weights),
        torch.autograd.grad(expected, given, weights),
        strict=True,
    ):
        assert one.dtype == torch.float32
        assert float((one - other).norm() / other.norm()) < 2**-7


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_policy(tmp_path_factory.mktemp("policy") / "model")


def batch_of(policy: Path, folder: Path) -> tuple[Any, PairBatch]:
    """Return the model to train, and pairs with their references, on the CPU."""
    begin = start(policy)
    pairs = encoded(begin, DPO(), toy_examples(6), folder)
    model = load_policy(begin.column.checkpoint, "float32", None, "cpu")
    enable_packing(model)
    forward = logps_forward(model)
    both = [forward([pair.chosen, pair.rejected]) for pair in pairs]
    pairs = [replace(pair, references=(a, b)) for pair, (a, b) in zip(pairs, both, strict=True)]
    return model, collate(pairs, [1.0] * len(pairs), 1 / len(pairs))


def loss_and_gradient(model: Any, batch: PairBatch) -> tuple[float, dict[str, Tensor]]:
    model.zero_grad()
    objective = DPO()
    chosen, rejected = objective.rewards(model, batch).chunk(2)
    loss = (batch.weights * objective.loss(chosen, rejected)).sum()
    loss.backward()
    return float(loss.detach()), {name: p.grad.clone() for name, p in model.named_parameters()}


def test_the_first_dpo_loss_is_ln_2_and_its_gradient_has_bf16s_error(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where 16 bits are multiplied, for the reference and the policy alike."""
    model, batch = batch_of(policy, tmp_path)
    loss, exact = loss_and_gradient(model, batch)
    assert loss == pytest.approx(math.log(2), abs=1e-5)
    monkeypatch.setattr(output, "_multiplied", lambda weight: torch.bfloat16)
    model, batch = batch_of(policy, tmp_path)
    loss, found = loss_and_gradient(model, batch)
    assert loss == pytest.approx(math.log(2), abs=1e-5)
    for name, gradient in found.items():
        assert float((gradient - exact[name]).norm() / exact[name].norm()) < 0.03, name
