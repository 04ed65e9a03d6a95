import csv
import subprocess
import sys

import pytest

from rmexp.errors import ConfigError
from rmexp.files import PUBLISHED
from rmexp.models.catalogue import MODELS, NOT_MODELS, SOURCES, catalogue, legend


@pytest.fixture(scope="module")
def models():
    return {model.key: model for model in catalogue()}


def test_every_file_but_the_ways_to_give_a_model_is_listed(models):
    files = {path.stem for path in MODELS.glob("*.yaml")}
    assert set(models) == files - set(NOT_MODELS)
    assert len(models) == 52


def test_the_table_knows_size_reader_and_published_scores(models):
    skywork = models["skywork"]
    assert skywork.name == "Skywork-Reward-Llama-3.1-8B"
    assert (skywork.size, skywork.reader) == ("8B", "scalar")
    # Own tables for RewardBench (exact_subsets), RewardBench 2 and RM-Bench, RM-R1's for RMB.
    assert skywork.scores["RewardBench"] == (92.5, "a")
    assert skywork.scores["RewardBench 2"] == (73.1, "a")
    assert skywork.scores["RM-Bench"][1] == "a"
    assert skywork.scores["RMB"][1] == "d"
    assert models["tulu2_dpo_13b"].reader == "implicit, tulu-2-13b"
    assert models["tulu2_dpo_13b"].scores["RewardBench"] == (73.4, "b")
    assert models["tulu25_dpo_nectar"].scores == {"RM-Bench": (58.8, "d")}
    assert models["tulu25_13b_mix"].scores == {"RMB": (45.3, "d")}
    assert models["deberta"].size == "0.4B"
    assert models["rlhflow_pair"].reader == "pairwise"
    assert models["rlhflow_pair"].scores == {"RewardBench": (85.7, "b")}
    assert models["skywork_v2_qwen3_0_6b"].size == "0.6B"
    assert (models["smollm2"].size, models["smollm2"].scores) == ("135M", {})


def test_names_that_tables_misspell_are_found(models):
    with (PUBLISHED / "rmbench_leaderboard.csv").open() as file:
        rows = {row["model"]: row["overall"] for row in csv.DictReader(file)}
    assert models["fsfairx"].scores["RM-Bench"] == (float(rows["FsfairX-LLLaMA3-RM-v0.1"]), "a")
    assert models["urm"].scores["RM-Bench"] == (float(rows["URM-LLama-3.1-8B"]), "a")


def test_scores_are_percentages_and_most_models_have_one(models):
    scores = [score for model in models.values() for score, _ in model.scores.values()]
    assert len(scores) == 132
    assert all(20 < score < 100 for score in scores)


def test_every_mark_has_one_meaning_that_is_explained():
    sources = [source for some in SOURCES.values() for source in some]
    explained = {f"{source.mark}  {source.title}" for source in sources}
    assert len(explained) == len({source.mark for source in sources}) == 4
    assert explained < set(legend())


def test_it_runs_as_a_module_at_any_width(models):
    done = subprocess.run(
        [sys.executable, "-m", "rmexp.models.catalogue"],
        capture_output=True,
        text=True,
        env={"COLUMNS": "40", "PATH": ""},
        check=True,
    )
    assert "…" not in done.stdout
    lines = [line.split() for line in done.stdout.splitlines()]
    shown = {line[0]: line[1:3] for line in lines if len(line) > 4}
    for model in models.values():
        assert shown[model.key] == [model.name, model.size]
    assert all(line in done.stdout for line in legend())


def test_a_file_without_a_size_is_refused(tmp_path):
    (tmp_path / "new.yaml").write_text("# A model.\nname: new\nreader: scalar\n")
    with pytest.raises(ConfigError, match=r"new\.yaml: its first line names no size"):
        catalogue(tmp_path)


def test_each_published_file_has_its_source_in_the_readme():
    readme = (PUBLISHED / "README.md").read_text()
    files = sorted(path.name for path in PUBLISHED.glob("*.csv"))
    assert len(files) == 12
    assert [name for name in files if f"`{name}`" not in readme] == []
