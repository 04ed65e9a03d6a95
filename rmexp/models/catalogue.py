"""The models in conf/model as a table, with the scores that papers give them.

python -m rmexp.models.catalogue
"""

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE

from rmexp import tables
from rmexp.errors import ConfigError
from rmexp.files import CONF, PUBLISHED
from rmexp.outside import read_yaml

MODELS = CONF / "model"
# Ways to give one.
NOT_MODELS = ("ensemble", "judge", "local", "mlflow", "pairwise", "recorded", "served")
_SIZE = re.compile(r"(?<![\w.])\d+(?:\.\d+)?[BM]\b")


@dataclass(frozen=True, slots=True)
class Source:
    """A column of a published table: percentages, or fractions that are shown as such.

    `mark` stands behind each number from it and is explained below the table.
    """

    mark: str
    file: str
    column: str
    title: str
    scale: float = 1.0


_SKYWORK = ("c", "skywork_v2_seven_benchmarks.csv", "Skywork-Reward-V2's paper, table 5")
# For each benchmark the sources, best first: its own leaderboard or paper before other people's.
SOURCES: Mapping[str, tuple[Source, ...]] = {
    "RewardBench": (
        Source("a", "rewardbench_exact_subsets.csv", "overall", "the benchmark's own table"),
        Source(_SKYWORK[0], _SKYWORK[1], "rewardbench", _SKYWORK[2]),
        Source(
            "b", "rewardbench_paper_v2.csv", "score_T9", "RewardBench's paper, prior sets included"
        ),
    ),
    "RewardBench 2": (
        Source("a", "rewardbench2_leaderboard.csv", "avg", "the benchmark's own table"),
        Source(_SKYWORK[0], _SKYWORK[1], "rewardbench2", _SKYWORK[2]),
    ),
    "RM-Bench": (
        Source("a", "rmbench_leaderboard.csv", "overall", "the benchmark's own table"),
        Source("d", "rmbench_rmr1.csv", "avg", "RM-R1's paper"),
        Source(_SKYWORK[0], _SKYWORK[1], "rm_bench", _SKYWORK[2]),
    ),
    "RMB": (
        Source("d", "rmb_leaderboard.csv", "overall", "RM-R1's paper", 100),
        Source(_SKYWORK[0], _SKYWORK[1], "rmb", _SKYWORK[2]),
    ),
}


@dataclass(frozen=True, slots=True)
class Model:
    """A file of conf/model: `key` is what `model=` takes, `scores` are (percent, mark).

    `reader` says how it is read, and for a policy the reference.
    """

    key: str
    name: str
    size: str
    reader: str
    scores: Mapping[str, tuple[float, str]]


def catalogue(folder: Path = MODELS, published: Path = PUBLISHED) -> list[Model]:
    """Return the models that have a file, by key.

    The size stands in a file's first line. Raises ConfigError where it does not.
    """
    published_scores = {
        benchmark: [(_read(published / source.file, source), source.mark) for source in sources]
        for benchmark, sources in SOURCES.items()
    }
    models = []
    for path in sorted(folder.glob("*.yaml")):
        if path.stem in NOT_MODELS:
            continue
        text = path.read_text(encoding="utf-8")
        size = _SIZE.search(text.splitlines()[0])
        if size is None:
            raise ConfigError(f"{path}: its first line names no size: write one, such as 8B")
        config = read_yaml(path, "write it as the others are")
        name = str(config["name"])
        scores = {}
        for benchmark, sources in published_scores.items():
            found = [
                (table[_plain(name)], mark) for table, mark in sources if _plain(name) in table
            ]
            if found:
                scores[benchmark] = found[0]
        reader = str(config["reader"]) if "reader" in config else "pairwise"
        if "reference" in config:
            reader += f", {config['reference']['name']}"
        models.append(Model(path.stem, name, size[0], reader, scores))
    return models


def show(models: list[Model]) -> None:
    """Print the models as a table, and what its marks mean."""
    rows = []
    for model in models:
        scores = [
            "{:.1f} {}".format(*model.scores[benchmark]) if benchmark in model.scores else "-"
            for benchmark in SOURCES
        ]
        rows.append((model.key, model.name, model.size, model.reader, *scores))
    columns = ("model=", "name", "size", "reader", *SOURCES)
    tables.show(columns, rows, right={"size", *SOURCES}, frame=SIMPLE)
    print(*legend(), sep="\n")


def legend() -> list[str]:
    """Return a line for each mark that stands behind a score."""
    marks = {source.mark: source.title for sources in SOURCES.values() for source in sources}
    lines = [f"{mark}  {title}" for mark, title in sorted(marks.items())]
    return ["Published scores in percent, from", *lines, "-  none is at hand"]


def _read(path: Path, source: Source) -> dict[str, float]:
    """Return a published column in percent by the model's plain name."""
    scores: dict[str, float] = {}
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.reader(file)
        names = next(rows)
        for row in rows:
            try:
                scores[_plain(row[0])] = round(
                    float(row[names.index(source.column)]) * source.scale, 1
                )
            except ValueError:
                continue  # "-" and the like: not published
    return scores


def _plain(name: str) -> str:
    """Return a model's name without owner, citation, signs and doubled letters.

    Tables write one model in several ways, "FsfairX-LLLaMA3-RM-v0.1" among them.

    >>> _plain("LxzGordon/URM-LLama-3.1-8B (Lou et al., 2024)")
    'urmlama318b'
    """
    name = name.partition(" (")[0].rpartition("/")[2].lower()
    return re.sub(r"([a-z])\1+", r"\1", re.sub(r"[^a-z0-9]", "", name))


def main() -> None:
    """Print the catalogue."""
    show(catalogue())


if __name__ == "__main__":
    main()
