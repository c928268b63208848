"""Scores of activation maps: where the evidence lies, how much of it there is, and what a network does without it.

Numpy only, so that a report can score stored maps again. Maps are signed, (N, h, w), and are cut at zero here. Positive
maps are enlarged bilinearly to the `side` pixels of the network's input, and all areas are measured there. A picture
whose map has no positive cell, or whose box is missing or empty, scores NaN: nothing can be said of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from src.cam.overlay import cell_shares

Floats = NDArray[np.floating]
PRIOR_WIDTH = 0.25  # standard deviation of the centre prior, of the picture's side
TILES = 2  # a mosaic has so many tiles a side
_CHUNK = 1 << 22  # enlarged pixels held at once
_TIED = 1e-6  # of the maximum: what rounding may put between pixels that are equal


@dataclass(frozen=True)
class Measure:
    """What a score is: the field of a `ScoreFile`, its label with unit, what is expected of a map that knows nothing of
    the picture, whether more is better, and who proposed it."""

    name: str
    label: str
    chance: str
    higher_is_better: bool
    source: str


MEASURES: dict[str, Measure] = {
    measure.name: measure
    for measure in (
        Measure("energy", "energy in box (share of positive evidence)", "a, the box's share of the area", True,
                "Wang et al. 2020, arXiv:1910.01279, sec. 4.3"),
        Measure("relevance", "energy in box beyond chance, (E - a) / (1 - a)", "0", True,
                "energy in box, corrected for the size of the box"),
        Measure("pointing", "pointing game (share of hits)", "a, the box's share of the area", True,
                "Zhang et al. 2018, arXiv:1608.00507, sec. 4.2; no tolerance"),
        Measure("iou", "area-matched IoU (share)", "a / (2 - a) of random pixels", True,
                "IoU of the box with as much of the picture, the map's brightest part"),
        Measure("grid_pointing", "grid pointing game (share of positive evidence)", "1/4", True,
                "Boehle et al. 2021, arXiv:2104.00032, sec. 4.2, 2 x 2 tiles"),
        Measure("deletion_gain", "deletion gain (mean probability)", "0", True,
                "Petsiuk et al. 2018, arXiv:1806.07421, against the same map with its cells shuffled"),
        Measure("insertion_gain", "insertion gain (mean probability)", "0", True,
                "Petsiuk et al. 2018, arXiv:1806.07421, against the same map with its cells shuffled"),
        Measure("drop", "average drop (share of the probability)", "none", False,
                "Chattopadhay et al. 2018, arXiv:1710.11063, sec. 4.1"),
        Measure("increase", "increase in confidence (share of pictures)", "none", True,
                "Chattopadhay et al. 2018, arXiv:1710.11063, sec. 4.1"),
        Measure("coherency", "coherency (Pearson's correlation)", "none", True,
                "Poppi et al. 2021, arXiv:2104.10252, sec. 3"),
        Measure("complexity", "complexity (share of the area)", "none", False,
                "Poppi et al. 2021, arXiv:2104.10252, sec. 3"),
        Measure("adcc", "ADCC (harmonic mean)", "none", True, "Poppi et al. 2021, arXiv:2104.10252, eq. 5"),
    )
}  # fmt: skip
BOX_MEASURES = ("energy", "relevance", "pointing", "iou")


def energy_in_box(maps: Floats, boxes: Floats, side: int) -> Floats:
    """Share of a map's positive mass that lies in the box, in [0, 1]; of an even map the box's share of the area.

    Args:
        maps: (N, h, w), signed.
        boxes: (N, 4) x_min, y_min, x_max, y_max in pixel edges of a picture of `side` pixels; NaN rows: none.
        side: pixels.

    Returns:
        float64 (N,).
    """
    positive = np.maximum(maps, 0.0).astype(np.float64)
    down, across = (_enlarging(cells, side) for cells in maps.shape[1:])
    # Enlarging is linear and a box is a product of two intervals, so no map has to be enlarged for its mass in a box.
    y, x = _covers(boxes, side)
    inside = np.einsum("nh,nhw,nw->n", y @ down, positive, x @ across)
    return _share(inside, np.einsum("h,nhw,w->n", down.sum(0), positive, across.sum(0)), boxes)


def box_area(boxes: Floats, side: int) -> Floats:
    """Share of the picture that the box takes, float64 (N,); the chance level of energy in box and pointing game."""
    y, x = _covers(boxes, side)
    return y.sum(1) * x.sum(1) / side**2


def beyond_chance(energy: Floats, area: Floats) -> Floats:
    """(E - a) / (1 - a), at most 1; 0 of an even map. NaN where the box is the whole picture."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(area < 1, (energy - area) / (1 - area), np.nan)


