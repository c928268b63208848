"""A quadratic surface over the simplex of scaling shares, and the confidence region of its maximum.

Validation accuracy, in percent, is fitted by Scheffe's quadratic mixture model (1958, J. R. Stat. Soc. B 20), whose
maximum is sought only inside the convex hull of the points that were run.

The confidence region of the maximum inverts a test: a place stays in it unless some other place is significantly
better. The critical value is the 95 % quantile of the largest of all those t statistics when no place is better, which
is the least favourable case, found by drawing from the multivariate t distribution of the fit. The idea is Hsu's
(1984, Ann. Stat. 12) of multiple comparisons with the best, over a continuum of places; coverage is at least 95 % for
every surface of the model under normal noise, also where the maximum lies on a border, where bootstraps of it fail.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import stats
from scipy.spatial import ConvexHull, QhullError

from src.verdict.statistics import ALPHA

TERMS = 6
REGION_STEPS, ZOOM_STEPS = 30, 24  # grids of the region, per side of the box around the points, then around itself
RIVAL_STEPS = 14  # grid of the places that each of them is tested against
DRAWS = 4000  # of the multivariate t distribution: 0.4 points of coverage, one standard error
_TOLERANCE = 1e-9
_STEP = 1e-3  # to a neighbour: small against any curvature, large against rounding errors
_ANGLES = np.arange(24) * (2 * math.pi / 24)
_NEIGHBOURS = _STEP * (  # (24, 3) steps along the plane of the simplex
    np.outer(np.cos(_ANGLES), [1, -1, 0]) / math.sqrt(2) + np.outer(np.sin(_ANGLES), [1, 1, -2]) / math.sqrt(6)
)

Shares = tuple[float, float, float]


def shares_of(alpha: float, beta: float, gamma: float) -> Shares:
    """Shares of the growth of log-MACs of the paper's coefficients: MACs grow by alpha beta^2 gamma^2."""
    logs = (math.log(alpha), 2 * math.log(beta), 2 * math.log(gamma))
    return (logs[0] / sum(logs), logs[1] / sum(logs), logs[2] / sum(logs))


# compound: arXiv 1905.11946v5, section 3.3; uniform: "dwr" of Dollar et al., arXiv 2103.06877
REFERENCES: dict[str, Shares] = {"compound": shares_of(1.2, 1.1, 1.15), "uniform": (1 / 3, 1 / 3, 1 / 3)}


@dataclass(frozen=True)
class Coefficients:
    """The paper's alpha, beta, gamma at a budget: multipliers of depth, width, resolution; alpha beta^2 gamma^2 = s."""

    alpha: float
    beta: float
    gamma: float

    @classmethod
    def at(cls, shares: Sequence[float], cost_factor: float) -> Coefficients:
        """Coefficients that divide a growth of MACs by `cost_factor` as `shares` say."""
        depth, width, resolution = shares
        return cls(cost_factor**depth, cost_factor ** (width / 2), cost_factor ** (resolution / 2))


@dataclass(frozen=True)
class Point:
    """One network and the runs of it; arms that realise the same network are one point."""

    name: str
    asked: Shares | None  # of the first arm; None where the rule asks for none (published coefficients)
    shares: Shares  # realised
    seeds: tuple[int, ...]
    accuracies: tuple[float, ...]  # validation, in percent, by seed
    test_accuracies: tuple[float, ...]  # for information only

    @property
    def mean(self) -> float:
        """Mean validation accuracy, in percent."""
        return math.fsum(self.accuracies) / len(self.accuracies)

    @property
    def sd(self) -> float | None:
        """Standard deviation over seeds, in pp; None with one seed."""
        return float(np.std(self.accuracies, ddof=1)) if len(self.accuracies) > 1 else None


def terms(shares: np.ndarray) -> np.ndarray:
    """Scheffe's quadratic: (..., 3) shares to (..., 6) terms d, w, r, dw, dr, wr."""
    d, w, r = np.moveaxis(np.asarray(shares, dtype=float), -1, 0)
    return np.stack([d, w, r, d * w, d * r, w * r], axis=-1)


