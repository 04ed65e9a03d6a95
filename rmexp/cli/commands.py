"""What every command does around its work: check the config, open the run, end it, report.

A user's mistake is one line and exit code 1, in a single run and under `-m`, where an exception
would print a traceback and `sys.exit` would end the whole sweep.
"""

import json
import logging
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rmexp import secrets, tables
from rmexp.cli import jobs, mistakes, sweeps
from rmexp.cli.called import COMMANDS
from rmexp.cli.configs import absolute, check_early, given, resolve
from rmexp.cli.jobs import note_job
from rmexp.errors import ConfigError, RmexpError, no_room
from rmexp.files import CONF, PACKAGE, make_folder, replace
from rmexp.signals import Killed, killable, uninterrupted
from rmexp.tracking import run_folder
from rmexp.tracking.run_folder import write_status

if TYPE_CHECKING:
    from rmexp.tracking.runs import Run

log = logging.getLogger(__name__)

_PATIENCE = 60.0  # seconds that a server gets to come back once all work is done
_NOT_RUN = {"status": "NOT_RUN", "error": "stopped by fail_fast"}
_failed: list[Path] = []
_then: list[str] = []  # the command that follows this process's sweep
_by_hydra: list[Path] = []  # files in which Hydra keeps settings as they were typed

# What a command does once its run is open: it returns its most important result in a few words.
Work = Callable[["Run"], str]
# What it gets before that: the resolved config and the job's folder. Whatever can be checked is
# checked here, so that a mistake leaves no run.
Prepare = Callable[[dict[str, Any], Path], Work]


def launch(main: Callable[[], object]) -> None:
    """Run a Hydra main, end its sweep if it was one, and exit with 1 if any job failed."""
    _speak_utf8()
    _hide_bars()
    logging.raiseExceptions = False  # a log file on a full disk is no reason for a traceback
    for word in sys.argv[1:]:
        name, _, value = word.partition("=")
        secrets.learn(value, name.rpartition(".")[2])
    with secrets.redacted_output(sys.stdout, sys.stderr), killable():
        _launch(main)
    if _then and not _failed:
        log.info("then: %s", " ".join(_then))
        sys.exit(_follow(_then))
    sys.exit(int(bool(_failed)))


def _launch(main: Callable[[], object]) -> None:
    ours = mistakes.hand_over()
    try:
        main()
    except BaseException as error:
        with uninterrupted():
            begun = sweeps.is_open()
            sweeps.close_sweep(killed=isinstance(error, Killed), broken=True)
        if ours and isinstance(error, HydraException | OmegaConfBaseException):
            print(secrets.redact(mistakes.said(error)), file=sys.stderr)
            sys.exit(1)
        if ours and begun and isinstance(error, Exception):  # a job reports what is raised in it
            print(secrets.redact(mistakes.stopped(error)), file=sys.stderr)
            sys.exit(1)
        raise
    finally:
        if ours:
            mistakes.take_back()
        _redact_hydras_files()
    try:
        _failed.extend(sweeps.close_sweep())
    except RmexpError as error:
        print(error, file=sys.stderr)
        sys.exit(1)


def _follow(words: Sequence[str]) -> int:
    """Run a command in this folder, to which the words' paths are relative; return its exit code.

    Those of rmexp lie where this one does, as scripts or installed under their names.
    A signal ends the command as well, which has its own run to end.
    """
    here = Path(sys.argv[0]).parent
    names = (words[0], COMMANDS.get(words[0].removesuffix(".py"), words[0]))
    script = next((here / name for name in names if (here / name).is_file()), words[0])
    with killable(), subprocess.Popen([sys.executable, script, *words[1:]]) as process:
        try:
            return process.wait()
        except Killed:
            process.terminate()
            raise


