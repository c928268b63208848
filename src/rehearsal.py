"""How long the arms of a sweep will take on this machine: each does for seconds what it would do for hours.

`python -m src.rehearsal FILE` reads a pickled `Rehearsal` and writes what it timed; only `measure` starts it, as many
at once as arms would be trained at once, each with the environment of its slot. A take is the life of an arm in small:
pictures, audit, training steps with averages and checkpoints, validation, evaluation, activation maps. Nothing is
trained to its end, the test split stays sealed, W&B is told nothing, and what is written goes with a temporary folder.
Takes of all arms alternate, so that what else the machine does falls on all of them alike.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import os
import pickle
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image

from src.cache import cache_folder
from src.choices import parse_bytes
from src.config import Study
from src.data.module import ImageDataModule
from src.data.options import DataOptions
from src.data.sampling import EpochBatches, epoch_lengths
from src.data.sources import check_available, prepare
from src.kernels.allocator import keep_memory
from src.launch.processes import RANK_VARIABLES
from src.launch.slots import slot_environments, usable_cores
from src.messages import UserMistake, mistakes
from src.networks.build import ConvNet, build
from src.networks.fast import use
from src.outcome import explain
from src.planning import Arm, plan
from src.record import write_atomically
from src.report.forecast import ArmForecast
from src.scaling import audit
from src.study import CONF, ROOT, code_revision
from src.tracking.wandb_run import Tracker
from src.training import tuning
from src.training.fit import Fit, evaluate, fit, save_predictions
from src.training.hardware import Hardware, resolve
from src.training.layout import Layout
from src.training.limits import memory_limit
from src.training.options import Recipe
from src.training.plan import MemoryPlan
from src.training.probe import plan_memory

VERSION = 1  # of what is timed: raise it when old timings should be forgotten

FIRST_STEPS, MOST_STEPS = 8, 80  # of a whole take, and at most of a later one
SHORTEST = 3  # steps with which weight averaging is seen to act
LATER_ROUNDS = 3
MOST_PICTURES = 512  # of validation
FILES = ("folder", "tiny_imagenet")  # kinds of data that are decoded from files, the first time or every time
READ_BATCHES = 16  # training pictures that are read where they lie in files, and made where there are none
NOISE_BYTES = 2**28  # of pictures of noise, at most, but for one batch
# Multiply-adds a second by which takes are sized before anything is timed.
PACE = {"cpu": 1e10, "gpu": 1e12, "mps": 1e11}
LONGEST_STEP = 1.5  # seconds at which a step aims by fewer pictures, where the recipe's would take longer
CALM_RATE = 0.01  # learning rate at which a few steps do not diverge
ARM, PREDICTIONS = "arm", "predictions.npz"  # folder and file of what a take writes
PATIENCE = 240  # seconds beyond its budget after which a rehearsal is given up

# Seconds that a run in W&B adds to an arm or a comparison, measured; an online one waits for its server besides.
WANDB_SECONDS = {"disabled": 0.0, "offline": 1.2, "online": 3.0}
WANDB_BYTES = 2**18  # of its local files, beside the maps' pictures
REPORT_SECONDS = 2.0  # of the comparison when all arms have ended


@dataclass(frozen=True)
class Rehearsal:
    """What to rehearse in `budget` seconds: distinct arms, and the sizes of the splits of each one's data.

    answer: file to write what was timed. spawned: when the process was started, seconds since the epoch.
    """

    studies: tuple[Study, ...]
    sizes: tuple[Mapping[str, int], ...]
    budget: float
    answer: Path
    spawned: float


@dataclass(frozen=True)
class Timing:
    """What one arm takes, in seconds unless said otherwise, whatever its number of epochs.

    overhead: all of its program that no epoch repeats, with what the first epoch does beside steps and pictures.
    epoch: what each further epoch does beside them. evaluation: the same for the test split.
    step: an optimizer step. picture: a picture of validation or test.
    memory_bytes: predicted peak, on each device. layout: how a step is taken, in words.
    fixed_bytes: of checkpoints and maps on disk. picture_bytes: of predictions, for each picture of both splits.
    steps: that were timed; 0: none was, and all is reckoned from another arm by its MACs.
    pictures: of a timed step, on each device: fewer than the recipe's where those would have taken too long.
    """

    overhead: float
    epoch: float
    evaluation: float
    step: float
    picture: float
    memory_bytes: int
    layout: str
    fixed_bytes: int
    picture_bytes: float
    steps: int
    pictures: int


@dataclass(frozen=True)
class Timings:
    """What a rehearsal found.

    start, close: wall time of an arm's process before and after the time that its record counts.
    hardware: what trained, in words. noise: pictures were noise, since there are none on this machine.
    load: processes a core that wanted to run when it began, other people's, by the system's average of a minute.
    taken: ISO date and time, UTC. seconds: that the rehearsal took. arms: in the order of its studies.
    """

    start: float
    close: float
    accelerator: str
    hardware: str
    noise: bool
    load: float
    taken: str
    seconds: float
    arms: tuple[Timing, ...]

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Timings:
        """What `dataclasses.asdict` made of it.

        Raises:
            TypeError: it is of another version.
        """
        return cls(**{**values, "arms": tuple(Timing(**arm) for arm in values["arms"])})


def measure(
    studies: Sequence[Study], sizes: Sequence[Mapping[str, int]], budget: float, *, fresh: bool = False
) -> Timings:
    """Rehearse distinct arms in processes of their own, or remember what was timed on this machine.

    Args:
        studies: one of each arm, whatever its seed. sizes: of the splits of each one's data.
        budget: seconds for all of it.
        fresh: time again what is remembered.

    Raises:
        UserMistake: an arm would be refused, with the sentence that the arm would end with.
        ValueError: a rehearsal did not end in time.
        RuntimeError: one did not end well; holds the end of its output.
    """
    launcher, devices = studies[0].launcher, max(study.hardware.devices for study in studies)
    slots = slot_environments(launcher, os.environ, devices)
    path = cache_folder() / "rehearsals" / f"{_key(studies, slots, budget)}.json"
    if path.exists() and not fresh:
        try:
            return Timings.from_mapping(json.loads(path.read_text()))
        except (ValueError, KeyError, TypeError):
            pass  # half a file, or one of another version: it is timed again
    with tempfile.TemporaryDirectory(prefix="scalestudy-") as place:
        found = _combine(_run(studies, sizes, budget, slots, Path(place)))
    if not found.noise:  # the pictures may be here tomorrow
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(asdict(found), indent=1) + "\n")
    return found


def _key(studies: Sequence[Study], slots: Sequence[Mapping[str, str]], budget: float) -> str:
    """Of all that the seconds of a step depend on; the number of epochs is left out."""
    arms = [
        (
            s.scaling,
            s.network,
            s.budget,
            s.data,
            dataclasses.replace(s.recipe, epochs=1),
            s.hardware,
            s.cam_pictures,
            s.cam_scores,
            s.cam_method,
        )
        for s in studies
    ]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    there = (platform.node(), platform.machine(), visible, torch.__version__, code_revision())
    return hashlib.sha256(repr((VERSION, arms, slots, budget, there)).encode()).hexdigest()[:16]


def _run(
    studies: Sequence[Study],
    sizes: Sequence[Mapping[str, int]],
    budget: float,
    slots: Sequence[Mapping[str, str]],
    place: Path,
) -> list[Timings]:
    """One rehearsal in each slot, all at once."""
    keep = {name: value for name, value in os.environ.items() if name not in RANK_VARIABLES}
    keep["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    started = []
    for number, slot in enumerate(slots):
        asked, answer, log = (place / f"{number}.{kind}" for kind in ("pickle", "json", "log"))
        asked.write_bytes(pickle.dumps(Rehearsal(tuple(studies), tuple(sizes), budget, answer, time.time())))
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "src.rehearsal", str(asked)],
                env={**keep, **slot},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        started.append((process, answer, log))
    found = []
    try:
        for process, answer, log in started:
            try:
                process.wait(budget + PATIENCE)
            except subprocess.TimeoutExpired as error:
                raise ValueError(
                    f"a rehearsal did not end within {budget + PATIENCE:.0f} s; give it more with --seconds, or plan a"
                    " smaller network"
                ) from error
            ended = time.time()
            told: dict[str, Any] = json.loads(answer.read_text()) if answer.exists() else {}
            if "mistake" in told:
                raise UserMistake(told["mistake"])
            if process.returncode or not told:
                tail = "\n".join(log.read_text(errors="replace").strip().splitlines()[-15:])
                raise RuntimeError(f"a rehearsal ended with exit code {process.returncode}:\n{tail}")
            found.append(Timings.from_mapping({**told, "close": ended - told["close"]}))
    finally:
        for process, _, _ in started:
            if process.poll() is None:
                process.kill()
                process.wait()
    return found


def _combine(found: Sequence[Timings]) -> Timings:
    """Means over the slots: some may have been slower."""
    if len(found) == 1:
        return found[0]

    def mean(parts: Sequence[Any], name: str) -> Any:
        values = [getattr(part, name) for part in parts]
        return statistics.fmean(values) if isinstance(values[0], float) else values[0]

    arms = [
        Timing(**{f.name: mean(arms, f.name) for f in dataclasses.fields(Timing)})
        for arms in zip(*(one.arms for one in found), strict=True)
    ]
    merged = {f.name: mean(found, f.name) for f in dataclasses.fields(Timings)}
    return Timings(**{**merged, "arms": tuple(arms)})


def forecast_arm(arm: Arm, timing: Timing, timings: Timings, sizes: Mapping[str, int], mode: str) -> ArmForecast:
    """Seconds, memory and disk of one run.

    Args:
        sizes: of the data's splits. mode: what W&B will be granted: online, offline or disabled.
    """
    lengths = run_lengths(arm, sizes)
    steps, judged = sum(lengths), sizes["val"] + sizes["test"]
    seconds = (
        timing.overhead
        + steps * timing.step
        + (len(lengths) - 1) * timing.epoch
        + timing.evaluation
        + (len(lengths) * sizes["val"] + judged) * timing.picture
        + WANDB_SECONDS[mode]
    )
    macs = arm.scaled.cost.macs
    batch = min(arm.study.recipe.batch_size, sizes["train"])
    return ArmForecast(
        name=arm.name,
        arm=arm.scaled.arm,
        budget=arm.scaled.budget,
        seed=arm.study.seed,
        macs=int(macs),
        train_macs=int(3 * macs * steps * batch),
        steps=steps,
        step_seconds=timing.step,
        seconds=seconds,
        process_seconds=timings.start + seconds + timings.close,
        memory_bytes=timing.memory_bytes,
        disk_bytes=round(timing.fixed_bytes + judged * timing.picture_bytes + WANDB_BYTES * (mode != "disabled")),
        basis=_basis(timing, batch // arm.study.hardware.devices),
    )


def _basis(timing: Timing, batch: int) -> str:
    if not timing.steps:
        return "reckoned by its MACs"
    fewer = f" of {timing.pictures} pictures" if timing.pictures < batch else ""
    return f"{timing.steps} step{'s' * (timing.steps > 1)}{fewer}"


def run_lengths(arm: Arm, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Optimizer steps of each epoch of the real run."""
    whole = EpochBatches(sizes["train"], arm.study.recipe.batch_size, arm.study.seed).whole
    return epoch_lengths(max(1, round(arm.epochs * whole)), whole)


