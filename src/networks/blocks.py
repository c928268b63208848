"""Blocks: what a stage repeats. Each block's static `cost` stands under `forward` and calls the twins in its order.

Shapes: B batch, C channels, H, W.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace

from torch import Tensor, nn

from src.networks.cost import Cost, Count
from src.networks.fast import FastModule, convolve, depthwise_norm_act, fuses, fuses_depthwise, fuses_size
from src.networks.layers import (
    ConvNorm,
    DropPath,
    SqueezeExcite,
    activation,
    activation_cost,
    conv_norm_cost,
    squeeze_excite_cost,
    squeezed_channels,
)
from src.networks.table import Norm, Stage


class Block(FastModule):
    """One block of a stage, (B,c_in,H,W) -> (B,stage.channels,ceil(H/stride),ceil(W/stride)).

    Args:
        c_in: channels of its input.
        stage: the stage it belongs to.
        stride: `stage.stride` in the stage's first block, 1 in the others.
        norm: batch norm's constants.
        act: name of the activation.
        drop_path: probability of dropping the residual branch.
    """

    @abstractmethod
    def __init__(self, c_in: int, stage: Stage, stride: int, norm: Norm, act: str, drop_path: float) -> None:
        super().__init__()

    @staticmethod
    @abstractmethod
    def cost(cost: Cost, c_in: Count, c_out: Count, stage: Stage, stride: int, act: str) -> Cost:
        """Twin of the block; `c_out` stands for the stage's channels, of which there may be an array."""


class MBConv(Block):
    """Mobile inverted bottleneck with squeeze-and-excitation (arXiv 1801.04381, 1807.11626, 1905.11946).

    Expand, depthwise, gate, project; a residual connection where shapes allow it. Without gate and with ReLU6 it is
    MobileNetV2's.
    """

    def __init__(self, c_in: int, stage: Stage, stride: int, norm: Norm, act: str, drop_path: float) -> None:
        super().__init__(c_in, stage, stride, norm, act, drop_path)
        c_mid = c_in * stage.expand
        self.expand = ConvNorm(c_in, c_mid, 1, 1, 1, norm, act) if stage.expand != 1 else nn.Identity()
        self.depthwise = ConvNorm(c_mid, c_mid, stage.kernel, stride, c_mid, norm, act)
        self.excite: nn.Module = nn.Identity()
        if stage.se_ratio > 0.0:
            self.excite = SqueezeExcite(c_mid, squeezed_channels(c_in, stage.se_ratio), act)
        self.project = ConvNorm(c_mid, stage.channels, 1, 1, 1, norm, None)
        self.residual = stride == 1 and c_in == stage.channels
        self.drop_path = DropPath(drop_path) if self.residual else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        if self.kernels_for(x).native and self._fuses():
            y = self._fused(x)
        else:
            y = self.expand(x)
            y = self.depthwise(y)
            y = self.excite(y)
        return self.project.onto(x, y, self.drop_path) if isinstance(self.drop_path, DropPath) else self.project(y)

    def _fuses(self) -> bool:
        norms = [layer.norm for layer in (self.expand, self.depthwise) if isinstance(layer, ConvNorm)]
        return fuses_depthwise(self.depthwise.conv) and all(map(fuses, norms))

    def _fused(self, x: Tensor) -> Tensor:
        """`forward` up to the projection, all but the expanding convolution by one kernel."""
        expand, depthwise, excite = self.expand, self.depthwise, self.excite
        y, before = x, None
        if isinstance(expand, ConvNorm):
            y, before = convolve(expand.conv, x, self.kernels), expand.norm
        gate = excite.weights if isinstance(excite, SqueezeExcite) else None
        return depthwise_norm_act(y, before, depthwise.conv, depthwise.norm, depthwise.act, gate)

    @staticmethod
    def cost(cost: Cost, c_in: Count, c_out: Count, stage: Stage, stride: int, act: str) -> Cost:
        """Twin of the block; an addition keeps nothing for the backward pass.

        Where the middle is one kernel, the maps that the depthwise convolution and the gate receive are computed again.
        """
        c_mid = c_in * stage.expand
        fused = cost.execution.native and fuses_size(stage.kernel, stride)
        if stage.expand != 1:
            cost = conv_norm_cost(cost, c_in, c_mid, 1, 1, 1, act)
            if fused:
                cost = replace(cost, map_saved=True)
        cost = conv_norm_cost(cost, c_mid, c_mid, stage.kernel, stride, c_mid, act)
        if stage.se_ratio > 0.0:
            if fused:
                cost = replace(cost, map_saved=True)
            cost = squeeze_excite_cost(cost, c_mid, squeezed_channels(c_in, stage.se_ratio), act)
        return conv_norm_cost(cost, c_mid, c_out, 1, 1, 1, None)


