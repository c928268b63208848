"""Rounding of channels, repeats and pixels, in one place, exactly as the released code does it.

Sources: tensorflow/tpu, models/official/efficientnet/efficientnet_model.py, `round_filters` and `round_repeats`;
TinyNet (arXiv 2010.14819) as in huggingface/pytorch-image-models, `_gen_tinynet`.
"""

from __future__ import annotations

import math

from src.networks.table import Network
from src.scaling.rules import Rule

# Only the last bits of a float are forgiven: 25 * 2.2 is 55 blocks, while 3 * 3.666667 is 12, as in the released code.
_FLOAT_SLACK = 1e-9


def round_channels(channels: int, width: float, divisor: int) -> int:
    """`channels` scaled by `width`, to a multiple of `divisor`, never more than 10 % below the exact product."""
    if width == 1.0:
        return channels
    exact = channels * width
    rounded = max(divisor, int(exact + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * exact else rounded


def round_repeats(repeats: int, depth: float, rounding: str = "up") -> int:
    """Blocks of a stage at depth factor `depth`: up, as EfficientNet's released code, or to the nearest (half to even),
    as TinyNet's; never below 1."""
    exact = repeats * depth
    return max(1, round(exact) if rounding == "nearest" else math.ceil(exact - _FLOAT_SLACK))


def round_pixels(resolution: int, factor: float) -> int:
    """Input side at resolution factor `factor`, rounded down: 224 * 1.3 is 291, the side with the 1.8 G of Table 7."""
    return math.floor(resolution * factor + _FLOAT_SLACK)


def scale_as_released(base: Network, rule: Rule) -> Network:
    """The table that released code builds for the coefficients of `rule` (B1 is width 1.0, depth 1.1)."""
    repeats = tuple(round_repeats(n, rule.depth, rule.repeats_rounding) for n in base.repeats)
    channels = [round_channels(c, rule.width, base.channel_divisor) for c in base.channels]
    if rule.keep_stem:
        channels[0] = base.channels[0]
    if rule.keep_head and base.head_channels:
        channels[-1] = max(base.channels[-1], channels[-1])
    return base.with_shape(repeats, tuple(channels))


def scaled_resolution(base: Network, rule: Rule) -> int:
    """Input side, in pixels, of the coefficients of `rule`."""
    return rule.pixels if rule.pixels is not None else round_pixels(base.resolution, rule.resolution)
