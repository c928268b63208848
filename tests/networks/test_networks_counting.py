"""Three counters that share no code - cost twins, fvcore, torch's FlopCounterMode - agree on every table, to the
unit."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shipped_tables import SHIPPED, shipped, tables
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from src.networks import blocks as blocks_module
from src.networks import build as build_module
from src.networks.build import ConvNet, build, network_cost, stage_costs
from src.networks.cost import Cost
from src.networks.layers import ConvNorm, SqueezeExcite, conv_norm_cost, linear_cost, squeeze_excite_cost
from src.networks.table import Network, Norm, Stage, Stem

SMALL = Network("small", 9, Stem(4, 2), (Stage("mbconv", 3, 1, 1, 4, 2, 0.25), Stage("mbconv", 5, 2, 3, 6, 2, 0.25)), 8)


class Counts(NamedTuple):
    macs: int
    params: int
    activations: int


def executed(model: nn.Module, resolution: int) -> tuple[Counts, int]:
    """Counts of a built module by fvcore and by hooks, and fvcore's own total."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from fvcore.nn import FlopCountAnalysis
    elements: list[int] = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda module, inputs, output: elements.append(output.numel()))
    images = torch.zeros(1, 3, resolution, resolution)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model(images)
        activations = sum(elements)
        analysis = FlopCountAnalysis(model, images).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        operators = analysis.by_operator()
    params = sum(p.numel() for p in model.parameters())
    return Counts(int(operators["conv"] + operators["linear"]), params, activations), int(sum(operators.values()))


def dispatched_macs(network: Network, resolution: int, classes: int) -> int:
    """Multiply-adds by torch's own counter, on a module without data."""
    with torch.device("meta"):
        model = build(network, classes).eval()
        images = torch.empty(1, 3, resolution, resolution)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images)
    flops = int(counter.get_total_flops())
    assert flops % 2 == 0
    return flops // 2


def twin(network: Network, resolution: int, classes: int) -> Counts:
    cost = network_cost(network, resolution, classes)
    return Counts(cost.macs, cost.params, cost.activations)


def assert_counters_agree(network: Network, resolution: int, classes: int, model: ConvNet | None = None) -> None:
    expected = twin(network, resolution, classes)
    counts, fvcore_total = executed((model or build(network, classes)).eval(), resolution)
    assert counts == expected
    assert dispatched_macs(network, resolution, classes) == expected.macs
    assert fvcore_total == expected.macs + 2 * expected.activations  # fvcore adds 2 for each element batch norm passes


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_tables_at_their_native_resolution(name: str) -> None:
    network = shipped(name)
    assert_counters_agree(network, network.resolution, 10)


@settings(max_examples=15, deadline=None)
@given(network=tables, classes=st.integers(1, 7))
def test_any_legal_table(network: Network, classes: int) -> None:
    assert_counters_agree(network, network.resolution, classes)


@settings(max_examples=100, deadline=None)
@given(network=tables, classes=st.integers(1, 7), data=st.data())
def test_costs_by_stage_add_up_for_any_repeats(network: Network, classes: int, data: st.DataObject) -> None:
    """Depth scaling reuses the costs of one table: they must be those of the table with other repeats."""
    repeats = tuple(data.draw(st.integers(1, 6)) for _ in network.stages)
    reused = stage_costs(network, network.resolution, classes).total(repeats)
    rebuilt = network_cost(network.with_shape(repeats, network.channels), network.resolution, classes)
    assert (reused.macs, reused.params, reused.activations) == (rebuilt.macs, rebuilt.params, rebuilt.activations)


@settings(max_examples=60, deadline=None)
@given(
    side=st.integers(1, 40),
    kernel=st.sampled_from((1, 3, 5, 7)),
    stride=st.integers(1, 4),
    groups=st.integers(1, 4),
    factor=st.integers(1, 3),
)
def test_a_convolution_maps_sides_as_its_twin_says(
    side: int, kernel: int, stride: int, groups: int, factor: int
) -> None:
    layer = ConvNorm(2 * groups, groups * factor, kernel, stride, groups, Norm(), "silu").eval()
    output = layer(torch.zeros(1, 2 * groups, side, side))
    cost = conv_norm_cost(Cost(side), 2 * groups, groups * factor, kernel, stride, groups)
    assert output.shape == (1, groups * factor, cost.side, cost.side)
    assert cost.side == (side + stride - 1) // stride
    assert cost.activations == output.numel()
    assert cost.params == sum(p.numel() for p in layer.parameters())
    assert cost.macs == output.numel() * kernel * kernel * 2


def test_small_layers_counted_by_hand() -> None:
    # 3x3, 3 -> 8 channels, stride 2 on 5x5: 9 outputs a channel of 27 products each; 216 weights + 16 of batch norm
    assert conv_norm_cost(Cost(5), 3, 8, 3, 2, 1) == Cost(3, 9 * 8 * 27, 216 + 16, 72)
    assert conv_norm_cost(Cost(5), 8, 8, 3, 1, 8) == Cost(5, 25 * 8 * 9, 72 + 16, 200)
    assert squeeze_excite_cost(Cost(5, 1, 1, 1), 8, 2) == Cost(5, 1 + 32, 1 + 32 + 10, 1)
    assert linear_cost(Cost(5), 8, 3) == Cost(1, 24, 27, 0)


def test_costs_add_and_repeat() -> None:
    cost = Cost(4, 10, 20, 30)
    assert cost.then(2, 1, 2, 3) == Cost(2, 11, 22, 33)
    assert cost.times(3) == Cost(4, 30, 60, 90)
    assert cost.then(2, 1, 2, 3).minus(cost) == Cost(2, 1, 2, 3)


def one_more(cost: Cost, *arguments: int) -> Cost:
    counted = conv_norm_cost(cost, *arguments)
    return Cost(counted.side, counted.macs + 1, counted.params, counted.activations)


@pytest.mark.parametrize("module", [blocks_module, build_module], ids=["block", "stem and head"])
def test_a_fault_planted_in_a_twin_is_found(module: object, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_counters_agree(SMALL, 9, 3)
    monkeypatch.setattr(module, "conv_norm_cost", one_more)
    with pytest.raises(AssertionError):
        assert_counters_agree(SMALL, 9, 3)


def drop_excitation(model: ConvNet) -> None:
    model.stages[0][0].excite = nn.Identity()  # type: ignore[index]


def double_squeeze(model: ConvNet) -> None:
    model.stages[1][1].excite = SqueezeExcite(18, 2, "silu")  # type: ignore[index]


def drop_block(model: ConvNet) -> None:
    model.stages[0] = nn.Sequential(model.stages[0][0])  # type: ignore[index]


def stride_less(model: ConvNet) -> None:
    model.stages[1][0].depthwise[0].stride = (1, 1)  # type: ignore[index]


def add_bias(model: ConvNet) -> None:
    model.head[0].bias = nn.Parameter(torch.zeros(8))


@pytest.mark.parametrize("fault", [drop_excitation, double_squeeze, drop_block, stride_less, add_bias])
def test_a_fault_planted_in_a_module_is_found(fault: Callable[[ConvNet], None]) -> None:
    model = build(SMALL, 3)
    fault(model)
    counts, _ = executed(model.eval(), 9)
    assert counts != twin(SMALL, 9, 3)
