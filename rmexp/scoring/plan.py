"""Plans of batches: which sequences run together, and which of their tokens run once for several.

A plan depends on the token ids only, and a batch never on the ones before it: a run that goes on
after a crash makes the same batches.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rmexp.models.chat import Encoded
from rmexp.models.forks import Fork, count_tokens, find_forks


class Batch(NamedTuple):
    """Sequences that run together, by their positions; `forks` is None for a padded batch.

    `forks` name the sequences by their places in the batch. Of the `tokens` that are run, what a
    fork shares counts once; `padded` counts padding too.
    """

    rows: tuple[int, ...]
    forks: tuple[Fork, ...] | None
    tokens: int
    padded: int


def plan(
    rows: Sequence[Encoded], budget: int, packs: float = 0, most: int | None = None
) -> Iterator[Batch]:
    """Yield batches of at most `budget` tokens each, or of one sequence that has more.

    The sequences of one prompt may have up to `most` tokens together, that it is run once.

    Sequences of up to `packs` tokens lie in packed rows, where those of one prompt share what they
    begin with, longer ones in padded batches. Both begin with the longest.
    """
    short = [at for at, row in enumerate(rows) if len(row.ids) <= packs]
    long = [at for at, row in enumerate(rows) if len(row.ids) > packs]
    for batch in padded([len(rows[at].ids) for at in long], budget):
        members = tuple(long[at] for at in batch)
        tokens = sum(len(rows[at].ids) for at in members)
        yield Batch(members, None, tokens, len(batch) * len(rows[members[0]].ids))
    row: list[Fork] = []
    tokens = 0
    lengths = [len(rows[at].ids) for at in short]
    forks = find_forks([rows[at] for at in short], most or budget)
    for fork in sorted(forks, key=lambda fork: (-lengths[fork.rows[0]], fork.rows[0])):
        if row and tokens + count_tokens(fork, lengths) > budget:
            yield _packed(row, short, tokens)
            row, tokens = [], 0
        row.append(fork)
        tokens += count_tokens(fork, lengths)
    if row:
        yield _packed(row, short, tokens)


def shares(rows: Sequence[Encoded], count: int) -> list[list[int]]:
    """Divide the rows into at most `count` shares that run about as many tokens each.

    Sequences that share what they begin with stay together. No share is empty.

    >>> rows = [Encoded((at,) * n, start=1, end=n) for at, n in enumerate((5, 3, 2))]
    >>> shares(rows, 2)
    [[0], [1, 2]]
    """
    lengths = [len(row.ids) for row in rows]
    divided: list[list[int]] = [[] for _ in range(count)]
    loads = [0] * count
    forks = find_forks(rows)
    for fork in sorted(forks, key=lambda fork: (-count_tokens(fork, lengths), fork.rows[0])):
        least = loads.index(min(loads))
        divided[least] += fork.rows
        loads[least] += count_tokens(fork, lengths)
    return [sorted(share) for share in divided if share]


def padded(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Yield positions, longest first, in batches of at most `budget` padded tokens.

    A batch does not depend on the ones before it.

    >>> list(padded([3, 9, 4, 4], budget=9))
    [[1], [2, 3], [0]]
    """
    batch: list[int] = []
    for position in sorted(range(len(lengths)), key=lambda at: -lengths[at]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > budget:
            yield batch
            batch = []
        batch.append(position)
    if batch:
        yield batch


def _packed(forks: Sequence[Fork], positions: Sequence[int], tokens: int) -> Batch:
    """Return the forks of those of the `positions` that they name as a batch."""
    rows = [row for fork in forks for row in fork.rows]
    places = {row: place for place, row in enumerate(rows)}
    inside = tuple(Fork(fork.shared, tuple(places[row] for row in fork.rows)) for fork in forks)
    return Batch(tuple(positions[row] for row in rows), inside, tokens, tokens)
