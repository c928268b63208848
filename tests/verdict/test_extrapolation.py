"""Forecasts of larger costs: closed forms, invariants, refusals, and how often the intervals hold on simulated studies.
The full table, with 1,000 studies a number, stands in docs/extrapolation.md."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from src.verdict.extrapolation import (
    SHAPE_LEVEL,
    Curve,
    Expected,
    Level,
    bend,
    expect,
    expect_difference,
    interval_score,
    shapes,
)

BASE = Level(1.0, (80.0, 81.0, 82.0))
TWICE = Level(2.0, (83.0, 84.0, 85.0))


def curve(*levels: Level, based: bool = True) -> Curve:
    return Curve(levels, based)


def ends(found: Expected) -> list[float]:
    return [found.value, found.low, found.high, found.run_low, found.run_high]


def test_two_budgets_reach_from_no_change_to_the_straight_line() -> None:
    """By hand: at shape s the value is 81 + 3 (1 + s), and every level's variance is 1."""
    found, kept = expect(curve(BASE, TWICE), 4.0, 3)
    assert kept == (0.0, 1.0)
    assert found.value == pytest.approx(85.5)
    t = stats.t.ppf(0.975, 4)
    assert found.low == pytest.approx(84 - t * math.sqrt(1 / 3 + 1 / 3))  # shape 0: the mean at 2x
    assert found.run_low == pytest.approx(84 - t * math.sqrt(1 / 3 + 1))
    # Shape 1: scipy's straight line, whose prediction variance is s^2 (1/n' + 1/n + (x - mean)^2 / Sxx).
    x, y = np.repeat([0.0, 1.0], 3), np.array(BASE.values + TWICE.values)
    line = stats.linregress(x, y)
    s = math.sqrt(((y - line.intercept - line.slope * x) ** 2).sum() / 4)
    for extra, high in ((1 / 3, found.high), (1.0, found.run_high)):
        error = s * math.sqrt(extra + 1 / 6 + (2 - x.mean()) ** 2 / ((x - x.mean()) ** 2).sum())
        assert high == pytest.approx(line.intercept + 2 * line.slope + t * error)


def test_bend_is_the_sum_of_a_geometric_series() -> None:
    tried = np.array([0.0, 0.3, 0.999999, 1.0])
    sums = [[sum(s**k for k in range(x)) for x in range(5)] for s in tried.tolist()]
    assert bend(tried, np.arange(5.0)) == pytest.approx(np.array(sums), rel=1e-5)
    assert bend(np.array([0.25]), np.array([0.5]))[0, 0] == pytest.approx((1 - 0.5) / 0.75)  # between whole doublings


THREE = (
    Level(1.0, (80.0, 80.4, 79.9, 80.1)),
    Level(2.0, (82.1, 82.3, 81.8, 82.2)),
    Level(4.1, (83.3, 83.0, 83.2, 83.4)),
    Level(8.0, (83.7, 84.0, 83.8, 83.6)),
)


def test_shapes_are_those_that_an_f_test_of_lack_of_fit_keeps() -> None:
    """Against numpy's least squares on every run and scipy's F, on a fine grid."""
    x = np.repeat([math.log2(level.cost) for level in THREE], 4)
    y = np.array([v for level in THREE for v in level.values])
    pure = sum(np.var(level.values) * 4 for level in THREE)
    kept = []
    for shape in np.linspace(0.001, 0.999, 1997):
        design = np.stack([np.ones_like(x), (1 - shape**x) / (1 - shape)], -1)
        rest = np.linalg.lstsq(design, y, rcond=None)[1][0]
        if stats.f.sf((rest - pure) / 2 / (pure / 12), 2, 12) >= SHAPE_LEVEL:
            kept.append(shape)
    low, high, spent = shapes(curve(*THREE))
    assert spent == SHAPE_LEVEL
    assert (low, high) == pytest.approx((min(kept), max(kept)), abs=6e-4)


