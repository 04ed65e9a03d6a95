"""Train a reward model, and evaluate it.

python train_rm.py model=smollm2 objective=bt data=toy eval_after=[toy]
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from rmexp.cli.commands import help_command, launch, run_command
from rmexp.cli.configs import benchmark_config, benchmarks, build
from rmexp.cli.local_copies import located
from rmexp.cli.parts import keyed, model_config, settings
from rmexp.cli.sweeps import child_name, find_sweep
from rmexp.errors import ConfigError
from rmexp.files import CONF
from rmexp.training.world import rank, together

if TYPE_CHECKING:
    from rmexp.evaluation.followups import FollowUp
    from rmexp.evaluation.promotion import Promotion
    from rmexp.scoring.model_reward import ModelReward
    from rmexp.scoring.score import Settings
    from rmexp.tracking.runs import Run
    from rmexp.training.start import Start

_OF_THE_MODEL = ("train/loss", "val/loss", "val/accuracy")  # what its page shows of the training


def train(config: dict[str, Any], out_dir: Path) -> "Callable[[Run | None], str]":
    """Check what there is to train, how, and what follows, to do it as `config` says.

    In a process that only helps another one the run is None.
    """
    from rmexp.evaluation import followups
    from rmexp.evaluation.promotion import promote
    from rmexp.metrics import headline
    from rmexp.tracking.connection import TrackingError
    from rmexp.tracking.registry import register
    from rmexp.training.options import check_options, make_trainer
    from rmexp.training.recipe import read_recipe
    from rmexp.training.start import Training
    from rmexp.training.train import Place, train

    how = settings(config)
    recipe = read_recipe(config["recipe"], config["seed"])
    options = check_options(config["trainer"], HydraConfig.get().mode is RunMode.MULTIRUN)
    options = {"enable_progress_bar": False, **options}  # training shows its own
    make_trainer(build(options))  # to see before anything is loaded whether it can be
    objective, source = build(config["objective"]), build(config["data"])
    read = partial(_bench, root=config["data_root"])
    follow_ups = followups.read_follow_ups(config["eval_after"], read, build)
    beside = followups.check_beside(config["eval_beside"])
    promotion, judge = _promotion(config, follow_ups)
    dtype = "bfloat16" if options["precision"] == "bf16-true" else "float32"
    start = _start(config, dtype)
    training = Training(start, objective, source, recipe, build(options), how)

    def work(run: "Run | None") -> str:
        key = keyed(config, run, "val/accuracy")
        metrics = train(training, Place(out_dir, run, key, config["resume"]))
        if run is None:
            return ""
        trained = start.trained(out_dir / "model", _name(config))
        _log_model(trained, how, config, metrics, out_dir, run)
        if follow_ups:
            rewards = followups.readings(trained, start.reward, beside)
            metrics |= followups.follow(follow_ups, rewards, how, config["tracking"], out_dir, run)
            run.log_table(out_dir, metrics)
            (out_dir / "metrics.json").write_text(
                json.dumps(metrics, indent=1) + "\n", encoding="utf-8"
            )
        if name := config["tracking"]["register"]:
            version = register(run, name, followups.page(follow_ups, metrics, _run_name(config)))
            said = "once the run is delivered" if version is None else f"as {version.address}"
            print(f"registered {said}")
            if promotion and judge:
                if version is None:
                    raise TrackingError(
                        "promote compares what is registered, and the tracking server is away: "
                        f"deliver the run, then evaluate model=mlflow model.uri=models:/{name}/N "
                        "with the same promote"
                    )
                scores = out_dir / "eval" / judge.folder / "scores.jsonl"
                arguments = (judge.benchmark, scores, config["seed"], run)
                print(promote(promotion, version, *arguments))
        print(f"\n{run.others()}")
        names = ("val/accuracy", *(one.headline for one in follow_ups))
        shown = filter(None, (headline(metrics, name) for name in names))
        return ", ".join(shown)

    return work


def _promotion(
    config: Mapping[str, Any], follow_ups: "Sequence[FollowUp]"
) -> "tuple[Promotion | None, FollowUp | None]":
    """Return what gets an alias for what, and the evaluation that decides about it."""
    from rmexp.evaluation.promotion import check_metric, read_promotion

    judges = {one.folder: one for one in follow_ups}
    promotion = read_promotion(config["promote"], list(judges))
    if promotion is None:
        return None, None
    if not config["tracking"]["register"]:
        raise ConfigError("promote needs a version: give tracking.register=NAME as well")
    judge = judges[promotion.bench]
    check_metric(promotion, judge.benchmark)
    return promotion, judge


def _log_model(
    trained: "ModelReward",
    how: "Settings",
    config: Mapping[str, Any],
    metrics: Mapping[str, float],
    out_dir: Path,
    run: "Run",
) -> None:
    """Make the trained model MLflow's, with its data, its start and its loss."""
    from rmexp.tracking.logged_models import Card

    choices = HydraConfig.get().runtime.choices
    params = {
        "objective": choices["objective"],
        "data": choices["data"],
        "start": config["model"]["name"] or config["model"]["path"],
        "training_seed": str(config["seed"]),
    }
    shown = [name for name in _OF_THE_MODEL if name in metrics]
    card = Card(_run_name(config), trained.traits(), trained.fingerprints(how.store_dir))
    run.log_model(card, out_dir / "model", params, shown)


