"""Weights to models: score heads and policies, loaded whole or not at all."""

import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.utils import logging

from rmexp.errors import ConfigError
from rmexp.models.adapters import find_adapter
from rmexp.models.backbone import Model, check_causal, hidden_states, probe
from rmexp.models.checkpoints import ADAPTER_CONFIG, Checkpoint
from rmexp.models.forward import is_decoder
from rmexp.models.lora import add_adapter
from rmexp.models.model_files import ADAPTER_WEIGHTS
from rmexp.models.output import output_weight, token_logits

# What the library raises for a folder's content that it cannot use.
LIBRARY_ERRORS = (
    ArithmeticError,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    SafetensorError,
    StrictDataclassError,
    TypeError,
    ValueError,
)
# Weights that a model does not read, and that make no difference: buffers that old versions saved
# (rotary frequencies, position numbers, causal masks).
_HARMLESS = re.compile(
    r"(^|\.)(rotary_emb\.inv_freq|position_ids|masked_bias|(attn|attention)\.bias)$"
)
_LM_HEAD = re.compile(r"^lm_head\.")  # beside a score head; no reward reads it


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
    place = place_of(device, device_map)
    if adapter := find_adapter(checkpoint):
        if checkpoint.adapter is not None:
            raise ConfigError(
                f"{checkpoint.folder} has a {adapter.name} head, below which no LoRA adapter is "
                "read: merge it into its base"
            )
        auto, options = adapter.backbone(checkpoint)
        backbone, unexpected = _load(auto, checkpoint, dtype, attention, place, **options)
        if device_map is None:
            backbone = backbone.to(device)
        model = adapter.complete(checkpoint, backbone, unexpected)
        check_finite(model.head, checkpoint)
        check_causal(model)
        return model
    if checkpoint.outputs != 1 and not checkpoint.trust_remote_code:
        raise ConfigError(
            f"{checkpoint.folder} has a head of {checkpoint.outputs} outputs, a reward model has 1:"
            " give another model, or read it as a policy with model.reader=implicit"
        )
    auto = AutoModelForSequenceClassification
    options = {} if checkpoint.adapter is None else {"num_labels": 1}
    model, unread = _load(auto, checkpoint, dtype, attention, place, **options)
    check_unread(checkpoint, model, unread, _LM_HEAD.search)
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
    place = place_of(device, device_map)
    model, unread = _load(AutoModelForCausalLM, checkpoint, dtype, attention, place)
    check_unread(checkpoint, model, unread)
    model = (model if device_map else model.to(device)).eval()
    check_causal(model)
    ids = probe(model, 8)
    rows, positions = torch.zeros_like(ids[0]), torch.arange(8, device=ids.device)
    with torch.inference_mode():
        expected = model(input_ids=ids, use_cache=False).logits[0].float()
        hidden = hidden_states(model, ids, positions[-1:] + 1)(rows, positions)
        found = token_logits(model, hidden, output_weight(model))
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
    """Return the library's model with its adapter, and what it says of missing and unread weights.

    Raises ConfigError, "cannot <purpose> <folder>", for what the library cannot load.
    """
    if attention is not None:
        options["attn_implementation"] = attention
    try:
        with _without_adapter(checkpoint) as folder, _quietly():
            options.setdefault("pretrained_model_name_or_path", folder)
            model, info = auto.from_pretrained(
                dtype=getattr(torch, dtype),
                trust_remote_code=checkpoint.trust_remote_code,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # so that they are named
                **options,
            )
    except torch.OutOfMemoryError:
        raise
    except LIBRARY_ERRORS as error:
        raise ConfigError(
            f"cannot {purpose} {checkpoint.folder} by its config.json: {reason(error)}"
        ) from error
    if checkpoint.adapter is not None:
        info["missing_keys"] = set(info["missing_keys"]) - add_adapter(model, checkpoint.adapter)
    return model, info


