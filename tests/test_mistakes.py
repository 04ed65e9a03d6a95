"""What is typed wrong is answered at once, in one line, with what may have been meant."""

import json
import sys
from pathlib import Path

import pytest
from running import Ended, run_apart, run_script

SCRIPTS = ("eval_rm.py", "train_rm.py", "score_rm.py", "correlate.py", "leaderboard.py")
# What takes seconds to import.
HEAVY = {"torch", "lightning", "mlflow", "transformers", "datasets"}


@pytest.fixture
def typed(project_root: Path, tmp_path: Path):
    """Run a script with these words, and return how it ended; nothing may have been tracked."""

    def run(script: str, *words: str) -> Ended:
        place = [f"out_dir={tmp_path / 'out'}", f"tracking.uri=sqlite:///{tmp_path}/t.db"]
        done = run_script(project_root, [script, *words, *place])
        assert done.code == 1
        assert not (tmp_path / "t.db").exists()
        assert "Traceback" not in done.out + done.err
        return done

    return run


NEAREST = {
    "limit=2": "limit: Key 'limit' is not in struct; did you mean bench.limit?",
    "+limit=2": "limit: nothing reads it; did you mean bench.limit?",
    "bench.limt=2": "bench.limt: Key 'limt' is not in struct; did you mean bench.limit?",
    "store_dr=x": "store_dr: Key 'store_dr' is not in struct; did you mean store_dir?",
    "+tracking.nam=x": (
        "tracking.nam: nothing reads it; choose from tracking.uri, tracking.experiment, "
        "tracking.system_metrics"
    ),
    "model=smolm2": (
        "model=smolm2: Could not find 'model/smolm2'; did you mean smollm2, smollm2_pair or "
        "armorm? python eval_rm.py --help lists all"
    ),
    "-m limit=1,2": "limit: nothing reads it; did you mean bench.limit?",
    "-m +limit=1,2": "limit: nothing reads it; did you mean bench.limit?",
}


@pytest.mark.parametrize("words", NEAREST)
def test_a_name_that_does_not_exist_is_answered_with_the_nearest(typed, words):
    done = typed("eval_rm.py", *words.split())
    assert done.err.strip().splitlines()[-1] == NEAREST[words]
    assert not done.out


def test_one_word_in_two_groups_names_both(typed):
    done = typed("train_rm.py", "data=preference", "limit=2")
    assert done.err.strip().endswith("did you mean data.limit?")


def test_a_group_of_another_command_is_refused(typed):
    done = typed("eval_rm.py", "+objective=bt")
    last = done.err.strip().splitlines()[-1]
    assert last == "objective: nothing reads it; it is a group of python train_rm.py"


def test_a_short_list_of_choices_is_named_whole(typed):
    done = typed("train_rm.py", "objective=dop")
    assert done.err.strip() == (
        "objective=dop: Could not find 'objective/dop'; choose from bt, dpo"
    )


def test_a_sweep_that_no_job_can_be_composed_of_is_not_begun(typed):
    done = typed("eval_rm.py", "-m", "model=smollm2,smolm2")
    assert done.err.strip().splitlines()[-1].startswith("model=smolm2: Could not find")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["eval_rm.py", "data_root=true"], "data_root=True: there is no such folder; check the"),
        (
            ["eval_rm.py", "bench._target_=nowhere.Facts"],
            "_target_=nowhere.Facts: there is no such",
        ),
        (["eval_rm.py", "bench._target_=null"], "_target_=None: name a class, as the files in"),
        (
            ["eval_rm.py", "model=local", "model.path='a\nb\x1b[2J'"],
            "model.path=a b\\x1b[2J: there",
        ),
        (["correlate.py", "scores.group=f"], "rewardbench2_ppo_bon.csv has no column f (it has"),
        (["correlate.py", "policy.base=bt"], "base=bt: rewardbench2_ppo_bon.csv has no such row"),
        (
            ["eval_rm.py", "model.reference=inf"],
            "open_reward has reference: inf, which is no value",
        ),
        (
            ["train_rm.py", "model.reference=inf"],
            "open_reward has reference: inf, which is no value",
        ),
        (
            ["correlate.py", "scores.group=true"],
            "read_published has group: True, which is no value",
        ),
    ],
)
def test_a_value_of_no_use_is_one_line(typed, words, said):
    last = typed(*words).err.strip().splitlines()[-1]
    assert said in last
    assert "unexpected" not in last


