"""Latency: the statistics and the order of turns on an invented clock, a real measurement, and a file that keeps what
was measured."""

from __future__ import annotations

import dataclasses
import functools
import gc
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from src.networks.build import Outputs, network_cost
from src.networks.table import Network, Norm, Stage, Stem
from src.scaling import latency as latency_module
from src.scaling.latency import (
    Latency,
    LatencyCache,
    LatencyPrice,
    Samples,
    device_name,
    median_interval,
    take_turns,
    time_networks,
)

ROOT = Path(__file__).resolve().parents[2]


def table(name: str, stem: int, head: int, *stages: tuple[int, int, int, int, int]) -> Network:
    """An EfficientNet: (kernel, stride, expand, channels, repeats) of each stage."""
    return Network(
        name,
        32,
        Stem(stem, 2),
        tuple(Stage("mbconv", k, s, c, n, expand=e, se_ratio=0.25) for k, s, e, c, n in stages),
        head,
    )


SMALL = table("small", 16, 192, (3, 1, 1, 16, 1), (3, 2, 4, 24, 2), (5, 2, 4, 40, 2))
B0_LIKE = table(
    "b0",
    32,
    1280,
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
)


# Table of ranks: NIST/Conover, 95 % two-sided sign-test intervals of the median.
@pytest.mark.parametrize(("n", "low", "high"), [(6, 1, 6), (8, 1, 8), (9, 2, 8), (10, 2, 9), (20, 6, 15), (50, 18, 33)])
def test_the_interval_is_the_textbooks_pair_of_ranks(n: int, low: int, high: int) -> None:
    values = [float(value) for value in range(n, 0, -1)]
    assert median_interval(values) == ((n + 1) / 2, low, high)


@given(n=st.integers(6, 300))
def test_the_interval_covers_95_percent_and_the_next_narrower_one_does_not(n: int) -> None:
    median, low, high = median_interval([float(value) for value in range(1, n + 1)])
    assert low <= median <= high and low + high == n + 1
    assert 1 - 2 * binom.cdf(low - 1, n, 0.5) >= 0.95
    assert 1 - 2 * binom.cdf(low, n, 0.5) < 0.95 or low + 1 > n / 2


def test_too_few_turns_give_no_interval() -> None:
    with pytest.raises(ValueError, match="repeats=5 is too few"):
        median_interval([1.0] * 5)


class Machine:
    """A clock that only work moves on, and what was done, in order."""

    def __init__(self, slowdown: Callable[[float], float] = lambda now: 1.0) -> None:
        self.now, self.slowdown = 0.0, slowdown
        self.done: list[str] = []
        self.collecting: set[bool] = set()

    def task(self, name: str, seconds: float) -> Callable[[], None]:
        def run() -> None:
            self.now += seconds * self.slowdown(self.now)
            self.done.append(name)
            self.collecting.add(gc.isenabled())

        return run

    def clock(self) -> float:
        return self.now


def test_turns_alternate_and_every_turn_starts_with_an_untimed_pass() -> None:
    machine = Machine()
    tasks = [machine.task("a", 1.0), machine.task("b", 2.0)]
    samples = take_turns(tasks, warmup=2, repeats=3, clock=machine.clock)
    assert "".join(machine.done) == "aabb" + "aabb" + "bbaa" + "aabb"
    assert samples == [[1.0] * 3, [2.0] * 3]


def test_short_passes_are_repeated_until_a_turn_is_long_enough() -> None:
    machine = Machine()
    take_turns([machine.task("a", 0.001), machine.task("b", 0.1)], warmup=1, repeats=1, clock=machine.clock)
    assert machine.done == ["a", "b", *"a" * 6, *"b" * 2]
    instant = take_turns([lambda: None], warmup=1, repeats=1, clock=machine.clock)
    assert instant == [[0.0]]