def reason(error: BaseException) -> str:
    """Return what a library's error says, in one line."""
    lines = str(error).strip().splitlines() or [""]
    said = next((line.strip() for line in lines if not line.rstrip().endswith(":")), lines[0])
    return said if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: {said}"


def check_unread(
    checkpoint: Checkpoint,
    model: Model,
    unread: set[str],
    allowed: Callable[[str], object] = lambda name: False,
) -> None:
    """Raise ConfigError for weights that a model leaves unread, but for those known as idle."""
    names = sorted(name for name in unread if not (_HARMLESS.search(name) or allowed(name)))
    if names:
        raise ConfigError(
            f"{checkpoint.folder} has {len(names)} weights that {type(model).__name__} does not "
            f"read ({', '.join(names[:3])}): config.json is of another model; give a folder whose "
            "two belong together, or another model.reader"
        )


def check_finite(model: Model, checkpoint: Checkpoint) -> None:
    """Raise ConfigError for weights that are no numbers, naming the first."""
    for name, weight in model.named_parameters():
        # The sum takes no memory, but may overflow where all summands are finite.
        if not weight.sum().isfinite() and not weight.isfinite().all():
            kind = "NaN" if weight.isnan().any() else "infinite"
            count = int((~weight.isfinite()).sum())
            raise ConfigError(
                f"{checkpoint.folder} holds {kind} weights ({count} of {weight.numel()} in {name}, "
                "the first): get the model folder again, or train it anew"
            )


def to_float(head: nn.Module) -> None:
    """Put a head's weights, and whatever it is given, in fp32."""
    head.float().register_forward_pre_hook(_inputs_to_float)


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep the library from its table of weights that do not fit: what counts is an error here."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def place_of(device: str, device_map: str | None) -> str | dict[str, str] | None:
    """Return where the library is to put each weight as it reads it; None is the CPU.

    So no copy of all of them lies in the host's memory on their way to a GPU.
    """
    if device_map is not None or torch.device(device).type == "cpu":
        return device_map
    return {"": f"cuda:{torch.cuda.current_device()}" if device == "cuda" else device}


def _load(
    auto: Any,
    checkpoint: Checkpoint,
    dtype: str,
    attention: str | None,
    place: str | dict[str, str] | None,
    **options: Any,
) -> tuple[Model, set[str]]:
    """Return the model, and the names of the weights that it leaves unread."""
    if place is not None:
        options["device_map"] = place
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model, info = from_pretrained(auto, checkpoint, dtype, attention, "load", **options)
    if missing := sorted(info["missing_keys"]):
        raise ConfigError(
            f"{checkpoint.folder} lacks {len(missing)} of the weights of {type(model).__name__} "
            f"({', '.join(missing[:3])}): config.json is of another model; give a complete "
            "folder, or another model.reader"
        )
    if mismatched := sorted(info["mismatched_keys"]):
        name, found, expected = mismatched[0]
        raise ConfigError(
            f"{checkpoint.folder} has {len(mismatched)} weights of other sizes than config.json "
            f"says ({name} is {list(found)}, it must be {list(expected)}): get the folder again"
        )
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ConfigError(
            f"{checkpoint.folder} does not fit the GPUs as model.dtype={dtype}: give more of them, "
            "or a smaller dtype"
        )
    check_finite(model, checkpoint)
    return model, set(info["unexpected_keys"])


@contextmanager
def _without_adapter(checkpoint: Checkpoint) -> Iterator[Path]:
    """Give a folder of the base alone: from one with an adapter the library would load both."""
    if checkpoint.adapter != checkpoint.folder:
        yield checkpoint.folder
        return
    with tempfile.TemporaryDirectory() as base:
        for path in checkpoint.folder.iterdir():
            if path.name not in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
                (Path(base) / path.name).symlink_to(path)
        yield Path(base)


def _inputs_to_float(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(
        value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
        for value in inputs
    )
