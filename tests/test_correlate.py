"""`python correlate.py` as a user runs it, and the published tables that it reproduces."""

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import yaml
from running import Done, run_script
from scipy import stats
from scored_rows import write_lines
from test_tracking import fresh_database

from rmexp.benchmarks.toy import Toy
from rmexp.correlation import correlate
from rmexp.correlation.tables import Score
from rmexp.correlation.tracked import log_policy
from rmexp.evaluation.compare import summarise
from rmexp.files import PUBLISHED
from rmexp.stats.paired import Difference, McNemar
from rmexp.tracking.runs import MlflowClient, tracked_run

NUMBERS = ("pearson", "spearman", "kendall")


class Command:
    """A script of the project's root in this process; it draws only where `figures` is set."""

    figures = False

    def __init__(self, root: Path, top: Path, uri: str) -> None:
        self.root, self.top, self.uri = root, top, uri

    def __call__(self, *overrides: str, out: str = "out", script: str = "correlate.py") -> Done:
        own = [f"out_dir={self.top / out}", f"tracking.uri={self.uri}"]
        own.append(f"store_dir={self.top / 'store'}")
        undrawn = () if self.figures else ((correlate, "draw"), (Toy, "figures"))
        done = run_script(self.root, [script, *own, *overrides], undrawn)
        return Done(*done, self.top / out, self.uri)


@pytest.fixture(scope="session")
def correlate_in(
    project_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Path], Command]:
    return lambda top: Command(
        project_root, top, fresh_database(tmp_path_factory, top / "mlflow.db")
    )


@pytest.fixture
def command(correlate_in: Callable[[Path], Command], tmp_path: Path) -> Command:
    return correlate_in(tmp_path)


@pytest.fixture(scope="session")
def good(correlate_in: Callable[[Path], Command], tmp_path_factory: pytest.TempPathFactory) -> Done:
    """The command alone, which no test may write to."""
    command = correlate_in(tmp_path_factory.mktemp("correlated"))
    command.figures = True
    done = command()
    assert done.code == 0, done.err
    return done


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


# ---------------------------------------------------------------- what is published


def test_rewardbench2s_17_rms_reproduce(good):
    """Pearson, Spearman and Kendall of table 8, PPO and best-of-16, by group, against scipy."""
    rows = pd.read_csv(PUBLISHED / "rewardbench2_ppo_bon.csv")
    seen = 0
    for policy, column in (("ppo", "ppo"), ("best_of_16", "bon")):
        for group in ("all", *rows["group"].unique()):
            part = rows if group == "all" else rows[rows["group"] == group]
            x, y = part["rbv2"], part[column]
            chosen = (policy, group) == ("ppo", "all")
            prefix = "correlation" if chosen else f"correlation/{policy}/{group}"
            expected = (
                stats.pearsonr(x, y).statistic,
                stats.spearmanr(x, y).statistic,
                stats.kendalltau(x, y).statistic,
            )
            for name, value in zip(NUMBERS, expected, strict=True):
                assert good.metrics[f"{prefix}/{name}"] == pytest.approx(value)
                ends = [good.metrics.get(f"{prefix}/{name}/{end}") for end in ("low", "high")]
                if len(part) < 10:
                    assert ends == [None, None]
                else:
                    assert ends[0] <= good.metrics[f"{prefix}/{name}"] <= ends[1]
                assert 0 < good.metrics[f"{prefix}/{name}/p"] <= 1
                seen += 1
            assert good.metrics[f"{prefix}/n"] == len(part)
    assert seen == 24


def test_the_golden_values(good):
    """To three places, from scipy 1.17: what the table says, whatever our code does."""
    golden = {
        "correlation/pearson": 0.717,
        "correlation/spearman": -0.039,
        "correlation/n": 17,
        "correlation/ppo/on_policy/pearson": -0.255,
        "correlation/ppo/off_policy/pearson": -0.947,
        "correlation/best_of_16/all/pearson": 0.915,
        "correlation/best_of_16/all/spearman": 0.793,
        "correlation/best_of_16/off_policy/spearman": 1.0,
        "correlation/pearson/leave_one_out/low": 0.210,
        "correlation/pearson/leave_one_out/high": 0.773,
    }
    assert {name: good.metrics[name] for name in golden} == pytest.approx(golden, abs=5e-4)


