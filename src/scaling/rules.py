"""Scaling rules as data (`conf/scaling/*.yaml`).

Most rules are three exponents and are solved to a budget. At a cost factor s, depth grows by s^e_d, width by
s^(e_w/2), resolution by s^(e_r/2), because MACs grow linearly with depth and with the square of width and resolution.
The compound rule of arXiv 1905.11946 (alpha, beta, gamma = 1.2, 1.1, 1.15) is the point
(ln alpha, 2 ln beta, 2 ln gamma) / ln(alpha beta^2 gamma^2).

The others are coefficients - published tables such as B1, or a user's own - that are rounded as their authors round and
cost what they cost.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Optional

from src.choices import check_choice
from src.networks.table import LARGEST_SIDE

AXES = ("depth", "width", "resolution")
LARGEST_COEFFICIENT = 1000.0  # of one axis; B7 is 3.1 times as deep as B0
REPEATS_ROUNDING = ("up", "nearest")


@dataclass(frozen=True)
class Factors:
    """One number an axis: multipliers of the base's blocks, channels and input side, or shares of the growth."""

    depth: float
    width: float
    resolution: float

    @property
    def axes(self) -> tuple[float, float, float]:
        """The three numbers in the order of `AXES`."""
        return self.depth, self.width, self.resolution


@dataclass(frozen=True)
class Rule:
    """One arm's way of scaling. `name` labels the arm and is never branched on; left empty it is made of the numbers.

    exponents: how the growth of log-MACs is divided among depth, width, resolution. They sum to 1, or are all 0 for the
        unscaled base. Empty: the rule is given by coefficients.
    depth, width, resolution: coefficients, multiples of the base's repeats, channels and input side.
    pixels: input side of a published table, in place of `resolution`.
    network: the one table that a published rule scales; null: any.
    repeats_rounding: of coefficients. "up" is EfficientNet's released code, "nearest" that of TinyNet.
    keep_stem: coefficients leave the stem's channels alone (TinyNet).
    keep_head: coefficients never make the head narrower (TinyNet).
    largest_budget: the rule is for budgets below this multiple; null: any.
    source: where the numbers come from.
    """

    name: str = ""
    exponents: tuple[float, ...] = ()
    depth: float = 1.0
    width: float = 1.0
    resolution: float = 1.0
    pixels: Optional[int] = None
    network: Optional[str] = None
    repeats_rounding: str = "up"
    keep_stem: bool = False
    keep_head: bool = False
    largest_budget: Optional[float] = None
    source: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "exponents", tuple(self.exponents))
        check_choice("scaling.repeats_rounding", self.repeats_rounding, REPEATS_ROUNDING)
        if self.exponents:
            self._check_exponents()
        else:
            self._check_coefficients()
        if not self.name:
            object.__setattr__(self, "name", self._label())

    @property
    def solved(self) -> bool:
        """Whether the rule is solved to a budget; coefficients cost what they cost, and the base spends nothing."""
        return sum(self.exponents) > 0.0

    @property
    def scales(self) -> bool:
        """Whether the rule asks for anything but the base."""
        return self.solved or self.pixels is not None or (self.depth, self.width, self.resolution) != (1.0, 1.0, 1.0)

    @property
    def shares(self) -> Factors | None:
        """Shares of the growth of log-MACs that are asked for; coefficients ask for none."""
        return Factors(*self.exponents) if self.exponents else None

    @property
    def pure(self) -> bool:
        """Whether the whole growth belongs to one axis."""
        return self.solved and max(self.exponents) == 1.0

    def factors(self, cost_factor: float) -> Factors:
        """What the formula asks for at `cost_factor` times the base's MACs, before any rounding."""
        depth, width, resolution = self.exponents
        return Factors(cost_factor**depth, cost_factor ** (width / 2), cost_factor ** (resolution / 2))

    def _label(self) -> str:
        if self.exponents:
            return "-".join(f"{axis[0]}{e:.4g}" for axis, e in zip(AXES, self.exponents, strict=True))
        last = f"{self.pixels}px" if self.pixels else f"r{self.resolution:.4g}x"
        return f"d{self.depth:.4g}x-w{self.width:.4g}x-{last}"

    def _check_exponents(self) -> None:
        if len(self.exponents) != len(AXES):
            raise ValueError(
                f"scaling.exponents={list(self.exponents)} has {len(self.exponents)} numbers; give three, the shares of"
                " depth, width and resolution, such as scaling.exponents=[.2,.5,.3]"
            )
        for axis, value in zip(AXES, self.exponents, strict=True):
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"scaling.exponents={list(self.exponents)}: {axis}'s {value:g} must lie in [0, 1]")
        total = sum(self.exponents)
        if not (math.isclose(total, 1.0, abs_tol=1e-6) or total == 0.0):
            shares = [round(e / total, 4) for e in self.exponents]
            shares[shares.index(max(shares))] += 1.0 - sum(shares)  # what is named must be accepted
            scaled = ",".join(f"{round(share, 4):g}" for share in shares)
            raise ValueError(
                f"scaling.exponents={list(self.exponents)} sum to {total:g}; they must sum to 1, such as [{scaled}], or"
                " all be 0 for the base"
            )
        if (self.depth, self.width, self.resolution, self.pixels) != (1.0, 1.0, 1.0, None):
            raise ValueError(
                f"scaling={self.name or 'custom'} is given by exponents; leave scaling.depth, width, resolution and"
                " pixels out, or use scaling=coefficients"
            )

    def _check_coefficients(self) -> None:
        for axis in AXES:
            value = getattr(self, axis)
            if not 0.0 < value <= LARGEST_COEFFICIENT:
                raise ValueError(
                    f"scaling.{axis}={value:g} must be a positive multiple of the base, at most"
                    f" {LARGEST_COEFFICIENT:g}, such as 2"
                )
        if self.pixels is not None and self.resolution != 1.0:
            raise ValueError(
                f"scaling.resolution={self.resolution:g} and scaling.pixels={self.pixels} both set the input side;"
                " keep one"
            )
        if self.pixels is not None and not 1 <= self.pixels <= LARGEST_SIDE:
            raise ValueError(f"scaling.pixels={self.pixels} must lie in 1 to {LARGEST_SIDE}")


DEPTH_ONLY = Rule("depth", (1.0, 0.0, 0.0))
WIDTH_ONLY = Rule("width", (0.0, 1.0, 0.0))
RESOLUTION_ONLY = Rule("resolution", (0.0, 0.0, 1.0))
PURE = (DEPTH_ONLY, WIDTH_ONLY, RESOLUTION_ONLY)
