"""What a network does without the places that a map points at, and what it does with weights that learned nothing.

Pictures are normalised network input, (N, 3, r, r), so that 0 is the mean colour of the training pictures. A
probability is the softmax of the class that the map explains.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from src.cam.maps import at_rest
from src.cam.scores import (
    TILES,
    Floats,
    adcc,
    coherency,
    complexity,
    deletion_gain,
    drop,
    enlarge,
    insertion_gain,
    pool,
)
from src.networks.layers import initialise

STEPS = 20  # of 5 % of the picture's pixels
BLUR = 0.125  # standard deviation of the blur that takes a place's content away, of the picture's side

Explain = Callable[[Tensor, Tensor], Floats]  # pictures (N, 3, r, r), classes (N,) -> signed maps (N, h, w)


def gains(
    model: nn.Module, images: Tensor, labels: Tensor, maps: Floats, *, seed: int, batch_size: int
) -> dict[str, Floats]:
    """Deletion and insertion gain of each picture's map, float64 (N,).

    Pixels are blurred (deletion) or brought back into the blurred picture (insertion) from the brightest place of the
    map on, 5 % at a time. The rival is the same map with its cells shuffled: as smooth, on the same grid, with the same
    values. An order of single pixels drawn at random would leave a speckle that no map leaves, and a map that knows
    nothing would not score 0. Ordering needs no cut at zero, which would only make the negative part all equal.
    """
    rng = np.random.default_rng([seed, 1])
    shuffled = rng.permuted(maps.reshape(len(maps), -1), axis=1).reshape(maps.shape)
    blur = blurred(images)
    whole, none = (probabilities(model, batch, labels, batch_size=batch_size) for batch in (images, blur))
    pixels, together = images.shape[-1] ** 2, max(1, batch_size // len(images))
    cuts = [round(step * pixels / STEPS) for step in range(1, STEPS)]

    def curve(heat: Floats, insert: bool) -> Floats:
        ranks = torch.from_numpy(_ranks(heat, images.shape[-1], rng))[:, None]  # (N, 1, r, r)
        rows = [none if insert else whole]
        for first in range(0, len(cuts), together):
            some = torch.tensor(cuts[first : first + together])[:, None, None, None, None]
            touched = ranks < some  # (steps, N, 1, r, r)
            mixed = torch.where(touched if insert else ~touched, images, blur).flatten(0, 1)
            told = probabilities(model, mixed, labels.repeat(len(some)), batch_size=batch_size)
            rows += list(told.reshape(len(some), -1))
        return np.stack([*rows, whole if insert else none])

    return {
        "deletion_gain": deletion_gain(curve(shuffled, False), curve(maps, False)),
        "insertion_gain": insertion_gain(curve(shuffled, True), curve(maps, True)),
    }


def masked_scores(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    maps: Floats,
    *,
    explain: Explain | None,
    batch_size: int,
) -> dict[str, Floats]:
    """What is left of the prediction when the picture is multiplied with its positive map, whose maximum is 1: drop,
    increase and complexity; with `explain`, which draws the map anew, also coherency and ADCC. Each float64 (N,)."""
    side = images.shape[-1]
    heat = enlarge(np.maximum(maps, 0.0), side)
    top = heat.max((1, 2), keepdims=True)
    mask = np.divide(heat, top, out=np.full_like(heat, np.nan), where=top > 0)
    there = torch.from_numpy(~np.isnan(mask[:, 0, 0]))
    masked = images * torch.from_numpy(np.nan_to_num(mask)).to(images.dtype)[:, None]
    before, after = (
        np.where(there, probabilities(model, batch, labels, batch_size=batch_size), np.nan)
        for batch in (images, masked)
    )
    scores = {
        "drop": drop(before, after),
        "increase": np.where(there, after > before, np.nan),
        "complexity": complexity(maps, side),
    }
    if explain is not None:
        again = explain(masked, labels)
        scores["coherency"] = coherency(maps, pool(again, (maps.shape[1], maps.shape[2])), side)
        scores["adcc"] = adcc(scores["coherency"], scores["complexity"], scores["drop"])
    return scores


def probabilities(model: nn.Module, images: Tensor, labels: Tensor, *, batch_size: int) -> NDArray[np.float64]:
    """Softmax of one class a picture, in eval mode, (N,)."""
    weight = next(model.parameters())
    with at_rest(model):
        parts = [
            model(picture.to(weight)).logits.float().softmax(1).cpu().gather(1, label[:, None])[:, 0]
            for picture, label in zip(images.split(batch_size), labels.split(batch_size), strict=True)
        ]
    return torch.cat(parts).double().numpy()


def blurred(images: Tensor) -> Tensor:
    """The pictures without what is smaller than about a quarter of their side; at the border the blur is of the inside
    alone."""
    place = torch.arange(images.shape[-1]) / (BLUR * images.shape[-1])
    matrix = torch.exp(-0.5 * (place[:, None] - place) ** 2)
    matrix = (matrix / matrix.sum(1, keepdim=True)).to(images.dtype)
    return matrix @ images @ matrix.T


def mosaics(images: Tensor, labels: Tensor) -> tuple[Tensor, list[int]]:
    """Mosaics of `TILES` x `TILES` consecutive pictures of different classes.

    Returns:
        (M, 3, 2r, 2r), and the first row of each mosaic's pictures. Rows whose classes repeat, and the last rows that
        fill no mosaic, are left out.
    """
    tiles = TILES * TILES
    firsts = [
        first
        for first in range(0, len(images) - tiles + 1, tiles)
        if len(set(labels[first : first + tiles].tolist())) == tiles
    ]
    return torch.stack([_mosaic(images[first : first + tiles]) for first in firsts]) if firsts else images[:0], firsts


def _mosaic(tiles: Tensor) -> Tensor:
    rows = [torch.cat(list(row), dim=-1) for row in tiles.split(TILES)]
    return torch.cat(rows, dim=-2)


def randomised(model: nn.Module, images: Tensor, *, seed: int, batch_size: int) -> nn.Module:
    """A copy of the network with initial weights in every layer, the far end of Adebayo et al. 2018
    (arXiv:1810.03292): maps that score alike show the network's shape, not what it has learned.

    Batch norm takes its statistics from the pictures; with those of a fresh network, activations fade out.
    """
    copied = copy.deepcopy(model)
    norms = [module for module in copied.modules() if isinstance(module, _BatchNorm)]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        initialise(copied)
    for norm in norms:
        norm.reset_parameters()
        norm.momentum = None  # the mean over all batches
    with at_rest(copied):
        for norm in norms:
            norm.train()
        for batch in images.split(batch_size):
            copied(batch.to(next(copied.parameters())))
    return copied.eval()


def _ranks(maps: Floats, side: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Place of every pixel when they are sorted from the brightest on, (N, side, side); equal ones in random order."""
    heat = enlarge(maps, side).reshape(len(maps), -1)
    order = np.lexsort((rng.random(heat.shape), -heat), axis=1)
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(heat.shape[1])[None], 1)
    return ranks.reshape(len(maps), side, side)


def tile_labels(labels: Tensor, firsts: Sequence[int]) -> Tensor:
    """Class of every tile of the mosaics that begin at `firsts`, mosaic by mosaic."""
    return torch.cat([labels[first : first + TILES * TILES] for first in firsts]) if firsts else labels[:0]
