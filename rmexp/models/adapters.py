"""Models whose reward head is no plain sequence classifier's: told apart, built and loaded.

A head is told by the names of its weights, for the class names in config.json are of little use:
ArmoRM and QRM share one, and Starling calls its own class LlamaForSequenceClassification. Loading
is strict: nothing missing, nothing unexpected.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from safetensors import safe_open
from torch import Tensor

from rmexp.errors import ConfigError
from rmexp.models.checkpoints import Checkpoint
from rmexp.models.heads import (
    AdaptedModel,
    Build,
    gated_objectives,
    linear_head,
    mlp_head,
    weighted_means,
)
from rmexp.models.model_files import tensor_shapes

# A language model's own head may lie beside a reward head, and old checkpoints keep a buffer of the
# rotary embedding. No reward reads either.
_UNREAD = ("lm_head.weight", "rotary_emb.inv_freq")


@dataclass(frozen=True)
class Adapter:
    """How the heads of a kind are told, built and loaded; `name` goes into the store's identity.

    `marks` are the names of weights that only such a checkpoint has, `prefix` the backbone's.
    """

    name: str
    marks: frozenset[str]
    build: Build
    prefix: str = "model."

    def backbone(self, checkpoint: Checkpoint) -> tuple[Any, dict[str, Any]]:
        """Return the backbone's class, and what its `from_pretrained` takes besides the path."""
        from transformers import CONFIG_MAPPING, AutoConfig, AutoModel

        settings = {key: value for key, value in checkpoint.config.items() if key != "auto_map"}
        if (kind := settings.get("model_type")) not in CONFIG_MAPPING:
            raise ConfigError(
                f"{checkpoint.folder} has a backbone of the type {kind}, which transformers does "
                "not know: run its own code, model.trust_remote_code=true with a pinned "
                "model.revision"
            )
        options: dict[str, Any] = {"config": AutoConfig.for_model(**settings)}
        if self.prefix != "model.":
            options["key_mapping"] = {f"^{self.prefix}": "model."}
        return AutoModel, options

    def reward_token(self, checkpoint: Checkpoint) -> int | None:
        """Return the token that is put behind a conversation, if the model is read at one."""
        return None

    def complete(self, checkpoint: Checkpoint, backbone: Any, unexpected: set[str]) -> AdaptedModel:
        """Return the backbone with its head, on the device that the token ids go to.

        `unexpected` are the weights that the backbone left unread. Raises ConfigError where they
        are not exactly those that the head is defined to have.
        """
        shapes = weight_shapes(checkpoint)
        names = {
            name
            for name in shapes.keys() | unexpected
            if not name.startswith(self.prefix) and not name.endswith(_UNREAD)
        }
        names |= {name for name in unexpected if not name.endswith(_UNREAD)}
        head = self.build(checkpoint.config, shapes)
        own = set(head.state_dict())
        if own != names:
            raise ConfigError(
                f"{checkpoint.folder} has not the weights of a {self.name} head (missing: "
                f"{_few(own - names)}; unexpected: {_few(names - own)}): get it again, or run its "
                "own code, model.trust_remote_code=true with a pinned model.revision"
            )
        try:
            head.load_state_dict(_tensors(checkpoint, *names))
        except RuntimeError as error:
            raise ConfigError(
                f"the head of {checkpoint.folder} has other shapes than a {self.name} head "
                f"({str(error).splitlines()[-1].strip()}): get the model again"
            ) from error
        model = AdaptedModel(backbone, head, self.reward_token(checkpoint))
        model.head.to(backbone.get_input_embeddings().weight.device)
        return model.eval()


class InternLM2(Adapter):
    """InternLM2 is Llama with other names, and queries, keys and values fused."""

    def backbone(self, checkpoint: Checkpoint) -> tuple[Any, dict[str, Any]]:
        """Return Llama and the weights under its names; they are held in memory for it."""
        from transformers import LlamaConfig, LlamaModel

        apart = ("auto_map", "model_type")
        settings = {key: value for key, value in checkpoint.config.items() if key not in apart}
        weights = _llama_weights(_tensors(checkpoint, self.prefix), settings)
        # The library takes either a path or weights.
        path = {"pretrained_model_name_or_path": None}
        return LlamaModel, path | {"config": LlamaConfig(**settings), "state_dict": weights}

    def reward_token(self, checkpoint: Checkpoint) -> int:
        """Return the token that config.json names, or raise ConfigError."""
        token = checkpoint.config.get("reward_token_id")
        if not isinstance(token, int):
            raise ConfigError(
                f"config.json of {checkpoint.folder} names no reward_token_id, at which this model "
                "is read: add it"
            )
        return token


