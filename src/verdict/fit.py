"""Which baseline a published table is about, and what its twin says of every row.

Counters print `unit x (MACs + overhead x conv outputs)`: the unit is 1 (multiply-adds) or 2 (a multiply and an add
each), the overhead is what a tool adds for batch norm, activations, gates and pooling, in operations per element that a
convolution puts out. One table, counted by one tool, has one unit and, for one network, one overhead.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from src.scaling.claim import GROWN, UNSCALED, Factor, StatedCosts
from src.verdict.findings import millions
from src.verdict.printed import GROWING, Arm, Kind, Printed, Table

MOST_OVERHEAD = 5.0  # per conv output: batch norm 2, an activation 1, the gate with its pooling 2
MACS_SLACK = 0.01  # of a known network's MACs: padding and classifiers differ by less between implementations
PARAMS_SLACK = 0.005  # of a known network's parameters: biases and batch norm
ROUNDING_SLACK = 0.05  # of both, where a network is known by its factors alone: single stages are rounded too
FACTOR_SLACK = 0.10  # of the parameters by which a factor that is not stated is found
ONE_NETWORK = 0.01  # two costs of one network by one counter agree to this
UNITS = (1.0, 2.0)
SLIPS = tuple(scale * unit for scale in (1e-9, 1e-6, 1e-3, 1e3, 1e6, 1e9) for unit in UNITS)
PARAM_SLIPS = (1e-9, 1e-6, 1e-3, 1e3, 1e6, 1e9, 4.0)  # 4: bytes of float32


class Twin(Protocol):
    """A baseline that can price what is stated of it."""

    @property
    def network(self) -> str: ...
    @property
    def classes(self) -> int: ...
    @property
    def pixels(self) -> int: ...
    def costs(self, depth: Factor, width: Factor, pixels: int) -> StatedCosts: ...


@dataclass(frozen=True)
class Reading:
    """A row beside what the twin says of it.

    costs: every network that it can be; None: nothing says which. unscaled: its printed numbers are those of the base's
    network, whatever it is called. sure: no network as stated has them. units: those that explain its printed cost.
    unit: the one it is read in. predicted: what the table's own counter would print for its network, within the
    rounding of the base's cost.
    """

    arm: Arm
    px: int | None
    costs: StatedCosts | None = None
    unscaled: bool = False
    sure: bool = False
    units: tuple[float, ...] = ()
    unit: float | None = None
    predicted: Printed | None = None

    @property
    def macs(self) -> float | None:
        """Printed cost in MACs, with its counter's overhead."""
        return self.arm.cost.value / self.unit if self.arm.cost is not None and self.unit is not None else None

    @property
    def counted(self) -> float | None:
        """MACs of the network by its twin, with released rounding."""
        return float(self.costs.macs[0]) if self.costs is not None else None


@dataclass(frozen=True)
class Fit:
    """The baseline of a table.

    px: input side of the base row; `assumed`: the native one, since none is printed. costs: of the base. params_unit:
    printed parameters are so many times the real ones. cost_unit, overhead: of the base row's counter; None where the
    base prints no cost. rounding: of the base's cost, as a fraction.
    """

    twin: Twin
    px: int
    assumed: bool
    costs: StatedCosts
    params_unit: float = 1.0
    cost_unit: float | None = None
    overhead: float | None = None
    rounding: float = 0.0

    @classmethod
    def of(cls, twin: Twin, px: int | None) -> Fit:
        """A baseline at the base's printed input side, or at its own."""
        return cls(twin, px or twin.pixels, px is None, twin.costs(UNSCALED, UNSCALED, px or twin.pixels))

    def __str__(self) -> str:
        native = " (its native side, since none is printed)" if self.assumed else ""
        return (
            f"{self.twin.network} at {self.px} px{native} with {self.twin.classes} classes:"
            f" {millions(self.costs.macs[0])} M MACs, {millions(self.costs.params[0])} M parameters"
        )

    def predict(self, costs: StatedCosts, unit: float) -> Printed | None:
        """What the base's counter prints for the first network of `costs`."""
        if self.overhead is None:
            return None
        value = unit * float(costs.macs[0] + self.overhead * costs.activations[0])
        return Printed(value, value * self.rounding)

    def unscaled(self, px: int | None) -> StatedCosts:
        """The base's network at another input side."""
        return self.twin.costs(UNSCALED, UNSCALED, px or self.px)

    @property
    def row_units(self) -> tuple[float, ...]:
        """Units a row may be printed in: those of the base's power of ten."""
        power = power_of_ten(self.cost_unit or 1.0)
        return tuple(power * unit for unit in UNITS)


def power_of_ten(unit: float) -> float:
    """The power of ten in a unit: 1000 in 2000."""
    return float(10.0 ** math.floor(math.log10(unit) + 1e-9))


