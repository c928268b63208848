"""The workspace and the report that are saved on a W&B server: their specs, saving them twice, and every refusal."""

from __future__ import annotations

import dataclasses
import json
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from synthetic_study import arm_records, write_status
from wandb.sdk.wandb_setup import _WandbSetup
from wandb_fake import KEY, FakeServer

from src import dashboard
from src.comparison import ARMS
from src.dashboard import to_dashboard
from src.record import RunRecord
from src.report.figures import styles
from src.report.write import Report
from src.tracking.comparison import STATE_FILE
from src.tracking.dashboard import DASHBOARD_FILE, specs
from src.tracking.keys import CAM_KEY, COST, TEST_ACCURACY
from src.tracking.options import TrackingOptions
from src.verdict.cells import group

pytestmark = pytest.mark.usefixtures("fresh_wandb")

PANELS = ["Scatter Plot", "Bar Chart", *["Run History Line Plot"] * 3, "Media Browser", "Run Comparer"]


@pytest.fixture
def report(axes: Report, monkeypatch: pytest.MonkeyPatch) -> Report:
    """A study that was reported, and never logged or saved; what takes seconds to draw is drawn once."""
    for name in (DASHBOARD_FILE, STATE_FILE):
        (axes.folder / name).unlink(missing_ok=True)
    shutil.rmtree(axes.folder / "wandb", ignore_errors=True)
    monkeypatch.setattr(dashboard, "write_report", lambda folder: axes)
    return axes


@pytest.fixture
def logged(report: Report, monkeypatch: pytest.MonkeyPatch) -> Report:
    """The same, with how it was logged known: it takes a second to read from all arms."""
    monkeypatch.setattr(dashboard, "tracking_of", lambda folder: TrackingOptions(timeout_seconds=5.0))
    return report


def runs(report: Report) -> list[RunRecord]:
    return [record for _, record in report.runs]


def start(report: Report, *arguments: str) -> int:
    return dashboard.main([str(report.folder), *arguments])


def spec(report: Report) -> dict[str, Any]:
    return json.loads((report.folder / DASHBOARD_FILE).read_text())


def of(report: Report, records: list[RunRecord]) -> dict[str, Any]:
    """Specs of a report on other runs."""
    verdict = dataclasses.replace(report.verdict, cells=group(records))
    return specs(to_dashboard(dataclasses.replace(report, verdict=verdict), TrackingOptions()))


def grids(made: dict[str, Any]) -> list[dict[str, Any]]:
    return [block["metadata"] for block in made["report"]["spec"]["blocks"] if block["type"] == "panel-grid"]


def report_panels(made: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for grid in grids(made) for panel in grid["panelBankSectionConfig"]["panels"]]


def workspace_panels(made: dict[str, Any]) -> list[dict[str, Any]]:
    sections = made["workspace"]["spec"]["section"]["panelBankConfig"]["sections"]
    return [panel for section in sections for panel in section["panels"]]


def texts(node: Any) -> list[str]:
    """All that a reader reads in a report beside its panels."""
    if isinstance(node, list):
        return [text for child in node for text in texts(child)]
    own = [node["text"]] if node.get("text") else []
    return own + texts(node.get("children", []))


# Specs ----------------------------------------------------------------------------------------------------------------


