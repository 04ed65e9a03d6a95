"""The rows of a part as a file, Parquet or JSON lines: written, and some of them written again."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmexp.data.formats import json_lines, open_parquet
from rmexp.data.streams import Content
from rmexp.errors import ConfigError

Array = NDArray[Any]


def row_writer(
    content: Content, places: Sequence[int], new: Mapping[str, Array]
) -> Callable[[Path], None]:
    """Return what writes the rows at these places with the new columns beside their own.

    A number that is not finite is null there. Raises ConfigError where the data have a column of
    that name.
    """
    own = {name: None for row in content.rows for name in row.values}
    if content.table is not None:
        own = dict.fromkeys(content.table.column_names)
    if taken := [name for name in new if name in own]:
        raise ConfigError(
            f"the data have a column {taken[0]!r} already: give a prefix for the new ones, "
            "prefix=NAME_"
        )

    def write(path: Path) -> None:
        if content.table is not None:
            _write_table(path, content.table, places, new)
        else:
            _write_lines(path, content, places, new)

    return write


def copy_rows(source: Path, target: Path, chosen: Array) -> None:
    """Write those rows of a part's file that are `chosen`, a boolean each, as another file."""
    if source.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        with open_parquet(source) as file:
            table = file.read()
        pyarrow.parquet.write_table(table.filter(pyarrow.array(chosen)), target)
        return
    lines = (line for _, line in json_lines(source, source.name))
    with target.open("w", encoding="utf-8", newline="") as file:
        file.writelines(line for line, kept in zip(lines, chosen, strict=True) if kept)


def _write_table(path: Path, table: Any, places: Sequence[int], new: Mapping[str, Array]) -> None:
    import pyarrow
    import pyarrow.parquet

    kept = table.take(pyarrow.array(places, pyarrow.int64()))
    for name, values in new.items():
        missing = np.isnan(values) if values.dtype.kind == "f" else None
        kept = kept.append_column(name, pyarrow.array(values, mask=missing))
    pyarrow.parquet.write_table(kept, path)


def _write_lines(
    path: Path, content: Content, places: Sequence[int], new: Mapping[str, Array]
) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        for place, values in zip(places, _rows(new), strict=True):
            file.write(json.dumps({**content.rows[place].values, **values}) + "\n")


def _rows(new: Mapping[str, Array]) -> Iterator[dict[str, object]]:
    for values in zip(*(array.tolist() for array in new.values()), strict=True):
        finite = (None if isinstance(v, float) and math.isnan(v) else v for v in values)
        yield dict(zip(new, finite, strict=True))
