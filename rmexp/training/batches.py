"""The batches in which training sees the pairs, the same on one device or many."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rmexp.models.forks import Fork, count_tokens, find_forks
from rmexp.training.encoded import EncodedPair


@dataclass(frozen=True, slots=True)
class PairBatch:
    """Pairs as tensors: the chosen responses, then the rejected ones in the same order.

    `ids` is `(2 * pairs, length)`, padded on the right; `lengths`, `starts` and `ends` (of the
    response, half open) and `references` (log pi_ref, zeros without a reference) are
    `(2 * pairs,)`. `forks` say what rows share. `weights` `(pairs,)` make the weighted sum of the
    losses a device's share of the gradient; `real` `(pairs,)` is 0 for a pair that only fills a
    device's share up. `names` are the pairs' ids.

    No tuple, since DDP would send all of it to its GPU, tokens that are packed on the CPU too.
    """

    ids: Tensor
    lengths: Tensor
    starts: Tensor
    ends: Tensor
    references: Tensor
    forks: tuple[Fork, ...] | None
    weights: Tensor
    real: Tensor
    names: list[str]


class Batches:
    """Batches of up to `size` pairs over all devices together, of which this device sees its share.

    `share` is this device's rank and the number of devices; `pad` fills short rows up. A batch has
    at most `tokens` tokens, or one pair; what a pair's responses share counts once.

    With a `seed` each epoch has an order of its own; without, the pairs come as they are. Where
    tokens bound the batches, their pairs stay together in all epochs, and so their number stays
    the same, as the schedule needs. An epoch ends after `most` batches. A step of the optimiser is
    `accumulate` batches; the weights make its gradient the mean over its pairs, however the pairs
    fall on batches and devices and however few an epoch's last ones are. Every device gets as many
    pairs, if need be a pair again that does not count.

    The module sets the epoch, and Lightning keeps where in it the batches are (`state_dict`), so
    that a run goes on within an epoch.
    """

    def __init__(
        self,
        pairs: Sequence[EncodedPair],
        size: int,
        share: tuple[int, int] = (0, 1),
        pad: int = 0,
        accumulate: int = 1,
        seed: int | None = None,
        tokens: int | None = None,
        most: int | None = None,
    ) -> None:
        self._pairs, self._size, self._pad, self._accumulate = pairs, size, pad, accumulate
        self._seed = seed
        self._together = None if tokens is None else self._bounded(tokens)
        self._most = most
        self._rank, self._world = share
        self._epoch = self._next = self._begin = 0

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        whole = -(-len(self._pairs) // self._size)
        if self._together is not None:
            whole = len(self._together)
        return whole if self._most is None else min(whole, self._most)

    def __iter__(self) -> Iterator[PairBatch]:
        """Yield an epoch's batches; after `load_state_dict`, those that are left of it."""
        begin, self._begin = self._begin % len(self), 0
        if self._together is not None:
            groups = [self._together[at] for at in self._order(len(self._together), self._epoch)]
        else:
            order = self._order(len(self._pairs), self._epoch)
            groups = [order[at : at + self._size] for at in range(0, len(order), self._size)]
        groups = groups[: len(self)]
        for number in range(begin, len(groups)):
            self._next = number + 1
            yield self._batch(groups, number)

    def _order(self, count: int, epoch: int) -> list[int]:
        if self._seed is None:
            return list(range(count))
        return [int(at) for at in np.random.default_rng([self._seed, epoch]).permutation(count)]

    def _bounded(self, tokens: int) -> list[list[int]]:
        """Return the pairs, in the first epoch's order, in groups of at most so many tokens."""
        groups: list[list[int]] = []
        left = 0
        for at in self._order(len(self._pairs), 0):
            cost = _tokens(self._pairs[at])
            if not groups or cost > left or len(groups[-1]) == self._size:
                groups.append([])
                left = tokens
            groups[-1].append(at)
            left -= cost
        return groups

    def _batch(self, groups: Sequence[Sequence[int]], number: int) -> PairBatch:
        batch = groups[number]
        first = number - number % self._accumulate
        step = sum(len(group) for group in groups[first : first + self._accumulate])
        here = list(batch[self._rank :: self._world])
        lacking = -(-len(batch) // self._world) - len(here)
        real = [1.0] * len(here) + [0.0] * lacking
        pairs = [self._pairs[at] for at in here + [batch[0]] * lacking]
        return collate(pairs, real, self._accumulate * self._world / step, self._pad)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of this epoch, for a loop over the batches that has not begun."""
        self._epoch = epoch

    def state_dict(self) -> dict[str, int]:
        """Return the epoch, and how many of its batches were handed out."""
        return {"epoch": self._epoch, "next": self._next}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on behind the batch at which the state was taken."""
        self._epoch, self._begin = state["epoch"], state["next"]


def _tokens(pair: EncodedPair) -> int:
    """Return the tokens of a pair, what its responses share counting once."""
    rows = (pair.chosen, pair.rejected)
    lengths = [len(row.ids) for row in rows]
    return sum(count_tokens(fork, lengths) for fork in find_forks(rows))


def collate(
    pairs: Sequence[EncodedPair], real: Sequence[float], weight: float, pad: int = 0
) -> PairBatch:
    """Return the pairs as one batch; `weight` is that of each pair that is `real`."""
    rows = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    lengths = torch.tensor([len(row.ids) for row in rows])
    ids = torch.full((len(rows), int(lengths.max())), pad)
    for place, row in enumerate(rows):
        ids[place, : len(row.ids)] = torch.from_numpy(np.array(row.ids, dtype=np.int64))
    references = [pair.references or (0.0, 0.0) for pair in pairs]
    counted = torch.tensor(real)
    return PairBatch(
        ids,
        lengths,
        torch.tensor([row.start for row in rows]),
        torch.tensor([row.end for row in rows]),
        torch.tensor([chosen for chosen, _ in references] + [other for _, other in references]),
        tuple(find_forks(rows)),
        counted * weight,
        counted,
        [pair.id for pair in pairs],
    )
