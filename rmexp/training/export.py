"""The trained model as a folder that evaluation, transformers and the model registry read."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.modeling_utils import PreTrainedModel

from rmexp.errors import ConfigError, ScoreError, no_room
from rmexp.models.checkpoints import EMBEDDED
from rmexp.outside import read_checkpoint
from rmexp.scoring.rewards import open_reward
from rmexp.training.batches import Batches
from rmexp.training.encoded import EncodedPair
from rmexp.training.lora import merge_lora, save_lora
from rmexp.training.start import Start, Training, build_where_it_fits

_PROBED = 4  # pairs on which the saved model is compared with the trained one
_TOLERANCE = {"float32": 1e-3}  # relative; of the shorter numbers, see below
_SHORT_TOLERANCE = 0.1


def export(
    training: Training,
    checkpoint: Path,
    settings: Mapping[str, Any],
    pairs: Sequence[EncodedPair],
    folder: Path,
) -> float:
    """Save a training checkpoint's model as `folder`, read it again, and compare.

    Returns the largest difference between a reward of the first pairs as trained and as evaluation
    reads it. The folder appears complete or not at all, and holds the LoRA layers alone if the
    recipe says so. `settings` goes into `rmexp.json`. Raises ScoreError where the rewards differ,
    ConfigError where the folder cannot be written.
    """
    start, probe = training.start, pairs[:_PROBED]
    model, tokenizer = _trained(training, checkpoint), start.reward.chat.tokenizer
    batch = next(iter(Batches(probe, len(probe), pad=tokenizer.pad_token_id or 0)))
    with torch.inference_mode():
        expected = training.objective.rewards(model, batch).double().cpu().numpy()
    tokenizer.chat_template = start.reward.chat.template
    draft = folder.with_name(f".{folder.name}.draft")
    try:
        _remove(draft)  # of a run that was killed
        if training.recipe.lora_rank is not None and training.recipe.lora_export == "adapter":
            save_lora(model, draft, _base(start), training.recipe, training.objective.reader)
        else:
            model.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
        (draft / "rmexp.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
        _remove(folder)
        draft.rename(folder)
    except OSError as error:
        if no_room(error):
            raise
        raise ConfigError(
            f"cannot write {folder} ({error.strerror or error}): mend that, and run the command "
            f"again with resume=true out_dir={folder.parent}"
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    device = str(model.device)
    del model
    delta = float(np.abs(_reread(start, folder, probe, device) - expected).max())
    limit = _TOLERANCE.get(start.dtype, _SHORT_TOLERANCE) * max(1.0, float(np.abs(expected).max()))
    if not delta <= limit:
        raise ScoreError(
            f"the model in {folder} gives other rewards than the trained one (by up to {delta:g}): "
            "do not use it, and report this as a mistake of rmexp"
        )
    return delta


def _base(start: Start) -> tuple[str, str | None]:
    """Return the model below an adapter and its revision, as other programs find it."""
    checkpoint = start.column.checkpoint
    embedded = start.path == EMBEDDED
    return str(checkpoint.folder) if embedded else start.path, checkpoint.revision


def _remove(folder: Path) -> None:
    """Remove what stands where the folder belongs; of a link, the link and not what it leads to."""
    if folder.is_dir() and not folder.is_symlink():
        shutil.rmtree(folder)
    else:
        folder.unlink(missing_ok=True)


def _trained(training: Training, checkpoint: Path) -> PreTrainedModel:
    """Return the checkpoint's model as it is saved, on a GPU where it fits one."""
    start, recipe = training.start, training.recipe
    model = build_where_it_fits(start, training.objective, recipe, start.column.device)
    kept = read_checkpoint(checkpoint, "run the command again with resume=true")["state_dict"]
    model.load_state_dict({name.removeprefix("model."): value for name, value in kept.items()})
    if recipe.lora_rank is not None and recipe.lora_export == "merged":
        merge_lora(model)
    trained: PreTrainedModel = model.eval()
    return trained


def _reread(
    start: Start, folder: Path, probe: Sequence[EncodedPair], device: str
) -> "np.ndarray[Any, Any]":
    """Return the rewards of the chosen, then the rejected responses, as evaluation reads them."""
    reward = open_reward(
        path=str(folder),
        dtype=start.dtype,
        attention=start.column.attention,
        device=device,
        convert_bin=True,  # of a reference, which was converted for the start
    )
    rows = [pair.chosen for pair in probe] + [pair.rejected for pair in probe]
    columns = [np.array(reward.columns[0].load(reward.chat.tokenizer.pad_token_id)(rows))]
    if len(reward.columns) > 1:
        references = [pair.references or (np.nan, np.nan) for pair in probe]
        columns.append(np.array(references).T.reshape(-1))
    return reward.rewards(columns, rows)
