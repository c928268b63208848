"""Solve an arm to a realised budget.

A network's cost is a step function of depth, width and resolution, so two rules asked for the same cost factor realise
different ones (24 % apart in the paper's own comparison). Here the target is fixed first and each rule is then
realised on the integer lattice - blocks per stage, channels per stage, input pixels - as the point within `TOLERANCE`
of the target that keeps closest to what the rule asked for. An axis whose exponent is zero is never touched.

The common target does not depend on which arms are in a sweep: it is the multiple nearest to the asked budget at which
the three pure axes, which have the coarsest lattices, all can be met. So an arm that is added later, or run alone,
meets the others.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from src.networks.build import network_cost, stage_costs
from src.networks.cost import Cost
from src.networks.table import SMALLEST_FINAL_MAP, Network, check_final_map
from src.scaling.rounding import round_channels
from src.scaling.rules import DEPTH_ONLY, RESOLUTION_ONLY, WIDTH_ONLY, Factors, Rule

TOLERANCE = 0.00497  # realised MACs of an arm against the common target; two arms are then within 1 % of each other
SNAP_WINDOW = 0.05  # how far the common target may lie from the asked multiple
LARGEST_BUDGET = 1000.0  # B7 is 98 times B0; beyond this a budget is a slip, and its lattice too large to search
_SEARCH = 0.25  # half-width of the searched neighbourhood around the nominal factors, in log units
_SHORTLIST = 32  # candidates whose exact shares are computed

AXES = ("depth", "width", "resolution")


@dataclass(frozen=True)
class Base:
    """The network that is scaled, at the resolution and with the classes it is trained for."""

    network: Network
    classes: int

    @property
    def resolution(self) -> int:
        """Input side of the base, pixels."""
        return self.network.resolution

    @property
    def cost(self) -> Cost:
        """Cost of the unscaled network."""
        return network_cost(self.network, self.network.resolution, self.classes)


@dataclass(frozen=True)
class ScaledNetwork:
    """One arm, solved: what was asked, what it became, and what it costs.

    budget: asked MACs as a multiple of the base. snapped_budget: the common multiple all arms of that budget are
        solved to.
    asked, realised: factors before and after rounding (depth in blocks, width in summed stage channels, resolution in
        pixels).
    shares: part of the growth of log-MACs due to each axis (Shapley values); sums to 1, or
        0 for the base.
    """

    arm: str
    base: Base
    network: Network
    resolution: int
    budget: float
    snapped_budget: float
    asked: Factors
    realised: Factors
    shares: Factors
    cost: Cost


def realised_factors(base: Base, network: Network, resolution: int) -> Factors:
    """Blocks, summed stage channels and pixels as multiples of the base's."""
    return Factors(
        network.blocks / base.network.blocks,
        network.stage_channels / base.network.stage_channels,
        resolution / base.resolution,
    )


def shapley_shares(base: Base, network: Network, resolution: int) -> Factors:
    """How much of ln(MACs / base MACs) each axis is responsible for, averaged over the orders of switching them on.

    Returns zeros when the cost did not change. Shares of a pure arm are exactly 1 on its own axis.
    """

    def log_macs(axes: frozenset[str]) -> float:
        shape = base.network.with_shape(
            network.repeats if "depth" in axes else base.network.repeats,
            network.channels if "width" in axes else base.network.channels,
        )
        side = resolution if "resolution" in axes else base.resolution
        return math.log(network_cost(shape, side, base.classes).macs)

    value = {
        frozenset(axes): log_macs(frozenset(axes)) for size in range(4) for axes in itertools.combinations(AXES, size)
    }
    growth = value[frozenset(AXES)] - value[frozenset()]
    if growth == 0.0:
        return Factors(0.0, 0.0, 0.0)
    shares = dict.fromkeys(AXES, 0.0)
    for order in itertools.permutations(AXES):
        switched: frozenset[str] = frozenset()
        for axis in order:
            shares[axis] += (value[switched | {axis}] - value[switched]) / (6 * growth)
            switched |= {axis}
    return Factors(**shares)


@dataclass(frozen=True)
class _Candidate:
    repeats: tuple[int, ...]
    channels: tuple[int, ...]
    resolution: int
    macs: int
    distance: (
        float  # from the requested log factors, plus how unevenly stages were rounded; a cheap stand-in for shares
    )
    roughness: float  # how unevenly stages were rounded, root mean square in log units


