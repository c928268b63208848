"""Whatever happens to a sweep: the other arms go on, nobody is left behind, the states say what is true, and the same
command completes the study with the records that an undisturbed one has.

Every fault is really caused. Sweeps are forks of a process that has everything imported, so that a row takes seconds.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults.planted import Fault
from faults.warm import Sweep, arm_folder, nobody_left, records, running_arms, start, statuses, wait_until
from PIL import Image

from src.arm_folder import read_status

# 8 optimizer steps in 2 epochs: the checkpoint of the first epoch lies behind step 4.
TINY = (
    "recipe.epochs=2",
    "recipe.batch_size=16",
    "cam_pictures=0",
    "cam_scores=0",
    "tracking=none",
    "launcher.progress=lines",
)
CLUTTER = ("data.clutter.train=64", "data.clutter.val=20", "data.clutter.test=20")
FORKED = "launcher=forked"
HEALTHY = 0

# seed: the fault, its argument, its step, the state right after it, and words of the reason or of the arm's console.
IN_AN_ARM: dict[int, tuple[str, str, int, str, str]] = {
    1: ("raise_exception", "", 6, "failed", "RuntimeError: a planted exception"),
    2: ("sys_exit", "", 6, "failed", "exit code 0 but wrote no record.json"),
    3: ("os_exit", "", 6, "failed", "exit code 0 but wrote no record.json"),
    4: ("send_signal", "SIGTERM", 6, "interrupted", "exit code 143"),
    5: ("send_signal", "SIGINT", 2, "interrupted", "exit code 130"),
    6: ("send_signal", "SIGKILL", 6, "interrupted", "SIGKILL"),
    7: ("segfault", "", 6, "failed", "Segmentation fault"),
    8: ("diverge", "", 5, "failed", "training diverged; lower recipe.learning_rate"),
    9: ("fill_the_disk", "", 5, "failed", "No space left on device"),
}
READ_ONLY, HALF_LAST, HALF_BEST, HALF_RECORD, OUT_OF_MEMORY = 10, 11, 12, 13, 14
KILLED = {HALF_LAST: ("send_signal", "SIGKILL", 6), HALF_BEST: ("send_signal", "SIGKILL", 6)}
SEEDS = (HEALTHY, *IN_AN_ARM, READ_ONLY, HALF_LAST, HALF_BEST, HALF_RECORD, OUT_OF_MEMORY)
LAYOUT_FIELDS = {"recompute", "parts", "micro_batch", "notes"}  # of an arm that had to train with less memory


def command(study: Path, *arguments: str, seeds: Any = (0,), data: tuple[str, ...] = CLUTTER) -> tuple[str, ...]:
    """Arms of the base network, one for each seed."""
    listed = ",".join(str(seed) for seed in seeds)
    where = (f"outputs={study.parent}", f"study={study.name}")
    return ("scaling=base", f"seed={listed}", *data, *TINY, *where, *arguments)


def faults_of(planned: dict[int, tuple[Any, ...]], folder: Path) -> list[Fault]:
    return [
        Fault(name, seed, step, str(folder / f"struck-{seed}"), value)
        for seed, (name, value, step, *_) in planned.items()
    ]


def finish(sweep: Sweep, expected: int = 0) -> None:
    code = sweep.wait()
    assert code == expected, sweep.text


def console(study: Path, seed: int, name: str = "console.log") -> str:
    return (arm_folder(study, seed) / name).read_text()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study to which nothing happens."""
    study = tmp_path_factory.mktemp("undisturbed") / "study"
    finish(start(command(study, FORKED, "launcher.jobs=2", seeds=SEEDS), study.parent / "log"))
    assert sorted(records(study)) == list(SEEDS) and nobody_left(study)
    return study


@pytest.fixture(scope="module")
def struck(undisturbed: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, dict[str, Any]], str]:
    """A study in which each arm but two meets a fault of its own: its folder, its states then, and what was printed."""
    study = tmp_path_factory.mktemp("struck") / "study"
    refused = study / arm_folder(undisturbed, READ_ONLY).name
    refused.mkdir(parents=True)
    refused.chmod(0o555)
    planned = {**IN_AN_ARM, **KILLED, OUT_OF_MEMORY: ("exhaust_memory", "", 6)}
    sweep = start(
        command(study, FORKED, "launcher.jobs=2", seeds=SEEDS),
        study.parent / "log",
        faults=faults_of(planned, study.parent),
        as_user=True,
    )
    finish(sweep, 1)
    assert nobody_left(study)
    assert sorted(path.name for path in study.parent.glob("struck-*")) == sorted(f"struck-{s}" for s in planned)
    refused.chmod(0o755)
    return study, statuses(study), sweep.text


