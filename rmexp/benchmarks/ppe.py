"""PPE (arXiv 2410.14872): human preference, and correctness by five sets with known answers."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING

from rmexp.data.rows import Row, Rows
from rmexp.data.selection import Entry, Selection, check_path, load_rows
from rmexp.data.sources import hub_rows, local_rows
from rmexp.errors import DataError
from rmexp.metrics import Mean, Metric, WeightedMean, chance, mean, metric_name, won
from rmexp.schema import Dataset, Example, Message, ScoredExample
from rmexp.stats.bestofn import RECORDED, expected_best, shown
from rmexp.stats.intervals import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PREFERENCE_ROWS = 16_038  # ties among them
# The columns that say of which kinds a prompt is, and what metrics call them.
KINDS = {
    "is_code": "code",
    "is_refusal": "refusal",
    "hard_prompt": "hard_prompt",
    "easy_prompt": "easy_prompt",
    "if_prompt": "if_prompt",
    "math_prompt": "math_prompt",
}
TIES = ("tie", "tie (bothbad)")
SETS = {"mmlu_pro": "MMLU-Pro", "math": "MATH", "gpqa": "GPQA", "ifeval": "IFEval"}
SETS |= {"mbpp_plus": "MBPP-Plus"}
_CURVE = "best_of_k"  # the subset of a question's responses as a ranking


class PPEPreference:
    """The share of human preferences that the reward agrees with; ties among them are left out.

    A tie of rewards is wrong. A subset is `<language>/<kinds joined by +>`, and both are reported:
    `ppe/preference/language/<language>`, `ppe/preference/kind/<kind>`. A judge compares in both
    orders and wins its share of the point.

    `path` is a local file or folder in the hub's schema (default: the hub).

    Raises ConfigError or DataError at once for options that cannot work.
    """

    name = "ppe_preference"
    headline = "ppe/preference"

    def __init__(
        self,
        *,
        path: str | None = None,
        include: Sequence[str] | None = None,
        limit: int | None = None,
        on_bad_row: str = "keep",
        revision: str | None = None,
    ):
        check_path(path)
        self._path, self._revision = path, revision
        self._selection = Selection(include, limit, on_bad_row)

    def load(self) -> Dataset:
        """Read, check and select the pairs that a side won."""
        hub, include = "lmarena-ai/PPE-Human-Preference-V1", self._selection.include
        rows = load_rows(self._path, hub, "test", self._revision, include)
        ties: list[str] = []
        examples, bad_rows = self._selection.select(
            _preferences(rows, ties), part=lambda e: self.name, files=rows.files, whole=True
        )
        notes = list(rows.notes)
        if rows.whole and rows.count != PREFERENCE_ROWS:
            notes.append(f"{rows.count} of {PREFERENCE_ROWS} rows")
        if ties:
            notes.append(f"{len(ties)} rows whose label is a tie left out")
        return Dataset(examples, rows.source, bad_rows, tuple(notes), skips=self._selection.skips)

    def metrics(self, scored: Sequence[ScoredExample]) -> list[Metric]:
        """Return the accuracy over all pairs, by kind of prompt, and by language."""
        outcomes, chances = [won(row) for row in scored], [chance(row) for row in scored]
        rows: dict[str, list[int]] = {}
        languages: dict[str, list[int]] = {}
        for position, row in enumerate(scored):
            language, _, kinds = row.subset.rpartition("/")
            languages.setdefault(metric_name("ppe", "preference", "language", language), []).append(
                position
            )
            for kind in filter(None, kinds.split("+")):
                rows.setdefault(metric_name("ppe", "preference", "kind", kind), []).append(position)
        parts = [*sorted(rows.items()), *sorted(languages.items())]
        every = [(self.headline, range(len(scored)))] if scored else []
        return [mean(name, outcomes, of, chances=chances) for name, of in [*every, *parts]]

    def figures(
        self, estimates: Mapping[str, Estimate], scored: Sequence[ScoredExample]
    ) -> "dict[str, Figure]":
        """Draw the accuracy by kind of prompt, and by language where there are several prompts."""
        from rmexp.stats import figures

        parts = [
            e
            for name, e in estimates.items()
            if name.startswith(f"{self.headline}/") and (e.known or "/kind/" in name)
        ]
        return {"parts.png": figures.bars(parts)} if parts else {}


class PPECorrectness:
    """The share of pairs of a right and a wrong response that the reward puts in order.

    An example is one of a question's `sampled_conflict_pairs`, of which some occur twice and count
    twice; a tie is wrong. `ppe/correctness` is the plain mean of the five sets. A judge compares in
    both orders and wins its share of the point.

    With `curves` all responses to a question are scored, which are several times as many. Then
    `curve.csv` has how often the response is right that is ranked first among k drawn, and
    `ppe/<set>/best_of/<k>` some of it; `ppe/<set>/area` is the area under the ROC curve by which
    the rewards tell a question's right responses from its wrong ones, the mean over questions.

    `path` is a file of the hub's schema or a folder of them, whose set stands in its path (default:
    the hub). The subsets are the sets, and `<set>/best_of_k`.

    Raises ConfigError or DataError at once for options that cannot work.
    """

    name = "ppe_correctness"
    headline = "ppe/correctness"

    def __init__(
        self,
        *,
        path: str | None = None,
        include: Sequence[str] | None = None,
        limit: int | None = None,
        on_bad_row: str = "keep",
        curves: bool = False,
    ):
        check_path(path)
        self._path, self._curves = path, bool(curves)
        self._selection = Selection(include, limit, on_bad_row)

    def load(self) -> Dataset:
        """Read the questions, and select their pairs."""
        rows = self._rows()
        source = self._path or ""
        entries = (entry for row in rows for entry in self._entries(row, source))
        examples, bad_rows = self._selection.select(entries, files=rows.files)
        there = {example.subset for example in examples}
        absent = [name for name in SETS if name not in there]
        notes = (f"no examples of {', '.join(absent)}",) if absent else ()
        rated = frozenset(f"{name}/{_CURVE}" for name in SETS)
        return Dataset(examples, rows.source, bad_rows, notes, rated, self._selection.skips)

    def metrics(self, scored: Sequence[ScoredExample]) -> list[Metric]:
        """Return the accuracy of each set, their mean, and the curves."""
        outcomes = [won(row) if row.chosen else 0.0 for row in scored]
        chances = [chance(row) for row in scored]
        rows: dict[str, list[int]] = {}
        for position, row in enumerate(scored):
            rows.setdefault(row.subset, []).append(position)
        there = [name for name in SETS if name in rows]
        metrics: list[Metric] = [
            mean(f"ppe/{name}", outcomes, rows[name], chances=chances) for name in there
        ]
        if there:
            missing = tuple(name for name in SETS if name not in there)
            parts = tuple(metric.name for metric in metrics)
            metrics.append(WeightedMean(self.headline, parts, (1.0,) * len(parts), missing))
        for name in SETS:
            if of := rows.get(f"{name}/{_CURVE}"):
                metrics += _curve_metrics(name, scored, of)
        return metrics

    def figures(
        self, estimates: Mapping[str, Estimate], scored: Sequence[ScoredExample]
    ) -> "dict[str, Figure]":
        """Draw the accuracy of each set."""
        from rmexp.stats import figures

        sets = [estimates[f"ppe/{name}"] for name in SETS if f"ppe/{name}" in estimates]
        return {"sets.png": figures.bars(sets)} if sets else {}

    def _rows(self) -> Rows:
        if self._path is not None:
            return local_rows(self._path, self._selection.include)

        def of_sets() -> Iterator[Row]:
            for hub in SETS.values():
                yield from hub_rows(f"lmarena-ai/PPE-{hub}-Best-of-K", "train")

        return Rows(of_sets(), "lmarena-ai/PPE-*-Best-of-K (train)")

    def _entries(self, row: Row, source: str) -> Iterator[Entry]:
        """Return a question's pairs, and its responses as a ranking where curves are wanted."""
        name, id = _set_of(row, source), row.identifier("question_id")
        responses = _responses(row)
        scores = [_truth(row, score) for score in row.items("scores")]
        if len(scores) != len(responses):
            raise DataError(
                f"{row.place} has {len(responses)} responses and {len(scores)} scores: download "
                "the file again"
            )
        prompt = (Message("user", row.text("prompt")),)
        for number, pair in enumerate(row.items("sampled_conflict_pairs")):
            places = _places(row, pair, len(scores))
            good, bad = sorted(places, key=lambda at: -scores[at])
            flaw = "both responses of the pair are scored alike"
            yield Entry(
                Example(
                    f"{name}/{id}/{number}",
                    name,
                    prompt,
                    (responses[good],),
                    (responses[bad],),
                    upstream=(good, bad),
                ),
                row,
                flaw if scores[good] == scores[bad] else None,
            )
        if self._curves:
            recorded = tuple(map(float, scores))
            every = Example(
                f"{name}/{id}/{_CURVE}",
                f"{name}/{_CURVE}",
                prompt,
                (),
                tuple(responses),
                recorded=recorded,
                upstream=tuple(range(len(responses))),
            )
            yield Entry(every, row)


