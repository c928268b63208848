"""Wiring of a study: from composed configs to arms that are checked, launched together and compared."""

from __future__ import annotations

import hashlib
import importlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from filelock import FileLock
from omegaconf import DictConfig

from src import config
from src.arm_folder import (
    CHECKPOINTS,
    CONFIG_FILE,
    MEMORY_FILE,
    QUEUED,
    WANDB_FILE,
    is_finished,
    read_status,
    write_status,
)
from src.config import Study
from src.data.sources import check_available
from src.launch import slurm
from src.launch.processes import ArmJob, exit_code, run_jobs
from src.launch.progress import make_display
from src.launch.slots import slot_environments
from src.messages import mistakes
from src.planning import Arm, plan, plan_all, show_plan
from src.record import RECORD_FILE, RunRecord
from src.report.console import make_console
from src.report.declared import declare
from src.tracking.options import TrackingOptions
from src.tracking.wandb_run import granted_mode
from src.training.hardware import resolve

ROOT = Path(__file__).resolve().parent.parent
CONF = ROOT / "conf"


def run_all(configs: list[DictConfig]) -> list[int]:
    """Plan, show, train and compare the arms of a sweep. Returns an exit code for each config.

    Raises:
        UserMistake: the sweep cannot start as asked; nothing has been trained or written then.
    """
    studies, arms = plan_configs(configs)
    console = make_console(stderr=True)
    dry_run = any(study.dry_run for study in studies)
    with mistakes(CONF):
        where = _place(arms)
    if not dry_run:
        _check_surroundings(studies, where.nodes)
    launcher = studies[0].launcher
    devices = max(study.hardware.devices for study in studies) // where.nodes
    jobs = [_job(arm, where) for arm in arms]
    if where.node > 0:
        (slot,) = slot_environments(launcher, os.environ, devices)
        return [_join(job, slot, where, launcher.rerun) for job in jobs]
    show_plan(arms, console)
    if dry_run:
        console.print("dry_run=true: nothing was trained")
        return [0] * len(configs)
    for line in _made_by_other_code(arms):
        console.print(f"note: {line}", highlight=False, markup=False)
    with mistakes(CONF):
        _declare(studies)
    if launcher.start == "fork":  # what all arms import, once
        importlib.import_module("src.training.fit")
    with mistakes(CONF), make_display(launcher.progress, launcher.jobs) as display:
        outcomes = run_jobs(jobs, launcher, devices=devices, on_update=display.update)
    for folder, study in {arm.study.folder: arm.study for arm in arms}.items():
        _compare(folder, study.tracking)
    return [exit_code(outcomes)] * len(configs)


def _declare(studies: Sequence[Study]) -> None:
    """Write down what each study claims, before its first arm starts.

    Raises:
        ValueError: what it has claimed before cannot be read.
    """
    for folder in dict.fromkeys(study.folder for study in studies):
        declare(folder, [claim for study in studies if study.folder == folder for claim in study.claims])


def _made_by_other_code(arms: Sequence[Arm]) -> list[str]:
    """What must be said before arms are added to a study whose finished ones another revision has trained."""
    records = [RunRecord.read(arm.folder / RECORD_FILE) for arm in arms if is_finished(arm.folder)]
    others = sorted({record.code_revision for record in records} - {code_revision()})
    if not others:
        return []
    count = sum(record.code_revision in others for record in records)
    return [
        f"{count} finished arm(s) were trained by code {', '.join(others)}, this is {code_revision()}: they are kept,"
        " and the report says that arms differ in their code; launcher.rerun=true trains them again"
    ]


def preflight(configs: list[DictConfig]) -> list[int]:
    """Plan and show the arms that another launcher will run, each in a job of its own that plans it again.

    Returns:
        The numbers of the configs to run: no repetition of the base, nothing that is finished, nothing in a dry run.

    Raises:
        UserMistake: the sweep cannot be planned as asked.
    """
    studies, arms = plan_configs(configs)
    console = make_console(stderr=True)
    show_plan(arms, console)
    if any(study.dry_run for study in studies):
        console.print("dry_run=true: nothing was trained")
        return []
    first: dict[Path, int] = {}
    for number, study in enumerate(studies):
        first.setdefault(plan(study).folder, number)
    wanted = [number for folder, number in first.items() if studies[number].launcher.rerun or not is_finished(folder)]
    with mistakes(CONF):
        _check_outputs(studies[0])
        _declare(studies)
    for arm in arms:
        if not read_status(arm.folder):  # so that a report knows that it is still to come
            arm.folder.mkdir(parents=True, exist_ok=True)
            write_status(arm.folder, {"state": QUEUED, "arm": arm.name})
    console.print(f"{len(wanted)} of {len(arms)} arms to train, each a job that writes the study's report when it ends")
    return wanted


def plan_configs(configs: Sequence[DictConfig]) -> tuple[list[Study], list[Arm]]:
    """Parse and plan composed configs.

    Raises:
        UserMistake: one of them cannot be planned.
    """
    with mistakes(CONF):
        studies = [config.parse(composed) for composed in configs]
        return studies, plan_all(studies)


