"""A chat endpoint on this machine, with the faults that real ones have."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from chat_stub import by_length, shown

from rmexp import client
from rmexp.errors import ConfigError, ScoreError
from rmexp.judges.endpoint import Endpoint
from rmexp.judges.engine import TOO_LONG, Answer, Question, Sampling
from rmexp.scoring.score import Settings

GREEDY = Sampling(0.0, 1.0, 16, None)
KEY = "sk-very-secret"


@dataclass
class Reply:
    """What the server does with one request."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: str | None = None  # None: a completion
    seconds: float = 0.0  # before it answers
    cut: bool = False  # closes the connection in the middle of the answer


class Server(ThreadingHTTPServer):
    """Speaks the protocol; `script` says what to do with the n-th request for a text."""

    daemon_threads = True

    def __init__(self, script: Callable[[str, int], Reply] = lambda text, count: Reply()) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script = script
        self.requests: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.headers: list[dict[str, str]] = []
        self.lock = threading.Lock()
        self.under_way = self.most_under_way = 0
        self.closing = threading.Event()

    def handle_error(self, *_: object) -> None:
        """Say nothing of clients that have gone."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    @property
    def tries(self) -> Counter[str]:
        return Counter(request["messages"][0]["content"] for request in self.requests)


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][0]["content"]
        server = self.server
        with server.lock:
            server.times.append(time.monotonic())
            server.requests.append(body)
            server.headers.append(dict(self.headers))
            count = server.tries[text]
            server.under_way += 1
            server.most_under_way = max(server.most_under_way, server.under_way)
        reply = server.script(text, count)
        if self.path != "/v1/chat/completions":
            reply = Reply(404, body="no such path")
        if reply.seconds:
            server.closing.wait(reply.seconds)
        with server.lock:
            server.under_way -= 1
        content = reply.body if reply.body is not None else completion(text)
        data = content.encode()
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data) + 100 * reply.cut))
        self.end_headers()
        self.wfile.write(data)
        self.close_connection = reply.cut

    def log_message(self, *_: object) -> None:
        pass


def completion(text: str, **message: object) -> str:
    responses = shown(text)
    content = by_length(responses, 0) if len(responses) == 2 else f"echo {text}"
    choice = {"message": {"role": "assistant", "content": content} | message}
    usage = {"prompt_tokens": len(text), "completion_tokens": 3}
    return json.dumps({"choices": [choice | {"finish_reason": "stop"}], "usage": usage})


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """Start servers that end with the test."""
    servers = []

    def start(script: Callable[[str, int], Reply] = lambda text, count: Reply()) -> Server:
        servers.append(Server(script))
        threading.Thread(target=servers[-1].serve_forever, args=(0.02,), daemon=True).start()
        return servers[-1]

    yield start
    for server in servers:
        server.closing.set()
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for milliseconds between tries, and through no proxy."""
    monkeypatch.setattr(client, "_FIRST_WAIT", 0.005)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def ask(
    server: Server, *texts: str, sampling: Sampling = GREEDY, url: str | None = None, **options: Any
) -> dict[str, Answer]:
    """The answers by text, each kept when it was handed over."""
    answers: dict[str, Answer] = {}
    options = {"timeout": 30.0, "tries": 3} | options
    engine = Endpoint(url or server.url, "a-model", **options)
    engine.answer(
        [Question(text, 0) for text in texts],
        sampling,
        Settings(Path("unused")),
        lambda made: answers.update({question.text: answer for question, answer in made}),
    )
    return answers


def first_fails(reply: Reply) -> Callable[[str, int], Reply]:
    """The first request for a text gets `reply`, the others an answer."""
    return lambda text, count: reply if count == 1 else Reply()


def test_what_is_asked_and_what_is_read(serve, monkeypatch):
    server = serve()
    monkeypatch.setenv("A_KEY", f"{KEY}\n")
    found = ask(server, "q 1", "ä \ud83d", key="A_KEY", extra={"min_p": 0.1})
    assert found["q 1"] == Answer("echo q 1", 3, 3, "stop")
    assert len(found) == 2
    (request,) = (each for each in server.requests if each["messages"][0]["content"] == "q 1")
    assert request == {
        "model": "a-model",
        "messages": [{"role": "user", "content": "q 1"}],
        "temperature": 0.0,
        "top_p": 1.0,
        "max_tokens": 16,
        "min_p": 0.1,
    }
    assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {KEY}"}


def test_without_a_key_none_is_sent_and_what_is_null_is_the_endpoints(serve, monkeypatch):
    monkeypatch.delenv("A_KEY", raising=False)
    server = serve()
    ask(server, "q", key="A_KEY", sampling=Sampling(None, None, None, 5), url=f"{server.url}/")
    assert "Authorization" not in server.headers[0]
    assert set(server.requests[0]) == {"model", "messages", "seed"}
    assert server.requests[0]["seed"] == 5