@dataclass(frozen=True, eq=False)
class Design:
    """Which networks were run and how often: all that the precision of a fit depends on beside the noise.

    Raises:
        ValueError: the points span no area, or do not determine the six coefficients.
    """

    shares: np.ndarray  # (points, 3)
    runs: np.ndarray  # (points,)

    def __post_init__(self) -> None:
        if np.linalg.matrix_rank(terms(self.shares), tol=1e-3) < TERMS:
            raise ValueError("they lie on one line or curve of the simplex, which leaves the surface beside it open")
        try:
            _ = self.hull
        except QhullError as error:
            raise ValueError("they lie on one line of the simplex, which leaves the surface beside it open") from error

    @cached_property
    def hull(self) -> np.ndarray:
        """(corners, 2) shares of width and resolution, counter-clockwise: nothing is said outside of it."""
        flat = self.shares[:, 1:]
        return flat[ConvexHull(flat).vertices]

    @cached_property
    def unscaled_covariance(self) -> np.ndarray:
        """(6, 6) covariance of the coefficients for noise of variance 1."""
        rows = terms(self.shares)
        return np.linalg.inv(rows.T @ (self.runs[:, None] * rows))

    def contains(self, shares: np.ndarray) -> np.ndarray:
        """(..., 3) shares to (...,) whether each lies inside the hull or on its border."""
        flat = np.asarray(shares)[..., None, 1:]
        start, side = self.hull, np.roll(self.hull, -1, axis=0) - self.hull
        away = flat - start
        return np.all(side[:, 0] * away[..., 1] - side[:, 1] * away[..., 0] >= -_TOLERANCE, axis=-1)

    def grid(self, steps: int, box: np.ndarray | None = None) -> tuple[np.ndarray, int]:
        """(places, 3) shares all over the hull, and how many of them are evenly spread; its border follows these.

        Args:
            steps: along each side.
            box: (2, 2) lowest and highest shares of width and resolution to keep to; None: the whole hull.
        """
        low, high = (self.hull.min(axis=0), self.hull.max(axis=0)) if box is None else box
        even = np.stack(np.meshgrid(*np.linspace(low, high, steps + 1).T, indexing="ij"), axis=-1).reshape(-1, 2)
        even = even[self.contains(_with_depth(even))]
        along = np.arange(steps)[:, None, None] / steps
        border = (self.hull + along * (np.roll(self.hull, -1, axis=0) - self.hull)).reshape(-1, 2)
        border = border[np.all((border >= low - _TOLERANCE) & (border <= high + _TOLERANCE), axis=-1)]
        return _with_depth(np.concatenate([even, border])), len(even)

    @cached_property
    def rivals(self) -> np.ndarray:
        """(places, 3) shares that every place is tested against."""
        return self.grid(RIVAL_STEPS)[0]

    def contrasts(self, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Differences of `terms` from one place to its rivals (rivals, 6), and their unscaled standard errors."""
        # Neighbours stand for the slope at the place itself, which decides between places that are close together.
        neighbours = np.asarray(at) + _NEIGHBOURS
        rivals = np.concatenate([self.rivals, neighbours[self.contains(neighbours)]])
        difference = terms(rivals) - terms(at)
        variance = np.einsum("ij,jk,ik->i", difference, self.unscaled_covariance, difference)
        apart = np.linalg.norm(rivals - at, axis=1) > _STEP / 2
        return difference[apart], np.sqrt(variance[apart])

    def draws(self, error_df: int) -> np.ndarray:
        """(DRAWS, 6) multivariate t errors of the coefficients, in units of the estimated noise; always the same."""
        random = np.random.default_rng(0)
        normal = random.standard_normal((DRAWS, TERMS)) @ np.linalg.cholesky(self.unscaled_covariance).T
        return normal / np.sqrt(random.chisquare(error_df, DRAWS) / error_df)[:, None]

    def critical(self, at: np.ndarray, draws: np.ndarray, two_sided: bool = False) -> float:
        """The value that the largest t statistic of any rival against one place exceeds with chance ALPHA, if all of
        them are equally good; two-sided: the largest absolute value."""
        difference, errors = self.contrasts(at)
        statistics = draws @ (difference / errors[:, None]).T
        largest = np.abs(statistics).max(axis=1) if two_sided else statistics.max(axis=1)
        return float(np.quantile(largest, 1 - ALPHA))


@dataclass(frozen=True)
class Distance:
    """How far a place is predicted to stay below the best one, in pp of validation accuracy."""

    value: float
    low: float  # 0: not distinguishable from the best
    high: float


@dataclass(frozen=True)
class Region:
    """95 % confidence region of the best place."""

    places: np.ndarray  # (n, 3) shares of the finer grid, which holds the whole region
    inside: np.ndarray  # (n,) whether the data leave it possible that this is the best place
    margin: np.ndarray  # (n,) largest t statistic against it minus its critical value; negative inside
    covered: float  # fraction of the hull
    low: Shares  # joint interval of each share, rounded outwards to the grid
    high: Shares


@dataclass(frozen=True, eq=False)
class Surface:
    """Least-squares fit of the quadratic, with what its residuals say."""

    design: Design
    coefficients: np.ndarray  # (6,) in percent: d, w, r, dw, dr, wr
    sd: float  # pp; of one run: between seeds, or, if that is larger, of networks around the surface
    error_df: int
    seed_sd: float  # pp, pooled over points
    p_lack_of_fit: float  # F test of what the quadratic leaves over, against the noise between seeds
    p_flat: float  # F test of the quadratic against one constant
    r_squared: float
    adjusted_r_squared: float

    def predict(self, shares: Sequence[float] | np.ndarray) -> np.ndarray:
        """(..., 3) shares to predicted validation accuracy, in percent."""
        return terms(np.asarray(shares)) @ self.coefficients

    @cached_property
    def best(self) -> tuple[Shares, str]:
        """The maximum over the hull, exactly, and where it lies: `inside`, `edge` or `corner`."""
        d, w, r, dw, dr, wr = self.coefficients
        slope = np.array([w - d + dw, r - d + dr])
        curvature = np.array([[-2 * dw, wr - dw - dr], [wr - dw - dr, -2 * dr]])
        found: list[tuple[np.ndarray, str]] = [(corner, "corner") for corner in self.design.hull]
        for start, end in zip(self.design.hull, np.roll(self.design.hull, -1, axis=0), strict=True):
            side = end - start
            bend, rise = side @ curvature @ side, (slope + curvature @ start) @ side
            if bend < 0 < rise < -bend:
                found.append((start - rise / bend * side, "edge"))
        if np.all(np.linalg.eigvalsh(curvature) < -_TOLERANCE):
            top = np.linalg.solve(curvature, -slope)
            if self.design.contains(_with_depth(top)):
                found.append((top, "inside"))
        heights = self.predict(np.array([_with_depth(place) for place, _ in found]))
        place, where = found[int(np.argmax(heights))]
        depth, width, resolution = (float(share) for share in _with_depth(place))
        return (depth, width, resolution), where

    def statistic(self, at: np.ndarray) -> float:
        """Largest t statistic of any rival's lead over one place."""
        difference, errors = self.design.contrasts(at)
        return float(np.max(difference @ self.coefficients / errors)) / self.sd

    def may_be_best(self, at: np.ndarray, critical: float | None = None) -> bool:
        """Whether one place lies in the confidence region."""
        limit = self.design.critical(at, self.design.draws(self.error_df)) if critical is None else critical
        return self.statistic(at) <= limit

    def region(self) -> Region:
        """The whole region, on a grid that is laid over the hull and then once more over what may be the best of it."""
        hull = self.design.hull
        box = np.array([hull.min(axis=0), hull.max(axis=0)])
        for steps in (REGION_STEPS, ZOOM_STEPS):
            places, even = self.design.grid(steps, box)
            margin = self._margin(places)
            inside = margin <= 0
            possible = np.concatenate([places[inside], [self.best[0]]])
            step = (box[1] - box[0]) / steps
            cell = float(step.prod())
            low, high = possible.min(axis=0), possible.max(axis=0)
            box = np.array([np.maximum(low[1:] - step, box[0]), np.minimum(high[1:] + step, box[1])])
        extent = _with_depth(hull)
        low = np.maximum(low - step.max(), extent.min(axis=0)).clip(0, 1)
        high = np.minimum(high + step.max(), extent.max(axis=0)).clip(0, 1)
        covered = min(float(inside[:even].sum()) * cell / float(ConvexHull(hull).volume), 1.0)
        return Region(places, inside, margin, covered, as_shares(low), as_shares(high))

    def _margin(self, places: np.ndarray) -> np.ndarray:
        """(n, 3) shares to (n,) largest t statistics less their critical values."""
        draws = self.design.draws(self.error_df)
        statistics = np.array([self.statistic(place) for place in places])
        # Every critical value lies between that of a single contrast and Scheffe's for all contrasts, and only where
        # these two disagree must it be known; elsewhere the value at the best place serves the figure's contour.
        single = stats.t.ppf(1 - ALPHA, self.error_df)
        scheffe = math.sqrt((TERMS - 1) * stats.f.ppf(1 - ALPHA, TERMS - 1, self.error_df))
        limits = np.full(len(places), self.design.critical(np.array(self.best[0]), draws))
        for index in np.flatnonzero((statistics > single) & (statistics < scheffe)):
            limits[index] = self.design.critical(places[index], draws)
        return statistics - limits

    def distance(self, at: np.ndarray) -> Distance | None:
        """Simultaneous 95 % interval of how far one place stays below the best; None outside the hull.

        All rivals are compared with the place at once, so that choosing the best among them costs no coverage.
        """
        if not self.design.contains(at):
            return None
        difference, errors = self.design.contrasts(at)
        half = self.design.critical(at, self.design.draws(self.error_df), two_sided=True) * self.sd * errors
        lead = difference @ self.coefficients
        value = float(self.predict(np.array(self.best[0])) - self.predict(at))
        return Distance(max(value, 0.0), max(float(np.max(lead - half)), 0.0), float(np.max(lead + half)))


def fit(points: Sequence[Point]) -> Surface:
    """Fit the surface to every run.

    Raises:
        ValueError: the points do not determine it, or no seed differs from another; says why.
    """
    design = Design(np.array([p.shares for p in points]), np.array([len(p.accuracies) for p in points]))
    means = np.array([p.mean for p in points])
    values = np.array([value for p in points for value in p.accuracies])
    rows = terms(design.shares)
    coefficients = design.unscaled_covariance @ rows.T @ (design.runs * means)
    error_df = len(values) - len(points)
    pure = math.fsum((value - p.mean) ** 2 for p in points for value in p.accuracies)
    if pure < _TOLERANCE:
        raise ValueError("no point has two seeds that differ, so that there is no noise to compare against")
    left_over = float(design.runs @ (means - rows @ coefficients) ** 2)
    total = float(np.sum((values - values.mean()) ** 2))
    left_df, residual_df = len(points) - TERMS, len(values) - TERMS
    explained = total - pure - left_over
    between_seeds = pure / error_df
    between_networks = left_over / left_df if left_df else 0.0
    # Networks stray from the surface as well as seeds from their network; where they stray further, points are the
    # unit of the noise and there are only as many as the quadratic leaves over.
    variance, df = max((between_seeds, error_df), (between_networks, left_df))
    misfit = stats.f.sf(between_networks / between_seeds, left_df, error_df) if left_df else 1.0
    return Surface(
        design=design,
        coefficients=coefficients,
        sd=math.sqrt(variance),
        error_df=df,
        seed_sd=math.sqrt(between_seeds),
        p_lack_of_fit=float(misfit),
        p_flat=float(stats.f.sf(explained / (TERMS - 1) / variance, TERMS - 1, df)),
        r_squared=explained / total,
        adjusted_r_squared=1 - (pure + left_over) / residual_df / (total / (len(values) - 1)),
    )


def _with_depth(flat: np.ndarray) -> np.ndarray:
    """(..., 2) shares of width and resolution to (..., 3) shares."""
    return np.concatenate([1 - flat.sum(axis=-1, keepdims=True), flat], axis=-1)


def as_shares(values: np.ndarray) -> Shares:
    """(3,) as a tuple."""
    depth, width, resolution = (float(value) for value in values)
    return depth, width, resolution