def test_three_budgets_join_the_intervals_of_the_shapes_that_fit() -> None:
    """Against least squares on every run, one shape at a time."""
    made = curve(*THREE)
    found, (low, high) = expect(made, 16.0, 3)
    x = np.repeat([math.log2(level.cost) for level in THREE], 4)
    y = np.array([v for level in THREE for v in level.values])
    noise = math.sqrt(sum(np.var(level.values) * 4 for level in THREE) / 12)
    t = stats.t.ppf(1 - (0.05 - SHAPE_LEVEL) / 2, 12)
    lows, highs, values, weights = [], [], [], []
    for shape in np.linspace(low, high, 21):
        design = np.stack([np.ones_like(x), (1 - shape**x) / (1 - shape)], -1)
        target = np.array([1.0, (1 - shape**4) / (1 - shape)])
        fitted, [rest], *_ = np.linalg.lstsq(design, y, rcond=None)
        half = t * noise * math.sqrt(target @ np.linalg.inv(design.T @ design) @ target + 1 / 3)
        values.append(target @ fitted)
        weights.append(rest ** (-16 / 2))  # likelihood of a normal model at its best variance
        lows.append(values[-1] - half)
        highs.append(values[-1] + half)
    assert (found.low, found.high) == pytest.approx((min(lows), max(highs)))
    assert found.value == pytest.approx(np.average(values, weights=weights))


def test_the_common_base_cancels_in_a_difference() -> None:
    """Against the closed form of two budgets: at shapes a and b the base has the weight b - a."""
    other = Level(2.0, (81.0, 82.5, 83.0))
    found = expect_difference(curve(BASE, TWICE), curve(BASE, other), 4.0, 3)
    squares = [sum((v - np.mean(level.values)) ** 2 for v in level.values) for level in (BASE, TWICE, other)]
    noise, t = math.sqrt(sum(squares) / 6), stats.t.ppf(0.975, 6)
    means = np.array([np.mean(level.values) for level in (BASE, TWICE, other)])
    lows, highs = [], []
    for a, b in itertools.product(np.linspace(0, 1, 21), repeat=2):
        weights = np.array([b - a, 1 + a, -(1 + b)])
        half = t * noise * math.sqrt((weights**2).sum() / 3 + 2 / 3)
        lows.append(weights @ means - half)
        highs.append(weights @ means + half)
    assert (found.low, found.high) == pytest.approx((min(lows), max(highs)))


@given(
    seed=st.integers(0, 10**6),
    budgets=st.integers(2, 4),
    seeds=st.integers(3, 6),
    shape=st.floats(0, 1),
    sigma=st.floats(0.05, 2),
)
@settings(max_examples=60, deadline=None)
def test_what_holds_of_every_forecast(seed: int, budgets: int, seeds: int, shape: float, sigma: float) -> None:
    random = np.random.default_rng(seed)

    def drawn(gain: float, cost: float) -> Level:
        mean = 60 + gain * bend(np.array([shape]), np.array([math.log2(cost)]))[0, 0]
        return Level(cost, tuple((mean + sigma * random.standard_normal(seeds)).tolist()))

    base = drawn(0, 1.0)
    costs = [2.0 ** (k + 1) for k in range(budgets - 1)]
    a, b = (Curve((base, *(drawn(gain, cost) for cost in costs)), True) for gain in (2.0, 1.0))
    try:
        near, far = (expect(a, costs[-1] * factor, seeds)[0] for factor in (2.0, 4.0))
        difference = expect_difference(a, b, costs[-1] * 2, seeds)
    except ValueError:
        return  # noise that no shape fits
    assert near.run_low <= near.low <= near.value <= near.high <= near.run_high
    assert far.high - far.low >= near.high - near.low  # wider with distance
    sharper = expect(a, costs[-1] * 2, seeds + 2)[0]
    assert sharper.high - sharper.low < near.high - near.low and sharper.run_high == near.run_high
    turned = expect_difference(b, a, costs[-1] * 2, seeds)
    d = difference
    assert ends(turned) == pytest.approx([-v for v in (d.value, d.high, d.low, d.run_high, d.run_low)])
    moved = Curve(tuple(Level(x.cost * 3, tuple(v + 5 for v in reversed(x.values))) for x in a.levels), True)
    again = expect(moved, costs[-1] * 6, seeds)[0]
    assert ends(again) == pytest.approx([v + 5 for v in ends(near)], abs=1e-4)
    assert difference.value == pytest.approx(near.value - expect(b, costs[-1] * 2, seeds)[0].value)


