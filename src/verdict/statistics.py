"""Pure arithmetic of comparing arms over seeds. Values carry the unit of the caller; levels and powers lie in (0, 1).

Sources: Welch 1947 (t test), Holm 1979 (step-down), Schuirmann 1987 (two one-sided tests), Kim & DeMets 1987 (power
spending), Brown, Cai & DasGupta 2001 (why the binomial SE is only a floor).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special, stats

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
    error: float  # standard error
    df: float  # Welch's degrees of freedom
    a: tuple[float, ...]
    b: tuple[float, ...]

    def interval(self, confidence: float) -> tuple[float, float]:
        """Welch t interval of the difference; excludes zero exactly when p < 1 - confidence."""
        half = float(special.stdtrit(self.df, (1 + confidence) / 2)) * self.error
        return self.value - half, self.value + half

    def equivalence_p(self, margin: float) -> float:
        """P value of TOST by Welch's test: the larger of the two one-sided ones against -margin and +margin.

        At most `alpha` exactly when `interval(1 - 2 * alpha)` lies inside (-margin, margin). Both nulls have to be
        rejected, so testing each at alpha errs with chance alpha at most (intersection-union test), and with just
        alpha at the margin itself once the interval is short against it.
        """
        return float(special.stdtr(self.df, (abs(self.value) - margin) / self.error))


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
    shares = [variance(side) / len(side) for side in (a, b)]  # of each mean in the variance of the difference
    value = math.fsum(a) / len(a) - math.fsum(b) / len(b)
    total = math.fsum(shares)
    error = math.sqrt(total)
    df = 1 / math.fsum((v / total) ** 2 / (len(side) - 1) for v, side in zip(shares, (a, b), strict=True))
    p = 2 * float(special.stdtr(df, -abs(value) / error))
    return Difference(value, p, error, df, tuple(a), tuple(b))


def variance(values: Sequence[float]) -> float:
    """Unbiased sample variance of two or more values."""
    mean = math.fsum(values) / len(values)
    return math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)


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


def welch_power(difference: float, sd: float, n: int, alpha: float, share: float = 0.5) -> float:
    """Chance that Welch's two-sided test finds a true `difference`, in its own direction, with `n` seeds per arm.

    Exact for normal noise: given the share of one sample variance in their sum (distributed as that of an F variable),
    the sum is a multiple of chi-squared and the statistic noncentral t with 2(n-1) degrees of freedom, while the
    critical value uses Welch's own, smaller, degrees of freedom.

    Args:
        sd: root mean square of the standard deviations of the two arms.
        share: of one arm's variance in the sum of both; 0.5 if they are equally noisy.
    """
    half, ratio = (n - 1) / 2, share / (1 - share)
    beta = special.betaincinv(half, half, (np.arange(_QUADRATURE) + 0.5) / _QUADRATURE)
    seen = ratio * beta / (ratio * beta + 1 - beta)
    critical = special.stdtrit((n - 1) / (seen**2 + (1 - seen) ** 2), 1 - alpha / 2)
    inflation = 0.5 * (seen / share + (1 - seen) / (1 - share))  # of the true variance over what such a share suggests
    noncentrality = difference / (sd * math.sqrt(2 / n))
    return float(np.mean(stats.nct.sf(critical / np.sqrt(inflation), 2 * (n - 1), noncentrality)))


def smallest_detectable(
    sd: float, n: int, comparisons: int, alpha: float = ALPHA, power: float = POWER, share: float = 0.5
) -> float:
    """Smallest true difference found with `power` at the first Holm step of `comparisons`, in the unit of `sd`."""
    return sd * _detectable_in_sds(n, alpha / comparisons, power, _rounded(share))


@functools.lru_cache(maxsize=4096)
def _detectable_in_sds(n: int, alpha: float, power: float, share: float) -> float:
    upper = 0.5
    while welch_power(upper, 1.0, n, alpha, share) < power:  # growing steps: the noncentral t is well behaved there
        upper *= 1.5
    lower = upper / 1.5 if upper > 0.5 else 0.0
    return float(
        optimize.brentq(lambda d: welch_power(d, 1.0, n, alpha, share) - power, lower, upper, xtol=1e-4, rtol=1e-4)
    )


def seeds_needed(
    difference: float,
    sd: float,
    comparisons: int,
    alpha: float = ALPHA,
    power: float = POWER,
    most: int = 1000,
    share: float = 0.5,
) -> int | None:
    """Fewest seeds per arm that find `difference` with `power` at the first Holm step; None if more than `most`."""
    level, share = alpha / comparisons, _rounded(share)
    # The normal approximation asks for a little too few, so that the exact search has only a few steps to go.
    deviates = float(special.ndtri(1 - level / 2) + special.ndtri(power))
    n = max(2, math.floor(2 * (deviates * sd / difference) ** 2))
    while n <= most and sd * _detectable_in_sds(n, level, power, share) > difference:
        n += 1
    return n if n <= most else None


def _rounded(share: float) -> float:
    """A share of variance as one of 49 values, of one symmetric half, so that what is computed for it can be kept."""
    return min(max(round(max(share, 1 - share), 2), 0.5), 0.98)


def binomial_se(accuracy: float, pictures: int) -> float:
    """Standard error of an accuracy (a fraction) from the finite test set alone; other seeds' noise comes on top."""
    return math.sqrt(accuracy * (1 - accuracy) / pictures)


def spread(values: Sequence[float]) -> float:
    """Largest over smallest, minus one."""
    return max(values) / min(values) - 1
