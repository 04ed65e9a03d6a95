"""The parts of a run made in this process, or by a process for each device of this machine."""

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from rmexp.data.streams import Span
from rmexp.errors import ScoreError
from rmexp.labelling.parts import Maker, Task
from rmexp.progress import WorkProgress

_SECONDS_BETWEEN_LOOKS = 1.0

# Makes the parts of spans, and tells the progress of each.
Engine = Callable[[Task, Sequence[Span], WorkProgress], None]


def here(task: Task, spans: Sequence[Span], progress: WorkProgress) -> None:
    """Make the parts in this process."""
    ran = 0

    def told(rows: int, tokens: int) -> None:
        nonlocal ran
        ran += tokens
        progress.advance(rows, f"{ran:,} tokens")

    made = sum(part.rows for part in Maker(task, told).make_all(spans))
    progress.advance(sum(span.rows for span in spans) - made)


def on_devices(
    devices: Sequence[str], task: Task, spans: Sequence[Span], progress: WorkProgress
) -> None:
    """Make the parts on several devices; each takes the next that nobody makes.

    Raises ScoreError where a device's process ends, and what is raised in one.
    """
    output, left = task.output(), {span.number: span for span in spans}
    ran = 0

    def tell() -> None:
        nonlocal ran
        for number in [number for number in left if output.is_made(number)]:
            ran += output.part(number).tokens
            progress.advance(left.pop(number).rows, f"{ran:,} tokens")

    context = multiprocessing.get_context("spawn")
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(len(devices), mp_context=context)
    try:
        work = {pool.submit(_on_device, device, task, spans) for device in devices}
        while work:
            done, work = wait(work, _SECONDS_BETWEEN_LOOKS, FIRST_COMPLETED)
            for each in done:
                each.result()
            tell()
    except BrokenProcessPool as error:
        raise ScoreError(
            "a device's process ended: what was scored is kept, run the command again"
        ) from error
    finally:
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()
        pool.shutdown(cancel_futures=True)


def _on_device(device: str, task: Task, spans: Sequence[Span]) -> None:
    """Make parts until there are none left, or the process that asked for them is gone."""
    parent = os.getppid()
    for _ in Maker(task, nobody, device).make_all(spans):
        if os.getppid() != parent:
            break


def nobody(rows: int, tokens: int) -> None:
    """Hear of what another process tells of."""
