"""Latency: the time of one forward pass, measured, and kept so that whoever plans again reads the same number.

Protocol. Evaluation mode, float32, channels last, one batch of random pictures. Networks that are compared are timed in
turns, so that a machine that slows down or is shared slows them alike. A turn is an untimed pass, then enough timed
passes to fill `SHORTEST_TURN`, with the garbage collector off and the device synchronised before and after. The median
over the turns is reported with a distribution-free interval. The paper reports the mean of 20 runs of one picture
(arXiv 1905.11946, Table 4); the median here is not moved by a turn that another process disturbed.

Speeds of one machine drift by more than a budget's tolerance, so what counts are ratios inside one session:
`LatencyPrice` measures every network in turns with one reference. On two cores that other jobs used, eight sessions
differed by +-11 % in seconds and by +-2.6 % in that ratio.

On one CPU thread the clock is the thread's own CPU time: what an idle core takes, whoever else wants it. On two cores
with five busy processes it read 1.3 ms where the wall clock read 3.0 ms and an idle machine 1.1 ms. With more threads,
and on a GPU, it is the wall clock; leave the machine alone then.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import hashlib
import json
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from filelock import FileLock
from torch import nn

from src.choices import check_choice
from src.networks.build import RGB, build
from src.networks.table import Network
from src.record import write_atomically

DEVICES = ("cpu", "cuda", "mps")
WARMUP = 5  # untimed passes before the first turn
REPEATS = 60  # turns; on a shared machine the interval of a ratio is then narrower than the +-5 % of a measured budget
SHORTEST_TURN = 0.005  # seconds of timed passes a turn; a clock tick and a short interruption are small beside it
CONFIDENCE = 0.95  # least coverage of `Latency.low` to `Latency.high`
FEWEST_REPEATS = 6  # with fewer, not even the smallest and the largest turn enclose the median with 95 %

# Fields of a table that decide no shape: a network by another name has the same latency.
_NO_SHAPE = ("name", "source", "resolution", "classes", "norm", "channel_divisor")

Candidate: TypeAlias = tuple[Network, int]  # a stage table and its input side, pixels
Samples: TypeAlias = list[list[float]]  # seconds a pass; one row a candidate, one entry a turn


@dataclass(frozen=True)
class Latency:
    """Time of one forward pass of `batch` pictures.

    seconds: median over the turns. low, high: the pair of order statistics of the turns that encloses the median with
        at least 95 %, whatever the distribution, if turns are independent. It tells how well one session repeats
        itself, not what another day or another machine will show.
    repeats: turns. device: kind and model. threads: CPU threads of torch.
    """

    seconds: float
    low: float
    high: float
    repeats: int
    batch: int
    device: str
    threads: int

    def __post_init__(self) -> None:
        if not 0.0 < self.low <= self.seconds <= self.high < math.inf:
            raise ValueError(f"a latency of {self.seconds} s between {self.low} s and {self.high} s is no measurement")

    @property
    def spread(self) -> float:
        """Half-width of the interval as a share of the median."""
        return (self.high - self.low) / (2 * self.seconds)


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Median of `values`, and the narrowest symmetric pair of order statistics that covers it with `CONFIDENCE`.

    The k-th smallest and k-th largest of n independent values enclose the median of their distribution with
    probability 1 - 2 P(Binomial(n, 1/2) < k) (Conover 1999, Practical Nonparametric Statistics, sec. 3.2).

    Raises:
        ValueError: fewer than 6 values.
    """
    n = len(values)
    if n < FEWEST_REPEATS:
        raise ValueError(f"repeats={n} is too few: a 95 % interval of the median needs at least {FEWEST_REPEATS}")
    ordered, rank, tail = sorted(values), 0, 0.0
    while (tail := tail + math.comb(n, rank) / 2**n) <= (1.0 - CONFIDENCE) / 2:
        rank += 1
    return statistics.median(ordered), ordered[rank - 1], ordered[n - rank]


