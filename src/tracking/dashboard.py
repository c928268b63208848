"""A saved workspace and a report for W&B: specs of a study's panels, and saving them. Needs the extra `dashboard`.

The specs are made by W&B's own library, wandb-workspaces, without a network; only `push` asks the server anything.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

from src.tracking.comparison import JOB_TYPE
from src.tracking.keys import ARM, CAM_KEY, COST, SEED, TEST_ACCURACY, TRAIN_LOSS, VAL_ACCURACY, VAL_LOSS
from src.tracking.options import TrackingOptions
from src.tracking.wandb_run import STEP_KEY, answers, first_line, granted_mode, import_wandb, server_url, stored_login

DASHBOARD_FILE = "dashboard.json"  # in the study's folder: both specs, and what was saved where
CURVES = {"Validation accuracy": VAL_ACCURACY, "Validation loss": VAL_LOSS, "Training loss": TRAIN_LOSS}
COLUMNS = (f"summary:{TEST_ACCURACY}", f"summary:{COST}", "summary:record/params", "summary:record/seconds")
MOST_RUNS = 100  # in one panel; W&B's own default shows the first ten
LONGEST_TITLE = 128  # characters that W&B takes
WIDTH = 24  # of a report's grid


@dataclass(frozen=True)
class Dashboard:
    """What the workspace and the report of a study show. Sentences are rendered ones: no other text names a winner.

    conditions: keys of the config that tell runs of one arm apart beside the seed, such as the budget's.
    colours: of the arms, as in the study's own figures; empty where there are conditions.
    seed: whose maps are shown side by side; None: no maps.
    table, pictures: keys of the comparison run.
    """

    study: str
    project: str
    question: str
    sentences: tuple[str, ...]
    findings: tuple[str, ...]
    conditions: tuple[str, ...]
    colours: Mapping[str, str]
    seed: int | None
    table: str
    pictures: tuple[str, ...]

    @property
    def title(self) -> str:
        """Of the workspace and of the report."""
        return f"ScaleStudy {self.study}"[:LONGEST_TITLE]


def specs(dashboard: Dashboard) -> dict[str, Any]:
    """Both specs as JSON-ready mappings: the same for the same study. No network, no key.

    Raises:
        ValueError: wandb-workspaces is not installed.
    """
    workspace, report = make_workspace(dashboard, "")._to_model(), make_report(dashboard, "")._to_model()
    return {
        "project": dashboard.project,
        "workspace": {"name": workspace.display_name, "spec": _plain(workspace.spec)},
        "report": {"title": report.display_name, "description": report.description, "spec": _plain(report.spec)},
    }


def push(
    dashboard: Dashboard, server: str, entity: str, saved: Mapping[str, Any], keep: Callable[[dict[str, Any]], None]
) -> None:
    """Save both on the server that `check_server` found, over those that were saved there before.

    Args:
        saved: what was last given to `keep`, {} for nothing.
        keep: is given server, entity and project, and of `report` and `workspace` the id and the url, after each.

    Raises:
        ValueError: the server refuses; one sentence.
    """
    now: dict[str, Any] = {"server": server, "entity": entity, "project": dashboard.project}
    before = saved if now.items() <= saved.items() else {}
    workspace, report = make_workspace(dashboard, entity), make_report(dashboard, entity)
    if "report" in before:
        report.id = before["report"]["id"]
    if "workspace" in before:
        workspace._internal_id, workspace._internal_name = before["workspace"]["id"], before["workspace"]["name"]
    try:
        report.save()  # first, since it makes the project where there is none
        now["report"] = {"id": report.id, "url": report.url}
        keep({**before, **now})
        workspace.save()
        now["workspace"] = {"id": workspace._internal_id, "name": workspace._internal_name, "url": workspace.url}
        keep(now)
    except Exception as error:
        deleted = f"; if it was deleted there, delete {DASHBOARD_FILE} and save anew" if before else ""
        raise ValueError(
            f"W&B at {server} did not save the dashboard in {entity}/{dashboard.project}: {first_line(error)}{deleted}"
        ) from error


def check_server(options: TrackingOptions) -> tuple[str, str]:
    """Server and entity that a dashboard would be saved to; the first thing that asks the server.

    Raises:
        ValueError: there is no key, the environment forbids it, or the server does not answer or refuses the key.
    """
    _libraries()
    wandb = import_wandb()
    _, logged_in = stored_login("online")
    if not logged_in:
        raise ValueError("no W&B key is stored, and saving needs one; run `wandb login` or set WANDB_API_KEY")
    mode, problems = granted_mode(replace(options, mode="online"))
    if mode != "online":
        raise ValueError(f"nothing can be saved: {problems[0]}")
    server = server_url()
    if not answers(server):
        raise ValueError(f"the W&B server {server} cannot be reached; without it, --dry-run writes the specs")
    try:
        api = wandb.Api()
        entity = options.entity or api.settings["entity"] or api.default_entity
    except Exception as error:
        raise ValueError(f"the W&B server {server} refuses: {first_line(error)}") from error
    return server, entity


def make_workspace(dashboard: Dashboard, entity: str) -> Any:
    """The workspace: runs grouped by arm, panels in five sections.

    Raises:
        ValueError: as `specs`.
    """
    ws, wr, expr = _libraries()
    sections = {
        "What may be said": [wr.MarkdownPanel(markdown=_markdown(dashboard))],
        "Test accuracy over cost, seeds averaged": _accuracy(wr, dashboard),
        "Learning curves": _curves(wr, dashboard),
        "Activation maps": _maps(wr) if dashboard.seed is not None else [],
        "What differs between runs": [wr.RunComparer(diff_only="split")],
    }
    workspace = ws.Workspace(
        entity=entity,
        project=dashboard.project,
        name=dashboard.title,
        sections=[
            ws.Section(
                name=name,
                panels=_identified(panels, f"{dashboard.study} workspace {name}"),
                is_open=True,
                layout_settings=ws.SectionLayoutSettings(columns=min(len(panels), 3), rows=1),
            )
            for name, panels in sections.items()
            if panels
        ],
        settings=ws.WorkspaceSettings(x_axis=STEP_KEY, max_runs=MOST_RUNS),
        runset_settings=ws.RunsetSettings(
            filters=_runs(expr, dashboard),
            groupby=[expr.Config(key) for key in (ARM, *dashboard.conditions)],
            group_colors=dict(dashboard.colours),
            pinned_columns=list(COLUMNS),
        ),
    )
    workspace._internal_runset_id = _identity(f"{dashboard.study} workspace runs")
    return workspace


def make_report(dashboard: Dashboard, entity: str) -> Any:
    """The report: the verdict first, then panels with a line on how to read each.

    Raises:
        ValueError: as `specs`.
    """
    _, wr, expr = _libraries()
    arms = _runs(expr, dashboard)
    blocks = [
        wr.P(text=dashboard.question),
        wr.H2(text="What may be said"),
        *_bullets(wr, dashboard.sentences or ("Nothing yet.",)),
        wr.P(text="These sentences are rendered from the runs' records as they were when this report was saved."),
        *((wr.H3(text="Guards and warnings"), *_bullets(wr, dashboard.findings)) if dashboard.findings else ()),
        wr.H2(text="Test accuracy over cost"),
        wr.P(text="Seeds of an arm are averaged. FLOPs are counted as MACs: multiply-adds for one picture."),
        _grid(wr, dashboard, "Arms and their accuracy", arms, _accuracy(wr, dashboard), grouped=True),
        wr.H2(text="Learning curves"),
        wr.P(text="Mean over the seeds of an arm; the band reaches from the lowest to the highest."),
        _grid(wr, dashboard, "Arms and their curves", arms, _curves(wr, dashboard), grouped=True),
    ]
    if dashboard.seed is not None:
        blocks += [
            wr.H2(text="The same pictures through every arm's eyes"),
            wr.P(text=f"A column is an arm, trained with seed {dashboard.seed}; a row is a picture."),
            _grid(
                wr,
                dashboard,
                "Runs of one seed",
                _runs(expr, dashboard, expr.Config(SEED) == dashboard.seed),
                _maps(wr),
                height=20,
            ),
        ]
    blocks += [
        wr.H2(text="The study's own table and figures"),
        wr.P(text="Logged by the comparison run: means over seeds with 95 % intervals, and every seed in the figures."),
        _grid(wr, dashboard, "Comparison", _runs(expr, dashboard, comparison=True), _own(wr, dashboard), (), height=16),
        wr.H2(text="What differs between runs"),
        _grid(wr, dashboard, "Runs", arms, [wr.RunComparer(diff_only="split")], height=16),
    ]
    return wr.Report(
        entity=entity,
        project=dashboard.project,
        title=dashboard.title,
        description=f"Runs of the group {dashboard.study}.",
        blocks=blocks,
        width="fluid",
    )


def _libraries() -> tuple[ModuleType, ModuleType, ModuleType]:
    import_wandb()
    try:
        from wandb_workspaces import expr, workspaces
        from wandb_workspaces.reports import v2
    except ImportError as missing:
        raise ValueError(
            f"{missing.name} is not installed, and it makes the specs; add it: python -m pip install -e '.[dashboard]'"
        ) from missing
    return workspaces, v2, expr


def _runs(expr: ModuleType, dashboard: Dashboard, *further: Any, comparison: bool = False) -> Any:
    """The runs of the study but its comparison, or that alone."""
    kind = expr.Metric("JobType")
    return expr.And(
        expr.Metric("Group") == dashboard.study, kind == JOB_TYPE if comparison else kind != JOB_TYPE, *further
    )


def _accuracy(wr: ModuleType, dashboard: Dashboard) -> list[Any]:
    """Both average over the runs of a group."""
    return [
        wr.ScatterPlot(
            title="Test accuracy over FLOPs, counted as MACs",
            x=wr.SummaryMetric(COST),
            y=wr.SummaryMetric(TEST_ACCURACY),
        ),
        wr.BarPlot(
            title="Test accuracy, with the standard deviation of the seeds",
            metrics=[TEST_ACCURACY],
            groupby_aggfunc="mean",
            groupby_rangefunc="stddev",
            max_runs_to_show=MOST_RUNS,
            max_bars_to_show=MOST_RUNS,
            **_by_arm(wr, dashboard),
        ),
    ]


def _curves(wr: ModuleType, dashboard: Dashboard) -> list[Any]:
    return [
        wr.LinePlot(
            title=title,
            x=STEP_KEY,
            y=[key],
            groupby_aggfunc="mean",
            groupby_rangefunc="minmax",
            max_runs_to_show=MOST_RUNS,
            **_by_arm(wr, dashboard),
        )
        for title, key in CURVES.items()
    ]


def _by_arm(wr: ModuleType, dashboard: Dashboard) -> dict[str, Any]:
    """A panel groups by one key; where an arm is not all, it follows the grouping of the runs' table, which has all."""
    return {"aggregate": True} if dashboard.conditions else {"groupby": wr.Config(ARM)}


