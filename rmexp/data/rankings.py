"""Prompts with many responses that have recorded rewards."""

import re

from rmexp.data.rows import Row
from rmexp.data.selection import Entry
from rmexp.schema import Example, Message

_NUMBERED = re.compile(r"(?:response|reward)_([1-9]\d{0,5})")


_PAIR = ("rewardbench_chosen", "rewardbench_rejected")


def read_ranking(row: Row, id: str) -> Entry:
    """Return a row as an example with recorded rewards.

    The columns are `prompt`, `response_i` and `reward_i` for i = 1, 2, ..., and, if there are any,
    `subset`, `rewardbench_chosen` and `rewardbench_rejected`. The latter two are the first chosen
    and the first rejected response; the ranked ones are the last rejected, in the columns' order.
    A row without one of the responses has that flaw.
    """
    numbered = [_NUMBERED.fullmatch(name) for name in row.values if row.has(name)]
    count = max((int(number[1]) for number in numbered if number), default=0)
    missing = [i for i in range(1, count + 1) if not row.has(f"response_{i}")]
    numbers = [i for i in range(1, count + 1) if i not in missing] or [1]
    responses = tuple(row.text(f"response_{i}") for i in numbers)
    pair = [row.text(name) for name in _PAIR] if set(_PAIR) & set(row.values) else []
    example = Example(
        id,
        row.label("subset") if "subset" in row.values else "bon100",
        (Message("user", row.text("prompt")),),
        chosen=tuple(pair[:1]),
        rejected=(*pair[1:], *responses),
        recorded=tuple(row.number(f"reward_{i}") for i in numbers),
    )
    flaw = f"column 'response_{missing[0]}' is missing" if missing else None
    return Entry(example, row, flaw)
