"""The errors a user can cause. Each message says what is wrong, where, and what to do."""

import errno
import os
import resource

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_WORDS = (*map(os.strerror, _FULL), "database or disk is full")  # the last is SQLite's
_TOO_LARGE = os.strerror(errno.EFBIG)
_SQLITE_IO = "disk I/O error"  # what SQLite says of a limited file, and of broken disks


class RmexpError(Exception):
    """Base of every error that a user can mend; commands print it as one line."""


class ConfigError(RmexpError):
    """A setting or a model that cannot work as configured."""


class DataError(RmexpError):
    """A data set or a file whose content cannot be used."""


class ScoreError(RmexpError):
    """Rewards that are missing, not finite or not reproducible."""


def no_room(error: BaseException | None) -> tuple[str, str] | None:
    """Return why an error or its cause could write no more, and what to do about it, else None.

    A disk is full, or a file has the size that the process may give one. Rust and SQLite only say
    so in words. `{}` in the advice stands for the folder that was written to.
    """
    seen: list[BaseException] = []  # an error that is raised again may be its cause's cause
    while error is not None and error not in seen:
        seen.append(error)
        number, text = error.errno if isinstance(error, OSError) else None, str(error)
        if number in _FULL or any(words in text for words in _FULL_WORDS):
            return "no space left on the disk", "make room for {} and the score store"
        limited = resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY
        if number == errno.EFBIG or _TOO_LARGE in text or (limited and _SQLITE_IO in text):
            return "a file has the size that ulimit -f allows this process", "raise that limit"
        error = error.__cause__ or error.__context__
    return None
