"""Counters that share no code - cost twins, fvcore, torch's FlopCounterMode, hooks of autograd - agree on every table,
to the unit."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shipped_tables import SHIPPED, shipped, tables
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from src.networks import blocks as blocks_module
from src.networks import build as build_module
from src.networks.build import ConvNet, build, network_cost, stage_costs
from src.networks.cost import Cost
from src.networks.layers import (
    ConvNorm,
    SqueezeExcite,
    activation_cost,
    conv_norm_cost,
    linear_cost,
    max_pool,
    max_pool_cost,
    squeeze_excite_cost,
)
from src.networks.table import Network, Norm, Stage, Stem

EFFICIENT = (
    Stage("mbconv", 3, 1, 4, 2, expand=1, se_ratio=0.25),
    Stage("mbconv", 5, 2, 6, 2, expand=3, se_ratio=0.25),
)
SMALL = Network("small", 9, Stem(4, 2), EFFICIENT, 8)
MIXED = Network(
    "mixed",
    16,
    Stem(4, 1, kernel=5, pool=2),
    (
        Stage("separable", 3, 1, 6, 2),
        Stage("bottleneck", 3, 2, 12, 2, groups=3, reduce=2),
        Stage("mbconv", 3, 1, 12, 1, expand=2),
        Stage("bottleneck", 5, 1, 12, 1, groups=1, reduce=4),
    ),
    0,
    activation="relu",
    channel_divisor=12,
)


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
def test_shipped_tables_are_counted_alike_by_everyone(name: str) -> None:
    """Where execution is fast, at 32 px; by torch's counter also at the native side."""
    network = shipped(name)
    assert_counters_agree(network, 32, 10)
    expected = network_cost(network, network.resolution, network.classes)
    assert dispatched_macs(network, network.resolution, network.classes) == expected.macs


@settings(max_examples=25, deadline=None)
@given(network=tables(), classes=st.integers(1, 7))
def test_any_legal_table(network: Network, classes: int) -> None:
    assert_counters_agree(network, network.resolution, classes)


@settings(max_examples=100, deadline=None)
@given(network=tables(), classes=st.integers(1, 7), data=st.data())
def test_costs_by_stage_add_up_for_any_repeats(network: Network, classes: int, data: st.DataObject) -> None:
    """Depth scaling reuses the costs of one table: they must be those of the table with other repeats."""
    repeats = tuple(data.draw(st.integers(1, 6)) for _ in network.stages)
    reused = stage_costs(network, network.resolution, classes).total(repeats)
    rebuilt = network_cost(network.with_shape(repeats, network.channels), network.resolution, classes)
    assert reused == rebuilt


def kept_elements(model: nn.Module, pictures: int, resolution: int) -> float:
    """Float32 elements of all storages that autograd keeps in training mode, weights and running statistics
    excluded."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage  # held, so that no other storage takes its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = model.train()(torch.zeros(pictures, 3, resolution, resolution))
    assert outputs.logits.requires_grad
    return sum(storage.nbytes() for storage in kept.values()) / 4


def saved_by_one_more_picture(model: nn.Module, resolution: int) -> float:
    """What a third picture adds to two; batch norm's statistics are of the batch and drop out."""
    return kept_elements(model, 3, resolution) - kept_elements(model, 2, resolution)


@pytest.mark.parametrize("resolution", [32, 49])
@pytest.mark.parametrize("name", SHIPPED)
def test_the_memory_of_the_backward_pass_is_exact_for_shipped_tables(name: str, resolution: int) -> None:
    network = shipped(name)
    expected = network_cost(network, resolution, 10).saved
    assert saved_by_one_more_picture(build(network, 10), resolution) == expected


@settings(max_examples=25, deadline=None)
@given(network=tables(), classes=st.integers(1, 7))
def test_the_memory_of_the_backward_pass_is_exact_for_any_table(network: Network, classes: int) -> None:
    expected = network_cost(network, network.resolution, classes).saved
    assert saved_by_one_more_picture(build(network, classes), network.resolution) == expected


