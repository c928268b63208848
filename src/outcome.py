"""What an arm leaves behind once it is trained: its record, its row in W&B, its activation maps."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from src import config
from src.cam.methods import explain as draw_maps
from src.cam.panel import CamFile, strips, write_panel
from src.cam.score_run import score_arm
from src.data.module import ImageDataModule
from src.guards import named
from src.planning import Arm, larger_pictures
from src.record import RunRecord
from src.scaling import audit
from src.scaling.rules import Factors
from src.study import code_revision, machine
from src.tracking.keys import CAM_KEY, COST
from src.tracking.wandb_run import Tracker
from src.training.fit import Fit, Split, curve_summary, save_predictions
from src.training.hardware import Hardware, peak_memory_bytes, unused_gpu
from src.training.plan import MemoryPlan

CAM_SEED = 0  # of the choice of pictures for activation maps: the same pictures in every arm, seed and study


@dataclass(frozen=True)
class Attempt:
    """This start of the arm: its number, when it began (ISO 8601, and on the performance counter), with which code."""

    number: int
    began: str
    clock: float
    revision: str


def cost(arm: Arm) -> dict[str, Any]:
    """Cost and shape of an arm under the names by which W&B shows them."""
    s = arm.scaled
    return {
        "FLOPs_as_MACs": s.cost.macs,
        "params": s.cost.params,
        "activations": s.cost.activations,
        "base_macs": s.base.cost.macs,
        "macs_x_base": s.cost.macs / s.base.cost.macs,
        "depth": s.realised.depth,
        "width": s.realised.width,
        "resolution": s.resolution,
        "blocks": s.network.blocks,
    }


def summary(record: RunRecord) -> dict[str, Any]:
    """The record in the run's summary; plain keys, so that W&B's own tables and scatter plots work untouched."""
    best = {
        f"best/{name}": getattr(record, name) for name in ("val_accuracy", "val_loss", "test_accuracy", "test_loss")
    }
    return {**best, COST: record.macs, **{f"record/{k}": v for k, v in record.to_mapping().items()}}


def explain(
    arm: Arm, fitted: Fit, data: ImageDataModule, folder: Path, tracker: Tracker, evaluation_batch: int
) -> None:
    """Class-activation maps of the chosen checkpoint on the study's pictures, and their scores: files, panel, W&B."""
    study, base = arm.study, arm.scaled.base
    if study.cam_pictures:
        _draw(arm, fitted, data, folder, tracker)
    if study.cam_scores:
        scored = score_arm(
            fitted.module.network,
            data,
            folder,
            count=study.cam_scores,
            seed=CAM_SEED,
            common=base.network.final_side(base.resolution),
            batch_size=evaluation_batch,
            larger=larger_pictures(arm),
            method=study.cam_method,
        )
        tracker.summarise({f"cam/{name}": value for name, value in scored.summary().items()})


def _draw(arm: Arm, fitted: Fit, data: ImageDataModule, folder: Path, tracker: Tracker) -> None:
    batch = data.cam_batch(arm.study.cam_pictures, CAM_SEED)
    maps = draw_maps(fitted.module.network, batch.images, batch.labels, method=arm.study.cam_method)
    count = len(batch.labels)
    cam = CamFile(
        images=data.denormalise(batch.images),
        maps_label=maps.maps_label,
        maps_predicted=maps.maps_predicted,
        labels=maps.labels,
        predictions=maps.predictions,
        probability_label=maps.probability_label,
        probability_predicted=maps.probability_predicted,
        indices=batch.identities.numpy(),
        boxes=(torch.full((count, 4), torch.nan) if batch.boxes is None else batch.boxes).numpy(),
        class_names=np.array(arm.facts.class_names),
        method=arm.study.cam_method,
    )
    cam.save(folder)
    write_panel(cam, folder, f"{arm.name} at {arm.scaled.resolution} px")
    pictures, captions = strips(cam)
    tracker.log_pictures(CAM_KEY, pictures, captions, step=fitted.steps)


