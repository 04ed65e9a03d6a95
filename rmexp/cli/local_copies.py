"""Local copies of benchmarks and data sets: what lies below `data_root` comes before the hub."""

import logging
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from rmexp.errors import ConfigError
from rmexp.files import is_hub_name

log = logging.getLogger(__name__)

# What copies are called besides the benchmark's own name, signs and capitals apart.
_ALSO = {
    "RMB": ("RMB_dataset", "RMB-Reward-Model-Benchmark"),
    "BestOf100": ("bon100", "rewarded-Mistral-RM-for-RAFT-GSHF-v0"),
    "PPEPreference": ("PPE-Human-Preference-V1",),
    "PPECorrectness": ("PPE",),
}
_UNGIVEN = (None, "???")


def located(section: Mapping[str, Any], name: str, root: str | None) -> dict[str, Any]:
    """Return a benchmark's or a data set's config with the path of its copy below `root`, if any.

    `name` is that of its file in conf. A path that is given and lies here stays, as does one that
    is not found. Of a copy of a hub's data set only the files of its `split` are included. Raises
    ConfigError where none of several files is of that split.
    """
    path = section.get("path", "")
    on_hub = isinstance(path, str) and is_hub_name(path) and not Path(path).exists()
    if not root or not (path in _UNGIVEN or on_hub):
        return dict(section)
    kind = str(section.get("_target_", "")).rpartition(".")[2]
    copy = _find(Path(root), {_plain(one) for one in (name, kind, *_ALSO.get(kind, ()))})
    if copy is None and on_hub:
        copy = _find(Path(root), {_plain(path.rpartition("/")[2])})
    if copy is None:
        return dict(section)
    log.info("%s is read from %s", name, copy)
    found = {**section, "path": str(copy)}
    if section.get("split"):
        found["split"] = found["revision"] = None
        found["include"] = section.get("include") or _of_split(copy, section["split"])
    return found


def check_root(root: object) -> None:
    """Raise ConfigError where `data_root` is no folder."""
    if root and not (isinstance(root, str) and Path(root).is_dir()):
        raise ConfigError(f"data_root={root}: there is no such folder; check the path")


def _find(root: Path, names: Collection[str]) -> Path | None:
    """Return the file or folder of one of these names, at the root before one level below."""
    for level in (root.iterdir(), _below(root)):
        for path in sorted(level):
            if _plain(path.name if path.is_dir() else path.name.partition(".")[0]) in names:
                return path
    return None


def _below(root: Path) -> Iterator[Path]:
    for folder in sorted(root.iterdir()):
        if folder.is_dir() and not folder.name.startswith("."):
            yield from folder.iterdir()


def _of_split(copy: Path, split: str) -> list[str] | None:
    """Return a pattern for the files of a split, None where there is but one file."""
    if copy.is_file():
        return None
    files = [path.relative_to(copy).as_posix() for path in copy.rglob("*") if path.is_file()]
    files = [name for name in files if not any(part.startswith(".") for part in name.split("/"))]
    if any(split in name for name in files):
        return [f"*{split}*"]
    if len(files) < 2:
        return None
    raise ConfigError(
        f"{copy} holds {len(files)} files, and none with {split} in its name: name the files with "
        "include, or give the path of one"
    )


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
