"""One operating-system process per arm, in slots, each in a session of its own that is ended as a whole.

An arm counts as finished only if its process exited with 0 and left a valid `record.json` written by this attempt: an
exit code alone proves nothing (Lightning 2.6.6 turns SIGTERM into exit code 0). Whatever an arm does to itself, the
others go on. POSIX only.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from src.launch.options import LaunchOptions
from src.record import RECORD_FILE, RunRecord, write_atomically

STATUS_FILE = "status.json"
PROGRESS_FILE = "progress.json"
CONSOLE_FILE = "console.log"

FINISHED, SKIPPED, FAILED, TIMEOUT, INTERRUPTED = "finished", "skipped", "failed", "timeout", "interrupted"
QUEUED, RUNNING = "queued", "running"
DONE = (FINISHED, SKIPPED)

# A scheduler's or an outer launcher's rank variables would make every arm believe it is one rank of a larger job.
RANK_VARIABLES = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT")

# How long libgomp's threads spin before they sleep. By default they spin for ever, which costs a factor of 3 to 30 as
# soon as somebody else uses a core (measured, docs/log.md); on an idle machine the difference is within noise.
SPIN_COUNT = "1000"

GRACE_SECONDS = 10.0  # from SIGTERM to SIGKILL
_KILL_SECONDS = 2.0  # from SIGKILL until the system has really ended a process
_TICK_SECONDS = 0.05
_UPDATE_SECONDS = 0.5
_TAIL_LINES = 15
_TAIL_BYTES = 16384
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ArmJob:
    """One arm to run: its command in its folder.

    `environment` is laid over the parent's environment. `is_finished` says that an earlier attempt left a finished arm
    in this folder (see `finished`); such an arm is skipped unless the options ask for a rerun.
    """

    name: str
    folder: Path
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    is_finished: bool = False


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
    """One arm as the display sees it; `progress` is what the arm last wrote to `progress.json`."""

    name: str
    folder: Path
    state: str
    seconds: float = 0.0
    progress: Mapping[str, Any] = field(default_factory=dict)
    outcome: ArmOutcome | None = None


class SweepInterrupted(SystemExit):
    """The parent was told to stop by a signal; every arm has been ended. The exit code is 128 + the signal's number."""

    def __init__(self, number: int, outcomes: list[ArmOutcome]) -> None:
        super().__init__(128 + number)
        self.outcomes = outcomes


def finished(folder: Path) -> bool:
    """Whether an earlier attempt finished in `folder`: the launcher saw it end well and its record is valid."""
    if _read_json(folder / STATUS_FILE).get("state") != FINISHED:
        return False
    return _record_problem(folder) == ""


def exit_code(outcomes: Sequence[ArmOutcome]) -> int:
    """Exit code of a sweep: 0 if every arm is finished or was skipped as finished, else 1."""
    return 0 if all(outcome.state in DONE for outcome in outcomes) else 1


def usable_cores() -> int:
    """CPU cores this process may use (its affinity, not the machine's count)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def visible_gpus(environment: Mapping[str, str]) -> list[str]:
    """Names of the GPUs that `environment` lets a process see: of CUDA_VISIBLE_DEVICES if set, else of nvidia-smi."""
    listed = environment.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        names = [name.strip() for name in listed.split(",")]
        # CUDA itself stops reading at the first invalid entry; "-1" is the usual way to say "none".
        return names[: next((i for i, name in enumerate(names) if name in ("", "-1")), len(names))]
    try:
        answer = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [str(i) for i in range(sum(line.startswith("GPU ") for line in answer.splitlines()))]


def slot_environments(options: LaunchOptions, environment: Mapping[str, str]) -> list[dict[str, str]]:
    """What each slot adds to the environment of its arms: a fair share of CPU threads, and GPUs of its own.

    Threads depend on `options.jobs` alone and not on how many arms are left, so that a repeated arm computes the same.
    An OMP_NUM_THREADS or a list of visible GPUs in `environment` is respected.

    Raises:
        ValueError: the slots need more GPUs than are visible.
    """
    threads = environment.get("OMP_NUM_THREADS") or str(max(1, usable_cores() // options.jobs))
    spin = environment.get("GOMP_SPINCOUNT", SPIN_COUNT)
    slots = [{"OMP_NUM_THREADS": threads, "GOMP_SPINCOUNT": spin} for _ in range(options.jobs)]
    each = options.gpus_per_job
    if each > 0:
        gpus = visible_gpus(environment)
        if len(gpus) < each * options.jobs:
            raise ValueError(
                f"launcher.jobs={options.jobs} with launcher.gpus_per_job={each} needs {each * options.jobs} GPUs but "
                f"{len(gpus)} are visible, use launcher.jobs={max(1, len(gpus) // each)}"
                f"{'' if len(gpus) >= each else f' and launcher.gpus_per_job={len(gpus)}'}"
            )
        for i, slot in enumerate(slots):
            slot["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[i * each : (i + 1) * each])
    return slots


def describe_exit(returncode: int) -> str:
    """A return code of `subprocess` in words."""
    if returncode >= 0:
        return f"exit code {returncode}"
    try:
        name = f"{signal.Signals(-returncode).name}, {signal.strsignal(-returncode)}"
    except ValueError:
        name = f"signal {-returncode}"
    hint = "; often the system ran out of memory" if -returncode == signal.SIGKILL else ""
    return f"killed ({name}{hint})"


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
    on_update: Callable[[Sequence[ArmStatus]], None] | None = None,
) -> list[ArmOutcome]:
    """Run every arm that is not finished yet, `options.jobs` at a time, and wait for all.

    `on_update` is called about twice a second, and at the end, with the status of every arm in the order of `jobs`.

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
    return _Sweep(jobs, options, on_update).run()


