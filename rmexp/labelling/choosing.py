"""The rows kept for their rewards: the best response to each prompt, the best share of all.

Both are exact, over all parts: the numbers are sorted, at some 24 bytes a row.
"""

import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmexp.errors import ConfigError
from rmexp.files import make_folder
from rmexp.labelling.forms import copy_rows
from rmexp.labelling.output import Output
from rmexp.labelling.parts import PROMPT
from rmexp.labelling.rows import NUMBERS, Kind

_FOLDER = "kept"


@dataclass(frozen=True, slots=True)
class Choice:
    """Which rows to keep: the best response to each prompt, and of these the share `top`."""

    best_of: bool = False
    top: float | None = None
    by: str = ""


def check_choice(keep: object, best_of: object, kind: Kind) -> Choice | None:
    """Return the choice of `keep` and `best_of`, None where all rows stay as they are.

    Raises ConfigError for one that cannot be meant.
    """
    if best_of not in (None, "prompt"):
        raise ConfigError(f"best_of={best_of}: give prompt, or null")
    if best_of is not None and kind == "pairs":
        raise ConfigError(
            "best_of=prompt chooses among single responses, and each row is a pair: use "
            "keep={top: 0.5, by: margin}"
        )
    if keep is None:
        return None if best_of is None else Choice(best_of=True)
    names = NUMBERS[kind]
    wanted = f"give keep={{top: 0.5, by: {names[0]}}}"
    if not isinstance(keep, Mapping) or not set(keep) <= {"top", "by"} or "top" not in keep:
        raise ConfigError(f"keep={keep}: {wanted}")
    top, by = keep["top"], keep.get("by", names[0])
    if isinstance(top, bool) or not isinstance(top, int | float) or not 0 < top <= 1:
        raise ConfigError(f"keep.top={top}: give a share above 0 and up to 1")
    if by not in names:
        raise ConfigError(f"keep.by={by}: choose from {', '.join(names)}")
    return Choice(best_of is not None, float(top), by)


def best_of_each(prompts: NDArray[Any], rewards: NDArray[Any]) -> tuple[NDArray[np.bool_], int]:
    """Return which response is the best to its prompt, the first of equal ones, and how many tie.

    One that is not finite is the best to no prompt. A tie is a prompt with several best responses.

    >>> best_of_each(np.array([1, 2, 1, 1]), np.array([0.5, 0.1, 0.7, 0.7]))
    (array([False,  True,  True, False]), 1)
    """
    order = np.lexsort((np.arange(len(rewards)), -rewards, prompts))  # NaN comes last
    ordered, values = prompts[order], rewards[order]
    first = np.ones(len(order), dtype=bool)
    first[1:] = ordered[1:] != ordered[:-1]
    first &= ~np.isnan(values)
    second = first[:-1] & ~first[1:] & (ordered[1:] == ordered[:-1]) & (values[1:] == values[:-1])
    best = np.zeros(len(order), dtype=bool)
    best[order[first]] = True
    return best, int(second.sum())


def highest(
    values: NDArray[Any], among: NDArray[np.bool_], share: float
) -> tuple[NDArray[np.bool_], int]:
    """Return which rows are the highest share of `among`, and how many more tie with the last.

    The share is of the rows with a finite number, rounded up. Of equal rows the first are in.

    >>> highest(np.array([1.0, 3.0, 2.0, 2.0]), np.ones(4, dtype=bool), 0.5)
    (array([False,  True,  True, False]), 1)
    """
    places = np.flatnonzero(among & ~np.isnan(values))
    count = int(np.ceil(round(share * len(places), 6)))
    order = places[np.argsort(-values[places], kind="stable")[:count]]
    kept = np.zeros(len(values), dtype=bool)
    kept[order] = True
    if not count:
        return kept, 0
    ties = (values[places] == values[order[-1]]).sum() - (values[order] == values[order[-1]]).sum()
    return kept, int(ties)


def choose(output: Output, numbers: Sequence[int], kind: Kind, choice: Choice) -> dict[str, float]:
    """Write the chosen rows of these parts to the folder `kept`, and return how many there are.

    The folder is there whole or not at all.
    """
    judged = NUMBERS[kind][0]
    metrics: dict[str, float] = {}
    kept = np.ones(len(output.arrays(numbers, (judged,))[judged]), dtype=bool)
    if choice.best_of:
        arrays = output.arrays(numbers, (PROMPT, judged))
        kept, metrics["kept/tied_prompts"] = best_of_each(arrays[PROMPT], arrays[judged])
    if choice.top is not None:
        values = output.arrays(numbers, (choice.by,))[choice.by]
        kept, metrics["kept/ties_left_out"] = highest(values, kept, choice.top)
        if kept.any():
            metrics["kept/lowest"] = float(values[kept].min())
    draft = make_folder(output.folder / f".{_FOLDER}.{uuid.uuid4().hex}", "out")
    start = 0
    for number in numbers:
        size = output.part(number).written
        source = output.path(number)
        copy_rows(source, draft / source.name, kept[start : start + size])
        start += size
    target = output.folder / _FOLDER
    for old in output.folder.glob(f".{_FOLDER}.*"):  # of a process that was killed
        if old != draft:
            shutil.rmtree(old)
    if target.exists():
        shutil.rmtree(target)
    draft.rename(target)
    return {"kept/rows": int(kept.sum()), **metrics}
