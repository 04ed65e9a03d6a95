"""What does not fit a GPU's memory, in one line with what to do."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from rmexp.errors import ConfigError


@contextmanager
def enough_memory(what: str, advice: str) -> Iterator[None]:
    """Raise ConfigError, "<what> does not fit ...: <advice>", where a GPU has too little memory."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        there = ""
        if torch.cuda.is_available():
            free, total = (size / 2**30 for size in torch.cuda.mem_get_info())
            there = f" ({free:.1f} of {total:.1f} GiB are free)"
        raise ConfigError(f"{what} does not fit the GPU's memory{there}: {advice}") from error
