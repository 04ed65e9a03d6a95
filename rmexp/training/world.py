"""Which of the processes that train together this one is: read from the environment alone."""

import os
from collections.abc import Mapping
from typing import Any


def together(options: Mapping[str, Any]) -> bool:
    """Say whether a trainer with these options spans several devices."""
    one = options.get("devices") in (1, "1") and options.get("num_nodes", 1) == 1
    return not one or options.get("strategy") not in ("auto", None)


def rank() -> int:
    """Return this process's number, 0 for the one that opens the run and writes the files.

    It is one of several if torchrun or Lightning says so, or if it is one of a Slurm step's tasks.
    """
    if "RANK" in os.environ:
        return int(os.environ["RANK"])
    if "LOCAL_RANK" in os.environ:
        return int(os.environ["LOCAL_RANK"]) or int(os.environ.get("NODE_RANK", 0))
    return int(os.environ["SLURM_PROCID"]) if slurm_tasks() > 1 else 0


def slurm_tasks() -> int:
    """Return how many tasks srun started beside each other, 1 for what it did not start.

    A batch script and an allocation's shell have the job's SLURM_NTASKS, too, but are alone: the
    first has `ENVIRONMENT=BATCH` and no step, the second no SLURM_PROCID, or a shell's job name.
    """
    if "SLURM_PROCID" not in os.environ:
        return 1
    if (step := os.environ.get("SLURM_STEP_NUM_TASKS")) is not None:
        return int(step)
    if os.environ.get("ENVIRONMENT") == "BATCH":
        return 1
    if os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        return 1
    return int(os.environ.get("SLURM_NTASKS", 1))