@dataclass
class Part:
    """An arm in rehearsal: what it is, and what was timed of it so far.

    options, noise: its data as rehearsed, and whether it is noise. batch: pictures of a step. pictures: of validation.
    loading, planning: seconds until its pictures were there for the first time, and that its memory plan took.
    whole, reloading, steps: of its first take, in seconds, seconds and steps. later: seconds of a later take beside its
    steps.
    """

    arm: Arm
    hardware: Hardware
    options: DataOptions
    noise: bool
    batch: int
    pictures: int
    memory: MemoryPlan | None = None
    loading: float = 0.0
    planning: float = 0.0
    data: ImageDataModule | None = None
    times: list[float] = field(default_factory=list)
    whole: float = 0.0
    reloading: float = 0.0
    steps: int = 0
    later: float = 0.0
    epoch: float = 0.0
    evaluation: float = 0.0
    picture: float = 0.0
    fixed_bytes: int = 0
    picture_bytes: float = 0.0

    @property
    def step(self) -> float:
        """Seconds of a step: the mean without the tenth at either end."""
        ordered, cut = sorted(self.times), len(self.times) // 10
        return statistics.fmean(ordered[cut : len(ordered) - cut])

    @property
    def beside(self) -> float:
        """Seconds of the first take beside steps and pictures."""
        return max(0.0, self.whole - self.steps * self.step - 2 * self.pictures * self.picture)


