"""Evaluate a reward model on a benchmark.

python eval_rm.py model=smollm2 bench=toy
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from rmexp.cli.commands import Work, launch, run_command
from rmexp.cli.configs import build, whole
from rmexp.cli.parts import keyed, model_config, settings
from rmexp.errors import ConfigError
from rmexp.files import CONF

if TYPE_CHECKING:
    from rmexp.benchmarks import Benchmark
    from rmexp.evaluation.promotion import Promotion
    from rmexp.tracking.runs import Run
    from rmexp.tracking.versions import Version


def evaluate(config: dict[str, Any], out_dir: Path) -> Work:
    """Open `config["bench"]` and `config["model"]`, to evaluate the one on the other."""
    from rmexp.evaluation.checks import check_options
    from rmexp.evaluation.in_run import evaluate_in_run
    from rmexp.evaluation.promotion import promote
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
    promotion, version = _promotion(config, benchmark)

    def work(run: "Run") -> str:
        key = keyed(config, run, benchmark.headline)
        metrics = evaluate_in_run(reward, benchmark, how, out_dir, run, key, address, checks)
        if promotion and version:
            scores = out_dir / "scores.jsonl"
            print(promote(promotion, version, benchmark, scores, config["seed"], run))
        print(f"\n{run.others()}")
        return headline(metrics, benchmark.headline)

    return work


def _promotion(
    config: Mapping[str, Any], benchmark: "Benchmark"
) -> "tuple[Promotion | None, Version | None]":
    """Return what gets an alias for what, and the registered version that is evaluated."""
    from rmexp.evaluation.promotion import check_metric, read_promotion
    from rmexp.tracking.registry import version_at

    promotion = read_promotion(config["promote"], [HydraConfig.get().runtime.choices["bench"]])
    if promotion is None:
        return None, None
    address = config["model"].get("uri")
    if not address:
        raise ConfigError(
            "promote needs a registered version: give model=mlflow model.uri=models:/NAME/VERSION"
        )
    version = version_at(config["tracking"]["uri"], address)
    check_metric(promotion, benchmark)
    return promotion, version


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
