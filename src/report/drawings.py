"""What the figures of a study are drawn from, read once, and the files that they become."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from src.cam.score_file import ScoreFile
from src.record import RunRecord
from src.report.ahead import Scored
from src.report.cam_grid import Column, cam_csv, cam_grid, read_columns, read_scores
from src.report.figures import (
    Folders,
    History,
    accuracy_csv,
    accuracy_over_cost,
    as_png,
    cost_axes,
    curves_csv,
    learning_curves,
    read_histories,
)
from src.report.svg import as_svg, drawing
from src.verdict.cells import Cell
from src.verdict.grammar import Finding


@dataclass(frozen=True)
class Material:
    """Cells with the curves, maps and scores that lie in their runs' folders, and what was forecast of them."""

    cells: tuple[Cell, ...]
    folders: Folders
    histories: Mapping[RunRecord, History]
    columns: tuple[Column, ...]
    scores: Mapping[RunRecord, ScoreFile]
    forecasts: tuple[Scored, ...]
    findings: tuple[Finding, ...]  # on what could not be read


def gather(cells: Sequence[Cell], folders: Folders, forecasts: Sequence[Scored] = ()) -> Material:
    """Read the curves, maps and scores of all runs; what is missing or broken is a finding, never fatal."""
    histories, curve_findings = read_histories(cells, folders)
    columns, map_findings = read_columns(cells, folders)
    scores, score_findings = read_scores(cells, folders)
    findings = (*curve_findings, *map_findings, *score_findings)
    return Material(tuple(cells), folders, histories, tuple(columns), scores, tuple(forecasts), findings)


def figure_files(material: Material) -> dict[str, bytes | None]:
    """Content of every figure's files by their names; None of a figure that has nothing to show."""
    cells = material.cells
    files: dict[str, bytes | None] = {}
    with drawing("accuracy"):
        # The budget of the arms is matched in the study's currency, but every study has MACs.
        macs = next((metric for metric in cost_axes(cells) if metric.field == "macs"), cost_axes(cells)[0])
        figure = accuracy_over_cost(cells, macs, forecasts=material.forecasts).figure
        files["accuracy_vs_macs.png"], files["accuracy_vs_macs.svg"] = as_png(figure), as_svg(figure).encode()
    files["accuracy_vs_macs.csv"] = accuracy_csv(cells, material.folders, material.forecasts).encode()
    with drawing("curves"):
        curves = learning_curves(cells, material.histories)
        files["learning_curves.png"] = as_png(curves.figure) if curves else None
        files["learning_curves.svg"] = as_svg(curves.figure).encode() if curves else None
    table = curves_csv(cells, material.histories, material.folders)
    files["learning_curves.csv"] = table.encode() if table else None
    with drawing("maps"):
        grid = cam_grid(material.columns)
        files["cam_grid.png"] = as_png(grid.figure) if grid else None
    table = cam_csv(material.columns)
    files["cam_grid.csv"] = table.encode() if table else None
    return files
