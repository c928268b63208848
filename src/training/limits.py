"""How much memory an arm may hold, how that is made real, and what running out of it looks like."""

from __future__ import annotations

import errno
import os
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from src.choices import parse_bytes
from src.training.options import HardwareOptions

# Of all memory, what is left to the operating system, the page cache and other processes.
USABLE = 0.9

# What libraries say in a plain RuntimeError: torch's CPU allocator (Linux, Windows), C++, oneDNN, cuBLAS, cuDNN, Metal.
_OUT_OF_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "bad_alloc",
    "could not create a memory object",
    "out of memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
)


@dataclass(frozen=True)
class Limit:
    """Bytes that the process may hold on one device, and what sets them."""

    bytes: int
    source: str


def memory_limit(options: HardwareOptions, accelerator: str, share: int = 1) -> Limit:
    """The smallest of what was asked for, a fair share of what the device has, and what is free on it now.

    `hardware.memory_limit` is for each device of each arm and is not divided. The fair share is 0.9 of the device (or
    of the control group that the process runs in) over `share`: it does not depend on when an arm starts, so that an
    arm that is trained again takes the same layout. What is free decides only where strangers hold the rest.

    Args:
        accelerator: as resolved: cpu, gpu or mps.
        share: processes that train on the device at once: arms, times their ranks where all of them use the CPU.
    """
    held = held_bytes(accelerator)
    limits = []
    if options.memory_limit is not None:
        limits.append(Limit(parse_bytes("hardware.memory_limit", options.memory_limit), "hardware.memory_limit"))
    for size, free, source in [_cuda()] if accelerator == "gpu" else _host():
        among = f", shared by {share}" if share > 1 else ""
        limits.append(Limit(int(USABLE * size / share), f"{USABLE:.0%} of {source}{among}"))
        limits.append(Limit(held + free, f"what is free of {source}"))
    if accelerator != "gpu":
        limits += [Limit(held + room, f"the process's {name}") for name, room in _process_room()]
    return min(limits, key=lambda limit: limit.bytes)


def held_bytes(accelerator: str) -> int:
    """Bytes that the process holds now: of the GPU what torch reserved, else its resident set (its peak, where the
    operating system does not tell)."""
    if accelerator == "gpu":
        return int(torch.cuda.memory_reserved())
    status = _status()
    return status["VmRSS"] if "VmRSS" in status else _largest_resident_set()


def restart_peak() -> None:
    """Let `peak_bytes` count from here, where the device or the kernel allows it."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_bytes(accelerator: str) -> int:
    """Largest memory since `restart_peak`: allocated on the GPU, else the resident set."""
    if accelerator == "gpu":
        return int(torch.cuda.max_memory_allocated())
    return _status().get("VmHWM", _largest_resident_set())


def enforce(limit: int, accelerator: str) -> None:
    """From here on, allocations that would take the process beyond `limit` bytes raise; see `is_out_of_memory`.

    On a GPU torch's allocator is limited. On Linux the process may map so much more private memory as it is below the
    limit now (RLIMIT_DATA; address space, RLIMIT_AS, would also count reservations that cost nothing). What was mapped
    before and never touched may come on top, measured as 3 MiB. Processes that it starts inherit the number, each for
    itself. Elsewhere nothing is enforced.
    """
    if accelerator == "gpu":
        total = torch.cuda.mem_get_info()[1]
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total))
        return
    status = _status()
    if status:
        allowed = max(0, status["VmData"] + limit - status["VmRSS"])
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        soft = allowed if hard == resource.RLIM_INFINITY else min(allowed, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def release() -> None:
    """Lift what `enforce` set on the CPU: limits outlive a process that starts itself anew with `os.exec`."""
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or what caused it, means that memory ran out: torch's own, Python's, the operating system's, or
    a RuntimeError in which an allocator says so."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    if isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _OUT_OF_MEMORY):
        return True
    return error.__cause__ is not None and is_out_of_memory(error.__cause__)


def _cuda() -> tuple[int, int, str]:
    """Size and free bytes of the current GPU."""
    free, total = torch.cuda.mem_get_info()
    return total, free, "the GPU's memory"


def _host() -> list[tuple[int, int, str]]:
    """Size, free bytes and name of the machine's memory and of every control group above this process."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = machine
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        pass  # not Linux, or one before 3.14
    groups = control_groups()
    return [
        (machine, free, "the machine's memory"),
        *((size, size - used, "its cgroup's memory") for size, used in groups),
    ]


def control_groups(
    membership: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")
) -> list[tuple[int, int]]:
    """(limit, bytes in use) of every control group with a memory limit that this process lies in, v1 and v2.

    Of what is in use, file pages that the kernel can drop at once are not counted. A path that a container does not
    show is skipped; its nearest visible parent counts.
    """
    try:
        lines = [line.split(":", 2) for line in membership.read_text().splitlines()]
    except OSError:
        return []
    found = []
    for _, controllers, path in lines:
        if "memory" in controllers.split(","):
            top, size, used, dropped = (
                mount / "memory",
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_inactive_file",
            )
        elif controllers == "":
            top, size, used, dropped = mount, "memory.max", "memory.current", "inactive_file"
        else:
            continue
        group = top / path.strip("/")
        for folder in (group, *group.parents[: len(group.parts) - len(top.parts)]):
            try:
                limit = int((folder / size).read_text())
                stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                found.append((limit, int((folder / used).read_text()) - int(stat.get(dropped, 0))))
            except (OSError, ValueError):
                continue  # not visible here, or "max"
    return found


def _process_room() -> list[tuple[str, int]]:
    """How much more the process may map by its own limits (ulimit -v, ulimit -d)."""
    status = _status()
    pairs = (("RLIMIT_AS", "VmSize"), ("RLIMIT_DATA", "VmData"))
    limits = [(name, resource.getrlimit(getattr(resource, name))[0], status.get(used, 0)) for name, used in pairs]
    return [(name, max(0, soft - used)) for name, soft, used in limits if soft != resource.RLIM_INFINITY]


def _status() -> dict[str, int]:
    """Sizes in /proc/self/status, bytes; empty where there is none."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return {}
    fields = (line.split() for line in lines if line.startswith("Vm"))
    return {name.rstrip(":"): 1024 * int(kilobytes) for name, kilobytes, _ in fields}


def _largest_resident_set() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
