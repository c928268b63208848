"""Which layout a batch is trained in: the order of layouts, fitting into a limit, the probe, and real steps within an
enforced limit."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from training_tiny import CPU, SIDE, TABLE, changed

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
    UNMEASURED_MARGIN,
    MemoryPlan,
    Need,
    choose,
    evaluation_batch,
    layouts,
    predicted_need,
    step_down,
)
from src.training.probe import Measured, Probe, measure, plan_memory

ONE_STEP = Path(__file__).with_name("one_step.py")
MIB = 2**20


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
    assert choose(64, 1, limit, Need(10, 8, 3)) == expected


def test_what_cannot_fit_is_refused_with_what_it_needs_and_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"needs 3\.00 GiB .* with 2 pictures .* 2\.99 GiB .* hardware\.memory_limit"):
        choose(32, 1, round(2.99 * 2**30), Need(2**30, 3 * 2**30, 2**30))


def test_evaluation_takes_as_many_pictures_as_fit() -> None:
    assert evaluation_batch(1000, Need(100, 50, 9)) == 100
    assert evaluation_batch(10**9, Need(100, 50, 9)) == LARGEST_EVALUATION_BATCH
    assert evaluation_batch(105, Need(100, 50, 9)) == 1


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
    need = predicted_need(cost, again, MemoryTerms(2.0, 16.0), 500)
    assert need == Need(500 + FIRST_USE + 160, 2000, 2 * (100 + 2 * 70))
    need = dataclasses.replace(need, constant=660)
    assert (need.bytes(3, False), need.bytes(3, True)) == (660 + 6000, 660 + 3 * 480)
    assert need.enlarged(1.5) == Need(660, 3000, 720)


def test_a_plan_comes_back_from_its_file_and_says_what_was_chosen(tmp_path: Path) -> None:
    plan = MemoryPlan(Layout(2, 3, True), 17, 6, 2**30, 3 * 2**29, 2**31, "hardware.memory_limit")
    plan.write(tmp_path / "memory.json")
    assert MemoryPlan.read(tmp_path / "memory.json") == plan
    said = "3 parts a step, 6 pictures each, blocks run again in the backward pass: 1.50 GiB of 2.00 GiB"
    assert str(plan) == f"{said} (hardware.memory_limit)"
    plain = dataclasses.replace(plan, layout=Layout(), measured_bytes=None)
    assert str(plain) == "6 pictures at once: 1.00 GiB of 2.00 GiB (hardware.memory_limit)"


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


class Probes:
    """Stands for the process that measures: answers from a table, and keeps what it was asked."""

    def __init__(self, answers: dict[bool, Measured | None]) -> None:
        self.answers, self.asked = answers, list[Probe]()

    def __call__(self, probe: Probe) -> Measured | None:
        self.asked.append(probe)
        return self.answers[probe.recompute]


def planned(monkeypatch: pytest.MonkeyPatch, limit: float, plain: Measured | None, again: Measured | None) -> Any:
    """The plan of a network that needs 1000 + 100 bytes a picture by its twins, 1000 + 40 when recomputing."""
    probes = Probes({False: plain, True: again})
    monkeypatch.setattr(probe_module, "measure", probes)
    monkeypatch.setattr(probe_module, "predicted_need", lambda *_: Need(1000, 100, 40))
    monkeypatch.setattr(probe_module, "network_cost", lambda *_: Cost(1, saved=25))
    monkeypatch.setattr(probe_module, "recompute_cost", lambda *_: RecomputeCost(0, 5, 2))  # 28 bytes are kept
    recipe = changed(batch_size=64)
    plan = plan_memory(TABLE, SIDE, 3, recipe=recipe, hardware=CPU, limit=Limit(round(limit), "test"))
    return plan, probes.asked


def test_far_below_the_limit_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, asked = planned(monkeypatch, 1000 + 64 * 100 * UNMEASURED_MARGIN, None, None)
    assert (plan.layout, plan.measured_bytes, plan.predicted_bytes, asked) == (Layout(), None, 7400, [])


def test_near_the_limit_a_probe_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = 1000 + 64 * 100 * UNMEASURED_MARGIN - 1
    plan, asked = planned(monkeypatch, limit, Measured(100.0, FIRST_USE + 50.0), None)
    assert (plan.layout, plan.measured_bytes, plan.predicted_bytes) == (Layout(), 7450, 7400)
    assert [(probe.recompute, probe.few, probe.many) for probe in asked] == [(False, 32, 64)]
    plan, _ = planned(monkeypatch, limit, Measured(200.0, 0.0), None)
    assert (plan.layout, plan.measured_bytes) == (Layout(parts=2), 1000 + 32 * 200)


def test_a_measurement_only_adds_to_what_is_known_to_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, _ = planned(monkeypatch, 1000 + 64 * 100 * MEASURED_MARGIN, Measured(1.0, 0.0), None)
    assert (plan.layout, plan.measured_bytes) == (Layout(), 7400)
    plan, _ = planned(
        monkeypatch, 1000 + 16 * 100 * MEASURED_MARGIN - 1, Measured(150.0, 0.0), Measured(1.0, FIRST_USE + 7.0)
    )
    assert (plan.layout.recompute, plan.measured_bytes - 1007) == (True, 28 * plan.micro_batch)


def test_recomputation_is_measured_when_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, asked = planned(monkeypatch, 1000 + 16 * 100, Measured(100.0, 0.0), Measured(30.0, FIRST_USE + 10.0))
    assert [probe.recompute for probe in asked] == [False, True]
    assert plan.layout == Layout(parts=2, recompute=True)
    assert plan.measured_bytes == 1010 + 32 * 30
    _, asked = planned(monkeypatch, 1000 + 16 * 100 - 1, None, Measured(30.0, FIRST_USE + 10.0))
    assert [probe.recompute for probe in asked] == [True]


def test_a_probe_that_fails_leaves_the_prediction_with_its_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, asked = planned(monkeypatch, 1000 + 64 * 100, None, None)
    assert (plan.layout, plan.measured_bytes) == (Layout(parts=2), None)
    assert [(probe.few, probe.many) for probe in asked] == [(32, 64), (1, 2)]  # once more, as small as can be
    with pytest.raises(ValueError, match="even with 2 pictures"):
        planned(monkeypatch, 1000 + 2 * 40, None, None)


def test_a_probe_never_goes_beyond_the_limit_by_its_own_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    _, asked = planned(monkeypatch, 1000 + 16 * 100, Measured(100.0, 0.0), Measured(30.0, FIRST_USE + 10.0))
    assert [(probe.few, probe.many) for probe in asked] == [(1, 2), (1, 2)]


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
    assert 0.9 * predicted < found.picture < 2.0 * predicted
    assert 0 <= found.constant < 200 * MIB


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
@pytest.mark.parametrize("rule", [f"b{number}" for number in range(8)])
def test_published_networks_train_a_step_within_4_gib(rule: str) -> None:
    result = one_step("efficientnet_b0", rule, "32", "4GiB")
    print(rule, result)
    check(result, 4 * 2**30)
