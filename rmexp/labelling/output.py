"""The folder of a scored data set: parts in the order of the input, each written whole or not.

`data/` holds the rows, a file a part. `.rmexp/` holds what the command needs to go on: what the
folder is of (`plan.json`), each part's numbers, and the scores of the parts that are being made. A
part is made once its file in `data/` is there, and is never changed.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from rmexp.data.streams import Span
from rmexp.errors import ConfigError, DataError
from rmexp.files import make_folder, replace, written_whole
from rmexp.outside import known, parse_json, read_json

Array = NDArray[Any]
_PLAN = {"data": str, "kind": str, "form": str, "rows": int, "identity": dict}


@dataclass(frozen=True, slots=True)
class Part:
    """What making a part took and found: of its `rows` so many were `written`.

    `bad_rows` are the lines of those that are bad; `left_out` counts those among them that are not
    written, and `dropped` those that are too long. `sha256` is that of the part's file.
    """

    number: int
    rows: int
    written: int
    left_out: int
    dropped: int
    bad_rows: tuple[str, ...]
    responses: int
    tokens: int
    truncated: int
    seconds: float
    sha256: str


class Output:
    """The folder `out`, whose parts are files of the form "parquet" or "jsonl"."""

    def __init__(self, folder: Path, form: str) -> None:
        self.folder, self.form = folder, form
        self.data = folder / "data"
        self._own = folder / ".rmexp"

    def prepare(self, plan: Mapping[str, object]) -> None:
        """Make the folder, for what the plan says alone.

        Raises ConfigError where it cannot be made, or holds the rewards of something else.
        """
        for each in (self.data, self._own / "numbers", self._own / "locks", self._own / "scores"):
            make_folder(each, "out")
        path = self._own / "plan.json"
        with FileLock(self._own / "locks" / "plan.lock"):
            if not path.exists():
                replace(path, json.dumps(plan, indent=1) + "\n")
        found = known(read_json(path, "give another folder as out"), _PLAN, str(path))
        for name, value in parse_json(json.dumps(plan)).items():
            if found.get(name) != value:
                raise ConfigError(
                    f"out={self.folder} holds the rewards of another run: there {name} is "
                    f"{_short(found.get(name))}, and here {_short(value)}; give another folder"
                )

    def path(self, number: int) -> Path:
        """Return the file of a part."""
        return self.data / f"part-{number:05d}.{self.form}"

    def scores(self, number: int) -> Path:
        """Return the folder for the scores of a part that is being made."""
        return self._own / "scores" / f"{number:05d}"

    def is_made(self, number: int) -> bool:
        """Say whether a part is there."""
        return self.path(number).exists()

    def claims(self) -> "Claims":
        """Return what holds the parts that this process makes."""
        return Claims(self)

    def lock(self, number: int, waits: bool) -> FileLock:
        """Return the lock of a part, which any thread of its process may release."""
        path = self._own / "locks" / f"{number:05d}.lock"
        return FileLock(path, blocking=waits, thread_local=False)

    @contextmanager
    def ending(self) -> Iterator[None]:
        """Let one process at a time write what is made of all parts."""
        with FileLock(self._own / "locks" / "end.lock"):
            yield

    def write(
        self,
        number: int,
        rows: Callable[[Path], None],
        arrays: Mapping[str, Array],
        about: Callable[[str], Part],
    ) -> Part:
        """Write a part, of which `rows` writes the file; its scores are no longer needed then.

        `about` makes the part's account from the SHA-256 of its file.
        """
        path = self.path(number)
        for left in path.parent.glob(f".{path.name}.*"):  # of a process that was killed
            left.unlink()
        with written_whole(path) as draft:
            rows(draft)
            with draft.open("rb") as file:
                part = about(hashlib.file_digest(file, "sha256").hexdigest())
            with written_whole(self._numbers(number)) as numbers, numbers.open("wb") as file:
                every: dict[str, Any] = {**arrays, "about": np.array(json.dumps(asdict(part)))}
                np.savez(file, **every)
        shutil.rmtree(self.scores(number), ignore_errors=True)
        return part

    def part(self, number: int) -> Part:
        """Return the account of a part that is made."""
        return self._read(number, ())[0]

    def arrays(self, numbers: Sequence[int], names: Sequence[str]) -> dict[str, Array]:
        """Return columns of numbers over these parts, one after the other."""
        if not numbers:
            return {name: np.empty(0) for name in names}
        found = [self._read(number, names)[1] for number in numbers]
        return {name: np.concatenate([arrays[name] for arrays in found]) for name in names}

    def _numbers(self, number: int) -> Path:
        return self._own / "numbers" / f"{number:05d}.npz"

    def _read(self, number: int, names: Sequence[str]) -> tuple[Part, dict[str, Array]]:
        path = self._numbers(number)
        try:
            with np.load(path, allow_pickle=False) as file:
                about = parse_json(str(file["about"]))
                arrays = {name: file[name] for name in names}
            part = Part(**{**about, "bad_rows": tuple(about["bad_rows"])})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path} is damaged ({error}): delete it and {self.path(number)}, and run the "
                "command again"
            ) from error
        return part, arrays


class Claims:
    """The parts that this process makes, and others leave alone, until the block ends."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._held: dict[int, FileLock] = {}

    def take(self, spans: Sequence[Span], waits: bool = False) -> Iterator[Span]:
        """Yield the spans whose parts are to be made, each held from then on.

        Those that other processes hold are passed over, or waited for.
        """
        for span in spans:
            if self._output.is_made(span.number):
                continue
            lock = self._output.lock(span.number, waits)
            try:
                lock.acquire()
            except Timeout:
                continue
            self._held[span.number] = lock
            if self._output.is_made(span.number):
                self.drop(span)
            else:
                yield span

    def drop(self, span: Span) -> None:
        """Hold a part no longer."""
        self._held.pop(span.number).release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        while self._held:
            self._held.popitem()[1].release()


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
