"""How many tokens a device's memory holds: measured on one batch, and halved where it is less."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from rmexp.errors import ScoreError
from rmexp.models.chat import Encoded
from rmexp.scoring.plan import Batch, plan

if TYPE_CHECKING:
    from rmexp.models.forward import Forward

log = logging.getLogger(__name__)

_PROBE = 4096  # tokens of the batch on which is measured
_LEAST = 256  # tokens of a batch that is tried where that one does not fit
_SHARE = 0.9  # of the memory that is free

T = TypeVar("T")
Waiting = Callable[[], T]  # for what a device may still be computing


def measured_budget(forward: "Forward", rows: Sequence[Encoded]) -> int:
    """Return how many tokens fit 90 % of the memory that is free, by one batch's peak.

    The batch is the first of the plan, of the longest rows. What torch keeps for itself counts as
    free. The number is rounded down to a power of two or 1.5 times one, so that the same machine
    makes the same batches another time, and is `forward.budget` at most. Nothing is run where there
    are no more rows than a batch of the probe has.
    """
    from torch import OutOfMemoryError, cuda

    tokens = min(_PROBE, forward.budget)
    while True:
        batch = next(plan(rows, tokens, forward.packs, tokens), None)
        if batch is None or len(batch.rows) == len(rows):
            return forward.budget
        try:
            peaks = _peaks(forward, rows, batch)
            break
        except OutOfMemoryError:
            if tokens <= _LEAST or len(batch.rows) == 1:
                return tokens
            tokens //= 2
        cuda.empty_cache()  # outside the handler, whose error holds on to what did not fit
    fitting = min(
        (_SHARE * _free(device) * batch.padded / peak for device, peak in peaks.items() if peak),
        default=math.inf,
    )
    budget = steady(max(_LEAST, min(forward.budget, fitting)))
    if budget < forward.budget:
        log.info("the GPU's memory holds batches of %d tokens", budget)
    return budget


def steady(tokens: float) -> int:
    """Return the tokens rounded down to a power of two, or 1.5 times one.

    >>> [steady(n) for n in (1024, 1535, 1536, 2047, 65536)]
    [1024, 1024, 1536, 1536, 65536]
    """
    power: int = 2 ** math.floor(math.log2(tokens))
    return power * 3 // 2 if 2 * tokens >= 3 * power else power


def run_halving(
    count: int,
    make: Callable[[Sequence[int], int], Iterator[Batch]],
    begin: Callable[[Batch], Waiting[T]],
    limit: int,
    what: str,
    ahead: bool = False,
) -> Iterator[tuple[Batch, T]]:
    """Yield batches of `count` items and what they gave; out of memory, the rest in smaller ones.

    `make` plans the items with the given positions in batches of up to so many tokens, by their
    places among these, and `begin` runs one and returns what waits for it. With `ahead` a batch is
    begun before the one before it is waited for. Raises ScoreError where the memory does not hold
    one item, which is called `what`.
    """
    from torch import OutOfMemoryError, cuda

    left = list(range(count))
    while left:
        done: set[int] = set()
        begun: list[tuple[Batch, Waiting[T]]] = []
        full = False
        for part in make(left, limit):
            batch = part._replace(rows=tuple(left[at] for at in part.rows))
            try:
                begun.append((batch, begin(batch)))
            except OutOfMemoryError as error:
                if len(batch.rows) == 1:
                    raise ScoreError(
                        f"the device's memory does not hold {what} of {batch.tokens} tokens: give "
                        "a smaller model.max_length or model.dtype, or spread the model with "
                        "model.device_map=auto"
                    ) from error
                limit, full = batch.padded // 2, True
                break
            done.update(batch.rows)
            while len(begun) > ahead:
                ready, wait = begun.pop(0)
                yield ready, wait()
        for ready, wait in begun:
            yield ready, wait()
        left = [at for at in left if at not in done]
        if full:  # outside the handler, whose error holds on to what did not fit
            cuda.empty_cache()
            log.warning("the device is out of memory: on with batches of %d tokens", limit)


def _peaks(forward: "Forward", rows: Sequence[Encoded], batch: Batch) -> dict[str, int]:
    """Run the batch, and return the bytes that it took at most beside the weights, by device."""
    from torch import cuda

    before = {device: cuda.memory_allocated(device) for device in forward.devices}
    for device in forward.devices:
        cuda.reset_peak_memory_stats(device)
    forward([rows[at] for at in batch.rows], batch.forks)
    return {
        device: cuda.max_memory_allocated(device) - allocated
        for device, allocated in before.items()
    }


def _free(device: str) -> int:
    """Return the bytes that a batch may take: the device's, and those that torch keeps unused."""
    from torch import cuda

    free, _ = cuda.mem_get_info(device)
    return free + cuda.memory_reserved(device) - cuda.memory_allocated(device)
