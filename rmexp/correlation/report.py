"""What a correlation leaves behind: its metrics, its texts, tables and figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rmexp import tables
from rmexp.correlation import figures as figures
from rmexp.correlation.correlations import Correlation, CorrelationDifference, Correlations, remarks
from rmexp.correlation.protocols import ALL, Pairing
from rmexp.correlation.tables import Table
from rmexp.metrics import metric_name
from rmexp.stats import drawing
from rmexp.stats.bounds import interval_text
from rmexp.stats.coefficients import COEFFICIENTS
from rmexp.stats.signflips import SURE

_COLUMNS = (
    *("score", "policy", "RMs", "n", "Pearson", "p", "Holm's p", "max-T p", "without one RM"),
    *("Spearman", "Kendall"),
)
_FINE = ("/z/low", "/z/high", "/p_holm", "/p_max")  # end the names of what tables of runs omit


@dataclass(frozen=True, slots=True)
class Finding:
    """A pair with its correlations, or with the reason why it has none.

    `p_holm` is the Pearson's p corrected for the number of rows of its table (Holm), `p_max` that
    for the number of scores against the same policy (`correlations.max_t`), None for one alone.
    """

    pair: Pairing
    correlations: Correlations | None
    reason: str | None
    p_holm: float | None = None
    p_max: float | None = None

    @property
    def name(self) -> str:
        """Say what is correlated."""
        among = "" if self.pair.group == ALL else f" ({self.pair.group})"
        return f"{self.pair.score} with {self.pair.policy}{among}"


@dataclass(frozen=True, slots=True)
class Contrast:
    """How much better the chosen score goes with a policy than another one does, RM for RM."""

    score: str
    other: str
    policy: str
    rms: int
    differences: Mapping[str, CorrelationDifference]


def flat_metrics(
    findings: Sequence[Finding], contrasts: Sequence[Contrast], between: Sequence[Finding]
) -> dict[str, float]:
    """Return every number by its name in MLflow; the chosen pair's are called `correlation/...`."""
    metrics: dict[str, float] = {}
    for at, finding in enumerate(findings):
        pair = finding.pair
        if finding.correlations is None:
            continue
        if at == 0:
            prefix = "correlation"
        elif pair.score == findings[0].pair.score:
            prefix = metric_name("correlation", pair.policy, pair.group)
        else:
            prefix = metric_name("scores", pair.score, pair.policy, pair.group)
        metrics |= _numbers(prefix, finding.correlations) | _corrected(prefix, finding)
    for one in contrasts:
        prefix = metric_name("difference", f"{one.score}_minus_{one.other}", one.policy)
        for name, each in one.differences.items():
            metrics |= _ends(f"{prefix}/{name}", each)
        metrics[f"{prefix}/n"] = one.rms
    for finding in between:
        if finding.correlations is not None:
            names = (finding.pair.score, finding.pair.policy)
            prefix = metric_name("agreement", *names)
            metrics |= _numbers(prefix, finding.correlations) | _corrected(prefix, finding)
    return metrics


def coarse_metrics(findings: Sequence[Finding], between: Sequence[Finding]) -> dict[str, float]:
    """Return what a table of runs shows: the chosen pair's numbers, else the scores' agreement."""
    if findings:
        numbers = flat_metrics(findings[:1], (), ())
        return {name: value for name, value in numbers.items() if not name.endswith(_FINE)}
    numbers = flat_metrics((), (), between)
    return {name: value for name, value in numbers.items() if name.endswith("/spearman")}


