"""One secret in every place that can hold one, and what is left of it: nothing."""

import logging
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from scored_rows import write_lines
from test_commands import Command, break_once, command, command_in, models  # noqa: F401

from rmexp import secrets
from rmexp.client import Client
from rmexp.errors import ConfigError
from rmexp.evaluation import evaluate
from rmexp.judges.endpoint import Endpoint
from rmexp.tracking import connection, entries
from rmexp.tracking import runs as tracking

SECRET = "hunter2/sl@sh"  # in a password; as a parameter and as a key it is another one
TOKEN = "tok-8f2c71"


@pytest.fixture(autouse=True)
def none_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "_known", set())


@pytest.fixture
def pairs(command: Command) -> list[str]:  # noqa: F811
    """The words for an evaluation of two recorded pairs."""
    row = {"prompt": "q", "chosen": "a", "rejected": "b"}
    data = write_lines(command.top / "pairs.jsonl", [row | {"id": "a"}, row | {"id": "b"}])
    scores = [{"id": name, "chosen": [1], "rejected": [0]} for name in "ab"]
    path = write_lines(command.top / "recorded.jsonl", scores)
    return ["model=recorded", f"model.path={path}", "bench=preference", f"bench.path={data}"]


def assert_nothing_left(top: Path, *texts: str) -> None:
    written = [path for path in top.rglob("*") if path.is_file()]
    assert len(written) > 2
    for secret in (SECRET, TOKEN, "hunter2"):
        assert [path for path in written if secret.encode() in path.read_bytes()] == []
        assert [path for path in top.rglob("*") if secret in path.name] == []
        assert all(secret not in text for text in texts)


@pytest.mark.parametrize("options", [(), ("-m",)])
@pytest.mark.parametrize("fate", ["ends well", "unreachable", "refused", "breaks"])
@pytest.mark.parametrize(
    "uri",
    [
        f"postgresql://me:{SECRET}@127.0.0.1:9/db",
        f"http://127.0.0.1:9/?password={TOKEN}&token={TOKEN}&api-key={TOKEN}",
    ],
)
def test_no_secret_is_left_behind(command, pairs, monkeypatch, options, fate, uri):  # noqa: F811
    connect = entries.connect

    def here(given: str, experiment: str) -> Any:
        assert given == uri
        return connect(command.uri, experiment)

    def log_dataset(*_: Any) -> None:
        """Of the address as it is."""

    if fate != "unreachable":
        monkeypatch.setattr(entries, "connect", here)
        monkeypatch.setattr(tracking.Run, "log_dataset", log_dataset)
    if fate == "unreachable" and uri.startswith("http"):
        monkeypatch.setattr(connection, "_FIRST_RETRIES", 0)
    if fate == "breaks":

        def broken(*_: Any) -> None:
            raise ZeroDivisionError(f"of {uri}: {SECRET if SECRET in uri else TOKEN}")

        monkeypatch.setattr(evaluate, "summarise", broken)
    monkeypatch.setattr(evaluate.bestofn, "points", lambda _: [])
    words = [*pairs, f"tracking.uri='{uri}'", "hydra.output_subdir=.hydra"]
    words += ["bench.limit=-1"] if fate == "refused" else []
    done = command(*words, f"+bench.api_key={TOKEN}" if fate == "refused" else "seed=1",
                   options=options)  # fmt: skip
    assert done.code == (0 if fate == "ends well" else 1), done.err
    assert "Traceback" not in done.out + done.err
    assert_nothing_left(command.top, done.out, done.err)
    if fate == "ends well" and not options:
        config = yaml.safe_load((done.folder / "config.yaml").read_text(encoding="utf-8"))
        assert SECRET not in config["tracking"]["uri"]
        assert TOKEN not in config["tracking"]["uri"]
        assert not [name for name in done.run().data.params if name.startswith("tracking.")]
        assert "127.0.0.1:9" in config["tracking"]["uri"]


