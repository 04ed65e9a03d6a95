"""Attention over the segments of a row, by the kernel that each kind of device has.

A row's tokens are `(tokens, heads, width)`; keys and values may have fewer heads, each of which
serves a group of the queries'. A kernel gives the log-sum-exps of what it attended to as well,
`(heads, tokens)` in fp32, so that calls over different keys can be merged, and its gradient takes
the softmax's weights from whatever log-sum-exp it is given.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

_attend_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_attend_cpu_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class Segments(NamedTuple):
    """Which tokens attend to which: those of a segment of queries to its segment of keys.

    `queries` and `keys` are cumulative lengths, int32 `(segments + 1,)` on the row's device, and
    `most_queries` and `most_keys` the longest ones. If `causal`, both are the same tokens, of which
    each attends to itself and those before it.
    """

    queries: Tensor
    keys: Tensor
    most_queries: int
    most_keys: int
    causal: bool


class Kernel(Protocol):
    """What attends, and its gradient.

    `window` is to how many tokens a causal one attends at most, itself among them.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        segments: Segments,
        scale: float,
        window: int | None,
    ) -> tuple[Tensor, Tensor]:
        """Return what the queries attend to, like them, and the log-sum-exps `(heads, tokens)`."""
        ...

    def backward(
        self,
        grad: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        sums: Tensor,
        segments: Segments,
        scale: float,
        window: int | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of queries, keys and values.

        `out` and `sums` may be those of further keys as well: the gradients are these keys' part.
        """
        ...


class Flash:
    """The variable-length flash kernel of CUDA: one call for all segments; fp16 and bf16."""

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        segments: Segments,
        scale: float,
        window: int | None,
    ) -> tuple[Tensor, Tensor]:
        """See `Kernel`."""
        out, sums, *_ = torch.ops.aten._flash_attention_forward(
            query, key, value, *_settings(segments), False, scale=scale, **_window(segments, window)
        )
        return out, sums

    def backward(
        self,
        grad: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        sums: Tensor,
        segments: Segments,
        scale: float,
        window: int | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `Kernel`."""
        unread = torch.empty(0, device=query.device)  # the state of dropout's random numbers
        made: tuple[Tensor, Tensor, Tensor] = torch.ops.aten._flash_attention_backward(
            grad,
            query,
            key,
            value,
            out,
            sums.contiguous(),
            *_settings(segments),
            unread,
            unread,
            scale=scale,
            **_window(segments, window),
        )
        return made


def _settings(segments: Segments) -> tuple[Any, ...]:
    """Return both operators' arguments from cumulative lengths to causality.

    Where all segments have one query, the forward kernel would take a way of its own, which
    presumes that none has less. It is told of two.
    """
    queries, keys, most_queries, most_keys, causal = segments
    return queries, keys, max(2, most_queries), most_keys, 0.0, causal


def _window(segments: Segments, window: int | None) -> dict[str, int]:
    before = -1 if window is None else window - 1
    return {"window_size_left": before, "window_size_right": 0 if segments.causal else -1}


class Loop:
    """The CPU's flash kernel, called for each segment."""

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        segments: Segments,
        scale: float,
        window: int | None,
    ) -> tuple[Tensor, Tensor]:
        """See `Kernel`."""
        out = torch.empty_like(query)
        sums = query.new_empty(query.shape[1::-1], dtype=torch.float32)
        q, k, v, into = _by_group(key.shape[1], query, key, value, out)
        sums_into = sums.view(*q.shape[:2], -1)
        for own, to in _slices(segments):
            into[:, :, own], sums_into[:, :, own] = _attend_cpu(
                q[:, :, own],
                k[:, :, to],
                v[:, :, to],
                0.0,
                scale=scale,
                **_masked(q, segments, own, window),
            )
        return out, sums

    def backward(
        self,
        grad: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        sums: Tensor,
        segments: Segments,
        scale: float,
        window: int | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `Kernel`."""
        q, k, v, made, given = _by_group(key.shape[1], query, key, value, out, grad)
        made_sums = sums.view(*q.shape[:2], -1)
        grads = torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)
        (into,) = _by_group(key.shape[1], grads[0])
        for own, to in _slices(segments):
            of_query, *others = _attend_cpu_backward(
                given[:, :, own],
                q[:, :, own],
                k[:, :, to],
                v[:, :, to],
                made[:, :, own],
                made_sums[:, :, own],
                0.0,
                scale=scale,
                **_masked(q, segments, own, window),
            )
            into[:, :, own] = of_query
            for whole, part in zip(grads[1:], others, strict=True):
                whole[to] = part.sum(1).transpose(0, 1)
        return grads


def _by_group(groups: int, *parts: Tensor) -> list[Tensor]:
    """Return views `(groups, heads of a group, tokens, width)` of `(tokens, heads, width)`.

    Keys and values, which have one head a group, have it for all heads of the group.
    """
    views = [part.view(len(part), groups, -1, part.shape[-1]).permute(1, 2, 0, 3) for part in parts]
    return [view.expand(-1, views[0].shape[1], -1, -1) for view in views]


def _slices(segments: Segments) -> Iterator[tuple[slice, slice]]:
    """Yield the tokens of each segment that has any queries and keys."""
    bounds = (pairwise(part.tolist()) for part in segments[:2])
    for own, to in zip(*bounds, strict=True):
        if own[0] < own[1] and to[0] < to[1]:
            yield slice(*own), slice(*to)


def _masked(query: Tensor, segments: Segments, own: slice, window: int | None) -> dict[str, Any]:
    """Return what tells the CPU's kernel of causality, and of a window where it is felt."""
    length = own.stop - own.start
    if window is None or not segments.causal or length <= window:
        return {"is_causal": segments.causal}
    band = query.new_ones(length, length, dtype=torch.bool).tril().triu(1 - window)
    mask = query.new_zeros(length, length).masked_fill_(~band, -torch.inf)
    return {"is_causal": False, "attn_mask": mask}


_KERNELS: dict[str, Kernel] = {"cpu": Loop(), "cuda": Flash()}


def kernel_for(query: Tensor, key: Tensor, value: Tensor) -> Kernel | None:
    """Return what attends on such tensors, `(tokens, heads, width)`; None where nothing does."""
    width, kind = query.shape[-1], query.device.type
    if width != value.shape[-1]:
        return None
    if kind == "cuda" and not (
        query.dtype in (torch.float16, torch.bfloat16)
        and width % 8 == 0
        and width <= 256
        and torch.version.cuda is not None
        and torch.backends.cuda.is_flash_attention_available()
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    ):
        return None
    return _KERNELS.get(kind)
