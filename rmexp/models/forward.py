"""The forward passes: one number a response, from a score head or from its log-probabilities.

Right padding and no mask for decoders: causal attention never looks at what follows, and the reward
is read at the last token of the response itself. Encoders get their mask. Heads run in fp32.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from rmexp.errors import ConfigError
from rmexp.models.backbone import (
    Model,
    enable_packing,
    exact_length,
    first_device,
    hidden_states,
    token_budget,
)
from rmexp.models.chat import Encoded
from rmexp.models.forks import Fork
from rmexp.models.fused import fuse, plain
from rmexp.models.heads import AdaptedModel
from rmexp.models.output import output_weight, token_logps
from rmexp.models.packing import moved


@dataclass(frozen=True, slots=True)
class Forward:
    """Compute a number a response: `forward(batch)`, or with `forks` what they share once.

    `start` gives the numbers as a tensor `(batch,)`, which a GPU may still be computing; `finite`
    waits for them.

    Packed rows are exact for responses of up to `packs` tokens; `obstacle` says why for none.
    `budget` is how many tokens a batch may have, and `most` how many the responses to one prompt.
    Within `plain` no fused layers run.
    `devices` are the GPUs that hold weights, whose memory may hold fewer.
    """

    start: Callable[[Sequence[Encoded], Sequence[Fork] | None], Tensor]
    packs: float = 0
    obstacle: str | None = None
    budget: int = 4096
    most: int = 4096
    plain: Callable[[], AbstractContextManager[None]] = nullcontext
    devices: tuple[str, ...] = ()

    def __call__(
        self, batch: Sequence[Encoded], forks: Sequence[Fork] | None = None
    ) -> list[float]:
        """Return the batch's numbers, NaN for one that is not finite."""
        return finite(self.start(batch, forks))

    def alone(self, response: Encoded) -> float:
        """Return a response's number as the library's own layers compute it, by itself."""
        with self.plain():
            return self([response])[0]


def scalar_forward(model: Model, pad: int | None, fused: bool = True) -> Forward:
    """Return the forward pass to the rewards of a batch of responses.

    `pad` is the tokenizer's pad token: an encoder whose own differs is refused, for it would take
    padding for text. A decoder never sees it. `fused` asks for fused kernels, see `fuse`.
    """
    if not is_decoder(model) and pad != model.config.pad_token_id:
        raise ConfigError(
            f"the tokenizer pads with token {pad}, {type(model).__name__} with "
            f"{model.config.pad_token_id}: make pad_token_id equal in config.json"
        )

    @torch.inference_mode()
    def start(batch: Sequence[Encoded], forks: Sequence[Fork] | None) -> Tensor:
        return scalar_rewards(model, *_pad(batch, pad or 0), forks or _apart(batch))

    if not is_decoder(model):
        why = "an encoder attends both ways"
        return Forward(start, 0, why, *token_budget(model), devices=_gpus(model))
    return _packing_forward(model, start, fused)


def logps_forward(model: Model, autocast: str | None = None, fused: bool = True) -> Forward:
    """Return what sums the log-probabilities of a batch of responses' tokens.

    `autocast` names the dtype of the matrix products, None for that of the weights; `fused` asks
    for fused kernels, see `fuse`.
    """
    kind = torch.device(first_device(model)).type
    dtype = None if autocast is None else getattr(torch, autocast)

    def mixed() -> torch.autocast:
        return torch.autocast(kind, dtype, enabled=autocast is not None)

    with mixed():
        weight = output_weight(model)

    @torch.inference_mode()
    def start(batch: Sequence[Encoded], forks: Sequence[Fork] | None) -> Tensor:
        starts = torch.tensor([row.start for row in batch])
        ends = torch.tensor([row.end for row in batch])
        with mixed():
            padded = _pad(batch, 0)
            return response_logps(model, *padded, starts, ends, weight, forks or _apart(batch))

    return _packing_forward(model, start, fused)


