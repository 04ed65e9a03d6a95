"""Packed rows: many sequences side by side without padding, what they share lying there once.

Whatever a decoder does with a token alone runs on the row as it is. Its attention runs on the
sequences: `register` makes the function known to the library, which calls it in every layer.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rmexp.models.forks import Fork

NAME = "rmexp_packed"
_MERGING = ("cpu",)  # devices whose kernel gives its log-sum-exps

_attend_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_attend_cpu_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class Span(NamedTuple):
    """A fork's place in the row: its shared tokens, then each sequence's own, to the next bound."""

    begin: int
    bounds: tuple[int, ...]


class Packing:
    """Where the tokens of sequences lie in a packed row.

    `forks` name the sequences by their rows in a padded batch, each exactly once, and `lengths` are
    those of the batch's rows.
    """

    def __init__(self, forks: Sequence[Fork], lengths: Sequence[int]) -> None:
        self.spans: list[Span] = []
        places = [(0, 0, 0)] * len(lengths)  # of a row: its shared tokens, how many, its own
        end = 0
        for fork in forks:
            own = (lengths[row] - fork.shared for row in fork.rows)
            span = Span(end, tuple(accumulate(own, initial=end + fork.shared)))
            for row, at in zip(fork.rows, span.bounds, strict=False):
                places[row] = (span.begin, fork.shared, at)
            self.spans.append(span)
            end = span.bounds[-1]
        self.tokens = end
        self._begin, self._shared, self._own = torch.tensor(places).unbind(1)
        self._length = max(lengths)
        self._lengths = torch.tensor(lengths)

    def at(self, rows: Tensor, positions: Tensor) -> Tensor:
        """Return where in the packed row the tokens `(n,)` of a padded batch lie."""
        begin, shared, own = (
            part.to(rows.device)[rows] for part in (self._begin, self._shared, self._own)
        )
        return positions + torch.where(positions < shared, begin, own - shared)

    def pack(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return the ids and positions `(1, tokens)` of a padded batch `(batch, length)`."""
        rows, positions = self._tokens(ids.device)
        places = self.at(rows, positions)
        packed, at = ids.new_empty(self.tokens), ids.new_empty(self.tokens)
        packed[places], at[places] = ids[rows, positions], positions
        return packed.unsqueeze(0), at.unsqueeze(0)

    def unpacked(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return where a padded batch's tokens lie, and where the packed ones lie in that batch.

        The first are places `(batch, length)` in the row, any one for padding, the second places
        `(tokens,)` in the flattened batch.
        """
        rows, positions = self._tokens(device)
        places = self.at(rows, positions)
        forth = places.new_zeros(len(self._lengths), self._length)
        forth[rows, positions] = places
        back = places.new_empty(self.tokens)
        back[places] = rows * self._length + positions
        return forth, back

    def _tokens(self, device: torch.device) -> tuple[Tensor, Tensor]:
        mask = torch.arange(self._length) < self._lengths.unsqueeze(1)
        rows, positions = mask.nonzero().to(device).unbind(1)
        return rows, positions


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packing: Packing | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, None]:
    """Return what the tokens of a packed row attend to, `(1, tokens, heads, width)`.

    `query` is `(1, heads, tokens, width)`; `key` and `value` may have fewer heads. Without a
    `packing` it is the library's own attention. Raises ValueError for what a packed row lacks.
    """
    if packing is None:
        given: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
        return given
    if unknown := {"softcap", "s_aux", "position_bias"} & {
        k for k, v in options.items() if v is not None
    }:
        raise ValueError(f"packed rows know no {', '.join(sorted(unknown))}")
    if dropout:
        raise ValueError("packed rows know no attention dropout")
    kind = query.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype
    query, key, value = query[0].to(dtype), key[0].to(dtype), value[0].to(dtype)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if kind in _MERGING and query.shape[-1] == value.shape[-1]:
        forked = (query, key, value, packing.spans, scale)
        out: Tensor = _Forked.apply(*forked)  # type: ignore[no-untyped-call]
    else:
        out = _gathered(query, key, value, packing, scale)
    return out.transpose(0, 1).unsqueeze(0), None


def _gathered(query: Tensor, key: Tensor, value: Tensor, packing: Packing, scale: float) -> Tensor:
    """Attend on each sequence as a whole, in a batch padded on the right."""
    forth, back = packing.unpacked(query.device)
    query, key, value = (part[:, forth].transpose(0, 1) for part in (query, key, value))
    out = scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=scale, enable_gqa=True
    )
    return out.transpose(0, 1).flatten(1, 2)[:, back]


class _Forked(torch.autograd.Function):
    """Attend to shared and own tokens apart, and merge the two by their log-sum-exps.

    So what is shared attends once, and nothing is copied. The gradient is exact: the kernel's takes
    the softmax's weights from whatever log-sum-exp it is given, so that of both parts together
    makes the gradient of each (as in ring attention, Liu et al. 2023).
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, spans: list[Span], scale: float
    ) -> Tensor:
        q = query.view(len(key), -1, *query.shape[1:])
        k, v = (part.unsqueeze(1).expand_as(q) for part in (key, value))
        out, sums = torch.empty_like(q), q.new_empty(q.shape[:3], dtype=torch.float32)

        for own, to, causal in _parts(spans):
            made, made_sums = _attend_cpu(
                q[:, :, own], k[:, :, to], v[:, :, to], 0.0, causal, scale=scale
            )
            if not causal:  # what was made of the own tokens is there: merge
                share = torch.sigmoid(made_sums - sums[:, :, own]).unsqueeze(-1)
                made = torch.lerp(out[:, :, own].float(), made.float(), share)
                made_sums = torch.logaddexp(sums[:, :, own], made_sums)
            out[:, :, own], sums[:, :, own] = made, made_sums
        ctx.save_for_backward(query, key, value, out, sums)
        ctx.spans, ctx.scale = spans, scale
        return out.flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, sums = ctx.saved_tensors
        q, grad = (part.view(len(key), -1, *part.shape[1:]) for part in (query, grad))
        k, v = (part.unsqueeze(1).expand_as(q) for part in (key, value))
        grads = torch.zeros_like(q), torch.zeros_like(q), torch.zeros_like(q)

        for own, to, causal in _parts(ctx.spans):
            made = _attend_cpu_backward(
                grad[:, :, own],
                q[:, :, own],
                k[:, :, to],
                v[:, :, to],
                out[:, :, own],
                sums[:, :, own],
                0.0,
                causal,
                scale=ctx.scale,
            )
            for whole, part, at in zip(grads, made, (own, to, to), strict=True):
                whole[:, :, at] += part
        return grads[0].flatten(0, 1), grads[1].sum(1), grads[2].sum(1), None, None


def _parts(spans: Sequence[Span]) -> Iterator[tuple[slice, slice, bool]]:
    """Yield which tokens attend to which, and whether causally: own ones, then what they share."""
    for begin, bounds in spans:
        for start, end in pairwise((begin, *bounds)):
            if start < end:
                yield slice(start, end), slice(start, end), True
        if begin < bounds[0]:
            yield slice(bounds[0], bounds[-1]), slice(begin, bounds[0]), False


def register() -> None:
    """Make the attention function, and the masks of unpacked batches, known to the library."""
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