FAULTS = {
    "429": Reply(429, body="slow down"),
    "500": Reply(500, body="oops"),
    "503": Reply(503),
    "no json": Reply(body="<html>"),
    "half json": Reply(body='{"choices": [{"mess'),
    "no choices": Reply(body='{"choices": []}'),
    "a list": Reply(body="[1, 2]"),
    "no text": Reply(body='{"choices": [{"message": {"content": [1]}}]}'),
    "a hang": Reply(seconds=30.0),
    "cut off": Reply(cut=True),
    "bad encoding": Reply(headers={"Content-Encoding": "gzip"}, body="no gzip"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_passes_costs_one_try(fault, serve):
    server = serve(first_fails(FAULTS[fault]))
    options = {"timeout": 1.0} if fault == "a hang" else {}
    found = ask(server, "one", "two", **options)
    assert found == {text: Answer(f"echo {text}", len(text), 3, "stop") for text in ("one", "two")}
    assert server.tries == {"one": 2, "two": 2}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_stays_ends_the_run_after_the_tries(fault, serve):
    server = serve(lambda text, count: FAULTS[fault] if text == "bad" else Reply())
    kept: dict[str, Answer] = {}
    timeout = 0.3 if fault == "a hang" else 30.0
    engine = Endpoint(server.url, "m", timeout=timeout, tries=2, concurrency=1)
    texts = ["bad", "never"] if fault == "a hang" else ["good", "bad", "never"]
    questions = [Question(text, 0) for text in texts]
    with pytest.raises(ScoreError, match=r"no answer in 2 tries, the last time .*: run the comm"):
        engine.answer(
            questions,
            GREEDY,
            Settings(Path("unused")),
            lambda made: kept.update({question.text: answer for question, answer in made}),
        )
    assert list(kept) == texts[:-2]
    assert server.tries == dict.fromkeys(kept, 1) | {"bad": 2}


def test_a_server_that_sends_a_byte_now_and_then_hangs_as_well(serve):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def drip() -> None:
            connection, _ = listener.accept()
            with connection:
                for byte in b"HTTP/1.1 200 OK\r\nX-Slow: " + b"." * 200:
                    try:
                        connection.sendall(bytes([byte]))
                    except OSError:
                        return
                    time.sleep(0.05)

        threading.Thread(target=drip, daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        with pytest.raises(ScoreError, match=r"no answer within 0\.3 s"):
            ask(serve(), "q", url=url, timeout=0.3, tries=1)


def test_a_connection_that_is_refused(serve):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        with pytest.raises(ScoreError, match=r"in 2 tries, the last time ConnectError"):
            ask(serve(), "q", url=url, tries=2)


@pytest.mark.parametrize("told", ["0.4", "date"])
def test_nobody_asks_before_the_time_that_the_server_names(told, serve):
    """One of two questions is told to wait: the other waits too."""

    def script(text: str, count: int) -> Reply:
        if text != "first" or count > 1:
            return Reply()
        # A date has whole seconds.
        after = told if told == "0.4" else formatdate(time.time() + 2, usegmt=True)
        return Reply(429, {"Retry-After": after})

    server = serve(script)
    assert len(ask(server, "first", "second", concurrency=1)) == 2
    first, *later = server.times
    assert min(later) - first >= (0.4 if told == "0.4" else 0.9)


@pytest.mark.parametrize("told", ["nan", "soon", "-1", "Wed, 99 Nov 2026 00:00:00 GMT"])
def test_a_time_that_cannot_be_read_is_none(told, serve):
    server = serve(first_fails(Reply(429, {"Retry-After": told})))
    began = time.monotonic()
    assert len(ask(server, "q")) == 1
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("told", ["3600", "inf"])
def test_a_rest_that_is_too_long_ends_the_run(told, serve):
    server = serve(first_fails(Reply(429, {"Retry-After": told}, body="quota")))
    with pytest.raises(ScoreError, match=r"s of rest \(status 429: quota\): run the command"):
        ask(server, "q")


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 422])
def test_a_refusal_is_not_asked_again_and_shows_no_key(status, serve, monkeypatch):
    monkeypatch.setenv("A_KEY", KEY)
    server = serve(lambda text, count: Reply(status, body=f"wrong key {KEY}, my friend"))
    with pytest.raises(ScoreError, match=rf"status {status}: wrong key \(key\), my") as caught:
        ask(server, "q", key="A_KEY")
    assert KEY not in str(caught.value)
    assert server.tries == {"q": 1}


def test_the_key_is_in_no_log(serve, monkeypatch, caplog):
    monkeypatch.setenv("A_KEY", KEY)
    caplog.set_level("DEBUG")
    ask(serve(first_fails(Reply(500, body=f"trouble with {KEY}"))), "q", key="A_KEY")
    assert "asking again" in caplog.text
    assert KEY not in caplog.text


@pytest.mark.parametrize(
    ("status", "body", "ended"),
    [
        (400, '{"error": {"code": "context_length_exceeded"}}', TOO_LONG),
        (400, "This model's maximum context length is 4096 tokens.", TOO_LONG),
        (413, "Too many tokens", TOO_LONG),
        (400, '{"error": {"code": "content_filter"}}', "content_filter"),
    ],
)
def test_a_question_that_is_not_answered_is_no_fault(status, body, ended, serve):
    assert ask(serve(lambda *_: Reply(status, body=body)), "q") == {"q": Answer("", 0, 0, ended)}


def test_an_answer_may_be_empty_and_its_tokens_unknown(serve):
    body = '{"choices": [{"message": {"content": null}, "finish_reason": "length"}], "usage": null}'
    assert ask(serve(lambda *_: Reply(body=body)), "q") == {"q": Answer("", 0, 0, "length")}


def test_questions_are_under_way_together_up_to_the_limit(serve):
    server = serve(lambda *_: Reply(seconds=0.05))
    assert len(ask(server, *(f"q {i}" for i in range(12)), concurrency=4)) == 12
    assert server.most_under_way == 4
    assert set(server.tries.values()) == {1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "localhost:8000"}, "give an address"),
        ({"url": "http://"}, "give an address"),
        ({"url": "http://[::1/v1"}, "give an address"),
        ({"concurrency": 0}, r"model\.endpoint\.concurrency=0"),
        ({"timeout": -1}, r"model\.endpoint\.timeout=-1"),
        ({"tries": "many"}, r"model\.endpoint\.tries=many"),
        ({"tries": True}, r"model\.endpoint\.tries=True"),
    ],
)
def test_settings_that_cannot_work(options, message):
    with pytest.raises(ConfigError, match=message):
        Endpoint(**{"url": "http://127.0.0.1:1/v1", "model": "m"} | options)


