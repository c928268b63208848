"""What a running sweep shows: the arm writes `progress.json`, the launcher's parent reads it and displays every arm.

On a terminal a live table, one line per arm; elsewhere plain lines, few enough for a log file of a long sweep.
"""

from __future__ import annotations

import heapq
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TextIO

from src.arm_folder import DONE, FINISHED, PROGRESS_FILE, QUEUED, RUNNING, SKIPPED
from src.launch.processes import ArmStatus
from src.record import write_atomically

_WRITE_SECONDS = 0.2
_QUIET_SECONDS = 30.0
_QUIET_SHARE = 0.05  # of an arm's own time: the lines of a long arm become rarer


class ProgressFile:
    """The arm's side: keeps `progress.json` in `folder` up to date, at most five times a second.

    It never raises into training: a full disk costs the display, not the arm.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / PROGRESS_FILE
        self._fields: dict[str, Any] = {}
        self._written = -math.inf

    def update(self, **fields: Any) -> None:
        """Merge `fields` (phase, epoch, epochs, step, steps, images_per_second, seconds_left, val_accuracy) and write.

        A change of phase is always written; other updates within 0.2 s of the last one are kept for the next.
        """
        urgent = "phase" in fields and fields["phase"] != self._fields.get("phase")
        self._fields.update(fields)
        if not urgent and time.monotonic() - self._written < _WRITE_SECONDS:
            return
        self._written = time.monotonic()
        try:
            # `float` is for 0-dimensional arrays and tensors.
            write_atomically(self._path, json.dumps(self._fields, default=float) + "\n")
        except (OSError, TypeError, ValueError):
            return


class Display(Protocol):
    """Shows the arms of a sweep; a context manager around `run_jobs(..., on_update=display.update)`."""

    def update(self, statuses: Sequence[ArmStatus]) -> None:
        """Show the present state of all arms, in the order of the sweep."""

    def __enter__(self) -> Display: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def make_display(mode: str, jobs: int, stream: TextIO | None = None) -> Display:
    """The display for `launcher.progress`.

    Args:
        mode: "auto", "bar", "lines" or "none".
        jobs: arms at once, for the time left of the sweep.
        stream: where to, by default standard error.
    """
    stream = stream if stream is not None else sys.stderr
    if mode == "none":
        return _Silent()
    if mode == "bar" or (mode == "auto" and stream.isatty()):
        return _Table(stream, jobs)
    return _Lines(stream, jobs)


def seconds_left(statuses: Sequence[ArmStatus], jobs: int) -> float | None:
    """Estimated wall time until the last arm ends, in seconds; None as long as nothing is known.

    An arm's own estimate is used where it gives one; else, and for queued arms, the mean time of the known arms. The
    queue is played through the slots.
    """
    totals = [status.seconds for status in statuses if status.state == FINISHED]
    running = [status for status in statuses if status.state == RUNNING]
    own = {id(status): left for status in running if (left := _number(status.progress, "seconds_left")) is not None}
    totals += [status.seconds + own[id(status)] for status in running if id(status) in own]
    queued = sum(status.state == QUEUED for status in statuses)
    if not running and not queued:
        return 0.0
    if not totals:
        return None
    mean = sum(totals) / len(totals)
    slots = [own.get(id(status), max(0.0, mean - status.seconds)) for status in running]
    slots += [0.0] * max(0, jobs - len(slots))
    heapq.heapify(slots)
    for _ in range(queued):
        heapq.heapreplace(slots, slots[0] + mean)
    return max(slots)


def duration(seconds: float) -> str:
    """A time span for people: "41 s", "12 min", "3 h 05 min"."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def describe(status: ArmStatus) -> list[str]:
    """The parts of an arm's line after its name: phase or epoch, speed, accuracy, time left; or how it ended."""
    progress = status.progress
    outcome = status.outcome
    accuracy = _number(progress, "val_accuracy")
    parts = []
    if outcome is not None:
        parts.append(status.state if not outcome.reason else f"{status.state}: {outcome.reason}")
        if status.state == SKIPPED:
            return ["skipped, finished earlier"]
        if status.state == FINISHED:
            parts[0] = f"finished in {duration(status.seconds)}"
            if accuracy is not None:
                parts.append(f"val {accuracy:.1%}")
        return parts
    if status.state == QUEUED:
        return [f"waits: {status.waits_for} trains it" if status.waits_for else "queued"]
    epoch, epochs = _number(progress, "epoch"), _number(progress, "epochs")
    phase = str(progress.get("phase", "starting"))
    parts.append(f"epoch {epoch:.0f}/{epochs:.0f}" if phase == "training" and epoch and epochs else phase)
    speed, left = _number(progress, "images_per_second"), _number(progress, "seconds_left")
    if speed is not None:
        parts.append(f"{speed:.0f} images/s")
    if accuracy is not None:
        parts.append(f"val {accuracy:.1%}")
    if left is not None:
        parts.append(f"{duration(left)} left")
    return parts


