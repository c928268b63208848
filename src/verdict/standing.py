"""Numbers beside the sentences: how likely each arm is the best of its budget or on the frontier of cost and accuracy,
and how fast each grows with cost. They decide nothing; a winner is named by `src.verdict.judge` alone.

**Probabilities** are shares of draws from a posterior of the arms' true accuracies, given their seeds. Each arm has its
own unknown noise (prior 1 / sigma, so that its mean has a t distribution), and the true accuracies of one budget's arms
are a sample of a normal distribution of unknown mean (flat) and unknown spread (half-Cauchy, its median twice the noise
of a mean). That spread is what calibrates them: without it, the highest of several equal arms would be called best with
far more confidence than it deserves (0.77 said where 0.49 came true, at three seeds), as with resampled seeds. At 3 to
10 seeds they are mostly too cautious; too bold, by 10 to 15 points at 50 to 70 %, where arms differ by less than a
third of the noise of one seed and there are three seeds. docs/calibration.md has the numbers.

**Slopes** are least-squares lines of test accuracy on log2 of cost through all runs of an arm at two or more budgets,
in pp for each doubling; the base, which all arms share, is left out. One slope for all arms is tested by the F test of
the interaction (analysis of covariance).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from src.verdict.cells import Cell, by_budget
from src.verdict.guards import LEAST_SEEDS, SPREAD_BLOCKS, check
from src.verdict.looks import Progress
from src.verdict.statistics import ALPHA

DRAWS = 4000  # an error of 0.8 points at most
_SPREADS = 32  # quantiles of the prior of the spread between arms


@dataclass(frozen=True)
class Standing:
    """One row of the comparison; probabilities in [0, 1].

    best: of having the highest true accuracy of its budget; None: there is no other arm, or a guard stands in the way.
    frontier: of no network that costs as much or less being better; None: a guard stands in the way.
    """

    arm: str
    budget: float
    best: float | None
    frontier: float | None


@dataclass(frozen=True)
class Slope:
    """Growth of one arm's test accuracy, pp for each doubling of its cost, with its 95 % t interval."""

    arm: str
    value: float
    low: float
    high: float
    budgets: tuple[float, ...]


@dataclass(frozen=True)
class Standings:
    """Of one network on one data set, `setting`. rows: in the order of the comparison's.

    p_common: of the F test that all slopes are one; None with fewer than two slopes.
    """

    setting: str
    rows: tuple[Standing, ...]
    slopes: tuple[Slope, ...]
    p_common: float | None


def standings(cells: Sequence[Cell], progress: Progress = Progress()) -> tuple[Standings, ...]:  # noqa: B008 (frozen)
    """Standings of every network on every data set of a study."""
    settings = sorted({(cell.first.network, cell.first.data) for cell in cells})
    return tuple(
        _standings(
            f"{network} on {data}", [c for c in cells if (c.first.network, c.first.data) == (network, data)], progress
        )
        for network, data in settings
    )


def _standings(setting: str, cells: Sequence[Cell], progress: Progress) -> Standings:
    assessable = _assessable(cells, progress)
    random = np.random.default_rng(0)  # the same records give the same probabilities
    drawn: dict[str, NDArray[np.float64]] = {}
    best: dict[str, float] = {}
    groups = [[cell for cell in cells if cell.is_base], *by_budget(cells).values()]
    for group in ([cell for cell in cells if cell in assessable] for cells in groups):
        if not group:
            continue
        posterior = true_accuracies([cell.shown("test_accuracy") for cell in group], random)
        drawn |= {_key(cell): column for cell, column in zip(group, posterior.T, strict=True)}
        if len(group) > 1:
            wins = np.bincount(posterior.argmax(axis=1), minlength=len(group)) / len(posterior)
            best |= {_key(cell): float(share) for cell, share in zip(group, wins, strict=True)}
    rows = []
    for cell in cells:
        frontier = None
        if cell in assessable:
            # Arms of one budget cost the same but for the lattice, and a hair's breadth of cost is no advantage.
            rivals = [
                drawn[_key(other)]
                for other in assessable
                if other != cell and other.first.price <= cell.first.price * (1 + SPREAD_BLOCKS)
            ]
            frontier = float(np.mean(drawn[_key(cell)] > np.max(rivals, axis=0))) if rivals else 1.0
        rows.append(Standing(cell.name, cell.budget, best.get(_key(cell)), frontier))
    slopes, p_common = _slopes([cell for cell in assessable if not cell.is_base])
    return Standings(setting, tuple(rows), slopes, p_common)


