"""The result of an evaluation, a value: what was measured, and the files that say it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rmexp import tables
from rmexp.benchmarks import Benchmark
from rmexp.metrics import metric_name, plain_name
from rmexp.schema import Dataset, ScoredExample
from rmexp.scoring.score import Reward, Scoring
from rmexp.stats import bestofn, calibration
from rmexp.stats.bounds import LEAST_UNITS, interval_text
from rmexp.stats.intervals import Estimate
from rmexp.stats.lengths import PREFIX
from rmexp.stats.nulls import is_null

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHOWN_LEVELS = 3  # a table shows `rmb/bon/helpfulness`, and leaves what is finer to the files
_COLUMNS = ("metric", "value", "95 % interval", "n")
_FILE_COLUMNS = ("metric", "value", "low", "high", "n", "missing")
_COUNTS = "scoring/"


@dataclass(frozen=True, slots=True)
class Result:
    """What evaluating a reward model on a benchmark gave; nothing is written yet.

    `data` names the bad rows and the notes, those of scoring and measuring among them. `estimates`
    are in the order in which to read them, `curve` are the points of best-of-n curves. `metrics`
    has every number by its name; `summary` is the Markdown of the run's page. `coarse` names the
    estimates that tables of runs and models show, see `metrics.is_coarse`.
    """

    reward: str
    description: str
    benchmark: Benchmark
    data: Dataset
    scoring: Scoring
    estimates: tuple[Estimate, ...]
    curve: tuple[bestofn.Point, ...]
    metrics: dict[str, float]
    summary: str
    coarse: tuple[str, ...]

    @property
    def missing(self) -> tuple[str, ...]:
        """Return the parts that the headline lacks."""
        return self.headline.missing if self.headline else ()

    @property
    def headline(self) -> Estimate | None:
        """Return the benchmark's headline, partial or whole."""
        name = self.benchmark.headline
        return next((e for e in self.estimates if plain_name(e.name) == name), None)

    @property
    def scores(self) -> dict[str, float]:
        """Return the coarse numbers of the benchmark itself: what models are compared by."""
        own = f"{self.benchmark.headline.partition('/')[0]}/"
        return {name: self.metrics[name] for name in self.coarse if name.startswith(own)}

    @property
    def shown(self) -> dict[str, float]:
        """Return the numbers that a table of runs shows: coarse ones, and counts of the work.

        How much data there was is among the run's parameters.
        """
        counts = {
            name: value
            for name, value in self.metrics.items()
            if name.startswith(_COUNTS) and name not in self.coarse
        }
        return {name: self.metrics[name] for name in self.coarse} | counts

    def table(self) -> list[dict[str, object]]:
        """Return a row a metric: metric, value, the interval's low and high, n, what is missing.

        An interval that n cannot carry is None.
        """
        rows = ((e.name, e.value, e.low, e.high, e.n, "; ".join(e.missing)) for e in self.estimates)
        return [dict(zip(_FILE_COLUMNS, row, strict=True)) for row in rows]

    def show(self) -> None:
        """Print the table of the summary on the terminal."""
        title = f"{self.reward} on {self.benchmark.name} ({self.description})"
        shown = _shown(self.estimates)
        styles = [at for at, estimate in enumerate(shown) if is_style(estimate)]
        line = min(styles, default=None)
        thin = [at for at, estimate in enumerate(shown) if is_null(estimate.name)]
        rows = map(_row, shown)
        tables.show(_COLUMNS, rows, title, right=_COLUMNS[1:], line_before=line, thin=thin)

    def figures(self) -> "dict[str, Figure]":
        """Draw the benchmark's figures and the curves, by file name."""
        estimates = {plain_name(e.name): e for e in self.estimates}
        drawn = self.benchmark.figures(estimates, self.scoring.scored)
        from rmexp.stats import drawing, figures

        if self.curve:
            drawn |= figures.curves({self.reward: self.curve})
        if len(self.scoring.scored) >= LEAST_UNITS and self.bins:
            drawn["reliability.png"] = figures.reliability(self.bins)
        for figure in drawn.values():
            n = len(self.scoring.scored)
            drawing.head(figure, f"{self.reward} on {self.benchmark.name}, n = {n:,}")
        return drawn

    @property
    def bins(self) -> tuple[calibration.Bin, ...]:
        """Return how often the reward model is right, by how confident it is."""
        return calibration.reliability(self.scoring.scored)

    def write(self, folder: Path) -> list[Path]:
        """Write what a run leaves into a folder that is there, and return the files."""
        written = [write_scores(folder / "scores.jsonl", self.scoring.scored)]
        if self.scoring.lines:
            written.append(write_lines(folder / "verdicts.jsonl", self.scoring.lines))
        rows = [tuple(row.values()) for row in self.table()]
        written.append(tables.write_csv(folder / "metrics.csv", _FILE_COLUMNS, rows))
        texts = {
            "metrics.json": json.dumps(self.metrics, indent=1) + "\n",
            "summary.md": self.summary,
            "first_example.txt": self.scoring.first_example,
            "bad_rows.txt": "".join(f"{row}\n" for row in self.data.bad_rows),
        }
        for name, text in texts.items():
            if text:
                (folder / name).write_text(text, encoding="utf-8")
                written.append(folder / name)
        if self.curve:
            written.append(bestofn.write(folder / bestofn.FILE, self.curve))
        if self.bins:
            written.append(calibration.write(folder / calibration.FILE, self.bins))
        from rmexp.stats import drawing

        figures = self.figures().items()
        return written + [drawing.save(figure, folder / name) for name, figure in figures]


def flat_metrics(
    estimates: Sequence[Estimate], scoring: Scoring, data: Dataset, undefined: Mapping[str, int]
) -> dict[str, float]:
    """Return every number of an evaluation by its name in MLflow.

    `undefined` counts the examples that have no outcome, by metric.
    """
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
        **{f"{name}/undefined": count for name, count in undefined.items()},
    }


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
        f"Data: {tables.plain(data.source)}. Intervals: bootstrap over prompts; Wilson's of a "
        "share of fewer than 100 prompts, or at 0 or 1. Lengths are in characters.",
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


def write_scores(path: Path, scored: Sequence[ScoredExample]) -> Path:
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
    return write_lines(path, lines)


def write_lines(path: Path, lines: Iterable[Mapping[str, object]]) -> Path:
    """Write JSON objects, one a line; half a surrogate pair, which is no text, as its escape."""
    with path.open("w", encoding="utf-8", errors="backslashreplace") as file:
        for line in lines:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    return path


def is_style(estimate: Estimate) -> bool:
    """Say whether an estimate is about the reward model, not the benchmark: tables end with these.

    They are of calibration, of length, of overlap with training data, and of rewrites.
    """
    return estimate.name.startswith((PREFIX, calibration.PREFIX, "overlap/", "robustness/"))


def _shown(estimates: Sequence[Estimate]) -> list[Estimate]:
    """Return the estimates that a table shows."""
    return [e for e in estimates if plain_name(e.name).count("/") < _SHOWN_LEVELS]


def _row(estimate: Estimate) -> tuple[str, str, str, str]:
    interval = interval_text(estimate.low, estimate.high)
    return estimate.name, f"{estimate.value:.3f}", interval, f"{estimate.n:,}"
