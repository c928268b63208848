"""The coefficient search of a study: table of points, sentence, ternary figure, and the rule it gives."""

from __future__ import annotations

import dataclasses
import datetime
import io
import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from rich.console import Console
from rich.table import Table
from rich.text import Text

from src.record import METRICS, RunRecord, write_atomically
from src.report.study import ArmFolder, finished, read_study
from src.scaling.rules import AXES
from src.verdict.optimum import Optimum, Search, search
from src.verdict.surface import REFERENCES, Coefficients, Distance, Point, Shares

OPTIMUM_JSON, OPTIMUM_PNG = "optimum.json", "optimum.png"
SELECTION_NOTE = (
    "The surface is fitted to validation accuracy on realised shares (percent of the growth of log-MACs: depth/width/"
    "resolution). Test accuracy is shown for information and decides nothing."
)
_COLOUR = {"optimum": "green"}
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
# Words that YAML or Hydra read as something other than a name.
_WORDS = frozenset({"null", "true", "false", "yes", "no", "on", "off", "y", "n", "inf", "nan"})
_DECIMALS = 4
_NAMED = 3  # unfinished arms named in each state
_CORNERS = np.array([[0.5, math.sqrt(3) / 2], [0.0, 0.0], [1.0, 0.0]])  # of depth, width, resolution
_GREY = "#666666"
_BEST_COLOUR = "#D55E00"
_MARKERS = {"compound": "D", "uniform": "s"}


@dataclass(frozen=True)
class OptimumReport:
    """What the runs of a study say about the best exponents, and what was written."""

    folder: Path
    searches: tuple[Search, ...]
    records: tuple[RunRecord, ...]
    unfinished: tuple[ArmFolder, ...]
    files: tuple[Path, ...]


def write_optimum(study_folder: Path) -> OptimumReport:
    """Read a study, finished or not, and write optimum.json and optimum.png into it.

    Raises:
        ValueError: the path is no study folder, or no scaled arm has finished; one sentence for the user.
    """
    arms = read_study(study_folder)
    records = tuple(arm.record for arm in finished(study_folder, arms) if arm.record is not None)
    searches = search(records)
    report = OptimumReport(
        folder=study_folder,
        searches=searches,
        records=records,
        unfinished=tuple(arm for arm in arms if arm.record is None),
        files=(study_folder / OPTIMUM_JSON, study_folder / OPTIMUM_PNG),
    )
    write_atomically(study_folder / OPTIMUM_JSON, json.dumps(to_mapping(report), indent=1, ensure_ascii=False) + "\n")
    temporary = study_folder / f".{OPTIMUM_PNG}.{os.getpid()}.tmp"
    temporary.write_bytes(simplex(searches))
    os.replace(temporary, study_folder / OPTIMUM_PNG)
    return report


def render(report: OptimumReport, console: Console) -> None:
    """Print the points, what they allow to be said, and where everything was written."""
    for found in report.searches:
        console.print()
        console.print(Text(_title(found), style="bold"))
        console.print(_table(found))
        console.print(Text(SELECTION_NOTE, style="dim"))
        console.print()
        text = Text(str(found.answer))
        text.stylize(f"bold {_COLOUR.get(found.answer.outcome, 'yellow')}", 0, len(found.answer.outcome))
        console.print(text)
        warnings = [str(f) for f in found.findings if f not in getattr(found.answer, "reasons", ())]
        for line in ["Warnings", *warnings] if warnings else []:
            console.print(Text(line))
    if report.unfinished:
        console.print()
        console.print(Text(f"Not finished, so not among the points: {_states(report)}"))
    console.print()
    console.print(Text("Wrote " + ", ".join(str(path) for path in report.files), overflow="fold"))


def _states(report: OptimumReport) -> str:
    """How many arms stand where, and the first names of each."""
    names: dict[str, list[str]] = {}
    for arm in report.unfinished:
        names.setdefault(arm.state, []).append(arm.name)
    return "; ".join(
        f"{len(arms)} {state} ({', '.join(arms[:_NAMED])}{', ...' if len(arms) > _NAMED else ''})"
        for state, arms in names.items()
    )


def to_mapping(report: OptimumReport) -> dict[str, Any]:
    """optimum.json."""
    return {
        "study": report.folder.name,
        "fitted_on": METRICS["val_accuracy"].label,
        "axes": list(AXES),
        "searches": [_mapping(found) for found in report.searches],
        "unfinished": [{"folder": arm.name, "state": arm.state} for arm in report.unfinished],
    }


