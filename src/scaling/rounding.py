"""Rounding of channels and repeats, in one place, exactly as the released code does it.

Source: tensorflow/tpu, models/official/efficientnet/efficientnet_model.py, `round_filters` and `round_repeats`.
"""

from __future__ import annotations

import math

from src.networks.table import Network

# Only the last bits of a float are forgiven: 25 * 2.2 is 55 blocks, while 3 * 3.666667 is 12, as in the released code.
_FLOAT_SLACK = 1e-9


def round_channels(channels: int, width: float, divisor: int) -> int:
    """`channels` scaled by `width`, to a multiple of `divisor`, never more than 10 % below the exact product."""
    if width == 1.0:
        return channels
    exact = channels * width
    rounded = max(divisor, int(exact + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * exact else rounded


def round_repeats(repeats: int, depth: float) -> int:
    """Blocks of a stage at depth factor `depth`: the released code always rounds up."""
    return math.ceil(repeats * depth - _FLOAT_SLACK)


def scale_as_released(base: Network, width: float, depth: float) -> Network:
    """The table that the released code builds for these coefficients (B1 is width 1.0, depth 1.1)."""
    repeats = tuple(round_repeats(n, depth) for n in base.repeats)
    channels = tuple(round_channels(c, width, base.channel_divisor) for c in base.channels)
    return base.with_shape(repeats, channels)
