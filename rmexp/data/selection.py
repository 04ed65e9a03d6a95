"""What benchmarks and training data share: options checked, examples selected, bad rows named."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from rmexp.data.formats import matches
from rmexp.data.rows import Row, Rows
from rmexp.data.sources import hub_rows, is_there, local_path, local_rows
from rmexp.errors import ConfigError, DataError
from rmexp.schema import Example

_BAD_ROW_POLICIES = ("keep", "skip", "error")


@dataclass(frozen=True, slots=True)
class Entry:
    """An example as read. `flaw` says why it cannot even be scored as it is, None if it can."""

    example: Example
    row: Row
    flaw: str | None = None


class Selection:
    """The options `include`, `limit`, `on_bad_row` and `offset`, checked when constructed.

    `group` is the config group that messages name. Raises ConfigError for a value that cannot be
    meant.
    """

    def __init__(
        self,
        include: Sequence[str] | None,
        limit: int | None,
        on_bad_row: str,
        group: str = "bench",
        offset: int = 0,
    ):
        self.include = check_include(include, group)
        whole = isinstance(limit, int) and not isinstance(limit, bool)
        if limit is not None and not (whole and limit > 0):
            raise ConfigError(
                f"{group}.limit must be a positive whole number, not {limit!r}: give the number of "
                "prompts of each part, or null for all"
            )
        if isinstance(offset, bool) or not isinstance(offset, int) or offset < 0:
            raise ConfigError(
                f"{group}.offset must be a whole number of 0 or more, not {offset!r}: give the "
                "number of prompts of each part to pass over"
            )
        check_on_bad_row(on_bad_row, group)
        self.limit, self.on_bad_row, self.group = limit, on_bad_row, group
        self.skips = on_bad_row == "skip"
        self._offset = offset

    def select(
        self,
        entries: Iterable[Entry],
        part: Callable[[Example], str] = lambda e: e.subset,
        files: Sequence[str] = (),
        whole: bool = False,
    ) -> tuple[tuple[Example, ...], tuple[str, ...]]:
        """Return the selected examples, and a line for each bad row among them.

        A pattern of `include` that is for one of `files` selects files, any other files or subsets.
        Of a part, `offset` prompts are passed over, and the next `limit` ones are taken with all
        their examples. Bad rows do not count towards the offset, nor, if they are left out, towards
        the limit: so a limit here and the same offset there have no prompt in common. Where the
        `whole` data are one part, reading ends at the first prompt beyond the limit.

        Raises DataError for an id that occurs twice, a pattern that matches nothing, an offset that
        leaves nothing, and a bad row that may not or cannot be kept, or if all rows are bad.
        """
        places: dict[str, str] = {}
        passed: dict[str, set[str]] = {}
        taken: dict[str, set[str]] = {}
        examples, bad_rows, unfit = [], [], False
        whole = whole and self._of_files(files) == set(self.include or ())
        for entry in self._included(entries, files):
            example = entry.example
            _check_id(places, entry)
            prompts, prompt = taken.setdefault(part(example), set()), ""
            if self.limit is not None or self._offset:  # else no prompt need be known
                prompt = example.prompt_id
            before = passed.setdefault(part(example), set())
            reason = entry.row.flaw or entry.flaw or bad_row(example)
            if prompt in before or len(before) < self._offset:
                before |= set() if reason else {prompt}
                continue
            if self.limit is not None and len(prompts) >= self.limit and prompt not in prompts:
                if whole and not reason:
                    break
                continue
            if reason:
                bad_rows.append(f"{example.id}: {reason} ({entry.row.place})")
                unfit = unfit or bool(entry.row.flaw or entry.flaw)
                if self.on_bad_row == "skip":
                    continue
                if self.on_bad_row == "keep" and unfit:
                    raise DataError(
                        f"bad row {bad_rows[-1]} cannot be scored as it is: leave such rows out "
                        f"with {self.group}.on_bad_row=skip"
                    )
            prompts.add(prompt)
            examples.append(example)
        if bad_rows and self.on_bad_row == "error":
            keep = "" if unfit else ", or score them as they are with keep"
            raise DataError(
                f"{len(bad_rows)} bad rows, the first of them {bad_rows[0]}: correct them, or "
                f"leave them out with {self.group}.on_bad_row=skip{keep}"
            )
        if bad_rows and not examples:
            raise DataError(
                f"all {len(bad_rows)} rows are bad, the first of them {bad_rows[0]}: correct them, "
                "or give other data"
            )
        if passed and not examples and self._offset:
            raise DataError(
                f"{self.group}.offset={self._offset} leaves nothing: each part has fewer prompts"
            )
        return tuple(examples), tuple(bad_rows)

    def _of_files(self, files: Sequence[str]) -> set[str]:
        return {p for p in self.include or () if any(matches(p, file) for file in files)}

    def _included(self, entries: Iterable[Entry], files: Sequence[str]) -> Iterator[Entry]:
        """Yield the entries that `include` selects; raise DataError for one that selects none."""
        if self.include is None:
            yield from entries
            return
        of_files = self._of_files(files)
        left = set(self.include) - of_files
        names: set[str] = set(files)
        known: dict[tuple[str, str], set[str]] = {}
        for entry in entries:
            pair = file, subset = entry.row.file, entry.example.subset
            if pair not in known:
                known[pair] = {
                    pattern
                    for pattern in self.include
                    if matches(pattern, file)
                    or (pattern not in of_files and fnmatchcase(subset, pattern))
                }
                left -= known[pair]
                names |= {name for name in pair if name}
            if known[pair]:
                yield entry
        if left:
            pattern = next(pattern for pattern in self.include if pattern in left)
            listed = ", ".join(sorted(names)[:100]) + (", ..." if len(names) > 100 else "")
            raise DataError(
                f"no file or subset matches {self.group}.include's {pattern!r}: "
                f"choose from {listed}"
            )


def bad_row(example: Example) -> str | None:
    """Return what is wrong with an example that can be scored as it is, None if nothing is."""
    reasons = []
    if any(not message.content.strip() for message in example.prompt):
        reasons.append("empty turn")
    if any(not response.strip() for response in example.responses):
        reasons.append("empty response")
    if not set(example.chosen).isdisjoint(example.rejected):
        reasons.append("identical chosen and rejected response")
    return ", ".join(reasons) or None


def check_include(include: Sequence[str] | None, group: str) -> tuple[str, ...] | None:
    """Return patterns. Raises ConfigError where they are no list of some."""
    if include is None:
        return None
    strings = isinstance(include, Sequence) and all(isinstance(x, str) for x in include)
    if isinstance(include, str) or not strings or not include:
        raise ConfigError(
            f"{group}.include must be a list of patterns, not {include!r}: write it as "
            f"{group}.include=[PATTERN,...], or null for everything"
        )
    return tuple(include)


def check_on_bad_row(on_bad_row: str, group: str) -> None:
    """Raise ConfigError for what is no way to treat bad rows."""
    if on_bad_row not in _BAD_ROW_POLICIES:
        raise ConfigError(
            f"{group}.on_bad_row must be one of {', '.join(_BAD_ROW_POLICIES)}, not {on_bad_row!r}"
        )


def check_source(path: str, split: str | None, group: str) -> None:
    """Raise DataError where data lie at no path here and no split of the hub's is named.

    Raises ConfigError for a split of what lies here, and for what is no path.
    """
    if not isinstance(path, str):
        raise ConfigError(f"{group}.path={path}: give a file, a folder or a hub data set's name")
    if split is None:
        try:
            check_path(path)
        except DataError as error:
            raise DataError(f"{error}, or set {group}.split for a hub data set") from None
    elif is_there(path):
        raise ConfigError(
            f"{group}.split is for hub data sets, and {path} is local: leave {group}.split out"
        )


def check_path(path: str | os.PathLike[str] | None) -> None:
    """Raise DataError at once if a local path is given that does not exist."""
    if path is not None:
        local_path(path)


def load_rows(
    path: str | os.PathLike[str] | None,
    name: str,
    split: str,
    revision: str | None,
    include: Sequence[str] | None = None,
) -> Rows:
    """Return the rows of the local path, of what `include` selects, or else of the hub's data."""
    if path is not None:
        return local_rows(path, include)
    source = f"{name} ({split}{f', {revision}' if revision else ''})"
    return Rows(hub_rows(name, split, revision), source)


def count_notes(
    examples: Iterable[Example],
    official: Mapping[str, int],
    part: Callable[[Example], str] = lambda e: e.subset,
) -> tuple[str, ...]:
    """Return lines on the parts whose number of examples is not the published one."""
    counts = Counter(part(example) for example in examples)
    absent = [name for name in official if name not in counts]
    lines = [f"no examples of {', '.join(absent)}"] if absent else []
    for name, count in counts.items():
        if name not in official:
            lines.append(f"{name}: {count} examples, in no published part")
        elif count != official[name]:
            lines.append(f"{name}: {count} of {official[name]} examples")
    return tuple(lines)


def _check_id(places: dict[str, str], entry: Entry) -> None:
    place = entry.row.place
    if (first := places.setdefault(entry.example.id, place)) is not place:
        raise DataError(
            f"id {entry.example.id} occurs twice, at {first} and at {place}: remove one of the "
            "two, or give it an id of its own"
        )
