"""Reward heads, and a backbone with one on it.

Modules carry the names of the published checkpoints, so that loading their weights can be strict.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from rmexp.errors import ConfigError, ScoreError
from rmexp.models.backbone import hidden_states
from rmexp.models.forks import Fork

Shapes = Mapping[str, tuple[int, ...]]  # of all weights of a checkpoint, by name
# Makes a head from config.json and the shapes.
Build = Callable[[Mapping[str, Any], Shapes], nn.Module]

# The tokens from the end of the last user turn to the assistant's header, whose first one the gate
# reads: "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n" of Llama 3 and
# "<end_of_turn>\n<start_of_turn>model\n" of Gemma 2.
GATE_TOKENS = {
    "llama": (128009, 128006, 78191, 128007, 271),
    "gemma2": (107, 108, 106, 2516, 108),
}


class ScoreHead(nn.Module):
    """Layers under the name that the checkpoint gives them, read at the last token."""

    gate_tokens: tuple[int, ...] | None = None

    def __init__(self, path: str, layers: nn.Module) -> None:
        super().__init__()
        self.path = path
        *outer, name = path.split(".")
        parent: nn.Module = self
        for part in outer:
            parent.add_module(part, nn.Module())
            parent = parent.get_submodule(part)
        parent.add_module(name, layers)

    def forward(self, last: Tensor, gate: Tensor | None) -> Tensor:
        """Return rewards `(batch,)` of hidden states `(batch, width)`."""
        rewards: Tensor = self.get_submodule(self.path)(last).squeeze(-1)
        return rewards


class WeightedMeans(nn.Module):
    """URM: the attributes' means, weighted by an MLP of the same hidden state.

    The score layer gives a mean and a variance in turn for each attribute; the reward is the sum of
    weight times mean (Lou et al. 2024, section 3; the weights are not normalised).
    """

    gate_tokens: tuple[int, ...] | None = None

    def __init__(self, width: int, attributes: int) -> None:
        super().__init__()
        self.score = nn.Linear(width, 2 * attributes, bias=False)
        layers = nn.Sequential(
            nn.Linear(width, width),
            nn.SELU(),
            nn.Linear(width, width),
            nn.SELU(),
            nn.Linear(width, attributes),
        )
        self.weights = nn.ModuleDict({"fc": layers})

    def forward(self, last: Tensor, gate: Tensor | None) -> Tensor:
        """Return rewards `(batch,)` of hidden states `(batch, width)`."""
        means = self.score(last).unflatten(-1, (-1, 2))[..., 0]
        rewards: Tensor = (means * self.weights["fc"](last)).sum(-1)
        return rewards


class GatedObjectives(nn.Module):
    """ArmoRM and QRM: objectives at the last token, weighted by a gate at the end of the prompt.

    ArmoRM (Wang et al. 2024, section 3) has one value for each objective, QRM (Dorka 2024) several
    quantiles, whose mean is taken. The transform takes the share of verbosity out of each
    objective; QRM's later checkpoints have none. The gate is an MLP's softmax at a temperature,
    times a learned scale.
    """

    def __init__(
        self,
        gate: nn.ModuleDict,
        shape: tuple[int, ...],
        objectives: int,
        transform: bool,
        temperature: float,
        gate_tokens: tuple[int, ...],
    ) -> None:
        super().__init__()
        outputs, width = shape
        self.objectives = objectives
        self.temperature = temperature
        self.gate_tokens = gate_tokens
        self.regression_layer = nn.Linear(width, outputs, bias=False)
        self.gating = nn.Module()
        self.gating.layers = gate
        self.gating.logit_scale = nn.Parameter(torch.ones(1))
        matrix = nn.Parameter(torch.eye(objectives)) if transform else None
        self.register_parameter("reward_transform_matrix", matrix)

    def forward(self, last: Tensor, gate: Tensor | None) -> Tensor:
        """Return rewards `(batch,)`, from hidden states `(batch, width)` at both places."""
        assert gate is not None
        values = self.regression_layer(last).unflatten(-1, (self.objectives, -1)).mean(-1)
        if self.reward_transform_matrix is not None:
            values = values @ self.reward_transform_matrix
        logits = gate
        for layer in self.get_submodule("gating.layers").children():
            logits = layer(logits)
        scale = self.get_parameter("gating.logit_scale")
        weights = torch.softmax(logits / self.temperature, -1) * scale
        rewards: Tensor = (values * weights).sum(-1)
        return rewards


class AdaptedModel(nn.Module):
    """A backbone and a head: token ids, padded on the right, to rewards.

    `reward_token` is put behind every sequence that does not end in it. The head runs in fp32.
    """

    def __init__(self, backbone: Any, head: nn.Module, reward_token: int | None) -> None:
        super().__init__()
        self.base_model = backbone
        self.head = head.float()
        self.reward_token = reward_token
        self.config = backbone.config

    def get_input_embeddings(self) -> nn.Module:
        """Return the backbone's, which stand where the ids go."""
        embeddings: nn.Module = self.base_model.get_input_embeddings()
        return embeddings

    def forward(self, ids: Tensor, lengths: Tensor, forks: Sequence[Fork] | None = None) -> Tensor:
        """Return the rewards `(batch,)` of ids `(batch, length)` and their lengths `(batch,)`.

        What the rows of `forks` share is run once.
        """
        rows = torch.arange(len(ids), device=ids.device)
        if self.reward_token is not None:
            open_ended = ids[rows, lengths - 1] != self.reward_token
            ids = nn.functional.pad(ids, (0, 1))
            ids[rows[open_ended], lengths[open_ended]] = self.reward_token
            lengths = lengths + open_ended
        read = hidden_states(self, ids, lengths, forks)
        gate = None
        if self.head.gate_tokens is not None:
            gate = read(rows, self._gate_positions(ids, lengths)).float()
        last = read(rows, lengths - 1).float()
        with torch.autocast(last.device.type, enabled=False):
            rewards: Tensor = self.head(last, gate)
        return rewards

    def _gate_positions(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Return where the gate's tokens begin for the last time, `(batch,)`."""
        tokens = torch.tensor(self.head.gate_tokens, device=ids.device)
        if ids.shape[1] < len(tokens):
            starts = torch.full_like(lengths, -1)
        else:
            found = (ids.unfold(1, len(tokens), 1) == tokens).all(-1)
            at = torch.arange(found.shape[1], device=ids.device)
            found &= at + len(tokens) <= lengths.unsqueeze(1)
            starts = torch.where(found, at, -1).amax(1)
        if missing := int((starts < 0).sum()):
            raise ScoreError(
                f"{missing} of {len(ids)} conversations lack the end of a user turn, where the gate"
                " of this model is read: they were cut off (raise model.max_length, or leave them "
                "out with on_overlength=drop), or model.chat_template is not the model's own"
            )
        return starts


def linear_head(path: str, bias: bool = False) -> Build:
    """Return what builds a linear layer of that name with one output."""

    def build(config: Mapping[str, Any], shapes: Shapes) -> nn.Module:
        width = shapes[f"{path}.weight"][1]
        return ScoreHead(path, nn.Linear(width, 1, bias=bias))

    return build


def mlp_head(path: str) -> Build:
    """Return what builds linear layers of that name with a ReLU between each two."""

    def build(config: Mapping[str, Any], shapes: Shapes) -> nn.Module:
        layers: list[nn.Module] = []
        for index, (inputs, outputs) in _linears(path, shapes).items():
            layers += [nn.ReLU()] * bool(layers)
            if index != len(layers):
                raise ConfigError(f"{path} has no layer {len(layers)}: get the model again")
            layers.append(nn.Linear(inputs, outputs))
        return ScoreHead(path, nn.Sequential(*layers))

    return build


def weighted_means(config: Mapping[str, Any], shapes: Shapes) -> nn.Module:
    """Build URM's head."""
    outputs, width = shapes["score.weight"]
    return WeightedMeans(width, outputs // 2)


def gated_objectives(config: Mapping[str, Any], shapes: Shapes) -> nn.Module:
    """Build ArmoRM's gate, of linear layers and ReLU, or QRM's, which normalises between them.

    Layers without weights (QRM's ReLU, and dropout, which does nothing here) show in the numbers.
    """
    path = "gating.layers"
    linears = _linears(path, shapes)
    *hidden, last = linears
    layers: dict[str, nn.Module] = {}
    for index in hidden:
        inputs, outputs = linears[index]
        normalised = f"{path}.{index + 2}.running_mean" in shapes
        layers[str(index)] = nn.Linear(inputs, outputs, bias=not normalised)
        layers[f"relu{index}"] = nn.ReLU()
        if normalised:
            layers[str(index + 2)] = nn.BatchNorm1d(outputs)
    layers[str(last)] = nn.Linear(*linears[last])
    outputs, objectives = shapes["regression_layer.weight"][0], linears[last][1]
    if outputs % objectives:
        raise ConfigError(
            f"the regression layer's {outputs} outputs are not the gate's {objectives} objectives, "
            "or quantiles of each: get the model again"
        )
    later = any(after - before == 4 for before, after in pairwise(linears))  # QRM with dropout
    transform = not later or "reward_transform_matrix" in shapes
    kind = str(config.get("model_type"))
    if kind not in GATE_TOKENS:
        raise ConfigError(
            f"no gate is known for a backbone of type {kind}: its own code knows where it is read, "
            "model.trust_remote_code=true with a pinned model.revision"
        )
    return GatedObjectives(
        nn.ModuleDict(layers),
        shapes["regression_layer.weight"],
        objectives,
        transform,
        # What the authors' classes fall back to.
        float(config.get("gating_temperature", 1 if later else 10)),
        GATE_TOKENS[kind],
    )


def _linears(path: str, shapes: Shapes) -> dict[int, tuple[int, int]]:
    """Return inputs and outputs of the linear layers in a list by their index, in order.

    Raises ConfigError where one does not take what the one before gives.
    """
    found: dict[int, tuple[int, int]] = {}
    for name, shape in shapes.items():
        if name.startswith(f"{path}.") and name.endswith(".weight") and len(shape) == 2:
            found[int(name.split(".")[-2])] = (shape[1], shape[0])
    linears = dict(sorted(found.items()))
    if any(before[1] != after[0] for before, after in pairwise(linears.values())):
        raise ConfigError(f"a layer of {path} is missing from the weights: get the model again")
    return linears
