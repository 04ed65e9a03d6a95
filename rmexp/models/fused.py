"""Fused kernels for what a decoder does element by element: rotary positions, norms, gated units.

They are liger-kernel's, which the extra `gpu` installs. It would change the library's classes for
all models of a family; here an instance alone is changed, and what of it lies on a GPU.
"""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from rmexp.errors import ConfigError
from rmexp.models.backbone import Model, alike, hidden_states, probe

log = logging.getLogger(__name__)

_ROTARY = "apply_rotary_pos_emb"  # what the library's attention layers call, in each family's file
_SWITCH = "rmexp_fused"  # where a backbone has its switch


@dataclass(slots=True)
class _Switch:
    on: bool = True


def available() -> bool:
    """Return whether there is a GPU, and liger-kernel for it."""
    return torch.cuda.is_available() and find_spec("liger_kernel") is not None


def fuse(model: Model) -> bool:
    """Let a decoder's layers run fused kernels while they are on a GPU; return whether they will.

    They do not without liger-kernel, for a family that it does not know, with weights spread over
    devices, and where a probe finds other numbers than the plain layers'. Raises ConfigError where
    liger-kernel is of another time than transformers.
    """
    base = model.base_model
    if hasattr(base, _SWITCH):
        return True
    library = type(base).__module__
    spread = any(hasattr(module, "_hf_hook") for module in base.modules())
    if not available() or spread or not library.startswith("transformers.models."):
        return False
    logging.getLogger("liger_kernel").setLevel(logging.ERROR)  # it warns of other makers' devices
    from liger_kernel.transformers import monkey_patch as liger

    if base.config.model_type not in liger.MODEL_TYPE_TO_APPLY_LIGER_FN:
        return False
    names = vars(sys.modules[library])
    before = dict(names)
    try:
        liger._apply_liger_kernel_to_instance(
            base, cross_entropy=False, fused_linear_cross_entropy=False
        )
    except (AttributeError, ImportError, TypeError, ValueError) as error:
        raise ConfigError(
            f"liger-kernel cannot change {type(base).__name__} ({error}): install one that fits "
            "this version of transformers, or leave it out with model.fused=false"
        ) from error
    finally:
        rotary: Any = names.get(_ROTARY)
        names.update(before)
    switch = _Switch()
    for module in base.modules():
        own = vars(module)
        if (changed := own.pop("forward", None)) is not None:
            own.pop("extra_repr", None)
            own.pop("_get_name", None)
            module.forward = _either(switch, module.forward, changed)
        elif rotary is not before.get(_ROTARY):
            _turn_by(module, _either(switch, before[_ROTARY], rotary))
    setattr(base, _SWITCH, switch)
    if not _fits(model):
        _undo(base)
        return False
    log.info("%s runs liger-kernel's fused layers on the GPU", type(base).__name__)
    return True


@contextmanager
def plain(model: Model) -> Iterator[None]:
    """Run the library's own layers meanwhile."""
    switch = getattr(model.base_model, _SWITCH, _Switch())
    switch.on = False
    try:
        yield
    finally:
        switch.on = True


def _either(
    switch: _Switch, plain: Callable[..., Any], changed: Callable[..., Any]
) -> Callable[..., Any]:
    """Return what calls the changed function for tensors on a GPU, and else the plain one."""

    def either(first: Tensor, *others: Any, **options: Any) -> Any:
        chosen = changed if switch.on and _on_gpu(first) else plain
        return chosen(first, *others, **options)

    return either


def _turn_by(module: nn.Module, rotary: Callable[..., Any]) -> None:
    """Let an attention layer turn its queries and keys by another function than its file's."""
    forward = type(module).forward
    if not isinstance(forward, FunctionType) or _ROTARY not in forward.__code__.co_names:
        return
    own = FunctionType(
        forward.__code__,
        {**forward.__globals__, _ROTARY: rotary},
        forward.__name__,
        forward.__defaults__,
        forward.__closure__,
    )
    own.__kwdefaults__ = forward.__kwdefaults__
    module.forward = MethodType(own, module)


def _undo(base: nn.Module) -> None:
    for module in base.modules():
        vars(module).pop("forward", None)
    delattr(base, _SWITCH)


def _fits(model: Model) -> bool:
    """Return whether a probe gives what the plain layers give; one on the CPU runs these anyway."""
    ids, at = probe(model, 12), torch.arange(12)
    read = (torch.zeros_like(at), at)
    with torch.inference_mode():
        found = hidden_states(model, ids, at[-1:] + 1)(*read)
        with plain(model):
            return alike(found, hidden_states(model, ids, at[-1:] + 1)(*read))


def _on_gpu(tensor: Tensor) -> bool:
    return tensor.is_cuda
