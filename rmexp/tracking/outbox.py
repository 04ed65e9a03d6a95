"""What a run tells MLflow, in order: at once, or once its server is back.

While no server answers, entries are kept in a journal in the run's folder, a line each, and the
work goes on. They are told by the run itself when the server is back, or by `rmexp.deliver`.
"""

import json
import logging
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from threading import RLock
from typing import Any

from rmexp.errors import ConfigError, DataError, no_room
from rmexp.files import replace
from rmexp.outside import known, parameters, parse_json
from rmexp.secrets import redact
from rmexp.tracking.connection import ERRORS, TrackingError, first_line
from rmexp.tracking.entries import ENTRIES, Destination, merged, tell
from rmexp.tracking.run_folder import UNDELIVERED

log = logging.getLogger(__name__)

_FAILED = (*ERRORS, ConfigError)
_PAUSE = 10.0  # seconds between two tries, so that the work does not wait for a server
_SHARE = 20  # of a try's own time: one that hangs costs a twentieth of the work's
_WHERE = {"uri": str, "experiment_id": str, "run_id": str}

Entry = tuple[str, dict[str, Any]]


class Outbox:
    """What is told of one run; safe for several threads."""

    def __init__(self, to: Destination) -> None:
        self.to = to
        self._behind = False
        self._next = 0.0  # when the next try is due
        self._lock = RLock()

    def send(self, kind: str, **values: Any) -> Any:
        """Tell an entry and return what comes of it; None for one that has to wait.

        Raises TrackingError where nothing can wait: the disk is full, or the run has no folder.
        """
        with self._lock:
            if not self._catch_up():
                return keep(self._journal(), self.to, kind, values)
            try:
                return tell(self.to, kind, values)
            except ERRORS as error:
                self.keep(kind, values, error)

    def keep(self, kind: str, values: dict[str, Any], error: BaseException) -> None:
        """Keep an entry that could not be told because of an error, and all that follow it."""
        uri, reason = redact(self.to.uri), first_line(error)
        if self.to.folder is None or no_room(error):
            raise TrackingError(
                f"the tracking server {uri} stopped answering ({reason}): bring it back and run "
                "the command again, the scores are kept"
            ) from error
        with self._lock:
            self._behind = self.to.again = True
            self._next = time.monotonic() + _PAUSE
            keep(self._journal(), self.to, kind, values)
        log.warning(
            "the tracking server %s does not take what the run tells it (%s): the run goes on, "
            "and %s has what is still to be told",
            *(uri, reason, self._journal()),
        )

    def flush(self) -> None:
        """Tell what waits. Raises TrackingError where the server does not take all of it."""
        with self._lock:
            if not self._behind:
                return
            began = time.monotonic()
            try:
                send_all(self._journal(), self.to)
            except TrackingError:
                now = time.monotonic()
                self._next = now + max(_PAUSE, _SHARE * (now - began))
                raise
            self._behind = False
        log.info("the tracking server is back, and has been told all")

    def _catch_up(self) -> bool:
        """Tell what waits if a try is due; say whether nothing waits any more."""
        if self._behind and time.monotonic() >= self._next:
            with suppress(TrackingError):
                self.flush()
        return not self._behind

    def _journal(self) -> Path:
        assert self.to.folder is not None
        return self.to.folder / UNDELIVERED


def send_all(journal: Path, to: Destination) -> None:
    """Tell what waits in a journal, and take it away.

    Raises TrackingError where the server does not take all of it; the journal then has the rest.
    """
    to.again = True
    entries = merged(read(journal)[1])
    for at, (kind, values) in enumerate(entries):
        try:
            tell(to, kind, values)
        except _FAILED as error:
            if at:
                replace(journal, "".join(_lines(to, entries[at:])))
            raise not_taken(to, error) from error
    journal.unlink()


def not_taken(to: Destination, error: BaseException) -> TrackingError:
    """Return what says why a server did not take an entry."""
    return TrackingError(
        f"the tracking server {redact(to.uri)} does not take what the run {to.run_id} has to tell "
        f"({first_line(error)})"
    )


def keep(journal: Path, to: Destination, kind: str, values: dict[str, Any]) -> None:
    """Add an entry to a journal, whole: in one call of the system, after no torn line."""
    lines = _lines(to, [(kind, values)])
    journal.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(journal, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        size = os.fstat(file).st_size
        if size and os.pread(file, 1, size - 1) != b"\n":
            size = os.pread(file, size, 0).rfind(b"\n") + 1
            os.ftruncate(file, size)
        data = "".join(lines[1:] if size else lines).encode()
        try:
            while data:  # what a full disk leaves of it is written again, for its error
                data = data[os.write(file, data) :]
        except OSError:
            os.ftruncate(file, size)
            raise
    finally:
        os.close(file)


def _lines(to: Destination, entries: Iterable[Entry]) -> list[str]:
    """Return the lines of a journal: whose it is, then what waits."""
    whose = {"uri": redact(to.uri), "experiment_id": to.experiment_id, "run_id": to.run_id}
    rows: list[object] = [whose, *([kind, values] for kind, values in entries)]
    return [json.dumps(row) + "\n" for row in rows]


def read(journal: Path) -> tuple[dict[str, str], list[Entry]]:
    """Return whose a journal is, and what waits in it; a torn last line is passed over."""
    where = f"{journal}: line 1"
    entries: list[Entry] = []
    try:
        lines = [line for line in journal.read_bytes().splitlines(True) if line.endswith(b"\n")]
        whose = known(dict(parse_json(lines[0].decode())), _WHERE, where)
        if missing := set(_WHERE) - set(whose):
            raise DataError(f"{where} has no {min(missing)}")
        for number, line in enumerate(lines[1:], start=2):
            where = f"{journal}: line {number}"
            kind, values = parse_json(line.decode())
            hints = parameters(ENTRIES[kind][0])
            del hints["to"]
            if missing := set(hints) - set(values):
                raise DataError(f"{where} has no {min(missing)}")
            entries.append((kind, known(values, hints, where, literally=True)))
    except OSError as error:
        raise DataError(f"cannot read {journal} ({error.strerror})") from error
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise DataError(
            f"{where} is no entry of a run: remove the file to go without it"
        ) from error
    return whose, entries
