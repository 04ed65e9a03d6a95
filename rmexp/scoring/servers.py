"""Servers of reward models: how each is asked what it serves, and for rewards.

vLLM and SGLang take token ids, so that what they read is known to be what is meant. OpenRLHF takes
texts and MLflow conversations, of which the server makes the tokens.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rmexp.client import Call, Client, Refused
from rmexp.errors import ConfigError, ScoreError
from rmexp.schema import Message

_TRIES = 3  # while nothing has come from the server yet


@dataclass(frozen=True, slots=True)
class Asked:
    """A response to be scored: its tokens with the prompt's, their text, and the conversation."""

    ids: tuple[int, ...]
    text: str
    prompt: tuple[Message, ...]
    response: str
    truncated: bool


@dataclass(frozen=True, slots=True)
class Serving:
    """What a server says that it serves: its model and its version, as far as it tells.

    `max_length` is the number of tokens that it takes, None where it does not say.
    """

    said: Mapping[str, object]
    max_length: int | None = None


class ServerProtocol(ABC):
    """How a server is spoken to. `switch` says that its activation can be switched off."""

    name: str
    switch = False

    @abstractmethod
    def serving(self, client: Client) -> Serving:
        """Ask what is served."""

    def begin(self, client: Client, row: Asked) -> None:
        """Find out what else is needed before the first rewards; most need nothing."""
        return

    def call(self, rows: Sequence[Asked], activation: bool = False) -> Call[list[float]]:
        """Return the request for the rewards of some responses, in their order.

        With `activation` they are asked for as the server gives them by default.
        """
        path, body = self.request(rows, activation)

        def read(content: Any) -> list[float]:
            rewards = [_number(value) for value in self.rewards(content, rows)]
            if len(rewards) != len(rows):
                raise ScoreError(
                    f"the server gives {len(rewards)} rewards for {len(rows)} responses: is "
                    f"model.protocol={self.name} right?"
                )
            return rewards

        return Call(path, body, read, _too_long)

    @abstractmethod
    def request(self, rows: Sequence[Asked], activation: bool) -> tuple[str, dict[str, Any]]:
        """Return the path and the body of a request."""

    @abstractmethod
    def rewards(self, content: Any, rows: Sequence[Asked]) -> Sequence[object]:
        """Return the rewards in an answer; raise ScoreError for what they cannot be."""


class VLLM(ServerProtocol):
    """`vllm serve FOLDER --runner pooling`: /classify, or /pooling where that is not there."""

    name, switch = "vllm", True

    def __init__(self) -> None:
        self._model, self._path = "", "/classify"

    def serving(self, client: Client) -> Serving:
        """Ask for the model's name and folder, and for vLLM's version."""
        model = client.ask_one(Call("/v1/models", None, lambda said: dict(said["data"][0])), _TRIES)
        version = client.ask_one(Call("/version", None, lambda said: str(said["version"])), _TRIES)
        self._model, limit = str(model["id"]), model.get("max_model_len")
        said = {"model": self._model, "root": model.get("root"), "version": version}
        return Serving(said, None if limit is None else int(limit))

    def begin(self, client: Client, row: Asked) -> None:
        """Find out which of the two paths there is."""

        def other(refused: Refused) -> str | None:
            return "/pooling" if refused.status == 404 else None

        body = self._body([row], False)
        self._path = client.ask_one(Call("/classify", body, lambda _: "/classify", other), _TRIES)

    def request(self, rows: Sequence[Asked], activation: bool) -> tuple[str, dict[str, Any]]:
        """Ask with token ids; of one label vLLM would by default give the sigmoid."""
        return self._path, self._body(rows, activation)

    def rewards(self, content: Any, rows: Sequence[Asked]) -> Sequence[object]:
        """Return each entry's only number; of a number a token, the last."""
        _check_tokens(content["usage"]["prompt_tokens"], rows)
        key = "probs" if self._path == "/classify" else "data"
        return [_only(entry[key]) for entry in sorted(content["data"], key=lambda e: e["index"])]

    def _body(self, rows: Sequence[Asked], activation: bool) -> dict[str, Any]:
        return {
            "model": self._model,
            "input": [list(row.ids) for row in rows],
            "use_activation": activation,
            "add_special_tokens": False,
        }


