"""Evaluate a reward model on a benchmark.

python eval_rm.py model=smollm2 bench=toy
"""

from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from rmexp.cli.commands import launch, run_command
from rmexp.cli.configs import build, folder, whole
from rmexp.tracking.identity import result_key


def evaluate(config: dict[str, Any], out_dir: Path, run: Any) -> str:
    """Evaluate `config["model"]` on `config["bench"]`."""
    from rmexp.evaluation.evaluate import evaluate
    from rmexp.metrics import headline
    from rmexp.models.chat import check_on_overlength
    from rmexp.scoring.scoring import Settings

    settings = Settings(
        folder(config, "store_dir"),
        check_on_overlength(config["on_overlength"]),
        None if config["batch_tokens"] is None else whole(config, "batch_tokens", least=1),
        whole(config, "max_non_finite"),
        config["seed"],
        config["devices"],
    )
    benchmark = build(config["bench"])

    def key(**fingerprints: str) -> str:
        made = result_key(config, **fingerprints)
        if config["skip_done"]:
            run.skip_if_done(made, benchmark.headline)
        return made

    model = dict(config["model"])
    if uri := model.pop("uri", None):
        from rmexp.tracking.runs import fetch_model

        model["path"] = str(
            fetch_model(config["tracking"]["uri"], uri, settings.store_dir / "downloaded")
        )
    metrics = evaluate(build(model), benchmark, settings, out_dir, run, key)
    return headline(metrics, benchmark.headline)


def tags(config: dict[str, Any]) -> dict[str, str]:
    """Name the run by its model and benchmark."""
    model = str(config["model"]["name"] or config["model"]["path"])
    bench = config["bench"]["_target_"].rpartition(".")[2].lower()
    return {
        "rmexp.name": f"{model} on {bench}",
        "rmexp.command": "eval_rm",
        "rmexp.model": model,
        "rmexp.bench": bench,
    }


@hydra.main(version_base="1.3", config_path="conf", config_name="eval_rm")
def main(config: DictConfig) -> None:
    """Evaluate under Hydra."""
    run_command(config, evaluate, tags)


if __name__ == "__main__":
    launch(main)
