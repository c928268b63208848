"""Layers, each with its cost twin directly beneath: a function of the same arguments that adds up what the layer costs.

Shapes: B batch, C channels, H height, W width (maps are square in the twins), R squeezed channels, K classes.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from src.kernels.excite import excite
from src.networks.cost import Cost, Count
from src.networks.fast import PLAIN, FastModule, convolve, depthwise_norm_act, fuses, fuses_depthwise, norm_act
from src.networks.table import Norm


def activation(name: str) -> nn.Module:
    """A fresh activation module. Never in place: autograd would clone its input (measured 1-4 % slower)."""
    return {"silu": nn.SiLU, "relu": nn.ReLU, "relu6": nn.ReLU6}[name]()


def activation_cost(cost: Cost, channels: Count, act: str) -> Cost:
    """Twin of `activation` on a map that nothing else keeps: ReLU keeps its output, the others their input."""
    return cost.then(cost.side, 0, 0, 0, channels * cost.side * cost.side, act == "relu")


class ConvNorm(nn.Sequential, FastModule):
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
        self.act = act or "none"

    @property
    def conv(self) -> nn.Conv2d:
        """The convolution."""
        conv = self[0]
        assert isinstance(conv, nn.Conv2d)
        return conv

    @property
    def norm(self) -> nn.Module:
        """The batch norm, or what a strategy has put in its place."""
        return self[1]

    def forward(self, x: Tensor) -> Tensor:
        kernels = self.kernels_for(x)
        if kernels is PLAIN:
            y: Tensor = super().forward(x)
        elif kernels.native and fuses(self.norm):
            if fuses_depthwise(self.conv):
                y = depthwise_norm_act(x, None, self.conv, self.norm, self.act)
            else:
                y = norm_act(convolve(self.conv, x, kernels), self.norm, self.act)
        else:
            y = convolve(self.conv, x, kernels)
            for module in list(self)[1:]:
                y = module(y)
        return y

    def onto(self, shortcut: Tensor, x: Tensor, drop_path: DropPath) -> Tensor:
        """shortcut + drop_path(self(x)); `shortcut` is of the output's shape."""
        kernels = self.kernels_for(x)
        if kernels.native and fuses(self.norm):
            y = convolve(self.conv, x, kernels)
            return norm_act(y, self.norm, self.act, drop_path.factors(y), shortcut)
        return shortcut + drop_path(self(x))


def conv_norm_cost(
    cost: Cost, c_in: Count, c_out: Count, kernel: int, stride: int, groups: Count, act: str | None
) -> Cost:
    """Twin of `ConvNorm`: macs = weights x output positions; params = weights + 2 per channel for batch norm.

    Kept for the backward pass: the inputs of the convolution, of batch norm and of the activation; native kernels
    compute the last again.
    """
    side = -(-cost.side // stride)
    weights = kernel * kernel * (c_in // groups) * c_out
    area = side * side
    cost = cost.then(side, weights * area, weights + 2 * c_out, c_out * area, cost.unsaved(c_in) + c_out * area)
    return cost if act is None or cost.execution.native else activation_cost(cost, c_out, act)


def max_pool(stride: int) -> nn.Module:
    """3x3 max pooling, (B,C,H,W) -> (B,C,ceil(H/s),ceil(W/s)); with stride 1 nothing."""
    return nn.MaxPool2d(3, stride, padding=1) if stride > 1 else nn.Identity()


def max_pool_cost(cost: Cost, channels: Count, stride: int) -> Cost:
    """Twin of `max_pool`; it keeps its input, and for each output an index of eight bytes."""
    if stride == 1:
        return cost
    side = -(-cost.side // stride)
    indices = 2 * cost.execution.single * channels * side * side
    return cost.then(side, 0, 0, 0, cost.unsaved(channels) + indices)


class SqueezeExcite(FastModule):
    """Channel gate: x * sigmoid(expand(act(reduce(mean_HW(x))))). (B,C,H,W) -> same.

    The two 1x1 convolutions of the released code act on 1x1 maps; written as linear layers they are the same
    function with the same parameters and run faster on CPUs.
    """

    def __init__(self, channels: int, squeezed: int, act: str) -> None:
        super().__init__()
        self.reduce = nn.Linear(channels, squeezed)
        self.act = activation(act)
        self.expand = nn.Linear(squeezed, channels)
        self.act_name = act

    @property
    def weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(R,C), (R,), (C,R), (C,)."""
        return self.reduce.weight, self.reduce.bias, self.expand.weight, self.expand.bias

    def forward(self, x: Tensor) -> Tensor:
        if self.kernels_for(x).excite:
            return excite(x, *self.weights, self.act_name)
        pooled = x.mean((2, 3))  # (B,C)
        gate = torch.sigmoid(self.expand(self.act(self.reduce(pooled))))  # (B,C)
        return x * gate[:, :, None, None]


def squeeze_excite_cost(cost: Cost, channels: Count, squeezed: Count, act: str) -> Cost:
    """Twin of `SqueezeExcite`: two matrix-vector products with bias.

    Kept for the backward pass: the map; the pooled vector and the gate; the squeezed vector on both sides of the
    activation, which ReLU makes one. Kernels keep one side of it, and all vectors in float32.
    """
    weights = 2 * channels * squeezed
    if cost.execution.excite:
        vectors = cost.execution.single * (2 * channels + squeezed)
    else:
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
        return x * self._mask(x) / (1.0 - self.rate)

    def factors(self, x: Tensor) -> Tensor | None:
        """What each sample of `x` is multiplied with, (B,) in float32, by the same draw; None: nothing is dropped."""
        if not self.training or self.rate == 0.0:
            return None
        return self._mask(x).flatten().float() / (1.0 - self.rate)

    def _mask(self, x: Tensor) -> Tensor:
        return torch.empty((x.shape[0], 1, 1, 1), dtype=x.dtype, device=x.device).bernoulli_(1.0 - self.rate)

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
