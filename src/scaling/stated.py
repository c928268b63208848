"""What an arm that somebody states must cost: all networks that its factors can mean, priced by the cost twins.

"Depth x1.2" is no network yet: stages may be rounded up, to the nearest block, or so that the sum of blocks is right;
channels to multiples of the divisor or not at all, with or without stem and head. A printed count that none of these
networks has was not made by scaling as stated.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from src.networks.table import Network
from src.scaling.claim import Factor, StatedCosts
from src.scaling.currency import ACTIVATIONS, MACS, PARAMS
from src.scaling.lattice import Base, Ints, Lattice
from src.scaling.rounding import round_channels, round_repeats

_DEPTHS = 60  # nominal depths tried within a span
_UNEVEN = 0.12  # nominal depth of a network may lie this far from its ratio of blocks, as a fraction
_WIDTH_SLACK = 0.03  # realised widths round this far from the stated factor
_WIDTH_STEP = 0.005


@dataclass(frozen=True)
class Twin:
    """A baseline that a table may be about: prices arms that are stated of it."""

    base: Base

    @property
    def network(self) -> str:
        """Its name."""
        return self.base.network.name

    @property
    def classes(self) -> int:
        """Outputs of the classifier that is counted."""
        return self.base.classes

    @property
    def pixels(self) -> int:
        """Native input side."""
        return self.base.resolution

    def costs(self, depth: Factor, width: Factor, pixels: int) -> StatedCosts:
        """Counts of the networks with these factors at `pixels` input side."""
        lattice = Lattice(
            _channels(self.base.network, width), np.array([pixels]), _repeats(self.base.network.repeats, depth)
        )
        macs, params, activations = (lattice.price(self.base, c).ravel() for c in (MACS, PARAMS, ACTIVATIONS))
        return StatedCosts(macs, params, activations)


def _repeats(stock: tuple[int, ...], factor: Factor) -> Ints:
    """Blocks of each stage, (k, S): rounded up, to the nearest, and every floor or ceiling whose sum is as stated."""
    if factor.untouched:
        return np.array([stock])
    low, high = factor.low, factor.high
    rows = dict[tuple[int, ...], None]()
    for depth in np.geomspace(low, high, _DEPTHS).tolist() if factor.moved else [factor.value]:
        rows.update(dict.fromkeys(tuple(round_repeats(n, depth, how) for n in stock) for how in ("up", "nearest")))
    fewest, most = round(low * sum(stock)), round(high * sum(stock))
    for depth in np.geomspace(low * (1 - _UNEVEN), high * (1 + _UNEVEN), _DEPTHS).tolist():
        choices = [sorted({max(1, math.floor(n * depth)), max(1, math.ceil(n * depth))}) for n in stock]
        rows.update(dict.fromkeys(row for row in itertools.product(*choices) if fewest <= sum(row) <= most))
    return _meant(rows, stock, factor)


def _channels(network: Network, factor: Factor) -> Ints:
    """Channels of stem, stages and head, (n, C): rounded to the divisor or as finely as the blocks allow, with and
    without stem and head."""
    stock = network.channels
    if factor.untouched:
        return np.array([stock])
    finest = math.lcm(*(stage.channel_multiple for stage in network.stages))
    fixed = [(), (0,), (len(stock) - 1,), (0, len(stock) - 1)] if network.head_channels else [(), (0,)]
    low = factor.low * (1 - _WIDTH_SLACK)
    low, high = max(low, 1.0) if factor.low > 1.0 else low, factor.high * (1 + _WIDTH_SLACK)
    rows = dict[tuple[int, ...], None]()
    for width in (factor.value, *np.exp(np.arange(math.log(low), math.log(high), _WIDTH_STEP)).tolist()):
        for divisor, kept in itertools.product((network.channel_divisor, finest), fixed):
            scaled = (round_channels(c, width, divisor) for c in stock)
            rows[tuple(c if i in kept else new for i, (c, new) in enumerate(zip(stock, scaled, strict=True)))] = None
    return _meant(rows, stock, factor)


def _meant(rows: Iterable[tuple[int, ...]], stock: tuple[int, ...], factor: Factor) -> Ints:
    return np.array([row for row in rows if not (factor.moved and row == stock)])