def _lattice_steps(base: Base) -> Iterator[int]:
    """Pixel steps to try, coarsest first: multiples of the output stride waste no computation on padding."""
    step = base.network.output_stride
    while step >= 1:
        yield step
        step //= 2


def _resolutions(base: Base, rule: Rule, nominal: float) -> list[int]:
    """Input sides to consider for a nominal factor: the nearest points of each lattice that keep a 4x4 final map."""
    if rule.exponents.resolution == 0.0:
        return [base.resolution]
    exact = base.resolution * nominal
    sides: dict[int, None] = {}
    for step in _lattice_steps(base):
        below = int(exact // step) * step
        for side in (below, below + step):
            if base.network.final_side(side) >= SMALLEST_FINAL_MAP:
                sides[side] = None
    return list(sides)


def _uniform_channels(base: Base, rule: Rule, nominal: float) -> list[tuple[int, ...]]:
    """Channel tuples of one width for all stages, near a nominal width."""
    stock = base.network.channels
    if rule.exponents.width == 0.0:
        return [stock]
    widths = np.exp(np.linspace(-_SEARCH, _SEARCH, 201) / 2) * nominal
    return list(
        dict.fromkeys(tuple(round_channels(c, float(w), base.network.channel_divisor) for c in stock) for w in widths)
    )


def _varied_channels(base: Base, rule: Rule, nominal: float) -> list[tuple[int, ...]]:
    """The uniform tuples with one stage a divisor wider or narrower: the finer lattice, used when the coarse one
    misses."""
    divisor = base.network.channel_divisor
    shapes: dict[tuple[int, ...], None] = {}
    for shape in _uniform_channels(base, rule, nominal) if rule.exponents.width else []:
        for stage, change in itertools.product(range(1, len(shape) - 1), (-divisor, divisor)):
            varied = (*shape[:stage], shape[stage] + change, *shape[stage + 1 :])
            if varied[stage] >= divisor:
                shapes[varied] = None
    return list(shapes)


def _repeat_shapes(base: Base, rule: Rule, nominal: float) -> np.ndarray:
    """Block tuples near a nominal depth, (candidates, stages): each stage floors or ceils its own product."""
    stock = np.array(base.network.repeats)
    if rule.exponents.depth == 0.0:
        return stock[None]
    rows: dict[tuple[int, ...], None] = {}
    for depth in np.exp(np.linspace(-_SEARCH, _SEARCH, 11)) * nominal:
        choices = [sorted({max(1, math.floor(x)), max(1, math.ceil(x))}) for x in stock * depth]
        rows.update(dict.fromkeys(itertools.product(*choices)))
    return np.array(list(rows))


def _candidates(
    base: Base, rule: Rule, target: float, nominal: Factors, channel_shapes: list[tuple[int, ...]]
) -> list[_Candidate]:
    """For each input side and channel tuple, the few block tuples nearest to the request among those within the
    tolerance of `target`; where there are none, the one nearest in cost."""
    stock, e = np.array(base.network.repeats), rule.exponents
    growth = math.log(target / base.cost.macs)
    repeats = _repeat_shapes(base, rule, nominal.depth)
    depth_roughness = _roughness(repeats / stock)
    depth_miss = np.abs(np.log(repeats.sum(axis=1) / stock.sum()) - e.depth * growth)
    found: list[_Candidate] = []
    for side, channels in itertools.product(_resolutions(base, rule, nominal.resolution), channel_shapes):
        shape = base.network.with_shape(base.network.repeats, channels)
        costs = stage_costs(shape, side, base.classes)
        once = costs.total((1,) * len(stock)).macs
        macs = once + (repeats - 1) @ np.array([following.macs for following in costs.next])
        error = np.abs(macs / target - 1.0)
        inside = np.flatnonzero(error <= TOLERANCE)
        rows = inside if inside.size else np.array([error.argmin()])
        width = shape.stage_channels / base.network.stage_channels
        miss = abs(2 * math.log(width) - e.width * growth)
        miss += abs(2 * math.log(side / base.resolution) - e.resolution * growth)
        roughness = depth_roughness[rows] + _roughness(np.array([shape.channels[1:-1]]) / base.network.channels[1:-1])
        distance = depth_miss[rows] + miss + roughness
        for i in np.argsort(distance, kind="stable")[:4]:
            row = rows[i]
            block_tuple = tuple(int(n) for n in repeats[row])
            found.append(
                _Candidate(block_tuple, channels, side, int(macs[row]), float(distance[i]), float(roughness[i]))
            )
    return found


def _roughness(ratios: np.ndarray) -> np.ndarray:
    """Root mean square deviation of the log ratios from their own mean, per row: 0 when all stages grew alike."""
    return np.log(ratios).std(axis=1)


def _near(base: Base, rule: Rule, target: float) -> list[_Candidate]:
    """Lattice points of `rule` within `TOLERANCE` of `target`; if there are none, the single nearest in cost."""
    nominal = _nominal_factors(base, rule, target)
    found: list[_Candidate] = []
    for shapes in (_uniform_channels, _varied_channels):
        found += _candidates(base, rule, target, nominal, shapes(base, rule, nominal.width))
        inside = [c for c in found if abs(c.macs / target - 1.0) <= TOLERANCE]
        if inside:
            return inside
    return [min(found, key=lambda c: abs(c.macs / target - 1.0))]


def _nominal_factors(base: Base, rule: Rule, target: float) -> Factors:
    """Factors at which the unrounded network would cost `target`: bisection on the cost factor s.

    Fixed costs (stem, head, classifier) do not grow with depth, so s is not target / base.
    """
    low, high = 1e-3, 1e4
    for _ in range(80):
        middle = math.sqrt(low * high)
        if _unrounded_macs(base, rule.factors(middle)) < target:
            low = middle
        else:
            high = middle
    return rule.factors(math.sqrt(low * high))


def _unrounded_macs(base: Base, factors: Factors) -> float:
    """MACs with fractional repeats, integer channels and area-proportional resolution."""
    channels = tuple(max(1, round(c * factors.width)) for c in base.network.channels)
    shape = base.network.with_shape(base.network.repeats, channels)
    costs = stage_costs(shape, base.resolution, base.classes)
    macs = float(costs.total((1,) * len(base.network.stages)).macs)
    for following, n in zip(costs.next, base.network.repeats, strict=True):
        macs += following.macs * (n * factors.depth - 1)
    return macs * factors.resolution**2


def realise(base: Base, rule: Rule, target: float) -> tuple[Network, int, Factors]:
    """The lattice point of `rule` for `target` MACs: table, input side, Shapley shares.

    Among points within `TOLERANCE` the one with the least distance between realised and requested shares, evenly
    rounded stages and the smallest cost error wins; of equal ones the sharpest, since its pixels cost nothing.
    Outside the tolerance it is the nearest in cost: the caller decides whether that is near enough.
    """

    def score(candidate: _Candidate, shares: Factors) -> tuple[float, int]:
        distance = sum(abs(getattr(shares, axis) - getattr(rule.exponents, axis)) for axis in AXES)
        total = distance + candidate.roughness + abs(candidate.macs / target - 1.0)
        return round(total, 9), -candidate.resolution

    shortlist = sorted(_near(base, rule, target), key=lambda c: (c.distance, -c.resolution))[:_SHORTLIST]
    ranked = []
    for candidate in shortlist:
        network = base.network.with_shape(candidate.repeats, candidate.channels)
        shares = shapley_shares(base, network, candidate.resolution)
        ranked.append((score(candidate, shares), network, candidate.resolution, shares))
    _, network, resolution, shares = min(ranked, key=lambda row: row[0])
    return network, resolution, shares


def _meets(base: Base, rule: Rule, target: float) -> bool:
    return abs(_near(base, rule, target)[0].macs / target - 1.0) <= TOLERANCE


def _rungs(base: Base, budget: float, window: float) -> list[float]:
    """Multiples that pure resolution scaling can realise within `window` of `budget`, wasteless lattices first.

    All lie on the budget's side of 1, and so far from it that the base itself does not meet them.
    """
    low, high = budget / (1.0 + window), budget * (1.0 + window)
    rungs: dict[float, None] = {}
    for step in _lattice_steps(base):
        around = int(base.resolution * math.sqrt(budget) / step)
        reach = int(base.resolution * math.sqrt(budget) * window / step) + 2
        group = []
        for count in range(max(1, around - reach), around + reach + 1):
            side = count * step
            if base.network.final_side(side) < SMALLEST_FINAL_MAP:
                continue
            multiple = network_cost(base.network, side, base.classes).macs / base.cost.macs
            grows = multiple > 1.0 + 2 * TOLERANCE if budget > 1.0 else multiple < 1.0 - 2 * TOLERANCE
            if low <= multiple <= high and grows:
                group.append(multiple)
        for multiple in sorted(group, key=lambda m: abs(math.log(m / budget))):
            rungs[multiple] = None
    return list(rungs)


def _common_targets(base: Base, rungs: Iterable[float]) -> Iterator[float]:
    """Multiples of the base's MACs at `rungs` that all three pure axes meet, in the order of the rungs.

    Rungs come from the pure resolution axis, whose lattice is coarsest; a target may lie off its rung by less than the
    tolerance.
    """
    for rung in rungs:
        for offset in (0.0, -0.45, 0.45):
            multiple = rung * (1.0 + offset * TOLERANCE)
            if all(_meets(base, rule, multiple * base.cost.macs) for rule in (RESOLUTION_ONLY, DEPTH_ONLY, WIDTH_ONLY)):
                yield multiple


@functools.lru_cache(maxsize=256)
def snap_budget(base: Base, budget: float) -> float | None:
    """The multiple of the base's MACs that all arms asked for `budget` are solved to; None if the pure axes share
    none."""
    return next(_common_targets(base, _rungs(base, budget, SNAP_WINDOW)), None)


def solve(base: Base, rule: Rule, budget: float) -> ScaledNetwork:
    """Realise `rule` at `budget` times the base's MACs.

    Raises:
        ValueError: the budget is not positive, no common target lies near it, or this rule cannot meet it; the nearest
            budget that works is named. Also when the final map would have fewer than 4x4 cells.
    """
    if not (math.isfinite(budget) and budget > 0.0):
        raise ValueError(f"budget={budget:g} must be a positive multiple of the base network's MACs, such as budget=2")
    if budget > LARGEST_BUDGET:
        raise ValueError(f"budget={budget:g} is more than {LARGEST_BUDGET:g} times the base network; use one such as 2")
    check_final_map(base.network, base.resolution)
    if not rule.scales:
        one = Factors(1.0, 1.0, 1.0)
        none = Factors(0.0, 0.0, 0.0)
        return ScaledNetwork(rule.name, base, base.network, base.resolution, 1.0, 1.0, one, one, none, base.cost)
    if budget == 1.0:
        raise ValueError(f"budget=1 leaves nothing for scaling={rule.name} to scale; use scaling=base, or budget=2")
    snapped = snap_budget(base, budget)
    if snapped is None or not _meets(base, rule, snapped * base.cost.macs):
        raise ValueError(_cannot_meet(base, rule, budget))
    network, resolution, shares = realise(base, rule, snapped * base.cost.macs)
    return ScaledNetwork(
        rule.name,
        base,
        network,
        resolution,
        budget,
        snapped,
        rule.factors(budget),
        realised_factors(base, network, resolution),
        shares,
        network_cost(network, resolution, base.classes),
    )


def _cannot_meet(base: Base, rule: Rule, budget: float) -> str:
    """One sentence: what cannot be met, and the nearest budget at which this rule and the pure axes agree."""
    head = (
        f"budget={budget:g} cannot be met by scaling={rule.name} on {base.network.name} at {base.resolution} px within"
        f" {TOLERANCE:.1%}"
    )
    nearest_first = sorted(_rungs(base, budget, 1.0), key=lambda multiple: abs(math.log(multiple / budget)))
    for multiple in _common_targets(base, nearest_first):
        named = float(f"{multiple:.4g}")
        snapped = snap_budget(base, named)
        if snapped is not None and _meets(base, rule, snapped * base.cost.macs):
            return f"{head}; the nearest budget that all arms can meet is budget={named:g}"
    return f"{head}, and no budget near it can be met; use a network with more blocks or a smaller channel_divisor"


def spread(arms: Iterable[ScaledNetwork]) -> float:
    """Largest over smallest realised MACs, minus one."""
    macs = [arm.cost.macs for arm in arms]
    return max(macs) / min(macs) - 1.0
