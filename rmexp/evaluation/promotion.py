"""A version of a registered model gets an alias if it is better than the one that holds it."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from filelock import FileLock

from rmexp import tables
from rmexp.benchmarks import Benchmark
from rmexp.errors import ConfigError
from rmexp.evaluation.compare import unscored
from rmexp.schema import Example, fingerprint
from rmexp.scoring.recorded import RecordedReward, left_out_note, lookup_shared
from rmexp.stats.bounds import interval_text
from rmexp.stats.paired import Difference, differences
from rmexp.tracking import registry
from rmexp.tracking.connection import lock
from rmexp.tracking.finished import fetch_files
from rmexp.tracking.runs import Run
from rmexp.tracking.versions import Version

_KEYS = {"alias": str, "bench": str, "metric": str, "min_gain": (int, float)}
_EXAMPLE = "promote={alias: champion, bench: rmbench, metric: rmbench/overall}"
_COLUMNS = ("metric", "this version", "the one before", "gain", "95 % interval", "n")


@dataclass(frozen=True, slots=True)
class Promotion:
    """What a version must be better in, and by more than what, to get the alias."""

    alias: str
    bench: str
    metric: str
    min_gain: float = 0.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """Whether the version has the alias now, why, and what the two were compared in."""

    holds: bool
    line: str
    found: Difference | None = None


def read_promotion(value: object, benches: Collection[str]) -> Promotion | None:
    """Return what a setting asks for, None for nothing.

    `benches` are the benchmarks that are evaluated. Raises ConfigError for what cannot be meant.
    """
    if value is None:
        return None
    if not isinstance(value, Mapping) or not {"alias", "bench", "metric"} <= set(value):
        raise ConfigError(f"promote={value}: give {_EXAMPLE}")
    for key, given in value.items():
        kind = _KEYS.get(str(key))
        if kind is None:
            raise ConfigError(f"promote.{key}: nothing reads it; choose from {', '.join(_KEYS)}")
        if not isinstance(given, kind) or isinstance(given, bool):  # type: ignore[arg-type]
            raise ConfigError(f"promote.{key}={given}: give {_EXAMPLE}, and min_gain as a number")
    if not registry.is_alias(value["alias"]):
        raise ConfigError(
            f"promote.alias={value['alias']}: letters, digits, _ and -, and neither latest nor a "
            "version such as v2"
        )
    if value["bench"] not in benches:
        raise ConfigError(
            f"promote.bench={value['bench']}: it is not evaluated, choose from "
            + (", ".join(benches) or "what eval_after=[...] names")
        )
    return Promotion(**{str(key): given for key, given in value.items()})


def check_metric(promotion: Promotion, benchmark: Benchmark) -> None:
    """Raise ConfigError where the benchmark does not measure the metric on its examples."""
    names = [each.name for each in benchmark.metrics(unscored(benchmark.load().examples))]
    if promotion.metric not in names:
        near = " or ".join(get_close_matches(promotion.metric, names, 3, 0))
        raise ConfigError(
            f"promote.metric={promotion.metric}: {promotion.bench} has none; did you mean {near}?"
        )


def promote(
    promotion: Promotion,
    version: Version,
    benchmark: Benchmark,
    scores: Path,
    seed: int,
    run: Run,
) -> str:
    """Give the version the alias if it is surely better on the same examples; say what was done.

    `scores` are those of the version. It is surely better where the 95 % interval of the paired
    difference (see `stats.paired`) lies above `min_gain`. Where nobody holds the alias it gets it.
    What was found stands on the version's page. One promotion of this machine goes on at a time, so
    that each is compared with what holds the alias when it gets it.
    """
    data = benchmark.load()
    digest = fingerprint(data.examples)
    with FileLock(lock(run.uri)):
        before = registry.holder(run, version.name, promotion.alias)
        if before is None:
            outcome = Outcome(True, f"no version of {version.name} held it before")
        elif before.number == version.number:
            outcome = Outcome(True, "it holds it already")
        elif (evaluated := registry.evaluation_of(run, before, digest)) is None:
            outcome = Outcome(
                False,
                f"version {before.number}, which holds it, has no finished evaluation on these "
                f"data; evaluate model=mlflow model.uri={before.address}, and then model=mlflow "
                f"model.uri={version.address} with the same promote",
            )
        else:
            with TemporaryDirectory() as folder:
                fetch_files(run.uri, evaluated.run_id, [scores.name], Path(folder))
                both = scores, Path(folder) / scores.name
                outcome = _against(promotion, before, benchmark, data.examples, both, seed)
        if outcome.holds:
            registry.give(run, version, promotion.alias)
    verb = "has" if outcome.holds else "does not get"
    line = f"{version.address} {verb} the alias {promotion.alias}: {outcome.line}"
    tags = {f"rmexp.{promotion.alias}": line, "rmexp.data": digest}
    name, size = tables.plain(benchmark.name), len(data.examples)
    text = [f"On {name} (data {digest[:8]}, {size:,} examples): {tables.plain(line)}.", ""]
    if outcome.found is not None:
        text += tables.markdown(_COLUMNS, [_row(outcome.found)])
    registry.add_to_page(run, version, "\n".join(text), tags)
    return line


def _against(
    promotion: Promotion,
    before: Version,
    benchmark: Benchmark,
    examples: Sequence[Example],
    both: Sequence[Path],
    seed: int,
) -> Outcome:
    """Compare the scores of a version and of the one before, a file each."""
    files = [RecordedReward(str(path)) for path in both]
    (ours, theirs), left_out = lookup_shared(files, examples)
    rng = np.random.default_rng(seed)
    measured = differences(ours, theirs, benchmark.metrics, rng)
    found = next((each for each in measured if each.name == promotion.metric), None)
    if found is None or found.missing:
        return Outcome(False, f"{promotion.metric} was not measured in whole on these examples")
    gain = (
        f"{found.name} {found.first:.3f} against {found.second:.3f} of version {before.number}, a "
        f"difference of {found.value:+z.3f} ({interval_text(found.low, found.high, '+z.3f')}), n "
        f"{found.n:,}"
    )
    if left_out:
        gain += f" ({left_out_note(benchmark.name, left_out, len(examples))})"
    if found.low is not None and found.low > promotion.min_gain:
        return Outcome(True, gain, found)
    wanted = f"the interval must lie above {promotion.min_gain:g}"
    return Outcome(False, f"{gain}: {wanted}", found)


def _row(found: Difference) -> tuple[str, ...]:
    interval = interval_text(found.low, found.high, "+z.3f")
    numbers = (f"{found.first:.3f}", f"{found.second:.3f}", f"{found.value:+z.3f}")
    return (found.name, *numbers, interval, f"{found.n:,}")
