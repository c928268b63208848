"""The figures of a study: accuracy over cost and learning curves, as files and as parts of the page.

Agg and SVG canvases without pyplot, so no global state is read or left behind. An arm has one colour and one marker in
all figures; the colours are Okabe and Ito's, told apart with any colour vision.
"""

from __future__ import annotations

import csv
import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator
from scipy import stats

from src.record import CURRENCY_LABELS, METRICS, Metric, RunRecord
from src.report.ahead import NOT_SCORED, Scored
from src.report.svg import ARM_COLOURS, AXIS_GREY, BASE_COLOUR, GREY, GRID_GREY, Plot
from src.verdict.cells import Cell, by_budget
from src.verdict.extrapolation import Expected
from src.verdict.grammar import Finding
from src.verdict.guards import LEAST_SEEDS, SPREAD_BLOCKS
from src.verdict.statistics import ALPHA, binomial_se, spread

HISTORY_FILE = "history.csv"
CURVES = ("val_accuracy", "train_loss", "val_loss")
COSTS = ("macs", "params", "activations", "train_macs", "seconds_per_epoch", "seconds", "peak_memory_bytes")
_COUNTED = ("macs", "params", "activations", "train_macs")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
_DPI = 160
_MOST_POINTS = 150  # of one curve inside the page
_ROUND = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)

Folders = Mapping[RunRecord, Path]
History = dict[str, list[float]]


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
    looks = {
        name: Style(ARM_COLOURS[i % len(ARM_COLOURS)], _MARKERS[i % len(_MARKERS)]) for i, name in enumerate(names)
    }
    return {name: Style(BASE_COLOUR, "*", 12.5) for name in base} | looks


def numbered(cells: Sequence[Cell]) -> list[tuple[Cell, tuple[int, ...]]]:
    """Every cell with the places of its runs in the list of all runs, which follows the cells."""
    firsts = np.cumsum([0, *(len(cell.records) for cell in cells)]).tolist()
    return [(cell, tuple(range(first, first + len(cell.records)))) for cell, first in zip(cells, firsts, strict=False)]


def cost_axes(cells: Sequence[Cell]) -> tuple[Metric, ...]:
    """The costs that accuracy can be shown over: the study's own currency first, then all that every run has."""
    currencies = {record.currency for cell in cells for record in cell.records}
    currency = next(iter(currencies)) if len(currencies) == 1 else "macs"
    own = METRICS.get(currency) or Metric("price", f"{CURRENCY_LABELS[currency]} of the budget", float, 6)
    others = (METRICS[field] for field in COSTS if field != own.field)
    return tuple(
        metric for metric in (own, *others) if all(metric.show(record) > 0 for cell in cells for record in cell.records)
    )


def read_histories(cells: Sequence[Cell], folders: Folders) -> tuple[dict[RunRecord, History], list[Finding]]:
    """The curves of all runs that have them, and what is missing."""
    found: list[Finding] = []
    histories: dict[RunRecord, History] = {}
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
    return histories, found


