"""What each slot of a sweep gives its arms: a fair share of CPU threads, and GPUs of its own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping

from src.launch.options import LaunchOptions

# How long libgomp's threads spin before they sleep. By default they spin for ever, which costs a factor of 3 to 30 as
# soon as somebody else uses a core (measured, docs/log.md); on an idle machine the difference is within noise.
SPIN_COUNT = "1000"


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


def slot_environments(options: LaunchOptions, environment: Mapping[str, str], devices: int = 1) -> list[dict[str, str]]:
    """What each slot adds to the environment of its arms: a fair share of CPU threads, and GPUs of its own.

    Threads depend on `options.jobs` alone and not on how many arms are left, so that a repeated arm computes the same.
    An OMP_NUM_THREADS or a list of visible GPUs in `environment` is respected.

    Args:
        devices: processes of each arm, which share its threads.

    Raises:
        ValueError: the slots need more GPUs than are visible, or an arm more than its slot has.
    """
    threads = environment.get("OMP_NUM_THREADS") or str(max(1, usable_cores() // (options.jobs * devices)))
    spin = environment.get("GOMP_SPINCOUNT", SPIN_COUNT)
    slots = [{"OMP_NUM_THREADS": threads, "GOMP_SPINCOUNT": spin} for _ in range(options.jobs)]
    each = options.gpus_per_job
    if 0 < each < devices:
        raise ValueError(
            f"launcher.gpus_per_job={each} is less than hardware.devices={devices}, use launcher.gpus_per_job={devices}"
        )
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