def test_no_garbage_is_collected_while_the_clock_runs() -> None:
    machine = Machine()
    take_turns([machine.task("a", 1.0)], warmup=0, repeats=2, clock=machine.clock)
    assert machine.collecting == {True, False} and gc.isenabled()  # warm-up with, turns without
    with pytest.raises(ZeroDivisionError):
        take_turns([lambda: 1 // machine.now], warmup=1, repeats=1, clock=iter(range(99)).__next__)  # type: ignore
        machine.now = 0.0
        take_turns([lambda: 1 // machine.now], warmup=1, repeats=1)
    assert gc.isenabled()


def test_the_device_is_waited_for_on_both_sides_of_a_turn() -> None:
    """An asynchronous device: passes return at once, and only waiting lets time pass."""
    pending, now = [0.0], [0.0]

    def launch() -> None:
        pending[0] += 3.0

    def wait() -> None:
        now[0] += pending[0]
        pending[0] = 0.0

    assert take_turns([launch], warmup=1, repeats=2, synchronise=wait, clock=lambda: now[0]) == [[3.0, 3.0]]


@settings(max_examples=30)
@given(factor=st.floats(1.0, 20.0), moment=st.floats(0.0, 60.0), ratio=st.floats(0.2, 5.0))
def test_ratios_inside_a_session_survive_a_machine_that_slows_down(factor: float, moment: float, ratio: float) -> None:
    machine = Machine(lambda now: factor if now > moment else 1.0)
    tasks = [machine.task("a", 1.0), machine.task("b", ratio)]
    base, other = take_turns(tasks, warmup=1, repeats=9, clock=machine.clock)
    median, _, _ = median_interval([mine / theirs for mine, theirs in zip(other, base, strict=True)])
    assert median == pytest.approx(ratio)


def test_four_times_the_network_takes_longer() -> None:
    deep = SMALL.with_shape(tuple(4 * n for n in SMALL.repeats), SMALL.channels)
    small, large = map(statistics.median, time_networks([(SMALL, 32), (deep, 32)], 10, repeats=6, threads=1))
    assert 1.5 * small < large < 20 * small
    assert 1e-5 < small < 1.0


def test_a_batch_takes_longer_than_a_picture() -> None:
    rows = (time_networks([(SMALL, 48)], 10, batch=batch, repeats=6, warmup=1) for batch in (1, 16))
    one, many = (statistics.median(row) for (row,) in rows)
    assert many > 1.5 * one


def test_measuring_leaves_torch_as_it_was() -> None:
    torch.manual_seed(7)
    state, threads, grad = torch.get_rng_state(), torch.get_num_threads(), torch.is_grad_enabled()
    time_networks([(SMALL, 32)], 10, repeats=6, warmup=1, threads=threads + 1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads and torch.is_grad_enabled() == grad
    assert not torch.is_inference_mode_enabled()


def test_threads_are_the_asked_ones_while_measuring_and_restored_after_a_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[int] = []

    def turns(*unused: Any, **arguments: Any) -> Samples:
        seen.append(torch.get_num_threads())
        raise KeyboardInterrupt

    monkeypatch.setattr(latency_module, "take_turns", turns)
    before = torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt):
        time_networks([(SMALL, 32)], 10, threads=before + 1)
    assert seen == [before + 1] and torch.get_num_threads() == before


@pytest.mark.parametrize(("threads", "clock"), [(1, time.thread_time), (2, time.perf_counter)])
def test_a_single_thread_is_timed_by_its_own_cpu_time(
    monkeypatch: pytest.MonkeyPatch, threads: int, clock: Callable[[], float]
) -> None:
    clocks: list[Callable[[], float]] = []
    monkeypatch.setattr(latency_module, "take_turns", lambda *unused, **setting: clocks.append(setting["clock"]) or [])
    time_networks([(SMALL, 32)], 10, threads=threads)
    assert clocks == [clock]


def passes(monkeypatch: pytest.MonkeyPatch, network: Network, resolution: int) -> Callable[[], Outputs]:
    """The function that is timed."""
    taken: list[Callable[[], Outputs]] = []

    def keep(functions: Sequence[Callable[[], Outputs]], **unused: Any) -> Samples:
        taken.extend(functions)
        return []

    monkeypatch.setattr(latency_module, "take_turns", keep)
    time_networks([(network, resolution)], 10)
    return taken[0]


def note_size(sizes: list[float], layer: torch.nn.Module, given: Any, output: torch.Tensor) -> None:
    sizes.append(float(output.abs().mean()))


def test_the_timed_maps_are_neither_denormal_nor_overflowing(monkeypatch: pytest.MonkeyPatch) -> None:
    deep = SMALL.with_shape((1, 60, 60), SMALL.channels)
    for network in (SMALL, B0_LIKE, deep):
        run = passes(monkeypatch, network, 64)
        module = run.func  # type: ignore[attr-defined]
        sizes: list[float] = []
        for layer in module.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.register_forward_hook(functools.partial(note_size, sizes))
        with torch.inference_mode():
            outputs = run()
        assert not module.training and outputs.features.shape[0] == 1
        assert outputs.features.is_contiguous(memory_format=torch.channels_last)
        assert len(sizes) > network.blocks and min(sizes) > 1e-3 and max(sizes) < 1e3


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"batch": 0}, "batch=0 must be at least 1"),
        ({"repeats": 5}, "repeats=5 must be at least 6"),
        ({"threads": 0}, "threads=0 must be at least 1"),
        ({"device": "gpu"}, "device='gpu' is unknown"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=sentence):
        time_networks([(SMALL, 32)], 10, **arguments)
    with pytest.raises(ValueError, match=sentence):
        LatencyCache(tmp_path / "latency.json", **arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_missing_device_is_named() -> None:
    with pytest.raises(ValueError, match="device='cuda' is not in this machine"):
        time_networks([(SMALL, 32)], 10, device="cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_timed_to_the_end_of_its_work() -> None:
    state = torch.cuda.get_rng_state()
    rows = time_networks([(SMALL, 32), (B0_LIKE, 512)], 10, device="cuda", batch=32)
    small, large = map(statistics.median, rows)
    assert large > 1.5 * small and device_name("cuda").startswith("cuda (")
    assert torch.equal(torch.cuda.get_rng_state(), state)


class Stopwatch:
    """Stands in for `time_networks`: a microsecond a MAC at `speed`, which sessions may differ in; counts sessions."""

    def __init__(self, *speeds: float) -> None:
        self.speeds = list(speeds)
        self.asked: list[list[str]] = []

    def __call__(self, candidates: list[tuple[Network, int]], classes: int, **setting: Any) -> Samples:
        self.asked.append([network.name for network, _ in candidates])
        speed = self.speeds.pop(0) if self.speeds else 1.0
        noise = (1.0, 1.02, 0.98, 1.05, 0.95, 1.0)
        macs = [network_cost(network, resolution, classes).macs for network, resolution in candidates]
        return [[count * 1e-6 / speed * turn for turn in noise] for count in macs]


def cache(folder: Path, stopwatch: Stopwatch, **setting: Any) -> LatencyCache:
    return LatencyCache(folder / "deep" / "latency.json", time_networks=stopwatch, **setting)


def test_what_was_measured_is_never_measured_again(tmp_path: Path) -> None:
    stopwatch = Stopwatch()
    first = cache(tmp_path, stopwatch).latency(SMALL, 32, 10)
    again = cache(tmp_path, stopwatch)
    assert [again.latency(SMALL, 32, 10) for _ in range(2)] == [first, first]
    assert len(stopwatch.asked) == 1
    assert first.seconds == pytest.approx(network_cost(SMALL, 32, 10).macs * 1e-6)
    assert (first.low, first.high) == pytest.approx((0.95 * first.seconds, 1.05 * first.seconds))


def test_an_entry_belongs_to_all_that_decides_the_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopwatch = Stopwatch()
    wider = SMALL.with_shape(SMALL.repeats, (16, 16, 24, 40, 200))
    rectified = dataclasses.replace(SMALL, activation="relu")
    asked = [(SMALL, 32, 10), (wider, 32, 10), (rectified, 32, 10), (SMALL, 33, 10), (SMALL, 32, 11)]
    for arguments in asked:
        cache(tmp_path, stopwatch).latency(*arguments)
    for setting in ({"batch": 2}, {"threads": torch.get_num_threads() + 1}):
        cache(tmp_path, stopwatch, **setting).latency(SMALL, 32, 10)
    monkeypatch.setattr(latency_module, "device_name", lambda device: "cpu (another)")
    cache(tmp_path, stopwatch).latency(SMALL, 32, 10)
    monkeypatch.setattr(torch, "__version__", "99.0")
    cache(tmp_path, stopwatch).latency(SMALL, 32, 10)
    assert len(stopwatch.asked) == len(asked) + 4


def test_names_sources_and_constants_of_batch_norm_decide_nothing(tmp_path: Path) -> None:
    stopwatch = Stopwatch()
    other = dataclasses.replace(SMALL, name="other", source="elsewhere", norm=Norm(1e-5, 0.1), resolution=64, classes=5)
    kept = cache(tmp_path, stopwatch)
    assert kept.latency(SMALL, 32, 10) == kept.latency(other, 32, 10)
    assert stopwatch.asked == [["small"]]


def test_prices_compare_across_sessions_of_different_speed(tmp_path: Path) -> None:
    """Later sessions run at 0.75 and 2 times the speed; prices are stated in the seconds of the first."""
    deep = dataclasses.replace(SMALL.with_shape((2, 4, 4), SMALL.channels), name="deep")
    stopwatch = Stopwatch(1.0, 0.75, 2.0)
    price = LatencyPrice(cache(tmp_path, stopwatch), 10, (SMALL, 32))
    prices = [price(SMALL, 32), price(deep, 32), price(deep, 64)]
    macs = [network_cost(network, side, 10).macs for network, side in ((SMALL, 32), (deep, 32), (deep, 64))]
    assert [p / prices[0] for p in prices] == pytest.approx([m / macs[0] for m in macs])
    assert prices[0] == pytest.approx(macs[0] * 1e-6)
    assert stopwatch.asked == [["small"], ["deep", "small"], ["deep", "small"]]
    # Noise that both share drops out of a ratio.
    assert price.latency(deep, 32).spread == pytest.approx(0.0, abs=1e-9)
    assert price.latency(SMALL, 32).spread == pytest.approx(0.05)


def test_the_first_price_asked_for_brings_the_references_along(tmp_path: Path) -> None:
    stopwatch = Stopwatch()
    price = LatencyPrice(cache(tmp_path, stopwatch), 10, (SMALL, 32))
    assert price(SMALL, 64) > price(SMALL, 32) > 0.0
    assert stopwatch.asked == [["small", "small"]]


GOOD = {"seconds": 2.0, "low": 1.0, "high": 3.0, "repeats": 20, "batch": 1, "device": "cpu", "threads": 1}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1]",
        '{"key": 1}',
        '{"key": {"seconds": 1.0',
        json.dumps({"key": {**GOOD, "seconds": "2"}}),
        json.dumps({"key": {**GOOD, "low": 2.5}}),
        json.dumps({"key": {**GOOD, "seconds": float("nan")}}),
        json.dumps({"key": {**GOOD, "low": 0.0}}),
        json.dumps({"key": {**GOOD, "extra": 1}}),
    ],
)
def test_a_damaged_file_is_refused_in_one_sentence_and_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "latency.json"
    path.write_text(text)
    with pytest.raises(
        ValueError, match=r"latency\.json is no valid file of measured latencies .*; delete it"
    ) as error:
        LatencyCache(path, time_networks=Stopwatch()).latency(SMALL, 32, 10)
    assert "\n" not in str(error.value) and path.read_text() == text


def test_a_whole_file_is_read() -> None:
    assert Latency(**GOOD).spread == 0.5  # type: ignore[arg-type]


def test_a_failed_measurement_keeps_what_was_known_and_frees_the_file(tmp_path: Path) -> None:
    def broken(*unused: Any, **setting: Any) -> Samples:
        raise RuntimeError("out of memory")

    path = tmp_path / "latency.json"
    LatencyCache(path, time_networks=Stopwatch()).latency(SMALL, 32, 10)
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match="out of memory"):
        LatencyCache(path, time_networks=broken).latency(SMALL, 64, 10)
    assert path.read_bytes() == before
    LatencyCache(path, time_networks=Stopwatch()).latency(SMALL, 64, 10)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["latency.json", "latency.json.lock"]


