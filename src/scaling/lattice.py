"""The lattice on which a rule is realised: blocks per stage, channels per stage, input pixels, all integers.

Shapes: n channel tuples, m input sides, k block tuples, S stages. Every point of the n x m x k grid is priced by the
cost twins in one call.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from src.networks.build import StageCosts, network_cost, stage_costs
from src.networks.cost import Cost
from src.networks.table import SMALLEST_FINAL_MAP, Network
from src.scaling.currency import Currency
from src.scaling.rounding import round_channels
from src.scaling.rules import Factors, Rule

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

_REACH = 0.25  # half-width of the searched neighbourhood around nominal factors, log units of cost
_DEPTH_STEP = 0.05  # between the nominal depths tried, log units
_WIDTH_STEP = 0.00125  # between the nominal widths tried, log units
_SIDES = 16  # input sides kept when other axes move too
_LARGEST_GRID = 4_000_000  # points priced at once (32 MB an array); beyond it the channel lattice is made coarser


@dataclass(frozen=True)
class Base:
    """The network that is scaled, at the resolution and with the classes it is trained for."""

    network: Network
    classes: int

    @property
    def resolution(self) -> int:
        """Input side of the base, pixels."""
        return self.network.resolution

    @functools.cached_property
    def cost(self) -> Cost:
        """Cost of the unscaled network."""
        return network_cost(self.network, self.network.resolution, self.classes)


@dataclass(frozen=True)
class Lattice:
    """Points near nominal factors: channels (n, C) with C = stem, stages and head; sides (m,); repeats (k, S)."""

    channels: Ints
    sides: Ints
    repeats: Ints

    @property
    def shape(self) -> tuple[int, int, int]:
        """(n, m, k)."""
        return len(self.channels), len(self.sides), len(self.repeats)

    def with_base(self, base: Base) -> Lattice:
        """The same lattice with the base's own values in front of every axis."""
        return Lattice(
            np.vstack([base.network.channels, self.channels]),
            np.concatenate([[base.resolution], self.sides]),
            np.vstack([base.network.repeats, self.repeats]),
        )

    def price(self, base: Base, currency: Currency) -> Floats:
        """Price of every point, (n, m, k)."""
        return price_repeats(self._costs(base), self.repeats, currency)

    def log_macs(self, base: Base) -> Floats:
        """ln(MACs) of every point, (n, m, k)."""
        return np.log(price_repeats(self._costs(base), self.repeats, Currency("macs", macs=1)))

    def _costs(self, base: Base) -> StageCosts:
        columns = [column[:, None] for column in self.channels.T]
        return stage_costs(base.network, self.sides[None, :], base.classes, columns)


def price_repeats(costs: StageCosts, repeats: Ints, currency: Currency) -> Floats:
    """Price of networks with these stage costs, each an (n, m) array, and these repeats (k, S): (n, m, k)."""
    once = currency.price(costs.total((1,) * repeats.shape[1]))
    free = currency.constant  # it belongs to the network, not to each block
    following = np.stack(np.broadcast_arrays(*(currency.price(block) - free for block in costs.next)), axis=-1)
    return np.asarray(once, float)[..., None] + following.astype(float) @ (repeats - 1.0).T


def shapley_shares(log_macs: Floats, points: tuple[Ints, Ints, Ints]) -> tuple[Floats, Floats, Floats]:
    """Shares of the growth of ln(MACs) due to depth, width and resolution, averaged over the orders of switching them
    on: each as long as the `points`, rows of a lattice's three axes. `log_macs` is of the same lattice `with_base`.

    Exactly 1 for the only axis that moved; NaN where the cost did not change.
    """
    v = log_macs - log_macs[0, 0, 0]
    n, m, k = (rows + 1 for rows in points)
    w, r, d = v[n, 0, 0], v[0, m, 0], v[0, 0, k]
    wr, wd, rd, all_three = v[n, m, 0], v[n, 0, k], v[0, m, k], v[n, m, k]
    with np.errstate(invalid="ignore", divide="ignore"):
        depth = (2 * d + (wd - w) + (rd - r) + 2 * (all_three - wr)) / (6 * all_three)
        width = (2 * w + (wd - d) + (wr - r) + 2 * (all_three - rd)) / (6 * all_three)
        resolution = (2 * r + (wr - w) + (rd - d) + 2 * (all_three - wd)) / (6 * all_three)
    return depth, width, resolution


def shares_of(base: Base, network: Network, resolution: int) -> Factors:
    """Shapley shares of one scaled network; zeros if its cost is the base's."""
    point = Lattice(np.array([network.channels]), np.array([resolution]), np.array([network.repeats]))
    only = np.zeros(1, dtype=np.int64)
    shares = [float(axis[0]) for axis in shapley_shares(point.with_base(base).log_macs(base), (only, only, only))]
    return Factors(*(share + 0.0 for share in shares)) if all(map(math.isfinite, shares)) else Factors(0.0, 0.0, 0.0)


def waste(base: Base, sides: Ints) -> Floats:
    """How far each side's cost is from growing with its area, as |log|: a side off the output stride pays for padding.

    225 px cost 16 % more than 224 px for 1 % more area.
    """
    macs = np.asarray(stage_costs(base.network, sides, base.classes).total(base.network.repeats).macs, float)
    return np.abs(np.log(macs / base.cost.macs) - 2 * np.log(sides / base.resolution))


