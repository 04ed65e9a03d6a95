"""The score store: every number or answer that a model gave, written down as it was made.

A folder a column (one model, one way to read it), and in it a file a process, so that several
processes never write to the same file. Lines are appended and never changed; the last line of a
process that was killed may be torn, and is passed over. Processes that need the same values claim
them, so that one computes them; a claim ends with its process, however that ends.
"""

import hashlib
import json
import logging
import os
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from filelock import FileLock, Timeout

from rmexp.errors import ConfigError, ScoreError
from rmexp.files import replace
from rmexp.outside import parse_json

log = logging.getLogger(__name__)

Value = TypeVar("Value")  # what JSON can hold


class Store(Generic[Value]):
    """The values of one column: read at once, appended to as they are made.

    `identity` is whatever determines the values besides the tokens; it names the folder and is kept
    there as `column.json`. Use it as a context manager to append.
    """

    def __init__(self, folder: Path, identity: Mapping[str, object]) -> None:
        text = json.dumps(identity, sort_keys=True, indent=1)
        self.folder = folder / hashlib.sha256(text.encode()).hexdigest()[:16]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not (self.folder / "column.json").exists():
                replace(self.folder / "column.json", text)
        except OSError as error:
            raise ConfigError(
                f"cannot write to the score store {folder} ({error.strerror}): give another folder "
                "as store_dir"
            ) from error
        self._file: int | None = None

    def read(self) -> dict[str, Value]:
        """Return the values of all processes so far by key."""
        values: dict[str, Value] = {}
        for path in sorted(self.folder.glob("*.jsonl")):
            with path.open("rb") as lines:
                for number, line in enumerate(lines, start=1):
                    if not line.endswith(b"\n"):
                        continue
                    try:
                        row: Any = parse_json(line.decode())
                    except ValueError as error:
                        raise _damaged(path, number) from error
                    if not isinstance(row, list) or len(row) != 2:
                        raise _damaged(path, number)
                    key, value = row
                    if not isinstance(key, str) or not self.fits(value):
                        raise _damaged(path, number)
                    values[key] = value
        return values

    def fits(self, value: object) -> bool:
        """Say whether a value that was read is one of this column's."""
        return True

    def append(self, values: Iterable[tuple[str, Value]]) -> None:
        """Write the values down; they outlive this process from here on."""
        if self._file is None:
            name = f"{os.getpid()}-{uuid.uuid4().hex[:12]}.jsonl"
            self._file = os.open(self.folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        data = "".join(json.dumps([key, value]) + "\n" for key, value in values).encode()
        try:
            while data:  # what a full disk leaves of it is written again, for its error
                data = data[os.write(self._file, data) :]
        except OSError as error:
            raise ConfigError(
                f"cannot write to the score store {self.folder} ({error.strerror}): mend that and "
                "run the command again, it goes on from there"
            ) from error

    def fill(
        self, keys: Collection[str], make: Callable[[list[str]], Mapping[str, Value]]
    ) -> tuple[dict[str, Value], int]:
        """Return all values, those of `keys` among them, and how many of these were made now.

        `make` returns the values of the keys that it is given, and appends those to be kept. Other
        processes may make others meanwhile.
        """
        known, made = self.read(), 0
        while missing := [key for key in keys if key not in known]:
            with self.claim(missing) as mine:
                known |= self.read()
                if new := [key for key in mine if key not in known]:
                    known |= make(new)
                    made += len(new)
            if len(mine) < len(missing):
                log.info("waiting for a process that makes %d of them", len(missing) - len(mine))
                self.wait(missing)
                known |= self.read()
        return known, made

    @contextmanager
    def claim(self, keys: Collection[str]) -> Iterator[list[str]]:
        """Claim for the block, and yield, the keys that no other process is computing.

        Read the store again inside: a claim that has just ended left its values there.
        """
        own = self.folder / "claims" / f"{uuid.uuid4().hex}.keys"
        own.parent.mkdir(exist_ok=True)
        with FileLock(self.folder / "claims" / "all.lock"):
            taken = {key for claim in self._claims() for key in _keys(claim)}
            mine = [key for key in keys if key not in taken]
            held = FileLock(own.with_suffix(".lock"))
            held.acquire()
            own.write_text("\n".join(mine), encoding="utf-8")
        try:
            yield mine
        finally:
            _discard(own)
            held.release()

    def is_claimed(self) -> bool:
        """Say whether some process is computing values of this column."""
        return (self.folder / "claims").is_dir() and bool(self._claims())

    def wait(self, keys: Collection[str]) -> None:
        """Return when the processes that hold claims on some of these keys now have ended them."""
        wanted = set(keys)
        for claim in self._claims():
            if not wanted.isdisjoint(_keys(claim)):
                with FileLock(claim.with_suffix(".lock")):
                    pass

    def _claims(self) -> list[Path]:
        """Return the claims of live processes; what others left behind is deleted."""
        live = []
        for claim in (self.folder / "claims").glob("*.keys"):
            try:
                with FileLock(claim.with_suffix(".lock"), blocking=False):
                    _discard(claim)
            except Timeout:
                live.append(claim)
        return live

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


class ScoreStore(Store[float]):
    """The store of one model's rewards or log-probabilities by `response_key`."""

    def fits(self, value: object) -> bool:
        """Say whether a value that was read is a number."""
        return isinstance(value, int | float) and not isinstance(value, bool)


def _damaged(path: Path, number: int) -> ScoreError:
    return ScoreError(
        f"{path}:{number} of the score store is damaged, or of another version: delete this file, "
        "what is missing then is computed again"
    )


def _keys(claim: Path) -> list[str]:
    try:
        return claim.read_text(encoding="utf-8").split()
    except FileNotFoundError:  # it has just ended
        return []


def _discard(claim: Path) -> None:
    claim.unlink(missing_ok=True)
    claim.with_suffix(".lock").unlink(missing_ok=True)


def response_key(ids: Iterable[int], span: tuple[int, int] | None = None) -> str:
    """Return the key of a response's token ids, and of the span that is read where that matters."""
    digest = hashlib.sha256(",".join(map(str, ids)).encode())
    if span is not None:
        digest.update(f":{span[0]}:{span[1]}".encode())
    return digest.hexdigest()[:32]
