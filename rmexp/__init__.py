"""Experiment tracking for LLM reward models: train, evaluate, correlate.

What a notebook needs has a name here; each is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__all__ = ["Settings", "evaluate", "open_benchmark", "open_reward", "score"]

_HOMES = {
    "Settings": "rmexp.scoring.score",
    "evaluate": "rmexp.evaluation.evaluate",
    "open_benchmark": "rmexp.benchmarks",
    "open_reward": "rmexp.scoring.rewards",
    "score": "rmexp.scoring.score",
}

if TYPE_CHECKING:
    from rmexp.benchmarks import open_benchmark
    from rmexp.evaluation.evaluate import evaluate
    from rmexp.scoring.rewards import open_reward
    from rmexp.scoring.score import Settings, score
else:

    def __getattr__(name):
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_HOMES[name]), name)
