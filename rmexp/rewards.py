"""Reward models: one number for a (prompt, response), read from a head or from a policy.

A reward is a pure function of columns, each the numbers that one model gives to the responses. A
column is what is expensive, and what the store keeps: policies with one reference share its column.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from rmexp.chat import TODAY, Chat, Encoded
from rmexp.checkpoints import Checkpoint, find_checkpoint
from rmexp.errors import ConfigError

if TYPE_CHECKING:
    from rmexp.forward import Reader

DTYPES = ("float32", "bfloat16", "float16")
Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Column:
    """One model, and what is read from it: its score head, or its response's log-probability."""

    checkpoint: Checkpoint
    reads: Literal["score", "logps"]
    dtype: str
    attention: str | None
    device: str
    device_map: str | None = None

    def identity(self, cache: Path) -> dict[str, object]:
        """Return what determines the column's values, besides the token ids."""
        from rmexp.adapters import find_adapter

        head = "own code" if self.checkpoint.trust_remote_code else "float32"
        if self.reads == "score" and (adapter := find_adapter(self.checkpoint)):
            head = f"{adapter.name} float32"
        return {
            "weights": self.checkpoint.fingerprint(cache),
            "reads": self.reads,
            "dtype": self.dtype,
            "attention": self.attention,
            "head": head,
        }

    def load(self, pad: int | None) -> "Reader":
        """Load the weights and return what reads a batch."""
        from rmexp import forward, loading

        arguments = (self.checkpoint, self.dtype, self.attention, self.device, self.device_map)
        if self.reads == "score":
            return forward.scalar_reader(loading.load_scalar(*arguments), pad)
        return forward.logps_reader(loading.load_policy(*arguments))


@dataclass(frozen=True, slots=True)
class ScalarReward:
    """The output of a sequence classifier's one-number head.

    `rewards` takes the values of the `columns`, `(responses,)` each.
    """

    name: str
    chat: Chat
    columns: tuple[Column, ...]

    @property
    def description(self) -> str:
        """Say how the rewards are read."""
        return "scalar head"

    def rewards(self, columns: Sequence[Values], encoded: Sequence[Encoded]) -> Values:
        """Return the only column."""
        return columns[0]


@dataclass(frozen=True, slots=True)
class ImplicitReward:
    """The reward that a DPO policy implies (Rafailov et al. 2023, equation 5 without its constant).

    beta * (log pi(y|x) - log pi_ref(y|x)) with a reference, the second column; log pi(y|x) alone
    without. `length_normalised` divides by the number of response tokens.
    """

    name: str
    chat: Chat
    columns: tuple[Column, ...]
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


# What scoring needs: a name and a description for tables, the tokens, and a function of columns.
ModelReward = ScalarReward | ImplicitReward


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
    device: str = "auto",
    device_map: str | None = None,
) -> ScalarReward | ImplicitReward:
    """Open a reward model without loading its weights.

    `reader` is "scalar" (a head), "implicit" (a policy) or "auto": what `rmexp.json` says, else a
    sequence classifier, or a head that an adapter knows, is scalar and a causal language model
    implicit without reference. `device_map` "auto" spreads the weights over all GPUs.
    `reference` has `path` and, from the hub, `revision`; null takes the one in `rmexp.json`, and
    `{path: null}` leaves it out. `date` is what a chat template takes for today. Raises ConfigError
    for whatever cannot work.
    """
    if reader not in ("auto", "scalar", "implicit"):
        raise ConfigError(f"model.reader={reader}: use auto, scalar or implicit")
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"model.dtype={dtype}: use one of {', '.join(DTYPES)}")
    if max_length is not None and (not isinstance(max_length, int) or max_length < 1):
        raise ConfigError(f"model.max_length={max_length}: give a positive number of tokens")
    if device_map is not None and device != "auto":
        raise ConfigError(
            f"model.device={device} with model.device_map={device_map}: give one of the two, a "
            "device map chooses the devices itself"
        )
    device = _device(device)
    checkpoint = find_checkpoint(path, revision, trust_remote_code)
    trained = checkpoint.rmexp() or {}
    reader = _reader(checkpoint, trained) if reader == "auto" else reader
    tokenizer = _tokenizer(checkpoint)
    length = max_length or _max_length(checkpoint, tokenizer)
    chat = Chat(tokenizer, length, _template(chat_template, tokenizer), date)
    name = name or checkpoint.name

    def column(source: Checkpoint, reads: Literal["score", "logps"]) -> Column:
        resolved = dtype or _default_dtype(source, device)
        return Column(source, reads, resolved, attention, device, device_map)

    if reader == "scalar":
        return ScalarReward(name, chat, (column(checkpoint, "score"),))
    columns = [column(checkpoint, "logps")]
    reference = reference if reference is not None else trained.get("reference")
    reference_name = None
    if reference and reference.get("path"):
        source = find_checkpoint(
            str(reference["path"]), reference.get("revision"), trust_remote_code
        )
        _check_same_tokens(tokenizer, _tokenizer(source), source)
        columns.append(column(source, "logps"))
        reference_name = str(reference.get("name") or source.name)
    beta = beta if beta is not None else float(trained.get("beta") or 0.1)
    if length_normalised is None:
        length_normalised = bool(trained.get("length_normalised", False))
    return ImplicitReward(name, chat, tuple(columns), beta, length_normalised, reference_name)


def _reader(checkpoint: Checkpoint, trained: Mapping[str, Any]) -> str:
    if "reader" in trained:
        return str(trained["reader"])
    from rmexp.adapters import find_adapter

    architecture = checkpoint.architecture
    if architecture.endswith("ForSequenceClassification") or find_adapter(checkpoint):
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


def _default_dtype(checkpoint: Checkpoint, device: str) -> str:
    """Return fp32 on a CPU, else the dtype that the checkpoint names for itself."""
    config = checkpoint.config
    own = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    return "float32" if device == "cpu" or own not in DTYPES else own


def _tokenizer(checkpoint: Checkpoint) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            checkpoint.folder,
            trust_remote_code=checkpoint.trust_remote_code,
            local_files_only=True,
        )
    except (ValueError, OSError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"{checkpoint.folder} has no tokenizer that loads ({reason})") from error


def _max_length(checkpoint: Checkpoint, tokenizer: Any) -> int:
    """Return the smaller of the positions that the model has and the tokenizer's own limit."""
    limits = [int(tokenizer.model_max_length)]
    for config in (checkpoint.config, checkpoint.config.get("text_config") or {}):
        for key in ("max_position_embeddings", "n_positions"):
            if config.get(key):
                limits.append(int(config[key]))
    return min(limits)


def _template(chat_template: str | None, tokenizer: Any) -> str | None:
    """Return a template's text or its name in the tokenizer, or what the file it names holds."""
    several = tokenizer.chat_template if isinstance(tokenizer.chat_template, dict) else {}
    if chat_template is None or "{" in chat_template or chat_template in several:
        return chat_template
    try:
        return Path(chat_template).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"model.chat_template={chat_template}: cannot read it ({error})"
        ) from error


def _check_same_tokens(tokenizer: Any, other: Any, reference: Checkpoint) -> None:
    if tokenizer.get_vocab() != other.get_vocab():
        raise ConfigError(
            f"the reference {reference.name} has another tokenizer than the policy: their "
            "log-probabilities cannot be subtracted; give the model that the policy started from"
        )
