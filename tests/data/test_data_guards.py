"""What reaches a network is held against what was declared, and what judges it against what trains it."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from src.data.module import ImageDataModule
from src.data.options import AugmentationOptions, ClutterOptions, DataOptions
from src.data.selfcheck import check_input

TINY = ClutterOptions(train=64, val=20, test=20)
NONE = {"crop_padding": 0.0, "flip": False}
AUGMENTATIONS: tuple[dict[str, Any], ...] = (
    NONE,
    {"crop_padding": 0.125, "flip": True},
    {**NONE, "flip": True},
    {**NONE, "crop_padding": 0.02},
    {**NONE, "erasing": 0.01},
    {**NONE, "erasing": 1.0},
    {**NONE, "resized_crop_area": (0.08, 1.0)},
    *({**NONE, "policy": name} for name in ("randaugment", "autoaugment_imagenet", "trivialaugment")),
)


def module(resolution: int, options: DataOptions) -> ImageDataModule:
    data = ImageDataModule(options, resolution, 8, 8, seed=0)
    data.prepare_data()
    data.setup()
    return data


def clutter(resolution: int = 32, **augmentation: Any) -> ImageDataModule:
    declared = AugmentationOptions(**augmentation)
    return module(resolution, DataOptions("clutter", "clutter", clutter=TINY, augmentation=declared))


@pytest.mark.parametrize("augmentation", AUGMENTATIONS, ids=str)
@pytest.mark.parametrize("resolution", [32, 64, 81])
def test_every_augmentation_at_every_side_passes(resolution: int, augmentation: dict[str, Any]) -> None:
    check_input(clutter(resolution, **augmentation))


def test_what_is_not_declared_may_not_act(monkeypatch: pytest.MonkeyPatch) -> None:
    data, other = clutter(**NONE), clutter(flip=True)
    real = ImageDataModule.prepare_batch
    monkeypatch.setattr(ImageDataModule, "prepare_batch", lambda self, *rest: real(other, *rest))
    with pytest.raises(RuntimeError, match=r"no augmentation was declared, .* \(guard G6\)"):
        check_input(data)


def test_statistics_of_another_set_are_found() -> None:
    data = clutter()
    data._ready(torch.device("cpu"))  # the constants that pictures are normalised with are made once
    data.mean = data.mean + 0.2
    with pytest.raises(RuntimeError, match=r"standard deviations from the whole pictures.*\(guard G7\)"):
        check_input(data)


def test_pictures_of_one_colour_cannot_be_moved_and_are_no_mistake(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name, colour in {"a": (200, 10, 10), "b": (10, 10, 200)}.items():
            (tmp_path / "d" / split / name).mkdir(parents=True)
            for number in range(8):
                Image.new("RGB", (20, 20), colour).save(tmp_path / "d" / split / name / f"{number}.png")
    options = DataOptions("plain", "folder", root=str(tmp_path / "d"), cache=str(tmp_path / "c"), val_fraction=0.3)
    check_input(module(32, options))


def tree(root: Path, **counts: int) -> Path:
    rng = np.random.default_rng(0)
    for split, count in counts.items():
        for name in "ab":
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(root / split / name / f"{number}.bmp")
    return root


def prepare(root: Path) -> None:
    options = DataOptions("mine", "folder", root=str(root), cache=str(root.parent / "cache"), val_fraction=0.2)
    ImageDataModule(options, 8, 4, 4, seed=0).prepare_data()


@pytest.mark.parametrize(("copied", "onto"), [("test", "val"), ("train", "test"), ("train", "val")])
def test_a_split_that_is_a_copy_is_refused(tmp_path: Path, copied: str, onto: str) -> None:
    root = tree(tmp_path / "d", train=30, val=30, test=30)  # all files have one size
    prepare(root)
    shutil.rmtree(root / onto)
    shutil.copytree(root / copied, root / onto)
    with pytest.raises(ValueError, match=rf"60 of 60 pictures of {max(copied, onto, key=ORDER.index)}/.*\(guard G4\)"):
        prepare(root)


ORDER = ("train", "val", "test")


def test_a_few_common_pictures_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tree(tmp_path / "d", train=40, test=40)
    for number in range(3):
        shutil.copy(root / "train" / "a" / f"{number}.bmp", root / "test" / "b" / f"{number}.bmp")
    with caplog.at_level(logging.WARNING):
        prepare(root)
    told = " ".join(record.message for record in caplog.records)
    assert "of 80 pictures of test/ that were looked at stand in train/ too (guard G4)" in told


def test_the_answer_is_kept_until_the_files_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tree(tmp_path / "d", train=30, test=30)
    prepare(root)

    def never(*rest: object) -> None:
        raise AssertionError("files were read again")

    monkeypatch.setattr("src.data.overlap._hash", never)
    prepare(root)
    shutil.copy(root / "train" / "a" / "0.bmp", root / "test" / "a" / "0.bmp")
    with pytest.raises(AssertionError, match="read again"):
        prepare(root)
