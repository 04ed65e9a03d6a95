"""What the machine does while a run goes on, as MLflow's system metrics."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from math import isfinite
from threading import Thread
from typing import Any

from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from rmexp.tracking.connection import TrackingError
from rmexp.tracking.runs import Run

_END_SECONDS = 10  # that a server gets for the last of them


@contextmanager
def watched(run: Run, on: bool) -> Iterator[None]:
    """Log processor, memory, disk, network and GPUs to the run every ten seconds, where `on`.

    MLflow's environment variables set another interval. That a server stopped answering is said by
    the run; here it delays the end by ten seconds at most.
    """
    if not on:
        yield
        return
    logging.getLogger("mlflow.system_metrics").setLevel(logging.CRITICAL)
    make: Any = SystemMetricsMonitor  # which has no types
    monitor = make(run.run_id, tracking_uri=run.uri)
    monitor.monitor = partial(_watch, monitor, run)
    monitor.start()
    try:
        yield
    finally:
        ending = Thread(target=monitor.finish, daemon=True)
        ending.start()
        ending.join(_END_SECONDS)


def _watch(monitor: Any, run: Run) -> None:
    """Tell the run what the monitor collects. MLflow's own loop ends once a server is away."""
    prefix = f"system/{monitor.node_id}/" if monitor.node_id else "system/"
    for step in count():
        for _ in range(monitor.samples_before_logging):
            monitor.collect_metrics()
            if monitor._shutdown_event.wait(monitor.sampling_interval):
                return
        found = monitor.aggregate_metrics()
        for each in monitor.monitors:
            each.clear_metrics()
        try:
            run.log_metrics({f"{prefix}{k}": v for k, v in found.items() if isfinite(v)}, step)
        except (TrackingError, OSError):  # a full disk, which the run meets as well
            return
