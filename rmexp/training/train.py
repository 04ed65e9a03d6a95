"""Training, step by step: pairs, reference, fit with Lightning, and the model's folder."""

import gc
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lightning import Trainer

from rmexp.errors import ConfigError
from rmexp.models.chat import Chat
from rmexp.models.memory import enough_memory
from rmexp.outside import read_checkpoint
from rmexp.schema import Dataset, fingerprint
from rmexp.scoring.model_reward import check_vocabulary
from rmexp.stats import drawing
from rmexp.tracking.runs import RESULT_KEY, Run
from rmexp.training.batches import Batches
from rmexp.training.curves import training_curve
from rmexp.training.encoded import EncodedPairs, encode_pairs
from rmexp.training.export import export
from rmexp.training.fit import LESS_MEMORY, fit, limited, open_trainer, steps
from rmexp.training.module import PreferenceModule
from rmexp.training.references import free_devices, with_references
from rmexp.training.resuming import resumed
from rmexp.training.sharding import Sharded
from rmexp.training.split import split_by_prompt
from rmexp.training.start import Training, build_model, build_where_it_fits
from rmexp.training.summary import summarise, title

log = logging.getLogger(__name__)

_MIXED = {"bf16-mixed": "bfloat16", "16-mixed": "float16"}
_NAMED_ROWS = 5


@dataclass(frozen=True, slots=True)
class Place:
    """Where a training leaves its files, and the run that tracks it.

    `run` is None in a process that only helps another one, which writes the files. `key` makes the
    digest by which a finished run is known from the fingerprints of what it read. With `resume` the
    training goes on from the folder's last checkpoint, if there is one.
    """

    out_dir: Path
    run: Run | None
    key: Callable[..., str]
    resume: bool = False

    @property
    def checkpoints(self) -> Path:
        """Return the folder of the checkpoints."""
        return self.out_dir / "checkpoints"


@dataclass(frozen=True, slots=True)
class _Pairs:
    """The data, in which rows that cannot be read are bad ones, and their pairs as `chat` has them.

    `train` are trained on, `val` validate.
    """

    data: Dataset
    chat: Chat
    train: EncodedPairs
    val: EncodedPairs

    @property
    def counts(self) -> dict[str, int]:
        """Return the metrics `data/...`."""
        return {
            "data/train_pairs": len(self.train.pairs),
            "data/val_pairs": len(self.val.pairs),
            "data/bad_rows": len(self.data.bad_rows),
            "data/truncated": self.train.truncated + self.val.truncated,
            "data/dropped": self.train.dropped + self.val.dropped,
        }


def train(training: Training, place: Place) -> dict[str, float]:
    """Train, save the best model as `out_dir/model`, and return the metrics that were logged.

    Raises ConfigError, DataError or ScoreError for what cannot work, NaN losses among it.
    """
    _check_adapter(training)
    trainer = open_trainer(training.make_trainer, training.recipe, place.checkpoints, place.run)
    pairs = _load(training)
    planned, batches_an_epoch = _length(trainer, training, pairs)
    tags = _identify(training, pairs)
    if place.run is not None:
        _announce(training, pairs, tags, place)
    if training.objective.uses_reference:
        pairs = _add_references(training, pairs, trainer)
    settings = _reward_settings(training)
    identity = _identity(training, pairs, tags, trainer.accumulate_grad_batches)
    checkpoint = resumed(place.checkpoints / "last.ckpt", identity) if place.resume else None
    batches, val = _batches(training, pairs, trainer, batches_an_epoch)
    module = _module(training, trainer, planned, identity)
    place.checkpoints.mkdir(parents=True, exist_ok=True)
    kept = fit(trainer, module, batches, val, place.checkpoints, checkpoint)
    if place.run is None:
        return {}
    metrics = {**pairs.counts, **module.last_metrics(), **_validation(kept, module)}
    history, step = module.history, trainer.global_step
    del module, trainer
    gc.collect()  # the two hold each other, with the optimiser's state: make room for what follows
    folder = place.out_dir / "model"
    metrics["train/reload_max_delta"] = export(training, kept, settings, pairs.train.pairs, folder)
    drawing.save(training_curve(history, title(training, metrics)), place.out_dir / "training.png")
    _leave(metrics, step, place.out_dir, place.run)
    place.run.note(summarise(place.run.name, training, metrics, step))
    return metrics