def unevenness(ratios: Floats) -> Floats:
    """Root mean square deviation of the log ratios from their own mean, per row: 0 when all stages grew alike."""
    spread: Floats = np.log(ratios).std(axis=1)
    return spread


def nominal_factors(base: Base, rule: Rule, target: float, currency: Currency) -> Factors:
    """Factors at which the unrounded network would cost `target`.

    Fixed costs (stem, head, classifier) do not grow with depth, so the cost factor is not target / base. Prices of
    fractional networks at 400 factors are interpolated.
    """
    factors = np.geomspace(1e-3, 1e4, 400)
    depth, width, resolution = (factors ** (e / 2 if axis else e) for axis, e in enumerate(rule.exponents))
    costs = stage_costs(base.network, base.resolution, base.classes, [c * width for c in base.network.channels])
    cost = costs.total([n * depth for n in base.network.repeats])
    area = resolution**2
    grown = Cost(1, cost.macs * area, cost.params, cost.activations * area, saved=cost.saved * area)
    priced = currency.price(grown)
    rising = np.log(np.maximum.accumulate(np.maximum(priced, 1e-9)))  # below one block a stage a price means nothing
    return rule.factors(math.exp(np.interp(math.log(target), rising, np.log(factors))))


def neighbourhood(base: Base, rule: Rule, nominal: Factors, reach: float = _REACH) -> Lattice:
    """Lattice points of `rule` around nominal factors; an axis whose exponent is zero keeps the base's value."""
    depth, width, resolution = rule.exponents
    channels, repeats = np.array([base.network.channels]), np.array([base.network.repeats])
    sides = np.array([base.resolution])
    if depth:
        repeats = _repeats(base, nominal.depth, reach)
    if resolution:
        sides = _sides(base, nominal.resolution, reach)
        if depth or width:
            sides = np.sort(sides[np.argsort(waste(base, sides), kind="stable")[:_SIDES]])
    if width:
        uniform = _uniform_channels(base, nominal.width, reach)
        nearby = _uniform_channels(base, nominal.width, reach / 3)
        finest_first = (
            _varied_channels(base, uniform),
            np.unique(np.vstack([uniform, _varied_channels(base, nearby)]), axis=0),
            uniform,
        )
        fits = (rows for rows in finest_first if len(rows) * len(sides) * len(repeats) <= _LARGEST_GRID)
        channels = next(fits, uniform)
    return Lattice(channels, sides, repeats)


def _sides(base: Base, nominal: float, reach: float) -> Ints:
    """Input sides near a nominal factor that keep a 4x4 final map; of sides with equal cost the sharpest, whose pixels
    are free."""
    exact = base.resolution * nominal
    sides = np.arange(max(1, math.floor(exact * math.exp(-reach / 2))), math.ceil(exact * math.exp(reach / 2)) + 1)
    sides = np.array([side for side in sides if base.network.final_side(int(side)) >= SMALLEST_FINAL_MAP], dtype=int)
    if not len(sides):
        return np.array([base.resolution])
    macs = np.asarray(stage_costs(base.network, sides, base.classes).total(base.network.repeats).macs)
    last = np.append(np.flatnonzero(np.diff(macs)), len(macs) - 1)
    on_stride = np.flatnonzero(sides % base.network.output_stride == 0)
    return sides[np.union1d(last, on_stride)]


def _uniform_channels(base: Base, nominal: float, reach: float) -> Ints:
    """Channel tuples of one width for all stages, near a nominal width."""
    stock, divisor = base.network.channels, base.network.channel_divisor
    widths = np.exp(np.arange(-reach / 2, reach / 2, _WIDTH_STEP)) * nominal
    return np.array(list(dict.fromkeys(tuple(round_channels(c, float(w), divisor) for c in stock) for w in widths)))


def _varied_channels(base: Base, uniform: Ints) -> Ints:
    """The uniform tuples, and the same with one stage a divisor wider or narrower: the finer lattice."""
    divisor, stages = base.network.channel_divisor, len(base.network.stages)
    changes = np.zeros((1 + 2 * stages, uniform.shape[1]), dtype=np.int64)
    for stage in range(stages):
        changes[1 + 2 * stage : 3 + 2 * stage, 1 + stage] = (-divisor, divisor)
    varied = (uniform[:, None] + changes[None]).reshape(-1, uniform.shape[1])
    return np.array(list(dict.fromkeys(map(tuple, varied[(varied >= 1).all(axis=1)]))))


def _repeats(base: Base, nominal: float, reach: float) -> Ints:
    """Block tuples near a nominal depth: each stage floors or ceils its own product."""
    stock = np.array(base.network.repeats)
    rows: dict[tuple[int, ...], None] = {}
    for depth in np.exp(np.arange(-reach, reach + _DEPTH_STEP / 2, _DEPTH_STEP)) * nominal:
        choices = [sorted({max(1, math.floor(x)), max(1, math.ceil(x))}) for x in stock * depth]
        rows.update(dict.fromkeys(itertools.product(*choices)))
    return np.array(list(rows))
