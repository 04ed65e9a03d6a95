"""New values of a column: token-budget batches, on one device or on several, written at once."""

import logging
import math
import multiprocessing
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rmexp.errors import ConfigError, ScoreError
from rmexp.models.chat import Encoded
from rmexp.progress import WorkProgress
from rmexp.scoring.budget import measured_budget, run_halving
from rmexp.scoring.columns import Column
from rmexp.scoring.plan import Batch, plan, shares
from rmexp.scoring.store import ScoreStore

if TYPE_CHECKING:
    from rmexp.models.forward import Forward

log = logging.getLogger(__name__)

_SELF_CHECKED = 3  # newly computed responses that are scored again alone, per column
_SELF_CHECK_LIMIT = 1e-3  # relative difference in fp32 above which the log warns
_SELF_CHECK_LIMIT_16 = 0.05  # the same where 16 bits are multiplied, some times their own error
_RAISED = re.compile(r"^rmexp\.errors\.(?:Config|Score)Error: (.*)", re.MULTILINE | re.DOTALL)


@dataclass(slots=True)
class Work:
    """What computing took; `max_delta` is the self-check's, NaN without one."""

    tokens: float = 0
    tokens_run: float = 0
    tokens_padded: float = 0
    seconds: float = 0.0
    max_delta: float = math.nan

    def add(self, other: "Work") -> None:
        """Add what was done after this."""
        self.tokens += other.tokens
        self.tokens_run += other.tokens_run
        self.tokens_padded += other.tokens_padded
        self.seconds += other.seconds
        self.max_delta = float(np.fmax(self.max_delta, other.max_delta))


@dataclass(frozen=True, slots=True)
class Request:
    """New responses of a column, by their keys, and how to compute them; see `Settings`.

    `pad` is the tokenizer's pad token. `forward` is there if the weights are loaded already. `told`
    hears of the tokens in place of a progress of its own, where the rows are a part of a data set.
    """

    column: Column
    rows: Mapping[str, Encoded]
    store_dir: Path
    pad: int | None
    batch_tokens: int | None
    seed: int
    forward: "Forward | None" = None
    told: Callable[[int], None] | None = None


def load(column: Column, pad: int | None) -> "Forward":
    """Load the column's weights, and say so: it may take long."""
    log.info("loading %s (%s)", column.checkpoint.name, column.dtype)
    return column.load(pad)


def compute(
    request: Request, store: ScoreStore, devices: int | str
) -> tuple[Mapping[str, float], Work]:
    """Return the new values by key, and what they took; each is in the store as soon as it is made.

    Several devices have a copy of the model each, and score a share of the responses. Raises
    ScoreError or ConfigError for what a device cannot do.
    """
    tokens = sum(len(row.ids) for row in request.rows.values())
    log.log(
        _level(request),
        "%s: %d new responses, %d tokens",
        request.column.checkpoint.name,
        len(request.rows),
        tokens,
    )
    count = count_devices(devices, request.column)
    parts = shares(list(request.rows.values()), count) if count > 1 else []
    if len(parts) < 2:
        return _compute(request, store)
    names = list(request.rows)
    split = [
        replace(request, rows={names[at]: request.rows[names[at]] for at in part}) for part in parts
    ]
    work = _spread(split)
    known = store.read()
    return {name: known[name] for name in names}, work


def count_devices(devices: int | str, column: Column) -> int:
    """Return how many devices there are to use; raise ConfigError for more than there are."""
    import torch

    there = torch.cuda.device_count() if column.device == "cuda" else None
    if devices == "auto":
        return 1 if column.device_map else there or 1
    count = int(devices)
    if count > 1 and (column.device_map or column.device not in ("cpu", "cuda")):
        raise ConfigError(
            f"devices={count} needs a copy of the model on each: leave out model.device and "
            "model.device_map"
        )
    if there is not None and count > there:
        raise ConfigError(f"devices={count}: this machine has {there} GPUs; give as many, or auto")
    return count


def _spread(split: Sequence[Request]) -> Work:
    """Compute each share on a device of its own, in a process of its own."""
    from torch.multiprocessing.spawn import (
        ProcessExitedException,
        ProcessRaisedException,
        spawn,
    )

    log.info("%d devices score a share of them each", len(split))
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # of ending the others
    before = set(multiprocessing.active_children())
    took: SimpleQueue[Work] = multiprocessing.get_context("spawn").SimpleQueue()
    try:
        spawn(_share, (split, took), nprocs=len(split))  # type: ignore[no-untyped-call]
    except ProcessRaisedException as error:
        if raised := _RAISED.search(str(error)):
            raise ScoreError(raised[1].strip()) from None
        raise
    except ProcessExitedException as error:
        raise ScoreError(
            f"a device's process ended ({error}): what was scored is kept, run the command again"
        ) from error
    finally:
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()
    work = Work()
    for _ in split:
        one = took.get()
        seconds = max(work.seconds, one.seconds)  # they ran beside each other
        work.add(one)
        work.seconds = seconds
    return work


