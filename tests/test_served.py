"""Rewards that a server gives: the same as here, and each way in which they may be wrong."""

import json
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reward_server import Server, TinyModel, serving
from running import run_script, server_process
from scored_rows import score
from tiny import tiny_scalar

from rmexp import client
from rmexp.errors import ConfigError, RmexpError
from rmexp.schema import Dataset, Example, Message
from rmexp.scoring.by_parts import part_scorer
from rmexp.scoring.rewards import open_reward
from rmexp.scoring.score import Settings
from rmexp.scoring.served import open_served

EXAMPLES = [
    Example(
        str(at),
        "s",
        (Message("system", "Be brief."), Message("user", f"What is {at} + {at}?")),
        (f"It is {2 * at}.", ""),
        (f"It is {2 * at + 1}, I think.",),
    )
    for at in range(6)
]
FIRST, LAST = EXAMPLES[:3], EXAMPLES[3:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_scalar(tmp_path_factory.mktemp("served") / "tiny")


@pytest.fixture(scope="module")
def model(folder: Path) -> TinyModel:
    return TinyModel(folder)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return TinyModel(tiny_scalar(tmp_path_factory.mktemp("other") / "tiny", seed=1))


@pytest.fixture
def serve() -> Iterator[Any]:
    with ExitStack() as stack:
        yield lambda *words, **more: stack.enter_context(serving(Server(*words, **more)))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_FIRST_WAIT", 0.005)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def opened(server: Server, folder: Path, **more: Any) -> Any:
    endpoint = {"batch": 4, "concurrency": 2, "timeout": 30.0, "tries": 2}
    options = {"protocol": server.protocol, "url": server.url, "path": str(folder)}
    return open_served(**(options | more | {"endpoint": endpoint | more.get("endpoint", {})}))


def rewards(reward: Any, store: Path, examples: list[Example] = EXAMPLES) -> Any:
    return score(reward, examples, Settings(store))


def flat(scoring: Any) -> list[float]:
    return [value for row in scoring.scored for value in (*row.chosen, *row.rejected)]


def said(reward: Any, store: Path, examples: list[Example] = EXAMPLES) -> str:
    """The one line of what is wrong."""
    with pytest.raises(RmexpError) as caught:
        rewards(reward, store, examples)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def stored(store: Path) -> int:
    return sum(len(path.read_text().splitlines()) for path in store.rglob("*.jsonl"))


@pytest.mark.parametrize("protocol", ["vllm", "sglang", "openrlhf", "mlflow"])
def test_what_is_served_equals_what_is_computed_here(protocol, serve, model, folder, tmp_path):
    server = serve(model, protocol)
    served = rewards(opened(server, folder), tmp_path / "served")
    here = rewards(open_reward(path=str(folder)), tmp_path / "here")
    np.testing.assert_allclose(flat(served), flat(here), atol=1e-5, rtol=0)
    assert served.counts["unique"] == here.counts["unique"] == stored(tmp_path / "served")
    assert served.counts["tokens"] == here.counts["tokens"]
    assert served.counts["self_check_max_delta"] < 1e-5
    assert served.first_example == here.first_example
    asked = len(server.requests)
    again = rewards(opened(server, folder), tmp_path / "served")
    assert flat(again) == flat(served)
    assert again.counts["cached"] == again.counts["unique"]
    assert len(server.requests) == asked  # for what it serves alone


@pytest.mark.real
@pytest.mark.timeout(1200)
def test_what_vllm_itself_serves_equals_what_is_computed_here(tmp_path):
    if shutil.which("vllm") is None:
        pytest.skip("needs vLLM, which is no package of ours")
    # Its attention kernels take heads of some sizes only.
    sizes = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1}
    folder = tiny_scalar(tmp_path / "tiny", **sizes)
    words = ["vllm", "serve", str(folder), "--runner", "pooling", "--dtype", "float32"]
    with server_process([*words, "--enforce-eager"], tries=2000, log=tmp_path / "log") as url:
        served = rewards(open_served(path=str(folder), url=url, endpoint={}), tmp_path / "a")
    here = rewards(open_reward(path=str(folder)), tmp_path / "b")
    np.testing.assert_allclose(flat(served), flat(here), atol=2e-3, rtol=0)