def simplex(searches: Sequence[Search]) -> bytes:
    """One ternary panel a search, as PNG: points and fitted surface in one colour scale, the optimum and its region."""
    width = 6.6
    figure = Figure(figsize=(width * len(searches), 6.5), dpi=160)
    for index, found in enumerate(searches):
        left = index / len(searches)
        axes = figure.add_axes((left + 0.06 / len(searches), 0.08, 0.76 / len(searches), 0.8))
        bar = figure.add_axes((left + 0.86 / len(searches), 0.18, 0.025 / len(searches), 0.52))
        figure.text(left + 0.03 / len(searches), 0.965, _title(found), fontsize=10.5, weight="bold", va="top")
        figure.text(left + 0.03 / len(searches), 0.925, _caption(found), fontsize=9.5, color=_GREY, va="top")
        _draw(axes, bar, found)
    handles = [
        Line2D([], [], marker="o", color="none", mfc="#888888", mec="black", ms=9, label="point, mean in %"),
        *(
            Line2D([], [], marker=_MARKERS[name], color="none", mfc="none", mec="black", ms=7, label=name)
            for name in REFERENCES
        ),
    ]
    if any(isinstance(found.answer, Optimum) for found in searches):
        best = Line2D([], [], marker="*", color="none", mfc=_BEST_COLOUR, mec="white", ms=12, label="optimum")
        handles += [best, Line2D([], [], color=_BEST_COLOUR, lw=2, label="95 % region")]
    figure.legend(handles=handles, loc="lower center", ncols=len(handles), frameon=False, fontsize=9, columnspacing=1.4)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def check_name(name: str, folder: Path) -> Path:
    """The file of a new rule.

    Raises:
        ValueError: the name cannot be one, or a rule has it already.
    """
    if not _NAME.fullmatch(name) or name.lower() in _WORDS:
        raise ValueError(
            f"--write {name!r} cannot name a rule; begin with a letter and go on with letters, digits, '_' and '-', "
            "such as --write mine"
        )
    path = folder / f"{name}.yaml"
    taken = [other for other in folder.glob("*.yaml") if other.stem.lower() == name.lower()]
    if taken:
        raise ValueError(f"--write {name} would overwrite {taken[0]}; give the new rule another name")
    return path


def choose(searches: Sequence[Search], budget: float | None, force: bool) -> Search:
    """The search that a rule is made of.

    Raises:
        ValueError: none or several match, or its outcome is not `optimum` and `force` is not given.
    """
    budgets = ", ".join(f"{found.answer.place.budget:g}" for found in searches)
    matching = [found for found in searches if budget is None or found.answer.place.budget == budget]
    if not matching:
        raise ValueError(f"--budget {budget:g} is not in the study; it has {budgets}")
    if len(matching) > 1 and budget is None and len({found.answer.place.budget for found in matching}) > 1:
        raise ValueError(f"the study has the budgets {budgets}; choose the one the rule is made of, as in --budget 2")
    if len(matching) > 1:
        raise ValueError(
            "the study has several networks or data sets at one budget; give each a study of its own to make a rule"
        )
    [found] = matching
    if found.surface is None:
        raise ValueError(f"no rule is written, since there is no surface: the outcome is {found.answer.outcome!r}")
    if not isinstance(found.answer, Optimum) and not force:
        raise ValueError(
            f"no rule is written, since the outcome is {found.answer.outcome!r} and not 'optimum'; --force writes the "
            "best place of the fitted surface all the same and says so in its source"
        )
    return found


def write_rule(path: Path, found: Search, report: OptimumReport, today: datetime.date) -> Shares:
    """Write a scaling file; returns its exponents.

    Raises:
        FileExistsError: the file has come into being meanwhile.
    """
    assert found.surface is not None
    best, _ = found.surface.best
    exponents = _rounded(best)
    regime = found.answer.regime
    text = (
        f"# The most accurate way to spend {found.answer.place.budget:g}x on {regime.data} with {regime.network}, as "
        "python -m src.optimum fitted it.\n"
        "# One formula for every rule: at cost factor s, depth = s^e_d, width = s^(e_w/2), resolution = s^(e_r/2).\n"
        f"name: {path.stem}   # label of the arm; nothing branches on it\n"
        f"exponents: [{', '.join(f'{e:.{_DECIMALS}f}' for e in exponents)}]   "
        "# shares of the growth of log-MACs for depth, width, resolution; they sum to 1\n"
        f"source: {json.dumps(_source(found, report, today), ensure_ascii=False)}\n"
    )
    with path.open("x", encoding="utf-8") as stream:
        stream.write(text)
    return exponents


