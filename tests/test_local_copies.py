"""Local copies: what lies below data_root under its usual name comes before the hub."""

import json
from pathlib import Path

import pytest
from running import run_script
from scored_rows import write_json, write_lines
from test_rmb import pair
from test_tracking import fresh_database
from tiny import tiny_policy

from rmexp.cli.local_copies import check_root, located
from rmexp.errors import ConfigError

RMB = {"_target_": "rmexp.benchmarks.rmb.RMB", "path": None}
HH = {"_target_": "x.PreferencePairs", "path": "Anthropic/hh-rlhf", "split": "train",
      "revision": None, "include": None}  # fmt: skip


def touched(root: Path, *files: str) -> str:
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return str(root)


@pytest.mark.parametrize(
    ("target", "name", "copy"),
    [
        ("rmexp.benchmarks.rmb.RMB", "rmb", "RMB_dataset"),
        ("rmexp.benchmarks.rmb.RMB", "rmb", "RMB-Reward-Model-Benchmark"),
        ("rmexp.benchmarks.rmbench.RMBench", "rmbench", "rm_bench"),
        ("rmexp.benchmarks.rmbench.RMBench", "mine", "RM-Bench"),
        ("rmexp.benchmarks.rewardbench.RewardBench", "rewardbench", "reward-bench"),
        ("rmexp.benchmarks.rewardbench2.RewardBench2", "rewardbench2", "reward-bench-2"),
        ("rmexp.benchmarks.judgebench.JudgeBench", "judgebench", "JudgeBench"),
    ],
)
def test_a_benchmark_is_found_by_its_usual_names(tmp_path, target, name, copy):
    root = touched(tmp_path, f"{copy}/a.json", "other/b.json")
    found = located({"_target_": target, "path": None}, name, root)
    assert found["path"] == str(tmp_path / copy)


def test_one_benchmark_is_not_taken_for_another(tmp_path):
    root = touched(tmp_path, "reward_bench/a.json")
    section = {"_target_": "rmexp.benchmarks.rewardbench2.RewardBench2", "path": None}
    assert located(section, "rewardbench2", root) == section


def test_a_set_is_found_by_the_name_of_its_file_and_a_level_below(tmp_path):
    root = touched(tmp_path, "preferences/auto_j.jsonl")
    found = located({"_target_": "x.PreferencePairs", "path": "???"}, "auto_j", root)
    assert found["path"] == str(tmp_path / "preferences" / "auto_j.jsonl")


def test_what_is_given_stays(tmp_path):
    root = touched(tmp_path, "RMB_dataset/a.json", "mine/a.json")
    assert located(RMB | {"path": "/x"}, "rmb", root)["path"] == "/x"
    assert located(RMB, "rmb", None) == RMB
    assert located({"_target_": "rmexp.benchmarks.toy.Toy"}, "toy", root).get("path") is None


def test_of_a_hubs_set_only_its_split_is_read(tmp_path):
    files = ("hh-rlhf/harmless-base/train.jsonl.gz", "hh-rlhf/harmless-base/test.jsonl.gz")
    root = touched(tmp_path, *files)
    assert located(HH, "hh_rlhf", root) == HH | {
        "path": str(tmp_path / "hh-rlhf"), "split": None, "include": ["*train*"]
    }  # fmt: skip
    with pytest.raises(ConfigError, match="2 files, and none with prefs in its name"):
        located(HH | {"split": "prefs"}, "hh_rlhf", root)


@pytest.mark.parametrize("by", ["data_root", "RMEXP_DATA"])
def test_a_sweep_over_benchmarks_on_ones_own_disk(
    tmp_path, tmp_path_factory, project_root, monkeypatch, by
):
    """Also from another folder; with quiet=true no table is printed, and what came last is."""
    data = tmp_path / "data"
    write_json(
        data / "RMB_dataset" / "Pairwise_set" / "Helpfulness" / "Chat" / "a.json", [pair("1")]
    )
    texts = {"chosen": ["a", "b", "c"], "rejected": ["d", "e", "f"]}
    write_lines(data / "RM-Bench" / "chat.jsonl", [{"id": "1", "prompt": "?", **texts}])
    monkeypatch.setenv("RMEXP_DATA", str(data) if by == "RMEXP_DATA" else "")
    uri = fresh_database(tmp_path_factory, tmp_path / "mlflow.db")
    words = [
        "-m",
        "model=local",
        f"model.path={tiny_policy(tmp_path / 'policy')}",
        "bench=rmb,rmbench",
    ]
    words += [f"tracking.uri={uri}", "store_dir=store", "out_dir=out", "quiet=true"]
    words += ["data_root=data"] if by == "data_root" else []
    done = run_script(tmp_path, [str(project_root / "eval_rm.py"), *words])
    assert done.code == 0, done.err
    for job, name in enumerate(("RMB_dataset", "RM-Bench")):
        config = (tmp_path / "out" / str(job) / "config.yaml").read_text()
        assert f"path: {data / name}\n" in config
        assert (
            json.loads((tmp_path / "out" / str(job) / "run.json").read_text())["status"]
            == "FINISHED"
        )
    assert "rmbench/chat/average" not in done.out
    assert "rmbench/overall/partial" in done.out


def test_a_root_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"data_root=.*nowhere: there is no such folder"):
        check_root(str(tmp_path / "nowhere"))