def find_adapter(checkpoint: Checkpoint) -> Adapter | None:
    """Return the adapter for the checkpoint's head, or None: the library or its own code has it."""
    if checkpoint.trust_remote_code:
        return None
    shapes = weight_shapes(checkpoint)
    return next((adapter for adapter in ADAPTERS if adapter.marks <= shapes.keys()), None)


def weight_shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of all weights, read from the files' headers."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in checkpoint.weights:
        shapes |= tensor_shapes(path)
    return shapes


def _tensors(checkpoint: Checkpoint, *prefixes: str) -> dict[str, Tensor]:
    """Return the weights whose names begin with one of the prefixes."""
    tensors: dict[str, Tensor] = {}
    for path in checkpoint.weights:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                if name.startswith(prefixes):
                    tensors[name] = file.get_tensor(name)
    return tensors


def _llama_weights(weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return InternLM2's weights under Llama's names, with queries, keys and values apart.

    InternLM2 fuses them: for each key-value head its query heads, then its key, then its value.
    """
    renamed = {
        "tok_embeddings": "embed_tokens",
        "attention.wo": "self_attn.o_proj",
        "feed_forward.w1": "mlp.gate_proj",
        "feed_forward.w3": "mlp.up_proj",
        "feed_forward.w2": "mlp.down_proj",
        "attention_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
    }
    heads = config["num_attention_heads"]
    groups = config.get("num_key_value_heads") or heads
    llama: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if ".attention.wqkv." in name:
            fused = tensor.reshape(groups, heads // groups + 2, -1, *tensor.shape[1:])
            parts = {"q": fused[:, :-2], "k": fused[:, -2], "v": fused[:, -1]}
            for part, values in parts.items():
                apart = values.reshape(-1, *tensor.shape[1:])
                llama[name.replace("attention.wqkv", f"self_attn.{part}_proj")] = apart
        else:
            new = name
            for theirs, ours in renamed.items():
                new = new.replace(f".{theirs}.", f".{ours}.")
            llama[new] = tensor
    return llama


def _few(names: set[str]) -> str:
    return ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "") or "nothing"


ADAPTERS = (
    # ArmoRM's and QRM's model cards, and RewardBench's code for QRM.
    Adapter(
        "gated_objectives",
        frozenset({"regression_layer.weight", "gating.logit_scale"}),
        gated_objectives,
    ),
    # URM: the class LlamaForSequenceClassificationWithNormal_Weights as SGLang serves it.
    Adapter("weighted_means", frozenset({"score.weight", "weights.fc.0.weight"}), weighted_means),
    # InternLM2: vLLM's weight layout; RewardBench's code for the reward token.
    InternLM2(
        "internlm2",
        frozenset({"v_head.weight", "model.tok_embeddings.weight"}),
        linear_head("v_head"),
    ),
    # Starling: the class in its model card.
    Adapter(
        "starling",
        frozenset({"v_head.weight", "transformer.norm.weight"}),
        linear_head("v_head"),
        "transformer.",
    ),
    # GRM with a text regularisation: RewardBench's code; a head is an MLP or one layer.
    Adapter("grm", frozenset({"v_head.summary.0.weight"}), mlp_head("v_head.summary")),
    Adapter(
        "grm_linear", frozenset({"v_head.summary.weight"}), linear_head("v_head.summary", bias=True)
    ),
    # Eurus: the class in its repository.
    Adapter("eurus", frozenset({"regression_head.weight"}), linear_head("regression_head")),
    # INF-ORM: the class in its model card.
    Adapter("inf_orm", frozenset({"score.0.weight", "score.2.weight"}), mlp_head("score")),
)
