"""Reward models: one number for a (prompt, response), read from a head or from a policy.

A reward is a pure function of columns, each the numbers that one model gives to the responses. A
column is what is expensive, and what the store keeps: policies with one reference share its column.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rmexp.errors import ConfigError
from rmexp.models.chat import TODAY, Chat, Encoded, check_same_tokens
from rmexp.models.checkpoints import Checkpoint, find_checkpoint
from rmexp.models.reward_settings import RewardSettings, is_beta
from rmexp.models.tokenizers import check_max_length, load_tokenizer, template_text, token_limit
from rmexp.scoring.columns import Column, Values
from rmexp.scoring.model_reward import ModelReward

_FLASH = "flash_attention_2"
DTYPES = ("float32", "bfloat16", "float16")

# Tells tokenizers apart before any data are read.
_SAMPLE = "What is 17 + 25? Die Antwort ist 42, def f(x):\n    return x"


@dataclass(frozen=True, slots=True)
class ScalarReward(ModelReward):
    """The output of a sequence classifier's one-number head."""

    @property
    def description(self) -> str:
        """Say how the rewards are read."""
        return "scalar head"

    def rewards(self, columns: Sequence[Values], encoded: Sequence[Encoded]) -> Values:
        """Return the only column."""
        return columns[0]


@dataclass(frozen=True, slots=True)
class ImplicitReward(ModelReward):
    """The reward that a DPO policy implies (Rafailov et al. 2023, equation 5 without its constant).

    beta * (log pi(y|x) - log pi_ref(y|x)) with a reference, the second column; log pi(y|x) alone
    without. `length_normalised` divides by the number of response tokens.
    """

    beta: float
    length_normalised: bool
    reference: str | None

    @property
    def description(self) -> str:
        """Say how the rewards are read."""
        unit = "mean per token" if self.length_normalised else "sum"
        if self.reference is None:
            return f"implicit, without reference, {unit}"
        return f"implicit, reference {self.reference}, beta {self.beta:g}, {unit}"

    def rewards(self, columns: Sequence[Values], encoded: Sequence[Encoded]) -> Values:
        """Return the rewards from log pi, and log pi_ref where there is a reference."""
        return implicit_rewards(
            columns[0],
            columns[1] if len(columns) > 1 else None,
            np.array([max(1, row.end - row.start) for row in encoded]),
            self.beta,
            self.length_normalised,
        )

    def without_reference(self) -> "ImplicitReward":
        """Return the same policy read as its log-probability alone."""
        name = f"{self.name} without reference"
        return replace(self, name=name, columns=self.columns[:1], reference=None)


def implicit_rewards(
    logps: Values,
    ref_logps: Values | None,
    lengths: NDArray[np.int_],
    beta: float,
    length_normalised: bool,
) -> Values:
    """Return implicit rewards `(responses,)` from summed log-probabilities in nats.

    `lengths` counts the response tokens. Without `ref_logps` the reward is log pi alone.
    """
    ratio = logps if ref_logps is None else beta * (logps - ref_logps)
    return ratio / lengths if length_normalised else ratio


