"""Jobs: the status that each leaves in its folder, and the table of a sweep's jobs."""

import json
import os
import socket
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from rmexp import tables
from rmexp.errors import ConfigError, DataError
from rmexp.outside import known, parse_json, read_json

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
LIST = "jobs.jsonl"  # a sweep's jobs and their folders
_LOCK = ".lock"
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


def running() -> dict[str, str]:
    """Return the status of a run at which this process is at work."""
    return {"status": "RUNNING", "process": f"{os.getpid()} on {socket.gethostname()}"}


def _read(path: Path) -> dict[str, Any]:
    return read_status(path.parent) if path.exists() else {}


def write_status(out_dir: Path, status: Mapping[str, object]) -> Path:
    """Write `run.json`."""
    return replace(out_dir / "run.json", json.dumps(status, indent=1) + "\n")


def replace(path: Path, text: str) -> Path:
    """Write a file that others may read meanwhile: as it was or as it is, never a part."""
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        draft.write_text(text, encoding="utf-8")
        return draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Job:
    """What a job of a sweep left in its folder's `run.json`."""

    folder: Path
    number: int
    overrides: tuple[str, ...]
    status: str
    run_id: str
    result: str

    @property
    def failed(self) -> bool:
        """Say whether the job was to finish and did not."""
        return self.status != "FINISHED"


def note_job(sweep: Path, number: int, folder: Path) -> None:
    """Note that a job of the sweep has begun in this folder, whatever it is called.

    Raises ConfigError where another job has the same folder.
    """
    line = json.dumps({"number": number, "folder": str(folder)}) + "\n"
    with (sweep / LIST).open("a", encoding="utf-8") as file:
        file.write(line)
    numbers = [str(other) for other, its in noted_jobs(sweep).items() if its == folder]
    if len(numbers) > 1:
        raise ConfigError(
            f"the jobs {', '.join(numbers)} have one folder, {folder}: let hydra.sweep.subdir name "
            "one for each, as ${hydra.job.num} does"
        )


def noted_jobs(sweep: Path) -> dict[int, Path]:
    """Return the folders of the jobs that began, by number."""
    if not (sweep / LIST).exists():
        return {}
    noted: dict[int, Path] = {}
    for line in (sweep / LIST).read_text(encoding="utf-8").splitlines():
        try:
            row = known(dict(parse_json(line)), {"number": int, "folder": str}, str(sweep / LIST))
            noted[row["number"]] = Path(row["folder"])
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"{sweep / LIST} is damaged: run the sweep in a new folder") from error
    return dict(sorted(noted.items()))


def read_status(folder: Path) -> dict[str, Any]:
    """Return what a job left in its `run.json`; raise DataError for what no job leaves there."""
    path = folder / "run.json"
    status = read_json(path, "remove it, or run the job again")
    known({name: status[name] for name in _STATUS if name in status}, _STATUS, str(path))
    if "status" not in status:
        raise DataError(f"{path} has no status: remove it, or run the job again")
    return status


def read_jobs(sweep: Path) -> list[Job]:
    """Return the jobs of a sweep, by number."""
    jobs = []
    for number, folder in noted_jobs(sweep).items():
        try:
            row = read_status(folder)
        except DataError as error:
            row = {"status": "FAILED", "error": str(error)}
        result = row.get("error") or row.get("headline") or ""
        if row.get("skipped"):
            result = f"{result} (done before)"
        words = tuple(row.get("overrides", ()))
        jobs.append(Job(folder, number, words, row["status"], row.get("run_id", ""), result))
    return jobs


def job_rows(jobs: Sequence[Job]) -> list[tuple[str, ...]]:
    """Return a row a job: number, the overrides in which jobs differ, status, result."""
    common = set.intersection(*(set(job.overrides) for job in jobs)) if len(jobs) > 1 else set()
    return [
        (
            str(job.number),
            " ".join(word for word in job.overrides if word not in common),
            job.status,
            job.result,
        )
        for job in jobs
    ]


_COLUMNS = ("job", "overrides", "status", "headline metric or error")


def markdown(jobs: Sequence[Job]) -> str:
    """Return the jobs as a Markdown table for the parent run's page."""
    return "\n".join(tables.markdown(_COLUMNS, job_rows(jobs))) + "\n"


def write_table(path: Path, jobs: Sequence[Job]) -> None:
    """Write the jobs as CSV, with their runs."""
    rows = [(*row, job.run_id) for row, job in zip(job_rows(jobs), jobs, strict=True)]
    tables.write_csv(path, (*_COLUMNS, "run_id"), rows)


def show(jobs: Sequence[Job]) -> None:
    """Print the jobs as a table."""
    tables.show(_COLUMNS, job_rows(jobs), "the sweep's jobs")


def headline(metrics: Mapping[str, float], name: str) -> str:
    """Write a metric, with n and interval where they are known.

    As in `rmb/overall 0.61 (0.58 to 0.64, n 2,109)`.
    """
    name = name if name in metrics else f"{name}/partial"
    if name not in metrics:
        return ""
    if f"{name}/n" not in metrics:
        return f"{name} {metrics[name]:.3f}"
    text = f"n {metrics[f'{name}/n']:,.0f}"
    if f"{name}/low" in metrics:
        text = f"{metrics[f'{name}/low']:.3f} to {metrics[f'{name}/high']:.3f}, {text}"
    return f"{name} {metrics[name]:.3f} ({text})"
