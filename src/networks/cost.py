"""The currency of a network: what one picture costs, counted from the table without building a tensor.

Twins are plain arithmetic on their arguments. Given NumPy arrays in place of integers they price many candidates in
one call; the solver does so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

Count: TypeAlias = Any  # an int, or an int64 array with one entry a candidate


@dataclass(frozen=True)
class Execution:
    """What computes a training step, as far as what it keeps for the backward pass depends on that.

    excite, native: kernels in use, see `Kernels` in `src/networks/fast.py`.
    half: whether maps are bfloat16 or float16.
    """

    excite: bool = False
    native: bool = False
    half: bool = False

    @property
    def single(self) -> int:
        """Elements of a map that take the four bytes of a float32."""
        return 2 if self.half else 1


PLAIN = Execution()


@dataclass(frozen=True)
class Cost:
    """Running cost of the layers passed so far, for one picture.

    side: height and width of the current (square) map, pixels.
    macs: multiply-adds of convolutions and linear layers. Batch norm, activations, pooling and additions are not
        counted.
    params: trainable parameters, batch-norm scales and shifts included, running statistics not.
    activations: elements of the outputs of convolutions (squeeze-and-excitation and classifier vectors not included).
    saved: elements that autograd keeps for the backward pass, by which training memory grows with each picture of a
        batch: 4 bytes each, 2 where `execution` is half. Inputs of convolutions, linear layers and batch norm, what
        activations and gates keep, and pooling's indices; a tensor kept twice is counted once, and of what is wider
        than an element of a map each element counts as several. Without dropout and drop path, whose masks are a few
        elements.
    map_saved: whether the current map is among the `saved` elements already.
    execution: what computes the layers. `saved` depends on it, nothing else does. A network is priced as plain torch
        in float32 would compute it, so that its price is its own.
    """

    side: Count
    macs: Count = 0
    params: Count = 0
    activations: Count = 0
    saved: Count = 0
    map_saved: bool = False
    execution: Execution = PLAIN

    def then(
        self, side: Count, macs: Count, params: Count, activations: Count, saved: Count, map_saved: bool = False
    ) -> Cost:
        """The cost after one more layer whose output map has `side` pixels."""
        return Cost(
            side,
            self.macs + macs,
            self.params + params,
            self.activations + activations,
            self.saved + saved,
            map_saved,
            self.execution,
        )

    def afresh(self, map_saved: bool) -> Cost:
        """Nothing counted yet, on the current map."""
        return Cost(self.side, map_saved=map_saved, execution=self.execution)

    def unsaved(self, channels: Count) -> Count:
        """Elements of the current map of `channels` if nothing keeps it yet, otherwise 0."""
        return 0 if self.map_saved else channels * self.side * self.side

    def minus(self, earlier: Cost) -> Cost:
        """What was added since `earlier`; keeps the current map."""
        return Cost(
            self.side,
            self.macs - earlier.macs,
            self.params - earlier.params,
            self.activations - earlier.activations,
            self.saved - earlier.saved,
            self.map_saved,
            self.execution,
        )

    def times(self, count: Count) -> Cost:
        """The cost of `count` equal pieces."""
        return Cost(
            self.side,
            self.macs * count,
            self.params * count,
            self.activations * count,
            self.saved * count,
            self.map_saved,
            self.execution,
        )


def total(side: Count, parts: list[Cost]) -> Cost:
    """Sum of the parts of a network whose last map has `side` pixels."""
    return Cost(
        side,
        sum(p.macs for p in parts),
        sum(p.params for p in parts),
        sum(p.activations for p in parts),
        sum(p.saved for p in parts),
        execution=parts[0].execution,
    )


@dataclass(frozen=True)
class RecomputeCost:
    """Elements that one picture holds when `ConvNet.recompute` is on, in place of `Cost.saved` and counted like them.
    Plain integers only.

    kept: after the forward pass: the pieces' inputs and the classifier's.
    inputs, again: when most is held in the backward pass: the inputs of a piece and of all before it (those after it
        are free again), and what that piece saves beyond its input when it is run again.
    """

    kept: int
    inputs: int
    again: int

    @property
    def peak(self) -> int:
        """The most that is held at once; gradients of maps are not counted."""
        return self.inputs + self.again
