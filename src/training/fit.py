"""Train one network to the end of its schedule, choose the checkpoint by validation, and evaluate it once on the test
split."""

from __future__ import annotations

import hashlib
import logging
import math
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments import LightningEnvironment
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger
from pytorch_lightning.strategies import DDPStrategy
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from src.guards import named
from src.networks.build import ConvNet
from src.record import digest_arrays
from src.training.averaging import StepAveraging
from src.training.checkpoints import BEST, FOLDER, Keeper, StepRandomness, StopRequest, WholeFiles
from src.training.graphs import Step, StepChooser
from src.training.hardware import Hardware
from src.training.layout import PLAIN, Layout
from src.training.liveness import Rates
from src.training.module import Classifier, EpochRow
from src.training.norms import AveragedStatistics, share_statistics
from src.training.options import Recipe
from src.training.precision import check_precision, set_arithmetic, trainer_arguments
from src.training.schedule import check_schedule, ema_decay

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
    """What training left behind. `module` holds the weights of the chosen checkpoint, whose file has the hash
    `checkpoint_sha256`; `step` says how steps were taken."""

    module: Classifier
    history: tuple[EpochRow, ...]
    best_epoch: int
    steps: int
    ema_updates: int
    ema_distance: float
    train_seconds: float
    step: Step
    checkpoint_sha256: str

    @property
    def skipped_steps(self) -> int:
        """Steps of these that loss scaling left out since a gradient was not finite."""
        return sum(row.skipped_steps for row in self.history)


@dataclass(frozen=True)
class Acts:
    """Whether weight averaging acted: its updates (0 if none was seen to change anything), and the relative L2 distance
    of the average from the raw weights."""

    updates: int
    distance: float


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
    seed: int,
    layout: Layout = PLAIN,
    nodes: int = 1,
    resume: Path | None = None,
    origin: Mapping[str, Any] = MappingProxyType({}),
    minutes: float = math.inf,
    stop: StopRequest | None = None,
    cache: Path | None = None,
) -> Fit | None:
    """Train for epochs of `lengths` optimizer steps, validate after each, and load the weights (averaged, if averaging
    is on) of the best validation accuracy.

    The schedule and the memory of the average are those of `sum(lengths)` steps. `lengths` must be what `data` yields
    (`ImageDataModule.cut_run`), and so must the layout's parts.

    Writes `history.csv` and `checkpoints/` into `folder`.

    Args:
        seed: of dropout and stochastic depth.
        layout: of each step over devices and time. With several devices Lightning starts this program once more for
            each further one; there the answer is None.
        nodes: machines that the layout's devices are spread over.
        resume: a checkpoint of this run (`checkpoints.resumable`) to go on from.
        origin: kept in every checkpoint, to be compared before a run goes on.
        minutes: longest time without a checkpoint; there is one after every epoch in any case.
        stop: ends training at the next step, behind a checkpoint, when a signal asks for it.
        cache: folder of what was measured on this machine; None remembers nothing.

    Raises:
        SystemExit: `stop` was asked for.
        ValueError: the schedule does not fit the run, or the layout not the way in which steps are to be taken.
        RuntimeError: a declared component did not act: weight averaging never updated, or steps were skipped (guards
            G5, G6).
        FloatingPointError: training diverged.
    """
    steps = sum(lengths)
    check_schedule(recipe, steps)
    chooser = StepChooser(hardware, layout, steps, cache)
    shared = hardware.sync_norm and layout.devices > 1
    if shared:
        share_statistics(network)
    module = Classifier(network, recipe, steps, layout)
    keeper = Keeper(folder, minutes=minutes, stop=stop or StopRequest(), origin=origin)
    averaging = StepAveraging(ema_decay(recipe, steps)) if recipe.ema_horizon > 0.0 else None
    callbacks: list[Callback] = [chooser, StepRandomness(seed), Progress(report, len(lengths), steps), keeper]
    callbacks += [Rates(recipe, steps)]
    callbacks += [AveragedStatistics()] if layout.devices > 1 and not shared else []
    liveness = Liveness(averaging)
    callbacks += [liveness, averaging] if averaging else []
    _quiet()
    set_arithmetic(hardware)
    given = trainer_arguments(hardware)
    trainer = pl.Trainer(
        **{key: value for key, value in given.items() if key != "plugins"},
        devices=layout.devices // nodes,
        num_nodes=nodes,
        strategy=_strategy(layout),
        # And not the rank variables of a job that started this process.
        plugins=[WholeFiles(), LightningEnvironment(), *given["plugins"]],
        use_distributed_sampler=False,  # the data module deals out every step itself
        accumulate_grad_batches=layout.parts,
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
    check_precision(trainer, hardware)
    trained = resume and torch.load(resume, map_location="cpu", weights_only=True)
    if trained and len(trained["history"]) == len(lengths):  # interrupted after its last epoch
        module.remember(trained)
        acts, taken, seconds = Acts(**trained["averaging"]), trained["global_step"], trained["train_seconds"]
        step: Step | None = Step(**trained["step"])
    else:
        try:
            trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
        finally:
            keeper.stop.training = False
        if layout.devices > 1:
            torch.distributed.destroy_process_group()
        acts, taken, seconds = liveness.acts, trainer.global_step, keeper.train_seconds
        step = chooser.step
    if not trainer.is_global_zero:
        return None
    if taken != steps:
        raise RuntimeError(named("G5", f"the run took {taken} optimizer steps, its schedule {steps}"))
    if averaging and not (acts.updates and acts.distance > 0.0):
        raise RuntimeError(named("G6", f"weight averaging was asked for but did not act: {acts}"))
    chosen = folder / FOLDER / BEST
    best = torch.load(chosen, map_location="cpu", weights_only=True)
    try:
        module.load_state_dict(best["state_dict"])
    except RuntimeError as error:
        sentence = f"{chosen} holds another network than the one that was trained"
        raise RuntimeError(named("G8", sentence)) from error
    assert step is not None
    epoch = int(best["epoch"]) + 1
    with chosen.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Fit(module, tuple(module.history), epoch, taken, acts.updates, acts.distance, seconds, step, digest)


def _strategy(layout: Layout) -> str | DDPStrategy:
    # Running statistics are shared or averaged (`norms.py`); copying rank 0's would forget what the other ranks saw.
    return "auto" if layout.devices == 1 else DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True)


