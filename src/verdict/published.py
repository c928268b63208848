"""What cannot be true in a results table that somebody published (guard codes after the project's list of defects).

Every rule is general: a cost twin says what the stated network costs, the printed numbers say what somebody read off a
counter, and both must agree within what counters are known to add and what rounding hides. No rule knows a table.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from src.verdict.costs_as_printed import against_twins, not_the_network, without_twins
from src.verdict.findings import Finding, Severity
from src.verdict.fit import Fit, Reading, Twin, find_fit, read_rows
from src.verdict.noise_as_printed import chance, native, noise, selection
from src.verdict.printed import Kind, Table, dataset_facts


@dataclass(frozen=True)
class Audit:
    """All that was found. fit: the baseline that fits, in words; None: none. unchecked: what could not be checked, and
    why."""

    table: Table
    fit: str | None
    readings: tuple[Reading, ...]
    findings: tuple[Finding, ...]
    unchecked: tuple[str, ...]


def audit(table: Table, twins: Sequence[Twin], *, named: bool = False) -> Audit:
    """Check a table against the baselines it may be about.

    Args:
        table: what was printed.
        twins: baselines to try, those with likelier classes first.
        named: the network is given, not to be found; it is then never traded for another.
    """
    fit = find_fit(table, twins, named=named)
    fitted = fit if isinstance(fit, Fit) else None
    readings = tuple(read_rows(table, fitted))
    found = [*without_twins(table, fitted, readings), *selection(table), *noise(table, readings)]
    found += [*chance(table), *native(table, readings)]
    if fitted is not None:
        found += against_twins(table, fitted, readings)
    elif named:
        found += not_the_network(table, twins[0])
    order = {severity: rank for rank, severity in enumerate(Severity)}
    found.sort(key=lambda f: (order[f.severity], int(f.guard[1:]), f.arms, f.text))
    return Audit(table, None if fitted is None else str(fitted), readings, tuple(found), tuple(_unchecked(table, fit)))


def _unchecked(table: Table, fit: Fit | str) -> Iterator[str]:
    """What could not be checked, and why."""
    if isinstance(fit, str):
        yield f"No row was held against what its network must have and cost (G1, G2): {fit}."
    facts = dataset_facts(table)

    def lacks(field: str) -> bool:
        return any(getattr(arm, field) is None for arm in table.arms)

    if lacks("params"):
        yield "Parameters are not printed for every arm: scaling is checked by cost alone (G1)."
    if lacks("cost"):
        yield "A cost is not printed for every arm: units (G2) and equal budgets (G3) are not checked for those."
    if lacks("px"):
        yield "Input sides are not printed for every arm: depth and width were taken at the base's (G9)."
    if lacks("seeds"):
        yield "The number of seeds is not printed for every arm: one was assumed (G10)."
    if sum(arm.accuracy is not None for arm in table.arms) < 2:
        yield "Fewer than two accuracies are printed: no difference was held against noise (G10)."
    if not facts and lacks("n_test"):
        yield "The size of the test set is not printed: sampling noise of its pictures was left out (G10)."
    if not facts and table.classes is None:
        yield "Neither data set nor classes are printed: chance level (G11) and native pixels (G14) are not checked."
    if "accuracy" in table.headings and not any(w in table.headings["accuracy"].lower() for w in ("test", "val")):
        yield "The heading does not say on which split accuracy was measured, nor which checkpoint was (G4)."
    if not all(arm.factors or arm.kind in (Kind.BASE, Kind.RESOLUTION) for arm in table.arms):
        yield (
            "Factors of depth and width are not stated for every arm: any growth was allowed for depth and width, and"
            " compound arms were not held against a cost (G1, G2)."
        )
    if table.unread:
        yield f"Columns that were not read: {', '.join(table.unread)}."