def test_threads_of_one_process_measure_once(tmp_path: Path) -> None:
    stopwatch = Stopwatch()
    work = functools.partial(cache(tmp_path, stopwatch).latency, SMALL, 32, 10)
    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(stopwatch.asked) == 1


ARM = """
import os, sys, time
from pathlib import Path
from src.networks.table import Network, Stage, Stem
from src.scaling.latency import LatencyCache

folder = Path(sys.argv[1])

def time_networks(candidates, classes, **setting):
    (folder / f"measured-{os.getpid()}-{candidates[0][1]}").touch()
    time.sleep(0.3)
    return [[1.0 + os.getpid() / 1e6] * 6 for _ in candidates]

(folder / f"ready-{os.getpid()}").touch()
while len(list(folder.glob("ready-*"))) < 2:
    time.sleep(0.01)
network = Network("n", 32, Stem(8, 2), (Stage("mbconv", 3, 2, 8, 1),), 16)
cache = LatencyCache(folder / "latency.json", threads=1, time_networks=time_networks)
print([cache.latency(network, side, 10).seconds for side in (32, 40, 48)])
"""


def test_processes_that_start_together_agree_on_every_number(tmp_path: Path) -> None:
    arms = [
        subprocess.Popen([sys.executable, "-c", ARM, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = {arm.communicate(timeout=120)[0] for arm in arms}
    assert [arm.returncode for arm in arms] == [0, 0]
    assert len(said) == 1 and said.pop().count(",") == 2
    assert len(list(tmp_path.glob("measured-*"))) == 3  # each side by one process
    assert len(json.loads((tmp_path / "latency.json").read_text())) == 3
