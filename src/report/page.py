"""report.html: the whole report in one file that asks nothing of a network.

Everything it says comes from the summary that is also written as summary.json, from the closed grammar of the verdict,
and from figures of the same records; it draws no conclusion of its own. Jinja escapes every text. The page's policy
lets one script run, known by its hash, and nothing be fetched.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.markers import MarkerStyle
from matplotlib.path import Path as Outline

from src.guards import GUARDS
from src.record import CURRENCY_LABELS, METRICS, RECORD_FILE, Metric
from src.report.cam_grid import page_rows, score_rows, title
from src.report.drawings import Material
from src.report.figures import (
    CURVES,
    Style,
    accuracy_notes,
    accuracy_over_cost,
    cost_axes,
    curve_label,
    curve_levels,
    curve_panel,
    numbered,
    page_curve_notes,
    styles,
)
from src.report.svg import drawing, inline, variable
from src.report.table import FORECAST, FORECAST_NOTE, INTERVAL_NOTE, STANDING, STANDING_NOTE, forecast_row
from src.verdict.cells import Cell

PAGE_FILE = "report.html"
RESULTS = (
    "test_accuracy",
    "val_accuracy",
    "macs",
    "params",
    "activations",
    "train_macs",
    "images_per_second",
    "seconds_per_epoch",
    "seconds",
    "peak_memory_bytes",
    "test_loss",
    "val_loss",
)
AXES = ("depth", "width", "resolution")
_HERE = Path(__file__).parent

# What leads from a number to what made it: heading, and the field of the record.
PROVENANCE = (
    ("epoch chosen by validation", "best_epoch"),
    ("epochs", "epochs"),
    ("config", "config_hash"),
    ("recipe", "recipe_hash"),
    ("data", "data_fingerprint"),
    ("code", "code_revision"),
    ("architecture", "architecture_sha256"),
    ("weights", "weights_sha256"),
    ("predictions", "predictions_sha256"),
    ("test split opened", "test_openings"),
    ("device", "device"),
    ("precision", "precision"),
    ("torch", "torch_version"),
    ("started", "started"),
    ("W&B", "wandb_id"),
    ("notes", "notes"),
)


@dataclass(frozen=True)
class Number:
    """A shown number: its text, what it sorts by, and the runs that it was computed from."""

    text: str
    value: float
    field: str
    runs: tuple[int, ...]


@dataclass(frozen=True)
class Shares:
    """Shares of the growth that went to depth, width and resolution, in %."""

    asked: tuple[int, ...]
    realised: tuple[int, ...]
    runs: tuple[int, ...]


@dataclass(frozen=True)
class Built:
    """A row of the table of what was asked and what came of it."""

    arm: int
    name: str
    budget: tuple[Number, Number, Number]  # asked, solved to, realised
    axes: tuple[tuple[Number, Number], ...]  # asked and realised depth, width, resolution
    shares: Shares | None  # None: nothing grew


def page(summary: Mapping[str, Any], material: Material) -> str:
    """The report as HTML.

    Args:
        summary: content of summary.json; rows stand in the order of the cells, runs in that of their records.
        material: what the figures are drawn from.
    """
    cells = material.cells
    look = styles(cells)
    arms = {name: number for number, name in enumerate(look)}
    costs = cost_axes(cells)
    script = (_HERE / "page.js").read_text(encoding="utf-8")
    rows, note = page_rows(material.columns)
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = environment.get_template("page.html").render(
        summary=summary,
        css=Markup((_HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        sentences=[_sentence(sentence, cells) for sentence in summary["sentences"]],
        unsaid=[r for r in summary["regimes"] if not any(r in s["text"] for s in summary["sentences"])],
        blocking=[f for f in summary["findings"] if f["blocking"]],
        guards=[_guard(code, summary["findings"]) for code in GUARDS],
        warnings=[f["text"] for f in summary["findings"] if not f["blocking"]] + list(summary["remarks"]),
        arms=[(number, name, _glyph(look[name]), variable(look[name].colour)) for name, number in arms.items()],
        costs=list(_accuracy(material, costs)),
        results=[METRICS[field].label for field in RESULTS],
        rows=[_row(row, cell, runs, arms) for row, (cell, runs) in zip(summary["rows"], numbered(cells), strict=True)],
        interval_note=INTERVAL_NOTE,
        standings=list(_standings(summary.get("standings", ()), cells, arms)),
        standing_headings=STANDING,
        standing_note=STANDING_NOTE,
        forecasts=[(arms.get(one.name), forecast_row(one)) for one in material.forecasts],
        forecast_headings=FORECAST,
        forecast_note=FORECAST_NOTE,
        currency=_currency(cells),
        axes=[(METRICS[field].label, field) for field in AXES],
        built=[_built(cell, runs, arms[cell.name]) for cell, runs in numbered(cells)],
        levels=list(_curves(material)),
        curve_notes=page_curve_notes(cells),
        columns=[(arms[column.cell.name], *title(column), column.run) for column in material.columns],
        pictures=rows,
        picture_note=note,
        scores=score_rows(cells, material.columns, material.scores),
        accuracy=METRICS["test_accuracy"],
        folders=[_link(run["folder"]) for run in summary["runs"]],
        data=Markup(_json(_runs(summary["runs"], cells, costs))),
    )
    return text.encode("utf-8", "replace").decode()  # a folder's name may hold bytes that are no text


def _guard(code: str, findings: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """A guard, what it holds, and what it found in the records."""
    own = [finding["blocking"] for finding in findings if finding["guard"] == code]
    found = f"{sum(own)} in the way of a claim" if any(own) else f"{len(own)} warning{'s' * (len(own) > 1)}"
    return {"code": code, "meaning": GUARDS[code], "found": found if own else "nothing"}


def _accuracy(material: Material, costs: Sequence[Metric]) -> Iterator[dict[str, Any]]:
    """The accuracy figure of every cost, for wide and for narrow windows."""
    cells, forecasts = material.cells, material.forecasts
    for cost in costs:
        label = f"{METRICS['test_accuracy'].label} over {cost.label}; the results table holds the same numbers"
        drawn = {}
        for shape in ("wide", "narrow"):
            with drawing(f"{cost.field} {shape}"):
                drawn[shape] = Markup(inline(accuracy_over_cost(cells, cost, shape, forecasts), label, shape))
        yield {"field": cost.field, "label": cost.label, "notes": accuracy_notes(cells, cost, forecasts), **drawn}


def _curves(material: Material) -> Iterator[tuple[str, list[Markup]]]:
    """Title and panels of every row of learning curves."""
    if not material.histories:
        return
    for name, shown in curve_levels(material.cells):
        panels = []
        for column in CURVES:
            with drawing(f"{name} {column}"):
                plot = curve_panel(material.cells, shown, column, material.histories)
                panels.append(Markup(inline(plot, f"{curve_label(column)} by epoch, {name}")))
        yield name, panels


def _sentence(sentence: Mapping[str, Any], cells: Sequence[Cell]) -> dict[str, Any]:
    """A sentence of the verdict as it stands, cut after its outcome, with the runs behind it."""
    text, outcome = str(sentence["text"]), str(sentence["outcome"])
    cut = len(outcome) if text.lower().startswith(outcome.lower()) else 0
    place, regime = sentence.get("place") or {}, sentence.get("regime") or {}
    names = {sentence.get("subject"), *(sentence.get("rivals") or ())}
    names |= {comparison["rival"] for comparison in sentence.get("comparisons") or ()}
    behind = [
        run
        for cell, runs in numbered(cells)
        for run in runs
        if cell.name in names
        and cell.budget == place.get("budget")
        and cell.first.data in str(regime.get("data", cell.first.data)).split("/")
        and cell.first.network in str(regime.get("network", cell.first.network)).split("/")
    ]
    return {"kind": outcome.replace(" ", "-"), "outcome": text[:cut] or outcome, "rest": text[cut:], "runs": behind}


def _standings(
    found: Sequence[Mapping[str, Any]], cells: Sequence[Cell], arms: Mapping[str, int]
) -> Iterator[dict[str, Any]]:
    """Probabilities and slopes of each network on each data set that has any."""
    for one in found:
        rows = []
        for row in one["rows"]:
            runs = tuple(
                run
                for cell, own in numbered(cells)
                for run in own
                if (cell.name, cell.budget) == (row["arm"], row["budget"])
                and f"{cell.first.network} on {cell.first.data}" == one["setting"]
            )
            shown = [
                Number(f"{100 * row[key]:.0f}", 100 * row[key], "test_accuracy", runs) if row[key] is not None else None
                for key in ("best", "frontier")
            ]
            rows.append((arms[row["arm"]], row["arm"], row["budget"], shown))
        if any(shown[0] for *_, shown in rows) or one["slopes"]:
            yield {**one, "rows": rows}


def _row(row: Mapping[str, Any], cell: Cell, runs: tuple[int, ...], arms: Mapping[str, int]) -> dict[str, Any]:
    """A row of the results table, from the summary's numbers."""
    numbers = []
    for field in RESULTS:
        shown, metric = row["metrics"][field], METRICS[field]
        text = metric.format(shown["mean"])
        if shown["half_width"] is not None and field.endswith("accuracy"):
            text += f" ±{metric.format(shown['half_width'])}"
        numbers.append(Number(text, shown["mean"], field, runs))
    seeds = ", ".join(map(str, row["seeds"]))
    return {
        "arm": arms[cell.name],
        "name": row["arm"],
        "budget": row["budget"],
        "n": Number(str(row["n"]), row["n"], "seed", runs),
        "seeds": seeds,
        "numbers": numbers,
    }


