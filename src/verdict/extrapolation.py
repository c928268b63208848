"""What an arm is expected to reach at a larger cost, with prediction intervals that hold seeds and the curve's shape.

**One family of curves.** Over x, the doublings of cost above its cheapest budget, an arm's mean accuracy is taken for

    level + gain * (1 + shape + shape^2 + ...) = level + gain * (1 - shape^x) / (1 - shape),    0 <= shape <= 1

so that every doubling changes the accuracy by `shape` times what the doubling before it did. Shape 1 is a straight line
in log cost. In between it is a power law of the error with some floor, error = floor + a * cost^log2(shape), of which
the power law without a floor is one. Shape 0 is no further change after the first step. In words: returns diminish at
some rate, or not at all, but they do not turn round and do not accelerate. Nothing else is assumed, and no shape is
preferred.

**Intervals.** For one shape the model is linear: least squares over runs, the noise from seeds alone (pooled within
budgets, not from what the curve misses), a t interval for what is to come. The prediction interval is the union of
these over all shapes that the data do not reject (Berger & Boos 1994). With two budgets nothing can be rejected: the
interval reaches from no further change to a straight line. From three on, shapes that miss by more than seeds explain
(F test of lack of fit at `SHAPE_LEVEL`) are left out, and the t intervals have the rest of `ALPHA`. By the union bound
the chance of missing is at most ALPHA whatever the shape, if noise is normal and equally large at all costs.

**The number** in the middle is the mean over the shapes that are left, each weighted by how well it fits (its profile
likelihood); with two budgets all weigh the same.

**Differences** are fitted together, since arms start from one base: what its seeds err by is common to both curves. It
cancels where both have one shape, which the interval does not take for granted. New runs of two arms are taken for
independent.

docs/extrapolation.md measures how often all this holds, also where the truth is not in the family.
Sources: Berger & Boos 1994 (nuisance parameters), Rosenfeld et al. 2020 and Hestness et al. 2017 (power laws of error,
with and without a floor), Gneiting & Raftery 2007 (interval score).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from src.verdict.guards import LEAST_SEEDS
from src.verdict.statistics import ALPHA

SHAPE_LEVEL = 0.01  # of ALPHA: the chance of leaving out the true shape
MOST_DOUBLINGS = 2.0  # beyond the largest budget; farther than that nothing was measured
LEAST_APART = 0.25  # doublings between budgets
_SEARCHED = np.linspace(0.0, 1.0, 101)  # where the shapes that fit are looked for
_SHAPES = 21  # of one arm, over which intervals are joined

_Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Level:
    """The runs of one budget: cost as a multiple of the base's, and the test accuracy of every seed, %."""

    cost: float
    values: tuple[float, ...]


@dataclass(frozen=True)
class Curve:
    """An arm's budgets, cheapest first. `based`: the cheapest is the base, which other arms' curves start from too."""

    levels: tuple[Level, ...]
    based: bool

    def __post_init__(self) -> None:
        """Refuse what no curve can be laid through.

        Raises:
            ValueError: too few budgets or seeds, budgets too close to each other, or no spread between seeds.
        """
        if len(self.levels) < 2:
            raise ValueError(
                f"a forecast needs runs at two costs, got {len(self.levels)}; add the base (`scaling=base`) or a budget"
            )
        fewest = min(self.levels, key=lambda level: len(level.values))
        if len(fewest.values) < LEAST_SEEDS:
            raise ValueError(
                f"a forecast needs {LEAST_SEEDS} seeds at every cost, got {len(fewest.values)} at {fewest.cost:.3g}x;"
                " run more seeds"
            )
        logs = [math.log2(level.cost) for level in self.levels]
        closest = min(b - a for a, b in itertools.pairwise(logs))
        if closest < LEAST_APART:
            listed = ", ".join(f"{level.cost:.3g}x" for level in self.levels)
            raise ValueError(f"the costs {listed} are too close to tell a curve's slope; take budgets farther apart")
        if all(len(set(level.values)) == 1 for level in self.levels):
            raise ValueError(
                "all seeds gave the same accuracy, so there is no noise to forecast with; test more pictures"
            )

    @property
    def doublings(self) -> _Floats:
        """x of every level."""
        return np.log2([level.cost / self.levels[0].cost for level in self.levels])


@dataclass(frozen=True)
class Expected:
    """An accuracy to come, %, or a difference of two, pp.

    low, high: 95 % prediction interval of the mean over the seeds that were asked for, or of the difference of two such
    means. run_low, run_high: of one run, or of the difference of two.
    """

    value: float
    low: float
    high: float
    run_low: float
    run_high: float


