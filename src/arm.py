"""Wiring of one arm: `python -m src.arm FOLDER` trains what FOLDER/config.yaml says and leaves FOLDER/record.json.

Started by the launcher, one process an arm. Exit code 0: the record is written; 2: a user's mistake, told in one
    sentence; 1: anything else.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from src import config
from src.arm_folder import (
    AGAIN_FILE,
    CONFIG_FILE,
    INTERRUPTED,
    MEMORY_FILE,
    STATUS_FILE,
    WANDB_FILE,
    read_json,
    read_status,
    write_status,
)
from src.cache import cache_folder
from src.data.module import ImageDataModule
from src.data.selfcheck import check_input
from src.kernels.allocator import keep_memory
from src.launch import lifeline, slurm
from src.launch.processes import GRACE_SECONDS, LEFTOVER_SECONDS
from src.launch.progress import ProgressFile
from src.messages import UserMistake, mistakes
from src.networks.build import build
from src.networks.fast import use
from src.outcome import Attempt, cost, explain, make_record, summary
from src.planning import Arm, plan
from src.record import RunRecord
from src.scaling import audit
from src.study import CONF, code_revision
from src.tracking.wandb_run import tracked_run
from src.training.checkpoints import StopRequest, resumable
from src.training.fit import evaluate, fit
from src.training.hardware import Hardware, resolve
from src.training.limits import enforce, is_out_of_memory, memory_limit, release
from src.training.liveness import check_masks, check_optimizer
from src.training.plan import LARGEST_EVALUATION_BATCH, MemoryPlan
from src.training.probe import plan_memory, reckoned_kernels
from src.training.schedule import check_schedule, describe, lint
from src.training.tuning import settle

# 0 for the one process that writes: Lightning starts this program for a further device, SLURM for a further node.
RANK = int(os.environ.get("LOCAL_RANK", "0")) + int(os.environ.get("NODE_RANK", "0"))
NODES = int(os.environ.get(slurm.NODES, "1"))

log = logging.getLogger("src.arm")


def main(arguments: list[str]) -> int:
    """Train the arm of one folder, or go on with it where an earlier attempt was interrupted; returns the exit code."""
    if len(arguments) != 1:
        print("error: give the folder of one arm; python -m src.run makes it and starts this program", file=sys.stderr)
        return 2
    folder = Path(arguments[0])
    level = logging.INFO if RANK == 0 else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr, force=True)
    # Lightning 2.6 turns SIGTERM into exit code 0 at a batch boundary; an arm that was ended must not look finished.
    stop = StopRequest()
    for ending in (signal.SIGHUP, signal.SIGINT, *slurm.WARNINGS):
        signal.signal(ending, stop.receive)
    if "OMP_NUM_THREADS" in os.environ:  # a forked arm has inherited the threads of its sweep
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    lifeline.watch(lambda: _sweep_is_gone(folder), GRACE_SECONDS, LEFTOVER_SECONDS)
    number = int(read_json(folder / STATUS_FILE).get("attempt", 1))
    attempt = Attempt(number, datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter(), code_revision())
    try:
        with mistakes(CONF):
            arm = plan(config.read(folder / CONFIG_FILE))
            if arm.name != folder.name:
                raise ValueError(f"{folder / CONFIG_FILE} is that of {arm.name}; start it with python -m src.run")
            hardware = resolve(arm.study.hardware, NODES)
        run_arm(arm, hardware, folder, attempt, stop)
    except UserMistake as mistake:
        print(f"error: {mistake.message}", file=sys.stderr)
        return 2
    except Exception as error:
        if not (is_out_of_memory(error) and _step_down(arm, folder)):
            raise
        return 1
    return 0


def _step_down(arm: Arm, folder: Path) -> bool:
    """Ask to be started once more with less memory; False if that has been tried, or nothing smaller is left."""
    release()
    planned = MemoryPlan.read(folder / MEMORY_FILE)
    lower = planned.lower(arm.study.recipe.batch_size)
    if lower is None:
        return False
    lower.write(folder / MEMORY_FILE)
    reason = f"out of memory with {planned.micro_batch} pictures at once, {lower.micro_batch} are tried"
    (folder / AGAIN_FILE).write_text(reason)
    print(f"error: {reason}", file=sys.stderr)
    return True


def _sweep_is_gone(folder: Path) -> None:
    """Leave the truth in `status.json` for the sweep that can no longer write it."""
    if RANK == 0:
        reason = "the sweep that started this arm was killed"
        write_status(folder, {**read_status(folder), "state": INTERRUPTED, "error": reason})


def run_arm(arm: Arm, hardware: Hardware, folder: Path, attempt: Attempt, stop: StopRequest) -> RunRecord | None:
    """Build, audit, train, choose, test, explain, record; None in the further ranks of an arm with several devices.

    Raises:
        RuntimeError: a guard found that what is trained is not what was asked for (`src/guards.py`).
    """
    study, scaled = arm.study, arm.scaled
    progress = ProgressFile(folder) if RANK == 0 else None
    report = progress.update if progress else _say_nothing
    report(phase="data", epochs=math.ceil(arm.epochs))
    with mistakes(CONF):
        data = ImageDataModule(
            study.data, scaled.resolution, study.recipe.batch_size, LARGEST_EVALUATION_BATCH, study.seed
        )
        data.prepare_data()
        data.setup()
        _check_sizes(arm, data)
        check_input(data)
        report(phase="tuning")
        hardware = _settle(arm, hardware)
        data.dtype = torch.bfloat16 if hardware.precision == "bf16-mixed" else torch.float32
        report(phase="memory")
        memory = _plan_memory(arm, hardware, folder)
        layout = memory.layout
        data.parts, data.eval_batch_size = layout.parts, memory.evaluation_batch
        lengths = data.cut_run(max(1, round(arm.epochs * data.steps_per_epoch)))
        check_schedule(study.recipe, sum(lengths))
        findings = tuple(finding.sentence for finding in lint(study.recipe, sum(lengths)))
        log.info("\n".join((describe(study.recipe, sum(lengths)), *findings)))
    pl.seed_everything(study.seed, verbose=False)
    network = build(scaled.network, scaled.base.classes, dropout=study.recipe.dropout, drop_path=study.recipe.drop_path)
    audit.check(audit.inspect_module(network, scaled.resolution), scaled, trained_resolution=scaled.resolution)
    audit.check_untrained(network, scaled.network)
    check_optimizer(study.recipe, network)
    check_masks(network, data.cam_batch(min(2, data.sizes["val"]), 0).images, study.recipe)
    use(network, hardware.kernels)
    network.recompute = layout.recompute
    for norm in network.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            assert norm.momentum is not None
            norm.momentum = layout.norm_momentum(norm.momentum)
    origin = {
        "arm": arm.config_hash,
        "code": attempt.revision,
        "data": data.fingerprint,
        "torch": str(torch.__version__),
        "precision": hardware.precision,
        "kernels": hardware.kernels,
        "sync_norm": hardware.sync_norm,
        "layout": str(layout),
    }
    checkpoint, problem = resumable(folder, origin)
    if problem:
        log.warning(problem)
    elif checkpoint:
        log.info(f"goes on from {checkpoint}")
    tracking = tracked_run(
        study.tracking,
        study=study.study,
        name=arm.name,
        folder=study.folder,
        config={**config.to_mapping(study), "cost": cost(arm), "data_fingerprint": data.fingerprint},
        tags=(scaled.arm, f"{scaled.budget:g}x"),
        job_type=scaled.arm,
        run_id=_stored_id(folder),
    )
    with tracking as tracker:
        if tracker.run_id:
            (folder / WANDB_FILE).write_text(tracker.run_id)
        fitted = fit(
            network,
            data,
            recipe=study.recipe,
            hardware=hardware,
            folder=folder,
            logger=tracker.logger,
            report=report,
            lengths=lengths,
            seed=study.seed,
            layout=layout,
            nodes=NODES,
            resume=checkpoint,
            origin=origin,
            minutes=study.launcher.checkpoint_minutes,
            stop=stop,
            cache=cache_folder(),
        )
        if fitted is None:
            return None
        (side,) = fitted.module.sides_seen
        audited = audit.inspect_module(fitted.module.network, scaled.resolution)
        audit.check(audited, scaled, trained_resolution=side)
        report(phase="testing", seconds_left=0.0)
        val = evaluate(fitted.module, data, "val", hardware)
        test = evaluate(fitted.module, data, "test", hardware)
        if study.cam_pictures or study.cam_scores:
            report(phase="maps")
            explain(arm, fitted, data, folder, tracker, memory.evaluation_batch)
        record = make_record(
            arm, fitted, data, hardware, audited, val, test, tracker, folder, attempt, memory, findings
        )
        tracker.summarise(summary(record))
        record.write(folder)
    report(phase="done", val_accuracy=record.val_accuracy)
    return record


def _settle(arm: Arm, hardware: Hardware) -> Hardware:
    """Choose for all arms of the study what was left to choose, and set this process up for it."""
    study, base = arm.study, arm.scaled.base
    batch = study.recipe.batch_size // study.hardware.devices
    hardware = settle(hardware, study.hardware, study.folder, base.network, base.resolution, batch)
    if RANK == 0 and hardware.reason:
        log.info(hardware.reason)
    torch.set_num_threads(hardware.threads)
    if study.hardware.memory_limit is None:  # holes in memory that is kept would count against a limit
        keep_memory()
    return hardware


def _plan_memory(arm: Arm, hardware: Hardware, folder: Path) -> MemoryPlan:
    """The layout of the arm's steps: that of an earlier attempt, unless what was asked for has changed since.

    Raises:
        ValueError: no layout fits.
    """
    study, path = arm.study, folder / MEMORY_FILE
    share = 1 if hardware.accelerator == "gpu" and study.launcher.gpus_per_job else study.launcher.jobs
    if hardware.accelerator != "gpu":
        share *= study.hardware.devices
    limit = memory_limit(study.hardware, hardware.accelerator, share)
    with contextlib.suppress(ValueError):
        earlier = MemoryPlan.read(path)
        asked = study.hardware.memory_limit is not None
        same = earlier.kernels == reckoned_kernels(hardware, study.hardware.devices)
        same &= earlier.layout.devices == study.hardware.devices
        if same and not (asked and earlier.limit_bytes != limit.bytes):
            return _enforced(earlier, study, hardware)
    planned = plan_memory(
        arm.scaled.network,
        arm.scaled.resolution,
        arm.scaled.base.classes,
        recipe=study.recipe,
        hardware=hardware,
        limit=limit,
        devices=study.hardware.devices,
    )
    if RANK == 0:
        planned.write(path)
        log.info(str(planned))
    return _enforced(planned, study, hardware)


def _enforced(memory: MemoryPlan, study: config.Study, hardware: Hardware) -> MemoryPlan:
    """Make a limit that was asked for real; not before planning, whose probes would inherit it."""
    if study.hardware.memory_limit is not None:
        enforce(memory.limit_bytes, hardware.accelerator)
    return memory


def _stored_id(folder: Path) -> str | None:
    """W&B's id of an earlier attempt's run, which this one goes on with."""
    try:
        return (folder / WANDB_FILE).read_text().strip() or None
    except OSError:
        return None


def _say_nothing(**fields: Any) -> None:
    """The progress of ranks that are not the first."""


def _check_sizes(arm: Arm, data: ImageDataModule) -> None:
    """Refuse what would otherwise be cut to the size of the data in silence.

    Raises:
        ValueError: a batch larger than the training split, or more activation maps than validation pictures.
    """
    for key, asked, split in (
        ("recipe.batch_size", arm.study.recipe.batch_size, "train"),
        ("cam_pictures", arm.study.cam_pictures, "val"),
        ("hardware.devices", arm.study.hardware.devices, "val"),
    ):
        if asked > data.sizes[split]:
            raise ValueError(
                f"{key}={asked} is more than the {data.sizes[split]} pictures of {split}; use at most that"
            )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
