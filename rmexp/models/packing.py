"""Packed rows: many sequences side by side without padding, what they share lying there once.

Whatever a decoder does with a token alone runs on the row as it is. Its attention runs on the
sequences: `watched` makes the function known to the library, which calls it in every layer.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rmexp.models.forks import Fork
from rmexp.models.kernels import Kernel, Segments, kernel_for

NAME = "rmexp_packed"


class Parts(NamedTuple):
    """What attends to what: each segment of the row to itself, and forks' own tokens to shared.

    The row begins with all that is shared, `shared` tokens, followed up to `forked` by the tokens
    that attend to it; `to_shared` is None where nothing is shared.
    """

    own: Segments
    to_shared: Segments | None
    shared: int
    forked: int


class Packing:
    """Where the tokens of sequences lie in a packed row.

    `forks` name the sequences by their rows in a padded batch, each exactly once, and `lengths` are
    those of the batch's rows. What the forks share comes first, then the own tokens of these forks'
    sequences, then the sequences that share nothing: so both what is shared and what attends to it
    are one stretch of the row.

    All tables are made on the CPU, and copied to a device once, without waiting for it.
    """

    def __init__(self, forks: Sequence[Fork], lengths: Sequence[int]) -> None:
        forks = sorted(forks, key=lambda fork: not fork.shared)  # in their order otherwise
        shared = [fork.shared for fork in forks if fork.shared]
        own = [[lengths[row] - fork.shared for row in fork.rows] for fork in forks]
        places = [(0, 0, 0)] * len(lengths)  # of a row: its shared tokens, how many, its own
        begin, end = 0, sum(shared)
        for fork, counts in zip(forks, own, strict=True):
            for row, at in zip(fork.rows, accumulate(counts, initial=end), strict=False):
                places[row] = (begin, fork.shared, at)
            begin += fork.shared
            end += sum(counts)
        self.tokens = end
        self._begin, self._shared, self._own = torch.tensor(places).unbind(1)
        self._lengths = torch.tensor(lengths)
        self.longest = max(lengths)
        self.longest_sharing = max(
            (lengths[row] for fork in forks if fork.shared for row in fork.rows), default=0
        )
        pieces = [*shared, *chain.from_iterable(own)]
        attending = [sum(counts) for counts in own[: len(shared)]]
        self._parts = Parts(
            _segments(pieces, pieces, causal=True),
            _segments(attending, shared, causal=False) if shared else None,
            sum(shared),
            sum(shared) + sum(attending),
        )
        self._moved: dict[torch.device, Parts] = {}
        self._unpacked: dict[torch.device, tuple[Tensor, Tensor]] = {}

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

    def parts(self, device: torch.device) -> Parts:
        """Return what attends to what, with tables on the device."""
        if device not in self._moved:
            own, to_shared, *rest = self._parts
            kinds = (own,) if to_shared is None else (own, to_shared)
            tables = [table for kind in kinds for table in (kind.queries, kind.keys)]
            lengths = [len(table) for table in tables]
            there = iter(torch.split(moved(torch.cat(tables), device), lengths))
            made = [kind._replace(queries=next(there), keys=next(there)) for kind in kinds]
            self._moved[device] = Parts(made[0], made[1] if to_shared else None, *rest)
        return self._moved[device]

    def unpacked(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return where a padded batch's tokens lie, and where the packed ones lie in that batch.

        The first are places `(batch, length)` in the row, any one for padding, the second places
        `(tokens,)` in the flattened batch.
        """
        if device not in self._unpacked:
            rows, positions = self._tokens(torch.device("cpu"))
            places = self.at(rows, positions)
            forth = places.new_zeros(len(self._lengths), self.longest)
            forth[rows, positions] = places
            back = places.new_empty(self.tokens)
            back[places] = rows * self.longest + positions
            self._unpacked[device] = moved(forth, device), moved(back, device)
        return self._unpacked[device]

    def _tokens(self, device: torch.device) -> tuple[Tensor, Tensor]:
        mask = torch.arange(self.longest) < self._lengths.unsqueeze(1)
        rows, positions = mask.nonzero().to(device).unbind(1)
        return rows, positions


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on the device, from the CPU without waiting for what the device does."""
    if tensor.device.type == "cpu" and device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def _segments(queries: Sequence[int], keys: Sequence[int], causal: bool) -> Segments:
    """Return segments of so many queries and keys each."""
    own, to = (torch.tensor([0, *accumulate(part)], dtype=torch.int32) for part in (queries, keys))
    return Segments(own, to, max(queries), max(keys), causal)


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
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Return what the tokens of a packed row attend to, `(1, tokens, heads, width)`.

    `query` is `(1, heads, tokens, width)`; `key` and `value` may have fewer heads. A token attends
    to `sliding_window` tokens at most, itself among them. Without a `packing` it is the library's
    own attention, whose mask knows of the window. Raises ValueError for what a packed row lacks.
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
    window = sliding_window
    if window is not None and window >= packing.longest:
        window = None  # it is not felt
    if window is not None and window < packing.longest_sharing:
        raise ValueError("a window that reaches into what is shared is not known to packed rows")
    kind = query.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype
    query, key, value = (part[0].to(dtype).transpose(0, 1) for part in (query, key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    kernel = kernel_for(query, key, value)
    if kernel is None:
        out = _gathered(query, key, value, packing.unpacked(query.device), scale, window)
    else:
        merged = (kernel, query, key, value, packing.parts(query.device), scale, window)
        out = _Merged.apply(*merged)  # type: ignore[no-untyped-call]
    return out.unsqueeze(0), None


def _gathered(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    unpacked: tuple[Tensor, Tensor],
    scale: float,
    window: int | None,
) -> Tensor:
    """Attend on each sequence as a whole, in a batch padded on the right."""
    forth, back = unpacked
    query, key, value = (part[forth].transpose(1, 2) for part in (query, key, value))
    band = None
    if window is not None:
        length = forth.shape[1]
        band = torch.ones(length, length, dtype=torch.bool, device=forth.device)
        band = band.tril_().triu_(1 - window)
    out = scaled_dot_product_attention(
        query, key, value, attn_mask=band, is_causal=band is None, scale=scale, enable_gqa=True
    )
    return out.transpose(1, 2).flatten(0, 1)[back]


class _Merged(torch.autograd.Function):
    """Attend to own and shared tokens apart, and merge the two by their log-sum-exps.

    So what is shared attends once, and nothing is copied. The gradient is exact: the kernel's takes
    the softmax's weights from whatever log-sum-exp it is given, so that of both parts together
    makes the gradient of each (as in ring attention, Liu et al. 2023).
    """

    @staticmethod
    def forward(
        ctx: Any,
        kernel: Kernel,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        parts: Parts,
        scale: float,
        window: int | None,
    ) -> Tensor:
        out, sums = kernel.forward(query, key, value, parts.own, scale, window)
        if parts.to_shared is not None:
            forked, shared = slice(parts.shared, parts.forked), slice(parts.shared)
            more, more_sums = kernel.forward(
                query[forked], key[shared], value[shared], parts.to_shared, scale, None
            )
            here, here_sums = out[forked], sums[:, forked]
            share = torch.sigmoid(more_sums - here_sums).T.unsqueeze(-1)  # fp32, so the sum is, too
            torch.addcmul(here * (1 - share), more, share, out=here)
            torch.logaddexp(here_sums, more_sums, out=here_sums)
        ctx.save_for_backward(query, key, value, out, sums)
        ctx.kernel, ctx.parts, ctx.settings = kernel, parts, (scale, window)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, sums = ctx.saved_tensors
        kernel, parts, (scale, window) = ctx.kernel, ctx.parts, ctx.settings
        own = (grad, query, key, value, out, sums, parts.own, scale, window)
        grads: tuple[Tensor, Tensor, Tensor] = kernel.backward(*own)
        if parts.to_shared is not None:
            forked, shared = slice(parts.shared, parts.forked), slice(parts.shared)
            more = kernel.backward(
                grad[forked],
                query[forked],
                key[shared],
                value[shared],
                out[forked],
                sums[:, forked],
                parts.to_shared,
                scale,
                None,
            )
            for whole, part, at in zip(grads, more, (forked, shared, shared), strict=True):
                whole[at].add_(part)
        return None, *grads, None, None, None


@contextmanager
def watched(windows: list[int | None]) -> Iterator[None]:
    """Make the attention known to the library, and note meanwhile what window each layer has."""

    def watching(module: nn.Module, *parts: Any, **options: Any) -> tuple[Tensor, None]:
        if options.get("packing") is not None:
            windows.append(options.get("sliding_window"))
        return attention(module, *parts, **options)

    AttentionMaskInterface.register(NAME, sdpa_mask)
    AttentionInterface.register(NAME, watching)
    try:
        yield
    finally:
        AttentionInterface.register(NAME, attention)