def scalar_rewards(
    model: Model, ids: Tensor, lengths: Tensor, forks: Sequence[Fork] | None = None
) -> Tensor:
    """Return the head's output at the last token of each sequence: `(batch,)`, fp32.

    `ids` is `(batch, length)`, padded on the right; `lengths` is `(batch,)`. What the rows of
    `forks` share is run once; see `hidden_states`. An encoder is pooled as its own architecture
    does. The tensors may lie on the CPU whatever the model's device.
    """
    if isinstance(model, AdaptedModel):
        rewards: Tensor = model(ids, lengths, forks)
    elif is_decoder(model):
        rows = torch.arange(len(ids), device=ids.device)
        last = hidden_states(model, ids, lengths, forks)(rows, lengths - 1)
        with torch.autocast(last.device.type, enabled=False):
            rewards = model.score(last)
    else:
        mask = torch.arange(ids.shape[1], device=ids.device) < lengths.unsqueeze(1)
        there = next(model.parameters(), ids).device
        inputs = {"input_ids": moved(ids, there), "attention_mask": moved(mask.long(), there)}
        rewards = model(**inputs).logits
    if rewards.numel() != len(ids):
        raise ConfigError(
            f"{type(model).__name__} gives {rewards.numel() / len(ids):g} numbers to a response, a "
            "reward is one: give another model"
        )
    return rewards.reshape(len(ids)).float()


def response_logps(
    model: Model,
    ids: Tensor,
    lengths: Tensor,
    starts: Tensor,
    ends: Tensor,
    weight: Tensor,
    forks: Sequence[Fork] | None = None,
) -> Tensor:
    """Return each response's summed log-probability: `(batch,)`, fp32.

    `ids` is `(batch, length)`, padded on the right, `lengths` `(batch,)`; the response's tokens are
    `starts` to `ends`, `(batch,)` each, half open. `weight` is the output embedding, as it
    is or as `output_weight` makes it ready for many batches. Logits are made for response tokens
    only. A sequence's first token has no log-probability. What the rows of `forks` share is run
    once; see `hidden_states`. The tensors may lie on the CPU whatever the model's device.
    """
    positions = torch.arange(1, ids.shape[1], device=ids.device)
    mask = (positions >= starts.unsqueeze(1)) & (positions < ends.unsqueeze(1))
    rows, before = mask.nonzero().unbind(1)
    hidden = hidden_states(model, ids, lengths, forks)(rows, before)
    logps = token_logps(model, hidden, weight, moved(ids[rows, before + 1], hidden.device))
    return logps.new_zeros(len(ids)).index_add(0, moved(rows, hidden.device), logps)


def is_decoder(model: Model) -> bool:
    """Say whether the model is read at the last token, and not pooled as an encoder is."""
    return isinstance(model, AdaptedModel) or (
        isinstance(getattr(model, "score", None), nn.Linear) and not model.config.is_encoder_decoder
    )


def finite(values: Tensor) -> list[float]:
    """Return the values, with NaN for an infinite one."""
    return [float(v) for v in torch.where(values.isfinite(), values, torch.nan).tolist()]


def _packing_forward(
    model: Model, start: Callable[[Sequence[Encoded], Sequence[Fork] | None], Tensor], fused: bool
) -> Forward:
    obstacle = enable_packing(model)
    if fused:
        fuse(model)
    return Forward(
        start,
        exact_length(model),
        obstacle,
        *token_budget(model),
        plain=partial(plain, model),
        devices=_gpus(model),
    )


def _gpus(model: Model) -> tuple[str, ...]:
    """Return the GPUs that hold weights of the model."""
    return tuple({str(p.device): None for p in model.parameters() if p.device.type == "cuda"})


def _apart(batch: Sequence[Encoded]) -> list[Fork] | None:
    """Return responses that share nothing as forks; one alone runs as the library runs it."""
    return [Fork(0, (row,)) for row in range(len(batch))] if len(batch) > 1 else None


def _pad(batch: Sequence[Encoded], pad: int) -> tuple[Tensor, Tensor]:
    """Return ids `(batch, length)`, padded on the right, and lengths `(batch,)`."""
    rows = [torch.from_numpy(np.array(row.ids, dtype=np.int64)) for row in batch]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
    return ids, torch.tensor([len(row) for row in rows])
