"""Scaling rules: one formula, with the exponents as data (`conf/scaling/*.yaml`).

At a cost factor s, depth grows by s^e_d, width by s^(e_w/2), resolution by s^(e_r/2), because MACs grow linearly with
depth and with the square of width and resolution. The compound rule of arXiv 1905.11946 (alpha, beta, gamma = 1.2,
1.1, 1.15) is the point (ln alpha, 2 ln beta, 2 ln gamma) / ln(alpha beta^2 gamma^2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Factors:
    """Multipliers of the base: blocks, channels, input side."""

    depth: float
    width: float
    resolution: float


@dataclass(frozen=True)
class Exponents:
    """How the growth of log-MACs is divided among the axes. They sum to 1, or are all 0 for the unscaled base."""

    depth: float
    width: float
    resolution: float

    def __post_init__(self) -> None:
        values = (self.depth, self.width, self.resolution)
        for axis, value in zip(("depth", "width", "resolution"), values, strict=True):
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"scaling.exponents.{axis}={value:g} must lie in [0, 1]")
        total = sum(values)
        if not (math.isclose(total, 1.0, abs_tol=1e-6) or total == 0.0):
            raise ValueError(
                f"scaling.exponents sum to {total:g}; they must sum to 1 (divide each by {total:g}), or"
                " all be 0 for the base"
            )


@dataclass(frozen=True)
class Rule:
    """One arm's way of scaling. `name` labels the arm and is never branched on; `source` cites where the exponents
    come from."""

    name: str
    exponents: Exponents
    source: str = ""

    @property
    def scales(self) -> bool:
        """Whether the rule spends a budget at all; the base does not."""
        return self.exponents.depth + self.exponents.width + self.exponents.resolution > 0.0

    def factors(self, cost_factor: float) -> Factors:
        """What the formula asks for at `cost_factor` times the base's MACs, before any rounding."""
        e = self.exponents
        return Factors(cost_factor**e.depth, cost_factor ** (e.width / 2), cost_factor ** (e.resolution / 2))


DEPTH_ONLY = Rule("depth", Exponents(1.0, 0.0, 0.0))
WIDTH_ONLY = Rule("width", Exponents(0.0, 1.0, 0.0))
RESOLUTION_ONLY = Rule("resolution", Exponents(0.0, 0.0, 1.0))
