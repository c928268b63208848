"""The comparison table: one list of columns, rendered for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.table import Table
from rich.text import Text

from src.record import CURRENCY_LABELS, METRICS
from src.report.ahead import SCORED, Scored
from src.verdict.cells import Cell
from src.verdict.standing import Standing, Standings


@dataclass(frozen=True)
class Column:
    """A heading and how a cell of the study is shown under it."""

    label: str
    show: Callable[[Cell], str]


def _metric(field: str, interval: bool = False) -> Column:
    metric = METRICS[field]

    def show(cell: Cell) -> str:
        estimate = cell.estimate(field)
        text = metric.format(estimate.mean)
        return f"{text} ±{metric.format(estimate.half_width)}" if interval and estimate.half_width is not None else text

    return Column(metric.label, show)


def _budget(cell: Cell) -> str:
    snapped = cell.budget if cell.is_base else cell.first.snapped_budget
    unit = "" if cell.first.currency == "macs" else f" {CURRENCY_LABELS[cell.first.currency]}"
    if cell.first.currency == "train_macs":
        return f"{cell.budget:g} network, {cell.first.price / cell.first.base_price:.3g}{unit}"
    return (f"{cell.budget:g}" if abs(snapped - cell.budget) < 0.005 else f"{cell.budget:g} → {snapped:.2f}") + unit


IDENTITY = (Column("arm", lambda cell: cell.name), Column("budget, asked → snapped", _budget))
NETWORK = (
    _metric("depth"),
    _metric("width"),
    _metric("resolution"),
    _metric("macs"),
    Column("MACs (x base)", lambda cell: f"{cell.first.macs / cell.first.base_macs:.3f}"),
    _metric("params"),
    _metric("activations"),
)
RESULT = (
    Column("seeds", lambda cell: str(len(cell.seeds))),
    _metric("val_accuracy", interval=True),
    _metric("test_accuracy", interval=True),
    _metric("images_per_second"),
    _metric("seconds_per_epoch"),
    _metric("peak_memory_bytes"),
    _metric("seconds"),
)
STANDING = ("arm", "budget", "P(best of its budget) (%)", "P(on the frontier) (%)")
STANDING_NOTE = (
    "Probabilities given these seeds, arms taken for exchangeable before them; on the frontier: no network that costs"
    " as much or less is better. They name no winner; the verdict does."
)
FORECAST = (
    "forecast of",
    "cost",
    "forecast",
    "95 % interval",
    "came",
    "error (pp)",
    "inside",
    "interval score",
    "single runs inside",
    "order",
    "written",
)
FORECAST_NOTE = (
    "Accuracies in %, differences in pp, each the mean of the seeds that were forecast; written before those runs. The"
    " interval score is the interval's width, and 40 times what a value lies outside. No part of the verdict."
)
INTERVAL_NOTE = "± is the half-width of the 95 % t interval over seeds; a value of one seed has none."


def tables(cells: Sequence[Cell], width: int) -> list[Table]:
    """The table for a terminal of `width` columns: in one piece if it fits, otherwise networks above results."""
    whole = _table(cells, (*IDENTITY, *RESULT[:1], *NETWORK, *RESULT[1:]), "")
    if sum(_needs(cells, column) + 1 for column in (*IDENTITY, *NETWORK, *RESULT)) <= width:
        return [whole]
    return [
        _table(cells, (*IDENTITY, *NETWORK), "What was built"),
        _table(cells, (*IDENTITY, *RESULT), "What it reached"),
    ]


def markdown(cells: Sequence[Cell]) -> str:
    """The whole table in Markdown."""
    columns = (*IDENTITY, *RESULT[:1], *NETWORK, *RESULT[1:])
    lines = ["| " + " | ".join(c.label for c in columns) + " |", "|---|" + "---:|" * (len(columns) - 1)]
    lines += ["| " + " | ".join(escape(c.show(cell)) for c in columns) + " |" for cell in cells]
    return "\n".join(lines)


def escape(text: str) -> str:
    """Text that cannot end a Markdown cell."""
    return " ".join(text.split()).replace("|", "\\|")


def standing_table(found: Standings, title: str) -> Table:
    """Probabilities of one network on one data set, for the terminal."""
    table = Table(box=None, padding=(0, 1, 0, 0), title=title, title_justify="left", title_style="bold", pad_edge=False)
    for index, label in enumerate(STANDING):
        table.add_column(label, justify="right" if index else "left", header_style="dim", vertical="bottom")
    for row in found.rows:
        table.add_row(*map(Text, _standing(row)))
    return table


def standing_markdown(found: Standings) -> str:
    """The same in Markdown."""
    lines = ["| " + " | ".join(STANDING) + " |", "|---|" + "---:|" * (len(STANDING) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(map(escape, _standing(row))) + " |" for row in found.rows)])


def slope_lines(found: Standings) -> list[str]:
    """Growth of accuracy with cost, one line an arm, and whether one slope would do for all."""
    lines = [
        f"{slope.arm}: {slope.value:+.2f} [{slope.low:+.2f}, {slope.high:+.2f}] pp of test accuracy for each doubling"
        f" of its cost, from {' to '.join(f'{b:g}x' for b in (slope.budgets[0], slope.budgets[-1]))} (95 % t interval)"
        for slope in found.slopes
    ]
    if found.p_common is not None:
        lines.append(f"one slope for all arms: F test, p={found.p_common:.2g}")
    return lines


def forecast_row(one: Scored) -> tuple[str, ...]:
    """A forecast beside what came, under the headings `FORECAST`."""
    e, digits = one.expected, METRICS["test_accuracy"].digits
    sign = "" if one.rival is None else "+"

    def shown(value: float | None, sign: str = sign) -> str:
        return "-" if value is None else format(value, f"{sign}.{digits}f")

    return (
        one.title,
        one.budget + ("" if one.currency == "macs" else f" {CURRENCY_LABELS[one.currency]}"),
        shown(e.value),
        f"{shown(e.low)} to {shown(e.high)}",
        shown(one.came) if one.state == SCORED else f"{one.state}: {one.reason}",
        shown(one.error, "+"),
        "-" if one.inside is None else ("yes" if one.inside else "no"),
        shown(one.score, ""),
        "-" if one.runs is None else f"{one.runs_inside} of {one.runs}",
        "-" if one.right is None else ("as forecast" if one.right else "otherwise"),
        one.written[:16],
    )


def forecast_markdown(forecasts: Sequence[Scored]) -> str:
    """Forecasts beside what came, in Markdown."""
    lines = ["| " + " | ".join(FORECAST) + " |", "|---|" + "---:|" * (len(FORECAST) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(map(escape, forecast_row(one))) + " |" for one in forecasts)])


def _standing(row: Standing) -> tuple[str, ...]:
    shown = ("-" if p is None else f"{100 * p:.0f}" for p in (row.best, row.frontier))
    return (row.arm, f"{row.budget:g}", *shown)


def _table(cells: Sequence[Cell], columns: Sequence[Column], title: str) -> Table:
    table = Table(
        box=None, padding=(0, 1, 0, 0), title=title or None, title_justify="left", title_style="bold", pad_edge=False
    )
    for index, column in enumerate(columns):
        justify: Literal["left", "right"] = "left" if index == 0 else "right"
        width = _needs(cells, column)
        table.add_column(
            column.label, justify=justify, header_style="dim", vertical="bottom", width=width, overflow="fold"
        )
    for index, cell in enumerate(cells):
        if index and cells[index - 1].budget != cell.budget:
            table.add_row()
        table.add_row(*(Text(column.show(cell)) for column in columns))
    return table


def _needs(cells: Sequence[Cell], column: Column) -> int:
    """Least width at which no word of the heading and no value is broken."""
    return max([*(len(word) for word in column.label.split()), *(len(column.show(cell)) for cell in cells)])


def openings_line(cells: Sequence[Cell]) -> str:
    """How often the test split was opened, by how many runs."""
    counts = [record.test_openings for cell in cells for record in cell.records]
    odd = sum(count != 1 for count in counts)
    each = "once by each" if not odd else f"not once by {odd}"
    return f"The test split was opened {sum(counts)} times in all, {each} of {len(counts)} runs."
