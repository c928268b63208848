"""From stored pictures to network input in one pass on CPUs: moved, resized, normalised. The C code is in `pictures.c`.

Plain torch shifts and mirrors a batch by one gather, resizes it on one thread, and normalises it in two or three passes
over maps that fit into no cache. Here a picture is done line by line while it is in the cache, pictures are shared
among torch's threads, and each number of the result is written once. A batch of more than 32 MiB is written past the
caches, which cannot hold it until the network reads it.

Every bit is the same as plain torch's, whatever the number of threads, because all before the last line is integers:

    resized   torch resizes uint8 as Pillow does. A pixel i of r from S has its centre at c = (i + 1/2) S / r and takes,
              with s = max(S / r, 1), the pixels p from int(c - s + 1/2) to int(c + s + 1/2) by the triangle
              max(0, 1 - |p - c + 1/2| / s), normalised to a sum of one, in float64. Weights become integers,
              int(1/2 + w 2^b), by the largest b up to 22 for which they stay below 2^15; a sum becomes a level by
              (2^(b-1) + sum) >> b. First along lines, which are rounded to levels, then across them.
    moved     line y, pixel x comes from line y + down, pixel x + right (mirrored: S - 1 - x + right), reflected at the
              border without repeating it; an erased rectangle has one colour.
    written   fl(fl(level * scale) - offset) in float32, and bfloat16 is that rounded to the nearest even.

A sum of two products of a level and a weight is one instruction on x86, and the order in which integers are added
changes nothing. Sums stay below 255.5 * 2^b, so no level needs to be cut off: that is asserted of every table.

Sources: Pillow's Resample.c and its SIMD port, aten/src/ATen/native/cpu/UpSampleKernelAVXAntialias.h and, for the
weights, UpSampleKernel.cpp of torch 2.13.
"""

from __future__ import annotations

import ctypes
import functools
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from src.kernels.library import Library

DTYPES = (torch.float32, torch.bfloat16)
MOST_BITS = 22  # of the weights' fractions, as in torch; weights take 15

_P, _L, _I = ctypes.c_void_p, ctypes.c_long, ctypes.c_int
LIBRARY = Library(
    "pictures.c",
    ("-ffp-contract=off",),  # level * scale is rounded before the offset is subtracted
    {"pictures_input": (_P, _P, _L, _L, *(_P,) * 8, _L, _L, _P, _P, _L, _I, _P, _P, _P, _I, _I)},
)
call, why_not = LIBRARY.call, LIBRARY.why_not


class Moves(NamedTuple):
    """How each picture is moved, int64 (B,) but `flip`, bool (B,): shift in pixels, less than the side; mirror; erased
    rectangle inside the picture, of height 0 for none; and `fill`, its colour, uint8 (3,)."""

    down: Tensor
    right: Tensor
    flip: Tensor
    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    fill: Tensor


class _Table(NamedTuple):
    """Resize of a side: first sources int32 (r,), weights int16 (r, 2 pairs) of the sources from there on, and b."""

    start: Tensor
    weights: Tensor
    bits: int


def takes(images: Tensor, dtype: torch.dtype) -> bool:
    """Whether the kernel makes input of `dtype` of these pictures: square uint8 (N, S, S, 3) on the CPU."""
    return (
        images.device.type == "cpu"
        and images.dtype == torch.uint8
        and images.dim() == 4
        and images.shape[1] == images.shape[2]
        and images.shape[3] == 3
        and images.numel() > 0
        and dtype in DTYPES
    )


