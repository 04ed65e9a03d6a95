"""A packed row attends as each of its sequences does alone, and so do its gradients."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from rmexp.models import kernels, packing
from rmexp.models.forks import Fork
from rmexp.models.kernels import Flash, Kernel, Segments
from rmexp.models.packing import Packing, attention

# By name: what sequences share, and their lengths.
CASES: dict[str, tuple[list[Fork], list[int]]] = {
    "mixed": (
        [Fork(8, (0, 2, 1)), Fork(0, (3,)), Fork(4, (4, 5)), Fork(0, (6,))],
        [30, 22, 9, 12, 40, 5, 1],
    ),
    "forks of one": ([Fork(0, (1,)), Fork(0, (0,)), Fork(0, (2,))], [11, 20, 3]),
    "a token each": ([Fork(1, (0, 1, 2)), Fork(0, (3,))], [2, 2, 2, 1]),
    "a token alone": ([Fork(0, (0,)), Fork(0, (1,))], [1, 1]),
    "all shared": ([Fork(16, (0, 1)), Fork(3, (2, 3))], [17, 18, 4, 9]),
}


class Reference:
    """What CUDA's kernel does, by its arguments alone, in fp32."""

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        segments: Segments,
        scale: float,
        window: int | None,
    ) -> tuple[Tensor, Tensor]:
        out, sums = torch.full_like(query, math.nan), torch.full(query.shape[1::-1], math.nan)
        for q, k, v, own, _ in self.each(query, key, value, segments):
            scores = self.scores(q, k, segments.causal, scale, window)
            sums[:, own] = scores.logsumexp(-1)
            out[own] = (scores.softmax(-1) @ v).transpose(0, 1).to(out.dtype)
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
        grads = [torch.full_like(part, math.nan) for part in (query, key, value)]
        heads = key.shape[1]
        for q, k, v, own, to in self.each(query, key, value, segments):
            g, o = (part[own].transpose(0, 1).float() for part in (grad, out))
            weights = (self.scores(q, k, segments.causal, scale, window) - sums[:, own, None]).exp()
            of_scores = weights * (g @ v.transpose(1, 2) - (g * o).sum(-1, keepdim=True))
            made = (
                scale * of_scores @ k,
                (scale * of_scores.transpose(1, 2) @ q).unflatten(0, (heads, -1)).sum(1),
                (weights.transpose(1, 2) @ g).unflatten(0, (heads, -1)).sum(1),
            )
            for whole, part, at in zip(grads, made, (own, to, to), strict=True):
                whole[at] = part.transpose(0, 1).to(whole.dtype)
        return grads[0], grads[1], grads[2]

    @staticmethod
    def each(query: Tensor, key: Tensor, value: Tensor, segments: Segments):
        queries, keys, most_queries, most_keys, causal = segments
        assert queries.dtype == keys.dtype == torch.int32
        assert (queries[-1], keys[-1]) == (len(query), len(key))  # else some gradient is never made
        assert (most_queries, most_keys) == (queries.diff().max(), keys.diff().max())
        assert min(queries.diff().min(), keys.diff().min()) > 0
        group = query.shape[1] // key.shape[1]
        for own, to in zip(pairwise(queries.tolist()), pairwise(keys.tolist()), strict=True):
            assert own == to or not causal
            q = query[slice(*own)].transpose(0, 1).float()
            k, v = (
                part[slice(*to)].transpose(0, 1).float().repeat_interleave(group, 0)
                for part in (key, value)
            )
            yield q, k, v, slice(*own), slice(*to)

    @staticmethod
    def scores(q: Tensor, k: Tensor, causal: bool, scale: float, window: int | None) -> Tensor:
        scores = scale * q @ k.transpose(1, 2)
        if not causal:
            assert window is None
            return scores
        seen = torch.ones(scores.shape[1:]).tril().triu(1 - (window or len(scores[0]))).bool()
        return scores.masked_fill(~seen, -math.inf)


KERNELS: dict[str, Kernel | None] = {
    "the CPU's": kernels.Loop(),
    "as CUDA's": Reference(),
    "none": None,  # whole sequences in a padded batch
}


@pytest.fixture(params=KERNELS)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "kernel_for", lambda *parts: KERNELS[request.param])


