"""The room table of the design, enforced over every import in `src/`, and what must not be loaded to answer quickly."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SRC = ROOT / "src"

# Lowest floor first: a room imports itself and the rooms before it.
ROOMS = (
    "choices",
    "guards",
    "cache",
    "record",
    "arm_folder",
    "kernels",
    "networks",
    "scaling",
    "data",
    "cam",
    "training",
    "tracking",
    "verdict",
    "report",
    "launch",
)
# Then the wiring, in this order; any other module at the top is an entry point, which nothing imports.
FLOORS = (
    *ROOMS,
    "config",
    "messages",
    "command",
    "planning",
    "comparison",
    "study",
    "outcome",
    "rehearsal",
    "prospect",
)

UNKNOWN = {  # what a room knows nothing of, beside the rooms after it
    "kernels": {"lightning"},
    "scaling": {"lightning"},
    "data": {"src.networks", "src.scaling"},
    "training": {"src.scaling"},
    "tracking": {"src.training"},
    "verdict": {"torch", "lightning"},
    "report": {"torch", "lightning"},
    "launch": {"src.networks", "src.verdict", "src.report"},
}
ONLY = {  # who may import a library
    "wandb": {"tracking"},
    "wandb_workspaces": {"tracking"},
    "hydra": {"launch", "config", "messages", "command", "study"},
    "omegaconf": {"launch", "config", "messages", "command", "study", "run", "explain", "plan"},
}
LIGHTNING = ("pytorch_lightning", "lightning", "lightning_fabric", "torchmetrics")


def imports(source: str, module: str, package: bool = False) -> Iterator[str]:
    """Dotted names that a module imports: anywhere in it, relative ones resolved, and constant dynamic ones.

    Args:
        source: its text.
        module: its dotted name.
        package: whether it is an `__init__.py`.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".")
            start = parts[: len(parts) - node.level + package] if node.level else []
            base = ".".join([*start, *(node.module or "").split(".")]).strip(".")
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and isinstance(node.args[0], ast.Constant):
                yield str(node.args[0].value)


def offences(source: str, module: str, package: bool = False) -> list[str]:
    """Imports of a module of `src` that its room may not have."""
    room = module.split(".")[1]
    found = []
    for name in imports(source, module, package):
        library, _, rest = name.partition(".")
        library = "lightning" if library in LIGHTNING else library
        other = rest.partition(".")[0]
        if room in ONLY.get(library, {room}) and library not in UNKNOWN.get(room, set()):
            if library != "src" or other == room:
                continue
            order = FLOORS.index(room) if room in FLOORS else len(FLOORS)
            above = room != "record" and other in FLOORS[:order]
            if above and f"src.{other}" not in UNKNOWN.get(room, set()):
                continue
        found.append(f"{module} imports {name}")
    return found


