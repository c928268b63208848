"""From a stage table to a module, and, directly beneath, from the same table to its cost.

Shapes: B batch, H, W input side, C channels of the final map, h, w its cells, K classes.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from src.networks.blocks import BLOCKS
from src.networks.cost import PLAIN, Cost, Count, Execution, RecomputeCost, total
from src.networks.layers import ConvNorm, conv_norm_cost, initialise, linear_cost, max_pool, max_pool_cost
from src.networks.table import Network

RGB = 3


class Outputs(NamedTuple):
    """What the network returns: `logits` (B,K) and `features` (B,C,h,w), the map that enters global average pooling."""

    logits: Tensor
    features: Tensor


class ConvNet(nn.Module):
    """Stem, stages, 1x1 head convolution if the table has one, global average pooling, dropout, linear classifier.
    (B,3,H,W) -> `Outputs`.

    drop_path: rate of the last block; it grows linearly from zero with the block's index, as released.

    Attributes:
        recompute: in training, keep only the inputs of `pieces` for the backward pass and run each a second time there
            (activation checkpointing, arXiv 1604.06174). Results, masks and running statistics are the same.
    """

    recompute = False

    def __init__(self, network: Network, classes: int, *, dropout: float = 0.0, drop_path: float = 0.0) -> None:
        super().__init__()
        norm, act = network.norm, network.activation
        c_in = network.stem.channels
        self.stem = ConvNorm(RGB, c_in, network.stem.kernel, network.stem.stride, 1, norm, act)
        self.pool = max_pool(network.stem.pool)
        stages: list[nn.Module] = []
        index = 0
        for stage in network.stages:
            blocks: list[nn.Module] = []
            for repeat in range(stage.repeats):
                stride = stage.stride if repeat == 0 else 1
                rate = drop_path * index / network.blocks
                blocks.append(BLOCKS[stage.block](c_in, stage, stride, norm, act, rate))
                c_in = stage.channels
                index += 1
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.head: nn.Module = nn.Identity()
        if network.head_channels:
            self.head = ConvNorm(c_in, network.head_channels, 1, 1, 1, norm, act)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(network.head_channels or c_in, classes)
        initialise(self)

    def pieces(self) -> list[nn.Module]:
        """What is recomputed as one: stem with pooling, each block, the head. In order: from pictures to features."""
        blocks = [block for stage in self.stages for block in stage]  # type: ignore[attr-defined]
        head = [] if isinstance(self.head, nn.Identity) else [self.head]
        return [nn.Sequential(self.stem, self.pool), *blocks, *head]

    def forward(self, images: Tensor) -> Outputs:
        if self.recompute and self.training and torch.is_grad_enabled():
            features = images
            for piece in self.pieces():
                again = functools.partial(_first_and_second_pass, piece)
                features = checkpoint(piece, features, use_reentrant=False, context_fn=again)
        else:
            features = self.head(self.stages(self.pool(self.stem(images))))
        pooled = features.mean((2, 3))  # (B,C)
        return Outputs(self.classifier(self.dropout(pooled)), features)


def _first_and_second_pass(
    piece: nn.Module,
) -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
    """Contexts of a piece's forward pass and of its repetition, as `torch.utils.checkpoint` asks for them."""
    return contextlib.nullcontext(), _statistics_at_rest(piece)


@contextlib.contextmanager
def _statistics_at_rest(piece: nn.Module) -> Iterator[None]:
    """Batch norm normalises with the batch, as in training, but moves copies of its running statistics."""
    kept = [(module, dict(module.named_buffers())) for module in piece.modules() if isinstance(module, _BatchNorm)]
    for norm, buffers in kept:
        for name, buffer in buffers.items():
            setattr(norm, name, buffer.clone())
    try:
        yield
    finally:
        for norm, buffers in kept:
            for name, buffer in buffers.items():
                setattr(norm, name, buffer)


def build(network: Network, classes: int, *, dropout: float = 0.0, drop_path: float = 0.0) -> ConvNet:
    """The module of a stage table, with released initial weights drawn from torch's global generator."""
    return ConvNet(network, classes, dropout=dropout, drop_path=drop_path)


