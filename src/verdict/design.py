"""What a design can resolve, before anything is trained: noise between seeds from a prior or a pilot, seeds for a
wanted effect, and the smaller designs that still resolve it.

Accuracies and effects are in percentage points (pp). Pure arithmetic; a design is priced by what its runs cost.

Sources: Jordan 2023, arXiv 2304.01910 (noise from independent errors, estimable from two runs); Browne 1995, Statistics
in Medicine 14(17) (plan with the upper 80 % confidence limit of a pilot's deviation, or half of all studies are too
small).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from src.verdict.claims import Claim
from src.verdict.guards import LEAST_SEEDS
from src.verdict.statistics import ALPHA, POWER, seeds_needed, smallest_detectable

UPPER = 0.80  # one-sided confidence of the limit that a pilot's deviation is planned with
MOST_SEEDS = 1000


@dataclass(frozen=True)
class Noise:
    """Standard deviation of test accuracy between seeds, pp.

    planned: what is planned with. source: where it comes from, in words.
    pilot, upper: pooled deviation of a pilot and its upper limit; degrees: its degrees of freedom. None: no pilot.
    floor: deviation that independent errors alone would cause; None: not known.
    remark: what must be said beside the numbers; empty where there is nothing.
    """

    planned: float
    source: str
    pilot: float | None = None
    upper: float | None = None
    degrees: int | None = None
    floor: float | None = None
    remark: str = ""


@dataclass(frozen=True)
class RunCost:
    """One arm at one budget, and what a single seed of it costs.

    is_base: the unscaled network, which no budget changes. seconds: of wall time. macs: of training, in all.
    """

    arm: str
    budget: float
    is_base: bool
    seconds: float
    macs: float


@dataclass(frozen=True)
class Design:
    """Arms, each with `seeds` seeds.

    comparisons: that are corrected together. detectable: smallest difference found with the wanted power, pp; None:
        noise is not known, or there are too few seeds for a verdict, or there is nothing to compare.
    whole: whether all claims can be judged that could be judged with all arms.
    """

    name: str
    costs: tuple[RunCost, ...]
    seeds: int
    comparisons: int
    detectable: float | None
    whole: bool

    @property
    def runs(self) -> int:
        """Runs to train."""
        return self.seeds * len(self.costs)

    @property
    def seconds(self) -> float:
        """Of all runs, one after the other."""
        return self.seeds * math.fsum(cost.seconds for cost in self.costs)

    @property
    def macs(self) -> float:
        """Of training all runs."""
        return self.seeds * math.fsum(cost.macs for cost in self.costs)


def pooled_sd(groups: Sequence[Sequence[float]]) -> tuple[float, int]:
    """Deviation within groups, and its degrees of freedom; groups of one value say nothing.

    Raises:
        ValueError: no group has two values.
    """
    telling = [np.asarray(group, float) for group in groups if len(group) > 1]
    if not telling:
        raise ValueError("noise between seeds needs two runs of one arm with different seeds")
    degrees = sum(len(group) - 1 for group in telling)
    squares = math.fsum(float(((group - group.mean()) ** 2).sum()) for group in telling)
    return math.sqrt(squares / degrees), degrees


def upper_limit(sd: float, degrees: int, confidence: float = UPPER) -> float:
    """One-sided upper confidence limit of a normal deviation that was estimated with `degrees` of freedom."""
    return sd * math.sqrt(degrees / float(stats.chi2.ppf(1 - confidence, degrees)))


def floor_sd(correct: Sequence[NDArray[np.bool_]]) -> float:
    """Deviation of accuracy, pp, that independent errors would cause: sqrt(D / 2) / n from each pair of runs, pooled.

    D is the number of pictures of which one run of the pair is right and the other wrong: its expectation is
    2 sum p (1 - p) over pictures of which a run is right with chance p, and sum p (1 - p) / n^2 is the variance of
    accuracy if runs err independently.

    Args:
        correct: one array (n,) for each run of one arm: whether it was right on each test picture, in the same order.

    Raises:
        ValueError: fewer than two runs, or of different pictures.
    """
    if len(correct) < 2 or len({one.shape for one in correct}) > 1:
        raise ValueError("disagreement needs two runs on the same test pictures")
    apart = [int((a != b).sum()) for a, b in itertools.combinations(correct, 2)]
    return 100.0 * math.sqrt(math.fsum(apart) / len(apart) / 2) / correct[0].size


def pilot_noise(groups: Sequence[Sequence[float]], floors: Sequence[float], source: str) -> Noise:
    """Noise to plan with: the larger of the floor and the upper limit of the pilot's own deviation.

    Args:
        groups: test accuracies in pp of each arm of the pilot, one a seed.
        floors: `floor_sd` of the arms for which predictions are stored.
        source: in words.

    Raises:
        ValueError: no arm has two runs, or all runs are equal, so that there is no noise to plan with.
    """
    sd, degrees = pooled_sd(groups)
    upper = upper_limit(sd, degrees)
    floor = math.sqrt(math.fsum(one**2 for one in floors) / len(floors)) if floors else None
    planned = max(upper, floor or 0.0)
    if planned == 0:
        raise ValueError(f"{source} has no spread between its seeds, so there is no noise to plan with")
    remark = ""
    if floor is not None and floor > 0:
        if degrees * (sd / floor) ** 2 > float(stats.chi2.ppf(1 - ALPHA, degrees)):
            remark = (
                f"real (distributional) variance present: seeds differ by {sd:.2f} pp, errors that were independent"
                f" would cause {floor:.2f} pp, so runs differ in what they have learnt; the floor is no plan here"
            )
        elif floor > upper:
            remark = (
                f"the pilot's seeds happen to agree ({sd:.2f} pp, upper limit {upper:.2f}); the disagreement of their"
                f" answers shows noise of {floor:.2f} pp, which is planned with"
            )
    return Noise(planned, source, sd, upper, degrees, floor, remark)


def comparisons_at(costs: Sequence[RunCost], claims: Sequence[Claim]) -> dict[float, tuple[tuple[str, str], ...]]:
    """What the claims can compare at each budget: subject and rival, where both have an arm there."""
    scaled = [cost for cost in costs if not cost.is_base]
    found = {}
    for budget in sorted({cost.budget for cost in scaled}):
        there = {cost.arm for cost in scaled if cost.budget == budget}
        pairs = [
            (claim.subject, rival) for claim in claims for rival in claim.rivals if {claim.subject, rival} <= there
        ]
        if pairs:
            found[budget] = tuple(pairs)
    return found


def family_size(costs: Sequence[RunCost], claims: Sequence[Claim]) -> int:
    """Comparisons that are corrected together at one budget, at most; 0 where the claims have nothing to compare."""
    return max(map(len, comparisons_at(costs, claims).values()), default=0)


def seeds_for(effect: float, noise: Noise, comparisons: int, power: float = POWER) -> int | None:
    """Fewest seeds per arm that find `effect` (pp) with `power` in a family of `comparisons`, and that a verdict needs;
    None if more than `MOST_SEEDS`."""
    found = seeds_needed(effect, noise.planned, comparisons, power=power, most=MOST_SEEDS)
    return None if found is None else max(LEAST_SEEDS, found)


def detectable_by(seeds: int, noise: Noise | None, comparisons: int, power: float = POWER) -> float | None:
    """Smallest difference, pp, that `seeds` seeds per arm find with `power`; None where no verdict is possible."""
    if noise is None or comparisons == 0 or seeds < LEAST_SEEDS:
        return None
    return smallest_detectable(noise.planned, seeds, comparisons, power=power)


def designs(
    costs: Sequence[RunCost],
    claims: Sequence[Claim],
    seeds: int,
    noise: Noise | None,
    effect: float | None,
    power: float = POWER,
) -> list[Design]:
    """What was asked for, what the effect takes, and what is smaller and resolves it, each with what it can detect.

    A smaller design leaves out arms or seeds, never epochs or budget: a shorter or smaller run is another question,
    whose effect may be another.

    Args:
        costs: of all arms at all budgets. claims: of the study, one family. seeds: asked for.
        noise, effect: None where not known; then there is only what was asked, and the same without idle arms.
    """

    def design(name: str, chosen: Sequence[RunCost], count: int, whole: bool = True) -> Design:
        size = family_size(chosen, claims)
        return Design(name, tuple(chosen), count, size, detectable_by(count, noise, size, power), whole)

    def named(pairs: Sequence[tuple[str, str]], budget: float) -> list[RunCost]:
        arms = {arm for pair in pairs for arm in pair}
        return [cost for cost in costs if not cost.is_base and cost.budget == budget and cost.arm in arms]

    pairs = comparisons_at(costs, claims)
    found = [design("as asked", costs, seeds)]
    if not pairs:
        return found
    working = [cost for budget, own in pairs.items() for cost in named(own, budget)]
    if noise is None or effect is None:
        return [*found, design("the claims' arms only", working, seeds)] if len(working) < len(costs) else found
    wanted = seeds_for(effect, noise, family_size(costs, claims), power)
    if wanted is not None and wanted != seeds:
        found.append(design("all arms, seeds for the effect", costs, wanted))
    if wanted is not None and len(working) < len(costs):
        found.append(design("the claims' arms only", working, wanted))
    parts = []
    if len(pairs) > 1:
        parts += [(f"the claims at {budget:g}x only", named(own, budget), len(own)) for budget, own in pairs.items()]
    if max(map(len, pairs.values())) > 1:
        parts += [
            (f"{subject} against {rival} only", named([(subject, rival)], budget), 1)
            for budget, own in pairs.items()
            for subject, rival in own
        ]
    cheapest: dict[int, Design] = {}
    for name, chosen, size in parts:
        count = seeds_for(effect, noise, size, power)
        if count is not None:
            one = Design(name, tuple(chosen), count, size, detectable_by(count, noise, size, power), False)
            cheapest[size] = min(cheapest.get(size, one), one, key=lambda d: d.seconds)
    return found + sorted(cheapest.values(), key=lambda d: -d.seconds)


def smallest_that_resolves(options: Sequence[Design], effect: float) -> Design | None:
    """The cheapest design that judges all claims and resolves `effect`, pp; None where none does."""
    # Seeds are found to a ten-thousandth of a difference.
    able = [d for d in options if d.whole and d.detectable is not None and d.detectable <= effect * 1.001]
    return min(able, key=lambda d: d.seconds, default=None)
