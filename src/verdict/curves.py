"""From a study's cells to the curves that may be extrapolated: what is laid through which runs, and what stands in the
way."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

from src.record import METRICS, RunRecord
from src.verdict.cells import Cell
from src.verdict.extrapolation import Curve, Level
from src.verdict.grammar import Finding
from src.verdict.guards import LEAST_SEEDS, PARITY
from src.verdict.statistics import ALPHA, spread, variance

SAME_COST = 0.02  # as far as two arms of one budget may lie apart


@dataclass(frozen=True)
class ArmCurve:
    """An arm's curve with the cells it was laid through, cheapest first."""

    name: str
    arm: str
    cells: tuple[Cell, ...]
    curve: Curve
    notes: tuple[str, ...]

    @property
    def records(self) -> tuple[RunRecord, ...]:
        """All runs that it rests on."""
        return tuple(record for cell in self.cells for record in cell.records)


def price_ratio(record: RunRecord) -> float:
    """Realised cost of a run's network as a multiple of its base's, in the study's currency."""
    return record.price / record.base_price


def at_cost(cells: Sequence[Cell], arm: str, like: RunRecord, cost: float) -> Cell | None:
    """The cell of an arm that was trained as `like` was and for which that budget was asked, or else that costs as much
    (x base) within `SAME_COST`."""
    own = [cell for cell in cells if not cell.is_base and cell.arm == arm and alike(cell.first, like)]
    asked = [cell for cell in own if cell.budget == cost]
    near = [cell for cell in own if spread([price_ratio(cell.first), cost]) <= SAME_COST]
    return next(iter([*asked, *near]), None)


def through(cells: Sequence[Cell]) -> Curve:
    """The curve through cells of any order.

    Raises:
        ValueError: there is none.
    """
    ascending = sorted(cells, key=lambda cell: price_ratio(cell.first))
    levels = (Level(price_ratio(cell.first), tuple(cell.shown("test_accuracy"))) for cell in ascending)
    return Curve(tuple(levels), ascending[0].is_base)


def alike(one: RunRecord, other: RunRecord) -> bool:
    """Whether two runs differ in nothing but their network's size, their seed and where they ran."""
    fields = ("network", "data", "currency", *PARITY)
    return all(getattr(one, field) == getattr(other, field) for field in fields)


def arm_curve(name: str, cells: Sequence[Cell], findings: Sequence[Finding]) -> ArmCurve:
    """The curve through all budgets of an arm and, where it was trained alike with enough seeds, the base.

    Args:
        name: of the arm's cells.
        cells: of one network on one data set.
        findings: of the guards over them.

    Raises:
        ValueError: a guard stands in the way, or no curve can be laid through what is there.
    """
    own = sorted((c for c in cells if c.name == name and not c.is_base), key=lambda cell: price_ratio(cell.first))
    first = own[0].first
    if first.currency == "train_macs":
        raise ValueError(
            "a budget of training MACs is shared between a network and its steps, so its runs lie on no one curve;"
            " count the study in another currency"
        )
    for cell in own:
        for finding in findings:
            if finding.blocking and finding.touches(cell.budget, {cell.name}):
                raise ValueError(str(finding).rstrip("."))
        if not all(alike(record, first) for record in cell.records):
            raise ValueError(f"its runs at {cell.budget:g}x were trained otherwise than at {own[0].budget:g}x")
    notes = []
    base = max((c for c in cells if c.is_base), key=lambda c: (alike(c.first, first), len(c.seeds)), default=None)
    if base is not None:
        reasons = [str(f).rstrip(".") for f in findings if f.blocking and f.touches(base.budget, {base.name})]
        if not all(alike(record, first) for record in base.records):
            reasons.insert(0, "it was trained otherwise")
        if len(base.seeds) < LEAST_SEEDS:
            reasons.append(f"it has {len(base.seeds)} of the {LEAST_SEEDS} seeds that are needed")
        if reasons:
            notes.append(f"{name}: the base is left out, since {reasons[0]}")
            base = None
    taken = own if base is None else sorted([base, *own], key=lambda cell: price_ratio(cell.first))
    curve = through(taken)
    means = [cell.estimate("test_accuracy").mean for cell in taken]
    steps = [after - before for before, after in itertools.pairwise(means)]
    if steps and min(steps) < 0 < max(steps):
        listed = ", ".join(METRICS["test_accuracy"].format(mean) for mean in means)
        notes.append(f"{name}: its means rise and fall ({listed} %); if it has turned round, its interval is wrong")
    last, before = curve.levels[-1].values, curve.levels[:-1]
    squares, df = sum(variance(x.values) * (len(x.values) - 1) for x in before), sum(len(x.values) - 1 for x in before)
    if squares and stats.f.sf(variance(last) * df / squares, len(last) - 1, df) < ALPHA:
        notes.append(
            f"{name}: seeds scatter more at {curve.levels[-1].cost:.3g}x than below (standard deviation"
            f" {math.sqrt(variance(last)):.2f} pp, {math.sqrt(squares / df):.2f} before); if that goes on, its interval"
            " is too short"
        )
    return ArmCurve(name, own[0].arm, tuple(taken), curve, tuple(notes))
