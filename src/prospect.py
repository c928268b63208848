"""What a sweep will take on this machine and what it can resolve, before anything is spent on it."""

from __future__ import annotations

import math
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from src.arm_folder import is_finished
from src.data.sizes import cut, split_sizes
from src.launch.progress import duration
from src.planning import Arm, show_plan
from src.record import RunRecord
from src.rehearsal import REPORT_SECONDS, WANDB_SECONDS, Timings, forecast_arm, measure
from src.report.console import make_console, print_whole
from src.report.forecast import ArmForecast, Forecast, wall_seconds
from src.report.pilot import read_pilot
from src.study import code_revision, machine
from src.tracking.wandb_run import granted_mode
from src.verdict.design import (
    Design,
    Noise,
    RunCost,
    comparisons_at,
    designs,
    detectable_by,
    family_size,
    seeds_for,
    smallest_that_resolves,
)
from src.verdict.guards import LEAST_SEEDS
from src.verdict.statistics import POWER

BUDGET = 60.0  # seconds of a rehearsal
BUSY = 0.75  # processes a core, others' above all, from which on seconds say more about them
SEEDS_SHOWN = (3, 5, 8, 12, 20)
REGIME = ("data", "network", "recipe", "epochs")  # in which a pilot should agree with what it is a pilot for


@dataclass(frozen=True)
class Wishes:
    """What a user asks of a plan; see `src/plan.py`. effect, sigma: percentage points. seconds: of the rehearsal."""

    effect: float | None = None
    sigma: float | None = None
    pilot: Path | None = None
    power: float = POWER
    pictures: tuple[int, int] | None = None
    seconds: float = BUDGET
    fresh: bool = False

    def __post_init__(self) -> None:
        if self.effect is not None and not (math.isfinite(self.effect) and self.effect > 0):
            raise ValueError(f"--effect {self.effect:g} must be a positive number of percentage points, such as 0.5")
        if self.sigma is not None and not (math.isfinite(self.sigma) and self.sigma > 0):
            raise ValueError(f"--sigma {self.sigma:g} must be a positive number of percentage points, such as 0.3")
        if self.sigma is not None and self.pilot is not None:
            raise ValueError("--sigma and --pilot both say how large the noise is, keep one of them")
        if self.effect is not None and self.sigma is None and self.pilot is None:
            raise ValueError(
                f"--effect {self.effect:g} needs the noise between seeds, add --sigma PP or --pilot outputs/STUDY"
            )
        if not 0.5 <= self.power <= 0.99:
            raise ValueError(f"--power {self.power:g} must lie in 0.5 to 0.99, usual is 0.8")
        if self.pictures is not None and min(self.pictures) < 2:
            raise ValueError(f"--pictures {self.pictures[0]},{self.pictures[1]} must be two numbers from 2 on")
        if not 1 <= self.seconds <= 3600:
            raise ValueError(f"--seconds {self.seconds:g} must lie in 1 to 3600, usual is {BUDGET:g}")


def plan_sweep(arms: Sequence[Arm], wishes: Wishes, elsewhere: str = "") -> None:
    """Rehearse the arms of a sweep, print what it takes and can resolve, and keep the forecast in the study's folder.

    Args:
        elsewhere: what must be said where the arms will not run on this machine.

    Raises:
        ValueError: the sweep cannot be planned as asked.
        UserMistake: an arm would be refused.
    """
    console = make_console()
    noise, remarks = _noise(wishes, arms)
    sizes = [_sizes(arm, wishes) for arm in arms]
    mode, _ = granted_mode(arms[0].study.tracking, len(arms))
    show_plan(arms, console)
    forecast, timings = _forecast(arms, sizes, mode, wishes, elsewhere)
    _show_forecast(forecast, timings, console)
    settings = _settings(arms)
    for setting, members in settings.items():
        names = {arm.name for arm in members}
        own = [one for one in forecast.arms if one.name in names]
        title = "" if len(settings) == 1 else f" of {setting}"
        _show_designs(members, own, noise, remarks, forecast, wishes, title, console)
    for folder in dict.fromkeys(arm.study.folder for arm in arms):
        _say(console, f"The forecast is kept in {forecast.write(folder)}, to be held against what the runs will take.")


def _noise(wishes: Wishes, arms: Sequence[Arm]) -> tuple[Noise | None, list[str]]:
    """Noise between seeds, and what must be said of it.

    Raises:
        ValueError: the pilot cannot be used.
    """
    if wishes.sigma is not None:
        return Noise(wishes.sigma, "stated"), []
    if wishes.pilot is None:
        return None, []
    noise, runs, odd = read_pilot(wishes.pilot)
    return noise, [*filter(None, [noise.remark]), *odd, *_other_regime(runs, arms)]


