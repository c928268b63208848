"""The three figures of a study, as PNG bytes. Agg canvases without pyplot, so no global state is read or left behind.

An arm has one colour and one marker in all figures; the colours are Okabe and Ito's, told apart with any colour vision.
"""

from __future__ import annotations

import csv
import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator
from PIL import Image

from src.cam.overlay import draw_box, joint_scale, overlay
from src.cam.panel import CAM_FILE, RIGHT_COLOUR, WRONG_COLOUR, CamFile, load_cam
from src.record import METRICS, RunRecord
from src.verdict.cells import Cell, by_budget
from src.verdict.grammar import Finding
from src.verdict.guards import SPREAD_BLOCKS
from src.verdict.statistics import binomial_se, spread

HISTORY_FILE = "history.csv"
_BASE_COLOUR = "#4d4d4d"
_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D00")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
_DPI = 160
_GREY = "#666666"
_MOST_PICTURES = 6
_MOST_COLUMNS = 7
_CELL_PIXELS = 160

Folders = Mapping[RunRecord, Path]


@dataclass(frozen=True)
class Style:
    """How an arm is drawn everywhere."""

    colour: str
    marker: str
    size: float = 7.5  # points


def styles(cells: Sequence[Cell]) -> dict[str, Style]:
    """One style per name of a cell; the base is grey, the others take colours in alphabetical order."""
    base = {cell.name for cell in cells if cell.is_base}
    names = sorted({cell.name for cell in cells} - base)
    looks = {name: Style(_COLOURS[i % len(_COLOURS)], _MARKERS[i % len(_MARKERS)]) for i, name in enumerate(names)}
    return {name: Style(_BASE_COLOUR, "*", 12.5) for name in base} | looks


def accuracy_vs_macs(cells: Sequence[Cell]) -> bytes:
    """Test accuracy over realised cost: every seed a faint point, the mean with its 95 % t interval."""
    look = styles(cells)
    figure = Figure(figsize=(8.6, 5.4), dpi=_DPI)
    margin = 0.045 + 0.0125 * max(len(cell.name) for cell in cells)  # room for the longest name at the right
    axes = figure.add_axes((0.095, 0.215, max(0.895 - margin, 0.4), 0.735))
    budgets = by_budget(cells)
    level = {1.0: [c for c in cells if c.is_base]} | budgets
    # The base's cost is on the axis even if it was not run, or arms set side by side would seem to differ in cost.
    unscaled = math.log2(METRICS["macs"].transform(cells[0].first.base_macs))
    centres = {1.0: unscaled} | {b: _centre(group) for b, group in level.items() if group}
    reach = max(max(centres.values()) - min(centres.values()), 1.0)
    apart = max([0.0, *(spread([c.first.macs for c in group]) for group in budgets.values())])
    matched = apart <= SPREAD_BLOCKS
    names = [name for name in look if name not in {c.name for c in cells if c.is_base}]

    def place(cell: Cell) -> float:
        if cell.is_base or not matched:
            return math.log2(METRICS["macs"].show(cell.first))
        side = sorted(names).index(cell.name) - (len(names) - 1) / 2
        return centres[cell.budget] + side * min(0.045 * reach, 0.2 * reach / max(len(names) - 1, 1))

    last: dict[str, tuple[float, float]] = {}
    heights: list[float] = []
    for name, style in look.items():
        own = [cell for cell in cells if cell.name == name]
        points = [(place(cell), cell.estimate("test_accuracy")) for cell in own]
        axes.plot([x for x, _ in points], [e.mean for _, e in points], color=style.colour, lw=1.2, alpha=0.45, zorder=2)
        for cell, (x, e) in zip(own, points, strict=True):
            values = cell.shown("test_accuracy")
            beside = 0.0 if len(values) == 1 else 0.011 * reach  # off the bar, so that every seed is seen
            axes.scatter([x - beside] * len(values), values, s=20, color=style.colour, alpha=0.45, lw=0, zorder=3)
            half = e.half_width or 0.0
            if half:
                axes.errorbar(x, e.mean, half, color=style.colour, capsize=3, lw=1.5, zorder=4)
            axes.plot(x, e.mean, style.marker, color=style.colour, ms=style.size, mec="white", mew=0.9, zorder=5)
            heights += [*values, e.mean - half, e.mean + half]
        last[name] = points[-1][0], points[-1][1].mean
    pad = max(0.07 * (max(heights) - min(heights)), 0.2)
    axes.set_ylim(min(heights) - pad, max(heights) + pad)
    places = [*centres.values(), *(place(cell) for cell in cells)]
    axes.set_xlim(min(places) - 0.08 * reach, max(places) + 0.08 * reach)
    axes.xaxis.set_major_locator(FixedLocator(list(centres.values())))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([f"{_amount(2**x)}\n{b:g}x base" for b, x in centres.items()])
    _plain(axes, METRICS["macs"].label.replace(" (M)", ", logarithmic"), METRICS["test_accuracy"].label)
    _direct_labels(axes, last, look)
    figure.text(
        0.012, 0.016, _caption(cells, apart if matched and budgets else None), fontsize=8, color=_GREY, linespacing=1.45
    )
    return _png(figure)


