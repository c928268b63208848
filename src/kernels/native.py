"""Fused kernels for training MBConv blocks on CPUs: norm, activation, squeeze-and-excitation, depthwise convolution.

Training on a CPU waits for memory: between two 1x1 convolutions of a block, plain torch goes through the expanded maps
about 25 times. Here each pass does all that can be done with an element while it is in a register or in the cache, and
what is cheap to compute again is not kept. The C code is in `native.c`; nothing is compiled before `load`.

Maps are (B,C,H,W), float32 or bfloat16, channels_last; parameters, statistics and their gradients are float32.
Everything is training mode: statistics of the batch, unbiased variance into the running ones, which are moved in place.
Counting batches is left to the caller. Results are the same bits whatever the number of threads.

Words: y convolution's output, n = weight * xhat + bias its norm, xhat = (y - mean) / std, a = act(n), N = B * H * W.

Batch norm backward: from dn, dy = weight / std * (dn - S1 / N - xhat * S2 / N) with S1 = sum dn = d bias and
S2 = sum dn * xhat = d weight: one pass for the sums, one for dy; n and act'(n) are computed again from y in both.

With squeeze-and-excitation, z = a * gate[b,c] where gate depends on pool[b,c] = mean_HW a. Then
dn = act'(n) * (dz * gate + dpool), where dpool[b,c] = d pool / HW is known only after the two linear layers' backward
passes, and these need dgate = sum_HW dz * a. But S1 and S2 are linear in gate and dpool, which do not vary over HW:
    S1[c] = sum_b gate * (sum_HW dz * act') + dpool * (sum_HW act')
    S2[c] = sum_b gate * (sum_HW dz * act' * xhat) + dpool * (sum_HW act' * xhat)
so that one pass over (dz, y) gives all five sums per (b,c), and one more writes dy, as without excitation.

Sources: batch norm arXiv 1502.03167, computing it again 1712.02616; MBConv 1801.04381; excitation 1709.01507.
"""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F  # noqa: N812

from src.kernels.library import Library

__all__ = ["Gate", "Norm", "depthwise", "load", "mbconv_middle", "norm_act", "norm_act_excite", "takes", "why_not"]

ACTS = {"none": 0, "silu": 1, "relu": 2, "relu6": 3}  # as in native.c
VECTORS, COEFS, SUMS = 5, 3, 5  # rows of the vectors that native.c keeps of a norm, and of its backward pass
LANES = 16  # their rows are padded to a multiple of the widest vector

_P, _L, _I, _D = ctypes.c_void_p, ctypes.c_long, ctypes.c_int, ctypes.c_double
_SIZES = (_L, _L, _L, _I, _I)  # B, H * W, C, bfloat16?, activation
_SIGNATURES: dict[str, tuple[type, ...]] = {  # as in native.c
    "norm_stats": (_P, _L, _L, _I, *(_P,) * 4, _D, _D, _P, _I),
    "norm_apply": (*(_P,) * 5, *_SIZES, _P, _I),
    "norm_pool": (_P, _P, *_SIZES, _P, _I),
    "norm_sums": (_P, _P, _P, *_SIZES, *(_P,) * 4, _I),
    "norm_back": (*(_P,) * 6, *_SIZES, _P, _P, _I),
    "excite_sums": (_P, _P, _P, *_SIZES, _P, _I),
    "excite_merge": (_P, _P, _P, _L, _L, _L, *(_P,) * 4, _I),
    "depthwise_forward": (_P, _P, _P, *(_L,) * 4, *(_I,) * 4, _P, *(_P,) * 4, _D, _D, _P, _I),
    "depthwise_backward": (*(_P,) * 8, _I, _P, _I, *(_P,) * 5, *(_L,) * 4, _I, _I, _I, _I),
}
LIBRARY = Library("native.c", ("-ffp-contract=fast",), _SIGNATURES)  # a * b + c may be rounded once
call, why_not = LIBRARY.call, LIBRARY.why_not


