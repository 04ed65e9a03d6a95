"""Hydra's optimisers: a command returns its objective, and the study's best is the best run."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from running import run_apart
from tiny import tiny_policy


@pytest.mark.real
@pytest.mark.skipif(find_spec("optuna") is None, reason="the extra optuna is not installed")
def test_six_trials_and_the_best_of_them(project_root: Path, tmp_path: Path) -> None:
    """In a process of its own, since optuna warns of what it imports."""
    model = tiny_policy(tmp_path / "model")
    words = ["train_rm.py", "-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=6"]
    words += ["hydra.sweeper.direction=minimize", "hydra.sweeper.sampler.seed=0"]
    words += ["objective_metric=val/loss", "objective=dpo", "data=toy", "data.pairs=8"]
    words += ["recipe.learning_rate=interval(1e-4,1e-2)", "objective.beta=choice(0.05,0.5)"]
    words += [f"model.path={model}", "model=local", "trainer.max_steps=1", "quiet=true"]
    words += [f"out_dir={tmp_path}/out", f"store_dir={tmp_path}/store"]
    words += [f"tracking.uri=sqlite:///{tmp_path}/m.db", "tracking.system_metrics=false"]
    done = run_apart(project_root, words)
    assert done.code == 0, done.err[-3000:]
    study = yaml.safe_load((tmp_path / "out/optimization_results.yaml").read_text())
    losses, settings = {}, {}
    for number in range(6):
        folder = tmp_path / "out" / str(number)
        losses[number] = json.loads((folder / "metrics.json").read_text())["val/loss"]
        settings[number] = yaml.safe_load((folder / "config.yaml").read_text())
    assert len(set(losses.values())) > 1
    best = min(losses, key=losses.__getitem__)
    assert study["best_value"] == losses[best]
    found = study["best_params"]
    assert found["recipe.learning_rate"] == settings[best]["recipe"]["learning_rate"]
    assert found["objective.beta"] == settings[best]["objective"]["beta"]