def summarise(
    scores: Table,
    policies: Table | None,
    findings: Sequence[Finding],
    contrasts: Sequence[Contrast],
    between: Sequence[Finding],
    missing: Sequence[str],
) -> str:
    """Return the Markdown that the run's page shows."""
    shown = findings or between
    title = shown[0].name
    lines = [f"**{tables.plain(title)}**", "", *map(tables.plain, say(shown)), ""]
    lines += tables.markdown(_COLUMNS, [_row(finding) for finding in shown if finding.correlations])
    if contrasts:
        first = tables.plain(contrasts[0].score)
        lines += ["", f"How much better does {first} go with the policies than:", ""]
        rows = [
            (
                one.other,
                one.policy,
                f"{one.rms}",
                *(_interval(one.differences[c], one.rms) for c in COEFFICIENTS),
            )
            for one in contrasts
        ]
        lines += tables.markdown(("score", "policy", "n", "Pearson", "Spearman", "Kendall"), rows)
    if findings and between:
        lines += ["", "Agreement of the scores with each other:", ""]
        lines += tables.markdown(
            _COLUMNS, [_row(finding) for finding in between if finding.correlations]
        )
    lines += [
        "",
        f"Scores: {tables.plain(scores.source)}. "
        f"Policies: {tables.plain(policies.source) if policies else 'none'}. "
        "Intervals: 95 %; of fewer than 20 reward models Pearson's by Fisher's z and Spearman's by "
        "Bonett and Wright's, where each has one point, else by a bootstrap over whole reward "
        "models, from ten of them on. p: two-sided, by permuting them; Holm's allows for the "
        "number of rows, max-T for the number of scores against a policy.",
    ]
    left_out = [f"{finding.name}: {finding.reason}" for finding in shown if finding.reason]
    lines += [f"- left out: {tables.plain(line)}" for line in left_out]
    lines += [f"- {tables.plain(line)}" for line in missing]
    return "\n".join(lines) + "\n"


def show(findings: Sequence[Finding]) -> None:
    """Print the table of the summary on the terminal."""
    rows = [_row(finding) for finding in findings if finding.correlations is not None]
    tables.show(_COLUMNS, rows, findings[0].name, right=_COLUMNS[3:])


def say(findings: Sequence[Finding]) -> list[str]:
    """Say of the first finding, and of all together, what the numbers alone do not."""
    correlations = findings[0].correlations
    lines = [] if correlations is None else remarks(correlations)
    corrected = [each.p_max for each in findings if each.p_max is not None]
    if corrected:
        below = sum(p < SURE for p in corrected)
        lines.append(
            f"Of {len(corrected)} scores against a policy {below or 'none'} can be told apart from "
            f"chance once their number is allowed for (max-T p below {SURE})."
        )
    return lines


def _numbers(prefix: str, correlations: Correlations) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for name, each in correlations.named().items():
        numbers |= _ends(f"{prefix}/{name}", each) | {f"{prefix}/{name}/p": each.p}
        if each.formula is not None:
            low, high = each.formula
            numbers |= {f"{prefix}/{name}/z/low": low, f"{prefix}/{name}/z/high": high}
    numbers[f"{prefix}/n"] = correlations.n
    if correlations.least is not None and correlations.most is not None:
        numbers[f"{prefix}/pearson/leave_one_out/low"] = correlations.least[1]
        numbers[f"{prefix}/pearson/leave_one_out/high"] = correlations.most[1]
    return numbers


def _corrected(prefix: str, finding: Finding) -> dict[str, float]:
    known = {"p_holm": finding.p_holm, "p_max": finding.p_max}
    return {f"{prefix}/pearson/{name}": p for name, p in known.items() if p is not None}


def _ends(name: str, each: Correlation | CorrelationDifference) -> dict[str, float]:
    """Return a number with its interval, if it has one."""
    numbers = {name: each.value}
    if each.low is not None and each.high is not None:
        numbers |= {f"{name}/low": each.low, f"{name}/high": each.high}
    return numbers


def _row(finding: Finding) -> tuple[str, ...]:
    pair, correlations = finding.pair, finding.correlations
    assert correlations is not None
    n = (
        f"{correlations.n}"
        if correlations.n == correlations.rms
        else f"{correlations.n} ({correlations.rms} RMs)"
    )
    without = "-"
    if correlations.least is not None and correlations.most is not None:
        without = f"{correlations.least[1]:z.2f} to {correlations.most[1]:z.2f}"
    return (
        pair.score,
        pair.policy,
        pair.group,
        n,
        _interval(correlations.pearson, correlations.rms),
        f"{correlations.pearson.p:#.2g}",
        *("-" if p is None else f"{p:#.2g}" for p in (finding.p_holm, finding.p_max)),
        without,
        _interval(correlations.spearman, correlations.rms),
        _interval(correlations.kendall, correlations.rms),
    )