def rehearse(rehearsal: Rehearsal, place: Path) -> Timings:
    """Rehearse in this process, the cheapest arm first, until the budget is spent.

    Raises:
        UserMistake: an arm would be refused.
    """
    began, start = time.perf_counter(), time.time() - rehearsal.spawned
    load = os.getloadavg()[0] / usable_cores()
    deadline = began + rehearsal.budget - start
    with mistakes(CONF):
        parts = [_prepare(*one, place) for one in zip(rehearsal.studies, rehearsal.sizes, strict=True)]
    order = sorted(parts, key=lambda part: part.arm.scaled.cost.macs * part.batch)
    first = order[0]
    opening = dataclasses.replace(first, times=[])
    _whole_take(opening, SHORTEST, place / ARM)
    taken = [opening]
    if time.perf_counter() + opening.whole < deadline:
        _whole_take(first, FIRST_STEPS, place / ARM)
        taken = [first]
    for part in order[1:]:
        expected = opening.whole * max(1.0, part.arm.scaled.cost.macs / first.arm.scaled.cost.macs)
        if time.perf_counter() + expected > deadline:
            break
        _whole_take(part, FIRST_STEPS, place / ARM)
        taken.append(part)
    for left in range(LATER_ROUNDS, 0, -1):
        share = (deadline - time.perf_counter()) / left / len(taken)
        counts = [int((share - part.later) / part.step) for part in taken]
        if min(counts) < SHORTEST:
            continue  # fewer rounds leave more to each
        for part, count in zip(taken, counts, strict=True):
            _later_take(part, min(count, MOST_STEPS), place / ARM)
    # What a process does once - imports at first use, solving - shows in what is done first alone.
    once = max(0.0, parts[0].loading - opening.reloading)
    if first.times:
        opening.times = first.times
        once += max(0.0, opening.beside - first.beside)
    timings = [_timing(part, taken[-1], once) for part in parts]
    return Timings(
        start=start,
        close=0.0,  # known to the parent alone
        accelerator=first.hardware.accelerator,
        hardware=_in_words(first.hardware),
        noise=any(part.noise for part in parts),
        load=load,
        taken=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=time.perf_counter() - began + start,
        arms=tuple(timings),
    )


