"""One part after the other: rows read, scored, and written with their rewards."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmexp.data.streams import Content, RowStream, Span
from rmexp.errors import ScoreError
from rmexp.labelling.forms import row_writer
from rmexp.labelling.output import Output, Part
from rmexp.labelling.rows import NUMBERS, Kind, Read, RowReader
from rmexp.schema import Dataset, ScoredExample
from rmexp.scoring.score import Reward, Scoring, Settings, Stream

ROW, PROMPT = "row", "prompt"  # a row's number in all data, and what is equal for equal prompts
_MANY = 100  # rows without a finite number among them are no accident


@dataclass(frozen=True, slots=True)
class Task:
    """What every process of a run needs to make parts.

    `source` are the arguments of `RowStream`; `open_reward` opens the reward model, on a device if
    one is given; `prefix` begins the names of the new columns.
    """

    source: Mapping[str, Any]
    columns: Mapping[str, str] | None
    on_bad_row: str
    kind: Kind
    out: Path
    form: str
    prefix: str
    settings: Settings
    open_reward: Callable[[str | None], Reward]

    def output(self) -> Output:
        """Return the folder that the parts are written to."""
        return Output(self.out, self.form)


class Maker:
    """Make parts in this process, with the weights loaded once.

    `told` hears of the tokens that were run.
    """

    def __init__(self, task: Task, told: Callable[[int], None], device: str | None = None) -> None:
        self._task, self._output = task, task.output()
        self._rows = RowStream(**task.source)
        self._reader = RowReader(task.columns, task.on_bad_row)
        self._reward = task.open_reward(device)
        self._stream = Stream(self._output.folder, told)
        self._settings = replace(task.settings, stream=self._stream)

    def make(self, span: Span) -> Part:
        """Make the part of a span. Raises RmexpError for rows that cannot be scored."""
        began = time.monotonic()
        content = self._rows.read(span)
        read = self._reader.read(content, span, self._task.kind)
        self._stream.folder = self._output.scores(span.number)
        scoring = self._score(read)
        rows = {row.id: row for row in scoring.scored}
        kept = [at for at, example in enumerate(read.examples) if example.id in rows]
        numbers = _numbers(self._task.kind, [rows[read.examples[at].id] for at in kept])
        _refuse_all_non_finite(numbers, content)
        arrays: dict[str, NDArray[Any]] = {
            ROW: np.array([int(read.examples[at].id) for at in kept], dtype=np.int64),
            **numbers,
        }
        judged, *others = NUMBERS[self._task.kind]
        names = [ROW, *others, judged]
        new = {f"{self._task.prefix}{name}": arrays[name] for name in names}
        prompts = (int(rows[read.examples[at].id].prompt, 16) for at in kept)
        arrays[PROMPT] = np.array(list(prompts), dtype=np.uint64)
        unplaced = len(scoring.bad_rows)

        def about(sha256: str) -> Part:
            return Part(
                number=span.number,
                rows=span.rows,
                written=len(kept),
                left_out=span.rows - len(read.examples) + unplaced,
                dropped=len(read.examples) - len(kept) - unplaced,
                bad_rows=(*read.bad_rows, *scoring.bad_rows),
                responses=int(scoring.counts.get("responses", 0)),
                tokens=int(scoring.counts.get("tokens", 0)),
                truncated=int(scoring.counts.get("truncated", 0)),
                seconds=time.monotonic() - began,
                sha256=sha256,
            )

        write = row_writer(content, [read.places[at] for at in kept], new)
        return self._output.write(span.number, write, arrays, about)

    def _score(self, read: Read) -> Scoring:
        if not read.examples:
            return Scoring([], {})
        data = Dataset(read.examples, "data", skips=self._task.on_bad_row == "skip")
        return self._reward.score(data, self._settings)


def _numbers(kind: Kind, scored: Sequence[ScoredExample]) -> dict[str, NDArray[np.float64]]:
    """Return each row's numbers by their names; NaN stands for what is not finite."""
    chosen = np.array([row.chosen[0] for row in scored], dtype=np.float64)
    if kind == "responses":
        return {"reward": chosen}
    rejected = np.array([row.rejected[0] for row in scored], dtype=np.float64)
    return {
        "margin": chosen - rejected,
        "reward_chosen": chosen,
        "reward_rejected": rejected,
    }


def _refuse_all_non_finite(numbers: Mapping[str, NDArray[np.float64]], content: Content) -> None:
    """Raise ScoreError where a part has many rows, and none of their numbers is finite."""
    judged = next(iter(numbers.values()))
    if len(judged) >= _MANY and np.isnan(judged).all():
        raise ScoreError(
            f"none of {len(judged)} rewards is finite, from {content.rows[0].place} on: try "
            "model.dtype=float32 or another model.attention"
        )