def sequences(forks: list[Fork], lengths: list[int]) -> list[list[int]]:
    """Return the places of each sequence's tokens in the row, worked out one by one."""
    places: list[list[int]] = [[]] * len(lengths)
    begin, end = 0, sum(fork.shared for fork in forks)
    for fork in [fork for fork in forks if fork.shared] + [f for f in forks if not f.shared]:
        for at in fork.rows:
            own = lengths[at] - fork.shared
            places[at] = [*range(begin, begin + fork.shared), *range(end, end + own)]
            end += own
        begin += fork.shared
    assert end == Packing(forks, lengths).tokens
    return places


def by_hand(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    places: list[list[int]],
    scale: float,
    window: int | None = None,
) -> Tensor:
    """Attend on each sequence with a mask: `(1, tokens, heads, width)`."""
    group = query.shape[1] // key.shape[1]
    out = torch.zeros_like(query[0])
    for sequence in places:
        at = torch.tensor(sequence)
        q, k, v = (
            query[0][:, at],
            *(part[0][:, at].repeat_interleave(group, 0) for part in (key, value)),
        )
        length = len(at)
        seen = torch.ones(length, length).tril().triu(1 - (window or length)).bool()
        weights = (scale * q @ k.transpose(1, 2)).masked_fill(~seen, -math.inf).softmax(-1)
        out = out.index_copy(1, at, weights @ v)
    return out.transpose(0, 1).unsqueeze(0)


def some(tokens: int, heads: tuple[int, int] = (6, 2), dtype: torch.dtype = torch.float32):
    torch.manual_seed(0)
    shapes = [(1, count, tokens, 8) for count in (heads[0], heads[1], heads[1])]
    return [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("heads", [(6, 2), (3, 1), (2, 2)])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("scale", [None, 0.5])
def test_attention_and_its_gradients_are_those_of_each_sequence(
    case: str, heads: tuple[int, int], scale: float | None
) -> None:
    forks, lengths = CASES[case]
    layout = Packing(forks, lengths)
    inputs = some(layout.tokens, heads)
    found, _ = attention(torch.nn.Module(), *inputs, None, packing=layout, scaling=scale)
    expected = by_hand(*inputs, sequences(forks, lengths), scale or 8**-0.5)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    weights = torch.randn_like(found)
    for one, other in zip(
        torch.autograd.grad(found, inputs, weights),
        torch.autograd.grad(expected, inputs, weights),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=3e-6)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("window", [1, 4, 11, 20, 21])
def test_a_sliding_window_is_felt_in_sequences_that_share_nothing(window: int) -> None:
    forks, lengths = CASES["forks of one"]
    layout = Packing(forks, lengths)
    inputs = some(layout.tokens)
    found, _ = attention(torch.nn.Module(), *inputs, None, packing=layout, sliding_window=window)
    expected = by_hand(*inputs, sequences(forks, lengths), 8**-0.5, window)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    weights = torch.randn_like(found)
    for one, other in zip(
        torch.autograd.grad(found, inputs, weights),
        torch.autograd.grad(expected, inputs, weights),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=3e-6)


def test_a_window_that_reaches_into_what_is_shared_is_refused() -> None:
    """A wider one is not felt."""
    forks, lengths = CASES["mixed"]
    layout = Packing(forks, lengths)
    inputs = some(layout.tokens)
    plain, _ = attention(torch.nn.Module(), *inputs, None, packing=layout)
    wide, _ = attention(torch.nn.Module(), *inputs, None, packing=layout, sliding_window=40)
    assert torch.equal(plain, wide)
    with pytest.raises(ValueError, match="a window that reaches into what is shared"):
        attention(torch.nn.Module(), *inputs, None, packing=layout, sliding_window=39)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("case", CASES)
def test_bf16_merges_in_fp32(case: str) -> None:
    forks, lengths = CASES[case]
    layout = Packing(forks, lengths)
    inputs = some(layout.tokens, dtype=torch.bfloat16)
    found, _ = attention(torch.nn.Module(), *inputs, None, packing=layout)
    assert found.dtype == torch.bfloat16
    plain = [part.detach().float().requires_grad_() for part in inputs]
    expected = by_hand(*plain, sequences(forks, lengths), 8**-0.5)
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=0.03)
    weights = torch.randn_like(expected)
    for one, other in zip(
        torch.autograd.grad(found, inputs, weights.bfloat16()),
        torch.autograd.grad(expected, plain, weights),
        strict=True,
    ):
        assert one.dtype == torch.bfloat16
        error = float((one.float() - other).norm() / other.norm().clamp(min=1e-3))
        assert error < 0.02


