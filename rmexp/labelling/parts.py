"""One part after the other: rows read, scored, and written with their rewards."""

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
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
from rmexp.scoring.by_parts import PartScorer, Tokens, Told

ROW, PROMPT = "row", "prompt"  # a row's number in all data, and what is equal for equal prompts
_MANY = 100  # rows without a finite number among them are no accident


@dataclass(frozen=True, slots=True)
class Task:
    """What every process of a run needs to make parts.

    `source` are the arguments of `RowStream`; `open_scorer` opens the reward model, on a device if
    one is given, and lets it tell of the tokens; `prefix` begins the names of the new columns.
    """

    source: Mapping[str, Any]
    columns: Mapping[str, str] | None
    on_bad_row: str
    kind: Kind
    out: Path
    form: str
    prefix: str
    open_scorer: Callable[[str | None, Told], PartScorer]

    def output(self) -> Output:
        """Return the folder that the parts are written to."""
        return Output(self.out, self.form)


@dataclass(frozen=True, slots=True)
class Begun:
    """The rows of a part that is to be made, and their tokens."""

    span: Span
    content: Content
    read: Read
    tokens: Tokens
    began: float = field(default_factory=time.monotonic)


class Maker:
    """Make parts in this process, with the weights loaded once.

    `told` hears of how many more rows are done, and of how many tokens that took.
    """

    def __init__(
        self, task: Task, told: Callable[[int, int], None], device: str | None = None
    ) -> None:
        self._task, self._told = task, told
        self._output = task.output()
        self._rows = RowStream(**task.source)
        self._reader = RowReader(task.columns, task.on_bad_row)
        self._scorer = task.open_scorer(device, self._hear)
        self._doing = _Share(0, 0)

    def make_all(self, spans: Sequence[Span]) -> Iterator[Part]:
        """Make the parts that nobody else makes; yield each when it is written.

        A part is begun while the one before is scored. What others are making is waited for at the
        end, and made if they leave it. Raises RmexpError for rows that cannot be scored.
        """
        with self._output.claims() as claims:
            with closing(self._ahead(claims.take(spans))) as begun:
                for each in begun:
                    yield self._end(each)
                    claims.drop(each.span)
            for span in claims.take(spans, waits=True):
                yield self._end(self._begin(span))
                claims.drop(span)

    def _ahead(self, spans: Iterator[Span]) -> Generator[Begun, None, None]:
        """Yield begun parts; another thread begins the next one meanwhile."""

        def begin() -> Begun | None:
            span = next(spans, None)
            return None if span is None else self._begin(span)

        beside = ThreadPoolExecutor(1)
        try:
            coming = beside.submit(begin)
            self._scorer.load()
            while (begun := coming.result()) is not None:
                coming = beside.submit(begin)
                yield begun
        finally:
            beside.shutdown(wait=False)  # a run that is ended does not wait for more tokens

    def _begin(self, span: Span) -> Begun:
        """Read the rows of a span, and make their tokens."""
        content = self._rows.read(span)
        read = self._reader.read(content, span, self._task.kind)
        data = Dataset(read.examples, "data", skips=self._task.on_bad_row == "skip")
        return Begun(span, content, read, self._scorer.encode(data))

    def _end(self, begun: Begun) -> Part:
        """Score the rows, and write the part."""
        span, content, read = begun.span, begun.content, begun.read
        self._doing = _Share(span.rows, begun.tokens.work)
        scoring = self._scorer.score(begun.tokens, self._output.scores(span.number))
        self._told(self._doing.rest(), 0)
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
                seconds=time.monotonic() - begun.began,
                sha256=sha256,
            )

        write = row_writer(content, [read.places[at] for at in kept], new)
        return self._output.write(span.number, write, arrays, about)

    def _hear(self, tokens: int) -> None:
        self._told(self._doing.more(tokens), tokens)


class _Share:
    """How much of a part is done, in rows, by the share of its tokens."""

    def __init__(self, rows: int, tokens: int) -> None:
        self._rows, self._tokens = rows, tokens
        self._ran = self._said = 0

    def more(self, tokens: int) -> int:
        """Return how many more rows are done with so many more tokens."""
        self._ran += tokens
        done = self._rows * self._ran // max(self._ran, self._tokens)
        more, self._said = done - self._said, done
        return more

    def rest(self) -> int:
        """Return how many rows are left to be told."""
        return self._rows - self._said


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
