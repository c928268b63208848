"""The currency of a network: what one picture costs, counted from the table without building a tensor.

Twins are plain arithmetic on their arguments. Given NumPy arrays in place of integers they price many candidates in
one call; the solver does so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

Count: TypeAlias = Any  # an int, or an int64 array with one entry a candidate


@dataclass(frozen=True)
class Cost:
    """Running cost of the layers passed so far, for one picture.

    side: height and width of the current (square) map, pixels.
    macs: multiply-adds of convolutions and linear layers. Batch norm, activations, pooling and additions are not
        counted.
    params: trainable parameters, batch-norm scales and shifts included, running statistics not.
    activations: elements of the outputs of convolutions (squeeze-and-excitation and classifier vectors not included).
    """

    side: Count
    macs: Count = 0
    params: Count = 0
    activations: Count = 0

    def then(self, side: Count, macs: Count, params: Count, activations: Count) -> Cost:
        """The cost after one more layer whose output map has `side` pixels."""
        return Cost(side, self.macs + macs, self.params + params, self.activations + activations)

    def minus(self, earlier: Cost) -> Cost:
        """What was added since `earlier`; keeps the current side."""
        return Cost(
            self.side, self.macs - earlier.macs, self.params - earlier.params, self.activations - earlier.activations
        )

    def times(self, count: Count) -> Cost:
        """The cost of `count` equal pieces."""
        return Cost(self.side, self.macs * count, self.params * count, self.activations * count)


def total(side: Count, parts: list[Cost]) -> Cost:
    """Sum of the parts of a network whose last map has `side` pixels."""
    return Cost(side, sum(p.macs for p in parts), sum(p.params for p in parts), sum(p.activations for p in parts))
