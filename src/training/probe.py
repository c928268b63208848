"""What micro-batches of two sizes really take on this machine, measured in processes of their own, and the plan that
rests on it.

`python -m src.training.probe` reads a pickled `Probe` and writes what it measured; only `measure` starts it.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pickle
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from src.networks.build import build, network_cost, recompute_cost
from src.networks.fast import execution, use
from src.networks.table import Network
from src.training.hardware import Hardware
from src.training.limits import Limit, enforce, held_bytes, peak_bytes, restart_peak
from src.training.memory import memory_terms
from src.training.options import Recipe
from src.training.plan import (
    FIRST_USE,
    MEASURED_MARGIN,
    UNMEASURED_MARGIN,
    Line,
    MemoryPlan,
    Need,
    choose,
    evaluation_batch,
    first_fit,
    fitted,
    layouts,
    predicted_need,
)

ROOT = Path(__file__).resolve().parents[2]
PROBES = 2  # processes: how far they lie apart says how far they may be trusted
MEASURED_MACS = 4e11  # of one of them, at most, where it has more than two pictures: 10 s of a core at 40e9 a second
PATIENCE = 300  # seconds


@dataclass(frozen=True)
class Probe:
    """Forward and backward passes, two with `few` pictures and then one with `many`, never beyond `limit` bytes."""

    network: Network
    resolution: int
    classes: int
    recipe: Recipe
    hardware: Hardware
    recompute: bool
    few: int
    many: int
    limit: int


@dataclass(frozen=True)
class Measured:
    """Peaks of passes of both sizes: bytes beyond libraries, weights and gradients."""

    few: float
    many: float


def reckoned_kernels(hardware: Hardware, devices: int) -> str:
    """Kernels whose memory an arm needs: native ones do not know a norm whose statistics devices share, and leave its
    layers to the others."""
    shared = devices > 1 and hardware.sync_norm
    return "torch" if shared and hardware.kernels == "native" else hardware.kernels


def plan_memory(
    network: Network,
    resolution: int,
    classes: int,
    *,
    recipe: Recipe,
    hardware: Hardware,
    limit: Limit,
    devices: int = 1,
    batch: int | None = None,
) -> MemoryPlan:
    """Choose the layout in which an arm trains within `limit`.

    A prediction that fits with `UNMEASURED_MARGIN` and the whole batch at once is believed. Any other is corrected by
    probes, which leave this process untouched and together take about as long as four micro-batches, beside 2 s of
    start-up each.

    Call it when all that stays in memory (libraries, data) is loaded, and before the network is built.

    Args:
        network, resolution, classes: what is trained.
        limit: of one device, see `memory_limit`.
        devices: processes that share each batch.
        batch: pictures of a step, where there are fewer than the recipe's.

    Raises:
        ValueError: not even two pictures fit, or a device gets fewer than two.
    """
    batch = batch or recipe.batch_size
    hardware = replace(hardware, kernels=reckoned_kernels(hardware, devices))
    how = execution(hardware.kernels, hardware.precision.endswith("-mixed"))
    terms, cost = memory_terms(recipe, hardware.precision), network_cost(network, resolution, classes, how)
    recomputed = recompute_cost(network, resolution, classes, how)
    predicted = predicted_need(cost, recomputed, terms, held_bytes(hardware.accelerator))
    safe, layout = predicted.enlarged(UNMEASURED_MARGIN), layouts(batch, devices)[0]
    measured: dict[bool, Line] = {}
    if safe.bytes(layout.micro_batch(batch), False) > limit.bytes:
        for recompute in (False, True):
            hopeful = first_fit(batch, devices, limit.bytes, predicted, (recompute,))
            if hopeful is None and not recompute:
                continue  # where even the bare prediction calls for recomputation, the plain way need not be measured
            pictures = 2 if hopeful is None else hopeful.micro_batch(batch)
            pictures = max(2, min(pictures, int(MEASURED_MACS / (3 * cost.macs))))
            sizes = pictures // 2, pictures
            kept = (recomputed.peak if recompute else cost.saved) * terms.bytes_per_saved_element
            probe = Probe(network, resolution, classes, recipe, hardware, recompute, *sizes, limit.bytes)
            found = measured_line(probe, kept)
            if found is not None:
                held = predicted.way(recompute).constant - FIRST_USE
                line = replace(found, constant=held + found.constant)
                measured[recompute] = replace(line, doubt=0.0)
                safe = _with(safe, line.enlarged(MEASURED_MARGIN), recompute)
            fit = first_fit(batch, devices, limit.bytes, safe)
            if fit is not None and not fit.recompute:
                break
        layout = choose(batch, devices, limit.bytes, safe)
    pictures, recompute = layout.micro_batch(batch), layout.recompute
    return MemoryPlan(
        layout,
        evaluation_batch(limit.bytes, safe),
        pictures,
        predicted.bytes(pictures, recompute),
        measured[recompute].bytes(pictures) if recompute in measured else None,
        limit.bytes,
        limit.source,
        hardware.kernels,
    )


def _with(need: Need, line: Line, recompute: bool) -> Need:
    """`need` with another line for one of the two ways of training."""
    return replace(need, recomputed=line) if recompute else replace(need, plain=line)


def measured_line(probe: Probe, kept: float) -> Line | None:
    """The line through what `PROBES` processes measure, with ever fewer pictures where they run out of memory; None if
    even one and two pictures do."""
    peaks: list[tuple[int, float]] = []
    while len(peaks) < 2 * PROBES:
        found = measure(probe)
        if found is not None:
            peaks += [(probe.few, found.few), (probe.many, found.many)]
        elif probe.many > 2:
            fewer = max(2, 2 * probe.many // 3)
            peaks, probe = [], replace(probe, few=fewer // 2, many=fewer)
        else:
            return None
    return fitted(peaks, kept)


def measure(probe: Probe) -> Measured | None:
    """Run a probe in a fresh process; None if it runs out of memory, or for any other reason does not end well."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "src.training.probe"]
    with contextlib.suppress(subprocess.TimeoutExpired):
        done = subprocess.run(
            command, input=pickle.dumps(probe), env=environment, capture_output=True, timeout=PATIENCE, check=False
        )
        if done.returncode == 0:
            return Measured(**json.loads(done.stdout))
    return None


