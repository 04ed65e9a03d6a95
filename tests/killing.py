"""Commands in forked processes that send themselves a signal at a call of a function.

Reads a request a line, an object with `words`, `log`, `calls` and `kill`, which is null or [phase,
at, number, before], and answers each with the exit code. What takes seconds to import is imported
once.
"""

import functools
import importlib
import json
import logging
import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# What is called within a phase: each call is a moment at which a signal may come.
PHASES = {
    "load": [
        ("rmexp.benchmarks.preference", "Preference.load"),
        ("rmexp.training.data", "ToyPairs.load"),
        ("rmexp.labelling.rows", "RowReader.read"),
        ("rmexp.models.loading", "_load"),
    ],
    "scoring": [("rmexp.scoring.store", "Store.append")],
    "training": [
        ("rmexp.training.module", "PreferenceModule.training_step"),
        ("rmexp.training.resuming", "WholeCheckpoints.save_checkpoint"),
    ],
    "export": [
        ("pathlib", "Path.replace"),
        ("pathlib", "Path.rename"),
        ("rmexp.training.export", "_trained"),
        ("rmexp.training.export", "_reread"),
    ],
    "logging": [("mlflow.tracking", f"MlflowClient.{name}") for name in (
        "create_run", "log_batch", "log_artifact", "log_artifacts", "set_tag", "set_terminated"
    )],
}  # fmt: skip
WARM = [
    "lightning", "matplotlib.pyplot", "mlflow", "pandas", "pyarrow.parquet", "torch",
    "transformers", "mlflow.store.tracking.sqlalchemy_store",
    "transformers.models.llama.modeling_llama",
    *("rmexp.cli." + name for name in ("eval_rm", "score_rm", "train_rm")),
    "rmexp.evaluation.in_run", "rmexp.labelling.in_run", "rmexp.training.train",
    "rmexp.training.processes", "rmexp.tracking.runs", "rmexp.scoring.computing",
]  # fmt: skip


def watch(calls: Path, kill: tuple[str, int, int, bool] | None) -> None:
    """Note each phase's calls in a file, and send the signal at one of them."""
    noted = os.open(calls, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    counts = dict.fromkeys(PHASES, 0)

    def watched(phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def called(*args: Any, **kwargs: Any) -> Any:
            os.write(noted, f"{phase}\n".encode())
            counts[phase] += 1
            now = kill is not None and kill[:2] == (phase, counts[phase])
            if now and kill is not None and kill[3]:
                os.kill(os.getpid(), kill[2])
            result = function(*args, **kwargs)
            if now and kill is not None and not kill[3]:
                os.kill(os.getpid(), kill[2])
            return result

        return called

    for phase, functions in PHASES.items():
        for module, name in functions:
            owner: Any = importlib.import_module(module)
            *above, last = name.split(".")
            for part in above:
                owner = getattr(owner, part)
            setattr(owner, last, watched(phase, getattr(owner, last)))


def run(request: dict[str, Any]) -> int:
    """Run the command in this process, and return its exit code."""
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    watch(Path(request["calls"]), tuple(request["kill"]) if request["kill"] else None)
    sys.argv = request["words"]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def serve() -> None:
    """Answer one request after the other."""
    for module in WARM:
        importlib.import_module(module)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            code = 70
            try:
                code = run(json.loads(line))
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    serve()
