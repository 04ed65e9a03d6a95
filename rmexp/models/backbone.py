"""A model's backbone: token ids to hidden states, in padded batches or in packed rows.

Packing is for models of which it is known to be exact: decoders whose layers mix tokens by plain
causal attention alone. `enable_packing` decides, by the config and by trying.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rmexp.errors import ConfigError
from rmexp.models import packing
from rmexp.models.forks import Fork
from rmexp.models.packing import Packing, moved

Model = Any  # a transformers model: the library's classes are not typed enough to name
States = Callable[[Tensor, Tensor], Tensor]  # of rows and positions `(n,)`: states `(n, width)`

_CPU_BUDGET, _GPU_BUDGET = 2048, 65536  # tokens; with more of them nothing is faster
_CPU_MOST = 16384  # tokens of one prompt's responses: slower than fewer, but for what they share
# Attentions that compute what the packed one does; another one is somebody's choice.
_EXACT = ("sdpa", "flash_attention_2", packing.NAME)
_FULL, _WINDOW = "full_attention", "sliding_attention"
_TOLD = "rmexp_windows"  # where a backbone keeps whether its layers tell of their windows


def hidden_states(
    model: Model, ids: Tensor, lengths: Tensor, forks: Sequence[Fork] | None = None
) -> States:
    """Run the backbone and return a function that reads its last hidden states.

    `ids` is `(batch, length)`, padded on the right, and `lengths` `(batch,)`. With `forks`, which
    name every row of the batch once, no padding is run, and what a fork's rows share is run once,
    where that is exact.

    States are where `first_device` says. If all tensors are on the CPU, also those to read, nothing
    waits for that device.
    """
    device = torch.device(first_device(model))
    longest = int(lengths.max())
    if forks is None or longest > _packed_length(model):
        padded = _run(model, input_ids=moved(ids, device))
        there = padded.device  # the last layer may lie on another device than the ids
        return lambda rows, at: padded[moved(rows, there), moved(at, there)].to(device)
    counts = lengths.tolist()
    if longest > exact_length(model):
        forks = _apart(forks, counts, exact_length(model))
    layout = Packing(forks, counts)
    packed, positions = (moved(part, device) for part in layout.pack(ids))
    # A mask of four dimensions is one that the library leaves as it is; the attention ignores it.
    mask = torch.empty(1, 1, 1, 0, device=device)
    states = _run(
        model, input_ids=packed, position_ids=positions, attention_mask=mask, packing=layout
    )[0]
    return lambda rows, at: states[moved(layout.at(rows, at), states.device)].to(device)


def enable_packing(model: Model) -> str | None:
    """Let a decoder run packed rows, or return why they would not be exact."""
    config = _config(model)
    if obstacle := _obstacle(model, config):
        return obstacle
    if not _attends_causally(model):
        return "it attends both ways"
    before = config._attn_implementation
    windows: list[int | None] = []
    with packing.watched(windows):
        model.base_model.set_attn_implementation(packing.NAME)
        exact = config._attn_implementation == packing.NAME and _packs_exactly(model)
    if not exact:
        model.base_model.set_attn_implementation(before)
        return f"{type(model.base_model).__name__} gives other numbers in a packed row"
    setattr(model.base_model, _TOLD, windows == _layer_windows(config))
    return None


def exact_length(model: Model) -> float:
    """Return the length up to which sequences may be packed and share tokens, 0 where none may.

    Within a sliding window all attention is plain, and so are rotary positions within the length
    beyond which they are stretched by the longest sequence that runs.
    """
    return min(_packed_length(model), _window(_config(model)))


def _packed_length(model: Model) -> float:
    """Return the length up to which sequences may be packed, sharing tokens or not."""
    config = _config(model)
    if config._attn_implementation != packing.NAME:
        return 0
    dropout = getattr(config, "attention_dropout", 0) or getattr(config, "attn_pdrop", 0)
    if model.training and dropout:
        return 0
    limits = [math.inf if getattr(model.base_model, _TOLD, False) else _window(config)]
    return min(limits + _stretched_beyond(config, getattr(config, "rope_parameters", None)))


def _window(config: Any) -> float:
    """Return to how many tokens a layer attends at most, itself among them."""
    window = getattr(config, "sliding_window", None)
    if window is None or not getattr(config, "use_sliding_window", True):
        return math.inf
    return float(window)


def _layer_windows(config: Any) -> list[int | None]:
    """Return each layer's window, as the config has it."""
    window = None if _window(config) == math.inf else config.sliding_window
    kinds = getattr(config, "layer_types", None) or [_WINDOW] * config.num_hidden_layers
    return [window if kind == _WINDOW else None for kind in kinds]


