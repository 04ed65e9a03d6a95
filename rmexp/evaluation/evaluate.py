"""Evaluation: load a benchmark, score it, and leave every number, figure and score behind."""

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from rmexp import tables
from rmexp.benchmarks import Benchmark
from rmexp.metrics import Mean, metric_name, plain_name
from rmexp.schema import Dataset, ScoredExample, fingerprint
from rmexp.scoring.score import Reward, Scoring, Settings
from rmexp.stats import bestofn
from rmexp.stats.bounds import interval_text
from rmexp.stats.intervals import Estimate, intervals
from rmexp.stats.lengths import PREFIX, length_metrics
from rmexp.tracking.runs import RESULT_KEY, Run
from rmexp.tracking.tracked import MISSING

log = logging.getLogger(__name__)

_SHOWN_LEVELS = 3  # a table shows `rmb/bon/helpfulness`, and leaves what is finer to the files
_NAMED_ROWS = 5
_COLUMNS = ("metric", "value", "95 % interval", "n")


def evaluate(
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
    data = benchmark.load()
    digest = fingerprint(data.examples)
    log.info("%s: %d examples from %s", benchmark.name, len(data.examples), data.source)
    for note in data.notes:
        log.warning("%s", note)
    if data.bad_rows:
        _warn_of_bad_rows(data.bad_rows)
    run.log_dataset(benchmark.name, digest, data.source, {"num_rows": len(data.examples)})
    tags = {"rmexp.data": digest, "rmexp.reward": reward.description}
    tags |= reward.fingerprints(settings.store_dir)
    run.set_tags(tags | {RESULT_KEY: key(**tags)})
    log.info("%s is read as: %s", reward.name, reward.description)

    scoring = reward.score(data, settings)
    if scoring.bad_rows:
        _warn_of_bad_rows(scoring.bad_rows)
        data = replace(data, bad_rows=(*data.bad_rows, *scoring.bad_rows))
    scored = scoring.scored
    measured = [*benchmark.metrics(scored), *length_metrics(scored), *scoring.metrics]
    if scoring.lines:
        write_lines(out_dir / "verdicts.jsonl", scoring.lines)
        run.keep(out_dir / "verdicts.jsonl")
    rng = np.random.default_rng(settings.seed)
    every = intervals(measured, scored, rng)
    curve = bestofn.points(every)
    estimates = sorted(
        (estimate for estimate in every if estimate.at is None),
        key=lambda e: (
            _is_style(e),
            plain_name(e.name) != benchmark.headline,
            plain_name(e.name).count("/"),
        ),
    )  # as they are to be read: the headline, then from coarse to fine, and style at the end
    undefined = {m.name: m.undefined for m in measured if isinstance(m, Mean) and m.undefined}
    notes = [_undefined_note(name, ids) for name, ids in undefined.items()]
    for note in notes:
        log.warning("%s", note)
    metrics = flat_metrics(estimates, scoring, data)
    metrics |= {f"{name}/undefined": len(ids) for name, ids in undefined.items()}
    summary = summarise(
        reward, benchmark, estimates, metrics, replace(data, notes=(*data.notes, *notes))
    )

    write_scores(out_dir / "scores.jsonl", scored)
    _write_table(out_dir / "metrics.csv", estimates)
    texts = {"metrics.json": json.dumps(metrics, indent=1) + "\n", "summary.md": summary}
    if scoring.first_example is not None:
        texts["first_example.txt"] = scoring.first_example
    if data.bad_rows:
        texts["bad_rows.txt"] = "\n".join(data.bad_rows) + "\n"
    for name, text in texts.items():
        (out_dir / name).write_text(text, encoding="utf-8")
    run.keep(*(out_dir / name for name in ("scores.jsonl", "metrics.csv", *texts)))
    drawn = benchmark.figures({plain_name(e.name): e for e in estimates}, scored)
    if curve:
        from rmexp.stats import figures

        bestofn.write(out_dir / bestofn.FILE, curve)
        run.keep(out_dir / bestofn.FILE)
        drawn |= figures.curves({reward.name: curve})
    for name, figure in drawn.items():
        figure.savefig(out_dir / name, bbox_inches="tight")
        run.keep(out_dir / name)
    lacking: dict[tuple[str, ...], list[str]] = {}
    for estimate in estimates:
        if estimate.missing:
            lacking.setdefault(estimate.missing, []).append(plain_name(estimate.name))
    for missing, names in lacking.items():
        more = f" and {len(names) - _NAMED_ROWS} more" if len(names) > _NAMED_ROWS else ""
        aggregates = ", ".join(names[:_NAMED_ROWS]) + more
        log.warning("partial, nothing of %s is there: %s", ", ".join(missing), aggregates)

    for estimate in estimates:
        if estimate.missing and plain_name(estimate.name) == benchmark.headline:
            run.set_tags({MISSING: ", ".join(estimate.missing)})
    run.log_metrics(metrics)
    run.note(summary)
    show(reward, benchmark, estimates)
    return metrics


def flat_metrics(
    estimates: Sequence[Estimate], scoring: Scoring, data: Dataset
) -> dict[str, float]:
    """Return every number of an evaluation by its name in MLflow."""
    metrics: dict[str, float] = {}
    for estimate in estimates:
        metrics[estimate.name] = estimate.value
        metrics[f"{estimate.name}/n"] = estimate.n
        if estimate.low is not None and estimate.high is not None:
            metrics[f"{estimate.name}/low"] = estimate.low
            metrics[f"{estimate.name}/high"] = estimate.high
    metrics |= {metric_name("scoring", name): value for name, value in scoring.counts.items()}
    return metrics | {
        "data/examples": len(data.examples),
        "data/bad_rows": len(data.bad_rows),
    }


def write_scores(path: Path, scored: Sequence[ScoredExample]) -> None:
    """Write a line an example: its id, subset and rewards, NaN for one that is not finite.

    What a judge compared has its verdicts besides.
    """
    lines: list[dict[str, object]] = []
    for row in scored:
        lines.append(
            {
                "id": row.id,
                "subset": row.subset,
                "chosen": list(row.chosen),
                "rejected": list(row.rejected),
            }
        )
        if row.verdicts is not None:
            lines[-1]["verdicts"] = [list(shares) for shares in row.verdicts]
    write_lines(path, lines)


def write_lines(path: Path, lines: Iterable[Mapping[str, object]]) -> None:
    """Write JSON objects, one a line; half a surrogate pair, which is no text, as its escape."""
    with path.open("w", encoding="utf-8", errors="backslashreplace") as file:
        for line in lines:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def summarise(
    reward: Reward,
    benchmark: Benchmark,
    estimates: Sequence[Estimate],
    metrics: Mapping[str, float],
    data: Dataset,
) -> str:
    """Return the Markdown that the run's page shows."""
    lines = [
        f"**{tables.plain(reward.name)}** on **{tables.plain(benchmark.name)}** "
        f"({tables.plain(reward.description)})",
        "",
        *tables.markdown(_COLUMNS, map(_row, _shown(estimates))),
    ]
    counts = {name: f"{metrics[f'scoring/{name}']:,.0f}" for name in ("responses", "unique")}
    lines += [
        "",
        f"{counts['responses']} responses, {counts['unique']} unique, "
        f"{metrics['scoring/cached']:,.0f} of the values known before; "
        f"{metrics['scoring/tokens']:,.0f} tokens in {metrics['scoring/seconds']:,.1f} s. "
        f"Ties {metrics['scoring/ties']:,.0f}, truncated {metrics['scoring/truncated']:,.0f}, "
        f"dropped {metrics['scoring/dropped']:,.0f}, not finite "
        f"{metrics['scoring/non_finite']:,.0f}, bad rows {metrics['data/bad_rows']:,.0f}.",
        "",
        f"Data: {tables.plain(data.source)}. Intervals: bootstrap over prompts, of fewer than ten "
        "the exact one of a share. Lengths are in characters.",
    ]
    if "scoring/answers" in metrics:
        kinds = ("answers", "unparsed", "cut_off", "prompt_tokens", "completion_tokens")
        answers, unparsed, cut_off, *tokens = (f"{metrics[f'scoring/{k}']:,.0f}" for k in kinds)
        lines += [
            "",
            f"{answers} answers of the judge, {unparsed} of them not parsed, {cut_off} cut off at "
            f"max_tokens; {tokens[0]} tokens of questions, {tokens[1]} of answers.",
        ]
    lines += [f"- {tables.plain(note)}" for note in data.notes]
    return "\n".join(lines) + "\n"


def show(reward: Reward, benchmark: Benchmark, estimates: Sequence[Estimate]) -> None:
    """Print the table of the summary on the terminal."""
    title = f"{reward.name} on {benchmark.name} ({reward.description})"
    shown = _shown(estimates)
    styles = [at for at, estimate in enumerate(shown) if _is_style(estimate)]
    rows = map(_row, shown)
    tables.show(_COLUMNS, rows, title, right=_COLUMNS[1:], line_before=min(styles, default=None))


def _shown(estimates: Sequence[Estimate]) -> list[Estimate]:
    """Return the estimates that a table shows."""
    return [e for e in estimates if plain_name(e.name).count("/") < _SHOWN_LEVELS]


def _row(estimate: Estimate) -> tuple[str, str, str, str]:
    interval = interval_text(estimate.low, estimate.high)
    return estimate.name, f"{estimate.value:.3f}", interval, f"{estimate.n:,}"


def _undefined_note(name: str, ids: Sequence[str]) -> str:
    more = ", ..." if len(ids) > _NAMED_ROWS else ""
    return f"{name} is undefined for {len(ids)} examples: {', '.join(ids[:_NAMED_ROWS])}{more}"


def _warn_of_bad_rows(rows: Sequence[str]) -> None:
    more = "; ..." if len(rows) > _NAMED_ROWS else ""
    log.warning("%d bad rows: %s", len(rows), "; ".join(rows[:_NAMED_ROWS]) + more)


def _is_style(estimate: Estimate) -> bool:
    return estimate.name.startswith(PREFIX)


def _write_table(path: Path, estimates: Sequence[Estimate]) -> None:
    rows = [(e.name, e.value, e.low, e.high, e.n, "; ".join(e.missing)) for e in estimates]
    tables.write_csv(path, ("metric", "value", "low", "high", "n", "missing"), rows)
