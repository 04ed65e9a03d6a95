"""Pairs as token ids, encoded as evaluation does."""

from collections.abc import Sequence
from dataclasses import dataclass

from rmexp.errors import DataError
from rmexp.models.chat import Chat, Encoded, OnOverlength, refuse_unplaced, unplaced
from rmexp.schema import Example


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """A chosen and a rejected response, encoded; `references` are their log pi_ref, in nats."""

    id: str
    chosen: Encoded
    rejected: Encoded
    references: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class EncodedPairs:
    """The pairs, and how many of them were cut on the left or left out as too long.

    `bad_rows` names those that are left out since the log-probability of one of the two, which the
    objective needs, cannot be read.
    """

    pairs: tuple[EncodedPair, ...]
    truncated: int
    dropped: int
    bad_rows: tuple[str, ...] = ()


def encode_pairs(
    chat: Chat,
    examples: Sequence[Example],
    on_overlength: OnOverlength,
    needs_place: bool = False,
    skips: bool = False,
) -> EncodedPairs:
    """Encode pairs as evaluation does; a pair is left out whole if one of the two is.

    With `needs_place` a pair is a bad row if a response's place in the template is not known; these
    are left out if it `skips` them. Raises DataError for these otherwise, for an example that is no
    pair, and where nothing is left.
    """
    for example in examples:
        if len(example.chosen) != 1 or len(example.rejected) != 1:
            raise DataError(
                f"{example.id} has {len(example.chosen)} chosen and {len(example.rejected)} "
                "rejected responses: training needs one of each"
            )
    encoded = chat.encode(
        [(e.prompt, text) for e in examples for text in e.responses], on_overlength
    )
    pairs, bad_rows = [], []
    for example, chosen, rejected in zip(examples, encoded[::2], encoded[1::2], strict=True):
        if chosen is None or rejected is None:
            continue
        if needs_place and not (chosen.placed and rejected.placed):
            response = example.chosen[0] if rejected.placed else example.rejected[0]
            bad_rows.append(unplaced(example.id, response))
        else:
            pairs.append(EncodedPair(example.id, chosen, rejected))
    if not skips:
        refuse_unplaced(bad_rows, "data")
    dropped = len(examples) - len(pairs) - len(bad_rows)
    if examples and not pairs:
        if bad_rows:
            raise DataError(f"no pair is left: {len(bad_rows)} are bad rows ({bad_rows[0]})")
        raise DataError(
            f"all {len(examples)} pairs are longer than the limit of {chat.max_length} tokens: "
            "raise recipe.max_length or model.max_length, or cut them with "
            "on_overlength=left_truncate"
        )
    truncated = sum(pair.chosen.truncated or pair.rejected.truncated for pair in pairs)
    return EncodedPairs(tuple(pairs), truncated, dropped, tuple(bad_rows))
