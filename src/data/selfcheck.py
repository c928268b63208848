"""What reaches a network, held against what was declared, before anything trains (guards G6 and G7).

The few pictures that are looked at go the way of a batch in training and in evaluation, and are made a second time by
plain tensor code that shares nothing with it but torch's resize.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from src.data.module import ImageDataModule
from src.data.sampling import RawBatch
from src.guards import named

PICTURES = 16  # looked at
DRAWS = 4  # of augmentation for each: that none of them moves anything has no chance
SURELY_ERASES = 0.2  # probability of erasing above which 64 draws do not all spare their picture: 0.8 ** 64 is 6e-7
LARGEST_GAP = 0.05  # in standard deviations: a level of 255 is one 60th of that or less; bfloat16 is left out of it


def check_input(data: ImageDataModule) -> None:
    """Stop unless training and evaluation pictures are whole, of the arm's side, normalised by the training mean and
    deviation, back in their colours when that is undone, and augmented as declared.

    Raises:
        RuntimeError: names what is not so.
    """
    split = data.data.val
    rows = np.arange(min(PICTURES, len(split)))
    raw = RawBatch(torch.from_numpy(np.ascontiguousarray(split.images[rows])), torch.from_numpy(split.labels[rows]))
    images, labels = data.prepare_batch(raw)
    side = data.resolution
    if images.shape[1:] != (3, side, side):
        got = "x".join(map(str, images.shape[1:]))
        raise RuntimeError(named("G7", f"evaluation pictures are {got}, the arm is trained at 3x{side}x{side}"))
    whole = _levels(raw.images, side)
    plain = (whole / 255 - data.mean[:, None, None]) / data.std[:, None, None]
    gap = float((images.float() - plain).abs().max())
    if gap > LARGEST_GAP:
        sentence = (
            f"evaluation pictures differ by up to {gap:.2f} standard deviations from the whole pictures, resized to"
            f" {side} px and normalised by the training mean and deviation: cropped, or normalised otherwise"
        )
        raise RuntimeError(named("G7", sentence))
    back = torch.from_numpy(data.denormalise(images)).permute(0, 3, 1, 2).float()
    levels = float((back - whole).abs().max())
    if levels > 1.0:
        sentence = f"undoing the normalisation leaves pictures {levels:.0f} levels of 255 from what they were"
        raise RuntimeError(named("G7", f"{sentence}: maps would be shown over wrong colours"))
    _check_augmentation(data, raw, images)
    if int(labels.min()) < 0 or int(labels.max()) >= len(data.facts.class_names):
        raise RuntimeError(named("G7", f"labels {sorted(set(labels.tolist()))} leave the classes of the data"))


def _levels(pictures: Tensor, side: int) -> Tensor:
    """uint8 (B, S, S, 3) resized to float levels (B, 3, r, r), rounded as stored pictures are."""
    planes = pictures.permute(0, 3, 1, 2).float()
    resized = interpolate(planes, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
    return resized.round().clamp(0, 255)


def _check_augmentation(data: ImageDataModule, raw: RawBatch, plain: Tensor) -> None:
    asked = data.options.augmentation
    geometric = asked.flip or round(asked.crop_padding * raw.images.shape[1]) > 0 or bool(asked.resized_crop_area)
    declared = geometric or asked.policy != "none"
    batches = [data.prepare_batch(raw._replace(seed=seed, whole=len(raw.labels)))[0] for seed in range(1, DRAWS + 1)]
    moved = any(not torch.equal(batch, plain) for batch in batches)
    # Rare erasing may spare all that are looked at, and nothing moves a picture of one colour.
    visible = declared or asked.erasing >= SURELY_ERASES
    if visible and not moved and bool((raw.images.flatten(1, 2).float().std(1) > 0).any()):
        sentence = "augmentation was declared, and training pictures are those of evaluation: it does not act"
        raise RuntimeError(named("G6", sentence))
    if moved and not declared and not asked.erasing:
        raise RuntimeError(named("G6", "no augmentation was declared, and training pictures are changed"))
    if any(batch.shape != plain.shape for batch in batches):
        raise RuntimeError(named("G7", f"training pictures are {tuple(batches[0].shape[1:])}, not as evaluated"))
