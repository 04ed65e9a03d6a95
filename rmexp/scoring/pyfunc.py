"""A reward model as MLflow loads and serves it: what the MLmodel of a trained one names."""

from collections.abc import Mapping, Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from rmexp.errors import DataError
from rmexp.models.chat import unplaced
from rmexp.schema import Message
from rmexp.scoring.computing import in_memory
from rmexp.scoring.model_reward import ModelReward, check_vocabulary
from rmexp.scoring.rewards import open_reward
from rmexp.scoring.score import turns

if TYPE_CHECKING:
    from rmexp.models.forward import Forward

PROMPT, RESPONSE = "prompt", "response"  # the columns that it reads


class Served:
    """A reward model whose weights are in memory; nothing that it scores is stored."""

    def __init__(self, reward: ModelReward) -> None:
        self.reward = reward
        pad = reward.chat.tokenizer.pad_token_id
        self._forwards: list[Forward] = [column.load(pad) for column in reward.columns]
        self._one_at_a_time = Lock()  # a server answers in several threads

    def predict(
        self, rows: Mapping[str, Sequence[Any]], params: Mapping[str, Any] | None = None
    ) -> list[float]:
        """Return the reward of each row's response to its prompt, in order.

        `rows` has the columns `prompt`, a text or a list of messages with `role` and `content`, and
        `response`, a text; responses to one prompt are read together. Raises DataError for what is
        none of these, or whose log-probability cannot be read.
        """
        conversations = [
            (_prompt(prompt, at), _text(response, at))
            for at, (prompt, response) in enumerate(zip(rows[PROMPT], rows[RESPONSE], strict=True))
        ]
        with self._one_at_a_time:
            encoded = [
                row for row in self.reward.chat.encode(conversations, "left_truncate") if row
            ]
            check_vocabulary(self.reward, encoded)
            if any(column.quantity == "logps" for column in self.reward.columns):
                for at, row in enumerate(encoded):
                    if not row.placed:
                        raise DataError(unplaced(f"row {at}", conversations[at][1]))
            columns = [np.array(in_memory(forward, encoded)) for forward in self._forwards]
            rewards: list[float] = self.reward.rewards(columns, encoded).tolist()
        return rewards


def _load_pyfunc(folder: str) -> Served:
    """Load the model folder that MLflow has fetched; MLflow calls the loader by this name."""
    return Served(open_reward(path=folder))


def _prompt(value: object, at: int) -> tuple[Message, ...]:
    if isinstance(value, str):
        return turns(value)
    rows = value.tolist() if isinstance(value, np.ndarray) else value
    if isinstance(rows, list) and all(_is_message(row) for row in rows):
        return turns(rows)
    raise DataError(
        f"row {at}: {PROMPT} is neither a text nor a list of messages with role and content"
    )


def _is_message(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(value.get(name), str) for name in ("role", "content")
    )


def _text(value: object, at: int) -> str:
    if not isinstance(value, str):
        raise DataError(f"row {at}: {RESPONSE} is no text")
    return value
