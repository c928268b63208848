"""From requested hardware to what is really used; nothing is substituted silently."""

from __future__ import annotations

import platform
import resource
import sys
from dataclasses import dataclass

import torch

from src.training.options import HardwareOptions


@dataclass(frozen=True)
class Hardware:
    """What an arm trains on. `device_name` is the GPU's model, or the CPU's architecture."""

    accelerator: str
    device_name: str
    precision: str
    threads: int


def resolve(options: HardwareOptions, nodes: int = 1) -> Hardware:
    """Choose accelerator, precision and threads.

    Args:
        nodes: machines that the arm's devices are spread over.

    Raises:
        ValueError: a device or a precision was asked for that this machine does not have.
    """
    accelerator = options.accelerator
    if accelerator == "auto":
        accelerator = "gpu" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if accelerator == "gpu" and not torch.cuda.is_available():
        raise ValueError(
            "hardware.accelerator='gpu' was asked for, but torch sees no CUDA device; use hardware=auto or hardware=cpu"
        )
    if accelerator == "mps" and not torch.backends.mps.is_available():
        raise ValueError(
            "hardware.accelerator='mps' was asked for, but this is no Apple GPU; use hardware=auto or hardware=cpu"
        )
    there = nodes * {"gpu": torch.cuda.device_count(), "mps": 1}.get(accelerator, options.devices)
    if options.devices > there:
        raise ValueError(
            f"hardware.devices={options.devices} was asked for, but torch sees {there} {accelerator} device(s); use"
            f" hardware.devices={there}"
        )
    threads = options.threads or torch.get_num_threads()
    name = torch.cuda.get_device_name() if accelerator == "gpu" else f"{accelerator} ({platform.machine()})"
    return Hardware(accelerator, name, _precision(options.precision, accelerator), threads)


def _precision(asked: str, accelerator: str) -> str:
    has_bf16 = accelerator == "gpu" and torch.cuda.is_bf16_supported(including_emulation=False)
    if asked == "auto":
        if accelerator != "gpu":
            return "32-true"
        return "bf16-mixed" if has_bf16 else "16-mixed"
    if asked == "16-mixed" and accelerator == "cpu":
        raise ValueError(
            "hardware.precision='16-mixed' does not exist on CPUs (Lightning would train in bf16 without saying so);"
            " use hardware.precision=32-true or bf16-mixed"
        )
    if asked == "bf16-mixed" and accelerator == "gpu" and not has_bf16:
        raise ValueError(
            "hardware.precision='bf16-mixed' is only emulated on this GPU; use hardware.precision=16-mixed"
        )
    return asked


def likely_precision(options: HardwareOptions) -> str:
    """The precision of `resolve`, also for a device that this machine does not have: then what such devices take."""
    try:
        return resolve(options).precision
    except ValueError:
        return options.precision if options.precision != "auto" else "bf16-mixed"


def peak_memory_bytes(accelerator: str) -> int:
    """Largest memory held so far: allocated on the GPU, else the resident set of the process."""
    if accelerator == "gpu":
        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
