"""How much memory an arm may hold, that it is enforced, and what running out of it looks like."""

from __future__ import annotations

import errno
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from src.training import limits
from src.training.limits import Limit, control_groups, held_bytes, is_out_of_memory, memory_limit
from src.training.options import HardwareOptions

ROOT = Path(__file__).resolve().parents[2]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux says and limits this")
GIB = 2**30


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 100 GiB, of which 60 are free, and a process that holds 1 GiB and has no limits of its own."""
    monkeypatch.setattr(limits, "_host", lambda: [(100 * GIB, 60 * GIB, "the machine's memory")])
    monkeypatch.setattr(limits, "held_bytes", lambda _: GIB)
    monkeypatch.setattr(limits, "_process_room", list)


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("asked", "share", "expected"),
    [
        (None, 1, Limit(61 * GIB, "what is free of the machine's memory")),
        (None, 2, Limit(45 * GIB, "90% of the machine's memory, shared by 2")),
        ("4GiB", 2, Limit(4 * GIB, "hardware.memory_limit")),
        ("200GiB", 1, Limit(61 * GIB, "what is free of the machine's memory")),
    ],
)
def test_the_smallest_limit_counts(asked: str | None, share: int, expected: Limit) -> None:
    assert memory_limit(HardwareOptions("test", memory_limit=asked), "cpu", share) == expected


@pytest.mark.usefixtures("machine")
def test_limits_of_control_group_and_process_count(monkeypatch: pytest.MonkeyPatch) -> None:
    group = (8 * GIB, 7 * GIB, "its cgroup's memory")
    monkeypatch.setattr(limits, "_host", lambda: [(100 * GIB, 60 * GIB, "the machine's memory"), group])
    assert memory_limit(HardwareOptions("test"), "cpu", 2) == Limit(
        int(0.9 * 4 * GIB), "90% of its cgroup's memory, shared by 2"
    )
    monkeypatch.setattr(limits, "_process_room", lambda: [("RLIMIT_AS", GIB)])
    assert memory_limit(HardwareOptions("test"), "cpu") == Limit(2 * GIB, "the process's RLIMIT_AS")


def test_a_gpu_is_asked_for_its_own_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (50 * GIB, 100 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 10 * GIB)
    assert memory_limit(HardwareOptions("test"), "gpu") == Limit(60 * GIB, "what is free of the GPU's memory")
    assert memory_limit(HardwareOptions("test"), "gpu", 3).bytes == 30 * GIB


def group(folder: Path, version: int, limit: str, used: int, cache: int) -> None:
    """A control group as the kernel shows it."""
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if version == 1 else ("memory.max", "memory.current")
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    stat = "total_inactive_file" if version == 1 else "inactive_file"
    (folder / "memory.stat").write_text(f"anon 5\n{stat} {cache}\n")


def test_every_control_group_above_the_process_counts(tmp_path: Path) -> None:
    membership = tmp_path / "cgroup"
    membership.write_text("0::/job/step\n")
    group(tmp_path / "v2" / "job" / "step", 2, "max", 1, 0)
    group(tmp_path / "v2" / "job", 2, "5000", 700, 200)
    assert control_groups(membership, tmp_path / "v2") == [(5000, 500)]

    membership.write_text("5:cpu,cpuacct:/a\n4:hugetlb,memory:/a/b\n0::/\n")
    group(tmp_path / "v1" / "memory" / "a", 1, "9000", 100, 0)  # b is not visible, as in a container
    group(tmp_path / "v1" / "memory", 1, "10000", 3000, 1000)
    assert control_groups(membership, tmp_path / "v1") == [(9000, 100), (10000, 2000)]
    assert control_groups(tmp_path / "missing", tmp_path) == []


@LINUX
def test_this_machine_is_read() -> None:
    limit = memory_limit(HardwareOptions("test"), "cpu")
    assert held_bytes("cpu") < limit.bytes < held_bytes("cpu") + 2**50
    assert 50 * 2**20 < held_bytes("cpu") <= limits.peak_bytes("cpu")


ENFORCED = """
import sys, numpy, torch
from src.training.limits import enforce, held_bytes, is_out_of_memory, peak_bytes
limit = held_bytes("cpu") + 300 * 2**20
enforce(limit, "cpu")
kept = torch.zeros(200 * 2**18)
def python(): return bytearray(200 * 2**20)
def array(): return numpy.zeros(200 * 2**17)
def tensor(): return torch.zeros(200 * 2**18)
def pieces(): return [torch.zeros(2**16) for _ in range(4096)]
for take in (python, array, tensor, pieces):
    try:
        take()
    except Exception as error:
        print(take.__name__, type(error).__name__, is_out_of_memory(error))
print((peak_bytes("cpu") - limit) >> 20)
"""


@LINUX
def test_a_process_cannot_go_beyond_an_enforced_limit() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ENFORCED], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    *taken, beyond = done.stdout.splitlines()
    assert taken == [
        "python MemoryError True",
        "array MemoryError True",
        "tensor RuntimeError True",
        "pieces RuntimeError True",
    ]
    assert int(beyond) <= 16  # MiB: pages of libraries that were mapped before


@LINUX
@pytest.mark.parametrize(("hard", "expected"), [(resource.RLIM_INFINITY, 900), (500, 500)])
def test_an_enforced_limit_is_what_may_still_be_mapped(
    hard: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "_status", lambda: {"VmData": 300, "VmRSS": 400})
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, hard))
    taken = []
    monkeypatch.setattr(resource, "setrlimit", lambda name, values: taken.append((name, values)))
    limits.enforce(1000, "cpu")
    limits.release()
    assert taken == [(resource.RLIMIT_DATA, (expected, hard)), (resource.RLIMIT_DATA, (hard, hard))]


def test_on_a_gpu_torch_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[float] = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (50 * GIB, 100 * GIB))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", shares.append)
    limits.enforce(25 * GIB, "gpu")
    limits.enforce(200 * GIB, "gpu")
    assert shares == [0.25, 1.0]


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: ..."),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 80000 bytes."),
        RuntimeError("std::bad_alloc"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"),
        caused(ValueError("training stopped"), MemoryError()),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_running_out_of_memory_looks_like(error: BaseException) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [RuntimeError("CUDA error: device-side assert triggered"), OSError(errno.ENOSPC, "No space left"), KeyError("x")],
    ids=lambda error: type(error).__name__,
)
def test_other_errors_are_not_taken_for_it(error: BaseException) -> None:
    assert not is_out_of_memory(error)
