"""Which kernels a network trains with on a CPU. They compute what plain torch computes, in less time; `docs/speed.md`
says how much.

Shapes: B batch, C channels, H, W input and h, w output of a convolution.

Kernels act in a training step alone: in training mode, with gradients on, on float32 or bfloat16 tensors in the CPU's
memory in channels-last order, outside `torch.compile` and tracing. Evaluation, audits, GPUs and exports are plain
torch, whatever is set. Forward hooks on layers inside a block do not run where the block is computed as one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from src.choices import check_choice
from src.kernels import depthwise, native, pointwise
from src.networks.cost import Execution


@dataclass(frozen=True)
class Kernels:
    """Kernels of one training step.

    depthwise: gradients of depthwise convolutions that avoid oneDNN's slow kernels (`src/kernels/depthwise.py`).
    pointwise: 1x1 convolutions as matrix products (`src/kernels/pointwise.py`).
    excite: squeeze-and-excitation as one function (`src/kernels/excite.py`).
    native: batch norm, activation, depthwise convolution, gate and residual connection fused in C
        (`src/kernels/native.py`). Where it does not know a shape, the other two act.
    """

    depthwise: bool = False
    pointwise: bool = False
    excite: bool = False
    native: bool = False


PLAIN = Kernels()
KERNELS = {  # from the plainest on
    "plain": PLAIN,
    "torch": Kernels(depthwise=True, pointwise=True, excite=True),
    "native": Kernels(depthwise=True, pointwise=True, excite=True, native=True),
}


class FastModule(nn.Module):
    """A module with a fast forward pass beside its plain one."""

    kernels = PLAIN

    def kernels_for(self, x: Tensor) -> Kernels:
        """Those that may act on `x` (B,C,H,W) now; `PLAIN` if none."""
        if self.kernels is PLAIN or not (self.training and torch.is_grad_enabled()):
            return PLAIN
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return PLAIN
        fits = x.device.type == "cpu" and map_type(x) in (torch.float32, torch.bfloat16)
        return self.kernels if fits and x.is_contiguous(memory_format=torch.channels_last) else PLAIN


def use(network: nn.Module, kernels: Kernels | str) -> None:
    """Let `network` train with `kernels`, or with those of a name in `KERNELS`; "plain" takes all of them away.

    Weights, buffers, names in the state dict and draws of random numbers stay the same.

    Raises:
        ValueError: no such name, or native kernels cannot be had.
    """
    if isinstance(kernels, str):
        check_choice("hardware.kernels", kernels, KERNELS)
        kernels = KERNELS[kernels]
    if kernels.native and native.load() is None:
        raise ValueError(f"hardware.kernels=native cannot be had: {native.why_not()}; use hardware.kernels=torch")
    for module in network.modules():
        if isinstance(module, FastModule):
            module.__dict__.pop("kernels", None)
            if kernels != PLAIN:
                module.kernels = kernels


def execution(kernels: str, half: bool) -> Execution:
    """What cost twins must know of steps that are computed by the kernels of this name."""
    return Execution(excite=KERNELS[kernels].excite, native=KERNELS[kernels].native, half=half)


def map_type(x: Tensor) -> torch.dtype:
    """Type of what a convolution makes of `x`: autocast's, where it is on."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


def convolve(conv: nn.Conv2d, x: Tensor, kernels: Kernels) -> Tensor:
    """`conv(x)` by what is fastest for its shape."""
    kernel, stride, side, kind = conv.kernel_size[0], conv.stride[0], min(x.shape[2:]), map_type(x)
    if kernels.pointwise and (kernel, stride, conv.groups) == (1, 1, 1) and pointwise.wins(side, kind):
        return pointwise.pointwise(x, conv.weight)
    each = conv.groups == conv.in_channels == conv.out_channels
    if kernels.depthwise and each and depthwise.wins(kernel, stride, side, kind):
        return depthwise.depthwise(x.to(kind), conv.weight.to(kind), stride)
    y: Tensor = conv(x)
    return y


def fuses(norm: nn.Module) -> bool:
    """Whether a native kernel knows this norm: torch's own batch norm (not one that is shared by ranks), which learns,
    and moves running statistics by a momentum."""
    if type(norm) is not nn.BatchNorm2d or norm.momentum is None:
        return False
    usual = norm.training and norm.track_running_stats and norm.affine and norm.weight.dtype == torch.float32
    return usual and native.load() is not None


def fuses_depthwise(conv: nn.Conv2d) -> bool:
    """Whether a native kernel knows this convolution."""
    each = conv.groups == conv.in_channels == conv.out_channels
    return each and fuses_size(conv.kernel_size[0], conv.stride[0])


def fuses_size(kernel: int, stride: int) -> bool:
    """Whether a native kernel knows depthwise convolutions of this kernel and stride."""
    return kernel in (3, 5) and stride in (1, 2)


def norm_act(
    y: Tensor, norm: nn.Module, act: str, keep: Tensor | None = None, residual: Tensor | None = None
) -> Tensor:
    """act(norm(y)) * keep + residual, natively.

    Args:
        y: (B,C,H,W).
        norm: one that `fuses`.
        act: of the stage table, or "none".
        keep: (B,), float32. residual: like `y`.
    """
    residual = None if residual is None else _ordered(residual.to(y.dtype))
    return native.norm_act(_ordered(y), _native_norm(norm), act, keep=keep, residual=residual)


def depthwise_norm_act(
    y: Tensor,
    before: nn.Module | None,
    conv: nn.Conv2d,
    norm: nn.Module,
    act: str,
    gate: tuple[Tensor, Tensor, Tensor, Tensor] | None = None,
) -> Tensor:
    """gate(act(norm(conv(act(before(y)))))), natively. (B,C,H,W) -> (B,C,h,w).

    Args:
        y: (B,C,H,W).
        before: followed by the activation; None: neither is there.
        conv: one that `fuses_depthwise`. norm: one that `fuses`.
        gate: weights of squeeze-and-excitation, see `SqueezeExcite.weights`; None: it is not there.
    """
    first = None if before is None else _native_norm(before)
    then = None if gate is None else native.Gate(*gate)
    y = _ordered(y.to(map_type(y)))
    return native.mbconv_middle(y, first, act, conv.weight, conv.stride[0], _native_norm(norm), then)


def _native_norm(norm: nn.Module) -> native.Norm:
    """What the kernel reads and moves; counts the batch."""
    assert isinstance(norm, nn.BatchNorm2d)
    mean, variance, batches = norm.running_mean, norm.running_var, norm.num_batches_tracked
    assert mean is not None and variance is not None and batches is not None and norm.momentum is not None
    batches.add_(1)
    return native.Norm(norm.weight, norm.bias, mean, variance, norm.momentum, norm.eps)


def _ordered(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)
