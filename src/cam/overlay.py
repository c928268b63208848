"""Draw class-activation maps over pictures. Torch-free: numpy, Pillow and matplotlib's colour tables only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

# Perceptually uniform and rising in lightness, so that brighter always means more evidence, also in print.
COLOUR_MAP = "inferno"
OPACITY = 0.5

Picture = NDArray[np.uint8]
Map = NDArray[np.floating]


def overlay(image: Picture, cam: Map, *, scale: float | None = None) -> Picture:
    """Lay one signed activation map over one picture.

    Negative evidence is cut at zero here and nowhere else; stored maps stay signed. Without any positive evidence the
    picture comes back evenly dimmed.

    Args:
        image: uint8 (H, W, 3).
        cam: float (h, w), signed, any grid; it is upsampled bilinearly to (H, W).
        scale: value shown as full brightness, e.g. `joint_scale` of all maps that are compared; values above it
            saturate. None: the map's own maximum.

    Returns:
        uint8 (H, W, 3), a new array.

    Raises:
        ValueError: the picture is not uint8 (H, W, 3), or the map is not two-dimensional and finite.
    """
    _check_picture(image)
    _check_map(cam)
    positive = np.maximum(cam, 0.0).astype(np.float32)
    top = joint_scale([cam]) if scale is None else float(scale)
    if np.isnan(top):
        raise ValueError(f"scale={scale} is not a number; give the joint maximum of the maps or None")
    share = np.minimum(positive / np.float32(top), 1.0) if top > 0 else np.zeros_like(positive)
    height, width = image.shape[:2]
    grown = np.asarray(Image.fromarray(share).resize((width, height), Image.Resampling.BILINEAR))
    import matplotlib  # only now: an arm draws after it has been trained

    table = np.asarray(matplotlib.colormaps[COLOUR_MAP](np.linspace(0.0, 1.0, 256)))[:, :3] * 255.0
    colours = table[np.clip(np.rint(grown * 255.0), 0, 255).astype(np.intp)]
    mixed = (1.0 - OPACITY) * image.astype(np.float64) + OPACITY * colours
    return np.rint(mixed).astype(np.uint8)


def joint_scale(maps: Iterable[Map]) -> float:
    """The largest positive value of several maps, to show them with one brightness scale; 0.0 if none is positive."""
    return max([0.0, *(float(np.max(cam)) for cam in maps)])


def pool_to_grid(cam: Map, grid: tuple[int, int]) -> NDArray[np.float32]:
    """Average a map over the cells of a coarser grid, so that arms with different grids can be compared.

    The spatial mean is kept, hence so is the identity "mean of the map + bias = logit".

    Args:
        cam: float (h, w), signed.
        grid: (rows, columns), each at most the map's.

    Returns:
        float32 (rows, columns).

    Raises:
        ValueError: the grid is finer than the map.
    """
    _check_map(cam)
    if grid[0] > cam.shape[0] or grid[1] > cam.shape[1] or min(grid) < 1:
        raise ValueError(f"grid={grid} is finer than the map's {cam.shape}; pool to the coarsest arm's grid instead")
    return (cell_shares(cam.shape[0], grid[0]) @ cam @ cell_shares(cam.shape[1], grid[1]).T).astype(np.float32)


def draw_box(
    image: Picture, box: Sequence[float] | NDArray[np.floating], colour: tuple[int, int, int] = (0, 255, 128)
) -> Picture:
    """Outline a box on a copy of the picture.

    Args:
        image: uint8 (H, W, 3).
        box: (x_min, y_min, x_max, y_max) in pixels of `image`; any NaN means that there is no box.
        colour: red, green, blue in 0..255.

    Raises:
        ValueError: the picture is not uint8 (H, W, 3), or the box is inverted.
    """
    _check_picture(image)
    corners = np.asarray(box, dtype=np.float64)
    if corners.shape != (4,):
        raise ValueError(f"box={corners.tolist()} should be x_min, y_min, x_max, y_max")
    if np.isnan(corners).any():
        return image.copy()
    if (corners[2:] < corners[:2]).any():
        raise ValueError(f"box={corners.tolist()} is inverted; give x_min, y_min, x_max, y_max")
    height, width = image.shape[:2]
    canvas = Image.fromarray(image.copy())
    outline = np.clip(np.rint(corners), 0, (width - 1, height - 1, width - 1, height - 1)).tolist()
    ImageDraw.Draw(canvas).rectangle(outline, outline=colour, width=max(1, min(height, width) // 96))
    return np.array(canvas)


def cell_shares(size: int, cells: int) -> NDArray[np.float64]:
    """(cells, size) matrix of area averages; rows sum to one, fractional overlaps are weighted by length."""
    edges = np.arange(cells + 1) * size / cells
    pixels = np.arange(size)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return np.maximum(overlap, 0.0) * cells / size


def _check_picture(image: Picture) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(
            f"a picture of {image.dtype} {image.shape} cannot be drawn; convert it to uint8 (H, W, 3) in 0..255 first"
        )


def _check_map(cam: Map) -> None:
    if cam.ndim != 2 or not np.isfinite(cam).all():
        raise ValueError(f"an activation map of shape {cam.shape} should be two-dimensional and finite")
