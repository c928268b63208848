"""The embedded data set: a handwritten digit among fragments of others. Nothing is downloaded.

The digits are scikit-learn's 1,797 scans of 8 x 8 pixels (Alpaydin and Kaynak 1998, test part of UCI "Optical
Recognition of Handwritten Digits"). The scans are divided by class into train (60 %), val (15 %) and test (25 %) before
anything is composed, so no scan is seen in two splits, not even as a fragment. Pictures of one split share scans: the
test split is made of 449. So its pictures are not independent, and each split says which scan is each picture's digit.
Fragments are shared too, across all pictures; they tell nothing of the label and are no cluster.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import zipfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from src.data.options import ClutterOptions, DataOptions
from src.data.splits import DataFacts, ImageData, ImageSplit, SealedSplit, digest, hold_out, limit
from src.data.storage import make_once

VERSION = 1  # of the pictures below: raise it when any of them changes
CLASS_NAMES = tuple(str(digit) for digit in range(10))
SPLITS = ("train", "val", "test")
TEST_SCANS, VAL_SCANS = 0.25, 0.20  # val: of what is not test
FRAGMENT = (3, 4)  # sides of a fragment, in pixels of the 8 x 8 scan
NOISE = 0.04
INK = 0.25  # opacity from which a pixel counts as ink in the box
WORTH_KEEPING = 1000  # pictures of a split that takes longer to compose (0.3 s) than to read


Floats = NDArray[np.float32]


class Scans(NamedTuple):
    """Scans of one split: `ink` and `halo` (ink grown by a pixel), uint8 (n, 10, 10) with a margin; `labels` (n,);
    `numbers` (n,): rows in scikit-learn's order."""

    ink: NDArray[np.uint8]
    halo: NDArray[np.uint8]
    labels: NDArray[np.int64]
    numbers: NDArray[np.int64]


class Composed(NamedTuple):
    """Pictures uint8 (N, canvas, canvas, 3), their digits' boxes (N, 4) and scans (N,); without N for a single one."""

    images: NDArray[np.uint8]
    boxes: Floats
    scans: NDArray[np.int64]


def facts(options: DataOptions) -> DataFacts:
    """Known without making a picture."""
    return DataFacts(options.name, CLASS_NAMES, options.clutter.canvas, has_boxes=True)


def check_available(options: DataOptions) -> None:
    """Always there."""


def prepare(options: DataOptions) -> None:
    """Nothing to fetch."""


def load(options: DataOptions) -> ImageData:
    """Compose train and val; test is composed when opened.

    The fingerprint covers what all three splits are made from: version of this code, options, seed, the scans. It opens
    nothing, and does not depend on the last bit of a machine's arithmetic.
    """
    scans = _scans(options.split_seed)
    limits = (options.train_limit, options.val_limit, options.test_limit)
    sizes = (options.clutter.train, options.clutter.val, options.clutter.test)
    rows = [limit(np.arange(sizes[i]) % 10, limits[i], options.split_seed, i) for i in range(3)]
    train, val = (_split(scans[i], rows[i], options, i) for i in (0, 1))
    test = SealedSplit(len(rows[2]), lambda: _split(scans[2], rows[2], options, 2))
    recipe = [VERSION, options.split_seed, *dataclasses.astuple(options.clutter)]
    originals = [part.astype(np.int64) for split in scans for part in (split.ink, split.labels)]
    fingerprint = digest("clutter", recipe, *rows, *originals)
    return ImageData(facts(options), train, val, test, fingerprint)


def compose(scans: Scans, label: int, options: ClutterOptions, seed: list[int]) -> Composed:
    """One picture; a function of the arguments alone.

    Fragments come from scans of all classes and share the digit's ink, so neither they nor the colours tell the label.
    """
    rng = np.random.default_rng(seed)
    canvas = options.canvas
    uniform = iter(rng.random(12 + 8 * options.fragments))

    def integer(low: int, high: int) -> int:
        return low + int(next(uniform) * (high - low + 1))

    ink = np.zeros((canvas, canvas), np.float32)
    for _ in range(options.fragments):
        scale = integer(options.digit_min, options.digit_max) / 8
        scan = scans.ink[integer(0, len(scans.ink) - 1)]
        height, width = integer(*FRAGMENT), integer(*FRAGMENT)
        top, left = integer(1, 9 - height), integer(1, 9 - width)
        piece = np.zeros((height + 2, width + 2), np.uint8)
        piece[1:-1, 1:-1] = scan[top : top + height, left : left + width]
        tile = _enlarge(piece, scale)
        y, x = (integer(0, canvas) - length // 2 for length in tile.shape)
        part, tile = _overlap(ink, tile, y, x)
        np.maximum(part, tile, out=part)
    side = integer(options.digit_min, options.digit_max)
    chosen = np.flatnonzero(scans.labels == label)
    scan_row = chosen[integer(0, len(chosen) - 1)]
    margin = round(side / 8)
    top, left = (integer(0, canvas - side) - margin for _ in range(2))
    digit = np.zeros_like(ink)
    for tiles, target in ((scans.halo, ink), (scans.ink, digit)):
        tile = _enlarge(tiles[scan_row], side / 8)
        part, tile = _overlap(target, tile, top, left)
        part[...] = tile if target is digit else part * (1 - tile)
    rows, columns = (np.flatnonzero((digit >= INK).any(axis)) for axis in (1, 0))
    box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)

    background = 0.05 + 0.25 * next(uniform)
    contrast = 0.35 + 0.35 * next(uniform)
    colours = 0.55 + 0.45 * np.array([next(uniform) for _ in range(3)], np.float32)
    tint = colours if next(uniform) < 0.5 else np.ones(3, np.float32)
    grey = background + contrast * np.maximum(ink, digit)
    grey += NOISE * rng.standard_normal(grey.shape, dtype=np.float32)
    return Composed((np.clip(grey[..., None] * tint, 0, 1) * 255 + 0.5).astype(np.uint8), box, scans.numbers[scan_row])


