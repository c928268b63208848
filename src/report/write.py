"""The report of a study: gathered from records, judged, written beside them, shown in the terminal."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from src.cam.score_file import ScoreFile
from src.record import METRICS, RECORD_FILE, RunRecord
from src.report.ahead import Scored, read_forecasts, total
from src.report.answers import read_answers
from src.report.declared import families, looks, remember
from src.report.drawings import figure_files, gather
from src.report.evidence import check_evidence
from src.report.extrapolated import score_forecasts
from src.report.page import PAGE_FILE, page
from src.report.planned import Planned, read_planned
from src.report.study import ArmFolder, finished, pending, read_study
from src.report.table import (
    FORECAST_NOTE,
    INTERVAL_NOTE,
    STANDING_NOTE,
    escape,
    forecast_markdown,
    markdown,
    openings_line,
    slope_lines,
    standing_markdown,
    standing_table,
    tables,
)
from src.verdict.cells import Cell
from src.verdict.grammar import Finding, NotAssessable, Sentence
from src.verdict.guards import check
from src.verdict.judge import Verdict, judge, regime_of
from src.verdict.looks import Progress
from src.verdict.maps import MapSentence, judge_maps
from src.verdict.standing import Standings, standings

DRAWN_WITH = "drawn_with"  # key of the program whose figures can be compared to the byte
SUMMARY_MD, SUMMARY_CSV, SUMMARY_JSON = "summary.md", "summary.csv", "summary.json"
FIGURES = {
    "accuracy_vs_macs.png": "Test accuracy over cost",
    "learning_curves.png": "Learning curves",
    "cam_grid.png": "Class-activation maps",
}
_COLOUR = {
    "supported": "green",
    "equivalent": "cyan",
    "contradicted": "red",
    "no evidence": "yellow",
    "not assessable": "yellow",
}


@dataclass(frozen=True)
class Report:
    """What was found in a study folder and what was written into it."""

    folder: Path
    question: str
    runs: tuple[tuple[str, RunRecord], ...]  # folder name and record, in the order of the table
    unfinished: tuple[ArmFolder, ...]
    remarks: tuple[str, ...]  # on folders that count although something about them is odd
    verdict: Verdict
    map_sentences: tuple[MapSentence, ...]  # where maps were scored
    standings: tuple[Standings, ...]
    forecasts: tuple[Scored, ...]  # of larger budgets, beside what came
    planned: Planned | None  # what the plan of the sweep forecast of its time, if its runs have finished
    findings: tuple[Finding, ...]  # guards and what the figures lack; blocking ones first
    files: tuple[Path, ...]

    @property
    def cells(self) -> tuple[Cell, ...]:
        """The rows of the comparison."""
        return self.verdict.cells

    @property
    def sentences(self) -> tuple[Sentence | MapSentence, ...]:
        """All that the sweep allows to be said: of accuracies, then of activation maps."""
        return (*self.verdict.sentences, *self.map_sentences)


def write_report(study_folder: Path) -> Report:
    """Read a study folder, judge it and write report.html, summary.{md,csv,json} and the figures into it.

    Unfinished and broken arms are listed, never fatal. A figure that has nothing to show is removed rather than left
    stale.

    Raises:
        ValueError: the path is no study folder or no arm has finished; one sentence for the user.
    """
    report, contents = build(study_folder)
    remember(study_folder, report.verdict.looks)
    for name, content in contents.items():
        if content is None:
            (study_folder / name).unlink(missing_ok=True)
        else:
            _write_bytes(study_folder / name, content)
    return report


def build(study_folder: Path) -> tuple[Report, dict[str, bytes | None]]:
    """The report of a study folder and the content of its files by their names; None: that file has nothing to show
    and is to be removed. Writes nothing and takes no reading, so that it can also be held against written files.

    Raises:
        ValueError: the path is no study folder or no arm has finished; one sentence for the user.
    """
    arms = read_study(study_folder)
    done = finished(study_folder, arms)
    # One run copied into two folders is two folders with equal records; the guards name it, the figures need either.
    folders = {arm.record: arm.path for arm in done if arm.record is not None}
    progress = Progress(pending(arms), looks(study_folder))
    answers, odd = read_answers(folders)
    records = [arm.record for arm in done if arm.record is not None]
    evidence = check_evidence(folders)
    verdict = judge(records, families(study_folder), progress, answers, evidence)
    runs = _runs(verdict.cells, done)
    remarks = [f"{arm.name}: {arm.detail}" for arm in done if arm.detail]
    try:
        forecasts = score_forecasts(read_forecasts(study_folder), verdict.cells, runs, evidence)
    except ValueError as error:
        forecasts = ()
        remarks.append(f"{error}; no forecast is shown")
    planned, odd_plan = read_planned(study_folder, runs)
    remarks += [odd_plan] if odd_plan else []
    material = gather(verdict.cells, folders, forecasts)
    map_sentences, map_findings = _judge_maps(verdict.cells, material.scores)
    figures = figure_files(material)
    written = [
        PAGE_FILE,
        SUMMARY_MD,
        SUMMARY_CSV,
        SUMMARY_JSON,
        *(n for n, made in figures.items() if made is not None),
    ]
    report = Report(
        folder=study_folder,
        question=_question(verdict.cells),
        runs=runs,
        unfinished=tuple(arm for arm in arms if arm.record is None),
        remarks=tuple(remarks),
        verdict=verdict,
        standings=standings(verdict.cells, progress),
        forecasts=forecasts,
        planned=planned,
        map_sentences=map_sentences,
        findings=(*verdict.findings, *odd, *material.findings, *map_findings),
        files=tuple(study_folder / name for name in written),
    )
    summary = to_mapping(report)
    return report, {
        **figures,
        SUMMARY_CSV: _csv(report).encode(),
        SUMMARY_JSON: (json.dumps(summary, indent=1, ensure_ascii=False) + "\n").encode(),
        SUMMARY_MD: to_markdown(report).encode(),
        PAGE_FILE: page(summary, material).encode(),
    }


def render(report: Report, console: Console) -> None:
    """Print the comparison, what it allows to be said, what is missing, and where everything was written."""
    console.print()
    console.print(Text(report.question, style="bold"))
    for table in tables(report.cells, console.width):
        console.print()
        console.print(table)
    console.print(Text(f"{INTERVAL_NOTE} {openings_line(report.cells)}", style="dim"))
    console.print()
    for sentence in report.sentences:
        text = Text(str(sentence))
        text.stylize(f"bold {_COLOUR[sentence.outcome]}", 0, len(sentence.outcome))
        console.print(text)
    for found in _shown_standings(report):
        console.print()
        console.print(standing_table(found, f"How likely, {found.setting}"))
        console.print(Text(STANDING_NOTE, style="dim"))
        _print_list(console, f"Growth with cost, {found.setting}", slope_lines(found))
    if report.forecasts:
        _print_list(console, "Forecasts and what came", [str(one) for one in report.forecasts])
        summed = total(report.forecasts)
        console.print(Text(f"{summed}. {FORECAST_NOTE}" if summed else FORECAST_NOTE, style="dim"))
    if report.planned is not None:
        console.print()
        console.print(Text(f"{report.planned}."))
    said = {reason for s in report.sentences if isinstance(s, NotAssessable | MapSentence) for reason in s.reasons}
    _print_list(console, "Warnings", [*(str(f) for f in report.findings if f not in said), *report.remarks])
    _print_list(console, "Not finished", _unfinished(report))
    console.print(Text("\nWritten", style="bold"))
    for path in report.files:
        console.print(f"  {path}", soft_wrap=True, highlight=False, markup=False)  # in one piece, to be copied


def to_mapping(report: Report) -> dict[str, Any]:
    """The report as a JSON-ready mapping: the same for the same records in any order."""
    return {
        "study": report.folder.name,
        "question": report.question,
        "rows": [_row(cell) for cell in report.cells],
        "sentences": [{"outcome": s.outcome, "text": str(s), **dataclasses.asdict(s)} for s in report.sentences],
        "standings": [dataclasses.asdict(found) for found in report.standings],
        "forecasts": [{**dataclasses.asdict(f), "title": f.title, "text": str(f)} for f in report.forecasts],
        "forecasts_in_all": total(report.forecasts),
        "plan": None if report.planned is None else report.planned.to_mapping(),
        "findings": [{**dataclasses.asdict(f), "text": str(f)} for f in report.findings],
        "regimes": [str(regime) for regime in report.verdict.regimes],
        "unfinished": [{"folder": a.name, "state": a.state, "detail": a.detail} for a in report.unfinished],
        "remarks": list(report.remarks),
        "runs": [{"folder": folder, **record.to_mapping()} for folder, record in report.runs],
        "files": [path.name for path in report.files],
        "test_openings": openings_line(report.cells),
        DRAWN_WITH: f"Matplotlib {matplotlib.__version__}",
    }


def to_markdown(report: Report) -> str:
    """summary.md."""
    written = {path.name for path in report.files}
    parts = [
        f"# {report.folder.name}",
        report.question,
        markdown(report.cells),
        f"{INTERVAL_NOTE} {openings_line(report.cells)}",
        "## Verdict",
    ]
    parts.append(_bullets([_bold_outcome(s) for s in report.sentences]))
    parts += [f"Regime: {regime}." for regime in report.verdict.regimes]
    for found in _shown_standings(report):
        parts += [f"## How likely, {found.setting}", standing_markdown(found), STANDING_NOTE]
        if found.slopes:
            parts.append(_bullets([escape(line) for line in slope_lines(found)]))
    if report.forecasts:
        parts += ["## Forecasts and what came", forecast_markdown(report.forecasts)]
        summed = total(report.forecasts)
        parts.append(f"{summed}. {FORECAST_NOTE}" if summed else FORECAST_NOTE)
    if report.planned is not None:
        parts += ["## Planned and taken", f"{escape(str(report.planned))}."]
    if report.findings or report.remarks:
        findings = [f"{'**blocks the claim** ' if f.blocking else ''}{escape(str(f))}" for f in report.findings]
        parts += ["## Guards and warnings", _bullets([*findings, *map(escape, report.remarks)])]
    if report.unfinished:
        parts += ["## Not finished", _bullets([escape(line) for line in _unfinished(report)])]
    parts.append("## Figures")
    parts += [f"![{title}]({name})" for name, title in FIGURES.items() if name in written]
    trace = [
        "| run | seed | test accuracy (%) | chosen epoch | config | code | test predictions | W&B |",
        "|---|" + "---:|" * 7,
    ]
    metric = METRICS["test_accuracy"]
    trace[0] = trace[0].replace("test accuracy (%)", metric.label)
    for folder, r in report.runs:
        facts = (
            f"[{folder}]({folder}/{RECORD_FILE})",
            r.seed,
            metric.format(metric.show(r)),
            f"{r.best_epoch}/{r.epochs}",
            r.config_hash[:12],
            r.code_revision[:20] or "unknown",
            r.predictions_sha256[:12],
            r.wandb_id or "none",
        )
        trace.append("| " + " | ".join(escape(str(fact)) for fact in facts) + " |")
    parts += [
        "## Where each number comes from",
        f"Every number above is computed from these runs' {RECORD_FILE}; [{SUMMARY_CSV}]({SUMMARY_CSV})"
        " has all their fields.",
        "\n".join(trace),
    ]
    return "\n\n".join(parts) + "\n"


def _judge_maps(
    cells: Sequence[Cell], scores: Mapping[RunRecord, ScoreFile]
) -> tuple[tuple[MapSentence, ...], tuple[Finding, ...]]:
    """What the maps of each network on each data set allow to be said, as far as any were scored."""
    sentences: list[MapSentence] = []
    remarks: list[Finding] = []
    for setting in sorted({(c.first.network, c.first.data) for c in cells}):
        own = [c for c in cells if (c.first.network, c.first.data) == setting]
        if any(record in scores for cell in own for record in cell.records):
            told, found = judge_maps(own, scores, regime_of(own), check(own))
            sentences += told
            remarks += found
    return tuple(sentences), tuple(remarks)


def _shown_standings(report: Report) -> list[Standings]:
    """Those that hold any number."""
    return [s for s in report.standings if any(row.best is not None for row in s.rows) or s.slopes]


def _question(cells: Sequence[Cell]) -> str:
    arms = sorted({cell.arm for cell in cells if not cell.is_base})
    budgets = sorted({cell.budget for cell in cells if not cell.is_base})
    network = "/".join(sorted({cell.first.network for cell in cells}))
    data = "/".join(sorted({cell.first.data for cell in cells}))
    if not arms:
        return f"{network} on {data}: only the unscaled base has finished, there is nothing to compare yet."
    growth = " and ".join(f"{budget:g}x" for budget in budgets)
    return f"{network} must grow to {growth} its MACs. Which way, on {data}: {', '.join(arms)}?"


def _runs(cells: Sequence[Cell], done: Sequence[ArmFolder]) -> tuple[tuple[str, RunRecord], ...]:
    left = list(done)
    runs = []
    for record in (record for cell in cells for record in cell.records):
        arm = next(arm for arm in left if arm.record == record)
        left.remove(arm)
        runs.append((arm.name, record))
    return tuple(runs)


def _row(cell: Cell) -> dict[str, Any]:
    estimates = {field: cell.estimate(field) for field in METRICS}
    return {
        "arm": cell.name,
        "is_base": cell.is_base,
        "budget": cell.budget,
        "snapped_budget": cell.first.snapped_budget,
        "macs_ratio": cell.first.macs / cell.first.base_macs,
        "n": len(cell.seeds),
        "seeds": list(cell.seeds),
        "metrics": {
            field: {"label": METRICS[field].label, "mean": e.mean, "half_width": e.half_width, "sd": e.sd}
            for field, e in estimates.items()
        },
    }


def _csv(report: Report) -> str:
    buffer = io.StringIO()
    names = ["folder", *(field.name for field in dataclasses.fields(RunRecord))]
    writer = csv.DictWriter(buffer, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({"folder": folder, **record.to_mapping()} for folder, record in report.runs)
    return buffer.getvalue()


def _bold_outcome(sentence: Sentence | MapSentence) -> str:
    text = escape(str(sentence))
    return f"**{text[: len(sentence.outcome)]}**{text[len(sentence.outcome) :]}"


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _unfinished(report: Report) -> list[str]:
    return [f"{arm.name}: {arm.state}" + (f" ({arm.detail})" if arm.detail else "") for arm in report.unfinished]


def _print_list(console: Console, title: str, lines: Sequence[str]) -> None:
    if lines:
        console.print()
        console.print(Text(title, style="bold"))
        for line in lines:
            console.print(Padding(Text(line, overflow="fold"), (0, 0, 0, 2)))


def _write_bytes(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)
