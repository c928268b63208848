from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from src.data import transforms
from src.data.options import AugmentationOptions
from src.kernels import pictures as kernel

FILL = torch.tensor([9, 8, 7], dtype=torch.uint8)
ALL = AugmentationOptions(crop_padding=0.25, flip=True, erasing=0.5)


def pictures(count: int, side: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), np.uint8))


@settings(deadline=None, max_examples=25)
@given(st.integers(4, 20), st.integers(0, 10_000))
def test_augmentation_is_what_numpy_does_picture_by_picture(side: int, seed: int) -> None:
    images = pictures(6, side)
    draws = transforms.draw(6, side, ALL, seed)
    got = transforms.augment(images, draws, FILL).numpy()
    reach = round(0.25 * side)
    for row in range(6):
        down, right, flip, top, left, height, width = (
            int(getattr(draws, name)[row]) for name in draws.__dataclass_fields__
        )
        padded = np.pad(images[row].numpy(), ((reach, reach), (reach, reach), (0, 0)), mode="reflect")
        expected = padded[reach + down : reach + down + side, reach + right : reach + right + side]
        expected = (expected[:, ::-1] if flip else expected).copy()
        expected[top : top + height, left : left + width] = (
            FILL.numpy() if height else expected[top:top, left : left + width]
        )
        assert np.array_equal(got[row], expected)
        assert abs(down) <= reach and abs(right) <= reach and top + height <= side and left + width <= side


def test_every_picture_of_a_batch_has_its_own_draws() -> None:
    draws = transforms.draw(256, 32, ALL, 3)
    assert set(draws.down.tolist()) == set(draws.right.tolist()) == set(range(-8, 9))
    assert 80 < int(draws.flip.sum()) < 176 and 80 < int((draws.height > 0).sum()) < 176
    for name in draws.__dataclass_fields__:
        assert len(getattr(draws, name).unique()) > 1, name
    columns = torch.stack([getattr(draws, name).double() for name in ("down", "right", "flip", "top", "left")])
    assert (torch.corrcoef(columns) - torch.eye(5)).abs().max() < 0.3  # 0.06 is one standard error
    erased = draws.height > 0
    area = (draws.height * draws.width)[erased] / 32**2
    assert 0.015 < float(area.min()) < 0.1 and 0.25 < float(area.max()) < 0.36


def test_draws_follow_the_seed_alone_and_do_not_influence_each_other() -> None:
    torch.manual_seed(1)
    one = transforms.draw(8, 32, ALL, 5)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    two = transforms.draw(8, 32, ALL, 5)
    assert torch.equal(state, torch.get_rng_state())
    other = transforms.draw(8, 32, ALL, 6)
    assert all(torch.equal(getattr(one, name), getattr(two, name)) for name in one.__dataclass_fields__)
    assert not torch.equal(one.down, other.down)
    plain = transforms.draw(8, 32, AugmentationOptions(crop_padding=0.25), 5)
    assert torch.equal(plain.down, one.down) and not plain.flip.any() and not plain.height.any()


def test_draws_are_those_of_the_first_release() -> None:
    """Made by its code, so that studies of old stay what they were."""
    draws = transforms.draw(64, 32, ALL, 12345)
    table = torch.stack([getattr(draws, name).long() for name in draws.__dataclass_fields__])
    assert table[:, :3].tolist() == [
        [6, 4, 0], [7, 0, -5], [0, 1, 0], [4, 12, 12], [14, 9, 10], [0, 0, 14], [13, 5, 20],
    ]  # fmt: skip
    digest = hashlib.sha256(table.numpy().astype("<i8").tobytes()).hexdigest()
    assert digest == "123a9928e15e33aae0f9535d327074736a824a34116400174133b44fcc32ace8"


def test_rows_of_a_set_are_augmented_as_if_they_had_been_copied() -> None:
    images, rows = pictures(50, 16), torch.tensor([7, 7, 0, 49, 13])
    for options in (ALL, AugmentationOptions(flip=True), AugmentationOptions(crop_padding=0.0)):
        for policy in ("none", "trivialaugment"):
            chosen = dataclasses.replace(options, policy=policy)
            apart = transforms.train_pictures(images[rows], FILL, chosen, 5, 2, 9)
            assert torch.equal(transforms.train_pictures(images, FILL, chosen, 5, 2, 9, rows), apart)


def test_switched_off_changes_nothing() -> None:
    images = pictures(4, 16)
    draws = transforms.draw(4, 16, AugmentationOptions(crop_padding=0.0), 0)
    assert torch.equal(transforms.augment(images, draws, FILL), images)
    assert torch.equal(transforms.train_pictures(images, FILL, AugmentationOptions(crop_padding=0.0), 0), images)