def _built(cell: Cell, runs: tuple[int, ...], arm: int) -> Built:
    first = cell.first

    def number(value: float, digits: int, field: str) -> Number:
        return Number(f"{value:.{digits}f}", value, field, runs)

    pairs = [
        (number(first.asked_depth, 2, "asked_depth"), number(first.depth, 2, "depth")),
        (number(first.asked_width, 2, "asked_width"), number(first.width, 2, "width")),
        (
            number(first.asked_resolution * first.base_resolution, 1, "asked_resolution"),
            number(first.resolution, 0, "resolution"),
        ),
    ]
    asked, realised = (
        tuple(round(100 * getattr(first, f"{kind}share_{axis}")) for axis in AXES) for kind in ("asked_", "")
    )
    return Built(
        arm,
        cell.name,
        (
            Number(f"{first.budget:g}", first.budget, "budget", runs),
            number(first.snapped_budget, 3, "snapped_budget"),
            number(first.price / first.base_price, 3, "price"),
        ),
        tuple(pairs),
        Shares(asked, realised, runs) if any(asked) or any(realised) else None,
    )


def _currency(cells: Sequence[Cell]) -> str:
    return " / ".join(sorted({CURRENCY_LABELS[record.currency] for cell in cells for record in cell.records}))


def _runs(runs: Sequence[Mapping[str, Any]], cells: Sequence[Cell], costs: Sequence[Metric]) -> list[dict[str, Any]]:
    """What the script knows of every run: who it is, what leads back to it, and its own numbers."""
    known = []
    metrics = {**METRICS, **{cost.field: cost for cost in costs}}
    records = [(cell, record) for cell in cells for record in cell.records]
    for run, (cell, record) in zip(runs, records, strict=True):
        facts = [(heading, str(run[field])) for heading, field in PROVENANCE if str(run[field])]
        values = {field: metric.format(metric.show(record)) for field, metric in metrics.items()}
        values |= {
            "budget": f"{record.budget:g}",
            "snapped_budget": f"{record.snapped_budget:.3f}",
            "asked_depth": f"{record.asked_depth:.4g}",
            "asked_width": f"{record.asked_width:.4g}",
            "asked_resolution": f"{record.asked_resolution:.4g} x {record.base_resolution} px",
            "price": f"{record.price:.6g} of {record.base_price:.6g} {CURRENCY_LABELS[record.currency]}",
            "shares": " / ".join(f"{100 * getattr(record, f'share_{axis}'):.1f}" for axis in AXES),
            "seed": str(record.seed),
        }
        name = cell.name if cell.is_base else f"{cell.name} {cell.budget:g}x"
        link = _link(str(run["folder"]))
        known.append(
            {"arm": name, "seed": record.seed, "folder": run["folder"], "link": link, "facts": facts, "values": values}
        )
    return known