def modules() -> list[tuple[Path, str]]:
    """Every file under `src`, with its dotted name."""
    files = sorted(path for path in SRC.rglob("*.py") if path.parent != SRC or path.name != "__init__.py")
    return [(path, ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")) for path in files]


def test_every_package_stands_in_the_table() -> None:
    single = {"choices", "guards", "cache", "record", "arm_folder"}
    packages = {path.parent.name for path in SRC.glob("*/__init__.py")} | single
    assert packages == set(ROOMS)
    assert len(modules()) > 40


def test_a_room_imports_only_what_its_floor_allows() -> None:
    found = [
        offence
        for path, module in modules()
        for offence in offences(path.read_text(), module, package=path.name == "__init__.py")
    ]
    assert found == []


@pytest.mark.parametrize("path", [SRC / "__init__.py", *sorted(SRC.glob("*/__init__.py"))], ids=lambda p: p.parent.name)
def test_packages_import_nothing(path: Path) -> None:
    body = ast.parse(path.read_text()).body
    assert len(body) == 1 and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("src.record", "from src.report.write import render"),
        ("src.record", "import src.config"),
        ("src.networks.build", "from src.data.options import DataOptions"),
        ("src.networks.build", "import hydra"),
        ("src.networks.build", "import wandb"),
        ("src.scaling.solve", "from omegaconf import OmegaConf"),
        ("src.scaling.solve", "def f():\n    import wandb"),
        ("src.scaling.solve", "import pytorch_lightning.callbacks as c"),
        ("src.scaling.solve", "from torchmetrics import MeanMetric"),
        ("src.data.module", "from src.networks.table import Network"),
        ("src.data.module", "from src import scaling"),
        ("src.data.module", "from ..scaling.rules import Rule"),
        ("src.cam.maps", "from src.training.fit import fit"),
        ("src.training.fit", "from src.scaling.audit import hash_weights"),
        ("src.training.fit", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import wandb"),
        ("src.training.fit", "from src.tracking.options import TrackingOptions"),
        ("src.tracking.wandb_run", "from src.training.fit import Fit"),
        ("src.verdict.judge", "import torch.nn"),
        ("src.verdict.judge", "import wandb"),
        ("src.report.table", "import torch"),
        ("src.report.table", "from hydra import compose"),
        ("src.report.table", "from src.launch.options import LaunchOptions"),
        ("src.launch.processes", "from src.networks.table import Network"),
        ("src.launch.processes", "from src.verdict.judge import judge"),
        ("src.launch.processes", "from src.report.write import write_report"),
        ("src.launch.processes", "import importlib\nimportlib.import_module('src.config')"),
        ("src.launch.processes", "__import__('wandb')"),
        ("src.config", "from src.planning import plan"),
        ("src.planning", "from src.study import run_all"),
        ("src.messages", "from src import study"),
        ("src.study", "import src.arm"),
        ("src.arm", "import wandb"),
        ("src.arm", "from src import run"),
    ],
)
def test_the_checker_finds_what_may_not_be(module: str, source: str) -> None:
    assert len(offences(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("src.record", "import json"),
        ("src.scaling.solve", "from src.networks.table import Network\nfrom . import rules\nfrom .rules import Rule"),
        ("src.data.folder", "from src.data import cifar10\nimport torch, pytorch_lightning"),
        ("src.training.fit", "from src.networks.build import ConvNet"),
        ("src.tracking.wandb_run", "import wandb"),
        ("src.report.figures", "from src.cam.panel import CamFile\nfrom src.verdict.cells import Cell"),
        ("src.launch.hydra_launcher", "from hydra.core.plugins import Plugins\nfrom src.record import RunRecord"),
        ("src.config", "from src.training.options import Recipe"),
        ("src.study", "from src import config\nfrom src.messages import mistakes\nfrom src.report.write import render"),
        ("src.arm", "from src.planning import plan\nfrom src.tracking.wandb_run import Tracker"),
        ("src.plan", "from src.study import plan"),
    ],
)
def test_the_checker_lets_pass_what_may_be(module: str, source: str) -> None:
    assert offences(source, module) == []


def test_relative_imports_of_packages_are_resolved() -> None:
    assert list(imports("from .module import X", "src.data", package=True)) == ["src.data.module.X"]
    assert list(imports("from .. import config", "src.data.module")) == ["src.config"]


def loaded(*arguments: str) -> set[str]:
    """Names of all modules that a Python process loads."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    lines = (line.rpartition("|") for line in done.stderr.splitlines() if line.startswith("import time:"))
    return {name.strip() for _, _, name in lines}


TORCH = {"torch", "pytorch_lightning", "lightning", "torchmetrics", "fvcore"}
HEAVY = TORCH | {"wandb", "matplotlib", "sklearn", "scipy"}
HYDRA = {"hydra", "omegaconf"}


@pytest.mark.parametrize(
    ("arguments", "needs", "avoids"),
    [
        (("-m", "src.run", "--cfg", "job"), {"hydra", "omegaconf", "src.messages"}, HEAVY | {"numpy"}),
        (("-m", "src.run", "--help"), {"hydra", "src.messages"}, HEAVY | {"numpy"}),
        (("-c", "import src.messages, src.config"), {"hydra", "src.config", "src.training.options"}, HEAVY),
        (("-c", "import src.record"), {"src.record"}, HEAVY | HYDRA | {"numpy"}),
        (("-c", "import src.verdict.judge"), {"numpy"}, TORCH | HYDRA | {"wandb"}),
        (("-m", "src.audit", "--help"), {"src.verdict.published"}, TORCH | HYDRA | {"wandb", "matplotlib", "sklearn"}),
        (("-c", "import src.report.write"), {"matplotlib"}, TORCH | HYDRA | {"wandb"}),
        (("-m", "src.extrapolate", "--help"), {"src.verdict.extrapolation"}, TORCH | HYDRA | {"wandb"}),
        (("-c", "import src.training.plan"), {"src.training.layout"}, HEAVY | HYDRA),
        (("-c", "import src.launch.processes"), {"src.launch.options"}, HEAVY | {"src.networks", "src.verdict"}),
        (("-c", "import src.tracking.options"), {"src.tracking"}, HEAVY),
        (
            ("-m", "src.dashboard", "--help"),
            {"src.tracking.dashboard"},
            TORCH | {"wandb", "wandb_workspaces", "sklearn"},
        ),
        (("-c", "import src.study"), {"torch"}, HEAVY - {"torch"}),  # fvcore counts in arms alone
        (("-c", "import src.data.sources"), {"src.data.clutter"}, TORCH | HYDRA | {"wandb"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_is_not_needed_is_not_loaded(arguments: tuple[str, ...], needs: set[str], avoids: set[str]) -> None:
    found = loaded(*arguments)
    assert needs <= found
    assert sorted(found & avoids) == []