def _start(config: Mapping[str, Any], dtype: str) -> "Start":
    """Open the model to start from, to be trained in `dtype`, and a reference that is given."""
    from rmexp.scoring.model_reward import ModelReward
    from rmexp.training.start import Start

    model = model_config(config)
    given = model.get("reference")
    given = given if isinstance(given, Mapping) else {}
    reference = given.get("path")
    base = given.get("base") if reference else model.get("base")
    if reference and config["objective"]["_target_"].endswith("DPO"):
        model["reader"] = "implicit"
    reward = build(model)
    if not isinstance(reward, ModelReward):
        raise ConfigError("recorded rewards cannot be trained: give a model, such as model=smollm2")
    return Start(
        reward,
        _anywhere(model["path"]),
        dtype,
        _anywhere(reference) if reference else None,
        _anywhere(base) if base else None,
    )


def _anywhere(path: str) -> str:
    """Return a folder as an absolute path, a hub name as it is."""
    local = Path(path).expanduser()
    return str(local.resolve()) if local.is_dir() else path


def _bench(name: str, root: str | None) -> dict[str, Any]:
    """Return a benchmark's config, with the path of its copy below `root` if there is one."""
    if name not in benchmarks():
        there = ", ".join(benchmarks())
        raise ConfigError(f"eval_after: there is no benchmark {name}, choose from {there}")
    return located(benchmark_config(name), name, root)


def _name(config: Mapping[str, Any]) -> str:
    if config["name"]:
        return str(config["name"])
    model = config["model"]["name"] or Path(str(config["model"]["path"])).name
    hydra = HydraConfig.get()
    name = f"{model} {hydra.runtime.choices['objective']} {hydra.runtime.choices['data']}"
    if hydra.mode is not RunMode.MULTIRUN:
        return name
    _, varied = find_sweep(Path(hydra.runtime.cwd, hydra.sweep.dir))
    varied = [key for key in varied if key not in ("objective", "data")]
    return child_name(name, {"overrides": list(hydra.overrides.task), "varied": varied})


def _run_name(config: Mapping[str, Any]) -> str:
    """Return the trained model's name with the seed, which tells runs apart."""
    name, seed = _name(config), f"seed={config['seed']}"
    return name if seed in name else f"{name} seed {config['seed']}"


def tags(config: dict[str, Any]) -> dict[str, str]:
    """Name the run by its model, objective and data."""
    return {
        "rmexp.name": _run_name(config),
        "rmexp.command": "train_rm",
        "rmexp.model": _name(config),
    }


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train_rm")
def main(config: DictConfig) -> float | None:
    """Train under Hydra; a process that another one started helps that one, and tracks nothing."""
    if together(config.trainer) and (number := rank()) > 0:
        help_command(config, train, number)
        return None
    return run_command(config, train, tags)


def run() -> None:
    """Run the command, and exit."""
    launch(main)
