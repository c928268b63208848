"""One operating-system process per arm, in slots, each in a session of its own that is ended as a whole.

An arm counts as finished only if its process exited with 0 and left a valid `record.json` written by this attempt: an
exit code alone proves nothing (Lightning 2.6.6 turns SIGTERM into exit code 0). Whatever an arm does to itself, the
others go on. Two sweeps that want the same arm share the work: who has its lock trains it, the other waits. POSIX only.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from src.arm_folder import (
    AGAIN_FILE,
    CONSOLE_FILE,
    DONE,
    FAILED,
    FINISHED,
    INTERRUPTED,
    PROGRESS_FILE,
    QUEUED,
    RUNNING,
    SKIPPED,
    TIMEOUT,
    ArmLock,
    holder,
    is_finished,
    read_json,
    read_status,
    record_problem,
    write_status,
)
from src.launch.children import (
    TICK_SECONDS,
    Process,
    describe_exit,
    end_groups,
    ended_from_outside,
    recorded_signals,
)
from src.launch.forked import ForkedProcess
from src.launch.lifeline import VARIABLE
from src.launch.options import LaunchOptions
from src.launch.slots import slot_environments
from src.record import RECORD_FILE

# A scheduler's or an outer launcher's rank variables would make every arm believe it is one rank of a larger job.
RANK_VARIABLES = ("LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT")

GRACE_SECONDS = 30.0  # from SIGTERM to SIGKILL: time for one more step and a checkpoint
LEFTOVER_SECONDS = 5.0  # the same for what it has started and left behind
_UPDATE_SECONDS = 0.5
_LOCK_SECONDS = 1.0  # between two looks at an arm that another sweep trains
_TAIL_LINES = 15
_TAIL_BYTES = 16384
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ArmJob:
    """One arm to run.

    command: what to run: the interpreter, and "-m", a module and its arguments if the arm may be forked.
    environment: laid over the parent's environment.
    prepare: called when the arm is locked and about to start, with whether it was finished before and is trained again.
    """

    name: str
    folder: Path
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    prepare: Callable[[bool], None] = lambda again: None


@dataclass(frozen=True)
class ArmOutcome:
    """How one arm ended: `state` is finished, skipped, failed, timeout or interrupted.

    `returncode` is negative for a signal and None if no process was started; `seconds` is wall time; `reason` says in
    words why the arm did not finish; `log_tail` holds the last lines of its console.
    """

    name: str
    folder: Path
    state: str
    returncode: int | None
    seconds: float
    log_tail: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class ArmStatus:
    """One arm as the display sees it.

    progress: what the arm last wrote to `progress.json`.
    waits_for: who trains a queued arm, if another sweep does.
    """

    name: str
    folder: Path
    state: str
    seconds: float = 0.0
    progress: Mapping[str, Any] = field(default_factory=dict)
    outcome: ArmOutcome | None = None
    waits_for: str = ""


class SweepInterrupted(SystemExit):
    """The parent was told to stop by a signal; every arm has been ended. The exit code is 128 + the signal's number."""

    def __init__(self, number: int, outcomes: list[ArmOutcome]) -> None:
        super().__init__(128 + number)
        self.outcomes = outcomes


def exit_code(outcomes: Sequence[ArmOutcome]) -> int:
    """Exit code of a sweep: 0 if every arm is finished or was skipped as finished, else 1."""
    return 0 if all(outcome.state in DONE for outcome in outcomes) else 1


def console_tail(folder: Path) -> tuple[str, ...]:
    """The last non-empty lines of the arm's console, without colours and overwritten progress bars."""
    try:
        with (folder / CONSOLE_FILE).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return ()
    lines = [line.rsplit("\r", 1)[-1].rstrip() for line in _ESCAPES.sub("", text).replace("\r\n", "\n").split("\n")]
    return tuple([line for line in lines if line][-_TAIL_LINES:])


def run_jobs(
    jobs: Sequence[ArmJob],
    options: LaunchOptions,
    *,
    devices: int = 1,
    on_update: Callable[[Sequence[ArmStatus]], None] | None = None,
) -> list[ArmOutcome]:
    """Run every arm that is not finished yet, `options.jobs` at a time, and wait for all.

    An arm that failed before is left alone unless `options.retry_failed`; one that was interrupted is started again.

    Args:
        devices: processes that each arm starts, for its share of threads and GPUs.
        on_update: called about twice a second, and at the end, with the status of every arm in the order of `jobs`.

    Returns:
        One outcome per job, in the order of `jobs`.

    Raises:
        ValueError: two arms share a folder, or there are too few GPUs.
        SweepInterrupted: SIGINT, SIGTERM or SIGHUP reached this process; raised after every arm has been ended.
    """
    owners: dict[Path, str] = {}
    for job in jobs:
        folder = job.folder.resolve()
        if folder in owners:
            raise ValueError(f"arms {owners[folder]} and {job.name} share the folder {job.folder}, give each its own")
        owners[folder] = job.name
    return _Sweep(jobs, options, slot_environments(options, os.environ, devices), on_update).run()


