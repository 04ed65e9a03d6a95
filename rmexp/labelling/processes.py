"""The parts of a run made in this process, or by a process for each device of this machine."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from threading import Thread

from rmexp.data.streams import Span
from rmexp.errors import ScoreError
from rmexp.labelling.output import Output
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
    """Make the parts on several devices; each takes the next that nobody makes."""
    calls = [partial(_on_device, device, task, spans) for device in devices]
    beside(calls, task.output(), spans, progress)


def beside(
    calls: Sequence[Callable[[], None]],
    output: Output,
    spans: Sequence[Span],
    progress: WorkProgress,
) -> None:
    """Make each call in a process of its own, and tell of the parts that they make.

    Raises ScoreError where a process ends, and what is raised in one.
    """
    left = {span.number: span for span in spans}
    ran = 0
    context = multiprocessing.get_context("spawn")
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(len(calls), context, _end_with, (os.getpid(),))
    try:
        work = {pool.submit(call) for call in calls}
        while work:
            done, work = wait(work, _SECONDS_BETWEEN_LOOKS, FIRST_COMPLETED)
            for each in done:
                each.result()
            for number in [number for number in left if output.is_made(number)]:
                ran += output.part(number).tokens
                progress.advance(left.pop(number).rows, f"{ran:,} tokens")
    except BrokenProcessPool as error:
        raise ScoreError(
            "a process that scored has ended: what was scored is kept, run the command again"
        ) from error
    finally:
        for child in set(multiprocessing.active_children()) - before:
            child.kill()
        pool.shutdown(cancel_futures=True)


def _end_with(parent: int) -> None:
    """End this process a moment after its parent, which alone hears of signals."""

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=look, daemon=True).start()


def _on_device(device: str, task: Task, spans: Sequence[Span]) -> None:
    for _ in Maker(task, nobody, device).make_all(spans):
        pass


def nobody(rows: int, tokens: int) -> None:
    """Hear of what another process tells of."""
