"""Currencies: what a budget can be counted in, all arms alike in each of them, and one that is read off a clock."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shipped_arms import (
    B0,
    BASELINES,
    MOBILENET_V2,
    NANO,
    PURE,
    SCALING,
    SHRINKING,
    SMALL,
    Setting,
    arm,
    base,
    label,
    rule,
)

from src.networks.build import network_cost
from src.networks.cost import Cost
from src.networks.table import Network
from src.scaling.currency import (
    ACTIVATIONS,
    CURRENCIES,
    MACS,
    PARAMS,
    BudgetOptions,
    Currency,
    Measured,
)
from src.scaling.lattice import Base
from src.scaling.rounding import scale_as_released
from src.scaling.rules import Rule
from src.scaling.solve import MEASURED_TOLERANCE, SNAP_WINDOW, TOLERANCE, ScaledNetwork, snap_budget, solve, spread

MEMORY = Currency("memory_bytes", saved=4 * 64, params=16)  # 64 pictures of float32; weight, gradient, two moments
EXACT = (MACS, PARAMS, ACTIVATIONS, MEMORY)
by_currency = pytest.mark.parametrize("currency", EXACT, ids=lambda currency: currency.name)


def spenders(currency: Currency) -> list[str]:
    """Rules that can spend the currency: pixels cost no parameters."""
    return [name for name in SCALING if currency != PARAMS or name != "resolution"]


def assert_within_tolerance(scaled: ScaledNetwork) -> None:
    assert abs(scaled.price / (scaled.snapped_budget * scaled.base_price) - 1.0) <= TOLERANCE
    assert 1 / (1 + SNAP_WINDOW) - 1e-9 <= scaled.snapped_budget / scaled.budget <= 1 + SNAP_WINDOW + 1e-9


@by_currency
@pytest.mark.parametrize("budget", [2.0, 4.0])
@pytest.mark.parametrize("setting", BASELINES, ids=label)
def test_all_arms_cost_the_same_in_every_currency(setting: Setting, budget: float, currency: Currency) -> None:
    arms = [arm(*setting, name, budget, currency) for name in spenders(currency)]
    assert len({scaled.snapped_budget for scaled in arms}) == 1
    for scaled in arms:
        assert_within_tolerance(scaled)
        cost = network_cost(scaled.network, scaled.resolution, setting[2])
        assert scaled.price == priced_by_hand(currency, cost) and scaled.currency == currency.name
    prices = [scaled.price for scaled in arms]
    assert spread(arms) == max(prices) / min(prices) - 1 <= 0.01


@by_currency
@pytest.mark.parametrize("name", PURE)
@pytest.mark.parametrize("setting", [NANO, B0], ids=label)
def test_a_pure_arm_is_pure_in_every_currency(setting: Setting, name: str, currency: Currency) -> None:
    if name in spenders(currency):
        shares = dataclasses.asdict(arm(*setting, name, 4.0, currency).shares)
        assert shares == {axis: float(axis == name) for axis in PURE}


def test_currencies_are_not_the_same_thing() -> None:
    """Four times the parameters by depth is not four times the MACs."""
    found = {currency.name: arm(*B0, "depth", 4.0, currency).network.repeats for currency in EXACT}
    assert len(set(found.values())) == len(EXACT)


def priced_by_hand(currency: Currency, cost: Cost) -> float:
    if currency == MEMORY:
        return 256 * cost.saved + 16 * cost.params
    return float(getattr(cost, currency.name))


def test_a_price_is_a_sum_over_units() -> None:
    cost = Cost(side=1, macs=7, params=11, activations=13, saved=17)
    assert (
        Currency("all", macs=2, params=3, activations=5, saved=0.5, constant=100).price(cost)
        == 14 + 33 + 65 + 8.5 + 100
    )
    assert [currency.price(cost) for currency in (MACS, PARAMS, ACTIVATIONS)] == [7, 11, 13]


def test_a_price_of_arrays_is_an_array_of_prices() -> None:
    cost = Cost(1, np.array([1, 2]), np.array([10, 20]), np.array([3, 3]), np.array([0, 4]))
    assert MEMORY.price(cost).tolist() == [160, 320 + 1024]


@pytest.mark.parametrize("constant", [0.3, 3.0])
def test_a_constant_belongs_to_the_network_and_not_to_each_block(constant: float) -> None:
    """Overhead as large as the base's own cost: 2x is then three times its MACs."""
    start = base(*B0)
    overhead = constant * start.cost.macs
    currency = Currency("with_overhead", macs=1, constant=overhead)
    for name in ("depth", "compound", "width"):
        scaled = solve(start, rule(name), 2.0, currency)
        assert_within_tolerance(scaled)
        assert scaled.price == scaled.cost.macs + overhead
        assert scaled.cost.macs / start.cost.macs == pytest.approx(2 + constant, rel=0.15)