def _speak_utf8() -> None:
    """Begin again in Python's UTF-8 mode where the locale cannot say every name or text."""
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _hide_bars() -> None:
    """Switch other libraries' bars and links off; off a terminal, the bars of downloads too."""
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def run_command(
    config: DictConfig, prepare: Prepare, tags: Callable[[dict[str, Any]], dict[str, str]]
) -> float | None:
    """Do a command's work within a tracked run; report a user's mistake as one line.

    `tags` makes the run's tags from the resolved config; `rmexp.name` among them names the run.
    Returns the `objective_metric` of a run that ended well, for a sweeper to optimise.
    """
    hydra = HydraConfig.get()
    out_dir = Path(hydra.runtime.output_dir)
    status: dict[str, Any] = {}
    several = hydra.mode is RunMode.MULTIRUN
    sweep = Path(hydra.runtime.cwd, hydra.sweep.dir) if several else None
    held = ExitStack()
    try:
        held.enter_context(run_folder.hold(out_dir))
        if run_folder.undelivered(out_dir):
            _deliver_before(out_dir)
    except RmexpError as error:  # the folder stays as it is: another process's, or a run's files
        held.close()
        _failed.append(out_dir)
        log.error("%s", error)
        return None
    left = run_folder.take_over(out_dir)
    try:
        with killable(), ExitStack() as stack:
            secrets.learn(OmegaConf.to_container(config))
            if hydra.output_subdir is not None:
                _by_hydra.extend((out_dir / hydra.output_subdir).glob("*.yaml"))
            if sweep is not None:
                _by_hydra.append(sweep / "multirun.yaml")
            _redact_hydras_files()
            if sweep is not None:
                parent, varied = sweeps.find_sweep(sweep)
                status = {"sweep": parent, "overrides": _words(hydra), "varied": varied}
                if sweeps.stopped(sweep):
                    write_status(out_dir, status | _NOT_RUN)
                    note_job(sweep, hydra.job.num, out_dir)
                    return None
            if left:
                status["unended"] = left
            write_status(out_dir, status | run_folder.running())
            if sweep is not None:
                note_job(sweep, hydra.job.num, out_dir)
            _refuse_lists(_words(hydra))
            log.info("%s", _begin(hydra, config, out_dir))
            mistakes.refuse_unknown(config, _words(hydra))
            resolved = resolve(config)
            text = OmegaConf.to_yaml(secrets.mask(resolved))
            (out_dir / "config.yaml").write_text(text, encoding="utf-8")
            check_early(resolved)
            if config["quiet"]:
                stack.enter_context(tables.unshown())
            if sweep is not None and _side_by_side(hydra) and sweeps.uses_gpu(resolved):
                stack.enter_context(sweeps.one_gpu(sweep))
                if sweeps.stopped(sweep):  # while it waited
                    write_status(out_dir, status | _NOT_RUN)
                    return None
            return _run(resolved, out_dir, prepare, tags(resolved), status)
    except BaseException as error:
        _failed.append(out_dir)
        _report(error, out_dir, status, _go_on(config, sweep or out_dir))
        if sweep is not None and config.get("fail_fast"):
            sweeps.stop(sweep)
        if run_folder.undelivered(out_dir):
            log.error("MLflow was not told all: %s", run_folder.how_to_deliver(out_dir))
        if isinstance(error, Killed):
            error.hand_on()
        if not isinstance(error, Exception):
            raise  # the other jobs do not run either
    finally:
        held.close()
        if sweep is not None:
            sweeps.free_memory()
    return None


def _deliver_before(out_dir: Path) -> None:
    """Deliver what an earlier run left here, before its files are written over."""
    from rmexp.tracking.delivery import deliver_all

    try:
        deliver_all(out_dir, held=True)
    except RmexpError as error:
        raise ConfigError(
            f"{out_dir} has a run that is not delivered ({error}): "
            f"{run_folder.how_to_deliver(out_dir)}, or give another out_dir"
        ) from error


def help_command(
    config: DictConfig,
    prepare: Callable[[dict[str, Any], Path], Callable[[None], object]],
    number: int,
) -> None:
    """Work in process `number` of several: the run and its end are those of the first."""
    out_dir = Path(HydraConfig.get().runtime.output_dir)
    try:
        prepare(resolve(config), out_dir)(None)
    except BaseException as error:
        _failed.append(out_dir)
        if not isinstance(error, Exception):
            raise  # the first process has sent the signal
        _say(error, out_dir, f"process {number}: ")


def _side_by_side(hydra: Any) -> bool:
    """Say whether the jobs of a sweep share this machine; Slurm gives each job its own GPUs."""
    launcher = str(hydra.launcher._target_)
    return "BasicLauncher" not in launcher and "Slurm" not in launcher


