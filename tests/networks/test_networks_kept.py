"""What a training step keeps for the backward pass, in every arithmetic and with all kernels: the twins against the
bytes that autograd holds."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shipped_tables import SHIPPED, shipped, tables
from torch import Tensor, nn

from src.kernels import native
from src.networks import blocks as blocks_module
from src.networks import build as build_module
from src.networks import layers as layers_module
from src.networks.blocks import MBConv
from src.networks.build import ConvNet, build, network_cost, recompute_cost
from src.networks.cost import Cost, Execution, RecomputeCost
from src.networks.fast import KERNELS, execution, use
from src.networks.layers import conv_norm_cost, max_pool_cost, squeeze_excite_cost
from src.networks.table import Network, Stage, Stem

FEW, MANY = (
    2,
    5,
)  # pictures; the difference leaves out what does not grow with the batch: weights' casts, norms' vectors
HALF = {False: "float32", True: "bfloat16"}


def needs(kernels: str) -> None:
    """Skip where there is no C compiler."""
    if kernels == "native" and native.load() is None:
        pytest.skip(native.why_not())


def made(network: Network, kernels: str) -> ConvNet:
    """A network that trains with these kernels."""
    model = build(network, 10).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    use(model, kernels)
    assert isinstance(model, ConvNet)
    return model


def pictures(count: int, side: int) -> Tensor:
    return torch.rand(count, 3, side, side).contiguous(memory_format=torch.channels_last)


def kept_bytes(function: nn.Module, given: Tensor, half: bool) -> tuple[int, Tensor]:
    """Bytes of all storages that autograd keeps beside the weights and `given`, and the result."""
    own = {t.untyped_storage().data_ptr() for t in (*function.parameters(), *function.buffers(), given)}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage  # held, so that no other storage takes its address
        return tensor

    arithmetic = torch.autocast("cpu", torch.bfloat16) if half else contextlib.nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), arithmetic:
        result = function.train()(given)
    result = result[0] if isinstance(result, tuple) else result
    assert result.requires_grad
    return sum(storage.nbytes() for storage in kept.values()), result


def saved(model: ConvNet, side: int, half: bool) -> float:
    """Elements that one picture leaves for the backward pass, as `Cost.saved` counts them."""
    few, many = (_whole(model, count, side, half) for count in (FEW, MANY))
    return (many - few) / (MANY - FEW) / (2 if half else 4)


def _whole(model: ConvNet, count: int, side: int, half: bool) -> int:
    """In float32 the pictures themselves are kept, in half precision a copy of them."""
    images = pictures(count, side)
    return kept_bytes(model, images, half)[0] + (0 if half else images.nbytes)


def recomputed(model: ConvNet, side: int, half: bool) -> tuple[float, float]:
    """`RecomputeCost.kept` and `RecomputeCost.peak` as autograd has them: piece by piece, each on the output of the
    one before."""
    found = []
    for count in (FEW, MANY):
        x, inputs, held = pictures(count, side), 0, []
        for piece in model.pieces():
            inputs += x.nbytes
            more, y = kept_bytes(piece, x, half)
            held.append(inputs + more)
            x = y.detach().requires_grad_()
        model.recompute = True
        images = pictures(count, side)
        found.append((kept_bytes(model, images, half)[0] + images.nbytes, *held))
        model.recompute = False
    each = [(many - few) / (MANY - FEW) / (2 if half else 4) for few, many in zip(*found, strict=True)]
    return each[0], max(each[1:])


def check_twins(network: Network, side: int, kernels: str, half: bool) -> None:
    """Both twins are exact for this network."""
    model, how = made(network, kernels), execution(kernels, half)
    assert saved(model, side, half) == network_cost(network, side, 10, how).saved
    again = recompute_cost(network, side, 10, how)
    assert recomputed(model, side, half) == (again.kept, again.peak)


@pytest.mark.parametrize("half", HALF, ids=HALF.values())
@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize(("name", "side"), [*((name, 32) for name in SHIPPED), ("efficientnet_b0", 49)])
def test_what_a_step_keeps_is_exact_for_shipped_tables(name: str, side: int, kernels: str, half: bool) -> None:
    needs(kernels)
    check_twins(shipped(name), side, kernels, half)


@settings(max_examples=60, deadline=None)
@given(network=tables(), kernels=st.sampled_from(sorted(KERNELS)), half=st.booleans())
def test_what_a_step_keeps_is_exact_for_any_table(network: Network, kernels: str, half: bool) -> None:
    needs(kernels)
    check_twins(network, network.resolution, kernels, half)


@pytest.mark.parametrize(
    ("kernels", "half", "mebibytes"),
    # Measured by such hooks before these twins were written, norms' vectors of the batch included: plain in timm 1.0.31
    # and torchvision 0.28, native in docs/speed.md.
    [("plain", False, 84.11), ("torch", False, 84.11), ("native", False, 39.0), ("native", True, 39.0 / 2)],
)
def test_the_memory_of_b0_is_what_was_measured(kernels: str, half: bool, mebibytes: float) -> None:
    cost = network_cost(shipped("efficientnet_b0"), 224, 1000, execution(kernels, half))
    assert cost.saved * (2 if half else 4) / 2**20 == pytest.approx(mebibytes, rel=5e-3)


NATIVE, MIXED = Execution(excite=True, native=True), Execution(excite=True, native=True, half=True)


def test_layers_counted_by_hand() -> None:
    # 3x3, 3 -> 8 channels, stride 2 on 5x5: the input, and the 72 elements that batch norm receives; the activation
    # keeps nothing where its kernel computes batch norm again.
    assert conv_norm_cost(Cost(5, execution=NATIVE), 3, 8, 3, 2, 1, "relu").saved == 75 + 72
    assert not conv_norm_cost(Cost(5, execution=NATIVE), 3, 8, 3, 2, 1, "relu").map_saved
    # The map, the pooled vector and the gate of 8, one squeezed vector of 2; vectors are float32 in any arithmetic.
    assert squeeze_excite_cost(Cost(5, execution=NATIVE), 8, 2, "silu").saved == 200 + 8 + 8 + 2
    assert squeeze_excite_cost(Cost(5, execution=MIXED), 8, 2, "silu").saved == 200 + 2 * (8 + 8 + 2)
    # Indices take eight bytes: two float32, four bfloat16.
    assert max_pool_cost(Cost(5, execution=Execution(half=True)), 8, 2).saved == 200 + 4 * 72


@pytest.mark.parametrize(
    ("kernel", "expected"),
    # On 4x4: input of 2, expanded map of 4; on 2x2 behind stride 2: the depthwise convolution's output of 4, pooled
    # vector, gate and squeezed vector, the gated map of 4, and the projection's output of 6. A 7x7 kernel is not fused:
    # the activated maps before and behind it are kept as well.
    [(3, 16 * (2 + 4) + 4 * 4 + (4 + 4 + 1) + 4 * (4 + 6)), (7, 16 * (2 + 4 + 4) + 4 * (4 + 4) + 9 + 4 * (4 + 6))],
)
def test_a_block_counted_by_hand(kernel: int, expected: int) -> None:
    stage = Stage("mbconv", kernel, 2, 6, 1, expand=2, se_ratio=0.5)
    assert MBConv.cost(Cost(4, execution=NATIVE), 2, 6, stage, 2, "silu").saved == expected


def test_recomputation_in_half_precision_added_up_by_hand() -> None:
    table = Network("hand", 8, Stem(2, 2), (Stage("separable", 3, 2, 4, 2),), 6)
    # As in `test_networks_recompute`, but pictures are twice as wide and activations keep nothing: beyond its input the
    # stem saves a copy of the pictures and 2x4x4, the first block 2x2x2 twice and 4x2x2, the second 4x2x2 three times.
    found = recompute_cost(table, 8, 10, MIXED)
    assert found == RecomputeCost(2 * 192 + 32 + 16 + 16 + 6, 2 * 192, 192 + 32)


def test_kernels_and_arithmetic_change_no_price() -> None:
    table = shipped("efficientnet_nano")
    plain, fast = (network_cost(table, 32, 10, how) for how in (Execution(), MIXED))
    assert (plain.macs, plain.params, plain.activations) == (fast.macs, fast.params, fast.activations)
    assert network_cost(table, 32, 10) == plain and fast.saved < plain.saved


@pytest.mark.parametrize("name", ["conv_norm_cost", "squeeze_excite_cost"])
def test_a_fault_planted_in_a_twin_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("native")
    right, table = getattr(layers_module, name), shipped("efficientnet_nano")

    def one_more(cost: Cost, *arguments: Any) -> Cost:
        return right(cost, *arguments).then(cost.side, 0, 0, 0, 1)  # type: ignore[no-any-return]

    measured = saved(made(table, "native"), 32, False)
    for room in (blocks_module, build_module):
        if hasattr(room, name):
            monkeypatch.setattr(room, name, one_more)
    assert measured != network_cost(table, 32, 10, NATIVE).saved
