"""The same pictures through every arm's eyes: as a figure, and as small pictures for the page."""

from __future__ import annotations

import base64
import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from src.cam.options import TITLES
from src.cam.overlay import draw_box, joint_scale, overlay
from src.cam.panel import CAM_FILE, RIGHT_COLOUR, WRONG_COLOUR, CamFile, load_cam
from src.cam.score_file import GRIDS, SCORES_FILE, ScoreFile, load_scores
from src.cam.scores import MEASURES
from src.record import RunRecord
from src.report.figures import Folders, as_csv, numbered
from src.report.svg import GREY, Plot
from src.verdict.cells import Cell
from src.verdict.grammar import Finding
from src.verdict.statistics import estimate

_DPI = 160
_MOST_PICTURES = 6
_MOST_COLUMNS = 7
_CELL_PIXELS = 160
_PAGE_PICTURES = 8
_PAGE_TILES = 240  # small pictures in one page: a megabyte or two
_QUALITY = 82  # of WebP
GRID_NAMES = {"native": "each on its own grid", "common": "all on the coarsest arm's grid"}


@dataclass(frozen=True)
class Column:
    """The maps that stand for a cell: those of its first run that has any."""

    cell: Cell
    run: int  # place in the list of all runs
    folder: Path
    cam: CamFile


@dataclass(frozen=True)
class Tile:
    """One map over one picture, for the page."""

    uri: str
    side: int  # pixels
    predicted: str
    probability: str  # of the predicted class, in %
    right: bool
    run: int


@dataclass(frozen=True)
class Row:
    """One picture for the page, plain and as every column's tile."""

    label: str
    uri: str
    side: int
    tiles: tuple[Tile, ...]


Value = tuple[float, str, tuple[int, ...]]  # mean over runs, as text, and the runs


@dataclass(frozen=True)
class Score:
    """A score of maps, beneath the pictures: on every grid a value for each column; None: nobody measured it."""

    label: str
    chance: str
    source: str
    grids: tuple[tuple[str, tuple[Value | None, ...]], ...]


def read_scores(cells: Sequence[Cell], folders: Folders) -> tuple[dict[RunRecord, ScoreFile], list[Finding]]:
    """Scores of the maps of all runs that have any, and what could not be read."""
    found: list[Finding] = []
    scores: dict[RunRecord, ScoreFile] = {}
    for cell in cells:
        for record in cell.records:
            path = folders[record] / SCORES_FILE
            if not path.is_file():
                continue
            try:
                scores[record] = load_scores(path)
            except (OSError, ValueError) as error:
                text = f"{path.parent.name}/{SCORES_FILE} is unreadable ({str(error).split(': ', 1)[-1][:120]})"
                found.append(Finding("G12", False, text, "", cell.budget, (cell.name,)))
    return scores, found


def score_rows(cells: Sequence[Cell], columns: Sequence[Column], files: Mapping[RunRecord, ScoreFile]) -> list[Score]:
    """Every measure of which any column has a score, as it stands beneath the maps."""
    marked = dict(numbered(cells))
    scores = {record: file.summary() for record, file in files.items()}
    rows = []

    def value(column: Column, name: str) -> Value | None:
        pairs = zip(marked[column.cell], column.cell.records, strict=True)
        own = {run: scores[record][name] for run, record in pairs if name in scores.get(record, {})}
        if not own:
            return None
        e = estimate(list(own.values()))
        text = f"{e.mean:.3f}" + (f" ±{e.half_width:.3f}" if e.half_width is not None else "")
        return e.mean, text, tuple(own)

    for name, measure in MEASURES.items():
        grids = [(GRID_NAMES[g], tuple(value(column, f"{name}/{g}") for column in columns)) for g in GRIDS]
        kept = tuple((title, values) for title, values in grids if any(v is not None for v in values))
        if kept:
            rows.append(Score(measure.label, measure.chance, measure.source, kept))
    return rows


