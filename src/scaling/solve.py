"""Solve an arm to a realised budget.

A network's cost is a step function of depth, width and resolution, so two rules asked for the same cost factor realise
different ones (24 % apart in the paper's own comparison). Here the target is fixed first and each rule is then
realised on the integer lattice as the point within the tolerance of the target that keeps closest to what the rule
asked for. An axis whose exponent is zero is never touched.

The common target does not depend on which arms are in a sweep: it is the multiple nearest to the asked budget at which
the three pure axes, which have the coarsest lattices, all can be met. So an arm that is added later, or run alone,
meets the others.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from src.networks.build import network_cost
from src.networks.cost import Cost
from src.networks.table import Network, check_final_map
from src.scaling.currency import MACS, Currency, Measured
from src.scaling.lattice import (
    Base,
    Floats,
    Lattice,
    Mask,
    neighbourhood,
    nominal_factors,
    shapley_shares,
    shares_of,
    unevenness,
    waste,
)
from src.scaling.rounding import scale_as_released, scaled_resolution
from src.scaling.rules import AXES, PURE, Factors, Rule

TOLERANCE = 0.00497  # price of an arm against the common target; two arms are then within 1 % of each other
MEASURED_TOLERANCE = 0.024  # the same for a currency read off a clock: two arms within 5 %
SNAP_WINDOW = 0.10  # how far the common target may lie from the asked multiple
LARGEST_BUDGET = 1000.0  # B7 is 98 times B0; beyond this a budget is a slip, and its lattice too large to search
APART = 0.10  # a realised share this far from the requested one is flagged
_SHARE_WEIGHT = 2.0  # of distance in shares, against uneven stages, padding and distance from the target
_TARGETS = 801  # multiples tried within the snapping window
_STEP, _FURTHEST = 1.01, 4.0  # of the search for the nearest budget that works: each a factor
_TRIALS = 12  # networks measured at most to meet a measured budget


@dataclass(frozen=True)
class ScaledNetwork:
    """One arm, solved: what was asked, what it became, and what it costs.

    budget: asked cost as a multiple of the base's; of coefficients and the base, what they cost. snapped_budget: the
        common multiple that all arms of that budget are solved to.
    asked, realised: factors before and after rounding (depth in blocks, width in summed stage channels, resolution in
        pixels). Asked is the rule's formula at that multiple of MACs; in another exact currency, where it would meet
        the budget if nothing were rounded.
    shares: part of the growth of log-MACs due to each axis (Shapley values); sums to 1, or 0 for the base.
    price, base_price: cost in the budget's currency, of this network and of the base.
    """

    arm: str
    rule: Rule
    base: Base
    network: Network
    resolution: int
    currency: str
    budget: float
    snapped_budget: float
    asked: Factors
    realised: Factors
    shares: Factors
    cost: Cost
    price: float
    base_price: float

    @property
    def multiple(self) -> float:
        """Realised cost in the budget's currency, as a multiple of the base's."""
        return self.price / self.base_price

    @property
    def pushed_apart(self) -> bool:
        """Whether the lattice gave an axis a share that is more than `APART` from the one the rule asks for."""
        asked = self.rule.shares
        if asked is None or not self.rule.solved:
            return False
        return max(abs(got - want) for got, want in zip(self.shares.axes, asked.axes, strict=True)) > APART


def solve(base: Base, rule: Rule, budget: float, currency: Currency | Measured = MACS) -> ScaledNetwork:
    """Realise `rule` at `budget` times the base's cost in `currency`. Coefficients and the base spend no budget.

    Raises:
        ValueError: the budget is not a positive multiple, no common target lies near it, or this rule cannot meet it;
            the nearest budget that works is named. Also when the rule is a published table of another network, or the
            final map would have fewer than 4x4 cells.
    """
    check_final_map(base.network, base.resolution)
    if rule.network is not None and rule.network != base.network.name:
        raise ValueError(
            f"scaling={rule.name} is a published table of {rule.network}, not of {base.network.name}; use"
            f" network={rule.network}, or give any network such factors with scaling=coefficients"
        )
    if not rule.solved:
        return _as_given(base, rule, currency)
    _check_budget(base, rule, budget)
    if isinstance(currency, Measured):
        return _solve_measured(base, rule, budget, currency)
    snapped = snap_budget(base, budget, currency)
    found = None if snapped is None else _realise(base, rule, budget, snapped, currency)
    if snapped is None or found is None:
        raise ValueError(_cannot_meet(base, rule, budget, currency))
    return _solution(base, rule, *found, currency, budget, snapped)


def _check_budget(base: Base, rule: Rule, budget: float) -> None:
    if not (math.isfinite(budget) and budget > 0.0):
        raise ValueError(f"budget={budget:g} must be a positive multiple of the base network's cost, such as budget=2")
    if budget > LARGEST_BUDGET:
        raise ValueError(f"budget={budget:g} is more than {LARGEST_BUDGET:g} times the base network; use one such as 2")
    if budget == 1.0:
        raise ValueError(f"budget=1 leaves nothing for scaling={rule.name} to scale; use scaling=base, or budget=2")
    if rule.largest_budget is not None and budget >= rule.largest_budget:
        raise ValueError(
            f"budget={budget:g} is not below {rule.largest_budget:g}, and scaling={rule.name} is for shrinking; use one"
            f" such as budget={rule.largest_budget / 2:g}"
        )


def _as_given(base: Base, rule: Rule, currency: Currency | Measured) -> ScaledNetwork:
    """The base, or coefficients with their released rounding: no budget is solved for."""
    if not rule.scales:
        return _solution(base, rule, base.network, base.resolution, currency, 1.0, 1.0)
    network, resolution = scale_as_released(base.network, rule), scaled_resolution(base.network, rule)
    check_final_map(network, resolution)
    multiple = _price(base, network, resolution, currency) / _price_of_base(base, currency)
    return _solution(base, rule, network, resolution, currency, float(f"{multiple:.4g}"), multiple)


def _solution(
    base: Base,
    rule: Rule,
    network: Network,
    resolution: int,
    currency: Currency | Measured,
    budget: float,
    snapped: float,
) -> ScaledNetwork:
    asked = Factors(rule.depth, rule.width, (rule.pixels or base.resolution * rule.resolution) / base.resolution)
    if rule.solved and isinstance(currency, Currency) and currency != MACS:
        asked = nominal_factors(base, rule, budget * _price_of_base(base, currency), currency)
    elif rule.exponents:
        asked = rule.factors(budget)
    return ScaledNetwork(
        rule.name,
        rule,
        base,
        network,
        resolution,
        currency.name,
        budget,
        snapped,
        asked,
        Factors(
            network.blocks / base.network.blocks,
            network.stage_channels / base.network.stage_channels,
            resolution / base.resolution,
        ),
        shares_of(base, network, resolution),
        network_cost(network, resolution, base.classes),
        _price(base, network, resolution, currency),
        _price_of_base(base, currency),
    )


def _price(base: Base, network: Network, resolution: int, currency: Currency | Measured) -> float:
    if isinstance(currency, Measured):
        return currency.measure(network, resolution)
    return float(currency.price(network_cost(network, resolution, base.classes)))


def _price_of_base(base: Base, currency: Currency | Measured) -> float:
    return _price(base, base.network, base.resolution, currency)


def _near(base: Base, rule: Rule, target: float, currency: Currency) -> tuple[Lattice, Floats]:
    """The lattice of `rule` around `target`, and the price of each of its points as a multiple of the target."""
    lattice = neighbourhood(base, rule, nominal_factors(base, rule, target, currency))
    return lattice, lattice.price(base, currency) / target


def _pure_lattice(base: Base, rule: Rule, budget: float, window: float, currency: Currency) -> Lattice:
    """All points of a pure rule whose price may lie within `window` of `budget`. Snapping and solving share it, so that
    a common target that an axis has a say in is also met by it."""
    nominal = nominal_factors(base, rule, budget * _price_of_base(base, currency), currency)
    return neighbourhood(base, rule, nominal, 0.25 + 2 * math.log1p(window))


def _realise(base: Base, rule: Rule, budget: float, snapped: float, currency: Currency) -> tuple[Network, int] | None:
    """The best lattice point of `rule` whose price is within `TOLERANCE` of `snapped` times the base's, the common
    target of `budget`; None if there is none."""
    target = snapped * _price_of_base(base, currency)
    if rule.pure:
        lattice = _pure_lattice(base, rule, budget, SNAP_WINDOW, currency)
        multiples = lattice.price(base, currency) / target
    else:
        lattice, multiples = _near(base, rule, target, currency)
    inside = np.abs(multiples - 1.0) <= TOLERANCE
    return _best(base, rule, lattice, multiples, inside) if inside.any() else None


def _best(base: Base, rule: Rule, lattice: Lattice, multiples: Floats, allowed: Mask) -> tuple[Network, int]:
    """Of the allowed points, the one with the least sum of distance in shares, uneven stages, padding and distance from
    the target; of equal ones the sharpest, since its pixels cost nothing."""
    n, m, k = np.nonzero(allowed)
    rows, columns, blocks = np.unique(n), np.unique(m), np.unique(k)
    part = Lattice(lattice.channels[rows], lattice.sides[columns], lattice.repeats[blocks])
    where = np.searchsorted(rows, n), np.searchsorted(columns, m), np.searchsorted(blocks, k)
    shares = shapley_shares(part.with_base(base).log_macs(base), where)
    distance = sum(np.abs(share - asked) for share, asked in zip(np.nan_to_num(shares), rule.exponents, strict=True))
    stock = np.array(base.network.channels[1 : 1 + len(base.network.stages)])
    stages = part.channels[:, 1 : 1 + len(stock)]
    badness = (
        _SHARE_WEIGHT * distance
        + unevenness(stages / stock)[where[0]]
        + waste(base, part.sides)[where[1]]
        + unevenness(part.repeats / np.array(base.network.repeats))[where[2]]
        + np.abs(multiples[n, m, k] - 1.0)
    )
    best = np.lexsort((-part.sides[where[1]], np.round(badness, 9)))[0]
    channels, repeats = lattice.channels[n[best]].tolist(), lattice.repeats[k[best]].tolist()
    return base.network.with_shape(tuple(repeats), tuple(channels)), int(lattice.sides[m[best]])


@functools.lru_cache(maxsize=1024)
def snap_budget(base: Base, budget: float, currency: Currency = MACS) -> float | None:
    """The multiple of the base's cost that all arms asked for `budget` are solved to; None if the pure axes share
    none near it."""
    targets = common_targets(base, budget, currency, SNAP_WINDOW)
    return targets[0] if targets else None


def common_targets(base: Base, budget: float, currency: Currency, window: float) -> list[float]:
    """Multiples within `window` of `budget` that the pure axes all meet, best first.

    Best is near the asked multiple, with a resolution axis that pays for no padding and with arms close together. All
    lie on the budget's side of 1. An axis that cannot change the cost in this currency, or not as far as a multiple (a
    stage keeps one block, a final map 4x4 cells), has no say about it; one axis must.
    """
    targets = np.unique(np.append(np.geomspace(budget / (1 + window), budget * (1 + window), _TARGETS), budget))
    targets = targets[targets > 1 + 2 * TOLERANCE if budget > 1 else targets < 1 - 2 * TOLERANCE]
    badness = np.abs(np.log(targets / budget))
    heard = np.zeros(len(targets), dtype=np.int64)
    base_price = _price_of_base(base, currency)
    for rule in PURE:
        lattice = _pure_lattice(base, rule, budget, window, currency)
        multiples = (lattice.price(base, currency) / base_price).ravel()
        padded = np.broadcast_to(waste(base, lattice.sides)[None, :, None], lattice.shape).ravel()
        has_a_say = (targets >= multiples.min() * (1 - TOLERANCE)) & (targets <= multiples.max() * (1 + TOLERANCE))
        error = np.abs(multiples / targets[:, None] - 1.0)
        cost = np.where(error <= TOLERANCE, error + padded, np.inf).min(axis=1)
        badness += np.where(has_a_say, cost, 0.0)
        heard += has_a_say
    badness[heard == 0] = np.inf
    order = np.lexsort((badness, -heard))  # a target that one axis more can meet comes first, however near another is
    return [float(targets[i]) for i in order if math.isfinite(badness[i])]


def _solve_measured(base: Base, rule: Rule, budget: float, currency: Measured) -> ScaledNetwork:
    """Networks of the rule at growing and shrinking MACs are measured until one is well within `MEASURED_TOLERANCE`.

    The next guess assumes that seconds grow with MACs; where that leaves the bracket, or leads to a network that was
    measured before, the bracket is halved. Nothing is snapped: a clock has no lattice.
    """
    target = budget * _price_of_base(base, currency)
    low, high = (1.0, LARGEST_BUDGET) if budget > 1 else (1e-3, 1.0)
    guess, measured = budget, dict[tuple[Network, int], float]()
    while len(measured) < _TRIALS and high / low > 1 + TOLERANCE:
        lattice, multiples = _near(base, rule, guess * base.cost.macs, MACS)
        apart = np.abs(multiples - 1.0)
        network, side = _best(base, rule, lattice, multiples, apart <= max(TOLERANCE, float(apart.min())))
        known = (network, side) in measured
        seconds = measured.setdefault((network, side), currency.measure(network, side))
        if abs(seconds / target - 1.0) <= MEASURED_TOLERANCE / 2:
            break
        low, high = (guess, high) if seconds < target else (low, guess)
        step = guess * target / seconds
        guess = step if low < step < high and not known else math.sqrt(low * high)
    (network, side), seconds = min(measured.items(), key=lambda entry: abs(entry[1] / target - 1.0))
    if abs(seconds / target - 1.0) > MEASURED_TOLERANCE:
        raise ValueError(
            f"budget={budget:g} in {currency.name} cannot be met by scaling={rule.name} on {base.network.name} at"
            f" {base.resolution} px within {MEASURED_TOLERANCE:.1%}; of {len(measured)} networks measured the nearest"
            f" is budget={seconds / target * budget:.4g}"
        )
    return _solution(base, rule, network, side, currency, budget, budget)


def _cannot_meet(base: Base, rule: Rule, budget: float, currency: Currency) -> str:
    """One sentence: what cannot be met, and the nearest budget at which this rule and the pure axes agree."""
    unit = "" if currency.name == "macs" else f" in {currency.name}"
    head = (
        f"budget={budget:g}{unit} cannot be met by scaling={rule.name} on {base.network.name} at {base.resolution} px"
        f" within {TOLERANCE:.1%}"
    )
    if not _moves(base, rule, currency):
        axes = " and ".join(axis for axis, e in zip(AXES, rule.exponents, strict=True) if e)
        return f"{head}: {currency.name} does not depend on {axes}; leave that arm out, or use budget.currency=macs"
    together = [pure for pure in PURE if _moves(base, pure, currency)]
    for others, who in ((together, "it and the pure arms"), ([], "it")):
        for named in _nearest_first(budget):
            snapped = snap_budget(base, named, currency)
            if snapped is not None and all(_realise(base, r, named, snapped, currency) for r in (rule, *others)):
                return f"{head}; the nearest budget that {who} can meet is budget={named:g}"
    return (
        f"{head}, and no budget near it can be met; use a network with more blocks, a smaller channel_divisor or a"
        " larger network.resolution"
    )


def _nearest_first(budget: float) -> list[float]:
    """Budgets on the same side of 1, ever further from `budget`."""
    steps = range(1, math.ceil(math.log(_FURTHEST) / math.log(_STEP)))
    tried = [float(f"{factor * budget:.4g}") for step in steps for factor in (_STEP**step, _STEP**-step)]
    return [named for named in tried if (named - 1.0) * (budget - 1.0) > 0.0 and named <= LARGEST_BUDGET]


def _moves(base: Base, rule: Rule, currency: Currency) -> bool:
    """Whether the rule can change the price at all: parameters do not depend on resolution."""
    factors = rule.factors(4.0)
    grown = Rule("", (), factors.depth, factors.width, factors.resolution)
    network, side = scale_as_released(base.network, grown), scaled_resolution(base.network, grown)
    return _price(base, network, side, currency) != _price_of_base(base, currency)


def spread(arms: Iterable[ScaledNetwork]) -> float:
    """Largest over smallest realised price, minus one."""
    prices = [arm.price for arm in arms]
    return max(prices) / min(prices) - 1.0
