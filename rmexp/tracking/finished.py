"""Finished runs: an experiment's, and the files of one of them."""

import gc
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from mlflow.tracking import MlflowClient

from rmexp.errors import ConfigError
from rmexp.outside import known, read_json
from rmexp.secrets import redact
from rmexp.tracking.connection import ERRORS, first_line, impatient, without_bars

_RUNS_A_PAGE = 200
NUMBERS = "metrics.json"  # every number of a run by name


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """A run as it was tracked, with the last value of each metric."""

    run_id: str
    name: str
    tags: Mapping[str, str]
    metrics: Mapping[str, float]


def finished_runs(
    uri: str, experiment: str, query: str, more: str | None = None
) -> list[TrackedRun]:
    """Return an experiment's finished runs that match MLflow's filters, the newest first.

    `query` is our own filter, `more` the user's. Raises ConfigError for an experiment that is not
    there, a user's filter that MLflow does not take, and a server that does not answer.
    """
    runs: list[TrackedRun] = []
    conditions = ["attributes.status = 'FINISHED'", query, *([more] if more else [])]
    try:
        with impatient():
            client = MlflowClient(tracking_uri=uri)
            existing = client.get_experiment_by_name(experiment)
        if existing is None:
            names = ", ".join(sorted(each.name for each in client.search_experiments()))
            raise ConfigError(f"there is no experiment {experiment}: choose from {names}")
        token: str | None = ""
        while token is not None:
            with _no_garbage_collection():
                page = client.search_runs(
                    [existing.experiment_id],
                    " and ".join(conditions),
                    max_results=_RUNS_A_PAGE,
                    order_by=["attributes.start_time DESC"],
                    page_token=token or None,
                )
            runs += [
                TrackedRun(run.info.run_id, run.info.run_name, run.data.tags, run.data.metrics)
                for run in page
            ]
            token = page.token or None
    except ERRORS as error:
        mend = (
            f"correct the filter {more!r}, or check that the server is up" if more else "start it"
        )
        raise ConfigError(
            f"cannot read the runs of {experiment} at {redact(uri)} ({first_line(error)}): {mend}"
        ) from error
    return runs


def fetch_files(uri: str, run_id: str, names: Collection[str], folder: Path) -> TrackedRun:
    """Copy these artifacts of a run into a folder, and return the run.

    Raises ConfigError where the run or one of the files is not to be had.
    """
    try:
        with impatient():
            client = MlflowClient(tracking_uri=uri)
            run = client.get_run(run_id)
        with without_bars():
            for name in names:
                client.download_artifacts(run_id, name, str(folder))
    except ERRORS as error:
        raise ConfigError(
            f"cannot get {', '.join(names)} of the run {run_id} from {redact(uri)} "
            f"({first_line(error)}): give a finished run of eval_rm.py, or its folder"
        ) from error
    return TrackedRun(run_id, run.info.run_name, run.data.tags, run.data.metrics)


def recorded_numbers(uri: str, run_id: str) -> dict[str, float]:
    """Return all numbers of a run, of which MLflow's own metrics are some.

    Raises ConfigError where its files are not to be had, DataError for what is no number.
    """
    with TemporaryDirectory() as folder:
        fetch_files(uri, run_id, [NUMBERS], Path(folder))
        found = read_json(Path(folder) / NUMBERS, f"evaluate again what the run {run_id} measured")
    return known(found, dict.fromkeys(found, float), f"{NUMBERS} of the run {run_id}")


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Make objects by the 100,000s in a third of the time: nothing of them is garbage yet."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