@pytest.fixture(scope="module")
def completed(struck: tuple[Path, dict[int, dict[str, Any]], str]) -> tuple[Path, str]:
    """The struck study after two checkpoints and a record were damaged and the same command was given again: its
    folder, and what was printed."""
    study = struck[0]
    for seed, file in ((HALF_LAST, "last.ckpt"), (HALF_BEST, "best.ckpt")):
        path = arm_folder(study, seed) / "checkpoints" / file
        os.truncate(path, path.stat().st_size // 2)
    record = arm_folder(study, HALF_RECORD) / "record.json"
    record.write_text(record.read_text()[:700])
    sweep = start(command(study, FORKED, "launcher.jobs=2", "retry_failed=true", seeds=SEEDS), study.parent / "again")
    finish(sweep)
    assert nobody_left(study)
    return study, sweep.text


Struck = tuple[Path, dict[int, dict[str, Any]], str]


@pytest.mark.parametrize("seed", IN_AN_ARM, ids=[f"{name}{value}" for name, value, *_ in IN_AN_ARM.values()])
def test_a_fault_inside_an_arm_is_told_truthfully(struck: Struck, seed: int) -> None:
    _, states, printed = struck
    state, words = IN_AN_ARM[seed][3:]
    assert states[seed]["state"] == state and states[seed]["attempt"] == 1
    assert words in states[seed]["error"], states[seed]["error"]
    assert f"seed{seed}-" in printed and f"  {state}" in printed


@pytest.mark.parametrize("seed", [*IN_AN_ARM, *KILLED, READ_ONLY])
def test_the_same_command_completes_a_struck_arm(completed: tuple[Path, str], undisturbed: Path, seed: int) -> None:
    study = completed[0]
    assert statuses(study)[seed]["state"] == "finished"
    assert statuses(study)[seed]["attempt"] == (1 if seed == READ_ONLY else 2)
    assert records(study)[seed] == records(undisturbed)[seed]


def test_other_arms_are_not_harmed(struck: Struck, completed: tuple[Path, str], undisturbed: Path) -> None:
    states = struck[1]
    assert [states[seed]["state"] for seed in (HEALTHY, HALF_RECORD)] == ["finished", "finished"]
    assert records(completed[0])[HEALTHY] == records(undisturbed)[HEALTHY]
    assert statuses(completed[0])[HEALTHY] == states[HEALTHY], "it must not have been touched again"


def test_interrupted_arms_go_on_and_do_not_begin_again(completed: tuple[Path, str]) -> None:
    for seed in IN_AN_ARM:
        # SIGINT came before any epoch had ended.
        assert "goes on from" in console(completed[0], seed), seed
    assert not list(completed[0].glob("*/checkpoints/*.part"))


def test_an_arm_that_runs_out_of_memory_is_started_once_more(struck: Struck, undisturbed: Path) -> None:
    """With another layout of its steps, within the same sweep; the record says so and is the same otherwise."""
    study, states, _ = struck
    assert (states[OUT_OF_MEMORY]["state"], states[OUT_OF_MEMORY]["attempt"]) == ("finished", 2)
    assert "error: out of memory with 16 pictures at once" in console(study, OUT_OF_MEMORY, "previous-console.log")
    found, expected = records(study)[OUT_OF_MEMORY], records(undisturbed)[OUT_OF_MEMORY]
    assert "ran out of memory once" in found["notes"]
    assert {name for name in found if found[name] != expected[name]} <= LAYOUT_FIELDS


def test_a_read_only_folder_stops_its_own_arm_only(struck: Struck) -> None:
    _, states, printed = struck
    assert READ_ONLY not in states
    assert "could not be started: [Errno 13] Permission denied" in printed


def test_a_read_only_study_is_refused(tmp_path: Path) -> None:
    study = tmp_path / "study"
    study.mkdir()
    study.chmod(0o555)
    sweep = start(command(study, FORKED), tmp_path / "log", as_user=True)
    finish(sweep, 2)
    assert str(study) in sweep.text and "written" in sweep.text and sweep.text.count("error: ") == 1
    assert not list(study.iterdir())


@pytest.mark.parametrize(("seed", "file"), [(HALF_LAST, "last.ckpt"), (HALF_BEST, "best.ckpt")])
def test_a_truncated_checkpoint_is_not_used(completed: tuple[Path, str], seed: int, file: str) -> None:
    said = console(completed[0], seed)
    assert f"{file} is damaged" in said and "starts from the beginning" in said and "goes on from" not in said


def test_a_truncated_record_is_written_again(completed: tuple[Path, str], undisturbed: Path) -> None:
    assert records(completed[0])[HALF_RECORD] == records(undisturbed)[HALF_RECORD]
    assert "goes on from" in console(completed[0], HALF_RECORD)


def test_a_killed_sweep_takes_its_arm_along(undisturbed: Path, tmp_path: Path) -> None:
    study, seeds = tmp_path / "study", (0, 1, 2)
    planned = {1: ("signal_the_sweep", "SIGKILL", 6)}
    arguments = command(study, FORKED, seeds=seeds)
    finish(start(arguments, tmp_path / "log", faults=faults_of(planned, tmp_path)), -signal.SIGKILL)
    assert nobody_left(study)
    states = statuses(study)
    assert [states[seed]["state"] for seed in seeds] == ["finished", "interrupted", "queued"]
    assert states[1]["error"] == "the sweep that started this arm was killed"
    finish(start(arguments, tmp_path / "again"))
    assert "goes on from" in console(study, 1) and "previous" not in console(study, 2)
    assert [statuses(study)[seed]["attempt"] for seed in seeds] == [1, 2, 1]
    assert records(study) == {seed: records(undisturbed)[seed] for seed in seeds}


@pytest.mark.slow
def test_when_everything_is_killed_at_once_the_lock_tells_the_truth(undisturbed: Path, tmp_path: Path) -> None:
    study = tmp_path / "study"
    faults = faults_of({1: ("kill_everything", "", 6)}, tmp_path)
    finish(start(command(study, FORKED, seeds=(1,)), tmp_path / "log", faults=faults), -signal.SIGKILL)
    assert nobody_left(study)
    assert statuses(study)[1]["state"] == "running", "nobody was left to write anything else"
    assert read_status(arm_folder(study, 1))["state"] == "interrupted"
    finish(start(command(study, FORKED, seeds=(1,)), tmp_path / "again"))
    assert "goes on from" in console(study, 1)
    assert records(study)[1] == records(undisturbed)[1]


@pytest.mark.slow
def test_a_killed_sweep_takes_along_an_arm_that_is_still_importing(undisturbed: Path, tmp_path: Path) -> None:
    """With an interpreter of its own, as arms have by default."""
    study = tmp_path / "study"
    sweep = start(command(study), tmp_path / "log")
    wait_until(lambda: running_arms(study), "an arm")
    sweep.send(signal.SIGKILL)
    assert sweep.wait() == -signal.SIGKILL
    assert nobody_left(study)
    assert statuses(study)[0]["state"] == "interrupted" and not records(study)
    finish(start(command(study, FORKED), tmp_path / "again"))
    assert statuses(study)[0]["attempt"] == 2
    assert records(study)[0] == records(undisturbed)[0]


@pytest.mark.parametrize("name", ["SIGTERM", pytest.param("SIGINT", marks=pytest.mark.slow)])
def test_a_stopped_study_goes_on_in_another_folder(undisturbed: Path, tmp_path: Path, name: str) -> None:
    study, seeds = tmp_path / "study", (1, 2)
    faults = faults_of({1: ("signal_the_sweep", name, 6)}, tmp_path)
    number = signal.Signals[name]
    finish(start(command(study, FORKED, seeds=seeds), tmp_path / "log", faults=faults), 128 + number)
    assert nobody_left(study)
    states = statuses(study)
    assert [states[seed]["state"] for seed in seeds] == ["interrupted", "interrupted"]
    assert f"the sweep was stopped by {name}" in states[1]["error"] and "not started" in states[2]["error"]
    moved = tmp_path / "elsewhere" / "study"
    moved.parent.mkdir()
    os.rename(study, moved)
    finish(start(command(moved, FORKED, seeds=seeds), tmp_path / "again"))
    assert f"goes on from {moved}" in console(moved, 1) and not study.exists()
    assert records(moved) == {seed: records(undisturbed)[seed] for seed in seeds}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Sweep]]:
    """A study that two sweeps were started on at once."""
    study = tmp_path_factory.mktemp("shared") / "study"
    sweeps = [start(command(study, FORKED, seeds=(0, 1, 2)), study.parent / f"log{n}") for n in (1, 2)]
    for sweep in sweeps:
        finish(sweep)
    assert nobody_left(study)
    return study, sweeps


