"""A packed row attends as each of its sequences does alone, and so do its gradients."""

import math

import pytest
import torch
from torch import Tensor

from rmexp.models import packing
from rmexp.models.forks import Fork
from rmexp.models.packing import Packing, attention

LENGTHS = [30, 22, 9, 12, 40, 5, 1]
FORKS = [Fork(8, (0, 2, 1)), Fork(0, (3,)), Fork(4, (4, 5)), Fork(0, (6,))]
PACKING = Packing(FORKS, LENGTHS)


def sequences() -> list[list[int]]:
    """Return the places of each sequence's tokens in the row, worked out one by one."""
    places: list[list[int]] = [[]] * len(LENGTHS)
    end = 0
    for fork in FORKS:
        shared = list(range(end, end + fork.shared))
        end += fork.shared
        for at in fork.rows:
            own = LENGTHS[at] - fork.shared
            places[at] = shared + list(range(end, end + own))
            end += own
    assert end == PACKING.tokens
    return places


def by_hand(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Attend on each sequence with a mask: `(1, tokens, heads, width)`."""
    group = query.shape[1] // key.shape[1]
    out = torch.zeros_like(query[0])
    for places in sequences():
        at = torch.tensor(places)
        q, k, v = (
            query[0][:, at],
            *(part[0][:, at].repeat_interleave(group, 0) for part in (key, value)),
        )
        later = torch.ones(len(at), len(at)).triu(1).bool()
        weights = (scale * q @ k.transpose(1, 2)).masked_fill(later, -math.inf).softmax(-1)
        out = out.index_copy(1, at, weights @ v)
    return out.transpose(0, 1).unsqueeze(0)


def some(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = [(1, heads, PACKING.tokens, 8) for heads in (6, 2, 2)]
    return [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("gathered", [False, True])
@pytest.mark.parametrize("scale", [None, 0.5])
def test_attention_and_its_gradients_are_those_of_each_sequence(
    gathered: bool, scale: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What other devices run, whole sequences in a padded batch, is held against the same."""
    if gathered:
        monkeypatch.setattr(packing, "_MERGING", ())
    inputs = some()
    found, _ = attention(torch.nn.Module(), *inputs, None, packing=PACKING, scaling=scale)
    expected = by_hand(*inputs, scale or 8**-0.5)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    weights = torch.randn_like(found)
    for one, other in zip(
        torch.autograd.grad(found, inputs, weights),
        torch.autograd.grad(expected, inputs, weights),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=3e-6)


def test_bf16_merges_in_fp32() -> None:
    inputs = some(dtype=torch.bfloat16)
    found, _ = attention(torch.nn.Module(), *inputs, None, packing=PACKING)
    assert found.dtype == torch.bfloat16
    expected = by_hand(*(part.float() for part in inputs), 8**-0.5)
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=0.03)


def test_the_row_holds_shared_tokens_once_at_their_positions() -> None:
    ids = torch.tensor([[5, 6, 7, 0], [5, 6, 8, 9], [4, 0, 0, 0]])
    packing = Packing([Fork(2, (1, 0)), Fork(0, (2,))], [3, 4, 1])
    packed, positions = packing.pack(ids)
    assert packed.tolist() == [[5, 6, 8, 9, 7, 4]]
    assert positions.tolist() == [[0, 1, 2, 3, 2, 0]]
    rows, at = torch.tensor([0, 0, 1, 2]), torch.tensor([1, 2, 3, 0])
    assert packing.at(rows, at).tolist() == [1, 4, 3, 5]
