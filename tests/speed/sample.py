"""What the measurements run on, and their arithmetic: nothing here reads a clock."""

import random
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from rmexp.schema import Example, Message
from rmexp.tables import markdown

PEER_BATCH = 8  # of RewardBench's and RMB's scripts


def peer_order(examples: Sequence[Example]) -> list[tuple[tuple[Message, ...], str]]:
    """Return what the field's scripts score: file order, all chosen and then all rejected."""
    chosen = [(e.prompt, text) for e in examples for text in e.chosen]
    return chosen + [(e.prompt, text) for e in examples for text in e.rejected]


def padded_tokens(lengths: Sequence[int], size: int = PEER_BATCH) -> int:
    """Return the tokens of batches in the given order, each padded to its longest."""
    batches = [lengths[at : at + size] for at in range(0, len(lengths), size)]
    return sum(len(batch) * max(batch) for batch in batches)


def whole_prompts(
    parts: Sequence[Sequence[Example]],
    tokens: Callable[[tuple[Message, ...], str], int],
    budget: int,
    seed: int,
) -> list[list[Example]]:
    """Draw prompts with all that asks about them, in all parts, up to the peers' `budget` tokens.

    These are what the peers run, with padding. Each part keeps its order. At least one prompt is
    drawn.
    """
    prompts = list(dict.fromkeys(e.prompt for part in parts for e in part))
    random.Random(seed).shuffle(prompts)
    drawn: list[list[Example]] = [[] for _ in parts]
    for count in range(1, len(prompts) + 1):
        among = set(prompts[:count])
        wider = [[e for e in part if e.prompt in among] for part in parts]
        run = sum(padded_tokens([tokens(*at) for at in peer_order(part)]) for part in wider)
        if count > 1 and run > budget:
            break
        drawn = wider
    return drawn


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the table: seconds of the rounds, ours and the peer's, and what they say.

    `bound` is the ratio that the tokens alone would give; `run` are the tokens that ours ran.
    """

    what: str
    ours: tuple[float, ...]
    peer: tuple[float, ...]
    bound: float | None = None
    run: int | None = None
    share: float | None = None
    memory: tuple[float, float] | None = None

    @property
    def ratio(self) -> float:
        """Return how many times the peer's median time is ours."""
        return statistics.median(self.peer) / statistics.median(self.ours)


def faster(rates: Mapping[str, float]) -> str:
    """Return the dtype whose matrix products are the faster ones on this machine."""
    return max(rates, key=rates.__getitem__)


def share_of_rate(tokens: int, flop_per_token: float, seconds: float, rate: float) -> float:
    """Return the share of the matrix product's `rate` (FLOP/s) that so many tokens reached."""
    return tokens * flop_per_token / seconds / rate


def table(lines: Iterable[Line]) -> str:
    """Return the lines as a Markdown table; medians, with the range of the rounds."""
    columns = (
        "what",
        "ours, s",
        "peer, s",
        "ratio",
        "bound by tokens",
        "tokens run",
        "of the rate",
        "peak GiB, ours and peer",
    )
    rows = []
    for line in lines:
        cells = [line.what, _seconds(line.ours), _seconds(line.peer)]
        cells.append(f"{line.ratio:.2f}")
        cells.append("" if line.bound is None else f"{line.bound:.2f}")
        cells.append("" if line.run is None else f"{line.run:,}")
        cells.append("" if line.share is None else f"{line.share:.0%}")
        memory = line.memory
        cells.append(
            f"{memory[0]:.1f}, {memory[1]:.1f} ({memory[0] / memory[1]:.2f})" if memory else ""
        )
        rows.append(cells)
    return "\n".join(markdown(columns, rows)) + "\n"


def _seconds(rounds: Sequence[float]) -> str:
    return f"{statistics.median(rounds):.1f} ({min(rounds):.1f} to {max(rounds):.1f})"
