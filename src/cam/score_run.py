"""Score the maps of one trained network: on the study's pictures, beside what knows nothing of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from src.cam.faithful import Explain, gains, masked_scores, mosaics, randomised, tile_labels
from src.cam.methods import explain
from src.cam.options import EXACT
from src.cam.score_file import GRIDS, SOURCES, ScoreFile
from src.cam.scores import MEASURES, TILES, Floats, box_scores, centre_prior, grid_pointing_game, pool
from src.data.module import CamBatch, ImageDataModule

# Of the pictures: a mosaic is four times the work of a map, deletion and insertion of one map 78 forward passes.
MOSAIC_SHARE, FAITHFUL_SHARE = 4, 8
LARGEST_BYTES = 1 << 28  # of all pictures at the network's resolution
LARGEST_BATCH = 64  # of one forward pass: 256 pictures of 36 px leave a CPU's cache and take 1.5 times as long

Grid = tuple[int, int]


def score_arm(
    model: nn.Module,
    data: ImageDataModule,
    folder: Path,
    *,
    count: int,
    seed: int,
    common: int,
    batch_size: int,
    larger: int = 0,
    method: str = EXACT,
) -> ScoreFile:
    """Score a network's maps on the same validation pictures as every arm and write `cam_scores.npz`.

    Args:
        model: as in `class_maps`; in eval mode while it is scored.
        data: at the network's resolution.
        folder: of the arm.
        count: pictures; fewer where validation or `LARGEST_BYTES` has no more, which the file says.
        seed: of the choice of pictures; those of `cam_batch` with the same seed come first.
        common: cells a side of the study's coarsest final map as far as this arm knows it; its own if that is coarser.
        batch_size: pictures that one forward pass may hold; at most `LARGEST_BATCH` are taken.
        larger: pixels of larger pictures to feed the same network, a control of the base; 0: none.
        method: one of `src.cam.options.METHODS`.

    Raises:
        ValueError, RuntimeError: as `explain`.
    """
    most = min(count, data.sizes["val"], max(1, LARGEST_BYTES // (12 * max(data.resolution, larger) ** 2)))
    batch = data.cam_batch(most, seed)
    more = None
    if larger:
        enlarged = ImageDataModule(data.options, larger, 1, 1, data.seed)
        enlarged.setup()
        more = enlarged.cam_batch(most, seed)
    taken = min(batch_size, LARGEST_BATCH)
    scored = score_network(model, batch, common=common, seed=seed, batch_size=taken, more=more, method=method)
    scored = dataclasses.replace(scored, asked=count)
    scored.save(folder)
    return scored


def score_network(
    model: nn.Module,
    batch: CamBatch,
    *,
    common: int,
    seed: int,
    batch_size: int = 32,
    more: CamBatch | None = None,
    method: str = EXACT,
) -> ScoreFile:
    """Every score of a network's maps of the ground-truth class, at the resolution of the pictures.

    Args:
        model, common, seed, batch_size, method: as in `score_arm`.
        batch: the pictures.
        more: the same pictures, larger: the control `larger` is scored on them.
    """
    count, side = len(batch.labels), batch.images.shape[-1]
    result = explain(model, batch.images, batch.labels, method=method, batch_size=batch_size)
    maps = result.maps_label
    grids: tuple[Grid, Grid] = (
        (maps.shape[1], maps.shape[2]),
        (min(common, maps.shape[1]), min(common, maps.shape[2])),
    )
    draw = _drawn(model, method, batch_size)
    boxes = _boxes(batch)
    table = _Table(count)

    ignorant = randomised(model, batch.images, seed=seed, batch_size=batch_size)
    drawn_at_random = _drawn(ignorant, method, batch_size)
    sources = {"map": maps, "randomised": drawn_at_random(batch.images, batch.labels)}
    for source, own in sources.items():
        for grid, cells in zip(GRIDS, grids, strict=True):
            table.put(source, grid, box_scores(pool(own, cells), boxes, side))
    if more is not None:
        larger = draw(more.images, more.labels)
        for grid, cells in (("native", (larger.shape[1], larger.shape[2])), ("common", grids[1])):
            table.put("larger", grid, box_scores(pool(larger, cells), _boxes(more), more.images.shape[-1]))
    for grid, cells in zip(GRIDS, grids, strict=True):
        prior = np.broadcast_to(centre_prior(cells), (count, *cells))
        table.put("prior", grid, box_scores(prior, boxes, side))

    few = slice(0, max(1, count // MOSAIC_SHARE))
    for source, drawer in (("map", draw), ("randomised", drawn_at_random)):
        for grid, scores in _grid_pointing(drawer, batch.images[few], batch.labels[few], grids).items():
            table.put(source, grid, {"grid_pointing": scores})

    few = slice(0, max(1, count // FAITHFUL_SHARE))
    images, labels = batch.images[few], batch.labels[few]
    prior = np.broadcast_to(centre_prior(grids[0]), (len(labels), *grids[0]))
    followed: list[tuple[str, str, Floats, Explain | None]] = [("map", "native", maps[few], draw)]
    if grids[1] != grids[0]:
        followed.append(("map", "common", pool(maps[few], grids[1]), draw))
    followed.append(("prior", "native", prior, None))  # what it would be drawn anew as is no question
    for source, grid, own, drawer_ in followed:
        told = gains(model, images, labels, own, seed=seed, batch_size=batch_size)
        told |= masked_scores(model, images, labels, own, explain=drawer_, batch_size=batch_size)
        table.put(source, grid, told)
        if grids[1] == grids[0]:
            table.put(source, "common", told)
    return ScoreFile(
        identities=batch.identities.numpy(),
        labels=result.labels,
        predictions=result.predictions,
        probability=result.probability_label,
        boxes=boxes,
        maps=maps,
        scores=table.values,
        measures=np.array(list(MEASURES)),
        common_grid=np.array(grids[1]),
        resolution=side,
        larger=0 if more is None else more.images.shape[-1],
        asked=count,
        method=method,
    )


class _Table:
    """All scores, NaN until they are put in."""

    def __init__(self, count: int) -> None:
        self.values = np.full((len(SOURCES), len(GRIDS), len(MEASURES), count), np.nan, np.float32)

    def put(self, source: str, grid: str, scores: dict[str, Floats]) -> None:
        names = list(MEASURES)
        for measure, values in scores.items():
            self.values[SOURCES.index(source), GRIDS.index(grid), names.index(measure), : len(values)] = values


def _drawn(model: nn.Module, method: str, batch_size: int) -> Explain:
    def draw(images: Tensor, labels: Tensor) -> Floats:
        return explain(model, images, labels, method=method, batch_size=batch_size).maps_label

    return draw


def _grid_pointing(draw: Explain, images: Tensor, labels: Tensor, grids: tuple[Grid, Grid]) -> dict[str, Floats]:
    """Share of each picture's evidence that lies on it, in a mosaic with others; NaN where it is in none."""
    pictures, firsts = mosaics(images, labels)
    tiles = TILES * TILES
    side = TILES * images.shape[-1]
    results = {grid: np.full(len(labels), np.nan) for grid in GRIDS}
    if firsts:
        # Each mosaic once a tile: a map explains one class.
        maps = draw(pictures.repeat_interleave(tiles, 0), tile_labels(labels, firsts))
        rows = np.concatenate([np.arange(first, first + tiles) for first in firsts])
        for grid, cells in zip(GRIDS, grids, strict=True):
            whole = (min(TILES * cells[0], maps.shape[1]), min(TILES * cells[1], maps.shape[2]))
            results[grid][rows] = grid_pointing_game(pool(maps, whole), np.arange(len(rows)) % tiles, side)
    return results


def _boxes(batch: CamBatch) -> NDArray[np.float32]:
    count = len(batch.labels)
    boxes: NDArray[np.float32] = (
        np.full((count, 4), np.nan, np.float32) if batch.boxes is None else batch.boxes.numpy().astype(np.float32)
    )
    return boxes
