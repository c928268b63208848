"""Child processes and their groups: how they are ended, and what their return codes say."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import IO, Any, Protocol

from src.launch import slurm

TICK_SECONDS = 0.05
_KILL_SECONDS = 2.0  # from SIGKILL until the system has really ended a process
_FROM_OUTSIDE = (signal.SIGHUP, signal.SIGINT, signal.SIGKILL, *slurm.WARNINGS)  # no fault of the arm's own


class Process(Protocol):
    """What the launcher needs of a child, and `subprocess.Popen` has."""

    pid: int
    returncode: Any

    def poll(self) -> int | None: ...

    def wait(self) -> int: ...


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


def ended_from_outside(returncode: int) -> bool:
    """Whether a process was asked or forced to end, as its return code tells: it may go on when it is started again."""
    return -returncode in _FROM_OUTSIDE or returncode - 128 in _FROM_OUTSIDE


def end_groups(processes: Sequence[Process], impatient: Callable[[], bool], grace: float, leftover: float) -> None:
    """End these processes and the groups they lead, and wait for the processes themselves.

    A process is asked alone first, since it still needs what it has started: W&B's service, to send the last rows. Then
    the rest of its group is asked, which may live on though the process has exited: workers, ranks. Then it is killed.

    Args:
        impatient: whether to kill now.
        grace: seconds that the processes have after SIGTERM. leftover: the same for the rest of their groups.
    """
    for process in processes:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGTERM)
    _wait(lambda: all(process.poll() is not None for process in processes), grace, impatient)
    for number, patience in ((signal.SIGTERM, leftover), (signal.SIGKILL, _KILL_SECONDS)):
        groups = [process for process in processes if _signal_group(process, number)]

        def empty(groups: list[Process] = groups) -> bool:
            for process in groups:
                process.poll()  # reaped, or a dead leader would look like a living group
            return not any(_signal_group(process, 0) for process in groups)

        _wait(empty, patience, impatient if number == signal.SIGTERM else lambda: False)
        if empty():
            break
    for process in processes:
        process.wait()
        lifeline: IO[bytes] | None = getattr(process, "stdin", None)
        if lifeline is not None:
            lifeline.close()


def _wait(done: Callable[[], bool], seconds: float, impatient: Callable[[], bool]) -> None:
    deadline = time.monotonic() + seconds
    while not done() and time.monotonic() < deadline and not impatient():
        time.sleep(TICK_SECONDS)


def _signal_group(process: Process, number: int) -> bool:
    """Send a signal to the group a process leads; False if the group is empty."""
    try:
        os.killpg(process.pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


@contextmanager
def recorded_signals(received: list[int]) -> Iterator[None]:
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