def reachable_widths(start: Base, target: float, currency: Currency) -> bool:
    """Whether some uniform width costs the target within half the tolerance, by trying 6,000 widths."""
    found = set()
    for width in np.geomspace(0.2, 3.0, 6000):
        found.add(scale_as_released(start.network, Rule(width=float(width))).channels)
    prices = [
        currency.price(
            network_cost(start.network.with_shape(start.network.repeats, c), start.resolution, start.classes)
        )
        for c in found
    ]
    return bool((np.abs(np.array(prices) / target - 1.0) <= TOLERANCE / 2).any())


@pytest.mark.parametrize(
    ("setting", "budget", "currency"),
    [
        (B0, 0.5, ACTIVATIONS),
        (SMALL, 0.5, MEMORY),
        (B0, 2.0, ACTIVATIONS),
        (NANO, 0.83, MACS),
        (MOBILENET_V2, 0.5, PARAMS),
    ],
    ids=lambda value: str(getattr(value, "name", value)),
)
def test_a_common_target_that_width_can_meet_is_met_by_width(
    setting: Setting, budget: float, currency: Currency
) -> None:
    """Snapping and solving must search the same channels, or all arms are sent to a target that one of them misses."""
    start = base(*setting)
    snapped = snap_budget(start, budget, currency)
    assert snapped is not None
    if reachable_widths(start, snapped * currency.price(start.cost), currency):
        assert_within_tolerance(solve(start, rule("width"), budget, currency))


@by_currency
@pytest.mark.parametrize("setting", [NANO, B0], ids=label)
def test_a_refusal_in_another_currency_names_a_budget_that_works(setting: Setting, currency: Currency) -> None:
    start = base(*setting)
    for name in [name for name in (*PURE, "dr", *SHRINKING) if name in (*spenders(currency), *SHRINKING)]:
        try:
            assert_within_tolerance(solve(start, rule(name), 0.5, currency))
        except ValueError as refusal:
            named = re.search(r"budget=([\d.]+)$", str(refusal))
            if named:
                assert_within_tolerance(solve(start, rule(name), float(named[1]), currency))
                continue
            assert "no budget near it can be met" in str(refusal)
            with pytest.raises(ValueError, match="no budget near it"):
                solve(start, rule(name), 0.75, currency)


# A currency read off a clock


def power_law(start: Base, exponent: float, overhead: float) -> Callable[[Network, int], float]:
    """Seconds of an invented device: overhead, and a power of MACs."""

    def measure(network: Network, resolution: int) -> float:
        macs = network_cost(network, resolution, start.classes).macs / start.cost.macs
        return 1e-3 * (overhead + macs**exponent)

    return measure


def stairs(start: Base, height: float) -> Callable[[Network, int], float]:
    """Seconds in whole steps, as of a device that works in waves."""

    def measure(network: Network, resolution: int) -> float:
        macs = network_cost(network, resolution, start.classes).macs / start.cost.macs
        return 1e-3 * (1.0 + height * math.floor(macs / height))

    return measure


@pytest.mark.parametrize("name", SCALING)
@pytest.mark.parametrize(("exponent", "overhead"), [(1.0, 0.0), (0.7, 0.3), (1.3, 0.0)])
@pytest.mark.parametrize(("setting", "budget"), [(B0, 2.0), (SMALL, 3.0)], ids=str)
def test_arms_meet_a_measured_budget(
    setting: Setting, budget: float, exponent: float, overhead: float, name: str
) -> None:
    start = base(*setting)
    clock = Measured("latency_s", power_law(start, exponent, overhead))
    try:
        scaled = solve(start, rule(name), budget, clock)
    except ValueError as refusal:
        assert_names_what_it_measured(refusal, start, budget, clock)
        assert name == "resolution"  # its lattice has gaps of more than five percent
        return
    assert abs(scaled.multiple / budget - 1.0) <= MEASURED_TOLERANCE
    assert scaled.price == clock.measure(scaled.network, scaled.resolution)
    assert scaled.base_price == clock.measure(start.network, start.resolution)
    assert (scaled.currency, scaled.budget, scaled.snapped_budget) == ("latency_s", budget, budget)
    for axis, exponent_ in zip(PURE, rule(name).exponents, strict=True):
        assert exponent_ > 0.0 or getattr(scaled.shares, axis) == 0.0