def learning_curves(cells: Sequence[Cell], folders: Folders) -> tuple[bytes | None, list[Finding]]:
    """Validation accuracy and losses per epoch; one row of panels per budget, the base in grey in each."""
    found: list[Finding] = []
    histories: dict[RunRecord, dict[str, list[float]]] = {}
    for cell in cells:
        for record in cell.records:
            try:
                histories[record] = _history(folders[record] / HISTORY_FILE)
            except (OSError, ValueError, KeyError, TypeError) as error:
                text = (
                    f"{folders[record].name} has no readable {HISTORY_FILE} ({type(error).__name__}),"
                    " so it has no curve"
                )
                found.append(Finding("figure", False, text, "", cell.budget, (cell.name,)))
                continue
            rows = len(histories[record]["epoch"])
            if rows != record.epochs:
                text = f"{folders[record].name}/{HISTORY_FILE} holds {rows} epochs of the record's {record.epochs}"
                found.append(Finding("figure", False, text, "its curve is incomplete", cell.budget, (cell.name,)))
    base = [cell for cell in cells if cell.is_base]
    levels = list(by_budget(cells).items()) or [(1.0, [])]
    if not histories:
        return None, found
    look = styles(cells)
    height = 2.9 * len(levels) + 0.75
    figure = Figure(figsize=(10.5, height), dpi=_DPI)
    grid = figure.subplots(len(levels), 3, squeeze=False, sharex=True)
    figure.subplots_adjust(
        left=0.075, right=0.99, top=1 - 0.62 / height, bottom=0.72 / height, wspace=0.27, hspace=0.24
    )
    for row, ((budget, group), panels) in enumerate(zip(levels, grid, strict=True), start=1):
        for column, axes in zip(("val_accuracy", "train_loss", "val_loss"), panels, strict=True):
            settled: list[float] = []
            for cell in [*base, *group]:
                settled += _curves(axes, cell, column, histories, look[cell.name])
            _plain(axes, "epoch" if row == len(levels) else "", _history_label(column))
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            if settled:  # the first epochs, alike in all arms, must not flatten what follows
                pad = 0.06 * (max(settled) - min(settled)) + 1e-9
                axes.set_ylim(min(settled) - pad, max(settled) + pad)
        panels[0].set_title(f"{budget:g}x base" if group else "base", loc="left", fontsize=10.5, weight="bold", pad=5)
    handles = [
        Line2D([], [], color=s.colour, marker=s.marker, ms=s.size + 1.5, mec="white", lw=2, label=n)
        for n, s in look.items()
    ]
    figure.legend(handles=handles, loc="upper center", ncols=min(len(handles), 7), frameon=False, fontsize=10.5)
    note = (
        "Thin: one seed. Bold: mean over seeds. Marker: the epoch that validation chose, whose weights were tested. "
        "Scales fit the last three quarters of training."
    )
    figure.text(0.012, 0.016, note, fontsize=8.5, color=_GREY)
    return _png(figure), found