def read_columns(cells: Sequence[Cell], folders: Folders) -> tuple[list[Column], list[Finding]]:
    """The maps of all cells that explain the same pictures, and what is missing."""
    found: list[Finding] = []
    loaded: list[Column] = []
    missing: list[Cell] = []
    for cell, runs in numbered(cells):
        there = [(n, r) for n, r in zip(runs, cell.records, strict=True) if (folders[r] / CAM_FILE).is_file()]
        if not there:
            missing.append(cell)
            continue
        number, record = there[0]
        try:
            loaded.append(Column(cell, number, folders[record], load_cam(folders[record] / CAM_FILE)))
        except (OSError, ValueError) as error:
            text = f"{folders[record].name}/{CAM_FILE} is unreadable ({str(error).split(': ', 1)[-1][:120]})"
            found.append(Finding("G12", False, text, "", cell.budget, (cell.name,)))
    if missing:
        listed = ", ".join(cell.name if cell.is_base else f"{cell.name} {cell.budget:g}x" for cell in missing)
        found.append(Finding("G12", False, f"no maps to show of {listed}", f"each run writes {CAM_FILE}"))
    reference = _common([column.cam for column in loaded])
    columns: list[Column] = []
    for column in loaded:
        trained, side = column.cell.first.resolution, column.cam.images.shape[1]
        if side != trained:
            text = f"{column.cell.name} was trained at {trained} px and its maps were drawn at {side} px"
            found.append(Finding("G12", False, text, "draw them anew", column.cell.budget, (column.cell.name,)))
        elif _identity(column.cam) == reference:
            columns.append(column)
        else:
            name, budget = column.cell.name, column.cell.budget
            text = f"{name} explains other pictures than the other arms and is left out of the grid"
            found.append(Finding("G12", False, text, "give all arms one list of pictures", budget, (name,)))
    grids: dict[str, list[str]] = {}
    for column in columns:
        name = column.cell.name if column.cell.is_base else f"{column.cell.name} {column.cell.budget:g}x"
        grids.setdefault("x".join(map(str, column.cam.maps_label.shape[1:])), []).append(name)
    if len(grids) > 1:
        listed = "; ".join(f"{grid}: {', '.join(names)}" for grid, names in sorted(grids.items()))
        text = f"maps differ in their cells ({listed}), and finer cells alone look like finer detail"
        found.append(Finding("G12", False, text, "compare them by their scores on the common grid"))
    return (columns if reference else []), found


def cam_grid(columns: Sequence[Column]) -> Plot | None:
    """The same pictures through every arm: map of the true class over the picture as the arm saw it."""
    if not columns:
        return None
    fitting, omitted = _fitting(columns)
    return _draw_grid(fitting, omitted)


def cam_csv(columns: Sequence[Column]) -> str | None:
    """Every map of every arm as a row: whose it is, of which picture, and what the network took it for."""
    if not columns:
        return None
    names = ("arm", "budget", "folder", "picture", "class", "predicted", "probability of class", "of predicted", "px")
    rows = []
    for column in columns:
        cam = column.cam
        for i in range(len(cam.images)):
            classes = (str(cam.class_names[cam.labels[i]]), str(cam.class_names[cam.predictions[i]]))
            chances = (float(cam.probability_label[i]), float(cam.probability_predicted[i]))
            cell = column.cell
            rows.append(
                (
                    cell.name,
                    cell.budget,
                    column.folder.name,
                    int(cam.indices[i]),
                    *classes,
                    *chances,
                    cam.images.shape[2],
                )
            )
    return as_csv(names, rows)


