"""Two finished evaluations, example by example: which reward model is better, and how surely."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rmexp import tables
from rmexp.benchmarks import Benchmark
from rmexp.errors import ConfigError, DataError
from rmexp.metrics import metric_name, reported_name, wins
from rmexp.outside import read_yaml
from rmexp.schema import Example, ScoredExample, fingerprint, scored_example
from rmexp.scoring.recorded import RecordedReward, left_out_note, lookup_shared
from rmexp.stats.bounds import interval_text
from rmexp.stats.paired import Difference, McNemar, differences, match, mcnemar
from rmexp.stats.signflips import SURE, chance_line
from rmexp.tracking.finished import fetch_files
from rmexp.tracking.runs import RESULT_KEY, Run

log = logging.getLogger(__name__)

_SCORES, _CONFIG = "scores.jsonl", "config.yaml"
_FILE = "differences.csv"
_COLUMNS = ("metric", "first", "second", "difference", "95 % interval", "p", "Holm's p", "n")
_SHOWN_LEVELS = 3


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A run's scores and what they are of; `data` is the data's fingerprint where it is known."""

    name: str
    scores: Path
    benchmark: Benchmark
    data: str | None


def read_run(
    where: object, uri: str, folder: Path, rebuild: Callable[[object, str], Benchmark]
) -> Evaluated:
    """Read a run of eval_rm.py: its folder, or its id in MLflow, whose files go to `folder`.

    `rebuild` makes the benchmark from what a config says of it; its errors begin with the text that
    it is given. Raises ConfigError where there is no such run, DataError where its files are not
    those of an evaluation.
    """
    if not isinstance(where, str) or not where:
        raise ConfigError(f"compare has {where}: give MLflow's ids or folders, compare=[RUN,RUN]")
    local = Path(where).expanduser()
    data, said = None, str(local / _CONFIG)
    if local.is_dir():
        name = str(local)
        for file in (_SCORES, _CONFIG):
            if not (local / file).is_file():
                raise ConfigError(
                    f"compare: {local} has no {file}; give the folder of an evaluation"
                )
    else:
        local, said = folder, f"{_CONFIG} of the run {where}"
        local.mkdir(parents=True, exist_ok=True)
        run = fetch_files(uri, where, (_SCORES, _CONFIG), local)
        name, data = run.tags.get("rmexp.model", run.name), run.tags.get("rmexp.data")
    config = read_yaml(local / _CONFIG, f"give a run of eval_rm.py instead of {where}")
    model = config.get("model")
    if data is None and isinstance(model, Mapping):
        name = str(model.get("name") or model.get("path") or name)
    return Evaluated(name, local / _SCORES, rebuild(config.get("bench"), said), data)


