"""Wiring of a study: from composed configs to arms that are solved, checked, shown and launched together."""

from __future__ import annotations

import functools
import hashlib
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from src import config
from src.config import Study
from src.data.sources import facts as data_facts
from src.data.splits import DataFacts
from src.launch.processes import ArmJob, exit_code, finished, run_jobs
from src.launch.progress import make_display
from src.messages import mistakes
from src.record import METRICS
from src.report.write import make_console, render, write_report
from src.scaling.solve import Base, ScaledNetwork, solve, spread
from src.tracking.wandb_run import granted_mode
from src.training.hardware import resolve

ROOT = Path(__file__).resolve().parent.parent
CONF = ROOT / "conf"

# A sweep asks for the same data and the same network once for every arm or seed.
_facts = functools.cache(data_facts)
_solve = functools.cache(solve)

LARGEST_SPREAD = 0.01  # realised MACs of the arms of one budget, largest over smallest minus one


@dataclass(frozen=True)
class Arm:
    """One arm, planned: what to train, and the folder its results go to."""

    study: Study
    facts: DataFacts
    scaled: ScaledNetwork
    config_hash: str

    @property
    def name(self) -> str:
        """Readable and unique: rule, budget, seed, and the head of the hash of all that decides the result."""
        return f"{self.scaled.arm}-{self.scaled.budget:g}x-seed{self.study.seed}-{self.config_hash[:8]}"

    @property
    def folder(self) -> Path:
        """Where this arm's files go."""
        return self.study.folder / self.name

    @property
    def warnings(self) -> tuple[str, ...]:
        """What must be said beside this arm's numbers."""
        px, native = self.scaled.resolution, self.facts.native_pixels
        if px <= native:
            return ()
        return (
            f"{self.scaled.arm} trains at {px} px on pictures stored at {native} px: the extra pixels add computation,"
            " not information",
        )


def plan(study: Study) -> Arm:
    """Solve one arm.

    Raises:
        ValueError: the data cannot be found, or the budget cannot be met.
    """
    facts = _facts(study.data)
    base = Base(study.network, len(facts.class_names))
    scaled = _solve(base, study.scaling, study.budget)
    return Arm(study, facts, scaled, config.identity(study, facts))


def plan_all(studies: Sequence[Study]) -> list[Arm]:
    """Solve every arm of a sweep, drop repetitions of the base, and check that arms of one budget cost the same.

    Raises:
        ValueError: an arm cannot be solved, or arms of one budget differ by more than `LARGEST_SPREAD`.
    """
    arms = list({arm.folder: arm for arm in map(plan, studies)}.values())
    groups: dict[tuple[object, ...], list[ScaledNetwork]] = {}
    for arm in arms:
        if arm.study.scaling.scales:
            key = (arm.study.study, arm.study.network, arm.scaled.base.classes, arm.study.budget)
            groups.setdefault(key, []).append(arm.scaled)
    for group in groups.values():
        if spread(group) > LARGEST_SPREAD:
            macs = ", ".join(f"{s.arm} {s.cost.macs:,}" for s in group)
            raise ValueError(
                f"budget={group[0].budget:g}: realised MACs differ by {spread(group):.1%} ({macs}); choose"
                " another budget"
            )
    return arms


def run_all(configs: list[DictConfig]) -> list[int]:
    """Plan, show, train and compare the arms of a sweep. Returns an exit code for each config.

    Raises:
        UserMistake: the sweep cannot start as asked; nothing has been trained or written then.
    """
    with mistakes(CONF):
        studies = [config.parse(composed) for composed in configs]
        arms = plan_all(studies)
    console = make_console(stderr=True)
    dry_run = any(study.dry_run for study in studies)
    if not dry_run:
        _check_surroundings(studies)
    show_plan(arms, console)
    if dry_run:
        console.print("dry_run=true: nothing was trained")
        return [0] * len(configs)
    jobs = [_job(arm) for arm in arms]
    launcher = studies[0].launcher
    with mistakes(CONF), make_display(launcher.progress, launcher.jobs) as display:
        outcomes = run_jobs(jobs, launcher, on_update=display.update)
    for folder in dict.fromkeys(arm.study.folder for arm in arms):
        _compare(folder)
    return [exit_code(outcomes)] * len(configs)


def _check_surroundings(studies: Sequence[Study]) -> None:
    """Refuse hardware this machine does not have, and W&B online without a key, before the first process starts."""
    with mistakes(CONF):
        for study in studies:
            resolve(study.hardware)
            granted_mode(study.tracking)


def _job(arm: Arm) -> ArmJob:
    arm.folder.mkdir(parents=True, exist_ok=True)
    done = finished(arm.folder)
    if not done or arm.study.launcher.rerun:
        config.write(arm.study, arm.folder / "config.yaml")
    command = (sys.executable, "-m", "src.arm", str(arm.folder.resolve()))
    return ArmJob(arm.name, arm.folder, command, {"PYTHONPATH": str(ROOT)}, done)


def _compare(folder: Path) -> None:
    """Write the report of a study and print it; a sweep of which nothing finished has none."""
    try:
        report = write_report(folder)
    except ValueError as nothing:
        print(f"no comparison: {nothing}", file=sys.stderr)
    else:
        render(report, make_console())


def show_plan(arms: Sequence[Arm], console: Console) -> None:
    """The pre-flight table: what every arm really is, before anything is trained."""
    study = arms[0].study
    table = Table(title=f"Study {study.study}: {len(arms)} arms", title_justify="left", box=None, pad_edge=False)
    for heading in (
        "arm",
        "budget",
        "seed",
        "depth",
        "width",
        "px",
        "blocks",
        "FLOPs (M MACs)",
        "x base",
        "params (M)",
        "acts (M)",
    ):
        table.add_column(heading, justify="left" if heading == "arm" else "right")
    for arm in arms:
        s, realised = arm.scaled, arm.scaled.realised
        table.add_row(
            s.arm,
            f"{s.budget:g}x",
            str(arm.study.seed),
            METRICS["depth"].format(realised.depth),
            METRICS["width"].format(realised.width),
            str(s.resolution),
            str(s.network.blocks),
            f"{s.cost.macs / 1e6:.2f}",
            f"{s.cost.macs / s.base.cost.macs:.3f}",
            f"{s.cost.params / 1e6:.3f}",
            f"{s.cost.activations / 1e6:.3f}",
        )
    console.print(table)
    for line in dict.fromkeys(line for arm in arms for line in (*_snapped(arm), *arm.warnings)):
        console.print(f"note: {line}", highlight=False)
    console.print()


def _snapped(arm: Arm) -> tuple[str, ...]:
    s = arm.scaled
    if abs(s.snapped_budget / s.budget - 1.0) < 0.005:
        return ()
    return (f"budget={s.budget:g} is met at {s.snapped_budget:.3f}x, the nearest multiple that all axes can realise",)


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