def _split(scans: Scans, rows: NDArray[np.int64], options: DataOptions, stream: int) -> ImageSplit:
    def make() -> Composed:
        seeds = ([options.split_seed, 3, stream, int(row)] for row in rows)
        single = (compose(scans, seed[3] % 10, options.clutter, seed) for seed in seeds)
        return Composed(*map(np.stack, zip(*single, strict=True)))

    if len(rows) < WORTH_KEEPING:
        made = make()
    else:
        # All that the pixels follow from; the code by its bytes, lest somebody forget to raise VERSION.
        code = [VERSION, Path(__file__).read_text(), np.__version__, PIL.__version__]
        recipe = [*code, options.split_seed, stream, *dataclasses.astuple(options.clutter)]
        key = digest("clutter pictures", recipe, rows, *(part.astype(np.int64) for part in scans))
        made = _kept(Path(options.cache).expanduser() / "clutter" / f"{key}.npz", make)
    return ImageSplit(made.images, rows % 10, made.boxes, rows, made.scans)


def _kept(path: Path, make: Callable[[], Composed]) -> Composed:
    """What was composed, from the file, or made, and left there for the next arm if that can be done."""

    def write(target: Path) -> None:
        made = make()
        with target.open("wb") as stream:
            np.savez(stream, **made._asdict())

    try:
        with np.load(make_once(path, write), allow_pickle=False) as stored:  # compares a zip file's own checksums
            return Composed(*(stored[name] for name in Composed._fields))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)  # damaged: the next arm makes it anew
        return make()


def _digits() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """scikit-learn's scans (1797, 8, 8) in 0..16 and their labels; from its file, since importing sklearn takes a
    second."""
    found = importlib.util.find_spec("sklearn")
    assert found is not None and found.submodule_search_locations
    path = Path(found.submodule_search_locations[0], "datasets", "data", "digits.csv.gz")
    if path.exists():
        table = np.loadtxt(path, delimiter=",")
        return table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(np.int64)
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return bunch.images, bunch.target.astype(np.int64)


def _scans(split_seed: int) -> list[Scans]:
    scans, labels = _digits()
    ink = np.pad(np.round(scans * (255 / 16)).astype(np.uint8), ((0, 0), (1, 1), (1, 1)))
    grown = np.pad(ink, ((0, 0), (1, 1), (1, 1)))
    halo = np.max([grown[:, y : y + 10, x : x + 10] for y in range(3) for x in range(3)], axis=0)
    rest, test = hold_out(labels, TEST_SCANS, split_seed)
    train, val = (rest[part] for part in hold_out(labels[rest], VAL_SCANS, split_seed))
    return [Scans(ink[part], halo[part], labels[part], part) for part in (train, val, test)]


def _enlarge(scan: NDArray[np.uint8], scale: float) -> Floats:
    """A smoothly enlarged scan, opacity in [0, 1]."""
    rows, columns = (_weights(length, max(1, round(length * scale))) for length in scan.shape)
    return np.clip(rows @ (scan / np.float32(255)) @ columns.T, 0, 1)


@lru_cache(maxsize=4096)
def _weights(length: int, size: int) -> Floats:
    """Pillow's bicubic interpolation from `length` to `size` samples as a matrix, faster than a call a tile."""
    unit = Image.fromarray(np.eye(length, dtype=np.float32))
    return np.asarray(unit.resize((length, size), Image.Resampling.BICUBIC))


def _overlap(canvas: Floats, tile: Floats, top: int, left: int) -> tuple[Floats, Floats]:
    """Views of the part of `canvas` that `tile` covers when placed at (top, left), and of the tile's part inside it."""
    y, x = max(0, top), max(0, left)
    inside = tile[y - top : canvas.shape[0] - top, x - left : canvas.shape[1] - left]
    return canvas[y : y + inside.shape[0], x : x + inside.shape[1]], inside