def _share(place: int, split: Sequence[Request], took: "SimpleQueue[Work]") -> None:
    """Compute a process's share, and tell what it took."""
    import torch

    if place == 0:
        logging.basicConfig(level=logging.INFO, format="%(message)s")
    request = split[place]
    if request.column.device == "cuda":
        torch.cuda.set_device(place)
        request = replace(request, column=replace(request.column, device=f"cuda:{place}"))
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // len(split)))
    with ScoreStore(request.store_dir, request.column.identity(request.store_dir)) as store:
        _, work = _compute(request, store, shown=place == 0)
    took.put(work)


def _compute(
    request: Request, store: ScoreStore, shown: bool = True
) -> tuple[dict[str, float], Work]:
    """Compute the values on the column's device, and a few of them again alone as a check."""
    names, rows, column = list(request.rows), list(request.rows.values()), request.column
    lengths = [len(row.ids) for row in rows]
    forward = request.forward or load(column, request.pad)
    if forward.obstacle is None:
        how = "what the responses to a prompt share once"
    else:
        how = f"padded batches: {forward.obstacle}"
    log.log(_level(request), "%s runs %s", column.checkpoint.name, how)
    values: dict[str, float] = {}
    work = Work()
    began = time.monotonic()
    name, told = column.checkpoint.name, request.told
    with WorkProgress(name, sum(lengths), shown=shown, told=told) as progress:
        for batch, scores in _batches(forward, rows, request.batch_tokens):
            made = list(zip([names[at] for at in batch.rows], scores, strict=True))
            store.append(made)
            values.update(made)
            tokens = sum(lengths[at] for at in batch.rows)
            work.tokens += tokens
            work.tokens_run += batch.tokens
            work.tokens_padded += batch.padded
            progress.advance(tokens)
    work.seconds = time.monotonic() - began
    rng = np.random.default_rng(request.seed)
    for at in rng.choice(len(rows), min(_SELF_CHECKED, len(rows)), replace=False):
        alone, batched = forward.alone(rows[at]), values[names[at]]
        if math.isnan(alone) or math.isnan(batched):
            continue
        delta = abs(alone - batched)
        work.max_delta = float(np.fmax(work.max_delta, delta))
        exact = column.dtype == "float32" and column.autocast is None
        limit = _SELF_CHECK_LIMIT if exact else _SELF_CHECK_LIMIT_16
        if delta > limit * max(1.0, abs(alone)):
            log.warning("a response scored %g alone and %g in its batch", alone, batched)
    return values, work


def in_memory(forward: "Forward", rows: Sequence[Encoded]) -> list[float]:
    """Return the rows' numbers, in their order, and store none of them."""
    values = [math.nan] * len(rows)
    for batch, numbers in _batches(forward, rows, None):
        for at, number in zip(batch.rows, numbers, strict=True):
            values[at] = number
    return values


def _level(request: Request) -> int:
    """Return how loud to be of each call: of the parts of a data set there are many."""
    return logging.INFO if request.told is None else logging.DEBUG


def _batches(
    forward: "Forward", rows: Sequence[Encoded], batch_tokens: int | None
) -> Iterator[tuple[Batch, list[float]]]:
    """Yield batches and their numbers.

    Without `batch_tokens` a batch has as many tokens as are fast, or as many of these as a GPU's
    memory holds.
    """
    from rmexp.models.forward import finite

    budget, most = (batch_tokens or own for own in (forward.budget, forward.most))
    if forward.devices and batch_tokens is None:
        budget = most = measured_budget(forward, rows)

    def make(left: Sequence[int], limit: int) -> Iterator[Batch]:
        return plan([rows[at] for at in left], min(budget, limit), forward.packs, limit)

    def begin(batch: Batch) -> Callable[[], list[float]]:
        return partial(finite, forward.start([rows[at] for at in batch.rows], batch.forks))

    on_gpu = bool(forward.devices)
    yield from run_halving(len(rows), make, begin, most, "a response", ahead=on_gpu)