def accuracy_over_cost(
    cells: Sequence[Cell], metric: Metric, shape: str = "file", forecasts: Sequence[Scored] = ()
) -> Plot:
    """Test accuracy over realised cost: every seed a faint point, the mean with its 95 % t interval.

    Args:
        cells: of the study.
        metric: the cost.
        shape: `file` has its caption inside; `wide` and `narrow` stand in the page, which has captions of its own.
        forecasts: hollow markers with their prediction intervals, where the cost is the one that was forecast at.
    """
    look = styles(cells)
    order = list(look)
    plot, axes = _frame(cells, shape)
    marked = dict(numbered(cells))
    ahead = _ahead(cells, metric, forecasts)
    places = _Places(cells, metric, ahead)
    last: dict[str, tuple[float, float]] = {}
    heights: list[float] = []
    for name, style in look.items():
        arm = order.index(name)
        own = [cell for cell in cells if cell.name == name]
        points = [(places.centre(cell), cell.estimate("test_accuracy")) for cell in own]
        axes.plot(
            [x for x, _ in points],
            [e.mean for _, e in points],
            color=style.colour,
            lw=1.2,
            alpha=0.45,
            zorder=2,
            gid=plot.mark(arm),
        )
        for cell, (x, e) in zip(own, points, strict=True):
            for run, record, seed_x in zip(marked[cell], cell.records, places.seeds(cell), strict=True):
                value = METRICS["test_accuracy"].show(record)
                heights.append(value)
                if len(cell.records) == 1:  # its marker alone, or the point would lie beneath it
                    continue
                label = f"{_named(cell)}, seed {record.seed}: {METRICS['test_accuracy'].format(value)} %"
                gid = plot.mark(arm, (run,), "test_accuracy", label)
                axes.plot(seed_x, value, "o", ms=4.6, color=style.colour, alpha=0.6, mew=0, zorder=3, gid=gid)
            half = e.half_width or 0.0
            if half:
                bar = axes.errorbar(x, e.mean, half, color=style.colour, capsize=3, lw=1.5, zorder=4)
                for part in bar.get_children():
                    part.set_gid(plot.mark(arm))
            text = METRICS["test_accuracy"].format(e.mean) + (
                f" ±{METRICS['test_accuracy'].format(half)}" if half else ""
            )
            label = f"{_named(cell)}, seed {cell.first.seed}: {text} %"
            if len(cell.records) > 1:
                label = f"{_named(cell)}: mean of {len(cell.records)} runs {text} %"
            gid = plot.mark(arm, marked[cell], "test_accuracy", label)
            axes.plot(
                x, e.mean, style.marker, color=style.colour, ms=style.size, mec="white", mew=0.9, zorder=5, gid=gid
            )
            heights += [e.mean - half, e.mean + half]
        last[name] = max(points[-1][0], *places.seeds(own[-1])), points[-1][1].mean
    for one in ahead:
        _hollow(plot, axes, places.ahead(one), one.expected, order.index(one.name), look[one.name])
        heights += [one.expected.low, one.expected.high]
        # The arm's name stands behind all of it.
        last[one.name] = max(last[one.name], (places.ahead(one), one.expected.value))
    pad = max(0.07 * (max(heights) - min(heights)), 0.2)
    axes.set_ylim(min(heights) - pad, max(heights) + pad)
    low, high = places.limits()
    axes.set_xlim(low, high)
    ticks = places.ticks()
    axes.xaxis.set_major_locator(FixedLocator([x for x, _ in ticks]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([text for _, text in ticks])
    _plain(axes, f"{_bare_label(metric)}, logarithmic", METRICS["test_accuracy"].label, above=shape != "file")
    if shape != "narrow":
        _direct_labels(axes, last, look, plot)
    if shape == "file":
        lines = [part for line in accuracy_notes(cells, metric, forecasts) for part in textwrap.wrap(line, 130)]
        plot.figure.text(0.012, 0.016, "\n".join(lines), fontsize=8, color=GREY, linespacing=1.45)
    return plot


def accuracy_notes(cells: Sequence[Cell], metric: Metric, forecasts: Sequence[Scored] = ()) -> list[str]:
    """What must be known to read the figure, in sentences."""
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
    places = _Places(cells, metric)
    if places.matched and any(len(group) > 1 for group in by_budget(cells).values()):
        within = f"{100 * places.apart:.1f} % in {_bare_label(metric)}"
        lines.append(f"Arms of one budget cost the same within {within} and are set side by side only to be seen.")
    if _ahead(cells, metric, forecasts):
        lines.append("Hollow, dashed: forecasts that were written before those runs, with 95 % prediction intervals.")
    if not places.matched and any(len(set(places.costs[cell])) > 1 for cell in cells):
        lines.append("This cost was measured in every run: each seed stands at its own, the mean at theirs.")
    return lines


def learning_curves(cells: Sequence[Cell], histories: Mapping[RunRecord, History]) -> Plot | None:
    """Validation accuracy and losses per epoch; one row of panels per budget, the base in grey in each."""
    if not histories:
        return None
    levels = curve_levels(cells)
    look = styles(cells)
    height = 2.9 * len(levels) + 0.75
    plot = Plot(Figure(figsize=(10.5, height), dpi=_DPI))
    grid = plot.figure.subplots(len(levels), len(CURVES), squeeze=False, sharex=True)
    plot.figure.subplots_adjust(
        left=0.075, right=0.99, top=1 - 0.62 / height, bottom=0.72 / height, wspace=0.27, hspace=0.24
    )
    for row, ((title, shown), panels) in enumerate(zip(levels, grid, strict=True), start=1):
        for column, axes in zip(CURVES, panels, strict=True):
            _panel(plot, axes, cells, shown, column, histories)
            _plain(axes, "epoch" if row == len(levels) else "", curve_label(column))
        panels[0].set_title(title, loc="left", fontsize=10.5, weight="bold", pad=5)
    handles = [
        Line2D([], [], color=s.colour, marker=s.marker, ms=s.size + 1.5, mec="white", lw=2, label=n)
        for n, s in look.items()
    ]
    plot.figure.legend(handles=handles, loc="upper center", ncols=min(len(handles), 7), frameon=False, fontsize=10.5)
    plot.figure.text(0.012, 0.016, " ".join(curve_notes(cells)), fontsize=8.5, color=GREY)
    return plot


def curve_panel(
    cells: Sequence[Cell], shown: Sequence[Cell], column: str, histories: Mapping[RunRecord, History]
) -> Plot:
    """One panel of the learning curves, as it stands in the page."""
    plot = Plot(Figure(figsize=(3.7, 2.85)))
    axes = plot.figure.add_axes((0.12, 0.155, 0.86, 0.735))
    _panel(plot, axes, cells, shown, column, histories, _MOST_POINTS)
    _plain(axes, "epoch", curve_label(column), above=True)
    return plot


def curve_levels(cells: Sequence[Cell]) -> list[tuple[str, list[Cell]]]:
    """Rows of the learning curves: the cells of every budget, with the base in each."""
    base = [cell for cell in cells if cell.is_base]
    levels = [(f"{budget:g}x base", [*base, *group]) for budget, group in by_budget(cells).items()]
    return levels or [("base", base)]


def curve_notes(cells: Sequence[Cell], most: int | None = None) -> list[str]:
    """What must be known to read the curves, in sentences."""
    lines = ["Thin: one seed. Bold: mean over seeds."]
    if any(len(cell.records) >= LEAST_SEEDS for cell in cells):
        lines.append("Band: 95 % t interval of the mean at each epoch.")
    lines.append("Marker: the epoch that validation chose, whose weights were tested.")
    lines.append("Scales fit the last three quarters of training.")
    if most is not None and any(record.epochs > most for cell in cells for record in cell.records):
        lines.append(f"Of longer curves every k-th epoch is drawn, {most} at most.")
    return lines


def page_curve_notes(cells: Sequence[Cell]) -> list[str]:
    """The same for the page's panels, which leave out epochs of long curves."""
    return curve_notes(cells, _MOST_POINTS)


def curve_label(column: str) -> str:
    """Label of a column of the curves; training columns share the unit of their validation twins."""
    if column in METRICS:
        return METRICS[column].label
    return METRICS[column.replace("train_", "val_")].label.replace("validation", "training")


def accuracy_csv(cells: Sequence[Cell], folders: Folders, forecasts: Sequence[Scored] = ()) -> str:
    """Every mark of the accuracy figures as a row: seeds, and means with their intervals."""
    accuracy, costs = METRICS["test_accuracy"], cost_axes(cells)
    names = ("mark", "arm", "budget", "folder", "seed", accuracy.label, "low", "high", *(c.label for c in costs))
    rows: list[tuple[Any, ...]] = []
    for cell in cells:
        for r in cell.records:
            paid = (cost.show(r) for cost in costs)
            rows.append(("seed", cell.name, cell.budget, folders[r].name, r.seed, accuracy.show(r), "", "", *paid))
        e = cell.estimate(accuracy.field)
        ends = ("", "") if e.half_width is None else (e.mean - e.half_width, e.mean + e.half_width)
        means = (math.fsum(cost.show(r) for r in cell.records) / len(cell.records) for cost in costs)
        rows.append(("mean", cell.name, cell.budget, "", "", e.mean, *ends, *means))
    for one in _ahead(cells, costs[0], forecasts):
        cost = costs[0].transform(one.at * one.base_price)
        expected, unknown = one.expected, [""] * (len(costs) - 1)
        row = (one.name, one.cost, "", "", expected.value, expected.low, expected.high, cost, *unknown)
        rows.append(("forecast", *row))
    return as_csv(names, rows)


def curves_csv(cells: Sequence[Cell], histories: Mapping[RunRecord, History], folders: Folders) -> str | None:
    """Every epoch of every curve as a row, in the units of the figure."""
    if not histories:
        return None
    names = ("arm", "budget", "folder", "seed", "epoch", *map(curve_label, CURVES), "chosen by validation")
    rows: list[tuple[Any, ...]] = []
    for cell in cells:
        for r in cell.records:
            history = histories.get(r)
            for i, epoch in enumerate(history["epoch"] if history else ()):
                values = (_factor(column) * history[column][i] for column in CURVES) if history else ()
                chosen = int(epoch == r.best_epoch)
                rows.append((cell.name, cell.budget, folders[r].name, r.seed, int(epoch), *values, chosen))
    return as_csv(names, rows)


def as_csv(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Rows under their headings."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(rows)
    return buffer.getvalue()


def as_png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _hollow(plot: Plot, axes: Axes, x: float, expected: Expected, arm: int, style: Style) -> None:
    """A forecast: a hollow marker on a dashed prediction interval."""
    axes.plot(
        [x, x],
        [expected.low, expected.high],
        color=style.colour,
        lw=1.2,
        ls=(0, (3, 2)),
        marker="_",
        ms=7,
        zorder=3,
        gid=plot.mark(arm),
    )
    axes.plot(
        x,
        expected.value,
        style.marker,
        color=style.colour,
        ms=style.size,
        mfc="white",
        mew=1.3,
        zorder=4,
        gid=plot.mark(arm),
    )


def _ahead(cells: Sequence[Cell], metric: Metric, forecasts: Sequence[Scored]) -> list[Scored]:
    """The last forecast of every arm at every cost that was written before its runs, where the axis is of the currency
    that it was made in."""
    names = {(cell.name, cell.first.network, cell.first.data) for cell in cells if not cell.is_base}
    last = {}
    for one in forecasts:
        own = (one.name, one.network, one.data)
        if one.rival is None and one.state != NOT_SCORED and metric.field in (one.currency, "price") and own in names:
            last[*own, one.cost] = one
    return list(last.values())


class _Places:
    """Where cells and forecasts stand on a logarithmic axis of one cost (log2 of the shown value)."""

    def __init__(self, cells: Sequence[Cell], metric: Metric, forecasts: Sequence[Scored] = ()) -> None:
        self.metric = metric
        self.cells = cells
        self.costs = {cell: [metric.show(record) for record in cell.records] for cell in cells}
        self.logs = {cell: math.log2(math.fsum(own) / len(own)) for cell, own in self.costs.items()}
        budgets = by_budget(cells)
        means = {cell: math.fsum(own) / len(own) for cell, own in self.costs.items()}
        self.apart = max([0.0, *(spread([means[cell] for cell in group]) for group in budgets.values())])
        fixed = all(spread(own) <= SPREAD_BLOCKS for own in self.costs.values())
        self.matched = fixed and self.apart <= SPREAD_BLOCKS
        level = {1.0: [cell for cell in cells if cell.is_base]} | budgets
        self.centres = {b: math.fsum(self.logs[c] for c in group) / len(group) for b, group in level.items() if group}
        # The base's cost is on the axis even if it was not run, or arms set side by side would seem to differ in cost.
        first = cells[0].first
        base = {"macs": first.base_macs, first.currency: first.base_price, "price": first.base_price}.get(metric.field)
        if base and 1.0 not in self.centres:
            self.centres = {1.0: math.log2(metric.transform(base))} | self.centres
        self.forecasts = {one: math.log2(metric.transform(one.at * one.base_price)) for one in forecasts}
        self.centres = {one.cost: x for one, x in self.forecasts.items()} | self.centres
        every = [*self.centres.values(), *self.logs.values()]
        self.reach = max(max(every) - min(every), 1.0) if self.matched else max(max(every) - min(every), 0.25)
        self.names = sorted({cell.name for cell in cells if not cell.is_base})

    def centre(self, cell: Cell) -> float:
        """Of the mean."""
        if cell.is_base or not self.matched:
            return self.logs[cell]
        return self._beside(cell.name, self.centres[cell.budget])

    def _beside(self, name: str, centre: float) -> float:
        side = self.names.index(name) - (len(self.names) - 1) / 2
        step = min(0.055 * self.reach, 0.24 * self.reach / max(len(self.names) - 1, 1))
        return centre + side * step

    def seeds(self, cell: Cell) -> list[float]:
        """Of every run: at its own cost where that was measured, otherwise off the bar, so that every seed is seen."""
        if not self.matched and len(set(self.costs[cell])) > 1:
            return [math.log2(cost) for cost in self.costs[cell]]
        beside = 0.0 if len(self.costs[cell]) == 1 else 0.014 * self.reach
        return [self.centre(cell) - beside] * len(self.costs[cell])

    def ahead(self, forecast: Scored) -> float:
        """Of a forecast: beside where the arm's mean stands, or will stand."""
        if not self.matched:
            return self.forecasts[forecast]
        return self._beside(forecast.name, self.forecasts[forecast]) + 0.014 * self.reach

    def limits(self) -> tuple[float, float]:
        """Of the axis."""
        every = [*self.centres.values(), *(x for c in self.cells for x in (self.centre(c), *self.seeds(c)))]
        every += [self.ahead(forecast) for forecast in self.forecasts]
        return min(every) - 0.08 * self.reach, max(every) + 0.08 * self.reach

    def ticks(self) -> list[tuple[float, str]]:
        """Budgets where arms share them, otherwise round costs."""
        if self.matched:
            return [(x, f"{self._amount(2**x)}\n{b:g}x base") for b, x in self.centres.items()]
        low, high = (2**x for x in self.limits())
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        values = [digit * 10.0**decade for decade in decades for digit in _ROUND]
        inside = [value for value in values if low <= value <= high] or [2 ** ((math.log2(low) + math.log2(high)) / 2)]
        kept = inside[:: -(-len(inside) // 6)]
        return [(math.log2(value), self._amount(value)) for value in kept]

    def _amount(self, shown: float) -> str:
        """A cost with three digits; counts with k, M or G, since one study's base may be a thousandth of another's."""
        if self.metric.field not in _COUNTED:
            return np.format_float_positional(float(f"{shown:.3g}"), trim="-")
        counted = shown / self.metric.transform(1.0)
        for size, sign in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
            if counted >= size:
                return f"{counted / size:.3g}{sign}"
        return f"{counted:.3g}"


def _frame(cells: Sequence[Cell], shape: str) -> tuple[Plot, Axes]:
    """An empty figure with room for what its shape has around the axes."""
    width, height = {"file": (8.6, 5.4), "wide": (9.4, 4.7), "narrow": (4.2, 4.3)}[shape]
    longest = 0.045 * 8.6 + 0.0125 * 8.6 * max(len(cell.name) for cell in cells)  # inches, at the right
    left, right, bottom, top = {
        "file": (0.82, 0.09 + longest, 1.16, 0.27),
        "wide": (0.55, 0.1 + longest, 0.72, 0.42),
        "narrow": (0.5, 0.12, 0.72, 0.4),
    }[shape]
    plot = Plot(Figure(figsize=(width, height), dpi=_DPI))
    across = max(width - left - right, 0.4 * width)
    return plot, plot.figure.add_axes((left / width, bottom / height, across / width, (height - bottom - top) / height))


def _panel(
    plot: Plot,
    axes: Axes,
    cells: Sequence[Cell],
    shown: Sequence[Cell],
    column: str,
    histories: Mapping[RunRecord, History],
    most: int | None = None,
) -> None:
    """Draw the curves of some cells and fit the scale to what follows the first epochs."""
    look = styles(cells)
    order = list(look)
    marked = dict(numbered(cells))
    settled: list[float] = []
    for cell in shown:
        arm = order.index(cell.name)
        settled += _curves(plot, axes, cell, marked[cell], arm, column, histories, look[cell.name], most)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if histories and all(len(history["epoch"]) == 1 for history in histories.values()):
        axes.set_xlim(0.5, 1.5)
        axes.xaxis.set_major_locator(FixedLocator([1]))
    if settled:  # the first epochs, alike in all arms, must not flatten what follows
        pad = 0.06 * (max(settled) - min(settled)) + 1e-9
        axes.set_ylim(min(settled) - pad, max(settled) + pad)


def _curves(
    plot: Plot,
    axes: Axes,
    cell: Cell,
    marked: tuple[int, ...],
    arm: int,
    column: str,
    histories: Mapping[RunRecord, History],
    style: Style,
    most: int | None,
) -> list[float]:
    """Draw one cell's seeds, their mean and its band; returns the values after the first quarter of the epochs."""
    runs = [
        (r, number, np.array(histories[r]["epoch"]), _factor(column) * np.array(histories[r][column]))
        for r, number in zip(cell.records, marked, strict=True)
        if r in histories
    ]
    for record, number, epochs, values in runs:
        alone = len(runs) == 1
        thin = _thinned(len(epochs), most)
        axes.plot(
            epochs[thin],
            values[thin],
            color=style.colour,
            lw=1.8 if alone else 0.8,
            alpha=1 if alone else 0.35,
            zorder=2,
            gid=plot.mark(arm),
        )
        chosen = epochs == record.best_epoch
        if chosen.any() and (column != "train_loss" or len(epochs) == 1):  # a line of one epoch cannot be seen
            label = f"{_named(cell)}, seed {record.seed}: {curve_label(column)} {values[chosen][0]:.4g}"
            axes.plot(
                epochs[chosen],
                values[chosen],
                style.marker,
                color=style.colour,
                ms=style.size if most is None else 0.8 * style.size,
                mec="white",
                mew=0.8,
                zorder=5,
                gid=plot.mark(arm, (number,), column, f"{label} at the chosen epoch {record.best_epoch}"),
            )
    shared = set.intersection(*(set(epochs.tolist()) for _, _, epochs, _ in runs)) if runs else set()
    if len(runs) > 1 and shared:
        steps = np.array(sorted(shared))[_thinned(len(shared), most)]
        table = np.array([values[np.isin(epochs, steps)] for _, _, epochs, values in runs])
        mean = table.mean(axis=0)
        if len(runs) >= LEAST_SEEDS:
            reach = stats.t.ppf(1 - ALPHA / 2, len(runs) - 1) / math.sqrt(len(runs))
            half = reach * table.std(axis=0, ddof=1)
            gid = plot.mark(arm)
            axes.fill_between(steps, mean - half, mean + half, color=style.colour, alpha=0.13, lw=0, zorder=1, gid=gid)
        axes.plot(steps, mean, color=style.colour, lw=1.8, zorder=4, gid=plot.mark(arm))
    return [float(v) for _, _, epochs, values in runs for v in values[epochs > epochs.max() / 4] if math.isfinite(v)]


def _thinned(count: int, most: int | None) -> np.ndarray:
    """Places of the epochs that are drawn: every k-th, and the last."""
    step = 1 if most is None else -(-count // most)
    return np.array(sorted({*range(0, count, step), count - 1}), dtype=np.intp)


def _history(path: Path) -> History:
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    if not rows:
        raise ValueError("no epochs")
    return {name: [float(row[name]) for row in rows] for name in ("epoch", *CURVES)}


def _factor(column: str) -> float:
    return METRICS[column].transform(1.0) if column in METRICS else 1.0


def _named(cell: Cell) -> str:
    return cell.name if cell.is_base else f"{cell.name} {cell.budget:g}x"


def _bare_label(metric: Metric) -> str:
    """The label without its unit where the axis writes it at every number."""
    return metric.label.partition(" (")[0] if metric.field in _COUNTED else metric.label


def _direct_labels(axes: Axes, last: Mapping[str, tuple[float, float]], look: Mapping[str, Style], plot: Plot) -> None:
    """Write each arm's name beside its last point; those at the right in the margin, pushed apart where they meet."""
    low, high = axes.get_ylim()
    right = max(x for x, _ in last.values())
    start, end = axes.get_xlim()
    order = list(look)
    early = [name for name, (x, _) in last.items() if right - x > 0.4 * (end - start)]  # these end far from the margin
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
            gid=plot.mark(order.index(name)),
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
        label = axes.annotate(
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
            gid=plot.mark(order.index(name)),
        )
        assert label.arrow_patch is not None  # arrowprops make one
        label.arrow_patch.set_gid(plot.mark(order.index(name)))


def _plain(axes: Axes, x: str, y: str, above: bool = False) -> None:
    """Axes without ornament; `above` writes the label of the upright axis over it, where it takes no width."""
    axes.set_xlabel(x, fontsize=10.5)
    if above:
        axes.set_title(y, loc="left", fontsize=10.5, pad=9, x=-0.06)
    else:
        axes.set_ylabel(y, fontsize=10.5)
    axes.set_facecolor("none")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(AXIS_GREY)
    axes.tick_params(labelsize=9.5, color=AXIS_GREY)
    axes.grid(axis="y", color=GRID_GREY, lw=0.8)
    axes.set_axisbelow(True)
