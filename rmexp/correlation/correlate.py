"""Correlation of reward models with policies: join, correlate, and leave every number behind."""

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from rmexp.correlation.correlations import correlate, difference, max_t, refusal
from rmexp.correlation.protocols import ALL, Joined, Pairing, agreement, join
from rmexp.correlation.report import (
    Contrast,
    Finding,
    coarse_metrics,
    draw,
    flat_metrics,
    say,
    show,
    summarise,
    write_tables,
)
from rmexp.correlation.tables import Table
from rmexp.errors import DataError
from rmexp.stats.coefficients import Points
from rmexp.stats.signflips import holm
from rmexp.tables import printable
from rmexp.tracking.runs import RESULT_KEY, Run

log = logging.getLogger(__name__)


def run_correlation(
    scores: Table,
    policies: Table | None,
    protocol: object,
    seed: int,
    out_dir: Path,
    run: Run,
    key: Callable[..., str],
) -> dict[str, float]:
    """Correlate scores with policies and return the metrics that were logged.

    Without policies the scores are only compared with each other. The first task of either table is
    the one whose numbers are called `correlation/pearson` and so on. The files are written to
    `out_dir` before anything is sent to MLflow.

    Raises DataError where that pair has no correlation.
    """
    for table in (scores, policies):
        if table is not None:
            log.info("%d scores from %s", len(table.rows), table.source)
            for note in table.notes:
                log.warning("%s", note)
    prints = {"rmexp.scores": scores.fingerprint()}
    if policies is not None:
        prints["rmexp.policies"] = policies.fingerprint()
    run.set_tags(prints | {RESULT_KEY: key(**prints)})

    joined = Joined((), (), {}) if policies is None else join(protocol, scores, policies)
    for line in joined.missing:
        log.warning("%s", line)
    findings = _with_max_t(_findings(joined.pairs, seed), seed)
    contrasts = _contrasts(joined.pairs, seed)
    between = _findings(agreement(scores), seed)
    if not findings and not between:
        raise DataError(
            f"{scores.source} has one task, {scores.tasks[0]}, and there are no policies: give a "
            "policy=, or scores with several tasks to compare"
        )
    _refuse(
        findings or [next((one for one in between if one.correlations), between[0])], joined.missing
    )
    for finding in (*findings, *between):
        if finding.reason:
            log.warning("left out: %s, %s", finding.name, finding.reason)

    metrics = flat_metrics(findings, contrasts, between)
    summary = summarise(scores, policies, findings, contrasts, between, joined.missing)
    (out_dir / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
    (out_dir / "summary.md").write_text(summary, encoding="utf-8")
    run.keep(
        out_dir / "metrics.json",
        out_dir / "summary.md",
        *write_tables(out_dir, findings, contrasts, between),
        *draw(out_dir, findings, between, scores.tasks, joined.groups, seed),
    )
    run.log_table(out_dir, metrics)
    run.log_metrics(coarse_metrics(findings, between))
    run.note(summary)
    show(findings or between)
    print(*map(printable, say(findings or between)), sep="\n")
    return metrics


def _findings(pairs: Iterable[Pairing], seed: int) -> list[Finding]:
    """Correlate each pair with a generator of its own, so that none depends on the others."""
    findings = []
    for pair in pairs:
        reason = refusal(pair.points)
        rng = np.random.default_rng(seed)
        correlations = None if reason else correlate(pair.points, rng)
        findings.append(Finding(pair, correlations, reason))
    ps = [each.correlations.pearson.p if each.correlations else None for each in findings]
    corrected = holm(ps)
    return [replace(each, p_holm=p) for each, p in zip(findings, corrected, strict=True)]


def _with_max_t(findings: Sequence[Finding], seed: int) -> list[Finding]:
    """Correct the p of several scores, over all RMs, against the same policy for their number."""
    found = list(findings)
    for policy in dict.fromkeys(each.pair.policy for each in findings):
        rows = [
            at
            for at, each in enumerate(findings)
            if each.pair.policy == policy and each.pair.group == ALL and each.correlations
            if each.pair.points.x.shape[1] == 1
        ]
        if len(rows) > 1:
            points = [findings[at].pair.points for at in rows]
            for at, p in zip(rows, max_t(points, np.random.default_rng(seed)), strict=True):
                found[at] = replace(found[at], p_max=p)
    return found


def _contrasts(pairs: Sequence[Pairing], seed: int) -> list[Contrast]:
    """Compare the chosen score with the others on each policy, over the RMs that have all three."""
    whole = [pair for pair in pairs if pair.group == ALL]
    contrasts = []
    for first in whole:
        if first.score != whole[0].score:
            break
        for other in whole:
            if other.policy != first.policy or other.score == first.score:
                continue
            a, b = _shared(first.points, other.points)
            if refusal(a) or refusal(b):
                continue
            differences = difference(a, b, np.random.default_rng(seed))
            contrasts.append(
                Contrast(first.score, other.score, first.policy, len(a.rms), differences)
            )
    return contrasts


def _shared(first: Points, second: Points) -> tuple[Points, Points]:
    rms = tuple(rm for rm in first.rms if rm in second.rms)
    a, b = (
        Points(rms, points.x[rows], points.y[rows])
        for points in (first, second)
        for rows in [[points.rms.index(rm) for rm in rms]]
    )
    return a, b


def _refuse(findings: Sequence[Finding], missing: Sequence[str]) -> None:
    """Refuse to go on where the chosen pair has no correlation."""
    first = findings[0]
    if first.reason:
        why = f" ({'; '.join(missing)})" if missing else ""
        raise DataError(
            f"{first.name} has no correlation: {first.reason}{why}. Give at least three reward "
            "models that differ, by the same names on both sides"
        )