def next_command(name: str, found: Search) -> str:
    """The command that tests a new rule with seeds that had no part in its making."""
    regime, place = found.answer.regime, found.answer.place
    recipe = regime.recipe.replace("/", ",")
    most = max(seed for point in found.points for seed in point.seeds)
    seeds = ",".join(str(most + step) for step in (1, 2, 3))
    budget = f"{place.budget:g}"
    if place.currency == "train_macs":
        budget = f"{place.spent:.4g} budget.network={budget}"
    if place.currency != "macs":
        budget += f" budget.currency={place.currency}"
    return (
        f"python -m src.run -m study={name} scaling={name},depth,width,resolution,compound budget={budget} "
        f"network={regime.network} data={regime.data} recipe={recipe} seed={seeds}"
    )


def _source(found: Search, report: OptimumReport, today: datetime.date) -> str:
    answer = found.answer
    seeds = sorted({seed for point in found.points for seed in point.seeds})
    revisions = sorted({r.code_revision[:20] or "unknown" for r in _records(found, report)})
    if isinstance(answer, Optimum):
        extent = "joint 95 % intervals " + ", ".join(
            f"{axis} [{low:.2f}, {high:.2f}]" for axis, low, high in zip(AXES, answer.low, answer.high, strict=True)
        )
    else:
        extent = f"FORCED, no interval: the outcome was '{answer.outcome}', so this is no measured optimum"
    return (
        f"python -m src.optimum on study {report.folder.name} ({answer.regime}): budget {answer.place.budget:g}x "
        f"(realised {found.cost_factor:.3f}x), {len(found.points)} points, "
        f"{sum(len(p.accuracies) for p in found.points)} runs, seeds {','.join(map(str, seeds))}, validation accuracy; "
        f"{extent}; {today.isoformat()}; code {'/'.join(revisions)}"
    )


def _records(found: Search, report: OptimumReport) -> list[RunRecord]:
    regime = found.answer.regime
    return [
        r
        for r in report.records
        if (r.network, r.data, r.budget) == (regime.network, regime.data, found.answer.place.budget)
    ]


def _rounded(shares: Shares) -> Shares:
    """Exponents a rule accepts: in [0, 1], of few digits, summing to 1."""
    clipped = [min(max(share, 0.0), 1.0) for share in shares]
    depth, width = (round(share / sum(clipped), _DECIMALS) for share in clipped[:2])
    return depth, width, max(round(1 - depth - width, _DECIMALS), 0.0)


def _title(found: Search) -> str:
    regime, budget = found.answer.regime, found.answer.place.budget
    return f"{regime.network} on {regime.data} at {budget:g}x: {len(found.points)} points"


def _caption(found: Search) -> str:
    answer = found.answer
    if not isinstance(answer, Optimum):
        return f"{answer.outcome}: no optimum can be named"
    c = answer.coefficients
    return (
        f"optimum: alpha={c.alpha:.3f}, beta={c.beta:.3f}, gamma={c.gamma:.3f}\n95 % region: "
        f"{answer.extent} of what was run"
    )


def _percent(shares: Shares | None) -> str:
    return "-" if shares is None else "/".join(f"{100 * share:.0f}" for share in shares)


def _table(found: Search) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    labels = ("asked d/w/r", "realised d/w/r", "seeds", METRICS["val_accuracy"].label + " ± sd", "fitted")
    table.add_column("point", header_style="dim", vertical="bottom", overflow="fold")
    for label in (*labels, METRICS["test_accuracy"].label):
        table.add_column(label, header_style="dim", vertical="bottom", justify="right")
    for point in found.points:
        fitted = "" if found.surface is None else f"{float(found.surface.predict(point.shares)):.2f}"
        deviation = "" if point.sd is None else f" ± {point.sd:.2f}"
        test = math.fsum(point.test_accuracies) / len(point.test_accuracies)
        cells = (_percent(point.asked), _percent(point.shares), str(len(point.seeds)), f"{point.mean:.2f}{deviation}")
        table.add_row(*(Text(text) for text in (point.name, *cells, fitted, f"{test:.2f}")))
    return table


