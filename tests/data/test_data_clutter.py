from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import numpy as np
import pytest

from src.data import clutter
from src.data.options import ClutterOptions, DataOptions

SMALL = DataOptions("clutter", "clutter", clutter=ClutterOptions(train=40, val=20, test=30))


def test_shapes_labels_and_seal() -> None:
    data = clutter.load(SMALL)
    assert data.facts == clutter.facts(SMALL)
    assert data.train.images.shape == (40, 64, 64, 3) and data.test.size == 30 and data.test.openings == 0
    test = data.test.open()
    for split in (data.train, data.val, test):
        assert set(np.bincount(split.labels, minlength=10)) == {len(split) // 10}
        assert split.boxes is not None and split.images[np.arange(2)].dtype == np.uint8
    assert len({part.images[np.arange(1)].tobytes() for part in (data.train, data.val, test)}) == 3


def test_a_picture_does_not_depend_on_how_many_there_are() -> None:
    more = dataclasses.replace(SMALL, clutter=ClutterOptions(train=60, val=20, test=30))
    few, many = clutter.load(SMALL), clutter.load(more)
    rows = np.arange(40)
    assert np.array_equal(few.train.images[rows], many.train.images[rows])
    assert few.fingerprint != many.fingerprint


def test_fingerprint_follows_what_is_made_and_nothing_else() -> None:
    base = clutter.load(SMALL).fingerprint
    assert clutter.load(dataclasses.replace(SMALL, name="other", workers=3)).fingerprint == base
    changed = [
        dataclasses.replace(SMALL, split_seed=1),
        dataclasses.replace(SMALL, test_limit=10),
        dataclasses.replace(SMALL, clutter=dataclasses.replace(SMALL.clutter, test=31)),
        dataclasses.replace(SMALL, clutter=dataclasses.replace(SMALL.clutter, fragments=3)),
    ]
    assert len({base, *(clutter.load(options).fingerprint for options in changed)}) == 5


def test_no_scan_is_in_two_splits() -> None:
    scans = clutter._scans(0)
    assert sum(len(part.labels) for part in scans) == 1797
    # Two of the 1,797 scans are equal pictures only if they are the same scan: checked on the whole set first.
    unique = [{scan.tobytes() for scan in part.ink} for part in scans]
    assert sum(map(len, unique)) == 1797
    assert not unique[0] & unique[1] and not unique[0] & unique[2] and not unique[1] & unique[2]
    assert all(np.bincount(part.labels).min() > 20 for part in scans)


def test_each_split_is_composed_from_its_own_scans(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, used = clutter.compose, []
    monkeypatch.setattr(
        clutter, "compose", lambda scans, *args: used.append(scans.ink.tobytes()) or whole(scans, *args)
    )
    data = clutter.load(SMALL)
    assert len(used) == 60  # the sealed split is not made yet
    data.test.open()
    assert used == [
        scans.ink.tobytes() for scans, count in zip(clutter._scans(0), (40, 20, 30), strict=True) for _ in range(count)
    ]


def test_clusters_are_the_scans_that_the_digits_were_made_of() -> None:
    """Without fragments a picture changes with its own scan and with no other."""
    options, scans = ClutterOptions(fragments=0), clutter._scans(0)[2]
    places = {number: place for place, number in enumerate(scans.numbers.tolist())}
    for row in range(12):
        image, _, scan = clutter.compose(scans, row % 10, options, [0, row])
        own = np.arange(len(scans.labels)) == places[int(scan)]
        assert scans.labels[own] == row % 10
        for spoilt, same in ((~own, True), (own, False)):
            ink = np.where(spoilt[:, None, None], scans.ink[:, ::-1], scans.ink)
            again = clutter.compose(scans._replace(ink=ink), row % 10, options, [0, row])
            assert np.array_equal(again.images, image) == same and again.scans == scan


def test_all_splits_say_which_scans_they_share() -> None:
    data = clutter.load(dataclasses.replace(SMALL, clutter=ClutterOptions(train=40, val=20, test=990)))
    originals = [set(scans.numbers.tolist()) for scans in clutter._scans(0)]
    assert [len(split) for split in originals] == [1079, 269, 449] and len(set.union(*originals)) == 1797
    test = data.test.open()
    for split, own in zip((data.train, data.val, test), originals, strict=True):
        assert split.clusters is not None and set(split.clusters.tolist()) <= own
    assert test.clusters is not None and len(set(test.clusters.tolist())) > 400
    for cluster in np.unique(test.clusters):
        assert len(set(test.labels[test.clusters == cluster])) == 1


def test_what_was_kept_is_what_was_made(tmp_path: Path) -> None:
    options = dataclasses.replace(SMALL, cache=str(tmp_path), clutter=ClutterOptions(train=1000, val=20, test=30))
    first, second = clutter.load(options).train, clutter.load(options).train
    [kept] = tmp_path.glob("clutter/*.npz")
    kept.write_bytes(kept.read_bytes()[:-1000])
    third = clutter.load(options).train
    for split in (second, third):
        for name in ("images", "labels", "boxes", "identities", "clusters"):
            assert np.array_equal(getattr(split, name), getattr(first, name))


@pytest.mark.parametrize("fragments", [0, 6])
def test_box_holds_the_ink_of_the_digit_exactly(fragments: int) -> None:
    options = ClutterOptions(fragments=fragments, digit_min=16, digit_max=48)
    scans = clutter._scans(0)[0]
    for row in range(20):
        image, box, _ = clutter.compose(scans, row % 10, options, [0, row])
        x_min, y_min, x_max, y_max = box.astype(int)
        assert 0 <= x_min < x_max <= 64 and 0 <= y_min < y_max <= 64
        assert max(x_max - x_min, y_max - y_min) >= 10
        if not fragments:  # everything bright is the digit
            grey = image.max(2).astype(float)
            ink = grey > np.median(grey) + 0.75 * (grey.max() - np.median(grey))
            rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
            assert x_min <= columns[0] and columns[-1] < x_max and y_min <= rows[0] and rows[-1] < y_max
            assert columns[-1] - columns[0] + 1 >= 0.5 * (x_max - x_min)


def test_the_label_enters_through_the_digit_alone() -> None:
    """The same draws under another label: background, tint, fragments, noise stay to the bit, away from the digit."""
    scans, options = clutter._scans(0)[0], ClutterOptions()
    for row in range(10):
        made = [clutter.compose(scans, label, options, [5, row]) for label in (0, 1, 4, 7)]
        for image, box, _ in made[1:]:
            differs = np.argwhere((image != made[0][0]).any(2))
            low = np.minimum(box, made[0][1])[[1, 0]]
            high = np.maximum(box, made[0][1])[[3, 2]]
            assert len(differs) and (differs >= low - 16).all() and (differs < high + 16).all()
        assert any((made[0][0][0, 0] != made[0][0][y, 63]).any() for y in range(64))


def test_it_can_be_read_at_native_size() -> None:
    """The digit, cut out by its box, is classified by its nearest training cut-out far above chance."""
    data = clutter.load(DataOptions("c", "clutter", clutter=ClutterOptions(train=600, val=100, test=10)))

    def cut(split, row: int) -> np.ndarray:  # type: ignore[no-untyped-def, type-arg]
        from PIL import Image

        x_min, y_min, x_max, y_max = split.boxes[row].astype(int)
        grey = Image.fromarray(split.images[row][y_min:y_max, x_min:x_max]).convert("L").resize((8, 8))
        values = np.asarray(grey, float).ravel()
        return (values - values.mean()) / values.std()

    known = np.stack([cut(data.train, row) for row in range(600)])
    asked = np.stack([cut(data.val, row) for row in range(100)])
    guesses = data.train.labels[(asked @ known.T).argmax(1)]
    assert (guesses == data.val.labels).mean() > 0.8


def test_nine_thousand_pictures_take_seconds() -> None:
    scans = clutter._scans(0)[0]
    started = time.process_time()
    for row in range(300):
        clutter.compose(scans, row % 10, ClutterOptions(), [0, row])
    assert (time.process_time() - started) * 30 < 12  # 2.3 s on one quiet core
