"""Pure arithmetic of comparing arms over seeds. Values carry the unit of the caller; levels and powers lie in (0, 1).

Sources: Welch 1947 (t test), Holm 1979 (step-down), Brown, Cai & DasGupta 2001 (why the binomial SE is only a floor).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

ALPHA = 0.05  # family-wise error of one family of claims
POWER = 0.80
_QUADRATURE = 64  # midpoints over the share of variance between two arms: three digits of the power


@dataclass(frozen=True)
class Estimate:
    """Mean over seeds; `half_width` of its t interval and `sd` are None when one value says nothing about noise."""

    mean: float
    half_width: float | None
    sd: float | None
    n: int


@dataclass(frozen=True)
class Difference:
    """Welch comparison of two arms: mean of the first minus mean of the second, in the unit of the values."""

    value: float
    p: float  # two-sided, not adjusted
    a: tuple[float, ...]
    b: tuple[float, ...]

    def interval(self, confidence: float) -> tuple[float, float]:
        """Welch t interval of the difference; excludes zero exactly when p < 1 - confidence."""
        bounds = _welch(self.a, self.b).confidence_interval(confidence)
        return float(bounds.low), float(bounds.high)


def estimate(values: Sequence[float], confidence: float = 1 - ALPHA) -> Estimate:
    """Mean with its t half-width.

    Raises:
        ValueError: no values.
    """
    n = len(values)
    if n == 0:
        raise ValueError("an estimate needs at least one value")
    mean = math.fsum(values) / n
    if n == 1:
        return Estimate(mean, None, None, 1)
    sd = float(np.std(values, ddof=1))
    return Estimate(mean, float(stats.t.ppf((1 + confidence) / 2, n - 1)) * sd / math.sqrt(n), sd, n)


def compare(a: Sequence[float], b: Sequence[float]) -> Difference:
    """Welch t test of two independent groups.

    Raises:
        ValueError: fewer than two values in a group, or no spread in both (no noise to compare against).
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(f"Welch's test needs two values per group, got {len(a)} and {len(b)}")
    if len(set(a)) == 1 and len(set(b)) == 1:
        raise ValueError("both groups have no spread, so there is no noise to compare against")
    value = math.fsum(a) / len(a) - math.fsum(b) / len(b)
    return Difference(value, float(_welch(a, b).pvalue), tuple(a), tuple(b))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p values, in the given order: reject where adjusted p <= alpha."""
    adjusted = [0.0] * len(p)
    running = 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        running = max(running, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = running
    return adjusted


def holm_confidence(p: Sequence[float], alpha: float = ALPHA) -> list[float]:
    """Confidence of each comparison's interval, so that it excludes zero exactly when Holm rejects.

    The interval of a rejected comparison has the level of its own step; all from the first failure on, that step's.
    """
    levels = [0.0] * len(p)
    failed = False
    divisor = len(p)
    for rank, index in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        if not failed:
            divisor = len(p) - rank
            failed = p[index] > alpha / divisor
        levels[index] = 1 - alpha / divisor
    return levels


def welch_power(difference: float, sd: float, n: int, alpha: float) -> float:
    """Chance that Welch's two-sided test finds a true `difference`, in its own direction, with `n` seeds per arm.

    Exact for equal normal noise: given the share of one sample variance in their sum (a Beta variable), the statistic
    is noncentral t with 2(n-1) degrees of freedom, while the critical value uses Welch's own, smaller, degrees of
    freedom.
    """
    half = (n - 1) / 2
    share = stats.beta.ppf((np.arange(_QUADRATURE) + 0.5) / _QUADRATURE, half, half)
    critical = stats.t.isf(alpha / 2, (n - 1) / (share**2 + (1 - share) ** 2))
    noncentrality = difference / (sd * math.sqrt(2 / n))
    return float(np.mean(stats.nct.sf(critical, 2 * (n - 1), noncentrality)))


def smallest_detectable(sd: float, n: int, comparisons: int, alpha: float = ALPHA, power: float = POWER) -> float:
    """Smallest true difference found with `power` at the first Holm step of `comparisons`, in the unit of `sd`."""
    return sd * _detectable_in_sds(n, alpha / comparisons, power)


@functools.lru_cache(maxsize=256)
def _detectable_in_sds(n: int, alpha: float, power: float) -> float:
    upper = 0.5
    while welch_power(upper, 1.0, n, alpha) < power:  # growing steps stay where the noncentral t is well behaved
        upper *= 1.5
    lower = upper / 1.5 if upper > 0.5 else 0.0
    return float(optimize.brentq(lambda difference: welch_power(difference, 1.0, n, alpha) - power, lower, upper))


def seeds_needed(
    difference: float, sd: float, comparisons: int, alpha: float = ALPHA, power: float = POWER, most: int = 1000
) -> int | None:
    """Fewest seeds per arm that find `difference` with `power` at the first Holm step; None if more than `most`."""
    level = alpha / comparisons
    # The normal approximation asks for a little too few, so that the exact search has only a few steps to go.
    deviates = float(stats.norm.isf(level / 2) + stats.norm.isf(1 - power))
    n = max(2, math.floor(2 * (deviates * sd / difference) ** 2))
    while n <= most and welch_power(difference, sd, n, level) < power:
        n += 1
    return n if n <= most else None


def binomial_se(accuracy: float, pictures: int) -> float:
    """Standard error of an accuracy (a fraction) from the finite test set alone; other seeds' noise comes on top."""
    return math.sqrt(accuracy * (1 - accuracy) / pictures)


def spread(values: Sequence[float]) -> float:
    """Largest over smallest, minus one."""
    return max(values) / min(values) - 1


def _welch(a: Sequence[float], b: Sequence[float]) -> stats._result_classes.TtestResult:
    return stats.ttest_ind(a, b, equal_var=False)
