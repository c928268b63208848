"""When a running sweep is read, on which seeds, at which level; and that no look is taken twice."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic_study import arm_records

from src.verdict.claims import DEFAULT, Claim, Family
from src.verdict.grammar import Look, NoEvidence, NotAssessable, Supported
from src.verdict.judge import judge
from src.verdict.looks import LEVELS, PlannedRun, Progress, Standpoint, standpoint
from src.verdict.statistics import ALPHA

TWO = Family((Claim("compound", ("depth",)),))
SETTING = ("b0", "cifar10")


def at(finished: dict[str, Iterable[int]], planned: int, looks: tuple[Look, ...] = ()) -> Standpoint:
    """Where a study of two arms stands, when seeds up to `planned` are planned."""
    done = {arm: sorted(seeds) for arm, seeds in finished.items()}
    pending = [
        PlannedRun(arm, 2.0, seed)
        for arm in ("compound", "depth")
        for seed in range(planned)
        if seed not in done.get(arm, ())
    ]
    return standpoint(TWO, SETTING, 2.0, done, Progress(tuple(pending), looks))


def test_the_levels_are_those_of_power_spending_and_leave_most_to_the_end() -> None:
    assert pytest.approx((0.05 / 64, 0.05 * (0.75**6 - 1 / 64))) == LEVELS  # alpha t^6 by hand
    assert sum(LEVELS) < 0.2 * ALPHA


@pytest.mark.parametrize(
    ("done", "planned", "read", "level"),
    [
        (2, 6, None, None),
        (3, 6, 3, LEVELS[0]),
        (4, 6, 3, LEVELS[0]),
        (5, 6, 5, LEVELS[1]),
        (6, 6, 6, ALPHA),
        (2, 3, None, None),
        (3, 3, 3, ALPHA),
        (3, 4, 3, LEVELS[1]),
        (4, 10, None, None),
        (5, 10, 5, LEVELS[0]),
        (9, 10, 8, LEVELS[1]),
    ],
)
def test_a_sweep_is_read_at_half_three_quarters_and_the_end(
    done: int, planned: int, read: int | None, level: float | None
) -> None:
    here = at({"compound": range(done), "depth": range(done)}, planned)
    if read is None:
        assert here.look is None and here.findings[0].blocking
    else:
        assert here.look is not None
        assert (here.look.seeds, here.look.planned_seeds, here.look.level) == (read, planned, level)
        assert {arm: list(seeds) for arm, seeds in here.seeds.items()} == {
            arm: list(range(read)) for arm in ("compound", "depth")
        }


def test_the_slowest_arm_decides() -> None:
    assert at({"compound": range(2), "depth": range(6)}, 6).look is None
    assert at({"depth": range(6)}, 6).look is None  # none of compound's
    look = at({"compound": range(3), "depth": range(6)}, 6).look
    assert look is not None and look.runs == 6 and look.planned_runs == 12


def test_a_look_needs_its_own_seeds_and_not_merely_as_many() -> None:
    assert at({"compound": (0, 1, 3), "depth": range(6)}, 6).look is None
    assert at({"compound": (0, 1, 2, 5), "depth": range(6)}, 6).look is not None


@given(st.lists(st.sampled_from([(arm, seed) for arm in ("compound", "depth") for seed in range(8)]), unique=True))
def test_whatever_finishes_first_each_look_is_at_one_set_of_seeds(order: list[tuple[str, int]]) -> None:
    order += [pair for pair in ((a, s) for a in ("compound", "depth") for s in range(8)) if pair not in order]
    seen: dict[float, object] = {}
    for count in range(1, len(order) + 1):
        done: dict[str, list[int]] = {}
        for arm, seed in order[:count]:
            done.setdefault(arm, []).append(seed)
        here = at(dict(done), 8)  # type: ignore[arg-type]
        if here.look is not None:
            chosen = {arm: tuple(seeds) for arm, seeds in sorted(here.seeds.items())}
            assert seen.setdefault(here.look.level, chosen) == chosen
    assert ALPHA in seen and set(seen) <= {*LEVELS, ALPHA}


def test_the_end_has_what_was_not_spent() -> None:
    early = [at({"compound": range(n), "depth": range(n)}, 6).look for n in (3, 5)]
    assert early[0] is not None and early[1] is not None
    everything = {"compound": range(6), "depth": range(6)}
    for taken, level in (((), ALPHA), (early[:1], ALPHA - LEVELS[0]), (early, ALPHA - sum(LEVELS))):
        here = at(everything, 6, tuple(taken))  # type: ignore[arg-type]
        assert here.look is not None and here.look.level == pytest.approx(level) and here.earlier == len(taken)
        assert here.findings == ()  # to look early as planned is no further try
    other = [dataclasses.replace(look, budget=4.0) for look in early]  # type: ignore[type-var]
    assert at(everything, 6, tuple(other)).look == at(everything, 6).look  # type: ignore[arg-type]


def test_runs_that_are_added_after_the_end_are_another_try() -> None:
    first = at({"compound": range(3), "depth": range(3)}, 3).look
    assert first is not None and first.complete
    again = at({"compound": range(3), "depth": range(3)}, 3, (first,))
    assert again.findings == () and again.look == first
    [finding] = at({"compound": range(6), "depth": range(6)}, 6, (first,)).findings
    assert "after a verdict on 6 runs had been read: this is try number 2" in str(finding) and not finding.blocking


def seeds_of(values: dict[str, list[float]], planned: int) -> Progress:
    pending = [PlannedRun(arm, 2.0, seed) for arm, own in values.items() for seed in range(len(own), planned)]
    return Progress(tuple(pending))


def test_what_has_finished_is_no_verdict_at_full_level() -> None:
    """0.3 pp at a deviation of 0.085: found by four seeds that are all, and not by four that are half."""
    calm = [0.9, 0.901, 0.902, 0.9005]
    values = {"compound": [v + 0.003 for v in calm], "depth": calm}
    [whole] = judge(arm_records(values), [TWO]).sentences
    assert isinstance(whole, Supported)
    [early] = judge(arm_records(values), [TWO], seeds_of(values, 8)).sentences
    assert isinstance(early, NoEvidence) and early.resolution is None
    assert "after 4 of 8 planned seeds, 0.078 % of false winners at this reading: compound differs" in str(early)
    assert "this reading could only detect" in str(early)
    assert early.comparisons[0].confidence == pytest.approx(1 - LEVELS[0])
    [waiting] = judge(arm_records(values), [TWO], seeds_of(values, 12)).sentences
    assert isinstance(waiting, NotAssessable)
    assert "8 of the 24 planned runs of these arms have finished" in str(waiting)
    assert "it is read after 6 and 9 seeds of every arm and at the end" in str(waiting)


def test_an_early_winner_has_to_be_plain_and_says_that_it_is_early() -> None:
    calm = (0.9 + 1e-5 * np.arange(4)).tolist()
    values = {"compound": [v + 0.02 for v in calm], "depth": calm}
    verdict = judge(arm_records(values), [TWO], seeds_of(values, 8))
    [sentence] = verdict.sentences
    assert isinstance(sentence, Supported) and "after 4 of 8 planned seeds" in str(sentence)
    [look] = verdict.looks
    end = {arm: [*own, *own[::-1]] for arm, own in values.items()}
    [last] = judge(arm_records(end), [TWO], Progress(looks=(look,))).sentences
    assert "4.9 % of false winners at this reading (the rest was spent on 1 earlier): compound beats" in str(last)


def test_where_nothing_was_tested_no_look_was_taken() -> None:
    assert judge(arm_records({"compound": [0.92], "depth": [0.9]}), [TWO]).looks == ()
    assert len(judge(arm_records({"compound": [0.9, 0.91, 0.92], "depth": [0.9, 0.89, 0.92]}), [TWO]).looks) == 1


def test_only_arms_of_the_family_are_waited_for() -> None:
    values = {"compound": [0.92, 0.921, 0.922], "depth": [0.9, 0.901, 0.902]}
    coming = Progress((PlannedRun("slow_res", 2.0, 0), PlannedRun("depth", 4.0, 0)))
    [sentence] = judge(arm_records(values), [DEFAULT], coming).sentences
    assert isinstance(sentence, Supported) and "planned" not in str(sentence)