@pytest.mark.parametrize("key", ["sk-1\nX-Evil: 1", "schlüssel"])
def test_a_key_that_cannot_be_sent(key, monkeypatch):
    monkeypatch.setenv("A_KEY", key)
    with pytest.raises(ConfigError, match="the key in A_KEY") as caught:
        Endpoint("http://127.0.0.1:1/v1", "m", key="A_KEY")
    assert key not in str(caught.value)


ONE_ASKS = """
import sys
from pathlib import Path
from rmexp.judges.endpoint import Endpoint
from rmexp.judges.llm import ChatJudge, Sampling
from rmexp.judges.prompts import open_prompts
from rmexp.judges.verdicts import judge_examples
from rmexp.schema import Dataset, Example, Message
from rmexp.scoring.score import Settings
from rmexp.signals import killable

engine = Endpoint(sys.argv[1], "m", concurrency=2, timeout=60.0)
prompts = open_prompts("brief", None, None)
judge = ChatJudge("m", engine, prompts, "brief", Sampling(0.0, 1.0, 9, None), 1, 0.5, False)
examples = [Example(str(i), "", (Message("user", str(i)),), ("yes",), ("n",)) for i in range(8)]
with killable():
    found = judge_examples(judge, Dataset(tuple(examples), ""), Settings(Path(sys.argv[2])))
print([row.verdicts for row in found.scored], found.counts["cached"])
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_process_ends_at_once_and_goes_on_where_it_was(number, serve, tmp_path):
    """The server answers five questions, then hangs: the process is killed while it waits."""
    answered = threading.Semaphore(5)
    server = serve(lambda *_: Reply() if answered.acquire(blocking=False) else Reply(seconds=60.0))
    command = [sys.executable, "-c", ONE_ASKS, server.url, str(tmp_path)]
    environment = {**os.environ, "NO_PROXY": "127.0.0.1"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        while len(server.requests) < 7:
            assert process.poll() is None
            time.sleep(0.02)
        while sum(path.read_bytes().count(b"\n") for path in tmp_path.rglob("*.jsonl")) < 5:
            time.sleep(0.02)
        process.send_signal(number)
        process.wait()
    assert process.returncode in (1, -number)
    stored = sum(len(path.read_text().splitlines()) for path in tmp_path.rglob("*.jsonl"))
    assert stored == 5
    server.script = lambda *_: Reply()
    server.requests.clear()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout == f"{[((1.0,),)] * 8} 5\n"
    assert len(server.requests) == 16 - 5