def make_record(
    arm: Arm,
    fitted: Fit,
    data: ImageDataModule,
    hardware: Hardware,
    audited: audit.Audit,
    val: Split,
    test: Split,
    tracker: Tracker,
    folder: Path,
    attempt: Attempt,
    memory: MemoryPlan,
    findings: tuple[str, ...],
) -> RunRecord:
    """The record of a finished arm, from what was really built, fed, measured and predicted; stores the predictions."""
    s, study = arm.scaled, arm.study
    curves: dict[str, Any] = curve_summary(fitted.history)
    asked_shares = study.scaling.shares or Factors(0.0, 0.0, 0.0)
    pictures = fitted.steps * study.recipe.batch_size
    price, base_price = s.price, s.base_price
    if study.budget.currency == "train_macs":
        price = 3 * audited.macs * pictures
        base_price = 3 * s.base.cost.macs * study.recipe.epochs * data.steps_per_epoch * study.recipe.batch_size
    return RunRecord(
        study=study.study,
        arm=s.arm,
        seed=study.seed,
        status="finished",
        network=study.network.name,
        data=arm.facts.name,
        recipe=study.recipe.name,
        budget=s.budget,
        currency=study.budget.currency,
        snapped_budget=s.snapped_budget,
        asked_depth=s.asked.depth,
        asked_width=s.asked.width,
        asked_resolution=s.asked.resolution,
        depth=s.realised.depth,
        width=s.realised.width,
        resolution=audited.resolution,
        base_resolution=s.base.resolution,
        blocks=sum(audited.repeats),
        native_resolution=arm.facts.native_pixels,
        asked_share_depth=asked_shares.depth,
        asked_share_width=asked_shares.width,
        asked_share_resolution=asked_shares.resolution,
        share_depth=s.shares.depth,
        share_width=s.shares.width,
        share_resolution=s.shares.resolution,
        price=float(price),
        base_price=float(base_price),
        macs=audited.macs,
        base_macs=s.base.cost.macs,
        params=audited.params,
        activations=audited.activations,
        fvcore_total=audited.fvcore_total,
        train_macs=3 * audited.macs * pictures,
        predicted_memory_bytes=arm.memory_bytes,
        val_accuracy=val.accuracy,
        val_loss=val.loss,
        test_accuracy=test.accuracy,
        test_loss=test.loss,
        best_epoch=fitted.best_epoch,
        epochs=len(fitted.history),
        **curves,
        steps=fitted.steps,
        skipped_steps=fitted.skipped_steps,
        ema_updates=fitted.ema_updates,
        ema_distance=fitted.ema_distance,
        test_openings=data.test_openings,
        classes=s.base.classes,
        train_pictures=data.sizes["train"],
        val_pictures=data.sizes["val"],
        test_pictures=data.sizes["test"],
        seconds=time.perf_counter() - attempt.clock,
        train_seconds=fitted.train_seconds,
        images_per_second=fitted.module.images_per_second,
        seconds_per_epoch=data.sizes["train"] / fitted.module.images_per_second,
        peak_memory_bytes=peak_memory_bytes(hardware.accelerator),
        measured_memory_bytes=memory.measured_bytes or 0,
        memory_limit_bytes=memory.limit_bytes,
        micro_batch=memory.layout.norm_pictures(study.recipe.batch_size, hardware.sync_norm),
        parts=memory.layout.parts,
        recompute=int(memory.layout.recompute),
        device=hardware.device_name,
        devices=study.hardware.devices,
        precision=hardware.precision,
        kernels=hardware.kernels,
        step=fitted.step.kind,
        step_seconds=fitted.step.seconds,
        eager_step_seconds=fitted.step.eager_seconds,
        threads=hardware.threads,
        python_version=sys.version.split()[0],
        torch_version=torch.__version__,
        lightning_version=pl.__version__,
        hydra_version=version("hydra-core"),
        wandb_version=version("wandb"),
        fvcore_version=version("fvcore"),
        platform=machine(),
        code_revision=attempt.revision,
        config_hash=arm.config_hash,
        recipe_hash=config.recipe_hash(study),
        data_fingerprint=data.fingerprint,
        architecture_sha256=audited.architecture_sha256,
        weights_sha256=audit.hash_weights(fitted.module.network.state_dict()),
        predictions_sha256=save_predictions(folder / "predictions.npz", val, test, data.test_clusters),
        checkpoint_sha256=fitted.checkpoint_sha256,
        wandb_id=tracker.run_id,
        wandb_mode=tracker.mode,
        started=attempt.began,
        attempts=attempt.number,
        notes="; ".join(
            (
                *arm.warnings,
                *findings,
                *filter(None, (unused_gpu(hardware), _skipped(fitted))),
                *tracker.problems,
                *_changed_since(attempt.revision),
                *_ran_out(memory),
            )
        ),
    )


def _skipped(fitted: Fit) -> str:
    few = fitted.skipped_steps <= 0.01 * fitted.steps
    return "" if few else named("G6", f"{fitted.skipped_steps} of {fitted.steps} steps left out by loss scaling")


def _ran_out(memory: MemoryPlan) -> tuple[str, ...]:
    return (f"ran out of memory once, then trained with {memory.micro_batch} pictures at once",) * memory.ran_out


def _changed_since(revision: str) -> tuple[str, ...]:
    now = code_revision()
    return () if now == revision else (named("G8", f"source files changed while it trained, from {revision} to {now}"),)
