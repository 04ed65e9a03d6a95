"""What was tracked, as values: evaluations of reward models, and the policies made with them."""

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from rmexp.correlation.tables import Row, Table, table
from rmexp.errors import ConfigError
from rmexp.metrics import metric_name
from rmexp.tracking import Run, TrackedRun, finished_runs

log = logging.getLogger(__name__)

EVALUATION, POLICY = "eval_rm", "policy"  # what the tag rmexp.command says
PUBLISHED = "rmexp.published"  # the tag of a run that repeats what somebody else measured
PARTIAL = "/partial"  # ends the name of a number that lacks a part
MISSING = "rmexp.missing"  # the tag that names the parts which a partial headline lacks
_PARTS = ("n", "low", "high")
_BASE_SCORE = "base_score"
_NAMED = 5


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
        missing = self.tags.get(MISSING, "") if name.endswith(PARTIAL) else None
        return Basis(self.tags.get("rmexp.data"), self.metrics[name].n, missing)


def evaluations(
    uri: str, experiment: str, metrics: Collection[str] | None = None, query: str | None = None
) -> list[Evaluation]:
    """Return the newest finished evaluation of each RM on each benchmark.

    RMs of one name with other weights, or read in another way, have that beside their names.
    `metrics` chooses by name (None: all); runs with none of them are passed over. `query` is a
    filter of MLflow's. Runs that repeat published numbers count apart from measured ones.

    Raises ConfigError where the experiment or the server is not to be had.
    """
    found, _ = _told_apart(every_evaluation(uri, experiment, metrics, query), "scores")
    return _newest(found)


def every_evaluation(
    uri: str, experiment: str, metrics: Collection[str] | None = None, query: str | None = None
) -> list[Evaluation]:
    """Return all that `evaluations` chooses from, the newest first."""
    runs = finished_runs(uri, experiment, f"tags.rmexp.command = '{EVALUATION}'", query)
    return [found for run in runs if (found := _evaluation(run, metrics)) is not None]


def _told_apart(found: Iterable[Evaluation], group: str) -> tuple[list[Evaluation], list[str]]:
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


def _newest(found: Iterable[Evaluation]) -> list[Evaluation]:
    newest: dict[tuple[str, str, bool], Evaluation] = {}
    for each in found:
        newest.setdefault((each.rm, each.bench, each.published), each)
    return list(newest.values())


def tracked_scores(
    *,
    metrics: Sequence[str],
    uri: str,
    experiment: str,
    query: str | None = None,
    mixed: bool = False,
) -> Table:
    """Return these metrics of the newest finished evaluations as a table, a task for each.

    RMs of one name with other weights, or read in another way, have that beside their names. The
    scores of a task rest on the same examples, unless `mixed` asks for others as well. A run
    that has only the partial form of a metric is left out and named.

    Raises ConfigError where no run has one of them, and for different examples.
    """
    if isinstance(metrics, str) or not metrics:
        raise ConfigError(
            f"scores.metrics={metrics}: give a list, scores.metrics=[rmbench/overall]"
        )
    wanted = [*metrics, *(f"{name}{PARTIAL}" for name in metrics)]
    every, notes = _told_apart(
        (run for run in every_evaluation(uri, experiment, wanted, query) if not run.published),
        "scores",
    )
    found = _newest(run for run in every if not run.metrics.keys().isdisjoint(metrics))
    rows: dict[tuple[str, str], Row] = {}
    bases: dict[tuple[str, str], Basis] = {}
    for run in found:
        for name in metrics:
            if name in run.metrics and (run.rm, name) not in rows:
                basis = bases[run.rm, name] = run.basis(name)
                rows[run.rm, name] = Row(run.rm, name, run.metrics[name].value, n=basis.n)
    source = f"{len(found)} runs of {experiment}"
    _refuse_absent([name for name in metrics if all(task != name for _, task in rows)], source)
    notes += _mixed(bases, "scores", mixed)
    for name in metrics:
        partial = {
            run.rm for run in every if name + PARTIAL in run.metrics and (run.rm, name) not in rows
        }
        if partial:
            notes.append(f"only {name}{PARTIAL}, left out: {', '.join(sorted(partial))}")
    return table(rows.values(), source, list(metrics), notes)


