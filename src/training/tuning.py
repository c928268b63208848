"""Which arithmetic, kernels and number of threads train fastest on this CPU: measured over a few steps in a process of
its own, remembered for the machine, and settled once for all arms of a study.

`python -m src.training.tuning` reads a pickled `Trial` and writes seconds; only `measure` starts it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import math
import os
import pickle
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from src.cache import cache_folder
from src.data.storage import make_once
from src.kernels import native
from src.kernels.allocator import keep_memory
from src.networks.build import build, network_cost
from src.networks.fast import KERNELS, use
from src.networks.table import Network
from src.training.hardware import Hardware
from src.training.options import HardwareOptions

LOG = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[2]
FILE = "hardware.json"  # in the folder of a study: what was settled for its arms
VERSION = 2  # of what is measured: raise it when old measurements should be forgotten

# A gain must be worth what it changes: bf16 rounds, fewer threads leave cores idle, kernels are code of ours.
LEAST_GAIN = {"precision": 1.10, "kernels": 1.03, "threads": 1.05}
STEP_SECONDS = 0.4  # of a plain step at which a trial aims by its number of pictures
PACE = 40e9  # multiply-adds a second by which it aims: two cores reach 20 to 60 billion
CLASSES = 10  # of a trial: they change next to nothing
ROUNDS = 7
LONGEST = 12.0  # seconds after which a trial starts no further round
BUSY = 0.75  # processes a core that want to run, above which other work is in the way
PATIENCE = 180  # seconds for the process of a trial


@dataclass(frozen=True, order=True)
class Setting:
    """One way to take a step. precision: 32-true or bf16-mixed; kernels: see `src/networks/fast.py`."""

    precision: str
    kernels: str
    threads: int

    def __str__(self) -> str:
        return f"{self.precision}, {self.kernels} kernels, {self.threads} thread(s)"


@dataclass(frozen=True)
class Trial:
    """Steps of `pictures` pictures, to be timed in every one of `settings`."""

    network: Network
    resolution: int
    pictures: int
    settings: tuple[Setting, ...]


@dataclass(frozen=True)
class Settled:
    """What all arms of a study train with, and why.

    cores: those that an arm had when threads were chosen.
    milliseconds: of a step of `pictures` pictures, by setting, the plainest first.
    load: processes that wanted to run on each core when timing began.
    """

    setting: Setting
    cores: int
    pictures: int
    milliseconds: dict[str, float]
    load: float = 0.0

    def __str__(self) -> str:
        if str(self.setting) not in self.milliseconds:
            return str(self.setting)
        plain, chosen = next(iter(self.milliseconds.values())), self.milliseconds[str(self.setting)]
        return f"{self.setting}: steps at {plain / chosen:.2f} times the speed of plain torch in float32"


def settle(
    hardware: Hardware,
    options: HardwareOptions,
    folder: Path,
    network: Network,
    resolution: int,
    batch: int,
) -> Hardware:
    """`hardware` with what was left to choose chosen: once for the study in `folder`, by the first arm that asks.

    Choices are those of the base network, so that no arm is trained in another arithmetic than the others. On GPUs
    there is nothing to measure here: kernels are torch's own, precision follows from the device.

    Args:
        network, resolution: the base of the study.
        batch: pictures of a step.
    """
    if hardware.accelerator != "cpu":
        return hardware
    asked = _settings(hardware, options)
    if len(asked) == 1:
        settled = Settled(asked[0], hardware.threads, 0, {})
    else:
        affordable = max(4, round(STEP_SECONDS * PACE / (3 * network_cost(network, resolution, CLASSES).macs)))
        pictures = 2 ** int(math.log2(min(batch, affordable)))  # near sizes share what is remembered
        trial = Trial(network, resolution, pictures, tuple(asked))
        path = make_once(folder / FILE, lambda target: _write(target, remembered(trial, hardware.threads)))
        settled = _read(path)
    return apply(hardware, options, settled)


def apply(hardware: Hardware, options: HardwareOptions, settled: Settled) -> Hardware:
    """What was settled, as far as it was left to choose and as this machine can do it; what cannot be is said."""
    setting, reason = settled.setting, str(settled)
    precision = setting.precision if options.precision == "auto" else hardware.precision
    kernels = setting.kernels if options.kernels == "auto" else options.kernels
    if kernels == "native" and native.load() is None:
        kernels, reason = "torch", f"the study's native kernels cannot be had here: {native.why_not()}"
    same = options.threads is None and settled.cores == hardware.threads
    threads = setting.threads if same else hardware.threads
    return dataclasses.replace(hardware, precision=precision, kernels=kernels, threads=threads, reason=reason)


def _settings(hardware: Hardware, options: HardwareOptions) -> list[Setting]:
    """What may be chosen from, all cores at work; the first is the plainest.

    Raises:
        ValueError: native kernels were asked for and cannot be had.
    """
    there = options.kernels in ("auto", "native") and native.load() is not None
    if options.kernels == "native" and not there:
        raise ValueError(
            f"hardware.kernels=native was asked for, but they cannot be had: {native.why_not()}; use"
            " hardware.kernels=auto or torch"
        )
    kernels = (
        [name for name in KERNELS if name != "native" or there] if options.kernels == "auto" else [options.kernels]
    )
    precisions = ["32-true", "bf16-mixed"] if options.precision == "auto" else [hardware.precision]
    return [Setting(precision, kernel, hardware.threads) for precision in precisions for kernel in kernels]


def choose(seconds: Mapping[Setting, float]) -> Setting:
    """The fastest setting, but a plainer one where the gain is not worth the change (`LEAST_GAIN`).

    Kernels are chosen within each arithmetic, then the arithmetic, then the number of threads. `seconds` are in the
    order of `Setting`s from the plainest on.
    """
    chosen = list(seconds)
    for name in ("kernels", "precision", "threads"):
        groups: dict[tuple[object, ...], list[Setting]] = {}
        for setting in chosen:
            rest = tuple(value for key, value in asdict(setting).items() if key in _LATER[name])
            groups.setdefault(rest, []).append(setting)
        chosen = [_worth(group, seconds, LEAST_GAIN[name]) for group in groups.values()]
    return chosen[0]


_LATER = {"kernels": ("precision", "threads"), "precision": ("threads",), "threads": ()}


def _worth(settings: Sequence[Setting], seconds: Mapping[Setting, float], gain: float) -> Setting:
    chosen = settings[0]
    for setting in settings[1:]:
        if seconds[chosen] > gain * seconds[setting]:
            chosen = setting
    return chosen


class UnmeasuredError(Exception):
    """Why the settings of a trial could not be timed, in a line."""


def remembered(trial: Trial, cores: int) -> Settled:
    """What was measured of this trial on this machine before, or is measured now.

    The plainest setting is taken where it cannot be measured. That is said, and forgotten: the next study tries again.
    What was measured beside other work, where threads look worse than they are, is measured again once there is none.
    """
    key = repr((VERSION, trial, cores, torch.__version__, _sources(), _processor()))
    path = cache_folder() / "tuning" / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
    try:
        if path.exists() and _read(path).load > BUSY >= _load(cores):
            path.unlink(missing_ok=True)
        return _read(make_once(path, lambda target: _write(target, measure(trial, cores))))
    except UnmeasuredError as failure:
        LOG.warning(f"{failure}: this study trains with {trial.settings[0]}")
        return Settled(trial.settings[0], cores, trial.pictures, {})


def measure(trial: Trial, cores: int) -> Settled:
    """Time the settings in a fresh process.

    Raises:
        UnmeasuredError: the process did not end well.
    """
    load = round(_load(cores), 2)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "src.training.tuning"]
    try:
        done = subprocess.run(
            command, input=pickle.dumps(trial), env=environment, capture_output=True, timeout=PATIENCE, check=False
        )
    except subprocess.TimeoutExpired:
        raise UnmeasuredError(f"timing steps took more than {PATIENCE} s") from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        last = said[-1] if said else "it said nothing"
        raise UnmeasuredError(f"timing steps failed with exit code {done.returncode} ({last})")
    seconds = {Setting(**setting): found for setting, found in json.loads(done.stdout)}
    milliseconds = {str(setting): round(1e3 * found, 3) for setting, found in seconds.items()}
    return Settled(choose(seconds), cores, trial.pictures, milliseconds, load)


def _load(cores: int) -> float:
    """Processes that wanted to run in the last minute, for each core."""
    return os.getloadavg()[0] / cores


def run(trial: Trial) -> dict[Setting, float]:
    """Seconds of a training step (forward and backward) by setting, the median of interleaved rounds."""
    keep_memory()
    torch.manual_seed(0)
    network = build(trial.network, CLASSES).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.rand(trial.pictures, 3, trial.resolution, trial.resolution)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.arange(trial.pictures) % CLASSES

    def step(setting: Setting) -> float:
        torch.set_num_threads(setting.threads)
        use(network, setting.kernels)
        network.zero_grad(set_to_none=True)
        began = time.perf_counter()
        half = setting.precision == "bf16-mixed"
        with torch.autocast("cpu", torch.bfloat16) if half else contextlib.nullcontext():
            loss = F.cross_entropy(network(images).logits, labels)
        loss.backward()
        return time.perf_counter() - began

    seconds = _rounds(trial.settings, step)
    chosen = choose(seconds)
    if chosen.threads > 1:
        fewer = dataclasses.replace(chosen, threads=chosen.threads // 2)
        again = _rounds((chosen, fewer), step)
        seconds[fewer] = again[fewer] * seconds[chosen] / again[chosen]
    return seconds


def _rounds(settings: Sequence[Setting], step: Callable[[Setting], float]) -> dict[Setting, float]:
    began = time.perf_counter()
    times: dict[Setting, list[float]] = {setting: [] for setting in settings}
    for number in range(1 + ROUNDS):
        for setting in settings:
            found = step(setting)
            if number > 0:  # the first round warms up
                times[setting].append(found)
        if number > 1 and time.perf_counter() - began > LONGEST:
            break
    return {setting: statistics.median(found) for setting, found in times.items()}


def _sources() -> str:
    """Hash of the kernels' code: after a change of it they are measured again."""
    folder = Path(native.__file__).parent
    total = hashlib.sha256()
    for path in sorted([*folder.glob("*.py"), *folder.glob("*.c")]):
        total.update(path.read_bytes())
    return total.hexdigest()


def _processor() -> str:
    """Model of the CPU, where the operating system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "; ".join(dict.fromkeys(line for line in lines if line.startswith(("model name", "flags"))))


def _write(path: Path, settled: Settled) -> None:
    path.write_text(json.dumps(asdict(settled), indent=1) + "\n")


def _read(path: Path) -> Settled:
    """What `_write` left.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        values = json.loads(path.read_text())
        return Settled(**{**values, "setting": Setting(**values["setting"])})
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}); remove it, and it is measured again") from error


if __name__ == "__main__":
    json.dump([[asdict(setting), found] for setting, found in run(pickle.load(sys.stdin.buffer)).items()], sys.stdout)
