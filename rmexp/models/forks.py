"""Forks: sequences that begin alike, found on their token ids."""

from collections.abc import Sequence
from typing import NamedTuple

from rmexp.models.chat import Encoded

_LEAST_SHARED = 16  # tokens; where sequences share fewer, running them twice costs less


class Fork(NamedTuple):
    """Sequences that begin alike: their first `shared` tokens run once, then what each adds.

    `rows` are the sequences' positions. A sequence that shares nothing is a fork of its own.
    """

    shared: int
    rows: tuple[int, ...]


def find_forks(rows: Sequence[Encoded], budget: float = float("inf")) -> list[Fork]:
    """Return the rows as forks: those of one prompt share the tokens with which all of them begin.

    What is shared is found on token ids, and ends before the last token of the shortest: each
    sequence has a token of its own at which it is read. A fork's longest row is its first. It takes
    further rows as long as it has no more than `budget` tokens.
    """
    lengths = [len(row.ids) for row in rows]
    prompts: dict[tuple[int, ...], list[int]] = {}
    for position, row in enumerate(rows):
        prompts.setdefault(tuple(row.ids[: row.start]), []).append(position)
    forks: list[Fork] = []
    for members in prompts.values():
        first, *others = sorted(members, key=lambda at: (-lengths[at], at))
        fork = Fork(lengths[first] - 1, (first,))
        for position in others:
            shared = _common(rows[fork.rows[0]].ids[: fork.shared], rows[position].ids[:-1])
            wider = Fork(shared, (*fork.rows, position))
            if shared < _LEAST_SHARED or count_tokens(wider, lengths) > budget:
                forks.append(fork)
                wider = Fork(lengths[position] - 1, (position,))
            fork = wider
        forks.append(fork)
    return [fork if len(fork.rows) > 1 else Fork(0, fork.rows) for fork in forks]


def count_tokens(fork: Fork, lengths: Sequence[int]) -> int:
    """Return how many tokens of a fork are run."""
    return fork.shared + sum(lengths[at] - fork.shared for at in fork.rows)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Return with how many equal items both begin."""
    length = min(len(one), len(other))
    return next((at for at in range(length) if one[at] != other[at]), length)
