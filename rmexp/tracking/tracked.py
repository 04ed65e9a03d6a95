"""What was tracked, as values: the finished evaluations of reward models, the newest of each.

The leaderboard and correlation both read this; neither is known here.
"""

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from rmexp.metrics import is_partial, plain_name
from rmexp.tracking.finished import TrackedRun, finished_runs, recorded_numbers
from rmexp.tracking.numbers import HEADLINE, is_part, parts, shared_name

log = logging.getLogger(__name__)

EVALUATION, POLICY = "eval_rm", "policy"  # what the tag rmexp.command says
PUBLISHED = "rmexp.published"  # the tag of a run that repeats what somebody else measured
MISSING = "rmexp.missing"  # the tag that names the parts which a partial headline lacks
HEADLINE_NAME = "rmexp.headline"  # the tag that names the metric which the run's headline repeats
# What begins the names of numbers that every benchmark has.
_ANYWHERE = {"style", "calibration"}


@dataclass(frozen=True, slots=True)
class Measured:
    """A metric with its number of examples and its 95 % interval, None where it has none."""

    value: float
    n: int | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Basis:
    """What numbers must share to be comparable, each None where it was not recorded.

    `data` is the examples' fingerprint, or the source of what was published. `n` may differ on the
    same data: responses that are too long can be dropped. `missing` names the parts that a partial
    number lacks, None for a whole one.
    """

    data: str | None
    n: int | None
    missing: str | None = None

    def __str__(self) -> str:
        n = "n not recorded" if self.n is None else f"n {self.n:,}"
        data = "data not recorded" if self.data is None else f"data {self.data[:8]}"
        return f"{n}, {data}" + (f", nothing of {self.missing}" if self.missing else "")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A finished run of a reward model on a benchmark.

    `published` says that the run repeats numbers which somebody else measured.
    """

    run_id: str
    rm: str
    bench: str
    metrics: Mapping[str, Measured]
    tags: Mapping[str, str]
    published: bool

    @property
    def version(self) -> tuple[str, str]:
        """Return how the RM was read, and the short fingerprints of its weights or its scores."""
        names = ("rmexp.weights", "rmexp.reference", "rmexp.recorded")
        prints = [self.tags[name][:8] for name in names if name in self.tags]
        return self.tags.get("rmexp.reward", ""), "/".join(prints)

    def basis(self, name: str) -> Basis:
        """Return what a metric of this run rests on."""
        if self.published:
            return Basis(self.tags.get("rmexp.source"), None)
        missing = self.tags.get(MISSING, "") if is_partial(name) else None
        return Basis(self.tags.get("rmexp.data"), self.metrics[name].n, missing)


def evaluations(
    uri: str, experiment: str, metrics: Collection[str] | None = None, query: str | None = None
) -> list[Evaluation]:
    """Return the newest finished evaluation of each RM on each benchmark.

    RMs of one name with other weights, or read in another way, have that beside their names.
    `metrics` chooses by name (None: what the runs' table has); runs with none of them are passed
    over. `query` is a filter of MLflow's. Runs that repeat published numbers count apart.

    Raises ConfigError where the experiment or the server is not to be had.
    """
    found, _ = told_apart(every_evaluation(uri, experiment, metrics, query), "scores")
    return newest(found)


def every_evaluation(
    uri: str, experiment: str, metrics: Collection[str] | None = None, query: str | None = None
) -> list[Evaluation]:
    """Return all that `evaluations` chooses from, the newest first."""
    runs = finished_runs(uri, experiment, f"tags.rmexp.command = '{EVALUATION}'", query)
    return [found for run in runs if (found := _evaluation(uri, run, metrics)) is not None]


def told_apart(found: Iterable[Evaluation], group: str) -> tuple[list[Evaluation], list[str]]:
    """Return the evaluations with a name for each version of an RM, and a line for each such RM."""
    found = list(found)
    versions: dict[str, dict[tuple[str, str], None]] = {}
    for each in found:
        if not each.published:
            versions.setdefault(each.rm, {})[each.version] = None
    several = {rm: list(own) for rm, own in versions.items() if len(own) > 1}
    named: dict[tuple[str, tuple[str, str]], str] = {}
    for rm, own in several.items():
        differing = [at for at, parts in enumerate(zip(*own, strict=True)) if len(set(parts)) > 1]
        for version in own:
            shown = ", ".join(version[at] or "not recorded" for at in differing)
            named[rm, version] = f"{rm} ({shown})"
    renamed = [
        each if each.published else replace(each, rm=named.get((each.rm, each.version), each.rm))
        for each in found
    ]
    lines = [
        f"{rm} means {len(own)} models, told apart as {', '.join(named[rm, one] for one in own)}: "
        f"choose with {group}.query=\"tags.`rmexp.weights` LIKE 'WEIGHTS%'\""
        for rm, own in several.items()
    ]
    return renamed, lines


def newest(found: Iterable[Evaluation]) -> list[Evaluation]:
    """Return the first evaluation of each RM on each benchmark, measured and published apart."""
    newest: dict[tuple[str, str, bool], Evaluation] = {}
    for each in found:
        newest.setdefault((each.rm, each.bench, each.published), each)
    return list(newest.values())


def _evaluation(uri: str, run: TrackedRun, metrics: Collection[str] | None) -> Evaluation | None:
    """Return a run's metrics with their parts, None for a run without any that was chosen."""
    names = [name for name in run.metrics if name.partition("/")[0] != HEADLINE]
    names = names if metrics is None else list(metrics)
    numbers = dict(run.metrics)
    headline = run.tags.get(HEADLINE_NAME)
    if headline in numbers:
        shared = shared_name(headline)
        numbers |= {f"{headline}/{part}": n for part, n in parts(numbers, shared).items()}
    if metrics is not None and headline and _lacks(numbers, names, headline):
        numbers |= recorded_numbers(uri, run.run_id)
    measured = {
        name: Measured(
            numbers[name],
            whole_number(numbers.get(f"{name}/n")),
            *_interval(numbers.get(f"{name}/low"), numbers.get(f"{name}/high")),
        )
        for name in names
        if name in numbers and not is_part(name, numbers)
    }
    if not measured:
        return None
    rm, bench = run.tags.get("rmexp.model", run.name), run.tags.get("rmexp.bench", "")
    return Evaluation(run.run_id, rm, bench, measured, run.tags, run.tags.get(PUBLISHED) == "true")


def _lacks(numbers: Mapping[str, float], names: Collection[str], headline: str) -> bool:
    """Say whether a run's own files are needed for one of these names: MLflow has it not or no n.

    A whole number and its partial form exclude each other, and other benchmarks' are not there.
    """
    own = _ANYWHERE | {headline.partition("/")[0]}
    known = {plain_name(name) for name in numbers if f"{name}/n" in numbers}
    return any(plain_name(name) not in known for name in names if name.partition("/")[0] in own)


def _interval(low: float | None, high: float | None) -> tuple[float | None, float | None]:
    """Return an interval as it was tracked, none for one without width."""
    return (None, None) if low == high else (low, high)


def whole_number(value: float | None) -> int | None:
    """Return a tracked number as a whole one, None where there is none."""
    return None if value is None else int(value)
