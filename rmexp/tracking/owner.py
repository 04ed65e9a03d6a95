"""Whose a run is: its host and process as tags, and the runs whose process is gone.

A process id means something within one boot of one kernel and one namespace of process ids only;
names of hosts repeat among containers. So nothing is said of a run unless host, boot and namespaces
are those of here.
"""

import os
import platform
import re
from pathlib import Path

from mlflow.entities import Run
from mlflow.tracking import MlflowClient

HOST, PROCESS, KERNEL = "rmexp.host", "rmexp.process", "rmexp.kernel"
_PROC = Path("/proc")
_STARTED = re.compile(r"(\d+) started at tick (\d+)")
_RUNS_A_PAGE = 1000
_ENDED = "ZX"  # the states of a process that waits to be taken note of, or no longer does


def tags() -> dict[str, str]:
    """Return the tags by which a run of this process is known, as many as the system tells."""
    found = {HOST: platform.node(), PROCESS: str(os.getpid())}
    kernel, started = _kernel(), _started(os.getpid())
    if kernel is not None and started is not None:
        found |= {PROCESS: f"{os.getpid()} started at tick {started}", KERNEL: kernel}
    return found


def dead_runs(client: MlflowClient) -> list[str]:
    """Return the runs of a tracking server that say RUNNING and whose process here is gone.

    What cannot be known is left out.
    """
    kernel = _kernel()
    if kernel is None:
        return []
    experiments = [each.experiment_id for each in client.search_experiments()]
    query = f"attributes.status = 'RUNNING' and tags.`{KERNEL}` = '{kernel}'"
    found = client.search_runs(experiments, query, max_results=_RUNS_A_PAGE)
    return [run.info.run_id for run in found if _is_dead(run)]


def _is_dead(run: Run) -> bool:
    """Say whether a run of this kernel is one of this host whose process is gone."""
    said = run.data.tags
    known = _STARTED.fullmatch(said.get(PROCESS, ""))
    if known is None or said.get(HOST) != platform.node():
        return False
    return _is_gone(int(known[1]), known[2])


def _is_gone(pid: int, started: str) -> bool:
    """Say whether a process has ended; another one may have its id by now."""
    try:
        os.kill(pid, 0)  # which sees those that /proc may hide
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    now = _started(pid)
    return now is not None and now != started


def _started(pid: int) -> str | None:
    """Return the tick at which a process began, "" if it has ended, None where it is not told."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # a process's name may hold blanks and brackets
    return "" if fields[0] in _ENDED else fields[19]


def _kernel() -> str | None:
    """Return what tells this boot and its namespaces from all others, None where it is not told."""
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        spaces = [os.readlink(_PROC / "self/ns/pid")]
        time = _PROC / "self/ns/time"  # without it, in old kernels, there is one time
        spaces += [os.readlink(time)] if time.is_symlink() else []
    except OSError:
        return None
    return " ".join([boot, *spaces])
