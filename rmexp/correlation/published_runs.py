"""Published scores as runs, so that the UI shows them beside one's own evaluations."""

import hashlib
import json
import logging
from dataclasses import astuple

from rmexp.correlation.tables import Score, Table
from rmexp.tables import plain
from rmexp.tracking.finished import finished_runs
from rmexp.tracking.runs import RESULT_KEY, Run, tracked_run
from rmexp.tracking.tracked import EVALUATION, PUBLISHED

log = logging.getLogger(__name__)


def log_published(scores: Table, experiment: str, run: Run) -> dict[str, float]:
    """Log each RM's row of each benchmark as a child run, unless it is there already.

    The runs have the metrics and tags of an evaluation, and `rmexp.published` and `rmexp.source`
    besides: nothing here measured them. Returns how many were logged and how many were there.
    """
    known = {
        logged.tags.get(RESULT_KEY)
        for logged in finished_runs(run.uri, experiment, f"tags.`{PUBLISHED}` = 'true'")
    }
    by_run: dict[tuple[str, str], list[Score]] = {}
    for row in scores.rows:
        by_run.setdefault((row.rm, row.task.partition("/")[0]), []).append(row)
    counts = {"published/logged": 0.0, "published/there": 0.0}
    for (rm, bench), rows in by_run.items():
        text = json.dumps([scores.source, [astuple(row) for row in rows]])
        digest = hashlib.sha256(text.encode()).hexdigest()
        if digest in known:
            counts["published/there"] += 1
            continue
        tags = {
            "rmexp.command": EVALUATION,
            "rmexp.model": rm,
            "rmexp.bench": bench,
            "rmexp.reward": "published",
            "rmexp.source": scores.source,
            PUBLISHED: "true",
            RESULT_KEY: digest,
        }
        name = f"{rm} on {bench} (published)"
        own = None if run.folder is None else run.folder / "published" / digest[:16]
        with tracked_run(run.uri, experiment, name, tags, run.run_id, own) as child:
            child.log_metrics({row.task: row.score for row in rows})
            child.note(
                f"**{plain(rm)}** on **{plain(bench)}**, as published: {plain(scores.source)}. "
                "Not measured here."
            )
        counts["published/logged"] += 1
    run.log_metrics(counts)
    log.info("%d runs logged, %d were there", *counts.values())
    return counts
