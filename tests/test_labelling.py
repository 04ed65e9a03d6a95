"""A data set scored row by row: what is written, what goes on after an end, what is kept."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from running import Done, run_script
from scored_rows import score, write_lines
from tiny import tiny_scalar

from rmexp.cli.score_rm import open_scorer
from rmexp.data.streams import RowStream
from rmexp.errors import ConfigError, DataError, ScoreError
from rmexp.labelling import on_ray
from rmexp.labelling.choosing import best_of_each, check_choice, choose, highest
from rmexp.labelling.in_run import share_of
from rmexp.labelling.output import Output
from rmexp.labelling.parts import Maker, Task
from rmexp.labelling.processes import here, on_devices
from rmexp.labelling.rows import RowReader
from rmexp.labelling.summary import count_ties, summarise
from rmexp.models.forward import Forward
from rmexp.progress import WorkProgress
from rmexp.schema import Dataset, Example, Message, scored_example
from rmexp.scoring.by_parts import PartScorer, Tokens, Told, part_scorer
from rmexp.scoring.columns import Column
from rmexp.scoring.ensemble import EnsembleReward
from rmexp.scoring.model_reward import Seen
from rmexp.scoring.recorded import RecordedReward
from rmexp.scoring.rewards import open_reward
from rmexp.scoring.score import Scoring, Settings
from rmexp.tracking.runs import MlflowClient

PAIRS = [{"prompt": f"{n}?", "chosen": "y" * (n % 7 + 1), "rejected": "no"} for n in range(25)]
RESPONSES = [{"prompt": f"{n % 4}?", "response": "y" * (n % 7 + 1)} for n in range(25)]


class Lengths:
    """A response is worth its length; one of 3 characters is worth nothing that is a number."""

    def __init__(self, nan: int = 0) -> None:
        self.nan, self.asked = nan, 0

    def load(self) -> None:
        pass

    def encode(self, data: Dataset) -> Tokens:
        return Tokens(data, {}, Seen(), len(data.examples))

    def score(self, tokens: Tokens, folder: Path) -> Scoring:
        data = tokens.data
        self.asked += len(data.examples)

        def worth(response: str) -> float:
            return float("nan") if len(response) == self.nan else float(len(response))

        scored = [
            scored_example(e, map(worth, e.chosen), map(worth, e.rejected)) for e in data.examples
        ]
        return Scoring(scored, {"responses": sum(len(e.responses) for e in data.examples)})


class Label:
    """Score a file without a run; `scorer` may be changed, `spans` are those of the last file."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.scorer, self.options = folder, Lengths(), {}

    def __call__(
        self, data: Path, size: int = 10, only: Callable[[int], bool] = lambda _: True
    ) -> Output:
        rows = RowStream(str(data))
        self.spans = rows.spans(size)
        columns = self.options.get("columns")
        on_bad_row = self.options.get("on_bad_row", "error")
        first = rows.read(replace(self.spans[0], rows=1)).rows[0]
        self.task = Task(
            {"path": str(data)},
            columns,
            on_bad_row,
            RowReader(columns, on_bad_row).kind(first),
            self.folder / "out",
            rows.form,
            self.options.get("prefix", ""),
            lambda device, told: self.scorer,
        )
        output = self.task.output()
        output.prepare({"data": rows.digest, "kind": self.task.kind, "form": rows.form})
        with WorkProgress("", len(self.spans), "rows") as progress:
            here(self.task, [span for span in self.spans if only(span.number)], progress)
        return output


@pytest.fixture
def label(tmp_path: Path) -> Label:
    return Label(tmp_path)


def lines(output: Output, folder: str = "data") -> list[dict[str, Any]]:
    found = sorted((output.folder / folder).glob("*"))
    if output.form == "parquet":
        return [row for path in found for row in pyarrow.parquet.read_table(path).to_pylist()]
    return [json.loads(line) for path in found for line in path.read_text().splitlines()]


