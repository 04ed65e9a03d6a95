"""Weights to models: score heads and policies, loaded whole or not at all."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.utils import logging

from rmexp.adapters import find_adapter
from rmexp.backbone import Model, check_causal, hidden_states, probe
from rmexp.checkpoints import Checkpoint
from rmexp.errors import ConfigError
from rmexp.forward import fp32_weight, is_decoder, token_logits


def load_scalar(
    checkpoint: Checkpoint,
    dtype: str,
    attention: str | None,
    device: str,
    device_map: str | None = None,
) -> Model:
    """Load a model with a score head: a sequence classifier, or one that an adapter knows.

    The head is in fp32. `device_map` spreads the weights instead of putting them on `device`.
    Raises ConfigError where the head, or anything else, is missing from the weights, and where it
    has another number of outputs than one.
    """
    if adapter := find_adapter(checkpoint):
        auto, options = adapter.backbone(checkpoint)
        with unreported_weights():  # the library would list the head's weights as not expected
            backbone, unexpected = _load(auto, checkpoint, dtype, attention, device_map, **options)
        if device_map is None:
            backbone = backbone.to(device)
        model = adapter.complete(checkpoint, backbone, unexpected)
        check_causal(model)
        return model
    labels = checkpoint.config.get("id2label")
    outputs = 2 if labels is None else len(labels)  # the library's own default is 2
    if outputs != 1 and not checkpoint.trust_remote_code:
        raise ConfigError(
            f"{checkpoint.folder} has a head of {outputs} outputs, a reward model has 1: give "
            "another model, or read it as a policy with model.reader=implicit"
        )
    model, _ = _load(AutoModelForSequenceClassification, checkpoint, dtype, attention, device_map)
    for name, module in model.named_children():
        if name != model.base_model_prefix:
            to_float(module)
    model = (model if device_map else model.to(device)).eval()
    if is_decoder(model):
        check_causal(model)
    return model


def load_policy(
    checkpoint: Checkpoint,
    dtype: str,
    attention: str | None,
    device: str,
    device_map: str | None = None,
) -> Model:
    """Load a causal language model whose log-probabilities are to be read.

    Raises ConfigError where weights are missing, and for an architecture that changes its logits in
    a way that `token_logits` does not know.
    """
    model, _ = _load(AutoModelForCausalLM, checkpoint, dtype, attention, device_map)
    model = (model if device_map else model.to(device)).eval()
    check_causal(model)
    ids = probe(model, 8)
    rows, positions = torch.zeros_like(ids[0]), torch.arange(8, device=ids.device)
    with torch.inference_mode():
        expected = model(input_ids=ids, use_cache=False).logits[0].float()
        hidden = hidden_states(model, ids, positions[-1:] + 1)(rows, positions)
        found = token_logits(model, hidden, fp32_weight(model))
    if (found - expected).abs().max() > 0.05 * expected.abs().max():
        raise ConfigError(
            f"{type(model).__name__} changes its logits in a way that rmexp does not know: its "
            "log-probabilities would be wrong"
        )
    return model


def from_pretrained(
    auto: Any,
    checkpoint: Checkpoint,
    dtype: str,
    attention: str | None,
    purpose: str,
    **options: Any,
) -> tuple[Model, dict[str, Any]]:
    """Return the library's model, and what it says of missing and unexpected weights.

    Raises ConfigError, "cannot <purpose> <folder>", for what the library cannot load.
    """
    options.setdefault("pretrained_model_name_or_path", checkpoint.folder)
    if attention is not None:
        options["attn_implementation"] = attention
    try:
        model, info = auto.from_pretrained(
            dtype=getattr(torch, dtype),
            trust_remote_code=checkpoint.trust_remote_code,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **options,
        )
    except (ValueError, OSError, RuntimeError, ImportError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"cannot {purpose} {checkpoint.folder}: {reason}") from error
    return model, info


def to_float(head: nn.Module) -> None:
    """Put a head's weights, and whatever it is given, in fp32."""
    head.float().register_forward_pre_hook(_inputs_to_float)


@contextmanager
def unreported_weights() -> Iterator[None]:
    """Keep the library from warning of weights that a model does not have."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _load(
    auto: Any,
    checkpoint: Checkpoint,
    dtype: str,
    attention: str | None,
    device_map: str | None,
    **options: Any,
) -> tuple[Model, set[str]]:
    """Return the model, and the names of the weights that it leaves unread."""
    if device_map is not None:
        options["device_map"] = device_map
    if not sys.stderr.isatty():
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model, info = from_pretrained(auto, checkpoint, dtype, attention, "load", **options)
    if missing := sorted(info["missing_keys"]):
        raise ConfigError(
            f"{checkpoint.folder} lacks {len(missing)} of the weights of {type(model).__name__} "
            f"({', '.join(missing[:3])}): it is no such model; give a complete folder, or another "
            "model.reader"
        )
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ConfigError(
            f"{checkpoint.folder} does not fit the GPUs as model.dtype={dtype}: give more of them, "
            "or a smaller dtype"
        )
    return model, set(info["unexpected_keys"])


def _inputs_to_float(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(
        value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
        for value in inputs
    )