def _interval(each: Correlation | CorrelationDifference, rms: int) -> str:
    ends = each.shown(rms) if isinstance(each, Correlation) else (each.low, each.high)
    return f"{each.value:z.2f} ({interval_text(*ends, 'z.2f')})"


def write_tables(
    out_dir: Path,
    findings: Sequence[Finding],
    contrasts: Sequence[Contrast],
    between: Sequence[Finding],
) -> list[Path]:
    """Write the correlations, the points, the differences and the agreement as CSV files."""
    written = []
    for name, part in (("correlations", findings), ("agreement", between)):
        if part:
            rows = [row for finding in part for row in _long(finding)]
            written.append(tables.write_csv(out_dir / f"{name}.csv", _LONG, rows))
    if findings:
        pairs = [finding.pair for finding in findings if finding.pair.group == ALL]
        columns = ("score", "policy", "rm", "part", "x", "y")
        points = [
            (pair.score, pair.policy, rm, part, pair.points.x[at, to], pair.points.y[at, to])
            for pair in pairs
            for at, rm in enumerate(pair.points.rms)
            for to, part in enumerate(pair.columns)
        ]
        written.append(tables.write_csv(out_dir / "points.csv", columns, points))
    if contrasts:
        names = ("score", "minus", "policy", "coefficient", "difference", "low", "high", "n")
        apart = [
            (one.score, one.other, one.policy, name, each.value, each.low, each.high, one.rms)
            for one in contrasts
            for name, each in one.differences.items()
        ]
        written.append(tables.write_csv(out_dir / "differences.csv", names, apart))
    return written


_LONG = (
    *("score", "policy", "group", "coefficient", "value", "low", "high", "p", "n", "rms"),
    *("z_low", "z_high", "p_holm", "p_max"),
    *("least", "least_without", "most", "most_without", "left_out_because"),
)


def _long(finding: Finding) -> list[tuple[object, ...]]:
    """Return a row for each coefficient, or one with the reason why there is none."""
    pair, correlations = finding.pair, finding.correlations
    names = (pair.score, pair.policy, pair.group)
    if correlations is None:
        n = (pair.points.n, len(pair.points.rms))
        return [(*names, *[""] * 5, *n, *[""] * 8, finding.reason)]
    rows: list[tuple[object, ...]] = []
    for name, each in correlations.named().items():
        ends: tuple[object, ...] = ("",) * 4
        if name == "pearson" and correlations.least is not None and correlations.most is not None:
            ends = (*correlations.least[::-1], *correlations.most[::-1])
        numbers = (each.value, each.low, each.high, each.p, correlations.n, correlations.rms)
        corrected = (finding.p_holm, finding.p_max) if name == "pearson" else (None, None)
        formula = each.formula or (None, None)
        rows.append((*names, name, *numbers, *formula, *corrected, *ends, ""))
    return rows


def draw(
    out_dir: Path,
    findings: Sequence[Finding],
    between: Sequence[Finding],
    tasks: Sequence[str],
    groups: Mapping[str, str],
    seed: int,
) -> list[Path]:
    """Draw the chosen score with each policy, the ranks of the first, and the agreement.

    Returns the figures' paths.
    """
    drawn = {}
    for at, finding in enumerate(findings):
        pair, correlations = finding.pair, finding.correlations
        if correlations is None or pair.group != ALL or pair.score != findings[0].pair.score:
            continue
        labels, rng = (pair.x, pair.y), np.random.default_rng(seed)
        name = "scatter" if at == 0 else f"scatter_{metric_name(pair.policy)}"
        drawn[name] = figures.scatter(pair.points, correlations, labels, groups, pair.columns, rng)
        if at == 0:
            drawn["ranks"] = figures.ranks(pair.points, labels, groups)
    cells = {
        (each.pair.score, each.pair.policy): (each.correlations.spearman, each.correlations.n)
        for each in between
        if each.correlations is not None
    }
    if cells:
        drawn["agreement"] = figures.matrix(tasks, cells)
    return [drawing.save(figure, out_dir / f"{name}.png") for name, figure in drawn.items()]
