"""`cam.npz` and `cam.png`: written, read back and looked at."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from src.cam.panel import CamFile, load_cam, strips, write_panel


def cam_file(count: int = 3, side: int = 16, **changes: Any) -> CamFile:
    rng = np.random.default_rng(0)
    boxes = np.full((count, 4), np.nan, dtype=np.float32)
    boxes[0] = (2, 3, 10, 12)
    values: dict[str, Any] = {
        "images": rng.integers(60, 200, (count, side, side, 3), dtype=np.uint8),
        "maps_label": rng.normal(size=(count, 4, 4)).astype(np.float32),
        "maps_predicted": rng.normal(size=(count, 4, 4)).astype(np.float32),
        "labels": np.array([0, 1, 1])[:count],
        "predictions": np.array([0, 2, 1])[:count],
        "probability_label": np.array([0.91, 0.2, 0.5], np.float32)[:count],
        "probability_predicted": np.array([0.91, 0.41, 0.5], np.float32)[:count],
        "indices": np.array([17, 4, 99])[:count],
        "boxes": boxes,
        "class_names": np.array(["cat", "horse", "airplane"]),
    }
    return CamFile(**{**values, **changes})


def test_file_round_trip_is_exact(tmp_path: Path) -> None:
    cam = cam_file()
    path = cam.save(tmp_path)
    assert path == tmp_path / "cam.npz" and [p.name for p in tmp_path.iterdir()] == ["cam.npz"]
    again = load_cam(path)
    for field in dataclasses.fields(CamFile):
        before, after = getattr(cam, field.name), getattr(again, field.name)
        assert np.asarray(before).dtype == np.asarray(after).dtype
        np.testing.assert_array_equal(before, after)
    assert again.maps_label.min() < 0


def test_a_file_says_how_its_maps_were_drawn_and_one_without_a_word_has_exact_ones(tmp_path: Path) -> None:
    path = cam_file(method="layercam").save(tmp_path)
    assert load_cam(path).method == "layercam"
    with np.load(path) as stored:
        earlier = {name: stored[name] for name in stored if name != "method"}
    np.savez_compressed(path, **earlier)
    assert load_cam(path).method == "exact"


def test_captions_name_class_probability_and_verdict() -> None:
    cam = cam_file()
    assert cam.caption(0) == "cat 0.91 (right)"
    assert cam.caption(1) == "horse 0.20, predicted airplane 0.41 (wrong)"
    assert cam.right().tolist() == [True, False, True]


def test_strips_show_input_box_and_two_maps() -> None:
    pictures, captions = strips(cam_file())
    assert len(pictures) == len(captions) == 3
    for picture in pictures:
        assert picture.dtype == np.uint8 and picture.shape == (128, 3 * 128 + 8, 3)
        cells = picture[:, :128], picture[:, 132:260], picture[:, 264:]
        assert all(cell.min() < cell.max() for cell in cells)
        assert not (cells[1] == cells[2]).all() and not (cells[0] == cells[1]).all()
    green = (pictures[0][:, :128] == (0, 255, 128)).all(-1)
    rows, columns = np.nonzero(green)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (24, 96, 16, 80), "the box grows with the picture"
    assert not (pictures[1] == (0, 255, 128)).all(-1).any()


@pytest.mark.parametrize("count", [1, 3])
def test_panel_is_a_picture_one_can_see(tmp_path: Path, count: int) -> None:
    path = write_panel(cam_file(count), tmp_path, "compound-2x-seed0")
    assert [p.name for p in tmp_path.iterdir()] == ["cam.png"]
    picture = np.asarray(Image.open(path).convert("RGB"))
    assert picture.min() < 60 and picture.max() == 255 and picture.std() > 20
    for column in np.array_split(picture, 3, axis=1):
        assert (np.ptp(column.astype(int), axis=2) > 40).any(), "every column holds colour"


def test_wrong_predictions_are_coloured_differently(tmp_path: Path) -> None:
    def reds(predictions: list[int]) -> int:
        write_panel(cam_file(predictions=np.array(predictions)), tmp_path, "arm")
        picture = np.asarray(Image.open(tmp_path / "cam.png").convert("RGB")).astype(int)
        return int((abs(picture - (178, 24, 43)).sum(-1) < 20).sum())

    assert reds([0, 2, 1]) > reds([0, 1, 1]) + 20


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": np.random.rand(3, 16, 16, 3)}, "uint8"),
        ({"maps_label": np.full((3, 4, 4), np.nan)}, "finite"),
        ({"maps_predicted": np.ones((3, 5, 4))}, "one grid"),
        ({"boxes": np.zeros((2, 4))}, "boxes"),
        ({"labels": np.array([0, 1, 3])}, "class names"),
        ({"predictions": np.array([0, -1, 1])}, "class names"),
        ({"indices": np.arange(2)}, "indices"),
    ],
)
def test_inconsistent_contents_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        cam_file(**changes)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = cam_file().save(tmp_path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"cam\.npz is not a valid map file"):
        load_cam(path)
    np.savez(path, images=np.zeros(3))
    with pytest.raises(ValueError, match="not a valid map file"):
        load_cam(path)
    with pytest.raises(FileNotFoundError):
        load_cam(tmp_path / "absent.npz")
