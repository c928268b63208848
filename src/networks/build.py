"""From a stage table to a module, and, directly beneath, from the same table to its cost.

Shapes: B batch, H, W input side, C channels of the final map, h, w its cells, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from src.networks.blocks import BLOCKS
from src.networks.cost import Cost, Count, total
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
    """

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

    def forward(self, images: Tensor) -> Outputs:
        features = self.head(self.stages(self.pool(self.stem(images))))
        pooled = features.mean((2, 3))  # (B,C)
        return Outputs(self.classifier(self.dropout(pooled)), features)


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
    network: Network, resolution: Count, classes: int, channels: Sequence[Count] | None = None
) -> StageCosts:
    """Twin of `ConvNet`, stage by stage, for one picture of `resolution` pixels a side.

    channels: in place of the table's own (`Network.channels`). Arrays here and in `resolution` must broadcast; every
        count is then an array of their common shape.
    """
    act = network.activation
    stem_channels, *others = network.channels if channels is None else channels
    stem = conv_norm_cost(Cost(resolution), RGB, stem_channels, network.stem.kernel, network.stem.stride, 1, act)
    stem = max_pool_cost(stem, stem_channels, network.stem.pool)
    c_in, before = stem_channels, stem
    first, following = [], []
    for stage, c_out in zip(network.stages, others[: len(network.stages)], strict=True):
        block = BLOCKS[stage.block]
        first.append(block.cost(_afresh(before), c_in, c_out, stage, stage.stride, act))
        c_in, before = c_out, first[-1]
        following.append(block.cost(_afresh(before), c_in, c_in, stage, 1, act))
    end = _afresh(before)
    if network.head_channels:
        end, c_in = conv_norm_cost(end, c_in, others[-1], 1, 1, 1, act), others[-1]
    end = linear_cost(end, c_in, classes)
    return StageCosts(total(1, [stem, end]), tuple(first), tuple(following))


def _afresh(cost: Cost) -> Cost:
    """Nothing counted yet, on the current map."""
    return Cost(cost.side, map_saved=cost.map_saved)


def network_cost(network: Network, resolution: int, classes: int) -> Cost:
    """What a whole table costs for one picture; builds nothing."""
    return stage_costs(network, resolution, classes).total(network.repeats)
