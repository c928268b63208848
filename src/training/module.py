"""The LightningModule around one built network. Shapes: B batch, K classes, H, W."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from src.networks.build import ConvNet, Outputs
from src.training.layout import PLAIN, Layout
from src.training.optimizers import make_optimizer
from src.training.options import Recipe
from src.training.precision import skipped_steps
from src.training.schedule import share_of_peak


@dataclass(frozen=True)
class EpochRow:
    """One epoch as history.csv and W&B show it.

    `train_*` are means over the epoch's batches as they were trained (augmented, raw weights); `val_*` use the averaged
    weights; losses are cross-entropy without label smoothing; `learning_rate` is the rate after the epoch's last step;
    `skipped_steps` are those that loss scaling left out since a gradient was not finite (`16-mixed` alone has any).
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    learning_rate: float
    seconds: float
    images_per_second: float
    skipped_steps: int = 0


class Means:
    """Mean loss and accuracy over the pictures of an epoch, summed on the device where the batches are.

    Not torchmetrics' MeanMetric, whose updates took 8 % of a small network's step. Its sums are no buffers of the
    module, or they would be averaged with its weights.
    """

    def __init__(self) -> None:
        self.sums: Tensor | None = None  # (3,): losses, right predictions, pictures; None before the first batch

    def add(self, logits: Tensor, labels: Tensor, losses: Tensor) -> None:
        """Add a batch: logits (B,K), labels (B,), cross-entropy of each picture (B,)."""
        right = (logits.argmax(1) == labels).sum()
        batch = torch.stack([losses.sum(), right.to(losses.dtype), losses.new_full((), len(losses))])
        self.sums = batch if self.sums is None else self.sums + batch

    def over_ranks(self, device: torch.device) -> Tensor:
        """The sums of all ranks together (3,), each of which has to ask."""
        sums = torch.zeros(3, device=device) if self.sums is None else self.sums.clone()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums)
        return sums

    def values(self, device: torch.device) -> tuple[float, float]:
        """Loss and accuracy, over all ranks; not a number without pictures."""
        losses, right, pictures = self.over_ranks(device).tolist()
        return (losses / pictures, right / pictures) if pictures else (math.nan, math.nan)


