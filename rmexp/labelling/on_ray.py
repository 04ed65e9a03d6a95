"""The parts of a run made by actors on the machines of a Ray cluster, each with a model of its own.

Ray Data hands out the parts, some at a time, and gives those of an actor that has died to another,
which goes on from what was written of them.
"""

import logging
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

from rmexp.data.streams import Span
from rmexp.errors import ConfigError, RmexpError, ScoreError
from rmexp.labelling.parts import Maker, Task
from rmexp.labelling.processes import beside, nobody
from rmexp.progress import WorkProgress

_TOGETHER = 8  # parts that an actor is handed at most, to begin one while it scores another
_SECONDS = 10.0  # to reach the cluster
_SHARES = 4  # of an actor at least, so that all of them end at about the same time


@dataclass(frozen=True, slots=True)
class OnRay:
    """Make parts on the cluster at `address`, or for "local" on this machine.

    Each of so many `actors` has `gpus` where the cluster has any, and None stands for as many as
    these are enough for. Raises ConfigError where Ray is not installed.
    """

    address: str
    actors: int | None
    gpus: int

    def __post_init__(self) -> None:
        if find_spec("ray") is None:
            raise ConfigError("engine=ray needs Ray: install the extra, pip install 'rmexp[ray]'")

    def __call__(self, task: Task, spans: Sequence[Span], progress: WorkProgress) -> None:
        """Make the parts; raises ConfigError where no cluster or GPU is, ScoreError of the work.

        Ray is in a process of its own, since it takes the signals of the process that it is in.
        """
        beside([partial(self._run, task, spans)], task.output(), spans, progress)

    def _run(self, task: Task, spans: Sequence[Span]) -> None:
        import ray

        actors, gpus = self._start()
        try:
            for error in _answers(task, spans, actors, gpus):
                if error:
                    raise ScoreError(error)
        finally:
            ray.shutdown()

    def _start(self) -> tuple[int, int]:
        """Connect with the cluster, and return how many actors there are, and GPUs of each."""
        import ray

        self._connect()
        there = int(ray.cluster_resources().get("GPU", 0))
        each = max(1, self.gpus)
        if self.actors is None and there < each:
            raise ConfigError(
                f"engine=ray: the cluster has {there} GPUs; say how many actors are to score on "
                "processors, engine.actors=N"
            )
        return self.actors or there // each, self.gpus if there else 0

    def _connect(self) -> None:
        import ray

        local = self.address == "local"
        cores = max(self.actors or 1, os.cpu_count() or 1)
        options: dict[str, Any] = {"num_cpus": cores, "include_dashboard": False} if local else {}
        host, colon, port = self.address.rpartition(":")
        try:
            if colon and port.isdecimal():  # Ray itself would try for minutes
                socket.create_connection((host.strip("[]"), int(port)), _SECONDS).close()
            ray.init(self.address, logging_level=logging.ERROR, **options)
        except OSError as error:
            raise ConfigError(
                f"engine.address={self.address}: no Ray cluster answers there; start one with "
                "`ray start --head`, or give local"
            ) from error


class _Actor:
    """Make the parts that it is handed; what a user can mend is an answer, not an exception."""

    def __init__(self, task: Task, spans: Sequence[Span]) -> None:
        self._task, self._spans = task, {span.number: span for span in spans}
        self._maker: Maker | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Return why the parts cannot be made, an empty text if they are."""
        try:
            self._maker = self._maker or Maker(self._task, nobody)
            for numbers in batch["parts"]:
                for _ in self._maker.make_all([self._spans[int(number)] for number in numbers]):
                    pass
        except RmexpError as error:
            return {"error": [str(error)]}
        return {"error": [""]}


def _answers(task: Task, spans: Sequence[Span], actors: int, gpus: int) -> Iterator[str]:
    import ray
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what it raises is said once
    ray.data.DataContext.get_current().enable_progress_bars = False
    size = max(1, min(_TOGETHER, len(spans) // (actors * _SHARES)))
    numbers = [span.number for span in spans]
    rows = [{"parts": numbers[at : at + size]} for at in range(0, len(numbers), size)]
    answers = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _Actor,
        fn_constructor_args=(task, spans),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=1,
        num_gpus=gpus,
    )
    try:
        for row in answers.iter_rows():
            yield row["error"]
    except ray.exceptions.RayError as error:
        reason = str(error).partition("\n")[0]
        raise ScoreError(
            f"Ray gave up ({reason}): what was scored is kept, run the command again"
        ) from error