def test_seven_benchmarks_against_votes_on_six_policies(command):
    """By hand from the two tables: -0.84 is one of seven, and nothing can be told apart."""
    done = command("scores=skywork_v2_seven_benchmarks", "policy=ppe_arena")
    assert done.code == 0, done.err
    rows = pd.read_csv(done.folder / "correlations.csv")
    rows = rows[rows["coefficient"] == "pearson"].set_index("score")
    expected = {
        "rewardbench/overall": -0.8415,
        "rewardbench2/overall": -0.5105,
        "ppe/preference": -0.1110,
        "ppe/correctness": 0.1417,
        "rmb/overall": -0.4446,
        "rmbench/overall": -0.1033,
        "judgebench": -0.6192,
    }
    assert rows["value"].to_dict() == pytest.approx(expected, abs=5e-5)
    assert set(rows["n"]) == {6}
    first = rows.loc["rewardbench/overall"]
    assert first["p"] == pytest.approx(0.0472, abs=5e-5)  # of all 720 orders
    assert first["p_max"] == pytest.approx(0.3028, abs=5e-5)
    assert rows.loc["judgebench", "p_max"] == pytest.approx(0.7639, abs=5e-5)
    assert first["p_holm"] == pytest.approx(7 * first["p"])
    assert (first["z_low"], first["z_high"]) == pytest.approx((-0.982, -0.095), abs=5e-4)
    assert done.metrics["correlation/pearson/p_max"] == first["p_max"]
    assert done.metrics["correlation/pearson/z/low"] == first["z_low"]
    assert "correlation/pearson/p_max" not in done.run().data.metrics
    for text in (done.out, (done.folder / "summary.md").read_text()):
        assert "-0.84 (-0.98 to -0.09)" in text
        assert "a correlation of 0.92 or more would be found in 80 %" in text
        assert "Of 7 scores against a policy none can be told apart from chance" in text
    assert "from a second-hand transcription" in (done.folder / "summary.md").read_text()


def test_the_published_figures_follow_from_one_another():
    """Overall is the mean of its parts, to the rounding, in the rows that are not flagged."""
    rb2 = pd.read_csv(PUBLISHED / "rewardbench2_leaderboard.csv")
    parts = rb2[["factuality", "precise_if", "math", "safety", "focus", "ties"]].mean(axis=1)
    assert (parts - rb2["avg"]).abs().max() <= 0.11
    rmb = pd.read_csv(PUBLISHED / "rmb_leaderboard.csv")
    parts = rmb[["help_bon", "help_pair", "harm_bon", "harm_pair"]].mean(axis=1)
    assert ((parts - rmb["overall"]).abs() <= 0.0011).sum() == 29
    rmbench = pd.read_csv(PUBLISHED / "rmbench_rmr1.csv")
    domains = rmbench[["chat", "math", "code", "safety"]].mean(axis=1)
    assert ((domains - rmbench["avg"]).abs() <= 0.11).mean() > 0.8
    downstream = pd.read_csv(PUBLISHED / "rewardbench2_downstream_pearson.csv")
    assert downstream.iloc[-1]["downstream"] == "Downstream Average"
    assert downstream.iloc[-1]["rb2_average"] >= downstream.iloc[:-1]["rb2_average"].mean()


def test_benchmarks_agree_as_pandas_says(command):
    """Four of the seven benchmarks that 44 models have."""
    tasks = "scores.tasks=[rewardbench/overall,ppe/correctness,rmbench/overall,judgebench]"
    done = command("scores=skywork_v2_seven_benchmarks", "policy=none", tasks)
    assert done.code == 0, done.err
    rows = pd.read_csv(PUBLISHED / "skywork_v2_seven_benchmarks.csv", na_values="-")
    columns = {"rewardbench": "rewardbench_overall", "ppe_corr": "ppe_correctness",
               "rm_bench": "rmbench_overall", "judgebench": "judgebench"}  # fmt: skip
    expected = rows[[*columns]].corr("spearman")
    for a, b in (("rewardbench", "ppe_corr"), ("ppe_corr", "rm_bench"), ("rm_bench", "judgebench")):
        name = f"agreement/{columns[a]}/{columns[b]}"
        assert done.metrics[f"{name}/spearman"] == pytest.approx(expected.loc[a, b])
        assert done.metrics[f"{name}/n"] == rows[[a, b]].dropna().shape[0]
    assert len([name for name in done.metrics if name.endswith("/spearman")]) == 6
    assert not any(name.startswith("correlation/") for name in done.metrics)


