"""An evaluation in a tracked run: its files in the run's folder, and then in MLflow."""

from collections.abc import Callable
from pathlib import Path

from rmexp.benchmarks import Benchmark
from rmexp.evaluation.checks import NO_CHECKS, Checks
from rmexp.evaluation.evaluate import load, measure
from rmexp.evaluation.result import Result
from rmexp.schema import Dataset, fingerprint
from rmexp.scoring.score import Reward, Settings
from rmexp.tracking.logged_models import Card
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
    address: str | None = None,
    checks: Checks = NO_CHECKS,
) -> dict[str, float]:
    """Evaluate a reward model on a benchmark and return all numbers that were measured.

    `key` makes the digest by which a finished run is known from the fingerprints of what it read.
    `address` is where the reward model was found if that is one of MLflow's.

    The files are written to `out_dir` before anything of them is sent to MLflow: whatever happens
    to the tracking server, they are there.
    """
    data = load(benchmark)
    digest = fingerprint(data.examples)
    card = _identify(reward, benchmark, data, digest, settings, run, key)
    run.use_model(card, address)
    result = measure(reward, benchmark, data, settings, checks)
    run.keep(*result.write(out_dir))
    run.log_table(out_dir, result.metrics)
    _log(result, run, (benchmark.name, digest))
    result.show()
    return result.metrics


def _identify(
    reward: Reward,
    benchmark: Benchmark,
    data: Dataset,
    digest: str,
    settings: Settings,
    run: Run,
    key: Callable[..., str],
) -> Card:
    """Tell the run what it reads, before anything is computed of it."""
    size = len(data.examples)
    run.add_to_name(f", n {size:,}")
    run.log_dataset(benchmark.name, digest, data.source, {"num_rows": size})
    prints, traits = reward.fingerprints(settings.store_dir), reward.traits()
    tags = {"rmexp.data": digest, "rmexp.reward": reward.description, **prints}
    run.set_tags(tags | {RESULT_KEY: key(**tags)})
    said = {"model.name": reward.name, "model.dtype": traits.get("dtype")}
    run.log_params({name: value for name, value in said.items() if value is not None})
    return Card(reward.name, traits, prints)


def _log(result: Result, run: Run, subject: tuple[str, str]) -> None:
    if result.missing:
        run.set_tags({MISSING: ", ".join(result.missing)})
    if result.headline is not None:
        name = result.headline.name
        run.set_tags({HEADLINE_NAME: name})
        run.log_metrics(as_headline(result.metrics, name))
    scores = result.scores
    run.log_metrics(scores, of=subject)
    run.log_metrics({name: value for name, value in result.shown.items() if name not in scores})
    data = result.data
    counts = {"examples": len(data.examples), "bad_rows": len(data.bad_rows)}
    run.log_params({"bench": counts})
    run.note(result.summary)