def open_reward(
    *,
    path: str,
    name: str | None = None,
    revision: str | None = None,
    base: str | None = None,
    reader: str = "auto",
    reference: Mapping[str, Any] | None = None,
    beta: float | None = None,
    length_normalised: bool | None = None,
    dtype: str | None = None,
    max_length: int | None = None,
    attention: str | None = None,
    chat_template: str | None = None,
    date: str = TODAY,
    trust_remote_code: bool = False,
    convert_bin: bool = False,
    device: str = "auto",
    device_map: str | None = None,
    fused: bool = True,
) -> ModelReward:
    """Open a reward model without loading its weights.

    `reader` is "scalar" (a head), "implicit" (a policy) or "auto": what `rmexp.json` says, else a
    sequence classifier, or a head that an adapter knows, is scalar and a causal language model
    implicit without reference. `base` is the model below a folder that holds nothing but a LoRA
    adapter; null takes the one that the adapter names. `device_map` "auto" spreads the weights over
    all GPUs. `reference` has `path` and, from the hub, `revision`, and of an adapter `base`;
    null takes the one in `rmexp.json`, and `{path: null}` leaves it out. `date` is what a chat
    template takes for today.
    `convert_bin` reads pickled weights where there are no others; see `bin_weights.converted`.
    `fused` lets liger-kernel run on a GPU where it is installed.
    Raises ConfigError for whatever cannot work.
    """
    if reader not in ("auto", "scalar", "implicit"):
        raise ConfigError(f"model.reader={reader}: use auto, scalar or implicit")
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"model.dtype={dtype}: use one of {', '.join(DTYPES)}")
    check_max_length(max_length)
    if device_map is not None and device != "auto":
        raise ConfigError(
            f"model.device={device} with model.device_map={device_map}: give one of the two, a "
            "device map chooses the devices itself"
        )
    device = _device(device)
    if attention == _FLASH:
        _check_flash(device, dtype)
    if beta is not None and not is_beta(beta):
        raise ConfigError(f"model.beta={beta}: give a number above 0")
    if length_normalised not in (None, True, False):
        raise ConfigError(f"model.length_normalised={length_normalised}: use true or false")
    for key, value in (("fused", fused), ("convert_bin", convert_bin)):
        if not isinstance(value, bool):
            raise ConfigError(f"model.{key}={value}: use true or false")
    checkpoint = find_checkpoint(path, revision, trust_remote_code, base, convert_bin)
    trained = checkpoint.rmexp()
    reader = _reader(checkpoint, trained) if reader == "auto" else reader
    tokenizer = load_tokenizer(checkpoint)
    length = max_length or token_limit(checkpoint, tokenizer)
    template = template_text(chat_template, tokenizer)
    chat = Chat(tokenizer, length, template, date)
    chat.check()
    name = name or checkpoint.name

    def column(source: Checkpoint, quantity: Literal["score", "logps"]) -> Column:
        if source.adapter is not None:
            from rmexp.models.lora import read_adapter

            read_adapter(source.adapter)  # what it refuses is known before any data are read
        resolved = dtype or _default_dtype(source, device)
        return Column(source, quantity, resolved, attention, device, device_map, fused=fused)

    if reader == "scalar":
        return ScalarReward(name, chat, (column(checkpoint, "score"),))
    if trained is not None:
        beta = trained.beta if beta is None else beta
        if length_normalised is None:
            length_normalised = trained.length_normalised
    columns, reference_name = [column(checkpoint, "logps")], None
    trusted = trust_remote_code and reference is not None  # not because the folder says so
    if reference is None and trained is not None:
        reference = trained.reference
    if reference and reference.get("path"):
        source = find_checkpoint(
            str(reference["path"]),
            reference.get("revision"),
            trusted,
            reference.get("base"),
            convert_bin,
        )
        other = load_tokenizer(source)
        if not _same_tokenizer(tokenizer, other):
            made: Any = tokenizer([_SAMPLE], add_special_tokens=False)
            check_same_tokens([_SAMPLE], made["input_ids"], other)
            chat = Chat(tokenizer, length, template, date, other)
        columns.append(column(source, "logps"))
        reference_name = str(reference.get("name") or source.name)
    return ImplicitReward(
        name,
        chat,
        tuple(columns),
        0.1 if beta is None else float(beta),
        bool(length_normalised),
        reference_name,
    )


def _reader(checkpoint: Checkpoint, trained: RewardSettings | None) -> str:
    if trained is not None:
        return trained.reader
    from rmexp.models.adapters import find_adapter

    architecture = checkpoint.architecture
    if checkpoint.is_classifier or find_adapter(checkpoint):
        return "scalar"
    if architecture.endswith("ForCausalLM") or architecture.endswith("LMHeadModel"):
        return "implicit"
    raise ConfigError(
        f"{checkpoint.folder} was saved from {architecture or 'an unnamed class'}: say how to read "
        "it, model.reader=scalar or model.reader=implicit"
    )


def _device(device: str) -> str:
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"model.device={device}: this machine shows no CUDA device")
    return device


def _check_flash(device: str, dtype: str | None) -> None:
    """Raise ConfigError where flash attention cannot run."""
    if device == "cpu":
        reason = "this model is on the CPU, it runs on GPUs alone"
    elif find_spec("flash_attn") is None:
        reason = "the package flash-attn is not installed"
    elif dtype == "float32":
        reason = "it computes in 16 bits, give model.dtype=bfloat16 with it"
    else:
        return
    raise ConfigError(
        f"model.attention={_FLASH}: {reason}; without model.attention a GPU runs torch's own flash "
        "kernel on packed rows"
    )


def _default_dtype(checkpoint: Checkpoint, device: str) -> str:
    """Return fp32 on a CPU, else the dtype that the checkpoint names for itself."""
    config = checkpoint.config
    own = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    return "float32" if device == "cpu" or own not in DTYPES else own


def _same_tokenizer(one: Any, other: Any) -> bool:
    """Say whether two tokenizers are the same by all that they are made of."""
    if not (one.is_fast and other.is_fast):
        return False
    return bool(one.backend_tokenizer.to_str() == other.backend_tokenizer.to_str())
