"""A sequence classifier to train: a reward model, or a language model with a new score head."""

import math
from functools import partial
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification

from rmexp.errors import ConfigError
from rmexp.models.adapters import find_adapter
from rmexp.models.backbone import Model
from rmexp.models.checkpoints import Checkpoint
from rmexp.models.loading import (
    check_finite,
    check_unread,
    from_pretrained,
    load_scalar,
    place_of,
    to_float,
)

_PAD = "<|pad|>"


def load_classifier(
    checkpoint: Checkpoint,
    tokenizer: Any,
    dtype: str,
    attention: str | None,
    seed: int,
    device: str = "cpu",
) -> Model:
    """Load a reward model to train on, or put a new head of one output on a language model.

    Model and tokenizer get a pad token of their own, so that other programs, which look for the
    last token that is no padding, find the one that was trained. A new head is drawn from a normal
    distribution of width 1 / sqrt(hidden size + 1) (Stiennon et al. 2020, appendix B.1).

    Raises ConfigError for a head that could not be saved as a sequence classifier, and for weights
    that are missing besides the head's.
    """
    if find_adapter(checkpoint):
        raise ConfigError(
            f"{checkpoint.folder} has a head of its own kind, which cannot be trained here: start "
            "from the language model below it"
        )
    if checkpoint.is_classifier and checkpoint.outputs == 1:
        model = load_scalar(checkpoint, dtype, attention, device)
    else:
        model = _with_new_head(checkpoint, dtype, attention, seed, device)
    _give_pad_token(model, tokenizer)
    return model


def _with_new_head(
    checkpoint: Checkpoint, dtype: str, attention: str | None, seed: int, device: str
) -> Model:
    place = place_of(device, None)
    model, info = from_pretrained(
        AutoModelForSequenceClassification,
        checkpoint,
        dtype,
        attention,
        "put a score head on",
        num_labels=1,
        **({} if place is None else {"device_map": place}),
    )
    heads = {
        name: module for name, module in model.named_children() if name != model.base_model_prefix
    }
    new = {str(key).split(".")[0] for key in info["missing_keys"]}
    new |= {str(key[0]).split(".")[0] for key in info["mismatched_keys"]}
    if unknown := new - set(heads):
        raise ConfigError(
            f"{checkpoint.folder} lacks weights of {type(model).__name__} besides the head's "
            f"({', '.join(sorted(unknown))}): give a complete folder of a language model"
        )
    check_unread(checkpoint, model, set(info["unexpected_keys"]), partial(_is_head, model))
    generator = torch.Generator().manual_seed(seed)
    for name in sorted(new):
        heads[name].float()
        for parameter in heads[name].parameters():
            with torch.no_grad():
                if parameter.dim() > 1:
                    std = 1 / math.sqrt(parameter.shape[-1] + 1)
                    drawn = torch.empty(parameter.shape).normal_(std=std, generator=generator)
                    parameter.copy_(drawn)
                else:
                    parameter.zero_()
    check_finite(model, checkpoint)
    for head in heads.values():
        to_float(head)
    return model


def _is_head(model: Model, name: str) -> bool:
    """Say whether a weight is of another head than the new one: none of the layers below it."""
    first = name.split(".")[0]
    inside = first == model.base_model_prefix or hasattr(model.base_model, first)
    return not inside or "pooler" in name.split(".")


def _give_pad_token(model: Model, tokenizer: Any) -> None:
    """Make sure that padding is told from text, in the tokenizer and in the model alike."""
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        known = [
            str(token)
            for number, token in tokenizer.added_tokens_decoder.items()
            if token.special and "pad" in str(token) and number != tokenizer.eos_token_id
        ]
        tokenizer.add_special_tokens({"pad_token": known[0] if known else _PAD})
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.config.pad_token_id = tokenizer.pad_token_id
