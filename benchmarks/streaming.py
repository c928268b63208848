"""How fast pictures that stay in their files reach a training loop: `python benchmarks/streaming.py`.

Each route reads the same JPEG files in batches by two DataLoader workers, which live on between the turns:

- ours: whole batches by plan, as `src.data.sampling.loader` asks for them;
- a DataLoader of single pictures with the same decoder, tuned (persistent workers, 4 batches prefetched each);
- the same with the usual decoder: the whole JPEG, shorter side resized, centre cut out (torchvision's Resize and
  CenterCrop, written out with Pillow);
- for training, resized crops and mirroring, up to the network's input: ours while decoding, the peer's on the decoded
  picture (torchvision's RandomResizedCrop and RandomHorizontalFlip, written out with Pillow), both in the workers.

Files are of a tree with a folder a class (--tree), and of 500 x 375 px that are made for the run. Writes
benchmarks/results/streaming-DATE.md.
"""

from __future__ import annotations

import math
import os
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Ratio, Report, Section, Timed, argument_parser, machine, show, time_routes
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from src.data import folder, streaming
from src.data.module import ImageDataModule
from src.data.options import AugmentationOptions, DataOptions
from src.data.sampling import EpochBatches, OrderedBatches, loader
from src.data.splits import ImageSplit

WORKERS, BATCH = 2, 64
MADE, MADE_SIZE = 1072, (500, 375)  # pictures, pixels
SQUARES = 268  # of the made pictures that are read as squares in a turn
RESOLUTION = 224
PATHS = 1_000_000


class Single(Dataset[tuple[torch.Tensor, int]]):
    """Single pictures by row: the usual way."""

    def __init__(self, paths: list[str], read: Callable[[str], np.ndarray[Any, Any]]) -> None:
        self.paths, self.read = paths, read

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        return torch.from_numpy(np.array(self.read(self.paths[row]))), row % 10


class Same:
    """Our decoder, a picture at a time."""

    def __init__(self, side: int) -> None:
        self.side = side

    def __call__(self, path: str) -> np.ndarray[Any, Any]:
        return streaming.decode(path, self.side)


class Usual(Same):
    """Decode, convert, resize the shorter side, cut out the centre."""

    def __call__(self, path: str) -> np.ndarray[Any, Any]:
        with Image.open(path) as file:
            image = file.convert("RGB")
        scale = self.side / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
        left, top = (image.width - self.side) // 2, (image.height - self.side) // 2
        return np.asarray(image.crop((left, top, left + self.side, top + self.side)))


class Cropped(Same):
    """A resized crop of 8 to 100 % of the area, mirrored or not."""

    def __call__(self, path: str) -> np.ndarray[Any, Any]:
        with Image.open(path) as file:
            image = file.convert("RGB")
        for _ in range(10):
            area = image.width * image.height * random.uniform(0.08, 1.0)
            aspect = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
            width, height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if width <= image.width and height <= image.height:
                break
        else:
            width = height = min(image.size)
        left, top = random.randint(0, image.width - width), random.randint(0, image.height - height)
        crop = image.crop((left, top, left + width, top + height))
        crop = crop.resize((self.side, self.side), Image.Resampling.BILINEAR)
        return np.asarray(crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.5 else crop)


def make_tree(root: Path) -> None:
    """Pictures with detail at all scales: noise whose amplitude falls with its frequency, as in natural ones."""
    width, height = MADE_SIZE
    rng, side = np.random.default_rng(0), 2048
    frequency = np.hypot(np.fft.rfftfreq(side)[None], np.fft.fftfreq(side)[:, None])
    phases = rng.normal(size=(3, *frequency.shape)) + 1j * rng.normal(size=(3, *frequency.shape))
    planes = np.fft.irfft2(phases / np.maximum(frequency, 1 / side), (side, side))
    field = (127 + 50 * planes / planes.std()).clip(0, 255).astype(np.uint8).transpose(1, 2, 0)
    for split, count in (("train", MADE), ("val", 40)):
        for number in range(count):
            top, left = rng.integers(0, (side - height, side - width))
            path = root / split / f"class{number % 10}" / f"{number}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(field[top : top + height, left : left + width].copy()).save(path, quality=92)