def page_rows(columns: Sequence[Column]) -> tuple[list[Row], str]:
    """Pictures and tiles for the page, as many as its size allows, and what must be known to read them."""
    if not columns:
        return [], ""
    total = len(columns[0].cam.images)
    count = max(1, min(total, _PAGE_PICTURES, _PAGE_TILES // len(columns)))
    plain = _plainest(columns)
    rows = []
    for i in range(count):
        scale = joint_scale([column.cam.maps_label[i] for column in columns])
        tiles = []
        for column in columns:
            cam = column.cam
            picture, box = _enlarged(cam, i)
            uri, side = _uri(draw_box(overlay(picture, cam.maps_label[i], scale=scale), box))
            predicted = str(cam.class_names[cam.predictions[i]])
            chance = f"{100 * float(cam.probability_predicted[i]):.0f}\u00a0%"
            tiles.append(Tile(uri, side, predicted, chance, bool(cam.labels[i] == cam.predictions[i]), column.run))
        uri, side = _uri(draw_box(*_enlarged(plain, i)))
        rows.append(Row(str(plain.class_names[plain.labels[i]]), uri, side, tuple(tiles)))
    return rows, _note(columns, count, total, [])


def _draw_grid(columns: Sequence[Column], omitted: list[float]) -> Plot:
    total = len(columns[0].cam.images)
    count = min(total, _MOST_PICTURES)
    plain = _plainest(columns)
    # Cells are laid out in inches, so that pictures stay square and captions keep their room at every number of arms.
    side, gap, left, head, caption = 1.45, 0.09, 0.08, 0.66, 0.24
    width = left * 2 + (len(columns) + 1) * (side + gap) - gap
    lines = textwrap.wrap(_note(columns, count, total, omitted), int(14.5 * width))
    foot = 0.15 + 0.155 * len(lines)
    height = head + count * (side + caption) + foot
    figure = Figure(figsize=(width, height), dpi=_DPI)

    def cell_axes(row: int, column: int) -> Axes:
        x = left + column * (side + gap)
        y = height - head - (row + 1) * side - row * caption
        axes = figure.add_axes((x / width, y / height, side / width, side / height))
        axes.set_axis_off()
        return axes

    for index, (name, rest) in enumerate([("picture", ""), *map(title, columns)]):
        x = left + index * (side + gap) + side / 2
        figure.text(x / width, 1 - 0.12 / height, name, ha="center", va="top", fontsize=10.5, weight="bold")
        figure.text(x / width, 1 - 0.33 / height, rest, ha="center", va="top", fontsize=8.5, color=GREY)
    for row in range(count):
        axes = cell_axes(row, 0)
        axes.imshow(draw_box(*_enlarged(plain, row)), interpolation="antialiased")
        _under(axes, str(plain.class_names[plain.labels[row]]), "black")
        scale = joint_scale([column.cam.maps_label[row] for column in columns])
        for index, cam in enumerate(column.cam for column in columns):
            axes = cell_axes(row, index + 1)
            picture, box = _enlarged(cam, row)
            axes.imshow(draw_box(overlay(picture, cam.maps_label[row], scale=scale), box), interpolation="antialiased")
            right = cam.labels[row] == cam.predictions[row]
            name = str(cam.class_names[cam.predictions[row]])
            text = f"{'✓' if right else '✗'} {name[:15]} ({100 * float(cam.probability_predicted[row]):.0f} %)"
            _under(axes, text, RIGHT_COLOUR if right else WRONG_COLOUR)
    figure.text(left / width, 0.08 / height, "\n".join(lines), fontsize=8, color=GREY, linespacing=1.4)
    return Plot(figure)


def title(column: Column) -> tuple[str, str]:
    """Name of a column, and what it was seen at."""
    rows, columns = column.cam.maps_label.shape[1:]
    budget = "" if column.cell.is_base else f"{column.cell.budget:g}x, "
    return column.cell.name, f"{budget}{column.cam.images.shape[2]} px, grid {rows}x{columns}"


def _note(columns: Sequence[Column], count: int, total: int, omitted: Sequence[float]) -> str:
    drawn = " / ".join(sorted({TITLES[column.cam.method] for column in columns}))
    pictures = f"First {count} of {total} pictures" if total > count else f"{total} pictures"
    shortened = f"; left out to fit: {', '.join(f'{b:g}x' for b in omitted)}" if omitted else ""
    return (
        f"{pictures}{shortened}. {drawn[0].upper()}{drawn[1:]} of the true class, lowest seed; bright: evidence for it,"
        " one scale per row. Below each: predicted class and probability. A finer grid is not better evidence."
    )


def _plainest(columns: Sequence[Column]) -> CamFile:
    """The plain picture is shown as the arm nearest to the data's own resolution saw it."""

    def distance(column: Column) -> float:
        first = column.cell.first
        return abs(math.log(max(first.resolution, 1) / max(first.native_resolution, 1)))

    return min(columns, key=distance).cam


def _common(cams: Sequence[CamFile]) -> tuple[tuple[int, int], ...]:
    """The list of pictures that most arms explain; the first one on a tie."""
    seen = [_identity(cam) for cam in cams]
    return max(seen, key=seen.count) if seen else ()


def _identity(cam: CamFile) -> tuple[tuple[int, int], ...]:
    return tuple((int(i), int(label)) for i, label in zip(cam.indices, cam.labels, strict=True))


def _fitting(columns: Sequence[Column]) -> tuple[list[Column], list[float]]:
    """The base and as many budgets as fit, the largest first; and the budgets left out."""
    budgets = sorted({column.cell.budget for column in columns if not column.cell.is_base}, reverse=True)
    kept = [column.run for column in columns if column.cell.is_base]
    omitted: list[float] = []
    for budget in budgets:
        group = [c.run for c in columns if c.cell.budget == budget and not c.cell.is_base]
        if budget == budgets[0] or (len(kept) + len(group) <= _MOST_COLUMNS and not omitted):
            kept += group
        else:
            omitted.append(budget)
    return [column for column in columns if column.run in kept], sorted(omitted)


def _enlarged(cam: CamFile, row: int) -> tuple[np.ndarray, np.ndarray]:
    """Picture and box, enlarged by a whole factor: the arm's own pixels stay visible, the map above them is smooth."""
    image = cam.images[row]
    factor = max(1, -(-_CELL_PIXELS // min(image.shape[:2])))
    size = (image.shape[1] * factor, image.shape[0] * factor)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.NEAREST)), cam.boxes[row] * factor


def _uri(picture: np.ndarray) -> tuple[str, int]:
    """A picture of about `_CELL_PIXELS` as a data URI, and its side."""
    image = Image.fromarray(picture)
    image.thumbnail((_CELL_PIXELS, _CELL_PIXELS), Image.Resampling.BOX)
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", quality=_QUALITY, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode(), image.width


def _under(axes: Axes, text: str, colour: str) -> None:
    axes.text(0.5, -0.025, text, transform=axes.transAxes, ha="center", va="top", fontsize=8.5, color=colour)
