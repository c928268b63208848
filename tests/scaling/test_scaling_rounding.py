"""Rounding of channels and repeats against the released code, written out here a second time."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shipped_arms import B0, base

from src.scaling.rounding import round_channels, round_repeats, scale_as_released


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


@pytest.mark.parametrize("depth", [1.0, 1.1, 1.2, 1.4, 1.8, 2.2, 2.6, 3.1])
def test_all_seven_stages_of_the_released_family_are_deepened(depth: float) -> None:
    stock = base(*B0).network
    scaled = scale_as_released(stock, 1.0, depth)
    assert scaled.repeats == tuple(math.ceil(depth * n) for n in stock.repeats)  # the released expression, as it stands
    assert scaled.channels == stock.channels