# ---------------------------------------------------------------- what a run leaves


def test_the_files_and_the_run(good):
    assert {path.name for path in good.folder.iterdir()} == {
        "config.yaml", "correlate.log", "correlations.csv", "metrics.json",
        "metrics_table.json", "points.csv", "ranks.png", "run.json", "scatter.png",
        "scatter_best_of_16.png", "summary.md",
    }  # fmt: skip
    run = good.run()
    assert run.info.status == "FINISHED"
    ends = dict.fromkeys(("pearson", "spearman", "kendall"), ("", "/low", "/high", "/p"))
    names = {f"correlation/{name}{end}" for name in ends for end in ends[name]}
    names |= {f"correlation/pearson/leave_one_out/{end}" for end in ("low", "high")}
    assert run.data.metrics == {name: good.metrics[name] for name in names | {"correlation/n"}}
    assert run.info.run_name == "correlate rewardbench2_ppo_bon with rewardbench2_ppo_bon"
    assert run.data.tags["rmexp.command"] == "correlate"
    assert run.data.tags["mlflow.note.content"] == (good.folder / "summary.md").read_text()
    kept = Path(run.info.artifact_uri.removeprefix("file://"))
    assert {path.name for path in kept.iterdir()} == {path.name for path in good.folder.iterdir()}


def test_the_summary_does_not_let_the_number_mislead(good):
    for text in (good.out, (good.folder / "summary.md").read_text()):
        assert "Linear and rank correlation disagree (Pearson 0.72, Spearman -0.04)" in text
        assert "One point carries the result: without RM 12 the Pearson is 0.21" in text
    rows = pd.read_csv(good.folder / "correlations.csv")
    assert len(rows) == 24
    assert rows.loc[0, "least_without"] == "RM 12"
    points = pd.read_csv(good.folder / "points.csv")
    assert len(points) == 34
    assert points[points["rm"] == "RM 12"]["y"].tolist() == [38.0, 20.8]


def test_the_seed_decides_the_intervals(good, command):
    same, other = command(out="same"), command("seed=1", out="other")
    assert same.metrics == good.metrics
    assert other.metrics["correlation/pearson/low"] != good.metrics["correlation/pearson/low"]
    assert other.metrics["correlation/pearson"] == good.metrics["correlation/pearson"]


def test_a_user_s_tables(command, tmp_path):
    scores = write(
        tmp_path / "s.csv", "rm,task,score", *(f"rm{i},mine,{i}" for i in range(6)), "extra,mine,9"
    )
    policy = write(
        tmp_path / "p.csv", "rm,task,score,base_score,n",
        *(f"rm{i},gsm8k,{i * i},1,100" for i in range(6)), "lost,gsm8k,4,1,100",
    )  # fmt: skip
    done = command("scores=table", f"scores.path={scores}", "policy=table", f"policy.path={policy}")
    assert done.code == 0, done.err
    assert done.metrics["correlation/n"] == 6
    assert done.metrics["correlation/spearman"] == pytest.approx(1)
    assert "1 RMs have no policy: extra" in done.err
    assert "1 RMs have no score: lost" in done.err
    assert "lost" in (done.folder / "summary.md").read_text()


def test_two_benchmarks_against_the_same_policies(command, tmp_path):
    """One benchmark orders the policies, the other reverses them: the difference is 2."""
    lines = [f"rm{i},{task},{sign * i}" for i in range(11) for task, sign in (("a", 1), ("b", -1))]
    scores = write(tmp_path / "s.csv", "rm,task,score", *lines)
    policy = write(tmp_path / "p.csv", "rm,task,score", *(f"rm{i},p,{i * i}" for i in range(11)))
    done = command("scores=table", f"scores.path={scores}", "policy=table", f"policy.path={policy}")
    assert done.code == 0, done.err
    found = [done.metrics[f"difference/a_minus_b/p/pearson{end}"] for end in ("/low", "", "/high")]
    assert found == sorted(found)
    assert done.metrics["difference/a_minus_b/p/spearman"] == pytest.approx(2)
    assert "difference/a_minus_b/p/spearman/low" not in done.metrics  # 2 in every resample
    assert done.metrics["difference/a_minus_b/p/n"] == 11
    assert done.metrics["scores/b/p/all/spearman"] == pytest.approx(-1)
    assert done.metrics["agreement/a/b/pearson"] == pytest.approx(-1)
    assert (
        "How much better does a go with the policies than:"
        in (done.folder / "summary.md").read_text()
    )