def cam_grid(cells: Sequence[Cell], folders: Folders) -> tuple[bytes | None, list[Finding]]:
    """The same pictures through every arm: map of the true class over the picture as the arm saw it."""
    found: list[Finding] = []
    loaded: list[tuple[Cell, CamFile]] = []
    missing: list[Cell] = []
    for cell in cells:
        record = next((r for r in cell.records if (folders[r] / CAM_FILE).is_file()), None)
        if record is None:
            missing.append(cell)
            continue
        try:
            loaded.append((cell, load_cam(folders[record] / CAM_FILE)))
        except (OSError, ValueError) as error:
            text = f"{folders[record].name}/{CAM_FILE} is unreadable ({str(error).split(': ', 1)[-1][:120]})"
            found.append(Finding("G12", False, text, "", cell.budget, (cell.name,)))
    if missing:
        listed = ", ".join(cell.name if cell.is_base else f"{cell.name} {cell.budget:g}x" for cell in missing)
        found.append(Finding("G12", False, f"no maps to show of {listed}", f"each run writes {CAM_FILE}"))
    reference = _common([cam for _, cam in loaded])
    columns: list[tuple[Cell, CamFile]] = []
    for cell, cam in loaded:
        if _identity(cam) == reference:
            columns.append((cell, cam))
        else:
            text = f"{cell.name} explains other pictures than the other arms and is left out of the grid"
            found.append(Finding("G12", False, text, "give all arms one list of pictures", cell.budget, (cell.name,)))
    columns, omitted = _fitting(columns)
    if not columns or not reference:
        return None, found
    return _draw_grid(columns, omitted), found


def _draw_grid(columns: list[tuple[Cell, CamFile]], omitted: list[float]) -> bytes:
    total = len(columns[0][1].images)
    count = min(total, _MOST_PICTURES)
    # The plain picture is shown as the arm nearest to the data's own resolution saw it.
    _, plain = min(columns, key=lambda pair: abs(math.log(pair[0].first.resolution / pair[0].first.native_resolution)))
    # Cells are laid out in inches, so that pictures stay square and captions keep their room at every number of arms.
    side, gap, left, head, caption = 1.45, 0.09, 0.08, 0.66, 0.24
    width = left * 2 + (len(columns) + 1) * (side + gap) - gap
    pictures = f"First {count} of {total} pictures" if total > count else f"{total} pictures"
    shortened = f"; left out to fit: {', '.join(f'{b:g}x' for b in omitted)}" if omitted else ""
    note = (
        f"{pictures}{shortened}. Exact maps of the true class, lowest seed; bright: evidence for it, one"
        " scale per row. "
        "Below each: predicted class and probability. A finer grid is not better evidence."
    )
    lines = textwrap.wrap(note, int(14.5 * width))
    foot = 0.15 + 0.155 * len(lines)
    height = head + count * (side + caption) + foot
    figure = Figure(figsize=(width, height), dpi=_DPI)

    def cell_axes(row: int, column: int) -> Axes:
        x = left + column * (side + gap)
        y = height - head - (row + 1) * side - row * caption
        axes = figure.add_axes((x / width, y / height, side / width, side / height))
        axes.set_axis_off()
        return axes

    for index, title in enumerate(["picture", *(_title(cell, cam) for cell, cam in columns)]):
        x = left + index * (side + gap) + side / 2
        name, _, rest = title.partition("\n")
        figure.text(x / width, 1 - 0.12 / height, name, ha="center", va="top", fontsize=10.5, weight="bold")
        figure.text(x / width, 1 - 0.33 / height, rest, ha="center", va="top", fontsize=8.5, color=_GREY)
    for row in range(count):
        axes = cell_axes(row, 0)
        axes.imshow(draw_box(*_enlarged(plain, row)), interpolation="antialiased")
        _under(axes, str(plain.class_names[plain.labels[row]]), "black")
        scale = joint_scale([cam.maps_label[row] for _, cam in columns])
        for index, (_, cam) in enumerate(columns):
            axes = cell_axes(row, index + 1)
            picture, box = _enlarged(cam, row)
            axes.imshow(draw_box(overlay(picture, cam.maps_label[row], scale=scale), box), interpolation="antialiased")
            right = cam.labels[row] == cam.predictions[row]
            name = str(cam.class_names[cam.predictions[row]])
            text = f"{'✓' if right else '✗'} {name[:15]} ({100 * float(cam.probability_predicted[row]):.0f} %)"
            _under(axes, text, RIGHT_COLOUR if right else WRONG_COLOUR)
    figure.text(left / width, 0.08 / height, "\n".join(lines), fontsize=8, color=_GREY, linespacing=1.4)
    return _png(figure)


