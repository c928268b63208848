"""Statistics against scipy, hand arithmetic and the planning tables that were computed for the project by
simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from src.verdict.statistics import (
    binomial_se,
    compare,
    estimate,
    holm,
    holm_confidence,
    seeds_needed,
    smallest_detectable,
    spread,
    welch_power,
)

values = st.lists(st.floats(0, 100), min_size=2, max_size=12)
p_values = st.lists(st.floats(0, 1), min_size=1, max_size=8)


def test_estimate_is_the_t_interval_by_hand() -> None:
    result = estimate([90.0, 91.0, 92.0])
    assert result.mean == 91.0
    assert result.sd == pytest.approx(1.0)
    assert result.half_width == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)  # t(0.975, 2) of the printed tables


def test_one_value_has_no_interval_and_none_is_an_error() -> None:
    assert estimate([90.0]).half_width is None
    with pytest.raises(ValueError, match="at least one"):
        estimate([])


@given(values)
def test_interval_is_scipys_and_holds_the_mean(sample: list[float]) -> None:
    result = estimate(sample)
    assert min(sample) - 1e-9 <= result.mean <= max(sample) + 1e-9
    assert result.half_width is not None and result.half_width >= 0
    if result.sd and result.sd > 1e-6:
        low, high = stats.t.interval(0.95, len(sample) - 1, np.mean(sample), stats.sem(sample))
        assert (result.mean - result.half_width, result.mean + result.half_width) == pytest.approx(
            (low, high), abs=1e-7
        )


def test_welch_by_hand() -> None:
    a, b = [3.0, 5.0, 7.0], [1.0, 2.0, 3.0]  # variances 4 and 1, df = (5/3)^2 / ((16/9 + 1/9) / 2) = 50/17
    result = compare(a, b)
    assert (result.error, result.df) == pytest.approx((math.sqrt(5 / 3), 50 / 17))
    t = 3 / math.sqrt(5 / 3)
    assert result.value == pytest.approx(3.0)
    assert result.p == pytest.approx(2 * stats.t.sf(t, 50 / 17))
    half = stats.t.ppf(0.975, 50 / 17) * math.sqrt(5 / 3)
    assert result.interval(0.95) == pytest.approx((3 - half, 3 + half))


samples = st.lists(st.floats(80, 100), min_size=2, max_size=8, unique=True)


@given(samples, samples, st.floats(0.01, 5))
def test_welch_and_tost_are_scipys(a: list[float], b: list[float], margin: float) -> None:
    if max(np.std(a), np.std(b)) < 1e-3:
        return
    result = compare(a, b)
    theirs = stats.ttest_ind(a, b, equal_var=False)
    assert result.p == pytest.approx(theirs.pvalue, rel=1e-6, abs=1e-12)
    assert result.interval(0.983) == pytest.approx(tuple(theirs.confidence_interval(0.983)), rel=1e-6, abs=1e-9)
    above = stats.ttest_ind(np.array(a) + margin, b, equal_var=False, alternative="greater").pvalue
    below = stats.ttest_ind(np.array(a) - margin, b, equal_var=False, alternative="less").pvalue
    assert result.equivalence_p(margin) == pytest.approx(max(above, below), rel=1e-6, abs=1e-12)


@given(samples, samples, st.floats(0.01, 20), st.floats(0.001, 0.2))
def test_tost_holds_exactly_when_its_interval_lies_inside_the_margin(
    a: list[float], b: list[float], margin: float, alpha: float
) -> None:
    result = compare(a, b)
    low, high = result.interval(1 - 2 * alpha)
    if abs(result.equivalence_p(margin) - alpha) > 1e-9:
        assert (result.equivalence_p(margin) <= alpha) == (-margin < low and high < margin)


def test_tost_at_the_margin_errs_as_often_as_it_may() -> None:
    noise = np.random.default_rng(3).normal(size=(4000, 2, 6)) * 0.05 + np.array([[[90.3], [90.0]]])
    wrong = np.mean([compare(a.tolist(), b.tolist()).equivalence_p(0.3) <= 0.05 for a, b in noise])
    assert wrong == pytest.approx(0.05, abs=0.0104)  # three standard errors


@pytest.mark.parametrize(("a", "b"), [([1.0], [1.0, 2.0]), ([1.0, 1.0], [2.0, 2.0])])
def test_a_comparison_without_noise_is_refused(a: list[float], b: list[float]) -> None:
    with pytest.raises(ValueError, match=r"two values|no spread"):
        compare(a, b)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


@given(p_values)
def test_holm_is_monotone_and_between_raw_and_bonferroni(p: list[float]) -> None:
    adjusted = holm(p)
    order = sorted(range(len(p)), key=lambda i: p[i])
    ranked = [adjusted[i] for i in order]
    assert ranked == sorted(ranked)
    assert all(raw <= a <= min(1.0, len(p) * raw) + 1e-12 for raw, a in zip(p, adjusted, strict=True))


@given(st.lists(st.lists(st.floats(80, 100), min_size=4, max_size=4, unique=True), min_size=2, max_size=5))
def test_interval_excludes_zero_exactly_when_holm_rejects(arms: list[list[float]]) -> None:
    compared = [compare(arms[0], rival) for rival in arms[1:]]
    p = [c.p for c in compared]
    for difference, adjusted, confidence in zip(compared, holm(p), holm_confidence(p), strict=True):
        if abs(adjusted - 0.05) > 1e-9:
            low, high = difference.interval(confidence)
            assert (low > 0 or high < 0) == (adjusted <= 0.05)


@pytest.mark.parametrize(("n", "expected"), [(3, 1.16), (5, 0.56), (8, 0.38), (10, 0.33), (16, 0.25)])
def test_smallest_detectable_difference_of_four_comparisons(n: int, expected: float) -> None:
    assert smallest_detectable(0.2, n, 4) == pytest.approx(expected, abs=0.006)


@pytest.mark.parametrize(
    ("comparisons", "expected"), [(1, [3, 4, 5, 7, 17]), (4, [4, 5, 6, 10, 24]), (10, [4, 5, 7, 12, 29])]
)
def test_seeds_for_80_percent_power(comparisons: int, expected: list[int]) -> None:
    assert [seeds_needed(0.5, sd, comparisons) for sd in (0.10, 0.15, 0.20, 0.30, 0.50)] == expected


@pytest.mark.parametrize(("n", "expected"), [(3, [0.69, 0.35, 0.19, 0.07]), (5, [1.0, 0.93, 0.69, 0.31])])
def test_power_at_half_a_point(n: int, expected: list[float]) -> None:
    powers = [welch_power(0.5, sd, n, 0.05 / 4) for sd in (0.10, 0.15, 0.20, 0.30)]
    assert powers == pytest.approx(expected, abs=0.012)  # the table was simulated, so it has an error of its own


def test_power_agrees_with_simulated_welch_tests() -> None:
    draws = np.random.default_rng(0).normal(size=(4000, 2, 4))
    p = stats.ttest_ind(draws[:, 0] + 2.0, draws[:, 1], axis=1, equal_var=False)
    won = np.mean((p.pvalue < 0.05) & (p.statistic > 0))
    assert welch_power(2.0, 1.0, 4, 0.05) == pytest.approx(won, abs=0.025)


@pytest.mark.parametrize(("n", "sds"), [(3, (1.0, 2.0)), (3, (0.5, 1.5)), (5, (2.0, 1.0)), (10, (0.5, 1.5))])
def test_power_of_unequally_noisy_arms_agrees_with_simulated_welch_tests(n: int, sds: tuple[float, float]) -> None:
    total = sds[0] ** 2 + sds[1] ** 2
    effect = smallest_detectable(math.sqrt(total / 2), n, 3, share=sds[0] ** 2 / total)
    draws = np.random.default_rng(1).normal(size=(2, 20_000, n)) * np.array(sds)[:, None, None]
    found = stats.ttest_ind(draws[0] + effect, draws[1], axis=1, equal_var=False)
    assert np.mean((found.pvalue < 0.05 / 3) & (found.statistic > 0)) == pytest.approx(0.8, abs=0.0105)


def test_it_does_not_matter_which_arm_is_the_noisier() -> None:
    assert welch_power(1.5, 1.0, 4, 0.02, share=0.9) == pytest.approx(welch_power(1.5, 1.0, 4, 0.02, share=0.1))
    assert seeds_needed(0.5, 0.3, 3, share=0.9) == seeds_needed(0.5, 0.3, 3, share=0.1)
    assert smallest_detectable(1.0, 3, 3, share=0.9) > smallest_detectable(1.0, 3, 3)


@pytest.mark.parametrize("share", [0.5, 0.73, 0.98])
def test_needed_seeds_are_the_fewest_that_find_it(share: float) -> None:
    n = seeds_needed(0.5, 0.41, 3, share=share)
    assert n is not None
    assert welch_power(0.5, 0.41, n, 0.05 / 3, share) >= 0.8 > welch_power(0.5, 0.41, n - 1, 0.05 / 3, share)


def test_out_of_reach_is_none_and_silence_is_zero() -> None:
    assert seeds_needed(0.01, 1.0, 3) is None
    assert smallest_detectable(0.0, 3, 3) == 0.0


def test_small_arithmetic() -> None:
    assert binomial_se(0.9, 10_000) == pytest.approx(0.003)
    assert spread([1.0, 1.02, 1.01]) == pytest.approx(0.02)
