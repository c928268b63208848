"""Any tree with a folder a class: `root/train/<class>/...` beside `root/test/` or `root/val/`.

Without a root there are no pictures, but a study can still be planned from the classes and the side that are declared.

What is not train is the sealed test split, and validation is cut out of train. Where both val/ and test/ exist, val/ is
the validation split, test/ the sealed one, and `val_fraction` is unused. Pictures may lie any number of folders below
their class. Each becomes an RGB square: the shorter side is resized to `stored_pixels`, then the centre square is kept.

`root/boxes.csv` (columns split, class, file, x_min, y_min, x_max, y_max; the first and last pixel of an object, counted
from 0 in the file's own pixels; one row a picture) gives boxes. `root/classes.csv` (columns class, name) gives readable
class names.
"""

from __future__ import annotations

import csv
import hashlib
import logging
import math
import os
import stat
import statistics
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from src.choices import parse_bytes
from src.data.options import DataOptions
from src.data.overlap import check_apart
from src.data.progress import progress
from src.data.splits import DataFacts, ImageData, ImageSplit, Pictures, SealedSplit, digest, hold_out, limit
from src.data.storage import make_once, require_space
from src.data.streaming import FilePictures, Names, cores, decode, size

log = logging.getLogger(__name__)

VERSION = 1  # of the decoding below: raise it when a stored picture would change
EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
LARGEST_DEFAULT = 256  # pixels
HEADERS_SAMPLED = 256
CHUNK = 64  # files a thread decodes at a time
BOX_COLUMNS = ("split", "class", "file", "x_min", "y_min", "x_max", "y_max")


@dataclass(frozen=True)
class Listing:
    """One split's files in order: paths relative to `folder`, labels (n,), sizes in bytes (n,), mtimes in ns (n,)."""

    folder: Path
    names: Names
    labels: NDArray[np.int64]
    sizes: NDArray[np.int64]
    times: NDArray[np.int64]

    def take(self, rows: NDArray[np.int64]) -> Listing:
        """Some of the files."""
        return Listing(self.folder, self.names.take(rows), self.labels[rows], self.sizes[rows], self.times[rows])


@dataclass(frozen=True)
class Plan:
    """Which files are which split; `rows` are their places in the source folders' listings."""

    facts: DataFacts
    files: dict[str, Listing]  # by train, val, test
    rows: dict[str, NDArray[np.int64]]
    fits: bool  # all splits, decoded, fit into memory_limit


def facts(options: DataOptions) -> DataFacts:
    """Classes and stored side, from directory listings and the headers of some files; as declared without a root.

    Declared classes have no names yet, and boxes are not known of: such facts are for planning, never for a result.

    Raises:
        ValueError: the tree cannot be used; one sentence says why and what to do.
    """
    if options.root:
        return _plan(options).facts
    assert options.classes is not None and options.stored_pixels is not None
    names = tuple(f"class {number}" for number in range(1, options.classes + 1))
    return DataFacts(options.name, names, options.stored_pixels, has_boxes=False)


def check_available(options: DataOptions) -> None:
    """Refuse a data set that is only declared.

    Raises:
        ValueError: there is no root, or no train/ in it.
    """
    train = _root(options) / "train"
    if not train.is_dir():
        raise ValueError(f"data.root={options.root} has no train/: put a folder a class into {train}")


def prepare(options: DataOptions) -> None:
    """Decode train and validation into the cache, once for all processes; of the test split files are compared with
    theirs, and none is decoded.

    Raises:
        ValueError: splits share pictures.
    """
    plan = _plan(options)
    check_apart(plan.files, Path(options.cache))
    for split in ("train", "val"):
        pictures(plan, split, options)


def load(options: DataOptions) -> ImageData:
    """Open the decoded train and validation pictures, seal test.

    The fingerprint covers relative paths and file sizes of all splits, the stored side, the boxes and the decoder's
    version; no picture of the test split is read for it. It does not see a file replaced by another of the same size.
    """
    plan = _plan(options)
    root = _root(options)
    boxes = (root / "boxes.csv").read_bytes() if plan.facts.has_boxes else b""
    fingerprint = digest(
        "folder", VERSION, plan.facts.class_names, plan.facts.native_pixels, hashlib.sha256(boxes).hexdigest(),
        *(part for files in plan.files.values() for part in (files.folder.name, list(files.names), files.sizes)),
    )  # fmt: skip
    train, val = (_split(plan, split, options) for split in ("train", "val"))
    test = SealedSplit(len(plan.rows["test"]), lambda: _split(plan, "test", options))
    return ImageData(plan.facts, train, val, test, fingerprint)


def square_boxes(boxes: NDArray[np.float32], sizes: NDArray[np.int64], side: int) -> NDArray[np.float32]:
    """Boxes (n, 4) in pixel edges of files of (width, height) `sizes` (n, 2), in the centre square of `side` pixels.

    What sticks out of the square is cut off; a box wholly outside becomes NaN.
    """
    short = sizes.min(1, keepdims=True)
    offset = np.tile((sizes - short) / 2, 2)
    moved = np.clip((boxes - offset) * (side / short), 0, side)
    moved[(moved[:, 2:] <= moved[:, :2]).any(1)] = np.nan
    return moved.astype(np.float32)


