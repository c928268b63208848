"""Sweeps as forks of a process that has everything imported: the real command without the seconds that importing
takes."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from faults.planted import Fault, give_up_root, move_clock, plant

from src import command, run
from src.arm_folder import is_locked
from src.record import VOLATILE_FIELDS, RunRecord

_FORKS = multiprocessing.get_context("forkserver")
# The command, what it imports only when it needs it, and the digits' library.
_FORKS.set_forkserver_preload(["src.arm", "src.run", "sklearn.datasets"])

PATIENCE_SECONDS = 300.0


@dataclass
class Sweep:
    """A started command; `log` holds what it prints."""

    process: ForkServerProcess
    log: Path

    def wait(self) -> int:
        """Exit code of the command, negative for a signal."""
        self.process.join(PATIENCE_SECONDS)
        code = self.process.exitcode
        assert code is not None, self.text
        return code

    def ends_within(self, seconds: float) -> bool:
        """Wait for at most `seconds`."""
        self.process.join(seconds)
        return not self.runs

    @property
    def runs(self) -> bool:
        return self.process.is_alive()

    def send(self, number: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    @property
    def text(self) -> str:
        return self.log.read_text()


def start(
    arguments: Sequence[str],
    log: Path,
    *,
    faults: Sequence[Fault] = (),
    clock: tuple[str, str] | None = None,
    as_user: bool = False,
    environment: Mapping[str, str] | None = None,
) -> Sweep:
    """Start `python -m src.run -m ARGUMENTS` in a session of its own.

    Args:
        log: file for what it prints.
        faults: planted in its arms, which must be forks.
        clock: two files, which move the clocks of the sweep and of its arms, see `move_clock`.
        as_user: obey file permissions, also where the tests are run by root.
        environment: laid over that of the tests.
    """
    settings = (tuple(arguments), str(log), tuple(faults), clock, as_user, dict(environment or {}))
    process = _FORKS.Process(target=_run, args=settings)
    process.start()
    return Sweep(process, log)


def _run(
    arguments: Sequence[str],
    log: str,
    faults: Sequence[Fault],
    clock: tuple[str, str] | None,
    as_user: bool,
    environment: Mapping[str, str],
) -> None:
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    for place in (1, 2):
        os.dup2(output, place)
    os.environ |= {"OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "1000", **environment}
    if as_user:
        give_up_root()
    if clock:
        move_clock(*clock)
    plant(faults)
    sys.modules.pop("src.arm", None)  # imported here for what it imports: an arm runs it as a program
    sys.argv = ["run", "-m", *arguments]
    sys.exit(command.start(run.run_all))


def records(study: Path, key: str = "seed") -> dict[Any, dict[str, Any]]:
    """The fields of all records of a study that do not change from run to run, by one of the fields."""
    found = (RunRecord.read(path).to_mapping() for path in study.glob("*/record.json"))
    return {row[key]: {name: row[name] for name in row.keys() - VOLATILE_FIELDS} for row in found}


def statuses(study: Path) -> dict[int, dict[str, Any]]:
    """What `status.json` of every arm says, by seed."""
    paths = study.glob("*-seed*-*/status.json")
    return {int(path.parent.name.split("-seed")[1].split("-")[0]): json.loads(path.read_text()) for path in paths}


def arm_folder(study: Path, seed: int) -> Path:
    (folder,) = study.glob(f"*-seed{seed}-*")
    return folder


def users(study: Path) -> dict[int, str]:
    """Processes that name the study's folder in their command line or have a file of it open, and what betrays them."""
    found = {}
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or int(process.name) == os.getpid():
            continue
        try:
            told = [(process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")]
            told += [os.readlink(file) for file in (process / "fd").iterdir()]
        except OSError:  # it has just ended, or is a zombie
            continue
        if traitors := [text for text in told if str(study) in text]:
            found[int(process.name)] = traitors[0]
    return found


def running_arms(study: Path) -> list[int]:
    """Processes that lead a session and hold the lock of an arm: the arms themselves."""
    found = []
    for process in users(study):
        try:
            files = [os.readlink(file) for file in Path(f"/proc/{process}/fd").iterdir()]
            leads = os.getsid(process) == process
        except OSError:
            continue
        if leads and any(file.startswith(str(study)) and file.endswith("/console.log") for file in files):
            found.append(process)
    return found


def nobody_left(study: Path, seconds: float = 60.0) -> bool:
    """Whether nobody uses the study and no arm of it is locked, at the latest `seconds` from now.

    Both are asked: threads of a dying process hold its files for a moment after the process itself shows none.
    """
    deadline = time.monotonic() + seconds
    while True:
        left = [*users(study).items(), *(path for path in study.glob("*/lock") if is_locked(path.parent))]
        if not left:
            return True
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def wait_until(true: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)