@functools.lru_cache(maxsize=64)  # every pair of arms asks again
def expect(curve: Curve, cost: float, seeds: int) -> tuple[Expected, tuple[float, float]]:
    """Accuracy at a cost (x base), and the shapes that the curve's runs do not reject.

    Raises:
        ValueError: the cost is not beyond the curve or too far beyond it, or no shape fits the curve.
    """
    check_reach(curve, cost)
    low, high, spent = shapes(curve)
    tried = np.linspace(low, high, _SHAPES)
    counts, means, squares, df = _noise(curve.levels)
    bent, ahead = bend(tried, curve.doublings), bend(tried, np.array([_x(curve, cost)]))
    one = np.ones((_SHAPES, 1))
    design = np.stack([np.broadcast_to(one, bent.shape), bent], -1)
    values, leverage, misfit = _fit(design, counts, means, np.concatenate([one, ahead], -1))
    likelihood = -0.5 * counts.sum() * np.log1p(misfit / squares)
    weight = np.exp(likelihood - likelihood.max())
    value = float(weight @ values / weight.sum())
    ends = _intervals(values, leverage, squares, df, spent, (1 / seeds, 1.0))
    return Expected(*(min(max(end, 0.0), 100.0) for end in (value, *ends))), (low, high)


def expect_difference(a: Curve, b: Curve, cost: float, seeds: int) -> Expected:
    """Accuracy of the first arm minus that of the second at a cost (x base), each the mean of so many seeds, pp.

    Raises:
        ValueError: see `expect`.
    """
    value = expect(a, cost, seeds)[0].value - expect(b, cost, seeds)[0].value  # so that shown numbers add up
    (a_low, a_high, a_spent), (b_low, b_high, b_spent) = shapes(a), shapes(b)
    pairs = np.meshgrid(np.linspace(a_low, a_high, _SHAPES), np.linspace(b_low, b_high, _SHAPES))
    first, second = (shape.ravel() for shape in pairs)
    shared = a.based and b.based and a.levels[0] == b.levels[0]
    own = b.levels[1:] if shared else b.levels
    counts, means, squares, df = _noise((*a.levels, *own))
    bent_a = np.pad(bend(first, a.doublings), ((0, 0), (0, len(own))))
    bent_b = np.pad(bend(second, b.doublings[-len(own) :]), ((0, 0), (len(a.levels), 0)))
    ahead_a, ahead_b = bend(first, np.array([_x(a, cost)])), -bend(second, np.array([_x(b, cost)]))
    of_a = np.broadcast_to(np.arange(len(counts)) < len(a.levels), bent_a.shape).astype(float)
    one = np.ones_like(ahead_a)
    if shared:  # both start from the same level, which is no part of their difference
        design = np.stack([np.ones_like(of_a), bent_a, bent_b], -1)
        target = np.concatenate([0 * one, ahead_a, ahead_b], -1)
    else:
        design = np.stack([of_a, 1 - of_a, bent_a, bent_b], -1)
        target = np.concatenate([one, -one, ahead_a, ahead_b], -1)
    values, leverage, _ = _fit(design, counts, means, target)
    low, high, *single = _intervals(values, leverage, squares, df, a_spent + b_spent, (2 / seeds, 2.0))
    found = (value, min(low, value), max(high, value), *single)
    return Expected(*(min(max(end, -100.0), 100.0) for end in found))


@functools.lru_cache(maxsize=64)  # every pair of arms asks again
def shapes(curve: Curve) -> tuple[float, float, float]:
    """Lowest and highest shape that the runs of a curve do not reject, and the part of ALPHA that this took.

    Raises:
        ValueError: every shape is rejected.
    """
    free = len(curve.levels) - 2
    if free == 0:
        return 0.0, 1.0, 0.0
    counts, means, squares, df = _noise(curve.levels)
    critical = float(special.fdtri(free, df, 1 - SHAPE_LEVEL)) * free * squares / df

    def excess(tried: _Floats) -> _Floats:
        bent = bend(tried, curve.doublings)
        design = np.stack([np.ones_like(bent), bent], -1)
        return _fit(design, counts, means, design[:, 0])[2] - critical

    over = excess(_SEARCHED)
    nearest = int(np.argmin(over))
    around = _SEARCHED[max(nearest - 1, 0)], _SEARCHED[min(nearest + 1, len(_SEARCHED) - 1)]
    found = optimize.minimize_scalar(lambda shape: float(excess(np.array([shape]))[0]), bounds=around, method="bounded")
    best, least = (float(_SEARCHED[nearest]), float(over[nearest]))
    if found.fun < least:
        best, least = float(found.x), float(found.fun)
    if least > 0:
        raise ValueError(
            "its accuracies rise and fall, or grow ever faster, by more than seeds explain, so no curve of diminishing"
            " returns leads beyond them; run the larger budget itself"
        )
    kept = [best, *_SEARCHED[over <= 0].tolist()]
    below = [shape for shape in _SEARCHED.tolist() if shape < min(kept)]
    above = [shape for shape in _SEARCHED.tolist() if shape > max(kept)]
    low = _edge(excess, below[-1], min(kept)) if below else min(kept)
    high = _edge(excess, above[0], max(kept)) if above else max(kept)
    return low, high, SHAPE_LEVEL


