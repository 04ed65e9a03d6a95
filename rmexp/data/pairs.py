"""Preference data in the field's forms, read as pairs of a chosen and a rejected response.

Evaluation and training read by this alone.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import combinations

from rmexp.data.rows import Row, Rows
from rmexp.data.selection import Entry, Selection
from rmexp.errors import ConfigError, DataError
from rmexp.schema import Dataset, Example, Message
from rmexp.tables import named

# HH-RLHF's turns, and those of HelpSteer, whose first one has no mark.
_TURN = re.compile(r"\n\n(Human|Assistant):")
_STEER_TURN = re.compile(r"\n<extra_id_1>(User|Assistant)\n")
_DIFFER = "prompts differ"
CONVERSATION = "messages"  # the column of whole conversations, each with its response
_ROLES = {"Human": "user", "User": "user", "Assistant": "assistant"}


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns' names: `rank` and `answer` of what is in `answers`, `rating` there or beside.

    The lowest rank is the best answer, and the highest rating.
    """

    id: str = "id"
    system: str = "system"
    prompt: str = "prompt"
    chosen: str = "chosen"
    rejected: str = "rejected"
    answers: str = "answers"
    answer: str = "answer"
    rank: str = "rank"
    response: str = "response"
    rating: str = ""

    def rating_of(self, row: Row) -> str:
        """Return the name of a row's rating: `rating`, or HelpSteer's, where none is given."""
        default = "helpfulness" if "helpfulness" in row.values else "rating"
        return self.rating or ("rating" if "rating" in row.values else default)


def check_columns(columns: Mapping[str, str] | None, group: str) -> Columns:
    """Return the columns' names; raise ConfigError for a mapping that cannot be meant."""
    known = [field.name for field in fields(Columns)]
    names = {} if columns is None else columns
    strings = isinstance(names, Mapping) and all(
        isinstance(name, str) and name for name in names.values()
    )
    if not strings or not set(names) <= set(known):
        raise ConfigError(
            f"{group}.columns={names!r}: give the data's own names of one or more of "
            f"{', '.join(known)}, as in {group}.columns={{prompt: question}}"
        )
    return Columns(**names)


def check_pairs_per_prompt(count: int | None, group: str) -> int | None:
    """Return the number; raise ConfigError for one that cannot be meant."""
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
        raise ConfigError(
            f"{group}.pairs_per_prompt={count}: give a whole number of 1 or more, or null for all"
        )
    return count


class PairParser:
    """Read rows as pairs, and count what gives none.

    A row's columns tell its form:
    - `chosen` and `rejected`: a pair, see `read_pair`; with `lists` also several, see `read_lists`;
    - `answers`, a list of objects with `answer` and `rank`, else `rating` (Nectar, UltraFeedback);
    - `response` and `rating`: an answer; the rows with equal prompts belong together (HelpSteer2).

    Ranked and rated answers give the pairs of `pairs_apart`. An example's id is the column `id`,
    else the row's number; of answers it is their first row's, and the pair's number. Columns that
    are not read are named.

    Raises ConfigError at once for options that cannot work.
    """

    def __init__(
        self,
        *,
        columns: Mapping[str, str] | None,
        subset_column: str | None,
        pairs_per_prompt: int | None,
        group: str,
        lists: bool = False,
    ):
        self._columns, self._subset_column = check_columns(columns, group), subset_column
        self._count = check_pairs_per_prompt(pairs_per_prompt, group)
        self._group, self._lists = group, lists

    def load(self, rows: Rows, selection: Selection) -> Dataset:
        """Read, check and select the pairs of the rows."""
        met = _Met()
        examples, bad_rows = selection.select(
            self._entries(rows, met), files=rows.files, whole=self._subset_column is None
        )
        if not examples:
            raise DataError(f"{rows.source} gives no pairs: {'; '.join(met.notes)}")
        notes = (*rows.notes, *met.notes)
        return Dataset(examples, rows.source, bad_rows, notes, skips=selection.skips)

    def _entries(self, rows: Iterable[Row], met: "_Met") -> Iterator[Entry]:
        names = self._columns
        rated: dict[tuple[str, tuple[Message, ...]], tuple[Row, str, list[tuple[float, str]]]] = {}
        for number, row in enumerate(rows):
            met.there |= dict.fromkeys(row.values)
            met.read |= {names.id, names.system, names.prompt, self._subset_column}
            id = row.identifier(names.id) if row.has(names.id) else str(number)
            if row.flaw:
                yield Entry(Example(id, self._subset(row), (), (), ()), row)
            elif names.chosen in row.values or names.rejected in row.values:
                met.read |= {names.chosen, names.rejected}
                several = self._lists and any(
                    _is_list(row, name) for name in (names.chosen, names.rejected)
                )
                yield (read_lists if several else read_pair)(row, id, self._subset(row), names)
            elif names.answers in row.values:
                met.read.add(names.answers)
                answers = [self._answer(inner, met) for inner in row.inners(names.answers)]
                yield from self._pairs(row, id, self._prompt(row), answers, met)
            elif names.response in row.values:
                rating = names.rating_of(row)
                met.read |= {names.response, rating}
                met.ratings.add(rating)
                answer = (row.number(rating), row.text(names.response))
                key = self._subset(row), self._prompt(row)
                rated.setdefault(key, (row, id, []))[2].append(answer)
            else:
                raise DataError(
                    f"column {names.chosen!r} is missing at {row.place}, and so are "
                    f"{names.answers!r} and {names.response!r} (columns there: {row.columns}): "
                    f"check that this is the right file, or name its columns, as in "
                    f"{self._group}.columns={{chosen: NAME, rejected: NAME}}"
                )
        for (_, prompt), (row, id, answers) in rated.items():
            yield from self._pairs(row, id, prompt, answers, met)

    def _pairs(
        self,
        row: Row,
        id: str,
        prompt: tuple[Message, ...],
        answers: Sequence[tuple[float, str]],
        met: "_Met",
    ) -> Iterator[Entry]:
        pairs, ties = pairs_apart(answers, self._count)
        met.ties += ties
        met.prompts += 1
        met.without += not pairs
        for number, (chosen, rejected) in enumerate(pairs):
            example = Example(f"{id}/{number}", self._subset(row), prompt, (chosen,), (rejected,))
            yield Entry(example, row)

    def _subset(self, row: Row) -> str:
        return "preference" if self._subset_column is None else row.identifier(self._subset_column)

    def _answer(self, row: Row, met: "_Met") -> tuple[float, str]:
        names = self._columns
        if names.rank in row.values:
            return -row.number(names.rank), row.text(names.answer)
        rating = names.rating_of(row)
        met.ratings.add(rating)
        return row.number(rating), row.text(names.answer)

    def _prompt(self, row: Row) -> tuple[Message, ...]:
        prompt, flaw = read_prompt(row, self._columns)
        if flaw:
            raise DataError(f"{flaw} at {row.place}: correct the row, or leave it out of the file")
        return prompt