def explaining_units(cost: Printed, costs: StatedCosts, units: Sequence[float]) -> tuple[float, ...]:
    """Units in which some network of `costs`, with a counter's overhead from 0 to `MOST_OVERHEAD`, prints `cost`."""
    slack = MACS_SLACK if costs.exact else ROUNDING_SLACK
    least, most = costs.macs * (1 - slack), costs.macs * (1 + slack) + MOST_OVERHEAD * costs.activations
    return tuple(unit for unit in units if np.any((cost.high / unit >= least) & (cost.low / unit <= most)))


def params_fit(params: Printed, costs: StatedCosts, unit: float) -> bool:
    """Whether some network of `costs` has the printed parameters."""
    slack = PARAMS_SLACK if costs.exact else ROUNDING_SLACK
    low, high = costs.params * (1 - slack), costs.params * (1 + slack)
    return bool(np.any((params.high / unit >= low) & (params.low / unit <= high)))


def find_fit(table: Table, twins: Sequence[Twin], *, named: bool) -> Fit | str:
    """The baseline whose unscaled network prints what the base row prints, or why there is none.

    Of several, the one that explains most rows, then the one whose native side the base has. A network that is not
    named must fit as it stands in parameters or cost; the other may be in another power of ten.
    """
    base = table.base_arm
    if base is None:
        return "no row is the base (name it base, or mark it in a column base)"
    if base.params is None and base.cost is None:
        return f"{base.name} prints neither parameters nor a cost"
    fits = [fit for twin in twins if (fit := _plain_fit(base, twin)) is not None]
    fits = fits or [fit for twin in twins if (fit := _slipped_fit(base, twin, named)) is not None]
    if not fits:
        tried = ", ".join(dict.fromkeys(twin.network for twin in twins))
        return f"{base.name} is none of the networks tried ({tried}) in any unit"
    ranks = [(_explained(table, fit), fit.twin.pixels == fit.px) for fit in fits]
    best = [fit for fit, rank in zip(fits, ranks, strict=True) if rank == max(ranks)]
    networks = list(dict.fromkeys(fit.twin.network for fit in best))
    if len(networks) > 1:
        return f"{base.name} may be {' or '.join(networks)} (choose with --network)"
    return best[0]


def _plain_fit(base: Arm, twin: Twin) -> Fit | None:
    costs = twin.costs(UNSCALED, UNSCALED, base.px or twin.pixels)
    if base.params is not None and not params_fit(base.params, costs, 1.0):
        return None
    units = explaining_units(base.cost, costs, UNITS) if base.cost is not None else ()
    return None if base.cost is not None and not units else _made(base, twin, 1.0, units)


def _slipped_fit(base: Arm, twin: Twin, named: bool) -> Fit | None:
    costs = twin.costs(UNSCALED, UNSCALED, base.px or twin.pixels)
    params = [1.0] if base.params is None else [u for u in (1.0, *PARAM_SLIPS) if params_fit(base.params, costs, u)]
    units = explaining_units(base.cost, costs, (*UNITS, *SLIPS)) if base.cost is not None else ()
    if not params or (base.cost is not None and not units):
        return None
    stands = (base.params is not None and params[0] == 1.0) or bool(set(units) & set(UNITS))
    return _made(base, twin, params[0], units) if named or stands else None


def _made(base: Arm, twin: Twin, params_unit: float, units: Sequence[float]) -> Fit:
    fit = replace(Fit.of(twin, base.px), params_unit=params_unit)
    if not units or base.cost is None:
        return fit
    overhead = float((base.cost.value / units[0] - fit.costs.macs[0]) / fit.costs.activations[0])
    return replace(fit, cost_unit=units[0], overhead=overhead, rounding=base.cost.half / base.cost.value)


def _explained(table: Table, fit: Fit) -> int:
    """Rows whose cost and parameters the fit can explain, as stated or as not scaled at all."""

    def explains(arm: Arm, costs: StatedCosts | None) -> bool:
        if costs is None:
            return False
        cost = arm.cost is None or bool(explaining_units(arm.cost, costs, fit.row_units))
        return cost and (arm.params is None or params_fit(arm.params, costs, fit.params_unit))

    return sum(
        explains(arm, stated_costs(table, fit, arm)) or explains(arm, fit.unscaled(side_of(fit, arm)))
        for arm in table.arms
    )


def side_of(fit: Fit, arm: Arm) -> int | None:
    """Input side of a row: printed, or by its stated factor, or the base's where more pixels are not its business."""
    if arm.px is not None:
        return arm.px
    if arm.resolution is not None:
        return math.floor(fit.px * arm.resolution.value + 1e-9)
    return fit.px if arm.kind in (Kind.BASE, Kind.DEPTH, Kind.WIDTH) else None


