"""Arms on two devices: two processes (gloo, CPU) that train what one would have trained, and end together."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from src.launch import processes
from src.launch.options import LaunchOptions
from src.launch.processes import ArmJob, ArmOutcome, run_jobs

PROGRAM = Path(__file__).with_name("ddp_program.py")


def launch(folder: Path, devices: int, parts: int, *faults: str) -> ArmOutcome:
    """The program as an arm of a sweep."""
    command = (sys.executable, str(PROGRAM), str(folder), str(devices), str(parts), *faults)
    (outcome,) = run_jobs([ArmJob("arm", folder, command)], LaunchOptions(timeout_minutes=4), devices=devices)
    return outcome


def train(folder: Path, devices: int, parts: int, fault: str) -> dict[str, Any]:
    outcome = launch(folder, devices, parts, fault)
    assert outcome.returncode == 0, outcome.log_tail  # "failed" only for want of a record, which it does not write
    return result(folder)


def result(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found


@pytest.fixture(scope="module")
def one_device(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Two runs of one program: in the one batch norm takes nothing from the batch, in the other it sees all of it."""
    folder, faults = tmp_path_factory.mktemp("run"), ("frozen", "none")
    outcome = launch(folder, 1, 1, *faults)
    assert outcome.returncode == 0, outcome.log_tail
    return {fault: result(folder / fault) for fault in faults}


def assert_same(two: dict[str, Any], one: dict[str, Any]) -> None:
    """The same steps, pictures, rates, gradients and means, but for the order of sums. Each of 23 validation pictures
    counts once, with 12 on one rank and 11 on the other."""
    for name in ("weights", "statistics"):
        np.testing.assert_allclose(two[name], one[name], rtol=2e-3, atol=5e-5)
    assert max(two["seen"]) == max(one["seen"]) == 10 and two["weights"] != one["weights"]
    for mine, other in zip(two["rows"], one["rows"], strict=True):
        assert mine["learning_rate"] == other["learning_rate"] and mine["val_accuracy"] == other["val_accuracy"]
        assert (23 * mine["val_accuracy"]) % 1 == pytest.approx(0, abs=1e-5)
        assert mine["train_accuracy"] == pytest.approx(other["train_accuracy"], abs=0.03)  # of 45 pictures
        for name in ("train_loss", "val_loss"):
            assert mine[name] == pytest.approx(other[name], rel=1e-4)


@pytest.mark.parametrize("layout", [(2, 2), pytest.param((2, 1), marks=pytest.mark.slow)])
def test_two_devices_train_what_one_trains(
    one_device: dict[str, dict[str, Any]], layout: tuple[int, int], tmp_path: Path
) -> None:
    """Nine pictures a step, in parts of 5 and 4 or of 3, 2, 2 and 2; gradients travel once a step."""
    two = train(tmp_path, *layout, "frozen")
    assert_same(two, one_device["frozen"])
    assert two["exchanges"] == 10


@pytest.mark.parametrize("fault", ["shared", pytest.param("native", marks=pytest.mark.slow)])
def test_shared_statistics_are_those_of_the_whole_batch(
    one_device: dict[str, dict[str, Any]], fault: str, tmp_path: Path
) -> None:
    """Weights and running statistics after ten steps of 5 and 4 pictures, also where kernels would fuse the norm."""
    assert_same(train(tmp_path, 2, 1, fault), one_device["none"])


@pytest.mark.slow
def test_batch_norm_sees_the_pictures_of_one_device(one_device: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    """Stated and measured: with statistics of 4 or 5 pictures instead of 9 the loss moves by some percent."""
    one, two = one_device["none"], train(tmp_path, 2, 1, "none")
    apart = abs(two["rows"][-1]["train_loss"] / one["rows"][-1]["train_loss"] - 1)
    assert 1e-4 < apart < 0.15


@pytest.mark.parametrize(
    "fault", ["rank0-before", "rank1-before", "rank0-inside", pytest.param("rank1-inside", marks=pytest.mark.slow)]
)
def test_a_rank_that_fails_takes_the_others_along(tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "LEFTOVER_SECONDS", 1.0)
    began = time.monotonic()
    outcome = launch(tmp_path, 2, 1, fault)
    assert outcome.state in ("failed", "interrupted") and outcome.returncode != 0
    assert "planted" in (tmp_path / "console.log").read_text()
    assert time.monotonic() - began < 90
    pids = [int(path.read_text()) for path in tmp_path.glob("rank?")]
    assert len(pids) == (1 if fault == "rank0-before" else 2)
    assert not any(Path(f"/proc/{pid}/cmdline").exists() and "ddp_program" in _command(pid) for pid in pids)


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def test_the_ranks_of_somebody_else_reach_no_arm() -> None:
    assert {"LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= {*processes.RANK_VARIABLES}
    assert "LOCAL_RANK" not in os.environ