def _run(
    config: dict[str, Any],
    out_dir: Path,
    prepare: Prepare,
    tags: dict[str, str],
    status: dict[str, Any],
) -> float | None:
    """Do the work within a tracked run and return its objective.

    `status` gets the run's ids once there are any.
    """
    from rmexp.tracking.identity import explaining
    from rmexp.tracking.runs import DoneBefore, tracked_run
    from rmexp.tracking.system import watched

    uri, experiment = (given(config["tracking"], name) for name in ("uri", "experiment"))
    name = tags.pop("rmexp.name")
    parent = str(status["sweep"]) if "sweep" in status else None
    if parent is not None:
        tags = tags | {"rmexp.sweep": parent}
        name = sweeps.child_name(name, status)
    work = prepare(config, out_dir)
    chosen = dict(_chosen(HydraConfig.get(), config))
    try:
        with tracked_run(uri, experiment, name, tags, parent, out_dir) as run:
            status |= _ids(run)
            for before in status.pop("unended", ()):
                run.end_left(before)
            if not sweeps.is_open():  # whose parent run has done it
                run.end_dead()
            write_status(out_dir, status | run_folder.running())
            for params in (chosen, explaining(config)):
                run.log_params(params)
            run.keep(out_dir / "config.yaml", out_dir / f"{HydraConfig.get().job.name}.log")
            with watched(run, config["tracking"].get("system_metrics", False)):
                status["headline"] = work(run)
            objective = jobs.objective(config["objective_metric"], out_dir)
            run.log_kept()
            run.log_file(write_status(out_dir, status | _ids(run) | {"status": "FINISHED"}))
    except DoneBefore as done:
        status |= {"run_id": done.run_id, "headline": done.headline, "skipped": True}
        (out_dir / "metrics.json").write_text(
            json.dumps(done.metrics, indent=1) + "\n", encoding="utf-8"
        )
        write_status(out_dir, status | {"status": "FINISHED"})
        log.info("skipped: done before, as run %s: %s", done.run_id, done.headline)
        return jobs.objective(config["objective_metric"], out_dir)
    undelivered = None
    try:
        run.deliver(_PATIENCE if parent is None else 0)
    except RmexpError as error:  # the work is done, so it is no failed run
        undelivered = error
    jobs.say_last(name, out_dir, status["headline"], run.where())
    if undelivered is not None:
        if parent is None:  # else the sweep tries again at its end
            _failed.append(out_dir)
        log.error("%s", jobs.undelivered(out_dir, undelivered))
    return objective


def _ids(run: "Run") -> dict[str, str]:
    return {"run_id": run.run_id, "experiment_id": run.experiment_id}


def _begin(hydra: Any, config: Mapping[str, Any], out_dir: Path) -> str:
    """Return a command's first line: what was chosen of each group, and where results go."""
    chosen = [f"{group} {choice}" for group, choice in _chosen(hydra, config)]
    job = f" job {hydra.job.num}" if hydra.mode is RunMode.MULTIRUN else ""
    return f"{hydra.job.name}{job}: {', '.join([*chosen, f'results in {out_dir}'])}"


def _chosen(hydra: Any, config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what was chosen of each group, but where results go and what the run runs on.

    A comparison of two runs uses no group.
    """
    if config.get("compare") is not None:
        return []
    return [
        (group, choice)
        for group, choice in hydra.runtime.choices.items()
        if "/" not in group and group not in ("tracking", "trainer") and choice is not None
    ]


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
    elif full := no_room(error):
        (reason, mend), ended = full, "FAILED"
        log.error("%s: %s, then %s", reason, mend.format(out_dir), go_on)
    else:
        reason, ended = _say(error, out_dir), "FAILED"
    try:
        write_status(out_dir, {**status, "status": ended, "error": reason})
    except OSError as lost:
        log.error("run.json could not be written (%s)", lost.strerror)


def _say(error: BaseException, out_dir: Path, who: str = "") -> str:
    """Log an error in a line that begins with `who`, and return what it says."""
    reason = secrets.redact(str(error) or type(error).__name__)
    if isinstance(error, RmexpError):
        reason = tables.printable(reason)  # one line, whatever value it repeats
        log.error("%s%s", who, reason)
    else:
        log.error(
            "%sunexpected, %s: %s: the log in %s has the traceback, which is a mistake of rmexp "
            "or of what it calls",
            *(who, _where(error), reason.splitlines()[0], out_dir),
            exc_info=error,  # which the terminal leaves out
        )
    return reason


def _where(error: BaseException) -> str:
    """Return an unexpected error's kind, and the line of ours that led to it."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(PACKAGE)]
    place = (ours or frames)[-1]
    return f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}"


