"""Faults that are really caused, each once, in a chosen arm of a forked sweep at a chosen optimizer step.

`plant` changes the sweep's own process before it starts; its arms are forks and carry the change with them.
"""

from __future__ import annotations

import ctypes
import datetime as datetime_module
import os
import re
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from src.launch import processes
from src.training.fit import Progress

DAY = 86_400.0
_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH = 1, 2
_CAPABILITY_VERSION_3 = 0x20080522


@dataclass(frozen=True)
class Fault:
    """What happens to the arm of `seed` after optimizer step `step`.

    name: a function of this module, called with the trainer and `value`.
    marker: made when the fault strikes; it does not strike again while that file is there.
    """

    name: str
    seed: int
    step: int
    marker: str
    value: str = ""


def plant(faults: Sequence[Fault]) -> None:
    """Let the faults strike in the arms that this process forks."""
    if not faults:
        return
    known = {fault.seed: fault for fault in faults}
    original = Progress.on_train_batch_end

    def on_train_batch_end(self: Progress, trainer: Any, module: Any, *unused: Any) -> None:
        original(self, trainer, module, *unused)
        fault = known.get(int(re.findall(r"-seed(\d+)-", trainer.default_root_dir)[-1]))
        if fault is None or trainer.global_step < fault.step or os.path.exists(fault.marker):
            return
        Path(fault.marker).touch()
        strike: Callable[[Any, str], None] = globals()[fault.name]
        strike(trainer, fault.value)

    Progress.on_train_batch_end = on_train_batch_end  # type: ignore[method-assign]


def raise_exception(trainer: Any, value: str) -> None:
    raise RuntimeError("a planted exception")


def sys_exit(trainer: Any, value: str) -> None:
    sys.exit(0)


def os_exit(trainer: Any, value: str) -> None:
    os._exit(0)


def send_signal(trainer: Any, value: str) -> None:
    """To the arm itself, as `kill` or the kernel's OOM killer would."""
    os.kill(os.getpid(), signal.Signals[value])


def signal_the_sweep(trainer: Any, value: str) -> None:
    """And dawdle, so that the arm is in the middle of training when it notices."""
    os.kill(os.getppid(), signal.Signals[value])
    time.sleep(1.0)


def kill_everything(trainer: Any, value: str) -> None:
    """The sweep and the arm, as a machine that goes down."""
    os.kill(os.getppid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def segfault(trainer: Any, value: str) -> None:
    ctypes.string_at(0)


def exhaust_memory(trainer: Any, value: str) -> None:
    """Allocate beyond a limit that this process gives itself."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + 2**26
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    torch.zeros(2**28)


def diverge(trainer: Any, value: str) -> None:
    """Weights as large as a rate too high makes them; a wrong rate itself would be named before it does harm."""
    for weight in trainer.lightning_module.parameters():
        weight.data.mul_(1e30)


def fill_the_disk(trainer: Any, value: str) -> None:
    """Let the next checkpoint go to a device without space; the checkpoint's writer itself removes the link."""
    (Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt.part").symlink_to("/dev/full")


def remove_file(trainer: Any, value: str) -> None:
    os.rename(value, f"{value}.away")


def nothing(trainer: Any, value: str) -> None:
    """Only leaves the marker."""


def move_clock(ahead: str, back: str) -> None:
    """Let the clock of this process and of its arms jump a day ahead once the file `ahead` exists, and to a day before
    the truth once `back` does; monotonic clocks stay, as they do on a real machine."""
    real_time, real_datetime = time.time, datetime_module.datetime

    def jump() -> float:
        return -DAY if os.path.exists(back) else DAY if os.path.exists(ahead) else 0.0

    class Moved(real_datetime):  # type: ignore[valid-type, misc]
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return real_datetime.now(tz) + datetime_module.timedelta(seconds=jump())

    time.time = lambda: real_time() + jump()
    datetime_module.datetime = Moved  # type: ignore[misc]
    processes.datetime = Moved  # type: ignore[attr-defined]


def give_up_root() -> None:
    """Let this process obey file permissions as other users' processes do."""
    if os.geteuid() != 0:
        return
    library = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    held = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice
    assert library.capget(header, held) == 0
    for place in (0, 1):
        held[place] &= ~(1 << _CAP_DAC_OVERRIDE | 1 << _CAP_DAC_READ_SEARCH)
    assert library.capset(header, held) == 0