def _timing(part: Part, largest: Part, once: float) -> Timing:
    """What was timed of an arm, or what its MACs make of the largest arm that was timed."""
    assert part.memory is not None
    from_part = part if part.times else largest
    larger = float(part.arm.scaled.cost.macs / from_part.arm.scaled.cost.macs)
    step = from_part.step * larger * _devices_batch(part.arm) / from_part.batch
    return Timing(
        overhead=part.planning + once + from_part.beside,
        epoch=from_part.epoch,
        evaluation=from_part.evaluation,
        step=step,
        picture=from_part.picture * larger,
        memory_bytes=part.memory.measured_bytes or part.memory.predicted_bytes,
        layout=str(part.memory),
        fixed_bytes=from_part.fixed_bytes,
        picture_bytes=from_part.picture_bytes,
        steps=len(from_part.times) if part.arm is from_part.arm else 0,
        pictures=part.batch,
    )


def _devices_batch(arm: Arm) -> int:
    """Pictures of a step on each device."""
    return arm.study.recipe.batch_size // arm.study.hardware.devices


def _in_words(hardware: Hardware) -> str:
    return f"{hardware.device_name}, {hardware.precision}, {hardware.kernels} kernels, {hardware.threads} thread(s)"


def _prepare(study: Study, sizes: Mapping[str, int], place: Path) -> Part:
    """Choose hardware and layout as the arm would, with its pictures in memory, before anything is trained.

    Raises:
        ValueError: the arm would be refused.
    """
    began = time.perf_counter()
    arm = plan(study)
    solving = time.perf_counter() - began
    hardware, base = resolve(study.hardware), arm.scaled.base
    folder = study.folder if (study.folder / tuning.FILE).exists() else place / study.study
    hardware = tuning.settle(hardware, study.hardware, folder, base.network, base.resolution, _devices_batch(arm))
    torch.set_num_threads(hardware.threads)
    if study.hardware.memory_limit is None:
        keep_memory()
    affordable = int(LONGEST_STEP * PACE[hardware.accelerator] / arm.scaled.cost.macs)  # pictures without gradients
    batch = min(_devices_batch(arm), sizes["train"], max(2, affordable // 3))
    pictures = min(sizes["val"], MOST_PICTURES, max(study.cam_pictures, study.cam_scores, affordable, 6))
    part = Part(arm, hardware, *_pictures(arm, batch, pictures, sizes, place), batch, pictures)
    if part.options.kind in FILES:
        prepare(part.options)  # what is decoded once for all arms is no arm's time
    began = time.perf_counter()
    data = _load(part)
    part.loading = solving + time.perf_counter() - began
    began = time.perf_counter()
    gpu = hardware.accelerator == "gpu"
    share = (1 if gpu and study.launcher.gpus_per_job else study.launcher.jobs) * (1 if gpu else study.hardware.devices)
    part.memory = plan_memory(  # with the pictures in memory, as in an arm
        arm.scaled.network,
        arm.scaled.resolution,
        base.classes,
        recipe=study.recipe,
        hardware=hardware,
        limit=memory_limit(study.hardware, hardware.accelerator, share),
        devices=study.hardware.devices,
    )
    part.planning = time.perf_counter() - began
    del data
    return part


def _pictures(arm: Arm, batch: int, pictures: int, sizes: Mapping[str, int], place: Path) -> tuple[DataOptions, bool]:
    """The arm's data as it is rehearsed, `pictures` of validation among them; and whether it is noise, since the
    pictures are not on this machine."""
    side = arm.facts.native_pixels
    options = dataclasses.replace(arm.study.data, download=False)
    streamed = sum(sizes.values()) * side * side * 3 > parse_bytes("data.memory_limit", options.memory_limit)
    limit = "0B" if streamed else options.memory_limit  # a few pictures would fit and be kept
    try:
        check_available(options)
    except ValueError:
        count = min(sizes["train"], READ_BATCHES * batch, max(batch, NOISE_BYTES // (3 * side * side)))
        root = _noise(place / f"noise-{side}-{count}-{pictures}", side, {"train": count, "val": pictures, "test": 2})
        stand_in = dataclasses.replace(
            options,
            kind="folder",
            root=str(root),
            cache=str(root / "cache"),
            stored_pixels=side,
            classes=None,
            train_limit=None,
            val_limit=None,
            test_limit=None,
            memory_limit=limit,
        )
        return stand_in, True
    if pictures < sizes["val"]:
        options = dataclasses.replace(options, val_limit=pictures)
    if options.kind in FILES:
        few = min(sizes["train"], READ_BATCHES * batch)
        options = dataclasses.replace(options, train_limit=few, memory_limit=limit)
    return options, False


def _noise(root: Path, side: int, counts: Mapping[str, int]) -> Path:
    """A tree of coarse noise in two classes, as photographs are kept: JPEG files, made at the first call."""
    random = np.random.default_rng(0)
    for split, count in counts.items():
        for number in range(0 if (root / split).exists() else count):
            path = root / split / "ab"[number % 2] / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            coarse = random.integers(0, 256, (max(2, side // 8), max(2, side // 8), 3), np.uint8)
            Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(path, quality=90)
    return root


def _load(part: Part) -> ImageDataModule:
    """The pictures that a part is rehearsed with.

    Raises:
        ValueError: they are here and cannot be used.
    """
    data = ImageDataModule(part.options, part.arm.scaled.resolution, part.batch, part.pictures, part.arm.study.seed)
    data.prepare_data()
    data.setup()
    return data


def _whole_take(part: Part, steps: int, place: Path) -> None:
    """An arm from its pictures to its maps, with `steps` optimizer steps, as `src/arm.py` goes through it."""
    began = time.perf_counter()
    study, scaled = part.arm.study, part.arm.scaled
    plan(study)
    part.data = data = _load(part)
    part.reloading = time.perf_counter() - began
    assert part.memory is not None
    data.eval_batch_size = min(part.memory.evaluation_batch, max(1, part.pictures // 3))
    network = _build(part)
    audit.check(audit.inspect_module(network, scaled.resolution), scaled, trained_resolution=scaled.resolution)
    fitted = _train(part, network, data, steps, place)
    audit.check(audit.inspect_module(network, scaled.resolution), scaled, trained_resolution=scaled.resolution)
    ends: list[float] = []
    hook = network.register_forward_hook(lambda *unused: ends.append(time.perf_counter()))
    at = time.perf_counter()
    split = evaluate(fitted.module, data, "val", part.hardware)
    taken = time.perf_counter() - at
    hook.remove()
    if len(ends) > 1:
        part.picture = (ends[-1] - ends[0]) / (part.pictures - data.eval_batch_size)
    else:
        part.picture = taken / part.pictures
    part.evaluation = max(0.0, taken - part.pictures * part.picture)
    if study.cam_pictures or study.cam_scores:
        explain(part.arm, fitted, data, place, Tracker(None, "disabled"), part.memory.evaluation_batch)
    audit.hash_weights(network.state_dict())
    save_predictions(place / PREDICTIONS, split, split)
    part.whole, part.steps = time.perf_counter() - began, fitted.steps
    part.epoch = max(0.0, fitted.train_seconds - _seconds(fitted) - part.pictures * part.picture) / len(fitted.history)
    part.later = 1.0 + part.epoch + part.pictures * part.picture
    files = [path for path in place.rglob("*") if path.is_file() and path.name != PREDICTIONS]
    part.fixed_bytes = sum(path.stat().st_size for path in files)
    part.picture_bytes = (place / PREDICTIONS).stat().st_size / (2 * part.pictures)


def _later_take(part: Part, steps: int, place: Path) -> None:
    """Training steps alone."""
    assert part.data is not None
    began = time.perf_counter()
    fitted = _train(part, _build(part), part.data, steps, place)
    part.later = time.perf_counter() - began - fitted.steps * part.step


def _seconds(fitted: Fit) -> float:
    return math.fsum(row.seconds for row in fitted.history)


def _build(part: Part) -> ConvNet:
    study, scaled = part.arm.study, part.arm.scaled
    pl.seed_everything(study.seed, verbose=False)
    return build(scaled.network, scaled.base.classes, dropout=study.recipe.dropout, drop_path=study.recipe.drop_path)


def _train(part: Part, network: ConvNet, data: ImageDataModule, steps: int, place: Path) -> Fit:
    """Train the arm's network for a few steps of its own kind; adds their seconds to the part's times."""
    study, hardware = part.arm.study, part.hardware
    assert part.memory is not None
    planned = part.memory.layout
    parts = planned.parts if part.batch == _devices_batch(part.arm) else -(-part.batch // part.memory.micro_batch)
    layout = Layout(1, parts, planned.recompute)
    data.parts = parts
    data.dtype = torch.bfloat16 if hardware.precision == "bf16-mixed" else torch.float32
    lengths = data.cut_run(min(steps, max(SHORTEST, data.steps_per_epoch)))
    use(network, hardware.kernels)
    network.recompute = layout.recompute
    ends: dict[int, float] = {}

    def report(**told: Any) -> None:
        if told.get("phase") == "training":
            if hardware.accelerator == "gpu" and told["step"] in (2, sum(lengths)):
                torch.cuda.synchronize()  # in between, the host may run ahead as it does in an arm
            ends.setdefault(told["step"], time.perf_counter())  # of its last part: the first at which it counts

    fitted = fit(
        network,
        data,
        recipe=_short(study.recipe, part.batch),
        hardware=hardware,
        folder=place,
        logger=False,
        report=report,
        lengths=lengths,
        seed=study.seed,
        layout=layout,
    )
    assert fitted is not None
    at = [ends[step] for step in sorted(ends)]
    steady = [after - before for before, after in itertools.pairwise(at[1:])]
    if hardware.accelerator == "gpu":
        steady = [statistics.fmean(steady)] * len(steady)
    if len(lengths) > 1:  # of a set so small that validations lie between steps
        steady = [row.seconds / length for row, length in zip(fitted.history, lengths, strict=True)]
    part.times += steady
    return fitted


def _short(recipe: Recipe, batch: int) -> Recipe:
    """The recipe with a schedule that a few steps of `batch` pictures can have; what a step costs stays."""
    return dataclasses.replace(
        recipe,
        batch_size=batch,
        schedule="cosine",
        decay_every=0.0,
        warmup=0.0,
        learning_rate=min(recipe.learning_rate, CALM_RATE),
        learning_rate_batch=None,
    )


def main(arguments: list[str]) -> int:
    """Rehearse what a file asks for; returns the exit code."""
    rehearsal: Rehearsal = pickle.loads(Path(arguments[0]).read_bytes())
    if "OMP_NUM_THREADS" in os.environ:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    with tempfile.TemporaryDirectory(prefix="scalestudy-") as place:
        try:
            told = asdict(rehearse(rehearsal, Path(place)))
        except UserMistake as mistake:
            told = {"mistake": mistake.message}
    write_atomically(rehearsal.answer, json.dumps({**told, "close": time.time()}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