class _Arm:
    """The running side of one job."""

    def __init__(self, job: ArmJob) -> None:
        self.job = job
        self.slot = -1
        self.process: subprocess.Popen[bytes] | None = None
        self.began = 0.0  # on the monotonic clock; 0 is never
        self.ended = 0.0
        self.started = ""
        self.state = QUEUED
        self.outcome: ArmOutcome | None = None

    def status(self) -> ArmStatus:
        progress = _read_json(self.job.folder / PROGRESS_FILE) if self.began else {}
        return ArmStatus(self.job.name, self.job.folder, self.state, self.seconds(), progress, self.outcome)

    def seconds(self) -> float:
        return (self.ended or time.monotonic()) - self.began if self.began else 0.0

    def end(self, impatient: Callable[[], bool]) -> None:
        """End what is left of the arm's processes."""
        assert self.process is not None
        self.ended = time.monotonic()
        _end_groups([self.process], impatient)

    def start(self, slot: int, environment: dict[str, str]) -> None:
        """Start the process, or settle the arm as failed if that cannot be done."""
        self.slot, self.began, self.state = slot, time.monotonic(), RUNNING
        self.started = datetime.now(UTC).isoformat(timespec="seconds")
        folder = self.job.folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Set aside and not deleted: what an earlier attempt finished stays readable if this one fails.
            for name in (RECORD_FILE, CONSOLE_FILE):
                if (folder / name).exists():
                    os.replace(folder / name, folder / f"previous-{name}")
            (folder / PROGRESS_FILE).unlink(missing_ok=True)
            with (folder / CONSOLE_FILE).open("wb") as console:
                self.process = subprocess.Popen(
                    self.job.command,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=console,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except OSError as error:
            self.settle(FAILED, f"could not be started: {error}")
        else:
            self.write_status()

    def settle(self, state: str, reason: str = "") -> None:
        """Record how the arm ended; its processes must have been ended before."""
        self.state = state
        returncode = self.process.returncode if self.process is not None else None
        tail = () if state in DONE or not self.began else console_tail(self.job.folder)
        self.outcome = ArmOutcome(self.job.name, self.job.folder, state, returncode, self.seconds(), tail, reason)
        self.write_status()

    def write_status(self) -> None:
        if self.job.is_finished and not self.began:
            return  # what an earlier attempt finished stays finished until a new attempt really starts
        outcome = self.outcome
        content = {
            "state": self.state,
            "returncode": outcome.returncode if outcome else None,
            "seconds": round(outcome.seconds, 3) if outcome else None,
            "started": self.started or None,
            "arm": self.job.name,
            "error": "\n".join((outcome.reason, *outcome.log_tail)) if outcome and outcome.reason else None,
        }
        try:
            self.job.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self.job.folder / STATUS_FILE, json.dumps(content, indent=1) + "\n")
        except OSError as error:
            # A full disk must not take the other arms down; the outcome still reports this one.
            log.warning("%s: %s cannot be written: %s", self.job.name, STATUS_FILE, error)


