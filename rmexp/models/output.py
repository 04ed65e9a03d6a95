"""The output embedding: log-probabilities of tokens from hidden states, and their gradient.

Sums, logits and log-probabilities are fp32. What is multiplied is fp32 as well, but on a GPU, whose
tensor cores multiply 16 bits with fp32 sums: there it is what the weights are, or what autocast
would make of them. So no value is rounded that was not.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rmexp.models.backbone import Model, first_device

_LOGITS_BYTES = 256 * 2**20  # fp32 logits held at once
_KEPT_BYTES = {"cpu": 2**29, "cuda": 2**31}  # of their gradient, held instead of made again


class Scaling(NamedTuple):
    """What a decoder does with its logits: `factor` times them, then a soft cap."""

    factor: float = 1.0
    cap: float | None = None


def output_weight(model: Model) -> Tensor:
    """Return the output embedding as it is multiplied, without gradient.

    It lies on the device that token ids go to, and is made for the autocast in which it is called.
    """
    weight: Tensor = model.get_output_embeddings().weight
    weight = weight.detach().to(first_device(model))
    return weight.to(_multiplied(weight))


def token_logits(model: Model, hidden: Tensor, weight: Tensor) -> Tensor:
    """Return fp32 logits `(n, vocabulary)` of hidden states `(n, width)`.

    `weight` is the output embedding, as it is or as `output_weight` makes it ready. Applies
    the scalings that the library's decoders know: Gemma 2's soft cap, and the factors of Cohere and
    Granite.
    """
    hidden, weight = _with_bias(model, hidden, weight)
    dtype = _multiplied(weight)
    return _logits(hidden.to(dtype), weight.to(dtype), _scaling(model))


def token_logps(model: Model, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Return the log-probabilities `(n,)` of tokens after hidden states `(n, width)`, fp32.

    `weight` is the output embedding, as it is or as `output_weight` makes it ready. Logits are made
    some rows at a time, and what their gradient needs of them at once.
    """
    hidden, weight = _with_bias(model, hidden, weight)
    scaling, dtype = _scaling(model), _multiplied(weight)
    with torch.autocast(hidden.device.type, enabled=False):
        if torch.is_grad_enabled():
            given = (hidden, weight, targets, scaling, dtype)
            made: Tensor = _TokenLogps.apply(*given)  # type: ignore[no-untyped-call]
            return made
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        logps = hidden.new_empty(len(hidden), dtype=torch.float32)
        for part in _parts(0, len(hidden), len(weight)):
            rows = torch.log_softmax(_logits(hidden[part], weight, scaling), -1)
            logps[part] = _at(rows, targets[part])
    return logps


