"""How the arithmetic, the kernels and the threads of a study are chosen."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.kernels import native
from src.training import tuning
from src.training.hardware import Hardware
from src.training.options import HardwareOptions
from src.training.tuning import LEAST_GAIN, Setting, Settled, Trial, apply, choose, run, settle
from tests.training.training_tiny import TABLE

HARDWARE = Hardware("cpu", "cpu (test)", "32-true", 2)
PLAIN, TORCH, NATIVE = (Setting("32-true", kernels, 2) for kernels in ("plain", "torch", "native"))
HALF_PLAIN, HALF_NATIVE = (Setting("bf16-mixed", kernels, 2) for kernels in ("plain", "native"))


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ({PLAIN: 1.0, TORCH: 0.99}, PLAIN),  # not worth code of ours
        ({PLAIN: 1.0, TORCH: 0.9, NATIVE: 0.88}, TORCH),
        ({PLAIN: 1.0, TORCH: 0.9, NATIVE: 0.5}, NATIVE),
        ({PLAIN: 1.0, NATIVE: 0.5, HALF_PLAIN: 2.0, HALF_NATIVE: 0.47}, NATIVE),  # rounding must earn a tenth
        ({PLAIN: 1.0, NATIVE: 0.5, HALF_PLAIN: 2.0, HALF_NATIVE: 0.4}, HALF_NATIVE),
        ({PLAIN: 1.0, HALF_PLAIN: 0.5}, HALF_PLAIN),
        ({PLAIN: 1.0, dataclasses.replace(PLAIN, threads=1): 0.97}, PLAIN),
        ({PLAIN: 1.0, dataclasses.replace(PLAIN, threads=1): 0.9}, dataclasses.replace(PLAIN, threads=1)),
    ],
)
def test_a_plainer_setting_stays_unless_the_gain_is_worth_the_change(
    seconds: dict[Setting, float], chosen: Setting
) -> None:
    assert choose(seconds) == chosen


SETTINGS = [Setting(p, k, 2) for p in ("32-true", "bf16-mixed") for k in ("plain", "torch", "native")]


@given(st.lists(st.floats(0.01, 10.0), min_size=6, max_size=6))
def test_what_is_chosen_is_never_slower_than_the_plainest_and_near_the_fastest(times: list[float]) -> None:
    seconds = dict(zip(SETTINGS, times, strict=True))
    found = choose(seconds)
    assert seconds[found] <= seconds[SETTINGS[0]]
    slack = LEAST_GAIN["kernels"] * LEAST_GAIN["precision"] + 1e-9
    assert seconds[found] <= slack * min(times)


def _never(*unused: object) -> Settled:
    raise AssertionError("measured although nothing was left to choose, or although it was settled")


def test_what_was_asked_for_is_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "remembered", _never)
    options = HardwareOptions("t", precision="32-true", kernels="plain")
    found = settle(HARDWARE, options, tmp_path, TABLE, 32, 8)
    assert (found.precision, found.kernels, found.threads) == ("32-true", "plain", 2)
    assert not (tmp_path / tuning.FILE).exists()


def test_one_choice_for_all_arms_of_a_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Settled(HALF_PLAIN, 2, 8, {"any": 1.0, str(HALF_PLAIN): 0.5})
    monkeypatch.setattr(tuning, "remembered", lambda trial, cores: first)
    options = HardwareOptions("t")
    assert settle(HARDWARE, options, tmp_path, TABLE, 32, 8).precision == "bf16-mixed"
    monkeypatch.setattr(tuning, "remembered", _never)
    later = settle(HARDWARE, options, tmp_path, TABLE, 45, 4)
    assert (later.precision, later.kernels) == (
        "bf16-mixed",
        "plain",
    ) and "2.00 times the speed of plain" in later.reason


def test_what_was_settled_gives_way_to_what_is_asked_for() -> None:
    settled = Settled(Setting("bf16-mixed", "torch", 1), 2, 8, {})
    asked = apply(HARDWARE, HardwareOptions("t", precision="32-true", threads=2), settled)
    assert (asked.precision, asked.kernels, asked.threads) == ("32-true", "torch", 2)
    with_other_cores = apply(dataclasses.replace(HARDWARE, threads=4), HardwareOptions("t"), settled)
    assert with_other_cores.threads == 4


def test_kernels_that_this_machine_cannot_have_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "load", lambda: None)
    monkeypatch.setattr(native, "why_not", lambda: "no C compiler")
    there = apply(HARDWARE, HardwareOptions("t"), Settled(NATIVE, 2, 8, {}))
    assert there.kernels == "torch" and "no C compiler" in there.reason
    with pytest.raises(ValueError, match=r"hardware\.kernels=native .*no C compiler; use hardware\.kernels=auto"):
        tuning._settings(HARDWARE, HardwareOptions("t", kernels="native"))
    assert [s.kernels for s in tuning._settings(HARDWARE, HardwareOptions("t", precision="32-true"))] == [
        "plain",
        "torch",
    ]


def test_on_a_gpu_nothing_is_measured(tmp_path: Path) -> None:
    gpu = dataclasses.replace(HARDWARE, accelerator="gpu", precision="bf16-mixed")
    assert settle(gpu, HardwareOptions("t"), tmp_path, TABLE, 32, 8) == gpu


def test_a_trial_times_every_setting_and_fewer_threads() -> None:
    trial = Trial(TABLE, 16, 4, (Setting("32-true", "plain", 2), Setting("32-true", "torch", 2)))
    seconds = run(trial)
    assert set(trial.settings) < set(seconds) and all(found > 0.0 for found in seconds.values())
    assert {setting.threads for setting in seconds} == {1, 2}


@pytest.mark.parametrize("fault", ["too slow", "dies"])
def test_a_failed_trial_is_said_leaves_the_plainest_setting_and_is_tried_again(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    trial = Trial(TABLE, 16, 4, (PLAIN, TORCH))
    with monkeypatch.context() as broken:
        if fault == "too slow":
            broken.setattr(tuning, "PATIENCE", 0.01)
        else:
            broken.setattr(tuning.sys, "executable", "false")
        found = tuning.remembered(trial, 2)
    assert (found.setting, found.milliseconds) == (PLAIN, {})
    assert "timing steps" in caplog.text and "this study trains with 32-true, plain kernels" in caplog.text
    monkeypatch.setattr(tuning, "measure", lambda trial, cores: Settled(TORCH, cores, 4, {str(TORCH): 1.0}))
    assert tuning.remembered(trial, 2).setting == TORCH


def test_measurements_are_remembered_for_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    trial = Trial(TABLE, 16, 4, (PLAIN, TORCH))
    monkeypatch.setattr(tuning, "measure", lambda trial, cores: Settled(TORCH, cores, 4, {str(TORCH): 1.0}))
    first = tuning.remembered(trial, 2)
    monkeypatch.setattr(tuning, "measure", _never)
    assert tuning.remembered(trial, 2) == first
    with pytest.raises(AssertionError, match="measured although"):
        tuning.remembered(dataclasses.replace(trial, resolution=32), 2)


def test_what_was_timed_beside_other_work_is_timed_again_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    trial = Trial(TABLE, 16, 4, (PLAIN, TORCH))
    busy, idle = (3.0, 0.0, 0.0), (0.2, 3.0, 3.0)
    timed: list[float] = []

    def measure(trial: Trial, cores: int) -> Settled:
        timed.append(tuning._load(cores))
        return Settled((TORCH, PLAIN)[len(timed) - 1], cores, 4, {}, timed[-1])

    monkeypatch.setattr(tuning, "measure", measure)
    monkeypatch.setattr("os.getloadavg", lambda: busy)
    assert tuning.remembered(trial, 2).setting == tuning.remembered(trial, 2).setting == TORCH
    monkeypatch.setattr("os.getloadavg", lambda: idle)
    assert tuning.remembered(trial, 2).setting == tuning.remembered(trial, 2).setting == PLAIN
    monkeypatch.setattr("os.getloadavg", lambda: busy)
    assert tuning.remembered(trial, 2).setting == PLAIN and timed == [1.5, 0.1]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / tuning.FILE
    path.write_text(json.dumps({"setting": 3}))
    with pytest.raises(ValueError, match=r"hardware\.json is damaged .*remove it"):
        tuning._read(path)