def test_the_memory_of_b0_is_the_published_measurement() -> None:
    # 84.11 MiB a picture at 224 px in timm 1.0.31 and torchvision 0.28, by the same hooks, statistics included
    assert network_cost(shipped("efficientnet_b0"), 224, 1000).saved * 4 / 2**20 == pytest.approx(84.11, rel=1e-3)


@settings(max_examples=60, deadline=None)
@given(network=tables(), classes=st.integers(1, 7), data=st.data())
def test_prices_of_arrays_are_those_of_their_entries(network: Network, classes: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 4))
    sides = np.array([data.draw(st.integers(1, 40)) for _ in range(count)])
    factors = np.array([data.draw(st.integers(1, 4)) for _ in range(count)])
    channels = [c * data.draw(st.sampled_from((1, factors))) for c in network.channels]
    repeats = [data.draw(st.sampled_from((2, factors))) for _ in network.stages]
    together = stage_costs(network, sides, classes, channels).total(repeats)
    for i in range(count):
        shape = tuple(int(np.broadcast_to(c, count)[i]) for c in channels)
        alone = stage_costs(network, int(sides[i]), classes, shape)
        for field in dataclasses.fields(Cost):
            entry = np.broadcast_to(getattr(together, field.name), count)[i]
            assert entry == getattr(alone.total([int(np.broadcast_to(n, count)[i]) for n in repeats]), field.name)
        rebuilt = network.with_shape(network.repeats, shape)
        assert alone == stage_costs(rebuilt, int(sides[i]), classes)


def test_prices_of_arrays_do_not_overflow() -> None:
    network = shipped("resnet50")
    wide = [c * np.array([1, 8]) for c in network.channels]
    priced = stage_costs(network, np.array([224, 4096]), 1000, wide).total(np.array(network.repeats) * 100)
    alone = stage_costs(network, 4096, 1000, [c * 8 for c in network.channels]).total(
        [100 * n for n in network.repeats]
    )
    assert priced.macs.dtype == np.int64 and priced.macs[1] == alone.macs > 2**32


@pytest.mark.parametrize("name", SHIPPED)
def test_every_table_builds_without_memory(name: str) -> None:
    with torch.device("meta"):
        model = build(shipped(name), 5)
        outputs = model(torch.empty(2, 3, 64, 64))
    assert all(t.is_meta for t in (*model.state_dict().values(), *outputs))
    assert outputs.logits.shape == (2, 5)


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
    cost = conv_norm_cost(Cost(side), 2 * groups, groups * factor, kernel, stride, groups, "silu")
    assert output.shape == (1, groups * factor, cost.side, cost.side)
    assert cost.side == (side + stride - 1) // stride
    assert cost.activations == output.numel()
    assert cost.params == sum(p.numel() for p in layer.parameters())
    assert cost.macs == output.numel() * kernel * kernel * 2


@settings(max_examples=30, deadline=None)
@given(side=st.integers(1, 40), stride=st.integers(1, 4))
def test_pooling_maps_sides_as_its_twin_says(side: int, stride: int) -> None:
    output = max_pool(stride)(torch.zeros(1, 2, side, side))
    cost = max_pool_cost(Cost(side), 2, stride)
    assert output.shape[2:] == (cost.side, cost.side)
    assert (cost.macs, cost.params, cost.activations) == (0, 0, 0)


def test_small_layers_counted_by_hand() -> None:
    # 3x3, 3 -> 8 channels, stride 2 on 5x5: 9 outputs a channel of 27 products each; 216 weights + 16 of batch norm.
    # Kept: 75 elements of the input, and 72 of each map that batch norm and the activation receive.
    assert conv_norm_cost(Cost(5), 3, 8, 3, 2, 1, None) == Cost(3, 9 * 8 * 27, 216 + 16, 72, 75 + 72)
    assert conv_norm_cost(Cost(5), 3, 8, 3, 2, 1, "silu") == Cost(3, 9 * 8 * 27, 216 + 16, 72, 75 + 2 * 72)
    assert conv_norm_cost(Cost(5), 8, 8, 3, 1, 8, None) == Cost(5, 25 * 8 * 9, 72 + 16, 200, 200 + 200)
    # ReLU keeps its output, which the next convolution then keeps for nothing.
    assert activation_cost(Cost(5), 8, "relu") == Cost(5, saved=200, map_saved=True)
    assert conv_norm_cost(Cost(5, map_saved=True), 8, 8, 3, 1, 8, None) == Cost(5, 25 * 8 * 9, 72 + 16, 200, 200)
    assert squeeze_excite_cost(Cost(5, 1, 1, 1, 1), 8, 2, "silu") == Cost(
        5, 1 + 32, 1 + 32 + 10, 1, 1 + 200 + 8 + 2 + 2 + 8
    )
    assert squeeze_excite_cost(Cost(5, map_saved=True), 8, 2, "relu") == Cost(5, 32, 42, 0, 8 + 2 + 8)
    assert max_pool_cost(Cost(5), 8, 2) == Cost(3, saved=200 + 2 * 72)
    assert max_pool_cost(Cost(5, map_saved=True), 8, 1) == Cost(5, map_saved=True)
    assert linear_cost(Cost(5), 8, 3) == Cost(1, 24, 27, 0, 8)


