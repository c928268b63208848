"""Rounding of channels, repeats and pixels against the released code, written out here a second time."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shipped_arms import B0, RESNET50, base

from src.networks.table import Network
from src.scaling.rounding import round_channels, round_pixels, round_repeats, scale_as_released, scaled_resolution
from src.scaling.rules import Rule
from src.scaling.solve import solve


def round_filters(filters: int, multiplier: float | None, divisor: int) -> int:
    """tensorflow/tpu, efficientnet_model.py, with `min_depth` unset; B0 has no multiplier there."""
    if not multiplier:
        return filters
    exact = filters * multiplier
    new = max(divisor, int(exact + divisor / 2) // divisor * divisor)
    if new < 0.9 * exact:
        new += divisor
    return new


@given(
    channels=st.integers(1, 2000),
    width=st.floats(0.05, 8.0).filter(lambda w: w != 1.0),
    divisor=st.sampled_from((1, 4, 8)),
)
def test_channels_are_rounded_as_released(channels: int, width: float, divisor: int) -> None:
    rounded = round_channels(channels, width, divisor)
    assert rounded == round_filters(channels, width, divisor)
    assert rounded % divisor == 0 and rounded >= divisor
    assert rounded >= 0.9 * channels * width
    assert rounded <= max(divisor, channels * width + divisor)


@pytest.mark.parametrize(
    ("channels", "width", "expected"),
    [(32, 1.1, 32), (32, 1.2, 40), (16, 1.4, 24), (40, 1.8, 72), (1280, 1.4, 1792), (24, 0.5, 16), (16, 0.1, 8)],
)
def test_channels_of_known_networks(channels: int, width: float, expected: int) -> None:
    assert round_channels(channels, width, 8) == expected


@given(channels=st.integers(1, 2000))
def test_width_one_keeps_channels_that_are_no_multiple(channels: int) -> None:
    assert round_channels(channels, 1.0, 8) == channels


@given(repeats=st.integers(1, 40), hundredths=st.integers(1, 800))
def test_repeats_round_up_exactly(repeats: int, hundredths: int) -> None:
    """Exact integer arithmetic: 25 * 2.2 is 55 blocks, although the float product lies above 55."""
    assert round_repeats(repeats, hundredths / 100) == -(-repeats * hundredths // 100)


@pytest.mark.parametrize(
    ("repeats", "depth", "expected"),
    [
        (3, 11 / 3, 11),
        (3, 3.666667, 12),
        (3, 3.666666, 11),
        (25, 2.2, 55),
        (4, 1.1, 5),
        (4, 3.1, 13),
        (1, 2.6, 3),
        (1, 0.2, 1),
    ],
)
def test_repeats_at_the_edge_of_floats(repeats: int, depth: float, expected: int) -> None:
    assert round_repeats(repeats, depth) == expected


@given(repeats=st.integers(1, 40), hundredths=st.integers(1, 800))
def test_repeats_to_the_nearest_as_timm_rounds_them(repeats: int, hundredths: int) -> None:
    """timm's `_scale_stage_depth` with depth_trunc="round" on stages of one kind of block: `max(1, round(n * d))`."""
    exact = repeats * hundredths  # hundredths of a block
    nearest = round_repeats(repeats, hundredths / 100, "nearest")
    assert nearest == max(1, round(repeats * (hundredths / 100)))
    assert nearest == 1 or abs(100 * nearest - exact) <= 50
    assert nearest <= round_repeats(repeats, hundredths / 100, "up")


@pytest.mark.parametrize(
    ("repeats", "depth", "expected"), [(3, 1.5, 4), (1, 1.5, 2), (1, 2.5, 2), (4, 0.695, 3), (3, 0.6, 2), (1, 0.2, 1)]
)
def test_repeats_to_the_nearest_half_to_even(repeats: int, depth: float, expected: int) -> None:
    assert round_repeats(repeats, depth, "nearest") == expected


@pytest.mark.parametrize(
    ("side", "factor", "expected"),
    [(224, 1.3, 291), (224, 2.0, 448), (224, 1.15, 257), (32, 1.1, 35), (224, 0.5, 112), (300, 1.1, 330), (10, 0.7, 7)],
)
def test_pixels_round_down(side: int, factor: float, expected: int) -> None:
    assert round_pixels(side, factor) == expected


@given(side=st.integers(1, 1000), hundredths=st.integers(1, 800))
def test_pixels_round_down_exactly(side: int, hundredths: int) -> None:
    """300 * 1.1 is 330 px, whatever the float product."""
    assert round_pixels(side, hundredths / 100) == side * hundredths // 100


@pytest.mark.parametrize("depth", [1.0, 1.1, 1.2, 1.4, 1.8, 2.2, 2.6, 3.1])
def test_all_seven_stages_of_the_released_family_are_deepened(depth: float) -> None:
    stock = base(*B0).network
    scaled = scale_as_released(stock, Rule(depth=depth))
    assert scaled.repeats == tuple(math.ceil(depth * n) for n in stock.repeats)  # the released expression, as it stands
    assert scaled.channels == stock.channels


def channels(rule: Rule, stock: Network) -> tuple[int, ...]:
    return scale_as_released(stock, rule).channels


def test_stem_and_head_are_kept_only_when_asked() -> None:
    stock = base(*B0).network
    assert channels(Rule(width=0.5), stock) == (16, 8, 16, 24, 40, 56, 96, 160, 640)
    assert channels(Rule(width=0.5, keep_stem=True), stock) == (32, 8, 16, 24, 40, 56, 96, 160, 640)
    assert channels(Rule(width=0.5, keep_head=True), stock) == (16, 8, 16, 24, 40, 56, 96, 160, 1280)
    wide = Rule(width=2.0, keep_stem=True, keep_head=True)
    assert channels(wide, stock) == (32, 32, 48, 80, 160, 224, 384, 640, 2560)  # the head is kept from shrinking only


def test_a_network_without_a_head_keeps_its_last_stage_scaled() -> None:
    stock = base(*RESNET50).network
    assert channels(Rule(width=0.5, keep_head=True), stock) == (32, 128, 256, 512, 1024)
    assert channels(Rule(width=0.5, keep_stem=True), stock) == (64, 128, 256, 512, 1024)


def test_the_input_side_is_given_in_pixels_or_as_a_factor() -> None:
    stock = base(*B0).network
    assert scaled_resolution(stock, Rule()) == 224
    assert scaled_resolution(stock, Rule(resolution=1.3)) == 291
    assert scaled_resolution(stock, Rule(pixels=300)) == 300


def test_coefficients_cost_what_they_cost_at_any_budget() -> None:
    rule = Rule(depth=1.4, width=1.2, resolution=1.3)
    found = {solve(base(*B0), rule, budget) for budget in (0.0, 0.5, 1.0, 2.0, math.nan, 1e9)}
    (scaled,) = found
    assert scaled.arm == "d1.4x-w1.2x-r1.3x"
    assert scaled.asked.axes == (1.4, 1.2, 1.3)
    assert scaled.snapped_budget == scaled.multiple == scaled.cost.macs / 385_814_752
    assert scaled.budget == 4.666  # of 1800.1 M over 385.8 M, arXiv 1905.11946v5, Table 7's compound arm
    assert not scaled.pushed_apart
