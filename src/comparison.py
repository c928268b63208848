"""From a report to what W&B shows of it: the comparison run of a study. Wiring between the report and W&B."""

from __future__ import annotations

from typing import Any

from src.arm_folder import QUEUED, RUNNING
from src.record import METRICS
from src.report.page import PAGE_FILE
from src.report.write import FIGURES, Report
from src.tracking.comparison import JOB_TYPE, Comparison, log_comparison
from src.tracking.options import TrackingOptions
from src.tracking.wandb_run import Sheet
from src.verdict.cells import Cell

ARMS, VERDICT, FINDINGS = (f"{JOB_TYPE}/{name}" for name in ("arms", "verdict", "guards_and_warnings"))
# Beside the mean over seeds of these stands half the width of its interval.
_ESTIMATED = ("test_accuracy", "val_accuracy", "test_loss", "val_loss")


def log_report(report: Report, options: TrackingOptions, *, also_running: bool = False) -> str:
    """Log a report to the study's comparison run, if there is something to compare; returns a line for the user, or "".

    While arms are queued or running, their ends bring a report that says more. So of the jobs of a cluster, which all
    write the report, the last one logs it.

    Args:
        also_running: log it all the same.

    Raises:
        ValueError: as `granted_mode`.
    """
    coming = any(arm.state in (QUEUED, RUNNING) for arm in report.unfinished)
    if len(report.cells) < 2 or (coming and not also_running):
        return ""
    return log_comparison(options, report.folder, to_comparison(report))


def to_comparison(report: Report) -> Comparison:
    """Rows, sentences, warnings and figures of a report, under the keys that W&B shows them by."""
    files = {path.name: path for path in report.files}
    said = [(sentence.outcome, str(sentence)) for sentence in report.sentences]
    findings = [(finding.blocking, str(finding)) for finding in report.findings]
    summary = {
        "question": report.question,
        "sentences": [text for _, text in said],
        "regimes": [str(regime) for regime in report.verdict.regimes],
        "runs": len(report.runs),
        "unfinished": len(report.unfinished),
    }
    return Comparison(
        study=study_of(report),
        tables={
            ARMS: _rows(report.cells),
            VERDICT: Sheet(("outcome", "sentence"), tuple(said)),
            FINDINGS: Sheet(("blocks the claim", "finding"), tuple(findings)),
        },
        pictures={figure_key(name): files[name] for name in FIGURES if name in files},
        pages={f"{JOB_TYPE}/report": files[PAGE_FILE]} if PAGE_FILE in files else {},
        summary={f"{JOB_TYPE}/{key}": value for key, value in summary.items()},
    )


def study_of(report: Report) -> str:
    """The study as its arms name it, which is their group in W&B; its folder may have been moved."""
    return report.runs[0][1].study


def figure_key(name: str) -> str:
    """Key of a figure's file."""
    return f"{JOB_TYPE}/{name.removesuffix('.png')}"


def _rows(cells: tuple[Cell, ...]) -> Sheet:
    """One row an arm: means over seeds, with 95 % t intervals where something is estimated."""
    columns = ["arm", "budget, asked (x)", "budget, realised (x)", "seeds"]
    for field, metric in METRICS.items():
        columns += [metric.label] + [f"{metric.label} ±"] * (field in _ESTIMATED)
    rows = []
    for cell in cells:
        seeds = ", ".join(map(str, cell.seeds))
        row: list[Any] = [cell.name, cell.budget, cell.first.price / cell.first.base_price, seeds]
        for field in METRICS:
            estimate = cell.estimate(field)
            row += [estimate.mean] + [estimate.half_width] * (field in _ESTIMATED)
        rows.append(tuple(row))
    return Sheet(tuple(columns), tuple(rows))