@pytest.mark.parametrize(
    ("scores", "policy", "reason"),
    [
        ((1, 2), (1, 2), "2 points are fewer than three"),
        ((1, 1, 1), (1, 2, 3), "the score side is constant, 1 everywhere"),
        ((1, 2, 3), (2, 2, 2), "the policy side is constant, 2 everywhere"),
    ],
)
def test_what_has_no_correlation_fails_with_the_reason(command, tmp_path, scores, policy, reason):
    for name, values in (("s", scores), ("p", policy)):
        lines = [f"rm{i},t,{value}" for i, value in enumerate(values)]
        write(tmp_path / f"{name}.csv", "rm,task,score", *lines, f"only {name},t,7")
    done = command(
        "scores=table", f"scores.path={tmp_path / 's.csv'}",
        "policy=table", f"policy.path={tmp_path / 'p.csv'}",
    )  # fmt: skip
    assert done.code == 1
    assert done.last.startswith(
        f"t with t has no correlation: {reason} (1 RMs have no policy: only"
    )
    assert done.run().info.status == "FAILED"
    assert done.run().data.metrics == {}
    assert not (done.folder / "metrics.json").exists()


def test_a_small_group_is_named_and_left_out(command, tmp_path):
    scores = write(
        tmp_path / "s.csv", "rm,task,score,group",
        *(f"rm{i},a,{i},{'small' if i < 2 else 'large'}" for i in range(8)),
    )  # fmt: skip
    policy = write(tmp_path / "p.csv", "rm,task,score", *(f"rm{i},p,{i * i}" for i in range(8)))
    done = command("scores=table", f"scores.path={scores}", "policy=table", f"policy.path={policy}")
    assert done.code == 0, done.err
    assert "left out: a with p (small), 2 points are fewer than three" in done.err
    assert "left out: a with p (small)" in (done.folder / "summary.md").read_text()
    assert not any("small" in name for name in done.metrics)
    assert done.metrics["correlation/p/large/n"] == 6


def test_scores_and_policies_that_were_tracked(command):
    for at, rm in enumerate("ABCD"):
        tags = {"rmexp.command": "eval_rm", "rmexp.model": rm, "rmexp.bench": "toy"}
        with tracked_run(command.uri, "rmexp", rm, tags) as run:
            run.log_metrics({"toy/overall": 0.1 * at})
        with tracked_run(command.uri, "rmexp", rm, {}) as run:
            log_policy(run, [Score(rm, "toy", at * at, 0.0, 40)], {})
    done = command("scores=mlflow", "scores.metrics=[toy/overall]", "policy=mlflow")
    assert done.code == 0, done.err
    assert done.metrics["correlation/n"] == 4
    assert done.metrics["correlation/spearman"] == pytest.approx(1)
    assert done.metrics["correlation/spearman/p"] == pytest.approx(2 / 24)
    assert "p cannot fall below 1/24" in done.out


def test_published_rows_are_imported_once(command):
    first = command("import=true", "scores=rmb_leaderboard", out="one")
    again = command("import=true", "scores=rmb_leaderboard", out="two")
    assert (first.code, again.code) == (0, 0), first.err + again.err
    client = MlflowClient(tracking_uri=command.uri)
    experiment = client.get_experiment_by_name("rmexp")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.rmexp.published = 'true'")
    assert len(runs) == 31
    (skywork,) = [r for r in runs if r.data.tags["rmexp.model"] == "Skywork-Reward-Llama-3.1-8B"]
    assert skywork.data.metrics["rmb/overall"] == 0.693
    assert skywork.data.tags["rmexp.source"] == "RM-R1 (arXiv 2505.02387), table 8"


# ---------------------------------------------------------------- two runs