def _mapping(found: Search) -> dict[str, Any]:
    answer, surface = found.answer, found.surface
    mapping: dict[str, Any] = {
        "network": answer.regime.network,
        "data": answer.regime.data,
        "budget": answer.place.budget,
        "realised_budget": found.cost_factor,
        "outcome": answer.outcome,
        "text": str(answer),
        "regime": str(answer.regime),
        "points": [_point(point, found) for point in found.points],
        "findings": [{**dataclasses.asdict(f), "text": str(f)} for f in found.findings],
        "surface": None,
        "optimum": None,
    }
    if surface is not None:
        distances = {name: surface.distance(np.array(at)) for name, at in REFERENCES.items()}
        mapping["surface"] = {
            "terms": ["d", "w", "r", "dw", "dr", "wr"],
            "coefficients": surface.coefficients.tolist(),
            "sd": surface.sd,
            "error_df": surface.error_df,
            "seed_sd": surface.seed_sd,
            "p_flat": surface.p_flat,
            "p_lack_of_fit": surface.p_lack_of_fit,
            "r_squared": surface.r_squared,
            "adjusted_r_squared": surface.adjusted_r_squared,
            "below_the_best": {name: _interval(distance) for name, distance in distances.items()},
        }
    if isinstance(answer, Optimum) and surface is not None:
        low, high = answer.intervals
        mapping["optimum"] = {
            "shares": list(answer.shares),
            "low": list(answer.low),
            "high": list(answer.high),
            "coefficients": _coefficients(answer.coefficients),
            "coefficients_low": _coefficients(low),
            "coefficients_high": _coefficients(high),
            "where": answer.where,
            "region_covers": answer.covered,
            "predicted_val_accuracy": float(surface.predict(answer.shares)),
        }
    return mapping


def _point(point: Point, found: Search) -> dict[str, Any]:
    fitted = None if found.surface is None else float(found.surface.predict(point.shares))
    return {**dataclasses.asdict(point), "mean": point.mean, "sd": point.sd, "fitted": fitted}


def _coefficients(coefficients: Coefficients) -> dict[str, float]:
    return dataclasses.asdict(coefficients)


def _interval(distance: Distance | None) -> dict[str, float] | None:
    return None if distance is None else dataclasses.asdict(distance)


def _draw(axes: Axes, bar: Axes, found: Search) -> None:
    axes.set_aspect("equal")
    axes.set_axis_off()
    axes.set_xlim(-0.06, 1.06)
    axes.set_ylim(-0.09, 0.99)
    _frame(axes)
    means = [point.mean for point in found.points]
    heights = list(means)
    if found.surface is not None:
        places, _ = found.surface.design.grid(60)
        surface = found.surface.predict(places)
        heights += [float(surface.min()), float(surface.max())]
    span = max(max(heights) - min(heights), 1e-6)
    scale = Normalize(min(heights), min(heights) + span)
    if found.surface is not None:
        x, y = _place(places)
        axes.tricontourf(x, y, surface, levels=24, cmap="viridis", norm=scale, alpha=0.45, zorder=1)
        axes.tricontour(x, y, surface, levels=8, colors="white", linewidths=0.6, zorder=2)
    if found.region is not None and isinstance(found.answer, Optimum):
        x, y = _place(found.region.places)
        if found.region.inside.any() and not found.region.inside.all():
            margin = found.region.margin.clip(-3, 3)
            axes.tricontour(x, y, margin, levels=[0.0], colors=_BEST_COLOUR, linewidths=2, zorder=3)
    x, y = _place(np.array([point.shares for point in found.points]))
    axes.scatter(x, y, c=means, cmap="viridis", norm=scale, s=95, edgecolors="black", linewidths=0.9, zorder=5)
    for at_x, at_y, mean in zip(x, y, means, strict=True):
        axes.annotate(
            f"{mean:.1f}", (at_x, at_y), (0, 8), textcoords="offset points", ha="center", fontsize=8, zorder=7
        )
    for name, shares in REFERENCES.items():
        x, y = _place(np.array([shares]))
        axes.plot(x, y, _MARKERS[name], mfc="none", mec="black", ms=7, mew=1.2, zorder=6)
    if isinstance(found.answer, Optimum):
        x, y = _place(np.array([found.answer.shares]))
        axes.plot(x, y, "*", color=_BEST_COLOUR, mec="white", mew=0.9, ms=14, zorder=8)
    axes.figure.colorbar(ScalarMappable(scale, "viridis"), cax=bar)
    bar.set_title(METRICS["val_accuracy"].label.replace(" ", "\n", 1), fontsize=8.5, loc="left")
    bar.tick_params(labelsize=8.5)


def _frame(axes: Axes) -> None:
    """The triangle, with lines of equal share every 20 %."""
    axes.fill(*_CORNERS.T, facecolor="none", edgecolor="#999999", lw=1.0, zorder=0)
    for fifth in range(1, 5):
        share = fifth / 5
        for axis in range(3):
            ends = np.zeros((2, 3))
            ends[:, axis] = share
            ends[0, (axis + 1) % 3] = ends[1, (axis + 2) % 3] = 1 - share
            axes.plot(*_place(ends), color="#dddddd", lw=0.6, zorder=0)
    for name, (x, y) in zip(AXES, _CORNERS, strict=True):
        axes.text(x, y + (0.085 if y > 0 else -0.05), f"all into {name}", ha="center", fontsize=10, va="center")


def _place(shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n, 3) shares to coordinates on the page."""
    flat = shares @ _CORNERS
    return flat[:, 0], flat[:, 1]
