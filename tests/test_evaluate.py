"""What an evaluation leaves, without MLflow: the command's tests run it with."""

import csv
import json
import logging
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scored_rows import write_json, write_lines
from tiny import THINKING, tiny_policy, tiny_scalar

from rmexp.benchmarks.bon100 import BestOf100
from rmexp.benchmarks.preference import Preference
from rmexp.benchmarks.rmbench import RMBench
from rmexp.errors import DataError, ScoreError
from rmexp.evaluation.in_run import evaluate_in_run
from rmexp.evaluation.result import write_lines as write_lines_of_a_run
from rmexp.scoring.recorded import RecordedReward
from rmexp.scoring.rewards import open_reward
from rmexp.scoring.score import Settings


def run_of(sent: dict[str, Any]) -> Any:
    """Return a run that keeps what is sent to it."""
    return types.SimpleNamespace(
        log_dataset=lambda *args: None,
        set_tags=sent.update,
        log_metrics=lambda metrics, of=None: sent.update(metrics),
        log_params=lambda params: None,
        add_to_name=lambda text: None,
        use_model=lambda card, address: types.SimpleNamespace(model_id="m-1", source_run_id=None),
        log_table=lambda folder, metrics: sent.update(metrics),
        note=lambda text: sent.update(note=text),
        keep=lambda *paths: None,
    )


def run(bench: Any, tmp_path: Path, scores: list[dict[str, Any]]) -> tuple[dict[str, Any], Path]:
    sent: dict[str, Any] = {}
    reward = RecordedReward(str(write_lines(tmp_path / "scores.jsonl", scores)))
    out = tmp_path / "out"
    out.mkdir()
    metrics = evaluate_in_run(
        reward, bench, Settings(tmp_path / "store"), out, run_of(sent), lambda **_: "key"
    )
    assert metrics == json.loads((out / "metrics.json").read_text())
    return sent, out


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.fixture
def ranking(tmp_path: Path) -> BestOf100:
    rows = []
    for prompt in range(4):
        row: dict[str, Any] = {"prompt": f"{prompt}?"}
        for i in range(1, 12):
            row |= {f"response_{i}": "a" * i, f"reward_{i}": 0 if prompt == 2 else i}
        rows.append(row)
    return BestOf100(path=str(write_lines(tmp_path / "rows.jsonl", rows)))


def test_a_curve_goes_to_its_own_files(
    ranking: BestOf100, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Eleven responses whose reward is their length; the third prompt's recorded are constant."""
    scores = [
        {"id": str(i), "chosen": [], "rejected": list(range(11, 0, -1) if i == 3 else range(11))}
        for i in range(4)
    ]
    with caplog.at_level(logging.WARNING):
        sent, out = run(ranking, tmp_path, scores)
    assert sent["bon100/spearman"] == pytest.approx(1 / 3)
    assert sent["bon100/spearman/undefined"] == sent["bon100/kendall/undefined"] == 1
    line = "bon100/spearman is undefined for 1 examples: 2"
    assert line in caplog.messages
    assert f"- {line}" in sent["note"]
    curve = table(out / "curve.csv")
    assert len(curve) == 2 * 11
    last = curve[10]
    assert (last["series"], last["n"]) == ("selected", "11")
    assert float(last["value"]) == sent["bon100/best_of/11"] == pytest.approx((11 + 11 + 1) / 4)
    assert last["low"] == ""  # of four prompts
    assert "bon100/best_of/11/low" not in sent
    assert float(curve[-1]["value"]) == pytest.approx(33 / 4)
    assert not any("recorded_reward" in name for name in sent)
    assert "recorded_reward" not in (out / "metrics.csv").read_text()
    assert (out / "curve_recorded_reward.png").exists()
    scored = [json.loads(line) for line in (out / "scores.jsonl").read_text().splitlines()]
    assert [set(row) for row in scored] == [{"id", "subset", "chosen", "rejected"}] * 4


def test_agreement_that_is_undefined_everywhere_is_not_reported(
    ranking: BestOf100, tmp_path: Path
) -> None:
    scores = [{"id": str(i), "chosen": [], "rejected": [1.0] * 11} for i in range(4)]
    sent, _ = run(ranking, tmp_path, scores)
    assert "bon100/spearman" not in sent
    assert sent["bon100/spearman/undefined"] == 4
    assert "undefined for 4 examples: 0, 1, 2, 3" in sent["note"]


def test_style_comes_last(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"prompt": f"{i}?", "chosen": "yes" * (1 + i % 2), "rejected": "well", "kind": "k/l"}
        for i in range(6)
    ]
    path = str(write_lines(tmp_path / "pairs.jsonl", rows))
    scores = [{"id": str(i), "chosen": [i], "rejected": [2.5]} for i in range(6)]
    sent, out = run(Preference(path=path, subset_column="kind"), tmp_path, scores)
    assert sent["style/length_correlation/n"] == 6
    assert sent["style/accuracy_rejected_longer"] == pytest.approx(1 / 3)  # 0, 2 and 4
    assert sent["style/accuracy_rejected_shorter"] == pytest.approx(2 / 3)  # 1, 3 and 5
    names = [row["metric"] for row in table(out / "metrics.csv")]
    style = ["length_correlation", "accuracy_rejected_longer", "accuracy_rejected_shorter"]
    assert names == [
        "preference/accuracy",
        *(f"preference/null/{null}" for null in ("longer", "shorter", "random", "markdown")),
        "preference/subset/k_l",
        *(f"calibration/{name}" for name in ("brier", "log_loss", "ece")),
        *(f"style/{name}" for name in style),
    ]
    shown = capsys.readouterr().out
    assert 0 < shown.index("preference/subset") < shown.index("├") < shown.index("style/length")
    assert "Lengths are in characters." in sent["note"]
    assert not (out / "curve.csv").exists()


