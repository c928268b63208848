"""CIFAR-10 (Krizhevsky 2009): 50,000 train and 10,000 test pictures of 32 x 32 in ten classes.

Read from the published archives, binary (downloaded on first use) or python, from what they unpack to, or from a
class-per-folder copy, which is then reported as a copy: re-encoded pictures are not CIFAR-10.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import logging
import pickle
import shutil
import tarfile
import urllib.request
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy._core.multiarray import _reconstruct
from numpy.typing import NDArray

from src.data import folder
from src.data.options import DataOptions
from src.data.splits import DataFacts, ImageData, ImageSplit, SealedSplit, digest, hold_out, limit
from src.data.storage import make_once

log = logging.getLogger(__name__)

SIDE = 32
RECORD = 1 + 3 * SIDE * SIDE  # bytes: label, then the red, green and blue plane
RECORDS_PER_FILE = 10_000
CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
BINARY = "cifar-10-binary.tar.gz"
URL = f"https://www.cs.toronto.edu/~kriz/{BINARY}"
# md5 sums as published on https://www.cs.toronto.edu/~kriz/cifar.html
MD5 = {BINARY: "c32a1d4ab5d03f1284b67883e8d87530", "cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a"}
UNPACKED = ("cifar-10-batches-bin", "cifar-10-batches-py")


class Batches(NamedTuple):
    """Files of an unpacked archive, in published order."""

    train: list[Path]
    test: Path


def facts(options: DataOptions) -> DataFacts:
    """What the data will be, without a download.

    Raises:
        ValueError: `data.root` holds no CIFAR-10, or there is none and downloading is switched off.
    """
    if _is_tree(options):
        return _tree_facts(options)
    _find_archive(options)
    return DataFacts(options.name, CLASS_NAMES, SIDE, has_boxes=False)


def check_available(options: DataOptions) -> None:
    """Whether the pictures are here or may be downloaded; does not try whether a download would work.

    Raises:
        ValueError: neither.
    """
    if not _is_tree(options):
        _find_archive(options)


def prepare(options: DataOptions) -> None:
    """Download and unpack, once for all processes, whatever is missing."""
    if _is_tree(options):
        folder.prepare(options)
    else:
        _batches(options)


def load(options: DataOptions) -> ImageData:
    """Read train, cut validation out of it, seal test.

    The fingerprint covers the sha256 of all six batch files (the test file is hashed as raw bytes, not decoded) and the
    rows of each split. The binary and the python archive hold the same pictures and have different fingerprints.
    """
    if _is_tree(options):
        return dataclasses.replace(folder.load(options), facts=_tree_facts(options))
    batches = _batches(options)
    parts = [_read(path) for path in batches.train]
    images, labels = np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])
    train, val = hold_out(labels, options.val_fraction, options.split_seed)
    train = train[limit(labels[train], options.train_limit, options.split_seed, 0)]
    val = val[limit(labels[val], options.val_limit, options.split_seed, 1)]

    def open_test() -> ImageSplit:
        pictures, answers = _read(batches.test)
        rows = limit(answers, options.test_limit, options.split_seed, 2)
        return ImageSplit(pictures[rows], answers[rows], None, rows)

    test = SealedSplit(min(RECORDS_PER_FILE, options.test_limit or RECORDS_PER_FILE), open_test)
    files = [_hash(path, "sha256") for path in (*batches.train, batches.test)]
    fingerprint = digest("cifar10", files, train, val, options.test_limit, options.split_seed)
    splits = [ImageSplit(images[rows], labels[rows], None, rows) for rows in (train, val)]
    return ImageData(facts(options), splits[0], splits[1], test, fingerprint)


def _is_tree(options: DataOptions) -> bool:
    return options.root is not None and (Path(options.root).expanduser() / "train").is_dir()


def _tree_facts(options: DataOptions) -> DataFacts:
    found = folder.facts(options)
    if found.class_names != CLASS_NAMES:
        raise ValueError(f"data.root={options.root} has not CIFAR-10's ten classes: use data.kind=folder")
    return dataclasses.replace(found, name=f"{options.name} (folder copy)")


def _find_archive(options: DataOptions) -> Path | None:
    """The unpacked directory or the archive that `root` or the cache holds; None when it has to be downloaded."""
    if options.root is not None:
        root = Path(options.root).expanduser()
        places = [root, *(root / name for name in UNPACKED), *(root / name for name in MD5)]
        for place in places:
            if place.is_file() or (place / "data_batch_1.bin").exists() or (place / "data_batch_1").exists():
                return place
        raise ValueError(
            f"data.root={options.root} holds no CIFAR-10: expected {BINARY}, cifar-10-python.tar.gz, one of "
            f"{', '.join(UNPACKED)}, or train/ and test/ with a folder a class"
        )
    cached = _cache(options) / BINARY
    if not cached.exists() and not _unpacked(options, BINARY).exists():
        if not options.download:
            raise ValueError(f"CIFAR-10 is not in {cached.parent} and data.download=false: {_by_hand(cached)}")
        return None
    return cached


def _batches(options: DataOptions) -> Batches:
    place = _find_archive(options)
    if place is None:
        place = make_once(_cache(options) / BINARY, _download)
    if not place.is_dir():
        place = _unpack(place, options)
    suffix = ".bin" if (place / "data_batch_1.bin").exists() else ""
    batches = Batches([place / f"data_batch_{number}{suffix}" for number in range(1, 6)], place / f"test_batch{suffix}")
    missing = [path.name for path in (*batches.train, batches.test) if not path.is_file()]
    if missing:
        raise ValueError(f"{place} lacks {', '.join(missing)}: unpack the whole CIFAR-10 archive again")
    return batches


def _cache(options: DataOptions) -> Path:
    return Path(options.cache).expanduser() / "cifar10"


def _unpacked(options: DataOptions, archive: str) -> Path:
    return _cache(options) / f"unpacked-{MD5[archive]}"


def _download(path: Path) -> None:
    log.info("downloading %s (162 MB) to %s", URL, path.parent)
    try:
        with urllib.request.urlopen(URL, timeout=60) as response, path.open("wb") as target:
            shutil.copyfileobj(response, target, 2**20)
    except OSError as error:
        raise ValueError(f"CIFAR-10 cannot be downloaded ({error}): {_by_hand(path.parent / BINARY)}") from error
    _verify(path, BINARY)


def _by_hand(path: Path) -> str:
    return f"fetch {URL} elsewhere and put it at {path}, or point data.root at a copy"


def _verify(path: Path, archive: str) -> None:
    found = _hash(path, "md5")
    if found != MD5[archive]:
        raise ValueError(f"{path} has md5 {found} and the published {archive} has {MD5[archive]}: fetch it again")


def _unpack(archive: Path, options: DataOptions) -> Path:
    """Unpack the six batch files of a verified archive into the cache."""
    if archive.name not in MD5:
        raise ValueError(f"data.root={archive} is not a CIFAR-10 archive: its name should be {' or '.join(MD5)}")

    def make(target: Path) -> None:
        _verify(archive, archive.name)
        target.mkdir()
        try:
            with tarfile.open(archive, "r:gz") as tar:
                for member in tar:
                    name = Path(member.name).name
                    source = tar.extractfile(member) if name.startswith(("data_batch_", "test_batch")) else None
                    if source is not None:
                        with source, (target / name).open("wb") as file:
                            shutil.copyfileobj(source, file, 2**20)
        except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
            raise ValueError(f"{archive} cannot be unpacked ({error}): fetch it again") from error

    return make_once(_unpacked(options, archive.name), make)


def _read(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pictures (n, 32, 32, 3) and labels (n,) of one batch file.

    Raises:
        ValueError: the file is truncated, holds other than 10,000 records, or is not what it should be.
    """
    if path.suffix == ".bin":
        content = np.fromfile(path, np.uint8)
        if content.size != RECORDS_PER_FILE * RECORD:
            raise ValueError(
                f"{path} does not hold {RECORDS_PER_FILE} records of {RECORD} bytes: unpack the archive again"
            )
        records = content.reshape(-1, RECORD)
        labels, planes = records[:, 0].astype(np.int64), records[:, 1:]
    else:
        labels, planes = _read_pickle(path)
    if labels.min() < 0 or labels.max() >= len(CLASS_NAMES):
        raise ValueError(f"{path} holds labels outside 0 to 9: unpack the archive again")
    return np.ascontiguousarray(planes.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)), labels


class _ArraysOnly(pickle.Unpickler):
    """Rebuilds numpy arrays and plain containers; whatever else a pickle asks for is refused, so it cannot run code."""

    ALLOWED: ClassVar[dict[tuple[str, str], Callable[..., Any]]] = {
        ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return self.ALLOWED[module, name]


def _read_pickle(path: Path) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    try:
        content = _ArraysOnly(io.BytesIO(path.read_bytes()), encoding="bytes").load()
        planes, labels = content[b"data"], np.array(content[b"labels"], np.int64)
        whole = planes.dtype == np.uint8 and planes.shape == (RECORDS_PER_FILE, RECORD - 1) == (len(labels), RECORD - 1)
    except Exception as error:  # a damaged pickle can raise anything
        raise ValueError(f"{path} is refused as a CIFAR-10 batch ({error}): unpack the archive again") from error
    if not whole:
        raise ValueError(f"{path} does not hold {RECORDS_PER_FILE} whole pictures: unpack the archive again")
    return labels, planes


def _hash(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()