def split_of(root: Path, side: int, most: int) -> tuple[ImageSplit, list[str]]:
    """Training pictures of a tree as a streamed split, and their paths."""
    classes = sorted(entry.name for entry in (root / "train").iterdir() if entry.is_dir())
    files = folder.list_files(root / "train", classes)
    count = len(files.names)
    files = files.take(np.sort(np.random.default_rng(0).permutation(count)[:most]))
    pictures = streaming.FilePictures(files.folder, files.names, side)
    rows = np.arange(len(files.names))
    return ImageSplit(pictures, files.labels, None, rows), [f"{files.folder}{os.sep}{name}" for name in files.names]


def peer(paths: list[str], read: Callable[[str], np.ndarray[Any, Any]]) -> DataLoader[Any]:
    """A tuned DataLoader of single pictures."""
    return DataLoader(
        Single(paths, read), BATCH, shuffle=True, drop_last=True, num_workers=WORKERS, prefetch_factor=4,
        persistent_workers=True, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip


def through(batches: Any, prepare: Callable[[Any], object] = lambda batch: batch) -> Callable[[], None]:
    """One pass over a loader."""

    def once() -> None:
        for batch in batches:
            prepare(batch)

    return once


def reading(root: Path, name: str, sides: Sequence[int], most: int, repeats: int) -> tuple[Section, list[Ratio]]:
    """Decoding to stored squares, nothing else."""
    rows, ratios = [], []
    for side in sides:
        split, paths = split_of(root, side, most)
        count = len(paths) // BATCH * BATCH
        ours = loader(split, EpochBatches(len(paths), BATCH, 0), WORKERS)
        routes = [through(ours), through(peer(paths, Same(side))), through(peer(paths, Usual(side)))]
        timed = time_routes(routes, repeats)
        for label, route in zip(("ours", "DataLoader, same decoder", "DataLoader, usual decoder"), timed, strict=True):
            rows.append((f"{name} -> {side} px", label, f"{count / route.seconds:,.0f}", times(route)))
        case = f"{name} -> {side} px, {WORKERS} workers"
        for label, route, bar in (("same decoder", timed[1], 1.0), ("usual decoder", timed[2], None)):
            speeds = count / timed[0].seconds, count / route.seconds
            found = route.ratio, route.ratio_low, route.ratio_high
            ratios.append(Ratio(case, f"DataLoader, {label}", *speeds, "images/s", *found, bar))
    note = (
        f"Batches of {BATCH} squares, {most} pictures or fewer a turn; time is that of the route over ours in one turn."
    )
    return Section(f"Reading {name}", note, ("files", "route", "images/s", "time / ours"), rows), ratios


def training(
    root: Path, name: str, stored: int, resolution: int, most: int, repeats: int
) -> tuple[Section, list[Ratio]]:
    """Resized crops, mirroring, normalisation: up to the network's input."""
    with tempfile.TemporaryDirectory() as cache:
        options = DataOptions(
            name, "folder", root=str(root), cache=cache, stored_pixels=stored, memory_limit="1KiB",
            val_fraction=0.02, workers=WORKERS, train_limit=most,
            augmentation=AugmentationOptions(crop_padding=0.0, flip=True, resized_crop_area=(0.08, 1.0)),
        )  # fmt: skip
        module = ImageDataModule(options, resolution, BATCH, BATCH, seed=0)
        module.setup()
    count = module.sizes["train"]
    _, paths = split_of(root, resolution, count)
    scale, offset = 1 / (255 * module.std), module.mean / module.std

    def normalise(batch: Any) -> torch.Tensor:
        floats: torch.Tensor = batch[0].float().mul_(scale).sub_(offset).permute(0, 3, 1, 2)
        return floats

    routes = [
        through(module.train_dataloader(), module.prepare_batch),
        through(peer(paths, Cropped(resolution)), normalise),
    ]
    ours, theirs = time_routes(routes, repeats)
    count = count // BATCH * BATCH
    rows = [
        (label, f"{count / route.seconds:,.0f}", times(route))
        for label, route in (("ours", ours), ("DataLoader, resized crops by Pillow", theirs))
    ]
    note = f"Resized crops and mirroring to {resolution} px, normalised, batches of {BATCH}, {count} pictures a turn."
    speeds, found = (count / ours.seconds, count / theirs.seconds), (theirs.ratio, theirs.ratio_low, theirs.ratio_high)
    case = f"{name} -> crops of {resolution} px, {WORKERS} workers"
    return Section(f"Training input from {name}", note, ("route", "images/s", "time / ours"), rows), [
        Ratio(case, "DataLoader, resized crops by Pillow", *speeds, "images/s", *found, 1.0)
    ]


def times(route: Timed) -> str:
    """A ratio with its interval."""
    return f"{route.ratio:.2f} ({route.ratio_low:.2f} - {route.ratio_high:.2f})"


def tolerance(root: Path, most: int = 60) -> Section:
    """What decoding at a part of the size changes, in levels of 255."""
    rows = []
    for side in (224, 187, 128, 93, 64):
        _, paths = split_of(root, side, most)
        differences = []
        for path in paths:
            with Image.open(path) as file:
                image = file.convert("RGB")
            short = min(image.size)
            left, top = (image.width - short) / 2, (image.height - short) / 2
            box = (left, top, left + short, top + short)
            whole = np.asarray(image.resize((side, side), Image.Resampling.BILINEAR, box=box), np.int16)
            differences.append(np.abs(streaming.decode(path, side) - whole))
        levels = np.stack(differences)
        part = max(part for part in (1, 2, 4, 8) if min(MADE_SIZE) // side >= part)
        cells = (f"{levels.mean():.2f}", f"{np.percentile(levels, 99):.0f}", f"{levels.max()}")
        rows.append((f"{side} px", f"1/{part}", *cells))
    head = ("side", "decoded at", "mean difference", "99 %", "largest")
    return Section("Decoding at a part of the size", "500 x 375 px, against the whole picture resized.", head, rows)


def held() -> Section:
    """What a list of a million paths costs."""
    names = [f"n{number // 1300:08d}/n{number // 1300:08d}_{number}.JPEG" for number in range(PATHS)]
    started = time.perf_counter()
    packed = streaming.Names.of(names)
    took = time.perf_counter() - started
    size = sum(array.nbytes for array in packed.arrays) / 1e6
    batches = loader(
        ImageSplit(streaming.FilePictures(Path("/"), packed, 8), np.zeros(PATHS, np.int64), None, np.arange(PATHS)),
        OrderedBatches(PATHS, BATCH), 0,
    )  # fmt: skip
    assert len(batches) == math.ceil(PATHS / BATCH)
    row = (f"{PATHS:,}", f"{size:.0f} MB", show(took), "0: pages that nobody writes to are shared")
    head = ("paths", "held", "packed in", "more for each forked worker")
    return Section("The list of paths", "tests/data/test_data_streaming.py measures the last column.", head, [row])


def main() -> None:
    parser = argument_parser(__doc__.splitlines()[0], repeats=8)
    parser.add_argument("--tree", type=Path, help="real pictures: a folder that holds train/<class>/*")
    parser.add_argument("--tree-side", type=int, default=64, help="side of their squares, pixels (64)")
    parser.add_argument("--most", type=int, default=6400, help="pictures of the tree (6400)")
    arguments = parser.parse_args()
    torch.set_num_threads(min(2, torch.get_num_threads()))
    sections, ratios, missing = [held()], [], []
    if arguments.tree:
        tree, name, side, most = arguments.tree, arguments.tree.name, arguments.tree_side, arguments.most
        for found, lines in (
            reading(tree, name, [side], most, arguments.repeats),
            training(tree, name, side, side, most, arguments.repeats),
        ):
            sections.append(found)
            ratios += lines
    else:
        missing.append("real pictures: give --tree")
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        make_tree(root)
        for found, lines in (
            reading(root, "500x375 px", (256, 512), SQUARES, arguments.repeats),
            training(root, "500x375 px", 256, RESOLUTION, MADE, arguments.repeats),
        ):
            sections.append(found)
            ratios += lines
        sections.append(tolerance(root))
    about = machine("pillow")
    command = "python benchmarks/streaming.py --tree DIR"
    Report("streaming", "Pictures from files", command, about, sections, ratios, missing).finish(arguments)


if __name__ == "__main__":
    main()