class SGLang(ServerProtocol):
    """`python -m sglang.launch_server --is-embedding`: the native /classify."""

    name = "sglang"

    def serving(self, client: Client) -> Serving:
        """Ask for the model's path, its weights' version and SGLang's."""
        model = _first(client, "/model_info", "/get_model_info")
        server = _first(client, "/server_info", "/get_server_info")
        said = {"model": str(model["model_path"]), "weights": model.get("weight_version")}
        return Serving({**said, "version": server.get("version")})

    def request(self, rows: Sequence[Asked], activation: bool) -> tuple[str, dict[str, Any]]:
        """Ask with token ids."""
        return "/classify", {"input_ids": [list(row.ids) for row in rows]}

    def rewards(self, content: Any, rows: Sequence[Asked]) -> Sequence[object]:
        """Return each entry's only number."""
        read = [entry.get("meta_info", {}).get("prompt_tokens") for entry in content]
        if read and None not in read:
            _check_tokens(sum(read), rows)
        return [_only(entry["embedding"]) for entry in content]


class OpenRLHF(ServerProtocol):
    """`python -m openrlhf.cli.serve_rm`: /get_reward, with texts. It does not say what it serves.

    It puts an EOS behind each text that does not end in one.
    """

    name = "openrlhf"

    def serving(self, client: Client) -> Serving:
        """Return what is known of it: nothing."""
        return Serving({})

    def request(self, rows: Sequence[Asked], activation: bool) -> tuple[str, dict[str, Any]]:
        """Ask with texts; prompts and labels are there for servers that read them."""
        return "/get_reward", {
            "query": [row.text for row in rows],
            "prompts": [row.prompt[-1].content for row in rows],
            "labels": ["" for _ in rows],
        }

    def rewards(self, content: Any, rows: Sequence[Asked]) -> Sequence[object]:
        """Return its rewards, each alone or in a list of its own."""
        return [
            _only(reward) if isinstance(reward, list) else reward for reward in content["rewards"]
        ]


class MLflow(ServerProtocol):
    """`mlflow models serve`: /invocations, with conversations, of which it makes texts itself."""

    name = "mlflow"

    def serving(self, client: Client) -> Serving:
        """Ask for MLflow's version; it does not say what it serves."""
        return Serving({"version": client.ask_one(Call("/version", None, _version), _TRIES)})

    def request(self, rows: Sequence[Asked], activation: bool) -> tuple[str, dict[str, Any]]:
        """Ask with a table of the columns `prompt`, lists of messages, and `response`.

        Raises ConfigError for responses that were cut here: the server would read them whole.
        """
        if cut := sum(row.truncated for row in rows):
            raise ConfigError(
                f"{cut} responses are cut at model.max_length, and a server that makes the tokens "
                "itself reads them whole: raise it, or leave them out with on_overlength=drop"
            )
        data = [
            [[{"role": turn.role, "content": turn.content} for turn in row.prompt], row.response]
            for row in rows
        ]
        return "/invocations", {
            "dataframe_split": {"columns": ["prompt", "response"], "data": data}
        }

    def rewards(self, content: Any, rows: Sequence[Asked]) -> Sequence[object]:
        """Return the predictions."""
        return list(content["predictions"])


PROTOCOLS: Mapping[str, type[ServerProtocol]] = {
    kind.name: kind for kind in (VLLM, SGLang, OpenRLHF, MLflow)
}


def _first(client: Client, *paths: str) -> dict[str, Any]:
    """Return what the first path says that is there, nothing where none is."""
    for path in paths:
        call = Call(path, None, dict, lambda refused: {} if refused.status == 404 else None)
        if said := client.ask_one(call, _TRIES):
            return said
    return {}


def _version(said: object) -> str:
    return str(said)


def _too_long(refused: Refused) -> None:
    if refused.too_long:
        raise ScoreError(
            "a response is longer than the server takes "
            f"({' '.join(refused.text.split())[:200]}): give a smaller model.max_length, or serve "
            "the model with a larger one"
        )


def _check_tokens(read: object, rows: Sequence[Asked]) -> None:
    sent = sum(len(row.ids) for row in rows)
    if read != sent:
        raise ScoreError(
            f"the server read {read} tokens where {sent} were sent: it adds or cuts some; let it "
            "take token ids as they are"
        )


def _only(values: Any) -> object:
    """Return the only number of a response; of a list of such a token, the last token's."""
    if values and isinstance(values[0], list):
        values = values[-1]
    if len(values) != 1:
        raise ScoreError(
            f"the server gives {len(values)} numbers for a response, a reward model gives 1: "
            "serve one with a head of one output"
        )
    return values[0]


def _number(value: object) -> float:
    """Return a number, NaN for null; raise TypeError for anything else."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    return float(value) if math.isfinite(value) else math.nan
