"""Every experiment composes with its command, job by job, and fits what it is for."""

import itertools
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from scored_rows import write_lines

from rmexp.cli.configs import build, resolve
from rmexp.evaluation import followups
from rmexp.training.recipe import Recipe

CONF = Path(__file__).resolve().parent.parent / "conf"
COMMANDS = {
    "demo": ("train_rm", 2),
    "loop": ("train_rm", 8),
    "bt_or_dpo": ("train_rm", 8),
    "bt_or_dpo_13b": ("eval_rm", 8),
}


def composed(command: str, *words: str) -> Any:
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        config = compose(command, overrides=list(words), return_hydra_config=True)
    HydraConfig.instance().set_config(config)
    return config


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    pairs = write_lines(tmp_path / "pairs.jsonl", [{"prompt": "?", "chosen": "a", "rejected": "b"}])
    return [f"pairs.{name}.path={pairs}" for name in ("auto_j", "hh_rlhf")]


def test_every_experiment_is_a_case() -> None:
    assert {path.stem for path in (CONF / "experiment").glob("*.yaml")} == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_an_experiment_composes_job_by_job(name: str, files: list[str]) -> None:
    command, count = COMMANDS[name]
    words = [f"experiment={name}", *(files if name == "bt_or_dpo" else [])]
    params = OmegaConf.to_container(composed(command, *words).hydra.sweeper.params)
    assert isinstance(params, dict)
    choices = [
        [f"{key}={choice.strip()}" for choice in str(value).split(",")]
        for key, value in params.items()
    ]
    jobs = list(itertools.product(*choices))
    assert len(jobs) == count
    names = set()
    for job in jobs:
        config = composed(command, *words, *job)
        del config.hydra
        plain = resolve(config)
        if command == "train_rm":
            Recipe(**plain["recipe"])
            build(plain["objective"])
            build(plain["data"])
            names.add(plain["name"])
            followups.check_beside(plain["eval_beside"])
            follow_ups = followups.read_follow_ups(plain["eval_after"], bench, build)
            assert len({one.folder for one in follow_ups}) == len(follow_ups) > 0
        else:
            names.add(plain["model"]["name"])
        if plain["then"]:
            script, *then = plain["then"]
            composed(script.removesuffix(".py"), *then)
    assert len(names) == count


def bench(name: str) -> dict[str, Any]:
    config = OmegaConf.to_container(OmegaConf.load(CONF / "bench" / f"{name}.yaml"))
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}