def _link(folder: str) -> str:
    """Relative link to a run's record; nothing in a folder's name can make it another kind of link."""
    return f"./{quote(folder.encode('utf-8', 'surrogateescape'))}/{RECORD_FILE}"


def _json(runs: Sequence[Mapping[str, Any]]) -> str:
    """JSON that cannot end the element it stands in."""
    labels = {field: metric.label for field, metric in METRICS.items()} | {
        column: curve_label(column) for column in CURVES
    }
    labels |= {"budget": "budget asked (x base)", "snapped_budget": "budget solved to (x base)", "price": "price"}
    labels |= {f"asked_{axis}": f"asked {axis} (x base)" for axis in AXES} | {"seed": "seed"}
    labels |= {"shares": "depth / width / resolution (% of growth)"}
    text = json.dumps({"labels": labels, "runs": runs}, ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _glyph(style: Style) -> Markup:
    """Path of an arm's marker in a box of 16, for the legend."""
    marker = MarkerStyle(style.marker)
    outline = marker.get_path().transformed(marker.get_transform())
    scale = 12 if style.marker in "*PX" else 10
    letters = {Outline.MOVETO: "M", Outline.LINETO: "L", Outline.CURVE3: "Q", Outline.CURVE4: "C"}
    parts = []
    for points, code in outline.iter_segments():
        if code == Outline.CLOSEPOLY:
            parts.append("Z")
            continue
        pairs = points.reshape(-1, 2) * (scale, -scale) + 8
        parts.append(letters[code] + " ".join(f"{x:.2f} {y:.2f}" for x, y in pairs))
    return Markup("".join(parts))
