"""What a design can resolve, against planning tables, scipy, hand arithmetic and brute-force simulation."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from src.verdict.claims import PRIMARY, Claim
from src.verdict.design import (
    Noise,
    RunCost,
    comparisons_at,
    designs,
    detectable_by,
    family_size,
    floor_sd,
    pilot_noise,
    pooled_sd,
    seeds_for,
    smallest_that_resolves,
    upper_limit,
)

SIGMAS = (0.10, 0.15, 0.20, 0.30, 0.50)


def noise(sd: float) -> Noise:
    return Noise(sd, "stated")


def costs(*arms: str, budgets: tuple[float, ...] = (2.0,), seconds: float = 100.0) -> list[RunCost]:
    """Arms that cost in proportion to their budget, and the base where it is asked for."""
    scaled = [RunCost(arm, b, False, seconds * b, 1e12 * b) for b in budgets for arm in arms if arm != "base"]
    return [RunCost("base", 1.0, True, seconds, 1e12)] * ("base" in arms) + scaled


ALL = ("base", "depth", "width", "resolution", "compound")


@pytest.mark.parametrize(
    ("effect", "comparisons", "seeds"),
    [  # computed for the project with scipy's noncentral t; sigma 0.10, 0.15, 0.20, 0.30, 0.50
        (0.5, 1, (3, 4, 5, 7, 17)),
        (0.5, 4, (4, 5, 6, 10, 24)),
        (0.5, 10, (4, 5, 7, 12, 29)),
        (0.25, 4, (6, 10, 16, 34, 91)),  # the last is 80.1 % power by scipy's nct with 180 degrees of freedom
    ],
)
def test_seeds_for_an_effect_are_those_of_the_planning_table(
    effect: float, comparisons: int, seeds: tuple[int, ...]
) -> None:
    assert tuple(seeds_for(effect, noise(sd), comparisons) for sd in SIGMAS) == seeds


def test_detectable_differences_are_those_of_the_planning_table() -> None:
    found = [detectable_by(n, noise(0.2), 4) for n in (3, 5, 8, 10, 16)]
    assert found == pytest.approx([1.16, 0.56, 0.38, 0.33, 0.25], abs=0.006)


def test_a_verdict_needs_three_seeds_however_large_the_effect() -> None:
    assert seeds_for(50.0, noise(0.1), 3) == 3
    assert detectable_by(2, noise(0.1), 3) is None
    assert seeds_for(0.001, noise(5.0), 3) is None  # more than anybody trains


@pytest.mark.parametrize(("seeds", "comparisons", "power"), [(3, 3, 0.8), (6, 2, 0.8), (10, 1, 0.9)])
def test_brute_force_finds_the_detectable_difference_with_the_power_that_was_asked_for(
    seeds: int, comparisons: int, power: float
) -> None:
    difference = detectable_by(seeds, noise(0.7), comparisons, power)
    assert difference is not None
    random, trials = np.random.default_rng(1), 40_000
    a = random.normal(difference, 0.7, (trials, seeds))
    b = random.normal(0.0, 0.7, (trials, seeds))
    result = stats.ttest_ind(a, b, axis=1, equal_var=False)
    found = np.mean((result.pvalue < 0.05 / comparisons) & (result.statistic > 0))
    assert found == pytest.approx(power, abs=4 * math.sqrt(power * (1 - power) / trials))


def test_pooled_deviation_by_hand() -> None:
    sd, degrees = pooled_sd([[1.0, 3.0], [5.0, 5.0, 8.0], [100.0]])  # squares 2 and 6
    assert (sd, degrees) == (pytest.approx(math.sqrt(8 / 3)), 3)
    with pytest.raises(ValueError, match="two runs of one arm"):
        pooled_sd([[1.0], [2.0]])


@pytest.mark.parametrize("degrees", [1, 4, 10])
def test_four_of_five_upper_limits_lie_above_the_truth(degrees: int) -> None:
    samples = np.random.default_rng(2).normal(0.0, 1.3, (5_000, degrees + 1))
    above = np.mean([upper_limit(float(sd), degrees) > 1.3 for sd in samples.std(1, ddof=1)])
    assert above == pytest.approx(0.8, abs=0.02)


def runs(chance: NDArray[np.float64], count: int, random: np.random.Generator) -> list[NDArray[np.bool_]]:
    """Runs that err independently, picture by picture."""
    return [random.random(len(chance)) < chance for _ in range(count)]


def test_the_floor_by_hand() -> None:
    a, b = np.array([True, True, False, False, True]), np.array([True, False, True, False, True])
    assert floor_sd([a, b]) == pytest.approx(100 * math.sqrt(2 / 2) / 5)
    c = a.copy()
    assert floor_sd([a, b, c]) == pytest.approx(100 * math.sqrt((2 + 0 + 2) / 3 / 2) / 5)
    for wrong in ([a], [a, b[:4]]):
        with pytest.raises(ValueError, match="same test pictures"):
            floor_sd(wrong)


def test_the_floor_is_the_noise_of_independent_errors() -> None:
    random = np.random.default_rng(3)
    chance = random.beta(4.0, 0.7, 2000)  # easy pictures and hard ones
    theory = 100 * math.sqrt(float((chance * (1 - chance)).sum())) / 2000
    floors = [floor_sd(runs(chance, 2, random)) for _ in range(300)]
    assert math.sqrt(np.mean(np.square(floors))) == pytest.approx(theory, rel=0.01)
    seen = np.std([100 * run.mean() for run in runs(chance, 4000, random)])
    assert seen == pytest.approx(theory, rel=0.05)


def pilot(common: float, arms: int, seeds: int, random: np.random.Generator) -> Noise:
    """A pilot whose runs differ by `common` logits in all they know, beside independent errors."""
    logits = random.normal(1.5, 2.0, 3000)
    groups, floors = [], []
    for _ in range(arms):
        correct = [random.random(3000) < 1 / (1 + np.exp(-(logits + random.normal(0.0, common)))) for _ in range(seeds)]
        groups.append([100 * float(run.mean()) for run in correct])
        floors.append(floor_sd(correct))
    return pilot_noise(groups, floors, "pilot")


def test_where_errors_are_independent_the_pilot_is_not_called_otherwise() -> None:
    random = np.random.default_rng(4)
    found = [pilot(0.0, 3, 3, random) for _ in range(200)]
    assert np.mean(["real (distributional)" in one.remark for one in found]) < 0.09  # 5 % by design
    assert all(one.planned == max(one.upper or 0, one.floor or 0) for one in found)


def test_undertrained_runs_are_seen_to_differ_in_what_they_learnt() -> None:
    random = np.random.default_rng(5)
    found = [pilot(0.3, 3, 3, random) for _ in range(50)]
    assert np.mean(["real (distributional) variance present" in one.remark for one in found]) > 0.95
    assert all(one.planned == one.upper and one.upper > (one.floor or 0) for one in found)


def test_a_pilot_that_happens_to_agree_is_planned_with_its_floor() -> None:
    found = pilot_noise([[90.0, 90.01]], [0.3], "pilot")
    assert found.planned == 0.3 and "happen to agree" in found.remark
    assert found.upper == pytest.approx(math.sqrt(2) * 0.005 * math.sqrt(1 / stats.chi2.ppf(0.2, 1)))


def test_a_pilot_without_predictions_has_no_floor_and_one_without_spread_is_refused() -> None:
    found = pilot_noise([[90.0, 91.0]], [], "pilot")
    assert found.floor is None and found.planned == found.upper and found.remark == ""
    with pytest.raises(ValueError, match="no spread"):
        pilot_noise([[90.0, 90.0]], [0.0], "pilot")


CLAIMS = (PRIMARY,)


def test_the_family_is_what_the_claims_compare_at_a_budget() -> None:
    assert family_size(costs(*ALL), CLAIMS) == 3
    assert family_size(costs("compound", "depth", "width", budgets=(2.0, 4.0)), CLAIMS) == 2
    for without in (costs("depth", "width", "resolution"), costs("compound", "base")):
        assert family_size(without, CLAIMS) == 0
    mixed = [*costs("compound", "depth"), *costs("width", budgets=(4.0,))]
    assert comparisons_at(mixed, CLAIMS) == {2.0: (("compound", "depth"),)}
    two = (PRIMARY, Claim("width", ("depth",)))
    assert family_size(costs(*ALL), two) == 4


def test_designs_of_five_arms_by_hand() -> None:
    asked, more, claim, pair = designs(costs(*ALL), CLAIMS, 3, noise(0.3), 0.5)
    assert (asked.name, asked.runs, asked.seconds) == ("as asked", 15, 3 * (100 + 4 * 200))
    assert asked.detectable is not None and asked.detectable > 0.5
    n = seeds_for(0.5, noise(0.3), 3)
    assert n == 10 and (more.name, more.seeds, more.macs) == ("all arms, seeds for the effect", 10, 10 * 9e12)
    assert (claim.name, claim.runs, claim.comparisons) == ("the claims' arms only", 4 * 10, 3)
    assert claim.whole and not pair.whole
    assert (pair.seeds, pair.comparisons, len(pair.costs)) == (7, 1, 2)
    assert smallest_that_resolves([asked, more, claim, pair], 0.5) == claim


def test_more_seeds_than_needed_are_taken_back() -> None:
    found = designs(costs("compound", "depth", "width"), CLAIMS, 20, noise(0.2), 0.5)
    best = smallest_that_resolves(found, 0.5)
    assert best is not None and best.seeds == 5 < 20 and best.whole


def test_one_budget_or_one_pair_is_a_part_of_the_claims() -> None:
    dear = [dataclasses.replace(cost, seconds=cost.seconds * (1 + 9 * (cost.arm == "depth"))) for cost in costs(*ALL)]
    (*_, pair) = designs(dear, CLAIMS, 6, noise(0.2), 0.5)
    assert pair.name == "compound against width only" and not pair.whole  # the first of the cheap ones
    found = designs(costs(*ALL, budgets=(2.0, 4.0)), CLAIMS, 6, noise(0.2), 0.5)
    (one,) = (design for design in found if design.name == "the claims at 2x only")
    assert {cost.budget for cost in one.costs} == {2.0} and not one.whole and one.seconds < found[0].seconds
    best = smallest_that_resolves(found, 0.5)
    assert best is not None and {cost.budget for cost in best.costs} == {2.0, 4.0}


def test_without_noise_or_effect_nothing_is_claimed() -> None:
    (asked, claim) = designs(costs(*ALL), CLAIMS, 3, None, None)
    assert asked.detectable is None and claim.name == "the claims' arms only" and claim.seeds == 3
    (nothing,) = designs(costs("depth", "width"), CLAIMS, 3, noise(0.2), 0.5)
    assert nothing.detectable is None and nothing.comparisons == 0
    assert smallest_that_resolves([asked, claim, nothing], 0.5) is None


def test_another_claim_has_other_arms() -> None:
    found = designs(costs(*ALL), [Claim("width", ("depth",))], 3, noise(0.2), 0.5)
    best = smallest_that_resolves(found, 0.5)
    assert best is not None and {cost.arm for cost in best.costs} == {"width", "depth"} and best.comparisons == 1


@given(
    st.sets(st.sampled_from(("base", "depth", "width", "resolution"))),
    st.integers(1, 30),
    st.sampled_from((0.05, 0.2, 0.7, 2.0)),
    st.floats(0.2, 3.0),
)
def test_the_smallest_design_resolves_the_effect_with_no_seed_to_spare(
    others: set[str], seeds: int, sd: float, effect: float
) -> None:
    every = costs(*sorted(others), "compound")
    found = designs(every, CLAIMS, seeds, noise(sd), effect)
    best = smallest_that_resolves(found, effect)
    wanted = seeds_for(effect, noise(sd), family_size(every, CLAIMS)) if others - {"base"} else None
    if wanted is None:  # nothing to compare, or too many seeds
        assert best is None
        return
    assert best is not None and best.detectable is not None and best.detectable <= effect * 1.001
    assert best.seeds == wanted
    fewer = detectable_by(best.seeds - 1, noise(sd), best.comparisons)
    assert fewer is None or fewer > effect
    assert all(cost.arm != "base" for cost in best.costs)
