"""From stored uint8 pictures to network input: augment at the stored size, resize once, normalise once.

Batched tensor code for any device. Every random number is drawn on the CPU from the batch's own seed, so pictures do
not depend on device, worker, or what was drawn before; and all that decides what is computed is known there, so an
accelerator is never waited for. Training and evaluation differ in `unmoved` and in nothing else. On a CPU all from the
shift on is one fused kernel where there is a compiler, with the same bits (`src/kernels/pictures.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

from src.data.augment import apply_policy, draw_policy, send, uniform
from src.data.options import AugmentationOptions
from src.data.streaming import CROP_LOG_ASPECT
from src.kernels import pictures

ERASED_AREA = (0.02, 1 / 3)  # of the picture; Zhong et al. 2020, as in torchvision's RandomErasing
ERASED_LOG_ASPECT = 1.19  # |log(height / width)|: aspect 0.3 to 3.3
SAMPLED_SIDE = 64  # pixels up to which a CPU enlarges crops together faster than one by one


@dataclass(frozen=True)
class Draws:
    """What one batch is augmented with, one row a picture, all int64 (B,) but `flip`, bool (B,).

    `down`, `right`: shift in pixels; `top`, `left`, `height`, `width`: erased rectangle, of height 0 for none.
    """

    down: Tensor
    right: Tensor
    flip: Tensor
    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor

    def to(self, device: torch.device) -> Draws:
        """The same in one transfer."""
        if device.type == "cpu":
            return self
        fields = (self.down, self.right, self.flip, self.top, self.left, self.height, self.width)
        down, right, flip, *box = send(torch.stack([field.long() for field in fields]), device).unbind(0)
        return Draws(down, right, flip.bool(), *box)


class Crops(NamedTuple):
    """Rectangles that are enlarged to whole pictures, int64 (B,), in pixels."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor


class Unmoved(NamedTuple):
    """Pictures before shift, mirror and erasing.

    images: uint8 (B, S, S, 3); with `rows`, (N, S, S, 3).
    draws: how they will be moved; None: they stay.
    rows: int64 (B,), on the device of `images`: which of them are the batch; None: all.
    """

    images: Tensor
    draws: Draws | None = None
    rows: Tensor | None = None


def draw(
    count: int, side: int, options: AugmentationOptions, seed: int, first: int = 0, whole: int | None = None
) -> Draws:
    """Augmentation parameters of `count` pictures of `side` pixels; one switched off leaves the others' draws alone.

    They are rows [first, first + count) of those of a batch of `whole` pictures, by default the batch itself.
    """
    numbers = uniform(seed, 0, 8, count, first, whole).unbind(1)
    reach = round(options.crop_padding * side)
    none = torch.zeros(count, dtype=torch.int64)
    top, left, height, width = none, none, none, none
    if options.erasing:
        area = (ERASED_AREA[0] + numbers[4] * (ERASED_AREA[1] - ERASED_AREA[0])) * side * side
        aspect = torch.exp((2 * numbers[5] - 1) * ERASED_LOG_ASPECT)
        high = (area * aspect).sqrt().round().clamp(1, side)
        wide = (area / aspect).sqrt().round().clamp(1, side)
        top, left = (numbers[6] * (side - high + 1)).long(), (numbers[7] * (side - wide + 1)).long()
        height, width = torch.where(numbers[3] < options.erasing, high, 0.0).long(), wide.long()
    return Draws(
        down=(numbers[0] * (2 * reach + 1)).long() - reach,
        right=(numbers[1] * (2 * reach + 1)).long() - reach,
        flip=(numbers[2] < 0.5) & options.flip,
        top=top,
        left=left,
        height=height,
        width=width,
    )


def draw_crops(
    count: int, side: int, area: tuple[float, ...], seed: int, first: int = 0, whole: int | None = None
) -> Crops:
    """Resized crops of a share of the picture within `area`, uniform, as is the log of the aspect within 3/4 to 4/3.

    Near the whole picture the aspects are those that fit, where torchvision's RandomResizedCrop draws again.
    """
    numbers = crop_numbers(count, seed, first, whole).unbind(1)
    share = area[0] + numbers[0] * (area[1] - area[0])
    aspect = (2 * numbers[1] - 1) * (-share.log()).clamp(max=CROP_LOG_ASPECT)
    height = (side * (share * aspect.exp()).sqrt()).round().clamp(1, side)
    width = (side * (share / aspect.exp()).sqrt()).round().clamp(1, side)
    top, left = (numbers[2] * (side - height + 1)).long(), (numbers[3] * (side - width + 1)).long()
    return Crops(top, left, height.long(), width.long())