class Liveness(Callback):
    """Measures after every epoch how far the average is from the raw weights, and keeps it in the checkpoint."""

    def __init__(self, averaging: StepAveraging | None) -> None:
        self.averaging = averaging
        self.acts = Acts(0, 0.0)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.averaging:
            distance = self.averaging.distance(pl_module)
            self.acts = Acts(self.averaging.updates if self.averaging.moved else 0, distance)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["averaging"] = asdict(self.acts)


def evaluate(module: Classifier, data: pl.LightningDataModule, split: str, hardware: Hardware) -> Split:
    """Labels and logits of every picture of `split` ("val" or "test"), in stored order, in evaluation mode.

    "test" opens the sealed split.

    Raises:
        RuntimeError: the test split was opened before, or the pictures are not of the side that was trained on (guards
            G4, G7).
    """
    set_arithmetic(hardware)
    given = trainer_arguments(hardware)
    trainer = pl.Trainer(
        **{key: value for key, value in given.items() if key != "plugins"},
        devices=1,
        plugins=[LightningEnvironment(), *given["plugins"]],
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    check_precision(trainer, hardware)
    module.collected = []
    {"val": trainer.validate, "test": trainer.test}[split](module, datamodule=data, verbose=False)
    labels = torch.cat([labels for labels, _ in module.collected])
    logits = torch.cat([logits for _, logits in module.collected])
    module.collected = None
    if not module.sides_evaluated <= module.sides_seen:
        trained, shown = (" and ".join(map(str, sorted(s))) for s in (module.sides_seen, module.sides_evaluated))
        raise RuntimeError(named("G7", f"trained on pictures of {trained} px and evaluated on {shown} px"))
    return Split(labels.numpy(), logits.numpy())


def save_predictions(path: Path, val: Split, test: Split, test_clusters: np.ndarray | None = None) -> str:
    """Write labels and logits of both splits; returns the SHA-256 over their bytes.

    `test_clusters` (N,), the original that each test picture was made of, is stored beside them for the report. It is
    a fact of the data, whose fingerprint covers it, not of what was predicted: the hash does not depend on it.
    """
    arrays = {
        "val_labels": val.labels,
        "val_logits": val.logits,
        "test_labels": test.labels,
        "test_logits": test.logits,
    }
    beside = {} if test_clusters is None else {"test_clusters": test_clusters}
    np.savez_compressed(path, allow_pickle=False, **arrays, **beside)
    return digest_arrays(arrays)


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
    quieted = ("pytorch_lightning.utilities.rank_zero", "lightning_fabric.utilities.rank_zero")
    for name in (*quieted, "lightning_fabric.utilities.distributed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*The `srun` command is available.*")
    # Metrics have added up all ranks before they are logged.
    warnings.filterwarnings("ignore", message=".*It is recommended to use `self.log.*sync_dist=True.*")
    warnings.filterwarnings("ignore", message=".*`broadcast_buffers` is deprecated.*")  # torch 2.11 has nothing else
    # The data module begins a resumed epoch where it was left; Lightning asks for another way to say so.
    warnings.filterwarnings("ignore", message=".*resuming from a checkpoint that ended before the epoch ended.*")
