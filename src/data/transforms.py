"""From stored uint8 pictures to network input: augment at the stored size, resize once, normalise once.

Batched tensor code for any device. Every random number is drawn on the CPU from the batch's own seed, so pictures do
not depend on device, worker, or what was drawn before. Training and evaluation differ in `augment` and in nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from src.data.options import AugmentationOptions

ERASED_AREA = (0.02, 1 / 3)  # of the picture; Zhong et al. 2020, as in torchvision's RandomErasing
ERASED_LOG_ASPECT = 1.19  # |log(height / width)|: aspect 0.3 to 3.3


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


def draw(
    count: int, side: int, options: AugmentationOptions, seed: int, first: int = 0, whole: int | None = None
) -> Draws:
    """Augmentation parameters of `count` pictures of `side` pixels; one switched off leaves the others' draws alone.

    They are rows [first, first + count) of those of a batch of `whole` pictures, by default the batch itself.
    """
    table = torch.rand((whole or count, 8), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    uniform = table[first : first + count].unbind(1)
    reach = round(options.crop_padding * side)
    area = (ERASED_AREA[0] + uniform[4] * (ERASED_AREA[1] - ERASED_AREA[0])) * side * side
    aspect = torch.exp((2 * uniform[5] - 1) * ERASED_LOG_ASPECT)
    height = (area * aspect).sqrt().round().clamp(1, side)
    width = (area / aspect).sqrt().round().clamp(1, side)
    return Draws(
        down=(uniform[0] * (2 * reach + 1)).long() - reach,
        right=(uniform[1] * (2 * reach + 1)).long() - reach,
        flip=(uniform[2] < 0.5) & options.flip,
        top=(uniform[6] * (side - height + 1)).long(),
        left=(uniform[7] * (side - width + 1)).long(),
        height=torch.where(uniform[3] < options.erasing, height, 0.0).long(),
        width=width.long(),
    )


def augment(images: Tensor, draws: Draws, fill: Tensor) -> Tensor:
    """Shift with reflected border, mirror, erase.

    Args:
        images: uint8 (B, S, S, 3).
        draws: one row a picture.
        fill: uint8 (3,), colour of erased rectangles: the training mean, zero after normalisation.

    Returns:
        uint8 (B, S, S, 3).
    """
    count, side = images.shape[:2]
    line = torch.arange(side)
    rows = _reflect(line + draws.down[:, None], side)
    columns = _reflect(line + draws.right[:, None], side)
    columns = torch.where(draws.flip[:, None], columns.flip(1), columns)
    origin = torch.arange(0, count * side**2, side**2)[:, None]
    source = ((origin + rows * side).int()[:, :, None] + columns.int()[:, None, :]).view(-1)
    pixels = images.reshape(-1, 3)
    if bool(draws.height.any()):
        in_rows = (line >= draws.top[:, None]) & (line < (draws.top + draws.height)[:, None])
        in_columns = (line >= draws.left[:, None]) & (line < (draws.left + draws.width)[:, None])
        source.masked_fill_((in_rows[:, :, None] & in_columns[:, None, :]).view(-1), len(pixels))
        pixels = torch.cat([pixels, fill[None].to(pixels.device)])
    # One gather of whole pixels: the fastest of five ways on a CPU, and no loop over pictures elsewhere.
    return pixels.index_select(0, source.to(pixels.device)).view(images.shape)


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


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(x / 255 - mean) / std of uint8 (B, r, r, 3) as float32 (B, 3, r, r), channels_last; mean and std are (3,)."""
    count, side = images.shape[:2]
    # Rows of repeated constants: broadcasting over a last axis of 3 is five times slower.
    scale = (1 / (255 * std)).repeat(side).to(images.device)
    offset = (mean / std).repeat(side).to(images.device)
    flat = images.reshape(count, side, side * 3).to(torch.float32).mul_(scale).sub_(offset)
    return flat.view(count, side, side, 3).permute(0, 3, 1, 2)


def denormalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """The inverse of `normalise`: float (B, 3, r, r) to uint8 (B, r, r, 3), on the CPU."""
    levels = (images.detach().cpu().float().permute(0, 2, 3, 1) * std + mean) * 255
    return levels.round().clamp(0, 255).to(torch.uint8).contiguous()


def _reflect(positions: Tensor, side: int) -> Tensor:
    folded = positions.abs()
    return torch.where(folded >= side, 2 * (side - 1) - folded, folded)
