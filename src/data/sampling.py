"""Whole batches by index: which pictures, in which order, with which augmentation seed, from (seed, epoch) alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from src.data.splits import ImageSplit

NO_AUGMENTATION = -1


class BatchPlan(NamedTuple):
    """Rows of a batch and the seed of its augmentation (`NO_AUGMENTATION` in evaluation)."""

    rows: NDArray[np.int64]
    seed: int


class RawBatch(NamedTuple):
    """What travels to the device: uint8 (B, S, S, 3), int64 (B,), and the plan's seed."""

    images: Tensor
    labels: Tensor
    seed: int


def epoch_lengths(steps: int, steps_per_epoch: int) -> tuple[int, ...]:
    """Cut a run of `steps` batches into the fewest epochs of at most `steps_per_epoch`, as evenly as possible.

    Lengths differ by at most 1, the longer ones first, and sum to `steps`; whole epochs where `steps` allows it.
    """
    assert steps >= 0 and steps_per_epoch >= 1
    if steps == 0:
        return ()
    epochs = -(-steps // steps_per_epoch)
    length, longer = divmod(steps, epochs)
    return (length + 1,) * longer + (length,) * (epochs - longer)


class EpochBatches(Sampler[BatchPlan]):
    """Shuffled training batches. Epoch k's order and augmentation follow from (seed, k), whatever ran before.

    With `world` processes each global batch of `world * batch_size` pictures is cut into disjoint parts, one a rank.
    The short last batch is dropped; a set smaller than one batch is a single batch (of equal parts for all ranks).
    With `lengths`, epoch k is the first `lengths[k]` batches of what it would be without.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        lengths: tuple[int, ...] | None = None,
    ) -> None:
        if count < world:
            raise ValueError(f"{count} training pictures are too few for {world} processes: use at most {count}")
        self.count, self.batch_size = count, min(batch_size, count // world)
        self.seed, self.rank, self.world = seed, rank, world
        self.whole = self.count // (self.batch_size * world)  # batches of an epoch that is not cut
        assert lengths is None or max(lengths) <= self.whole
        self.lengths = lengths
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch (it looks at `dataloader.sampler`)."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.whole if self.lengths is None else self.lengths[self.epoch]

    def __iter__(self) -> Iterator[BatchPlan]:
        order = np.random.default_rng([1, self.seed, self.epoch]).permutation(self.count)
        for index in range(len(self)):
            start = (index * self.world + self.rank) * self.batch_size
            stream = np.random.SeedSequence([2, self.seed, self.epoch, index, self.rank])
            seed = int(stream.generate_state(1, np.uint64)[0] >> np.uint64(1))
            yield BatchPlan(order[start : start + self.batch_size], seed)


class OrderedBatches(Sampler[BatchPlan]):
    """Evaluation batches in stored order, every picture once; ranks take disjoint contiguous parts."""

    def __init__(self, count: int, batch_size: int, rank: int = 0, world: int = 1) -> None:
        self.rows = np.array_split(np.arange(count), world)[rank]
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __iter__(self) -> Iterator[BatchPlan]:
        for start in range(0, len(self.rows), self.batch_size):
            yield BatchPlan(self.rows[start : start + self.batch_size], NO_AUGMENTATION)


class BatchDataset(Dataset[RawBatch]):
    """A split addressed by whole batches."""

    def __init__(self, split: ImageSplit) -> None:
        self.split = split

    def __getitem__(self, plan: BatchPlan) -> RawBatch:
        images = np.ascontiguousarray(self.split.images[plan.rows])
        return RawBatch(torch.from_numpy(images), torch.from_numpy(self.split.labels[plan.rows]), plan.seed)


def loader(split: ImageSplit, batches: EpochBatches | OrderedBatches, workers: int) -> DataLoader[RawBatch]:
    """A DataLoader that yields whole `RawBatch`es and takes nothing from the global random state."""
    return DataLoader(
        BatchDataset(split),
        sampler=batches,
        batch_size=None,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),
    )
