"""The sources behind one door: what is known, what can be fetched ahead, what is loaded. Free of torch."""

from __future__ import annotations

import dataclasses

from src.data import cifar, clutter, folder, tiny_imagenet
from src.data.options import DataOptions
from src.data.splits import DataFacts, ImageData, digest
from src.data.streaming import FilePictures, evaluated_at

_SOURCES = {
    "clutter": clutter,
    "cifar10": cifar,
    "cifar100": cifar,
    "tiny_imagenet": tiny_imagenet,
    "folder": folder,
}


def facts(options: DataOptions) -> DataFacts:
    """Name, classes, stored side and whether there are boxes; cheap: nothing is downloaded or decoded.

    They may be there before the pictures: see `check_available`.

    Raises:
        ValueError: the data cannot be used as asked.
    """
    return _SOURCES[options.kind].facts(options)


def check_available(options: DataOptions) -> None:
    """Refuse, before anything starts, to train on pictures that are only declared; touches next to no files.

    Raises:
        ValueError: the pictures are not there and cannot be fetched; says what to do.
    """
    _SOURCES[options.kind].check_available(options)


def prepare(options: DataOptions) -> None:
    """Download, unpack and decode what is missing, once for all processes; never touches a test picture's pixels."""
    _SOURCES[options.kind].prepare(options)


def load(options: DataOptions, resolution: int | None = None) -> ImageData:
    """All splits, the test split sealed.

    Args:
        options: the data set.
        resolution: side of the network's input, pixels, which the released evaluation crop depends on; without it,
            what is evaluated so is cropped for a network of the stored side.

    Raises:
        ValueError: the data cannot be had or is damaged.
    """
    data = _SOURCES[options.kind].load(options)
    if options.augmentation.resized_crop_area and isinstance(data.train.images, FilePictures):
        # Cut from whole files, not from stored squares: other pictures than where data.memory_limit holds them all.
        data = dataclasses.replace(data, fingerprint=digest(data.fingerprint, "crops of files"))
    return data if resolution is None else evaluated_at(data, resolution)