class _TokenLogps(torch.autograd.Function):
    """Log-probabilities whose gradient is made with them, while their logits are there.

    The gradient of a log-probability by its hidden state is a row, which the gradient to come
    multiplies. By the weights, the whole gradient is a sum of outer products, of a hidden state and
    the gradient by its logits: as many of these as there is room for are kept until then, the
    others are made again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        scaling: Scaling,
        dtype: torch.dtype,
    ) -> Tensor:
        of_hidden, of_weight, *_ = ctx.needs_input_grad
        ctx.scaling, ctx.dtypes = scaling, (hidden.dtype, weight.dtype)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        vocabulary = len(weight)
        logps = hidden.new_empty(len(hidden), dtype=torch.float32)
        rows = torch.empty_like(hidden, dtype=torch.float32) if of_hidden else None
        room = _KEPT_BYTES[hidden.device.type] // (weight.element_size() * vocabulary)
        kept = min(room, len(hidden)) if of_weight else 0
        slopes = weight.new_empty(kept, vocabulary)
        for part in (*_parts(0, kept, vocabulary), *_parts(kept, len(hidden), vocabulary)):
            into = slopes[part] if part.start < kept else None
            logps[part], slope = _with_slope(hidden[part], weight, targets[part], scaling, into)
            if rows is not None:
                rows[part] = _product(slope, weight)
        again = weight if of_weight and kept < len(hidden) else None
        ctx.save_for_backward(hidden, again, targets, rows, slopes)
        return logps

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, rows, slopes = ctx.saved_tensors
        of_hidden, of_weight, *_ = ctx.needs_input_grad
        grad = -ctx.scaling.factor * grad.unsqueeze(1)
        total = None
        if of_weight:
            (kept, vocabulary), scaled = slopes.shape, (grad * hidden).to(hidden.dtype)
            with torch.autocast(hidden.device.type, enabled=False):
                total = _product(slopes.T, scaled[:kept])
                for part in _parts(kept, len(hidden), vocabulary):
                    _, slope = _with_slope(hidden[part], weight, targets[part], ctx.scaling)
                    total += _product(slope.T, scaled[part])
            total = total.to(ctx.dtypes[1])
        return (grad * rows).to(ctx.dtypes[0]) if of_hidden else None, total, None, None, None


def _with_slope(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    scaling: Scaling,
    into: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return log-probabilities `(n,)`, and their fall by the products `(n, vocabulary)`.

    That is how much each falls as a product grows, but for the scalings' factor, in the dtype of
    what is multiplied; it is written to `into` where that is given.
    """
    slope = weight.new_empty(len(hidden), len(weight)) if into is None else into
    logits = _logits(hidden, weight, scaling)
    rows = torch.log_softmax(logits, -1)
    logps = _at(rows, targets)
    own = logps.expm1()
    if scaling.cap is None:
        torch.exp(rows, out=slope)  # rounded on its way, not in a pass of its own
    else:
        under = 1 - (logits / scaling.cap) ** 2
        torch.mul(rows.exp_(), under, out=slope)
        own *= _at(under, targets)
    slope.scatter_(1, targets.unsqueeze(1), own.to(slope.dtype).unsqueeze(1))
    return logps, slope


def _logits(hidden: Tensor, weight: Tensor, scaling: Scaling) -> Tensor:
    logits = _product(hidden, weight.T)
    if scaling.factor != 1:
        logits = logits * scaling.factor
    if scaling.cap is not None:
        logits = scaling.cap * torch.tanh(logits / scaling.cap)
    return logits


def _product(one: Tensor, other: Tensor) -> Tensor:
    """Return the matrix product in fp32, with fp32 sums."""
    if one.dtype != torch.float32 and one.device.type == "cuda":
        return torch.mm(one, other, out_dtype=torch.float32)
    return one.float() @ other.float()


def _at(rows: Tensor, targets: Tensor) -> Tensor:
    return rows.gather(1, targets.unsqueeze(1)).squeeze(1)


def _parts(begin: int, end: int, vocabulary: int) -> Iterator[slice]:
    """Yield rows whose logits are held at once."""
    step = max(1, _LOGITS_BYTES // (4 * vocabulary))
    for at in range(begin, end, step):
        yield slice(at, min(at + step, end))


def _with_bias(model: Model, hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return states and weights; a bias is one weight more, of a state that is 1."""
    bias = getattr(model.get_output_embeddings(), "bias", None)
    if bias is None:
        return hidden, weight
    ones = hidden.new_ones(len(hidden), 1)
    return torch.cat([hidden, ones], 1), torch.cat([weight, bias.unsqueeze(1).to(weight)], 1)


def _multiplied(weight: Tensor) -> torch.dtype:
    """Return the dtype of what is multiplied."""
    kind = weight.device.type
    if kind != "cuda":
        return torch.float32
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


def _scaling(model: Model) -> Scaling:
    config = model.config.get_text_config()
    factor = getattr(config, "logit_scale", None)
    divisor = getattr(config, "logits_scaling", None)
    return Scaling(
        (1.0 if factor is None else factor) / (1.0 if divisor is None else divisor),
        getattr(config, "final_logit_softcapping", None),
    )
