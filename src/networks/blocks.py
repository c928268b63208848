"""Blocks: what a stage repeats. Each block's static `cost` stands under `forward` and calls the twins in its order.

Shapes: B batch, C channels, H, W.
"""

from __future__ import annotations

from torch import Tensor, nn

from src.networks.cost import Cost, Count
from src.networks.layers import (
    ConvNorm,
    DropPath,
    SqueezeExcite,
    conv_norm_cost,
    squeeze_excite_cost,
    squeezed_channels,
)
from src.networks.table import Norm


class MBConv(nn.Module):
    """Mobile inverted bottleneck with squeeze-and-excitation (arXiv 1801.04381, 1807.11626, 1905.11946).

    (B,c_in,H,W) -> (B,c_out,ceil(H/stride),ceil(W/stride)); a residual connection where shapes allow it.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: int,
        stride: int,
        expand: int,
        se_ratio: float,
        norm: Norm,
        act: str,
        drop_path: float,
    ) -> None:
        super().__init__()
        c_mid = c_in * expand
        self.expand = ConvNorm(c_in, c_mid, 1, 1, 1, norm, act) if expand != 1 else nn.Identity()
        self.depthwise = ConvNorm(c_mid, c_mid, kernel, stride, c_mid, norm, act)
        self.excite: nn.Module = nn.Identity()
        if se_ratio > 0.0:
            self.excite = SqueezeExcite(c_mid, squeezed_channels(c_in, se_ratio), act)
        self.project = ConvNorm(c_mid, c_out, 1, 1, 1, norm, None)
        self.residual = stride == 1 and c_in == c_out
        self.drop_path = DropPath(drop_path) if self.residual else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.expand(x)
        y = self.depthwise(y)
        y = self.excite(y)
        y = self.project(y)
        return x + self.drop_path(y) if self.residual else y

    @staticmethod
    def cost(cost: Cost, c_in: Count, c_out: Count, kernel: int, stride: int, expand: int, se_ratio: float) -> Cost:
        """Twin of the block."""
        c_mid = c_in * expand
        if expand != 1:
            cost = conv_norm_cost(cost, c_in, c_mid, 1, 1, 1)
        cost = conv_norm_cost(cost, c_mid, c_mid, kernel, stride, c_mid)
        if se_ratio > 0.0:
            cost = squeeze_excite_cost(cost, c_mid, squeezed_channels(c_in, se_ratio))
        return conv_norm_cost(cost, c_mid, c_out, 1, 1, 1)


BLOCKS: dict[str, type[MBConv]] = {"mbconv": MBConv}
