"""The LightningModule: rewards as evaluation reads them, one loss, and what is logged."""

import resource
import time
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import get_cosine_schedule_with_warmup

from rmexp.errors import ScoreError
from rmexp.models.backbone import Model
from rmexp.training.batches import PairBatch
from rmexp.training.objectives import Objective
from rmexp.training.sharding import Sharded, shard
from rmexp.training.sums import Sums, means


class PreferenceModule(LightningModule):
    """Train a model on pairs; AdamW, a warm-up over a share of the `steps`, then a cosine to 0.

    `identity` goes into every checkpoint: what a run that goes on must share with the one before.
    """

    def __init__(
        self,
        model: Model,
        objective: Objective,
        *,
        steps: int,
        learning_rate: float,
        weight_decay: float = 0.0,
        warmup: float = 0.1,
        identity: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self.steps = steps
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.warmup = warmup
        self.identity = identity or {}
        # A row of metrics for each step and each validation, from the beginning of the run.
        self.history: list[dict[str, float]] = []
        self.validation: dict[str, float] = {}
        self._trained, self._validated = Sums(), Sums()
        self._began = time.monotonic()
        self._rng: list[list[Tensor]] | None = None

    def configure_model(self) -> None:
        """Spread the weights over the devices where the strategy asks for it; once."""
        if isinstance(self.trainer.strategy, Sharded) and not isinstance(self, FSDPModule):
            assert self.device_mesh is not None
            shard(self, self.model, "read", self.device_mesh["data_parallel"])

    def read(self, batch: PairBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Return losses, rewards of the chosen and of the rejected responses, `(pairs,)` each."""
        rewards = self.objective.rewards(self.model, batch)
        chosen, rejected = (part.clone() for part in rewards.chunk(2))  # a view loses FSDP's hooks
        return self.objective.loss(chosen, rejected), chosen, rejected

    def training_step(self, batch: PairBatch, number: int) -> Tensor:
        """Return this device's share of the step's mean loss, of which Lightning makes the mean."""
        losses, chosen, rejected = self.read(batch)
        self._trained.add(batch, losses.detach(), chosen.detach(), rejected.detach())
        return (batch.weights * losses).sum()

    def validation_step(self, batch: PairBatch, number: int) -> None:
        """Add a batch to the validation's sums."""
        self._validated.add(batch, *self.read(batch))

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradient, and log the step that it belongs to.

        0 and None do not clip; the algorithm is "norm" (None, too) or "value". A gradient that
        overflows fp16 is left to the scaler, which lowers its scale and leaves out the step. Raises
        ScoreError where the loss or the gradient is not finite, before any weight changes.
        """
        trained = [p for p in self.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        seconds = time.monotonic() - self._began
        sums, names = self._take(self._trained)
        overflow = not torch.isfinite(norm) and self._scale() > 1
        if not torch.isfinite(sums).all() or not (torch.isfinite(norm) or overflow):
            what = "the gradient" if torch.isfinite(sums).all() else "the loss"
            where = f" at pair {', '.join(names)}" if names else ""
            raise ScoreError(
                f"{what} is not finite in step {self.trainer.global_step + 1}{where}: give a lower "
                "recipe.learning_rate, or leave the pair out; the checkpoints of the steps before "
                "are kept, and resume=true goes on from the last one"
            )
        if gradient_clip_val and gradient_clip_algorithm == "value":
            nn.utils.clip_grad_value_(trained, gradient_clip_val)
        elif gradient_clip_val and not overflow:
            nn.utils.clip_grads_with_norm_(trained, gradient_clip_val, norm)
        metrics = means("train", sums)
        metrics |= {} if overflow else {"train/gradient_norm": float(norm)}
        metrics |= {
            "train/learning_rate": optimizer.param_groups[0]["lr"],
            "train/seconds": seconds,
            "train/pairs_per_second": float(sums[-2]) / seconds,
            "train/tokens_per_second": float(sums[-1]) / seconds,
            "train/peak_memory_gib": _peak_memory(self.device),
        }
        self.log_dict(metrics)
        self.history.append({"step": float(self.trainer.global_step), **metrics})
        self.log("loss", metrics["train/loss"], prog_bar=True, logger=False)
        self.log("accuracy", metrics["train/accuracy"], prog_bar=True, logger=False)
        self._began = time.monotonic()

    def on_validation_epoch_end(self) -> None:
        """Log the means over all validation pairs of all devices."""
        sums, names = self._take(self._validated)
        if not torch.isfinite(sums).all():
            raise ScoreError(
                f"the validation loss is not finite (pair {', '.join(names)}): give a lower "
                "recipe.learning_rate, or leave the pair out"
            )
        if self.trainer.sanity_checking:  # a few batches, before any training
            return
        self.validation = means("val", sums)
        self.log_dict(self.validation, sync_dist=True)  # equal on all devices already
        self.history.append({"step": float(self.trainer.global_step), **self.validation})
        self._began = time.monotonic()

    def configure_optimizers(self) -> Any:
        """Return AdamW, which decays matrices only, and its schedule."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        groups = [
            {"params": [p for p in trained if p.dim() > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=self.learning_rate)
        schedule = get_cosine_schedule_with_warmup(
            optimizer, round(self.warmup * self.steps), self.steps
        )
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def on_train_start(self) -> None:
        """Start the clock, and draw on from where a run that goes on has stopped."""
        self._began = time.monotonic()
        if self._rng is not None:
            states = self._rng[self.global_rank % len(self._rng)]
            torch.set_rng_state(states[0])
            if self.device.type == "cuda" and len(states) > 1:
                torch.cuda.set_rng_state(states[1], self.device)
            self._rng = None

    def on_train_epoch_start(self) -> None:
        """Give the epoch an order of its own; one that goes on has its order from its state."""
        batches: Any = self.trainer.train_dataloader
        batches.set_epoch(self.current_epoch)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what the run is, and the state of the random numbers."""
        checkpoint["rmexp"] = {
            "identity": self.identity,
            "rng": self._rng_states(),
            "history": self.history,
            "validation": self.validation,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the state of the random numbers back."""
        self._rng = checkpoint["rmexp"]["rng"]
        self.history = list(checkpoint["rmexp"]["history"])
        self.validation = dict(checkpoint["rmexp"]["validation"])

    def _rng_states(self) -> list[list[Tensor]]:
        """Return the states of each process: the processor's and, where there is one, the GPU's."""
        here = [torch.get_rng_state()]
        if self.device.type == "cuda":
            here.append(torch.cuda.get_rng_state(self.device))
        if self.trainer.world_size == 1:
            return [here]
        states: list[list[Tensor]] = [here] * self.trainer.world_size
        torch.distributed.all_gather_object(states, here)
        return states

    def last_metrics(self) -> dict[str, float]:
        """Return the metrics of the last step, the rates being those of all steps together."""
        steps = [row for row in self.history if "train/loss" in row]
        if not steps:
            return {}
        metrics = {name: value for name, value in steps[-1].items() if name != "step"}
        for name in ("train/pairs_per_second", "train/tokens_per_second"):
            seconds = sum(row["train/seconds"] for row in steps)
            metrics[name] = sum(row[name] * row["train/seconds"] for row in steps) / seconds
        metrics["train/seconds"] = sum(row["train/seconds"] for row in steps)
        return metrics

    def _scale(self) -> float:
        """Return by what the loss is multiplied for fp16's sake, 1 where it is not."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        return 1.0 if scaler is None else float(scaler.get_scale())

    def _take(self, sums: Sums) -> tuple[Tensor, list[str]]:
        """Return the sums over all devices and the pairs that are not finite here; begin anew."""
        total = self.trainer.strategy.reduce(sums.total(self.device), reduce_op="sum")
        assert isinstance(total, Tensor)
        names = [] if torch.isfinite(total).all() else sums.not_finite()
        sums.clear()
        return total, names


def _peak_memory(device: torch.device) -> float:
    """Return the most memory that was used so far: the GPU's, else the process's, in GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
