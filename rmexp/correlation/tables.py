"""Tables of scores of reward models, and of the policies that came of them, read from files."""

import csv
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from rmexp.errors import ConfigError, DataError
from rmexp.files import PUBLISHED
from rmexp.tables import named, unmarked

_CITATION = re.compile(r" \([^()]*, \d{4}[a-z]?\)$")
_NOT_PUBLISHED = ("", "-")
_NAMED = 10


@dataclass(frozen=True, slots=True)
class Score:
    """A reward model's score on a task, or that of a policy which was made with it.

    `base_score` is what the policy scored before, `n` how many examples the score is of, `group` a
    part of the table that is also looked at alone.
    """

    rm: str
    task: str
    score: float
    base_score: float | None = None
    n: int | None = None
    group: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows, at most one for each RM and task; the first task is the one that was chosen.

    `source` says where they are from, `notes` are lines for the log.
    """

    rows: tuple[Score, ...]
    source: str
    notes: tuple[str, ...] = ()

    @property
    def tasks(self) -> tuple[str, ...]:
        """Return the tasks in order."""
        return tuple(dict.fromkeys(row.task for row in self.rows))

    def of(self, task: str) -> dict[str, Score]:
        """Return a task's rows by RM."""
        return {row.rm: row for row in self.rows if row.task == task}

    def fingerprint(self) -> str:
        """Return a digest of the rows."""
        return hashlib.sha256(json.dumps([astuple(row) for row in self.rows]).encode()).hexdigest()


def table(
    rows: Iterable[Score], source: str, tasks: Sequence[str] | None, notes: Sequence[str] = ()
) -> Table:
    """Return the rows of these tasks, in the order of `tasks` (None: all, as they come).

    Raises ConfigError for a task that is not there, DataError for an RM that has a task twice.
    """
    rows = list(rows)
    twice = [key for key, count in Counter((r.rm, r.task) for r in rows).items() if count > 1]
    if twice:
        named = "; ".join(f"{rm} on {task}" for rm, task in twice[:_NAMED])
        raise DataError(
            f"{source} has {len(twice)} scores twice ({named}): keep one row for each RM and task"
        )
    if tasks is not None:
        there = list(dict.fromkeys(row.task for row in rows))
        if isinstance(tasks, str) or not tasks or not all(isinstance(each, str) for each in tasks):
            raise ConfigError(f"tasks={tasks}: give a list, such as tasks=[{there[0]}]")
        if unknown := [task for task in tasks if task not in there]:
            raise ConfigError(
                f"{source} has no task {', '.join(unknown)}: choose from {', '.join(there)}"
            )
        rows = [row for task in tasks for row in rows if row.task == task]
    return Table(tuple(rows), source, tuple(notes))


def read_table(*, path: str, tasks: Sequence[str] | None = None) -> Table:
    """Read a user's CSV file with the columns rm, task, score and maybe base_score, n, group.

    Raises ConfigError where there is no such file, DataError for one that cannot be used.
    """
    file = Path(path).expanduser()
    lines = _lines(file, ("rm", "task", "score"))
    rows = [
        Score(
            _text(line["rm"], place),
            _text(line["task"], place),
            _number(line["score"], place),
            _maybe(line.get("base_score"), place),
            _whole(line.get("n"), place),
            (line.get("group") or "").strip(),
        )
        for place, line in lines
    ]
    if not rows:
        raise DataError(f"{file} has no row: give one for each RM and task")
    return table(rows, str(file), tasks)


def read_published(
    *,
    file: str,
    source: str,
    rm: str,
    columns: Mapping[str, str],
    scale: float = 1.0,
    group: str | None = None,
    base: str | float | None = None,
    names: Mapping[str, str] | None = None,
    tasks: Sequence[str] | None = None,
) -> Table:
    """Read one of the tables in `published/`, which have a row an RM and a column a task.

    `columns` maps tasks to columns and `scale` turns their unit into ours; `rm` makes a row's name
    of its columns, as in "{model}", and loses a citation at its end. `names` maps such names to
    other tables' and selects these rows. `base` is the score before, the same for all, or the name
    of the row that has it, which is then no RM. What was not published is left out.
    """
    lines = _lines(PUBLISHED / file, [*columns.values(), *filter(None, [group])])
    named = [(_CITATION.sub("", rm.format_map(line)), place, line) for place, line in lines]
    before: dict[str, float | None] = dict.fromkeys(columns.values())
    if isinstance(base, str):
        found = [(place, line) for name, place, line in named if name == base]
        if not found:
            raise ConfigError(f"base={base}: {file} has no such row; give one, or null for none")
        place, line = found[0]
        before = {column: _maybe(line[column], place, scale) for column in columns.values()}
    elif base is not None:
        before = dict.fromkeys(columns.values(), base * scale)
    rows = []
    for task, column in columns.items():
        for name, place, line in named:
            score = _maybe(line[column], place, scale)
            if score is None or name == base or (names is not None and name not in names):
                continue
            shown = names[name] if names is not None else name
            part = line[group] if group else ""
            rows.append(Score(shown, task, score, before[column], None, part))
    return table(rows, source, tasks)


def _lines(file: Path, wanted: Iterable[str]) -> list[tuple[str, dict[str, str]]]:
    """Return a CSV file's rows, each with its place."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            reader = csv.DictReader(opened, skipinitialspace=True)
            rows = [(f"{file}:{reader.line_num}", row) for row in reader]
            there = [name.strip() for name in reader.fieldnames or ()]
    except OSError as error:
        raise ConfigError(f"cannot read {file} ({error.strerror}): give a CSV file") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file} is no CSV file ({error}): save it as CSV in UTF-8") from error
    if lacking := [name for name in wanted if name not in there]:
        raise DataError(
            f"{file} has no column {', '.join(lacking)} (it has {named(there) or 'none'}): "
            "add it to the first line"
        )
    for place, row in rows:
        if None in row:
            raise DataError(f"{place} has more cells than the first line: quote what has commas")
    return [(place, {key.strip(): row[key] or "" for key in row}) for place, row in rows]


def _text(cell: str, place: str) -> str:
    if not cell.strip():
        raise DataError(f"{place} has an empty cell where a name belongs: fill it in")
    return unmarked(cell.strip())


def _number(cell: str, place: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{place} has {cell!r} where a number belongs: correct or remove the row")
    return value


def _maybe(cell: str | None, place: str, scale: float = 1.0) -> float | None:
    if cell is None or cell.strip() in _NOT_PUBLISHED:
        return None
    return round(_number(cell, place) * scale, 10)


def _whole(cell: str | None, place: str) -> int | None:
    value = _maybe(cell, place)
    return None if value is None else int(value)
