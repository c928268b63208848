"""55 of 55: every way in which two published studies fooled their authors is blocked, or named where it is read.

The catch matrix is printed at the end of the test run (`tests/conftest.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from mutations.mutants import MUTANTS, Mutant
from mutations.world import PLANNED, RECORDED, World, innocent_study

from src.guards import GUARDS
from src.report.verify import verify
from src.report.write import write_report

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guards.md"
ROWS = [f"H{n}" for n in range(1, 16)] + [f"C{n}" for n in range(1, 41)]


def test_every_row_has_its_mutant_and_every_guard_its_row() -> None:
    assert [mutant.row for mutant in MUTANTS] == ROWS
    assert {mutant.guard for mutant in MUTANTS} == set(GUARDS)


def test_the_guide_lists_all_guards_and_where_each_mutant_is_caught() -> None:
    text = GUIDE.read_text()
    for code, meaning in GUARDS.items():
        assert f"| {code} | {meaning} |" in text
    for mutant in MUTANTS:
        assert f"| {mutant.row} | {mutant.guard} | {mutant.where} | {mutant.kind} | {mutant.fault} |" in text


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.row)
def test_the_mutant_is_caught(mutant: Mutant, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    caught = mutant.inject(World(tmp_path))
    assert mutant.guard in caught.said.replace(":", " ").replace(")", " ").split(), caught
    assert caught.where == mutant.where, caught
    record_property("caught", [mutant.row, mutant.guard, mutant.kind, caught.where, mutant.fault])


def test_without_a_mutant_an_arm_trains_and_says_nothing_of_guards(tmp_path: Path) -> None:
    assert World(tmp_path).trains("scaling=compound").where == RECORDED
    assert "guard" not in World(tmp_path / "b").trains("scaling=base").said


def test_without_a_mutant_arms_are_planned_and_nothing_is_said_of_guards(tmp_path: Path) -> None:
    planned = World(tmp_path).planned("study=innocent", "scaling=depth,width,compound", "tracking=none")
    assert planned.where == PLANNED and "guard" not in planned.said


def test_without_a_mutant_the_study_is_judged_and_verified(tmp_path: Path) -> None:
    report = write_report(innocent_study(tmp_path))
    assert report.findings == ()
    assert [s.outcome for s in report.sentences] == ["supported"]
    found = verify(report.folder)
    assert found.differences == found.unchecked == ()
    assert found.runs == 9 and found.files == 12 and found.figures > 1000