def _preferences(rows: Rows, ties: list[str]) -> Iterator[Entry]:
    """Return the rows that a side won; those that are ties are noted in `ties`."""
    for row in rows:
        id, winner = row.identifier("question_id"), row.label("winner")
        if winner in TIES:
            ties.append(id)
            continue
        if winner not in ("model_a", "model_b"):
            raise DataError(
                f"winner {winner!r} at {row.place} is unknown: it must be one of model_a, model_b, "
                f"{', '.join(TIES)}; download the file again"
            )
        kinds = [kind for column, kind in KINDS.items() if row.values.get(column) is True]
        language = row.label("language") if row.has("language") else "unknown"
        answers = row.text("response_1"), row.text("response_2")
        good = 0 if winner == "model_a" else 1
        example = Example(
            id,
            f"{language}/{'+'.join(kinds)}",
            (Message("user", row.text("prompt")),),
            (answers[good],),
            (answers[1 - good],),
            upstream=(good, 1 - good),
        )
        yield Entry(example, row)


def _set_of(row: Row, source: str) -> str:
    """Return the set that a row belongs to: the last one in its path, or its source's on the hub.

    Raises DataError where none is named.
    """
    hub = re.match(r"lmarena-ai/PPE-(.+)-Best-of-K ", row.place) if not row.file else None
    steps = [hub[1]] if hub else [*PurePath(source).parts, *PurePath(row.file).parts]
    for step in reversed(steps):
        plain = re.sub(r"[^a-z]", "", step.lower())
        found = [name for name in SETS if name.replace("_", "") in plain]
        if len(found) == 1:
            return found[0]
    raise DataError(
        f"the set of {row.place} is unknown: name the file or its folder after one of "
        f"{', '.join(f'PPE-{name}-Best-of-K' for name in SETS.values())}"
    )


