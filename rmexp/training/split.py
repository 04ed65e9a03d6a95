"""Which pairs validate: a share of the prompts, the same whatever lies beside them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from rmexp.errors import ConfigError, DataError
from rmexp.schema import Example, prompt_key


@dataclass(frozen=True, slots=True)
class Split:
    """The pairs to train on and those that validate; no prompt is in both."""

    train: tuple[Example, ...]
    val: tuple[Example, ...]


def split_by_prompt(examples: Sequence[Example], share: float, seed: int) -> Split:
    """Put about `share` of the prompts, with all their pairs, aside for validation.

    A prompt's place depends on the seed and its own text only, not on the rows beside it. At least
    one prompt stays on each side unless `share` is 0. Raises ConfigError for a share that cannot
    be, DataError where there are too few prompts.
    """
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 1:
        raise ConfigError(f"recipe.val_share={share}: give a share from 0 to below 1")
    keys = {
        key: hashlib.sha256(f"{seed}/{key}".encode()).digest()
        for key in dict.fromkeys(prompt_key(example.prompt) for example in examples)
    }
    if not examples or (share and len(keys) < 2):
        raise DataError(
            f"{len(examples)} pairs of {len(keys)} prompts cannot be split for training: give more "
            "data, or leave validation out with recipe.val_share=0"
        )
    count = min(max(1, round(share * len(keys))), len(keys) - 1) if share else 0
    held_out = set(sorted(keys, key=keys.__getitem__)[:count])
    inside = [prompt_key(example.prompt) in held_out for example in examples]
    return Split(
        tuple(e for e, held in zip(examples, inside, strict=True) if not held),
        tuple(e for e, held in zip(examples, inside, strict=True) if held),
    )
