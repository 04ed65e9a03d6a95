"""The scripts of the project's root, run in this process: one of its own takes seconds."""

import contextlib
import io
import json
import logging
import os
import resource
import runpy
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from rmexp import secrets
from rmexp.cli import commands
from rmexp.tracking.runs import MlflowClient


@dataclass(frozen=True)
class Done:
    """A command that has ended: its exit code, its output, and what it left in `folder`."""

    code: int
    out: str
    err: str
    folder: Path
    uri: str

    @property
    def last(self) -> str:
        return self.err.strip().splitlines()[-1]

    @property
    def status(self) -> dict[str, str]:
        return self.status_of("")

    def status_of(self, job: str) -> dict[str, str]:
        found: dict[str, str] = json.loads((self.folder / job / "run.json").read_text())
        return found

    @property
    def metrics(self) -> dict[str, float]:
        found: dict[str, float] = json.loads((self.folder / "metrics.json").read_text())
        return found

    @property
    def scores(self) -> list[dict[str, Any]]:
        lines = (self.folder / "scores.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def run(self, job: str = "") -> Any:
        """What MLflow has of it."""
        return MlflowClient(tracking_uri=self.uri).get_run(self.status_of(job)["run_id"])


class Ended(NamedTuple):
    """The exit code of a script, and its output."""

    code: int
    out: str
    err: str


def run_apart(root: Path, words: Sequence[str], **environment: str) -> Ended:
    """Run `python WORDS` in a process of its own, with one thread."""
    done = subprocess.run(
        [sys.executable, *words],
        cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute with the bits of a process that has one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def run_script(root: Path, words: Sequence[str], undrawn: Iterable[tuple[Any, str]] = ()) -> Ended:
    """Run `python WORDS` in this process.

    The functions in `undrawn` make no figures: drawing takes most of a small run's time.
    """
    handlers, level = logging.root.handlers[:], logging.root.level
    stdout, stderr = io.StringIO(), io.StringIO()
    code: object = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr(sys, "argv", list(words))
        patch.setattr(commands, "_failed", [])
        patch.setattr(commands, "_then", [])
        patch.setattr(secrets, "_known", set())
        patch.setenv("COLUMNS", "200")
        for owner, name in undrawn:
            patch.setattr(owner, name, lambda *_: {})
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            try:
                runpy.run_path(words[0], run_name="__main__")
            except SystemExit as end:
                code = end.code
            finally:
                for handler in logging.root.handlers:
                    if handler not in handlers:
                        with contextlib.suppress(OSError):  # of a log file on a full disk
                            handler.close()
                logging.root.handlers[:] = handlers
                logging.root.setLevel(level)
    assert isinstance(code, int)
    return Ended(code, stdout.getvalue(), stderr.getvalue())


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond so many bytes."""
    largest, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, hard))


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def mlflow_serving(
    *words: str, port: int | None = None, **environment: str
) -> contextlib.AbstractContextManager[str]:
    """Run `mlflow WORDS` as a server of our own; see `server_process`."""
    return server_process([sys.executable, "-m", "mlflow", *words], port=port, **environment)


@contextlib.contextmanager
def server_process(
    words: Sequence[str],
    *,
    port: int | None = None,
    tries: int = 240,
    log: Path = Path(os.devnull),
    **environment: str,
) -> Iterator[str]:
    """Run a server of our own in a process, and yield its address once it answers."""
    port = port or free_port()
    with (
        log.open("w") as out,
        subprocess.Popen(
            [*words, "--host", "127.0.0.1", "--port", str(port)],
            env={**os.environ, **environment},
            start_new_session=True,  # it has processes of its own
            stdout=out,
            stderr=out,
        ) as process,
    ):
        address = f"http://127.0.0.1:{port}"
        try:
            for _ in range(tries):
                assert process.poll() is None, log.read_text()[-3000:]
                try:
                    urllib.request.urlopen(f"{address}/health", timeout=5).close()
                    break
                except (urllib.error.URLError, ConnectionError):
                    time.sleep(0.5)
            yield address
        finally:
            os.killpg(process.pid, signal.SIGTERM)
