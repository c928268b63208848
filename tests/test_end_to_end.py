"""The real command: what a user starts, what it leaves behind, and what it says if something is wrong.

Most sweeps are forks of a process that has everything imported, and so are their arms; real processes are tried too.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults.warm import start
from PIL import Image
from tracking.wandb_reader import read_all

from src import dashboard
from src.cam.panel import load_cam
from src.record import VOLATILE_FIELDS, RunRecord
from src.tracking.dashboard import DASHBOARD_FILE
from src.tracking.keys import CONDITIONS, SEED

ROOT = Path(__file__).resolve().parent.parent
ARMS = ["base", "depth", "width", "resolution", "compound"]
TINY = [
    "recipe.epochs=1",
    "data.clutter.train=128",
    "data.clutter.val=40",
    "data.clutter.test=40",
    "cam_pictures=2",
    "cam_scores=8",
]


def run(
    *arguments: str, outputs: Path, module: str = "src.run", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Start the command with its own outputs folder, no W&B account and nobody to answer a prompt."""
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "HYDRA"))}
    elsewhere = outputs.parent / "home"
    home = {"HOME": str(elsewhere), "WANDB_API_KEY": "", "NETRC": str(elsewhere / "no-netrc")}
    return subprocess.run(
        [sys.executable, "-m", module, *arguments, *([f"outputs={outputs}"] if module == "src.run" else [])],
        cwd=ROOT,
        env={**keep, **home, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


def sweep(*arguments: str, outputs: Path) -> tuple[int, str]:
    """`python -m src.run -m` with these arguments, without the seconds of importing: its exit code and what it said."""
    elsewhere = outputs.parent / "home"
    quiet = {name: "" for name in os.environ if name.startswith(("WANDB", "HYDRA"))}
    home = {**quiet, "HOME": str(elsewhere), "WANDB_API_KEY": "", "NETRC": str(elsewhere / "no-netrc")}
    number = len(list(outputs.parent.glob("*.log")))
    started = start(
        [*arguments, "launcher=forked", f"outputs={outputs}"], outputs.parent / f"{number}.log", environment=home
    )
    return started.wait(), started.text


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The smoke study, run once: every arm, one epoch, W&B offline; its folder, and what was said."""
    outputs = tmp_path_factory.mktemp("smoke") / "outputs"
    code, said = sweep("+sweep=smoke", outputs=outputs)
    assert code == 0, said
    return outputs / "smoke", said


def records(study: Path) -> dict[str, RunRecord]:
    """Records of a study by arm."""
    return {record.arm: record for record in map(RunRecord.read, sorted(study.glob("*/record.json")))}


def test_smoke_every_arm_leaves_a_checked_record(smoke: tuple[Path, str]) -> None:
    found = records(smoke[0])
    assert sorted(found) == sorted(ARMS)
    scaled = [record for arm, record in found.items() if arm != "base"]
    assert max(r.macs for r in scaled) / min(r.macs for r in scaled) < 1.01
    assert all(abs(r.macs / r.base_macs - 2.0) < 0.03 for r in scaled)
    assert found["base"].macs == found["base"].base_macs == found["depth"].base_macs
    for record in found.values():
        assert record.status == "finished" and record.test_openings == 1 and record.epochs == 1
        assert record.ema_updates == record.steps == 5 and record.ema_distance > 0
        assert record.seconds_per_epoch == pytest.approx(record.train_pictures / record.images_per_second)
        assert record.data_fingerprint == found["base"].data_fingerprint
        assert record.wandb_mode == "offline" and record.wandb_id
        assert 0 <= record.test_accuracy <= 1 and record.code_revision
    settled = json.loads((smoke[0] / "hardware.json").read_text())["setting"]
    assert {(r.precision, r.kernels) for r in found.values()} == {(settled["precision"], settled["kernels"])}
    assert len({r.architecture_sha256 for r in found.values()}) == 4  # resolution changes no weight
    assert found["resolution"].architecture_sha256 == found["base"].architecture_sha256
    assert found["resolution"].resolution > found["base"].resolution == found["depth"].resolution


def test_smoke_files_agree_with_the_records(smoke: tuple[Path, str]) -> None:
    study = smoke[0]
    shown = set()
    for path in sorted(study.glob("*/record.json")):
        record, folder = RunRecord.read(path), path.parent
        stored = np.load(folder / "predictions.npz")
        for split in ("val", "test"):
            hits = stored[f"{split}_logits"].argmax(1) == stored[f"{split}_labels"]
            assert hits.mean() == pytest.approx(getattr(record, f"{split}_accuracy"), abs=1e-12)
        assert stored["test_clusters"].shape == stored["test_labels"].shape  # several pictures are made of one scan
        with (folder / "history.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 1 and float(rows[0]["val_accuracy"]) == pytest.approx(record.val_accuracy, abs=1e-6)
        cam = load_cam(folder / "cam.npz")
        assert cam.images.shape[1] == record.resolution
        shown.add(tuple(cam.indices.tolist()))
        assert json.loads((folder / "status.json").read_text())["state"] == "finished"
    assert len(shown) == 1  # the same pictures in every arm
    for name in ("accuracy_vs_macs.png", "learning_curves.png", "cam_grid.png"):
        pixels = np.asarray(Image.open(study / name).convert("L"))
        assert pixels.min() < 100 < pixels.max()
    summary = json.loads((study / "summary.json").read_text())
    assert {s["outcome"] for s in summary["sentences"]} == {"not assessable"}
    assert "one seed" in (study / "summary.md").read_text()


def test_smoke_output_is_readable(smoke: tuple[Path, str]) -> None:
    study, said = smoke
    assert len(said.splitlines()) < 120 and "[5/5]" in said
    assert str(study / "summary.md") in said and "one seed" in said
    consoles = [path.read_text() for path in study.glob("*/console.log")]
    assert len(consoles) == 5 and all("Traceback" not in text and len(text.splitlines()) < 12 for text in consoles)


def test_the_dashboard_shows_keys_that_are_really_logged(smoke: tuple[Path, str]) -> None:
    study = smoke[0]
    assert dashboard.main([str(study)]) == 0
    logged = read_all(study)
    comparison = set(logged.pop("smoke-comparison").summary)
    assert sorted(arm.run.job_type for arm in logged.values()) == sorted(ARMS)
    named = set(keys(json.loads((study / DASHBOARD_FILE).read_text())))
    assert {"comparison/arms/_type", "comparison/verdict/_type"} <= comparison
    assert {kind for kind, _ in named} == {"step", "summary", "picture", "config"} and len(named) >= 12
    named |= {("config", key.replace(".", ".value.", 1)) for key in (SEED, *CONDITIONS.values())}
    for arm in logged.values():
        assert arm.run.run_group == "smoke"
        rows = {key for row in arm.rows for key in row}
        for kind, key in named:
            if kind == "step":
                assert key in rows
            elif kind == "summary":
                assert isinstance(arm.summary[key], float | int)
            elif kind == "picture":
                assert f"{key}/_type" in (comparison if key.startswith("comparison/") else rows), key
            else:
                top, _, inner = key.partition(".value.")
                assert arm.config[top.removesuffix(".value")] is not None and (not inner or inner in arm.config[top])


def keys(node: Any) -> Iterator[tuple[str, str]]:
    """What panels and tables of a spec name that runs must have logged, with the kind of it."""
    if isinstance(node, list):
        for child in node:
            yield from keys(child)
    elif isinstance(node, dict):
        yield from (("picture", key) for key in node.get("mediaKeys", ()))
        yield from (("summary" if key.startswith("best/") else "step", key) for key in node.get("metrics", ()))
        for name in ("xAxis", "yAxis"):
            section, _, key = str(node.get(name, "")).rpartition(":")
            if key not in ("", "_step", "run", "index"):  # steps, runs and pictures are W&B's own
                yield section or "step", key
        yield from (("config", node["groupBy"]) for _ in ("groupBy",) if "groupBy" in node)
        yield from (("config", key["name"]) for key in node.get("grouping", ()))
        pinned = (name.partition(":") for name in node.get("columnOrder", ()))
        yield from ((section, key) for section, _, key in pinned if section != "run")
        for child in node.values():
            yield from keys(child)


def test_the_same_command_again_skips_what_is_finished(
    smoke: tuple[Path, str],
) -> None:
    study = smoke[0]
    runs = sorted((study / "wandb").iterdir())
    before = {path: path.read_bytes() for path in study.glob("*/record.json")}
    code, said = sweep("+sweep=smoke", outputs=study.parent)
    assert code == 0, said
    assert before == {path: path.read_bytes() for path in study.glob("*/record.json")}
    assert said.count("skipped") >= 5
    assert sorted((study / "wandb").iterdir()) == runs, "the comparison has been logged"


def test_arms_of_other_code_are_named_before_and_in_the_comparison(smoke: tuple[Path, str], tmp_path: Path) -> None:
    study = tmp_path / "outputs" / "smoke"
    shutil.copytree(smoke[0], study)
    path = next(study.glob("width-*/record.json"))
    record = RunRecord.read(path)
    dataclasses.replace(record, code_revision="0123456789ab").write(path.parent)
    code, said = sweep("+sweep=smoke", outputs=study.parent)
    assert code == 0 and "1 finished arm(s) were trained by code 0123456789ab" in said, said
    assert "code_revision differs between arms" in (study / "summary.md").read_text()


def test_report_alone_rebuilds_the_comparison(smoke: tuple[Path, str]) -> None:
    study = smoke[0]
    before = (study / "summary.json").read_bytes()
    (study / "summary.json").unlink()
    done = run(str(study), outputs=study.parent, module="src.report")
    assert done.returncode == 0, done.stderr
    assert (study / "summary.json").read_bytes() == before


def test_one_command_twice_gives_identical_records(tmp_path: Path) -> None:
    command = ("scaling=compound", "seed=3", "tracking=none", *TINY)
    assert sweep(*command, "study=one", outputs=tmp_path / "outputs")[0] == 0
    assert run(*command, "study=two", outputs=tmp_path / "outputs").returncode == 0  # in real processes
    one, two = (records(tmp_path / "outputs" / name)["compound"].to_mapping() for name in ("one", "two"))
    differing = {key for key in one if one[key] != two[key]}
    assert differing <= VOLATILE_FIELDS, differing - VOLATILE_FIELDS


def test_arms_of_one_training_budget_see_as_many_pictures_as_they_can_afford(tmp_path: Path) -> None:
    """Twice the base's training MACs: the base trains twice as long, the scaled arm half as long as that."""
    currency = ("budget.currency=train_macs", "tracking=none", "study=length", *TINY, "recipe.batch_size=16")
    code, said = sweep("scaling=base,depth", *currency, outputs=tmp_path / "outputs")
    assert code == 0, said
    found = records(tmp_path / "outputs" / "length")
    assert found["base"].steps == 16 and found["depth"].steps == 8  # one epoch of 128 pictures was asked
    for record in found.values():
        assert record.train_macs == record.price == 3 * record.macs * record.steps * 16
        assert record.price / record.base_price == pytest.approx(2.0, rel=0.01)
    assert "at 2x networks and 2.01x training MACs" in (tmp_path / "outputs" / "length" / "summary.md").read_text()


def test_a_failing_arm_is_reported_and_the_others_go_on(tmp_path: Path) -> None:
    """A learning rate of 1e30 really diverges: training itself raises, in the arm's own process."""
    failing = ("scaling=base", "recipe.learning_rate=1e30,1e-3", "study=broken", "tracking=none", *TINY)
    code, said = sweep(*failing, outputs=tmp_path / "outputs")
    assert code == 1, said
    assert "training diverged" in said and "console.log" in said
    study = tmp_path / "outputs" / "broken"
    states = [json.loads(p.read_text())["state"] for p in sorted(study.glob("*/status.json"))]
    assert sorted(states) == ["failed", "finished"]
    assert "failed" in (study / "summary.md").read_text()


def test_dry_run_shows_the_arms_and_writes_nothing(tmp_path: Path) -> None:
    code, said = sweep(f"scaling={','.join(ARMS)}", "budget=4", "dry_run=true", outputs=tmp_path / "outputs")
    assert code == 0 and all(arm in said for arm in ARMS)
    assert not (tmp_path / "outputs").exists()


def test_help_explains_the_groups(tmp_path: Path) -> None:
    done = run("--help", outputs=tmp_path)
    assert done.returncode == 0
    for expected in ("Examples:", "scaling: b0, b1", "sweep: axes, ", "Exit codes"):
        assert expected in done.stdout
