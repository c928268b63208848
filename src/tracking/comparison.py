"""The one W&B run of a study that is no arm: what the study's report says, beside its arms in their group."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.record import write_atomically
from src.tracking.options import TrackingOptions
from src.tracking.wandb_run import Sheet, granted_mode, server_url, tracked_run, unsent_parts

JOB_TYPE = "comparison"
STATE_FILE = "wandb_comparison.json"  # in the study's folder: the run's id, and what was last logged to it
LARGEST_PAGE = 16 * 2**20  # bytes: W&B shows a page as it is, and a browser should not choke on it


@dataclass(frozen=True)
class Comparison:
    """What the report of a study says; keys are those under which W&B shows it.

    pictures, pages: files as they lie in the study's folder. summary: plain values for the runs' table.
    """

    study: str
    tables: Mapping[str, Sheet]
    pictures: Mapping[str, Path]
    pages: Mapping[str, Path]
    summary: Mapping[str, Any]


def log_comparison(options: TrackingOptions, folder: Path, comparison: Comparison) -> str:
    """Log a comparison to the study's one comparison run; what it was logged before is not logged again.

    W&B's run keeps its id, so online a later comparison is a later step of the same run. Offline every start makes a
    directory of its own; each holds the whole comparison, so those that no server has yet are removed first.

    Never raises because of W&B. Callers take turns: two at once would make two runs.

    Args:
        folder: of the study.

    Returns:
        One line on where it is, "" where nothing was logged; what went wrong stands in the log.

    Raises:
        ValueError: as `granted_mode`.
    """
    mode, _ = granted_mode(options)
    # An agent of a W&B sweep gives its one run to an arm; to start another here would be to write into that.
    if mode == "disabled" or os.environ.get("WANDB_SWEEP_ID"):
        return ""
    state = _read(folder)
    place = server_url() if mode == "online" else ""
    content = _fingerprint(comparison, place, options.project, str(options.entity))
    if state["logged"] == {"mode": mode, "content": content}:
        return ""
    run_id = state["run_id"] or secrets.token_hex(4)
    _write(folder, run_id, {})
    for part in unsent_parts(folder / "wandb", run_id):
        shutil.rmtree(part, ignore_errors=True)
    tracking = tracked_run(
        options,
        study=comparison.study,
        name=f"{comparison.study}-{JOB_TYPE}",
        folder=folder,
        config={"study": comparison.study},
        tags=(JOB_TYPE,),
        job_type=JOB_TYPE,
        run_id=run_id,
        arm=False,
    )
    with tracking as tracker:
        tracker.log_documents(
            comparison.tables,
            comparison.pictures,
            {key: path for key, path in comparison.pages.items() if path.stat().st_size <= LARGEST_PAGE},
        )
        tracker.summarise(comparison.summary)
    if tracker.mode != "disabled" and not tracker.lost:
        _write(folder, run_id, {"mode": tracker.mode, "content": content})
    return tracker.notice.replace("W&B", "W&B comparison", 1)


def _read(folder: Path) -> dict[str, Any]:
    try:
        state = json.loads((folder / STATE_FILE).read_text())
        return {"run_id": str(state["run_id"]), "logged": dict(state["logged"])}
    except (OSError, ValueError, KeyError, TypeError):
        return {"run_id": "", "logged": {}}


def _write(folder: Path, run_id: str, logged: Mapping[str, str]) -> None:
    write_atomically(folder / STATE_FILE, json.dumps({"run_id": run_id, "logged": logged}, indent=1) + "\n")


def _fingerprint(comparison: Comparison, *place: str) -> str:
    """SHA-256 of where it is logged, and of all that is but the pages, which are made of the same numbers."""
    tables = {key: [sheet.columns, sheet.rows] for key, sheet in comparison.tables.items()}
    digest = hashlib.sha256(json.dumps([place, comparison.study, tables, dict(comparison.summary)]).encode())
    for key, path in sorted(comparison.pictures.items()):
        digest.update(key.encode() + path.read_bytes())
    return digest.hexdigest()