def pointing_game(maps: Floats, boxes: Floats, side: int, tolerance: float = 0.0) -> Floats:
    """Whether the brightest pixel of the enlarged map lies in the box: 1 or 0, or a share where several are equally
    bright or the box's edge runs through the pixel. Of an even map it is the box's share of the area.

    Args:
        maps, boxes, side: as in `energy_in_box`.
        tolerance: pixels by which the box is grown on every side.
    """
    grown = np.clip(boxes + tolerance * np.array([-1, -1, 1, 1]), 0, side)
    y, x = _covers(grown, side)

    def score(heat: Floats, rows: slice) -> Floats:
        brightest = heat >= heat.max((1, 2), keepdims=True) * (1 - _TIED)
        return np.einsum("ny,nyx,nx->n", y[rows], brightest, x[rows]) / brightest.sum((1, 2))

    hits = _onenlarge(maps, side, score)
    return np.where((np.maximum(maps, 0.0).sum((1, 2)) > 0) & (box_area(boxes, side) > 0), hits, np.nan)


def area_matched_iou(maps: Floats, boxes: Floats, side: int) -> Floats:
    """IoU of the box with the map's brightest part, cut at the level where that part is as large as the box.

    Of pixels at the cut each counts for the share that makes the areas equal. 1 where the brightest part is the box;
    a / (2 - a) on average of pixels drawn at random, and of an even map.
    """
    y, x = _covers(boxes, side)
    areas = box_area(boxes, side) * side**2

    def score(heat: Floats, rows: slice) -> Floats:
        flat = heat.reshape(len(heat), -1)
        area = np.nan_to_num(areas[rows], nan=1.0)
        place = np.clip(np.ceil(area).astype(np.intp) - 1, 0, side**2 - 1)
        cut = np.take_along_axis(-np.sort(-flat, axis=1), place[:, None], 1)
        above, tied = flat > cut, flat == cut
        selected = above + tied * ((area - above.sum(1)) / tied.sum(1))[:, None]
        box = (y[rows][:, :, None] * x[rows][:, None, :]).reshape(flat.shape)
        both = np.minimum(selected, box).sum(1)
        return both / (2 * area - both)

    result = _onenlarge(maps, side, score)
    return np.where((np.maximum(maps, 0.0).sum((1, 2)) > 0) & (areas > 0), result, np.nan)


def grid_pointing_game(maps: Floats, tiles: NDArray[np.int64], side: int) -> Floats:
    """Share of the positive mass over a mosaic of `TILES` x `TILES` pictures that lies on one of them; chance 1/4.

    Args:
        maps: (N, h, w), signed, of the class of the picture on the tile, over the whole mosaic.
        tiles: (N,), number of the tile, row by row from 0.
        side: pixels of the mosaic.
    """
    row, column = np.divmod(tiles, TILES)
    corners = np.stack([column, row, column + 1, row + 1], 1) * (side / TILES)
    return energy_in_box(maps, corners, side)


def complexity(maps: Floats, side: int) -> Floats:
    """Mean of the positive map when its maximum is 1, in (0, 1]: how much of the picture it takes to explain."""
    with np.errstate(invalid="ignore"):
        return _onenlarge(maps, side, lambda heat, rows: heat.mean((1, 2)) / heat.max((1, 2)))


def coherency(maps: Floats, again: Floats, side: int) -> Floats:
    """Pearson's correlation of a positive map with that of the picture it was multiplied with, in [-1, 1].

    0 where either is even: it then says nothing that could be repeated.
    """
    centred = []
    for signed in (maps, again):
        heat = enlarge(np.maximum(signed, 0.0), side).reshape(len(signed), -1)
        centred.append(heat - heat.mean(1, keepdims=True))
    product = (centred[0] * centred[1]).sum(1)
    size = np.sqrt((centred[0] ** 2).sum(1) * (centred[1] ** 2).sum(1))
    correlation = np.divide(product, size, out=np.zeros(len(maps)), where=size > 0)
    return np.where(np.maximum(maps, 0.0).sum((1, 2)) > 0, np.clip(correlation, -1, 1), np.nan)


