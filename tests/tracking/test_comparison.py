"""The comparison run of a study: what it holds, that there is one, and that W&B's troubles are none of the study's."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from scipy import stats
from synthetic_study import write_arm, write_status
from wandb_fake import FakeRun, FakeServer
from wandb_reader import LoggedRun, read_all

from src.comparison import log_report
from src.report.study import read_study
from src.report.write import FIGURES, Report
from src.tracking.comparison import STATE_FILE
from src.tracking.options import TrackingOptions

pytestmark = pytest.mark.usefixtures("fresh_wandb")

ROOT = Path(__file__).resolve().parents[2]
COMPOUND = [0.921, 0.924, 0.9225]  # test accuracies of the three seeds
ONLINE, OFFLINE = TrackingOptions(timeout_seconds=5.0), TrackingOptions(mode="offline", tags=["mine"])
RUN_NAME = "axes-comparison"


@pytest.fixture
def report(axes: Report) -> Report:
    """A report that was never logged."""
    shutil.rmtree(axes.folder / "wandb", ignore_errors=True)
    (axes.folder / STATE_FILE).unlink(missing_ok=True)
    return axes


def later(report: Report) -> Report:
    """The same study when something else is known: one table changes, two do not."""
    return dataclasses.replace(report, findings=report.findings[1:], question="What else?")


def table(run: FakeRun, key: str) -> dict[str, Any]:
    """The table that a run logged last under a key."""
    return json.loads(run.files[run.summary[key]["path"]])


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.message for one in caplog.records if one.levelno >= logging.WARNING and one.name.startswith("src.")]


def offline(report: Report) -> LoggedRun:
    return read_all(report.folder)[RUN_NAME]


def state(report: Report) -> dict[str, Any]:
    return json.loads((report.folder / STATE_FILE).read_text())


def test_the_server_gets_all_that_the_report_says(report: Report, server: FakeServer) -> None:
    line = log_report(report, ONLINE)
    run, sent = server.run, server.run.created
    assert line == f"W&B comparison: {server.url}/lab/scalestudy/runs/{sent['name']}"
    assert (sent["groupName"], sent["jobType"], sent["displayName"]) == ("axes", "comparison", RUN_NAME)
    assert run.exit_code == 0 and len(run.rows) == 1 and sent["tags"] == ["comparison"]
    arms = table(run, "comparison/arms")
    rows = {row[0]: dict(zip(arms["columns"], row, strict=True)) for row in arms["data"]}
    assert list(rows) == ["base", "compound", "depth"]
    compound = rows["compound"]
    assert compound["test accuracy (%)"] == pytest.approx(100 * sum(COMPOUND) / 3)
    half = stats.t.ppf(0.975, 2) * stats.sem([100 * value for value in COMPOUND])
    assert compound["test accuracy (%) ±"] == pytest.approx(half)
    assert (compound["budget, asked (x)"], compound["budget, realised (x)"], compound["seeds"]) == (2, 2, "0, 1, 2")
    assert compound["FLOPs, counted as MACs (M)"] == pytest.approx(232.6) and rows["base"]["depth (x base)"] == 1
    said = [[sentence.outcome, str(sentence)] for sentence in report.sentences]
    assert table(run, "comparison/verdict")["data"] == said and said
    assert run.summary["comparison/verdict"]["_type"] == "table-file"
    assert run.summary["comparison/sentences"] == [text for _, text in said]
    assert len(table(run, "comparison/guards_and_warnings")["data"]) == len(report.findings) > 0
    for name in FIGURES:
        picture = run.summary[f"comparison/{name.removesuffix('.png')}"]
        assert picture["_type"] == "image-file" and run.files[picture["path"]] == (report.folder / name).read_bytes()
    assert run.files[run.summary["comparison/report"]["path"]] == (report.folder / "report.html").read_bytes()
    assert len(server.tables) == 3, "tables come with an artifact each, which the server has committed"


def test_a_later_report_is_a_later_step_of_the_same_run(
    report: Report, server: FakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    log_report(report, ONLINE)
    asked = server.requests.total()
    assert log_report(report, ONLINE) == "" and server.requests.total() == asked, "nothing new, nothing logged"
    assert log_report(later(report), ONLINE)
    assert list(server.runs) == [state(report)["run_id"]]
    assert len(server.run.rows) == 2 and server.run.rewritten == [] and server.run.exit_code == 0
    assert server.run.summary["comparison/question"] == "What else?"
    # The server says of the tables that have not changed that it has them, which is no trouble.
    assert len(server.tables) == 4 and warnings(caplog) == []


def test_offline_holds_one_directory_and_the_server_one_run(report: Report, server: FakeServer) -> None:
    line = log_report(report, OFFLINE)
    (first,) = (report.folder / "wandb").iterdir()
    assert line.startswith("W&B comparison offline, upload: wandb sync ") and str(first) in line
    logged = offline(report)
    assert (logged.run.run_group, logged.run.job_type, list(logged.run.tags)) == (
        "axes",
        "comparison",
        ["mine", "comparison"],
    )
    assert logged.exit_code == 0 and logged.config["study"] == "axes"
    assert log_report(report, OFFLINE) == "", "what is on the disk is not written again"
    log_report(later(report), OFFLINE)
    assert offline(report).summary["comparison/question"] == "What else?"
    assert len(list((report.folder / "wandb").iterdir())) == 1 and server.requests.total() == 0
    log_report(later(report), ONLINE)
    (kept,) = (report.folder / "wandb").iterdir()
    assert list(server.runs) == [logged.run.run_id] == [state(report)["run_id"]] and not kept.name.startswith("offline")
    assert len(server.run.rows) == 1 and server.run.exit_code == 0


@pytest.mark.slow  # `wandb sync` is a process of its own, twice
def test_what_was_synced_is_kept_and_the_later_one_lies_over_it(report: Report, server: FakeServer) -> None:
    for shown in (report, later(report)):
        command = log_report(shown, OFFLINE).partition("upload: ")[2].split()
        subprocess.run([Path(sys.executable).parent / command[0], *command[1:]], check=True, timeout=60)
    assert len(list((report.folder / "wandb").glob("offline-run-*"))) == 2
    assert list(server.runs) == [state(report)["run_id"]]
    assert server.run.summary["comparison/question"] == "What else?"


def test_without_a_server_it_is_offline_and_the_next_report_tries_again(
    report: Report, server: FakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.status = 401
    assert "offline" in log_report(report, ONLINE)
    (warning,) = warnings(caplog)
    assert "the run is logged offline" in warning
    server.status = None
    assert log_report(report, ONLINE) and log_report(report, ONLINE) == ""
    assert len(server.runs) == len(list((report.folder / "wandb").iterdir())) == 1


@pytest.mark.slow  # three runs that reach the server or try to
def test_a_table_that_the_server_refuses_is_told_and_tried_again(
    report: Report, server: FakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.refused = ("CommitArtifact",)
    assert log_report(report, ONLINE)
    (warning,) = warnings(caplog)
    assert "the study's own report is whole" in warning and "wandb sync" in warning
    server.refused = ()
    caplog.clear()
    assert log_report(report, ONLINE) and warnings(caplog) == []
    assert log_report(report, ONLINE) == "" and len(server.runs) == 1


@pytest.mark.parametrize(
    "environment", [{}, {"WANDB_SWEEP_ID": "s7", "WANDB_RUN_ID": "trial3", "WANDB_MODE": "offline"}]
)
def test_nothing_is_logged_where_wandb_is_off_or_an_agent_gives_the_run(
    environment: dict[str, str], report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert log_report(report, TrackingOptions(mode="disabled")) == ""
    assert not (report.folder / STATE_FILE).exists() and not (report.folder / "wandb").exists()


def test_the_last_job_logs_what_all_of_them_report(report: Report, tmp_path: Path) -> None:
    """Jobs of a cluster write the report when they end, while others still wait or run."""
    for number, (waiting, logs) in enumerate([("queued", False), ("interrupted", True), ("failed", True)]):
        study = tmp_path / f"{number}" / "axes"
        for run in [record for _, record in report.runs]:
            write_arm(study, run, history=False)
        write_status(study / "width-2x-seed0-00000000", waiting)
        coming = tuple(arm for arm in read_study(study) if arm.record is None)
        found = dataclasses.replace(report, unfinished=coming, folder=study)
        assert bool(log_report(found, OFFLINE)) == logs, waiting
        assert bool(log_report(found, OFFLINE, also_running=True)) != logs, "unless somebody asks for it"


def test_a_single_arm_is_compared_with_nothing(report: Report) -> None:
    alone = dataclasses.replace(report, verdict=dataclasses.replace(report.verdict, cells=report.cells[:1]))
    assert log_report(alone, OFFLINE) == "" and not (report.folder / STATE_FILE).exists()


def test_a_sweep_does_not_wait_for_lightning(report: Report) -> None:
    program = (
        "import sys; from pathlib import Path; from src.tracking.comparison import Comparison, log_comparison\n"
        "from src.tracking.options import TrackingOptions\n"
        "options, nothing = TrackingOptions(mode='offline'), Comparison('s', {}, {}, {}, {'n': 1})\n"
        "line = log_comparison(options, Path(sys.argv[1]), nothing)\n"
        "print(line, [name for name in ('torch', 'pytorch_lightning', 'matplotlib') if name in sys.modules])"
    )
    told = subprocess.run(
        [sys.executable, "-c", program, str(report.folder)], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert told.returncode == 0 and "offline-run-" in told.stdout and told.stdout.endswith(" []\n"), told
