"""Rewards that somebody else computed, read from a file. Imports no model library."""

import hashlib
import logging
import math
from collections.abc import Sequence
from pathlib import Path

from rmexp.errors import ConfigError, ScoreError
from rmexp.outside import parse_json
from rmexp.schema import Dataset, Example, ScoredExample, scored_example
from rmexp.scoring.score import NOTHING_COMPUTED, Scoring, Settings, check_finite, count
from rmexp.scoring.upstream import FORMATS, Format, Upstream

log = logging.getLogger(__name__)

_NAMED = 5  # how many of the missing examples an error names

_Verdicts = tuple[tuple[float, ...], ...] | None
_Line = tuple[int, tuple[float, ...], tuple[float, ...], _Verdicts]


class RecordedReward:
    """The rewards in a `scores.jsonl`: a line an example with `id`, `chosen` and `rejected`.

    A judge's lines have `verdicts` besides, a list of shares for each chosen response; see
    `ScoredExample`. `format` is another form in which a benchmark's authors published scores, one
    of `upstream.FORMATS`. Raises ConfigError where there is no such format, or `path` is no file.
    """

    def __init__(self, path: str, name: str = "recorded", format: str = "rmexp") -> None:
        if format != "rmexp" and format not in FORMATS:
            known = ", ".join(("rmexp", *FORMATS))
            raise ConfigError(f"model.format={format}: choose from {known}")
        self.path = Path(path).expanduser()
        self.name, self._format = name, FORMATS.get(format)
        if not self.path.is_file():
            raise ConfigError(f"model.path={path}: there is no such file; give a scores.jsonl")

    @property
    def description(self) -> str:
        """Say how the rewards are read."""
        return "recorded"

    def fingerprint(self) -> str:
        """Return a digest of the file."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    def fingerprints(self, cache: Path) -> dict[str, str]:
        """Return the file's digest."""
        return {"rmexp.recorded": self.fingerprint()}

    def traits(self) -> dict[str, str]:
        """Return that somebody else made the rewards."""
        return {"method": "recorded", "reader": self.description}

    def score(self, data: Dataset, settings: Settings) -> Scoring:
        """Look the examples' rewards up; raises as `lookup` does, and for too many of them NaN."""
        scored, ignored = self.lookup(data.examples)
        if ignored:
            log.info("%s: %d rows belong to no selected example", self.path, ignored)
        check_finite(scored, settings.max_non_finite)
        counts = {**NOTHING_COMPUTED, "recorded_ignored": ignored}
        return Scoring(scored, counts | count(data.examples, scored))

    def ids(self) -> frozenset[str]:
        """Return the ids of the examples in the file; raises as `lookup` does."""
        return frozenset(self._read())

    def lookup(self, examples: Sequence[Example]) -> tuple[list[ScoredExample], int]:
        """Return the examples' rewards, and how many rows of the file belong to no example.

        Raises ScoreError for a line that cannot be read, an example that is missing, one that is
        there twice, or one with other responses.
        """
        rows = self._read() if self._format is None else self._read_upstream(self._format, examples)
        missing = [example.id for example in examples if example.id not in rows]
        if missing:
            names = ", ".join(missing[:_NAMED]) + (", ..." if len(missing) > _NAMED else "")
            raise ScoreError(
                f"{self.path} lacks {len(missing)} of {len(examples)} examples ({names}): score "
                "these as well, or select others with bench.include or bench.limit"
            )
        scored = []
        for example in examples:
            line, chosen, rejected, verdicts = rows[example.id]
            expected = (len(example.chosen), len(example.rejected))
            if (len(chosen), len(rejected)) != expected:
                raise ScoreError(
                    f"{self.path}:{line}: {example.id} has {len(chosen)} chosen and "
                    f"{len(rejected)} rejected rewards, the benchmark {expected[0]} and "
                    f"{expected[1]} responses: record it again"
                )
            scored.append(scored_example(example, chosen, rejected, verdicts))
        return scored, len(rows) - len(examples)

    def _read(self) -> dict[str, _Line]:
        rows: dict[str, _Line] = {}
        # Not splitlines(): JSON strings may hold other line separators as they are.
        for number, line in enumerate(self._text().split("\n"), start=1):
            if not line.strip():
                continue
            try:
                row = parse_json(line)
                name, chosen, rejected = row["id"], row["chosen"], row["rejected"]
                rewards = tuple(map(_reward, chosen)), tuple(map(_reward, rejected))
                verdicts = _verdicts(row.get("verdicts"), *map(len, rewards))
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                raise ScoreError(
                    f'{self.path}:{number}: expected {{"id": text, "chosen": [numbers], '
                    f'"rejected": [numbers]}}, and of a judge "verdicts", found {line[:80]!r}: '
                    "mend or remove the line"
                ) from error
            if str(name) in rows:
                raise ScoreError(
                    f"{self.path}:{number}: {name} stands in line {rows[str(name)][0]} already: "
                    "keep one of the two"
                )
            rows[str(name)] = (number, *rewards, verdicts)
        return rows

    def _text(self) -> str:
        try:
            return self.path.read_text(encoding="utf-8").removeprefix("\ufeff")
        except UnicodeDecodeError as error:
            raise ScoreError(f"{self.path} is no text: give a file of scores") from error

    def _read_upstream(self, form: Format, examples: Sequence[Example]) -> dict[str, _Line]:
        """Return the examples' rewards by id, and the rows of no example by what they are."""
        by_key: dict[str, list[Example]] = {}
        for example in examples:
            if not example.upstream:
                raise ScoreError(
                    f"{self.path}: model.format={form.bench} is for bench={form.bench}, whose "
                    f"responses have places there; {example.id} has none"
                )
            by_key.setdefault(form.key(example), []).append(example)
        rows: dict[str, _Line] = {}
        try:
            found = [(row, tuple(map(_reward, row.scores))) for row in form.read(self._text())]
        except (ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
            raise ScoreError(
                f"{self.path} is not in the form {form.bench}, {form.form} ({error!r}): mend it, "
                "or give another model.format"
            ) from error
        places: dict[str, int] = {}
        for row, scores in found:
            if row.key in places:
                raise ScoreError(
                    f"{self.path}:{row.place}: {row.key[:80]!r} stands in {places[row.key]} "
                    "already: keep one of the two"
                )
            places[row.key] = row.place
            for example in by_key.get(row.key, ()):
                self._check_upstream(row, example)
                chosen, rejected = (
                    tuple(scores[at] for at in some)
                    for some in (
                        example.upstream[: len(example.chosen)],
                        example.upstream[len(example.chosen) :],
                    )
                )
                rows[example.id] = (row.place, chosen, rejected, None)
            if row.key not in by_key:
                rows[f"no example: {row.key}"] = (row.place, (), (), None)
        return rows

    def _check_upstream(self, row: Upstream, example: Example) -> None:
        """Raise ScoreError unless the scores are those of the example's responses."""
        if len(row.scores) != len(example.upstream):
            raise ScoreError(
                f"{self.path}:{row.place}: {example.id} has {len(row.scores)} scores, the "
                f"benchmark {len(example.upstream)} responses: get the file, or the data, again"
            )
        told = [row.texts[at] for at in example.upstream] if row.texts else example.responses
        if tuple(told) != example.responses:
            raise ScoreError(
                f"{self.path}:{row.place}: {example.id} has other responses than the benchmark: "
                "get the file, or the data, again"
            )


def lookup_shared(
    rewards: Sequence[RecordedReward], examples: Sequence[Example]
) -> tuple[list[list[ScoredExample]], list[str]]:
    """Return each file's rewards of the examples that are in all files, and the ids of the others.

    Such others are those that a run dropped as too long. Raises ScoreError where none is in all
    files, and as `RecordedReward.lookup` does.
    """
    known = [reward.ids() for reward in rewards]
    shared = [example for example in examples if all(example.id in ids for ids in known)]
    if examples and not shared:
        names = ", ".join(str(reward.path) for reward in rewards)
        raise ScoreError(
            f"no example has rewards in all of {names}: evaluate on the same examples, and with a "
            "larger model.max_length if they were dropped as too long"
        )
    kept = {example.id for example in shared}
    left_out = [example.id for example in examples if example.id not in kept]
    return [reward.lookup(shared)[0] for reward in rewards], left_out


def left_out_note(where: str, left_out: Sequence[str], of: int) -> str | None:
    """Return what to say of examples that are left out of a comparison, None for none."""
    if not left_out:
        return None
    names = ", ".join(left_out[:_NAMED]) + (", ..." if len(left_out) > _NAMED else "")
    return f"{where}: {len(left_out)} of {of} examples have no reward of each model: {names}"


def _verdicts(value: object, chosen: int, rejected: int) -> _Verdicts:
    """Return a matrix of shares `(chosen, rejected)`, None for none. Raises for anything else."""
    if value is None:
        return None
    if not isinstance(value, list):
        raise TypeError(value)
    matrix = tuple(tuple(map(_reward, shares)) for shares in value)
    shaped = [len(shares) for shares in matrix] == [rejected] * chosen
    if not shaped or not all(0 <= share <= 1 for shares in matrix for share in shares):
        raise ValueError(value)
    return matrix


def _reward(value: object) -> float:
    """Return a number as a float, NaN for null and for what is not finite."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(value)
    try:
        return float(value) if math.isfinite(value) else math.nan
    except OverflowError:  # a whole number beyond the largest float
        return math.nan