@pytest.mark.parametrize(("side", "resolution"), [(64, 32), (64, 45), (32, 64), (33, 20)])
def test_resize_is_pillows_antialiased_bilinear_and_keeps_the_whole_picture(side: int, resolution: int) -> None:
    images = pictures(3, side)
    images[:, 0, 0] = 255
    got = transforms.resize(images, resolution).numpy().astype(int)
    for row in range(3):
        pillow = Image.fromarray(images[row].numpy()).resize((resolution, resolution), Image.Resampling.BILINEAR)
        assert np.abs(got[row] - np.asarray(pillow, int)).max() <= 1
    assert transforms.resize(images, side) is images


def test_the_uint8_kernel_agrees_with_float_to_a_grey_level() -> None:
    images = pictures(4, 64)
    exact = torch.nn.functional.interpolate(
        images.permute(0, 3, 1, 2).float(), size=(40, 40), mode="bilinear", antialias=True
    )
    assert (transforms.resize(images, 40).permute(0, 3, 1, 2).float() - exact).abs().max() <= 1


def test_normalise_is_the_formula_channels_last_and_invertible_to_the_bit() -> None:
    images = torch.arange(256, dtype=torch.uint8).repeat(3).view(3, 16, 16).permute(1, 2, 0)[None].repeat(2, 1, 1, 1)
    mean, std = torch.tensor([0.4914, 0.02, 0.98]), torch.tensor([0.247, 0.0039, 0.5])
    got = transforms.normalise(images, mean, std)
    assert got.shape == (2, 3, 16, 16) and got.dtype == torch.float32
    assert got.is_contiguous(memory_format=torch.channels_last)
    expected = (images.permute(0, 3, 1, 2) / 255.0 - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=2e-5)
    assert torch.equal(transforms.denormalise(got, mean, std), images)
    assert torch.equal(images[0, 0, :, 0], torch.arange(16, dtype=torch.uint8))  # the input is left alone


def test_another_type_is_rounded_once() -> None:
    images, mean, std = pictures(3, 10), torch.tensor([0.49, 0.02, 0.98]), torch.tensor([0.247, 0.0039, 0.5])
    for dtype in (torch.bfloat16, torch.float16):
        got = transforms.normalise(images, mean, std, dtype)
        assert got.dtype == dtype and got.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(got, transforms.normalise(images, mean, std).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_kernel_makes_what_the_steps_make_one_after_the_other(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, rows, plain = pictures(50, 20), torch.tensor([7, 7, 0, 49, 13, 2]), AugmentationOptions(crop_padding=0.0)
    mean, std = torch.tensor([0.49, 0.3, 0.7]), torch.tensor([0.247, 0.1, 0.3])
    policy = dataclasses.replace(ALL, policy="trivialaugment", resized_crop_area=(0.3, 1.0))
    if dtype != torch.float16 and kernel.load() is not None:
        monkeypatch.setattr(transforms, "augment", None)  # only the kernel gets by without them
        monkeypatch.setattr(transforms, "resize", None)
    made = []
    cases = [
        (options, resolution, chosen)
        for options in (ALL, dataclasses.replace(ALL, erasing=0.0), AugmentationOptions(), plain, policy, None)
        for resolution in (20, 33, 12)
        for chosen in (None, rows)
    ]
    for options, resolution, chosen in cases:
        batch = transforms.Unmoved(images, rows=chosen)
        if options is not None:
            batch = transforms.unmoved(images, FILL, options, 5, 2, 60, chosen)
        scale, offset = transforms.lines(mean, std, resolution)
        made.append(transforms.network_input(batch, FILL, resolution, scale, offset, dtype))
    monkeypatch.undo()
    for (options, resolution, chosen), got in zip(cases, made, strict=True):
        expected = images if chosen is None else images[chosen]
        if options is not None:
            expected = transforms.train_pictures(expected, FILL, options, 5, 2, 60)
        expected = transforms.normalise(transforms.resize(expected, resolution), mean, std, dtype)
        assert torch.equal(got, expected) and got.stride() == expected.stride() and got.dtype == dtype


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_an_accelerator_makes_the_same_pictures() -> None:
    images, mean, std = pictures(8, 64), torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.25])
    draws = transforms.draw(8, 64, ALL, 0)

    def run(batch: torch.Tensor) -> torch.Tensor:
        return transforms.denormalise(
            transforms.normalise(transforms.resize(transforms.augment(batch, draws, FILL), 40), mean, std), mean, std
        )

    assert (run(images).int() - run(images.cuda()).int()).abs().max() <= 1