class _Met:
    """What reading met: columns in their order, which of them were read, ties, prompts."""

    def __init__(self) -> None:
        self.there: dict[str, None] = {}
        self.read: set[str | None] = set()
        self.ratings: set[str] = set()
        self.ties = self.prompts = self.without = 0

    @property
    def notes(self) -> tuple[str, ...]:
        """Return a line for each kind of thing that gave no pair."""
        unread = [name for name in self.there if name not in self.read]
        notes = [f"columns that are not read: {named(unread)}"] if unread else []
        if self.ratings:
            notes.append(f"answers are rated by {', '.join(sorted(self.ratings))}")
        if self.ties:
            notes.append(f"{self.ties} pairs of equal rank or rating left out")
        if self.without:
            notes.append(f"{self.without} of {self.prompts} prompts give no pair")
        return tuple(notes)


def pairs_apart(
    answers: Sequence[tuple[float, str]], count: int | None, gap: float = 0.0
) -> tuple[list[tuple[str, str]], int]:
    """Return the pairs of a better and a worse answer, and how many are left out as ties.

    `answers` are (rating, text). With a `count` the pairs are the best with the worst, the next
    best with the next worst, and so on, up to that many; with None every two. Those whose ratings
    differ by no more than `gap` are left out.

    >>> pairs_apart([(1.0, "c"), (3.0, "a"), (1.0, "d"), (2.0, "b")], 2)
    ([('a', 'd'), ('b', 'c')], 0)
    >>> pairs_apart([(1.0, "c"), (3.0, "a"), (1.0, "d")], None)
    ([('a', 'c'), ('a', 'd')], 1)
    """
    ranked = sorted(answers, key=lambda answer: -answer[0])
    if count is None:
        candidates = list(combinations(ranked, 2))
    else:
        inwards = zip(ranked, reversed(ranked), strict=True)
        candidates = list(inwards)[: min(count, len(ranked) // 2)]
    pairs = [(best[1], worst[1]) for best, worst in candidates if best[0] - worst[0] > gap]
    return pairs, len(candidates) - len(pairs)


def read_pair(row: Row, id: str, subset: str, columns: Columns = Columns()) -> Entry:
    r"""Return a row as an example with one chosen and one rejected response.

    `chosen` and `rejected` are one of
    - a string: the response to `prompt`, which is a string or a list of messages;
    - a list of messages that ends with the response: the prompt is what comes before it, and
      `prompt`, if there is one, must agree; it is needed where nothing comes before;
    - a dialogue in one string as in HH-RLHF, with turns that begin with "\n\nHuman:" and
      "\n\nAssistant:": the same, the last turn being the response.

    `system`, if there is one, is the prompt's first turn. Two prompts that differ cannot be scored,
    nor what does not end with the assistant's turn: the entry has that flaw.
    """
    prompt, chosen, flaw = _side(row, columns.chosen)
    other, rejected, other_flaw = _side(row, columns.rejected)
    flaw = flaw or other_flaw
    if not flaw:
        flaw = None if prompt == other else _DIFFER
        prompt, other_flaw = _whole_prompt(row, prompt, columns)
        flaw = flaw or other_flaw
    return Entry(Example(id, subset, prompt, (chosen,), (rejected,)), row, flaw)


def read_response(row: Row, id: str, subset: str, columns: Columns = Columns()) -> Entry:
    """Return a row with one response as an example in which it is chosen, and nothing rejected.

    `response`, or `messages` where there is no such column, is as `chosen` in `read_pair`.
    """
    name = columns.response if columns.response in row.values else CONVERSATION
    prompt, response, flaw = _side(row, name)
    if not flaw:
        prompt, flaw = _whole_prompt(row, prompt, columns)
    return Entry(Example(id, subset, prompt, (response,), ()), row, flaw)


def read_lists(row: Row, id: str, subset: str, columns: Columns = Columns()) -> Entry:
    """Return a row whose `chosen` and `rejected` are lists of strings, or a string for one of it.

    They answer `prompt`, which is as in `read_pair`. An empty list is a flaw.
    """
    prompt, flaw = read_prompt(row, columns)
    chosen, rejected = _texts(row, columns.chosen), _texts(row, columns.rejected)
    for column, texts in ((columns.chosen, chosen), (columns.rejected, rejected)):
        if not texts:
            flaw = f"{column!r} is empty"
    return Entry(Example(id, subset, prompt, chosen, rejected), row, flaw)


def read_prompt(row: Row, columns: Columns = Columns()) -> tuple[tuple[Message, ...], str | None]:
    """Return a row's prompt, with the column `system` as its first turn, and what is wrong with it.

    It is as in `read_pair`.
    """
    return _with_system(row, _given_prompt(row, columns), columns)


def _whole_prompt(
    row: Row, prompt: tuple[Message, ...], columns: Columns
) -> tuple[tuple[Message, ...], str | None]:
    """Return what a side says of the prompt, with the row's other columns, and what is wrong."""
    flaw = None
    if row.has(columns.prompt) or not prompt:
        given = _given_prompt(row, columns)
        text = isinstance(row.values.get(columns.prompt), str)
        if prompt and given != prompt and not (text and given[0] in prompt):
            flaw = _DIFFER
        prompt = prompt or given
    prompt, system_flaw = _with_system(row, prompt, columns)
    return prompt, flaw or system_flaw


def _texts(row: Row, column: str) -> tuple[str, ...]:
    return row.texts(column) if _is_list(row, column) else (row.text(column),)


def _is_list(row: Row, column: str) -> bool:
    """Say whether a column holds a list of responses, not one of messages."""
    value = row.values.get(column)
    return isinstance(value, list) and not any(isinstance(each, dict) for each in value)


def _side(row: Row, column: str) -> tuple[tuple[Message, ...], str, str | None]:
    """Return what a column says of the prompt, possibly nothing, its response, and its flaw."""
    content = row.text_or_messages(column)
    if isinstance(content, str):
        if not content.startswith("\n\nHuman:"):
            return (), content, None
        content = _turns(_TURN, content)
    *before, last = content
    flaw = None
    if last.role != "assistant":
        flaw = f"{column!r} ends with the {last.role}'s turn, not the assistant's"
    return tuple(before), last.content, flaw


def _given_prompt(row: Row, columns: Columns) -> tuple[Message, ...]:
    r"""Return the prompt's messages.

    A string is the user's turn, unless it is a dialogue as HelpSteer writes it, or as Nectar does:
    from "\n\nHuman:" to an assistant's turn that is yet to be written.
    """
    content = row.text_or_messages(columns.prompt)
    if not isinstance(content, str):
        return content
    if content.startswith("\n\nHuman:"):
        *before, last = _turns(_TURN, content)
        if before and last.role == "assistant" and not last.content.strip():
            return tuple(before)
    elif _STEER_TURN.search(content):
        return _turns(_STEER_TURN, f"\n<extra_id_1>User\n{content}")
    return (Message("user", content),)


def _turns(mark: re.Pattern[str], dialogue: str) -> tuple[Message, ...]:
    _, *turns = mark.split(dialogue)
    return tuple(
        Message(_ROLES[speaker], content.removeprefix(" ") if mark is _TURN else content)
        for speaker, content in zip(turns[::2], turns[1::2], strict=True)
    )


def _with_system(
    row: Row, prompt: tuple[Message, ...], columns: Columns
) -> tuple[tuple[Message, ...], str | None]:
    """Return the prompt with the column `system` as its first turn, and what is wrong with that."""
    if row.values.get(columns.system) in (None, ""):
        return prompt, None
    system = Message("system", row.text(columns.system))
    if prompt[0].role != "system":
        return (system, *prompt), None
    return prompt, None if prompt[0] == system else f"{columns.system!r} and the system turn differ"