@pytest.fixture
def runs(command: Command) -> list[Done]:
    """Evaluations of two made reward models on toy, of which the first knows more."""
    found = []
    for name, knows in (("good", 5), ("poor", 2)):
        rows = [
            {"id": example.id, "chosen": [float(at % 6 < knows)] * 3, "rejected": [0.5] * 3}
            for at, example in enumerate(Toy(limit=6).load().examples)
        ]
        path = write_lines(command.top / f"{name}.jsonl", rows)
        words = ["model=recorded", f"model.path={path}", f"model.name={name}", "bench.limit=6"]
        found.append(command(*words, out=name, script="eval_rm.py"))
        assert found[-1].code == 0, found[-1].err
    return found


@pytest.mark.parametrize("by_id", [False, True])
def test_two_runs_are_compared_on_the_same_examples(command, runs, by_id):
    """5 and 2 of every 6 prompts are right: a difference of 1/2 on each metric."""
    given = [run.status["run_id"] if by_id else str(run.folder) for run in runs]
    done = command(f"compare=[{','.join(given)}]", out="compared")
    assert done.code == 0, done.err
    assert done.metrics["difference/toy/overall"] == pytest.approx(0.5)
    assert done.metrics["difference/toy/overall/low"] > 0
    assert done.metrics["difference/toy/overall/p"] < 0.01
    assert done.metrics["difference/toy/overall/n"] == 24
    counts = [done.metrics[f"mcnemar/{name}"] for name in ("first_only", "second_only", "n")]
    assert counts == [12, 0, 24]
    assert done.metrics["mcnemar/p"] == pytest.approx(2 / 2**12)
    assert "good is better than poor" in done.out
    assert "good is better than poor" in done.run().data.tags["mlflow.note.content"]
    assert (done.folder / "differences.csv").exists()
    assert "Downloading" not in done.err


def test_what_rounds_to_nothing_has_no_sign_of_its_own():
    small = Difference("toy/overall", 0.5, 0.5001, -1e-4, 20, -2e-4, 1e-4, 0.9, ())
    summary = summarise(("a", "b"), [small], McNemar(0, 0, 20, 1.0))
    assert "a difference of +0.000 (+0.000 to +0.000, p 0.9)" in summary
    assert "-0.000" not in summary


def test_two_prompts_do_not_make_a_model_better(command):
    """The four prompts of plain: the least p is 2/16, and only a single share has an interval."""
    folders = []
    for name, right in (("good", 1.0), ("poor", 0.0)):
        rows = [
            {"id": e.id, "chosen": [right] * 3, "rejected": [0.5] * 3}
            for e in Toy(limit=2).load().examples
        ]
        path = write_lines(command.top / f"{name}.jsonl", rows)
        words = ["model=recorded", f"model.path={path}", "bench.limit=2"]
        done = command(*words, "model.name=same", out=name, script="eval_rm.py")
        assert done.code == 0, done.err
        folders.append(str(done.folder))
    assert done.metrics["toy/plain/matrix/concise_concise"] == 0
    high = done.metrics["toy/plain/matrix/concise_concise/high"]
    assert high == pytest.approx(1.96**2 / (4 + 1.96**2), abs=1e-4)  # Wilson's for 0 of 4
    compared = command(f"compare=[{','.join(folders)}]", out="compared")
    assert compared.code == 0, compared.err
    assert f"same ({folders[0]}) minus same ({folders[1]})" in " ".join(compared.out.split())
    assert compared.err.startswith(f"correlate: results in {compared.folder}")
    part = "difference/toy/plain/average"
    assert compared.metrics[f"{part}/p"] == 2 / 2**4
    assert f"{part}/low" not in compared.metrics
    rows = pd.read_csv(compared.folder / "differences.csv")
    assert [*rows] == ["metric", "first", "second", "difference", "low", "high", "p", "n", "p_holm"]
    assert rows["low"].isna().all()
    assert (rows["p_holm"] >= rows["p"]).all()
    for text in (compared.out, (compared.folder / "summary.md").read_text()):
        assert "too few" in text
        assert "would be below 0.05 by chance" in text


