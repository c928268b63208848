"""Which layout a batch is trained in: the order of layouts, fitting into a limit, the probe, and real steps within an
enforced limit."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from training_tiny import CPU, SIDE, TABLE, changed

from src.kernels import native
from src.networks.cost import Cost, RecomputeCost
from src.training import probe as probe_module
from src.training.layout import Layout
from src.training.limits import Limit
from src.training.memory import MemoryTerms
from src.training.plan import (
    ENOUGH_PICTURES,
    FIRST_USE,
    LARGEST_EVALUATION_BATCH,
    MEASURED_MARGIN,
    ONE_SIDED,
    UNMEASURED_MARGIN,
    Line,
    MemoryPlan,
    Need,
    choose,
    evaluation_batch,
    fitted,
    layouts,
    predicted_need,
    step_down,
)
from src.training.probe import Measured, Probe, measure, plan_memory, reckoned_kernels

ONE_STEP = Path(__file__).with_name("one_step.py")
MIB = 2**20


def need(constant: float, picture: float, recomputed: float) -> Need:
    """So many bytes a picture, without a doubt."""
    return Need(Line(constant, picture), Line(constant, recomputed))


def sizes(batch: int, devices: int = 1) -> list[tuple[int, bool]]:
    """Pictures in the largest micro-batch, and recomputation, of every layout in order."""
    return [(layout.micro_batch(batch), layout.recompute) for layout in layouts(batch, devices)]


def test_parts_come_before_recomputation_and_recomputation_before_few_pictures() -> None:
    recomputing = [(n, True) for n in (64, 32, 22, 16, 13, 11, 10, 8, 7, 6, 5, 4, 3, 2)]
    assert sizes(64) == [(64, False), (32, False), (22, False), (16, False), *recomputing]
    assert sizes(8) == [(8, False), (8, True), (4, True), (3, True), (2, True)]
    assert sizes(8, devices=2) == [(4, False), (4, True), (2, True)]


@pytest.mark.parametrize("devices", [1, 2, 3])
@pytest.mark.parametrize("batch", [6, 16, 31, 32, 33, 50, 128])
def test_no_layout_changes_the_batch_or_leaves_fewer_than_two_pictures(batch: int, devices: int) -> None:
    found = layouts(batch, devices)
    assert found[0] == Layout(devices)
    assert len(set(found)) == len(found)
    for layout in found:
        smallest = batch // (layout.devices * layout.parts)
        assert smallest >= 2
        assert layout.micro_batch(batch) * layout.devices * layout.parts >= batch
        if not layout.recompute:
            assert smallest >= min(ENOUGH_PICTURES, batch // devices)
    assert [layout.recompute for layout in found] == sorted(layout.recompute for layout in found)
    for recompute in (False, True):
        largest = [layout.micro_batch(batch) for layout in found if layout.recompute == recompute]
        assert largest == sorted(set(largest), reverse=True)
    assert found[-1].micro_batch(batch) <= 3


@pytest.mark.parametrize(("batch", "devices"), [(3, 2), (2, 2), (7, 4)])
def test_a_device_needs_two_pictures(batch: int, devices: int) -> None:
    message = rf"recipe.batch_size={batch} on hardware.devices={devices} .* use recipe.batch_size={2 * devices} or more"
    with pytest.raises(ValueError, match=message):
        layouts(batch, devices)


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (10 + 64 * 8, Layout()),
        (10 + 64 * 8 - 1, Layout(parts=2)),
        (10 + 16 * 8, Layout(parts=4)),
        (10 + 16 * 8 - 1, Layout(parts=2, recompute=True)),  # 32 pictures of 3
        (10 + 16 * 3, Layout(parts=4, recompute=True)),
        (10 + 2 * 3, Layout(parts=32, recompute=True)),
    ],
)
def test_the_first_layout_that_fits_is_taken(limit: int, expected: Layout) -> None:
    assert choose(64, 1, limit, need(10, 8, 3)) == expected


def test_what_cannot_fit_is_refused_with_what_it_needs_and_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"needs 3\.00 GiB .* with 2 pictures .* 2\.99 GiB .* hardware\.memory_limit"):
        choose(32, 1, round(2.99 * 2**30), need(2**30, 3 * 2**30, 2**30))


def test_evaluation_takes_as_many_pictures_as_fit() -> None:
    assert evaluation_batch(1000, need(100, 50, 9)) == 100
    assert evaluation_batch(10**9, need(100, 50, 9)) == LARGEST_EVALUATION_BATCH
    assert evaluation_batch(105, need(100, 50, 9)) == 1


@pytest.mark.parametrize(
    ("layout", "batch", "expected"),
    [
        (Layout(), 64, Layout(parts=2)),
        (Layout(parts=2), 64, Layout(parts=4)),
        (Layout(parts=4), 64, Layout(parts=4, recompute=True)),
        (Layout(), 8, Layout(parts=1, recompute=True)),
        (Layout(devices=2), 64, Layout(devices=2, parts=2)),
        (Layout(parts=4, recompute=True), 64, Layout(parts=8, recompute=True)),
        (Layout(parts=32, recompute=True), 64, None),
    ],
)
def test_a_step_down_halves_what_grows_with_the_batch(layout: Layout, batch: int, expected: Layout | None) -> None:
    assert step_down(layout, batch) == expected


def test_a_step_down_exists_for_all_layouts_but_the_smallest() -> None:
    for batch, devices in ((31, 1), (50, 2), (128, 3)):
        *others, last = layouts(batch, devices)
        for layout in others:
            lower = step_down(layout, batch)
            assert lower is not None and layouts(batch, devices).index(lower) > others.index(layout)
        assert step_down(last, batch) is None


def test_a_need_added_up_by_hand() -> None:
    cost, again = Cost(4, macs=99, params=10, saved=1000), RecomputeCost(kept=150, inputs=100, again=70)
    found = predicted_need(cost, again, MemoryTerms(2.0, 16.0), 500)
    assert found == need(500 + FIRST_USE + 160, 2000, 2 * (100 + 2 * 70))
    found = need(660, 2000, 480)
    assert (found.bytes(3, False), found.bytes(3, True)) == (660 + 6000, 660 + 3 * 480)
    assert found.enlarged(1.5) == need(660, 3000, 720)


def test_the_doubt_of_a_line_is_the_upper_end_of_its_prediction_interval() -> None:
    x, y = [4, 8, 4, 8], [FIRST_USE + more for more in (1000.0, 1840.0, 1060.0, 1810.0)]
    line = fitted(list(zip(x, y, strict=True)), 0.0)
    slope, constant = np.polyfit(x, y, 1)
    assert (line.picture, line.constant) == (pytest.approx(slope), pytest.approx(constant))
    deviation = math.sqrt(sum((b - constant - slope * a) ** 2 for a, b in zip(x, y, strict=True)) / 2)
    for pictures in (1, 6, 8, 32):
        error = deviation * math.sqrt(1 + 1 / 4 + (pictures - 6) ** 2 / 16)
        upper = constant + slope * pictures + stats.t.ppf(0.95, 2) * error
        assert line.bytes(pictures) - FIRST_USE == pytest.approx(upper - FIRST_USE, rel=1e-3)
    exact = dataclasses.replace(line, doubt=0.0)
    assert exact.bytes(8) == round(constant + 8 * slope)
    assert line.enlarged(1.1).bytes(8) - line.bytes(8) == pytest.approx(0.1 * 8 * slope, abs=1)


def test_probes_that_agree_leave_no_doubt() -> None:
    line = fitted([(n, FIRST_USE + 10.0 + 10.0 * n) for n in (2, 4, 2, 4)], 0.0)
    assert (line.constant, line.picture, line.doubt) == (FIRST_USE + 10.0, 10.0, 0.0)


def test_what_is_known_bounds_a_measurement_from_below() -> None:
    peaks = [(n, FIRST_USE - 40.0 + 30.0 * n) for n in (2, 4, 2, 4)]
    turned = fitted(peaks, 5.0)
    assert (turned.constant, turned.bytes(4)) == (FIRST_USE, FIRST_USE - 40 + 30 * 4)
    assert turned.picture == 20.0
    assert fitted(peaks, 25.0).picture == 25.0


def test_nineteen_in_twenty_peaks_lie_below() -> None:
    """Peaks drawn about a line: two probes are fitted, and the next peak, of more pictures, is held against them."""
    draws, below = np.random.default_rng(0), 0
    for _ in range(4000):
        peaks = [(n, 2 * FIRST_USE + 100.0 * n + draws.normal(0.0, 40.0)) for n in (2, 4, 2, 4)]
        below += 2 * FIRST_USE + 100.0 * 9 + draws.normal(0.0, 40.0) <= fitted(peaks, 0.0).bytes(9)
    assert pytest.approx(stats.t.ppf(0.95, 2), abs=1e-3) == ONE_SIDED
    assert abs(below / 4000 - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 4000)


def test_a_plan_comes_back_from_its_file_and_says_what_was_chosen(tmp_path: Path) -> None:
    plan = MemoryPlan(Layout(2, 3, True), 17, 6, 2**30, 3 * 2**29, 2**31, "hardware.memory_limit", "native")
    plan.write(tmp_path / "memory.json")
    assert MemoryPlan.read(tmp_path / "memory.json") == plan
    said = "3 parts a step, 6 pictures each, blocks run again in the backward pass: 1.50 GiB of 2.00 GiB"
    assert str(plan) == f"{said} (hardware.memory_limit), as native kernels need it"
    plain = dataclasses.replace(plan, layout=Layout(), measured_bytes=None)
    assert str(plain).startswith("6 pictures at once: 1.00 GiB of 2.00 GiB (hardware.memory_limit)")


@pytest.mark.parametrize("parts", [1, 2, 7])
def test_running_statistics_move_alike_in_every_layout(parts: int) -> None:
    norm = torch.nn.BatchNorm2d(1, momentum=Layout(parts=parts).norm_momentum(0.1))
    for _ in range(parts):
        norm(torch.tensor([3.0, 5.0]).reshape(2, 1, 1, 1))
    torch.testing.assert_close(norm.running_mean, torch.tensor([0.4]))  # a tenth of the way from 0 to 4
    assert Layout().norm_momentum(0.1) == 0.1


def test_a_plan_steps_down_once_and_says_so(tmp_path: Path) -> None:
    plan = MemoryPlan(Layout(), 9, 64, 100, None, 120, "test")
    lower = plan.lower(64)
    assert lower == dataclasses.replace(plan, layout=Layout(parts=2), micro_batch=32, evaluation_batch=4, ran_out=True)
    assert "ran out" in str(lower)
    lower.write(tmp_path / "memory.json")
    assert MemoryPlan.read(tmp_path / "memory.json") == lower
    assert lower.lower(64) is None
    assert dataclasses.replace(plan, layout=layouts(64)[-1]).lower(64) is None


@dataclasses.dataclass(frozen=True)
class Really:
    """What a process would measure: constant + picture x n in one probe, and `apart` more in the next."""

    picture: float
    constant: float
    apart: float = 0.0
    most: int = 10**9  # pictures beyond which it runs out of memory


class Probes:
    """Stands for the process that measures: answers from a table, and keeps what it was asked."""

    def __init__(self, answers: dict[bool, Really | None]) -> None:
        self.answers, self.asked = answers, list[Probe]()

    def __call__(self, probe: Probe) -> Measured | None:
        self.asked.append(probe)
        real = self.answers[probe.recompute]
        if real is None or probe.many > real.most:
            return None
        more = real.constant + (real.apart if len(self.asked) % 2 == 0 else 0.0)
        return Measured(more + probe.few * real.picture, more + probe.many * real.picture)


def planned(monkeypatch: pytest.MonkeyPatch, limit: float, plain: Really | None, again: Really | None) -> Any:
    """The plan of a network that needs 1000 + 100 bytes a picture by its twins, 1000 + 40 when recomputing."""
    probes = Probes({False: plain, True: again})
    monkeypatch.setattr(probe_module, "measure", probes)
    monkeypatch.setattr(probe_module, "predicted_need", lambda *_: need(1000, 100, 40))
    monkeypatch.setattr(probe_module, "network_cost", lambda *_: Cost(1, macs=1, saved=25))
    monkeypatch.setattr(probe_module, "recompute_cost", lambda *_: RecomputeCost(0, 5, 2))  # 28 bytes are kept
    recipe = changed(batch_size=64)
    plan = plan_memory(TABLE, SIDE, 3, recipe=recipe, hardware=CPU, limit=Limit(round(limit), "test"))
    return plan, probes.asked


def test_far_below_the_limit_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, asked = planned(monkeypatch, 1000 + 64 * 100 * UNMEASURED_MARGIN, None, None)
    assert (plan.layout, plan.measured_bytes, plan.predicted_bytes, asked) == (Layout(), None, 7400, [])


def test_near_the_limit_two_probes_of_what_should_fit_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = 1000 + 64 * 100 * UNMEASURED_MARGIN - 1
    plan, asked = planned(monkeypatch, limit, Really(100.0, FIRST_USE + 50.0), None)
    assert (plan.layout, plan.measured_bytes, plan.predicted_bytes) == (Layout(), 7450, 7400)
    assert [(probe.recompute, probe.few, probe.many) for probe in asked] == [(False, 32, 64)] * 2
    plan, _ = planned(monkeypatch, limit, Really(200.0, FIRST_USE), None)
    assert (plan.layout, plan.measured_bytes) == (Layout(parts=2), 1000 + 32 * 200)


def test_probes_that_lie_apart_are_trusted_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """The doubt is that of 64 pictures after probes of 32 and 64: two pairs, each `apart`, off by half of it."""
    apart = 1000.0
    deviation = math.sqrt(4 * (apart / 2) ** 2 / 2)
    upper = 1000 + apart / 2 + 64 * 100 * MEASURED_MARGIN + ONE_SIDED * deviation * math.sqrt(1 + 1 / 4 + 1 / 4)
    for limit, parts in ((upper + 1, 1), (upper - 1, 2)):
        plan, _ = planned(monkeypatch, limit, Really(100.0, FIRST_USE, apart), Really(30.0, FIRST_USE))
        assert (plan.layout.parts, plan.layout.recompute) == (parts, False)
        assert plan.measured_bytes == 1000 + apart / 2 + plan.micro_batch * 100  # what is expected, without the doubt


def test_a_measurement_only_adds_to_what_is_known_to_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, _ = planned(monkeypatch, 1000 + 64 * 100 * MEASURED_MARGIN, Really(1.0, 0.0), None)
    assert (plan.layout, plan.measured_bytes) == (Layout(), 7400)
    plan, _ = planned(
        monkeypatch, 1000 + 16 * 100 * MEASURED_MARGIN - 1, Really(150.0, 0.0), Really(1.0, FIRST_USE + 7.0)
    )
    assert (plan.layout.recompute, plan.measured_bytes - 1007) == (True, 28 * plan.micro_batch)


def test_recomputation_is_measured_when_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, asked = planned(monkeypatch, 1000 + 16 * 100, Really(100.0, 0.0), Really(30.0, FIRST_USE + 10.0))
    assert [probe.recompute for probe in asked] == [False, False, True, True]
    assert plan.layout == Layout(parts=2, recompute=True)
    assert plan.measured_bytes == 1010 + 32 * 30
    _, asked = planned(monkeypatch, 1000 + 16 * 100 - 1, None, Really(30.0, FIRST_USE + 10.0))
    assert [probe.recompute for probe in asked] == [True, True]


def test_a_probe_that_fails_leaves_the_prediction_with_its_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, asked = planned(monkeypatch, 1000 + 64 * 100, None, None)
    assert (plan.layout, plan.measured_bytes) == (Layout(parts=2), None)
    # Ever smaller, down to as small as can be, and none of them a second time.
    assert [(probe.few, probe.many) for probe in asked] == [
        (32, 64),
        (21, 42),
        (14, 28),
        (9, 18),
        (6, 12),
        (4, 8),
        (2, 5),
        (1, 3),
        (1, 2),
    ]
    with pytest.raises(ValueError, match="even with 2 pictures"):
        planned(monkeypatch, 1000 + 2 * 40, None, None)


def test_a_smaller_probe_takes_the_place_of_one_that_ran_out(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, asked = planned(monkeypatch, 1000 + 64 * 100, Really(120.0, FIRST_USE, most=40), None)
    assert [probe.many for probe in asked] == [64, 42, 28, 28]
    assert (plan.layout, plan.measured_bytes) == (Layout(parts=2), 1000 + 32 * 120)


def test_a_probe_measures_no_more_than_should_fit_and_does_not_take_long(monkeypatch: pytest.MonkeyPatch) -> None:
    _, asked = planned(monkeypatch, 1000 + 16 * 100, Really(100.0, 0.0), Really(30.0, FIRST_USE + 10.0))
    assert {(probe.recompute, probe.few, probe.many) for probe in asked} == {(False, 8, 16), (True, 16, 32)}
    monkeypatch.setattr(probe_module, "MEASURED_MACS", 3 * 11.0)  # of a network with one multiply-add a picture
    _, asked = planned(monkeypatch, 1000 + 16 * 100, Really(100.0, 0.0), Really(30.0, FIRST_USE + 10.0))
    assert {(probe.few, probe.many) for probe in asked} == {(5, 11)}
    monkeypatch.setattr(probe_module, "MEASURED_MACS", 0.0)
    _, asked = planned(monkeypatch, 1000 + 16 * 100, Really(100.0, 0.0), Really(30.0, FIRST_USE + 10.0))
    assert {(probe.few, probe.many) for probe in asked} == {(1, 2)}


@pytest.mark.parametrize(("precision", "half"), [("32-true", False), ("bf16-mixed", True)])
def test_a_plan_reckons_with_the_kernels_that_will_train(
    precision: str, half: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    resident = probe_module.held_bytes("cpu")
    monkeypatch.setattr(probe_module, "held_bytes", lambda _: resident)
    growth = {}
    for kernels in ("plain", "torch", "native"):
        hardware = dataclasses.replace(CPU, kernels=kernels, precision=precision)
        plans = [
            plan_memory(TABLE, SIDE, 3, recipe=changed(batch_size=n), hardware=hardware, limit=Limit(2**40, "test"))
            for n in (8, 16)
        ]
        assert {plan.kernels for plan in plans} == {kernels}
        assert str(plans[0]).endswith(f"(test), as {kernels} kernels need it")
        growth[kernels] = (plans[1].predicted_bytes - plans[0].predicted_bytes) / 8
    cost = probe_module.network_cost(TABLE, SIDE, 3)
    assert growth["plain"] == cost.saved * (2 if half else 4)
    assert 0.3 < growth["native"] / growth["plain"] < 0.7 < growth["torch"] / growth["plain"] < 1.1


def test_norms_that_devices_share_are_not_fused() -> None:
    fused = dataclasses.replace(CPU, kernels="native")
    assert (reckoned_kernels(fused, 1), reckoned_kernels(fused, 2)) == ("native", "torch")
    assert reckoned_kernels(dataclasses.replace(fused, sync_norm=False), 2) == "native"
    assert reckoned_kernels(CPU, 2) == CPU.kernels == "plain"


def probe_of(**values: Any) -> Probe:
    """A probe of a network whose maps are larger than what allocators round to."""
    stage = dataclasses.replace(TABLE.stages[0], channels=32)
    table = dataclasses.replace(TABLE, stages=(stage,))
    return dataclasses.replace(Probe(table, 128, 3, changed(), CPU, False, 8, 16, 4 * 2**30), **values)


def test_a_probe_measures_in_its_own_process_and_leaves_this_one_alone() -> None:
    random = torch.get_rng_state()
    found = measure(probe_of())
    assert torch.equal(torch.get_rng_state(), random)
    assert found is not None
    predicted = 4 * probe_module.network_cost(probe_of().network, 128, 3).saved
    picture = (found.many - found.few) / 8
    assert 0.9 * predicted < picture < 2.0 * predicted
    assert -16 * MIB < found.few - 8 * picture < 200 * MIB


@pytest.mark.slow
def test_a_probe_that_runs_out_of_memory_has_no_answer() -> None:
    assert measure(probe_of(few=64, many=128, limit=400 * MIB)) is None


def one_step(*arguments: str) -> dict[str, Any]:
    """What `one_step.py` prints."""
    done = subprocess.run([sys.executable, str(ONE_STEP), *arguments], capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-2000:]
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def check(result: dict[str, Any], limit: int) -> None:
    """Every weight moved, none is broken, and the process stayed within its limit."""
    assert result["finite"] and result["moved"] == 1.0
    assert result["limit_bytes"] == limit
    assert result["peak_bytes"] <= limit
    assert result["predicted_bytes"] <= limit


def test_a_step_within_a_limit_that_one_micro_batch_would_break() -> None:
    result = one_step("efficientnet_nano", "96", "32", "600MiB")
    check(result, 600 * MIB)
    assert result["layout"] == dataclasses.asdict(Layout(parts=2))
    assert result["measured_bytes"] > result["predicted_bytes"]


@pytest.mark.slow
def test_a_recomputed_step_within_a_small_limit() -> None:
    result = one_step("efficientnet_nano", "96", "32", "450MiB")
    check(result, 450 * MIB)
    assert result["layout"]["recompute"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "kernels"), [*((f"b{number}", "native") for number in range(8)), ("b3", "plain"), ("b6", "plain")]
)
def test_published_networks_train_two_steps_within_4_gib(rule: str, kernels: str) -> None:
    if kernels == "native" and native.load() is None:
        pytest.skip(native.why_not())
    result = one_step("efficientnet_b0", rule, "32", "4GiB", "2", kernels)
    print(rule, result)
    check(result, 4 * 2**30)
    assert result["kernels"] == kernels
