"""Coefficient search: where on the simplex of scaling exponents the networks of one budget are most accurate.

Step 1 of arXiv 1905.11946v5, section 3.3, with an error bar. A point is a network; its place is its realised shares of
the growth of log-MACs (depth, width, resolution; they sum to 1). `surface.py` fits and tests; here records become
points, and a surface becomes one of five answers. The test split plays no part in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from src.record import METRICS, RunRecord
from src.scaling.rules import AXES
from src.verdict.cells import Cell, by_budget, group
from src.verdict.grammar import Finding, Place, Regime
from src.verdict.guards import LEAST_SEEDS, check, wanted_seeds
from src.verdict.judge import regime_of
from src.verdict.statistics import ALPHA, spread
from src.verdict.surface import (
    REFERENCES,
    TERMS,
    Coefficients,
    Distance,
    Point,
    Region,
    Shares,
    Surface,
    as_shares,
    fit,
)

LEAST_POINTS = TERMS + 1  # one more than the coefficients, or nothing is left to test the shape of the surface
LEAST_ERROR_DF = 10  # degrees of freedom of the noise between seeds, pooled over points
_NOTHING = 0.02  # a realised share below it is no growth: rounding leaves that much on axes that a rule does not touch


@dataclass(frozen=True)
class Basis:
    """What a sentence on a surface rests on."""

    points: int
    runs: int
    seed_sd: float  # pp
    p_flat: float
    p_lack_of_fit: float
    adjusted_r_squared: float
    distances: tuple[tuple[str, Distance | None], ...]

    def __str__(self) -> str:
        return (
            f"Fitted to the validation accuracy of {self.points} points, {self.runs} runs (flat: p={self.p_flat:.2g}; "
            f"lack of fit: p={self.p_lack_of_fit:.2g}; adjusted R2={self.adjusted_r_squared:.2f}; seeds differ by "
            f"{self.seed_sd:.2f} pp, one standard deviation); the test split played no part"
        )

    def below(self) -> str:
        """Where the reference points stand."""
        return "; ".join(f"{name} {_distance(distance)}" for name, distance in self.distances)


@dataclass(frozen=True)
class Optimum:
    """The surface has a maximum that the noise does not explain."""

    place: Place
    basis: Basis
    shares: Shares
    low: Shares
    high: Shares
    where: str  # inside, edge, corner
    on_simplex_border: bool
    covered: float  # fraction of the hull that the region covers
    cost_factor: float
    regime: Regime
    outcome = "optimum"

    @property
    def coefficients(self) -> Coefficients:
        """alpha, beta, gamma of the optimum at the realised budget."""
        return Coefficients.at(self.shares, self.cost_factor)

    @property
    def intervals(self) -> tuple[Coefficients, Coefficients]:
        """Joint interval of alpha, beta, gamma: both ends."""
        return Coefficients.at(self.low, self.cost_factor), Coefficients.at(self.high, self.cost_factor)

    def __str__(self) -> str:
        parts = ", ".join(
            f"{axis} {share:.3f} [{low:.2f}, {high:.2f}]"
            for axis, share, low, high in zip(AXES, self.shares, self.low, self.high, strict=True)
        )
        c = self.coefficients
        return (
            f"Optimum {self.place}: shares {parts} of the growth (joint 95 % intervals), so alpha={c.alpha:.3f}, "
            f"beta={c.beta:.3f}, gamma={c.gamma:.3f}. {self._border()} The 95 % region covers "
            f"{self.extent} of the area that was run. Below the optimum: {self.basis.below()}. "
            f"{self.basis}. Regime: {self.regime}."
        )

    @property
    def extent(self) -> str:
        """Area of the region relative to the hull's, as text."""
        return "under 1 %" if self.covered < 0.01 else f"{100 * self.covered:.0f} %"

    def _border(self) -> str:
        if self.where == "inside":
            return "It lies inside the points that were run."
        if self.on_simplex_border:
            none = [axis for axis, share in zip(AXES, self.shares, strict=True) if share < _NOTHING]
            return f"It lies on the border of the simplex: nothing goes into {' and '.join(none)}."
        return "It lies on the border of the points that were run; beyond it nothing is known, so add points there."


