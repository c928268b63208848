"""How fast pictures become batches, beside the usual ways, all in one run: `python benchmarks/data.py`.

Ours is the path that an arm takes: the data module's loader and the hook that Lightning calls, up to normalised input.
The peers are a DataLoader over Pillow pictures, by the few lines that are fastest for crop and mirror and by
torchvision's transforms for the policies, and kornia on the same batches of tensors.
Each turn of a route is a whole short epoch, from asking the loader for an iterator to its last batch.

It is a report: nothing fails because it is slow. Writes benchmarks/results/data-DATE.md.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from common import Ratio, Report, Row, Section, Timed, argument_parser, enter_peers, machine, time_routes
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, SubsetRandomSampler

from src.data import transforms
from src.data.options import AugmentationOptions, DataOptions
from src.kernels.allocator import keep_memory

PICTURES, SIDE, CLASSES = 50_000, 32, 10  # as CIFAR-10
BATCH = 128
# Side of the network's input: batches of a turn, ours and a peer's. The slower they are, the fewer.
STEPS = {32: (60, 16), 64: (40, 12), 96: (20, 8), 224: (6, 3)}
POLICY_STEPS = (16, 8)
BARS = dict.fromkeys(STEPS, 5.0)  # over the faster of the two DataLoaders
PEERS = {"torchvision": ("torchvision==0.28.0",), "kornia": ("kornia==0.9.0", "kornia_rs==0.2.0")}
POLICIES = ("randaugment", "autoaugment_cifar10", "trivialaugment")
OURS = "ours: loader and hook"

Route = tuple[str, Callable[[], object], int]  # name, one turn, pictures in it


def pictures() -> NDArray[np.uint8]:
    """A set of noise: nothing here is faster or slower for what it shows."""
    return np.random.default_rng(0).integers(0, 256, (PICTURES, SIDE, SIDE, 3), np.uint8)


def data_module(images: NDArray[np.uint8], resolution: int, **augmentation: Any) -> Any:
    """The data module over a set that is there already."""
    # Not at the top: Lightning imports torchvision, which must be let in first.
    from src.data.module import ImageDataModule
    from src.data.splits import DataFacts, ImageData, ImageSplit, SealedSplit

    options = DataOptions("noise", "clutter", augmentation=AugmentationOptions(**augmentation))
    module = ImageDataModule(options, resolution, BATCH, BATCH, seed=0)
    split = ImageSplit(images, np.arange(len(images)) % CLASSES, None, np.arange(len(images)))
    facts = DataFacts("noise", tuple(map(str, range(CLASSES))), SIDE, has_boxes=False)
    module._data = ImageData(facts, split, split, SealedSplit(len(split), lambda: split), "noise")
    module._source = split
    module.mean, module.std = torch.full((3,), 0.5), torch.full((3,), 0.25)
    return module


def consume(batches: Iterable[object]) -> None:
    """Take all there are."""
    for _ in batches:
        pass


def our_epoch(module: Any, steps: int) -> Callable[[], None]:
    """The path of an arm."""
    loader = module.train_dataloader()
    loader.sampler.lengths = (steps,)
    return lambda: consume(module.on_after_batch_transfer(batch, 0) for batch in loader)


def gather_epoch(images: NDArray[np.uint8], steps: int) -> Callable[[], None]:
    """Its transforms alone: from rows of the set to normalised input."""
    held, options = torch.from_numpy(images), AugmentationOptions(flip=True)
    fill = torch.full((3,), 127, dtype=torch.uint8)
    scale, offset = transforms.lines(torch.full((3,), 0.5), torch.full((3,), 0.25), SIDE)
    order = torch.randperm(PICTURES)[: steps * BATCH].split(BATCH)

    def turn() -> None:
        for step, rows in enumerate(order):
            transforms.network_input(
                transforms.unmoved(held, fill, options, step, rows=rows), fill, SIDE, scale, offset
            )

    return turn


def validation_epoch(module: Any, steps: int) -> Callable[[], None]:
    """Copied batches, resized and normalised."""
    loader = module.val_dataloader()
    loader.sampler.rows = loader.sampler.rows[: steps * BATCH]
    return lambda: consume(module.on_after_batch_transfer(batch, 0) for batch in loader)


class PillowSet(Dataset[tuple[Tensor, int]]):
    """The same set, a Pillow picture at a time."""

    def __init__(self, images: NDArray[np.uint8], transform: Callable[[Image.Image], Tensor]) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[row])), row % CLASSES


class ByHand:
    """Crop with a black border, mirror, resize and normalise: Pillow and numpy without a layer between."""

    def __init__(self, resolution: int) -> None:
        self.resolution = resolution

    def __call__(self, picture: Image.Image) -> Tensor:
        right, down = random.randint(-4, 4), random.randint(-4, 4)
        picture = picture.crop((right, down, right + SIDE, down + SIDE))
        if random.random() < 0.5:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.resolution != SIDE:
            picture = picture.resize((self.resolution, self.resolution), Image.Resampling.BILINEAR)
        levels = np.asarray(picture, np.float32).transpose(2, 0, 1)
        return torch.from_numpy(levels * np.float32(4 / 255) - np.float32(2))


def by_torchvision(changes: Sequence[Any]) -> Callable[[Image.Image], Tensor]:
    """torchvision's transforms of Pillow pictures."""
    from torchvision import transforms as peer

    transform: Callable[[Image.Image], Tensor] = peer.Compose(
        [*changes, peer.ToTensor(), peer.Normalize((0.5,) * 3, (0.25,) * 3)]
    )
    return transform