def test_what_a_partial_headline_lacks_is_a_tag(tmp_path: Path) -> None:
    row = {"id": 1, "prompt": "?", "chosen": ["a", "b", "c"], "rejected": ["d", "e", "f"]}
    path = write_json(tmp_path / "rm_bench/chat_filtered.json", [row]).parent
    scores = [{"id": "chat/1", "chosen": [1, 1, 1], "rejected": [0, 0, 0]}]
    sent, _ = run(RMBench(path=str(path)), tmp_path, scores)
    assert sent["rmbench/overall/partial"] == 1
    assert sent["rmexp.missing"] == "math, code, safety"


def test_a_response_without_a_place_is_scored_by_a_head_and_a_bad_row_of_a_policy(
    tmp_path: Path,
) -> None:
    rows = [
        {"id": "plain", "prompt": "One?", "chosen": "yes", "rejected": "no"},
        {"id": "moved", "prompt": "Two?", "chosen": "I see</think>yes", "rejected": "no"},
    ]
    path = str(write_lines(tmp_path / "pairs.jsonl", rows))

    def evaluated(reward: Any, on_bad_row: str) -> tuple[dict[str, float], Path]:
        out = tmp_path / f"{reward.name}-{on_bad_row}"
        out.mkdir()
        bench = Preference(path=path, on_bad_row=on_bad_row)
        arguments = (bench, Settings(tmp_path / "store"), out, run_of({}), lambda **_: "key")
        return evaluate_in_run(reward, *arguments), out

    settings = {"chat_template": THINKING, "device": "cpu"}
    head = open_reward(path=str(tiny_scalar(tmp_path / "head")), name="head", **settings)
    metrics, out = evaluated(head, "error")
    assert (metrics["data/bad_rows"], metrics["preference/accuracy/n"]) == (0, 2)
    assert not (out / "bad_rows.txt").exists()
    policy = open_reward(path=str(tiny_policy(tmp_path / "policy")), name="policy", **settings)
    metrics, out = evaluated(policy, "skip")
    assert (metrics["data/bad_rows"], metrics["preference/accuracy/n"]) == (1, 1)
    line = "moved: the chat template changes the prompt for the response 'I see</think>yes'"
    assert (out / "bad_rows.txt").read_text() == f"{line}\n"
    for on_bad_row in ("keep", "error"):
        with pytest.raises(
            DataError, match=r"^1 bad rows have no log-prob.*bench\.on_bad_row=skip"
        ):
            evaluated(policy, on_bad_row)
    write_lines(tmp_path / "pairs.jsonl", rows[1:])
    with pytest.raises(ScoreError, match=r"left to score, 1 are bad rows \(.*another template as"):
        evaluated(replace(policy, name="all bad"), "skip")


def test_half_a_surrogate_pair_in_an_answer_is_written_as_its_escape(tmp_path: Path) -> None:
    write_lines_of_a_run(tmp_path / "verdicts.jsonl", [{"said": "é \ud800"}])
    text = (tmp_path / "verdicts.jsonl").read_text(encoding="utf-8")
    assert text == '{"said": "é \\ud800"}\n'
    assert json.loads(text) == {"said": "é \ud800"}
