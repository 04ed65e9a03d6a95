"""The values that everything passes around: m chosen against n rejected responses to one prompt."""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass

_MARK = re.compile(r"^[ \t]*(?:#{1,6} |[-*+] |\d+[.)] |\||```)|\*\*[^*\n]+\*\*", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; `role` is "system", "user" or "assistant"."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Example:
    """A comparison of responses to one prompt.

    `prompt` ends with the turn that the responses answer. `subset` is the finest part of the
    benchmark that the example belongs to. `cluster` names examples that belong together although
    their prompts differ, None where the prompt alone decides. `recorded` are the rewards that came
    with the data for the last of the responses. `upstream` are the responses' places where the data
    were published, by which files of published scores know them, empty where there are none.
    """

    id: str
    subset: str
    prompt: tuple[Message, ...]
    chosen: tuple[str, ...]
    rejected: tuple[str, ...]
    cluster: str | None = None
    recorded: tuple[float, ...] = ()
    upstream: tuple[int, ...] = ()

    @property
    def responses(self) -> tuple[str, ...]:
        """Return the chosen, then the rejected responses."""
        return self.chosen + self.rejected

    @property
    def prompt_id(self) -> str:
        """Return what is equal for examples that are selected and resampled together."""
        return prompt_key(self.prompt) if self.cluster is None else self.cluster


@dataclass(frozen=True, slots=True)
class ScoredExample:
    """An example's rewards, in the order of its responses; a reward that is not finite is NaN.

    `prompt` identifies the prompt: examples that share it are resampled together. `recorded` is the
    example's own, `lengths` are its responses' numbers of characters, and `marks` their numbers of
    Markdown's headings, items, rows of tables, fences and bold words.

    A judge that compared the responses leaves `verdicts`, `(chosen, rejected)`: the share of the
    point, 0 to 1, that each chosen response wins against each rejected one. The rewards are then
    mean shares.
    """

    id: str
    subset: str
    prompt: str
    chosen: tuple[float, ...]
    rejected: tuple[float, ...]
    recorded: tuple[float, ...] = ()
    lengths: tuple[int, ...] = ()
    verdicts: tuple[tuple[float, ...], ...] | None = None
    marks: tuple[int, ...] = ()


def scored_example(
    example: Example,
    chosen: Iterable[float],
    rejected: Iterable[float],
    verdicts: tuple[tuple[float, ...], ...] | None = None,
) -> ScoredExample:
    """Return an example's rewards with what the statistics need of the example."""
    return ScoredExample(
        example.id,
        example.subset,
        example.prompt_id,
        tuple(chosen),
        tuple(rejected),
        example.recorded,
        tuple(map(len, example.responses)),
        verdicts,
        tuple(len(_MARK.findall(response)) for response in example.responses),
    )


def prompt_key(prompt: tuple[Message, ...]) -> str:
    """Return a digest that is equal for equal prompts."""
    turns = [[message.role, message.content] for message in prompt]
    return hashlib.sha256(json.dumps(turns).encode()).hexdigest()[:16]


def fingerprint(examples: Iterable[Example]) -> str:
    """Return the SHA-256 of the examples' content, in their order."""
    digest = hashlib.sha256()
    for example in examples:
        turns = [[message.role, message.content] for message in example.prompt]
        row = [example.id, example.subset, turns, example.chosen, example.rejected]
        recorded = [example.recorded] if example.recorded else []
        digest.update(json.dumps([*row, *recorded]).encode())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Dataset:
    """What loading found: the examples, where they are from, and what is wrong with them.

    `bad_rows` names each row with an empty turn, an empty answer or an identical pair, and says
    which; `notes` are lines for the log, such as files that are missing from a part. `rated` names
    the subsets whose metrics read the rewards themselves, not only which of two is higher.
    `skips` says that bad rows are left out, those too that show only when they are tokenized.
    """

    examples: tuple[Example, ...]
    source: str
    bad_rows: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    rated: frozenset[str] = frozenset()
    skips: bool = False