def test_tables_are_made_once_and_copied_once(monkeypatch: pytest.MonkeyPatch) -> None:
    forks, lengths = CASES["mixed"]
    layout = Packing(forks, lengths)
    copies = []
    move = packing.moved
    monkeypatch.setattr(packing, "moved", lambda *args: copies.append(args) or move(*args))
    inputs = some(layout.tokens)
    for _ in range(3):  # layers
        attention(torch.nn.Module(), *inputs, None, packing=layout)
    assert len(copies) == 1
    own, to_shared, shared, forked = layout.parts(torch.device("cpu"))
    assert own.queries.tolist() == [0, 8, 12, 34, 35, 49, 85, 86, 98, 99]
    assert (own.most_queries, own.most_keys, own.causal) == (36, 36, True)
    assert to_shared is not None
    assert (to_shared.queries.tolist(), to_shared.keys.tolist()) == ([0, 37, 74], [0, 8, 12])
    assert (to_shared.most_queries, to_shared.most_keys, to_shared.causal) == (37, 8, False)
    assert (shared, forked) == (12, 86)
    monkeypatch.setattr(packing, "kernel_for", lambda *parts: None)
    for _ in range(3):
        attention(torch.nn.Module(), *inputs, None, packing=layout)
    assert len(copies) == 3


def test_the_flash_kernel_is_called_as_torch_declares_it() -> None:
    """The operators' own checks of arguments and shapes, without a device: nothing is computed."""
    with FakeTensorMode():
        query, key, value = (
            torch.empty(99, heads, 64, dtype=torch.bfloat16, device="cuda") for heads in (6, 2, 2)
        )
        tables = [torch.empty(4, dtype=torch.int32, device="cuda") for _ in range(2)]
        segments = Segments(*tables, 37, 8, False)
        out, sums = Flash().forward(query, key, value, segments, 0.125, None)
        assert (out.shape, out.dtype) == (query.shape, torch.bfloat16)
        assert (sums.shape, sums.dtype) == ((6, 99), torch.float32)
        grads = Flash().backward(out, query, key, value, out, sums, segments, 0.125, None)
        assert [part.shape for part in grads] == [query.shape, key.shape, value.shape]


def test_one_query_in_each_segment_takes_the_flash_kernels_usual_way() -> None:
    table = torch.tensor([0, 1, 2], dtype=torch.int32)
    segments = Segments(table, table, 1, 1, True)
    assert kernels._settings(segments)[2:] == (2, 1, 0.0, True)
    assert kernels._window(segments, 5) == {"window_size_left": 4, "window_size_right": 0}
    across = segments._replace(causal=False)
    assert kernels._window(across, None) == {"window_size_left": -1, "window_size_right": -1}


def test_which_kernel_attends(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [torch.zeros(5, heads, 8) for heads in (4, 2, 2)]
    assert isinstance(kernels.kernel_for(*parts), kernels.Loop)
    assert kernels.kernel_for(*parts[:2], torch.zeros(5, 2, 6)) is None
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))

    def on_cuda(dtype: torch.dtype, width: int) -> Kernel | None:
        with FakeTensorMode():
            made = [torch.empty(5, n, width, dtype=dtype, device="cuda") for n in (4, 2, 2)]
            return kernels.kernel_for(*made)

    assert isinstance(on_cuda(torch.bfloat16, 128), Flash)
    assert isinstance(on_cuda(torch.float16, 64), Flash)
    assert on_cuda(torch.float32, 64) is None
    assert on_cuda(torch.bfloat16, 36) is None
    assert on_cuda(torch.bfloat16, 264) is None
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert on_cuda(torch.bfloat16, 64) is None


def test_the_row_holds_shared_tokens_once_at_their_positions() -> None:
    ids = torch.tensor([[4, 0, 0, 0], [5, 6, 7, 0], [5, 6, 8, 9], [3, 2, 0, 0], [3, 1, 0, 0]])
    layout = Packing([Fork(0, (0,)), Fork(2, (2, 1)), Fork(1, (3, 4))], [1, 3, 4, 2, 2])
    packed, positions = layout.pack(ids)
    assert packed.tolist() == [[5, 6, 3, 8, 9, 7, 2, 1, 4]]
    assert positions.tolist() == [[0, 1, 0, 2, 3, 2, 1, 1, 0]]
    rows, at = torch.tensor([1, 1, 2, 0, 4]), torch.tensor([1, 2, 3, 0, 1])
    assert layout.at(rows, at).tolist() == [1, 5, 4, 8, 7]
