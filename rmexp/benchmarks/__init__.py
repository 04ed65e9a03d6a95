"""Benchmarks: how to load their examples, and how to aggregate the rewards of these.

They know data and stats, and models for the embedded one; nothing of who gives the rewards.
"""

from collections.abc import Mapping, Sequence
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, Protocol

from rmexp.errors import ConfigError
from rmexp.files import CONF
from rmexp.metrics import Metric
from rmexp.outside import read_yaml
from rmexp.schema import Dataset, ScoredExample
from rmexp.stats.intervals import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDER = CONF / "bench"


class Benchmark(Protocol):
    """What a benchmark offers. `headline` is the name of its most important metric."""

    name: str
    headline: str

    def load(self) -> Dataset:
        """Read, check and select the examples."""
        ...

    def metrics(self, scored: Sequence[ScoredExample]) -> list[Metric]:
        """Return the metrics of the scored examples; pure, in the order in which to show them."""
        ...

    def figures(
        self, estimates: Mapping[str, Estimate], scored: Sequence[ScoredExample]
    ) -> "dict[str, Figure]":
        """Draw the figures by file name; `estimates` are keyed by `metrics.plain_name`."""
        ...


def open_benchmark(name: str, **options: object) -> Benchmark:
    """Open a benchmark by the name that `bench=` takes, with options of its file in conf/bench.

    Nothing is loaded. One that takes a name for its metrics has that of its file. Raises
    ConfigError for a name or an option that does not exist, one that is missing, and values that
    cannot work.
    """
    names = sorted(path.stem for path in FOLDER.glob("*.yaml"))
    if name not in names:
        raise ConfigError(f"there is no benchmark {name}, choose from {', '.join(names)}")
    config = _config(name)
    if config.get("name", "") is None:
        config["name"] = name
    kind: Any = resolve_name(config.pop("_target_"))
    if unknown := sorted(set(options) - set(config)):
        there = ", ".join(config)
        raise ConfigError(f"{name} has no option {unknown[0]}, choose from {there}")
    config |= options
    if missing := [option for option, value in config.items() if value == "???"]:
        raise ConfigError(f"{name} needs {missing[0]}: give one")
    benchmark: Benchmark = kind(**config)
    return benchmark


def _config(name: str) -> dict[str, Any]:
    """Return what a file in conf/bench says, over the files that its defaults name."""
    own = read_yaml(FOLDER / f"{name}.yaml", "get the file again")
    config: dict[str, Any] = {}
    for below in own.pop("defaults", []):
        config |= _config(below) if below != "_self_" else {}
    return config | own
