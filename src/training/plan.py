"""Which layout of a batch fits into a limit: fewest parts first, then recomputation, then smaller parts.

Free of torch.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from src.networks.cost import Cost, RecomputeCost
from src.record import write_atomically
from src.training.layout import Layout
from src.training.memory import MemoryTerms, predicted_bytes

# Batch norm over fewer pictures trains worse: ResNet-50's ImageNet error is 23.6 % with 32 pictures a device, 23.7 %
# with 16, 24.8 % with 8 and 27.3 % with 4 (Wu & He 2018, arXiv 1803.08494, table 2).
ENOUGH_PICTURES = 16
FEWEST_PICTURES = 2  # one picture has no variance
LARGEST_EVALUATION_BATCH = 256
FIRST_USE = 2**26  # bytes that libraries take when they first train, whatever the network: 14 to 41 MiB measured

# By these factors what grows with the batch is enlarged before it is compared with the limit. Seen so far: 1.0 to 1.9
# times the prediction (freed memory that the allocator keeps, workspaces), and 0.9 to 1.14 times what probes measured,
# up to 1.2 for recomputing networks, whose probes lie apart: there `Line.doubt` is larger.
UNMEASURED_MARGIN = 2.0
MEASURED_MARGIN = 1.15
ONE_SIDED = 2.92  # Student's t for 2 degrees of freedom, the peaks of two probes less a line: 95 % lie below


@dataclass(frozen=True)
class Line:
    """Bytes that training holds at its peak: constant + pictures of a micro-batch x bytes each, and some for doubt.

    constant: libraries and data, weights, gradients and optimizer state.
    picture: kept of each picture for the backward pass.
    doubt: `ONE_SIDED` x deviation of measured peaks from the line; 0: nothing was measured, or no doubt is asked for.
    centre, reach: mean of the pictures that were measured, and root of their summed squared distances from it.
    peaks: how many were measured.
    """

    constant: float
    picture: float
    doubt: float = 0.0
    centre: float = 0.0
    reach: float = 1.0
    peaks: int = 1

    def bytes(self, pictures: int) -> int:
        """Below this the peak with so many pictures lies, as far as the line holds: the upper end of the prediction
        interval of a straight line (any textbook of regression), which opens away from what was measured."""
        away = (pictures - self.centre) / self.reach
        return round(self.constant + pictures * self.picture + self.doubt * math.sqrt(1 + 1 / self.peaks + away**2))

    def enlarged(self, margin: float) -> Line:
        """The same with a margin on all that grows with the batch."""
        return dataclasses.replace(self, picture=margin * self.picture)


def fitted(measured: Sequence[tuple[int, float]], kept: float) -> Line:
    """The line of least squares through (pictures, bytes), measured in two probes of the same two sizes each.

    What is known bounds it from below: a picture leaves the `kept` bytes that autograd holds, and first use takes
    `FIRST_USE`. Where the second pass finds the memory in pieces that the first has left, the line is too steep and its
    constant too low: it is turned about its end then.
    """
    pictures, peaks = zip(*measured, strict=True)
    picture, constant = statistics.linear_regression(pictures, peaks)
    off = sum((peak - constant - picture * n) ** 2 for n, peak in measured)
    centre = statistics.fmean(pictures)
    reach = math.dist(pictures, [centre] * len(pictures))
    picture = max(kept, picture - max(0.0, FIRST_USE - constant) / max(pictures))
    return Line(
        max(FIRST_USE, constant), picture, ONE_SIDED * math.sqrt(off / (len(peaks) - 2)), centre, reach, len(peaks)
    )


@dataclass(frozen=True)
class Need:
    """What training holds at its peak in either way. plain: maps are kept. recomputed: `Layout.recompute`."""

    plain: Line
    recomputed: Line

    def way(self, recompute: bool) -> Line:
        """One of the two."""
        return self.recomputed if recompute else self.plain

    def bytes(self, pictures: int, recompute: bool) -> int:
        """Peak with so many pictures in the largest micro-batch."""
        return self.way(recompute).bytes(pictures)

    def enlarged(self, margin: float) -> Need:
        """The same with a margin on all that grows with the batch."""
        return Need(self.plain.enlarged(margin), self.recomputed.enlarged(margin))


def predicted_need(cost: Cost, recompute: RecomputeCost, terms: MemoryTerms, resident: int) -> Need:
    """Need of a network by its cost twins.

    With recomputation, what the largest block saves is counted twice: its gradients and the workspaces of its
    convolutions come on top. In plain training they come when much of what was saved is free again.

    Args:
        cost: of one picture, by the kernels that train. recompute: the same with recomputation.
        terms: of the recipe, see `memory_terms`.
        resident: bytes that the process holds already on the device.
    """
    each = terms.bytes_per_saved_element
    constant = resident + FIRST_USE + predicted_bytes(cost, 0, terms)
    recomputed = (recompute.inputs + 2 * recompute.again) * each
    return Need(Line(constant, cost.saved * each), Line(constant, recomputed))


@dataclass(frozen=True)
class MemoryPlan:
    """The layout of an arm, and why.

    evaluation_batch: pictures a batch of validation and test, on each device.
    micro_batch: pictures in the largest micro-batch, over which batch norm takes its statistics.
    predicted_bytes: peak of this layout by the twins. measured_bytes: the same, corrected by a probe on this machine;
        None: the prediction lay so far below the limit that nothing was measured.
    limit_bytes: what a device may hold, and limit_source: who says so.
    kernels: those whose memory was reckoned with, see `src/networks/fast.py`.
    ran_out: the layout planned first ran out of memory all the same, and this is the next lower one; predicted_bytes
        and measured_bytes are still those of the first.
    """

    layout: Layout
    evaluation_batch: int
    micro_batch: int
    predicted_bytes: int
    measured_bytes: int | None
    limit_bytes: int
    limit_source: str
    kernels: str = "plain"
    ran_out: bool = False

    def lower(self, batch: int) -> MemoryPlan | None:
        """What to try, once, after this plan ran out of memory with steps of `batch` pictures; None: give up."""
        layout = None if self.ran_out else step_down(self.layout, batch)
        if layout is None:
            return None
        pictures, evaluated = layout.micro_batch(batch), max(1, self.evaluation_batch // 2)
        return dataclasses.replace(self, layout=layout, micro_batch=pictures, evaluation_batch=evaluated, ran_out=True)

    def __str__(self) -> str:
        pictures = f"{self.micro_batch} pictures"
        steps = (
            pictures + " at once" if self.layout.parts == 1 else f"{self.layout.parts} parts a step, {pictures} each"
        )
        recompute = ", blocks run again in the backward pass" if self.layout.recompute else ""
        expected = gib(self.measured_bytes or self.predicted_bytes)
        memory = "more ran out of memory" if self.ran_out else f"{expected} of {gib(self.limit_bytes)}"
        return f"{steps}{recompute}: {memory} ({self.limit_source}), as {self.kernels} kernels need it"

    def write(self, path: Path) -> None:
        """Keep the plan beside the checkpoints: a run that goes on must keep its layout."""
        write_atomically(path, json.dumps(dataclasses.asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> MemoryPlan:
        """The plan that `write` left.

        Raises:
            ValueError: it is not there, or it is not such a plan.
        """
        try:
            values = json.loads(path.read_text())
            return cls(**{**values, "layout": Layout(**values["layout"])})
        except (OSError, KeyError, TypeError) as error:
            raise ValueError(f"{path} holds no memory plan: {error}") from error


def gib(count: float) -> str:
    """Bytes as people say them."""
    return f"{count / 2**30:.2f} GiB"


def layouts(batch: int, devices: int = 1) -> list[Layout]:
    """Every layout that a plan may take, in the order in which they are tried.

    1. Plain, fewest parts first, while every micro-batch has `ENOUGH_PICTURES` (or the whole of a smaller batch).
    2. Recomputing, fewest parts first, while the same holds.
    3. Recomputing, in ever more parts, down to `FEWEST_PICTURES`.

    A batch is cut as evenly as possible and stays the same in all of them. Parts that leave the largest micro-batch as
    it is are left out: they would only cost time.

    Raises:
        ValueError: a device would get fewer than `FEWEST_PICTURES`.
    """
    if batch // devices < FEWEST_PICTURES:
        raise ValueError(
            f"recipe.batch_size={batch} on hardware.devices={devices} gives a device fewer than {FEWEST_PICTURES}"
            f" pictures, which batch norm needs: use recipe.batch_size={FEWEST_PICTURES * devices} or more"
        )
    fewest_parts: dict[int, int] = {}
    for parts in range(1, batch // devices // FEWEST_PICTURES + 1):
        fewest_parts.setdefault(Layout(devices, parts).micro_batch(batch), parts)
    enough = min(ENOUGH_PICTURES, batch // devices)
    kept = [parts for parts in fewest_parts.values() if batch // (devices * parts) >= enough]
    rest = list(fewest_parts.values())[len(kept) :]
    return [Layout(devices, n) for n in kept] + [Layout(devices, n, recompute=True) for n in kept + rest]


def first_fit(batch: int, devices: int, limit: int, need: Need, ways: Sequence[bool] = (False, True)) -> Layout | None:
    """The first of `layouts` whose need is within `limit` bytes, of those whose `recompute` is one of `ways`."""
    for layout in layouts(batch, devices):
        if layout.recompute in ways and need.bytes(layout.micro_batch(batch), layout.recompute) <= limit:
            return layout
    return None


def choose(batch: int, devices: int, limit: int, need: Need) -> Layout:
    """`first_fit`, which there must be.

    Raises:
        ValueError: not even two pictures fit; names what they need and what to do.
    """
    layout = first_fit(batch, devices, limit, need)
    if layout is None:
        smallest = layouts(batch, devices)[-1].micro_batch(batch)
        raise ValueError(
            f"training needs {gib(need.bytes(smallest, True))} of memory even with {smallest} pictures at a time and"
            f" recomputation, more than the {gib(limit)} that it may hold: raise hardware.memory_limit, train fewer"
            " arms at once (launcher.jobs), or choose a smaller network.resolution, budget or network"
        )
    return layout


def evaluation_batch(limit: int, need: Need) -> int:
    """Pictures of an evaluation batch: at most `LARGEST_EVALUATION_BATCH`, and so few that they fit.

    Without gradients a picture holds the maps of one layer at a time, less than with recomputation: that is its bound.
    """
    fit = (n for n in range(LARGEST_EVALUATION_BATCH, 1, -1) if need.bytes(n, True) <= limit)
    return next(fit, 1)


def step_down(layout: Layout, batch: int) -> Layout | None:
    """What to try after a layout ran out of memory all the same: the next of `layouts` that has at most half the
    micro-batch, or recomputes where this one does not; failing these the last. None: there is nothing smaller."""
    order = layouts(batch, layout.devices)
    later = order[order.index(layout) + 1 :]
    for other in later:
        if 2 * other.micro_batch(batch) <= layout.micro_batch(batch) + 1:
            return other
        if other.recompute and not layout.recompute and other.parts >= layout.parts:
            return other
    return later[-1] if later else None