def _apart(forks: Sequence[Fork], lengths: Sequence[int], most: float) -> list[Fork]:
    """Let the sequences of forks with one of more than `most` tokens share nothing."""
    parts = (
        [fork]
        if max(lengths[row] for row in fork.rows) <= most
        else [Fork(0, (row,)) for row in fork.rows]
        for fork in forks
    )
    return [fork for part in parts for fork in part]


def token_budget(model: Model) -> tuple[int, int]:
    """Return how many tokens a batch may have, and how many the responses to one prompt.

    With more of them nothing is faster; a GPU's memory may hold fewer.
    """
    if torch.device(first_device(model)).type == "cuda":
        return _GPU_BUDGET, _GPU_BUDGET
    return _CPU_BUDGET, _CPU_MOST


def check_causal(model: Model) -> None:
    """Assert on a probe that what follows a token does not change it: padding rests on that."""
    with torch.inference_mode():
        states = _run(model, input_ids=probe(model, 8))
    if not states.isfinite().all():
        kind = str(states.dtype).removeprefix("torch.")
        raise ConfigError(
            f"{type(model).__name__} gives numbers that are not finite in {kind}: try "
            "model.dtype=float32 or another model.attention"
        )
    if not _attends_causally(model):
        raise ConfigError(
            f"{type(model).__name__} does not attend causally: it cannot be read at the last token"
        )


def probe(model: Model, length: int) -> Tensor:
    """Return some token ids `(1, length)`."""
    ids = torch.arange(5, 5 + length, device=first_device(model)).unsqueeze(0)
    return ids % int(_config(model).vocab_size)


def first_device(model: Model) -> str:
    """Return the device that token ids go to; weights may be spread over more."""
    return str(model.get_input_embeddings().weight.device)


def _attends_causally(model: Model) -> bool:
    """Return whether a probe's tokens stay as they are when others follow."""
    ids = probe(model, 12)
    with torch.inference_mode():
        alone, followed = _run(model, input_ids=ids[:, :8]), _run(model, input_ids=ids)[:, :8]
    return alike(followed, alone)


def _obstacle(model: Model, config: Any) -> str | None:
    """Return what in the model's config stands against packing."""
    kinds = set(getattr(config, "layer_types", None) or [_FULL])
    if model.config.is_encoder_decoder:
        return "it is an encoder with a decoder"
    if config._attn_implementation not in _EXACT:
        return f"its attention is {config._attn_implementation}"
    if not getattr(model.base_model, "_supports_attention_backend", False):
        return f"{type(model.base_model).__name__} has an attention of its own"
    if other := sorted(kinds - {_FULL, _WINDOW}):
        return f"it has layers of {', '.join(other)}"
    if getattr(config, "attn_logit_softcapping", None) is not None:
        return "it caps its attention's logits"
    if _WINDOW in kinds and getattr(config, "sliding_window", None) is None:
        return "its sliding window is not known"
    return None


def _packs_exactly(model: Model) -> bool:
    """Return whether sequences of a packed row are as they are alone, on a probe."""
    ids = probe(model, 48).view(4, 12)
    ids[1, :6] = ids[0, :6]
    lengths = torch.tensor([12, 9, 12, 7], device=ids.device)
    forks = [Fork(6, (0, 1)), Fork(0, (2,)), Fork(0, (3,))]
    rows, positions = (
        (torch.arange(12, device=ids.device) < lengths.unsqueeze(1)).nonzero().unbind(1)
    )
    with torch.inference_mode():
        alone = hidden_states(model, ids, lengths)(rows, positions)
        try:
            packed = hidden_states(model, ids, lengths, forks)(rows, positions)
        except (TypeError, ValueError, RuntimeError):  # whatever does not know the arguments
            return False
    return alike(packed, alone)


def alike(found: Tensor, expected: Tensor) -> bool:
    """Return whether states are the expected ones, but for what their dtype rounds."""
    tolerance = 1e-3 if expected.dtype == torch.float32 else 0.05
    return bool((found - expected).abs().mean() <= tolerance * expected.abs().mean())


def _run(model: Model, **inputs: Any) -> Tensor:
    """Return the backbone's last hidden states `(batch, length, width)`."""
    hidden: Tensor = model.base_model(**inputs, use_cache=False).last_hidden_state
    return hidden


def _config(model: Model) -> Any:
    return model.base_model.config.get_text_config()


def _stretched_beyond(config: Any, rope: Any) -> list[float]:
    """Return the lengths beyond which rotary positions depend on the longest sequence that runs.

    The settings are those of all layers together, or of each kind of layer.
    """
    if not isinstance(rope, dict):
        return []
    own = []
    if rope.get("rope_type") in ("dynamic", "longrope"):
        own = [rope.get("original_max_position_embeddings") or config.max_position_embeddings]
    return own + [limit for part in rope.values() for limit in _stretched_beyond(config, part)]
