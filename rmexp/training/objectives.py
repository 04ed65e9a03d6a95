"""What training minimises: Bradley-Terry or DPO, one loss and two ways to read a reward."""

import math
from typing import Any, Protocol

from torch import Tensor

from rmexp.errors import ConfigError
from rmexp.models.backbone import Model
from rmexp.models.checkpoints import Checkpoint
from rmexp.models.forward import response_logps, scalar_rewards
from rmexp.models.loading import load_policy
from rmexp.models.packing import moved
from rmexp.training.batches import PairBatch
from rmexp.training.classifier import load_classifier
from rmexp.training.losses import preference_loss


class Objective(Protocol):
    """What training needs of an objective.

    `reader` is what `rmexp.json` calls the reward; `uses_reference` says whether the batches carry
    log pi_ref.
    """

    name: str
    reader: str
    uses_reference: bool

    def load(
        self,
        checkpoint: Checkpoint,
        tokenizer: Any,
        dtype: str,
        attention: str | None,
        seed: int,
        device: str = "cpu",
    ) -> Model:
        """Load the model that training starts from."""
        ...

    def rewards(self, model: Model, batch: PairBatch) -> Tensor:
        """Return the rewards `(2 * pairs,)`, as evaluation reads them."""
        ...

    def loss(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Return the losses `(pairs,)` of rewards `(pairs,)` each."""
        ...

    def reward_settings(self) -> dict[str, Any]:
        """Return what `rmexp.json` says of how to read the trained model, without the reference."""
        ...


class BradleyTerry:
    """A score head, trained so that sigmoid(r_chosen - r_rejected) is the preference's probability.

    `margin`, `label_smoothing` and `centring` are those of `preference_loss`.
    """

    name = "bt"
    reader = "scalar"
    uses_reference = False

    def __init__(
        self, *, margin: float = 0.0, label_smoothing: float = 0.0, centring: float = 0.0
    ) -> None:
        self.margin = _number("margin", margin)
        self.label_smoothing = _number("label_smoothing", label_smoothing, 0.5)
        self.centring = _number("centring", centring)

    def load(
        self,
        checkpoint: Checkpoint,
        tokenizer: Any,
        dtype: str,
        attention: str | None,
        seed: int,
        device: str = "cpu",
    ) -> Model:
        """Load a reward model, or put a new head on a language model."""
        return load_classifier(checkpoint, tokenizer, dtype, attention, seed, device)

    def rewards(self, model: Model, batch: PairBatch) -> Tensor:
        """Return the head's output at each response's last token: `(2 * pairs,)`."""
        return scalar_rewards(model, batch.ids, batch.lengths, batch.forks)

    def loss(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Return the losses `(pairs,)`."""
        return preference_loss(
            chosen,
            rejected,
            margin=self.margin,
            label_smoothing=self.label_smoothing,
            centring=self.centring,
        )

    def reward_settings(self) -> dict[str, Any]:
        """Return how to read the head, which needs nothing else."""
        return {"reader": self.reader, "beta": None, "length_normalised": None}


class DPO:
    """A policy whose implicit reward, beta * (log pi - log pi_ref), is trained.

    `length_normalised` divides it by the number of response tokens; `label_smoothing` is that of
    `preference_loss`.
    """

    name = "dpo"
    reader = "implicit"
    uses_reference = True

    def __init__(
        self, *, beta: float = 0.1, label_smoothing: float = 0.0, length_normalised: bool = False
    ) -> None:
        self.beta = _number("beta", beta)
        if not self.beta:
            raise ConfigError("objective.beta=0: give a number above 0")
        self.label_smoothing = _number("label_smoothing", label_smoothing, 0.5)
        self.length_normalised = length_normalised

    def load(
        self,
        checkpoint: Checkpoint,
        tokenizer: Any,
        dtype: str,
        attention: str | None,
        seed: int,
        device: str = "cpu",
    ) -> Model:
        """Load a causal language model."""
        return load_policy(checkpoint, dtype, attention, device)

    def rewards(self, model: Model, batch: PairBatch) -> Tensor:
        """Return beta * (log pi - log pi_ref), in nats: `(2 * pairs,)`."""
        weight = model.get_output_embeddings().weight
        logps = response_logps(
            model, batch.ids, batch.lengths, batch.starts, batch.ends, weight, batch.forks
        )
        rewards: Tensor = self.beta * (logps - moved(batch.references, logps.device))
        if self.length_normalised:
            lengths = (batch.ends - batch.starts).clamp(min=1)
            rewards = rewards / moved(lengths, rewards.device)
        return rewards

    def loss(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Return the losses `(pairs,)`."""
        return preference_loss(chosen, rejected, label_smoothing=self.label_smoothing)

    def reward_settings(self) -> dict[str, Any]:
        """Return how to read the policy beside its reference."""
        return {
            "reader": self.reader,
            "beta": self.beta,
            "length_normalised": self.length_normalised,
        }


def _number(name: str, value: float, below: float = math.inf) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < below:
        limit = "" if below == math.inf else f", below {below:g}"
        raise ConfigError(f"objective.{name}={value}: give a number of 0 or more{limit}")
    return float(value)