class _Sweep:
    """The parent's loop over slots."""

    def __init__(
        self,
        jobs: Sequence[ArmJob],
        options: LaunchOptions,
        on_update: Callable[[Sequence[ArmStatus]], None] | None,
    ) -> None:
        self.options = options
        self.on_update = on_update
        self.arms = [_Arm(job) for job in jobs]
        self.slots = slot_environments(options, os.environ)
        self.signals: list[int] = []

    def run(self) -> list[ArmOutcome]:
        queue: deque[_Arm] = deque()
        for arm in self.arms:
            if arm.job.is_finished and not self.options.rerun:
                arm.settle(SKIPPED)
            else:
                arm.write_status()
                queue.append(arm)
        with _recorded_signals(self.signals):
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
            failed = next((arm for arm in self.arms if arm.state in (FAILED, TIMEOUT)), None)
            if failed is not None and self.options.on_failure == "stop":
                while queue:
                    queue.popleft().settle(INTERRUPTED, f"not started: {failed.job.name} failed and on_failure=stop")
            free = set(range(len(self.slots))) - {arm.slot for arm in self._running()}
            for slot in sorted(free)[: len(queue)]:
                arm = queue.popleft()
                arm.start(slot, _environment(arm.job, self.slots[slot]))
            if time.monotonic() - shown >= _UPDATE_SECONDS or len(running) != len(self._running()):
                self._update()
                shown = time.monotonic()
            if not queue and not self._running():
                return
            time.sleep(_TICK_SECONDS)

    def _watch(self, arm: _Arm) -> None:
        """Settle the arm if its process has exited or its time is over."""
        assert arm.process is not None
        limit = self.options.timeout_minutes
        if arm.process.poll() is not None:
            arm.end(self._stopped)
            problem = describe_exit(arm.process.returncode) if arm.process.returncode else ""
            problem = problem or _record_problem(arm.job.folder)
            arm.settle(FAILED if problem else FINISHED, problem)
        elif limit is not None and arm.seconds() > 60 * limit:
            arm.end(self._stopped)
            arm.settle(TIMEOUT, f"stopped after launcher.timeout_minutes={limit:g}")

    def _end_all(self, queue: deque[_Arm]) -> None:
        name = signal.Signals(self.signals[0]).name if self.signals else "an error in the launcher"
        running = self._running()
        received = len(self.signals)
        # One more signal from the user, and nobody waits any longer.
        _end_groups([arm.process for arm in running if arm.process], lambda: len(self.signals) > received)
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
    return {**inherited, "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1", **slot, **job.environment}


def _record_problem(folder: Path) -> str:
    """What is wrong with the record of an arm that ended with exit code 0; empty if nothing is."""
    path = folder / RECORD_FILE
    if not path.exists():
        return f"ended with exit code 0 but wrote no {RECORD_FILE}"
    try:
        RunRecord.read(path)
    except (ValueError, OSError) as error:
        return f"ended with exit code 0 but {error}"
    return ""


def _read_json(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file; empty if there is none."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _end_groups(processes: Sequence[subprocess.Popen[bytes]], impatient: Callable[[], bool]) -> None:
    """End the process groups that these processes lead: SIGTERM, a grace, SIGKILL; waits for the processes themselves.

    Also for processes that have exited: their DataLoader workers or ranks may live on.
    """
    for number, patience in ((signal.SIGTERM, GRACE_SECONDS), (signal.SIGKILL, _KILL_SECONDS)):
        groups = [process for process in processes if _signal_group(process, number)]
        deadline = time.monotonic() + patience
        while groups and time.monotonic() < deadline and not (number == signal.SIGTERM and impatient()):
            time.sleep(_TICK_SECONDS)
            for process in groups:
                process.poll()  # reaped, or a dead leader would look like a living group
            groups = [process for process in groups if _signal_group(process, 0)]
        if not groups:
            break
    for process in processes:
        process.wait()


def _signal_group(process: subprocess.Popen[bytes], number: int) -> bool:
    """Send a signal to the group a process leads; False if the group is empty."""
    try:
        os.killpg(process.pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


@contextmanager
def _recorded_signals(received: list[int]) -> Iterator[None]:
    """Write down SIGINT, SIGTERM and SIGHUP instead of dying of them: the loop ends at a place of its choice."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python delivers signals to the main thread only
        return

    def record(number: int, _frame: FrameType | None) -> None:
        received.append(number)

    caught = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    # A signal that is ignored already (nohup) stays ignored.
    before = {number: signal.getsignal(number) for number in caught if signal.getsignal(number) is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, record)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
