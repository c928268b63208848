"""Forecasts of larger budgets: written into a study's `extrapolation.json` before those are run, and held against what
came. The file is only ever added to.

A forecast names the runs that it rests on by their hashes. One whose runs have changed since, or that was written after
a run which it forecasts had started, is told as such and not scored. None of this is a verdict.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from src.arm_folder import RUNNING
from src.record import RunRecord
from src.report.ahead import (
    NOT_SCORED,
    SCORED,
    WAITING,
    Ahead,
    ArmAhead,
    Basis,
    DifferenceAhead,
    Scored,
    moment,
)
from src.report.evidence import Evidence, check_evidence
from src.report.study import ArmFolder, finished, pending, read_study
from src.verdict.cells import Cell, group
from src.verdict.curves import SAME_COST, ArmCurve, arm_curve, at_cost, price_ratio, through
from src.verdict.extrapolation import Curve, Expected, expect, expect_difference, interval_score
from src.verdict.grammar import Finding
from src.verdict.guards import LEAST_SEEDS, check
from src.verdict.statistics import ALPHA, spread

FORM = (
    "every further doubling of cost changes the accuracy by one constant share, between 0 and 1, of what the doubling"
    " before it did; intervals hold all shares that the runs do not reject"
)
_SNAPPED = 0.1  # a budget is solved to within so much of what was asked


def forecast(
    study_folder: Path, costs: Sequence[float], seeds: int | None, now: datetime, revision: str
) -> tuple[list[Ahead], list[str]]:
    """Forecasts of every arm of a study at larger costs (x base), and what is not forecast, with the reason.

    Args:
        seeds: whose mean is forecast; None: as many as the arm with the fewest has.

    Raises:
        ValueError: the study cannot be read, or nothing can be forecast; says why.
    """
    if seeds is not None and seeds < LEAST_SEEDS:
        raise ValueError(f"seeds={seeds}: a mean of {LEAST_SEEDS} seeds or more is forecast; single runs come with it")
    arms = read_study(study_folder)
    done = finished(study_folder, arms)
    folders = {arm.record: arm.name for arm in done if arm.record is not None}
    evidence = check_evidence({arm.record: arm.path for arm in done if arm.record is not None})
    cells = group([arm.record for arm in done if arm.record is not None])
    entries: list[Ahead] = []
    refused: list[str] = []
    for setting in sorted({(c.first.network, c.first.data) for c in cells}):
        own = [c for c in cells if (c.first.network, c.first.data) == setting]
        made, left = _of_setting(own, _findings(own, evidence), folders, arms, sorted(set(costs)), seeds)
        entries += [dataclasses.replace(entry, code_revision=revision) for entry in made]
        refused += left
    if not entries:
        raise ValueError(f"nothing can be forecast in {study_folder}: {'; '.join(refused)}")
    written = now.astimezone(UTC).isoformat(timespec="seconds")
    return [dataclasses.replace(entry, written=written) for entry in entries], refused


def score_forecasts(
    entries: Sequence[Ahead], cells: Sequence[Cell], runs: Sequence[tuple[str, RunRecord]], evidence: Evidence
) -> tuple[Scored, ...]:
    """Every forecast beside what came.

    Args:
        cells: of the study.
        runs: folder and record of all finished runs.
        evidence: what was found in their folders.
    """
    found: list[Scored] = []
    by_folder = dict(runs)
    for entry in entries:
        own = [c for c in cells if (c.first.network, c.first.data) == (entry.network, entry.data)]
        findings = _findings(own, evidence) if own else []
        outcomes = {arm.name: _score_arm(entry, arm, own, by_folder, findings) for arm in entry.arms}
        found += outcomes.values()
        for one in entry.differences:
            found.append(_score_difference(entry, one, outcomes[one.name], outcomes[one.rival], by_folder))
    return tuple(found)


def _findings(cells: Sequence[Cell], evidence: Evidence) -> list[Finding]:
    """What guards say of one network on one data set, and what was found in the folders of its runs."""
    of_runs = [
        dataclasses.replace(finding, budget=cell.budget, arms=(cell.name,))
        for cell in cells
        for record in cell.records
        for finding in evidence.get(record, ())
    ]
    return [*check(cells), *of_runs]


def _of_setting(
    cells: Sequence[Cell],
    findings: Sequence[Finding],
    folders: Mapping[RunRecord, str],
    arms: Sequence[ArmFolder],
    costs: Sequence[float],
    seeds: int | None,
) -> tuple[list[Ahead], list[str]]:
    """Forecasts for one network on one data set, without date and revision."""
    network, data = cells[0].first.network, cells[0].first.data
    curves: list[ArmCurve] = []
    refused: list[str] = []
    names = sorted({cell.name for cell in cells if not cell.is_base})
    if not names:
        return [], [f"{network} on {data}: only the base has finished; run arms at two budgets"]
    running = pending([arm for arm in arms if arm.state == RUNNING])
    late: set[tuple[str, float]] = set()
    for name in names:
        first = next(cell for cell in cells if cell.name == name and not cell.is_base)
        for cost in costs:
            if at_cost(cells, first.arm, first.first, cost) is not None:
                refused.append(f"{name} at {cost:g}x: runs have finished there, and a forecast after the fact is none")
            elif any(run.arm == first.arm and spread([run.budget, cost]) <= _SNAPPED for run in running):
                refused.append(f"{name} at {cost:g}x: a run is under way there, and a forecast comes before it")
            else:
                continue
            late.add((name, cost))
        if all((name, cost) in late for cost in costs):
            continue
        try:
            curves.append(arm_curve(name, cells, findings))
        except ValueError as error:
            refused.append(f"{name}: {error}")
    wanted = seeds or min((len(cell.seeds) for curve in curves for cell in curve.cells), default=LEAST_SEEDS)
    entries = []
    for cost in costs:
        known: list[tuple[ArmCurve, ArmAhead]] = []
        for curve in curves:
            if (curve.name, cost) in late:
                continue
            try:
                expected, found = expect(curve.curve, cost, wanted)
            except ValueError as error:
                refused.append(f"{curve.name} at {cost:g}x: {error}")
                continue
            basis = tuple(Basis(folders[r], r.config_hash, r.predictions_sha256) for r in curve.records)
            budgets = tuple(level.cost for level in curve.curve.levels)
            known.append((curve, ArmAhead(curve.name, curve.arm, budgets, found, expected, basis)))
        if not known:
            continue
        last = known[0][0].records[-1]
        differences = tuple(
            DifferenceAhead(a.name, b.name, expect_difference(a.curve, b.curve, cost, wanted))
            for (a, _), (b, _) in itertools.combinations(known, 2)
        )
        notes = [note for curve, _ in known for note in curve.notes]
        notes += [str(f) for f in findings if not f.blocking and f.budget is None and f.guard != "note"]
        entry = Ahead(
            written="",
            code_revision="",
            network=network,
            data=data,
            currency=last.currency,
            base_price=last.base_price,
            cost=float(cost),
            seeds=wanted,
            form=FORM,
            confidence=1 - ALPHA,
            arms=tuple(arm for _, arm in known),
            differences=differences,
            notes=tuple(notes),
        )
        entries.append(entry)
    return entries, refused


def _score_arm(
    entry: Ahead,
    arm: ArmAhead,
    cells: Sequence[Cell],
    by_folder: Mapping[str, RunRecord],
    findings: Sequence[Finding],
) -> Scored:
    outcome = _blank(entry, arm.name, None, arm.expected)

    def state(state: str, reason: str) -> Scored:
        return dataclasses.replace(outcome, state=state, reason=reason)

    changed = [basis.folder for basis in arm.rests_on if not _same(basis, by_folder.get(basis.folder))]
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        return state(NOT_SCORED, f"runs that it rests on have changed since or are gone ({changed[0]}{more})")
    like = by_folder[arm.rests_on[-1].folder]
    cell = at_cost(cells, arm.arm, like, entry.cost)
    if cell is None:
        if any(c.arm == arm.arm and c.budget == entry.cost and not c.is_base for c in cells):
            return state(NOT_SCORED, f"its runs at {entry.cost:g}x were trained otherwise")
        return state(WAITING, "no run of that cost has finished")
    cost = price_ratio(cell.first)
    if spread([cost, entry.cost]) > _SNAPPED:
        return state(NOT_SCORED, f"its runs at {entry.cost:g}x cost {cost:.3g}x")
    early = [r for r in cell.records if not _began_after(r, entry.written)]
    if early:
        return state(NOT_SCORED, f"seed {early[0].seed} had started before it was written, or does not say when")
    if len(cell.seeds) < entry.seeds:
        return state(WAITING, f"{len(cell.seeds)} of {entry.seeds} seeds have finished")
    stopped = [f for f in findings if f.blocking and f.touches(cell.budget, {cell.name})]
    if stopped:
        return state(NOT_SCORED, str(stopped[0]).rstrip("."))
    if spread([cost, entry.cost]) > SAME_COST:  # what was solved for it, up to which the forecast is moved
        curve = _curve(arm, by_folder)
        if not _equal(expect(curve, entry.cost, entry.seeds)[0], arm.expected):
            return state(
                NOT_SCORED, f"its runs cost {cost:.3g}x, where this code forecasts otherwise than that code did"
            )
        outcome = dataclasses.replace(outcome, at=cost, expected=expect(curve, cost, entry.seeds)[0])
    values = cell.shown("test_accuracy")
    came = math.fsum(values[: entry.seeds]) / entry.seeds  # by seed
    e = outcome.expected
    return dataclasses.replace(
        _scored(outcome, came), runs_inside=sum(e.run_low <= v <= e.run_high for v in values), runs=len(values)
    )


def _score_difference(
    entry: Ahead, one: DifferenceAhead, arm: Scored, rival: Scored, by_folder: Mapping[str, RunRecord]
) -> Scored:
    outcome = _blank(entry, one.name, one.rival, one.expected, one.claimed)
    for state in (NOT_SCORED, WAITING):
        for side in (arm, rival):
            if side.state == state:
                return dataclasses.replace(outcome, state=state, reason=f"{side.name}: {side.reason}")
    assert arm.came is not None and rival.came is not None
    if (arm.at, rival.at) != (entry.cost, entry.cost):
        curves = {ahead.name: _curve(ahead, by_folder) for ahead in entry.arms}
        cost = math.sqrt(arm.at * rival.at)
        moved = expect_difference(curves[one.name], curves[one.rival], cost, entry.seeds)
        outcome = dataclasses.replace(outcome, at=cost, expected=moved)
    came = arm.came - rival.came
    return dataclasses.replace(_scored(outcome, came), right=(came * one.expected.value > 0) if one.claimed else None)


def _curve(arm: ArmAhead, by_folder: Mapping[str, RunRecord]) -> Curve:
    """The curve of the runs that a forecast rests on."""
    return through(group([by_folder[basis.folder] for basis in arm.rests_on]))


def _equal(one: Expected, other: Expected) -> bool:
    return bool(np.allclose(dataclasses.astuple(one), dataclasses.astuple(other), rtol=1e-6, atol=1e-6))


def _blank(entry: Ahead, name: str, rival: str | None, expected: Expected, claimed: bool = False) -> Scored:
    return Scored(
        name=name,
        rival=rival,
        network=entry.network,
        data=entry.data,
        currency=entry.currency,
        base_price=entry.base_price,
        cost=entry.cost,
        at=entry.cost,
        seeds=entry.seeds,
        written=entry.written,
        expected=expected,
        claimed=claimed,
        state=WAITING,
    )


def _scored(outcome: Scored, came: float) -> Scored:
    e = outcome.expected
    return dataclasses.replace(
        outcome,
        state=SCORED,
        came=came,
        inside=e.low <= came <= e.high,
        error=came - e.value,
        score=interval_score(e.low, e.high, came),
    )


def _same(basis: Basis, record: RunRecord | None) -> bool:
    return record is not None and Basis(basis.folder, record.config_hash, record.predictions_sha256) == basis


def _began_after(record: RunRecord, written: str) -> bool:
    """Whether the run started when the forecast stood there; a run that does not say when it started did not."""
    try:
        return moment(record.started) >= moment(written)
    except ValueError:
        return False