def _redact_hydras_files() -> None:
    """Take secrets out of the files in which Hydra keeps settings as they were typed."""
    for path in _by_hydra:
        if path.exists():
            kept = OmegaConf.to_container(OmegaConf.load(path))
            if secrets.mask(kept) != kept:
                replace(path, OmegaConf.to_yaml(secrets.mask(kept)))
    _by_hydra.clear()


class Guard(Callback):
    """Refuse an output folder that cannot be made, and open a sweep before its jobs.

    Hydra makes the folder before any code of the job runs, and ends in a traceback if it cannot. It
    turns a callback's exceptions into warnings; SystemExit passes.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Make the folder of a single run."""
        with _one_line(folder := Path(config.hydra.run.dir)):
            make_folder(folder, "out_dir")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Make the folder of a sweep, and its parent run, so that the jobs find both."""
        with _one_line(folder := Path(config.hydra.sweep.dir)):
            make_folder(folder, "out_dir")
            _open_sweep(config)


def _open_sweep(config: DictConfig) -> None:
    try:
        tracking = OmegaConf.to_container(config.tracking, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"tracking: {str(error).splitlines()[0]}; give another value") from error
    assert isinstance(tracking, dict)
    secrets.learn(tracking)
    tracking = absolute(tracking, os.getcwd(), "tracking")
    uri, experiment = (given(tracking, name) for name in ("uri", "experiment"))
    words = _words(config.hydra)
    typed = [str(word) for word in config.hydra.overrides.task]
    parsed = OverridesParser.create().parse_overrides(typed)
    typed_hydra = OmegaConf.to_container(config.hydra.overrides.hydra, resolve=False)
    assert isinstance(typed_hydra, list)
    paths = [str(word) for word in typed_hydra if str(word).startswith("hydra.searchpath=")]
    loader = GlobalHydra.instance().config_loader()
    mistakes.refuse_words(
        parsed, config, lambda group: loader.get_group_options(group, overrides=paths)
    )
    varied = {str(word.key_or_group) for word in parsed if word.is_sweep_override()}
    varied |= {str(key) for key in config.hydra.sweeper.params or {}}
    folder, command = Path(config.hydra.sweep.dir).absolute(), str(config.hydra.job.name)
    _by_hydra.append(folder / "multirun.yaml")
    planned = _grid(config) if "BasicSweeper" in str(config.hydra.sweeper._target_) else []
    sweeps.open_sweep(folder, uri, experiment, command, words, sorted(varied), planned)
    if config.then:
        place = {"uri": uri, "experiment": experiment}
        _then.extend(str(word) for word in config.then)
        _then.extend(f"tracking.{name}={_quoted(value)}" for name, value in place.items())
        _then.append(f"out_dir={_quoted(str(folder / 'then'))}")


def _grid(config: DictConfig) -> list[tuple[str, ...]]:
    """Return the words of each job of a grid, in the order of the jobs."""
    words = [f"{name}={value}" for name, value in (config.hydra.sweeper.params or {}).items()]
    words += [str(word) for word in config.hydra.overrides.task]
    chosen = {
        word.get_key_element(): [str(value) for value in word.sweep_string_iterator()]
        if word.is_discrete_sweep()
        else [word.get_value_element_as_str()]
        for word in OverridesParser.create().parse_overrides(words)
    }
    each = [[secrets.redact_word(f"{name}={v}") for v in values] for name, values in chosen.items()]
    return list(product(*each))


def _quoted(text: str) -> str:
    """Return a value as Hydra's overrides take any text."""
    escaped = text.replace("'", "\\'")
    return f"'{escaped}'"


@contextmanager
def _one_line(folder: Path) -> Iterator[None]:
    """Report a user's mistake where there is no job yet to report it."""
    try:
        yield
    except RmexpError as error:
        full = no_room(error)
        print(f"{full[0]}: {full[1].format(folder)}" if full else error, file=sys.stderr)
        raise SystemExit(1) from error


def _words(hydra: Any) -> list[str]:
    """Return the overrides as they were typed, without the addresses' passwords."""
    words = OmegaConf.to_container(hydra.overrides.task, resolve=False)
    assert isinstance(words, list)
    return [secrets.redact_word(str(word)) for word in words]


def _refuse_lists(overrides: Sequence[str]) -> None:
    """Refuse `bench=[a,b]`, which Hydra merges into one config in silence."""
    for override in overrides:
        group, _, choice = override.partition("=")
        if (CONF / group).is_dir() and choice.startswith("["):
            raise ConfigError(
                f"{override} would merge these files into one: run them one after the other with "
                f"-m {group}={choice.strip('[]')}"
            )