def test_two_sweeps_train_each_arm_once(shared: tuple[Path, list[Sweep]], undisturbed: Path) -> None:
    study, sweeps = shared
    assert [statuses(study)[seed]["attempt"] for seed in (0, 1, 2)] == [1, 1, 1]
    assert records(study) == {seed: records(undisturbed)[seed] for seed in (0, 1, 2)}
    ended = [sweep.text.count("finished in") for sweep in sweeps]
    assert sum(ended) == 3 and not any("Traceback" in sweep.text for sweep in sweeps)


def test_a_finished_study_is_left_alone_until_it_is_asked_to_train_again(
    shared: tuple[Path, list[Sweep]], undisturbed: Path, tmp_path: Path
) -> None:
    study = shutil.copytree(shared[0], tmp_path / "study")
    before = {path: path.read_bytes() for path in study.glob("*-seed*-*/*") if path.is_file()}
    finish(start(command(study, FORKED, seeds=(0, 1, 2)), tmp_path / "log"))
    assert before == {path: path.read_bytes() for path in study.glob("*-seed*-*/*") if path.is_file()}
    finish(start(command(study, FORKED, "launcher.rerun=true"), tmp_path / "again"))
    assert [statuses(study)[seed]["attempt"] for seed in (0, 1, 2)] == [2, 1, 1]
    assert "goes on from" not in console(study, 0)
    assert records(study) == {seed: records(undisturbed)[seed] for seed in (0, 1, 2)}