def crop_numbers(count: int, seed: int, first: int = 0, whole: int | None = None) -> Tensor:
    """What resized crops are made of, float64 (B, 4) in [0, 1): share, aspect, and place from top and left."""
    return uniform(seed, 1, 4, count, first, whole)


def train_pictures(
    images: Tensor,
    fill: Tensor,
    options: AugmentationOptions,
    seed: int,
    first: int = 0,
    whole: int | None = None,
    rows: Tensor | None = None,
) -> Tensor:
    """All augmentation of one batch: `unmoved`, then `augment`. Returns uint8 (B, S, S, 3)."""
    images, draws, rows = unmoved(images, fill, options, seed, first, whole, rows)
    return images if draws is None else augment(images, draws, fill, rows)


def unmoved(
    images: Tensor,
    fill: Tensor,
    options: AugmentationOptions,
    seed: int,
    first: int = 0,
    whole: int | None = None,
    rows: Tensor | None = None,
) -> Unmoved:
    """Augmentation of one batch: resized crop and policy made; shift, mirror and erasing drawn.

    This is the order of AutoAugment's first release for CIFAR-10 (policy, crop, mirror, cutout), and that of ImageNet
    recipes (resized crop, mirror, policy, erase) but for the mirror, which comes after the policy here.

    Args:
        images: uint8 (B, S, S, 3); with `rows`, (N, S, S, 3).
        fill: uint8 (3,), on the device of `images`: the training mean, zero after normalisation.
        seed, first, whole: as in `draw`.
        rows: int64 (B,), on the device of `images`: which of them are the batch.
    """
    side, count = images.shape[1], len(images if rows is None else rows)
    shifted = options.flip or options.erasing > 0 or round(options.crop_padding * side) > 0
    if rows is not None and (options.resized_crop_area or options.policy != "none" or not shifted):
        images, rows = images.index_select(0, rows), None
    if options.resized_crop_area:
        images = enlarge(images, draw_crops(count, side, options.resized_crop_area, seed, first, whole))
    if options.policy != "none":
        images = apply_policy(images, draw_policy(count, side, options, seed, first, whole), fill)
    return Unmoved(images, draw(count, side, options, seed, first, whole) if shifted else None, rows)


def augment(images: Tensor, draws: Draws, fill: Tensor, rows: Tensor | None = None) -> Tensor:
    """Shift with reflected border, mirror, erase.

    Args:
        images: uint8 (B, S, S, 3); with `rows`, (N, S, S, 3).
        draws: one row a picture, on the CPU.
        fill: uint8 (3,), colour of erased rectangles.
        rows: int64 (B,), which of the pictures are the batch: taken and shifted in one gather.

    Returns:
        uint8 (B, S, S, 3).
    """
    side, device = images.shape[1], images.device
    erasing = bool(draws.height.any())
    if erasing and rows is not None:
        images, rows = images.index_select(0, rows), None
    draws = draws.to(device)
    line = torch.arange(side, device=device)
    across = _reflect(line + draws.right[:, None], side)
    across = torch.where(draws.flip[:, None], across.flip(1), across)
    rows = torch.arange(len(images), device=device) if rows is None else rows
    down = (rows * side)[:, None] + _reflect(line + draws.down[:, None], side)
    pixels = images.view(-1, 3)
    kind = torch.int32 if len(pixels) < 2**31 - 1 else torch.int64
    source = ((down * side).to(kind)[:, :, None] + across.to(kind)[:, None, :]).view(-1)
    if erasing:
        in_rows = (line >= draws.top[:, None]) & (line < (draws.top + draws.height)[:, None])
        in_columns = (line >= draws.left[:, None]) & (line < (draws.left + draws.width)[:, None])
        source.masked_fill_((in_rows[:, :, None] & in_columns[:, None, :]).view(-1), len(pixels))
        pixels = torch.cat([pixels, fill[None]])
    # One gather of whole pixels: the fastest of five ways on a CPU, and no loop over pictures elsewhere.
    return pixels.index_select(0, source).view(len(down), side, side, 3)


def enlarge(images: Tensor, crops: Crops) -> Tensor:
    """Each crop of uint8 (B, S, S, 3) resized to the whole picture, bilinear; a crop of everything changes nothing."""
    alone = images.device.type == "cpu" and images.shape[1] > SAMPLED_SIDE
    return _enlarge_each(images, crops) if alone else _enlarge_together(images, crops)