def _check_surroundings(studies: Sequence[Study], nodes: int) -> None:
    """Refuse pictures and hardware this machine does not have, and W&B online without a key, before the first process
    starts."""
    launcher = studies[0].launcher
    with mistakes(CONF):
        slot_environments(launcher, os.environ, max(study.hardware.devices for study in studies) // nodes)
        for study in studies:
            _check_outputs(study)
            check_available(study.data)
            _check_devices(study, resolve(study.hardware, nodes).accelerator)
            granted_mode(study.tracking, arms=len(studies))


def _check_outputs(study: Study) -> None:
    """Refuse a place that cannot be written to.

    Raises:
        ValueError: names the place.
    """
    place = next(path for path in (study.folder.resolve(), *study.folder.resolve().parents) if path.exists())
    if not (place.is_dir() and os.access(place, os.W_OK)):
        raise ValueError(f"outputs={study.outputs}: {place} is no folder that can be written to; choose another place")


def _check_devices(study: Study, accelerator: str) -> None:
    """Refuse ways of starting processes that would train something else than was asked, or hang.

    Raises:
        ValueError: names the way and the remedy.
    """
    devices, batch = study.hardware.devices, study.recipe.batch_size
    ranks = int(os.environ.get("WORLD_SIZE") or 1)
    if ranks > 1:
        raise ValueError(
            f"this is one of WORLD_SIZE={ranks} processes, each of which would run the whole sweep: start src.run once,"
            f" without torchrun; with hardware.devices={ranks} every arm starts its own"
        )
    if study.launcher.start == "fork" and (devices > 1 or accelerator != "cpu"):
        raise ValueError(
            f"launcher.start=fork cannot start arms on {devices} {accelerator} device(s), since neither CUDA nor the"
            " ranks of an arm survive a fork; use launcher.start=process"
        )
    if batch < 2 * devices:
        raise ValueError(
            f"recipe.batch_size={batch} leaves fewer than two pictures for each of hardware.devices={devices}, and"
            f" batch norm needs two; use recipe.batch_size={2 * devices} or more"
        )


def _place(arms: Sequence[Arm]) -> slurm.Place:
    """Where this process stands in a SLURM job of several nodes.

    Raises:
        ValueError: the job is for one arm, and there are several; or its devices do not spread over the nodes.
    """
    where = slurm.place(os.environ)
    if where.nodes > 1 and (len(arms) > 1 or arms[0].study.launcher.jobs > 1):
        raise ValueError(
            f"a SLURM job of {where.nodes} nodes trains one arm, use hydra/launcher=slurm_nodes and launcher.jobs=1"
        )
    for arm in arms:
        slurm.check_devices(arm.study.hardware.devices, where)
    return where


def _join(job: ArmJob, slot: Mapping[str, str], where: slurm.Place, rerun: bool) -> int:
    """This node's share of an arm that node 0 watches."""
    if is_finished(job.folder) and not rerun:
        return 0
    return slurm.join(job.command, {**slot, **job.environment}, where)


def _job(arm: Arm, where: slurm.Place) -> ArmJob:
    def prepare(again: bool) -> None:
        if again:  # or a finished arm would go on from its last checkpoint, that is, not be trained at all
            shutil.rmtree(arm.folder / CHECKPOINTS, ignore_errors=True)
            for name in (MEMORY_FILE, WANDB_FILE):
                (arm.folder / name).unlink(missing_ok=True)
        config.write(arm.study, arm.folder / CONFIG_FILE)

    command = (sys.executable, "-m", "src.arm", str(arm.folder.resolve()))
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    surroundings = {"PYTHONPATH": paths, **where.environment()}
    return ArmJob(arm.name, arm.folder, command, surroundings, prepare)


def _compare(folder: Path, tracking: TrackingOptions) -> None:
    """Write the report of a study, print it and log it to W&B; a sweep of which nothing finished has none."""
    # Only now: figures and statistics take a second to import.
    from src.comparison import log_report
    from src.report.write import render, write_report

    try:
        # Jobs of other launchers end at the same time: the last one to report must have read all records.
        with FileLock(folder / ".report.lock"):
            report = write_report(folder)
            render(report, make_console())
            where = log_report(report, tracking)
    except ValueError as nothing:
        print(f"no comparison: {nothing}", file=sys.stderr)
    else:
        if where:
            print(where, file=sys.stderr)


def code_revision() -> str:
    """Git commit of the code, with a hash of what is not committed; "unknown" outside a repository."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True).stdout

    try:
        commit = git("rev-parse", "--short=12", "HEAD").strip()
        changes = git("diff", "HEAD", "--", "src", "conf", "sweeps")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit}+{hashlib.sha256(changes.encode()).hexdigest()[:8]}" if changes else commit


def machine() -> str:
    """Operating system and processor type."""
    return f"{platform.system()} {platform.machine()}"
