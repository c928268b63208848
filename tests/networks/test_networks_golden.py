"""Networks scaled with the released rounding against published and independently counted numbers."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from golden import (
    AROUND_TABLE_7,
    B0_SE_FROM_EXPANDED,
    GOLDEN,
    PAPER_TABLE_2,
    RELEASED,
    SMALL_INPUT,
    TABLE_7,
    Golden,
)
from shipped_tables import shipped
from torch.utils.flop_counter import FlopCounterMode

from src.networks.build import build, network_cost
from src.networks.table import Network
from src.scaling.rounding import scale_as_released

ROWS = [pytest.param(row, id=row.name) for row in GOLDEN]


def released(row: Golden) -> Network:
    network = scale_as_released(shipped("efficientnet_b0"), row.width, row.depth)
    return dataclasses.replace(network, stem=dataclasses.replace(network.stem, stride=row.stem_stride))


@pytest.mark.parametrize("row", ROWS)
def test_the_twins_count_golden_networks_to_the_unit(row: Golden) -> None:
    network = released(row)
    cost = network_cost(network, row.resolution, row.classes)
    assert (cost.params, cost.macs) == (row.params, row.macs)
    assert (network.blocks, network.final_side(row.resolution)) == (row.blocks, row.final)


@pytest.mark.parametrize("row", RELEASED + TABLE_7, ids=lambda row: row.name)
def test_the_built_networks_execute_these_numbers(row: Golden) -> None:
    with torch.device("meta"):
        model = build(released(row), row.classes).eval()
        images = torch.empty(1, 3, row.resolution, row.resolution)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        outputs = model(images)
    assert sum(p.numel() for p in model.parameters()) == row.params
    assert counter.get_total_flops() == 2 * row.macs
    assert outputs.features.shape[2:] == (row.final, row.final)
    assert outputs.logits.shape == (1, row.classes)


@pytest.mark.parametrize(
    "row", {(row.width, row.depth): row for row in SMALL_INPUT + AROUND_TABLE_7}.values(), ids=lambda row: row.name
)
def test_the_built_golden_networks_have_these_parameters(row: Golden) -> None:
    with torch.device("meta"):
        model = build(released(row), row.classes)
    assert sum(p.numel() for p in model.parameters()) == row.params
    assert sum(len(list(stage.children())) for stage in model.stages) == row.blocks


@pytest.mark.parametrize("row", [r for r in GOLDEN if r.activations is not None], ids=lambda row: row.name)
def test_activations_are_the_counted_ones(row: Golden) -> None:
    cost = network_cost(released(row), row.resolution, row.classes)
    digits = 1 if row.activations is not None and row.activations > 100 else 2
    assert round(cost.activations / 1e6, digits) == row.activations


def test_activations_of_b0_to_the_unit() -> None:
    assert network_cost(shipped("efficientnet_b0"), 224, 1000).activations == 6_737_696


@pytest.mark.parametrize("row", RELEASED[:4], ids=lambda row: row.name)
def test_real_weights_have_the_golden_number_of_parameters(row: Golden) -> None:
    model = build(released(row), row.classes)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == row.params


@pytest.mark.parametrize("row", RELEASED, ids=lambda row: row.name)
def test_the_paper_prints_the_same_within_its_rounding(row: Golden) -> None:
    params, flops = PAPER_TABLE_2[row.name]
    cost = network_cost(released(row), row.resolution, row.classes)
    assert cost.params / 1e6 == pytest.approx(params, rel=0.03)
    assert cost.macs / 1e9 == pytest.approx(flops, rel=0.05)


def test_the_arms_of_table_7_are_not_of_one_cost() -> None:
    # Why this framework solves for the factor: the paper's compound arm has 14, 24 and 17 % more than its rivals.
    macs = {row.name: network_cost(released(row), row.resolution, row.classes).macs for row in TABLE_7}
    excess = [round(100 * (macs["compound"] / macs[name] - 1), 1) for name in ("depth4", "width2", "resolution2")]
    assert excess == [14.3, 24.1, 17.1]


def test_the_shipped_b0_is_table_1() -> None:
    table = shipped("efficientnet_b0")
    assert table.channels == (32, 16, 24, 40, 80, 112, 192, 320, 1280)
    assert table.repeats == (1, 2, 2, 3, 3, 4, 1)
    assert [stage.kernel for stage in table.stages] == [3, 3, 5, 3, 5, 5, 3]
    assert [stage.stride for stage in table.stages] == [1, 2, 2, 2, 1, 2, 1]
    assert [stage.expand for stage in table.stages] == [1, 6, 6, 6, 6, 6, 6]
    assert {stage.se_ratio for stage in table.stages} == {0.25}
    assert (table.resolution, table.stem.stride, table.output_stride) == (224, 2, 32)


def test_b0_small_differs_from_b0_in_strides_only() -> None:
    small, b0 = shipped("efficientnet_b0_small"), shipped("efficientnet_b0")
    assert (small.output_stride, small.final_side(32)) == (8, 4)
    restrided = tuple(dataclasses.replace(a, stride=b.stride) for a, b in zip(small.stages, b0.stages, strict=True))
    same = ("name", "resolution", "source")
    changed = dataclasses.replace(
        small,
        stages=restrided,
        stem=dataclasses.replace(small.stem, stride=2),
        **{key: getattr(b0, key) for key in same},
    )
    assert changed == b0
    # 116.3 M multiply-adds, 4.14 M parameters at 32 px with 100 classes
    cost = network_cost(small, 32, 100)
    assert (round(cost.macs / 1e6, 1), round(cost.params / 1e6, 2)) == (116.3, 4.14)


def test_squeeze_width_comes_from_the_blocks_input() -> None:
    """The only difference between 5,288,548 and the widespread 8,423,848 parameters is where the ratio is taken
    from."""
    table = shipped("efficientnet_b0")
    model = build(table, 1000)
    c_in, wrong = table.stem.channels, 0
    for stage, blocks in zip(table.stages, model.stages, strict=True):
        for block in blocks:  # type: ignore[attr-defined]
            squeezed = block.excite.reduce.out_features
            assert squeezed == max(1, int(0.25 * c_in))
            c_mid = c_in * stage.expand
            assert block.excite.reduce.in_features == block.excite.expand.out_features == c_mid
            wrong += (2 * c_mid + 1) * (c_mid // 4 - squeezed)
            c_in = stage.channels
    params = sum(p.numel() for p in model.parameters())
    assert params != B0_SE_FROM_EXPANDED
    assert params + wrong == B0_SE_FROM_EXPANDED
