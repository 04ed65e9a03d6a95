"""What `eval_after` asks for: evaluations of the trained model, in runs linked to the training."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from rmexp.benchmarks import Benchmark
from rmexp.errors import ConfigError
from rmexp.evaluation import comparison
from rmexp.evaluation.gains import Gain
from rmexp.evaluation.in_run import evaluate_in_run
from rmexp.metrics import headline, partial_name
from rmexp.scoring.model_reward import ModelReward
from rmexp.scoring.recorded import RecordedReward, left_out_note, lookup_shared
from rmexp.scoring.score import Settings
from rmexp.secrets import mask, redact
from rmexp.signals import Killed
from rmexp.stats.bounds import interval_text
from rmexp.tables import markdown, plain, unshown
from rmexp.tracking.identity import explaining, result_key
from rmexp.tracking.numbers import parts, whole
from rmexp.tracking.run_folder import write_status
from rmexp.tracking.runs import Run, tracked_run

log = logging.getLogger(__name__)

_COLUMNS = ("metric", "value", "95 % interval", "n")
START, WITHOUT_REFERENCE = "start", "without_reference"  # what can be evaluated beside a model


@dataclass(frozen=True, slots=True)
class FollowUp:
    """A benchmark to evaluate on after training; `folder` names its results, `config` it."""

    folder: str
    benchmark: Benchmark
    config: Mapping[str, Any]

    @property
    def headline(self) -> str:
        """Return the name of the headline in the training's run, one's own if there are two."""
        return self.benchmark.headline.replace(self.benchmark.name, self.folder, 1)


def read_follow_ups(
    wanted: object,
    read: Callable[[str], dict[str, Any]],
    build: Callable[[Mapping[str, Any]], Any],
) -> list[FollowUp]:
    """Return the benchmarks of a list of names, or of mappings with `name` and options.

    `read` returns a benchmark's config by its name, `build` makes the benchmark. Raises ConfigError
    for what is no such list, and for an option that the benchmark does not have.
    """
    if not isinstance(wanted, Sequence) or isinstance(wanted, str):
        raise ConfigError(
            f"eval_after={wanted}: give a list, eval_after=[toy,{{name: rmbench, path: FOLDER}}]"
        )
    follow_ups: list[FollowUp] = []
    for entry in wanted:
        options = dict(entry) if isinstance(entry, Mapping) else {"name": entry}
        name = options.pop("name", None)
        if not isinstance(name, str):
            raise ConfigError(f"eval_after has {entry}: give a benchmark's name, or {{name: NAME}}")
        config = read(name)
        if unknown := sorted(set(options) - set(config)):
            there = ", ".join(key for key in config if key != "_target_")
            raise ConfigError(f"eval_after: {name} has no option {unknown[0]}, choose from {there}")
        config |= options
        if missing := [key for key, value in config.items() if value == "???"]:
            raise ConfigError(
                f"eval_after: {name} needs {missing[0]}, write it as "
                f"{{name: {name}, {missing[0]}: VALUE}}"
            )
        before = sum(other.folder.partition("-")[0] == name for other in follow_ups)
        folder = f"{name}-{before + 1}" if before else name
        follow_ups.append(FollowUp(folder, build(config), config))
    return follow_ups


def check_beside(wanted: object) -> tuple[str, ...]:
    """Return what to evaluate beside the trained model; raise ConfigError for what is not known."""
    known = (START, WITHOUT_REFERENCE)
    if isinstance(wanted, str) or not isinstance(wanted, Sequence) or not set(wanted) <= set(known):
        raise ConfigError(f"eval_beside={wanted}: give a list of one or more of {', '.join(known)}")
    return tuple(wanted)


def readings(
    trained: ModelReward, start: ModelReward, beside: Sequence[str]
) -> dict[str, ModelReward]:
    """Return the rewards to evaluate by what their folders' names add to the benchmark's.

    The trained model adds nothing; `start` is the model before training, as evaluation reads it,
    and `without_reference` a DPO policy's log-probability alone.
    """
    rewards: dict[str, ModelReward] = {"": trained}
    if START in beside:
        rewards[f"-{START}"] = start
    if WITHOUT_REFERENCE in beside and (alone := trained.without_reference()):
        rewards[f"-{WITHOUT_REFERENCE}"] = alone
    return rewards


def follow(
    follow_ups: Sequence[FollowUp],
    rewards: Mapping[str, ModelReward],
    settings: Settings,
    tracking: Mapping[str, Any],
    out_dir: Path,
    run: Run,
) -> dict[str, float]:
    """Evaluate in child runs of `run`; return each benchmark's headline, with n and interval.

    The run gets the numbers alone.

    Results lie in `out_dir/eval/<name>`, the same files as `eval_rm.py` leaves; those of what is
    evaluated beside the model (see `readings`) in folders with a suffix. If there is anything
    beside, `out_dir` gets a table and a figure of all of them, with the gains over the start.
    """
    headlines: dict[str, float] = {}
    compared: list[Gain] = []
    for wanted, (suffix, reward) in product(follow_ups, rewards.items()):
        folder = out_dir / "eval" / f"{wanted.folder}{suffix}"
        folder.mkdir(parents=True, exist_ok=True)
        weights = str(reward.columns[0].checkpoint.folder)
        config = {"model": {"path": weights}, "bench": dict(wanted.config)}
        (folder / "config.yaml").write_text(
            json.dumps(mask(config), indent=1) + "\n", encoding="utf-8"
        )
        name = f"{reward.name if suffix else run.name} on {wanted.folder}"
        tags = {
            "rmexp.command": "eval_rm",
            "rmexp.model": reward.name,
            "rmexp.bench": wanted.benchmark.name,
            "rmexp.training_run": run.run_id,
        }
        arguments = (tracking["uri"], tracking["experiment"], name, tags, run.run_id)
        with tracked_run(*arguments, folder=folder) as child:
            ids = {"run_id": child.run_id, "experiment_id": child.experiment_id}
            write_status(folder, {**ids, "status": "RUNNING"})
            child.log_params({"bench": wanted.benchmark.name})
            child.log_params(explaining({**config, "seed": settings.seed}))
            try:
                key = partial(result_key, config)
                # Of several models the comparison is shown, and not each one's table before it.
                with unshown() if len(rewards) > 1 else nullcontext():
                    metrics = evaluate_in_run(
                        reward, wanted.benchmark, settings, folder, child, key
                    )
            except BaseException as error:
                ended = "KILLED" if isinstance(error, Killed) else "FAILED"
                write_status(folder, {**ids, "status": ended, "error": redact(str(error))})
                raise
            ids = {"run_id": child.run_id, "experiment_id": child.experiment_id}
            child.keep(folder / "config.yaml", write_status(folder, {**ids, "status": "FINISHED"}))
            child.log_kept()
        own = wanted.benchmark.headline
        named = wanted.headline.replace(wanted.folder, folder.name, 1)
        headlines |= {
            metric.replace(own, named, 1): value
            for metric, value in metrics.items()
            if metric == own or metric.startswith(f"{own}/")
        }
    run.log_metrics(whole(headlines))
    run.note("\n".join(_found(headlines, follow_ups)))
    if len(rewards) > 1:
        notes = []
        for wanted in follow_ups:
            rows, note = _compare(wanted, rewards, out_dir / "eval", settings.seed)
            compared += rows
            notes += [note] if note else []
        run.note("\n".join([comparison.report(compared, out_dir), *map(plain, notes)]))
        run.keep(out_dir / comparison.FILE, out_dir / comparison.FIGURE)
    return headlines


def _found(headlines: Mapping[str, float], follow_ups: Sequence[FollowUp]) -> list[str]:
    """Return a line a benchmark: what the trained model reached on it."""
    found = [headline(headlines, wanted.headline) for wanted in follow_ups]
    return [f"- {plain(text)}" for text in found if text] + [""]


def page(follow_ups: Sequence[FollowUp], metrics: Mapping[str, float], name: str) -> str:
    """Return the Markdown of a trained version: numbers of its training, and of what followed."""
    names = ["train/loss", "val/loss", "val/accuracy", *(each.headline for each in follow_ups)]
    rows = []
    for one in names:
        reported = one if one in metrics else partial_name(one)
        if reported in metrics:
            own = parts(metrics, reported)
            interval = interval_text(own.get("low"), own.get("high")) if "n" in own else ""
            n = f"{own['n']:,.0f}" if "n" in own else ""
            rows.append((reported, f"{metrics[reported]:.3f}", interval, n))
    return "\n".join([f"**{plain(name)}**", "", *markdown(_COLUMNS, rows)])


def _compare(
    wanted: FollowUp, rewards: Mapping[str, ModelReward], folder: Path, seed: int
) -> tuple[list[Gain], str | None]:
    """Compare on the examples that all models scored; return what is to be said of the others."""
    examples = wanted.benchmark.load().examples
    files = [
        RecordedReward(str(folder / f"{wanted.folder}{suffix}" / "scores.jsonl"))
        for suffix in rewards
    ]
    shared, left_out = lookup_shared(files, examples)
    note = left_out_note(wanted.folder, left_out, len(examples))
    if note:
        log.warning("%s", note)
    scored = {reward.name: rows for reward, rows in zip(rewards.values(), shared, strict=True)}
    before = rewards.get(f"-{START}")
    start = before.name if before is not None else None
    return comparison.compare(scored, start, wanted.folder, wanted.benchmark.metrics, seed), note