def _maps(wr: ModuleType) -> list[Any]:
    return [
        wr.MediaBrowser(
            title="Class-activation maps", media_keys=[CAM_KEY], mode="grid", grid_x_axis="run", grid_y_axis="index"
        )
    ]


def _own(wr: ModuleType, dashboard: Dashboard) -> list[Any]:
    pictures = (
        [wr.MediaBrowser(title="Figures", media_keys=list(dashboard.pictures), num_columns=1)]
        if dashboard.pictures
        else []
    )
    return [wr.WeavePanelSummaryTable(table_name=dashboard.table), *pictures]


def _grid(
    wr: ModuleType,
    dashboard: Dashboard,
    name: str,
    filters: Any,
    panels: list[Any],
    columns: Sequence[str] = COLUMNS,
    grouped: bool = False,
    height: int = 12,
) -> Any:
    """Panels side by side over one set of runs."""
    keys = (ARM, *dashboard.conditions) if grouped else ()
    # Without entity and project the runs are those of the report's project, and no server need be asked for its number.
    runset = wr.Runset(name=name, filters=filters, groupby=[f"config.{key}" for key in keys], pinned_columns=[*columns])
    runset._id = _identity(f"{dashboard.study} report {name}")
    width = WIDTH // len(panels)
    for number, panel in enumerate(panels):
        panel.layout = wr.Layout(x=number * width, y=0, w=width, h=height)
    colours = {
        wr.RunsetGroup(runset_name=name, keys=(wr.RunsetGroupKey(wr.Config(ARM), arm),)): colour
        for arm, colour in dashboard.colours.items()
        if grouped
    }
    return wr.PanelGrid(
        runsets=[runset],
        panels=_identified(panels, f"{dashboard.study} report {name}"),
        custom_run_colors=colours,
    )


def _bullets(wr: ModuleType, lines: Sequence[str]) -> list[Any]:
    return [wr.UnorderedList(items=list(lines))]


def _markdown(dashboard: Dashboard) -> str:
    lines = [f"- {sentence}" for sentence in dashboard.sentences or ("Nothing yet.",)]
    return "\n".join([dashboard.question, "", *lines])


def _identified(panels: Sequence[Any], place: str) -> list[Any]:
    """Panels with ids that follow from their place: the library draws them by lot, and every spec would differ."""
    for number, panel in enumerate(panels):
        panel._id = _identity(f"{place} {number}")
    return list(panels)


def _identity(place: str) -> str:
    return hashlib.sha256(place.encode()).hexdigest()[:12]


def _plain(spec: Any) -> Any:
    return spec.model_dump(mode="json", by_alias=True, exclude_none=True)