def _enlarge_each(images: Tensor, crops: Crops) -> Tensor:
    """A picture at a time, by the uint8 kernel: on a CPU 2 to 5 times as fast as the other way at 128 and 256 px."""
    side, planes = images.shape[1], images.permute(0, 3, 1, 2)
    result = torch.empty_like(images)
    for row, (top, left, height, width) in enumerate(zip(*(field.tolist() for field in crops), strict=True)):
        crop = planes[row : row + 1, :, top : top + height, left : left + width]
        enlarged = interpolate(crop, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
        result[row] = enlarged[0].permute(1, 2, 0)
    return result


def _enlarge_together(images: Tensor, crops: Crops) -> Tensor:
    """One sampling of all pictures; enlarging needs no antialiasing. Beyond a crop its own border is repeated."""
    side = images.shape[1]
    top, left, height, width = send(torch.stack(crops), images.device)[:, :, None].float()
    middles = torch.arange(side, device=images.device) + 0.5
    y = torch.minimum(top + (middles * height / side).clamp(min=0.5), top + height - 0.5)
    x = torch.minimum(left + (middles * width / side).clamp(min=0.5), left + width - 0.5)
    shape = (len(images), side, side)
    grid = torch.stack([x[:, None, :].expand(shape), y[:, :, None].expand(shape)], dim=3) * (2 / side) - 1
    sampled = grid_sample(images.permute(0, 3, 1, 2).float(), grid, mode="bilinear", align_corners=False)
    return sampled.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def resize(images: Tensor, resolution: int) -> Tensor:
    """Antialiased bilinear resize of uint8 (B, S, S, 3) to uint8 (B, r, r, 3); the whole picture, no crop."""
    if images.shape[1] == resolution:
        return images
    planes = images.permute(0, 3, 1, 2)
    # Only the CPU kernel takes uint8 (4 to 10 times faster than float32 there); both round to the nearest level.
    if images.device.type != "cpu":
        planes = planes.float()
    resized = interpolate(planes, size=(resolution, resolution), mode="bilinear", antialias=True, align_corners=False)
    if images.device.type != "cpu":
        resized = resized.round_().clamp_(0, 255).to(torch.uint8)
    return resized.permute(0, 2, 3, 1)


def network_input(
    batch: Unmoved, fill: Tensor, resolution: int, scale: Tensor, offset: Tensor, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Pictures moved, resized and normalised: (B, 3, r, r), channels_last, on the device of the pictures.

    It is `augment`, `resize` and `standardise` one after the other, or on a CPU one kernel that gives the same bits.

    Args:
        batch: the pictures.
        fill: uint8 (3,), colour of erased rectangles.
        resolution: r.
        scale, offset: as made by `lines`.
        dtype: of the result.
    """
    images, draws, rows = batch
    if pictures.takes(images, dtype) and pictures.load() is not None:
        moves = None if draws is None else pictures.Moves(**vars(draws), fill=fill)
        return pictures.network_input(images, resolution, scale, offset, dtype, moves, rows)
    if draws is not None:
        images = augment(images, draws, fill, rows)
    elif rows is not None:
        images = images.index_select(0, rows)
    return standardise(resize(images, resolution), scale, offset, dtype)


def normalise(images: Tensor, mean: Tensor, std: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """(x / 255 - mean) / std of uint8 (B, r, r, 3) as (B, 3, r, r), channels_last; mean and std are (3,).

    It is computed in float32 and rounded to `dtype` as it is written.
    """
    scale, offset = lines(mean, std, images.shape[1])
    return standardise(images, scale.to(images.device), offset.to(images.device), dtype)


def lines(mean: Tensor, std: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Scale and offset of the levels in a line of `side` pixels, float32 (3 side,).

    Lines of repeated constants, because broadcasting over a last axis of 3 is five times slower.
    """
    return (1 / (255 * std)).repeat(side), (mean / std).repeat(side)


def standardise(images: Tensor, scale: Tensor, offset: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """`normalise` with constants made ready by `lines`, on the device of the pictures."""
    count, side = images.shape[:2]
    flat = images.reshape(count, side, side * 3).to(torch.float32).mul_(scale)
    out = flat if dtype == torch.float32 else torch.empty_like(flat, dtype=dtype)
    return torch.sub(flat, offset, out=out).view(count, side, side, 3).permute(0, 3, 1, 2)


def denormalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """The inverse of `normalise`: float (B, 3, r, r) to uint8 (B, r, r, 3), on the CPU."""
    levels = (images.detach().cpu().float().permute(0, 2, 3, 1) * std + mean) * 255
    return levels.round().clamp(0, 255).to(torch.uint8).contiguous()


def _reflect(positions: Tensor, side: int) -> Tensor:
    folded = positions.abs()
    return torch.where(folded >= side, 2 * (side - 1) - folded, folded)