def test_accuracies_stay_between_nothing_and_everything() -> None:
    found, _ = expect(curve(Level(1, (93.0, 93.5, 94.0)), Level(2, (96.0, 96.5, 97.0))), 8.0, 3)
    assert found.high == found.run_high == 100.0 and found.value < 100


@pytest.mark.parametrize(
    ("levels", "said"),
    [
        ([BASE], "needs runs at two costs, got 1"),
        ([BASE, Level(2.0, (83.0, 84.0))], "needs 3 seeds at every cost, got 2 at 2x"),
        ([BASE, Level(1.1, TWICE.values)], "1x, 1.1x are too close"),
        ([Level(1.0, (80.0,) * 3), Level(2.0, (81.0,) * 3)], "no noise to forecast with"),
    ],
)
def test_what_no_curve_can_be_laid_through_is_refused(levels: list[Level], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        curve(*levels)


@pytest.mark.parametrize(
    ("cost", "said"), [(2.0, "2x is not beyond the 2x"), (16.0, "3.0 doublings beyond the 2x .* ask for 8x at most")]
)
def test_what_is_no_extrapolation_or_too_far_is_refused(cost: float, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        expect(curve(BASE, TWICE), cost, 3)


@pytest.mark.parametrize("means", [(80.0, 83.0, 81.0), (80.0, 81.0, 84.0)], ids=["turns round", "accelerates"])
def test_runs_that_no_shape_fits_are_refused(means: tuple[float, ...]) -> None:
    levels = [Level(2.0**k, (mean - 0.1, mean, mean + 0.1)) for k, mean in enumerate(means)]
    with pytest.raises(ValueError, match="rise and fall, or grow ever faster"):
        expect(curve(*levels), 8.0, 3)


@pytest.mark.parametrize(("came", "score"), [(1.5, 1.0), (1.0, 1.0), (2.5, 21.0), (0.9, 5.0)])
def test_interval_score_by_hand(came: float, score: float) -> None:
    assert interval_score(1.0, 2.0, came) == pytest.approx(score)


@pytest.mark.parametrize("shape", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("budgets", [2, 3])
def test_intervals_hold_what_comes_whatever_the_shape(shape: float, budgets: int) -> None:
    random = np.random.default_rng(5)
    held = [0, 0]
    studies = 150
    for _ in range(studies):

        def runs(gain: float, x: int, random: np.random.Generator = random) -> tuple[float, ...]:
            mean = 80 + gain * sum(shape**k for k in range(x))
            return tuple((mean + 0.3 * random.standard_normal(4)).tolist())

        base = Level(1.0, runs(0.0, 0))
        pair = [Curve((base, *(Level(2.0**x, runs(g, x)) for x in range(1, budgets))), True) for g in (2.0, 1.0)]
        came = [np.mean(runs(gain, budgets)) for gain in (2.0, 1.0)]
        try:
            one, both = expect(pair[0], 2.0**budgets, 4)[0], expect_difference(*pair, 2.0**budgets, 4)
        except ValueError:  # no shape fits, by chance: counted as not held
            continue
        held[0] += one.low <= came[0] <= one.high
        held[1] += both.low <= came[0] - came[1] <= both.high
    least = 0.95 - 3 * math.sqrt(0.95 * 0.05 / studies)
    assert min(held) / studies >= least