def test_hydra_says_what_is_no_override_itself(typed):
    assert "See https://hydra.cc/docs" in typed("eval_rm.py", "model=[a").err


def test_hydra_full_error_shows_the_traceback(project_root):
    done = run_apart(project_root, ["eval_rm.py", "model=smolm2"], HYDRA_FULL_ERROR="1")
    assert done.code == 1
    assert "Traceback (most recent call last)" in done.err
    assert "MissingConfigException" in done.err


def test_help_typos_and_bad_paths_are_answered_without_what_takes_seconds(
    project_root: Path, tmp_path: Path
):
    nowhere = str(tmp_path / "nowhere")
    out = f"out_dir={tmp_path / 'out'}"
    cases = [
        *([script, word] for script in SCRIPTS for word in ("--help", "limit=2")),
        *([script, "--cfg", "job"] for script in SCRIPTS),
        ["eval_rm.py", "model=smolm2"],
        ["eval_rm.py", out, "+limit=2"],
        ["eval_rm.py", out, "model=local", f"model.path={nowhere}"],
        ["eval_rm.py", out, "model=recorded", f"model.path={nowhere}"],
        ["eval_rm.py", out, "bench=rmb", f"bench.path={nowhere}"],
        ["eval_rm.py", out, "bench=rewardbench", "bench.limit=0"],
        ["train_rm.py", out, "data=preference", f"data.path={nowhere}"],
        ["correlate.py", out, "scores=table", f"scores.path={nowhere}"],
        ["eval_rm.py", out, f"data_root={nowhere}"],
    ]
    script = (
        "import json, runpy, sys\n"
        "codes = []\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    sys.argv = words\n"
        "    try:\n"
        "        runpy.run_path(words[0], run_name='__main__')\n"
        "    except SystemExit as end:\n"
        "        codes.append(end.code)\n"
        "print('ENDED', json.dumps([codes, sorted(sys.modules)]))\n"
    )
    done = run_apart(project_root, ["-c", script, json.dumps(cases)])
    (line,) = [line for line in done.out.splitlines() if line.startswith("ENDED ")]
    codes, modules = json.loads(line.removeprefix("ENDED "))
    wanted = [0 if {"--help", "--cfg"} & set(words) else 1 for words in cases]
    assert len(cases) == 24
    assert [bool(code) for code in codes] == [bool(code) for code in wanted], done.err
    assert "hydra" in modules
    assert not HEAVY & set(modules)
    assert not (tmp_path / "mlflow.db").exists()


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_says_what_a_command_is_for_and_its_own_groups(project_root: Path, script: str):
    done = run_script(project_root, [script, "--help"])
    groups = {
        "eval_rm.py": {"model", "bench", "tracking"},
        "train_rm.py": {"model", "objective", "data", "trainer", "experiment", "tracking"},
        "score_rm.py": {"model", "engine", "tracking"},
        "correlate.py": {"scores", "policy", "tracking"},
        "leaderboard.py": {"tracking"},
    }[script]
    said = {line.partition(":")[0] for line in done.out.splitlines() if ": " in line}
    every = {path.name for path in (project_root / "conf").iterdir() if path.is_dir()}
    assert said & every == groups
    assert f"    python {script} " in done.out
    assert f'eval "$(python {script} -sc install=bash)"' in done.out


def test_the_first_line_says_what_was_chosen(typed, tmp_path):
    done = typed("eval_rm.py", "bench=rmb", f"bench.path={tmp_path}/nowhere")
    first = done.err.splitlines()[0]
    assert first == f"eval_rm: bench rmb, model smollm2, results in {tmp_path / 'out'}"


def test_other_libraries_show_no_bars():
    from rmexp.cli import commands

    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
            patch.delenv(name, raising=False)
        patch.setattr(sys, "exit", lambda code: None)
        commands.launch(lambda: None)
        from mlflow.environment_variables import MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR

        assert MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR.get() is False