@dataclass(frozen=True)
class Flat:
    """Seeds alone explain all differences between points."""

    place: Place
    basis: Basis
    regime: Regime
    outcome = "flat"

    def __str__(self) -> str:
        return (
            f"Flat {self.place}: no optimum can be named, since seeds alone can explain all differences between the "
            f"points. Below the best place: {self.basis.below()}. {self.basis}. Regime: {self.regime}."
        )


@dataclass(frozen=True)
class LackOfFit:
    """The points differ in a way that no quadratic describes."""

    place: Place
    basis: Basis
    regime: Regime
    outcome = "lack of fit"

    def __str__(self) -> str:
        return (
            f"Lack of fit {self.place}: no optimum can be named, since the points differ from the fitted surface by "
            f"more than seeds can explain; compare the points themselves, or run points closer together. {self.basis}. "
            f"Regime: {self.regime}."
        )


@dataclass(frozen=True)
class TooFew:
    """The runs do not determine a surface and its noise."""

    place: Place
    reason: str
    remedy: str
    regime: Regime
    outcome = "too few points/seeds"

    def __str__(self) -> str:
        return (
            f"Too few points/seeds {self.place}: no optimum can be named, since {self.reason}; {self.remedy}. "
            f"Regime: {self.regime}."
        )


@dataclass(frozen=True)
class Blocked:
    """A guard stands in the way."""

    place: Place
    reasons: tuple[Finding, ...]
    regime: Regime
    outcome = "not assessable"

    def __str__(self) -> str:
        reasons = " ".join(str(reason) for reason in self.reasons)
        return f"Not assessable {self.place}: no optimum can be named. {reasons} Regime: {self.regime}."


Answer = Optimum | Flat | LackOfFit | TooFew | Blocked


@dataclass(frozen=True, eq=False)
class Search:
    """The search of one network on one data set at one budget."""

    points: tuple[Point, ...]
    cost_factor: float  # realised MACs over the base's, mean over points
    findings: tuple[Finding, ...]
    surface: Surface | None  # None where the runs do not determine one
    region: Region | None  # None where no optimum can be named
    answer: Answer


def search(records: Sequence[RunRecord]) -> tuple[Search, ...]:
    """One search for every network, data set and budget; bases are left out. The order of `records` does not matter.

    Raises:
        ValueError: no scaled arm, or a record whose shares do not sum to 1.
    """
    cells = [cell for cell in group(records) if not cell.is_base]
    if not cells:
        raise ValueError("a coefficient search needs scaled arms, and only the base has finished")
    settings = sorted({(cell.first.network, cell.first.data) for cell in cells})
    return tuple(
        _search(budget, present)
        for setting in settings
        for budget, present in by_budget([c for c in cells if (c.first.network, c.first.data) == setting]).items()
    )


def _search(budget: float, cells: Sequence[Cell]) -> Search:
    networks, remarks = _distinct(cells)
    points = tuple(_point(cell) for cell in networks)
    macs = [METRICS["macs"].show(cell.first) for cell in networks]
    prices = [cell.first.price for cell in networks]
    spent = math.fsum(cell.first.price / cell.first.base_price for cell in networks) / len(networks)
    place = Place(budget, math.fsum(macs) / len(macs), spread(prices), networks[0].first.currency, spent)
    cost_factor = math.fsum(cell.first.macs / cell.first.base_macs for cell in networks) / len(networks)
    regime = regime_of(networks)
    few = tuple(cell.name for cell in networks if len(cell.seeds) < LEAST_SEEDS)
    # The noise is pooled over points, so that one with few seeds is no reason to refuse; the count of runs is checked.
    found = (*(f for f in check(networks) if not (f.guard == "G10" and f.arms == few)), *remarks)
    blocking = tuple(f for f in found if f.blocking)

    def result(answer: Answer, surface: Surface | None = None, region: Region | None = None) -> Search:
        return Search(points, cost_factor, found, surface, region, answer)

    try:
        _check_numbers(points)
        surface = fit(points)
    except _TooFewError as lacking:
        return result(
            Blocked(place, blocking, regime) if blocking else TooFew(place, lacking.reason, lacking.remedy, regime)
        )
    except ValueError as error:
        remedy = "add points all over the simplex and seeds, such as those of +sweep=coefficient_search"
        return result(
            Blocked(place, blocking, regime) if blocking else TooFew(place, f"of the points, {error}", remedy, regime)
        )
    if blocking:
        return result(Blocked(place, blocking, regime), surface)
    distances = tuple((name, surface.distance(np.array(at))) for name, at in REFERENCES.items())
    basis = Basis(
        len(points),
        sum(len(p.accuracies) for p in points),
        surface.seed_sd,
        surface.p_flat,
        surface.p_lack_of_fit,
        surface.adjusted_r_squared,
        distances,
    )
    if surface.p_lack_of_fit < ALPHA:
        return result(LackOfFit(place, basis, regime), surface)
    if surface.p_flat >= ALPHA:
        return result(Flat(place, basis, regime), surface)
    region = surface.region()
    shares, where = surface.best
    answer = Optimum(
        place=place,
        basis=basis,
        shares=shares,
        low=region.low,
        high=region.high,
        where=where,
        on_simplex_border=where != "inside" and min(shares) < _NOTHING,
        covered=region.covered,
        cost_factor=cost_factor,
        regime=regime,
    )
    return result(answer, surface, region)


