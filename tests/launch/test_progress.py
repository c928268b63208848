"""What a sweep shows: few plain lines in a file, a table on a terminal; and a progress file that harms nothing."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.launch import progress
from src.launch.processes import ArmOutcome, ArmStatus
from src.launch.progress import ProgressFile, make_display, seconds_left


def running(name: str, seconds: float, **fields: Any) -> ArmStatus:
    return ArmStatus(name, Path(name), "running", seconds, fields)


def ended(name: str, state: str, seconds: float, **fields: Any) -> ArmStatus:
    return ArmStatus(name, Path(name), state, seconds, {}, ArmOutcome(name, Path(name), state, 1, seconds, **fields))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_file_merges_and_throttles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    file = ProgressFile(tmp_path)

    def read() -> dict[str, Any]:
        return json.loads((tmp_path / "progress.json").read_text())

    file.update(phase="training", epoch=1)
    assert read() == {"phase": "training", "epoch": 1}
    file.update(epoch=2, val_accuracy=0.5)
    assert read()["epoch"] == 1
    now += 0.25
    file.update(images_per_second=800.0)
    assert read() == {"phase": "training", "epoch": 2, "val_accuracy": 0.5, "images_per_second": 800.0}
    file.update(phase="done")
    assert read()["phase"] == "done"


def test_progress_file_writes_at_most_five_times_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, writes = 0.0, []
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    monkeypatch.setattr(progress, "write_atomically", lambda path, text: writes.append(now))
    file = ProgressFile(tmp_path)
    for step in range(10000):
        now = step / 1000
        file.update(step=step)
    assert 40 <= len(writes) <= 50


def test_progress_file_never_raises(tmp_path: Path) -> None:
    ProgressFile(tmp_path / "absent").update(phase="training")
    ProgressFile(tmp_path).update(phase=object())
    assert not (tmp_path / "progress.json").exists()


def test_line_has_the_promised_form() -> None:
    stream = io.StringIO()
    statuses = [
        ended("a", "finished", 9.0),
        running("width-2x-seed0", 5, phase="training", epoch=4, epochs=10, images_per_second=812.4, val_accuracy=0.712),
    ]
    statuses[1] = running("width-2x-seed0", 5, **{**statuses[1].progress, "seconds_left": 41.2})
    statuses.append(ArmStatus("c", Path("c"), "queued"))
    display = make_display("lines", 1, stream)
    display.update(statuses)
    assert stream.getvalue().splitlines() == [
        "[1/3] a  finished in 9 s",
        "[2/3] width-2x-seed0  epoch 4/10  812 images/s  val 71.2%  41 s left",
    ]


@pytest.mark.parametrize(("epochs", "seconds"), [(10, 20.0), (1000, 100.0), (3, 36000.0)])
def test_lines_do_not_flood(epochs: int, seconds: float) -> None:
    stream = io.StringIO()
    with make_display("auto", 1, stream) as display:
        steps = int(seconds * 2)
        for i in range(steps):
            epoch = min(epochs, 1 + i * epochs // steps)
            fields = {"phase": "training", "epoch": epoch, "epochs": epochs, "seconds_left": seconds - i / 2}
            display.update([running("arm", i / 2, **fields)])
        display.update([ended("arm", "finished", seconds)])
        display.update([ended("arm", "finished", seconds)])
    lines = stream.getvalue().splitlines()
    assert min(10, epochs) <= len(lines) <= 13 + min(seconds / 30, 110)
    assert sum("finished in" in line for line in lines) == 1
    assert not re.search(r"[\r\x1b]", stream.getvalue())


def test_failure_is_told_in_every_mode() -> None:
    bad = ended("bad", "failed", 3.0, log_tail=("Traceback", "ValueError: boom"), reason="killed (SIGKILL, Killed)")
    for mode in ("auto", "lines", "bar"):
        stream = io.StringIO()
        with make_display(mode, 1, stream) as display:
            display.update([bad])
        text = stream.getvalue()
        assert "SIGKILL" in text and "    ValueError: boom" in text and "bad/console.log" in text, mode


def test_silence_still_tells_failures(capsys: pytest.CaptureFixture[str]) -> None:
    with make_display("none", 1) as display:
        display.update([running("a", 1.0), ended("bad", "failed", 3.0, log_tail=("boom",), reason="exit code 1")])
    err = capsys.readouterr().err
    assert err.splitlines()[1] == "bad failed: exit code 1" and "boom" in err and "running" not in err


def test_terminal_shows_every_arm_and_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LINES", "20")
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with make_display("auto", 1, stream) as display:
        arm = running("width-2x", 60.0, phase="training", epoch=4, epochs=10, seconds_left=60.0)
        display.update([ended("base", "finished", 100.0), arm, ArmStatus("depth", Path("depth"), "queued")])
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    for part in (
        "[1/3]",
        "base",
        "[2/3]",
        "width-2x",
        "epoch 4/10",
        "60 s left",
        "depth",
        "queued",
        "1 of 3 arms ended",
    ):
        assert part in text
    assert "about 3 min left" in text


def test_terminal_keeps_what_matters_in_sight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "10")
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    statuses = [ended(f"done{i}", "finished", 1.0) for i in range(30)]
    statuses += [ended("broken", "failed", 1.0, reason="exit code 3"), running("alive", 1.0)]
    with make_display("bar", 1, stream) as display:
        display.update(statuses)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    assert "alive" in text and "broken" in text and "1 not finished" in text
    assert len({line.split()[1] for line in text.splitlines() if line.startswith("[")}) <= 8


def test_seconds_left_by_hand() -> None:
    queued = [ArmStatus(name, Path(name), "queued") for name in "xyz"]
    assert seconds_left([running("a", 5.0), *queued], 1) is None
    assert seconds_left([ended("a", "finished", 10.0)], 1) == 0.0
    assert seconds_left([ended("a", "finished", 10.0), *queued], 1) == 30.0
    assert seconds_left([ended("a", "finished", 10.0), *queued], 2) == 20.0
    assert seconds_left([running("a", 5.0, seconds_left=7.0)], 1) == 7.0
    # Slots are free after 4 s and 6 s; the two known arms take 10 s on average: 4 + 10 and 6 + 10.
    arms = [running("a", 6.0, seconds_left=4.0), running("b", 4.0, seconds_left=6.0)]
    assert seconds_left([*arms, *queued[:2]], 2) == 16.0
    # A skipped arm took no time and says nothing about the others.
    assert seconds_left([ended("s", "skipped", 0.0), ended("a", "finished", 10.0), *queued[:1]], 1) == 10.0


@given(lefts=st.lists(st.floats(0, 1e4), min_size=1, max_size=4), queued=st.integers(0, 20), past=st.floats(0.1, 1e3))
def test_seconds_left_lies_between_the_bounds_of_scheduling(lefts: list[float], queued: int, past: float) -> None:
    slots = len(lefts)
    arms = [running(str(i), 0.0, seconds_left=left) for i, left in enumerate(lefts)]
    arms += [ended("e", "finished", past), *(ArmStatus(f"q{i}", Path("q"), "queued") for i in range(queued))]
    mean = (sum(lefts) + past) / (slots + 1)
    left = seconds_left(arms, slots)
    assert left is not None
    work = sum(lefts) + queued * mean
    assert max(max(lefts), work / slots) * (1 - 1e-9) <= left <= (work / slots + max([*lefts, mean])) * (1 + 1e-9)