def take_turns(
    passes: Sequence[Callable[[], object]],
    *,
    warmup: int,
    repeats: int,
    synchronise: Callable[[], object] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Samples:
    """Time functions round-robin, every other round backwards, so that steady drift cancels.

    Args:
        passes: each does its work once.
        warmup: untimed calls of each before the first round; at least 1, which also says how long one takes.
        repeats: rounds.
        synchronise: waits until the device is idle.
        clock: seconds.

    Returns:
        Seconds a call: a row for each of `passes`, an entry for each round.
    """
    counts = []
    for run in passes:
        took = []
        for _ in range(max(1, warmup)):
            synchronise()
            started = clock()
            run()
            synchronise()
            took.append(clock() - started)
        counts.append(max(1, math.ceil(SHORTEST_TURN / max(min(took), 1e-9))))
    samples: Samples = [[] for _ in passes]
    order = range(len(passes))
    with _no_garbage_collection():
        for repeat in range(repeats):
            for i in order if repeat % 2 == 0 else reversed(order):
                run, count = passes[i], counts[i]
                run()  # brings this network's weights back into the caches that the others filled
                synchronise()
                started = clock()
                for _ in range(count):
                    run()
                synchronise()
                samples[i].append((clock() - started) / count)
    return samples


def time_networks(
    candidates: Sequence[Candidate],
    classes: int,
    *,
    batch: int = 1,
    warmup: int = WARMUP,
    repeats: int = REPEATS,
    device: str = "cpu",
    threads: int | None = None,
) -> Samples:
    """Raw times of one forward pass of each candidate, taken in turns.

    Weights and pictures are random, from a seed of their own: torch's global generator and number of threads are left
    as they were. All candidates are in memory at once.

    Args:
        batch: pictures a pass.
        threads: CPU threads; None leaves torch's own number.

    Raises:
        ValueError: an argument is out of range, or this machine has no such device.
    """
    _check(batch, repeats, device, threads)
    with _threads(threads), torch.inference_mode():
        passes = [_forward_pass(network, resolution, classes, batch, device) for network, resolution in candidates]
        # One thread does all its work itself, so that its CPU time misses nothing.
        clock = time.thread_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
        return take_turns(passes, warmup=warmup, repeats=repeats, synchronise=_synchroniser(device), clock=clock)


class LatencyCache:
    """Measured latencies in a JSON file that processes share: what was measured once is never measured again.

    An entry belongs to all that decides the number: the shape of the stage table, input side, classes, batch, device
    model, threads and torch's version. While one process measures, the others wait, so that they neither disturb the
    clock nor keep another number.

    Args:
        path: the file; made with its folder when something is measured.
        batch, warmup, repeats, device, threads: of `time_networks`. Processes that are to find each other's entries
            must name the same number of threads; None takes torch's own, which differs from process to process.
        report: told what is about to be measured, since that takes seconds.
        time_networks: what measures, for tests.
    """

    def __init__(
        self,
        path: Path,
        *,
        batch: int = 1,
        warmup: int = WARMUP,
        repeats: int = REPEATS,
        device: str = "cpu",
        threads: int | None = None,
        report: Callable[[str], object] = lambda line: None,
        time_networks: Callable[..., Samples] = time_networks,
    ) -> None:
        _check(batch, repeats, device, threads)
        self.path = path
        self.batch, self.warmup, self.repeats, self.device = batch, warmup, repeats, device
        self.threads = threads or torch.get_num_threads()
        self._report, self._time_networks = report, time_networks
        self._known: dict[str, Latency] = {}

    def latency(self, network: Network, resolution: int, classes: int, reference: Candidate | None = None) -> Latency:
        """The latency of a network, measured only if the file has none.

        With a `reference`, a new measurement takes turns with it and is stated in its time: seconds = the reference's
        stored seconds x the median over turns of (this network / reference). So two networks that were measured hours
        apart still compare.

        Raises:
            ValueError: the file is damaged; names it.
        """
        key = self.key(network, resolution, classes)
        if key not in self._known:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.path.with_name(self.path.name + ".lock")):
                entries = self._read()
                if key not in entries:
                    self._report(f"measuring the latency of {network.blocks} blocks at {resolution} px")
                    entries |= self._measure((network, resolution), classes, reference, entries)
                    rows = {name: dataclasses.asdict(entry) for name, entry in sorted(entries.items())}
                    write_atomically(self.path, json.dumps(rows, indent=1) + "\n")
                self._known = entries
        return self._known[key]

    def key(self, network: Network, resolution: int, classes: int) -> str:
        """SHA-256 of all that decides the latency; tables that differ in names, sources or batch-norm constants share
        it."""
        shape = {k: v for k, v in dataclasses.asdict(network).items() if k not in _NO_SHAPE}
        setting = (self.batch, device_name(self.device), self.threads, torch.__version__)
        text = json.dumps([shape, resolution, classes, *setting], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def _measure(
        self, candidate: Candidate, classes: int, reference: Candidate | None, entries: dict[str, Latency]
    ) -> dict[str, Latency]:
        """New entries: the candidate's, and the reference's if it had none."""
        key = self.key(*candidate, classes)
        if reference is None or (reference_key := self.key(*reference, classes)) == key:
            [row] = self._time([candidate], classes)
            return {key: self._latency(row)}
        own, others = self._time([candidate, reference], classes)
        stored = entries.get(reference_key) or self._latency(others)
        ratios = [mine / other for mine, other in zip(own, others, strict=True)]
        return {reference_key: stored, key: self._latency(ratios, unit=stored.seconds)}

    def _time(self, candidates: list[Candidate], classes: int) -> Samples:
        return self._time_networks(
            candidates,
            classes,
            batch=self.batch,
            warmup=self.warmup,
            repeats=self.repeats,
            device=self.device,
            threads=self.threads,
        )

    def _latency(self, values: list[float], unit: float = 1.0) -> Latency:
        median, low, high = (unit * value for value in median_interval(values))
        return Latency(median, low, high, len(values), self.batch, device_name(self.device), self.threads)

    def _read(self) -> dict[str, Latency]:
        if not self.path.exists():
            return {}
        try:
            return {key: _parse(entry) for key, entry in json.loads(self.path.read_text()).items()}
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise ValueError(
                f"{self.path} is no valid file of measured latencies ({error}); delete it and they are measured again"
            ) from error


@dataclass(frozen=True)
class LatencyPrice:
    """Seconds of one forward pass as a function of (network, resolution): what a solver asks for.

    Every network is measured in turns with `reference`, the base of the study with its input side, so that prices are
    multiples of the base's even if the machine's speed drifted in between.
    """

    cache: LatencyCache
    classes: int
    reference: Candidate

    def __call__(self, network: Network, resolution: int) -> float:
        """Median seconds; from the cache if it is there."""
        return self.latency(network, resolution).seconds

    def latency(self, network: Network, resolution: int) -> Latency:
        """The same with its interval."""
        return self.cache.latency(network, resolution, self.classes, self.reference)


@functools.cache
def device_name(device: str) -> str:
    """Kind and model, such as "cpu (AMD EPYC 9654)": latencies of two models do not compare.

    Raises:
        ValueError: the device is unknown or not in this machine.
    """
    _check_device(device)
    if device == "cuda":
        return f"cuda ({torch.cuda.get_device_name()})"
    model = ""
    with contextlib.suppress(OSError):  # Linux only; elsewhere the architecture must do
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{device} ({model or platform.processor() or platform.machine()})"


def _check(batch: int, repeats: int, device: str, threads: int | None) -> None:
    if batch < 1:
        raise ValueError(f"batch={batch} must be at least 1 picture")
    if repeats < FEWEST_REPEATS:
        raise ValueError(f"repeats={repeats} must be at least {FEWEST_REPEATS}, for a 95 % interval of the median")
    if threads is not None and threads < 1:
        raise ValueError(f"threads={threads} must be at least 1, or None for torch's own number")
    _check_device(device)


def _check_device(device: str) -> None:
    check_choice("device", device, DEVICES)
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there[device]:
        raise ValueError(f"device={device!r} is not in this machine, so nothing can be timed on it; use device='cpu'")


def _forward_pass(network: Network, resolution: int, classes: int, batch: int, device: str) -> Callable[[], object]:
    """A function that classifies one fixed batch of random pictures."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # torch.manual_seed would reseed GPUs too
        module = build(network, classes).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        pictures = torch.randn(max(2, batch), RGB, resolution, resolution)  # batch norm cannot settle on one picture
        pictures = pictures.to(device, memory_format=torch.channels_last)
        _settle(module, pictures)
    return functools.partial(module, pictures[:batch].contiguous(memory_format=torch.channels_last))


def _settle(module: nn.Module, pictures: torch.Tensor) -> None:
    """Give batch norm the statistics of one batch, and leave the module in evaluation mode.

    Without them the maps of a random network shrink until floats are denormal, and CPUs are slow at those: B0 took half
    as long again.
    """
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None  # a plain mean over batches, so that one batch is enough
    module.train()(pictures)
    module.eval()


def _synchroniser(device: str) -> Callable[[], object]:
    waits: dict[str, Callable[[], object]] = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}
    return waits.get(device, lambda: None)


@contextlib.contextmanager
def _threads(threads: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads or before)
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _parse(entry: dict[str, Any]) -> Latency:
    types = {"seconds": float, "low": float, "high": float, "repeats": int, "batch": int, "device": str, "threads": int}
    if {key: type(value) for key, value in entry.items()} != types:
        raise ValueError(f"an entry should hold {', '.join(types)}")
    return Latency(**entry)