def _other_regime(runs: Sequence[RunRecord], arms: Sequence[Arm]) -> list[str]:
    """In what the pilot is no pilot for these arms."""
    wanted: dict[str, set[Any]] = {
        "data": {arm.facts.name for arm in arms},
        "network": {arm.study.network.name for arm in arms},
        "recipe": {arm.study.recipe.name for arm in arms},
        "epochs": {math.ceil(arm.epochs) for arm in arms},
    }
    lines = []
    for name in REGIME:
        had = {getattr(run, name) for run in runs}
        if had != wanted[name]:
            old, new = ("/".join(map(str, sorted(values))) for values in (had, wanted[name]))
            lines.append(f"the pilot had {name} {old} and this sweep has {new}: its noise may be another")
    return lines


def _sizes(arm: Arm, wishes: Wishes) -> dict[str, int]:
    """Pictures of each split.

    Raises:
        ValueError: they are not known, or too few for what the arm is to do with them.
    """
    study = arm.study
    sizes = cut(study.data, *wishes.pictures) if wishes.pictures else split_sizes(study.data)
    for key, asked, split in (
        ("recipe.batch_size", study.recipe.batch_size, "train"),
        ("cam_pictures", study.cam_pictures, "val"),
        ("hardware.devices", study.hardware.devices, "val"),
    ):
        if asked > sizes[split]:
            raise ValueError(f"{key}={asked} is more than the {sizes[split]} pictures of {split}; use at most that")
    return sizes


def _forecast(
    arms: Sequence[Arm], sizes: Sequence[Mapping[str, int]], mode: str, wishes: Wishes, elsewhere: str
) -> tuple[Forecast, Timings]:
    """Rehearse each network once and reckon every run of the sweep."""
    keys = [
        (arm.scaled.network, arm.scaled.resolution, arm.scaled.base.classes, s.data, s.recipe, s.hardware)
        for arm, s in ((arm, arm.study) for arm in arms)
    ]
    chosen = [number for number, key in enumerate(keys) if key not in keys[:number]]
    places = {keys[number]: place for place, number in enumerate(chosen)}
    say = make_console(stderr=True)
    say.print(f"rehearsing {len(chosen)} network(s) for at most {wishes.seconds:.0f} s ...", style="dim")
    timings = measure(
        [arms[number].study for number in chosen],
        [sizes[number] for number in chosen],
        wishes.seconds,
        fresh=wishes.fresh,
    )
    runs = tuple(
        forecast_arm(arm, timings.arms[places[key]], timings, size, mode)
        for arm, key, size in zip(arms, keys, sizes, strict=True)
    )
    launcher = arms[0].study.launcher
    left = [run for run, arm in zip(runs, arms, strict=True) if launcher.rerun or not is_finished(arm.folder)]
    devices = max(arm.study.hardware.devices for arm in arms)
    fixed = timings.start + REPORT_SECONDS + WANDB_SECONDS[mode]  # the comparison is a run of its own
    forecast = Forecast(
        study=arms[0].study.study,
        written=datetime.now(UTC).isoformat(timespec="seconds"),
        code_revision=code_revision(),
        machine=machine(),
        hardware=timings.hardware,
        jobs=launcher.jobs,
        fixed_seconds=fixed,
        sweep_seconds=fixed + wall_seconds([run.process_seconds for run in left], launcher.jobs),
        gpu_hours=devices * math.fsum(r.process_seconds for r in left) / 3600 if timings.accelerator == "gpu" else 0.0,
        arms=runs,
        notes=tuple(_notes(arms, runs, len(left), timings, devices, mode, elsewhere)),
    )
    return forecast, timings


def _notes(
    arms: Sequence[Arm],
    runs: Sequence[ArmForecast],
    left: int,
    timings: Timings,
    devices: int,
    mode: str,
    elsewhere: str,
) -> list[str]:
    """What the forecast leaves out or takes for granted."""
    lines = [elsewhere] if elsewhere else []
    if left < len(runs):
        lines.append(
            f"{len(runs) - left} of {len(runs)} runs have finished and are skipped: the whole command is for {left}"
        )
    if timings.load > BUSY:
        lines.append(
            f"the machine was busy when this was timed ({timings.load:.1f} processes a core wanted to run): idle, it"
            " takes less; --fresh times it again"
        )
    if timings.noise:
        lines.append(
            "the pictures are not on this machine: JPEG files of coarse noise stood in for them, and fetching them is"
            " not in these seconds"
        )
    if any(timing.steps == 0 for timing in timings.arms):
        lines.append("what was too long to be tried in the given seconds is reckoned by its MACs, which is rough")
    if devices > 1:
        lines.append(f"one of {devices} devices was tried with its share of a batch: exchanging gradients is not in it")
    if timings.accelerator == "gpu":
        lines.append("compiling, which long runs may try and keep, was not tried: they may take less")
    if mode == "online":
        lines.append("W&B online: what its server takes is not in it")
    need, place = sum(run.disk_bytes for run in runs), arms[0].study.folder.resolve()
    free = shutil.disk_usage(next(path for path in (place, *place.parents) if path.exists())).free
    if need > free:
        lines.append(f"{_size(need)} of disk are needed and {place} has {_size(free)} free: choose another outputs=")
    return lines


