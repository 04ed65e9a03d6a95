"""Files and folders: written whole, made or found in one way."""

import errno
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rmexp.errors import ConfigError, DataError


def replace(path: Path, text: str) -> Path:
    """Write a file that others may read meanwhile: as it was or as it is, never a part."""
    with written_whole(path) as draft:
        draft.write_text(text, encoding="utf-8")
    return path


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield where to write a file that appears whole at the end of the block, or not at all."""
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        yield draft
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


PACKAGE = Path(__file__).resolve().parent
INSTALLED = (PACKAGE / "conf").is_dir()  # as a wheel, which holds conf/; a checkout has it beside
CONF = (PACKAGE if INSTALLED else PACKAGE.parent) / "conf"
PUBLISHED = PACKAGE / "published"  # tables of others' numbers


def root() -> Path:
    """Return where results go: the checkout's folder, or the current one if rmexp is installed."""
    return Path.cwd() if INSTALLED else PACKAGE.parent


_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def is_hub_name(path: str) -> bool:
    """Say whether a path that is not there may be a name on the Hugging Face hub, `owner/name`."""
    return bool(_HUB_NAME.fullmatch(path))


def make_folder(path: Path, name: str) -> Path:
    """Make the folder of the setting `name` if needed, and return it; see `folder`."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{name}={path}: cannot make this folder ({error.strerror}), give another one"
        ) from error
    return path


def cache_folder() -> Path:
    """Return the folder for downloads, in the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "rmexp"


def make_cache() -> Path:
    """Make the cache folder if needed, and return it; raise DataError where that fails."""
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EROFS, os.strerror(errno.EROFS))
    except OSError as error:
        raise DataError(
            f"the cache folder {folder} cannot be made ({error}): set XDG_CACHE_HOME to a folder "
            "that can be written"
        ) from error
    return folder
