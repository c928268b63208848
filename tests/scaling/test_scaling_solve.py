"""Solving: every arm of a budget costs the same, touches only its own axes, and is refused rather than silently off."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import re
import statistics
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from shipped_arms import (
    B0,
    BASELINES,
    COARSE,
    CONF,
    MIXED,
    MOBILENET_V1,
    MOBILENET_V2,
    NANO,
    PURE,
    RESNET20,
    RESNET50,
    RULES,
    SCALING,
    SHRINKING,
    SMALL,
    SMALL_64,
    Setting,
    arm,
    base,
    label,
    rule,
)

from src.networks.build import network_cost, stage_costs
from src.scaling.currency import MACS, PARAMS
from src.scaling.lattice import Base, neighbourhood, nominal_factors, shapley_shares, shares_of
from src.scaling.rules import AXES, Factors, Rule
from src.scaling.solve import APART, SNAP_WINDOW, TOLERANCE, ScaledNetwork, common_targets, snap_budget, solve, spread

SMALL_100 = ("efficientnet_b0_small", 32, 100)
CASES = [
    *((NANO, budget) for budget in (1.5, 3.0)),
    *((setting, budget) for setting in (*BASELINES, SMALL_100) for budget in (2.0, 4.0)),
    *COARSE,
]
each_case = pytest.mark.parametrize(
    ("setting", "budget"), [pytest.param(s, b, id=f"{label(s)}-{s[2]}-{b:g}x") for s, b in CASES]
)


def solved(setting: Setting, budget: float) -> dict[str, ScaledNetwork]:
    return {name: arm(*setting, name, budget) for name in SCALING}


def assert_within_tolerance(scaled: ScaledNetwork) -> None:
    target = scaled.snapped_budget * scaled.base.cost.macs
    assert abs(scaled.cost.macs / target - 1.0) <= TOLERANCE
    assert 1 / (1 + SNAP_WINDOW) - 1e-9 <= scaled.snapped_budget / scaled.budget <= 1 + SNAP_WINDOW + 1e-9


@each_case
def test_all_arms_of_a_budget_cost_the_same(setting: Setting, budget: float) -> None:
    arms = solved(setting, budget)
    assert len({scaled.snapped_budget for scaled in arms.values()}) == 1
    for scaled in arms.values():
        assert_within_tolerance(scaled)
        assert scaled.budget == budget
    macs = [network_cost(s.network, s.resolution, setting[2]).macs for s in arms.values()]
    assert max(macs) / min(macs) <= 1.01
    assert spread(arms.values()) == pytest.approx(max(macs) / min(macs) - 1)


def test_a_baseline_of_few_equal_blocks_names_a_budget_that_all_pure_arms_meet() -> None:
    with pytest.raises(ValueError, match=r"budget=2 cannot be met") as refusal:
        arm(*RESNET20, "depth", 2.0)
    named = float(str(refusal.value).rpartition("budget=")[2])
    arms = [arm(*RESNET20, name, named) for name in PURE]
    assert spread(arms) <= 0.01
    for scaled in arms:
        assert_within_tolerance(scaled)


SHRUNK = (SMALL_64, B0, MOBILENET_V2)  # baselines that all rules can halve


@pytest.mark.parametrize("setting", SHRUNK, ids=label)
def test_all_arms_that_shrink_cost_the_same(setting: Setting) -> None:
    arms = [arm(*setting, name, 0.5) for name in SCALING + SHRINKING]
    for scaled in arms:
        assert_within_tolerance(scaled)
        assert scaled.network.final_side(scaled.resolution) >= 4
        assert all(n <= before for n, before in zip(scaled.network.repeats, scaled.base.network.repeats, strict=True))
    assert spread(arms) <= 0.01


def test_two_arms_within_the_tolerance_are_within_the_allowed_spread() -> None:
    from src.planning import LARGEST_SPREAD

    assert (1 + TOLERANCE) / (1 - TOLERANCE) - 1 <= LARGEST_SPREAD == 0.01


def test_the_spread_is_of_prices() -> None:
    arms = [arm(*NANO, name, 2.0, PARAMS) for name in ("depth", "width")]
    params = [scaled.cost.params for scaled in arms]
    assert spread(arms) == max(params) / min(params) - 1
    assert spread(arms[:1]) == 0.0


@each_case
@pytest.mark.parametrize("name", PURE)
def test_a_pure_arm_leaves_the_other_axes_exactly_alone(setting: Setting, budget: float, name: str) -> None:
    scaled = arm(*setting, name, budget)
    stock = scaled.base.network
    moved = {
        "depth": scaled.network.repeats != stock.repeats,
        "width": scaled.network.channels != stock.channels,
        "resolution": scaled.resolution != scaled.base.resolution,
    }
    assert moved == {axis: axis == name for axis in AXES}
    assert dataclasses.asdict(scaled.shares) == {axis: float(axis == name) for axis in AXES}  # exactly
    assert not scaled.pushed_apart


@each_case
@pytest.mark.parametrize("name", MIXED)
def test_a_mixed_arm_is_flagged_exactly_when_a_share_is_far_from_the_requested_one(
    setting: Setting, budget: float, name: str
) -> None:
    scaled = arm(*setting, name, budget)
    realised = brute_force(scaled.base, scaled)
    assert sum(scaled.shares.axes) == pytest.approx(1.0, abs=1e-12)
    furthest = max(abs(realised[axis] - e) for axis, e in zip(AXES, rule(name).exponents, strict=True))
    assert scaled.pushed_apart == (furthest > APART)
    for axis, e in zip(AXES, rule(name).exponents, strict=True):
        assert e > 0.0 or getattr(scaled.shares, axis) == 0.0


def test_the_flag_turns_at_a_tenth() -> None:
    scaled = arm(*B0, "compound", 4.0)
    exact = scaled.shares
    for off, flagged in ((0.099, False), (0.101, True), (-0.099, False), (-0.101, True)):
        asked = (exact.depth + off, exact.width - off, exact.resolution)
        assert dataclasses.replace(scaled, rule=Rule("other", asked)).pushed_apart == flagged


# The largest difference between a requested and a realised share, of the rules that matter most. The lattice of a small
# network is coarse: at 1.5x the 5 blocks of nano would have to become 5.7.
SHARES_ARE_WITHIN = {
    ("compound", NANO, 2.0): 0.06,
    ("compound", NANO, 4.0): 0.08,
    ("compound", B0, 2.0): 0.09,
    ("compound", B0, 4.0): 0.04,
    ("compound", SMALL, 2.0): 0.08,
    ("compound", SMALL, 4.0): 0.08,
    ("compound_uniform", B0, 4.0): 0.05,
    ("fast", B0, 4.0): 0.05,
    ("slow_res", B0, 4.0): 0.03,
}


@pytest.mark.parametrize(("name", "setting", "budget"), SHARES_ARE_WITHIN, ids=lambda value: str(value))
def test_realised_shares_are_near_the_requested_ones(name: str, setting: Setting, budget: float) -> None:
    scaled = arm(*setting, name, budget)
    off = [abs(got - want) for got, want in zip(scaled.shares.axes, rule(name).exponents, strict=True)]
    assert max(off) <= SHARES_ARE_WITHIN[name, setting, budget]


@pytest.mark.parametrize("name", MIXED)
@pytest.mark.parametrize("setting", [NANO, SMALL, B0, MOBILENET_V2, RESNET50], ids=label)
def test_an_arm_that_is_pushed_apart_could_not_have_been_much_nearer(setting: Setting, name: str) -> None:
    """Over all points near the budget that cost the common target: shares are weighed against even stages, and give
    way by little."""
    scaled = arm(*setting, name, 2.0)
    if not scaled.pushed_apart:
        return
    start, wanted = scaled.base, rule(name).exponents
    target = scaled.snapped_budget * start.cost.macs
    near = neighbourhood(start, rule(name), nominal_factors(start, rule(name), target, MACS))
    affordable = np.abs(near.price(start, MACS) / target - 1.0) <= TOLERANCE
    shares = shapley_shares(near.with_base(start).log_macs(start), np.nonzero(affordable))
    furthest = np.max([np.abs(share - e) for share, e in zip(shares, wanted, strict=True)], axis=0)
    realised = max(abs(share - e) for share, e in zip(scaled.shares.axes, wanted, strict=True))
    assert realised <= furthest.min() + 0.05


@each_case
def test_what_is_said_about_an_arm_is_what_it_is(setting: Setting, budget: float) -> None:
    for name, scaled in solved(setting, budget).items():
        stock = scaled.base.network
        assert (scaled.arm, scaled.rule, scaled.currency) == (name, rule(name), "macs")
        assert scaled.base == base(*setting)
        assert scaled.cost == network_cost(scaled.network, scaled.resolution, setting[2])
        assert (scaled.price, scaled.base_price) == (scaled.cost.macs, scaled.base.cost.macs)
        assert scaled.multiple == scaled.cost.macs / scaled.base.cost.macs
        assert scaled.network.final_side(scaled.resolution) >= 4
        assert scaled.asked == rule(name).factors(budget)
        assert scaled.shares == shares_of(scaled.base, scaled.network, scaled.resolution)
        assert scaled.realised == Factors(
            sum(scaled.network.repeats) / sum(stock.repeats),
            sum(s.channels for s in scaled.network.stages) / sum(s.channels for s in stock.stages),
            scaled.resolution / setting[1],
        )
        assert scaled.network == stock.with_shape(scaled.network.repeats, scaled.network.channels)
        assert all(n >= before for n, before in zip(scaled.network.repeats, stock.repeats, strict=True))
        assert all(c % stock.channel_divisor == 0 for c in scaled.network.channels)


def test_the_common_target_does_not_depend_on_which_arms_are_solved_or_when() -> None:
    start = base(*NANO)
    found = set()
    for names in (*itertools.permutations(SCALING, 2), *((name,) for name in SCALING)):
        snap_budget.cache_clear()
        found |= {
            (name, scaled.snapped_budget, scaled.network, scaled.resolution)
            for name in names
            for scaled in [solve(start, rule(name), 3.0)]
        }
    assert len(found) == len(SCALING)
    assert len({target for _, target, _, _ in found}) == 1


def test_the_common_target_does_not_depend_on_the_rule_at_all() -> None:
    """Not even on an arm that no file names: a user's own exponents meet the others."""
    mine = solve(base(*NANO), Rule(exponents=(0.2, 0.5, 0.3)), 2.0)
    assert mine.arm == "d0.2-w0.5-r0.3"
    assert mine.snapped_budget == snap_budget(base(*NANO), 2.0) == arm(*NANO, "depth", 2.0).snapped_budget
    assert spread([mine, *solved(NANO, 2.0).values()]) <= 0.01