class _TooFewError(Exception):
    """Runs that do not suffice."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.reason, self.remedy = reason, remedy


def _check_numbers(points: Sequence[Point]) -> None:
    if len(points) < LEAST_POINTS:
        raise _TooFewError(
            f"{len(points)} different {'network has' if len(points) == 1 else 'networks have'} finished and the "
            f"surface needs {LEAST_POINTS}",
            "add points all over the simplex, such as those of +sweep=coefficient_search",
        )
    error_df = sum(len(p.accuracies) - 1 for p in points)
    if error_df < LEAST_ERROR_DF:
        raise _TooFewError(
            f"{sum(len(p.accuracies) for p in points)} runs of {len(points)} networks leave {error_df} degrees of "
            f"freedom for the noise between seeds and {LEAST_ERROR_DF} are needed",
            f"add `{wanted_seeds([seed for p in points for seed in p.seeds])}` to the command",
        )


def _distinct(cells: Sequence[Cell]) -> tuple[list[Cell], list[Finding]]:
    """Arms that realise one network become one point, in which a seed counts once."""
    twins: dict[tuple[object, ...], list[Cell]] = {}
    for cell in cells:
        r = cell.first
        key = (r.architecture_sha256, r.resolution, r.macs, r.recipe, r.epochs, r.data_fingerprint)
        twins.setdefault(key, []).append(cell)
    networks, remarks = [], []
    for first, *others in twins.values():
        records = list(first.records)
        for cell in others:
            known = {record.seed for record in records}
            records += [record for record in cell.records if record.seed not in known]
        names = [first.name, *(cell.name for cell in others)]
        networks.append(Cell(" = ".join(names), first.arm, first.budget, False, tuple(records)))
        if others:
            text = f"{' and '.join(names)} trained the same network, so they count as one point, each seed once"
            remarks.append(Finding("G1", False, text, "", first.budget, tuple(names)))
    return networks, remarks


def _point(cell: Cell) -> Point:
    r = cell.first
    realised = (r.share_depth, r.share_width, r.share_resolution)
    if not math.isclose(sum(realised), 1.0, abs_tol=0.01):
        raise ValueError(
            f"the record of {cell.name} with seed {r.seed} has realised shares that sum to {sum(realised):.3g}, not 1; "
            "run the arm again"
        )
    asked = (r.asked_share_depth, r.asked_share_width, r.asked_share_resolution)
    return Point(
        name=cell.name,
        asked=asked if sum(asked) > 0 else None,
        shares=as_shares(np.array(realised) / sum(realised)),
        seeds=cell.seeds,
        accuracies=tuple(cell.shown("val_accuracy")),
        test_accuracies=tuple(cell.shown("test_accuracy")),
    )


def _distance(distance: Distance | None) -> str:
    if distance is None:
        return "lies outside the points that were run"
    return f"by {distance.value:.2f} [{distance.low:.2f}, {distance.high:.2f}] pp"