class Norm(NamedTuple):
    """Batch norm: float32 vectors (C,), the running ones moved in place; weight of the new batch; epsilon."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    momentum: float
    eps: float


class Gate(NamedTuple):
    """Squeeze-and-excitation's two linear layers, float32: (R,C), (R,), (C,R), (C,)."""

    reduce_weight: Tensor
    reduce_bias: Tensor
    expand_weight: Tensor
    expand_bias: Tensor


def takes(x: Tensor) -> bool:
    """Whether the kernels can read this map: (B,C,H,W) on the CPU, float32 or bfloat16, channels_last."""
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16)
        and x.dim() == 4
        and x.numel() > 0
        and x.is_contiguous(memory_format=torch.channels_last)
    )


class _Map(NamedTuple):
    """Sizes of a map as the library asks for them."""

    batch: int
    channels: int
    height: int
    width: int
    half: int

    @property
    def area(self) -> int:
        return self.height * self.width

    @property
    def pixels(self) -> int:
        return self.batch * self.area

    def rows(self, count: int) -> Tensor:
        """Padded vectors of this map's channels."""
        return torch.empty(count, -(-self.channels // LANES) * LANES)


def _map(x: Tensor) -> _Map:
    batch, channels, height, width = x.shape
    return _Map(batch, channels, height, width, int(x.dtype == torch.bfloat16))


def _like(shape: tuple[int, ...], x: Tensor) -> Tensor:
    return torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)


def _gradient(dz: Tensor, like: Tensor) -> Tensor:
    """The incoming gradient as the kernels read it."""
    return dz.to(like.dtype).contiguous(memory_format=torch.channels_last)


def _check(x: Tensor, act: str, norms: tuple[tuple[Norm, int], ...], gate: Gate | None = None) -> None:
    if not takes(x):
        raise ValueError(
            f"native kernels take a channels_last float32 or bfloat16 map (B,C,H,W) on the CPU, not {tuple(x.shape)}"
            f" {x.dtype} {x.device} strides {x.stride()}; call .contiguous(memory_format=torch.channels_last)"
        )
    if act not in ACTS:
        raise ValueError(f"act={act!r} is not one of {', '.join(ACTS)}")
    channels = x.shape[1]
    for norm, pixels in norms:
        if any(not _plain(vector, (channels,)) for vector in norm[:4]):
            raise ValueError(f"batch norm's four vectors must be contiguous float32 of shape ({channels},) on the CPU")
        if pixels == 1:
            raise ValueError(f"batch norm in training needs more than one value a channel, got {tuple(x.shape)}")
    if gate is not None:
        squeezed = gate.reduce_weight.shape[0]
        shapes = ((squeezed, channels), (squeezed,), (channels, squeezed), (channels,))
        if any(not _plain(tensor, shape) for tensor, shape in zip(gate, shapes, strict=True)):
            raise ValueError(f"excitation's parameters must be contiguous float32 of shapes {shapes} on the CPU")


def _plain(tensor: Tensor, shape: tuple[int, ...]) -> bool:
    fits = tuple(tensor.shape) == shape and tensor.dtype == torch.float32
    return fits and tensor.device.type == "cpu" and tensor.is_contiguous()


def _statistics(y: Tensor, norm: Norm) -> Tensor:
    """One pass: the norm's vectors for this batch; the running ones move."""
    m = _map(y)
    vectors = m.rows(VECTORS)
    call("norm_stats", y, m.pixels, m.channels, m.half, *norm[:4], norm.momentum, norm.eps, vectors)
    return vectors


def _apply(
    y: Tensor, vectors: Tensor, act: str, *, keep: Tensor | None, residual: Tensor | None, gate: Tensor | None
) -> Tensor:
    m, z = _map(y), torch.empty_like(y)
    call("norm_apply", y, z, residual, keep, gate, m.batch, m.area, m.channels, m.half, ACTS[act], vectors)
    return z


def _act(x: Tensor, act: str) -> Tensor:
    return {"none": lambda x: x, "silu": F.silu, "relu": F.relu, "relu6": F.relu6}[act](x)


def _act_backward(dy: Tensor, x: Tensor, act: str) -> Tensor:
    """Gradient of `_act` at x."""
    if act == "silu":
        return torch.ops.aten.silu_backward(dy, x)
    if act == "none":
        return dy
    return dy * ((x > 0) & (x < 6) if act == "relu6" else x > 0)


class _Gated(NamedTuple):
    """What squeeze-and-excitation keeps for its backward pass: (B,C), (B,R), (B,C) and its two weights."""

    pooled: Tensor
    squeezed: Tensor
    gate: Tensor
    reduce_weight: Tensor
    expand_weight: Tensor


def _excite(y: Tensor, vectors: Tensor, act: str, gate: Gate) -> _Gated:
    """One pass over the map, which writes nothing but pool (B,C); then the two linear layers in float32."""
    m = _map(y)
    pooled = torch.empty(m.batch, m.channels)
    call("norm_pool", y, pooled, m.batch, m.area, m.channels, m.half, ACTS[act], vectors)
    with torch.autocast("cpu", enabled=False):
        squeezed = torch.addmm(gate.reduce_bias, pooled, gate.reduce_weight.t())
        opened = torch.addmm(gate.expand_bias, _act(squeezed, act), gate.expand_weight.t()).sigmoid_()
    return _Gated(pooled, squeezed, opened, gate.reduce_weight, gate.expand_weight)


class _NormGradient(NamedTuple):
    """Gradients of a norm's weight and bias, and the vectors from which its input's follows."""

    weight: Tensor
    bias: Tensor
    coefficients: Tensor


def _norm_gradient(m: _Map) -> _NormGradient:
    return _NormGradient(torch.empty(m.channels), torch.empty(m.channels), m.rows(COEFS))


def _norm_backward(dz: Tensor, y: Tensor, vectors: Tensor, act: str, keep: Tensor | None) -> _NormGradient:
    """One pass over (dz, y) for the two sums."""
    m = _map(y)
    found = _norm_gradient(m)
    call("norm_sums", dz, y, keep, m.batch, m.area, m.channels, m.half, ACTS[act], vectors, *found)
    return found


def _excite_backward(
    dz: Tensor, y: Tensor, vectors: Tensor, act: str, kept: _Gated
) -> tuple[_NormGradient, Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """One pass over (dz, y) for the five sums, then the linear layers. Returns the norm's, dpool / HW, the gate's."""
    m = _map(y)
    sums = torch.empty(SUMS, m.batch, m.channels)
    call("excite_sums", dz, y, sums, m.batch, m.area, m.channels, m.half, ACTS[act], vectors)
    with torch.autocast("cpu", enabled=False):
        opened = torch.ops.aten.sigmoid_backward(sums[0], kept.gate)
        dexpand = opened.t().mm(_act(kept.squeezed, act))
        squeezed = _act_backward(opened.mm(kept.expand_weight), kept.squeezed, act)
        dreduce = squeezed.t().mm(kept.pooled)
        dpool = squeezed.mm(kept.reduce_weight).div_(m.area)
        biases = squeezed.sum(0), opened.sum(0)
    found = _norm_gradient(m)
    call("excite_merge", sums, kept.gate, dpool, m.batch, m.area, m.channels, vectors, *found)
    return found, dpool, (dreduce, biases[0], dexpand, biases[1])


def _input_gradient(
    dz: Tensor,
    y: Tensor,
    vectors: Tensor,
    act: str,
    coefficients: Tensor,
    *,
    keep: Tensor | None = None,
    gate: Tensor | None = None,
    dpool: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """One pass over (dz, y) that writes dy."""
    m, dy = _map(y), torch.empty_like(y) if out is None else out
    sizes = (m.batch, m.area, m.channels, m.half, ACTS[act])
    call("norm_back", dz, y, dy, keep, gate, dpool, *sizes, vectors, coefficients)
    return dy


class _NormAct(Function):
    @staticmethod
    def forward(
        ctx: Any, y: Tensor, norm: Norm, act: str, keep: Tensor | None, residual: Tensor | None, *_: Any
    ) -> Tensor:
        vectors = _statistics(y, norm)
        ctx.act = act
        ctx.save_for_backward(y, vectors, keep)
        return _apply(y, vectors, act, keep=keep, residual=residual, gate=None)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor | None, ...]:
        y, vectors, keep = ctx.saved_tensors
        dz = _gradient(dz, y)
        found = _norm_backward(dz, y, vectors, ctx.act, keep)
        dy = _input_gradient(dz, y, vectors, ctx.act, found.coefficients, keep=keep)
        return dy, None, None, None, dz if ctx.needs_input_grad[4] else None, found.weight, found.bias


def norm_act(
    y: Tensor, norm: Norm, act: str = "none", *, keep: Tensor | None = None, residual: Tensor | None = None
) -> Tensor:
    """Batch norm and activation: act(norm(y)) * keep + residual, (B,C,H,W) -> same. Keeps y and vectors.

    Args:
        keep: factor of each sample (B,), float32, without gradient: stochastic depth's mask / rate of survival.
        residual: a map like y, added last.

    Raises:
        ValueError: a map or parameter the kernels cannot read, or no library.
    """
    _check(y, act, ((norm, y.numel() // y.shape[1]),))
    if keep is not None and not _plain(keep, (y.shape[0],)):
        raise ValueError(f"keep must be float32 of shape ({y.shape[0]},), not {keep.dtype} {tuple(keep.shape)}")
    if residual is not None and (residual.shape != y.shape or residual.dtype != y.dtype or not takes(residual)):
        raise ValueError(f"residual must be a channels_last map like y: {tuple(y.shape)} {y.dtype}")
    return _NormAct.apply(y, _detached(norm), act, keep, residual, norm.weight, norm.bias)


class _NormActExcite(Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, norm: Norm, act: str, gate: Gate, *_: Any) -> Tensor:
        vectors = _statistics(y, norm)
        kept = _excite(y, vectors, act, gate)
        ctx.act = act
        ctx.save_for_backward(y, vectors, *kept)
        return _apply(y, vectors, act, keep=None, residual=None, gate=kept.gate)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor | None, ...]:
        y, vectors, *rest = ctx.saved_tensors
        kept = _Gated(*rest)
        dz = _gradient(dz, y)
        found, dpool, dgate = _excite_backward(dz, y, vectors, ctx.act, kept)
        dy = _input_gradient(dz, y, vectors, ctx.act, found.coefficients, gate=kept.gate, dpool=dpool)
        return dy, None, None, None, found.weight, found.bias, *dgate


def norm_act_excite(y: Tensor, norm: Norm, act: str, gate: Gate) -> Tensor:
    """Batch norm, activation, squeeze-and-excitation (with the same activation inside), (B,C,H,W) -> same.

    a = act(norm(y)); a * sigmoid(expand(act(reduce(mean_HW a)))). Keeps y and vectors.

    Raises:
        ValueError: a map or parameter the kernels cannot read, or no library.
    """
    _check(y, act, ((norm, y.numel() // y.shape[1]),), gate)
    return _NormActExcite.apply(y, _detached(norm), act, _detached(gate), norm.weight, norm.bias, *gate)


def _out(m: _Map, stride: int) -> tuple[int, int, int, int]:
    return m.batch, m.channels, -(-m.height // stride), -(-m.width // stride)


def _check_kernel(x: Tensor, weight: Tensor, stride: int) -> None:
    kernel = weight.shape[-1]
    if kernel not in (3, 5) or stride not in (1, 2) or not _plain(weight, (x.shape[1], 1, kernel, kernel)):
        raise ValueError(
            f"depthwise kernels are float32 ({x.shape[1]},1,k,k) with k 3 or 5 and stride 1 or 2,"
            f" not {weight.dtype} {tuple(weight.shape)} with stride {stride}"
        )


class _Depthwise(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        m, k = _map(x), weight.shape[-1]
        ctx.stride = stride
        ctx.save_for_backward(x, weight)
        y = _like(_out(m, stride), x)
        sizes = (m.batch, m.height, m.width, m.channels, k, stride, m.half)
        call("depthwise_forward", x, weight, y, *sizes, ACTS["none"], *(None,) * 5, 0.0, 0.0, None)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        m, k, none = _map(x), weight.shape[-1], ACTS["none"]
        dx = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        dw = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        sizes = (m.batch, m.height, m.width, m.channels, k, ctx.stride, m.half)
        maps = (x, weight, _gradient(dy, x))
        call("depthwise_backward", *maps, *(None,) * 5, none, None, none, dx, dw, *(None,) * 3, *sizes)
        return dx, dw, None


def depthwise(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Depthwise convolution with padding k // 2, (B,C,H,W) -> (B,C,ceil(H/stride),ceil(W/stride)).

    weight: (C,1,k,k), k 3 or 5, float32 also where maps are bfloat16.

    Raises:
        ValueError: a map or parameter the kernels cannot read, or no library.
    """
    _check(x, "none", ())
    _check_kernel(x, weight, stride)
    return _Depthwise.apply(x, weight, stride)


class _Middle(Function):
    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        norm1: Norm | None,
        act: str,
        weight: Tensor,
        stride: int,
        norm2: Norm,
        gate: Gate | None,
        *_: Any,
    ) -> Tensor:
        m, k = _map(y), weight.shape[-1]
        first = None if norm1 is None else _statistics(y, norm1)
        y2 = _like(_out(m, stride), y)
        second = m.rows(VECTORS)
        sizes = (m.batch, m.height, m.width, m.channels, k, stride, m.half, ACTS[act if norm1 else "none"])
        call("depthwise_forward", y, weight, y2, *sizes, first, *norm2, second)
        kept = None if gate is None else _excite(y2, second, act, gate)
        ctx.act, ctx.stride = act, stride
        ctx.save_for_backward(y, first, weight, y2, second, *(kept or ()))
        return _apply(y2, second, act, keep=None, residual=None, gate=kept.gate if kept else None)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor | None, ...]:
        y, first, weight, y2, second, *rest = ctx.saved_tensors
        m, k, act = _map(y), weight.shape[-1], ctx.act
        dz = _gradient(dz, y2)
        gate: Tensor | None = None
        dpool: Tensor | None = None
        dgate: tuple[Tensor, ...] = ()
        if rest:
            kept = _Gated(*rest)
            gate = kept.gate
            found, dpool, dgate = _excite_backward(dz, y2, second, act, kept)
        else:
            found = _norm_backward(dz, y2, second, act, None)
        expanded = first is not None
        dy = torch.empty_like(y) if expanded or ctx.needs_input_grad[0] else None
        dweight = torch.empty_like(weight)
        one = _norm_gradient(m) if expanded else None
        maps = (y, weight, dz, y2, gate, dpool, second, found.coefficients, ACTS[act])
        sizes = (m.batch, m.height, m.width, m.channels, k, ctx.stride, m.half)
        inner = ACTS[act if expanded else "none"]
        call("depthwise_backward", *maps, first, inner, dy, dweight, *(one or (None,) * 3), *sizes)
        if one is not None and dy is not None and ctx.needs_input_grad[0]:
            dy = _input_gradient(dy, y, first, "none", one.coefficients, out=dy)
        given = (dy if ctx.needs_input_grad[0] else None, None, None, dweight, None, None, None)
        firsts = (one.weight, one.bias) if one else (None, None)
        return *given, *firsts, found.weight, found.bias, *(dgate or (None,) * 4)


def mbconv_middle(
    y: Tensor, norm1: Norm | None, act: str, weight: Tensor, stride: int, norm2: Norm, gate: Gate | None
) -> Tensor:
    """All that stands between an MBConv block's two 1x1 convolutions, (B,C,H,W) -> (B,C,ceil(H/s),ceil(W/s)).

    excite(act(norm2(depthwise(act(norm1(y)))))). The activated expanded map is never written: rows of it are computed
    in the cache where the depthwise convolution, or its backward pass, wants them. Keeps y, the depthwise output and
    vectors.

    Args:
        y: raw output of the expanding convolution; without norm1 a finished map.
        norm1: after the expansion; None in a block without one.
        weight: (C,1,k,k), k 3 or 5.
        gate: squeeze-and-excitation; None for blocks without.

    Raises:
        ValueError: a map or parameter the kernels cannot read, or no library.
    """
    m = _map(y)
    batch, _, height, width = _out(m, stride)
    norms = (
        ((norm2, batch * height * width),) if norm1 is None else ((norm1, m.pixels), (norm2, batch * height * width))
    )
    _check(y, act, norms, gate)
    _check_kernel(y, weight, stride)
    bare = None if norm1 is None else _detached(norm1)
    pair = (None, None) if norm1 is None else norm1[:2]
    still = None if gate is None else _detached(gate)
    arguments = (y, bare, act, weight, stride, _detached(norm2), still)
    return _Middle.apply(*arguments, *pair, *norm2[:2], *(gate or (None,) * 4))


def _detached(pack: Any) -> Any:
    """The same tuple whose tensors autograd does not follow: those it follows are arguments of their own."""
    return type(pack)(*(part.detach() if isinstance(part, Tensor) else part for part in pack))


def load() -> ctypes.CDLL | None:
    """The compiled kernels, or None where `why_not` says why. Compiles once a machine, checks once a process."""
    return LIBRARY.load(_disagreement)


def _disagreement() -> str:
    """Runs the kernels on small maps beside torch; names the first that differs, or nothing."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 5e-2)):
        for kernel, stride, channels in ((3, 1, 24), (5, 2, 40)):
            x = draw(3, channels, 9, 7).to(dtype).contiguous(memory_format=torch.channels_last)
            weight = draw(channels, 1, kernel, kernel) / kernel
            vectors = [draw(channels).abs() + 0.5 for _ in range(4)]
            gate = Gate(draw(4, channels) / 5, draw(4), draw(channels, 4), draw(channels))
            results = []
            for native in (True, False):
                leaves = [t.clone().requires_grad_() for t in (x, weight, *vectors[:2], *gate)]
                inputs, kernels, scale, shift, *rest = leaves
                if native:
                    norms = [Norm(scale, shift, torch.zeros(channels), torch.ones(channels), 0.1, 1e-3) for _ in "12"]
                    z = mbconv_middle(inputs, norms[0], "silu", kernels, stride, norms[1], Gate(*rest))
                else:
                    y = F.silu(F.batch_norm(inputs.float(), None, None, scale, shift, True, 0.1, 1e-3))
                    y = F.conv2d(y, kernels, None, stride, kernel // 2, 1, channels)
                    y = F.silu(F.batch_norm(y, None, None, scale, shift, True, 0.1, 1e-3))
                    squeezed = F.silu(F.linear(y.mean((2, 3)), rest[0], rest[1]))
                    z = y * torch.sigmoid(F.linear(squeezed, rest[2], rest[3]))[:, :, None, None]
                with torch.enable_grad():
                    gradients = torch.autograd.grad((z.float() * z.detach().float().sin()).sum(), leaves)
                results.append([z.detach(), *gradients])
            for index, (a, b) in enumerate(zip(*results, strict=True)):
                error = (a.float() - b.float()).abs().max() / b.float().abs().max()
                if not error <= tolerance:
                    return f"result {index}, kernel {kernel}, {dtype}: off by {float(error):.1e}"
    return ""
