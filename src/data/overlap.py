"""Whether pictures that judge a network also train it (guard G4): equal files in two splits; none is decoded.

Only files of equal size can be equal, so few of the others are read. Of a large split some pictures are looked at,
evenly spread: a validation split that is a copy of the test split is found by the first of them.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from src.data.splits import digest
from src.data.storage import make_once
from src.data.streaming import cores
from src.guards import named

if TYPE_CHECKING:
    from src.data.folder import Listing

log = logging.getLogger(__name__)

LOOKED_AT = 500  # files of the smaller split
LARGEST_SHARE = 0.05  # of these that may recur: CIFAR-10 itself has some; more is a mistake
FEWEST = 25  # common pictures that are refused; fewer can be an accident of a handful of files, and are said
_ORDER = ("train", "val", "test")


def check_apart(files: Mapping[str, Listing], cache: Path) -> None:
    """Refuse splits that share pictures, once for each tree of files; a few common ones are said.

    Args:
        files: of train, val and test.
        cache: where the answer is kept.

    Raises:
        ValueError: `FEWEST` pictures or more, and more than `LARGEST_SHARE` of those looked at, stand in another split.
    """
    parts = [part for split in _ORDER for part in (split, list(files[split].names), files[split].sizes)]
    times = [files[split].times for split in _ORDER]
    places = [str(files[split].folder.resolve()) for split in _ORDER]
    key = digest("overlap", LOOKED_AT, places, *parts, *times)

    def write(target: Path) -> None:
        pairs = itertools.combinations(_ORDER, 2)
        found = {f"{one} {other}": _shared(files[one], files[other]) for one, other in pairs}
        target.write_text(json.dumps(found))

    kept = make_once(cache.expanduser() / "overlap" / f"{key[:32]}.json", write)
    for pair, (shared, looked) in json.loads(kept.read_text()).items():
        one, other = pair.split()
        text = f"{shared} of {looked} pictures of {other}/ that were looked at stand in {one}/ too"
        if shared >= FEWEST and shared > LARGEST_SHARE * looked:
            fix = "what judges a network must not have trained or chosen it; take them out of one of the two"
            raise ValueError(named("G4", f"data.root: {text}: {fix}"))
        if shared:
            log.warning(named("G4", text))


def _shared(one: Listing, other: Listing) -> tuple[int, int]:
    """How many files of `other` have an equal one in `one`, and how many were looked at."""
    rows = np.unique(np.linspace(0, len(other.names) - 1, min(LOOKED_AT, len(other.names))).astype(np.int64))
    rivals = np.flatnonzero(np.isin(one.sizes, other.sizes[rows]))
    rows_there = rows[np.isin(other.sizes[rows], one.sizes)]
    with ThreadPoolExecutor(cores()) as pool:
        known = set(pool.map(lambda row: _hash(one, row), rivals))
        shared = sum(content in known for content in pool.map(lambda row: _hash(other, row), rows_there))
    return shared, len(rows)


def _hash(files: Listing, row: np.int64) -> bytes:
    with (files.folder / files.names[row]).open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
