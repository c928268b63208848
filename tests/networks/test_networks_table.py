"""Stage tables: every impossible value is refused by key and value, and shapes follow from the table."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shipped_tables import SHIPPED, shipped, tables

from src.networks.build import build
from src.networks.table import Network, Norm, Stage, Stem, check_final_map, smallest_resolution


def stem(**changes: Any) -> Stem:
    return Stem(**{"channels": 8, "stride": 2, "kernel": 3, **changes})


def stage(**changes: Any) -> Stage:
    values = {"block": "mbconv", "kernel": 3, "stride": 1, "expand": 2, "channels": 8, "repeats": 2, "se_ratio": 0.25}
    return Stage(**{**values, **changes})


def network(**changes: Any) -> Network:
    values = {"name": "small", "resolution": 16, "stem": stem(), "stages": (stage(),), "head_channels": 16}
    return Network(**{**values, **changes})


def norm(**changes: Any) -> Norm:
    return Norm(**changes)


REFUSED: list[tuple[Callable[..., object], str, str, list[Any]]] = [
    (stem, "network.stem.channels", "channels", [0, -8]),
    (stem, "network.stem.stride", "stride", [0, -1]),
    (stem, "network.stem.kernel", "kernel", [0, -3, 2, 4]),
    (stage, "network.stages.block", "block", ["mbconf", "resnet", ""]),
    (stage, "network.stages.kernel", "kernel", [0, -1, 2, 4]),
    (stage, "network.stages.stride", "stride", [0, -2]),
    (stage, "network.stages.expand", "expand", [0, -6]),
    (stage, "network.stages.channels", "channels", [0, -1]),
    (stage, "network.stages.repeats", "repeats", [0, -1]),
    (stage, "network.stages.se_ratio", "se_ratio", [-0.25, 1.5, float("nan")]),
    (norm, "network.norm.eps", "eps", [0.0, -1e-3, float("nan"), float("inf")]),
    (norm, "network.norm.momentum", "momentum", [0.0, -0.1, 1.01, float("nan")]),
    (network, "network.resolution", "resolution", [0, -32]),
    (network, "network.head_channels", "head_channels", [0, -1]),
    (network, "network.channel_divisor", "channel_divisor", [0, -8]),
    (network, "network.activation", "activation", ["swish", "", "ReLU"]),
]


@pytest.mark.parametrize(
    ("make", "key", "field", "value"),
    [pytest.param(make, key, field, v, id=f"{key}={v}") for make, key, field, values in REFUSED for v in values],
)
def test_an_impossible_value_is_refused_by_key_and_value(
    make: Callable[..., object], key: str, field: str, value: Any
) -> None:
    make()
    with pytest.raises(ValueError) as refusal:
        make(**{field: value})
    assert f"{key}={value!r}" in str(refusal.value)


@pytest.mark.parametrize(
    ("make", "field", "values"),
    [
        (stem, "kernel", [1, 3, 7]),
        (stage, "kernel", [1, 7]),
        (stage, "se_ratio", [0.0, 1.0]),
        (norm, "momentum", [1.0, 1e-6]),
        (norm, "eps", [1e-8]),
    ],
)
def test_values_on_the_edge_are_accepted(make: Callable[..., object], field: str, values: list[Any]) -> None:
    for value in values:
        assert getattr(make(**{field: value}), field) == value


def test_unknown_words_come_with_the_nearest_known_one() -> None:
    with pytest.raises(ValueError, match="did you mean mbconv"):
        stage(block="mbconf")
    with pytest.raises(ValueError, match=r"did you mean silu \(one of relu, silu\)"):
        network(activation="silo")


def test_a_table_without_stages_is_refused() -> None:
    with pytest.raises(ValueError, match="'small' has no stages"):
        network(stages=())


def test_tables_are_values() -> None:
    """Equal tables are one dictionary key, whether stages came as a list or as a tuple; nothing can be edited."""
    assert network(stages=[stage()]) == network() and hash(network(stages=[stage()])) == hash(network())
    with pytest.raises(dataclasses.FrozenInstanceError):
        network().resolution = 8  # type: ignore[misc]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_tables_are_called_after_their_file(name: str) -> None:
    table = shipped(name)
    assert table.name == name and table.source
    check_final_map(table, table.resolution)


@settings(max_examples=100, deadline=None)
@given(network=tables)
def test_the_smallest_resolution_is_exactly_the_smallest(network: Network) -> None:
    smallest = smallest_resolution(network)
    assert network.final_side(smallest) == 4
    assert network.final_side(smallest - 1) < 4
    check_final_map(network, smallest)
    with pytest.raises(ValueError, match=rf"network\.resolution={smallest} or more"):
        check_final_map(network, smallest - 1)


@settings(max_examples=20, deadline=None)
@given(network=tables, resolution=st.integers(1, 60))
def test_final_side_is_what_the_built_network_returns(network: Network, resolution: int) -> None:
    with torch.device("meta"), torch.no_grad():
        features = build(network, 2).eval()(torch.empty(1, 3, resolution, resolution)).features
    assert features.shape[2:] == (network.final_side(resolution),) * 2


def test_the_refusal_of_a_small_map_is_one_complete_sentence() -> None:
    with pytest.raises(ValueError) as refusal:
        check_final_map(shipped("efficientnet_b0"), 32)
    sentence = str(refusal.value)
    for part in ("efficientnet_b0 at 32 px", "1x1 map", "output stride 32", "4x4", "network.resolution=97", "b0_small"):
        assert part in sentence
    check_final_map(shipped("efficientnet_b0"), 97)


@settings(max_examples=50, deadline=None)
@given(network=tables, data=st.data())
def test_reshaping_changes_repeats_and_channels_only(network: Network, data: st.DataObject) -> None:
    size = len(network.stages)
    repeats = tuple(data.draw(st.lists(st.integers(1, 5), min_size=size, max_size=size)))
    channels = tuple(data.draw(st.lists(st.integers(1, 50), min_size=size + 2, max_size=size + 2)))
    shaped = network.with_shape(repeats, channels)
    assert (shaped.repeats, shaped.channels) == (repeats, channels)
    assert shaped.blocks == sum(repeats) and shaped.stage_channels == sum(channels[1:-1])
    assert shaped.output_stride == network.output_stride
    assert shaped.with_shape(network.repeats, network.channels) == network


def test_reshaping_needs_one_number_for_each_stage() -> None:
    with pytest.raises(AssertionError):
        network().with_shape((1, 2), (8, 8, 16))
