"""Sweeps: the parent run, the jobs' table, and what one job tells the next.

The parent process opens a sweep before its jobs and closes it after them; a job, in whatever
process it runs, finds it by the sweep's folder. Jobs speak through files in their folders.
"""

import gc
import json
import logging
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from rmexp.cli import jobs
from rmexp.errors import ConfigError, DataError, RmexpError
from rmexp.outside import known, read_json
from rmexp.tracking import run_folder
from rmexp.tracking.run_folder import write_status

if TYPE_CHECKING:
    from rmexp.tracking.runs import Run

log = logging.getLogger(__name__)

_PATIENCE = 60.0  # seconds that a server gets to come back once all jobs have ended
_POLL = 0.5  # seconds between two looks for a free GPU
_FILE, _STOP = "sweep.json", "stopped"
# The sweep of this process, which is its parent, and the words of its jobs where they are known.
_open: "tuple[Path, Run, ExitStack, Sequence[Sequence[str]]] | None" = None


def open_sweep(
    folder: Path,
    uri: str,
    experiment: str,
    command: str,
    overrides: Sequence[str],
    varied: Sequence[str],
    planned: Sequence[Sequence[str]] = (),
) -> None:
    """Open the parent run; with it the database and the experiment, once for all the jobs.

    `varied` names the settings in which the jobs differ; `planned` holds the words of each job of a
    grid.
    """
    from rmexp.tracking.delivery import deliver_all
    from rmexp.tracking.runs import open_run

    global _open
    held = ExitStack()
    held.enter_context(run_folder.hold(folder))
    tags = {"rmexp.command": f"{command} -m", "rmexp.overrides": " ".join(overrides)}
    words = [word for word in overrides if word.partition("=")[0] in varied]
    if run_folder.undelivered(folder):
        deliver_all(folder, held=True)
    run = open_run(uri, experiment, " ".join(["sweep", *words])[:250], tags, folder=folder)
    _end_left(folder, run)
    run.end_dead()
    for name in (_STOP, jobs.LIST):  # of an earlier sweep in this folder
        (folder / name).unlink(missing_ok=True)
    found = {"run_id": run.run_id, "varied": list(varied)}
    (folder / _FILE).write_text(json.dumps(found) + "\n", encoding="utf-8")
    _open = folder, run, held, planned


def _end_left(folder: Path, run: "Run") -> None:
    """End the sweep and the jobs that were at work in this folder when their processes died."""
    if (folder / _FILE).exists():
        run.end_left(find_sweep(folder)[0])
    for job in jobs.noted_jobs(folder).values():
        try:
            with run_folder.hold(job):
                left = run_folder.take_over(job)
                status = run_folder.read_status(job)
                if status["status"] == "RUNNING":
                    write_status(job, status | {"status": "KILLED", "error": run_folder.DIED})
        except ConfigError:  # it goes on without its sweep
            continue
        for run_id in left:
            run.end_left(run_id)


def is_open() -> bool:
    """Say whether this process has a sweep that has not ended."""
    return _open is not None


def close_sweep(*, killed: bool = False, broken: bool = False) -> list[Path]:
    """Close the parent run with a table of the jobs, and return the folders of those that failed.

    `broken` says that the sweep itself failed, whatever its jobs did. Jobs whose process died are
    ended for them; those that are still at work, as jobs of a cluster may be, are left to it. Does
    nothing where no sweep is open.
    """
    global _open
    if _open is None:
        return []
    (folder, run, held, planned), _open = _open, None
    with held:
        return _close(folder, run, planned if killed or broken else (), killed, broken)


def _close(
    folder: Path, run: "Run", planned: Sequence[Sequence[str]], killed: bool, broken: bool
) -> list[Path]:
    for job in jobs.noted_jobs(folder).values():
        try:
            with nullcontext() if killed else run_folder.hold(job):  # a signal ends them as well
                status = run_folder.read_status(job)
                if status["status"] == "RUNNING":
                    write_status(job, status | {"status": "KILLED", "error": run_folder.DIED})
                    if "run_id" in status:
                        run.end_left(status["run_id"])
        except (ConfigError, DataError):  # at work, or damaged: the table of the jobs says so
            continue
    run.end_dead()  # those that had not yet been noted
    done = jobs.read_jobs(folder, planned)
    failed = [job.folder for job in done if job.failed]
    try:
        if done:
            _report(folder, done, run)
    finally:
        ended = "KILLED" if killed else "FAILED" if failed or broken else "FINISHED"
        run.end(ended)
    undelivered = None
    try:
        run.deliver(0 if killed else _PATIENCE)
    except RmexpError as error:
        undelivered = error
    jobs.say_last("sweep", folder, jobs.counted(done), run.where())
    if undelivered is not None:
        print(jobs.undelivered(folder, undelivered), file=sys.stderr)
        failed.append(folder)
    return failed


