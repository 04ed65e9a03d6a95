"""Correlate reward models' scores with policies, with each other, or two runs in detail.

python correlate.py scores=rewardbench2_ppo_bon policy=rewardbench2_ppo_bon
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from rmexp.cli.commands import launch, run_command
from rmexp.cli.configs import build, rebuild
from rmexp.cli.parts import keyed
from rmexp.errors import ConfigError

if TYPE_CHECKING:
    from rmexp.tracking.runs import Run


def correlate(config: dict[str, Any], out_dir: Path, run: "Run") -> str:
    """Do what the config asks for: correlate, compare two runs, or import published scores."""
    tracking = config["tracking"]
    key = keyed(config, run, "correlation/pearson")
    if config["compare"] is not None:
        from rmexp.evaluation.compare import read_run, run_comparison

        if not isinstance(config["compare"], list) or len(config["compare"]) != 2:
            raise ConfigError(f"compare={config['compare']}: give two runs, compare=[RUN,RUN]")
        with TemporaryDirectory() as folder:
            first, second = (
                read_run(where, tracking["uri"], Path(folder) / str(at), rebuild)
                for at, where in enumerate(config["compare"])
            )
            return run_comparison(first, second, config["seed"], out_dir, run, key)
    scores = build(config["scores"])
    if config["import"]:
        from rmexp.correlation.published_runs import log_published

        counts = log_published(scores, tracking["experiment"], run)
        return f"{counts['published/logged']:.0f} runs logged"
    from rmexp.correlation.correlate import run_correlation

    policies = build(config["policy"]) if config.get("policy") else None
    metrics = run_correlation(
        scores, policies, config["protocol"], config["seed"], out_dir, run, key
    )
    shown = {
        name: metrics[f"correlation/{name}"] for name in ("pearson", "spearman", "n") if policies
    }
    return ", ".join(f"{name} {value:.3g}" for name, value in shown.items())


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


@hydra.main(version_base="1.3", config_path="conf", config_name="correlate")
def main(config: DictConfig) -> None:
    """Correlate under Hydra."""
    run_command(config, correlate, tags)


if __name__ == "__main__":
    launch(main)
