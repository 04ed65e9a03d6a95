"""A run's folder: held by one process at a time, with the status that it leaves in run.json."""

import json
import os
import shlex
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from rmexp.errors import ConfigError, DataError
from rmexp.files import replace
from rmexp.outside import known, read_json

# What is read of a run.json.
_STATUS = {
    "status": str,
    "run_id": str,
    "error": str | None,
    "headline": str | None,
    "overrides": list[str],
    "skipped": bool,
    "unended": list[str],
    "process": str,
}


_LOCK = ".lock"
UNDELIVERED = "undelivered.jsonl"  # what MLflow was not told of a run yet
_WITHIN = ("eval", "published")  # folders of runs that belong to the one above
DIED = "its process died"


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Keep a run's or a sweep's folder for this process; another one may once this one has ended.

    Raises ConfigError where another one has it.
    """
    lock = FileLock(folder / _LOCK, blocking=False)
    try:
        lock.acquire()
    except Timeout:
        where = f" ({name})" if (name := _read(folder / "run.json").get("process")) else ""
        raise ConfigError(
            f"another process{where} is at work in {folder}: wait for its end, or give another "
            "out_dir"
        ) from None
    try:
        yield
    finally:
        (folder / _LOCK).unlink(missing_ok=True)
        lock.release()


def take_over(folder: Path) -> list[str]:
    """Return the runs that ended without a word in a folder that is held, and their evaluations.

    The files of the evaluations say from here on that they were killed; the folder's own one is to
    be written by the caller.
    """
    own = _read(folder / "run.json")
    left = list(own.get("unended", ()))
    if own.get("status") == "RUNNING" and "run_id" in own:
        left.append(own["run_id"])
    for path in sorted(folder.glob("eval/*/run.json")):
        row = _read(path)
        if row.get("status") == "RUNNING":
            left.append(row["run_id"])
            write_status(path.parent, row | {"status": "KILLED", "error": DIED})
    return left


def undelivered(folder: Path) -> list[Path]:
    """Return the journals of what MLflow was not told yet in a folder, those of parents first."""
    return sorted(folder.rglob(UNDELIVERED), key=lambda path: (len(path.parts), path))


def holder(journal: Path) -> Path:
    """Return the folder that a process holds which is at work on the run of a journal."""
    own = journal.parent
    return own.parent.parent if own.parent.name in _WITHIN else own


def how_to_deliver(folder: Path) -> str:
    """Return the command that delivers what is left in a folder."""
    return f"python -m rmexp.deliver {shlex.quote(str(folder))}"


def adopt(folder: Path, run_id: str, ids: Mapping[str, str]) -> None:
    """Write the ids that a run has got into its `run.json`, where it had none but `run_id`."""
    if (status := _read(folder / "run.json")).get("run_id") == run_id:
        write_status(folder, status | dict(ids))


def running() -> dict[str, str]:
    """Return the status of a run at which this process is at work."""
    return {"status": "RUNNING", "process": f"{os.getpid()} on {socket.gethostname()}"}


def _read(path: Path) -> dict[str, Any]:
    return read_status(path.parent) if path.exists() else {}


def write_status(out_dir: Path, status: Mapping[str, object]) -> Path:
    """Write `run.json`."""
    return replace(out_dir / "run.json", json.dumps(status, indent=1) + "\n")


def read_status(folder: Path) -> dict[str, Any]:
    """Return what a job left in its `run.json`; raise DataError for what no job leaves there."""
    path = folder / "run.json"
    status = read_json(path, "remove it, or run the job again")
    known({name: status[name] for name in _STATUS if name in status}, _STATUS, str(path))
    if "status" not in status:
        raise DataError(f"{path} has no status: remove it, or run the job again")
    return status