def test_vllms_requests_are_raw_tokens(serve, model, folder, tmp_path):
    server = serve(model, "vllm")
    rewards(opened(server, folder), tmp_path)
    for body in server.requests:
        assert body["add_special_tokens"] is False
        assert body["use_activation"] is False
        assert body["model"] == "tiny"
    chat = open_reward(path=str(folder)).chat
    rows = chat.encode([(EXAMPLES[0].prompt, text) for text in EXAMPLES[0].responses])
    sent = [ids for body in server.requests for ids in body["input"]]
    assert all(list(row.ids) in sent for row in rows)


def test_vllm_without_classify_is_asked_by_pooling(serve, model, folder, tmp_path):
    server = serve(model, "vllm", path="/pooling")
    here = rewards(open_reward(path=str(folder)), tmp_path / "here")
    served = rewards(opened(server, folder), tmp_path / "served")
    np.testing.assert_allclose(flat(served), flat(here), atol=1e-5, rtol=0)


def test_of_a_number_a_token_the_last_counts(serve, model, folder, tmp_path):
    def each_token(content, number):
        for entry in content["data"]:
            entry["data"] = [[0.0], entry["data"]]
        return content

    server = serve(model, "vllm", path="/pooling", spoil=each_token)
    here = rewards(open_reward(path=str(folder)), tmp_path / "here")
    served = rewards(opened(server, folder), tmp_path / "served")
    np.testing.assert_allclose(flat(served), flat(here), atol=1e-5, rtol=0)


def test_a_long_conversation_is_cut_here_in_tokens_and_texts_alike(serve, model, folder, tmp_path):
    here = rewards(open_reward(path=str(folder), max_length=40), tmp_path / "here")
    assert here.counts["truncated"] > 0
    for protocol in ("vllm", "openrlhf"):
        reward = opened(serve(model, protocol), folder, max_length=40)
        served = rewards(reward, tmp_path / protocol)
        np.testing.assert_allclose(flat(served), flat(here), atol=1e-5, rtol=0)
    whole = said(opened(serve(model, "mlflow"), folder, max_length=40), tmp_path / "mlflow")
    assert "cut at model.max_length" in whole


def test_of_parts_the_scores_are_their_own_and_one_shows_that_all_are_raw(
    serve, model, folder, tmp_path
):
    """A small part may lie between 0 and 1 by chance; the server says nothing of it."""
    pairs = [(example, text) for example in EXAMPLES for text in example.responses]
    each = [Example(str(at), "", e.prompt, (text,), ()) for at, (e, text) in enumerate(pairs)]
    here = flat(rewards(open_reward(path=str(folder)), tmp_path / "here", each))
    inside = [e for e, reward in zip(each, here, strict=True) if 0 <= reward <= 1]
    assert 0 < len(inside) < len(each)
    reward = opened(serve(model, "sglang"), folder)
    told: list[int] = []
    scorer = part_scorer(reward, Settings(tmp_path / "store"), told.append)
    found = [
        scorer.score(scorer.encode(Dataset(tuple(part), "rows")), tmp_path / f"part{at}")
        for at, part in enumerate((each, inside))
    ]
    np.testing.assert_allclose(flat(found[0]), here, atol=1e-5, rtol=0)
    assert len(found[1].scored) == len(inside) == stored(tmp_path / "part1")
    assert sum(told) == sum(one.counts["tokens"] for one in found)
    assert not (tmp_path / "store").exists()


# Rewards that are not raw


@pytest.mark.parametrize("protocol", ["vllm", "sglang", "openrlhf", "mlflow"])
def test_rewards_after_a_sigmoid_are_refused_and_not_stored(
    protocol, serve, model, folder, tmp_path
):
    server = serve(model, protocol, activated=True)
    assert "lie between 0 and 1" in said(opened(server, folder), tmp_path)
    assert stored(tmp_path) == 0
    allowed = rewards(opened(server, folder, bounded=True), tmp_path)
    assert stored(tmp_path) == allowed.counts["unique"]