def _common(cams: Sequence[CamFile]) -> tuple[tuple[int, int], ...]:
    """The list of pictures that most arms explain; the first one on a tie."""
    seen = [_identity(cam) for cam in cams]
    return max(seen, key=seen.count) if seen else ()


def _identity(cam: CamFile) -> tuple[tuple[int, int], ...]:
    return tuple((int(i), int(label)) for i, label in zip(cam.indices, cam.labels, strict=True))


def _fitting(columns: list[tuple[Cell, CamFile]]) -> tuple[list[tuple[Cell, CamFile]], list[float]]:
    """The base and as many budgets as fit, the largest first; and the budgets left out."""
    budgets = sorted({cell.budget for cell, _ in columns if not cell.is_base}, reverse=True)
    kept = [pair for pair in columns if pair[0].is_base]
    omitted: list[float] = []
    for budget in budgets:
        group = [pair for pair in columns if pair[0].budget == budget and not pair[0].is_base]
        if budget == budgets[0] or (len(kept) + len(group) <= _MOST_COLUMNS and not omitted):
            kept += group
        else:
            omitted.append(budget)
    return [pair for pair in columns if pair in kept], sorted(omitted)


def _title(cell: Cell, cam: CamFile) -> str:
    rows, columns = cam.maps_label.shape[1:]
    budget = "" if cell.is_base else f"{cell.budget:g}x, "
    return f"{cell.name}\n{budget}{cam.images.shape[2]} px, grid {rows}x{columns}"


def _enlarged(cam: CamFile, row: int) -> tuple[np.ndarray, np.ndarray]:
    """Picture and box, enlarged by a whole factor: the arm's own pixels stay visible, the map above them is smooth."""
    image = cam.images[row]
    factor = max(1, -(-_CELL_PIXELS // min(image.shape[:2])))
    size = (image.shape[1] * factor, image.shape[0] * factor)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.NEAREST)), cam.boxes[row] * factor


def _under(axes: Axes, text: str, colour: str) -> None:
    axes.text(0.5, -0.025, text, transform=axes.transAxes, ha="center", va="top", fontsize=8.5, color=colour)


def _curves(
    axes: Axes, cell: Cell, column: str, histories: Mapping[RunRecord, dict[str, list[float]]], style: Style
) -> list[float]:
    """Draw one cell's seeds and their mean; returns the values after the first quarter of the epochs."""
    factor = METRICS["val_accuracy"].transform(1.0) if column == "val_accuracy" else 1.0
    runs = [
        (r, np.array(histories[r]["epoch"]), factor * np.array(histories[r][column]))
        for r in cell.records
        if r in histories
    ]
    for record, epochs, values in runs:
        alone = len(runs) == 1
        axes.plot(epochs, values, color=style.colour, lw=1.8 if alone else 0.8, alpha=1 if alone else 0.35, zorder=2)
        chosen = epochs == record.best_epoch
        if chosen.any() and (column != "train_loss" or len(epochs) == 1):  # a line of one epoch cannot be seen
            axes.plot(
                epochs[chosen],
                values[chosen],
                style.marker,
                color=style.colour,
                ms=style.size,
                mec="white",
                mew=0.8,
                zorder=5,
            )
    shared = set.intersection(*(set(epochs.tolist()) for _, epochs, _ in runs)) if runs else set()
    if len(runs) > 1 and shared:
        steps = np.array(sorted(shared))
        mean = np.mean([values[np.isin(epochs, steps)] for _, epochs, values in runs], axis=0)
        axes.plot(steps, mean, color=style.colour, lw=1.8, zorder=4)
    return [float(v) for _, epochs, values in runs for v in values[epochs > epochs.max() / 4] if math.isfinite(v)]