def _root(options: DataOptions) -> Path:
    if not options.root:
        raise ValueError(
            f"data.root has no value: {options.name} can be planned from its declared facts (dry_run=true), but"
            " training needs the directory that holds train/; give it as data.root=..."
        )
    return Path(options.root).expanduser()


def _plan(options: DataOptions) -> Plan:
    check_available(options)
    root = _root(options)
    held_out = [name for name in ("val", "test") if (root / name).is_dir()]
    if not held_out:
        raise ValueError(f"data.root={options.root} has neither test/ nor val/: add one, the sealed test split")
    if len({(root / name).resolve() for name in ("train", *held_out)}) <= len(held_out):
        raise ValueError(f"data.root={options.root}: two of train/, val/, test/ are one folder: make them differ")
    classes = sorted(
        entry.name for entry in os.scandir(root / "train") if entry.is_dir() and not entry.name.startswith(".")
    )
    if len(classes) < 2:
        raise ValueError(f"{root / 'train'} holds {len(classes)} class folders: at least two are needed")
    if options.classes not in (None, len(classes)):
        raise ValueError(
            f"data.classes={options.classes} was declared and {root / 'train'} holds {len(classes)} class folders:"
            f" point data.root at the right pictures or set data.classes={len(classes)}"
        )
    source = list_files(root / "train", classes)
    others = {name: list_files(root / name, classes) for name in held_out}
    side = options.stored_pixels or _typical_side(source)
    found = DataFacts(options.name, _class_names(root, classes), side, (root / "boxes.csv").is_file())
    return arrange(options, found, source, others)


def arrange(options: DataOptions, found: DataFacts, source: Listing, others: dict[str, Listing]) -> Plan:
    """Cut validation out of `source` where there is but one other listing, the sealed one, and apply the limits.

    Args:
        options: the data set.
        found: what is known of it.
        source: the files of train.
        others: listings of val and test, or one, of any name.

    Raises:
        ValueError: validation would be empty.
    """
    every = np.arange(len(source.labels))
    if len(others) == 2:
        files, rows = {"train": source, **others}, {"train": every, "val": np.arange(len(others["val"].labels))}
    else:
        train, val = hold_out(source.labels, options.val_fraction, options.split_seed)
        (sealed,) = others.values()
        files, rows = {"train": source, "val": source, "test": sealed}, {"train": train, "val": val}
    rows["test"] = np.arange(len(files["test"].labels))
    for stream, split in enumerate(("train", "val", "test")):
        kept = limit(files[split].labels[rows[split]], getattr(options, f"{split}_limit"), options.split_seed, stream)
        rows[split] = rows[split][kept]
    pixels = found.native_pixels**2 * 3
    fits = sum(len(part) for part in rows.values()) * pixels <= parse_bytes("data.memory_limit", options.memory_limit)
    return Plan(found, {split: files[split].take(rows[split]) for split in ("train", "val", "test")}, rows, fits)