@pytest.mark.parametrize("budget", [0.5, 0.83, 1.25, 2.0, 3.7, 7.3])
@pytest.mark.parametrize("setting", [NANO, SMALL, B0], ids=label)
def test_a_common_target_is_met_by_resolution_wherever_it_reaches(setting: Setting, budget: float) -> None:
    """By brute force over all input sides: where one lies within the tolerance of the target, the arm is solved."""
    start = base(*setting)
    snapped = snap_budget(start, budget)
    if snapped is None:
        return
    assert common_targets(start, budget, MACS, SNAP_WINDOW)[0] == snapped
    sides = range(3 * start.network.output_stride + 1, 4 * start.resolution)
    macs = np.array([network_cost(start.network, side, start.classes).macs for side in sides])
    within = np.abs(macs / (snapped * start.cost.macs) - 1.0) <= TOLERANCE
    reaches = np.abs(np.log(macs / (budget * start.cost.macs))).min() <= math.log1p(SNAP_WINDOW)
    reaches &= macs.min() <= (1 + SNAP_WINDOW) * budget * start.cost.macs
    if within.any():
        assert_within_tolerance(solve(start, rule("resolution"), budget))
    elif reaches:
        pytest.fail(f"resolution reaches {budget:g}x but not the common target {snapped:g}x")


