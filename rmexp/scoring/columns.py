"""Columns: the numbers that one model gives to responses, which are expensive and are stored."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from rmexp.models.checkpoints import Checkpoint

if TYPE_CHECKING:
    from rmexp.models.forward import Forward

Values = NDArray[np.float64]

# What to do about a model that a GPU does not hold.
TOO_LARGE = (
    "give model.dtype=bfloat16, spread it over all GPUs with model.device_map=auto, or end what "
    "else uses this one"
)


@dataclass(frozen=True, slots=True)
class Column:
    """One model, and what is read from it: its score head, or its response's log-probability.

    `autocast` is the dtype of the matrix products where training is in mixed precision, and a
    policy's log-probabilities are compared with these. `fused` asks for fused kernels on a GPU.
    """

    checkpoint: Checkpoint
    quantity: Literal["score", "logps"]
    dtype: str
    attention: str | None
    device: str
    device_map: str | None = None
    autocast: str | None = None
    fused: bool = True

    def identity(self, cache: Path) -> dict[str, object]:
        """Return what determines the column's values, besides the token ids."""
        from rmexp.models.adapters import find_adapter
        from rmexp.models.fused import available

        head = "own code" if self.checkpoint.trust_remote_code else "float32"
        if self.quantity == "score" and (adapter := find_adapter(self.checkpoint)):
            head = f"{adapter.name} float32"
        mixed: dict[str, object] = {"autocast": self.autocast} if self.autocast else {}
        if self.fused and self.device.startswith("cuda") and available():
            mixed["fused"] = True
        return {
            "weights": self.checkpoint.fingerprint(cache),
            "reads": self.quantity,
            "dtype": self.dtype,
            "attention": self.attention,
            "head": head,
            **mixed,
        }

    def load(self, pad: int | None) -> "Forward":
        """Load the weights and return the forward pass.

        Raises ConfigError for whatever cannot work, too little memory among it.
        """
        from rmexp.models import forward, loading
        from rmexp.models.memory import enough_memory

        arguments = (self.checkpoint, self.dtype, self.attention, self.device, self.device_map)
        with enough_memory(f"{self.checkpoint.name} in {self.dtype}", TOO_LARGE):
            if self.quantity == "score":
                return forward.scalar_forward(loading.load_scalar(*arguments), pad, self.fused)
            policy = loading.load_policy(*arguments)
            return forward.logps_forward(policy, self.autocast, self.fused)