def run(probe: Probe) -> Measured:
    """Measure in this process; weights and their gradients are taken off.

    The first pass of a process finds fresh memory, the next ones what it has left in pieces: up to 1.5 times the peak.
    """
    hardware, recipe = probe.hardware, probe.recipe
    torch.set_num_threads(hardware.threads)
    if probe.recompute:  # checkpointing loads it at its first use; in an arm's process Lightning has done so
        importlib.import_module("torch._dynamo")
    enforce(probe.limit, hardware.accelerator)
    before = held_bytes(hardware.accelerator)
    device = {"gpu": "cuda"}.get(hardware.accelerator, hardware.accelerator)
    network = build(probe.network, probe.classes, dropout=recipe.dropout, drop_path=recipe.drop_path)
    network = network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    use(network, hardware.kernels)
    network.recompute = probe.recompute
    half = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(hardware.precision)
    peaks = []
    for pictures in (probe.few, probe.few, probe.many):
        restart_peak()
        images = torch.rand(pictures, 3, probe.resolution, probe.resolution, device=device)
        labels = torch.zeros(pictures, dtype=torch.long, device=device)
        with torch.autocast(device, half) if half else contextlib.nullcontext():
            logits = network(images.contiguous(memory_format=torch.channels_last)).logits
            loss = F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
        loss.backward()
        del images, logits, loss
        peaks.append(peak_bytes(hardware.accelerator))
    weights = sum(2 * p.numel() * p.element_size() for p in network.parameters())
    first, second, many = (peak - before - weights for peak in peaks)
    return Measured(max(first, second), many)


if __name__ == "__main__":
    json.dump(asdict(run(pickle.load(sys.stdin.buffer))), sys.stdout)
