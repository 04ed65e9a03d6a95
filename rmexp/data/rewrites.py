"""Rewrites of a response that leave its meaning, made by rules. Pure."""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace

from rmexp.schema import Example

_MARKS = re.compile(
    r"^[ \t]*(?:#{1,6} +|[-*+] +|> ?)|\*\*(?=\S)|(?<=\S)\*\*|__(?=\S)|(?<=\S)__", re.M
)
_FENCE = re.compile(r"^```.*?^```[^\n]*$", re.MULTILINE | re.DOTALL)


def with_white_space(text: str) -> str:
    r"""Return the text with a line feed more between paragraphs and at its end.

    >>> with_white_space("a\n\nb")
    'a\n\n\nb\n'
    """
    return text.replace("\n\n", "\n\n\n") + "\n"


def without_markdown(text: str) -> str:
    r"""Return the text without marks of headings, items, quotes and bold; code stays as it is.

    >>> without_markdown("# A\n- **b** * c\n")
    'A\nb * c\n'
    """
    parts, last = [], 0
    for fence in _FENCE.finditer(text):
        parts += [_MARKS.sub("", text[last : fence.start()]), fence[0]]
        last = fence.end()
    return "".join([*parts, _MARKS.sub("", text[last:])])


def with_closing(text: str) -> str:
    r"""Return the text with a closing politeness.

    >>> with_closing("4.\n")
    '4.\n\nI hope this helps!'
    """
    return f"{text.rstrip()}\n\nI hope this helps!"


REWRITES: Mapping[str, Callable[[str], str]] = {
    "white_space": with_white_space,
    "markdown": without_markdown,
    "closing": with_closing,
}


def rewritten(example: Example, rewrite: Callable[[str], str]) -> Example:
    """Return the example with all its responses rewritten, those that are empty as they are."""
    chosen, rejected = (
        tuple(rewrite(text) if text.strip() else text for text in texts)
        for texts in (example.chosen, example.rejected)
    )
    return replace(example, chosen=chosen, rejected=rejected)