def test_each_row_has_its_own_columns_and_its_rewards_in_the_same_order(label, tmp_path):
    rows = [{**row, "extra": {"n": n, "s": "é\ud800"}} for n, row in enumerate(PAIRS)]
    output = label(write_lines(tmp_path / "rows.jsonl", rows))
    assert [path.name for path in sorted(output.data.iterdir())] == [
        f"part-{n:05d}.jsonl" for n in range(3)
    ]
    expected = [
        {
            **row,
            "row": n,
            "reward_chosen": n % 7 + 1,
            "reward_rejected": 2,
            "margin": n % 7 - 1,
        }
        for n, row in enumerate(rows)
    ]
    assert lines(output) == expected
    assert list(lines(output)[0]) == list(expected[0])


def test_parquet_keeps_its_types(label, tmp_path):
    table = pyarrow.Table.from_pylist(RESPONSES)
    kinds = pyarrow.array([n % 2 for n in range(25)], pyarrow.int8())
    table = table.append_column("kind", kinds)
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    output = label(tmp_path / "rows.parquet")
    written = pyarrow.parquet.read_table(output.path(1))
    assert written.schema.names == ["prompt", "response", "kind", "row", "reward"]
    assert written.schema.field("kind").type == table.schema.field("kind").type
    assert written.column("row").to_pylist() == list(range(10, 20))
    assert [row["reward"] for row in lines(output)] == [n % 7 + 1 for n in range(25)]


def test_conversations_and_columns_of_other_names(label, tmp_path):
    label.options = {"columns": {"prompt": "question", "response": "answer"}, "prefix": "len_"}
    rows = [{"question": "?", "answer": "yes", "reward": 1}]
    assert lines(label(write_lines(tmp_path / "a.jsonl", rows)))[0]["len_reward"] == 3
    label.options, label.folder = {}, tmp_path / "other"
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "four"}]
    assert lines(label(write_lines(tmp_path / "b.jsonl", [{"messages": turns}])))[0]["reward"] == 4


