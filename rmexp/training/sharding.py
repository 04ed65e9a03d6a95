"""Weights, gradients and the optimiser's state spread over devices, with fully_shard (FSDP2)."""

from collections.abc import Iterator, Mapping
from typing import Any

from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from rmexp.models.backbone import Model


class Sharded(ModelParallelStrategy):
    """Give each device a part of every parameter; checkpoints are those of one device.

    The module shards itself in `configure_model`. Computation and gradients keep the parameters'
    own dtype, as on one device; autocast lowers the former where the precision is a mixed one.
    """

    def __init__(self) -> None:
        super().__init__(save_distributed_checkpoint=False)

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Let Lightning hand the optimiser's state to `load_optimizer_state_dict`."""
        return True

    def setup_environment(self) -> None:
        """Take all devices as one group."""
        self._data_parallel_size, self._tensor_parallel_size = (
            self.num_nodes * self.num_processes,
            1,
        )
        super().setup_environment()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the whole weights, on the first device's process; the others help to gather."""
        assert self.lightning_module is not None
        return self._whole(self.lightning_module.state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the whole state, on the first device's process; the others help to gather."""
        if isinstance(optimizer, LightningOptimizer):
            optimizer = optimizer._optimizer
        state = optimizer.state_dict()
        return {**state, "state": {n: self._whole(part) for n, part in state["state"].items()}}

    def load_checkpoint(
        self, checkpoint_path: Any, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read the file in every process; each takes its part of it."""
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Take this device's part of the weights."""
        assert self.lightning_module is not None
        like = self.lightning_module.state_dict()
        parts = {name: _part(value, like[name]) for name, value in checkpoint["state_dict"].items()}
        self.lightning_module.load_state_dict(parts, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take this device's part of the optimiser's state."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            numbers = [number for group in saved["param_groups"] for number in group["params"]]
            like = dict(zip(numbers, parameters, strict=True))
            state = {
                number: {name: _part(value, like[number]) for name, value in part.items()}
                for number, part in saved["state"].items()
            }
            optimizer.load_state_dict({**saved, "state": state})

    def _whole(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Gather sharded tensors one by one, for the first process to keep on the CPU."""
        kept = {}
        for name, value in values.items():
            whole = value.full_tensor() if isinstance(value, DTensor) else value
            if self.is_global_zero:
                kept[name] = whole.detach().cpu() if isinstance(whole, Tensor) else whole
        return kept


def shard(module: nn.Module, model: Model, forward: str, mesh: Any) -> None:
    """Shard a module that holds a model: each of its layers, its head, and the rest.

    What is no layer is gathered before the method `forward` runs and stays so until the gradient
    is there, so that an output embedding can be read without a call. A head may have a dtype of its
    own.
    """
    for part in _parts(model):
        fully_shard(part, mesh=mesh)
    fully_shard(module, mesh=mesh, reshard_after_forward=False)
    register_fsdp_forward_method(module, forward)


def _parts(model: Model) -> Iterator[nn.Module]:
    kinds = set(model._no_split_modules or ())
    for layers in model.modules():
        if isinstance(layers, nn.ModuleList):
            yield from (layer for layer in layers if type(layer).__name__ in kinds)
    for name, part in model.named_children():
        apart = name != model.base_model_prefix and part is not model.get_output_embeddings()
        if apart and any(True for _ in part.parameters()):
            yield part


def _part(value: Any, like: Tensor) -> Any:
    """Return what a device holds of a whole tensor, if it has the shape of a sharded one."""
    if isinstance(value, Tensor) and isinstance(like, DTensor) and value.shape == like.shape:
        return distribute_tensor(
            value.to(like.device), like.device_mesh, like.placements, src_data_rank=None
        )
    return value
