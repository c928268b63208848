from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.data.splits import ImageSplit, SealedSplit, apportion, digest, hold_out, limit, stratified

class_sizes = st.lists(st.integers(2, 60), min_size=1, max_size=12)


@settings(deadline=None)
@given(class_sizes, st.floats(0, 1))
def test_shares_are_the_proportional_ones_rounded_and_sum_exactly(sizes: list[int], part: float) -> None:
    total = int(part * sum(sizes))
    shares = apportion(np.array(sizes, np.int64), total)
    exact = [Fraction(size * total, sum(sizes)) for size in sizes]
    assert shares.sum() == total
    assert all(abs(Fraction(int(share)) - value) < 1 for share, value in zip(shares, exact, strict=True))
    # Largest remainder: whoever was rounded up had at least the remainder of whoever was rounded down.
    up = [value % 1 for share, value in zip(shares, exact, strict=True) if share > value]
    down = [value % 1 for share, value in zip(shares, exact, strict=True) if share < value]
    assert not up or not down or min(up) >= max(down)


@settings(deadline=None)
@given(class_sizes, st.floats(0.01, 0.5), st.integers(0, 3), st.randoms(use_true_random=False))
def test_held_out_part_is_disjoint_exact_and_leaves_every_class_in_train(sizes, fraction, seed, random) -> None:  # type: ignore[no-untyped-def]
    labels = [label for label, size in enumerate(sizes) for _ in range(size)]
    random.shuffle(labels)
    array = np.array(labels, np.int64)
    if int(fraction * len(labels)) == 0:
        with pytest.raises(ValueError, match="val_fraction"):
            hold_out(array, fraction, seed)
        return
    train, val = hold_out(array, fraction, seed)
    assert sorted([*train, *val]) == list(range(len(labels)))
    assert len(val) == int(fraction * len(labels))
    assert np.array_equal(np.bincount(array[val], minlength=len(sizes)), apportion(np.array(sizes, np.int64), len(val)))
    assert set(array[train]) == set(labels)
    assert all(np.array_equal(a, b) for a, b in zip((train, val), hold_out(array, fraction, seed), strict=True))


def test_split_follows_its_seed_and_subsets_are_stratified() -> None:
    labels = np.arange(1000) % 10
    assert not np.array_equal(hold_out(labels, 0.1, 0)[1], hold_out(labels, 0.1, 1)[1])
    rows = limit(labels, 57, 0, 0)
    assert len(set(rows)) == 57 and set(np.bincount(labels[rows])) == {5, 6}
    assert not np.array_equal(rows, limit(labels, 57, 0, 1))
    assert np.array_equal(limit(labels, 5000, 0, 0), np.arange(1000))
    assert len(stratified(labels, 1, [0])) == 1


def test_a_class_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match="single training picture"):
        hold_out(np.array([0, 0, 0, 0, 1]), 0.4, 0)


def test_seal_breaks_once_and_loads_nothing_before() -> None:
    opened = []

    def opener() -> ImageSplit:
        opened.append(1)
        return ImageSplit(np.zeros((2, 4, 4, 3), np.uint8), np.zeros(2, np.int64), None, np.arange(2))

    test = SealedSplit(2, opener)
    assert (test.openings, opened, test.size) == (0, [], 2)
    assert len(test.open()) == 2
    with pytest.raises(RuntimeError, match="opened before"):
        test.open()
    assert (test.openings, opened) == (1, [1])


def test_digest_tells_parts_apart() -> None:
    assert len({digest(["a", "b"]), digest("a", "b"), digest("ab"), digest(np.arange(3)), digest(np.arange(4))}) == 5