class _Arm:
    """The running side of one job."""

    def __init__(self, job: ArmJob) -> None:
        self.job = job
        self.lock = ArmLock(job.folder)
        self.slot = -1
        self.process: Process | None = None
        self.began = 0.0  # on the monotonic clock; 0 is never
        self.ended = 0.0
        self.started = ""
        self.state = QUEUED
        self.waits_for = ""
        self.looked = 0.0  # when the lock was last tried
        self.outcome: ArmOutcome | None = None
        before = read_status(job.folder)
        self.attempt = before.get("attempt", 0) if isinstance(before.get("attempt"), int) else 0
        self.asked_again = False

    def status(self) -> ArmStatus:
        progress = read_json(self.job.folder / PROGRESS_FILE) if self.began else {}
        return ArmStatus(
            self.job.name, self.job.folder, self.state, self.seconds(), progress, self.outcome, self.waits_for
        )

    def seconds(self) -> float:
        return (self.ended or time.monotonic()) - self.began if self.began else 0.0

    def take(self) -> bool:
        """Take the arm's lock; False if another sweep has it, which is asked again a second later.

        Raises:
            OSError: the folder cannot be written.
        """
        if time.monotonic() - self.looked < _LOCK_SECONDS and self.waits_for:
            return False
        self.looked = time.monotonic()
        self.job.folder.mkdir(parents=True, exist_ok=True)
        taken = self.lock.acquire()
        self.waits_for = "" if taken else holder(self.job.folder)
        return taken

    def end(self, impatient: Callable[[], bool]) -> None:
        """End what is left of the arm's processes."""
        assert self.process is not None
        end_groups([self.process], impatient, GRACE_SECONDS, LEFTOVER_SECONDS)
        self.ended = time.monotonic()

    def start(self, slot: int, environment: dict[str, str], options: LaunchOptions) -> None:
        """Start the process, or settle the arm as failed if that cannot be done."""
        self.slot, self.began, self.ended, self.state = slot, self.began or time.monotonic(), 0.0, RUNNING
        self.started = self.started or datetime.now(UTC).isoformat(timespec="seconds")
        self.attempt += 1
        folder = self.job.folder
        try:
            self.job.prepare(is_finished(folder))
            # Set aside and not deleted: what an earlier attempt finished stays readable if this one fails.
            for name in (RECORD_FILE, CONSOLE_FILE):
                if (folder / name).exists():
                    os.replace(folder / name, folder / f"previous-{name}")
            # What an attempt that was killed had half written goes with what it had said.
            for path in (folder / PROGRESS_FILE, folder / AGAIN_FILE, *folder.glob(".*.tmp")):
                path.unlink(missing_ok=True)
            write_status(folder, self.content())  # the arm reads there which attempt it is
            self.process = self._process(environment, options)
        except OSError as error:
            self.settle(FAILED, f"could not be started: {error}")

    def _process(self, environment: dict[str, str], options: LaunchOptions) -> Process:
        console, keep = self.job.folder / CONSOLE_FILE, self.lock.fileno()
        if options.start == "fork":
            return ForkedProcess(self.job.command, environment, console, keep)
        with console.open("wb") as output:
            return subprocess.Popen(
                self.job.command,
                env=environment,
                stdin=subprocess.PIPE,  # kept open as long as this sweep lives: see src/launch/lifeline.py
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=(keep,),
            )

    def asks_again(self) -> str:
        """Why the arm asked to be started once more; empty if it did not, or has had its second start."""
        if self.asked_again:
            return ""
        try:
            reason = (self.job.folder / AGAIN_FILE).read_text().strip()
        except OSError:
            return ""
        self.asked_again = True
        return reason

    def settle(self, state: str, reason: str = "", *, news: bool = True) -> None:
        """Record how the arm ended; its processes are gone by then. Without `news` its state on disk stays."""
        self.state = state
        returncode = self.process.returncode if self.process is not None else None
        tail = () if state in DONE or not self.began else console_tail(self.job.folder)
        self.outcome = ArmOutcome(self.job.name, self.job.folder, state, returncode, self.seconds(), tail, reason)
        if news:
            self.write_status()
        self.lock.release()

    def content(self) -> dict[str, Any]:
        """What `status.json` holds."""
        outcome = self.outcome
        return {
            "state": self.state,
            "returncode": outcome.returncode if outcome else None,
            "seconds": round(outcome.seconds, 3) if outcome else None,
            "started": self.started or None,
            "attempt": self.attempt,
            "arm": self.job.name,
            "error": "\n".join((outcome.reason, *outcome.log_tail)) if outcome and outcome.reason else None,
        }

    def write_status(self) -> None:
        try:
            self.job.folder.mkdir(parents=True, exist_ok=True)
            write_status(self.job.folder, self.content())
        except OSError as error:
            # A full disk must not take the other arms down; the outcome still reports this one.
            log.warning("%s: the state cannot be written: %s", self.job.name, error)


