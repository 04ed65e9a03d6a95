"""Numbers of a run by name: which ones its table shows, and all of them as a table artifact.

A number's parts are named after it: `/n`, `/low`, `/high`, `/p`. In MLflow a run has the headline
numbers, most of them without parts; `TABLE` has all, in the form of `mlflow.log_table`, so that
`mlflow.load_table` reads many runs' at once.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from rmexp.files import replace
from rmexp.metrics import is_partial, partial_name

TABLE = "metrics_table.json"
HEADLINE = "headline"  # the metric that stands for a run, whatever it measured; it has its parts
PARTS = ("low", "high", "n", "p")


def is_part(name: str, names: Mapping[str, object]) -> bool:
    """Say whether the name is another number's with a part behind it."""
    whole, _, part = name.rpartition("/")
    return part in PARTS and whole in names


def parts(metrics: Mapping[str, float], name: str) -> dict[str, float]:
    """Return the parts that a number has, by their own names."""
    return {part: metrics[f"{name}/{part}"] for part in PARTS if f"{name}/{part}" in metrics}


def whole(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the numbers without their parts."""
    return {name: value for name, value in metrics.items() if not is_part(name, metrics)}


def as_headline(metrics: Mapping[str, float], name: str) -> dict[str, float]:
    """Return a number and its parts under the name that all runs share, or all partial ones."""
    shared = shared_name(name)
    own = {f"{shared}/{part}": value for part, value in parts(metrics, name).items()}
    return {shared: metrics[name], **own}


def shared_name(name: str) -> str:
    """Return the name under which a run's headline stands beside those of other runs.

    >>> shared_name("rmb/overall"), shared_name(partial_name("rmb/overall")) == HEADLINE
    ('headline', False)
    """
    return partial_name(HEADLINE) if is_partial(name) else HEADLINE


def write_table(folder: Path, metrics: Mapping[str, float]) -> Path:
    """Write all numbers as a table, a row a number with its parts; null where it has none."""
    columns = ("metric", "value", *PARTS)
    rows = [
        [name, value, *(metrics.get(f"{name}/{part}") for part in PARTS)]
        for name, value in metrics.items()
        if not is_part(name, metrics)
    ]
    text = json.dumps({"columns": columns, "data": rows}, indent=1)
    return replace(folder / TABLE, f"{text}\n")
