"""The LightningModule: rewards as evaluation reads them, one loss, and what is logged."""

import math
import resource
import time
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import get_cosine_schedule_with_warmup

from rmexp.errors import ScoreError
from rmexp.models.backbone import Model
from rmexp.models.packing import moved
from rmexp.training.batches import PairBatch
from rmexp.training.objectives import Objective
from rmexp.training.sharding import Sharded, shard
from rmexp.training.sums import Sums, means

_FUSED = ("cuda",)  # devices whose fused AdamW runs ahead of the host


class _Step(NamedTuple):
    """A step: the sums over its pairs and the gradient's norm, `(8,)`, which may be on their way.

    `scaled` says that the loss was multiplied for fp16's sake.
    """

    number: int
    learning_rate: float
    seconds: float
    scaled: bool
    numbers: Tensor
    sums: Sums


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
        self._unread: list[_Step] = []
        self._began = time.monotonic()
        self._rng: list[list[Tensor]] | None = None

    def configure_model(self) -> None:
        """Spread the weights over the devices where the strategy asks for it; once."""
        if isinstance(self.trainer.strategy, Sharded) and not isinstance(self, FSDPModule):
            assert self.device_mesh is not None
            shard(self, self.model, "read", self.device_mesh["data_parallel"])

    def transfer_batch_to_device(
        self, batch: PairBatch, device: torch.device, dataloader_idx: int
    ) -> PairBatch:
        """Leave the tokens on the CPU, where they are packed; send what the loss needs ahead."""
        references, weights, real = (
            moved(part, device) for part in (batch.references, batch.weights, batch.real)
        )
        return replace(batch, references=references, weights=weights, real=real)

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
        ScoreError where the loss or the gradient is not finite, before any weight changes. A GPU's
        fused AdamW leaves out such a step itself: the host reads the numbers where they are logged,
        and raises then.
        """
        trained = [p for p in self.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        seconds = time.monotonic() - self._began
        sums, self._trained = self._trained, Sums()
        numbers = torch.cat([self._reduced(sums), norm.double().reshape(1)])
        rate, scaled = optimizer.param_groups[0]["lr"], self._scale() > 1
        self._unread.append(_Step(self.trainer.global_step, rate, seconds, scaled, numbers, sums))
        metrics: dict[str, float] = {}
        if self._runs_ahead(optimizer):
            optimizer.found_inf = (~numbers.isfinite().all()).float()  # type: ignore[attr-defined]
            if self.trainer._logger_connector.should_update_logs:
                metrics = self._read_steps()
        else:
            metrics = self._read_steps()
        overflow = scaled and "train/gradient_norm" not in metrics
        if gradient_clip_val and gradient_clip_algorithm == "value":
            nn.utils.clip_grad_value_(trained, gradient_clip_val)
        elif gradient_clip_val and not overflow:
            nn.utils.clip_grads_with_norm_(trained, gradient_clip_val, norm)
        if metrics:
            self.log_dict(metrics)
            self.log("loss", metrics["train/loss"], prog_bar=True, logger=False)
            self.log("accuracy", metrics["train/accuracy"], prog_bar=True, logger=False)
        self._began = time.monotonic()

    def _runs_ahead(self, optimizer: torch.optim.Optimizer) -> bool:
        """Say whether the optimiser leaves out a step that is not finite, without the host."""
        fused = all(group.get("fused") for group in optimizer.param_groups)
        there = self.device.type in _FUSED and not isinstance(self, FSDPModule)
        return fused and there and self._scaler() is None

    def _read_steps(self) -> dict[str, float]:
        """Wait for the numbers of the steps since the last time; return the last one's metrics.

        Raises ScoreError for the first step whose loss or gradient is not finite.
        """
        steps, self._unread = self._unread, []
        metrics: dict[str, float] = {}
        for step in steps:
            numbers = step.numbers.cpu()
            norm, lost = float(numbers[-1]), not numbers[:-1].isfinite().all()
            overflow = step.scaled and not math.isfinite(norm)
            if lost or not (math.isfinite(norm) or overflow):
                names = step.sums.not_finite() if lost else []
                where = f" at pair {', '.join(names)}" if names else ""
                raise ScoreError(
                    f"{'the loss' if lost else 'the gradient'} is not finite in step "
                    f"{step.number + 1}{where}: give a lower recipe.learning_rate, or leave the "
                    "pair out; the checkpoints of the steps before are kept, and resume=true goes "
                    "on from the last one"
                )
            metrics = means("train", numbers)
            metrics |= {} if overflow else {"train/gradient_norm": norm}
            metrics |= {
                "train/learning_rate": step.learning_rate,
                "train/step_seconds": step.seconds,
                "train/pairs_per_second": float(numbers[-3]) / step.seconds,
                "train/tokens_per_second": float(numbers[-2]) / step.seconds,
                "train/peak_memory_gib": _peak_memory(self.device),
            }
            self.history.append({"step": float(step.number), **metrics})
        return metrics

    def on_validation_epoch_end(self) -> None:
        """Log the means over all validation pairs of all devices."""
        validated, self._validated = self._validated, Sums()
        sums = self._reduced(validated).cpu()
        if not torch.isfinite(sums).all():
            raise ScoreError(
                f"the validation loss is not finite (pair {', '.join(validated.not_finite())}): "
                "give a lower recipe.learning_rate, or leave the pair out"
            )
        if self.trainer.sanity_checking:  # a few batches, before any training
            return
        self.validation = means("val", sums)
        # Equal on all devices already; Lightning would log it by the step before.
        self.log_dict(self.validation, sync_dist=True, logger=False)
        for logger in self.loggers:
            logger.log_metrics(self.validation, self.trainer.global_step)
        self.history.append({"step": float(self.trainer.global_step), **self.validation})
        self._began = time.monotonic()

    def configure_optimizers(self) -> Any:
        """Return AdamW, which decays matrices only, and its schedule."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        groups = [
            {"params": [p for p in trained if p.dim() > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
        ]
        there = {parameter.device.type for parameter in trained}
        fused = there <= set(_FUSED) and self._scaler() is None  # whose gradient is unscaled first
        optimizer = torch.optim.AdamW(
            [g for g in groups if g["params"]], lr=self.learning_rate, fused=fused or None
        )
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

    def on_validation_start(self) -> None:
        """Read the steps before, so that none is validated that was not finite."""
        self._read_steps()

    def on_train_end(self) -> None:
        """Read the last steps."""
        self._read_steps()

    def on_train_epoch_start(self) -> None:
        """Give the epoch an order of its own; one that goes on has its order from its state."""
        batches: Any = self.trainer.train_dataloader
        batches.set_epoch(self.current_epoch)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what the run is, and the state of the random numbers.

        Raises ScoreError where a step before was not finite.
        """
        self._read_steps()
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
            seconds = sum(row["train/step_seconds"] for row in steps)
            metrics[name] = sum(row[name] * row["train/step_seconds"] for row in steps) / seconds
        metrics["train/seconds"] = sum(row["train/step_seconds"] for row in steps)
        return metrics

    def _scale(self) -> float:
        """Return by what the loss is multiplied for fp16's sake, 1 where it is not."""
        scaler = self._scaler()
        return 1.0 if scaler is None else float(scaler.get_scale())

    def _scaler(self) -> Any:
        """Return what multiplies the loss for fp16's sake, None where nothing does."""
        return getattr(self.trainer.precision_plugin, "scaler", None)

    def _reduced(self, sums: Sums) -> Tensor:
        """Return the sums over all devices."""
        total = self.trainer.strategy.reduce(sums.total(self.device), reduce_op="sum")
        assert isinstance(total, Tensor)
        return total


def _peak_memory(device: torch.device) -> float:
    """Return the most memory that was used so far: the GPU's, else the process's, in GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
