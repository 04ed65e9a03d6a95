"""Sums over the pairs of several batches, of which a step's and a validation's means are made."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rmexp.models.packing import moved
from rmexp.training.batches import PairBatch

_NAMES = ("loss", "accuracy", "margin", "reward_chosen", "reward_rejected")


class Sums:
    """Sums over pairs: loss, accuracy, margin, the two rewards, and how many pairs and tokens."""

    def __init__(self) -> None:
        self._parts: list[Tensor] = []
        self._losses: list[tuple[Sequence[str], Tensor]] = []

    def add(self, batch: PairBatch, losses: Tensor, chosen: Tensor, rejected: Tensor) -> None:
        """Add a batch's losses and rewards, `(pairs,)` each."""
        values = [losses, (chosen > rejected).float(), chosen - rejected, chosen, rejected]
        tokens = moved(batch.lengths.view(2, -1).sum(0).float(), losses.device)
        values += [torch.ones_like(losses), tokens]
        # Where, not times: a pair that only fills up must not spread a NaN.
        real = [torch.where(batch.real > 0, value, 0).sum().double() for value in values]
        self._parts.append(torch.stack(real))
        self._losses.append((batch.names, losses))

    def total(self, device: torch.device) -> Tensor:
        """Return the sums in the order of `means`' names, then the pairs and the tokens: `(7,)`."""
        if not self._parts:
            return torch.zeros(len(_NAMES) + 2, dtype=torch.float64, device=device)
        return torch.stack(self._parts).sum(0)

    def not_finite(self) -> list[str]:
        """Return the ids of the pairs whose loss is not finite."""
        return [
            name
            for names, losses in self._losses
            for name, loss in zip(names, losses.tolist(), strict=True)
            if not abs(loss) < float("inf")
        ]


def means(stage: str, sums: Tensor) -> dict[str, float]:
    """Return the metrics `<stage>/<name>` of what `Sums.total` returned."""
    pairs = float(sums[len(_NAMES)])
    return {
        f"{stage}/{name}": float(value) / pairs
        for name, value in zip(_NAMES, sums[: len(_NAMES)], strict=True)
    }