def test_hydras_own_message_about_an_override(command):  # noqa: F811
    done = command(f"tracking.uri=http://me:{TOKEN}(@host", f"model.endpoint.key={TOKEN}")
    assert done.code == 1
    assert TOKEN not in done.out + done.err


def test_an_unexpected_error_is_one_line_with_its_place(command, pairs, monkeypatch):  # noqa: F811
    monkeypatch.setattr(evaluate, "summarise", break_once(evaluate.summarise))
    for options, folder in ((), "out"), (("-m",), "out/0"):
        monkeypatch.setattr(evaluate, "summarise", break_once(evaluate.summarise))
        done = command(*pairs, options=options)
        assert done.code == 1
        (line,) = [each for each in done.err.splitlines() if "ZeroDivisionError" in each]
        assert "unexpected, ZeroDivisionError at evaluate.py:" in line
        assert str(command.top / folder) in line
        assert "Traceback" not in done.out + done.err
        log = (command.top / folder / "eval_rm.log").read_text(encoding="utf-8")
        assert "Traceback" in log
        assert "in evaluate" in log
        assert done.run("0" if options else "").info.status == "FAILED"


@pytest.mark.parametrize(
    ("key", "fine"),
    [
        ("OPENAI_API_KEY", True),
        ("my_variable", True),
        ("sk-8f2c71", False),
        ("AKIAIOSFODNN7EXAMPLE", False),
        ("0123456789abcdef", False),
    ],
)
def test_a_key_is_the_name_of_a_variable(key, fine, monkeypatch):
    monkeypatch.setenv("my_variable", "x")
    if fine:
        Endpoint("http://127.0.0.1:9/v1", "m", key=key)
        assert secrets.mask({"endpoint": {"key": key}}) == {"endpoint": {"key": key}}
        assert secrets.redact_word(f"model.endpoint.key={key}") == f"model.endpoint.key={key}"
        return
    with pytest.raises(ConfigError, match=r"model\.endpoint\.key is no environment") as caught:
        Endpoint("http://127.0.0.1:9/v1", "m", key=key)
    assert key not in str(caught.value)
    assert secrets.mask({"endpoint": {"key": key}}) == {"endpoint": {"key": "***"}}
    assert secrets.redact_word(f"model.endpoint.key={key}") == "model.endpoint.key=***"


def test_an_endpoints_query_stays_at_the_addresss_end():
    client = Client("http://127.0.0.1:9/v1/?api-key=abc", "m", "the settings")
    expected = "http://127.0.0.1:9/v1/chat/completions?api-key=abc"
    assert client.address("/chat/completions") == expected
    extra = {"api_key": TOKEN, "top_k": 1}
    made = Endpoint("http://127.0.0.1:9/v1", "m", extra=extra).identity(Path())
    assert made["extra"] == {"api_key": "***", "top_k": 1}


def test_known_secrets_are_found_in_other_libraries_words():
    secrets.learn({"tracking": {"uri": "postgresql://me:pa%2Fss wörd@host/db"}})
    secrets.learn({"extra": {"api_key": TOKEN, "max_tokens": 5}})
    assert secrets.redact(f"refused: pa/ss wörd, '{TOKEN}'") == "refused: ***, '***'"
    secrets.learn({"uri": "postgresql://postgres:postgres@host/db"})  # a word like any other
    assert secrets.redact("postgresql://host/db") == "postgresql://host/db"


def test_the_terminal_leaves_tracebacks_to_the_file():
    try:
        raise ZeroDivisionError("x")
    except ZeroDivisionError as error:
        record = logging.LogRecord(
            "n", logging.ERROR, "f", 1, "text", (), (type(error), error, None)
        )
    assert "ZeroDivisionError" in secrets.RedactingFormatter().format(record)
    assert secrets.TerminalFormatter().format(record) == "text"


def test_what_nobody_reads_is_dropped_and_the_work_goes_on():
    """As in `eval_rm.py ... | head`."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream, secrets.redacted_output(stream, stream):
        print("x" * 100_000)
        print("more", flush=True)
        print("the rest", file=sys.stderr)
