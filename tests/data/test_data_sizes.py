"""Sizes of splits that are told before the pictures are there, against what the data module finds when they are."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.data.module import ImageDataModule
from src.data.options import ClutterOptions, DataOptions
from src.data.sizes import cut, split_sizes


def found(options: DataOptions) -> dict[str, int]:
    """Sizes once the pictures are loaded."""
    data = ImageDataModule(options, 16, 4, 4, 0)
    data.prepare_data()
    data.setup()
    return data.sizes


def tree(root: Path, **counts: int) -> Path:
    for split, count in counts.items():
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.full((16, 16, 3), 7 * number, np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


@pytest.mark.parametrize("limits", [{}, {"train_limit": 13, "val_limit": 500, "test_limit": 11}])
def test_of_the_embedded_pictures(tmp_path: Path, limits: dict[str, int]) -> None:
    made = ClutterOptions(train=40, val=20, test=30, canvas=32, digit_min=12, digit_max=16)
    options = DataOptions("clutter", "clutter", cache=str(tmp_path), clutter=made, **limits)  # type: ignore[arg-type]
    assert split_sizes(options) == found(options)


@pytest.mark.parametrize("counts", [{"train": 11, "test": 3}, {"train": 11, "val": 4, "test": 3}])
@pytest.mark.parametrize("limits", [{}, {"train_limit": 8, "val_limit": 3, "test_limit": 100}])
def test_of_a_folder(tmp_path: Path, counts: dict[str, int], limits: dict[str, int]) -> None:
    root = tree(tmp_path / "tree", **counts)
    options = DataOptions(
        "pets",
        "folder",
        root=str(root),
        cache=str(tmp_path / "cache"),
        val_fraction=0.3,
        **limits,  # type: ignore[arg-type]
    )
    assert split_sizes(options) == found(options)


def test_of_published_sets_that_are_not_here(tmp_path: Path) -> None:
    options = DataOptions("cifar10", "cifar10", cache=str(tmp_path))
    assert split_sizes(options) == {"train": 45_000, "val": 5_000, "test": 10_000}
    assert split_sizes(dataclasses.replace(options, kind="cifar100", val_fraction=0.02)) == {
        "train": 49_000,
        "val": 1_000,
        "test": 10_000,
    }
    tiny = dataclasses.replace(options, kind="tiny_imagenet", train_limit=500)
    assert split_sizes(tiny) == {"train": 500, "val": 10_000, "test": 10_000}
    assert list(tmp_path.iterdir()) == []


def test_what_is_only_declared_has_no_size_until_it_is_told() -> None:
    options = DataOptions("imagenet", "folder", classes=1000, stored_pixels=512, val_fraction=0.02)
    with pytest.raises(ValueError, match="--pictures TRAIN,TEST"):
        split_sizes(options)
    assert cut(options, 1_281_167, 50_000) == {"train": 1_255_544, "val": 25_623, "test": 50_000}  # as its file says