def _check_adapter(training: Training) -> None:
    """Raise ConfigError for an adapter whose base could not be named."""
    adapter = training.start.column.checkpoint.adapter
    if training.recipe.lora_export == "adapter" and adapter is not None:
        raise ConfigError(
            f"recipe.lora_export=adapter: {adapter} is an adapter itself, below which none is read:"
            " take recipe.lora_export=merged, or merge it into its base first"
        )


def _load(training: Training) -> _Pairs:
    """Read the pairs, put some aside for validation, and encode them as evaluation does."""
    recipe, chat = training.recipe, training.start.reward.chat
    data = training.source.load()
    split = split_by_prompt(data.examples, recipe.val_share, recipe.seed)
    if recipe.max_length is not None:
        length = min(chat.max_length, recipe.max_length)
        chat = Chat(chat.tokenizer, length, chat.template, chat.date, chat.other)
    on_overlength = training.settings.on_overlength
    needs_place = training.objective.reader == "implicit"
    train, val = (
        encode_pairs(chat, examples, on_overlength, needs_place, data.skips)
        for examples in (split.train, split.val)
    )
    data = replace(data, bad_rows=(*data.bad_rows, *train.bad_rows, *val.bad_rows))
    return _Pairs(data, chat, train, val)


def _length(trainer: Trainer, training: Training, pairs: _Pairs) -> tuple[int, int]:
    """Return how many steps are trained, and how many batches an epoch has.

    From here on the batches end by themselves, and know their last step.
    """
    recipe = training.recipe
    batches = Batches(
        pairs.train.pairs, recipe.batch_size, seed=recipe.seed, tokens=recipe.batch_tokens
    )
    planned, an_epoch = steps(trainer, len(batches)), limited(trainer, len(batches))
    trainer.limit_train_batches = 1.0
    return planned, an_epoch


def _identify(training: Training, pairs: _Pairs) -> dict[str, str]:
    """Return the tags by which a run of the same model on the same data is known."""
    checkpoint = training.start.column.checkpoint
    return {
        "rmexp.data": fingerprint(pairs.data.examples),
        "rmexp.weights": checkpoint.fingerprint(training.settings.store_dir),
        "rmexp.reading": checkpoint.reading(),
        "rmexp.objective": training.objective.name,
    }


def _announce(training: Training, pairs: _Pairs, tags: Mapping[str, str], place: Place) -> None:
    """Tell the run, the log and the folder what is trained on; end here if it was done before."""
    source, data, run = training.source, pairs.data, place.run
    assert run is not None
    run.set_tags({**tags, RESULT_KEY: place.key(**tags)})
    run.log_params({name.replace("/", "."): count for name, count in pairs.counts.items()})
    size = {"num_rows": len(data.examples)}
    run.log_dataset(source.name, tags["rmexp.data"], data.source, size)
    shown = ", ".join(f"{name.removeprefix('data/')} {n:,.0f}" for name, n in pairs.counts.items())
    log.info("%s: %d pairs from %s (%s)", source.name, len(data.examples), data.source, shown)
    for note in data.notes:
        log.warning("%s", note)
    if data.bad_rows:
        path = place.out_dir / "bad_rows.txt"
        path.write_text("\n".join(data.bad_rows) + "\n", encoding="utf-8")
        run.keep(path)
        named = "; ".join(data.bad_rows[:_NAMED_ROWS])
        log.warning("%d bad rows, listed in bad_rows.txt: %s", len(data.bad_rows), named)


