"""The stored maps of one arm (`cam.npz`) and its panel of pictures (`cam.png`). Torch-free."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from src.cam.options import EXACT, TITLES
from src.cam.overlay import Picture, draw_box, joint_scale, overlay

CAM_FILE = "cam.npz"
PANEL_FILE = "cam.png"
RIGHT_COLOUR, WRONG_COLOUR = "#1b7837", "#b2182b"
SMALLEST_SIDE = 128  # pixels of a picture in a strip; smaller ones are enlarged by whole factors


@dataclass(frozen=True)
class CamFile:
    """The maps of N pictures of one arm, as stored. Exact maps are signed: mean + bias = logit.

    Raises:
        ValueError: shapes or types do not fit one another, or a map is not finite.
    """

    images: NDArray[np.uint8]  # (N, H, W, 3), de-normalised, at the resolution the arm was trained at
    maps_label: NDArray[np.float32]  # (N, h, w), of the ground-truth class
    maps_predicted: NDArray[np.float32]  # (N, h, w), of the predicted class
    labels: NDArray[np.int64]  # (N,)
    predictions: NDArray[np.int64]  # (N,)
    probability_label: NDArray[np.float32]  # (N,)
    probability_predicted: NDArray[np.float32]  # (N,)
    indices: NDArray[np.int64]  # (N,), identity of the pictures, the same in all arms
    boxes: NDArray[np.float32]  # (N, 4) x_min, y_min, x_max, y_max in pixels of `images`; NaN where there is none
    class_names: NDArray[np.str_]  # (K,)
    method: str = EXACT  # how the maps were drawn, one of `src.cam.options.METHODS`

    def __post_init__(self) -> None:
        count = len(self.images)
        if self.images.dtype != np.uint8 or self.images.ndim != 4 or self.images.shape[3] != 3:
            raise ValueError(
                f"images of {self.images.dtype} {self.images.shape} should be uint8 (N, H, W, 3) in 0..255"
            )
        if self.boxes.shape != (count, 4):
            raise ValueError(f"boxes of shape {self.boxes.shape} should be ({count}, 4), NaN where there is none")
        for name in ("labels", "predictions", "probability_label", "probability_predicted", "indices"):
            if getattr(self, name).shape != (count,):
                raise ValueError(f"{name} of shape {getattr(self, name).shape} should be ({count},)")
        for name in ("labels", "predictions"):
            classes = getattr(self, name)
            if count and (classes.min() < 0 or classes.max() >= len(self.class_names)):
                raise ValueError(f"{name} {classes.tolist()} leave the {len(self.class_names)} class names")
        grid = (count, *self.maps_label.shape[1:])
        for name in ("maps_label", "maps_predicted"):
            maps = getattr(self, name)
            if maps.ndim != 3 or maps.shape != grid or not np.isfinite(maps).all():
                raise ValueError(f"{name} of shape {maps.shape} should be finite ({count}, h, w), one grid for both")

    def save(self, folder: Path) -> Path:
        """Write `cam.npz` into `folder` so that a reader never sees half a file."""
        path = folder / CAM_FILE
        temporary = folder / f".{CAM_FILE}.{os.getpid()}.tmp"
        arrays: dict[str, Any] = {field.name: np.asarray(getattr(self, field.name)) for field in fields(self)}
        with temporary.open("wb") as stream:
            np.savez_compressed(stream, **arrays)
        os.replace(temporary, path)
        return path

    def right(self) -> NDArray[np.bool_]:
        """(N,) whether the predicted class is the ground truth."""
        return self.labels == self.predictions

    def caption(self, row: int) -> str:
        """Class, probability and verdict of one picture, e.g. `horse 0.20, predicted airplane 0.41 (wrong)`."""
        label, predicted = self.class_names[self.labels[row]], self.class_names[self.predictions[row]]
        if self.right()[row]:
            return f"{label} {self.probability_label[row]:.2f} (right)"
        return (
            f"{label} {self.probability_label[row]:.2f}, "
            f"predicted {predicted} {self.probability_predicted[row]:.2f} (wrong)"
        )


def load_cam(path: Path) -> CamFile:
    """Read one `cam.npz`.

    Raises:
        ValueError: the file is not a complete map file; names the file.
    """
    names = [field.name for field in fields(CamFile) if field.name != "method"]
    try:
        with np.load(path, allow_pickle=False) as stored:
            if not isinstance(stored, Mapping):
                raise ValueError("it holds one bare array")
            method = str(stored["method"]) if "method" in stored else EXACT  # of files before there was a choice
            return CamFile(**{name: stored[name] for name in names}, method=method)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(f"{path} is not a valid map file: {error}") from error


def strips(cam: CamFile) -> tuple[list[Picture], list[str]]:
    """One wide picture for each row: input with box, map of the ground-truth class, map of the predicted class.

    Both maps of a row share one brightness scale. Small pictures are enlarged by a whole factor.

    Returns:
        N pictures uint8 (H', 3 W' + 2 gaps, 3), and N captions.
    """
    pictures = []
    for row in range(len(cam.images)):
        cells = _cells(cam, row)
        gap = np.full((cells[0].shape[0], 4, 3), 255, dtype=np.uint8)
        pictures.append(np.concatenate([cells[0], gap, cells[1], gap, cells[2]], axis=1))
    return pictures, [cam.caption(row) for row in range(len(cam.images))]


def write_panel(cam: CamFile, folder: Path, title: str) -> Path:
    """Write `cam.png`: a row for each picture, with input and box, the two maps, class names and probabilities."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # only now: an arm draws after it has been trained
    from matplotlib.figure import Figure

    count = len(cam.images)
    figure = Figure(figsize=(6.6, 2.15 * max(count, 1) + 0.7), dpi=100, layout="constrained")
    figure.suptitle(
        f"{title}\n{TITLES[cam.method]}, {cam.maps_label.shape[1]} x {cam.maps_label.shape[2]} cells at "
        f"{cam.images.shape[1]} x {cam.images.shape[2]} px; one brightness scale per row",
        fontsize=9,
    )
    axes = figure.subplots(max(count, 1), 3, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for row in range(count):
        label, predicted = cam.class_names[cam.labels[row]], cam.class_names[cam.predictions[row]]
        right = bool(cam.right()[row])
        captions = (
            f"input {cam.indices[row]}\n{label}",
            f"truth: {label}\np={cam.probability_label[row]:.2f}",
            f"predicted: {predicted}\np={cam.probability_predicted[row]:.2f} ({'right' if right else 'wrong'})",
        )
        colours = ("black", "black", RIGHT_COLOUR if right else WRONG_COLOUR)
        for axis, cell, caption, colour in zip(axes[row], _cells(cam, row), captions, colours, strict=True):
            axis.imshow(cell, interpolation="nearest")
            axis.set_title(caption, fontsize=7, color=colour)
    path = folder / PANEL_FILE
    temporary = folder / f".{PANEL_FILE}.{os.getpid()}.tmp"
    FigureCanvasAgg(figure).print_png(str(temporary))
    os.replace(temporary, path)
    return path


def _cells(cam: CamFile, row: int) -> tuple[Picture, Picture, Picture]:
    image = cam.images[row]
    factor = max(1, -(-SMALLEST_SIDE // min(image.shape[:2])))
    large = np.asarray(
        Image.fromarray(image).resize((image.shape[1] * factor, image.shape[0] * factor), Image.Resampling.NEAREST)
    )
    maps = (cam.maps_label[row], cam.maps_predicted[row])
    scale = joint_scale(maps)
    return (
        draw_box(large, cam.boxes[row] * factor),
        overlay(large, maps[0], scale=scale),
        overlay(large, maps[1], scale=scale),
    )
