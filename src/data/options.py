"""What a user may ask of the data: the schema of `conf/data/*.yaml`. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from src.choices import check_choice, parse_bytes

POLICIES = (
    "none",
    "randaugment",
    "autoaugment_imagenet",
    "autoaugment_cifar10",
    "autoaugment_svhn",
    "trivialaugment",
)
KINDS = ("clutter", "cifar10", "cifar100", "tiny_imagenet", "folder")
EVALUATIONS = ("whole", "released")


@dataclass(frozen=True)
class AugmentationOptions:
    """Training augmentation, drawn per picture at the stored size, before the resize to an arm's resolution.

    With resized crops, pictures that are decoded anew for each batch are cropped and mirrored from their files straight
    to the resolution, or the stored size where it is smaller, and the rest is done there.
    """

    crop_padding: float = 0.125  # largest random shift, as a fraction of the side; the border is reflected
    flip: bool = False  # mirror left-right with probability 1/2
    erasing: float = 0.0  # probability of erasing one rectangle (Zhong et al. 2020, area 2 to 33 %)
    policy: str = "none"  # one of POLICIES
    ops: int = 2  # randaugment: operations a picture, one after the other
    magnitude: int = 9  # randaugment: strength of all of them, 0 to 30
    resized_crop_area: tuple[float, ...] = ()  # smallest and largest share of a crop that is enlarged; (): no such crop

    def __post_init__(self) -> None:
        _between("data.augmentation.crop_padding", self.crop_padding, 0.0, 0.5)
        _between("data.augmentation.erasing", self.erasing, 0.0, 1.0)
        check_choice("data.augmentation.policy", self.policy, POLICIES)
        _between("data.augmentation.ops", self.ops, 1, 8)
        _between("data.augmentation.magnitude", self.magnitude, 0, 30)
        area = self.resized_crop_area
        if area and not (len(area) == 2 and 0.0 < area[0] <= area[1] <= 1.0):
            raise ValueError(
                f"data.augmentation.resized_crop_area={list(area)} is impossible: give the smallest and the largest"
                " share of the picture, such as [0.08, 1.0], or [] for no resized crop"
            )


@dataclass(frozen=True)
class ClutterOptions:
    """The embedded picture generator: a complete digit among fragments of digits."""

    train: int = 6000  # pictures
    val: int = 1000
    test: int = 2000
    canvas: int = 64  # side of a picture, pixels
    digit_min: int = 12  # side of the labelled digit's scan on the canvas, pixels
    digit_max: int = 24
    fragments: int = 4  # distracting fragments in a picture

    def __post_init__(self) -> None:
        for key in ("train", "val", "test"):
            _at_least(f"data.clutter.{key}", getattr(self, key), 10)
        _between("data.clutter.canvas", self.canvas, 16, 512)
        _between("data.clutter.digit_min", self.digit_min, 8, self.canvas)
        _between("data.clutter.digit_max", self.digit_max, self.digit_min, self.canvas)
        _between("data.clutter.fragments", self.fragments, 0, 64)


@dataclass(frozen=True)
class DataOptions:
    """One data set: where it comes from, how it is split, how it is fed.

    Raises:
        ValueError: a value is impossible; the sentence names key, value and the nearest possible choice.
    """

    name: str
    kind: str  # clutter | cifar10 | cifar100 | tiny_imagenet | folder
    root: str | None = None  # folder: directory that holds train/; the published sets: archive or copy (null: download)
    cache: str = "~/.cache/scalestudy"  # shared folder for downloads and decoded arrays
    download: bool = True  # cifar10, cifar100 and tiny_imagenet only
    val_fraction: float = 0.1  # of train/; unused by clutter and by a folder with both val/ and test/
    split_seed: int = 0  # of the data, never of a run: all arms and seeds see the same splits
    stored_pixels: int | None = None  # folder: side of the stored squares; null: median shorter side, at most 256
    classes: int | None = None  # folder: how many there must be; with stored_pixels a study can be planned without root
    train_limit: int | None = None  # stratified seeded subsets; null: everything
    val_limit: int | None = None
    test_limit: int | None = None
    evaluation: str = "whole"  # folder: val and test show the whole stored square, or the released centre crop
    workers: int | None = None  # DataLoader processes; null: none for sets that fit in memory, else one for each core
    memory_limit: str = "4GiB"  # folder: decoded once when all splits fit, otherwise decoded anew for each batch
    augmentation: AugmentationOptions = field(default_factory=AugmentationOptions)
    clutter: ClutterOptions = field(default_factory=ClutterOptions)

    def __post_init__(self) -> None:
        check_choice("data.kind", self.kind, KINDS)
        if not self.name.strip():
            raise ValueError(f"data.name={self.name!r} is empty: give the data a name to report it under")
        if self.kind == "folder" and not self.root and (self.classes is None or self.stored_pixels is None):
            raise ValueError(
                "data.root is missing: data.kind=folder needs the directory that holds train/ (or data.classes and"
                " data.stored_pixels, to plan a study without pictures)"
            )
        if self.kind == "clutter" and self.root:
            raise ValueError(f"data.root={self.root!r} is unused by data.kind=clutter: leave it null")
        if self.stored_pixels is not None:
            if self.kind != "folder":
                raise ValueError(f"data.stored_pixels={self.stored_pixels} needs data.kind=folder: leave it null")
            _between("data.stored_pixels", self.stored_pixels, 8, 1024)
        if self.classes is not None:
            if self.kind != "folder":
                raise ValueError(f"data.classes={self.classes} needs data.kind=folder: leave it null")
            _at_least("data.classes", self.classes, 2)
        if not 0.0 < self.val_fraction <= 0.5:
            raise ValueError(f"data.val_fraction={self.val_fraction} is impossible: choose above 0 and at most 0.5")
        for key in ("train_limit", "val_limit", "test_limit"):
            if getattr(self, key) is not None:
                _at_least(f"data.{key}", getattr(self, key), 1)
        _at_least("data.split_seed", self.split_seed, 0)
        if self.workers is not None:
            _at_least("data.workers", self.workers, 0)
        check_choice("data.evaluation", self.evaluation, EVALUATIONS)
        if self.evaluation == "released" and self.kind != "folder":
            raise ValueError(f"data.evaluation=released needs data.kind=folder, not {self.kind}: leave it at whole")
        parse_bytes("data.memory_limit", self.memory_limit)


def _between(key: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{key}={value} is out of range {low} to {high}: nearest is {low if value < low else high}")


def _at_least(key: str, value: int, low: int) -> None:
    if value < low:
        raise ValueError(f"{key}={value} is too small: choose at least {low}")
