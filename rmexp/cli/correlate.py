"""Correlate reward models' scores with policies, with each other, or two runs in detail.

python correlate.py scores=rewardbench2_ppo_bon policy=rewardbench2_ppo_bon
"""

from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from rmexp.cli.commands import Work, launch, run_command
from rmexp.cli.configs import build, rebuild
from rmexp.cli.parts import keyed
from rmexp.errors import ConfigError
from rmexp.files import CONF

if TYPE_CHECKING:
    from rmexp.correlation.tables import Table
    from rmexp.tracking.runs import Run


def correlate(config: dict[str, Any], out_dir: Path) -> Work:
    """Read what the config asks for: to correlate, to compare two runs, or to import scores."""
    if config["compare"] is not None:
        return _compare(config, out_dir)
    scores = build(config["scores"])
    if config["import"]:
        return partial(_import, scores, config["tracking"]["experiment"])
    from rmexp.correlation.correlate import run_correlation

    policies = build(config["policy"]) if config.get("policy") else None

    def work(run: "Run") -> str:
        key = keyed(config, run, "correlation/pearson")
        metrics = run_correlation(
            scores, policies, config["protocol"], config["seed"], out_dir, run, key
        )
        shown = {
            name: metrics[f"correlation/{name}"]
            for name in ("pearson", "spearman", "n")
            if policies
        }
        return ", ".join(f"{name} {value:.3g}" for name, value in shown.items())

    return work


def _compare(config: dict[str, Any], out_dir: Path) -> Work:
    from rmexp.evaluation.compare import read_run, run_comparison

    if not isinstance(config["compare"], list) or len(config["compare"]) != 2:
        raise ConfigError(f"compare={config['compare']}: give two runs, compare=[RUN,RUN]")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        first, second = (
            read_run(where, config["tracking"]["uri"], folder / str(at), rebuild)
            for at, where in enumerate(config["compare"])
        )
        fetched = stack.pop_all()  # which goes with the work
    if first.name == second.name:
        first, second = (
            replace(each, name=f"{each.name} ({where})")
            for each, where in zip((first, second), config["compare"], strict=True)
        )

    def work(run: "Run") -> str:
        with fetched:
            key = keyed(config, run, f"difference/{first.benchmark.headline}")
            return run_comparison(first, second, config["seed"], out_dir, run, key)

    return work


def _import(scores: "Table", experiment: str, run: "Run") -> str:
    from rmexp.correlation.published_runs import log_published

    counts = log_published(scores, experiment, run)
    return f"{counts['published/logged']:.0f} runs logged"


def tags(config: dict[str, Any]) -> dict[str, str]:
    """Name the run by what it correlates, compares or imports."""
    choices = HydraConfig.get().runtime.choices
    name = f"correlate {choices['scores']}"
    if config["compare"] is not None:
        name = "compare two runs"
    elif config["import"]:
        name = f"import {choices['scores']}"
    elif config.get("policy"):
        name += f" with {choices['policy']}"
    return {"rmexp.name": name, "rmexp.command": "correlate"}


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="correlate")
def main(config: DictConfig) -> float | None:
    """Correlate under Hydra."""
    return run_command(config, correlate, tags)


def run() -> None:
    """Run the command, and exit."""
    launch(main)
