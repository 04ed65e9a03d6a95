"""Judges as a user runs them: the command, its files and its run."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from scored_rows import write_lines
from test_commands import Command, command, command_in, models
from test_endpoint import KEY, Reply, Server, quick, serve
from test_pairwise import TEMPLATE

from rmexp.benchmarks.preference import Preference

__all__ = ["command", "command_in", "models", "quick", "serve"]  # fixtures of theirs

ROWS = [
    {"id": "a", "prompt": "p", "chosen": "much longer", "rejected": "short", "kind": "x"},
    {"id": "b", "prompt": "q", "chosen": "short", "rejected": "much longer", "kind": "x"},
    {"id": "c", "prompt": "r", "chosen": "same", "rejected": "size", "kind": "y"},
    {"id": "d", "prompt": "s", "chosen": "longer", "rejected": "longest of all", "kind": "y"},
]


@pytest.fixture
def run(command: Command, monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command without figures, whose drawing takes most of a small run's time."""
    monkeypatch.setattr(Preference, "figures", lambda *_: {})
    return command


@pytest.fixture
def start(serve: Callable[..., Server]) -> Callable[..., Server]:
    return serve


@pytest.fixture
def pairs(tmp_path: Path) -> list[str]:
    path = write_lines(tmp_path / "pairs.jsonl", ROWS)
    return ["bench=preference", f"bench.path={path}", "bench.subset_column=kind"]


def judged(server, *more: str) -> list[str]:
    return ["model=judge", "model.path=a-model", f"model.url={server.url}", "seed=3", *more]


def test_an_endpoint_judges_and_everything_is_kept_but_the_key(
    run, pairs, start, monkeypatch, tmp_path
):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server = start()
    done = run(*judged(server, "model.name=Longer"), *pairs)
    assert done.code == 0, done.err
    assert {path.name for path in done.folder.iterdir()} == {
        "config.yaml", "eval_rm.log", "first_example.txt", "metrics.csv", "metrics.json",
        "metrics_table.json", "run.json", "scores.jsonl", "summary.md", "verdicts.jsonl",
    }  # fmt: skip
    # The longer answer wins, the second of two that are as long: 1, 0, 1/2, 0.
    assert [row["verdicts"] for row in done.scores] == [[[1.0]], [[0.0]], [[0.5]], [[0.0]]]
    assert [row["chosen"] for row in done.scores] == [[1.0], [0.0], [0.5], [0.0]]
    found = done.metrics
    assert found["preference/accuracy"] == 1.5 / 4
    assert found["preference/subset/x"] == 1 / 2
    assert found["judge/position_consistency"] == 3 / 4
    assert found["judge/position_consistency/n"] == 4
    assert found["judge/position_consistency/low"] < found["judge/position_consistency/high"]
    assert found["judge/unparsed"] == 0
    assert found["scoring/answers"] == len(server.requests) == 8
    assert found["scoring/completion_tokens"] == 8 * 3
    assert found["scoring/tokens"] == found["scoring/prompt_tokens"] + 8 * 3
    assert len((done.folder / "verdicts.jsonl").read_text().splitlines()) == 4
    kept = done.run()
    logged = {name: v for name, v in kept.data.metrics.items() if not name.startswith("headline")}
    assert logged.items() <= found.items()
    assert {"preference/accuracy", "judge/position_consistency", "judge/unparsed"} <= set(logged)
    assert kept.data.tags["rmexp.model"] == "Longer"
    assert "both orders" in kept.data.tags["rmexp.reward"]
    summary = (done.folder / "summary.md").read_text()
    assert "8 answers of the judge, 0 of them not parsed" in summary
    assert "HTTP" not in done.err  # a line a question would drown the others
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path


def test_recorded_verdicts_give_the_same_metrics(run, pairs, start):
    first = run(*judged(start()), *pairs)
    again = run("model=recorded", f"model.path={first.folder}/scores.jsonl", *pairs, out="again")
    assert again.code == 0, again.err
    assert again.metrics["preference/accuracy"] == first.metrics["preference/accuracy"] == 1.5 / 4
    assert again.scores == first.scores


def test_a_run_that_failed_goes_on(run, pairs, start):
    server = start(lambda text, count: Reply(500) if "longest" in text else Reply())
    words = [*judged(server, "model.endpoint.tries=2", "model.endpoint.concurrency=1"), *pairs]
    failed = run(*words)
    assert failed.code == 1
    assert failed.last.endswith("run the command again, it goes on from what is answered")
    assert failed.run().info.status == "FAILED"
    assert "Traceback" not in failed.err
    asked = set(server.tries)
    server.script = lambda text, count: Reply()
    server.requests.clear()
    done = run(*words, out="again")
    assert done.code == 0, done.err
    assert not asked & {text for text in server.tries if "longest" not in text}
    assert done.metrics["scoring/cached"] == len(asked) - 1 == 6


def test_what_is_done_is_skipped_and_another_prompt_is_not(run, pairs, start):
    server = start()
    assert run(*judged(server), *pairs).code == 0
    server.requests.clear()
    assert run(*judged(server), *pairs, "skip_done=true", out="b").status["skipped"] is True
    assert not server.requests
    other = run(*judged(server, "model.prompt=brief"), *pairs, "skip_done=true", out="c")
    assert "skipped" not in other.status
    assert len(server.requests) == 8


def test_a_mistake_is_one_line(run, pairs, start):
    server = start(lambda *_: Reply(401, body="no such key"))
    done = run(*judged(server), *pairs)
    assert done.code == 1
    assert "status 401: no such key: mend model.url, model.path, the key" in done.last
    done = run(*judged(server, "model.endpoint.tries=0"), *pairs, out="again")
    assert done.code == 1
    assert done.last == "model.endpoint.tries=0: give a number above 0"


def test_a_pairwise_model_stands_in_the_same_table(run, pairs, tmp_path):
    template = tmp_path / "template.jinja"
    template.write_text(TEMPLATE)
    words = ["model=pairwise", f"model.path={run.model}", f"model.chat_template={template}"]
    done = run(*words, "model.name=pairs", *pairs)
    assert done.code == 0, done.err
    found = done.metrics
    assert found["preference/accuracy"] in (0, 0.25, 0.5, 0.75, 1)
    assert 0 <= found["judge/position_consistency"] <= 1
    assert "judge/unparsed" not in found
    assert found["scoring/comparisons"] == 4
    assert found["scoring/tokens"] > 0
    assert found["scoring/self_check_max_delta"] < 1e-4
    assert "pairwise, head, both orders" in done.out
    (line, *_) = (done.folder / "verdicts.jsonl").read_text().splitlines()
    assert set(json.loads(line)) >= {"verdict", "chosen_first", "rejected_first"}
    again = run(*words, "model.name=pairs", *pairs, out="again")
    assert again.metrics["scoring/tokens"] == 0
    assert again.metrics["scoring/cached"] == 8
    assert again.scores == done.scores
