"""Splits of pictures: the types, the seal on the test split, and exact stratified sampling. Numpy only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from src.guards import named


class Pictures(Protocol):
    """uint8 (N, S, S, 3) pictures, in memory or decoded when asked for; an ndarray is one."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]: ...


@dataclass(frozen=True)
class DataFacts:
    """What is known of a data set before anything is loaded."""

    name: str
    class_names: tuple[str, ...]
    native_pixels: int  # side of the stored squares: above it, resolution adds compute and no information
    has_boxes: bool


@dataclass(frozen=True)
class ImageSplit:
    """One split.

    `images` uint8 (N, S, S, 3) RGB; `labels` int64 (N,); `boxes` float32 (N, 4) as x_min, y_min, x_max, y_max in pixel
    edges (the whole picture is 0, 0, S, S), NaN rows where a picture has none, or None; `identities` int64 (N,): the
    picture's row in the source's own order, the same in all arms; `clusters` int64 (N,): the original that each picture
    was made of, where several share one; None: each is an original.
    """

    images: Pictures
    labels: NDArray[np.int64]
    boxes: NDArray[np.float32] | None
    identities: NDArray[np.int64]
    clusters: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        count, side = len(self.labels), self.images.shape[1]
        assert self.images.shape == (count, side, side, 3)
        assert self.identities.shape == (count,) and (self.boxes is None or self.boxes.shape == (count, 4))
        assert self.clusters is None or self.clusters.shape == (count,)

    def __len__(self) -> int:
        return len(self.labels)


class SealedSplit:
    """The test split: nothing of it is decoded before `open`, and it opens once."""

    def __init__(self, size: int, opener: Callable[[], ImageSplit]) -> None:
        self.size = size
        self.openings = 0
        self._opener = opener

    def open(self) -> ImageSplit:
        """Load the split and break the seal.

        Raises:
            RuntimeError: it was opened before; a run evaluates it once, with the checkpoint that validation chose.
        """
        if self.openings:
            raise RuntimeError(
                named("G4", "the test split was opened before: it is evaluated once, by the checkpoint of validation")
            )
        self.openings += 1
        split = self._opener()
        assert len(split) == self.size
        return split


@dataclass(frozen=True)
class ImageData:
    """All splits of a data set. `fingerprint` is the sha256 of what train, val and test are (see each source)."""

    facts: DataFacts
    train: ImageSplit
    val: ImageSplit
    test: SealedSplit
    fingerprint: str


def apportion(sizes: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """Share `total` among classes of the given sizes by largest remainder, in exact integer arithmetic.

    Every share is the proportional one rounded down or up; equal remainders go to the first class.
    """
    whole, remainder = np.divmod(sizes * total, sizes.sum())
    rest = total - int(whole.sum())
    whole[np.argsort(-remainder, kind="stable")[:rest]] += 1
    return whole


def stratified(labels: NDArray[np.int64], total: int, seed: list[int]) -> NDArray[np.int64]:
    """Rows of a seeded random subset of `total` pictures whose class counts are `apportion`'s, in ascending order."""
    classes, sizes = np.unique(labels, return_counts=True)
    rng = np.random.default_rng(seed)
    shares = apportion(sizes.astype(np.int64), total)
    members = [rng.permutation(np.flatnonzero(labels == label)) for label in classes]
    return np.sort(np.concatenate([rows[:share] for rows, share in zip(members, shares, strict=True)]))


def hold_out(labels: NDArray[np.int64], fraction: float, split_seed: int) -> list[NDArray[np.int64]]:
    """Rows of train and val: a stratified seeded part of `floor(fraction * N)` pictures is held out for validation.

    Raises:
        ValueError: a class has one picture only, or nothing would be held out.
    """
    if int(np.unique(labels, return_counts=True)[1].min()) < 2:
        raise ValueError("a class has a single training picture: give it at least two, one of which can validate")
    total = int(fraction * len(labels))
    if total == 0:
        raise ValueError(f"data.val_fraction={fraction} of {len(labels)} pictures is none: choose a larger fraction")
    val = stratified(labels, total, [split_seed, 1])
    return [np.setdiff1d(np.arange(len(labels)), val), val]


def limit(labels: NDArray[np.int64], count: int | None, split_seed: int, stream: int) -> NDArray[np.int64]:
    """Rows of a stratified seeded subset of at most `count` pictures; `stream` separates the draws of the splits."""
    if count is None or count >= len(labels):
        return np.arange(len(labels))
    return stratified(labels, count, [split_seed, 2, stream])


def digest(*parts: Any) -> str:
    """sha256 (hex) of plain values and integer arrays, independent of machine and process."""
    total = hashlib.sha256()
    for part in parts:
        content = part.astype("<i8").tobytes() if isinstance(part, np.ndarray) else json.dumps(part).encode()
        total.update(hashlib.sha256(content).digest())
    return total.hexdigest()
