"""What the machine does while a run goes on, as MLflow's system metrics."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any

from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

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
    monitor.start()
    try:
        yield
    finally:
        ending = Thread(target=monitor.finish, daemon=True)
        ending.start()
        ending.join(_END_SECONDS)
