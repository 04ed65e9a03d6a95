"""A linear layer with LoRA's two, as PEFT keeps it, multiplied as the layer below is."""

from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch import Tensor
from torch.nn.functional import linear


class LoraLinear(Linear):
    """PEFT's layer, with products in the dtype that it is given and the sum within the second.

    PEFT's own forward makes fp32 of all that goes in and out above a base in bf16: by its bytes and
    products a third of a step of an 8B model. The weights stay in fp32, and are rounded on their
    way as autocast would; sums are in fp32, and rounded once.
    """

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        """Return W x + s B A dropout(x) of states `(..., inputs)`: `(..., outputs)`."""
        base: Tensor = self.base_layer(x)
        (name,) = self.active_adapters
        parts: Any = self.lora_A[name], self.lora_B[name]
        down, up = (part.weight for part in parts)
        inner = linear(self.lora_dropout[name](x), down.to(x.dtype))
        up = (self.scaling[name] * up).to(x.dtype)
        return torch.addmm(base.flatten(0, -2), inner.flatten(0, -2), up.T).view_as(base)