def pillow_epoch(
    images: NDArray[np.uint8], steps: int, workers: int, transform: Callable[[Image.Image], Tensor]
) -> Callable[[], None]:
    """Pillow pictures in a DataLoader."""
    loader = DataLoader(
        PillowSet(images, transform),
        batch_size=BATCH,
        sampler=SubsetRandomSampler(range(steps * BATCH)),
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    return lambda: consume(loader)


def pillow_routes(
    images: NDArray[np.uint8], steps: int, transform: Callable[[Image.Image], Tensor], how: str
) -> list[Route]:
    """Without workers, and with two."""
    return [
        (
            f"DataLoader, {how}, {workers} workers",
            pillow_epoch(images, steps, workers, transform),
            steps * BATCH,
        )
        for workers in (0, 2)
    ]


def kornia_epoch(images: NDArray[np.uint8], resolution: int, steps: int) -> Callable[[], None]:
    """kornia's transforms, which also draw for each picture, on batches of tensors."""
    from kornia import augmentation as peer

    resize = [peer.Resize((resolution, resolution))] if resolution != SIDE else []
    change = torch.nn.Sequential(
        peer.RandomCrop((SIDE, SIDE), padding=4, padding_mode="reflect"),
        peer.RandomHorizontalFlip(),
        *resize,
        peer.Normalize(torch.full((3,), 0.5), torch.full((3,), 0.25)),
    )
    held = torch.from_numpy(images)
    order = torch.randperm(PICTURES)[: steps * BATCH].split(BATCH)

    def turn() -> None:
        for rows in order:
            change(held[rows].permute(0, 3, 1, 2).float().div_(255))

    return turn


def rate(timed: Timed, count: int) -> str:
    """Images a second with the interval of the median."""
    return f"{count / timed.seconds:,.0f} ({count / timed.high:,.0f} - {count / timed.low:,.0f})"


def compare(case: str, routes: list[Route], repeats: int) -> tuple[list[Row], list[tuple[Timed, int]]]:
    """Time routes in turns; rows show how many times as fast as each the first one is."""
    timed = time_routes([turn for _, turn, _ in routes], repeats)
    counts = [count for _, _, count in routes]
    rows: list[Row] = [
        (case, name, rate(t, count), f"{t.ratio * counts[0] / count:.2f}")
        for (name, _, count), t in zip(routes, timed, strict=True)
    ]
    return rows, list(zip(timed, counts, strict=True))


def ratio_to(case: str, routes: list[Route], timed: list[tuple[Timed, int]], bar: float | None) -> Ratio | None:
    """Ours over the fastest DataLoader."""
    peers = [place for place, route in enumerate(routes) if "DataLoader" in route[0]]
    if not peers:
        return None
    place = min(peers, key=lambda p: timed[p][0].seconds / timed[p][1])
    ours, theirs = timed[0], timed[place]
    scale = ours[1] / theirs[1]
    return Ratio(
        case=case,
        peer=routes[place][0],
        ours=ours[1] / ours[0].seconds,
        theirs=theirs[1] / theirs[0].seconds,
        unit="images/s",
        ratio=theirs[0].ratio * scale,
        low=theirs[0].ratio_low * scale,
        high=theirs[0].ratio_high * scale,
        bar=bar,
    )


HEAD = ("case", "route", "images/s (95 % interval)", "ours is x times as fast")


def in_memory(images: NDArray[np.uint8], repeats: int, missing: dict[str, str]) -> tuple[Section, list[Ratio]]:
    """Crop, mirror, resize and normalise at each side of the network's input."""
    rows: list[Row] = []
    ratios = []
    for resolution, (steps, fewer) in STEPS.items():
        case = f"{SIDE} px, crop + mirror" + (f", resized to {resolution} px" if resolution != SIDE else "")
        module = data_module(images, resolution, flip=True)
        routes: list[Route] = [(OURS, our_epoch(module, steps), steps * BATCH)]
        if resolution == SIDE:
            routes.append(("ours: transforms alone", gather_epoch(images, steps), steps * BATCH))
        routes.append(("ours: validation", validation_epoch(module, steps), steps * BATCH))
        routes += pillow_routes(images, fewer, ByHand(resolution), "Pillow")
        if "kornia" not in missing:
            routes.append(("kornia, transforms alone", kornia_epoch(images, resolution, fewer), fewer * BATCH))
        found_rows, timed = compare(case, routes, repeats)
        rows += found_rows
        ratio = ratio_to(case, routes, timed, BARS.get(resolution))
        ratios += [ratio] if ratio else []
    note = (
        f"{PICTURES:,} pictures of {SIDE} px in memory, batches of {BATCH}, normalised input of float32. Medians of"
        f" {repeats} turns; ratios are medians over turns."
    )
    return Section("Pictures in memory", note, HEAD, rows), ratios


def policies(images: NDArray[np.uint8], repeats: int, missing: dict[str, str]) -> tuple[Section, list[Ratio]]:
    """Augmentation beyond crop and mirror."""
    rows: list[Row] = []
    ratios = []
    steps, fewer = POLICY_STEPS
    cases: list[tuple[str, dict[str, Any]]] = [(f"{name}, crop + mirror", {"policy": name}) for name in POLICIES]
    cases += [
        ("crop + mirror + erasing", {"erasing": 0.25}),
        ("resized crop + mirror", {"resized_crop_area": (0.08, 1.0), "crop_padding": 0.0}),
    ]
    for case, options in cases:
        module = data_module(images, SIDE, flip=True, **options)
        routes: list[Route] = [(OURS, our_epoch(module, steps), steps * BATCH)]
        if "torchvision" not in missing:
            from torchvision import transforms as peer

            crop = peer.RandomCrop(SIDE, padding=4)
            named = {
                "randaugment": peer.RandAugment(),
                "autoaugment_cifar10": peer.AutoAugment(peer.AutoAugmentPolicy.CIFAR10),
                "trivialaugment": peer.TrivialAugmentWide(),
            }
            changes = [peer.RandomResizedCrop(SIDE)] if "resized_crop_area" in options else [crop]
            changes = [*changes, peer.RandomHorizontalFlip()]
            changes += [named[options["policy"]]] if "policy" in options else []
            if "erasing" not in options:  # torchvision erases after ToTensor: another pipeline
                routes += pillow_routes(images, fewer, by_torchvision(changes), "torchvision on Pillow")
        found_rows, timed = compare(case, routes, repeats)
        rows += found_rows
        ratio = ratio_to(f"{SIDE} px, {case}", routes, timed, None)
        ratios += [ratio] if ratio else []
    note = f"As above, at {SIDE} px. Ours and torchvision's policies have the same operations, ranges and frequencies."
    return Section("Policies", note, HEAD, rows), ratios


def main() -> None:
    """Run all sections, print and write them."""
    arguments = argument_parser("Time the ways from stored pictures to batches.", repeats=6).parse_args()
    missing = enter_peers(PEERS, PEERS)
    keep_memory()  # as an arm does
    console, about = Console(), machine("torchvision", "kornia", "pillow")
    images, sections, ratios = pictures(), [], []
    for run in (in_memory, policies):
        console.print(f"{run.__name__} ...")
        section, lines = run(images, arguments.repeats, missing)
        sections.append(section)
        ratios += lines
    gone = [f"{name}: {reason}" for name, reason in missing.items()]
    Report("data", "From pictures to batches", "python benchmarks/data.py", about, sections, ratios, gone).finish(
        arguments, console
    )


if __name__ == "__main__":
    main()
