"""Training: data, reference, fit with Lightning, and a model folder that evaluation reads."""

import gc
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from lightning import Trainer

from rmexp.errors import ScoreError
from rmexp.models.chat import Chat
from rmexp.outside import read_checkpoint
from rmexp.schema import Dataset, fingerprint
from rmexp.scoring.columns import Column
from rmexp.scoring.model_reward import check_vocabulary, column_values
from rmexp.scoring.score import Settings
from rmexp.tracking.runs import RESULT_KEY, Run
from rmexp.training.batches import Batches, EncodedPairs, encode_pairs
from rmexp.training.curves import training_curve
from rmexp.training.data import Source, split_by_prompt
from rmexp.training.export import export
from rmexp.training.fit import fit, limited, open_trainer, resumed, steps
from rmexp.training.module import PreferenceModule
from rmexp.training.objectives import Objective
from rmexp.training.recipe import Recipe, Start, build_model

log = logging.getLogger(__name__)

_NAMED_ROWS = 5


def train(
    start: Start,
    objective: Objective,
    source: Source,
    make: Callable[..., Trainer],
    recipe: Recipe,
    settings: Settings,
    out_dir: Path,
    run: Run | None,
    key: Callable[..., str],
    resume: bool = False,
) -> dict[str, float]:
    """Train, save the best model as `out_dir/model`, and return the metrics that were logged.

    `key` makes the digest by which a finished run is known from the fingerprints of what it read.
    `run` is None in a process that only helps another one, which writes the files. Raises
    ConfigError, DataError or ScoreError for what cannot work, NaN losses among it.
    """
    folder = out_dir / "checkpoints"
    trainer = open_trainer(make, recipe, folder, run)
    data = source.load()
    split = split_by_prompt(data.examples, recipe.val_share, recipe.seed)
    chat, on_overlength = start.reward.chat, settings.on_overlength
    if recipe.max_length is not None:
        length = min(chat.max_length, recipe.max_length)
        chat = Chat(chat.tokenizer, length, chat.template, chat.date, chat.other)
    places = objective.reader == "implicit"
    parts = {
        name: encode_pairs(chat, examples, on_overlength, places, data.skips)
        for name, examples in (("train", split.train), ("val", split.val))
    }
    unread = [row for part in parts.values() for row in part.bad_rows]
    data = replace(data, bad_rows=(*data.bad_rows, *unread))
    counts = _counts(parts, data)
    size, limit = recipe.batch_size, recipe.batch_tokens
    an_epoch = len(Batches(parts["train"].pairs, size, seed=recipe.seed, tokens=limit))
    planned, most = steps(trainer, an_epoch), limited(trainer, an_epoch)
    trainer.limit_train_batches = 1.0  # the batches end by themselves, and know their last step
    weights = start.column.checkpoint.fingerprint(settings.store_dir)
    digest = fingerprint(data.examples)
    if run is not None:
        tags = {
            "rmexp.data": digest,
            "rmexp.weights": weights,
            "rmexp.reading": start.column.checkpoint.reading(),
            "rmexp.objective": objective.name,
        }
        run.set_tags(tags | {RESULT_KEY: key(**tags)})
        run.log_dataset(source.name, digest, data.source, {"num_rows": len(data.examples)})
        _report_data(source, data, counts, out_dir)
        if data.bad_rows:
            run.keep(out_dir / "bad_rows.txt")
    reading = {**objective.reading(), "reference": None}
    reference = start.reference if objective.uses_reference else None
    if reference is not None:
        rows = [
            row for part in parts.values() for p in part.pairs for row in (p.chosen, p.rejected)
        ]
        check_vocabulary(start.reward, rows)
        sharing = replace(settings, devices=_free_devices(trainer, reference))
        parts = _with_references(parts, reference, sharing, chat.tokenizer.pad_token_id)
        reading["reference"] = {
            "name": reference.checkpoint.name,
            "path": start.reference_path or start.path,
            "revision": reference.checkpoint.revision,
            "fingerprint": reference.checkpoint.fingerprint(settings.store_dir),
        }
    identity = {
        "weights": weights,
        "data": digest,
        "objective": objective.name,
        **chat.identity(),
        "accumulate": trainer.accumulate_grad_batches,
        **{k: v for k, v in asdict(recipe).items() if k != "checkpoint_every"},
        **{name: value for name, value in reading.items() if name != "reference"},
    }
    ckpt_path = resumed(folder / "last.ckpt", identity) if resume else None
    pad, devices = chat.tokenizer.pad_token_id or 0, (trainer.global_rank, trainer.world_size)
    accumulate, seed = trainer.accumulate_grad_batches, recipe.seed
    batches = Batches(parts["train"].pairs, size, devices, pad, accumulate, seed, limit, most)
    val = None
    if parts["val"].pairs:
        val = Batches(parts["val"].pairs, size, devices, pad, tokens=limit)
    torch.manual_seed(recipe.seed)
    module = PreferenceModule(
        build_model(start, objective, recipe),
        objective,
        steps=planned,
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        warmup=recipe.warmup,
        identity=identity,
    )
    folder.mkdir(parents=True, exist_ok=True)
    kept = fit(trainer, module, batches, val, folder, ckpt_path)
    if run is None:
        return {}

    history, step = module.history, trainer.global_step
    metrics = {**counts, **module.last_metrics(), **_validation(kept, module)}
    del module, trainer
    gc.collect()  # the two hold each other, with the optimiser's state: make room for what follows
    pairs = parts["train"].pairs
    metrics["train/reload_max_delta"] = export(
        start, objective, recipe, kept, reading, pairs, out_dir / "model"
    )
    training_curve(history).savefig(out_dir / "training.png", bbox_inches="tight")
    (out_dir / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
    run.keep(*(out_dir / name for name in ("model", "training.png", "metrics.json")))
    run.log_metrics(metrics, step)
    return metrics


def _counts(parts: Mapping[str, EncodedPairs], data: Dataset) -> dict[str, float]:
    return {
        "data/train_pairs": len(parts["train"].pairs),
        "data/val_pairs": len(parts["val"].pairs),
        "data/bad_rows": len(data.bad_rows),
        "data/truncated": sum(part.truncated for part in parts.values()),
        "data/dropped": sum(part.dropped for part in parts.values()),
    }


def _report_data(source: Source, data: Dataset, counts: Mapping[str, float], out_dir: Path) -> None:
    """Say what the data are and what is wrong with them, in the log and the folder."""
    shown = ", ".join(f"{name.removeprefix('data/')} {n:,.0f}" for name, n in counts.items())
    log.info("%s: %d pairs from %s (%s)", source.name, len(data.examples), data.source, shown)
    for note in data.notes:
        log.warning("%s", note)
    if data.bad_rows:
        (out_dir / "bad_rows.txt").write_text("\n".join(data.bad_rows) + "\n", encoding="utf-8")
        named = "; ".join(data.bad_rows[:_NAMED_ROWS])
        log.warning("%d bad rows, listed in bad_rows.txt: %s", len(data.bad_rows), named)


def _free_devices(trainer: Trainer, reference: Column) -> int:
    """Return how many devices may share the reference's pass: all, before Lightning takes them."""
    environment = getattr(trainer.strategy, "cluster_environment", None)
    theirs = environment is not None and environment.creates_processes_externally
    if theirs or reference.device_map or trainer.strategy.root_device.type != reference.device:
        return 1
    return int(trainer.num_devices)


def _with_references(
    parts: Mapping[str, EncodedPairs], reference: Column, settings: Settings, pad: int | None
) -> dict[str, EncodedPairs]:
    """Give each pair its responses' log pi_ref, computed once and kept in the score store."""
    pairs = [pair for part in parts.values() for pair in part.pairs]
    rows = [row for pair in pairs for row in (pair.chosen, pair.rejected)]
    with FileLock(settings.store_dir / "reference.lock"):  # one process computes, others read
        values = column_values(reference, rows, settings, pad).reshape(-1, 2)
    finite = np.isfinite(values).all(axis=1)
    if not finite.all():
        bad = pairs[int(finite.argmin())].id
        raise ScoreError(
            f"the reference's log-probability is not finite at pair {bad}: try model.dtype=float32,"
            " or leave the pair out"
        )
    given = iter([(float(chosen), float(rejected)) for chosen, rejected in values])
    return {
        name: replace(
            part, pairs=tuple(replace(pair, references=next(given)) for pair in part.pairs)
        )
        for name, part in parts.items()
    }


def _validation(kept: Path, module: PreferenceModule) -> dict[str, float]:
    """Return the validation's metrics of the checkpoint that is kept."""
    if kept.stem != "best":
        return module.validation
    saved = read_checkpoint(kept, "run the command again with resume=true")["rmexp"]
    return dict(saved["validation"])