@dataclass(frozen=True)
class StageCosts:
    """Cost of a table in the pieces that depth scaling repeats: the network is fixed + sum(first + (repeats - 1) *
    next)."""

    fixed: Cost  # stem, pooling after it, head and classifier
    first: tuple[Cost, ...]  # the strided, channel-changing block of each stage
    next: tuple[Cost, ...]  # every further block of each stage

    def total(self, repeats: Sequence[Count]) -> Cost:
        """Cost of the whole network with these repeats."""
        parts = [self.fixed, *self.first]
        parts += [following.times(n - 1) for following, n in zip(self.next, repeats, strict=True)]
        return total(1, parts)


def stage_costs(
    network: Network,
    resolution: Count,
    classes: int,
    channels: Sequence[Count] | None = None,
    execution: Execution = PLAIN,
) -> StageCosts:
    """Twin of `ConvNet`, stage by stage, for one picture of `resolution` pixels a side.

    channels: in place of the table's own (`Network.channels`). Arrays here and in `resolution` must broadcast; every
        count is then an array of their common shape.
    execution: what computes the steps in which `saved` elements are kept.
    """
    act = network.activation
    stem_channels, *others = network.channels if channels is None else channels
    pictures = Cost(resolution, execution=execution)
    stem = conv_norm_cost(pictures, RGB, stem_channels, network.stem.kernel, network.stem.stride, 1, act)
    stem = max_pool_cost(stem, stem_channels, network.stem.pool)
    c_in, before = stem_channels, stem
    first, following = [], []
    for stage, c_out in zip(network.stages, others[: len(network.stages)], strict=True):
        block = BLOCKS[stage.block]
        first.append(block.cost(before.afresh(before.map_saved), c_in, c_out, stage, stage.stride, act))
        c_in, before = c_out, first[-1]
        following.append(block.cost(before.afresh(before.map_saved), c_in, c_in, stage, 1, act))
    end = before.afresh(before.map_saved)
    if network.head_channels:
        end, c_in = conv_norm_cost(end, c_in, others[-1], 1, 1, 1, act), others[-1]
    end = linear_cost(end, c_in, classes)
    return StageCosts(total(1, [stem, end]), tuple(first), tuple(following))


def network_cost(network: Network, resolution: int, classes: int, execution: Execution = PLAIN) -> Cost:
    """What a whole table costs for one picture; builds nothing."""
    return stage_costs(network, resolution, classes, execution=execution).total(network.repeats)


def recompute_cost(network: Network, resolution: int, classes: int, execution: Execution = PLAIN) -> RecomputeCost:
    """Twin of `ConvNet` with `recompute`, piece by piece; builds nothing."""
    act, kept = network.activation, 0
    inputs = again = 0
    c_in, width, cost = RGB, execution.single, Cost(resolution, execution=execution)

    def add(piece: Cost) -> Cost:
        nonlocal kept, inputs, again
        kept += width * c_in * cost.side * cost.side
        if kept + piece.saved > inputs + again:
            inputs, again = kept, piece.saved
        return piece

    def start() -> Cost:
        return cost.afresh(map_saved=True)  # the piece's input, counted in `kept`

    stem = network.stem
    # Pictures are float32; the stem keeps their half-precision copy beside them.
    first = conv_norm_cost(cost.afresh(not execution.half), RGB, stem.channels, stem.kernel, stem.stride, 1, act)
    cost, c_in, width = add(max_pool_cost(first, stem.channels, stem.pool)), stem.channels, 1
    for stage in network.stages:
        for repeat in range(stage.repeats):
            stride = stage.stride if repeat == 0 else 1
            cost = add(BLOCKS[stage.block].cost(start(), c_in, stage.channels, stage, stride, act))
            c_in = stage.channels
    if network.head_channels:
        cost, c_in = add(conv_norm_cost(start(), c_in, network.head_channels, 1, 1, 1, act)), network.head_channels
    return RecomputeCost(kept + linear_cost(cost, c_in, classes).minus(cost).saved, inputs, again)
