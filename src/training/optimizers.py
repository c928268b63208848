"""The recipe's optimizer for a network's weights, and RMSProp as TensorFlow has it.

Fused where torch has it (AdamW, SGD): one kernel for all tensors on GPUs, one pass over each tensor on CPUs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor, nn

from src.training.options import Recipe

_EPSILON = {"adamw": 1e-8, "rmsprop": 1e-3, "rmsprop_tf": 1e-3}
_SQUARE_DECAY = 0.9  # of both RMSprops: arXiv 1905.11946, section 5.2


class RMSpropTF(torch.optim.Optimizer):
    """RMSProp with TensorFlow's semantics (`tf.raw_ops.ApplyRMSProp`), as the released EfficientNets were trained.

        s <- alpha s + (1 - alpha) g^2              s starts at 1
        v <- momentum v + lr g / sqrt(s + eps)      v starts at 0
        w <- w - v

    `torch.optim.RMSprop` starts s at 0, divides by sqrt(s) + eps, and multiplies v by the rate when it is applied, so
    that a change of the rate acts on old gradients too. With s at 0 its first steps are 1 / sqrt(1 - alpha) rates long
    whatever the gradient.

    weight_decay is added to the gradient (g + weight_decay w), as an L2 loss of weight_decay / 2 |w|^2 would be.

    State of each weight: `squares` and, with momentum, `velocity`, shaped and laid out like the weight. Every rank that
    is given the same gradients takes the same step.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        alpha: float = 0.9,
        momentum: float = 0.9,
        eps: float = 1e-3,
        weight_decay: float = 0.0,
    ) -> None:
        if not (lr >= 0.0 and 0.0 <= alpha < 1.0 and 0.0 <= momentum < 1.0 and eps > 0.0 and weight_decay >= 0.0):
            raise ValueError(
                f"lr={lr}, alpha={alpha}, momentum={momentum}, eps={eps}, weight_decay={weight_decay}: none may be"
                " negative, alpha and momentum must stay below 1 and eps above 0"
            )
        defaults = {"lr": lr, "alpha": alpha, "momentum": momentum, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update of every weight that has a gradient; returns what `closure` returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not weights:
                continue
            states = [self._state_of(weight, group["momentum"] > 0.0) for weight in weights]
            gradients = [weight.grad for weight in weights]
            squares = [state["squares"] for state in states]
            velocities = [state["velocity"] for state in states] if group["momentum"] > 0.0 else []
            # On a CPU weight by weight: it stays in the cache from one operation to the next.
            size = len(weights) if all(weight.is_cuda for weight in weights) else 1
            for first in range(0, len(weights), size):
                part = slice(first, first + size)
                _update(weights[part], gradients[part], squares[part], velocities[part], group)
        return loss

    def _state_of(self, weight: Tensor, momentum: bool) -> dict[str, Any]:
        state: dict[str, Any] = self.state[weight]
        if not state:
            state["squares"] = torch.ones_like(weight, memory_format=torch.preserve_format)
            if momentum:
                state["velocity"] = torch.zeros_like(weight, memory_format=torch.preserve_format)
        return state


def _update(
    weights: list[Tensor],
    gradients: list[Tensor],
    squares: list[Tensor],
    velocities: list[Tensor],
    group: dict[str, Any],
) -> None:
    """One step of `RMSpropTF` for lists of equal length, in place; velocities: [] without momentum."""
    if group["weight_decay"] > 0.0:
        gradients = list(torch._foreach_add(gradients, weights, alpha=group["weight_decay"]))
    torch._foreach_mul_(squares, group["alpha"])
    torch._foreach_addcmul_(squares, gradients, gradients, value=1.0 - group["alpha"])
    roots = torch._foreach_add(squares, group["eps"])
    torch._foreach_sqrt_(roots)
    if velocities:
        torch._foreach_mul_(velocities, group["momentum"])
        torch._foreach_addcdiv_(velocities, gradients, roots, value=group["lr"])
        torch._foreach_sub_(weights, velocities)
    else:
        torch._foreach_addcdiv_(weights, gradients, roots, value=-group["lr"])


def epsilon_of(recipe: Recipe) -> float:
    """What keeps the recipe's optimizer from dividing by zero; SGD does not divide."""
    return _EPSILON.get(recipe.optimizer, 0.0) if recipe.epsilon is None else recipe.epsilon


def make_optimizer(recipe: Recipe, network: nn.Module) -> torch.optim.Optimizer:
    """The recipe's optimizer at its peak rate.

    Weight decay touches weights of two or more dimensions only: not biases, not batch norm. It is decoupled for adamw
    (arXiv 1711.05101) and added to the gradient for the others.
    """
    groups = [
        {"params": [p for p in network.parameters() if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in network.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    rate, momentum = recipe.peak_learning_rate, recipe.momentum
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=momentum, nesterov=momentum > 0.0, fused=True)
    epsilon = epsilon_of(recipe)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=rate, betas=(momentum, 0.999), eps=epsilon, fused=True)
    if recipe.optimizer == "rmsprop":
        return torch.optim.RMSprop(groups, lr=rate, momentum=momentum, alpha=_SQUARE_DECAY, eps=epsilon)
    return RMSpropTF(groups, lr=rate, alpha=_SQUARE_DECAY, momentum=momentum, eps=epsilon)