def _history(path: Path) -> dict[str, list[float]]:
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    if not rows:
        raise ValueError("no epochs")
    return {name: [float(row[name]) for row in rows] for name in ("epoch", "val_accuracy", "train_loss", "val_loss")}


def _history_label(column: str) -> str:
    """Label of a column of the curves; training columns share the unit of their validation twins."""
    if column in METRICS:
        return METRICS[column].label
    return METRICS[column.replace("train_", "val_")].label.replace("validation", "training")


def _caption(cells: Sequence[Cell], apart: float | None) -> str:
    lines = []
    if any(len(cell.seeds) > 1 for cell in cells):
        lines.append("Points: seeds. Markers: means with 95 % t intervals over seeds.")
    single = [cell for cell in cells if len(cell.seeds) == 1]
    if single:
        worst = max(binomial_se(c.first.test_accuracy, c.first.test_pictures) for c in single)
        who = (
            "One seed per arm"
            if len(single) == len(cells)
            else f"One seed: {', '.join(sorted({c.name for c in single}))}"
        )
        lines.append(
            f"{who}, so no interval over seeds; the test set alone ({single[0].first.test_pictures}"
            " pictures) has a standard "
            f"error of {METRICS['test_accuracy'].transform(worst):.2f} pp."
        )
    if apart:
        lines.append(
            f"Arms of one budget cost the same within {100 * apart:.1f} % and are set side by side only to be seen."
        )
    return "\n".join(part for line in lines for part in textwrap.wrap(line, 130))


def _direct_labels(axes: Axes, last: Mapping[str, tuple[float, float]], look: Mapping[str, Style]) -> None:
    """Write each arm's name beside its last point; those at the right in the margin, pushed apart where they meet."""
    low, high = axes.get_ylim()
    right = max(x for x, _ in last.values())
    left = min(x for x, _ in last.values())
    early = {name for name, (x, _) in last.items() if right - x > 0.4 * (right - left)}  # these end far from the margin
    for name in early:
        axes.annotate(
            name,
            xy=last[name],
            xytext=(11, 0),
            textcoords="offset points",
            va="center",
            fontsize=11,
            weight="bold",
            color=look[name].colour,
        )
    wanted = sorted(((y - low) / (high - low), name) for name, (_, y) in last.items() if name not in early)
    step = 0.062
    heights: list[float] = []
    for height, _ in wanted:
        heights.append(max(height, heights[-1] + step) if heights else max(height, 0.02))
    heights[-1] = min(heights[-1], 0.98)
    for i in range(len(heights) - 2, -1, -1):
        heights[i] = min(heights[i], heights[i + 1] - step)
    for (_, name), height in zip(wanted, heights, strict=True):
        axes.annotate(
            name,
            xy=last[name],
            xytext=(1.02, height),
            textcoords="axes fraction",
            va="center",
            fontsize=11,
            weight="bold",
            color=look[name].colour,
            arrowprops={
                "arrowstyle": "-",
                "color": look[name].colour,
                "lw": 0.8,
                "alpha": 0.4,
                "shrinkA": 2,
                "shrinkB": 6,
            },
            annotation_clip=False,
        )


def _plain(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x, fontsize=10.5)
    axes.set_ylabel(y, fontsize=10.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#999999")
    axes.tick_params(labelsize=9.5, color="#999999")
    axes.grid(axis="y", color="#e6e6e6", lw=0.8)
    axes.set_axisbelow(True)


def _centre(group: Sequence[Cell]) -> float:
    return math.fsum(math.log2(METRICS["macs"].show(cell.first)) for cell in group) / len(group)


def _amount(mega: float) -> str:
    return f"{mega / 1000:.2f} G" if mega >= 1000 else f"{mega:.0f} M" if mega >= 100 else f"{mega:.1f} M"


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
