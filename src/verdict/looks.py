"""Reading a sweep that still runs, without the winners that come of looking often enough.

Each family has one error of `ALPHA` at each budget, which power spending (Kim & DeMets 1987) divides among at most
three readings: when half, when three quarters and when all of the planned seeds have finished in every arm of the
family. In between, the last of these readings stands. An early reading takes the first planned seeds of each arm,
whichever others have finished, so that the same look is never taken at other numbers; its level is fixed beforehand,
and the levels add up to ALPHA. By the union bound no joint distribution is needed: however the readings depend on one
another, whatever the noise of Welch's test at few seeds, the chance of a false winner at any reading is at most the sum
of the levels at which the tests hold (tests/verdict/test_calibration.py simulates a look after every seed).

A look costs error only if it was taken: the report keeps `looks.json`, and the last reading has ALPHA less what the
early ones have spent, all of ALPHA where nobody looked. The exponent leaves 82 % of ALPHA to the end after both. Who
decides by the curves of a tracker whether to ask for a report at all can add to the error what an unasked look did not
spend, 0.9 points at most.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from src.verdict.claims import Family
from src.verdict.grammar import Finding, Look
from src.verdict.guards import LEAST_SEEDS
from src.verdict.statistics import ALPHA

FRACTIONS = (0.5, 0.75)  # of the planned seeds, at which early readings are taken
EXPONENT = 6  # ALPHA * fraction ** EXPONENT is spent up to there
LEVELS = tuple(
    ALPHA * (now**EXPONENT - before**EXPONENT) for before, now in zip((0.0, *FRACTIONS), FRACTIONS, strict=False)
)


@dataclass(frozen=True)
class PlannedRun:
    """A run that has not finished and may still do so."""

    arm: str
    budget: float
    seed: int


@dataclass(frozen=True)
class Progress:
    """What is known of a study beside its finished runs: what is still to come, and which readings were taken."""

    pending: tuple[PlannedRun, ...] = ()
    looks: tuple[Look, ...] = ()


@dataclass(frozen=True)
class Standpoint:
    """What may be read of a family at a budget now.

    seeds: of each arm, the ones to read. look: None while nothing may be read. earlier: early looks taken before.
    """

    look: Look | None
    seeds: Mapping[str, Sequence[int]] = field(default_factory=dict)
    earlier: int = 0
    findings: tuple[Finding, ...] = ()


def standpoint(
    family: Family, setting: tuple[str, str], budget: float, finished: Mapping[str, Sequence[int]], progress: Progress
) -> Standpoint:
    """Which seeds of which arms a family may be judged by, and at which level.

    Args:
        setting: network and data.
        finished: seeds of each arm of the family that has runs at this budget.
    """
    arms = {arm for claim in family.claims for arm in (claim.subject, *claim.rivals)}
    planned = {arm: set(seeds) for arm, seeds in finished.items()}
    for run in progress.pending:
        if run.arm in arms and run.budget == budget:
            planned.setdefault(run.arm, set()).add(run.seed)
    key = (str(family), *setting, budget)
    taken = [look for look in progress.looks if (look.family, look.network, look.data, look.budget) == key]
    total = sum(map(len, planned.values()))
    fewest = min(map(len, planned.values()))

    def reading(chosen: Mapping[str, Sequence[int]], level: float) -> Look:
        least = min(map(len, chosen.values()))
        return Look(*key, least, fewest, sum(map(len, chosen.values())), total, level)

    if all(planned[arm] == set(finished.get(arm, ())) for arm in planned):
        early = {look.runs: look.level for look in taken if not look.complete}
        look = reading(finished, max(ALPHA - math.fsum(early.values()), 0.0))
        return Standpoint(look, finished, len(early), _extended(look, taken))
    for fraction, level in reversed(list(zip(FRACTIONS, LEVELS, strict=True))):
        first = {arm: sorted(seeds)[: math.ceil(fraction * len(seeds))] for arm, seeds in planned.items()}
        if all(len(seeds) >= LEAST_SEEDS and set(seeds) <= set(finished.get(a, ())) for a, seeds in first.items()):
            return Standpoint(reading(first, level), first)
    done = sum(map(len, finished.values()))
    early_seeds = sorted({math.ceil(f * fewest) for f in FRACTIONS} & set(range(LEAST_SEEDS, fewest)))
    when = "".join(f"after {' and '.join(map(str, early_seeds))} seeds of every arm and " for _ in early_seeds[:1])
    text = f"the sweep still runs, {done} of the {total} planned runs of these arms have finished"
    remedy = f"it is read {when}at the end; the same command goes on if it was stopped"
    return Standpoint(None, findings=(Finding("G10", True, text, remedy, budget),))


def _extended(look: Look, taken: Sequence[Look]) -> tuple[Finding, ...]:
    """What must be said where runs were added after all that were planned at first had been read."""
    before = sorted({old.runs for old in taken if old.complete and old.runs < look.runs})
    if not before:
        return ()
    text = (
        f"runs were added after a verdict on {' and '.join(map(str, before))} runs had been read: this is try number"
        f" {len(before) + 1}, and each has up to {100 * ALPHA:g} % of false winners"
    )
    remedy = "confirm what was found so with new seeds in a study of their own"
    return (Finding("G10", False, text, remedy, look.budget),)
