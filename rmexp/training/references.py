"""The log-probabilities that a DPO policy is compared with, from the score store."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from filelock import FileLock
from lightning import Trainer

from rmexp.errors import ScoreError
from rmexp.scoring.columns import Column
from rmexp.scoring.model_reward import column_values
from rmexp.scoring.score import Settings
from rmexp.training.encoded import EncodedPair


def with_references(
    pairs: Sequence[EncodedPair], reference: Column, settings: Settings, pad: int | None
) -> tuple[EncodedPair, ...]:
    """Give each pair its responses' log pi_ref, computed once and kept in the score store.

    Raises ScoreError for one that is not finite.
    """
    rows = [row for pair in pairs for row in (pair.chosen, pair.rejected)]
    with FileLock(settings.store_dir / "reference.lock"):  # one process computes, others read
        logps = column_values(reference, rows, settings, pad).reshape(-1, 2)
    finite = np.isfinite(logps).all(axis=1)
    if not finite.all():
        bad = pairs[int(finite.argmin())].id
        raise ScoreError(
            f"the reference's log-probability is not finite at pair {bad}: try model.dtype=float32,"
            " or leave the pair out"
        )
    return tuple(
        replace(pair, references=(float(chosen), float(rejected)))
        for pair, (chosen, rejected) in zip(pairs, logps, strict=True)
    )


def free_devices(trainer: Trainer, reference: Column) -> int:
    """Return how many devices may share the reference's pass: all, before Lightning takes them."""
    environment = getattr(trainer.strategy, "cluster_environment", None)
    theirs = environment is not None and environment.creates_processes_externally
    if theirs or reference.device_map or trainer.strategy.root_device.type != reference.device:
        return 1
    return int(trainer.num_devices)