def _add_references(training: Training, pairs: _Pairs, trainer: Trainer) -> _Pairs:
    """Give each pair the log-probabilities that the reference has of its responses.

    It runs as the policy does and on the same kind of device, so that the first loss is ln 2:
    rounding that only one of the two has would be part of every reward.
    """
    reference, together = training.start.reference, (*pairs.train.pairs, *pairs.val.pairs)
    products = _MIXED.get(str(trainer.precision))
    reference = replace(reference, dtype=training.start.dtype, autocast=products)
    kind = trainer.strategy.root_device.type
    if not reference.device_map and not reference.device.startswith(kind):
        reference = replace(reference, device=kind)
    rows = [row for pair in together for row in (pair.chosen, pair.rejected)]
    check_vocabulary(training.start.reward, rows)
    settings = replace(training.settings, devices=free_devices(trainer, reference))
    together = with_references(together, reference, settings, pairs.chat.tokenizer.pad_token_id)
    count = len(pairs.train.pairs)
    return replace(
        pairs,
        train=replace(pairs.train, pairs=together[:count]),
        val=replace(pairs.val, pairs=together[count:]),
    )


def _reward_settings(training: Training) -> dict[str, Any]:
    """Return what `rmexp.json` says: how to read the trained model, and beside which reference."""
    start, settings = training.start, training.objective.reward_settings()
    if not training.objective.uses_reference:
        return {**settings, "reference": None}
    checkpoint = start.reference.checkpoint
    reference = {
        "name": checkpoint.name,
        "path": start.reference_path or start.path,
        "revision": checkpoint.revision,
        "fingerprint": checkpoint.fingerprint(training.settings.store_dir),
    }
    below = {"base": start.base} if start.base else {}
    return {**settings, "reference": reference | below}


def _identity(
    training: Training, pairs: _Pairs, tags: Mapping[str, str], accumulate: int
) -> dict[str, Any]:
    """Return what a run that goes on must share with the one before."""
    recipe = asdict(training.recipe)
    del recipe["checkpoint_every"], recipe["lora_export"]
    return {
        "weights": tags["rmexp.weights"],
        "data": tags["rmexp.data"],
        "objective": training.objective.name,
        **pairs.chat.identity(),
        "accumulate": accumulate,
        **recipe,
        **training.objective.reward_settings(),
    }


def _batches(
    training: Training, pairs: _Pairs, trainer: Trainer, most: int
) -> tuple[Batches, Batches | None]:
    """Return this device's batches to train on, at most so many an epoch, and such as validate."""
    recipe = training.recipe
    size, tokens, pad = recipe.batch_size, recipe.batch_tokens, pairs.chat.tokenizer.pad_token_id
    share = trainer.global_rank, trainer.world_size
    accumulate = trainer.accumulate_grad_batches
    batches = Batches(
        pairs.train.pairs, size, share, pad or 0, accumulate, recipe.seed, tokens, most
    )
    if not pairs.val.pairs:
        return batches, None
    return batches, Batches(pairs.val.pairs, size, share, pad or 0, tokens=tokens)


def _module(
    training: Training, trainer: Trainer, planned: int, identity: dict[str, Any]
) -> PreferenceModule:
    """Load the model where it is trained, with random numbers of the seed, for so many steps.

    Raises ConfigError where it does not fit there.
    """
    recipe, start = training.recipe, training.start
    root = trainer.strategy.root_device
    made = start, training.objective, recipe, str(root) if root.type == "cuda" else "cpu"
    if isinstance(trainer.strategy, Sharded):  # a part of it is all that stays there
        model = build_where_it_fits(*made)
    else:
        with enough_memory(f"{start.column.checkpoint.name} in {start.dtype}", LESS_MEMORY):
            model = build_model(*made)
    return PreferenceModule(
        model,
        training.objective,
        steps=planned,
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        warmup=recipe.warmup,
        identity=identity,
    )


def _validation(kept: Path, module: PreferenceModule) -> dict[str, float]:
    """Return the validation's metrics of the checkpoint that is kept."""
    if kept.stem != "best":
        return module.validation
    saved = read_checkpoint(kept, "run the command again with resume=true")["rmexp"]
    return dict(saved["validation"])


def _leave(metrics: Mapping[str, float], step: int, out_dir: Path, run: Run) -> None:
    """Write the metrics beside the figure and the model, and give both to the run."""
    (out_dir / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
    run.keep(out_dir / "training.png", out_dir / "metrics.json")
    run.log_table(out_dir, metrics)
    counts = "data/"  # which are among the run's parameters
    run.log_metrics({k: v for k, v in metrics.items() if not k.startswith(counts)}, step)