def test_runs_on_other_examples_are_refused_with_their_number(command, runs):
    rows = [{"id": e.id, "chosen": [1, 1, 1], "rejected": [0, 0, 0]} for e in Toy().load().examples]
    path = write_lines(command.top / "more.jsonl", rows)
    words = ["model=recorded", f"model.path={path}", "bench.limit=8"]
    more = command(*words, out="more", script="eval_rm.py")
    done = command(f"compare=[{runs[0].folder},{more.folder}]", out="compared")
    assert done.code == 1
    assert "8 examples are in the second one only (" in done.last
    assert done.last.endswith("compare runs on the same examples")


def test_runs_that_dropped_an_example_are_compared_on_the_others(command, runs):
    """The poor one lacks the first of 24 prompts."""
    scores = runs[1].folder / "scores.jsonl"
    lines = scores.read_text().splitlines(keepends=True)
    scores.write_text("".join(lines[1:]))
    done = command(f"compare=[{runs[0].folder},{runs[1].folder}]", out="compared")
    assert done.code == 0, done.err
    assert done.metrics["mcnemar/n"] == 23
    note = f"toy: 1 of 24 examples have no reward of each model: {json.loads(lines[0])['id']}"
    assert note in done.err
    assert note in (done.folder / "summary.md").read_text()
    scores.write_text(lines[0].replace('"id": "', '"id": "other '))
    none = command(f"compare=[{runs[0].folder},{runs[1].folder}]", out="compared")
    assert (none.code, "no example has rewards in all of" in none.last) == (1, True)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("[a]", "compare=['a']: give two runs, compare=[RUN,RUN]"),
        ("a", "compare=a: give two runs"),
        ("[0123456789abcdef0123456789abcdef,b]", "cannot get scores.jsonl, config.yaml of the run"),
        ("[{top},{top}]", "has no scores.jsonl; give the folder of an evaluation"),
    ],
)
def test_runs_that_are_none(command, given, message):
    done = command(f"compare={given.format(top=command.top)}")
    assert done.code == 1
    assert message in done.last


def test_a_recorded_config_is_data(command, runs, tmp_path):
    """Of its model the name alone is read; its benchmark is one of conf/ or of --config-dir."""
    own = write(tmp_path / "mine.yaml", "defaults: [toy, _self_]", "_target_: test_correlate.Mine")
    (tmp_path / "own" / "bench").mkdir(parents=True)
    own.rename(tmp_path / "own" / "bench" / own.name)
    proof = tmp_path / "proof"
    model = {"_target_": "pathlib.Path.touch", "_args_": [str(proof)], "trust_remote_code": True}
    for run in runs:
        kept = yaml.safe_load((run.folder / "config.yaml").read_text())
        kept["bench"]["_target_"] = "test_correlate.Mine"
        kept["model"] = model | {"name": "${oc.env:PATH}", "path": "${oc.env:PATH}"}
        (run.folder / "config.yaml").write_text(yaml.safe_dump(kept))
    given = f"compare=[{runs[0].folder},{runs[1].folder}]"
    done = command(given, f"--config-dir={tmp_path / 'own'}", out="compared")
    assert done.code == 0, done.err
    assert done.metrics["difference/toy/overall"] == pytest.approx(0.5)
    names = [f"${{oc.env:PATH}} ({run.folder})" for run in runs]
    assert f"{names[0]} is better than {names[1]}" in done.out
    assert not proof.exists()
    done = command(given, out="refused")
    assert done.code == 1
    assert "names test_correlate.Mine, which is no benchmark of this project" in done.last


class Mine(Toy):
    """A benchmark of a user's own."""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["protocol=best"], "protocol=best: choose from plain, rmbench, style_control"),
        (["protocol=rmbench"], "nobody has rmbench/math/hard"),
        (["policy.tasks=[dpo]"], "has no task dpo: choose from ppo, best_of_16"),
        (["policy=none"], "has one task, rewardbench2/overall, and there are no policies"),
        (["scores=mlflow"], "scores.metrics has no value: give one"),
        (["scores=table", "scores.path=no.csv"], "cannot read no.csv"),
        (["policy=mlflow"], "there is no experiment rmexp: choose from Default"),
        (
            ["scores=mlflow", "scores.metrics=[a]", "scores.experiment=x"],
            "there is no experiment x",
        ),
    ],
)
def test_a_mistake_is_one_line(command, words, message):
    done = command(*words)
    assert done.code == 1
    assert message in done.last
    assert "Traceback" not in done.err
    assert json.loads((done.folder / "run.json").read_text())["status"] == "FAILED"
