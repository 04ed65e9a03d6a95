"""A reward model behind a server: its tokenizer and template are here, its weights are not."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rmexp.client import Client
from rmexp.errors import ConfigError
from rmexp.models.chat import TODAY, Chat, Encoded
from rmexp.models.checkpoints import Checkpoint, find_tokenizer
from rmexp.models.tokenizers import check_max_length, load_tokenizer, template_text, token_limit
from rmexp.schema import Dataset
from rmexp.scoring.model_reward import (
    Conversation,
    Seen,
    check_scoring,
    conversations,
    encode,
    finish,
)
from rmexp.scoring.score import Scoring, Settings
from rmexp.scoring.server_column import ServerColumn
from rmexp.scoring.servers import PROTOCOLS, Asked
from rmexp.scoring.store import ScoreStore, response_key


@dataclass(frozen=True, slots=True)
class ServedReward:
    """What a server gives to responses, in the tokens of the model's own template."""

    name: str
    chat: Chat
    folder: Checkpoint
    column: ServerColumn

    @property
    def description(self) -> str:
        """Say how the rewards are read."""
        return f"scalar head, served by {self.column.protocol.name}"

    def fingerprints(self, cache: Path) -> dict[str, str]:
        """Return digests of what the server says of itself, and of how texts are made."""
        said = json.dumps(self.column.identity(cache), sort_keys=True)
        tags = {
            "rmexp.weights": hashlib.sha256(said.encode()).hexdigest(),
            "rmexp.reading": self.folder.reading(),
        }
        return tags | ({"rmexp.date": self.chat.dated} if self.chat.dated else {})

    def traits(self) -> dict[str, str]:
        """Return the method, how it is read and the template's hash; size and dtype are unknown."""
        return {
            "method": "scalar",
            "reader": self.description,
            "template": str(self.chat.identity()["template"])[:8],
        }

    def score(self, data: Dataset, settings: Settings) -> Scoring:
        """Give every response of the examples its reward; raises as `ModelReward.score` does."""
        seen = Seen()
        encoded = encode(self.chat, conversations(data), settings.on_overlength, seen)
        seen.warn_of_length(self.chat)
        with ScoreStore(settings.store_dir, self.column.identity(settings.store_dir)) as store:
            rewards = self.fill(encoded, store, settings.seed, seen)
        scoring = finish(data, rewards, seen)
        check_scoring(scoring, settings)
        return scoring

    def fill(
        self,
        encoded: Mapping[Conversation, Encoded],
        store: ScoreStore,
        seed: int,
        seen: Seen,
        told: Callable[[int], None] | None = None,
    ) -> dict[Conversation, float]:
        """Return the responses' rewards; the server is asked for those that the store lacks."""
        keys = [response_key(row.ids) for row in encoded.values()]
        rows = dict(zip(keys, encoded.items(), strict=True))

        def make(new: list[str]) -> Mapping[str, float]:
            known = store.read()
            stored = [(self._asked(*rows[key]), known[key]) for key in rows if key in known]
            asked = {key: self._asked(*rows[key]) for key in new}
            values, work = self.column.compute(asked, stored, store.append, seed, told)
            seen.work.add(work)
            return values

        known, computed = store.fill(rows, make)
        seen.cached = len(rows) - computed
        return {one: known[key] for one, key in zip(encoded, keys, strict=True)}

    def _asked(self, conversation: Conversation, row: Encoded) -> Asked:
        prompt, response = conversation
        text = self.chat.text(prompt, response, row)
        return Asked(tuple(row.ids), text, prompt, response, row.truncated)


def open_served(
    *,
    path: str,
    url: str,
    protocol: str = "vllm",
    name: str | None = None,
    revision: str | None = None,
    max_length: int | None = None,
    chat_template: str | None = None,
    date: str = TODAY,
    bounded: bool = False,
    endpoint: Mapping[str, Any],
) -> ServedReward:
    """Open the reward model that a server at `url` serves; nobody is asked yet.

    `path` is a folder or a hub name with its tokenizer and template. `endpoint` has `batch`, the
    responses of a request, and further arguments of `Client`. Raises ConfigError for whatever
    cannot work.
    """
    if protocol not in PROTOCOLS:
        raise ConfigError(f"model.protocol={protocol}: use one of {', '.join(PROTOCOLS)}")
    if not isinstance(bounded, bool):
        raise ConfigError(f"model.bounded={bounded}: use true or false")
    check_max_length(max_length)
    connection = dict(endpoint)
    batch = connection.pop("batch", 16)
    if type(batch) is not int or batch < 1:
        raise ConfigError(f"model.endpoint.batch={batch}: give a whole number of 1 or more")
    mend = "model.url, model.protocol, the key or the settings"
    folder = find_tokenizer(path, revision)
    name = name or folder.name
    client = Client(url, name, mend, **connection)
    tokenizer = load_tokenizer(folder)
    length = max_length or token_limit(folder, tokenizer)
    chat = Chat(tokenizer, length, template_text(chat_template, tokenizer), date)
    chat.check()
    return ServedReward(
        name, chat, folder, ServerColumn(client, PROTOCOLS[protocol](), name, batch, bounded)
    )
