"""Jobs: the status that each leaves in its folder, and the table of a sweep's jobs."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from rmexp import tables
from rmexp.errors import ConfigError, DataError
from rmexp.outside import known, parse_json, read_json
from rmexp.tracking import run_folder
from rmexp.tracking.run_folder import read_status

LIST = "jobs.jsonl"  # a sweep's jobs and their folders
_NEVER = "had not begun when the sweep was stopped"


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


def objective(name: str | None, folder: Path) -> float | None:
    """Return the number of this name in a job's metrics.json; None asks for none.

    Raises ConfigError where there is no such number.
    """
    if name is None:
        return None
    path = folder / "metrics.json"
    metrics = read_json(path, "run the job again") if path.exists() else {}
    if name not in metrics:
        near = get_close_matches(name, metrics, 3, 0)
        choose = f"did you mean {' or '.join(near)}?" if near else "this job measures none"
        raise ConfigError(f"objective_metric={name}: {path} has no such number; {choose}")
    return float(metrics[name])


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


def read_jobs(sweep: Path, planned: Sequence[Sequence[str]] = ()) -> list[Job]:
    """Return the jobs of a sweep, by number; of the `planned` ones, those that never began too."""
    jobs = []
    for number, folder in noted_jobs(sweep).items():
        try:
            row = read_status(folder)
        except DataError as error:
            row = {"status": "FAILED", "error": str(error)}
        result = row.get("error") or row.get("headline") or ""
        if row.get("skipped"):
            result = f"{result} (done before)"
        if row["status"] == "RUNNING":
            result = f"still at work, process {row.get('process', 'unknown')}"
        words = tuple(row.get("overrides", ()))
        jobs.append(Job(folder, number, words, row["status"], row.get("run_id", ""), result))
    begun = {job.number for job in jobs}
    jobs += [
        Job(sweep / str(number), number, tuple(words), "NOT_RUN", "", _NEVER)
        for number, words in enumerate(planned)
        if number not in begun
    ]
    return sorted(jobs, key=lambda job: job.number)


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


def say_last(what: str, folder: Path, number: str, where: str) -> None:
    """Print the three lines that a command ends with: what it did, its number, where to see it."""
    print(f"\n{tables.printable(what)}: results in {folder}")
    print(f"{tables.printable(number) or 'done'}\n{where}")


def undelivered(folder: Path, error: Exception) -> str:
    """Say that results are whole, though MLflow was not told all of them, and what to do."""
    deliver = run_folder.how_to_deliver(folder)
    text = f"the results are whole, but not all in MLflow: send the rest with {deliver} ({error})"
    return tables.printable(text)


def counted(jobs: Sequence[Job]) -> str:
    """Say how many of the jobs finished."""
    failed = sum(job.failed for job in jobs)
    return f"{len(jobs) - failed} of {len(jobs)} jobs finished" + (
        f", {failed} did not" if failed else ""
    )