def _show_forecast(forecast: Forecast, timings: Timings, console: Console) -> None:
    """What the sweep takes on this machine: a row for runs that differ in nothing but their seed."""
    console.print(f"[bold]On this machine[/bold]: {forecast.hardware}", highlight=False)
    table = _table("arm", "budget", "runs", "steps", "ms a step", "a run", "memory", "disk", "basis")
    groups: dict[tuple[object, ...], list[ArmForecast]] = {}
    for run in forecast.arms:
        key = (run.arm, run.budget, run.macs, run.steps, run.step_seconds, run.memory_bytes)
        groups.setdefault(key, []).append(run)
    for runs in groups.values():
        run = runs[0]
        table.add_row(
            run.arm,
            f"{run.budget:g}x",
            str(len(runs)),
            str(run.steps),
            f"{1e3 * run.step_seconds:.3g}",
            duration(run.process_seconds),
            _size(run.memory_bytes),
            _size(run.disk_bytes),
            run.basis,
        )
    print_whole(console, table)
    macs = sum(run.train_macs for run in forecast.arms)
    each = math.fsum(run.process_seconds for run in forecast.arms)
    disk = sum(run.disk_bytes for run in forecast.arms)
    gpu = f", {forecast.gpu_hours:.2f} GPU-hours" if forecast.gpu_hours else ""
    _say(
        console,
        f"{len(forecast.arms)} runs, {_count(macs)} training MACs, {duration(each)} one after the other{gpu};"
        f" the whole command {duration(forecast.sweep_seconds)} with launcher.jobs={forecast.jobs}; {_size(disk)} of"
        f" disk. Rehearsed on {timings.taken} in {timings.seconds:.0f} s; an arm's process takes"
        f" {timings.start + timings.close:.1f} s to start and to end.",
    )
    for line in forecast.notes:
        _say(console, f"note: {line}")
    console.print()


def _settings(arms: Sequence[Arm]) -> dict[str, list[Arm]]:
    """Arms that are judged together: those of one network and data set."""
    groups: dict[str, list[Arm]] = {}
    for arm in arms:
        groups.setdefault(f"{arm.study.network.name} on {arm.facts.name}", []).append(arm)
    return groups


def _show_designs(
    arms: Sequence[Arm],
    runs: Sequence[ArmForecast],
    noise: Noise | None,
    remarks: Sequence[str],
    forecast: Forecast,
    wishes: Wishes,
    title: str,
    console: Console,
) -> None:
    """What the design can resolve, and what would be enough."""
    costs, seeds = _costs(arms, runs)
    claims = list(dict.fromkeys(claim for arm in arms for claim in arm.study.claims))
    pairs, family = comparisons_at(costs, claims), family_size(costs, claims)
    console.print(f"[bold]What can be resolved{title}[/bold]", highlight=False)
    if not family:
        _say(
            console,
            f"Declared: {'; '.join(map(str, claims))}. These arms give that nothing to compare: there will be no"
            " verdict, whatever the number of seeds.",
        )
        console.print()
        return
    told = dict.fromkeys(" against ".join(pair) for own in pairs.values() for pair in own)
    _say(console, f"Declared: {', '.join(told)}. {family} comparison(s) at a budget are corrected together.")
    if noise is None:
        _say(console, "Add --sigma PP or --pilot outputs/STUDY to learn what a number of seeds can resolve.")
    else:
        _say(console, _of_noise(noise))
        for line in remarks:
            _say(console, f"note: {line}")
        shown = sorted({*SEEDS_SHOWN, *([seeds] if seeds >= LEAST_SEEDS else [])})
        found = ", ".join(f"{n} seeds {detectable_by(n, noise, family, wishes.power):.2f} pp" for n in shown)
        _say(console, f"Smallest difference found with {100 * wishes.power:.0f} % power: {found}.")
    if seeds < LEAST_SEEDS:
        _say(console, f"With {seeds} seed(s) there is no verdict at all: it needs {LEAST_SEEDS}.")
    options = designs(costs, claims, seeds, noise, wishes.effect, wishes.power)
    table = _table("design", "arms", "seeds", "runs", "training MACs", "here", "detects", "claims")
    for one in options:
        table.add_row(
            one.name,
            str(len(one.costs)),
            str(one.seeds),
            str(one.runs),
            _count(one.macs),
            duration(_wall(one, forecast)),
            "no verdict" if one.seeds < LEAST_SEEDS else "?" if one.detectable is None else f"{one.detectable:.2f} pp",
            "all" if one.whole else "some",
        )
    print_whole(console, table)
    if wishes.effect is not None and noise is not None:
        _say(console, _advice(options, costs, noise, family, wishes, forecast))
    _say(
        console,
        "Fewer epochs, a smaller budget or a smaller network would cost less and ask another question: nothing here"
        " says that the effect would be the same.",
    )
    console.print()


