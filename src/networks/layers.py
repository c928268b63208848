"""Layers, each with its cost twin directly beneath: a function of the same arguments that adds up what the layer costs.

Shapes: B batch, C channels, H height, W width (maps are square in the twins), R squeezed channels, K classes.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from src.networks.cost import Cost, Count
from src.networks.table import Norm


def activation(name: str) -> nn.Module:
    """A fresh activation module. Never in place: autograd would clone its input (measured 1-4 % slower)."""
    return {"silu": nn.SiLU, "relu": nn.ReLU, "relu6": nn.ReLU6}[name]()


def activation_cost(cost: Cost, channels: Count, act: str) -> Cost:
    """Twin of `activation` on a map that nothing else keeps: ReLU keeps its output, the others their input."""
    return cost.then(cost.side, 0, 0, 0, channels * cost.side * cost.side, act == "relu")


class ConvNorm(nn.Sequential):
    """Convolution without bias, batch norm, optional activation. (B,C_in,H,W) -> (B,C_out,ceil(H/s),ceil(W/s)).

    Padding is kernel // 2 on both sides, which gives TensorFlow's SAME sizes at every H.
    """

    def __init__(
        self, c_in: int, c_out: int, kernel: int, stride: int, groups: int, norm: Norm, act: str | None
    ) -> None:
        layers: list[nn.Module] = [
            nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(c_out, eps=norm.eps, momentum=norm.momentum),
        ]
        if act is not None:
            layers.append(activation(act))
        super().__init__(*layers)


def conv_norm_cost(
    cost: Cost, c_in: Count, c_out: Count, kernel: int, stride: int, groups: Count, act: str | None
) -> Cost:
    """Twin of `ConvNorm`: macs = weights x output positions; params = weights + 2 per channel for batch norm.

    Kept for the backward pass: the inputs of the convolution, of batch norm and of the activation.
    """
    side = -(-cost.side // stride)
    weights = kernel * kernel * (c_in // groups) * c_out
    area = side * side
    cost = cost.then(side, weights * area, weights + 2 * c_out, c_out * area, cost.unsaved(c_in) + c_out * area)
    return cost if act is None else activation_cost(cost, c_out, act)


def max_pool(stride: int) -> nn.Module:
    """3x3 max pooling, (B,C,H,W) -> (B,C,ceil(H/s),ceil(W/s)); with stride 1 nothing."""
    return nn.MaxPool2d(3, stride, padding=1) if stride > 1 else nn.Identity()


def max_pool_cost(cost: Cost, channels: Count, stride: int) -> Cost:
    """Twin of `max_pool`; it keeps its input, and for each output an index of eight bytes."""
    if stride == 1:
        return cost
    side = -(-cost.side // stride)
    return cost.then(side, 0, 0, 0, cost.unsaved(channels) + 2 * channels * side * side)


class SqueezeExcite(nn.Module):
    """Channel gate: x * sigmoid(expand(act(reduce(mean_HW(x))))). (B,C,H,W) -> same.

    The two 1x1 convolutions of the released code act on 1x1 maps; written as linear layers they are the same
    function with the same parameters and run faster on CPUs.
    """

    def __init__(self, channels: int, squeezed: int, act: str) -> None:
        super().__init__()
        self.reduce = nn.Linear(channels, squeezed)
        self.act = activation(act)
        self.expand = nn.Linear(squeezed, channels)

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean((2, 3))  # (B,C)
        gate = torch.sigmoid(self.expand(self.act(self.reduce(pooled))))  # (B,C)
        return x * gate[:, :, None, None]


def squeeze_excite_cost(cost: Cost, channels: Count, squeezed: Count, act: str) -> Cost:
    """Twin of `SqueezeExcite`: two matrix-vector products with bias.

    Kept for the backward pass: the map; the pooled vector and the gate; the squeezed vector on both sides of the
    activation, which ReLU makes one.
    """
    weights = 2 * channels * squeezed
    vectors = 2 * channels + (1 if act == "relu" else 2) * squeezed
    return cost.then(cost.side, weights, weights + channels + squeezed, 0, cost.unsaved(channels) + vectors)


def squeezed_channels(block_input_channels: Count, se_ratio: float) -> Count:
    """Squeeze width from the block's *input* channels (released code; a ratio of expanded channels nearly doubles
    B0)."""
    if isinstance(block_input_channels, np.ndarray):
        return np.maximum(1, (block_input_channels * se_ratio).astype(np.int64))
    return max(1, int(block_input_channels * se_ratio))


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): drops a sample's residual branch with probability `rate`, rescaling the
    rest."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        mask = torch.empty((x.shape[0], 1, 1, 1), dtype=x.dtype, device=x.device).bernoulli_(keep)
        return x * mask / keep

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"


def linear_cost(cost: Cost, features: Count, classes: int) -> Cost:
    """Twin of the classifier, a linear layer with bias on the pooled vector."""
    return cost.then(1, features * classes, features * classes + classes, 0, features)


def initialise(model: nn.Module) -> None:
    """Initial weights as in the released code of EfficientNet (tensorflow/tpu, efficientnet_model.py), for every table.

    Convolutions, and the squeeze-and-excitation layers that are convolutions there: normal with variance
    2 / (kernel area x output channels / groups). Classifier: uniform in +-1/sqrt(K). Biases zero, batch norm one and
    zero.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
            nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
        elif isinstance(module, nn.Linear):
            if name == "classifier":
                bound = 1.0 / math.sqrt(module.out_features)
                nn.init.uniform_(module.weight, -bound, bound)
            else:
                nn.init.normal_(module.weight, std=math.sqrt(2.0 / module.out_features))
            nn.init.zeros_(module.bias)