def assert_names_what_it_measured(refusal: ValueError, start: Base, budget: float, clock: Measured) -> None:
    found = re.search(r"within 2\.4%; .*nearest.* is budget=([\d.]+)$", str(refusal))
    assert found is not None
    assert abs(float(found[1]) / budget - 1.0) > MEASURED_TOLERANCE
    assert f"in {clock.name} cannot be met" in str(refusal) and start.network.name in str(refusal)


def test_two_arms_within_the_measured_tolerance_are_within_five_percent() -> None:
    assert (1 + MEASURED_TOLERANCE) / (1 - MEASURED_TOLERANCE) - 1 <= 0.05


def test_a_measured_budget_can_shrink() -> None:
    start = base(*B0)
    scaled = solve(start, rule("compound"), 0.5, Measured("latency_s", power_law(start, 0.8, 0.1)))
    assert abs(scaled.multiple / 0.5 - 1.0) <= MEASURED_TOLERANCE
    assert scaled.cost.macs < start.cost.macs


@pytest.mark.parametrize("height", [0.25, 0.5])
@pytest.mark.parametrize("name", ["depth", "width", "compound"])
def test_on_a_device_that_works_in_waves_a_step_is_met_or_the_nearest_named(name: str, height: float) -> None:
    start = base(*B0)
    clock = Measured("latency_s", stairs(start, height))
    one = 1.0 + height * math.floor(1.0 / height)
    met = solve(start, rule(name), (1.0 + 2.0) / one, clock)  # a whole step
    assert met.multiple == pytest.approx(1.5, rel=MEASURED_TOLERANCE)
    between = (1.0 + 2.0 + 0.4 * height) / one
    with pytest.raises(ValueError) as refused:
        solve(start, rule(name), between, clock)
    assert_names_what_it_measured(refused.value, start, between, clock)
    named = float(str(refused.value).rsplit("=", 1)[1])
    assert named == pytest.approx(3.0 / one, rel=1e-3)  # the nearer step
    assert abs(solve(start, rule(name), named, clock).multiple / named - 1.0) <= MEASURED_TOLERANCE


def test_a_clock_is_asked_a_dozen_times_at_most() -> None:
    start, asked = base(*B0), []

    def measure(network: Network, resolution: int) -> float:
        asked.append((network, resolution))
        return power_law(start, 0.5, 0.5)(network, resolution)

    solve(start, rule("compound"), 2.0, Measured("latency_s", measure))
    assert len(set(asked)) <= 13  # the base among them


def test_a_measured_currency_prices_the_base_and_coefficients_too() -> None:
    start = base(*B0)
    clock = Measured("latency_s", power_law(start, 1.0, 0.0))
    assert solve(start, rule("base"), 2.0, clock).multiple == 1.0
    table = solve(start, rule("b1"), 2.0, clock)
    assert table.multiple == pytest.approx(686_802_832 / 385_814_752) and table.price == pytest.approx(
        1.780e-3, rel=1e-3
    )


@settings(max_examples=15, deadline=None)
@given(exponent=st.floats(0.4, 1.5), overhead=st.floats(0.0, 1.0), budget=st.floats(1.3, 6.0))
def test_any_smooth_clock_is_met_by_width(exponent: float, overhead: float, budget: float) -> None:
    start = base(*B0)
    scaled = solve(start, rule("width"), budget, Measured("latency_s", power_law(start, exponent, overhead)))
    assert abs(scaled.multiple / budget - 1.0) <= MEASURED_TOLERANCE


# Options


def test_budget_options_know_their_currencies() -> None:
    for name in CURRENCIES:
        assert BudgetOptions(currency=name).network_multiple == 2.0
    with pytest.raises(ValueError, match=r"budget\.currency='flops'"):
        BudgetOptions(currency="flops")


def test_networks_and_training_are_sized_apart_for_training_budgets_only() -> None:
    assert BudgetOptions(4.0, "train_macs", 1.5).network_multiple == 1.5
    with pytest.raises(
        ValueError, match=r"budget\.network=1\.5 is for budget\.currency=train_macs.*with macs leave it"
    ):
        BudgetOptions(4.0, "macs", 1.5)


@pytest.mark.parametrize("multiple", [0.0, -1.0, math.inf, math.nan])
def test_a_budget_that_is_no_positive_multiple_is_refused_whatever_the_rule(multiple: float) -> None:
    with pytest.raises(ValueError, match=rf"^budget={multiple:g} must be a positive multiple"):
        BudgetOptions(multiple)
    with pytest.raises(ValueError, match=rf"^budget\.network={multiple:g} must be a positive multiple"):
        BudgetOptions(2.0, "train_macs", multiple)
