"""What a sweep was forecast to take, as `plan.json` keeps it, and how that is scored once runs have finished."""

from __future__ import annotations

import dataclasses
import heapq
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.record import RunRecord, write_atomically

PLAN_FILE = "plan.json"  # in the folder of a study


@dataclass(frozen=True)
class ArmForecast:
    """One run, before it starts. Times are seconds, sizes bytes.

    name: of the run's folder. seconds: as its record will count them, from the start of its program to the record.
    process_seconds: wall time of its process, with what it imports first and what it closes last. step_seconds: of an
    optimizer step. basis: measured, or reckoned where it was too long to be tried.
    """

    name: str
    arm: str
    budget: float
    seed: int
    macs: int
    train_macs: int
    steps: int
    step_seconds: float
    seconds: float
    process_seconds: float
    memory_bytes: int
    disk_bytes: int
    basis: str


@dataclass(frozen=True)
class Forecast:
    """What one command was forecast to take.

    written: ISO date and time, UTC. machine, hardware: in words. jobs: runs at once. fixed_seconds: of planning before
    the first run and of the report after the last. sweep_seconds: of the whole command. gpu_hours: 0 without GPUs.
    notes: what the forecast leaves out.
    """

    study: str
    written: str
    code_revision: str
    machine: str
    hardware: str
    jobs: int
    fixed_seconds: float
    sweep_seconds: float
    gpu_hours: float
    arms: tuple[ArmForecast, ...]
    notes: tuple[str, ...]

    def write(self, folder: Path) -> Path:
        """Write `plan.json` into the study's folder so that a reader never sees half a file."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / PLAN_FILE
        write_atomically(path, json.dumps(dataclasses.asdict(self), indent=1) + "\n")
        return path

    @classmethod
    def read(cls, folder: Path) -> Forecast:
        """The forecast of a study.

        Raises:
            ValueError: there is none, or the file is damaged.
        """
        path = folder / PLAN_FILE
        try:
            values: dict[str, Any] = json.loads(path.read_text())
            arms = tuple(ArmForecast(**arm) for arm in values["arms"])
            return cls(**{**values, "arms": arms, "notes": tuple(values["notes"])})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} holds no forecast ({error}); python -m src.plan writes one") from error


@dataclass(frozen=True)
class Scored:
    """One finished run beside its forecast. ratio: actual over forecast seconds, as the record counts them."""

    name: str
    forecast: float
    actual: float

    @property
    def ratio(self) -> float:
        return self.actual / self.forecast


@dataclass(frozen=True)
class Score:
    """How good a forecast was over the runs that have finished.

    ratio: of the sums, actual over forecast. error: mean of |actual - forecast| / forecast. worst: the same, largest.
    missing: runs of the forecast that have no record.
    """

    runs: tuple[Scored, ...]
    forecast: float
    actual: float
    missing: int

    @property
    def ratio(self) -> float:
        return self.actual / self.forecast

    @property
    def error(self) -> float:
        return math.fsum(abs(run.ratio - 1) for run in self.runs) / len(self.runs)

    @property
    def worst(self) -> float:
        return max(abs(run.ratio - 1) for run in self.runs)

    def __str__(self) -> str:
        """One sentence."""
        missing = f", {self.missing} not finished" if self.missing else ""
        return (
            f"forecast {self.forecast:.0f} s, took {self.actual:.0f} s ({100 * (self.ratio - 1):+.0f} %) over"
            f" {len(self.runs)} run(s){missing}; a run was off by {100 * self.error:.0f} % on average and by"
            f" {100 * self.worst:.0f} % at most"
        )


def score(forecast: Forecast, records: Mapping[str, RunRecord]) -> Score | None:
    """Hold a forecast against what runs really took; None if none of its runs has finished.

    Runs that were started more than once are left out: their record counts the seconds of the last attempt alone.

    Args:
        records: by the name of the run's folder.
    """
    scored = tuple(
        Scored(arm.name, arm.seconds, records[arm.name].seconds)
        for arm in forecast.arms
        if arm.name in records and records[arm.name].attempts == 1
    )
    if not scored:
        return None
    missing = sum(arm.name not in records for arm in forecast.arms)
    return Score(scored, math.fsum(run.forecast for run in scored), math.fsum(run.actual for run in scored), missing)


def wall_seconds(seconds: Sequence[float], jobs: int) -> float:
    """Wall time of runs that are taken in this order by `jobs` slots, each the next one when it is free."""
    free = [0.0] * jobs
    for one in seconds:
        heapq.heappush(free, heapq.heappop(free) + one)
    return max(free)
