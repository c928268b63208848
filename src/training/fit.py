"""Train one network to the end of its schedule, choose the checkpoint by validation, and evaluate it once on the test
split."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import logging
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.loggers import Logger
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from src.networks.build import ConvNet
from src.training.averaging import StepAveraging
from src.training.hardware import Hardware
from src.training.module import Classifier, EpochRow
from src.training.options import Recipe
from src.training.schedule import check_schedule

Report = Callable[..., None]


@dataclass(frozen=True)
class Split:
    """Predictions of the chosen checkpoint on one split: labels (N,) and logits (N,K)."""

    labels: np.ndarray
    logits: np.ndarray

    @property
    def accuracy(self) -> float:
        """Share of pictures whose largest logit is the label's."""
        return float((self.logits.argmax(1) == self.labels).mean())

    @property
    def loss(self) -> float:
        """Mean cross-entropy, nats."""
        return float(F.cross_entropy(torch.from_numpy(self.logits).double(), torch.from_numpy(self.labels)))


@dataclass(frozen=True)
class Fit:
    """What training left behind. `module` holds the weights of the chosen checkpoint."""

    module: Classifier
    history: tuple[EpochRow, ...]
    best_epoch: int
    steps: int
    ema_updates: int
    ema_distance: float
    train_seconds: float


class Progress(Callback):
    """Tells `report` where training stands: epoch, step, images/s and seconds left, estimated from the last seconds'
    pace."""

    def __init__(self, report: Report, epochs: int, steps: int) -> None:
        self.report, self.epochs, self.steps = report, epochs, steps
        self.started = time.perf_counter()
        self.first_step = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started, self.first_step = time.perf_counter(), trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *unused: Any) -> None:
        assert isinstance(pl_module, Classifier)
        elapsed = time.perf_counter() - self.started
        done = trainer.global_step - self.first_step
        left = (self.steps - trainer.global_step) * elapsed / max(1, done)
        last = pl_module.history[-1] if pl_module.history else None
        self.report(
            phase="training",
            epoch=trainer.current_epoch + 1,
            epochs=self.epochs,
            step=trainer.global_step,
            steps=self.steps,
            images_per_second=last.images_per_second if last else done * pl_module.recipe.batch_size / elapsed,
            seconds_left=left,
            val_accuracy=last.val_accuracy if last else None,
        )