def test_small_rewards_of_vllm_are_raw_where_the_activation_changes_them(
    serve, model, folder, tmp_path
):
    server = serve(model, "vllm", squeeze=lambda reward: 0.1 + 0.01 * np.tanh(reward))
    assert max(flat(rewards(opened(server, folder), tmp_path))) < 0.2
    assert [body["use_activation"] for body in server.requests].count(True) == 1


# Another model


def test_name_and_version_are_in_the_stores_key(serve, model, folder, tmp_path):
    for name, version in (("a", "1"), ("b", "1"), ("b", "2")):
        server = serve(model, "vllm", name=name, version=version)
        assert rewards(opened(server, folder), tmp_path).counts["cached"] == 0
    identities = [json.loads(path.read_text()) for path in tmp_path.rglob("column.json")]
    assert sorted((each["model"], each["version"]) for each in identities) == [
        ("a", "1"),
        ("b", "1"),
        ("b", "2"),
    ]
    key = {"rmexp.weights", "rmexp.reading"}
    assert set(opened(server, folder).fingerprints(tmp_path)) == key


def test_another_model_under_the_same_name_is_noticed_by_the_store(
    serve, model, other, folder, tmp_path
):
    rewards(opened(serve(model, "vllm"), folder), tmp_path, FIRST)
    before = stored(tmp_path)
    words = said(opened(serve(other, "vllm"), folder), tmp_path)
    assert "another model is served under the same name" in words
    assert stored(tmp_path) == before


@pytest.mark.parametrize("protocol", ["vllm", "openrlhf"])
def test_a_server_that_restarts_with_another_model_is_noticed(
    protocol, serve, model, other, folder, tmp_path
):
    """Between two rounds, which have one request each here; the first round is stored."""
    server = serve(model, protocol)
    reward = opened(server, folder, endpoint={"batch": 9, "concurrency": 1})
    keep = reward.column.protocol.call

    def restarted(rows, activation=False):
        if stored(tmp_path):
            server.model = other
        return keep(rows, activation)

    reward.column.protocol.call = restarted
    assert "it serves another model than it did" in said(reward, tmp_path)
    assert stored(tmp_path) == 9
    server.model, reward.column.protocol.call = model, keep
    again = rewards(reward, tmp_path)
    assert again.counts["cached"] == 9
    here = rewards(open_reward(path=str(folder)), tmp_path / "here")
    np.testing.assert_allclose(flat(again), flat(here), atol=1e-5, rtol=0)


def test_a_server_with_another_name_after_its_restart_is_noticed(serve, model, folder, tmp_path):
    server = serve(model, "sglang")
    reward = opened(server, folder)
    reward.column.identity(tmp_path)
    server.name = "another"
    assert "the server has changed meanwhile" in said(reward, tmp_path)
    assert stored(tmp_path) == 0


# What a server may answer


def spoiled(**changes):
    def spoil(content, number):
        return content | {key: change(content[key]) for key, change in changes.items()}

    return spoil


