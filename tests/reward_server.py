"""Servers on this machine that speak the protocols of vLLM, SGLang, OpenRLHF and MLflow.

Behind each is a tiny model's real reward, so that what is served equals what is computed here.
"""

import json
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from rmexp.models.chat import Encoded
from rmexp.schema import Message
from rmexp.scoring.rewards import open_reward


class TinyModel:
    """A folder's rewards of token ids, texts and conversations."""

    def __init__(self, folder: Path) -> None:
        self.reward = open_reward(path=str(folder))
        self._forward = self.reward.columns[0].load(self.reward.chat.tokenizer.pad_token_id)
        self._lock = threading.Lock()

    def of_ids(self, ids: list[int]) -> float:
        with self._lock:
            return self._forward([Encoded(tuple(ids), len(ids), len(ids))])[0]

    def of_text(self, text: str) -> float:
        return self.of_ids(self.reward.chat.tokenizer(text)["input_ids"])

    def of_turns(self, prompt: list[dict[str, str]], response: str) -> float:
        turns = tuple(Message(turn["role"], turn["content"]) for turn in prompt)
        (row,) = self.reward.chat.encode([(turns, response)])
        return self.of_ids(list(row.ids))


@dataclass
class Server:
    """What is served, and what is wrong with it."""

    model: TinyModel
    protocol: str
    name: str = "tiny"
    version: str = "0.11.0"
    path: str = "/classify"  # vLLM's
    max_length: int | None = 1024
    key: str | None = None
    activated: bool = False  # whatever is asked for, as by an old version
    squeeze: Callable[[float], float] = lambda reward: reward  # of the model itself
    spoil: Callable[[Any, int], Any] = lambda content, _: content  # an answer, by its number
    status: Callable[[int], int] = lambda _: 200  # of the n-th request for rewards
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    url: str = ""

    def said(self, path: str) -> object:
        """What a GET gives, None for a path that is not there."""
        card = {"id": self.name, "root": f"/models/{self.name}", "created": len(self.requests)}
        known: dict[str, dict[str, object]] = {
            "vllm": {
                "/v1/models": {"data": [card | {"max_model_len": self.max_length}]},
                "/version": {"version": self.version},
            },
            "sglang": {
                "/get_model_info": {"model_path": self.name, "weight_version": "default"},
                "/get_server_info": {"version": self.version, "port": 1},
            },
            "mlflow": {"/version": self.version},
            "openrlhf": {},
        }
        return known[self.protocol].get(path)

    def answer(self, path: str, body: dict[str, Any]) -> object:
        """What a POST gives, None for a path that is not there."""
        if self.protocol == "vllm" and path == self.path:
            ids = body["input"]
            rewards = [self.number(self.model.of_ids(row), body) for row in ids]
            key = "probs" if path == "/classify" else "data"
            data = [{"index": at, key: [reward]} for at, reward in enumerate(rewards)]
            return {"data": data[::-1], "usage": {"prompt_tokens": sum(map(len, ids))}}
        if self.protocol == "sglang" and path == "/classify":
            return [
                {
                    "embedding": [self.number(self.model.of_ids(row), body)],
                    "meta_info": {"prompt_tokens": len(row)},
                }
                for row in body["input_ids"]
            ]
        if self.protocol == "openrlhf" and path == "/get_reward":
            return {"rewards": [self.number(self.model.of_text(t), body) for t in body["query"]]}
        if self.protocol == "mlflow" and path == "/invocations":
            table = body["dataframe_split"]
            assert table["columns"] == ["prompt", "response"]
            rewards = [self.number(self.model.of_turns(*row), body) for row in table["data"]]
            return {"predictions": rewards}
        return None

    def number(self, reward: float, body: dict[str, Any]) -> float:
        reward = self.squeeze(reward)
        if self.activated or body.get("use_activation"):
            return 1 / (1 + math.exp(-reward))
        return reward


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    """Serve on a free port until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            said = server.said(self.path)
            self._send(404 if said is None else 200, said)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.headers.append(dict(self.headers))
            if server.key and self.headers.get("Authorization") != f"Bearer {server.key}":
                self._send(401, {"error": "Unauthorized"})
                return
            made = server.answer(self.path, body)
            if made is None:
                self._send(404, {"detail": "Not Found"})
                return
            server.requests.append(body)
            number = len(server.requests)
            self._send(server.status(number), server.spoil(made, number))

        def _send(self, status: int, content: object) -> None:
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listener.daemon_threads = True
    server.url = f"http://127.0.0.1:{listener.server_port}"
    threading.Thread(target=listener.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield server
    finally:
        listener.shutdown()
        listener.server_close()