def fit(
    network: ConvNet,
    data: pl.LightningDataModule,
    *,
    recipe: Recipe,
    hardware: Hardware,
    folder: Path,
    logger: Logger | bool,
    report: Report,
    lengths: tuple[int, ...],
) -> Fit:
    """Train for epochs of `lengths` optimizer steps, validate after each, and load the weights (averaged, if averaging
    is on) of the best validation accuracy.

    The schedule and the memory of the average are those of `sum(lengths)` steps. `lengths` must be what `data` yields
    (`ImageDataModule.cut_run`).

    Writes `history.csv` and `checkpoints/` into `folder`.

    Raises:
        ValueError: the schedule does not fit the run.
        RuntimeError: a declared component did not act: weight averaging never updated, or steps were skipped (guards
            G5, G6).
        FloatingPointError: training diverged.
    """
    steps = sum(lengths)
    check_schedule(recipe, steps)
    module = Classifier(network, recipe, steps)
    chosen = ModelCheckpoint(
        folder / "checkpoints",
        filename="best",
        monitor="val/accuracy",
        mode="max",
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    # A checkpoint of its own: `save_last` of the one above is written only when validation improves.
    last = ModelCheckpoint(
        folder / "checkpoints", filename="last", save_on_train_epoch_end=True, enable_version_counter=False
    )
    averaging = StepAveraging(1.0 - 1.0 / max(2.0, recipe.ema_horizon * steps)) if recipe.ema_horizon > 0.0 else None
    callbacks: list[Callback] = [chosen, last, Progress(report, len(lengths), steps), HistoryFile(folder)]
    liveness = Liveness(averaging)
    callbacks += [liveness, averaging] if averaging else []
    _quiet()
    trainer = pl.Trainer(
        accelerator=hardware.accelerator,
        devices=1,
        precision=hardware.precision,  # type: ignore[arg-type]
        max_epochs=len(lengths),
        # Lightning counts the batches of a loader once: it must look again where epochs differ, or it skips validation.
        reload_dataloaders_every_n_epochs=int(min(lengths) < max(lengths)),
        logger=logger,
        callbacks=callbacks,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=min(lengths),
        default_root_dir=folder,
    )
    started = time.perf_counter()
    trainer.fit(module, datamodule=data)
    seconds = time.perf_counter() - started
    if trainer.global_step != steps:
        raise RuntimeError(f"the run took {trainer.global_step} optimizer steps, its schedule {steps}")
    if averaging and not (averaging.moved and liveness.distance > 0.0):
        raise RuntimeError(
            f"weight averaging was asked for but did not act: {averaging.updates} updates, distance {liveness.distance}"
        )
    best = torch.load(chosen.best_model_path, map_location="cpu", weights_only=True)
    module.load_state_dict(best["state_dict"])
    return Fit(
        module,
        tuple(module.history),
        int(best["epoch"]) + 1,
        trainer.global_step,
        averaging.updates if averaging else 0,
        liveness.distance,
        seconds,
    )


class Liveness(Callback):
    """Measures, at the end of training and before Lightning overwrites the raw weights, how far the average is from
    them."""

    def __init__(self, averaging: StepAveraging | None) -> None:
        self.averaging = averaging
        self.distance = 0.0

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.averaging:
            self.distance = self.averaging.distance(pl_module)


class HistoryFile(Callback):
    """Rewrites history.csv with every checkpoint, that is after every epoch, so that a killed run keeps its curve."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "history.csv"

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        assert isinstance(pl_module, Classifier)
        self.write(pl_module.history)

    def write(self, history: list[EpochRow]) -> None:
        """All rows so far, under the names of `EpochRow`."""
        with self.path.open("w", newline="") as file:
            writer = csv.DictWriter(file, [f.name for f in dataclasses.fields(EpochRow)])
            writer.writeheader()
            writer.writerows(dataclasses.asdict(row) for row in history)


def evaluate(module: Classifier, data: pl.LightningDataModule, split: str, hardware: Hardware) -> Split:
    """Labels and logits of every picture of `split` ("val" or "test"), in stored order, in evaluation mode.

    "test" opens the sealed split; a second time raises RuntimeError.
    """
    trainer = pl.Trainer(
        accelerator=hardware.accelerator,
        devices=1,
        precision=hardware.precision,  # type: ignore[arg-type]
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    module.collected = []
    {"val": trainer.validate, "test": trainer.test}[split](module, datamodule=data, verbose=False)
    labels = torch.cat([labels for labels, _ in module.collected])
    logits = torch.cat([logits for _, logits in module.collected])
    module.collected = None
    return Split(labels.numpy(), logits.numpy())


def save_predictions(path: Path, val: Split, test: Split) -> str:
    """Write labels and logits of both splits; returns the SHA-256 over their bytes."""
    arrays = {
        "val_labels": val.labels,
        "val_logits": val.logits,
        "test_labels": test.labels,
        "test_logits": test.logits,
    }
    np.savez_compressed(path, allow_pickle=False, **arrays)
    digest = hashlib.sha256()
    for name, array in arrays.items():
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def curve_summary(history: tuple[EpochRow, ...]) -> dict[str, float | int]:
    """Best and last value of every curve, and the epoch (from 1) of the best, under the record's names."""
    summary: dict[str, float | int] = {}
    for name, better in (("train_accuracy", max), ("train_loss", min), ("val_accuracy", max), ("val_loss", min)):
        best = better(history, key=lambda row: getattr(row, name))
        summary |= {
            f"best_{name}": getattr(best, name),
            f"best_{name}_epoch": best.epoch,
            f"last_{name}": getattr(history[-1], name),
        }
    assert all(math.isfinite(value) for value in summary.values())
    return summary


def _quiet() -> None:
    """Silence Lightning's tips and device banners; warnings about this project's own loaders do not apply to tensors
    in memory."""
    for name in ("pytorch_lightning.utilities.rank_zero", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