def test_costs_add_and_repeat() -> None:
    cost = Cost(4, 10, 20, 30, 40)
    assert cost.then(2, 1, 2, 3, 4) == Cost(2, 11, 22, 33, 44)
    assert cost.then(2, 1, 2, 3, 4, True).map_saved
    assert cost.times(3) == Cost(4, 30, 60, 90, 120)
    assert cost.then(2, 1, 2, 3, 4).minus(cost) == Cost(2, 1, 2, 3, 4)


def one_more(cost: Cost, *arguments: Any) -> Cost:
    counted = conv_norm_cost(cost, *arguments)
    return dataclasses.replace(counted, macs=counted.macs + 1)


@pytest.mark.parametrize("network", [SMALL, MIXED], ids=lambda network: network.name)
@pytest.mark.parametrize("module", [blocks_module, build_module], ids=["block", "stem and head"])
def test_a_fault_planted_in_a_twin_is_found(network: Network, module: object, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_counters_agree(network, 9, 3)
    monkeypatch.setattr(module, "conv_norm_cost", one_more)
    with pytest.raises(AssertionError):
        assert_counters_agree(network, 9, 3)


@pytest.mark.parametrize("name", ["conv_norm_cost", "activation_cost", "squeeze_excite_cost"])
def test_a_fault_planted_in_the_memory_of_a_twin_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = SMALL if name == "squeeze_excite_cost" else MIXED
    right = getattr(blocks_module, name)

    def one_more_saved(cost: Cost, *arguments: Any) -> Cost:
        counted = right(cost, *arguments)
        return dataclasses.replace(counted, saved=counted.saved + 1)

    measured = saved_by_one_more_picture(build(network, 3), 16)
    assert measured == network_cost(network, 16, 3).saved
    monkeypatch.setattr(blocks_module, name, one_more_saved)
    assert measured != network_cost(network, 16, 3).saved


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


def grouped_shortcut(model: ConvNet) -> None:
    model.stages[1][0].shortcut[0] = nn.Conv2d(6, 12, 1, 2, groups=2, bias=False)  # type: ignore[index]


def ungroup(model: ConvNet) -> None:
    model.stages[1][1].spatial[0] = nn.Conv2d(6, 6, 3, padding=1, bias=False)  # type: ignore[index]


def drop_pool(model: ConvNet) -> None:
    model.pool = nn.Identity()


def add_head(model: ConvNet) -> None:
    model.head = ConvNorm(12, 12, 1, 1, 1, Norm(), "relu")


@pytest.mark.parametrize("fault", [grouped_shortcut, ungroup, drop_pool, add_head])
def test_a_fault_planted_in_a_module_of_another_kind_is_found(fault: Callable[[ConvNet], None]) -> None:
    model = build(MIXED, 3)
    fault(model)
    counts, _ = executed(model.eval(), 9)
    assert counts != twin(MIXED, 9, 3)


@pytest.mark.parametrize("fault", [drop_excitation, double_squeeze, drop_block, stride_less, add_bias])
def test_a_fault_planted_in_a_module_is_found(fault: Callable[[ConvNet], None]) -> None:
    model = build(SMALL, 3)
    fault(model)
    counts, _ = executed(model.eval(), 9)
    assert counts != twin(SMALL, 9, 3)
