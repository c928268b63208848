"""The LightningDataModule: one transform for training, evaluation and activation maps, at one arm's resolution."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from src.data import sources, transforms
from src.data.options import DataOptions
from src.data.sampling import NO_AUGMENTATION, EpochBatches, OrderedBatches, RawBatch, epoch_lengths, loader
from src.data.splits import DataFacts, ImageData, ImageSplit, Pictures
from src.data.storage import make_once
from src.data.streaming import trained_at

STATISTICS_PICTURES = 50_000
# Of an accelerator's free memory: a training set that takes no more is held there. The memory plan leaves a tenth free.
HELD_SHARE = 0.05


class CamBatch(NamedTuple):
    """Validation pictures for activation maps: `images` normalised (N, 3, r, r), `labels` int64 (N,), `boxes` float32
    (N, 4) in pixel edges at r (NaN rows: none) or None, `identities` int64 (N,)."""

    images: Tensor
    labels: Tensor
    boxes: Tensor | None
    identities: Tensor


class ImageDataModule(pl.LightningDataModule):
    """One data set fed to one arm.

    Batches reach the model as (images (B, 3, r, r) normalised, channels_last; labels int64 (B,)), with r the
    `resolution` in training, validation, test and activation maps. Only training batches are augmented, at stored size.
    Where random resized crops are taken of pictures that stay in their files, those who read them make crop and mirror,
    at the side of `trained_at`, and the rest of the augmentation follows at that side.
    Training pictures in memory are not copied into batches: they are augmented by one gather out of the whole set,
    which an accelerator holds if it takes at most `HELD_SHARE` of its free memory, and the host otherwise.
    With several devices the Trainer needs `use_distributed_sampler=False`: batches are shared among ranks here.
    Every training epoch is all pictures, unless `cut_run` was asked for a run of an exact number of steps.

    Args:
        options: the data set.
        resolution: side r of the network's input, pixels.
        batch_size: training pictures an optimizer step, over all devices.
        eval_batch_size: pictures a batch of validation and test, on each device.
        seed: of the run; decides order and augmentation, never the splits or the activation-map pictures.
        parts: micro-batches in which a device takes its share of each training step, one after the other.
        dtype: of the network's input in training, validation and test. bfloat16 is what autocast makes of float32 in
            the first convolution, and saves that pass; activation maps are float32 in any case.

    Raises:
        ValueError: the data cannot be used as asked (here, or when it is loaded in `setup`).
    """

    def __init__(
        self,
        options: DataOptions,
        resolution: int,
        batch_size: int,
        eval_batch_size: int,
        seed: int,
        parts: int = 1,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        for key, value in (
            ("resolution", resolution),
            ("batch_size", batch_size),
            ("eval_batch_size", eval_batch_size),
            ("parts", parts),
        ):
            if value < 1:
                raise ValueError(f"{key}={value} is too small: choose at least 1")
        self.options, self.resolution, self.seed = options, resolution, seed
        self.batch_size, self.eval_batch_size, self.parts = batch_size, eval_batch_size, parts
        self.dtype = dtype
        self.facts: DataFacts = sources.facts(options)
        self._data: ImageData | None = None
        self._source: ImageSplit | None = None  # what training batches are made of
        # (N,) the original of each test picture; None before the seal is broken, and where each picture is an original.
        self.test_clusters: NDArray[np.int64] | None = None
        self._left = dataclasses.replace(options.augmentation, flip=False, resized_crop_area=())  # to do with crops
        self._lengths: tuple[int, ...] | None = None
        self._held: Tensor | None = None  # all training pictures, where batches are made
        self._constants: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = {}  # scale, offset, fill

    def prepare_data(self) -> None:
        """Download and decode what is missing (one process a machine)."""
        sources.prepare(self.options)

    def setup(self, stage: str | None = None) -> None:
        """Load train, validation, and the training mean and std; test stays sealed. Repeated calls do nothing."""
        if self._data is None:
            self._data = sources.load(self.options, self.resolution)
            self.facts = self._data.facts
            self.mean, self.std = _statistics(self._data, self.options)
            self._source = trained_at(self._data.train, self.options.augmentation, self.resolution)

    @property
    def data(self) -> ImageData:
        """The splits.

        Raises:
            RuntimeError: `setup` has not run.
        """
        if self._data is None:
            raise RuntimeError("call setup() before asking the data module for data")
        return self._data

    @property
    def fingerprint(self) -> str:
        """sha256 of what train, val and test are; the same for all arms and seeds of a study."""
        return self.data.fingerprint

    @property
    def sizes(self) -> dict[str, int]:
        """Pictures in train, val and test."""
        return {"train": len(self.data.train), "val": len(self.data.val), "test": self.data.test.size}

    @property
    def test_openings(self) -> int:
        """How often the test split was opened."""
        return self.data.test.openings

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass over the training pictures (the short last one is dropped)."""
        return EpochBatches(len(self.data.train), self.batch_size, self.seed).whole

    def cut_run(self, steps: int) -> tuple[int, ...]:
        """Make the training run last exactly `steps` optimizer steps; returns how many of them each epoch has.

        Epochs are cut by `epoch_lengths`; `epochs * steps_per_epoch` steps are `epochs` whole epochs, the same as
        without this call. Where lengths differ, the Trainer needs `reload_dataloaders_every_n_epochs=1`.
        """
        self._lengths = epoch_lengths(steps, self.steps_per_epoch)
        return self._lengths

    def train_dataloader(self) -> DataLoader[RawBatch]:
        """Shuffled, augmented micro-batches; epoch k follows from (seed, k) alone, also when an interrupted run goes on
        in the middle of it."""
        batches = EpochBatches(
            len(self.data.train), self.batch_size, self.seed, *self._rank(), lengths=self._lengths, parts=self.parts
        )
        if self.trainer is not None and self.trainer.training:
            # Lightning asks for the length, and starts workers, before it calls `set_epoch` with this number.
            loop = self.trainer.fit_loop
            batches.set_epoch(loop.epoch_progress.current.processed)  # type: ignore[attr-defined]
            if loop.restarting and not loop.epoch_loop.batch_progress.is_last_batch:
                batches.resume(batches.epoch, loop.epoch_loop.batch_progress.current.ready)
        assert self._source is not None
        return loader(self._source, batches, self.options.workers, held=self._hold())

    def val_dataloader(self) -> DataLoader[RawBatch]:
        """All validation pictures in stored order."""
        return self._evaluation(self.data.val)

    def open_test(self) -> DataLoader[RawBatch]:
        """Break the seal and return the test pictures in stored order: once, with the checkpoint that validation chose.

        Raises:
            RuntimeError: the test split was opened before.
        """
        test = self.data.test.open()
        self.test_clusters = test.clusters
        return self._evaluation(test)

    def test_dataloader(self) -> DataLoader[RawBatch]:
        """`open_test`, under the name by which `trainer.test(datamodule=...)` calls it."""
        return self.open_test()

    def prepare_batch(self, batch: RawBatch, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """Network input and labels of a raw batch, on the batch's device; an accelerator is not waited for."""
        images, rows = batch.images, None
        if images.ndim == 1:
            assert self._held is not None
            images, rows = self._held, images
        scale, offset, fill = self._ready(images.device)
        pictures = transforms.Unmoved(images, rows=rows)
        if batch.seed != NO_AUGMENTATION:
            asked = self._left if batch.cropped else self.options.augmentation
            pictures = transforms.unmoved(images, fill, asked, batch.seed, batch.first, batch.whole, rows)
        return transforms.network_input(pictures, fill, self.resolution, scale, offset, dtype), batch.labels

    def on_after_batch_transfer(self, batch: RawBatch, dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """Lightning's hook: `prepare_batch` on the accelerator."""
        return self.prepare_batch(batch, self.dtype)

    def denormalise(self, images: Tensor) -> NDArray[np.uint8]:
        """uint8 (B, r, r, 3) pictures of network input (B, 3, r, r)."""
        pictures: NDArray[np.uint8] = transforms.denormalise(images, self.mean, self.std).numpy()
        return pictures

    def cam_batch(self, count: int, seed: int) -> CamBatch:
        """The same `count` validation pictures for every arm and every run seed, spread evenly over the classes.

        The first k of a larger count are the pictures of count k. On the CPU.

        Raises:
            ValueError: there are fewer validation pictures than that.
        """
        split = self.data.val
        if not 1 <= count <= len(split):
            raise ValueError(
                f"{count} activation-map pictures are impossible: choose 1 to {len(split)}, the validation pictures"
            )
        rows = _spread(split.labels, count, seed)
        raw = RawBatch(
            torch.from_numpy(np.ascontiguousarray(split.images[rows])),
            torch.from_numpy(split.labels[rows]),
        )
        images, labels = self.prepare_batch(raw)
        scale = self.resolution / split.images.shape[1]
        boxes = None if split.boxes is None else torch.from_numpy(split.boxes[rows] * np.float32(scale))
        return CamBatch(images, labels, boxes, torch.from_numpy(split.identities[rows]))

    def _evaluation(self, split: ImageSplit) -> DataLoader[RawBatch]:
        return loader(split, OrderedBatches(len(split), self.eval_batch_size, *self._rank()), self.options.workers)

    def _hold(self) -> bool:
        """Put the training pictures where batches are made, if they are in memory and fit there."""
        device = self.trainer.strategy.root_device if self.trainer is not None else torch.device("cpu")
        images = self.data.train.images
        if self._held is not None and self._held.device == device:
            return True
        self._held = None
        if isinstance(images, np.ndarray) and images.flags.c_contiguous:
            if device.type == "cpu":
                fits = not self.options.workers  # whoever asks for workers has reasons to copy
            else:
                fits = images.nbytes <= HELD_SHARE * _free_memory(device)
            if fits:
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", message=".*not writable.*")  # nor is it written to
                    self._held = torch.from_numpy(images).to(device)
        return self._held is not None

    def _ready(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Constants of `standardise`, and the colour of erased rectangles, on a device: sent there once."""
        if device not in self._constants:
            fill = (self.mean * 255).round().to(torch.uint8)
            scale, offset = transforms.lines(self.mean, self.std, self.resolution)
            self._constants[device] = (scale.to(device), offset.to(device), fill.to(device))
        return self._constants[device]

    def _rank(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)


def _free_memory(device: torch.device) -> int:
    """Bytes that are free on an accelerator; 0 where it shares the host's memory or cannot say."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


def _spread(labels: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """Rows of `count` pictures, one of each class in turn, classes and pictures in seeded random order."""
    rng = np.random.default_rng([seed, 4])
    order = rng.permutation(len(labels))
    turn = np.empty(len(labels), np.int64)  # how many of its class stand before a picture
    for label in np.unique(labels):
        turn[labels[order] == label] = np.arange((labels == label).sum())
    rank = rng.permutation(int(labels.max()) + 1)[labels[order]]
    return order[np.lexsort((rank, turn))][:count]


def _statistics(data: ImageData, options: DataOptions) -> tuple[Tensor, Tensor]:
    """Channel mean and std (3,) of the training pictures in [0, 1]; of 50,000 evenly spaced ones if there are more."""
    images = data.train.images
    if isinstance(images, np.ndarray):
        mean, std = _measure(images)
    else:
        path = Path(options.cache).expanduser() / "statistics" / f"{data.fingerprint}.json"
        mean, std = json.loads(make_once(path, lambda target: _write(target, _measure(images))).read_text())
    return torch.tensor(mean, dtype=torch.float32), torch.tensor(std, dtype=torch.float32)


def _measure(images: Pictures) -> tuple[list[float], list[float]]:
    rows = np.unique(np.linspace(0, images.shape[0] - 1, min(images.shape[0], STATISTICS_PICTURES)).astype(np.int64))
    counts, level = np.zeros((3, 256)), np.arange(256.0)
    for part in np.array_split(rows, -(-len(rows) // 256)):
        pixels = images[part].reshape(-1, 3)
        counts += [np.bincount(pixels[:, channel], minlength=256) for channel in range(3)]
    total = counts[0].sum()
    mean = counts @ level / total
    std = np.sqrt(np.maximum(counts @ level**2 / total - mean**2, 1.0))  # a constant channel must not divide by zero
    return (mean / 255).tolist(), (std / 255).tolist()


def _write(path: Path, statistics: tuple[list[float], list[float]]) -> None:
    path.write_text(json.dumps(statistics))