def _mixed(bases: Mapping[tuple[str, str], Basis], group: str, mixed: object) -> list[str]:
    """Return a line for each task whose RMs' numbers do not rest on the same examples.

    `bases` has them by RM and task. What was not recorded differs from nothing. Raises ConfigError
    instead unless `mixed` asks for them.
    """
    if not isinstance(mixed, bool):
        raise ConfigError(f"{group}.mixed={mixed}: give true or false")
    lines = []
    for task in dict.fromkeys(task for _, task in bases):
        own = {rm: basis for (rm, of), basis in bases.items() if of == task}
        known = [
            {getattr(basis, part) for basis in own.values()} - {None} for part in ("data", "n")
        ]
        if max(map(len, [*known, {basis.missing for basis in own.values()}])) < 2:
            continue
        holders: dict[Basis, list[str]] = {}
        for rm, basis in own.items():
            holders.setdefault(basis, []).append(rm)
        named = [
            f"{', '.join(rms[:_NAMED])}{', ...' if len(rms) > _NAMED else ''} ({basis})"
            for basis, rms in holders.items()
        ]
        lines.append(f"{task} rests on different examples: {'; '.join(named[:_NAMED])}")
    if lines and not mixed:
        raise ConfigError(
            f"{lines[0]}: evaluate them on the same ones, choose with "
            f"{group}.query=\"tags.`rmexp.data` LIKE 'DATA%'\", or set {group}.mixed=true"
        )
    return lines


def tracked_policies(
    *,
    uri: str,
    experiment: str,
    query: str | None = None,
    tasks: Sequence[str] | None = None,
    mixed: bool = False,
) -> Table:
    """Return the newest finished policy of each RM on each task, as `log_policy` writes them.

    Those of a task have one n, unless `mixed` asks for others as well. Raises ConfigError where
    there is none, and for different n.
    """
    rows: dict[tuple[str, str], Row] = {}
    runs = finished_runs(uri, experiment, f"tags.rmexp.command = '{POLICY}'", query)
    for run in runs:
        for row in _policies(run):
            rows.setdefault((row.rm, row.task), row)
    source = f"{len(runs)} policy runs of {experiment}"
    if not rows:
        raise ConfigError(f"{source}: log some first, or give another policy=")
    bases = {key: Basis(None, row.n) for key, row in rows.items()}
    return table(rows.values(), source, tasks, _mixed(bases, "policy", mixed))


def log_policy(run: Run, rows: Sequence[Row], intervals: Mapping[str, tuple[float, float]]) -> None:
    """Log how a policy that was made with one RM scores, for `policy=mlflow` to read.

    `intervals` maps tasks to the 95 % intervals of their scores, where they are known.
    """
    (rm,) = {row.rm for row in rows}
    metrics: dict[str, float] = {}
    for row in rows:
        name = metric_name("policy", row.task)
        metrics[f"{name}/score"] = row.score
        if row.n is not None:
            metrics[f"{name}/score/n"] = row.n
        if row.task in intervals:
            metrics[f"{name}/score/low"], metrics[f"{name}/score/high"] = intervals[row.task]
        if row.base_score is not None:
            metrics[f"{name}/{_BASE_SCORE}"] = row.base_score
    run.set_tags({"rmexp.command": POLICY, "rmexp.model": rm})
    run.log_metrics(metrics)


def _evaluation(run: TrackedRun, metrics: Collection[str] | None) -> Evaluation | None:
    """Return a run's metrics with their parts, None for a run without any that was chosen."""
    names = run.metrics if metrics is None else metrics
    measured = {
        name: Measured(
            run.metrics[name],
            _whole(run.metrics.get(f"{name}/n")),
            *_interval(run.metrics.get(f"{name}/low"), run.metrics.get(f"{name}/high")),
        )
        for name in names
        if name in run.metrics and not _is_part(name, run.metrics)
    }
    if not measured:
        return None
    rm, bench = run.tags.get("rmexp.model", run.name), run.tags.get("rmexp.bench", "")
    return Evaluation(run.run_id, rm, bench, measured, run.tags, run.tags.get(PUBLISHED) == "true")


def _interval(low: float | None, high: float | None) -> tuple[float | None, float | None]:
    """Return an interval as it was tracked, none for one without width."""
    return (None, None) if low == high else (low, high)


def _is_part(name: str, metrics: Mapping[str, float]) -> bool:
    """Say whether the name is another metric's with /n, /low or /high."""
    whole, _, part = name.rpartition("/")
    return part in _PARTS and whole in metrics


def _policies(run: TrackedRun) -> list[Row]:
    rm, rows = run.tags.get("rmexp.model", run.name), []
    for name, value in run.metrics.items():
        if name.startswith("policy/") and name.endswith("/score"):
            whole = name.removesuffix("/score")
            n = _whole(run.metrics.get(f"{name}/n"))
            base = run.metrics.get(f"{whole}/{_BASE_SCORE}")
            rows.append(Row(rm, whole.removeprefix("policy/"), value, base, n))
    return rows


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _refuse_absent(names: Sequence[str], source: str) -> None:
    if names:
        raise ConfigError(
            f"no finished evaluation among {source} has {', '.join(names)}: evaluate first, or "
            "choose other scores.metrics"
        )