def _number(progress: Mapping[str, Any], key: str) -> float | None:
    value = progress.get(key)
    if isinstance(value, int | float) and math.isfinite(value):
        return float(value)
    return None


def _summary(statuses: Sequence[ArmStatus], jobs: int) -> str:
    """The footer: how many arms are where, and the time left of the sweep."""
    done = sum(status.outcome is not None for status in statuses)
    bad = sum(status.outcome is not None and status.state not in DONE for status in statuses)
    left = seconds_left(statuses, jobs)
    parts = [f"{done} of {len(statuses)} arms ended"]
    if bad:
        parts.append(f"{bad} not finished")
    if left is not None and done < len(statuses):
        parts.append(f"about {duration(left)} left")
    return ", ".join(parts)


def _failures(statuses: Sequence[ArmStatus]) -> list[str]:
    """What is printed after the sweep about every arm that was started and did not finish."""
    lines = []
    for status in statuses:
        outcome = status.outcome
        if outcome is None or outcome.state in DONE or not (outcome.log_tail or outcome.returncode is not None):
            continue
        lines += ["", f"{outcome.name} {outcome.state}: {outcome.reason}"]
        lines += [f"    {line}" for line in outcome.log_tail]
        lines.append(f"    (whole log: {outcome.folder / 'console.log'})")
    return lines


class _Silent:
    """No progress; failures are still told at the end."""

    def __init__(self, stream: TextIO | None = None, jobs: int = 1) -> None:
        self.stream = stream if stream is not None else sys.stderr
        self.jobs = jobs
        self.statuses: Sequence[ArmStatus] = ()

    def update(self, statuses: Sequence[ArmStatus]) -> None:
        self.statuses = statuses

    def __enter__(self) -> _Silent:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for line in _failures(self.statuses):
            self.say(line)

    def say(self, line: str) -> None:
        print(line, file=self.stream, flush=True)


class _Lines(_Silent):
    """Plain lines: one when an arm starts, one per tenth of its epochs or after a long silence, one when it ends."""

    def __init__(self, stream: TextIO, jobs: int) -> None:
        super().__init__(stream, jobs)
        self.last: dict[int, tuple[str, int]] = {}  # state and tenth of the epochs of the last line
        self.said: dict[int, float] = {}  # when the last line was printed, in the arm's own seconds

    def update(self, statuses: Sequence[ArmStatus]) -> None:
        super().update(statuses)
        for i, status in enumerate(statuses):
            if status.state == QUEUED:
                continue
            epoch, epochs = _number(status.progress, "epoch"), _number(status.progress, "epochs")
            tenth = int(10 * epoch / epochs) if epoch and epochs else 0
            silence = status.seconds - self.said.get(i, 0.0)
            news = self.last.get(i, (QUEUED, 0))
            if status.state == news[0] and tenth <= news[1]:
                if status.outcome is not None or silence < max(_QUIET_SECONDS, _QUIET_SHARE * status.seconds):
                    continue
            self.last[i] = (status.state, max(tenth, news[1]))
            self.said[i] = status.seconds
            self.say("  ".join([f"[{i + 1}/{len(statuses)}] {status.name}", *describe(status)]))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.statuses:
            self.say(_summary(self.statuses, self.jobs))
        super().__exit__(kind, error, trace)


class _Table(_Silent):
    """A live table on a terminal, one line per arm and the sweep's time left below."""

    def __init__(self, stream: TextIO, jobs: int) -> None:
        super().__init__(stream, jobs)
        from rich.console import Console
        from rich.live import Live

        self.console = Console(file=stream)
        self.live = Live(console=self.console, auto_refresh=False, transient=False)

    def update(self, statuses: Sequence[ArmStatus]) -> None:
        super().update(statuses)
        self.live.update(self._render(statuses), refresh=True)

    def _render(self, statuses: Sequence[ArmStatus]) -> Any:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        # More arms than lines: what runs and what went wrong stays in sight, then what is queued, then what is done.
        urgency = {RUNNING: 0, QUEUED: 2, FINISHED: 3, SKIPPED: 4}
        numbered = sorted(enumerate(statuses, 1), key=lambda item: urgency.get(item[1].state, 1))
        room = max(1, self.console.height - 3)
        table = Table.grid(padding=(0, 2))
        for i, status in sorted(numbered[:room]):
            style = {RUNNING: "bold", QUEUED: "dim", FINISHED: "green", SKIPPED: "dim"}.get(status.state, "red")
            cells = [f"[{i}/{len(statuses)}]", status.name, "  ".join(describe(status))]
            table.add_row(*(Text(cell, style=style, no_wrap=True, overflow="ellipsis") for cell in cells))
        return Group(table, Text(_summary(statuses, self.jobs)))

    def __enter__(self) -> _Table:
        self.live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.live.__exit__(kind, error, trace)
        super().__exit__(kind, error, trace)
