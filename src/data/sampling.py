"""Whole batches by index: which pictures, in which order, with which augmentation seed, from (seed, epoch) alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from src.data.splits import ImageSplit
from src.data.streaming import FileCrops, worker_count
from src.data.transforms import crop_numbers, draw

NO_AUGMENTATION = -1


class BatchPlan(NamedTuple):
    """Rows of a micro-batch, and their augmentation: rows [first, first + len(rows)) of what `seed` draws for a step of
    `whole` pictures. In evaluation the seed is `NO_AUGMENTATION`."""

    rows: NDArray[np.int64]
    seed: int = NO_AUGMENTATION
    first: int = 0
    whole: int = 0


class RawBatch(NamedTuple):
    """What travels to the device: pictures, labels int64 (B,), the plan's last three, and what is augmented already.

    `images`: uint8 (B, S, S, 3); or int64 (B,), the rows of pictures that the data module holds on the device already.
    `cropped`: resized crop and mirror were made where the files were decoded, and only the rest is left to do.
    """

    images: Tensor
    labels: Tensor
    seed: int = NO_AUGMENTATION
    first: int = 0
    whole: int = 0
    cropped: bool = False


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
    """Shuffled training batches, in `parts` micro-batches a step. Epoch k's order and augmentation follow from
    (seed, k), whatever ran before, and are the same for every picture in every layout over processes and parts.

    Each step of `batch_size` pictures is cut into world x parts micro-batches, as equal as possible; rank r takes
    every world-th of them. The short last step is dropped; a set smaller than one step is a single step.
    With `lengths`, epoch k is the first `lengths[k]` steps of what it would be without.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        lengths: tuple[int, ...] | None = None,
        parts: int = 1,
    ) -> None:
        self.count, self.batch_size = count, min(batch_size, count)
        if self.batch_size < world * parts:
            raise ValueError(
                f"recipe.batch_size={batch_size} with {count} training pictures makes steps of {self.batch_size}, too"
                f" few for hardware.devices={world} and {parts} parts: use at least {world * parts}"
            )
        self.seed, self.rank, self.world, self.parts = seed, rank, world, parts
        self.whole = self.count // self.batch_size  # steps of an epoch that is not cut
        assert lengths is None or max(lengths) <= self.whole
        self.lengths = lengths
        self.epoch = 0
        self._resumed: tuple[int, int] | None = None

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch (it looks at `dataloader.sampler`)."""
        self.epoch = epoch

    def resume(self, epoch: int, done: int) -> None:
        """Leave out the first `done` micro-batches of one epoch, which an interrupted run has trained already."""
        self._resumed = (epoch, done)
        self.set_epoch(epoch)

    def __len__(self) -> int:
        return (self.whole if self.lengths is None else self.lengths[self.epoch]) * self.parts

    def __iter__(self) -> Iterator[BatchPlan]:
        order = np.random.default_rng([1, self.seed, self.epoch]).permutation(self.count)
        edges = [len(piece) for piece in np.array_split(np.empty(self.batch_size), self.world * self.parts)]
        starts = np.concatenate([[0], np.cumsum(edges)])
        done = self._resumed[1] if self._resumed is not None and self._resumed[0] == self.epoch else 0
        for index in range(done, len(self)):
            step, part = divmod(index, self.parts)
            stream = np.random.SeedSequence([2, self.seed, self.epoch, step, 0])
            seed = int(stream.generate_state(1, np.uint64)[0] >> np.uint64(1))
            piece = part * self.world + self.rank
            rows = order[step * self.batch_size :][starts[piece] : starts[piece + 1]]
            yield BatchPlan(rows, seed, int(starts[piece]), self.batch_size)


class OrderedBatches(Sampler[BatchPlan]):
    """Evaluation batches in stored order, every picture once; ranks take disjoint contiguous parts."""

    def __init__(self, count: int, batch_size: int, rank: int = 0, world: int = 1) -> None:
        self.rows = np.array_split(np.arange(count), world)[rank]
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __iter__(self) -> Iterator[BatchPlan]:
        for start in range(0, len(self.rows), self.batch_size):
            yield BatchPlan(self.rows[start : start + self.batch_size])


class BatchDataset(Dataset[RawBatch]):
    """A split addressed by whole batches: pictures, crops of pictures in files, or with `held` rows."""

    def __init__(self, split: ImageSplit, held: bool = False) -> None:
        self.split, self.held = split, held

    def __getitem__(self, plan: BatchPlan) -> RawBatch:
        images, labels = torch.from_numpy(self._images(plan)), torch.from_numpy(self.split.labels[plan.rows])
        return RawBatch(images, labels, *plan[1:], cropped=isinstance(self.split.images, FileCrops))

    def _images(self, plan: BatchPlan) -> NDArray[Any]:
        source = self.split.images
        if self.held:
            return plan.rows
        if not isinstance(source, FileCrops):
            return np.ascontiguousarray(source[plan.rows])
        assert plan.seed != NO_AUGMENTATION
        count, draws = len(plan.rows), (plan.seed, plan.first, plan.whole)
        mirrored = draw(count, source.shape[1], source.options, *draws).flip
        return source.cropped(plan.rows, crop_numbers(count, *draws).numpy(), mirrored.numpy())


def loader(
    split: ImageSplit, batches: EpochBatches | OrderedBatches, workers: int | None, held: bool = False
) -> DataLoader[RawBatch]:
    """A DataLoader that yields whole `RawBatch`es and takes nothing from the global random state.

    With `held` they are rows of pictures that lie where batches are made, for which no workers are started.
    """
    workers = 0 if held else worker_count(workers, split.images, batches.batch_size)
    return DataLoader(
        BatchDataset(split, held),
        sampler=batches,
        batch_size=None,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),
    )