def test_a_column_of_that_name_is_not_written_over(label, tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", [{**RESPONSES[0], "reward": 1}])
    with pytest.raises(ConfigError, match="have a column 'reward' already: give a prefix"):
        label(path)


def test_bad_rows_are_named_by_file_and_row(label, tmp_path):
    rows = [*PAIRS[:5], {"prompt": "?", "chosen": "", "rejected": "b"}, *PAIRS[5:7]]
    path = write_lines(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DataError, match=r"bad row rows\.jsonl:6: empty response: correct it"):
        label(path, 3)
    label.options["on_bad_row"] = "skip"
    output = label(path, 3)
    assert [row["row"] for row in lines(output)] == [0, 1, 2, 3, 4, 6, 7]
    part = output.part(1)
    assert (part.rows, part.written, part.left_out) == (3, 2, 1)
    assert part.bad_rows == ("rows.jsonl:6: empty response",)
    assert summarise(output, [0, 1, 2], "pairs").metrics["data/bad_rows"] == 1
    label.options["on_bad_row"], label.folder = "keep", tmp_path / "other"
    assert len(lines(label(path, 3))) == 8


def test_a_row_with_a_key_twice_cannot_be_kept(label, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(PAIRS[0]) + '\n{"prompt": "a", "prompt": "b"}\n')
    label.options["on_bad_row"] = "keep"
    with pytest.raises(DataError, match=r"rows\.jsonl:2: the key 'prompt' stands twice"):
        label(path)


def test_rows_of_two_kinds_are_refused(label, tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", [*PAIRS[:2], RESPONSES[0]])
    with pytest.raises(DataError, match=r"rows\.jsonl:3 is of responses, the first row of pairs"):
        label(path)
    path = write_lines(tmp_path / "rows.jsonl", [{"text": "a"}])
    with pytest.raises(DataError, match=r"has none of the columns 'chosen', 'response'"):
        label(path)


def test_what_is_not_finite_is_null_and_counted(label, tmp_path):
    label.scorer = Lengths(nan=3)
    output = label(write_lines(tmp_path / "rows.jsonl", PAIRS))
    found = lines(output)
    assert [row["row"] for row in found if row["margin"] is None] == [2, 9, 16, 23]
    assert all(row["reward_rejected"] == 2 for row in found)
    metrics = summarise(output, [0, 1, 2], "pairs").metrics
    assert metrics["scoring/non_finite"] == 4
    finite = [n % 7 - 1 for n in range(25) if n % 7 != 2]
    assert metrics["rewards/margin/median"] == np.median(finite)
    assert metrics["rewards/margin/q95"] == np.quantile(finite, 0.95)
    assert metrics["scoring/ties"] == sum(margin == 0 for margin in finite)
    label.scorer, label.folder = Lengths(nan=2), tmp_path / "other"
    path = write_lines(tmp_path / "many.jsonl", PAIRS * 4)
    with pytest.raises(ScoreError, match=r"none of 100 rewards is finite, from many\.jsonl:1 on"):
        label(path, 100)


def test_only_the_parts_that_are_missing_are_made(label, tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", PAIRS)
    output = label(path)
    before = {part.name: part.read_bytes() for part in output.data.iterdir()}
    label.scorer = Lengths()
    label(path)
    assert label.scorer.asked == 0
    output.path(1).unlink()
    (output.data / f".{output.path(1).name}.123").write_text("half of it")  # as SIGKILL leaves it
    label(path)
    assert label.scorer.asked == 10
    assert {part.name: part.read_bytes() for part in output.data.iterdir()} == before


def test_a_folder_holds_the_rewards_of_one_thing(label, tmp_path):
    label(write_lines(tmp_path / "rows.jsonl", PAIRS))
    with pytest.raises(ConfigError, match=r"holds the rewards of another run: there data is"):
        label(write_lines(tmp_path / "rows.jsonl", PAIRS[1:]))


def test_a_part_that_another_process_makes_is_waited_for(label, tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", PAIRS)
    output = label(path)
    for span in label.spans:
        output.path(span.number).unlink()
    with output.claims() as mine, output.claims() as others:
        assert next(mine.take(label.spans)).number == 0  # and is held
        assert [span.number for span in others.take(label.spans)] == [1, 2]
        mine.drop(label.spans[0])
        left = others.take(label.spans[:1], waits=True)
        assert next(left).number == 0  # nobody has made it


def test_a_part_is_begun_while_the_one_before_is_scored(label, tmp_path):
    begun = Event()

    class Slow(Lengths):
        def encode(self, data: Dataset) -> Tokens:
            if data.examples[0].id == "10":
                begun.set()
            return super().encode(data)

        def score(self, tokens: Tokens, folder: Path) -> Scoring:
            assert begun.wait(60)
            return super().score(tokens, folder)

    label.scorer = Slow()
    assert [row["row"] for row in lines(label(write_lines(tmp_path / "r.jsonl", PAIRS)))] == list(
        range(25)
    )


def test_an_error_does_not_wait_for_the_part_that_is_being_begun(label, tmp_path):
    caught, encoded = Event(), Event()

    class Failing(Lengths):
        def encode(self, data: Dataset) -> Tokens:
            if data.examples[0].id == "10":
                caught.wait(60)
                encoded.set()
            return super().encode(data)

        def score(self, tokens: Tokens, folder: Path) -> Scoring:
            raise ScoreError("the power is gone")

    label.scorer = Failing()
    path = write_lines(tmp_path / "rows.jsonl", PAIRS)
    with pytest.raises(ScoreError, match="the power is gone"):
        label(path)
    assert not encoded.is_set()
    caught.set()


def test_rows_are_told_by_the_share_of_the_tokens(label, tmp_path):
    """What was scored before an end is not run again, and is told at the part's end."""
    told: list[tuple[int, int]] = []
    label(write_lines(tmp_path / "rows.jsonl", PAIRS))
    task = replace(label.task, open_scorer=lambda device, tell: Telling(tell))
    shutil.rmtree(task.output().data)
    task.output().data.mkdir()
    assert len(list(Maker(task, lambda *done: told.append(done)).make_all(label.spans[:1]))) == 1
    assert told == [(2, 30), (2, 20), (1, 10), (5, 0)]


class Telling(Lengths):
    """As if half of 120 tokens had been run before."""

    def __init__(self, tell: Told) -> None:
        super().__init__()
        self.tell = tell

    def encode(self, data: Dataset) -> Tokens:
        return Tokens(data, {}, Seen(), 120)

    def score(self, tokens: Tokens, folder: Path) -> Scoring:
        for ran in (30, 20, 10):
            self.tell(ran)
        return super().score(tokens, folder)


def test_what_does_not_score_part_by_part_is_refused(tmp_path):
    recorded = RecordedReward(str(write_lines(tmp_path / "scores.jsonl", [])))
    for reward in (recorded, EnsembleReward([recorded, recorded])):
        with pytest.raises(ConfigError, match=r"\) does not score data part by part"):
            part_scorer(reward, Settings(tmp_path), lambda tokens: None)


def test_shards_join_without_overlap(label, tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", PAIRS)
    spans = RowStream(str(path)).spans(3)
    shares = [share_of(spans, f"{n}/4") for n in range(1, 5)]
    assert sorted(span.number for share in shares for span in share) == list(range(9))
    assert [span.number for span in shares[2]] == [2, 6]
    assert share_of(spans, None) == spans
    assert share_of(spans, "16/16") == ()
    assert summarise(Output(tmp_path, "jsonl"), [], "responses").metrics["rewards/rows"] == 0
    for wrong in ("0/4", "5/4", "3", "a/b", "3/"):
        with pytest.raises(ConfigError, match=f"shard={wrong}: give which of how many"):
            share_of(spans, wrong)
    for share in shares:
        numbers = {span.number for span in share}
        output = label(path, 3, lambda number, of=numbers: number in of)
    assert [row["row"] for row in lines(output)] == list(range(25))


# What is kept


def test_the_best_of_each_prompt_and_the_highest_share_are_exact():
    best, ties = best_of_each(np.array([1, 2, 1, 1, 3]), np.array([0.5, 0.1, 0.7, 0.7, np.nan]))
    assert (best.tolist(), ties) == ([False, True, True, False, False], 1)
    every = np.ones(6, dtype=bool)
    values = np.array([1.0, 3.0, 2.0, 2.0, np.nan, 2.0])
    kept, ties = highest(values, every, 0.5)  # of 5 finite ones 3
    assert (kept.tolist(), ties) == ([False, True, True, True, False, False], 1)
    assert highest(values, every, 1)[0].sum() == 5
    assert highest(np.arange(10.0), np.ones(10, dtype=bool), 0.3)[0].sum() == 3
    assert not highest(values, ~every, 0.5)[0].any()
    assert count_ties(np.array([1, 2, 1, 1]), np.array([0.5, 0.5, 0.5, 0.1])) == 2


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_the_chosen_rows_stand_beside_the_data(form, label, tmp_path):
    path = tmp_path / f"rows.{form}"
    if form == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RESPONSES), path)
    else:
        write_lines(path, RESPONSES)
    output = label(path)
    every = lines(output)
    choice = check_choice(None, "prompt", "responses")
    counts = choose(output, [0, 1, 2], "responses", choice)
    best = {}
    for row in every:
        before = best.get(row["prompt"])
        if before is None or row["reward"] > before["reward"]:
            best[row["prompt"]] = row
    expected = sorted(best.values(), key=lambda row: row["row"])
    assert lines(output, "kept") == expected
    assert (counts["kept/rows"], counts["kept/tied_prompts"]) == (4, 0)
    choice = check_choice({"top": 0.5}, "prompt", "responses")
    assert choose(output, [0, 1, 2], "responses", choice)["kept/rows"] == 2
    choice = check_choice({"top": 0.2, "by": "reward"}, None, "responses")
    counts = choose(output, [0, 1, 2], "responses", choice)
    ranked = sorted(every, key=lambda row: -row["reward"])  # stable: the first of equal ones
    assert lines(output, "kept") == sorted(ranked[:5], key=lambda row: row["row"])
    assert counts == {
        "kept/rows": 5,
        "kept/lowest": ranked[4]["reward"],
        "kept/ties_left_out": sum(row["reward"] == ranked[4]["reward"] for row in ranked[5:]),
    }
    assert sorted(path.name for path in output.folder.iterdir()) == [".rmexp", "data", "kept"]


WRONG_CHOICES = {
    "keep={'by': 'margin'}: give keep={top: 0.5, by: margin}": ({"by": "margin"}, None, "pairs"),
    "keep.top=0: give a share above 0": ({"top": 0}, None, "pairs"),
    "keep.top=True: give a share": ({"top": True}, None, "pairs"),
    "keep.by=margin: choose from reward": ({"top": 1, "by": "margin"}, None, "responses"),
    "best_of=id: give prompt, or null": (None, "id", "responses"),
    "best_of=prompt chooses among single responses": (None, "prompt", "pairs"),
}


@pytest.mark.parametrize("said", WRONG_CHOICES)
def test_a_choice_that_cannot_be_meant(said):
    with pytest.raises(ConfigError) as caught:
        check_choice(*WRONG_CHOICES[said])
    assert str(caught.value).startswith(said)
    assert check_choice(None, None, "pairs") is None


# With a model


@pytest.fixture(scope="module")
def scalar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_scalar(tmp_path_factory.mktemp("models") / "scalar")


@pytest.fixture
def command(project_root: Path, tmp_path: Path, scalar: Path) -> Callable[..., Done]:
    def run(*words: str, out: str = "run") -> Done:
        uri = f"sqlite:///{tmp_path}/mlflow.db"
        given = [
            *("model=local", f"model.path={scalar}", f"out={tmp_path}/out", f"tracking.uri={uri}"),
            *(f"out_dir={tmp_path / out}", f"store_dir={tmp_path}/store"),
        ]
        done = run_script(project_root, ["score_rm.py", *given, *words])
        return Done(done.code, done.out, done.err, tmp_path / out, uri)

    return run


def examples(rows: Sequence[Mapping[str, str]]) -> list[Example]:
    return [
        Example(str(n), "", (Message("user", r["prompt"]),), (r["chosen"],), (r["rejected"],))
        for n, r in enumerate(rows)
    ]


def test_the_command_gives_the_rewards_of_an_evaluation_and_logs_both_sets(
    command, scalar, tmp_path
):
    path = write_lines(tmp_path / "rows.jsonl", PAIRS)
    words = [f"data.path={path}", "shard_rows=10", "keep={top: 0.5, by: margin}"]
    shards = [command(*words, f"shard={n}/2", out=f"run{n}") for n in (1, 2)]
    assert [done.code for done in shards] == [0, 0], shards[0].err
    assert "1 of 3 parts are left to other shards: the last one writes" in shards[0].err
    done = shards[1]
    output = Output(tmp_path / "out", "jsonl")
    expected = score(open_reward(path=str(scalar)), examples(PAIRS), Settings(tmp_path / "s"))
    found = lines(output)
    assert len(found) == 25
    for row, scored in zip(found, expected.scored, strict=True):
        assert row["reward_chosen"] == pytest.approx(scored.chosen[0], abs=1e-5)
        assert row["margin"] == row["reward_chosen"] - row["reward_rejected"]
    assert len(lines(output, "kept")) == done.metrics["kept/rows"] == 13
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["rewards/rows"] == done.metrics["rewards/rows"] == 25
    assert summary["rewards/margin/max"] == max(row["margin"] for row in found)
    run = done.run()
    inputs = {each.tags[0].value: each.dataset for each in run.inputs.dataset_inputs}
    assert set(inputs) == {"input", "output"}
    assert json.loads(inputs["input"].profile) == {"num_rows": 25}
    assert json.loads(inputs["output"].source) == {"uri": str(output.data)}
    assert run.data.metrics["rewards/margin/median"] == summary["rewards/margin/median"]
    assert "| margin |" in run.data.tags["mlflow.note.content"]
    assert run.data.tags["mlflow.runName"] == "scalar on rows.jsonl, n 25"
    artifacts = MlflowClient(done.uri).list_artifacts(done.status["run_id"])
    assert {"metrics.json", "summary.json"} <= {each.path for each in artifacts}
    assert not list((tmp_path / "store").glob("*/*.jsonl"))  # the parts' scores are their own
    again = command(*words, out="again")
    assert again.metrics["scoring/tokens"] == 0
    assert "3 of 3 parts are there already" in again.err
    other = command(*words, "prefix=x_", out="other")
    assert other.code == 1
    assert "holds the rewards of another run: there identity is" in other.last


def test_ray_that_cannot_be_is_one_line(command, scalar, tmp_path, monkeypatch):
    path = write_lines(tmp_path / "rows.jsonl", PAIRS)
    done = command(f"data.path={path}", "engine=ray", "devices=2")
    assert done.last == "devices is for engine=local: with engine=ray give engine.actors=N"
    monkeypatch.setattr(on_ray, "find_spec", lambda name: None)
    done = command(f"data.path={path}", "engine=ray")
    assert done.last == "engine=ray needs Ray: install the extra, pip install 'rmexp[ray]'"
    assert done.code == 1


def test_machines_that_would_read_a_model_otherwise_are_refused(scalar, tmp_path):
    model = {"_target_": "rmexp.scoring.rewards.open_reward", "path": str(scalar), "device": "cpu"}
    traits = {**open_reward(path=str(scalar), device="cpu").traits(), "dtype": "bfloat16"}
    with pytest.raises(ConfigError, match=r"dtype float32 on .*, and bfloat16 where the command"):
        open_scorer(model, traits, Settings(tmp_path), None, lambda tokens: None)


def test_batches_that_were_scored_before_an_end_are_not_run_again(label, scalar, tmp_path):
    """The weights are loaded once for all parts, and the scores of a part go when it is written."""
    settings = Settings(tmp_path / "store", batch_tokens=100)
    label.scorer = part_scorer(open_reward(path=str(scalar)), settings, lambda tokens: None)
    another = part_scorer(open_reward(path=str(scalar)), settings, lambda tokens: None)
    ran, loads = [], []
    load = Column.load

    def counting(column: Column, pad: int | None) -> Forward:
        forward = load(column, pad)
        loads.append(column)
        start = forward.start

        def run(batch: Sequence[Any], forks: Any) -> Any:
            if len(ran) == 3:
                raise ScoreError("the power is gone")
            ran.append([tuple(row.ids) for row in batch])
            return start(batch, forks)

        return replace(forward, start=run)

    path = write_lines(tmp_path / "rows.jsonl", PAIRS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Column, "load", counting)
        with pytest.raises(ScoreError, match="the power is gone"):
            label(path)
        assert len(list((tmp_path / "out").rglob("scores/00000/*/*.jsonl"))) == 1
        ran.append([])  # one more, so that it goes on
        label.scorer = another
        output = label(path)
    unique = {ids for batch in ran for ids in batch}
    assert sum(map(len, ran)) - len(unique) <= 3 * 3  # what the self-check runs alone
    assert len(loads) == 2  # once each
    assert not list((tmp_path / "out").rglob("scores/*/*"))
    shutil.copytree(output.data, tmp_path / "first")
    shutil.rmtree(output.folder)
    label(path)
    for number in range(3):
        assert (
            output.path(number).read_bytes()
            == (tmp_path / "first" / output.path(number).name).read_bytes()
        )


@pytest.mark.real
def test_two_devices_write_what_one_writes(label, scalar, tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", PAIRS)
    label.scorer = opened(str(scalar), tmp_path / "store", None, lambda tokens: None)
    output = label(path)
    one = {part.name: part.read_bytes() for part in output.data.iterdir()}
    shutil.rmtree(output.data)
    output.data.mkdir()
    task = replace(label.task, open_scorer=partial(opened, str(scalar), tmp_path / "store"))
    with WorkProgress("", 25, "rows") as progress:
        on_devices(["cpu", "cpu"], task, label.spans, progress)
    assert {part.name: part.read_bytes() for part in output.data.iterdir()} == one


def opened(path: str, store: Path, device: str | None, told: Told) -> PartScorer:
    return part_scorer(open_reward(path=path, device=device or "auto"), Settings(store), told)
