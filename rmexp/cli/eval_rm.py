"""Evaluate a reward model on a benchmark.

python eval_rm.py model=smollm2 bench=toy
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from rmexp.cli.commands import Work, launch, run_command
from rmexp.cli.configs import build, whole
from rmexp.cli.parts import keyed, model_config, settings
from rmexp.files import CONF

if TYPE_CHECKING:
    from rmexp.tracking.runs import Run


def evaluate(config: dict[str, Any], out_dir: Path) -> Work:
    """Open `config["bench"]` and `config["model"]`, to evaluate the one on the other."""
    from rmexp.evaluation.checks import check_options
    from rmexp.evaluation.in_run import evaluate_in_run
    from rmexp.metrics import headline

    how = replace(
        settings(config),
        max_non_finite=whole(config, "max_non_finite"),
        devices=config["devices"],
    )
    checks = check_options(config["overlap"].get("train"), config["robustness"])
    benchmark = build(config["bench"])
    reward = build(model_config(config))
    address = config["model"].get("uri")

    def work(run: "Run") -> str:
        key = keyed(config, run, benchmark.headline)
        metrics = evaluate_in_run(reward, benchmark, how, out_dir, run, key, address, checks)
        print(f"\n{run.others()}")
        return headline(metrics, benchmark.headline)

    return work


def tags(config: dict[str, Any]) -> dict[str, str]:
    """Name the run by its model and benchmark."""
    model = str(config["model"]["name"] or config["model"]["path"])
    bench = HydraConfig.get().runtime.choices["bench"]
    return {
        "rmexp.name": f"{model} on {bench}",
        "rmexp.command": "eval_rm",
        "rmexp.model": model,
        "rmexp.bench": bench,
    }


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="eval_rm")
def main(config: DictConfig) -> float | None:
    """Evaluate under Hydra."""
    return run_command(config, evaluate, tags)


def run() -> None:
    """Run the command, and exit."""
    launch(main)