def test_dry_run_needs_no_network_and_gives_the_same_specs_twice(
    report: Report, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def forbidden(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", forbidden)
    monkeypatch.setattr(_WandbSetup, "ensure_service", forbidden)  # W&B's own process has sockets of its own
    assert start(report) == 0
    first = (report.folder / DASHBOARD_FILE).read_bytes()
    assert start(report, "--dry-run") == 0 and (report.folder / DASHBOARD_FILE).read_bytes() == first
    printed = capsys.readouterr()
    assert str(report.folder / DASHBOARD_FILE) in printed.out and "--push" in printed.out and printed.err == ""
    assert spec(report)["saved"] == {} and spec(report)["project"] == "scalestudy"


def test_specs_show_what_a_comparison_needs(report: Report) -> None:
    made = of(report, runs(report))
    kinds = [panel["viewType"] for panel in workspace_panels(made)]
    assert kinds == ["Markdown Panel", *PANELS]
    kinds = [panel["viewType"] for panel in report_panels(made)]
    assert kinds == [*PANELS[:-1], "Weave", "Media Browser", PANELS[-1]]
    for panels in (workspace_panels(made), report_panels(made)):
        by_kind = {panel["viewType"]: panel["config"] for panel in reversed(panels)}
        scatter, bars, lines = (by_kind[kind] for kind in PANELS[:3])
        assert (scatter["xAxis"], scatter["yAxis"]) == (f"summary:{COST}", f"summary:{TEST_ACCURACY}")
        assert bars["metrics"] == [TEST_ACCURACY] and bars["groupAgg"] == "mean"
        assert lines["xAxis"] == "trainer/global_step" and lines["metrics"] == ["val/accuracy"]
        assert bars["groupBy"] == lines["groupBy"] == "scaling.value.name"
        assert by_kind["Media Browser"]["mediaKeys"] == [CAM_KEY]
        assert by_kind["Media Browser"]["gridSettings"] == {"xAxis": "run", "yAxis": "index"}
    assert json.dumps(ARMS) in json.dumps(report_panels(made)[6]), "the table of the comparison run"
    assert report_panels(made)[7]["config"]["mediaKeys"][0] == "comparison/accuracy_vs_macs"
    identities = [panel["__id__"] for panel in (*workspace_panels(made), *report_panels(made))]
    assert len(set(identities)) == len(identities)


def test_runs_of_the_study_are_grouped_and_its_comparison_is_no_arm(report: Report) -> None:
    made = of(report, runs(report))
    (workspace,) = made["workspace"]["spec"]["section"]["runSets"]
    sets = [grid["runSets"][0] for grid in grids(made)]
    conditions = [
        [(one["key"]["section"], one["key"]["name"], one["op"], one["value"]) for one in runset["filters"]["filters"]]
        for runset in (workspace, *sets)
    ]
    study, arm, comparison = (
        ("run", "group", "=", "axes"),
        ("run", "jobType", "!=", "comparison"),
        ("run", "jobType", "=", "comparison"),
    )
    one_seed = ("config", "seed", "=", 0)  # or every arm would stand there three times
    arms = [study, arm]
    assert conditions == [arms, arms, arms, [*arms, one_seed], [study, comparison], arms]
    by_arm = [{"section": "config", "name": "scaling.value.name"}]
    assert [runset["grouping"] for runset in (workspace, *sets)] == [by_arm, by_arm, by_arm, [], [], []]
    colours = {name: style.colour for name, style in styles(report.cells).items()}
    assert sorted(grids(made)[0]["customRunColors"].values()) == sorted(colours.values())
    assert len(made["workspace"]["spec"]["section"]["customRunColors"]) == 3


def test_arms_of_several_budgets_are_not_averaged(report: Report) -> None:
    made = of(report, [*runs(report), *arm_records({"depth": [0.93, 0.94]}, budget=4.0, study="axes")])
    (workspace,) = made["workspace"]["spec"]["section"]["runSets"]
    for runset in (workspace, grids(made)[0]["runSets"][0]):
        assert [key["name"] for key in runset["grouping"]] == ["scaling.value.name", "budget.value.multiple"]
    # A panel groups by one key: it would throw the budgets together, so it follows the table.
    assert [panel for panel in report_panels(made) if "groupBy" in panel["config"]] == []
    mixed = of(report, [*runs(report), *(dataclasses.replace(run, recipe="long", epochs=20) for run in runs(report))])
    (workspace,) = mixed["workspace"]["spec"]["section"]["runSets"]
    names = ["scaling.value.name", "recipe.value.name", "recipe.value.epochs"]
    assert [key["name"] for key in workspace["grouping"]] == names


def test_only_rendered_sentences_speak_of_arms(report: Report) -> None:
    made = of(report, runs(report))
    said = texts(made["report"]["spec"]["blocks"])
    rendered = [str(sentence) for sentence in report.sentences]
    assert rendered[0].startswith("Supported") and all(said.count(sentence) == 1 for sentence in rendered)
    (markdown,) = (p["config"]["value"] for p in workspace_panels(made) if p["viewType"] == "Markdown Panel")
    assert all(f"- {sentence}" in markdown for sentence in rendered)
    ours = [text for text in said if text not in (*rendered, report.question, *map(str, report.findings))]
    assert len(ours) > 8
    for word in ("compound", "depth", "beat", "best", "better", "win", "higher"):
        assert not [text for text in ours if word in text.lower()], word


def test_a_study_without_maps_has_no_panel_of_maps(report: Report) -> None:
    files = tuple(path for path in report.files if path.name != "cam_grid.png")
    made = specs(to_dashboard(dataclasses.replace(report, files=files), TrackingOptions()))
    assert CAM_KEY not in json.dumps(made) and "comparison/cam_grid" not in json.dumps(made)


# Saving ---------------------------------------------------------------------------------------------------------------


def test_push_saves_what_the_dry_run_wrote_and_again_in_its_place(
    logged: Report, server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = FakeServer()  # hears of every request to another host, also of W&B's own process
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, elsewhere.url)
    assert start(logged) == 0
    dry = spec(logged)
    assert start(logged, "--push") == 0
    views = {view["type"]: view for view in server.views.values()}
    assert sorted(views) == ["project-view", "runs"] and len(server.views) == 2
    for kind, part in (("project-view", "workspace"), ("runs", "report")):
        assert json.loads(views[kind]["spec"]) == dry[part]["spec"]
        assert (views[kind]["entityName"], views[kind]["projectName"]) == ("lab", "scalestudy")
        assert views[kind]["displayName"] == "ScaleStudy axes"
    assert server.run.created["jobType"] == "comparison" and server.run.exit_code == 0
    printed = capsys.readouterr()
    assert printed.err == "" and f"saving in lab/scalestudy at {server.url}" in printed.out
    saved = spec(logged)["saved"]
    for part in ("workspace", "report"):
        assert saved[part]["url"].startswith(f"{server.url}/lab/scalestudy") and saved[part]["url"] in printed.out
    assert start(logged) == 0 and spec(logged)["saved"] == saved, "a dry run forgets nothing"
    assert start(logged, "--push") == 0
    assert spec(logged)["saved"] == saved and len(server.views) == 2 and len(server.runs) == 1
    assert server.requests["upsertView"] == server.requests["UpsertView2"] == 2
    assert elsewhere.requests.total() == 0
    elsewhere.close()


def test_what_was_half_saved_is_not_saved_twice(
    logged: Report, server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dashboard, "log_report", lambda *args, **kwargs: "")
    server.refused = ("UpsertView2",)
    assert start(logged, "--push") == 2
    assert capsys.readouterr().err.count("\n") == 1 and list(spec(logged)["saved"]) == [
        "server",
        "entity",
        "project",
        "report",
    ]
    server.refused = ()
    assert start(logged, "--push") == 0 and len(server.views) == 2
    server.views.clear()
    assert start(logged, "--push") == 2
    assert f"if it was deleted there, delete {DASHBOARD_FILE}" in capsys.readouterr().err
    (logged.folder / DASHBOARD_FILE).unlink()
    assert start(logged, "--push") == 0 and len(server.views) == 2


def test_compare_logs_in_the_mode_of_the_study(logged: Report, capsys: pytest.CaptureFixture[str]) -> None:
    assert start(logged, "--compare") == 0 and "W&B comparison offline" in capsys.readouterr().out
    assert start(logged, "--compare") == 0 and "nothing was logged" in capsys.readouterr().out
    assert not (logged.folder / DASHBOARD_FILE).exists()


# Mistakes and refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trouble", "says"),
    [
        ("no key", "no W&B key is stored"),
        ("offline", "WANDB_MODE=offline in the environment overrides"),
        ("dead", "cannot be reached"),
        ("forbidden", "refuses: Failed to verify credentials"),
        ("refused", "did not save the dashboard in lab/scalestudy"),
        ("not logged", "no arm of"),
        ("not installed", "python -m pip install -e '.[dashboard]'"),
    ],
)
def test_what_stands_in_the_way_is_one_sentence(
    trouble: str,
    says: str,
    logged: Report,
    server: FakeServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(dashboard, "log_report", lambda *args, **kwargs: "")
    server.status = 403 if trouble == "forbidden" else None
    server.refused = ("upsertView",) if trouble == "refused" else ()
    if trouble == "no key":
        monkeypatch.delenv("WANDB_API_KEY")
    if trouble == "offline":
        monkeypatch.setenv("WANDB_MODE", "offline")
    if trouble == "dead":
        server.close()
    if trouble == "not installed":
        monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    if trouble == "not logged":
        silent = tuple((name, dataclasses.replace(record, wandb_id="")) for name, record in logged.runs)
        monkeypatch.setattr(dashboard, "write_report", lambda folder: dataclasses.replace(logged, runs=silent))
    assert start(logged, "--push") == 2
    error = capsys.readouterr().err
    assert says in error and error.startswith("error: ") and error.count("\n") == 1 and KEY not in error
    assert server.views == {} and not (logged.folder / DASHBOARD_FILE).exists()
    if trouble == "dead":
        server.open()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["missing"], "missing does not exist"),
        (["running"], "has no finished arm yet"),
        (["moved"], "were logged to lab/other as axes and your/scalestudy as axes"),
        ([], "the following arguments are required: PATH; see --help"),
        (["running", "--push", "--dry-run"], "not allowed with argument"),
    ],
)
def test_mistakes_are_one_sentence(
    arguments: list[str], says: str, report: Report, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_status(tmp_path / "running" / "depth-2x-seed0-00", "running")
    shutil.copytree(report.folder, tmp_path / "moved")
    path = next((tmp_path / "moved").glob("depth-*/config.yaml"))
    path.write_text(
        path.read_text().replace("project: scalestudy", "project: other").replace("entity: null", "entity: lab")
    )
    assert dashboard.main([str(tmp_path / arguments[0]), *arguments[1:]] if arguments else []) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


def test_what_lies_on_this_machine_alone_is_named(logged: Report, capsys: pytest.CaptureFixture[str]) -> None:
    part = logged.folder / "wandb" / "offline-run-20260101_000000-0a1b2c3d"
    part.mkdir(parents=True)
    (part / "run-0a1b2c3d.wandb").write_bytes(b":W&B" + bytes(100))
    assert start(logged) == 0
    printed = capsys.readouterr().out
    assert "1 of 1 arms' runs are not on a server" in printed
    assert f"this uploads them: wandb sync --include-online {part.parent}" in printed