def test_a_clock_that_jumps_changes_nothing(undisturbed: Path, tmp_path: Path) -> None:
    """A day ahead in the middle of the first arm, two days back in the middle of the second; limits on time are on."""
    study = tmp_path / "study"
    faults = faults_of({0: ("nothing", "", 3), 1: ("nothing", "", 3)}, tmp_path)
    arguments = command(study, FORKED, "launcher.timeout_minutes=10", seeds=(0, 1, 2))
    finish(start(arguments, tmp_path / "log", faults=faults, clock=(faults[0].marker, faults[1].marker)))
    states = statuses(study)
    began = [datetime.fromisoformat(states[seed]["started"]) for seed in (0, 1, 2)]
    assert began[1] - began[0] > timedelta(hours=23) and began[1] - began[2] > timedelta(hours=47), "it did not jump"
    assert all(0 < state["seconds"] < 600 and state["state"] == "finished" for state in states.values())
    assert records(study) == {seed: records(undisturbed)[seed] for seed in (0, 1, 2)}
    finish(start(arguments, tmp_path / "again"))
    assert statuses(study) == states


def test_a_removed_picture_is_named(tmp_path: Path) -> None:
    """Removed while its arm trains; put back, the same command completes the study."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 10), ("test", 10)):
        for label in ("dark", "light"):
            (tmp_path / "pictures" / split / label).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 128, (32, 32, 3), np.uint8) + 127 * (label == "light")
                Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "pictures" / split / label / f"{number}.png")
    data = ("data=folder", f"data.root={tmp_path / 'pictures'}", "data.name=pictures", "data.memory_limit=1KiB")
    finish(start(command(tmp_path / "whole", FORKED, seeds=(0, 1), data=data), tmp_path / "log"))
    study, gone = tmp_path / "study", tmp_path / "pictures" / "train" / "light" / "7.png"
    faults = faults_of({1: ("remove_file", str(gone), 2)}, tmp_path)
    arguments = command(study, FORKED, seeds=(0, 1), data=data)
    sweep = start(arguments, tmp_path / "log", faults=faults)
    finish(sweep, 1)
    assert nobody_left(study)
    states = statuses(study)
    assert (states[0]["state"], states[1]["state"]) == ("finished", "failed")
    assert str(gone) in states[1]["error"] and str(gone) in sweep.text
    os.rename(f"{gone}.away", gone)
    finish(start((*arguments, "retry_failed=true"), tmp_path / "again"))
    assert records(study) == records(tmp_path / "whole")


@pytest.mark.slow
def test_a_full_disk_stops_and_harms_nothing(undisturbed: Path, tmp_path: Path) -> None:
    """Of a size for one checkpoint and a half: torch's own sentence about it would be one of file positions."""
    disk = tmp_path / "disk"
    disk.mkdir()
    kibibytes = 3 * (arm_folder(undisturbed, 0) / "checkpoints" / "last.ckpt").stat().st_size // 2048
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "none", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        study = disk / "study"
        sweep = start(command(study, FORKED, seeds=(0, 1)), tmp_path / "log")
        finish(sweep, 1)
        assert nobody_left(study)
        states = statuses(study)
        assert states[0]["state"] == "failed" and "No space left on device" in states[0]["error"], states[0]["error"]
        assert not records(study) and sweep.text.count("No space left on device") >= 2
        subprocess.run(["mount", "-o", "remount,size=100m", disk], check=True)
        finish(start(command(study, FORKED, "retry_failed=true", seeds=(0, 1)), tmp_path / "again"))
        assert records(study) == {seed: records(undisturbed)[seed] for seed in (0, 1)}
    finally:
        subprocess.run(["umount", disk], check=True)