def run_comparison(
    first: Evaluated,
    second: Evaluated,
    seed: int,
    out_dir: Path,
    run: Run,
    key: Callable[..., str],
) -> str:
    """Compare two runs on the same examples, log it, and return the headline in a few words.

    The examples are loaded again, for their prompts: these are resampled whole. Raises DataError
    where the two runs are not on the same examples.
    """
    benchmark = first.benchmark
    prints = {
        f"rmexp.{side}": RecordedReward(str(each.scores)).fingerprint()
        for side, each in (("first", first), ("second", second))
    }
    run.set_tags(prints | {RESULT_KEY: key(**prints)})
    one, two, note = _scored(first, second)
    if note:
        log.warning("%s", note)
    rng = np.random.default_rng(seed)
    found = sorted(
        differences(one, two, benchmark.metrics, rng),
        key=lambda each: (each.name != benchmark.headline, each.name.count("/")),
    )
    test = mcnemar(one, two, wins)
    names = first.name, second.name
    metrics = flat_metrics(found, test)
    summary = summarise(names, found, test, note)
    (out_dir / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
    (out_dir / "summary.md").write_text(summary, encoding="utf-8")
    _write(out_dir / _FILE, found)
    run.keep(*(out_dir / name for name in ("metrics.json", "summary.md", _FILE)))
    run.log_table(out_dir, metrics)
    run.log_metrics(flat_metrics(found[:1], test))
    run.note(summary)
    show(names, found)
    verdict = _verdict(names, found[0])
    said = filter(None, (verdict, _mcnemar_line(names, test), _chance(found)))
    print(*map(tables.printable, said), sep="\n")
    return verdict


def flat_metrics(found: Sequence[Difference], test: McNemar) -> dict[str, float]:
    """Return every number by its name in MLflow."""
    metrics: dict[str, float] = {}
    for each in found:
        name = f"difference/{_full_name(each)}"
        metrics |= {name: each.value, f"{name}/n": each.n}
        ends = {"low": each.low, "high": each.high, "p": each.p}
        metrics |= {f"{name}/{end}": value for end, value in ends.items() if value is not None}
    counted = {"first_only": test.first, "second_only": test.second, "n": test.n, "p": test.p}
    return metrics | {metric_name("mcnemar", name): value for name, value in counted.items()}


def summarise(
    names: tuple[str, str], found: Sequence[Difference], test: McNemar, note: str | None = None
) -> str:
    """Return the Markdown that the run's page shows; `note` says which examples are left out."""
    lines = [
        f"First: **{tables.plain(names[0])}**. Second: **{tables.plain(names[1])}**.",
        "",
        tables.plain(_verdict(names, found[0])),
        "",
        tables.plain(_mcnemar_line(names, test)),
        "",
        *tables.markdown(_COLUMNS, map(_row, _shown(found))),
    ]
    chance = _chance(found)
    lines += ["", tables.plain(chance)] if chance else []
    lines += [
        "",
        "Intervals: paired bootstrap over prompts, from ten prompts on. p: two-sided, by "
        "exchanging the two on whole prompts.",
    ]
    lines += ["", tables.plain(note)] if note else []
    return "\n".join(lines) + "\n"


def show(names: tuple[str, str], found: Sequence[Difference]) -> None:
    """Print the table of the summary on the terminal."""
    title = f"{names[0]} minus {names[1]}"
    tables.show(_COLUMNS, map(_row, _shown(found)), title, right=_COLUMNS[1:])


def _scored(
    first: Evaluated, second: Evaluated
) -> tuple[list[ScoredExample], list[ScoredExample], str | None]:
    """Return both runs' scores of the examples that both have, with their prompts.

    An example that a run dropped as too long is left out, and the note says so.
    """
    examples, others = examples_of(first), examples_of(second)
    match(unscored(examples), unscored(others))
    rewards = [RecordedReward(str(each.scores)) for each in (first, second)]
    (one, two), left_out = lookup_shared(rewards, examples)
    return one, two, left_out_note(first.benchmark.name, left_out, len(examples))


def examples_of(evaluated: Evaluated) -> tuple[Example, ...]:
    """Return the examples of a run; raise DataError where they are not those of its evaluation."""
    data = evaluated.benchmark.load()
    if evaluated.data not in (None, fingerprint(data.examples)):
        raise DataError(
            f"the data that {evaluated.name} was evaluated on has changed since ({data.source}): "
            "evaluate it again"
        )
    return data.examples


def unscored(examples: Sequence[Example]) -> list[ScoredExample]:
    """Return the examples with rewards of 0, for what depends on no reward."""
    return [scored_example(e, [0.0] * len(e.chosen), [0.0] * len(e.rejected)) for e in examples]


def _verdict(names: tuple[str, str], headline: Difference) -> str:
    text = f"{_full_name(headline)}: {headline.first:.3f} against {headline.second:.3f}"
    if headline.p is None:
        return f"{text}, a difference of {headline.value:+z.3f}; one prompt tells no more."
    interval = interval_text(headline.low, headline.high, "+z.3f")
    if headline.low is None:
        interval += " for an interval"
    numbers = f"{headline.value:+z.3f} ({interval}, p {headline.p:.2g})"
    if headline.p >= SURE:
        return f"{text}, a difference of {numbers}: it may as well be chance."
    better, worse = names if headline.value > 0 else names[::-1]
    return f"{text}, a difference of {numbers}: {better} is better than {worse}."


def _mcnemar_line(names: tuple[str, str], test: McNemar) -> str:
    return (
        f"McNemar: of {test.n:,} examples only {names[0]} is right on {test.first:,}, only "
        f"{names[1]} on {test.second:,}, p {test.p:.2g}."
    )


def _full_name(each: Difference) -> str:
    return reported_name(each.name, each.missing)


def _shown(found: Sequence[Difference]) -> list[Difference]:
    return [each for each in found if each.name.count("/") < _SHOWN_LEVELS]


def _row(each: Difference) -> tuple[str, ...]:
    interval = interval_text(each.low, each.high, "+z.3f")
    ps = ["-" if p is None else f"{p:.2g}" for p in (each.p, each.p_holm)]
    values = (f"{each.first:.3f}", f"{each.second:.3f}", f"{each.value:+z.3f}")
    return (_full_name(each), *values, interval, *ps, f"{each.n:,}")


def _chance(found: Sequence[Difference]) -> str | None:
    return chance_line([each.p for each in found], [each.p_holm for each in found], _FILE)


def _write(path: Path, found: Sequence[Difference]) -> None:
    columns = ("metric", "first", "second", "difference", "low", "high", "p", "n", "p_holm")
    rows = [
        (_full_name(e), e.first, e.second, e.value, e.low, e.high, e.p, e.n, e.p_holm)
        for e in found
    ]
    tables.write_csv(path, columns, rows)
