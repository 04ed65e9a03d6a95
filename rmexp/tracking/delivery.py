"""Delivering: what the runs in a folder could not tell MLflow while they went on is told later."""

import time
from contextlib import nullcontext
from itertools import groupby
from pathlib import Path

from mlflow.tracking import MlflowClient

from rmexp.secrets import redact
from rmexp.tracking import outbox
from rmexp.tracking.connection import ERRORS, impatient
from rmexp.tracking.entries import Destination
from rmexp.tracking.run_folder import DIED, hold, holder, undelivered


def deliver_all(folder: Path, uri: str | None = None, *, held: bool = False) -> list[Destination]:
    """Deliver what waits in a folder and below it, parents first, and return the runs.

    `uri` is where the server is now, if that is not where it was. Each run's folder is held
    meanwhile; with `held` this process holds `folder` itself already, and `uri` is the address of
    its own server, with the password that no file has. Raises TrackingError where it
    does not take all, ConfigError where another process is at work in one of the folders.
    """
    told = []
    for own, journals in groupby(undelivered(folder), holder):
        with nullcontext() if held and own == folder else hold(own):
            told += [_deliver(journal, uri, moved=not held) for journal in journals]
    return told


def _deliver(journal: Path, uri: str | None, *, moved: bool) -> Destination:
    """Tell what waits in a journal whose run has ended, and take it away; return the run.

    A run that was not ended is so now: its process died. Raises TrackingError where the server does
    not take all, DataError for what is no journal.
    """
    whose, entries = outbox.read(journal)
    known = uri is not None and (moved or redact(uri) == whose["uri"])
    address = uri if uri is not None and known else whose["uri"]
    to = Destination(None, address, whose["experiment_id"], whose["run_id"], journal.parent)
    try:
        with impatient():
            to.reached = MlflowClient(to.uri)
    except ERRORS as error:
        raise outbox.not_taken(to, error) from error
    if not any(kind == "end" for kind, _ in entries):
        now = int(time.time() * 1000)
        outbox.keep(journal, to, "end", {"status": "KILLED", "time": now, "error": DIED})
    outbox.send_all(journal, to)
    return to
