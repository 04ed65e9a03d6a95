"""A data set scored in a tracked run: its parts made, what they are like, and the chosen rows."""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rmexp.data.streams import RowStream, Span
from rmexp.errors import ConfigError
from rmexp.files import replace
from rmexp.labelling.choosing import Choice, choose
from rmexp.labelling.output import Output
from rmexp.labelling.parts import Task
from rmexp.labelling.processes import Engine
from rmexp.labelling.summary import Summary, summarise, total
from rmexp.progress import WorkProgress
from rmexp.scoring.model_reward import ModelReward
from rmexp.scoring.score import Reward
from rmexp.tracking.logged_models import Card
from rmexp.tracking.runs import RESULT_KEY, Run

log = logging.getLogger(__name__)

_NAMED_ROWS = 5


@dataclass(frozen=True, slots=True)
class Work:
    """What a run is to do: the parts of `rows` in spans, of which this run makes `mine`.

    `cache` keeps the fingerprints of weights.
    """

    task: Task
    rows: RowStream
    spans: tuple[Span, ...]
    mine: tuple[Span, ...]
    choice: Choice | None
    engine: Engine
    cache: Path


def share_of(spans: Sequence[Span], shard: str | None) -> tuple[Span, ...]:
    """Return the spans of a share such as "3/16": every sixteenth, from the third on.

    Raises ConfigError for what is no share.
    """
    if shard is None:
        return tuple(spans)
    which, slash, of = str(shard).partition("/")
    if not (slash and which.isdecimal() and of.isdecimal() and 1 <= int(which) <= int(of)):
        raise ConfigError(f"shard={shard}: give which of how many, from 1/16 to 16/16")
    return tuple(spans[int(which) - 1 :: int(of)])


def label_in_run(
    work: Work,
    reward: Reward,
    settings: Mapping[str, object],
    out_dir: Path,
    run: Run,
    key: Callable[..., str],
    address: str | None = None,
) -> str:
    """Score the data set, and return the most important numbers in words.

    `settings` are those that change what is written. `key` makes the digest by which a finished run
    is known; `address` is where the reward model was found if that is one of MLflow's.
    """
    task, output = work.task, work.task.output()
    prints, traits = reward.fingerprints(work.cache), reward.traits()
    count = sum(span.rows for span in work.spans)
    run.add_to_name(f", n {count:,}")
    digest, source = work.rows.digest, work.rows.source
    run.log_dataset(Path(source).name, digest, source, {"num_rows": count}, "input")
    tags = {"rmexp.data": digest, "rmexp.reward": reward.description, **prints}
    run.set_tags(tags | {RESULT_KEY: key(**tags)})
    run.log_params({"model.name": reward.name})
    run.use_model(Card(reward.name, traits, prints), address)
    length = reward.chat.max_length if isinstance(reward, ModelReward) else None
    identity = {**settings, "model": {**prints, **traits, "max_length": length}}
    output.prepare(
        {
            "data": digest,
            "kind": task.kind,
            "form": task.form,
            "rows": work.spans[0].rows,
            "identity": identity,
        }
    )
    made = _make(work, reward)
    metrics, summary = _end(work, output)
    metrics |= made
    _write_metrics(out_dir, metrics)
    run.keep(out_dir / "metrics.json", output.folder / "summary.json")
    parts = [output.part(span.number) for span in work.mine]
    made_of = hashlib.sha256("".join(part.sha256 for part in parts).encode()).hexdigest()
    written = {"num_rows": int(total(parts, "written"))}
    run.log_dataset(output.folder.name, made_of, str(output.data), written, "output")
    run.log_metrics(metrics)
    run.note(summary.markdown(task.kind))
    summary.show(task.kind, f"{reward.name} on {source}")
    return f"{summary.line()}: {output.data}"


def _make(work: Work, reward: Reward) -> dict[str, float]:
    """Make the parts that are not there yet, and return what that took."""
    output = work.task.output()
    left = [span for span in work.mine if not output.is_made(span.number)]
    if len(left) < len(work.mine):
        log.info("%d of %d parts are there already", len(work.mine) - len(left), len(work.mine))
    rows = sum(span.rows for span in left)
    began = time.monotonic()
    if left:
        log.info("%s is read as: %s", reward.name, reward.description)
        with WorkProgress(reward.name, rows, "rows") as progress:
            work.engine(work.task, left, progress)
    seconds = time.monotonic() - began
    tokens = total([output.part(span.number) for span in left], "tokens")
    took = {"scoring/tokens": tokens, "scoring/seconds": seconds}
    if left:
        took["rewards/rows_per_second"] = rows / seconds
        took["scoring/tokens_per_second"] = tokens / seconds
    return took


def _end(work: Work, output: Output) -> tuple[dict[str, float], Summary]:
    """Summarise; where all parts are there, those of other runs too, and write what is chosen."""
    every = [span.number for span in work.spans]
    missing = sum(not output.is_made(number) for number in every)
    if missing:
        log.info(
            "%d of %d parts are left to other shards: the last one writes the summary%s",
            *(missing, len(every), " and the chosen rows" if work.choice else ""),
        )
        every = [span.number for span in work.mine]
    with output.ending():
        summary = summarise(output, every, work.task.kind)
        metrics = dict(summary.metrics)
        if work.choice is not None and not missing:
            metrics |= choose(output, every, work.task.kind, work.choice)
            log.info("kept %d rows: %s", metrics["kept/rows"], output.folder / "kept")
        if not missing:
            said = {**metrics, "bad_rows": summary.bad_rows}
            replace(output.folder / "summary.json", json.dumps(said, indent=1) + "\n")
    if bad := int(metrics["data/bad_rows"]):
        named = "; ".join(summary.bad_rows[:_NAMED_ROWS])
        log.warning("%d bad rows: %s%s", bad, named, "; ..." if bad > _NAMED_ROWS else "")
    return metrics, summary


def _write_metrics(out_dir: Path, metrics: Mapping[str, float]) -> None:
    text = json.dumps(metrics, indent=1) + "\n"
    (out_dir / "metrics.json").write_text(text, encoding="utf-8")
