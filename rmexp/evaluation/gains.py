"""What training gained: a metric of a reward model beside the model before training."""

from collections.abc import Sequence
from dataclasses import dataclass

from rmexp.metrics import plain_name
from rmexp.stats.signflips import SURE


@dataclass(frozen=True, slots=True)
class Gain:
    """A metric of one reward model, and its paired difference from the model before training.

    `low` and `high` are the 95 % interval of `value`, those of `gain` begin with its name; what
    could not be estimated is None. `gain_p_holm` allows for the number of gains that are reported
    together. `bench` is the evaluation's folder, `chance` what rewards drawn at random are expected
    to give.
    """

    rm: str
    bench: str
    metric: str
    value: float
    low: float | None
    high: float | None
    n: int
    gain: float | None
    gain_low: float | None
    gain_high: float | None
    gain_p: float | None
    gain_p_holm: float | None = None
    chance: float | None = None

    @property
    def sure(self) -> bool:
        """Say whether the gain has an interval, and is more than chance among so many."""
        p = self.gain_p_holm
        return self.gain_low is not None and p is not None and p < SURE

    @property
    def name(self) -> str:
        """Return the metric's name, with the evaluation's folder in place of the benchmark."""
        return self.metric.replace(self.metric.partition("/")[0], self.bench, 1)


def short(rows: Sequence[Gain]) -> list[Gain]:
    """Return the rows of a short table: overall numbers and averages of parts.

    Of a benchmark that calls none so, these are all its numbers of one level.
    """
    names = ("overall", "accuracy", "average")
    of = [plain_name(row.metric).split("/") for row in rows]
    with_them = {row.bench for row, levels in zip(rows, of, strict=True) if levels[-1] in names}
    return [
        row
        for row, levels in zip(rows, of, strict=True)
        if (levels[-1] in names if row.bench in with_them else len(levels) == 2)
    ]
