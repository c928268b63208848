"""Requested hardware against what the machine has; CUDA is acted, except in the test marked gpu."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from src.training.hardware import Hardware, peak_memory_bytes, resolve
from src.training.options import HardwareOptions

Machine = Callable[..., None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Act a machine: with or without CUDA, bf16, mps."""

    def act(*, cuda: bool = False, bf16: bool = False, mps: bool = False, gpus: int = 1) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda *device: "Acted GPU")
        # As on a real GPU: every one can emulate bf16, which is no reason to choose it.
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16 or including_emulation
        )
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    act()
    return act


def options(accelerator: str = "auto", precision: str = "auto", threads: int | None = 2) -> HardwareOptions:
    return HardwareOptions("x", accelerator=accelerator, precision=precision, threads=threads)


def test_auto_on_a_machine_without_gpu_is_the_cpu_in_full_precision(machine: Machine) -> None:
    assert resolve(options()) == Hardware("cpu", f"cpu ({platform.machine()})", "32-true", 2)


@pytest.mark.parametrize("accelerator", ["auto", "gpu"])
@pytest.mark.parametrize(("bf16", "precision"), [(True, "bf16-mixed"), (False, "16-mixed")])
def test_a_gpu_is_used_in_the_mixed_precision_it_has(
    machine: Machine, accelerator: str, bf16: bool, precision: str
) -> None:
    machine(cuda=True, bf16=bf16, mps=True)
    assert resolve(options(accelerator)) == Hardware("gpu", "Acted GPU", precision, 2)


def test_the_cpu_is_used_when_asked_for_although_there_is_a_gpu(machine: Machine) -> None:
    machine(cuda=True, bf16=True)
    assert resolve(options("cpu")) == Hardware("cpu", f"cpu ({platform.machine()})", "32-true", 2)


def test_more_devices_than_there_are_are_refused(machine: Machine) -> None:
    machine(cuda=True, bf16=True, gpus=2)
    assert resolve(HardwareOptions("x", devices=2)).accelerator == "gpu"
    with pytest.raises(ValueError, match=r"hardware\.devices=3 .* sees 2 gpu device\(s\); use hardware\.devices=2"):
        resolve(HardwareOptions("x", devices=3))
    machine(mps=True)
    with pytest.raises(ValueError, match=r"hardware\.devices=2 .* sees 1 mps"):
        resolve(HardwareOptions("x", devices=2))
    assert resolve(HardwareOptions("x", accelerator="cpu", devices=5)).accelerator == "cpu"


@pytest.mark.parametrize("accelerator", ["auto", "mps"])
def test_an_apple_gpu_is_used_in_full_precision(machine: Machine, accelerator: str) -> None:
    machine(mps=True)
    assert resolve(options(accelerator)) == Hardware("mps", f"mps ({platform.machine()})", "32-true", 2)


@pytest.mark.parametrize(
    ("accelerator", "has"), [("gpu", {}), ("gpu", {"mps": True}), ("mps", {}), ("mps", {"cuda": True})]
)
def test_a_device_that_is_not_there_is_refused(machine: Machine, accelerator: str, has: dict[str, bool]) -> None:
    machine(**has)
    with pytest.raises(ValueError, match=rf"hardware\.accelerator='{accelerator}' .*use hardware=auto or hardware=cpu"):
        resolve(options(accelerator))


@pytest.mark.parametrize("accelerator", ["auto", "cpu"])
def test_half_precision_on_a_cpu_is_refused(machine: Machine, accelerator: str) -> None:
    with pytest.raises(ValueError, match=r"hardware\.precision='16-mixed' .*hardware\.precision=32-true or bf16-mixed"):
        resolve(options(accelerator, "16-mixed"))


@pytest.mark.parametrize("accelerator", ["auto", "gpu"])
def test_emulated_bf16_is_refused(machine: Machine, accelerator: str) -> None:
    machine(cuda=True, bf16=False)
    with pytest.raises(ValueError, match=r"hardware\.precision='bf16-mixed' .*hardware\.precision=16-mixed"):
        resolve(options(accelerator, "bf16-mixed"))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_a_precision_that_exists_is_taken_as_asked(machine: Machine, precision: str) -> None:
    machine(cuda=True, bf16=True)
    assert resolve(options("gpu", precision)).precision == precision
    if precision != "16-mixed":
        assert resolve(options("cpu", precision)).precision == precision


def test_threads_are_those_asked_for_or_what_torch_was_given(machine: Machine) -> None:
    torch.set_num_threads(2)
    assert resolve(options(threads=5)).threads == 5
    assert resolve(options(threads=None)).threads == 2


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the independent count is Linux's")
def test_peak_memory_is_the_largest_resident_set_in_bytes() -> None:
    lines = Path("/proc/self/status").read_text().splitlines()
    (high_water,) = (int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    assert peak_memory_bytes("cpu") == pytest.approx(high_water, rel=0.02)


def test_peak_memory_of_a_gpu_is_what_torch_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 12345)
    assert peak_memory_bytes("gpu") == 12345