FAULTS = {
    "too few": (spoiled(data=lambda rows: rows[:-1]), "rewards for"),
    "two outputs": (
        spoiled(data=lambda rows: [row | {"probs": [0.1, 0.9]} for row in rows]),
        "gives 2 numbers for a response",
    ),
    "added tokens": (
        spoiled(usage=lambda usage: {"prompt_tokens": usage["prompt_tokens"] + 1}),
        "where .* were sent",
    ),
    "no number": (
        spoiled(data=lambda rows: [row | {"probs": ["x"]} for row in rows]),
        "cannot be read",
    ),
    "another form": (lambda content, number: [1.0], "cannot be read"),
    "mixed up": (
        lambda content, number: spoiled(
            data=lambda rows: (
                [row | {"index": len(rows) - 1 - row["index"]} for row in rows]
                if number == 3
                else rows
            )
        )(content, number),
        "by the order",
    ),
    "NaN": (
        spoiled(data=lambda rows: [row | {"probs": [None]} for row in rows]),
        "18 rewards are not finite",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_answer_that_is_wrong_is_one_line_and_nothing_is_stored(
    fault, serve, model, folder, tmp_path
):
    spoil, words = FAULTS[fault]
    assert re.search(words, said(opened(serve(model, "vllm", spoil=spoil), folder), tmp_path))
    assert stored(tmp_path) == 0


def test_a_failure_in_the_middle_keeps_what_was_answered(serve, model, folder, tmp_path):
    fails = iter([400])

    def status(number):  # of the first request for several after the first round
        return next(fails, 200) if number > 8 and len(server.requests[-1]["input"]) > 1 else 200

    server = serve(model, "vllm", status=status)
    reward = opened(server, folder, endpoint={"concurrency": 1, "batch": 4})
    assert "status 400" in said(reward, tmp_path)
    kept = stored(tmp_path)
    assert kept > 0
    again = rewards(reward, tmp_path)
    assert again.counts["cached"] == kept
    assert stored(tmp_path) == again.counts["unique"]


def test_servers_that_are_not_there_or_not_that(serve, model, folder, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        server = Server(model, "vllm", url=url)
        assert "ConnectError" in said(opened(server, folder), tmp_path)
    wrong = opened(serve(model, "sglang"), folder, protocol="vllm")
    assert "status 404" in said(wrong, tmp_path)
    wrong = opened(serve(model, "vllm"), folder, protocol="openrlhf")
    assert "status 404" in said(wrong, tmp_path)
    short = opened(serve(model, "vllm", max_length=20), folder)
    assert "give model.max_length=20" in said(short, tmp_path)
    long = "This model's maximum context length is 20 tokens."
    full = serve(model, "sglang", status=lambda _: 400, spoil=lambda *_: {"error": long})
    assert "give a smaller model.max_length" in said(opened(full, folder), tmp_path)


def test_the_key_comes_from_the_environment_and_is_nowhere_else(
    serve, model, folder, tmp_path, monkeypatch
):
    server = serve(model, "vllm", key="a-secret-of-ours")
    monkeypatch.delenv("A_KEY", raising=False)
    assert "status 401" in said(opened(server, folder, endpoint={"key": "A_KEY"}), tmp_path)
    monkeypatch.setenv("A_KEY", "a-secret-of-ours")
    rewards(opened(server, folder, endpoint={"key": "A_KEY"}), tmp_path)
    texts = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any("a-secret" in text for text in texts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "tgi"}, r"model\.protocol=tgi: use one of vllm, sglang, openrlhf, mlflow"),
        ({"url": "localhost:8000"}, "give an address"),
        ({"bounded": "yes"}, r"model\.bounded=yes"),
        ({"max_length": 0}, r"model\.max_length=0"),
        ({"endpoint": {"batch": 0}}, r"model\.endpoint\.batch=0"),
        ({"endpoint": {"tries": 0}}, r"model\.endpoint\.tries=0"),
        ({"path": "no/such/model/folder"}, "no such folder"),
    ],
)
def test_settings_that_cannot_work(options, message, model, folder):
    with pytest.raises(ConfigError, match=message):
        opened(Server(model, "vllm", url="http://127.0.0.1:1"), folder, **options)


def test_a_tokenizer_alone_is_enough(serve, model, folder, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in folder.iterdir():
        if path.name.startswith(("tokenizer", "chat_template", "special")):
            shutil.copy(path, bare)
    served = rewards(opened(serve(model, "vllm"), bare), tmp_path / "store")
    here = rewards(open_reward(path=str(folder)), tmp_path / "here")
    np.testing.assert_allclose(flat(served), flat(here), atol=1e-5, rtol=0)


@pytest.mark.real
def test_a_command(serve, model, folder, tmp_path, project_root):
    server = serve(model, "vllm")
    words = ["eval_rm.py", "bench=toy", "bench.limit=1", f"store_dir={tmp_path / 'store'}"]
    words += [f"tracking.uri=sqlite:///{tmp_path}/m.db"]
    for name, more in {
        "served": ["model=served", f"model.url={server.url}", f"model.path={folder}"],
        "here": ["model=local", f"model.path={folder}"],
    }.items():
        done = run_script(project_root, [*words, *more, f"out_dir={tmp_path / name}"])
        assert done.code == 0, done.err
    found, expected = (
        json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("served", "here")
    )
    names = {name for name in found if name.startswith("toy/")}
    assert len(names) > 20
    assert {name: found[name] for name in names} == {name: expected[name] for name in names}
