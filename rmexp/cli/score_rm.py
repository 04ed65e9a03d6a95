"""Score every row of a data set with a reward model.

python score_rm.py model=smollm2 data.path=rows.jsonl out=scored
"""

import dataclasses
import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from socket import gethostname
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig

from rmexp.cli import commands
from rmexp.cli.configs import build, folder, whole
from rmexp.cli.parts import keyed, model_config, settings
from rmexp.errors import ConfigError
from rmexp.files import CONF

if TYPE_CHECKING:
    from rmexp.data.streams import RowStream
    from rmexp.labelling.in_run import Work
    from rmexp.labelling.processes import Engine
    from rmexp.scoring.by_parts import PartScorer, Told
    from rmexp.scoring.score import Reward, Settings
    from rmexp.tracking.runs import Run

log = logging.getLogger(__name__)

_SOURCE = ("path", "split", "revision", "include")
# The settings that change what is written, besides the model and the data themselves.
_CHANGING = ("on_overlength", "prefix")
_CHANGING_DATA = ("limit", "on_bad_row", "columns")


def open_scorer(
    model: Mapping[str, Any],
    traits: Mapping[str, str],
    settings: "Settings",
    device: str | None,
    told: "Told",
) -> "PartScorer":
    """Open a model's config to score parts, on a device of this machine if one is given.

    Raises ConfigError where it is read otherwise than on the machine that found the `traits`.
    """
    from rmexp.scoring.by_parts import part_scorer

    reward: Reward = build(model if device is None else {**model, "device": device})
    for name, here in reward.traits().items():
        if traits.get(name) != here:
            raise ConfigError(
                f"{reward.name} has the {name} {here} on {gethostname()}, and {traits.get(name)} "
                "where the command runs: give what both can do, as model.dtype=bfloat16"
            )
    return part_scorer(reward, settings, told)


def plan(
    config: dict[str, Any],
    rows: "RowStream",
    reward: "Reward",
    model: Mapping[str, Any],
    engine: "Engine | None",
) -> "Work":
    """Return what there is to do. Raises ConfigError or DataError for what cannot work."""
    from rmexp.labelling.choosing import check_choice
    from rmexp.labelling.in_run import Work, share_of
    from rmexp.labelling.parts import Task
    from rmexp.labelling.rows import RowReader
    from rmexp.scoring.by_parts import part_scorer

    data = config["data"]
    reader = RowReader(data["columns"], data["on_bad_row"])
    log.info("counting the rows of %s", rows.source)
    limit = None if data["limit"] is None else whole(data, "limit", least=1)
    spans = rows.spans(whole(config, "shard_rows", least=1), limit)
    first = rows.read(dataclasses.replace(spans[0], rows=1)).rows[0]
    kind = reader.kind(first)
    how = settings(config)
    part_scorer(reward, how, lambda tokens: None)  # or it says why not
    task = Task(
        source={name: data[name] for name in _SOURCE},
        columns=data["columns"],
        on_bad_row=data["on_bad_row"],
        kind=kind,
        out=folder(config, "out"),
        form=rows.form,
        prefix=str(config["prefix"]),
        open_scorer=partial(open_scorer, model, reward.traits(), how),
    )
    choice = check_choice(config["keep"], config["best_of"], kind)
    mine = share_of(spans, config["shard"])
    engine = engine or _here(config, reward)
    return Work(task, rows, spans, mine, choice, engine, how.store_dir)


def _on_ray(config: Mapping[str, Any]) -> "Engine | None":
    """Return what makes the parts on a Ray cluster, if that is wanted."""
    if config["engine"]["name"] != "ray":
        return None
    from rmexp.labelling.on_ray import OnRay

    if config["devices"] != 1:
        raise ConfigError("devices is for engine=local: with engine=ray give engine.actors=N")
    named = {f"engine.{key}": value for key, value in config["engine"].items()}
    actors = None if named["engine.actors"] is None else whole(named, "engine.actors", least=1)
    return OnRay(str(named["engine.address"]), actors, whole(named, "engine.gpus"))


def _here(config: Mapping[str, Any], reward: "Reward") -> "Engine":
    """Return what makes the parts on this machine."""
    from rmexp.labelling import processes
    from rmexp.scoring.computing import count_devices
    from rmexp.scoring.model_reward import ModelReward
    from rmexp.scoring.score import check_devices

    devices = config["devices"]
    check_devices(devices)
    if devices == 1:
        return processes.here
    if not isinstance(reward, ModelReward):
        raise ConfigError(f"devices={devices}: {reward.name} has no weights to copy")
    column = reward.columns[0]
    count = count_devices(devices, column)
    names = [column.device if column.device == "cpu" else f"cuda:{at}" for at in range(count)]
    return partial(processes.on_devices, names)


def score(config: dict[str, Any], out_dir: Path) -> commands.Work:
    """Open `config["data"]` and `config["model"]`, to score the one with the other."""
    from rmexp.data.streams import RowStream

    engine = _on_ray(config)
    rows = RowStream(**{name: config["data"][name] for name in _SOURCE})
    model = model_config(config)
    reward: Reward = build(model)
    work = plan(config, rows, reward, model, engine)
    changing = {name: config[name] for name in _CHANGING}
    changing |= {f"data.{name}": config["data"][name] for name in _CHANGING_DATA}

    def task(run: "Run") -> str:
        from rmexp.labelling.in_run import label_in_run

        key = keyed(config, run, "rewards/rows")
        address = config["model"].get("uri")
        return label_in_run(work, reward, changing, out_dir, run, key, address)

    return task


def tags(config: dict[str, Any]) -> dict[str, str]:
    """Name the run by its model and data."""
    model = str(config["model"]["name"] or config["model"]["path"])
    return {
        "rmexp.name": f"{model} on {Path(config['data']['path']).name}",
        "rmexp.command": "score_rm",
        "rmexp.model": model,
    }


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="score_rm")
def main(config: DictConfig) -> float | None:
    """Score under Hydra."""
    return commands.run_command(config, score, tags)


def run() -> None:
    """Run the command, and exit."""
    commands.launch(main)
