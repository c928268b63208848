"""One small study, killed 20 times at random moments: every time the same command goes on, and in the end the records
are those of a study to which nothing happened."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from faults.warm import Sweep, nobody_left, records, running_arms, start, wait_until

from src.arm_folder import read_status

SEED = 20
KILLS = 20
LAUNCHERS = ("local", *("forked",) * 4)  # in turns: arms with interpreters of their own, and copies of the sweep
STRIKES = (("sweep", signal.SIGKILL), ("arm", signal.SIGKILL), ("sweep", signal.SIGTERM), ("sweep", signal.SIGINT))
ARGUMENTS = (
    "scaling=base,depth,width",
    "recipe.epochs=2",
    "recipe.batch_size=16",
    "data.clutter.train=256",
    "data.clutter.val=40",
    "data.clutter.test=40",
    "cam_pictures=1",
    "cam_scores=0",
    "tracking=offline",
    "launcher.checkpoint_minutes=0.01",
)


def begin(study: Path, launcher: str, log: Path) -> Sweep:
    return start((*ARGUMENTS, f"launcher={launcher}", f"outputs={study.parent}", f"study={study.name}"), log)


def by_arm(study: Path) -> dict[str, dict[str, Any]]:
    return records(study, "arm")


def strike(sweep: Sweep, study: Path, whom: str, number: int) -> bool:
    """Kill the sweep, or the next arm that runs; False if there is none any more."""
    if whom == "arm":
        wait_until(lambda: running_arms(study) or not sweep.runs, "an arm")
        with contextlib.suppress(IndexError, ProcessLookupError):
            os.kill(running_arms(study)[0], number)
            return True
    elif sweep.runs:
        sweep.send(number)
        return True
    return False


@pytest.mark.slow
def test_twenty_kills_at_random_moments(tmp_path: Path) -> None:
    chance = random.Random(SEED)
    expected: dict[str, dict[str, Any]] = {}
    seconds: dict[str, float] = {}
    for launcher in sorted(set(LAUNCHERS)):
        began = time.monotonic()
        sweep = begin(tmp_path / launcher, launcher, tmp_path / f"{launcher}.log")
        assert sweep.wait() == 0, sweep.text
        seconds[launcher] = time.monotonic() - began
        found = by_arm(tmp_path / launcher)
        assert len(found) == 3 and found == (expected or found)
        expected = found
    kills, rounds = 0, 0
    while kills < KILLS:
        rounds += 1
        study = tmp_path / f"round{rounds}"
        code = -1
        while code != 0:
            launcher = LAUNCHERS[kills % len(LAUNCHERS)]
            whom, number = STRIKES[kills % len(STRIKES)]
            began, fresh = time.monotonic(), not study.exists()
            sweep = begin(study, launcher, tmp_path / f"kill{kills}.log")
            finished = len(by_arm(study)) if study.exists() else 0
            moment = chance.uniform(0.0, seconds[launcher] * (1.0 - finished / len(expected)))
            struck = kills < KILLS and not sweep.ends_within(moment) and strike(sweep, study, whom, number)
            code = sweep.wait()
            if fresh and not struck:
                seconds[launcher] = time.monotonic() - began
            assert nobody_left(study)
            states = {
                path.parent.name.split("-")[0]: read_status(path.parent)["state"] for path in study.glob("*/lock")
            }
            kills += struck
            done = f"{whom} {number.name} after {moment:.1f} s" if struck else "no kill"
            print(f"{kills:2} kills, round {rounds}, {launcher}, {done}: exit code {code}, {states}", flush=True)
            assert set(states.values()) <= {"queued", "interrupted", "finished"}, sweep.text
            found = by_arm(study)
            assert all(found[name] == expected[name] for name, state in states.items() if state == "finished")
        assert by_arm(study) == expected