def check_reach(curve: Curve, cost: float) -> None:
    """Refuse costs that are no extrapolation, or too far a one.

    Raises:
        ValueError: see there.
    """
    largest = curve.levels[-1].cost
    beyond = math.log2(cost / largest)
    if beyond < LEAST_APART:
        raise ValueError(f"{cost:g}x is not beyond the {largest:.3g}x that has been run; ask for a larger cost")
    if beyond > MOST_DOUBLINGS:
        raise ValueError(
            f"{cost:g}x lies {beyond:.1f} doublings beyond the {largest:.3g}x that has been run, {MOST_DOUBLINGS:g} are"
            f" allowed; ask for {largest * 2**MOST_DOUBLINGS:.3g}x at most, or run a budget in between"
        )


def interval_score(low: float, high: float, came: float, alpha: float = ALPHA) -> float:
    """Gneiting & Raftery 2007, equation 43: the width, and 2 / alpha for every unit that the value lies outside."""
    return (high - low) + 2 / alpha * (max(low - came, 0.0) + max(came - high, 0.0))


def bend(shape: _Floats, doublings: _Floats) -> _Floats:
    """(S, X): the sum of shape^0 + shape^1 + ... over so many doublings, one row a shape, continued to fractions."""
    log = np.log(np.maximum(shape, np.finfo(float).tiny))[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        curved = np.expm1(log * doublings) / np.expm1(log)
    return np.where(log == 0, np.broadcast_to(doublings, curved.shape), curved)


def _edge(excess: Callable[[_Floats], _Floats], rejected: float, fitting: float) -> float:
    """The shape between the two at which rejection begins."""
    found = optimize.brentq(lambda shape: float(excess(np.array([shape]))[0]), rejected, fitting, xtol=1e-6)
    return float(found)


def _x(curve: Curve, cost: float) -> float:
    return math.log2(cost / curve.levels[0].cost)


def _noise(levels: Sequence[Level]) -> tuple[_Floats, _Floats, float, int]:
    """Runs and means of every level, and the squares and degrees of freedom of what seeds differ by within them."""
    counts = np.array([len(level.values) for level in levels], dtype=float)
    means = np.array([math.fsum(level.values) / len(level.values) for level in levels])
    squares = math.fsum((v - m) ** 2 for level, m in zip(levels, means, strict=True) for v in level.values)
    return counts, means, squares, int(counts.sum()) - len(levels)


def _fit(design: _Floats, counts: _Floats, means: _Floats, target: _Floats) -> tuple[_Floats, _Floats, _Floats]:
    """Least squares over runs, one for each shape: values at the target, their variance in units of a run's, and the
    squares that the curve misses the means by.

    Args:
        design: (S, levels, P). target: (S, P).
    """
    weighted = design * counts[:, None]
    gram = np.swapaxes(weighted, 1, 2) @ design
    solved = np.linalg.solve(gram, np.stack([np.swapaxes(weighted, 1, 2) @ means, target], -1))
    fitted, spread = solved[..., 0], solved[..., 1]
    values = np.einsum("sp,sp->s", target, fitted)
    leverage = np.einsum("sp,sp->s", target, spread)
    misfit = ((means - np.einsum("slp,sp->sl", design, fitted)) ** 2 * counts).sum(-1)
    return values, leverage, misfit


def _intervals(
    values: _Floats, leverage: _Floats, squares: float, df: int, spent: float, extra: Sequence[float]
) -> list[float]:
    """Union over shapes of the t intervals, low and high for each variance of what is to come (in units of a run's)."""
    reach = float(special.stdtrit(df, 1 - (ALPHA - spent) / 2)) * math.sqrt(squares / df)
    ends: list[float] = []
    for variance in extra:
        half = reach * np.sqrt(leverage + variance)
        ends += [float((values - half).min()), float((values + half).max())]
    return ends
