"""What every command does around its work: check the config, open the run, end it, report.

A user's mistake is one line and exit code 1, in a single run and under `-m`, where an exception
would print a traceback and `sys.exit` would end the whole sweep.
"""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rmexp import sweeps
from rmexp.configs import ROOT, given, make_folder, resolve
from rmexp.errors import ConfigError, RmexpError, is_full_disk
from rmexp.jobs import replace, write_status
from rmexp.secrets import redact
from rmexp.signals import Killed, killable, uninterrupted

log = logging.getLogger(__name__)

_failed: list[Path] = []
_then: list[str] = []  # the command that follows this process's sweep

# What a task gets: the resolved config, the job's folder, and the open run. It returns its most
# important result in a few words.
Task = Callable[[dict[str, Any], Path, Any], str]

# Checkpoints are large and of use in their place only; evaluations have runs of their own.
_NOT_LOGGED = {"checkpoints", "eval"}


def launch(main: Callable[[], None]) -> None:
    """Run a Hydra main, end its sweep if it was one, and exit with 1 if any job failed."""
    _speak_utf8()
    logging.raiseExceptions = False  # a log file on a full disk is no reason for a traceback
    with killable():
        try:
            main()
        except BaseException as error:
            with uninterrupted():
                sweeps.close_sweep(killed=isinstance(error, Killed))
            raise
        _failed.extend(sweeps.close_sweep(killed=False))
    if _then and not _failed:
        log.info("then: %s", " ".join(_then))
        sys.exit(subprocess.run([sys.executable, *_then], cwd=ROOT).returncode)
    sys.exit(int(bool(_failed)))


def _speak_utf8() -> None:
    """Begin again in Python's UTF-8 mode where the locale cannot say every name or text."""
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def run_command(
    config: DictConfig, task: Task, tags: Callable[[dict[str, Any]], dict[str, str]]
) -> None:
    """Run a task within a tracked run; report a user's mistake as one line.

    `tags` makes the run's tags from the resolved config; `rmexp.name` among them names the run.
    """
    hydra = HydraConfig.get()
    out_dir = Path(hydra.runtime.output_dir)
    status: dict[str, object] = {}
    sweep = out_dir.parent if hydra.mode is RunMode.MULTIRUN else None
    if sweep is not None:
        parent, varied = sweeps.find_sweep(sweep)
        status = {"sweep": parent, "overrides": _words(hydra), "varied": varied}
        if sweeps.stopped(sweep):
            write_status(out_dir, status | {"status": "NOT_RUN", "error": "stopped by fail_fast"})
            return
    try:
        with killable(), ExitStack() as stack:
            write_status(out_dir, status | {"status": "RUNNING"})
            _redact_sweep()
            _refuse_lists(_words(hydra))
            resolved = resolve(config)
            if sweep is not None and "BasicLauncher" not in hydra.launcher._target_:
                stack.enter_context(sweeps.one_gpu(sweep))
            _run(resolved, out_dir, task, tags(resolved), status)
    except BaseException as error:
        _failed.append(out_dir)
        _report(error, out_dir, status, _go_on(config, sweep or out_dir))
        if sweep is not None and config.get("fail_fast"):
            sweeps.stop(sweep)
        if not isinstance(error, RmexpError) and not is_full_disk(error):
            raise
    finally:
        if sweep is not None:
            sweeps.free_memory()


def _run(
    config: dict[str, Any],
    out_dir: Path,
    task: Task,
    tags: dict[str, str],
    status: dict[str, object],
) -> None:
    """Do the task within a tracked run; `status` gets the run's ids once there are any."""
    from rmexp.tracking import DoneBefore, tracked_run

    text = redact(OmegaConf.to_yaml(config))
    (out_dir / "config.yaml").write_text(text, encoding="utf-8")
    uri, experiment = (given(config["tracking"], name) for name in ("uri", "experiment"))
    name = tags.pop("rmexp.name")
    parent = str(status["sweep"]) if "sweep" in status else None
    if parent is not None:
        tags = tags | {"rmexp.sweep": parent}
        name = sweeps.child_name(name, status)
    try:
        with tracked_run(uri, experiment, name, tags, parent) as run:
            status |= {"run_id": run.run_id, "experiment_id": run.experiment_id}
            write_status(out_dir, status | {"status": "RUNNING"})
            run.log_params(config)
            status["headline"] = task(config, out_dir, run)
            run.log_folder(out_dir, _NOT_LOGGED)
            run.log_file(write_status(out_dir, status | {"status": "FINISHED"}))
    except DoneBefore as done:
        status |= {"run_id": done.run_id, "headline": done.headline, "skipped": True}
        (out_dir / "metrics.json").write_text(
            json.dumps(done.metrics, indent=1) + "\n", encoding="utf-8"
        )
        write_status(out_dir, status | {"status": "FINISHED"})
        log.info("skipped: done before, as run %s", done.run_id)
        return
    print(f"\nresults  {out_dir}\nrun      {run.where()}")


