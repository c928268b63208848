"""Stage tables: a network as data.

The tables live in `conf/network/*.yaml`; their keys are the fields below. A table is frozen, hashable and holds all
that decides the shape of every weight except the number of classes, so that scaling a network means making another
table.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field

from src.choices import check_choice

SMALLEST_FINAL_MAP = 4  # cells a side: below it activation maps say nothing and depthwise kernels see mostly padding

BLOCK_KINDS = ("mbconv",)
ACTIVATIONS = ("silu", "relu")


def _check_positive(owner: str, **values: int) -> None:
    for key, value in values.items():
        if value < 1:
            raise ValueError(f"{owner}.{key}={value} must be at least 1")


def _check_odd(owner: str, kernel: int) -> None:
    if kernel % 2 == 0:
        raise ValueError(f"{owner}.kernel={kernel} must be odd, so that padding keeps maps centred")


@dataclass(frozen=True)
class Stem:
    """The first convolution: `kernel` x `kernel`, RGB to `channels`, with batch norm and activation."""

    channels: int
    stride: int
    kernel: int = 3

    def __post_init__(self) -> None:
        _check_positive("network.stem", channels=self.channels, stride=self.stride, kernel=self.kernel)
        _check_odd("network.stem", self.kernel)


@dataclass(frozen=True)
class Stage:
    """A run of equal blocks; only the first one strides and changes the number of channels.

    expand: expanded channels as a multiple of the block's input channels (1: no expansion convolution).
    se_ratio: squeeze-and-excitation width as a share of the block's *input* channels (paper and released code); 0:
        none.
    """

    block: str
    kernel: int
    stride: int
    expand: int
    channels: int
    repeats: int
    se_ratio: float = 0.0

    def __post_init__(self) -> None:
        check_choice("network.stages.block", self.block, BLOCK_KINDS)
        _check_positive(
            "network.stages",
            kernel=self.kernel,
            stride=self.stride,
            expand=self.expand,
            channels=self.channels,
            repeats=self.repeats,
        )
        _check_odd("network.stages", self.kernel)
        if not 0.0 <= self.se_ratio <= 1.0:
            raise ValueError(f"network.stages.se_ratio={self.se_ratio} must lie in [0, 1]")


@dataclass(frozen=True)
class Norm:
    """Batch norm. `momentum` is torch's: the weight of the *new* batch (TensorFlow's 0.99 is 0.01 here)."""

    eps: float = 1e-3
    momentum: float = 0.01

    def __post_init__(self) -> None:
        if not 0.0 < self.eps < math.inf:
            raise ValueError(f"network.norm.eps={self.eps} must be positive and finite, such as 0.001")
        if not 0.0 < self.momentum <= 1.0:
            raise ValueError(f"network.norm.momentum={self.momentum} must lie in (0, 1]")


@dataclass(frozen=True)
class Network:
    """A whole stage table.

    resolution: native input side of the *unscaled* table, pixels.
    head_channels: width of the 1x1 convolution before pooling; the map it produces is the one activation maps are read
        from.
    channel_divisor: channels are kept multiples of this when width is scaled (the released code's `depth_divisor`).
    source: where the table comes from.
    """

    name: str
    resolution: int
    stem: Stem
    stages: tuple[Stage, ...]
    head_channels: int
    activation: str = "silu"
    norm: Norm = field(default_factory=Norm)
    channel_divisor: int = 8
    source: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages))
        if not self.stages:
            raise ValueError(f"network {self.name!r} has no stages; give at least one")
        check_choice("network.activation", self.activation, ACTIVATIONS)
        _check_positive(
            "network",
            resolution=self.resolution,
            head_channels=self.head_channels,
            channel_divisor=self.channel_divisor,
        )

    @property
    def output_stride(self) -> int:
        """Input pixels per cell of the final map."""
        stride = self.stem.stride
        for stage in self.stages:
            stride *= stage.stride
        return stride

    @property
    def blocks(self) -> int:
        """Number of blocks over all stages."""
        return sum(stage.repeats for stage in self.stages)

    @property
    def stage_channels(self) -> int:
        """Sum over stages of output channels: the measure in which width is reported."""
        return sum(stage.channels for stage in self.stages)

    def final_side(self, resolution: int) -> int:
        """Cells a side of the map that enters pooling; every strided layer maps H to ceil(H / stride)."""
        side = -(-resolution // self.stem.stride)
        for stage in self.stages:
            side = -(-side // stage.stride)
        return side

    def with_shape(self, repeats: tuple[int, ...], channels: tuple[int, ...]) -> Network:
        """The same table with other repeats (one a stage) and other channels (stem, one a stage, head)."""
        assert len(repeats) == len(self.stages) and len(channels) == len(self.stages) + 2
        stages = tuple(
            dataclasses.replace(stage, repeats=n, channels=c)
            for stage, n, c in zip(self.stages, repeats, channels[1:-1], strict=True)
        )
        stem = dataclasses.replace(self.stem, channels=channels[0])
        return dataclasses.replace(self, stem=stem, stages=stages, head_channels=channels[-1])

    @property
    def repeats(self) -> tuple[int, ...]:
        """Blocks of each stage."""
        return tuple(stage.repeats for stage in self.stages)

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the stem, of each stage and of the head."""
        return (self.stem.channels, *(stage.channels for stage in self.stages), self.head_channels)


def smallest_resolution(network: Network) -> int:
    """Smallest input side, in pixels, whose final map has `SMALLEST_FINAL_MAP` cells a side."""
    return (SMALLEST_FINAL_MAP - 1) * network.output_stride + 1


def check_final_map(network: Network, resolution: int) -> None:
    """Refuse an input so small that the final map has fewer than 4x4 cells.

    Raises:
        ValueError: names the map, the reason and the smallest resolution that works.
    """
    side = network.final_side(resolution)
    if side < SMALLEST_FINAL_MAP:
        raise ValueError(
            f"{network.name} at {resolution} px ends in a {side}x{side} map (output stride"
            f" {network.output_stride}): with fewer"
            f" than {SMALLEST_FINAL_MAP}x{SMALLEST_FINAL_MAP} cells there is no activation map and no resolution axis;"
            f" use network.resolution={smallest_resolution(network)} or more, or a table with smaller strides"
            " such as network=efficientnet_b0_small"
        )