class _Sweep:
    """The parent's loop over slots."""

    def __init__(
        self,
        jobs: Sequence[ArmJob],
        options: LaunchOptions,
        slots: list[dict[str, str]],
        on_update: Callable[[Sequence[ArmStatus]], None] | None,
    ) -> None:
        self.options = options
        self.on_update = on_update
        self.arms = [_Arm(job) for job in jobs]
        self.slots = slots
        self.signals: list[int] = []

    def run(self) -> list[ArmOutcome]:
        queue: deque[_Arm] = deque()
        for arm in self.arms:
            before = read_status(arm.job.folder)
            if is_finished(arm.job.folder) and not self.options.rerun:
                arm.settle(SKIPPED, news=False)
            elif before.get("state") == FAILED and not (self.options.retry_failed or self.options.rerun):
                why = str(before.get("error") or "").split("\n")[0]
                arm.settle(FAILED, f"failed before ({why}); retry_failed=true tries it again", news=False)
            else:
                if not before:
                    arm.write_status()
                queue.append(arm)
        with recorded_signals(self.signals):
            try:
                self._loop(queue)
            finally:
                # Reached with running arms only through a signal or an error of our own: nothing may be left behind.
                self._end_all(queue)
                self._update()
        outcomes = [arm.outcome for arm in self.arms if arm.outcome is not None]
        assert len(outcomes) == len(self.arms)
        if self.signals:
            raise SweepInterrupted(self.signals[0], outcomes)
        return outcomes

    def _stopped(self) -> bool:
        return bool(self.signals)

    def _running(self) -> list[_Arm]:
        return [arm for arm in self.arms if arm.state == RUNNING]

    def _loop(self, queue: deque[_Arm]) -> None:
        shown = -_UPDATE_SECONDS
        while not self.signals:
            running = self._running()
            for arm in running:
                self._watch(arm)
            failed = next((arm for arm in self.arms if arm.began and arm.state in (FAILED, TIMEOUT)), None)
            if failed is not None and self.options.on_failure == "stop":
                while queue:
                    queue.popleft().settle(INTERRUPTED, f"not started: {failed.job.name} failed and on_failure=stop")
            self._fill_slots(queue)
            if time.monotonic() - shown >= _UPDATE_SECONDS or len(running) != len(self._running()):
                self._update()
                shown = time.monotonic()
            if not queue and not self._running():
                return
            time.sleep(TICK_SECONDS)

    def _fill_slots(self, queue: deque[_Arm]) -> None:
        """Start the first arms of the queue that nobody else trains, as many as there are free slots."""
        free = sorted(set(range(len(self.slots))) - {arm.slot for arm in self._running()})
        for arm in list(queue) if free else ():
            try:
                if not arm.take():
                    continue
            except OSError as error:
                queue.remove(arm)
                arm.settle(FAILED, f"could not be started: {error}")
                continue
            queue.remove(arm)
            if is_finished(arm.job.folder) and not self.options.rerun:
                arm.settle(SKIPPED, news=False)  # another sweep has finished it meanwhile
                continue
            slot = free.pop(0)
            arm.start(slot, _environment(arm.job, self.slots[slot]), self.options)
            if not free:
                return

    def _watch(self, arm: _Arm) -> None:
        """Settle the arm if its process has exited or its time is over."""
        assert arm.process is not None
        limit = self.options.timeout_minutes
        code = arm.process.poll()
        if code is not None:
            arm.end(self._stopped)
            if code and (reason := arm.asks_again()):
                log.warning("%s is started once more: %s", arm.job.name, reason)
                arm.start(arm.slot, _environment(arm.job, self.slots[arm.slot]), self.options)
                return
            problem = (describe_exit(code) if code else "") or record_problem(arm.job.folder)
            state = INTERRUPTED if ended_from_outside(code) else FAILED
            arm.settle(state if problem else FINISHED, problem)
        elif limit is not None and arm.seconds() > 60 * limit:
            arm.end(self._stopped)
            arm.settle(TIMEOUT, f"stopped after launcher.timeout_minutes={limit:g}")

    def _end_all(self, queue: deque[_Arm]) -> None:
        name = signal.Signals(self.signals[0]).name if self.signals else "its scheduler or an error"
        running = self._running()
        # One more Ctrl-C, and nobody waits any longer. A scheduler repeats its SIGTERM and means nothing by it.
        asked = self.signals.count(signal.SIGINT)
        processes = [arm.process for arm in running if arm.process]
        end_groups(processes, lambda: self.signals.count(signal.SIGINT) > asked, GRACE_SECONDS, LEFTOVER_SECONDS)
        for arm in running:
            arm.ended = time.monotonic()
            arm.settle(INTERRUPTED, f"the sweep was stopped by {name}")
        for arm in queue:
            arm.settle(INTERRUPTED, f"not started: the sweep was stopped by {name}")

    def _update(self) -> None:
        if self.on_update is not None:
            self.on_update([arm.status() for arm in self.arms])


def _environment(job: ArmJob, slot: Mapping[str, str]) -> dict[str, str]:
    """The environment of one arm: the parent's, the slot's, the job's own, and no rank of anybody else's."""
    inherited = {key: value for key, value in os.environ.items() if key not in RANK_VARIABLES}
    # Unbuffered, so that the end of the log of a killed arm shows what it did last.
    own = {"PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1", VARIABLE: "1"}
    return {**inherited, **own, **slot, **job.environment}
