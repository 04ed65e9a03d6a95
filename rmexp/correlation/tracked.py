"""Tables of tracked runs: scores of reward models, and of the policies that were made with them.

What was tracked as values is in `tracking.tracked`; here it becomes what correlation reads.
"""

from collections.abc import Mapping, Sequence

from rmexp.correlation.tables import Score, Table, table
from rmexp.errors import ConfigError
from rmexp.metrics import metric_name, partial_name
from rmexp.tracking.finished import TrackedRun, finished_runs
from rmexp.tracking.runs import Run
from rmexp.tracking.tracked import (
    POLICY,
    Basis,
    every_evaluation,
    newest,
    told_apart,
    whole_number,
)

_BASE_SCORE = "base_score"
_NAMED = 5  # how many RMs, or kinds of examples, a line names


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
    wanted = [*metrics, *map(partial_name, metrics)]
    every, notes = told_apart(
        (run for run in every_evaluation(uri, experiment, wanted, query) if not run.published),
        "scores",
    )
    runs = newest(run for run in every if not run.metrics.keys().isdisjoint(metrics))
    rows: dict[tuple[str, str], Score] = {}
    bases: dict[tuple[str, str], Basis] = {}
    for run in runs:
        for name in metrics:
            if name in run.metrics and (run.rm, name) not in rows:
                basis = bases[run.rm, name] = run.basis(name)
                rows[run.rm, name] = Score(run.rm, name, run.metrics[name].value, n=basis.n)
    source = f"{len(runs)} runs of {experiment}"
    _refuse_absent([name for name in metrics if all(task != name for _, task in rows)], source)
    notes += _mixed(bases, "scores", mixed)
    for name in metrics:
        partial = partial_name(name)
        lacking = {run.rm for run in every if partial in run.metrics and (run.rm, name) not in rows}
        if lacking:
            notes.append(f"only {partial}, left out: {', '.join(sorted(lacking))}")
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
        basis_of = {rm: basis for (rm, of), basis in bases.items() if of == task}
        known = [
            {getattr(basis, part) for basis in basis_of.values()} - {None} for part in ("data", "n")
        ]
        if max(map(len, [*known, {basis.missing for basis in basis_of.values()}])) < 2:
            continue
        holders: dict[Basis, list[str]] = {}
        for rm, basis in basis_of.items():
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
    rows: dict[tuple[str, str], Score] = {}
    runs = finished_runs(uri, experiment, f"tags.rmexp.command = '{POLICY}'", query)
    for run in runs:
        for row in _policies(run):
            rows.setdefault((row.rm, row.task), row)
    source = f"{len(runs)} policy runs of {experiment}"
    if not rows:
        raise ConfigError(f"{source}: log some first, or give another policy=")
    bases = {key: Basis(None, row.n) for key, row in rows.items()}
    return table(rows.values(), source, tasks, _mixed(bases, "policy", mixed))


def log_policy(
    run: Run, rows: Sequence[Score], intervals: Mapping[str, tuple[float, float]]
) -> None:
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


def _policies(run: TrackedRun) -> list[Score]:
    rm, rows = run.tags.get("rmexp.model", run.name), []
    for name, value in run.metrics.items():
        if name.startswith("policy/") and name.endswith("/score"):
            whole = name.removesuffix("/score")
            n = whole_number(run.metrics.get(f"{name}/n"))
            base = run.metrics.get(f"{whole}/{_BASE_SCORE}")
            rows.append(Score(rm, whole.removeprefix("policy/"), value, base, n))
    return rows


def _refuse_absent(names: Sequence[str], source: str) -> None:
    if names:
        raise ConfigError(
            f"no finished evaluation among {source} has {', '.join(names)}: evaluate first, or "
            "choose other scores.metrics"
        )