def _go_on(config: DictConfig, folder: Path) -> str:
    """Say how a command that was interrupted goes on; `folder` is its own, or its sweep's."""
    if "resume" not in config:
        return "run the command again, what was scored is kept"
    return f"run the command again with resume=true out_dir={folder}, it goes on from there"


def _report(error: BaseException, out_dir: Path, status: Mapping[str, object], go_on: str) -> None:
    """Say what ended a run, in one line unless it is a mistake of ours, and in `run.json`."""
    if isinstance(error, Killed):
        reason, ended = f"killed by {error.name}", "KILLED"
        log.error("%s: %s", reason, go_on)
    elif is_full_disk(error):
        reason, ended = "no space left on the disk", "FAILED"
        log.error("%s: make room for %s and the score store, then %s", reason, out_dir, go_on)
    else:
        reason, ended = redact(str(error)), "FAILED"
        if isinstance(error, RmexpError):
            log.error("%s", reason)
    try:
        write_status(out_dir, {**status, "status": ended, "error": reason})
    except OSError as lost:
        log.error("run.json could not be written (%s)", lost.strerror)


def _redact_sweep() -> None:
    """Take passwords out of the file in which Hydra keeps a sweep's settings."""
    kept = Path(HydraConfig.get().sweep.dir) / "multirun.yaml"
    if HydraConfig.get().mode is RunMode.MULTIRUN and kept.exists():
        text = kept.read_text(encoding="utf-8")
        if redact(text) != text:
            replace(kept, redact(text))


class Guard(Callback):
    """Refuse an output folder that cannot be made, and open a sweep before its jobs.

    Hydra makes the folder before any code of the job runs, and ends in a traceback if it cannot. It
    turns a callback's exceptions into warnings; SystemExit passes.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Make the folder of a single run."""
        with _one_line():
            make_folder(Path(config.hydra.run.dir), "out_dir")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Make the folder of a sweep, and its parent run, so that the jobs find both."""
        with _one_line():
            make_folder(Path(config.hydra.sweep.dir), "out_dir")
            _open_sweep(config)


def _open_sweep(config: DictConfig) -> None:
    try:
        tracking = OmegaConf.to_container(config.tracking, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"tracking: {str(error).splitlines()[0]}; give another value") from error
    assert isinstance(tracking, dict)
    uri, experiment = (given(tracking, name) for name in ("uri", "experiment"))
    words = _words(config.hydra)
    parsed = OverridesParser.create().parse_overrides(words)
    varied = {str(word.key_or_group) for word in parsed if word.is_sweep_override()}
    varied |= {str(key) for key in config.hydra.sweeper.params or {}}
    folder, command = Path(config.hydra.sweep.dir), str(config.hydra.job.name)
    sweeps.open_sweep(folder, uri, experiment, command, words, sorted(varied))
    if config.then:
        place = {"uri": uri, "experiment": experiment}
        _then.extend(str(word) for word in config.then)
        _then.extend(f"tracking.{name}={_quoted(value)}" for name, value in place.items())
        _then.append(f"out_dir={_quoted(str(folder.resolve() / 'then'))}")


def _quoted(text: str) -> str:
    """Return a value as Hydra's overrides take any text."""
    escaped = text.replace("'", "\\'")
    return f"'{escaped}'"


@contextmanager
def _one_line() -> Iterator[None]:
    """Report a user's mistake where there is no job yet to report it."""
    try:
        yield
    except RmexpError as error:
        print(error, file=sys.stderr)
        raise SystemExit(1) from error


def _words(hydra: Any) -> list[str]:
    """Return the overrides as they were typed, without the addresses' passwords."""
    words = OmegaConf.to_container(hydra.overrides.task, resolve=False)
    assert isinstance(words, list)
    return [redact(str(word)) for word in words]


def _refuse_lists(overrides: Sequence[str]) -> None:
    """Refuse `bench=[a,b]`, which Hydra merges into one config in silence."""
    for override in overrides:
        group, _, choice = override.partition("=")
        if (ROOT / "conf" / group).is_dir() and choice.startswith("["):
            raise ConfigError(
                f"{override} would merge these files into one: run them one after the other with "
                f"-m {group}={choice.strip('[]')}"
            )
