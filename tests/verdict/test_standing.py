"""Probabilities and slopes: against brute force and scipy, silent where a guard stands in the way, and calibrated."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import stats
from synthetic_study import arm_records, base_records

from src.record import RunRecord
from src.verdict.cells import group
from src.verdict.looks import PlannedRun, Progress
from src.verdict.standing import DRAWS, Standings, standings, true_accuracies

GROWING = {
    2.0: {"compound": [0.91, 0.912, 0.911], "depth": [0.905, 0.904, 0.9065]},
    4.0: {"compound": [0.93, 0.931, 0.9335], "depth": [0.912, 0.911, 0.913]},
}


def records() -> list[RunRecord]:
    runs = base_records([0.9, 0.901, 0.899])
    for budget, accuracies in GROWING.items():
        runs += arm_records(accuracies, budget)
    return runs


def only(runs: list[RunRecord], progress: Progress = Progress()) -> Standings:  # noqa: B008
    [found] = standings(group(runs), progress)
    return found


def test_one_arm_alone_has_the_t_distribution_of_its_mean() -> None:
    draws = true_accuracies([[90.0, 91.0, 92.0]], np.random.default_rng(0))[:, 0]
    t = stats.t(2, loc=91, scale=1 / np.sqrt(3))
    assert stats.kstest(draws, t.cdf).pvalue > 0.01


def test_the_posterior_is_that_of_the_model_by_quadrature() -> None:
    """Two arms: the chance that the first is better, integrated over noise and spread instead of drawn."""
    values = [[91.0, 91.6, 91.3], [90.2, 91.0, 90.9]]
    means = [float(np.mean(v)) for v in values]
    noise = [float(np.var(v, ddof=1)) / 3 for v in values]
    width = 4 * np.mean(noise)
    gap = means[0] - means[1]
    top = bottom = 0.0
    quantiles = (np.arange(160) + 0.5) / 160
    scales = 2 / stats.chi2(2).ppf(quantiles)  # of the true variance of a mean over the estimated one
    for spread in width * np.tan(np.pi / 2 * quantiles) ** 2:  # half-Cauchy, median 2 sqrt(noise)
        a, b = (noise[0] * scales)[:, None], (noise[1] * scales)[None, :]
        weight = stats.norm.pdf(gap, scale=np.sqrt(a + b + 2 * spread))
        # Given all variances, the difference of the true means is normal: shrunk, around the shrunk gap.
        kept = 2 * spread / (2 * spread + a + b)
        better = stats.norm.cdf(kept * gap / np.sqrt(kept * (a + b)))
        top, bottom = top + np.sum(weight * better), bottom + np.sum(weight)
    draws = true_accuracies(values, np.random.default_rng(0))
    assert np.mean(draws[:, 0] > draws[:, 1]) == pytest.approx(top / bottom, abs=4 * 0.5 / np.sqrt(DRAWS))


def test_without_doubt_they_are_certain_and_without_a_difference_even() -> None:
    far = only(arm_records({"compound": [0.95, 0.951, 0.9515], "depth": [0.9, 0.901, 0.902]}))
    assert [row.best for row in far.rows] == pytest.approx([1.0, 0.0], abs=0.04)
    same = [0.9, 0.901, 0.902]
    even = only(arm_records(dict.fromkeys(("compound", "depth", "width"), same)))
    assert [row.best for row in even.rows] == pytest.approx([1 / 3] * 3, abs=0.03)


def test_the_frontier_takes_cheaper_networks_into_account() -> None:
    found = only(records())
    rows = {(row.arm, row.budget): row for row in found.rows}
    assert [(row.arm, row.budget) for row in found.rows] == [(cell.name, cell.budget) for cell in group(records())]
    assert rows["base", 1.0].best is None and rows["base", 1.0].frontier == 1.0
    for budget in (2.0, 4.0):  # the base is far below, so that the frontier asks no more than being best
        row = rows["compound", budget]
        assert row.best is not None and row.frontier == pytest.approx(row.best, abs=0.02) and row.best > 0.8
    assert sum(row.best for row in found.rows if row.budget == 4.0 and row.best is not None) == pytest.approx(1)
    sunk = base_records([0.92, 0.921, 0.919])
    below = {(row.arm, row.budget): row for row in only([*records()[3:], *sunk]).rows}
    assert below["compound", 2.0].best > 0.8 and below["compound", 2.0].frontier < 0.05  # type: ignore[operator]


def test_a_guard_or_a_running_sweep_leaves_blanks() -> None:
    spoilt = [dataclasses.replace(r, test_openings=2) if r.arm == "depth" and r.budget == 2 else r for r in records()]
    rows = {(row.arm, row.budget): row for row in only(spoilt).rows}
    assert rows["depth", 2.0].best is None and rows["depth", 2.0].frontier is None
    assert rows["compound", 2.0].best is None  # nothing is left to be better than
    assert rows["compound", 4.0].best is not None
    running = only(records(), Progress((PlannedRun("width", 4.0, 0),)))
    assert [row.best is None for row in running.rows] == [True, False, False, True, True]
    assert [row.frontier is None for row in only(arm_records({"compound": [0.9, 0.91]})).rows] == [True]


def test_slopes_are_lines_through_all_runs_of_an_arm() -> None:
    found = only(records())
    assert [slope.arm for slope in found.slopes] == ["compound", "depth"]
    slope = found.slopes[0]
    x, y = np.repeat([1.0, 2.0], 3), 100 * np.array([*GROWING[2.0]["compound"], *GROWING[4.0]["compound"]])
    fit = stats.linregress(x, y)  # costs are 2 and 4 times the base's: log2 is 1 and 2 beside a constant
    half = stats.t.ppf(0.975, 4) * fit.stderr
    assert (slope.value, slope.low, slope.high) == pytest.approx((fit.slope, fit.slope - half, fit.slope + half))
    assert slope.budgets == (2.0, 4.0)


def test_the_test_of_one_slope_compares_two_regressions() -> None:
    y = np.array([100 * a for arm in ("compound", "depth") for b in (2.0, 4.0) for a in GROWING[b][arm]])
    x, arm = np.tile(np.repeat([1.0, 2.0], 3), 2), np.repeat([0.0, 1.0], 6)
    apart = np.stack([1 - arm, arm, x * (1 - arm), x * arm], axis=1)
    common = np.stack([1 - arm, arm, x], axis=1)
    rss = [np.linalg.lstsq(design, y, rcond=None)[1][0] for design in (common, apart)]
    f = (rss[0] - rss[1]) / (rss[1] / 8)
    assert only(records()).p_common == pytest.approx(stats.f.sf(f, 1, 8))


def test_one_budget_has_no_slope() -> None:
    found = only(arm_records(GROWING[2.0]))
    assert found.slopes == () and found.p_common is None


@pytest.mark.parametrize("between", [0.3, 2.0])
def test_what_is_said_to_be_best_is_best_at_least_as_often(between: float) -> None:
    """Studies of four arms and three seeds, arms that differ by less and by more than the noise."""
    random = np.random.default_rng(6)
    said, came = [], []
    for _ in range(100):
        truth = random.normal(0, between, 4)
        wins = true_accuracies((truth[:, None] + random.standard_normal((4, 3))).tolist(), random).argmax(axis=1)
        shares = np.bincount(wins, minlength=4) / DRAWS
        said.append(shares.max())
        came.append(truth.argmax() == shares.argmax())
    assert np.mean(said) <= np.mean(came) + 3 * np.sqrt(0.25 / 100)
    assert np.mean(said) >= np.mean(came) - 0.25  # nor is it silent