def _costs(arms: Sequence[Arm], runs: Sequence[ArmForecast]) -> tuple[list[RunCost], int]:
    """What a seed of each arm costs at each budget, and how many seeds the least trained of them has."""
    forecasts = {run.name: run for run in runs}
    groups: dict[tuple[str, float, bool], list[Arm]] = {}
    for arm in arms:
        s = arm.scaled
        is_base = s.network == s.base.network and s.resolution == s.base.resolution
        groups.setdefault((s.arm, 1.0 if is_base else s.budget, is_base), []).append(arm)
    costs = []
    for (name, budget, is_base), members in groups.items():
        own = [forecasts[arm.name] for arm in members]
        seconds, macs = (math.fsum(values) / len(own) for values in zip(*_pairs(own), strict=True))
        costs.append(RunCost(name, budget, is_base, seconds, macs))
    return costs, min(len({arm.study.seed for arm in members}) for members in groups.values())


def _pairs(runs: Sequence[ArmForecast]) -> list[tuple[float, float]]:
    return [(run.process_seconds, float(run.train_macs)) for run in runs]


def _wall(design: Design, forecast: Forecast) -> float:
    """Seconds of the whole command."""
    runs = [cost.seconds for cost in design.costs for _ in range(design.seeds)]
    return forecast.fixed_seconds + wall_seconds(runs, forecast.jobs)


def _of_noise(noise: Noise) -> str:
    if noise.pilot is None:
        return f"Noise between seeds: {noise.planned:g} pp ({noise.source})."
    floor = "not known, since no two predictions could be read" if noise.floor is None else f"{noise.floor:.2f} pp"
    return (
        f"Noise between seeds: planned with {noise.planned:.2f} pp. {noise.source[0].upper()}{noise.source[1:]}:"
        f" standard deviation {noise.pilot:.2f} pp with {noise.degrees} degrees of freedom, upper 80 % limit"
        f" {noise.upper:.2f} pp; floor from runs that disagree: {floor}."
    )


def _advice(
    options: Sequence[Design], costs: Sequence[RunCost], noise: Noise, family: int, wishes: Wishes, forecast: Forecast
) -> str:
    """The sentence that the user came for."""
    assert wishes.effect is not None
    wanted = seeds_for(wishes.effect, noise, family, wishes.power)
    best = smallest_that_resolves(options, wishes.effect)
    if wanted is None or best is None:
        return f"{wishes.effect:g} pp would take more than 1000 seeds an arm: no sweep of this kind will find it."
    text = (
        f"{wishes.effect:g} pp takes {wanted} seeds an arm. Smallest design that judges all claims and resolves"
        f" it: {best.name}, {best.seeds} seeds, {best.runs} runs, {duration(_wall(best, forecast))} here"
    )
    left_out = [cost.arm for cost in costs if cost not in best.costs]
    without = f", without {', '.join(dict.fromkeys(left_out))}, which no claim names" if left_out else ""
    seeds = ",".join(map(str, range(best.seeds))) if best.seeds <= 10 else f"range({best.seeds})"
    return f"{text}{without}: seed={seeds}."


def _table(first: str, *right: str) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(first, no_wrap=True)
    for heading in right:
        table.add_column(heading, justify="left" if heading in ("basis", "claims") else "right", no_wrap=True)
    return table


def _say(console: Console, text: str) -> None:
    wrapped = textwrap.fill(text, console.width, subsequent_indent="  ")
    console.print(wrapped, highlight=False, markup=False)


def _size(count: float) -> str:
    """Bytes as people say them."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count / 2**10:.0f} KiB"


def _count(number: float) -> str:
    """A large number in three digits."""
    for unit, size in (("E", 1e18), ("P", 1e15), ("T", 1e12)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number / 1e9:.3g} G"
