"""Wiring of one arm: `python -m src.arm FOLDER` trains what FOLDER/config.yaml says and leaves FOLDER/record.json.

Started by the launcher, one process an arm. Exit code 0: the record is written; 2: a user's mistake, told in one
    sentence; 1: anything else.
"""

from __future__ import annotations

import logging
import math
import signal
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from src import config
from src.cam.maps import class_maps
from src.cam.panel import CamFile, strips, write_panel
from src.data.module import ImageDataModule
from src.launch.progress import ProgressFile
from src.messages import UserMistake, mistakes
from src.networks.build import build
from src.record import RunRecord
from src.scaling import audit
from src.scaling.rules import Factors
from src.study import CONF, Arm, code_revision, machine, plan
from src.tracking.wandb_run import Tracker, tracked_run
from src.training.fit import Fit, Split, curve_summary, evaluate, fit, save_predictions
from src.training.hardware import Hardware, peak_memory_bytes, resolve
from src.training.schedule import check_schedule

CAM_SEED = 0  # of the choice of pictures for activation maps: the same pictures in every arm, seed and study
CAM_KEY = "class_activation_maps"
EVALUATION_BATCH = 256

log = logging.getLogger("src.arm")


def main(arguments: list[str]) -> int:
    """Train the arm of one folder; returns the exit code."""
    (folder,) = arguments
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    # Lightning 2.6 turns SIGTERM into exit code 0 at a batch boundary; an arm that was ended must not look finished.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    started = time.perf_counter()
    try:
        with mistakes(CONF):
            arm = plan(config.read(Path(folder) / "config.yaml"))
            hardware = resolve(arm.study.hardware)
        run_arm(arm, hardware, Path(folder), started)
    except UserMistake as mistake:
        print(f"error: {mistake.message}", file=sys.stderr)
        return 2
    return 0


def run_arm(arm: Arm, hardware: Hardware, folder: Path, started: float) -> RunRecord:
    """Build, audit, train, choose, test, explain, record.

    Raises:
        RuntimeError: the audit found that the network is not the one that was asked for.
    """
    study, scaled = arm.study, arm.scaled
    start_time = datetime.now(UTC).isoformat(timespec="seconds")
    progress = ProgressFile(folder)
    progress.update(phase="data", epochs=math.ceil(arm.epochs))
    torch.set_num_threads(hardware.threads)
    with mistakes(CONF):
        data = ImageDataModule(study.data, scaled.resolution, study.recipe.batch_size, EVALUATION_BATCH, study.seed)
        data.prepare_data()
        data.setup()
        _check_sizes(arm, data)
        lengths = data.cut_run(max(1, round(arm.epochs * data.steps_per_epoch)))
        check_schedule(study.recipe, sum(lengths))
    pl.seed_everything(study.seed, verbose=False)
    network = build(scaled.network, scaled.base.classes, dropout=study.recipe.dropout, drop_path=study.recipe.drop_path)
    audit.check(audit.inspect_module(network, scaled.resolution), scaled, trained_resolution=scaled.resolution)
    tracking = tracked_run(
        study.tracking,
        study=study.study,
        name=arm.name,
        folder=study.folder,
        config={**config.to_mapping(study), "cost": _cost(arm), "data_fingerprint": data.fingerprint},
        tags=(scaled.arm, f"{scaled.budget:g}x"),
        job_type=scaled.arm,
    )
    with tracking as tracker:
        fitted = fit(
            network,
            data,
            recipe=study.recipe,
            hardware=hardware,
            folder=folder,
            logger=tracker.logger,
            report=progress.update,
            lengths=lengths,
        )
        (side,) = fitted.module.sides_seen
        audited = audit.inspect_module(network, scaled.resolution)
        audit.check(audited, scaled, trained_resolution=side)
        progress.update(phase="testing", seconds_left=0.0)
        val = evaluate(fitted.module, data, "val", hardware)
        test = evaluate(fitted.module, data, "test", hardware)
        if study.cam_pictures:
            progress.update(phase="maps")
            _explain(arm, fitted, data, folder, tracker)
        record = _record(arm, fitted, data, hardware, audited, val, test, tracker, folder, start_time, started)
        tracker.summarise(_summary(record))
        record.write(folder)
    progress.update(phase="done", val_accuracy=record.val_accuracy)
    return record


def _check_sizes(arm: Arm, data: ImageDataModule) -> None:
    """Refuse what would otherwise be cut to the size of the data in silence.

    Raises:
        ValueError: a batch larger than the training split, or more activation maps than validation pictures.
    """
    for key, asked, split in (
        ("recipe.batch_size", arm.study.recipe.batch_size, "train"),
        ("cam_pictures", arm.study.cam_pictures, "val"),
    ):
        if asked > data.sizes[split]:
            raise ValueError(
                f"{key}={asked} is more than the {data.sizes[split]} pictures of {split}; use at most that"
            )


def _cost(arm: Arm) -> dict[str, Any]:
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


def _summary(record: RunRecord) -> dict[str, Any]:
    """The record in the run's summary; plain keys, so that W&B's own tables and scatter plots work untouched."""
    best = {
        f"best/{name}": getattr(record, name) for name in ("val_accuracy", "val_loss", "test_accuracy", "test_loss")
    }
    return {**best, "cost/FLOPs_as_MACs": record.macs, **{f"record/{k}": v for k, v in record.to_mapping().items()}}


def _explain(arm: Arm, fitted: Fit, data: ImageDataModule, folder: Path, tracker: Tracker) -> None:
    """Exact class-activation maps of the chosen checkpoint on the study's pictures: file, panel, W&B."""
    batch = data.cam_batch(arm.study.cam_pictures, CAM_SEED)
    network = fitted.module.network
    maps = class_maps(network, batch.images, batch.labels)
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
    )
    cam.save(folder)
    write_panel(cam, folder, f"{arm.name} at {arm.scaled.resolution} px")
    pictures, captions = strips(cam)
    tracker.log_pictures(CAM_KEY, pictures, captions, step=fitted.steps)


def _record(
    arm: Arm,
    fitted: Fit,
    data: ImageDataModule,
    hardware: Hardware,
    audited: audit.Audit,
    val: Split,
    test: Split,
    tracker: Tracker,
    folder: Path,
    start_time: str,
    started: float,
) -> RunRecord:
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
        ema_updates=fitted.ema_updates,
        ema_distance=fitted.ema_distance,
        test_openings=data.test_openings,
        classes=s.base.classes,
        train_pictures=data.sizes["train"],
        val_pictures=data.sizes["val"],
        test_pictures=data.sizes["test"],
        seconds=time.perf_counter() - started,
        train_seconds=fitted.train_seconds,
        images_per_second=fitted.module.images_per_second,
        peak_memory_bytes=peak_memory_bytes(hardware.accelerator),
        device=hardware.device_name,
        devices=1,
        precision=hardware.precision,
        threads=hardware.threads,
        python_version=sys.version.split()[0],
        torch_version=torch.__version__,
        lightning_version=pl.__version__,
        hydra_version=version("hydra-core"),
        wandb_version=version("wandb"),
        fvcore_version=version("fvcore"),
        platform=machine(),
        code_revision=code_revision(),
        config_hash=arm.config_hash,
        data_fingerprint=data.fingerprint,
        architecture_sha256=audited.architecture_sha256,
        weights_sha256=audit.hash_weights(fitted.module.network.state_dict()),
        predictions_sha256=save_predictions(folder / "predictions.npz", val, test),
        wandb_id=tracker.run_id,
        wandb_mode=tracker.mode,
        started=start_time,
        notes="; ".join((*arm.warnings, *tracker.problems)),
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
