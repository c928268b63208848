"""The forecast of a sweep's time that `python -m src.plan` left in the study, held against what its runs took."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from src.record import RunRecord
from src.report.ahead import moment
from src.report.forecast import PLAN_FILE, Forecast, Score, score


@dataclass(frozen=True)
class Planned:
    """A plan with its score. before: runs of it that had started when it was written, and are left out."""

    written: str
    machine: str
    hardware: str
    score: Score
    before: int

    def __str__(self) -> str:
        """One sentence."""
        left_out = f"; {self.before} of its runs had started before it and are left out" if self.before else ""
        return f"Planned on {self.written[:16]} for {self.hardware}: {self.score}{left_out}"

    def to_mapping(self) -> dict[str, Any]:
        """JSON-ready."""
        runs = [{**dataclasses.asdict(run), "ratio": run.ratio} for run in self.score.runs]
        return {
            "written": self.written,
            "machine": self.machine,
            "hardware": self.hardware,
            "forecast_seconds": self.score.forecast,
            "actual_seconds": self.score.actual,
            "ratio": self.score.ratio,
            "mean_error": self.score.error,
            "worst_error": self.score.worst,
            "not_finished": self.score.missing,
            "started_before": self.before,
            "runs": runs,
            "text": str(self),
        }


def read_planned(study_folder: Path, runs: Sequence[tuple[str, RunRecord]]) -> tuple[Planned | None, str]:
    """The score of the study's plan, or None and what is odd about the plan; empty if there is none, or nothing odd.

    Args:
        runs: folder and record of all finished runs.
    """
    if not (study_folder / PLAN_FILE).exists():
        return None, ""
    records = dict(runs)
    try:
        plan = Forecast.read(study_folder)
        written = moment(plan.written)
        late = {arm.name for arm in plan.arms if arm.name in records and _started(records[arm.name], written) < written}
        ahead = dataclasses.replace(plan, arms=tuple(arm for arm in plan.arms if arm.name not in late))
        found = score(ahead, records)
        planned = Planned(plan.written, plan.machine, plan.hardware, found, len(late)) if found is not None else None
        if planned is not None:
            planned.to_mapping()  # whatever its numbers are, they can be told
    except (ValueError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        reason = " ".join(str(error).split()).replace(str(study_folder / PLAN_FILE), "it")[:150]
        return None, f"{PLAN_FILE}: it cannot be scored ({reason})"
    if planned is None and plan.study != study_folder.name and not {arm.name for arm in plan.arms} & set(records):
        return None, f"{PLAN_FILE}: it is the plan of another study, {plan.study}, and of no run that has finished here"
    if planned is None and late:
        return None, f"{PLAN_FILE}: it was written after its runs had started, so it forecasts nothing"
    return planned, ""


def _started(record: RunRecord, otherwise: datetime) -> datetime:
    try:
        return moment(record.started)
    except ValueError:
        return otherwise