def true_accuracies(seeds: Sequence[Sequence[float]], random: np.random.Generator) -> NDArray[np.float64]:
    """(DRAWS, arms) draws from the posterior of the arms' true means, given the values of each arm's seeds; see above.

    Args:
        seeds: two or more values of each arm, with some spread in one of them.
    """
    counts = np.array([len(values) for values in seeds])
    means = np.array([np.mean(values) for values in seeds])
    variances = np.array([np.var(values, ddof=1) for values in seeds]) / counts
    assert variances.max() > 0
    noise = variances * (counts - 1) / random.chisquare(counts - 1, (DRAWS, len(seeds)))  # of the means, (D, A)
    if len(seeds) == 1:
        return means + np.sqrt(noise) * random.standard_normal(noise.shape)
    quantiles = (np.arange(_SPREADS) + 0.5) / _SPREADS
    spread = 4 * np.mean(variances) * np.tan(np.pi / 2 * quantiles) ** 2  # variance between arms, (T,)
    precision = 1 / (noise[:, None] + spread[:, None])  # of each mean around the arms' centre, (D, T, A)
    total = precision.sum(-1)
    centre = (precision * means).sum(-1) / total
    misfit = (precision * (means - centre[..., None]) ** 2).sum(-1)
    log_weight = (np.log(precision).sum(-1) - np.log(total) - misfit) / 2
    weight = np.exp(log_weight - log_weight.max()).ravel()
    chosen = random.choice(weight.size, DRAWS, p=weight / weight.sum())
    row, column = np.divmod(chosen, _SPREADS)
    middle = centre[row, column] + random.standard_normal(DRAWS) / np.sqrt(total[row, column])
    kept = spread[column, None] / (spread[column, None] + noise[row])  # how far a mean is believed, (D, A)
    error = np.sqrt(kept * noise[row]) * random.standard_normal(kept.shape)
    return kept * means + (1 - kept) * middle[:, None] + error


def _assessable(cells: Sequence[Cell], progress: Progress) -> list[Cell]:
    """Cells that no guard blocks, with enough seeds, some spread, and nothing of their budget still to come."""
    blocking = [finding for finding in check(cells) if finding.blocking]
    running = {run.budget for run in progress.pending}
    return [
        cell
        for cell in cells
        if len(cell.seeds) >= LEAST_SEEDS
        and len(set(cell.shown("test_accuracy"))) > 1
        and cell.budget not in running
        and not any(finding.touches(cell.budget, {cell.name}) for finding in blocking)
    ]


def _slopes(cells: Sequence[Cell]) -> tuple[tuple[Slope, ...], float | None]:
    points: dict[str, list[tuple[float, float]]] = {}
    budgets: dict[str, list[float]] = {}
    for cell in cells:
        budgets.setdefault(cell.name, []).append(cell.budget)
        points.setdefault(cell.name, []).extend(
            (math.log2(record.price), value)
            for record, value in zip(cell.records, cell.shown("test_accuracy"), strict=True)
        )
    slopes: list[Slope] = []
    centred: list[NDArray[np.float64]] = []
    for arm, own in sorted(points.items()):
        if len(budgets[arm]) < 2:
            continue
        x, y = np.array(own).T
        fit = stats.linregress(x, y)
        half = float(special.stdtrit(len(own) - 2, 1 - ALPHA / 2) * fit.stderr)
        slope = float(fit.slope)
        slopes.append(Slope(arm, slope, slope - half, slope + half, tuple(sorted(budgets[arm]))))
        centred.append(np.stack([x - x.mean(), y - y.mean()]))
    if len(slopes) < 2:
        return tuple(slopes), None
    x, y = np.concatenate(centred, axis=1)
    common = float(np.sum((y - x * (x @ y) / (x @ x)) ** 2))
    apart = math.fsum(float(np.sum((v - u * slope.value) ** 2)) for (u, v), slope in zip(centred, slopes, strict=True))
    df = len(x) - 2 * len(slopes)
    ratio = (common - apart) / (len(slopes) - 1) / (apart / df)
    return tuple(slopes), float(stats.f.sf(ratio, len(slopes) - 1, df))


def _key(cell: Cell) -> str:
    return f"{cell.name} at {cell.budget:g}x{' (base)' if cell.is_base else ''}"
