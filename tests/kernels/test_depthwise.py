"""Depthwise convolution by `src/kernels/depthwise.py` against torch's own in float64."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from src.kernels import depthwise as room
from src.kernels.depthwise import depthwise, wins

GRID = list(itertools.product((3, 5), (1, 2), range(1, 9)))
BOUNDS = {torch.float32: 1e-6, torch.bfloat16: 8e-3}  # of the largest entry; bfloat16 rounds by 2^-9 of each


def values_and_gradients(x: Tensor, weight: Tensor, dy: Tensor, stride: int, *, ours: bool) -> list[Tensor]:
    """y, dx and dK for a gradient dy of y."""
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    if ours:
        y = depthwise(x, weight, stride)
    else:
        y = F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, groups=len(weight))
    return [y.detach(), *torch.autograd.grad(y, (x, weight), dy)]


def distances(
    kernel: int, stride: int, sides: tuple[int, int], kind: torch.dtype, *, batch: int = 3, channels: int = 8
) -> dict[str, float]:
    """Largest difference from float64, of the same rounded numbers, as a share of the largest entry."""
    draw = torch.Generator().manual_seed(kernel + 10 * stride + 100 * sides[0] + 1000 * sides[1])
    x = torch.randn(batch, channels, *sides, generator=draw).to(kind).to(memory_format=torch.channels_last)
    weight = torch.randn(channels, 1, kernel, kernel, generator=draw).to(kind)
    small = [-(-side // stride) for side in sides]
    dy = torch.randn(batch, channels, *small, generator=draw).to(kind).to(memory_format=torch.channels_last)
    found = values_and_gradients(x, weight, dy, stride, ours=True)
    exact = values_and_gradients(x.double(), weight.double(), dy.double(), stride, ours=False)
    assert [t.dtype for t in found] == [kind] * 3
    return {
        name: float((a.double() - b).abs().max() / b.abs().max())
        for name, a, b in zip(("y", "dx", "dK"), found, exact, strict=True)
    }


@pytest.mark.parametrize("kind", BOUNDS, ids=str)
def test_values_and_gradients_are_torchs(kind: torch.dtype) -> None:
    far = {(k, s, h): distances(k, s, (h, h), kind) for k, s, h in GRID}
    assert {case: d for case, d in far.items() if max(d.values()) > BOUNDS[kind]} == {}


@given(
    kernel=st.sampled_from((3, 5)),
    stride=st.integers(1, 3),
    sides=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    batch=st.integers(1, 3),
    channels=st.sampled_from((1, 2, 17)),
    kind=st.sampled_from(list(BOUNDS)),
)
@settings(max_examples=60, deadline=None)
def test_any_map_and_stride(
    kernel: int, stride: int, sides: tuple[int, int], batch: int, channels: int, kind: torch.dtype
) -> None:
    # With one channel, which is no depthwise convolution, torch 2.13's own forward pass in bfloat16 reads memory that
    # nobody wrote (5x5, stride 2, maps of one or two columns and nine rows or more).
    assume(channels > 1 or kind != torch.bfloat16)
    found = distances(kernel, stride, sides, kind, batch=batch, channels=channels)
    assert max(found.values()) <= 2 * BOUNDS[kind]


@pytest.mark.parametrize(("kernel", "stride", "side"), [(5, 1, 4), (5, 2, 5), (3, 1, 2), (3, 2, 1)])
def test_derivatives_by_differences(kernel: int, stride: int, side: int) -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, side, side, generator=draw, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 1, kernel, kernel, generator=draw, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *given: depthwise(*given, stride), (x, weight))


def test_what_needs_no_gradient_gets_none() -> None:
    x, weight = torch.randn(1, 2, 4, 4), torch.randn(2, 1, 5, 5, requires_grad=True)
    depthwise(x, weight, 1).sum().backward()
    assert x.grad is None and weight.grad is not None
    x, weight = x.requires_grad_(), weight.detach()
    depthwise(x, weight, 1).sum().backward()
    assert x.grad is not None and weight.grad is None


@pytest.mark.parametrize(
    ("kernel", "stride", "side", "kind", "expected"),
    [  # where torch was measured to be slow, and its neighbours where it is not
        (5, 1, 112, torch.float32, True),
        (5, 2, 1, torch.bfloat16, True),
        (3, 1, 2, torch.float32, True),
        (3, 1, 3, torch.float32, False),
        (3, 2, 3, torch.float32, True),
        (3, 2, 4, torch.float32, False),
        (3, 2, 112, torch.bfloat16, True),
        (3, 1, 112, torch.bfloat16, False),
        (7, 1, 14, torch.float32, False),
        (1, 1, 14, torch.bfloat16, False),
    ],
)
def test_it_is_chosen_where_it_was_measured_to_win(
    kernel: int, stride: int, side: int, kind: torch.dtype, expected: bool
) -> None:
    assert wins(kernel, stride, side, kind) is expected


def test_torchs_slow_kernels_are_never_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    plain = room._backward

    def spy(dy: Tensor, x: Tensor, weight: Tensor, *rest: object) -> tuple[Tensor, Tensor]:
        asked.append((weight.shape[-1], *rest))
        return plain(dy, x, weight, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(room, "_backward", spy)
    for kernel, stride, side in GRID:
        distances(kernel, stride, (side, side), torch.bfloat16)
    inputs = [call for call in asked if call[-1][0]]
    weights = [call for call in asked if call[-1][1]]
    assert {call[1] for call in inputs} == {1}  # strides
    assert max(call[0] for call in weights) == 3  # columns
