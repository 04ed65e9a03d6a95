"""An evaluation in a tracked run: its files in the run's folder, and then in MLflow."""

from collections.abc import Callable
from pathlib import Path

from rmexp.benchmarks import Benchmark
from rmexp.evaluation.evaluate import load, measure
from rmexp.evaluation.result import Result
from rmexp.schema import Dataset, fingerprint
from rmexp.scoring.score import Reward, Settings
from rmexp.tracking.numbers import as_headline
from rmexp.tracking.runs import RESULT_KEY, Run
from rmexp.tracking.tracked import HEADLINE_NAME, MISSING


def evaluate_in_run(
    reward: Reward,
    benchmark: Benchmark,
    settings: Settings,
    out_dir: Path,
    run: Run,
    key: Callable[..., str],
) -> dict[str, float]:
    """Evaluate a reward model on a benchmark and return the metrics that were logged.

    `key` makes the digest by which a finished run is known from the fingerprints of what it read.

    The files are written to `out_dir` before anything of them is sent to MLflow: whatever happens
    to the tracking server, they are there.
    """
    data = load(benchmark)
    _identify(reward, benchmark, data, settings, run, key)
    result = measure(reward, benchmark, data, settings)
    run.keep(*result.write(out_dir))
    run.log_table(out_dir, result.metrics)
    _log(result, run)
    result.show()
    return result.metrics


def _identify(
    reward: Reward,
    benchmark: Benchmark,
    data: Dataset,
    settings: Settings,
    run: Run,
    key: Callable[..., str],
) -> None:
    """Tell the run what it reads, before anything is computed of it."""
    digest = fingerprint(data.examples)
    run.log_dataset(benchmark.name, digest, data.source, {"num_rows": len(data.examples)})
    tags = {"rmexp.data": digest, "rmexp.reward": reward.description}
    tags |= reward.fingerprints(settings.store_dir)
    run.set_tags(tags | {RESULT_KEY: key(**tags)})


def _log(result: Result, run: Run) -> None:
    if result.missing:
        run.set_tags({MISSING: ", ".join(result.missing)})
    if result.headline is not None:
        name = result.headline.name
        run.set_tags({HEADLINE_NAME: name})
        run.log_metrics(as_headline(result.metrics, name))
    run.log_metrics(result.shown)
    run.note(result.summary)
