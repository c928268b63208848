"""From requested hardware to what is really used; nothing is substituted silently."""

from __future__ import annotations

import platform
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from src.guards import named
from src.training.options import HardwareOptions


@dataclass(frozen=True)
class Hardware:
    """What an arm trains on, and how.

    device_name: the GPU's model, or the CPU's architecture.
    precision: 32-true, tf32, bf16-mixed or 16-mixed.
    kernels: what computes the step on CPUs, see `src/networks/fast.py`. reason: why precision, kernels and threads are
        what they are, where that was measured.
    sync_norm: whether batch norm shares its statistics among several devices.
    compile: how a GPU takes its steps: eager, graphs, compile, or auto where that is still to be measured.
    deterministic: whether a GPU may only take kernels that repeat to the bit.
    """

    accelerator: str
    device_name: str
    precision: str
    threads: int
    kernels: str = "plain"
    reason: str = ""
    sync_norm: bool = True
    compile: str = "eager"
    deterministic: bool = False


def resolve(options: HardwareOptions, nodes: int = 1) -> Hardware:
    """Choose accelerator, precision, threads, and how a step is taken.

    Args:
        nodes: machines that the arm's devices are spread over.

    Raises:
        ValueError: a device, a precision or a way to take steps was asked for that this machine does not have.
    """
    accelerator = options.accelerator
    if accelerator == "auto":
        accelerator = "gpu" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if accelerator == "gpu" and not torch.cuda.is_available():
        raise ValueError(
            named(
                "G15",
                "hardware.accelerator='gpu' was asked for, but torch sees no CUDA device; use hardware=auto or"
                " hardware=cpu",
            )
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
    return Hardware(
        accelerator,
        name,
        _precision(options.precision, accelerator),
        threads,
        kernels=_kernels(options.kernels, accelerator),
        sync_norm=options.sync_norm is not False,
        compile=_steps(options, accelerator),
        deterministic=options.deterministic and accelerator == "gpu",
    )


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
    if asked == "tf32" and not (accelerator == "gpu" and torch.cuda.is_tf32_supported()):
        where = "this GPU" if accelerator == "gpu" else f"the accelerator {accelerator}"
        raise ValueError(
            f"hardware.precision='tf32' exists on NVIDIA GPUs from Ampere (2020) on, and {where} would compute in plain"
            " float32 without saying so; use hardware.precision=32-true"
        )
    if asked == "bf16-mixed" and accelerator == "gpu" and not has_bf16:
        raise ValueError(
            "hardware.precision='bf16-mixed' is only emulated on this GPU; use hardware.precision=16-mixed"
        )
    return asked


def _kernels(asked: str, accelerator: str) -> str:
    """What is known before anything is measured; `src/training/tuning.py` chooses where that is left to it.

    Raises:
        ValueError: kernels for CPUs were asked for elsewhere.
    """
    if asked in ("torch", "native") and accelerator != "cpu":
        raise ValueError(
            f"hardware.kernels={asked!r} are for CPUs, and the accelerator is {accelerator}; use hardware.kernels=auto"
        )
    return "plain" if asked == "auto" else asked


def _steps(options: HardwareOptions, accelerator: str) -> str:
    """How steps are taken, or `auto` where it is to be measured.

    Raises:
        ValueError: a way was asked for that exists on one GPU only.
    """
    asked = options.compile
    if accelerator == "gpu" and options.devices == 1:
        return asked
    if asked in ("graphs", "compile"):
        reason = {
            "gpu": f"the {options.devices} devices of an arm exchange gradients while the backward pass runs",
            "cpu": "on CPUs compiling was measured to slow training down to 0.7 to 0.8 of its speed",
        }.get(accelerator, f"the accelerator {accelerator} has no CUDA graphs")
        raise ValueError(f"hardware.compile={asked!r} is for one GPU: {reason}; use hardware.compile=auto")
    return "eager"


def likely_precision(options: HardwareOptions) -> str:
    """The precision of `resolve`, also for a device that this machine does not have: then what such devices take."""
    try:
        return resolve(options).precision
    except ValueError:
        return options.precision if options.precision != "auto" else "bf16-mixed"


def unused_gpu(hardware: Hardware, device: Path = Path("/dev/nvidia0")) -> str:
    """What must be said where an NVIDIA GPU is there and torch trains on the CPU since it cannot use it; else nothing.

    A CPU build of torch beside a GPU is easily installed, and says nothing itself.
    """
    if hardware.accelerator != "cpu" or torch.cuda.is_available() or not device.exists():
        return ""
    built = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is built without CUDA"
    sentence = f"trained on the CPU beside an NVIDIA GPU, since torch {torch.__version__} {built} and sees none"
    return named("G15", sentence)


def peak_memory_bytes(accelerator: str) -> int:
    """Largest memory held so far: allocated on the GPU, else the resident set of the process."""
    if accelerator == "gpu":
        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
