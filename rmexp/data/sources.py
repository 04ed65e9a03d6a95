"""Where rows are from: local files and folders, the Hugging Face hub, and GitHub.

Every failure is a DataError that says what, where and what to do.
"""

import http.client
import os
import tempfile
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from rmexp.data.formats import FORMATS, known_suffix, matches, read_rows
from rmexp.data.rows import Row, Rows
from rmexp.errors import DataError
from rmexp.files import make_cache

_DOWNLOAD_ERRORS = (
    OSError,
    ValueError,
    http.client.HTTPException,
    zipfile.BadZipFile,
    zlib.error,
)


def local_path(path: str | os.PathLike[str]) -> Path:
    """Return the path with `~` expanded; raise DataError if nothing is there."""
    if not is_there(path):
        raise DataError(f"{path} does not exist: check the path")
    return Path(path).expanduser()


def is_there(path: str | os.PathLike[str]) -> bool:
    """Return whether a file or folder lies at the path, in which `~` may stand."""
    try:
        return Path(path).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # too long, a NUL, the home of nobody
        return False


def local_rows(path: str | os.PathLike[str], include: Sequence[str] | None = None) -> Rows:
    """Read a file, or every file of a known format below a folder, in the order of their paths.

    Where each of the patterns `include` is for some file, only these files are read. Otherwise the
    patterns may be for what the rows say, and all are.
    """
    top = local_path(path)
    files = data_files(top)
    wanted = {name: [p for p in include or () if matches(p, name)] for name in files}
    if include is not None and {p for found in wanted.values() for p in found} == set(include):
        files = {name: file for name, file in files.items() if wanted[name]}
    rows = (row for name, file in files.items() for row in read_rows(file, name))
    return Rows(rows, str(top), tuple(files))


def data_files(top: Path) -> dict[str, Path]:
    """Return the file, or all of a known format below the folder, by their paths below it."""
    if top.is_file():
        return {top.name: top}
    files = {
        file.relative_to(top).as_posix(): file
        for file in sorted(top.rglob("*"))
        if file.is_file() and not file.name.startswith(".") and known_suffix(file.name)
    }
    if not files:
        raise DataError(
            f"{top} holds no file of a known format ({FORMATS}): check the path, or convert "
            "the data"
        )
    for name in files:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise DataError(
                f"{top} holds a file whose name is no UTF-8 ({name!a}): rename it"
            ) from None
    return files


def hub_rows(name: str, split: str, revision: str | None = None) -> Iterator[Row]:
    """Return the rows of a split of a Hugging Face data set; `revision` is None for the newest.

    The library downloads the split once, whole; its rows are then read as they are asked for.
    """
    table = hub_table(name, split, revision)
    return (Row(values, "", f"{name} ({split}), row {row}") for row, values in enumerate(table))


def hub_table(name: str, split: str, revision: str | None = None) -> Any:
    """Return a split of a Hugging Face data set, as its library has it on disk."""
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        return datasets.load_dataset(name, split=split, revision=revision)
    except (OSError, ValueError, DatasetsError) as error:
        raise DataError(
            f"the hub's data set {name}, split {split!r}, could not be loaded ({error}): check the "
            "name, the split and the network, or download it and point the path at the local copy"
        ) from error


def github_folder(repository: str, commit: str, url: str | None = None) -> Path:
    """Return a local copy of a GitHub repository's files at a commit, downloaded once.

    `url` is the zip archive, by default GitHub's own. The copy appears complete or not at all, and
    processes that ask for it at once share one download.
    """
    url = url or f"https://github.com/{repository}/archive/{commit}.zip"
    folder = make_cache() / f"{repository.replace('/', '--')}-{commit}"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            _download(url, folder, repository)
    return folder


def _download(url: str, folder: Path, repository: str) -> None:
    """Unpack the zip archive at `url`, which holds one folder, as `folder`."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="unfinished-") as holder:
        archive, content = Path(holder) / "archive.zip", Path(holder) / "content"
        try:
            with urllib.request.urlopen(url, timeout=60) as response, archive.open("wb") as file:
                while block := response.read(1 << 20):
                    file.write(block)
            with zipfile.ZipFile(archive) as opened:
                opened.extractall(content)
            (top,) = content.iterdir()
        except _DOWNLOAD_ERRORS as error:
            raise DataError(
                f"{url} could not be downloaded and unpacked ({error}): check the network, or run "
                f"`git clone https://github.com/{repository}` elsewhere and set bench.path to it"
            ) from error
        top.rename(folder)