PROGRAM = """
import json, sys
sys.path.insert(0, sys.argv[1])
from shipped_arms import NANO, SCALING, arm
print(json.dumps([[a.snapped_budget, a.network.repeats, a.network.channels, a.resolution, a.cost.macs]
                  for name in SCALING for a in [arm(*NANO, name, 3.0)]]))
"""


def test_another_process_solves_the_same_arms() -> None:
    here = [
        [a.snapped_budget, list(a.network.repeats), list(a.network.channels), a.resolution, a.cost.macs]
        for a in solved(NANO, 3.0).values()
    ]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(CONF.parent / "tests" / "scaling")],
        env={**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": str(CONF.parent)},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert json.loads(done.stdout) == here


@pytest.mark.parametrize("budget", [0.0, -1.0, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", SCALING + SHRINKING)
def test_a_budget_that_is_no_positive_number_is_refused(name: str, budget: float) -> None:
    with pytest.raises(ValueError, match=rf"budget={budget:g} must be a positive multiple.*such as budget=2"):
        solve(base(*NANO), rule(name), budget)


@pytest.mark.parametrize("name", SCALING)
def test_a_budget_of_one_leaves_nothing_to_scale(name: str) -> None:
    with pytest.raises(ValueError, match=f"budget=1 leaves nothing for scaling={name}.*scaling=base, or budget=2"):
        solve(base(*NANO), rule(name), 1.0)


@pytest.mark.parametrize("budget", [1001.0, 1e9, 1e300])
def test_an_absurd_budget_is_refused_at_once(budget: float) -> None:
    with pytest.raises(ValueError, match=re.escape(f"budget={budget:g} is more than 1000 times the base network")):
        solve(base(*NANO), rule("compound"), budget)


@pytest.mark.parametrize("budget", [1.5, 2.0, 4.0])
def test_a_rule_for_shrinking_is_refused_where_networks_grow(budget: float) -> None:
    with pytest.raises(ValueError, match=rf"budget={budget:g} is not below 1, and scaling=tiny is for shrinking") as no:
        solve(base(*B0), rule("tiny"), budget)
    named = re.search(r"such as budget=([\d.]+)$", str(no.value))
    assert named is not None
    assert_within_tolerance(solve(base(*B0), rule("tiny"), float(named[1])))


def test_a_rule_for_shrinking_is_refused_at_the_base_itself() -> None:
    with pytest.raises(ValueError, match=r"budget=1 .*scaling=tiny"):
        solve(base(*B0), rule("tiny"), 1.0)


@pytest.mark.parametrize("name", SCALING)
def test_a_budget_below_what_the_lattice_can_shrink_to_is_refused(name: str) -> None:
    with pytest.raises(
        ValueError, match=f"budget=1e-09 cannot be met by scaling={name} on efficientnet_nano at 32 px within 0.5%"
    ):
        solve(base(*NANO), rule(name), 1e-9)


def test_resolution_cannot_spend_parameters() -> None:
    for setting in (NANO, B0, MOBILENET_V1):
        with pytest.raises(ValueError) as refused:
            solve(base(*setting), rule("resolution"), 2.0, PARAMS)
        assert str(refused.value) == (
            f"budget=2 in params cannot be met by scaling=resolution on {setting[0]} at {setting[1]} px within 0.5%:"
            " params does not depend on resolution; leave that arm out, or use budget.currency=macs"
        )
        assert_within_tolerance(solve(base(*setting), rule("resolution"), 2.0))  # the way out


def test_the_base_ignores_the_budget() -> None:
    start = base(*NANO)
    two, *others = (solve(start, rule("base"), budget) for budget in (2.0, 9.7, 0.0, math.nan, math.inf, 1e9))
    assert all(two == other for other in others)
    assert (two.network, two.resolution, two.cost) == (start.network, 32, start.cost)
    assert (two.budget, two.snapped_budget, two.multiple) == (1.0, 1.0, 1.0)
    assert two.asked == two.realised == Factors(1.0, 1.0, 1.0)
    assert two.shares == Factors(0.0, 0.0, 0.0) and not two.pushed_apart


@pytest.mark.parametrize("name", RULES)
def test_a_base_without_a_final_map_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"1x1 map.*network\.resolution=97"):
        solve(base("efficientnet_b0", 32, 10), rule(name), 2.0)
    assert solve(base("efficientnet_b0", 97, 10), rule("base"), 2.0).network.final_side(97) == 4


def test_coefficients_without_a_final_map_are_refused() -> None:
    with pytest.raises(ValueError, match=r"efficientnet_b0 at 96 px ends in a 3x3 map.*network\.resolution=97"):
        solve(base(*B0), Rule(pixels=96), 2.0)
    assert solve(base(*B0), Rule(pixels=97), 2.0).resolution == 97


def nearest_named(refusal: object) -> float | None:
    named = re.search(r"budget=([\d.]+)$", str(refusal))
    return float(named[1]) if named else None


REFUSED = [
    *((NANO, budget, SCALING) for budget in (1.03, 1.25, 1.35)),
    (NANO, 1.12, ["resolution"]),
    (NANO, 1.7284, ["resolution"]),
    (NANO, 7.1706, ["dr"]),  # the pure axes meet it, but no blocks and pixels near half and half do
    (NANO, 0.5, ["depth", "dr", "resolution"]),  # 5 blocks, 3 stages; a final map that is 4x4 already
    (NANO, 0.72, ["resolution"]),
    (SMALL, 1.06, ["depth", "compound"]),
    (SMALL, 0.5, ["resolution"]),
    (MOBILENET_V1, 0.5, PURE),
]


@pytest.mark.parametrize(
    ("setting", "budget", "names"), [pytest.param(*row, id=f"{label(row[0])}-{row[1]:g}x") for row in REFUSED]
)
def test_a_refusal_names_a_budget_that_the_arm_can_meet(setting: Setting, budget: float, names: list[str]) -> None:
    start = base(*setting)
    for name in names:
        with pytest.raises(
            ValueError,
            match=f"budget={budget:g} cannot be met by scaling={name} on {setting[0]} at {setting[1]} px",
        ) as refusal:
            solve(start, rule(name), budget)
        nearest = nearest_named(refusal.value)
        assert nearest is not None and (nearest - 1) * (budget - 1) > 0
        scaled = solve(start, rule(name), nearest)
        assert_within_tolerance(scaled)
        if budget > 1:  # where networks grow, every axis reaches it
            arms = [solve(start, rule(other), nearest) for other in SCALING]
            assert spread(arms) <= 0.01


@settings(max_examples=1, deadline=None)
@given(setting=st.sampled_from([NANO, SMALL]), budget=st.floats(0.3, 8.0))
@example(setting=NANO, budget=0.5785)
@example(setting=NANO, budget=0.7201)
@example(setting=NANO, budget=1.0001)
@example(setting=SMALL, budget=0.3)
def test_any_budget_is_met_by_all_arms_or_refused_with_one_that_is(setting: Setting, budget: float) -> None:
    start, arms, refused = base(*setting), [], []
    for name in SCALING + SHRINKING * (budget < 1):
        try:
            arms.append(solve(start, rule(name), budget))
        except ValueError as refusal:
            refused.append((name, refusal))
    for scaled in arms:
        assert_within_tolerance(scaled)
        assert (scaled.multiple - 1) * (budget - 1) > 0
    assert len(arms) < 2 or spread(arms) <= 0.01
    for name, mistake in refused:
        if budget == 1.0:
            continue
        assert "cannot be met" in str(mistake)
        nearest = nearest_named(mistake)
        assert nearest is not None and (nearest - 1) * (budget - 1) > 0
        assert_within_tolerance(solve(start, rule(name), nearest))


@settings(max_examples=3, deadline=None)
@given(budget=st.floats(1.001, 1.2))
@example(budget=1.02)  # 222 px lie nearest on the lattice, and cost less than 224 px
def test_a_network_that_shall_grow_never_shrinks(budget: float) -> None:
    start = base(*B0)
    try:
        scaled = solve(start, rule("compound"), budget)
    except ValueError:
        return
    assert_within_tolerance(scaled)
    assert scaled.snapped_budget > 1.0
    assert scaled.cost.macs > (1 + TOLERANCE) * start.cost.macs


def test_a_mixed_rule_with_a_zero_exponent_leaves_that_axis_alone() -> None:
    for axis, name in zip(AXES, ("wr", "dr", "dw"), strict=True):
        scaled = arm(*NANO, name, 4.0)
        assert getattr(scaled.shares, axis) == 0.0 and getattr(scaled.realised, axis) == 1.0
        assert min(share for share in scaled.shares.axes if share) > 0.35


@each_case
def test_no_other_blocks_deepen_more_evenly_at_the_same_cost(setting: Setting, budget: float) -> None:
    """Every floor or ceil of a stage at 60 depths, by brute force: of those that meet the target none is more even."""
    scaled = arm(*setting, "depth", budget)
    start, stock = scaled.base, scaled.base.network.repeats
    costs = stage_costs(start.network, start.resolution, start.classes)
    target = scaled.snapped_budget * start.cost.macs

    def badness(repeats: tuple[int, ...]) -> float:
        off = abs(costs.total(repeats).macs / target - 1.0)
        logs = [math.log(n / before) for n, before in zip(repeats, stock, strict=True)]
        return statistics.pstdev(logs) + off if off <= TOLERANCE else math.inf

    tuples = {
        repeats
        for step in range(60)
        for exact in [[n * budget * (0.7 + step / 100) for n in stock]]
        for repeats in itertools.product(*({max(1, math.floor(x)), math.ceil(x)} for x in exact))
    }
    assert badness(scaled.network.repeats) <= min(map(badness, tuples)) + 0.02


# Shapley shares

B1_TO_B7 = {  # width, depth, resolution; exact shares in percent of width, depth, resolution
    "b1": (1.0, 1.1, 240, (0, 68, 32)),
    "b2": (1.1, 1.2, 260, (15, 42, 43)),
    "b3": (1.2, 1.4, 300, (26, 33, 41)),
    "b4": (1.4, 1.8, 380, (27, 29, 44)),
    "b5": (1.6, 2.2, 456, (27, 28, 45)),
    "b6": (1.8, 2.6, 528, (29, 27, 44)),
    "b7": (2.0, 3.1, 600, (29, 28, 43)),
}


@pytest.mark.parametrize("name", B1_TO_B7)
def test_shares_of_the_released_family(name: str) -> None:
    *_, expected = B1_TO_B7[name]
    shares = arm(*B0, name, 2.0).shares
    found = [100 * shares.width, 100 * shares.depth, 100 * shares.resolution]
    assert found == pytest.approx(expected, abs=0.51)


def brute_force(start: Base, scaled: ScaledNetwork) -> dict[str, float]:
    """Shapley's formula with its factorial weights, on costs of networks that are put together here."""

    def value(axes: tuple[str, ...]) -> float:
        table = start.network
        stages = [
            dataclasses.replace(
                stage,
                repeats=(grown if "depth" in axes else stage).repeats,
                channels=(grown if "width" in axes else stage).channels,
            )
            for stage, grown in zip(table.stages, scaled.network.stages, strict=True)
        ]
        wide = scaled.network if "width" in axes else table
        mixed = dataclasses.replace(table, stem=wide.stem, stages=tuple(stages), head_channels=wide.head_channels)
        return math.log(
            network_cost(mixed, scaled.resolution if "resolution" in axes else start.resolution, start.classes).macs
        )

    def share(axis: str) -> float:
        others = [other for other in AXES if other != axis]
        total = 0.0
        for size in range(3):
            weight = math.factorial(size) * math.factorial(2 - size) / math.factorial(3)
            for coalition in itertools.combinations(others, size):
                total += weight * (value((*coalition, axis)) - value(coalition))
        return total / (value(tuple(AXES)) - value(()))

    return {axis: share(axis) for axis in AXES}


def by_permutations(start: Base, scaled: ScaledNetwork) -> dict[str, float]:
    """The same from the definition: mean gain of an axis over the six orders in which axes are switched on."""
    gains = dict.fromkeys(AXES, 0.0)
    for order in itertools.permutations(AXES):
        repeats, channels, side = start.network.repeats, start.network.channels, start.resolution
        before = math.log(start.cost.macs)
        for axis in order:
            repeats = scaled.network.repeats if axis == "depth" else repeats
            channels = scaled.network.channels if axis == "width" else channels
            side = scaled.resolution if axis == "resolution" else side
            now = math.log(network_cost(start.network.with_shape(repeats, channels), side, start.classes).macs)
            gains[axis] += (now - before) / 6
            before = now
    return {axis: gain / math.log(scaled.cost.macs / start.cost.macs) for axis, gain in gains.items()}


@pytest.mark.parametrize("setting", BASELINES, ids=label)
@pytest.mark.parametrize("name", ["compound", "fast"])
def test_shares_against_brute_force(setting: Setting, name: str) -> None:
    scaled = arm(*setting, name, 4.0)
    found = dataclasses.asdict(scaled.shares)
    assert found == pytest.approx(brute_force(scaled.base, scaled), abs=1e-12)
    assert found == pytest.approx(by_permutations(scaled.base, scaled), abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    repeats=st.tuples(*[st.integers(1, 6)] * 3),
    channels=st.tuples(*[st.integers(2, 30).map(lambda n: 4 * n)] * 5),
    resolution=st.integers(25, 100),
)
def test_shares_sum_to_one_and_an_untouched_axis_has_none(
    repeats: tuple[int, ...], channels: tuple[int, ...], resolution: int
) -> None:
    start = base(*NANO)
    grown = start.network.with_shape(repeats, channels)
    shares = shares_of(start, grown, resolution)
    cost = network_cost(grown, resolution, 10)
    if cost.macs == start.cost.macs:
        assert shares == Factors(0.0, 0.0, 0.0)
        return
    scale = max(1.0, 1 / abs(math.log(cost.macs / start.cost.macs)))
    assert sum(shares.axes) == pytest.approx(1.0, abs=1e-9 * scale)
    stock = start.network
    for touched, axes in (
        ((stock, resolution), {"resolution"}),
        ((stock.with_shape(repeats, stock.channels), 32), {"depth"}),
        ((stock.with_shape(stock.repeats, channels), 32), {"width"}),
        ((stock.with_shape(repeats, stock.channels), resolution), {"depth", "resolution"}),
        ((stock.with_shape(stock.repeats, channels), resolution), {"width", "resolution"}),
        ((grown, 32), {"depth", "width"}),
    ):
        found = dataclasses.asdict(shares_of(start, *touched))
        part = abs(math.log(network_cost(*touched, 10).macs / start.cost.macs))
        for axis in set(AXES) - axes:
            assert found[axis] == pytest.approx(0.0, abs=1e-12 * max(1.0, 1 / part if part else 1.0))
        if len(axes) == 1:
            assert set(found.values()) <= {0.0, 1.0}


def test_shares_of_the_base_are_zero() -> None:
    start = base(*NANO)
    assert shares_of(start, start.network, 32) == Factors(0.0, 0.0, 0.0)


def test_realised_factors_are_ratios() -> None:
    scaled = solve(base(*NANO), Rule(depth=2.0, width=2.0, resolution=1.5), 2.0)
    assert scaled.network.repeats == (2, 4, 4) and scaled.network.channels == (32, 32, 48, 80, 384)
    assert scaled.realised == scaled.asked == Factors(2.0, 2.0, 1.5)
