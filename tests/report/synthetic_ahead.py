"""Studies of several budgets made of numbers alone, for the tests of forecasts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from synthetic_study import BASE_MACS, base_records, record, write_arm

from src.record import RunRecord

EARLY, LATE = "2026-01-01T00:00:00+00:00", "2026-03-01T00:00:00+00:00"  # a forecast stands between them
BASE = [0.800, 0.802, 0.798]
SMALL = {  # arm -> budget -> accuracies
    "compound": {2: [0.830, 0.833, 0.831], 4: [0.850, 0.849, 0.853]},
    "depth": {2: [0.810, 0.813, 0.811], 4: [0.816, 0.815, 0.812]},
}
LARGE = {"compound": {8: [0.862, 0.865, 0.861]}, "depth": {8: [0.818, 0.815, 0.819]}}

Accuracies = Mapping[str, Mapping[float, Sequence[float]]]


def runs(arms: Accuracies, **changes: Any) -> list[RunRecord]:
    """Records of arms at budgets, one for each accuracy, seeds from 0. Depth alone tells networks apart here."""
    found = []
    for place, (arm, budgets) in enumerate(arms.items()):
        for budget, values in budgets.items():
            for seed, accuracy in enumerate(values):
                facts = {"arm": arm, "budget": float(budget), "snapped_budget": float(budget), "seed": seed}
                facts |= {"depth": budget + 0.01 * place, "width": 1.0, "resolution": 32, "test_accuracy": accuracy}
                found.append(record(**(facts | {"macs": int(budget * BASE_MACS)} | changes)))
    return found


def small(**changes: Any) -> list[RunRecord]:
    """The runs that a forecast rests on."""
    return [*base_records(BASE, **{"started": EARLY, **changes}), *runs(SMALL, **{"started": EARLY, **changes})]


def large(**changes: Any) -> list[RunRecord]:
    """The runs that it is held against."""
    return runs(LARGE, **{"started": LATE, **changes})


def write(study: Path, records: Sequence[RunRecord]) -> Path:
    """A study's folder, of finished runs."""
    for one in records:
        write_arm(study, one, history=False)
    return study
