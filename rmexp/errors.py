"""The errors a user can cause. Each message says what is wrong, where, and what to do."""

import errno
import os

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the last is a limit of the process
_FULL_WORDS = (*map(os.strerror, _FULL), "database or disk is full")  # the last is SQLite's


class RmexpError(Exception):
    """Base of every error that a user can mend; commands print it as one line."""


class ConfigError(RmexpError):
    """A setting or a model that cannot work as configured."""


class DataError(RmexpError):
    """A data set or a file whose content cannot be used."""


class ScoreError(RmexpError):
    """Rewards that are missing, not finite or not reproducible."""


def is_full_disk(error: BaseException | None) -> bool:
    """Say whether an error or what caused it is a full disk; Rust's and SQLite only say so."""
    seen: list[BaseException] = []  # an error that is raised again may be its cause's cause
    while error is not None and error not in seen:
        seen.append(error)
        full = isinstance(error, OSError) and error.errno in _FULL
        if full or any(words in str(error) for words in _FULL_WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False