def network_input(
    images: Tensor,
    resolution: int,
    scale: Tensor,
    offset: Tensor,
    dtype: torch.dtype = torch.float32,
    moves: Moves | None = None,
    rows: Tensor | None = None,
) -> Tensor:
    """Pictures moved, resized and normalised: (B, 3, r, r), channels_last.

    Args:
        images: uint8 (B, S, S, 3); with `rows`, (N, S, S, 3).
        resolution: r.
        scale, offset: float32 (3 r,), of each level of a line.
        dtype: of the result, float32 or bfloat16.
        moves: one row a picture; None leaves them where they are.
        rows: int64 (B,), which of the pictures are the batch.

    Raises:
        ValueError: tensors that the kernel cannot read, or no library.
        IndexError: rows outside of the pictures, shifts or rectangles outside of a picture.
    """
    side, held = images.shape[1], len(images)
    count = held if rows is None else len(rows)
    _check(images, resolution, scale, offset, dtype, moves, rows, count)
    images = images.contiguous()
    rows = None if rows is None else rows.contiguous()
    still = (None,) * len(Moves._fields)
    moved = still if moves is None else tuple(field.contiguous() for field in moves)
    table = None if side == resolution else _table(side, resolution)
    resized = (None, None, 0, 0) if table is None else (*table[:2], table.weights.shape[1] // 2, table.bits)
    result = torch.empty((count, resolution, resolution, 3), dtype=dtype)
    lines = scale.contiguous(), offset.contiguous()
    half = int(dtype == torch.bfloat16)
    call("pictures_input", images, rows, held, count, *moved, side, resolution, *resized, *lines, result, half)
    return result.permute(0, 3, 1, 2)


def _check(
    images: Tensor,
    resolution: int,
    scale: Tensor,
    offset: Tensor,
    dtype: torch.dtype,
    moves: Moves | None,
    rows: Tensor | None,
    count: int,
) -> None:
    if not takes(images, dtype) or resolution < 1:
        raise ValueError(
            f"the kernel makes float32 or bfloat16 of square uint8 pictures (N, S, S, 3) on the CPU, not {dtype} of"
            f" {resolution} px from {images.dtype} {tuple(images.shape)} {images.device}; use plain torch"
        )
    if any(line.dtype != torch.float32 or line.shape != (3 * resolution,) for line in (scale, offset)):
        raise ValueError(
            f"scale and offset must be float32 ({3 * resolution},), not {scale.dtype} {tuple(scale.shape)}"
        )
    if rows is not None and (rows.dtype != torch.int64 or rows.dim() != 1):
        raise ValueError(f"rows must be int64 (B,), not {rows.dtype} {tuple(rows.shape)}")
    for name, field in moves._asdict().items() if moves else ():
        kind = {"flip": torch.bool, "fill": torch.uint8}.get(name, torch.int64)
        shape = (3,) if name == "fill" else (count,)
        if field.dtype != kind or field.shape != shape or field.device.type != "cpu":
            raise ValueError(f"{name} must be {kind} {shape} on the CPU, not {field.dtype} {tuple(field.shape)}")


@functools.lru_cache(maxsize=64)
def _table(side: int, resolution: int) -> _Table:
    """Torch's weights, without those that are zero at both ends."""
    step = side / resolution
    reach = max(step, 1.0)
    centres = step * (np.arange(resolution) + 0.5)
    first = np.maximum((centres - reach + 0.5).astype(np.int64), 0)
    stop = np.minimum((centres + reach + 0.5).astype(np.int64), side)
    pixels = first[:, None] + np.arange((stop - first).max())
    weights = 1 - np.abs((pixels - centres[:, None] + 0.5) * (1 / reach))
    weights = np.where(pixels < stop[:, None], np.maximum(weights, 0), 0)
    weights /= weights.sum(1, keepdims=True)
    bits = 0
    while bits < MOST_BITS and int(0.5 + weights.max() * 2 ** (bits + 1)) < 2**15:
        bits += 1
    whole = (0.5 + weights * 2**bits).astype(np.int64)
    assert ((255 * whole.sum(1) + 2 ** (bits - 1)) >> bits).max() <= 255
    zeros = (whole > 0).argmax(1)
    length = (whole.shape[1] - (whole[:, ::-1] > 0).argmax(1) - zeros).max()
    length += length % 2
    places = zeros[:, None] + np.arange(length)
    padded = np.pad(whole, ((0, 0), (0, int(length))))
    start = first + zeros
    assert (np.diff(start) >= 0).all()  # the ring of lines only goes on
    return _Table(
        torch.from_numpy(start.astype(np.int32)),
        torch.from_numpy(np.take_along_axis(padded, places, 1).astype(np.int16)),
        bits,
    )


def load() -> ctypes.CDLL | None:
    """The compiled kernel, or None where `why_not` says why. Compiles once a machine, checks once a process."""
    return LIBRARY.load(_disagreement)


def _disagreement() -> str:
    """Runs the kernel on small pictures beside torch; names the first case in which a bit differs, or nothing."""
    generator = torch.Generator().manual_seed(0)
    for side, resolution in ((9, 21), (7, 7), (32, 45), (33, 20), (40, 9), (3, 1), (1, 4)):
        images = torch.randint(0, 256, (3, side, side, 3), dtype=torch.uint8, generator=generator)
        scale, offset = (torch.rand(3, generator=generator).repeat(resolution) for _ in range(2))
        shift, none = min(2, side - 1), torch.zeros(3, dtype=torch.int64)
        down, right = torch.tensor([shift, 0, -shift]), torch.tensor([-shift, shift, 0])
        flip, fill = torch.tensor([False, True, True]), torch.zeros(3, dtype=torch.uint8)
        expected = _plain(images, resolution, down, right, flip).float() * scale - offset
        expected = expected.view(3, resolution, resolution, 3).permute(0, 3, 1, 2)
        for dtype in DTYPES:
            moves = Moves(down, right, flip, none, none, none, none, fill)
            if not torch.equal(network_input(images, resolution, scale, offset, dtype, moves), expected.to(dtype)):
                return f"pictures of {side} px resized to {resolution}, {dtype}"
    return ""


def _plain(images: Tensor, resolution: int, down: Tensor, right: Tensor, flip: Tensor) -> Tensor:
    """Lines of the moved and resized pictures, uint8 (B, r, 3 r), by torch."""
    side = images.shape[1]
    line = torch.arange(side)
    across = torch.where(flip[:, None], line.flip(0), line) + right[:, None]
    y, x = (side - 1 - (side - 1 - at.abs()).abs() for at in (line + down[:, None], across))
    moved = images[torch.arange(len(images))[:, None, None], y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2)
    if side != resolution:
        size = (resolution, resolution)
        moved = F.interpolate(moved, size=size, mode="bilinear", antialias=True, align_corners=False)
    return moved.permute(0, 2, 3, 1).reshape(len(images), resolution, 3 * resolution)