def list_files(folder: Path, classes: list[str]) -> Listing:
    """All pictures below `folder/<class>/`, class by class, by name.

    Raises:
        ValueError: there is another class, one without pictures, or something that is no file.
    """
    extra = sorted(
        {entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")} - set(classes)
    )
    if extra:
        raise ValueError(f"{folder} has the class {extra[0]!r}, which train/ lacks: add it to train/ or remove it here")
    found: list[tuple[str, int, int, int]] = []
    for label, name in enumerate(classes):
        before = len(found)
        for place, folders, names in os.walk(folder / name):
            folders[:] = [entry for entry in folders if not entry.startswith(".")]
            for file in names:
                if not file.startswith(".") and os.path.splitext(file)[1].lower() in EXTENSIONS:
                    path = f"{place}{os.sep}{file}"
                    status = os.stat(path)
                    if not stat.S_ISREG(status.st_mode):  # to open a pipe would wait for ever
                        raise ValueError(f"{path} is no file: remove it, or put the picture itself there")
                    inner = path[len(str(folder)) + 1 :].replace(os.sep, "/")
                    found.append((inner, label, status.st_size, status.st_mtime_ns))
        if len(found) == before and (folder.name == "train" or (folder / name).is_dir()):
            raise ValueError(f"{folder / name} holds no pictures: add some or remove the class")
    if not found:
        raise ValueError(f"{folder} holds no pictures of the classes in train/: fill it or remove it")
    found.sort(key=lambda entry: (entry[1], entry[0]))
    columns = (np.array(column, np.int64) for column in list(zip(*found, strict=True))[1:])
    return Listing(folder, Names.of(entry[0] for entry in found), *columns)


def _class_names(root: Path, classes: list[str]) -> tuple[str, ...]:
    """Names from classes.csv, up to the first comma, where there are any and all differ; else the folders'."""
    if (root / "classes.csv").is_file():
        rows = _rows(root / "classes.csv")
        known = {row.get("class"): (row.get("name") or "").split(",")[0].strip() for row in rows}
        names = tuple(known.get(name) or name for name in classes)
        if len(set(names)) == len(names):
            return names
    return tuple(classes)


def _rows(table: Path) -> list[dict[str, str]]:
    """Lines of a CSV file by column.

    Raises:
        ValueError: it is no text; names it.
    """
    try:
        with table.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{table} is no CSV text in UTF-8 ({error}): save it as such or remove it") from error


def _typical_side(files: Listing) -> int:
    picked = np.unique(np.linspace(0, len(files.names) - 1, HEADERS_SAMPLED).astype(int))
    return min(
        LARGEST_DEFAULT, int(statistics.median_low(min(size(files.folder / files.names[row])) for row in picked))
    )


def _split(plan: Plan, split: str, options: DataOptions) -> ImageSplit:
    files = plan.files[split]
    boxes = _boxes(plan, split, options) if plan.facts.has_boxes else None
    return ImageSplit(pictures(plan, split, options), files.labels, boxes, plan.rows[split])


def pictures(plan: Plan, split: str, options: DataOptions) -> Pictures:
    """The decoded pictures of a split: memory-mapped from the cache, or read file by file if too large.

    Those that are evaluated by the released crop are always read from their files: it depends on the resolution.
    """
    files, side = plan.files[split], plan.facts.native_pixels
    released = options.evaluation == "released" and split != "train"
    if released or not plan.fits:
        if not released:
            log.warning(
                "%s is larger than data.memory_limit=%s: %s is decoded anew for each batch",
                options.name,
                options.memory_limit,
                split,
            )
        return FilePictures(files.folder, files.names, side, released=released)

    def make(target: Path) -> None:
        require_space(target.parent, len(files.names) * side * side * 3)
        array = np.lib.format.open_memmap(target, "w+", np.uint8, (len(files.names), side, side, 3))
        _decode_all(files, array, f"decoding {options.name} {split}")
        array.flush()

    stored: NDArray[np.uint8] = np.load(make_once(_cached(files, side, options), make), mmap_mode="r")
    return stored


def _decode_all(files: Listing, target: NDArray[np.uint8], what: str) -> None:
    """Decode into `target` (n, side, side, 3) on all cores: most of the work is done without Python's lock."""
    count = len(files.names)

    def fill(start: int) -> int:
        end = min(start + CHUNK, count)
        for row in range(start, end):
            target[row] = decode(f"{files.folder}{os.sep}{files.names[row]}", target.shape[1])
        return end

    with ThreadPoolExecutor(cores()) as pool, progress(what, count) as tell:
        try:
            for done in pool.map(fill, range(0, count, CHUNK)):
                tell(done)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _boxes(plan: Plan, split: str, options: DataOptions) -> NDArray[np.float32]:
    """Boxes of a split's files in pixel edges of the stored squares, NaN where boxes.csv has none."""
    files, side, table = plan.files[split], plan.facts.native_pixels, _root(options) / "boxes.csv"
    known = _read_boxes(table, files.folder.name)

    def make(target: Path) -> None:
        boxes, sizes = np.full((len(files.names), 4), np.nan, np.float32), np.ones((len(files.names), 2), np.int64)
        for row, name in enumerate(files.names):
            label, _, inner = name.partition("/")
            box = known.get((label, inner)) or known.get((label, Path(inner).name))
            if box is not None:
                boxes[row], sizes[row] = box, size(files.folder / name)
                if (boxes[row][:2] >= sizes[row]).any() or (boxes[row][2:] <= 0).any():
                    width, height = sizes[row]
                    raise ValueError(
                        f"{table}: the box of {files.folder.name}/{name} lies outside its {width}x{height} pixels;"
                        " correct it or leave the picture out of the table"
                    )
        with target.open("wb") as file:
            np.save(file, square_boxes(boxes, sizes, side))

    cached = make_once(_cached(files, side, options, hashlib.sha256(table.read_bytes()).hexdigest()), make)
    found: NDArray[np.float32] = np.load(cached)
    return found


def _cached(files: Listing, side: int, options: DataOptions, *more: str) -> Path:
    key = digest(VERSION, side, str(files.folder.resolve()), list(files.names), files.sizes, files.times, *more)
    return Path(options.cache).expanduser() / "folder" / f"{key[:32]}.npy"


def _read_boxes(path: Path, split: str) -> dict[tuple[str, str], tuple[float, float, float, float]]:
    found = {}
    for number, row in enumerate(_rows(path), start=2):
        try:
            x_min, y_min, x_max, y_max = (float(row[column]) for column in BOX_COLUMNS[3:])
            where = row["split"], row["class"], row["file"]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {number} is no box: the columns are {', '.join(BOX_COLUMNS)}") from error
        if not math.isfinite(x_min + y_min + x_max + y_max):
            raise ValueError(f"{path}, line {number}: the box of {where[2]} has no finite corner; remove the line")
        if x_max < x_min or y_max < y_min:
            raise ValueError(f"{path}, line {number}: the box of {where[2]} ends before it begins; swap its corners")
        if where[0] == split:
            found[where[1:]] = (x_min, y_min, x_max + 1, y_max + 1)
    return found
