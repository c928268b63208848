"""What is stated of an arm, and what it must cost; plain data between the twins and those who compare.

Loads numpy and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Factor:
    """A stated factor of depth or width.

    low, high: what its printed digits allow. moved: any factor between them is meant, but no network that it leaves as
        it was.
    """

    value: float
    low: float
    high: float
    moved: bool = False

    @property
    def untouched(self) -> bool:
        """Whether the axis is not scaled."""
        return self.low == self.high == 1.0


UNSCALED = Factor(1.0, 1.0, 1.0)
GROWN = Factor(2.0, 1.02, 8.0, moved=True)  # scaled up by a factor that nobody states


@dataclass(frozen=True)
class StatedCosts:
    """Counts of one picture for every network that is meant, each (n,); the first is the one that released rounding
    builds from the factors' values."""

    macs: NDArray[np.float64]
    params: NDArray[np.float64]
    activations: NDArray[np.float64]

    @property
    def exact(self) -> bool:
        """Whether one network alone is meant."""
        return len(self.macs) == 1