def _report(folder: Path, done: Sequence[jobs.Job], run: "Run") -> None:
    """Show the jobs' table, and log it with what can be said of all of them."""
    jobs.show(done)
    jobs.write_table(folder / "sweep.csv", done)
    run.log_file(folder / "sweep.csv")
    run.note(jobs.markdown(done) + _comparison(folder, done, run))
    for path in _curves(folder, done):
        run.log_file(path)


def _comparison(folder: Path, done: Sequence[jobs.Job], run: "Run") -> str:
    """Log what trained models gained, all jobs together, and return it as text for the page."""
    from rmexp.evaluation import comparison

    rows = comparison.gather(job.folder for job in done)
    if not rows:
        return ""
    text = comparison.report(rows, folder)
    for name in (comparison.FILE, comparison.FIGURE):
        run.log_file(folder / name)
    return f"\n{text}"


def _curves(folder: Path, done: Sequence[jobs.Job]) -> list[Path]:
    """Draw the best-of-n curves of the jobs that left one, and return the figures' paths."""
    from rmexp.stats import bestofn

    files = {job: job.folder / bestofn.FILE for job in done if not job.failed}
    left = [job for job, path in files.items() if path.exists()]
    if len(left) < 2:
        return []
    from rmexp.stats import drawing, figures

    benches = ", ".join(dict.fromkeys(job.result.partition("/")[0] for job in left))
    names = [words or f"job {number}" for number, words, *_ in jobs.job_rows(left)]
    curves = {name: bestofn.read(files[job]) for name, job in zip(names, left, strict=True)}
    paths = []
    for name, figure in figures.curves(curves).items():
        drawing.head(figure, f"Best of n on {benches}, {len(left)} jobs")
        paths.append(drawing.save(figure, folder / name))
    return paths


def find_sweep(folder: Path) -> tuple[str, list[str]]:
    """Return the parent run of the sweep in a folder, and the settings in which its jobs differ."""
    path = folder / _FILE
    keys = {"run_id": str, "varied": list[str]}
    found = known(read_json(path, "start the sweep again"), keys, str(path))
    if lacking := [key for key in keys if key not in found]:
        raise DataError(f"{path} has no {lacking[0]}: start the sweep again")
    return found["run_id"], found["varied"]


def child_name(name: str, status: Mapping[str, object]) -> str:
    """Add to a job's name what it does not say yet: the varied settings besides the groups.

    >>> words = ["model=a", "model.dtype=bfloat16", "seed=1"]
    >>> child_name("a on rmb", {"overrides": words, "varied": ["model", "model.dtype"]})
    'a on rmb, model.dtype=bfloat16'
    """
    words, varied = status["overrides"], status["varied"]
    assert isinstance(words, list)
    assert isinstance(varied, list)
    keys = [key for key in varied if key not in ("model", "bench")]
    more = [word for word in words if word.partition("=")[0] in keys and word not in name]
    return ", ".join([name, *more])


def stop(folder: Path) -> None:
    """Keep the jobs of a sweep that have not started from starting."""
    (folder / _STOP).touch()


def stopped(folder: Path) -> bool:
    """Say whether an earlier job stopped the sweep."""
    return (folder / _STOP).exists()


def uses_gpu(config: Mapping[str, Any]) -> bool:
    """Say whether a job takes whatever GPU there is: to train, or for weights without a device."""
    trainer, model = config.get("trainer") or {}, config.get("model") or {}
    here = {} if model.get("url") else model.get("local") or {}
    return (
        trainer.get("accelerator", "cpu") != "cpu"
        or model.get("device") == "auto"
        or here.get("device") == "auto"
    )


@contextmanager
def one_gpu(folder: Path) -> Iterator[None]:
    """Give the job a GPU of its own; where all are taken, wait for a free one.

    The jobs of a sweep that share a machine hold a lock each on the device that they use, which
    ends with their process. On a machine without a GPU this does nothing.
    """
    import torch

    with ExitStack() as held:
        if count := torch.cuda.device_count():
            device = _free_gpu(folder, count, held)
            torch.cuda.set_device(device)
            log.info("on GPU %d of %d", device, count)
        yield


def _free_gpu(folder: Path, count: int, held: ExitStack) -> int:
    """Return the first device that no other job holds, and hold it."""
    host, waiting = platform.node(), False
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")  # which a launcher may set, for each job another
    names = shown.split(",") if shown else [str(device) for device in range(count)]
    while True:
        for device in range(count):
            try:
                held.enter_context(
                    FileLock(folder / f"{host}-gpu{names[device]}.lock", blocking=False)
                )
            except Timeout:
                continue
            return device
        if not waiting:
            log.info("waiting for a free one of %d GPUs", count)
            waiting = True
        time.sleep(_POLL)


def free_memory() -> None:
    """Give back what a job used, before the next one of this process."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
