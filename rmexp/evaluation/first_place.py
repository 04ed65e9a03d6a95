"""Which reward models of a leaderboard's column share the first place, example by example."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from rmexp.errors import RmexpError
from rmexp.evaluation.compare import Evaluated, examples_of
from rmexp.evaluation.leaderboard import Board, Cell
from rmexp.scoring.recorded import RecordedReward, left_out_note, lookup_shared
from rmexp.stats.ranking import rank_models

Open = Callable[[str], Evaluated]  # the scores of the run of this id


def with_first_places(board: Board, open_run: Open, seed: int) -> Board:
    """Mark in each column the cells that share the first place, and say so below the board.

    They are the best of the comparable numbers and those that no paired test tells apart from it.
    Where a run's examples are not to be had, nothing is marked and the reason is said.
    """
    names, marked = _names(board), [list(line.cells) for line in board.lines]
    said: list[str] = []
    for at, column in enumerate(board.columns):
        rivals = {
            name: cell
            for name, cells in zip(names, marked, strict=True)
            if (cell := cells[at]) is not None and not cell.group and not cell.partial
        }
        first: tuple[str, ...] = ()
        if len(rivals) > 1:
            try:
                first, lines = _first_place(rivals, open_run, seed)
            except RmexpError as error:
                lines = [f"who shares the first place is not known: {error}"]
            said += [f"{column}: {line}" for line in lines]
        for name, cells in zip(names, marked, strict=True):
            if (cell := cells[at]) is not None:
                cells[at] = replace(cell, best=name in first)
    both = zip(board.lines, marked, strict=True)
    lines_marked = tuple(replace(line, cells=tuple(cells)) for line, cells in both)
    return replace(board, lines=lines_marked, standing=tuple(said))


def _first_place(
    rivals: Mapping[str, Cell], open_run: Open, seed: int
) -> tuple[tuple[str, ...], list[str]]:
    """Return the names that share the first place, and what to say of it."""
    runs = {name: open_run(cell.run_id) for name, cell in rivals.items()}
    one = next(iter(runs.values()))
    examples = examples_of(one)
    rewards = [RecordedReward(str(run.scores)) for run in runs.values()]
    scored, left_out = lookup_shared(rewards, examples)
    benchmark, rng = one.benchmark, np.random.default_rng(seed)
    by_name = dict(zip(runs, scored, strict=True))
    ranking = rank_models(by_name, benchmark.metrics, benchmark.headline, rng)
    note = left_out_note(benchmark.name, left_out, len(examples))
    return ranking.first_place, [*ranking.say(), *([note] if note else [])]


def _names(board: Board) -> list[str]:
    """Return the lines' RMs, with how they were read where one has several."""
    count = Counter(line.rm for line in board.lines)
    return [
        f"{line.rm} ({line.reading})" if count[line.rm] > 1 and line.reading else line.rm
        for line in board.lines
    ]