def drop(before: Floats, after: Floats) -> Floats:
    """max(0, before - after) / before of a probability that was `before` and, with the map as a mask, is `after`."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.maximum(0.0, before - after) / before


def adcc(coherent: Floats, complex_: Floats, dropped: Floats) -> Floats:
    """Harmonic mean of (1 + coherency) / 2, 1 - complexity and 1 - drop; 0 where one of them is.

    Coherency is brought to [0, 1] as in the authors' code, since a harmonic mean takes no negative term.
    """
    terms = np.stack([(1 + coherent) / 2, 1 - complex_, 1 - dropped])
    with np.errstate(divide="ignore"):
        return np.where(np.isnan(terms).any(0), np.nan, 3 / (1 / np.maximum(terms, 0.0)).sum(0))


def area_under(curve: Floats) -> Floats:
    """Mean height of curves (S + 1, N) over S equal steps, by the trapezoidal rule."""
    return (curve[1:] + curve[:-1]).mean(0) / 2


def deletion_gain(shuffled: Floats, ordered: Floats) -> Floats:
    """What deleting in the map's order costs beyond deleting in that of a shuffled one: AUC_shuffled - AUC_map.

    Args:
        shuffled, ordered: (S + 1, N), probability of the class after each step, from the whole picture to none of it.
    """
    return area_under(shuffled) - area_under(ordered)


def insertion_gain(shuffled: Floats, ordered: Floats) -> Floats:
    """What inserting in the map's order gains beyond inserting in that of a shuffled one: AUC_map - AUC_shuffled."""
    return area_under(ordered) - area_under(shuffled)


def centre_prior(grid: tuple[int, int]) -> NDArray[np.float32]:
    """The map (rows, columns) that knows nothing of the picture but that photographers centre: a Gaussian."""
    rows, columns = (((np.arange(cells) + 0.5) / cells - 0.5) / PRIOR_WIDTH for cells in grid)
    heat: NDArray[np.float32] = np.exp(-0.5 * (rows[:, None] ** 2 + columns**2)).astype(np.float32)
    return heat


def pool(maps: Floats, grid: tuple[int, int]) -> Floats:
    """Signed maps (N, h, w) averaged over the cells of a grid that is nowhere finer, so that its size gives no arm an
    advantage."""
    assert grid[0] <= maps.shape[1] and grid[1] <= maps.shape[2]
    rows, columns = (cell_shares(size, cells) for size, cells in zip(maps.shape[1:], grid, strict=True))
    pooled: Floats = (rows @ maps @ columns.T).astype(maps.dtype)
    return pooled


def box_scores(maps: Floats, boxes: Floats, side: int) -> dict[str, Floats]:
    """All scores that need a box, and neither network nor pictures; each float64 (N,)."""
    energy = energy_in_box(maps, boxes, side)
    return {
        "energy": energy,
        "relevance": beyond_chance(energy, box_area(boxes, side)),
        "pointing": pointing_game(maps, boxes, side),
        "iou": area_matched_iou(maps, boxes, side),
    }


def _onenlarge(maps: Floats, side: int, score: Callable[[Floats, slice], Floats]) -> Floats:
    """`score` of the positive maps, enlarged, so many at once as memory should hold; NaN where it divides by zero."""
    step = max(1, _CHUNK // side**2)
    starts = range(0, len(maps), step)
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = [score(enlarge(np.maximum(maps[i : i + step], 0.0), side), slice(i, i + step)) for i in starts]
    return np.concatenate(parts) if parts else np.zeros(0)


def enlarge(maps: Floats, side: int) -> Floats:
    """Maps (N, h, w) at every pixel of (N, side, side), bilinear between the middles of cells."""
    rows, columns = (_enlarging(cells, side) for cells in maps.shape[1:])
    return rows @ maps.astype(np.float64) @ columns.T


@lru_cache(maxsize=64)
def _enlarging(cells: int, side: int) -> NDArray[np.float64]:
    """(side, cells) matrix of bilinear interpolation between the middles of cells; beyond the outer ones it is even."""
    place = np.clip((np.arange(side) + 0.5) * cells / side - 0.5, 0, cells - 1)
    left = np.minimum(place.astype(np.intp), max(cells - 2, 0))
    right = np.minimum(left + 1, cells - 1)
    matrix = np.zeros((side, cells))
    np.add.at(matrix, (np.arange(side), left), 1 - (place - left))
    np.add.at(matrix, (np.arange(side), right), place - left)
    return matrix


def _covers(boxes: Floats, side: int) -> tuple[Floats, Floats]:
    """How much of every row and of every column of pixels the boxes cover, each (N, side) in [0, 1]."""
    edges = np.arange(side)
    x_min, y_min, x_max, y_max = np.asarray(boxes, np.float64).T[:, :, None]
    y = np.clip(np.minimum(y_max, edges + 1) - np.maximum(y_min, edges), 0, 1)
    x = np.clip(np.minimum(x_max, edges + 1) - np.maximum(x_min, edges), 0, 1)
    return y, x


def _share(inside: Floats, total: Floats, boxes: Floats) -> Floats:
    filled = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])  # False of NaN
    return np.divide(inside, total, out=np.full(len(total), np.nan), where=(total > 0) & filled)
