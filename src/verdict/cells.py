"""Cells of a study: the runs of one arm at one budget, which differ in nothing but the seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from src.record import METRICS, RunRecord
from src.verdict.statistics import Estimate, estimate

# Runs are averaged only when they agree in all of these; where a study varies one, its value joins the arm's name.
CONDITION = ("network", "data", "recipe", "epochs", "data_fingerprint")


@dataclass(frozen=True)
class Cell:
    """One row of the comparison: all runs of an arm at a budget."""

    name: str  # the arm; with the condition's varying values where a study mixes conditions
    arm: str
    budget: float  # asked, x the base's cost; 1 for the base
    is_base: bool
    records: tuple[RunRecord, ...]  # by seed

    @property
    def first(self) -> RunRecord:
        """The run of the lowest seed, for facts that all seeds share."""
        return self.records[0]

    @property
    def seeds(self) -> tuple[int, ...]:
        """Distinct seeds, ascending."""
        return tuple(sorted({r.seed for r in self.records}))

    def shown(self, field: str) -> list[float]:
        """The metric of every run, in the unit of its label."""
        return [METRICS[field].show(r) for r in self.records]

    def estimate(self, field: str) -> Estimate:
        """Mean over seeds in the unit of the label; no interval when one seed stands there twice."""
        result = estimate(self.shown(field))
        if len(self.seeds) < len(self.records):
            return Estimate(result.mean, None, None, len(self.seeds))
        return result

    def values(self, field: str) -> list[Any]:
        """A field's distinct values over the runs, ascending."""
        return sorted({getattr(r, field) for r in self.records})


def is_base(record: RunRecord) -> bool:
    """Whether the trained network is the unscaled one, whatever its arm is called and whatever budget was asked."""
    return record.depth == 1 and record.width == 1 and record.resolution == record.base_resolution


def group(records: Sequence[RunRecord]) -> tuple[Cell, ...]:
    """The cells of a study: base first, then by budget, then by name; the order of `records` does not matter."""
    varying = [field for field in CONDITION if len({getattr(r, field) for r in records}) > 1]
    if all(r.currency == "train_macs" for r in records):  # the length of a run is what is solved for
        varying = [field for field in varying if field != "epochs"]
    if "data" in varying:  # another data set always has another fingerprint
        varying = [field for field in varying if field != "data_fingerprint"]
    members: dict[tuple[bool, float, str, str], list[RunRecord]] = {}
    for record in records:
        suffix = "".join(f" {field}={str(getattr(record, field))[:12]}" for field in varying)
        base = is_base(record)
        key = (not base, 1.0 if base else record.budget, record.arm + suffix, record.arm)
        members.setdefault(key, []).append(record)
    return tuple(
        Cell(name, arm, budget, not scaled, tuple(sorted(runs, key=lambda r: (r.seed, r.config_hash, r.started))))
        for (scaled, budget, name, arm), runs in sorted(members.items(), key=lambda item: item[0])
    )


def by_budget(cells: Sequence[Cell]) -> dict[float, list[Cell]]:
    """The scaled cells of each budget, ascending."""
    budgets = sorted({cell.budget for cell in cells if not cell.is_base})
    return {budget: [c for c in cells if c.budget == budget and not c.is_base] for budget in budgets}
