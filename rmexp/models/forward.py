"""The forward passes: one number a response, from a score head or from its log-probabilities.

Right padding and no mask for decoders: causal attention never looks at what follows, and the reward
is read at the last token of the response itself. Encoders get their mask. Heads run in fp32.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

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
from rmexp.models.heads import AdaptedModel

_LOGITS_BYTES = 256 * 2**20  # fp32 logits held at once


@dataclass(frozen=True, slots=True)
class Forward:
    """Compute a number a response: `forward(batch)`, or in a packed row with `forks`.

    Packed rows are exact for responses of up to `packs` tokens; `obstacle` says why for none.
    `budget` is how many tokens a batch may have, and `most` how many the responses to one prompt.
    """

    run: Callable[[Sequence[Encoded], Sequence[Fork] | None], list[float]]
    packs: float = 0
    obstacle: str | None = None
    budget: int = 4096
    most: int = 4096

    def __call__(
        self, batch: Sequence[Encoded], forks: Sequence[Fork] | None = None
    ) -> list[float]:
        """Return the batch's numbers, NaN for one that is not finite."""
        return self.run(batch, forks)


def scalar_forward(model: Model, pad: int | None) -> Forward:
    """Return the forward pass to the rewards of a batch of responses.

    `pad` is the tokenizer's pad token: an encoder whose own differs is refused, for it would take
    padding for text. A decoder never sees it.
    """
    if not is_decoder(model) and pad != model.config.pad_token_id:
        raise ConfigError(
            f"the tokenizer pads with token {pad}, {type(model).__name__} with "
            f"{model.config.pad_token_id}: make pad_token_id equal in config.json"
        )
    device = first_device(model)

    @torch.inference_mode()
    def read(batch: Sequence[Encoded], forks: Sequence[Fork] | None) -> list[float]:
        ids, lengths = _pad(batch, pad or 0, device)
        return _finite(scalar_rewards(model, ids, lengths, forks))

    if not is_decoder(model):
        return Forward(read, 0, "an encoder attends both ways", *token_budget(model))
    return _packing_forward(model, read)


def logps_forward(model: Model, autocast: str | None = None) -> Forward:
    """Return what sums the log-probabilities of a batch of responses' tokens.

    `autocast` names the dtype of the matrix products, None for that of the weights.
    """
    weight, device = fp32_weight(model), first_device(model)
    kind = torch.device(device).type
    dtype = None if autocast is None else getattr(torch, autocast)

    @torch.inference_mode()
    def read(batch: Sequence[Encoded], forks: Sequence[Fork] | None) -> list[float]:
        ids, lengths = _pad(batch, 0, device)
        starts = torch.tensor([row.start for row in batch], device=device)
        ends = torch.tensor([row.end for row in batch], device=device)
        with torch.autocast(kind, dtype, enabled=autocast is not None):
            return _finite(response_logps(model, ids, lengths, starts, ends, weight, forks))

    return _packing_forward(model, read)


def scalar_rewards(
    model: Model, ids: Tensor, lengths: Tensor, forks: Sequence[Fork] | None = None
) -> Tensor:
    """Return the head's output at the last token of each sequence: `(batch,)`, fp32.

    `ids` is `(batch, length)`, padded on the right; `lengths` is `(batch,)`. What the rows of
    `forks` share is run once; see `hidden_states`. An encoder is pooled as its own architecture
    does.
    """
    if isinstance(model, AdaptedModel):
        rewards: Tensor = model(ids, lengths, forks)
    elif is_decoder(model):
        rows = torch.arange(len(ids), device=ids.device)
        last = hidden_states(model, ids, lengths, forks)(rows, lengths - 1)
        with torch.autocast(ids.device.type, enabled=False):
            rewards = model.score(last)
    else:
        mask = torch.arange(ids.shape[1], device=ids.device) < lengths.unsqueeze(1)
        rewards = model(input_ids=ids, attention_mask=mask.long()).logits
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
    `starts` to `ends`, `(batch,)` each, half open. `weight` is the output embedding in fp32. Logits
    are made for response tokens only, some rows at a time. A sequence's first token has no
    log-probability. What the rows of `forks` share is run once; see `hidden_states`.
    """
    positions = torch.arange(1, ids.shape[1], device=ids.device)
    mask = (positions >= starts.unsqueeze(1)) & (positions < ends.unsqueeze(1))
    rows, before = mask.nonzero().unbind(1)
    hidden = hidden_states(model, ids, lengths, forks)(rows, before)
    targets = ids[rows, before + 1]
    sums = torch.zeros(len(ids), dtype=torch.float32, device=ids.device)
    step = max(1, _LOGITS_BYTES // (4 * weight.shape[0]))

    def read(hidden: Tensor, targets: Tensor) -> Tensor:
        logits = token_logits(model, hidden, weight)
        return -nn.functional.cross_entropy(logits, targets, reduction="none")

    with torch.autocast(ids.device.type, enabled=False):
        for at in range(0, len(rows), step):
            part = slice(at, at + step)
            if torch.is_grad_enabled():  # a chunk's logits are made again for its gradient
                logps = recomputed(read, hidden[part], targets[part], use_reentrant=False)
            else:
                logps = read(hidden[part], targets[part])
            sums = sums.index_add(0, rows[part], logps)
    return sums


def token_logits(model: Model, hidden: Tensor, weight: Tensor) -> Tensor:
    """Return fp32 logits `(..., vocabulary)` of hidden states `(..., width)`.

    Applies the scalings that the library's decoders know: Gemma 2's soft cap, and the factors of
    Cohere and Granite.
    """
    config = model.config.get_text_config()
    bias = getattr(model.get_output_embeddings(), "bias", None)
    bias = None if bias is None else bias.float().to(weight.device)
    logits = nn.functional.linear(hidden.float(), weight, bias)
    if (scale := getattr(config, "logit_scale", None)) is not None:
        logits = logits * scale
    if (scaling := getattr(config, "logits_scaling", None)) is not None:
        logits = logits / scaling
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
        logits = cap * torch.tanh(logits / cap)
    return logits


def fp32_weight(model: Model) -> Tensor:
    """Return the output embedding in fp32, on the device that token ids go to."""
    weight: Tensor = model.get_output_embeddings().weight
    return weight.detach().float().to(first_device(model))


def is_decoder(model: Model) -> bool:
    """Say whether the model is read at the last token, and not pooled as an encoder is."""
    return isinstance(model, AdaptedModel) or (
        isinstance(getattr(model, "score", None), nn.Linear) and not model.config.is_encoder_decoder
    )


def _packing_forward(
    model: Model, read: Callable[[Sequence[Encoded], Sequence[Fork] | None], list[float]]
) -> Forward:
    obstacle = enable_packing(model)
    return Forward(read, exact_length(model), obstacle, *token_budget(model))


def _pad(batch: Sequence[Encoded], pad: int, device: str) -> tuple[Tensor, Tensor]:
    """Return ids `(batch, length)`, padded on the right, and lengths `(batch,)`."""
    rows = [torch.tensor(row.ids) for row in batch]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
    return ids.to(device), torch.tensor([len(row) for row in rows], device=device)


def _finite(values: Tensor) -> list[float]:
    """Return the values, with NaN for an infinite one."""
    return [float(v) for v in torch.where(values.isfinite(), values, torch.nan).tolist()]
