"""Overlays: what is bright, what stays visible, what is refused."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from src.cam.overlay import draw_box, joint_scale, overlay, pool_to_grid

GREY = np.full((32, 48, 3), 120, dtype=np.uint8)


def brightness(picture: np.ndarray) -> np.ndarray:
    return picture.astype(float) @ [0.2126, 0.7152, 0.0722]


def corner_map(value: float = 3.0) -> np.ndarray:
    cam = np.full((4, 6), -1.0)
    cam[0, 0] = value
    return cam


def test_evidence_is_bright_where_it_is() -> None:
    shown = brightness(overlay(GREY, corner_map()))
    assert shown.shape == (32, 48)
    assert np.unravel_index(shown.argmax(), shown.shape) < (8, 8)
    assert shown[:4, :4].min() > shown[16:, 24:].max() + 50


def test_colour_rises_with_evidence() -> None:
    ramp = np.linspace(0, 1, 48)[None, :].repeat(32, 0)
    steps = np.diff(brightness(overlay(GREY, ramp))[0])
    assert (steps >= -0.75).all() and steps.sum() > 80


def test_picture_stays_legible() -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    shown = overlay(noise, rng.random((4, 4)))
    assert np.corrcoef(brightness(shown).ravel(), brightness(noise).ravel())[0, 1] > 0.6


@pytest.mark.parametrize("level", [-2.0, 0.0])
@pytest.mark.parametrize("scale", [None, 0.0, 5.0])
def test_no_positive_evidence_dims_evenly(level: float, scale: float | None) -> None:
    shown = overlay(GREY, np.full((4, 4), level), scale=scale)
    assert len(np.unique(shown.reshape(-1, 3), axis=0)) == 1
    assert 0 < shown.max() <= 120


def test_joint_scale_makes_maps_comparable() -> None:
    weak, strong = corner_map(1.0), corner_map(4.0)
    scale = joint_scale([weak, strong])
    assert scale == 4.0
    assert (
        brightness(overlay(GREY, weak, scale=scale)).max() < brightness(overlay(GREY, strong, scale=scale)).max() - 50
    )
    assert (overlay(GREY, weak) == overlay(GREY, strong)).all()
    assert joint_scale([-weak * 0 - 1]) == 0.0


@pytest.mark.parametrize(
    "image", [np.random.rand(8, 8, 3), np.random.rand(8, 8, 3).astype(np.float32), np.zeros((8, 8), np.uint8)]
)
def test_other_than_uint8_pictures_are_refused(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint8"):
        overlay(image, np.ones((2, 2)))
    with pytest.raises(ValueError, match="uint8"):
        draw_box(image, (0, 0, 1, 1))


def test_broken_maps_are_refused() -> None:
    for cam in (np.array([[np.nan, 1.0]]), np.ones((2, 2, 2))):
        with pytest.raises(ValueError, match="finite"):
            overlay(GREY, cam)
    with pytest.raises(ValueError, match="scale"):
        overlay(GREY, np.ones((2, 2)), scale=float("nan"))


def test_box_is_drawn_on_a_copy() -> None:
    shown = draw_box(GREY, (10.0, 5.0, 60.0, 20.0), (255, 0, 0))
    assert (GREY == 120).all()
    red = (shown == (255, 0, 0)).all(-1)
    rows, columns = np.nonzero(red)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (5, 20, 10, 47)
    assert (shown[6:20, 11:47] == 120).all()
    assert (draw_box(GREY, (np.nan,) * 4) == GREY).all()
    with pytest.raises(ValueError, match="inverted"):
        draw_box(GREY, (20, 5, 10, 20))


@settings(max_examples=40, deadline=None)
@given(
    arrays.arrays(np.float64, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.floats(-50, 50)), st.data()
)
def test_pooling_keeps_the_mean(cam: np.ndarray, data: st.DataObject) -> None:
    grid = (data.draw(st.integers(1, cam.shape[0])), data.draw(st.integers(1, cam.shape[1])))
    pooled = pool_to_grid(cam, grid)
    assert pooled.shape == grid
    assert pooled.mean() == pytest.approx(cam.mean(), abs=1e-4)
    assert pooled.max() <= cam.max() + 1e-4 and pooled.min() >= cam.min() - 1e-4


def test_pooling_by_whole_factors_is_block_averaging() -> None:
    cam = np.random.default_rng(1).normal(size=(8, 6))
    assert pool_to_grid(cam, (4, 2)) == pytest.approx(cam.reshape(4, 2, 2, 3).mean((1, 3)), abs=1e-6)
    assert pool_to_grid(cam, (8, 6)) == pytest.approx(cam, abs=1e-6)
    with pytest.raises(ValueError, match="finer"):
        pool_to_grid(cam, (9, 6))


def test_drawing_needs_no_torch() -> None:
    code = "import sys, src.cam.overlay, src.cam.panel; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
