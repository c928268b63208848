"""Whether what a recipe declares is what acts: optimizer, dropout and stochastic depth before training, the learning
rate in it (guards G5, G6 and G13)."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn

from src.guards import named
from src.networks.build import ConvNet
from src.networks.layers import DropPath
from src.training.optimizers import epsilon_of, make_optimizer
from src.training.options import Recipe
from src.training.schedule import share_of_peak

STRONG = 0.5  # rate of masks on the copy that is looked at, so that two pictures are not spared in every pass
TRIES = 8  # passes in training mode, of which at least two must differ where masks act


def check_masks(network: ConvNet, images: Tensor, recipe: Recipe) -> None:
    """Stop unless dropout and stochastic depth act where they were declared, at the rates that were, and nowhere else.

    Works on a copy: neither weights nor statistics nor torch's generator are moved.

    Args:
        images: a few network inputs (B, 3, r, r), two at least: batch norm takes its statistics over them.

    Raises:
        RuntimeError: a declared mask never acts, at another rate, or an undeclared one does.
    """
    model = copy.deepcopy(network).train()
    blocks = [block for stage in model.stages for block in stage]  # type: ignore[attr-defined]
    masks = [(index, getattr(block, "drop_path", None)) for index, block in enumerate(blocks)]
    paths = [(index, mask) for index, mask in masks if isinstance(mask, DropPath)]
    for index, path in paths:
        wanted = recipe.drop_path * index / len(blocks)
        if not math.isclose(path.rate, wanted):
            sentence = (
                f"recipe.drop_path={recipe.drop_path:g} was declared, and block {index + 1} of {len(blocks)} is left"
                f" out at a rate of {path.rate:g}, not {wanted:g}"
            )
            raise RuntimeError(named("G6", sentence))
    if model.dropout.p != recipe.dropout:
        sentence = f"recipe.dropout={recipe.dropout:g} was declared, and the network has {model.dropout.p:g}"
        raise RuntimeError(named("G6", sentence))
    live = [path for _, path in paths if path.rate > 0.0]
    for path in live:
        path.rate = STRONG
    model.dropout.p = 0.0
    _check(model, images, bool(live), "stochastic depth", f"recipe.drop_path={recipe.drop_path:g}")
    for path in live:
        path.rate = 0.0
    model.dropout.p = STRONG if recipe.dropout > 0.0 else 0.0
    _check(model, images, recipe.dropout > 0.0, "dropout", f"recipe.dropout={recipe.dropout:g}")


def _check(model: nn.Module, images: Tensor, declared: bool, what: str, key: str) -> None:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        first = model(images).logits
        differs = any(not torch.equal(first, model(images).logits) for _ in range(TRIES if declared else 1))
    if declared and not differs:
        raise RuntimeError(named("G6", f"{key} was declared, and passes in training mode are alike: no mask acts"))
    if differs and not declared:
        raise RuntimeError(named("G6", f"{key} declares no {what}, and passes in training mode differ"))


def check_optimizer(recipe: Recipe, network: nn.Module) -> None:
    """Stop unless the optimizer takes the steps that its name stands for, and decays what the recipe says.

    Raises:
        RuntimeError: names what it does instead.
    """
    for group in make_optimizer(recipe, network).param_groups:
        wrong = [p for p in group["params"] if group["weight_decay"] != (recipe.weight_decay if p.ndim > 1 else 0.0)]
        if wrong:
            sentence = (
                f"recipe.weight_decay={recipe.weight_decay:g} is for weights alone, and a tensor of shape"
                f" {tuple(wrong[0].shape)} gets {group['weight_decay']:g}"
            )
            raise RuntimeError(named("G13", sentence))
    weight = nn.Parameter(torch.tensor([[1.0]], dtype=torch.float64))
    single = nn.Module()
    single.register_parameter("weight", weight)
    optimizer = make_optimizer(recipe, single)
    for gradient in GRADIENTS:
        weight.grad = torch.tensor([[gradient]], dtype=torch.float64)
        optimizer.step()
    wanted = reference_steps(recipe, 1.0, GRADIENTS)
    # Fused kernels round differently; the variants that go by the same names differ in the first digits.
    if not math.isclose(weight.item(), wanted, rel_tol=1e-6, abs_tol=1e-9):
        sentence = (
            f"recipe.optimizer={recipe.optimizer} moves a weight of 1 to {weight.item():.9g}, not to {wanted:.9g}"
        )
        raise RuntimeError(named("G13", sentence))


GRADIENTS = (0.5, -0.25, 2.0)  # of three steps on one weight


def reference_steps(recipe: Recipe, weight: float, gradients: Sequence[float]) -> float:
    """Where an optimizer takes one weight, in plain arithmetic from its definition.

    sgd: Sutskever et al. 2013 as torch writes Nesterov's momentum; adamw: arXiv 1711.05101, algorithm 2; rmsprop and
    rmsprop_tf: see `RMSpropTF`, whose docstring has both.
    """
    rate, momentum, decay = recipe.peak_learning_rate, recipe.momentum, recipe.weight_decay
    epsilon = epsilon_of(recipe)
    velocity = mean = 0.0
    squares = 1.0 if recipe.optimizer == "rmsprop_tf" else 0.0
    for number, raw in enumerate(gradients, start=1):
        if recipe.optimizer == "adamw":
            weight *= 1.0 - rate * decay
            mean = momentum * mean + (1.0 - momentum) * raw
            squares = 0.999 * squares + 0.001 * raw * raw
            corrected = mean / (1.0 - momentum**number)
            weight -= rate * corrected / (math.sqrt(squares / (1.0 - 0.999**number)) + epsilon)
            continue
        gradient = raw + decay * weight
        if recipe.optimizer == "sgd":
            velocity = momentum * velocity + gradient if number > 1 else gradient
            weight -= rate * (gradient + momentum * velocity)
            continue
        squares = 0.9 * squares + 0.1 * gradient * gradient
        if recipe.optimizer == "rmsprop_tf":
            velocity = momentum * velocity + rate * gradient / math.sqrt(squares + epsilon)
            weight -= velocity
        else:
            velocity = momentum * velocity + gradient / (math.sqrt(squares) + epsilon)
            weight -= rate * velocity
    return weight


class Rates(Callback):
    """Holds the rate of every step, as the optimizer had it, against the schedule of the run (guard G5)."""

    def __init__(self, recipe: Recipe, steps: int) -> None:
        self.recipe, self.steps = recipe, steps

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        step, rate = trainer.global_step, float(optimizer.param_groups[0]["lr"])
        wanted = self.recipe.peak_learning_rate * share_of_peak(self.recipe, step, self.steps)
        stopped = rate <= 0.0 and step + 1 < self.steps
        if stopped or not abs(rate - wanted) <= 1e-6 * self.recipe.peak_learning_rate:
            sentence = f"step {step + 1} of {self.steps} is taken at a rate of {rate:g}, its schedule says {wanted:g}"
            raise RuntimeError(named("G5", sentence))