class Classifier(pl.LightningModule):
    """Trains a network on (images, labels) batches with one recipe. Logs `train/*`, `val/*` once an epoch; keeps
    `history`.

    Nothing in a training step waits for a GPU: means are summed where the batch is, and read once an epoch.

    Attributes:
        training_logits: pictures (B,3,H,W) to logits (B,K) in training, by a graph or compiled; None: the network's own
            forward pass (`src/training/graphs.py`).
    """

    def __init__(self, network: ConvNet, recipe: Recipe, steps: int, layout: Layout = PLAIN) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.recipe = recipe
        self.steps = steps
        self.layout = layout
        self.training_logits: Callable[[Tensor], Tensor] | None = None
        self.history: list[EpochRow] = []
        self.sides_seen: set[int] = set()  # of the pictures that really entered training, for the audit
        self.sides_evaluated: set[int] = set()  # and of those that it is judged by
        self.collected: list[tuple[Tensor, Tensor]] | None = (
            None  # labels and logits of an evaluation, while one is kept
        )
        self._means = {"train": Means(), "val": Means()}
        self._epoch_began = self._last_batch_ended = 0.0
        self._epoch_pictures = 0
        self._before = (0.0, 0)  # seconds and pictures of the epoch that was running when the run was interrupted

    def forward(self, images: Tensor) -> Outputs:
        outputs: Outputs = self.network(images)
        return outputs

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch  # (B,3,H,W), (B,)
        forward = self.training_logits
        logits = self.network(images).logits if forward is None else forward(images)  # (B,K)
        log_probabilities = F.log_softmax(logits.float(), dim=1)
        losses = F.nll_loss(log_probabilities, labels, reduction="none")  # (B,)
        self._means["train"].add(logits.detach(), labels, losses.detach())
        self.sides_seen.add(images.shape[-1])
        self._epoch_pictures += len(labels)
        return smoothed(losses, log_probabilities, self.recipe.label_smoothing) * self._share(len(labels))

    def _share(self, pictures: int) -> float:
        """Weight of a micro-batch: unequal parts are averaged as if they were equal, and every picture counts alike."""
        pieces = self.layout.devices * self.layout.parts
        return 1.0 if self.recipe.batch_size % pieces == 0 else pictures * pieces / self.recipe.batch_size

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        logits = self.network(images).logits.float()
        self._means["val"].add(logits, labels, F.cross_entropy(logits, labels, reduction="none"))
        self.sides_evaluated.add(images.shape[-1])
        self._collect(labels, logits)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        self.sides_evaluated.add(images.shape[-1])
        self._collect(labels, self.network(images).logits)

    def _collect(self, labels: Tensor, logits: Tensor) -> None:
        if self.collected is not None:
            self.collected.append((labels.cpu(), logits.float().cpu()))

    def on_train_start(self) -> None:
        self._epoch_began = self._last_batch_ended = time.perf_counter()  # Lightning starts no epoch that goes on

    def on_train_epoch_start(self) -> None:
        self._epoch_began = self._last_batch_ended = time.perf_counter()
        self._epoch_pictures, self._before = 0, (0.0, 0)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.device.type == "cuda" and self.trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            torch.cuda.synchronize()  # once an epoch, or its time would end before its work
        self._last_batch_ended = time.perf_counter()

    def leave_out(self, seconds: float) -> None:
        """Do not count time in which nothing was trained."""
        self._epoch_began += seconds

    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking:
            loss, accuracy = self._means["val"].values(self.device)
            self.log("val/loss", loss)
            self.log("val/accuracy", accuracy)

    def on_train_epoch_end(self) -> None:
        """Runs after the epoch's validation: closes the row of this epoch.

        Raises:
            FloatingPointError: the training or the validation loss is no longer finite.
        """
        values: dict[str, float] = {}
        for split, name in (("train", "training"), ("val", "validation")):
            loss, accuracy = self._means[split].values(self.device)
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"the {name} loss is {loss} in epoch {self.current_epoch + 1}: training diverged;"
                    " lower recipe.learning_rate"
                )
            values |= {f"{split}_loss": loss, f"{split}_accuracy": accuracy}
            self._means[split] = Means()
        seconds, pictures = self._epoch_so_far()
        row = EpochRow(
            epoch=self.current_epoch + 1,
            learning_rate=self.trainer.optimizers[0].param_groups[0]["lr"],
            seconds=seconds,
            images_per_second=pictures * self.layout.devices / seconds,
            skipped_steps=skipped_steps(self.trainer) - sum(row.skipped_steps for row in self.history),
            **values,
        )
        self.history.append(row)
        self.log("train/loss", row.train_loss)
        self.log("train/accuracy", row.train_accuracy)
        self.log("train/learning_rate", row.learning_rate)
        self.log("speed/images_per_second", row.images_per_second)

    @property
    def images_per_second(self) -> float:
        """Training throughput: median over epochs, which a disturbed epoch does not move."""
        return statistics.median(row.images_per_second for row in self.history)

    def _epoch_so_far(self) -> tuple[float, int]:
        """Seconds and pictures of the running epoch on this device, those before an interruption included."""
        return self._before[0] + self._last_batch_ended - self._epoch_began, self._before[1] + self._epoch_pictures

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["history"] = [dataclasses.asdict(row) for row in self.history]
        checkpoint["epoch_so_far"] = self._epoch_so_far()
        checkpoint["sides_seen"] = sorted(self.sides_seen)
        checkpoint["means"] = {split: means.over_ranks(self.device) for split, means in self._means.items()}

    def remember(self, checkpoint: Mapping[str, Any]) -> None:
        """Take what an earlier attempt saw from its checkpoint."""
        self.history = [EpochRow(**row) for row in checkpoint["history"]]
        self.sides_seen = set(checkpoint["sides_seen"])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.remember(checkpoint)
        self._before = checkpoint["epoch_so_far"]
        for split, sums in checkpoint["means"].items():
            # They are those of all ranks together: one rank takes them.
            self._means[split].sums = sums.to(self.device) if self.trainer.is_global_zero else None

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The recipe's optimizer, and its rate at every step."""
        optimizer = make_optimizer(self.recipe, self.network)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: share_of_peak(self.recipe, step, self.steps)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def smoothed(losses: Tensor, log_probabilities: Tensor, smoothing: float) -> Tensor:
    """Mean cross-entropy with smoothed labels, as torch's, from what was computed without smoothing.

    The target is `smoothing` times the uniform distribution and the rest times the label (arXiv 1512.00567, section 7).

    Args:
        losses: cross-entropy of each picture (B,).
        log_probabilities: (B,K).
    """
    loss = losses.mean()
    return loss if smoothing == 0 else (1 - smoothing) * loss - smoothing * log_probabilities.mean()