def stated_costs(table: Table, fit: Fit, arm: Arm) -> StatedCosts | None:
    """Networks that a row can be by what is said of it; None: it does not say enough."""
    px = side_of(fit, arm)
    if arm.name == table.base:
        return fit.costs
    if px is None or (arm.kind is Kind.COMPOUND and (arm.depth is None or arm.width is None)):
        return None
    if arm.factors:
        return fit.twin.costs(_factor(arm.depth), _factor(arm.width), px)
    growth = {
        Kind.DEPTH: (GROWN, UNSCALED),
        Kind.WIDTH: (UNSCALED, GROWN),
        Kind.RESOLUTION: (UNSCALED, UNSCALED),
    }
    return fit.twin.costs(*growth[arm.kind], px) if arm.kind in growth else None


def _factor(printed: Printed | None) -> Factor:
    return UNSCALED if printed is None else Factor(printed.value, printed.low, printed.high)


def least_params(fit: Fit, arm: Arm) -> float:
    """Fewest parameters of a row as stated; of a factor that is not, with the least step on the axis of its name."""
    if arm.factors:
        return float(fit.twin.costs(_factor(arm.depth), _factor(arm.width), fit.px).params.min())
    axes = {Kind.DEPTH: [(GROWN, UNSCALED)], Kind.WIDTH: [(UNSCALED, GROWN)]}
    either = [(GROWN, UNSCALED), (UNSCALED, GROWN)]
    tried = axes.get(arm.kind, either) if arm.kind else either
    return min(float(fit.twin.costs(depth, width, fit.px).params.min()) for depth, width in tried)


def read_rows(table: Table, fit: Fit | None) -> Iterator[Reading]:
    """Every row beside its twin; without a fit only what is printed."""
    for arm in table.arms:
        yield Reading(arm, arm.px) if fit is None else _read(table, fit, arm)


def _read(table: Table, fit: Fit, arm: Arm) -> Reading:
    base, px, stated = table.base_arm, side_of(fit, arm), stated_costs(table, fit, arm)
    unscaled = sure = False
    if base is not None and arm is not base and px is not None and grows(arm):
        unscaled, sure = _is_unscaled(fit, base, arm, stated, px)
    costs = fit.unscaled(px) if unscaled else _narrowed(fit, arm, stated)
    if arm.cost is None or costs is None:
        return Reading(arm, px, costs, unscaled, sure)
    units = explaining_units(arm.cost, costs, fit.row_units)
    unit = units[0] if units else None
    if fit.cost_unit is not None and (fit.cost_unit in units or not units):
        unit = fit.cost_unit  # one table, one unit, unless the row says otherwise
    predicted = fit.predict(costs, unit) if unit is not None else None
    return Reading(arm, px, costs, unscaled, sure, units, unit, predicted)


def grows(arm: Arm) -> bool:
    """Whether a row is said to be deeper or wider than the base."""
    return arm.kind in GROWING or any(f is not None and f.value > 1.0 for f in (arm.depth, arm.width))


def _is_unscaled(fit: Fit, base: Arm, arm: Arm, stated: StatedCosts | None, px: int) -> tuple[bool, bool]:
    """Whether a row that is said to grow prints the base's parameters or, where none are printed, the cost that the
    base's network has at its pixels and the stated one has not; and whether no network as stated can."""
    if arm.params is not None and base.params is not None:
        seen = least_params(fit, arm) * (1 - PARAMS_SLACK) > arm.params.high / fit.params_unit
        return arm.params.equals(base.params) and (seen or not arm.factors), seen
    predicted = None if fit.cost_unit is None else fit.predict(fit.unscaled(px), fit.cost_unit)
    if arm.cost is None or predicted is None or fit.cost_unit is None:
        return False, False
    excluded = stated is not None and not explaining_units(arm.cost, stated, (fit.cost_unit,))
    return excluded and abs(apart(arm.cost, predicted)) <= ONE_NETWORK, excluded


def _narrowed(fit: Fit, arm: Arm, stated: StatedCosts | None) -> StatedCosts | None:
    """Of the networks with any factor, those with about the printed parameters; nothing if a row that its name gives
    pixels alone has other parameters than the base."""
    if stated is None or arm.params is None or arm.factors or arm.kind is Kind.BASE:
        return stated
    if stated.exact:
        return stated if params_fit(arm.params, stated, fit.params_unit) else None
    low, high = arm.params.low / fit.params_unit, arm.params.high / fit.params_unit
    keep = (stated.params >= low * (1 - FACTOR_SLACK)) & (stated.params <= high * (1 + FACTOR_SLACK))
    return StatedCosts(stated.macs[keep], stated.params[keep], stated.activations[keep]) if keep.any() else None


def apart(printed: Printed, predicted: Printed) -> float:
    """How far a number lies above (below, if negative) a predicted one, as a fraction; 0 where both may be equal."""
    if printed.equals(predicted):
        return 0.0
    return (printed.low / predicted.high if printed.value > predicted.value else printed.high / predicted.low) - 1.0
