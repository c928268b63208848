"""A W&B workspace and a W&B report of a study: `python -m src.dashboard outputs/STUDY`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from src import config
from src.arm_folder import CONFIG_FILE, read_json
from src.choices import Parser
from src.comparison import ARMS, figure_key, log_report, study_of
from src.messages import UserMistake, mistakes
from src.record import write_atomically
from src.report.figures import styles
from src.report.study import finished, read_study
from src.report.write import FIGURES, Report, write_report
from src.tracking.dashboard import DASHBOARD_FILE, Dashboard, check_server, push, specs
from src.tracking.keys import CONDITIONS
from src.tracking.options import TrackingOptions
from src.tracking.wandb_run import sync_command, unsent_parts
from src.verdict.cells import CONDITION, Cell

CONF = Path(__file__).resolve().parent.parent / "conf"
HELP = """\
Reports the study again, as python -m src.report does, and makes of it

  a workspace   runs grouped by arm with their seeds averaged: test accuracy over MACs, learning curves, activation maps
                side by side, a comparer of runs
  a report      the verdict, warnings, the same panels, and the table and figures of the study's comparison run

  --dry-run     (default) writes both specs into PATH/dashboard.json; needs no network, no key and no account
  --push        saves both in the project that the study was logged to, logs the comparison run, prints the addresses;
                again, it puts them in the place of those that it saved before (their ids are kept in dashboard.json)
  --compare     only logs the comparison run, in the study's own tracking mode, as a sweep does when it ends

Server and account are W&B's own: WANDB_BASE_URL, WANDB_API_KEY or wandb login, WANDB_ENTITY. Nothing asks on the
terminal. Runs that are only on this machine are named with the command that uploads them.
Needs: python -m pip install -e '.[dashboard]' (but for --compare).
Exit code: 0, or 2 for a mistake or a refusal told in one sentence."""


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = Parser(
        prog="python -m src.dashboard",
        description="A W&B workspace and a W&B report of a study.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", metavar="PATH", type=Path, help="study folder, for example outputs/axes")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--dry-run", action="store_true", help="write the specs only (default)")
    group.add_argument("--push", action="store_true", help="save them on the W&B server")
    group.add_argument("--compare", action="store_true", help="only log the comparison run")
    try:
        with mistakes(CONF):
            given = parser.parse_args(arguments)
            options = tracking_of(given.path)
            if given.compare:
                _compare(given.path, options)
            elif given.push:
                _push(given.path, options)
            else:
                _dry_run(given.path, options)
    except UserMistake as mistake:
        print(f"error: {mistake.message}", file=sys.stderr)
        return 2
    return 0


def tracking_of(folder: Path) -> TrackingOptions:
    """How the finished arms of a study were logged.

    Raises:
        ValueError: none has finished, or they were logged to several projects or groups.
    """
    arms = finished(folder, read_study(folder))
    studies = [config.read(arm.path / CONFIG_FILE) for arm in arms]
    places = sorted({f"{s.tracking.entity or 'your'}/{s.tracking.project} as {s.study}" for s in studies})
    if len(places) > 1:
        raise ValueError(
            f"the arms of {folder} were logged to {' and '.join(places)}; one dashboard shows one group of one project"
        )
    return studies[0].tracking


def to_dashboard(report: Report, options: TrackingOptions) -> Dashboard:
    """What the panels of a report's study need to know."""
    written = {path.name for path in report.files}
    conditions = _conditions(report.cells)
    return Dashboard(
        study=study_of(report),
        project=options.project,
        question=report.question,
        sentences=tuple(map(str, report.sentences)),
        findings=tuple(map(str, report.findings)),
        conditions=conditions,
        colours={} if conditions else {name: style.colour for name, style in styles(report.cells).items()},
        seed=min(record.seed for _, record in report.runs) if "cam_grid.png" in written else None,
        table=ARMS,
        pictures=tuple(figure_key(name) for name in FIGURES if name in written),
    )


def _conditions(cells: Sequence[Cell]) -> tuple[str, ...]:
    """Keys of the config in which runs of one arm differ that are not seeds of one another."""
    records = [record for cell in cells for record in cell.records]
    values = {field: {getattr(record, field) for record in records} for field in CONDITION}
    values["budget"] = {cell.budget for cell in cells if not cell.is_base}
    if all(record.currency == "train_macs" for record in records):
        del values["epochs"]  # they are what is solved for
    return tuple(key for field, key in CONDITIONS.items() if len(values.get(field, ())) > 1)


def _dry_run(folder: Path, options: TrackingOptions) -> None:
    with FileLock(folder / ".report.lock"):
        report = write_report(folder)
        _write(folder, specs(to_dashboard(report, options)), _saved(folder))
    print(f"written: {folder / DASHBOARD_FILE}")
    print(f"python -m src.dashboard {folder} --push saves both in the W&B project {options.project}")
    _tell_unsent(report)


def _compare(folder: Path, options: TrackingOptions) -> None:
    with FileLock(folder / ".report.lock"):
        where = log_report(write_report(folder), options, also_running=True)
    print(where or "nothing was logged: W&B is off, all of it is logged already, or there are not two arms to compare")


def _push(folder: Path, options: TrackingOptions) -> None:
    with FileLock(folder / ".report.lock"):
        report = write_report(folder)
        if not any(record.wandb_id for _, record in report.runs):
            raise ValueError(
                f"no arm of {folder} was logged to W&B (tracking=none), so there is nothing for it to show"
            )
        dashboard, saved = to_dashboard(report, options), _saved(folder)
        made = specs(dashboard)
        server, entity = check_server(options)
        print(f"saving in {entity}/{dashboard.project} at {server}: the comparison run of {dashboard.study}, and the")
        print(f"workspace and the report '{dashboard.title}' (those that were saved there from here are replaced)")
        where = log_report(report, replace(options, mode="online"), also_running=True)
        push(dashboard, server, entity, saved, lambda now: _write(folder, made, now))
    if where:
        print(where)
    for kind in ("workspace", "report"):
        print(f"{kind}: {_saved(folder)[kind]['url']}")
    _tell_unsent(report)


def _tell_unsent(report: Report) -> None:
    """Name what is only on this machine: panels show what the server has."""
    ids = {record.wandb_id for _, record in report.runs} - {""}
    unsent = sum(bool(unsent_parts(report.folder / "wandb", run_id)) for run_id in ids)
    if unsent:
        command = sync_command([report.folder / "wandb"])
        print(f"{unsent} of {len(ids)} arms' runs are not on a server, or not in full; this uploads them: {command}")


def _saved(folder: Path) -> dict[str, Any]:
    """What was saved on a server, as far as it is known here."""
    saved = read_json(folder / DASHBOARD_FILE).get("saved")
    return saved if isinstance(saved, dict) else {}


def _write(folder: Path, made: dict[str, Any], saved: dict[str, Any]) -> None:
    text = json.dumps({**made, "saved": saved}, indent=1, ensure_ascii=False)
    write_atomically(folder / DASHBOARD_FILE, text + "\n")


if __name__ == "__main__":
    sys.exit(main())