def _responses(row: Row) -> list[str]:
    count = sum(re.fullmatch(r"response_\d+", name) is not None for name in row.values)
    return [row.text(f"response_{number}") for number in range(1, count + 1)]


def _truth(row: Row, score: object) -> bool:
    if score not in (0, 1):
        raise DataError(
            f"scores at {row.place} holds {score!r}, which is neither right nor wrong: download "
            "the file again"
        )
    return bool(score)


def _places(row: Row, pair: object, count: int) -> list[int]:
    whole = isinstance(pair, list) and all(type(at) is int and 0 <= at < count for at in pair)
    if not isinstance(pair, list) or not whole or len(pair) != 2 or pair[0] == pair[1]:
        raise DataError(
            f"sampled_conflict_pairs at {row.place} holds {pair!r}, which are no two of {count} "
            "responses: download the file again"
        )
    return pair


def _curve_metrics(name: str, scored: Sequence[ScoredExample], rows: Sequence[int]) -> list[Metric]:
    """Return a set's best-of-k curve, some of its points as metrics, and the area."""
    count = min(len(scored[row].recorded) for row in rows)
    best = [expected_best(scored[row].rejected, scored[row].recorded) for row in rows]

    def right(metric: str, k: int, at: int | None = None) -> Mean:
        return Mean(metric, tuple(rows), tuple(float(of[k - 1]) for of in best), at=at)

    areas = {row: area for row in rows if (area := _area(scored[row])) is not None}
    undefined = tuple(scored[row].id for row in rows if row not in areas)
    return [
        *(right(f"ppe/{name}/best_of/{k}", k) for k in shown(count)),
        *(right(f"ppe/{RECORDED}/{name}/{k}", k, at=k) for k in range(1, count + 1)),
        Mean(f"ppe/{name}/area", tuple(areas), tuple(areas.values()), undefined=undefined),
    ]


def _area(row: ScoredExample) -> float | None:
    """Return the share of (right, wrong) responses in order, equal rewards half; None for no two.

    That is the area under the ROC curve. A reward that is not finite is below all others.
    """
    rewards = [-math.inf if math.isnan(reward) else reward for reward in row.rejected]
    scores = list(zip(rewards, row.recorded, strict=True))
    right = [reward for reward, score in scores if score]
    wrong = [reward for reward, score in scores if not score]
    if not right or not wrong:
        return None
    order = sum((good > bad) + (good == bad) / 2 for good in right for bad in wrong)
    return order / (len(right) * len(wrong))
