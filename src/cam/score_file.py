"""The stored scores of one arm's maps (`cam_scores.npz`), picture by picture. Torch-free."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from src.cam.scores import BOX_MEASURES, MEASURES, TILES, Floats, box_scores, pool

SCORES_FILE = "cam_scores.npz"
CONFIDENT = 0.5  # probability of the class from which a tile counts in the grid pointing game

# What was scored: the network's maps; the centre prior; the maps of the same network with weights that learned nothing;
# the maps of the same network fed larger pictures, without having been scaled.
SOURCES = ("map", "prior", "randomised", "larger")
# Cells: those of the network's own final map, or as many as the coarsest arm of the study has, averaged.
GRIDS = ("native", "common")


@dataclass(frozen=True)
class ScoreFile:
    """Scores of N pictures of one arm, the same pictures in all arms and seeds.

    Raises:
        ValueError: shapes do not fit one another.
    """

    identities: NDArray[np.int64]  # (N,)
    labels: NDArray[np.int64]  # (N,), the class that every map explains
    predictions: NDArray[np.int64]  # (N,)
    probability: NDArray[np.float32]  # (N,), softmax of the label
    boxes: NDArray[np.float32]  # (N, 4) in pixel edges at `resolution`; NaN where there is none
    maps: NDArray[np.float32]  # (N, h, w), signed, on the native grid
    scores: NDArray[np.float32]  # (SOURCES, GRIDS, measures, N); NaN where something was not scored, or has no score
    measures: NDArray[np.str_]  # names, as in `MEASURES`
    common_grid: NDArray[np.int64]  # (2,) cells
    resolution: int  # pixels of the network's input
    larger: int  # pixels of the larger pictures; 0: none
    asked: int  # pictures asked for; N where the validation split, or memory, has no more
    method: str  # of the maps, one of `src.cam.options.METHODS`

    def __post_init__(self) -> None:
        count = len(self.identities)
        expected = (len(SOURCES), len(GRIDS), len(self.measures), count)
        for name in ("labels", "predictions", "probability"):
            if getattr(self, name).shape != (count,):
                raise ValueError(f"{name} of shape {getattr(self, name).shape} should be ({count},)")
        if self.boxes.shape != (count, 4) or self.maps.ndim != 3 or len(self.maps) != count:
            raise ValueError(f"boxes {self.boxes.shape} and maps {self.maps.shape} should be of {count} pictures")
        if self.scores.shape != expected or self.common_grid.shape != (2,):
            raise ValueError(f"scores of shape {self.scores.shape} should be {expected}")

    def right(self) -> NDArray[np.bool_]:
        """(N,) whether the network classifies the picture correctly."""
        return self.labels == self.predictions

    def confident(self) -> NDArray[np.bool_]:
        """(N,) whether all tiles of the picture's mosaic are classified correctly and with confidence."""
        sure = self.right() & (self.probability >= CONFIDENT)
        tiles = TILES * TILES
        whole = len(sure) // tiles * tiles
        together = sure[:whole].reshape(-1, tiles).all(1).repeat(tiles)
        return np.concatenate([together, np.zeros(len(sure) - whole, bool)])

    def score(self, measure: str, source: str = "map", grid: str = "native") -> NDArray[np.float32]:
        """(N,) scores, NaN where there is none."""
        if measure not in self.measures:
            return np.full(len(self.identities), np.nan, np.float32)
        place = SOURCES.index(source), GRIDS.index(grid), self.measures.tolist().index(measure)
        column: NDArray[np.float32] = self.scores[place]
        return column

    def on_grid(self, measure: str, grid: tuple[int, int]) -> Floats:
        """(N,) scores of the network's maps, averaged over the cells of a grid that is nowhere finer than its own.

        NaN of a measure that needs the network, on another grid than it was scored on.
        """
        if grid == tuple(self.common_grid.tolist()):
            return self.score(measure, grid="common")
        if measure in BOX_MEASURES:
            return box_scores(pool(self.maps, grid), self.boxes, self.resolution)[measure]
        return np.full(len(self.identities), np.nan)

    def summary(self) -> dict[str, float]:
        """Mean of each score of the network's maps over the pictures that it classifies correctly, by
        `measure/grid`."""
        means = {}
        for measure in MEASURES:
            counted = self.confident() if measure == "grid_pointing" else self.right()
            for grid in GRIDS:
                values = self.score(measure, grid=grid)[counted]
                if np.isfinite(values).any():
                    means[f"{measure}/{grid}"] = float(np.nanmean(values))
        return means

    def save(self, folder: Path) -> Path:
        """Write `cam_scores.npz` into `folder` so that a reader never sees half a file."""
        path = folder / SCORES_FILE
        temporary = folder / f".{SCORES_FILE}.{os.getpid()}.tmp"
        arrays: dict[str, Any] = {field.name: np.asarray(getattr(self, field.name)) for field in fields(self)}
        with temporary.open("wb") as stream:
            np.savez_compressed(stream, **arrays)
        os.replace(temporary, path)
        return path


def load_scores(path: Path) -> ScoreFile:
    """Read one `cam_scores.npz`.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is not a complete score file; names the file.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            if not isinstance(stored, Mapping):
                raise ValueError("it holds one bare array")
            arrays = {field.name: stored[field.name] for field in fields(ScoreFile)}
        return ScoreFile(**{name: value.item() if value.ndim == 0 else value for name, value in arrays.items()})
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(f"{path} is not a valid score file: {error}") from error