class Separable(Block):
    """Depthwise separable convolution, MobileNetV1's block (arXiv 1704.04861); no residual connection."""

    def __init__(self, c_in: int, stage: Stage, stride: int, norm: Norm, act: str, drop_path: float) -> None:
        super().__init__(c_in, stage, stride, norm, act, drop_path)
        self.depthwise = ConvNorm(c_in, c_in, stage.kernel, stride, c_in, norm, act)
        self.pointwise = ConvNorm(c_in, stage.channels, 1, 1, 1, norm, act)

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(x)
        return self.pointwise(y)

    @staticmethod
    def cost(cost: Cost, c_in: Count, c_out: Count, stage: Stage, stride: int, act: str) -> Cost:
        """Twin of the block."""
        cost = conv_norm_cost(cost, c_in, c_in, stage.kernel, stride, c_in, act)
        return conv_norm_cost(cost, c_in, c_out, 1, 1, 1, act)


class Bottleneck(Block):
    """Residual bottleneck of ResNet v1.5 (arXiv 1512.03385) and, with groups, of ResNeXt (arXiv 1611.05431).

    1x1, kxk, 1x1 convolutions; the kxk one strides (in the paper the first 1x1 does). The shortcut is a 1x1 projection
    where shapes change; the last activation follows the addition.
    """

    def __init__(self, c_in: int, stage: Stage, stride: int, norm: Norm, act: str, drop_path: float) -> None:
        super().__init__(c_in, stage, stride, norm, act, drop_path)
        c_out = stage.channels
        c_mid = c_out // stage.reduce
        self.squeeze = ConvNorm(c_in, c_mid, 1, 1, 1, norm, act)
        self.spatial = ConvNorm(c_mid, c_mid, stage.kernel, stride, stage.groups, norm, act)
        self.restore = ConvNorm(c_mid, c_out, 1, 1, 1, norm, None)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or c_in != c_out:
            self.shortcut = ConvNorm(c_in, c_out, 1, stride, 1, norm, None)
        self.drop_path = DropPath(drop_path)
        self.act = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        y = self.squeeze(x)
        y = self.spatial(y)
        return self.act(self.restore.onto(self.shortcut(x), y, self.drop_path))

    @staticmethod
    def cost(cost: Cost, c_in: Count, c_out: Count, stage: Stage, stride: int, act: str) -> Cost:
        """Twin of the block. The shortcut starts from the block's input, which the first convolution keeps already."""
        start = cost.afresh(map_saved=True)
        c_mid = c_out // stage.reduce
        cost = conv_norm_cost(cost, c_in, c_mid, 1, 1, 1, act)
        cost = conv_norm_cost(cost, c_mid, c_mid, stage.kernel, stride, stage.groups, act)
        cost = conv_norm_cost(cost, c_mid, c_out, 1, 1, 1, None)
        return activation_cost(_projection_cost(cost, start, c_in, c_out, stride), c_out, act)


class Basic(Block):
    """Residual block of the shallower ResNets and of those for CIFAR (arXiv 1512.03385): two kxk convolutions.

    The first one strides. The shortcut is a 1x1 projection where shapes change (the paper's option B; its networks for
    CIFAR pad with zeros there, option A, which has no parameters); the last activation follows the addition.
    """

    def __init__(self, c_in: int, stage: Stage, stride: int, norm: Norm, act: str, drop_path: float) -> None:
        super().__init__(c_in, stage, stride, norm, act, drop_path)
        c_out = stage.channels
        self.first = ConvNorm(c_in, c_out, stage.kernel, stride, 1, norm, act)
        self.second = ConvNorm(c_out, c_out, stage.kernel, 1, 1, norm, None)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or c_in != c_out:
            self.shortcut = ConvNorm(c_in, c_out, 1, stride, 1, norm, None)
        self.drop_path = DropPath(drop_path)
        self.act = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.act(self.second.onto(self.shortcut(x), y, self.drop_path))

    @staticmethod
    def cost(cost: Cost, c_in: Count, c_out: Count, stage: Stage, stride: int, act: str) -> Cost:
        """Twin of the block. The shortcut starts from the block's input, which the first convolution keeps already."""
        start = cost.afresh(map_saved=True)
        cost = conv_norm_cost(cost, c_in, c_out, stage.kernel, stride, 1, act)
        cost = conv_norm_cost(cost, c_out, c_out, stage.kernel, 1, 1, None)
        return activation_cost(_projection_cost(cost, start, c_in, c_out, stride), c_out, act)


def _projection_cost(cost: Cost, start: Cost, c_in: Count, c_out: Count, stride: int) -> Cost:
    """`cost` and, where shapes change, that of the 1x1 projection which leads from `start`; the addition is free."""
    projects = 1 if stride != 1 else (c_in != c_out) * 1  # an array where channels are
    shortcut = conv_norm_cost(start, c_in, c_out, 1, stride, 1, None).times(projects)
    return cost.then(cost.side, shortcut.macs, shortcut.params, shortcut.activations, shortcut.saved)


BLOCKS: dict[str, type[Block]] = {"mbconv": MBConv, "separable": Separable, "bottleneck": Bottleneck, "basic": Basic}
