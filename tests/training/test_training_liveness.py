"""What is declared must act, and what acts must be declared; the shipped networks and recipes pass in silence."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from networks.shipped_tables import SHIPPED, shipped
from torch import nn
from training_tiny import RECIPE, changed, network

from src.networks.build import ConvNet, build
from src.networks.layers import DropPath
from src.scaling.audit import check_untrained
from src.training.liveness import check_masks, check_optimizer, reference_steps
from src.training.optimizers import make_optimizer
from src.training.options import OPTIMIZERS

PICTURES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("rates", [(0.0, 0.0), (0.2, 0.0), (0.0, 0.2), (0.01, 0.001)], ids=str)
@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_networks_pass_and_stay_as_they_were(name: str, rates: tuple[float, float]) -> None:
    dropout, drop_path = rates
    model = build(shipped(name), 10, dropout=dropout, drop_path=drop_path)
    before = copy.deepcopy(model.state_dict())
    generator = torch.get_rng_state()
    check_masks(model, PICTURES, changed(dropout=dropout, drop_path=drop_path))
    check_untrained(model, shipped(name))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator) and model.training


def dead_dropout(model: ConvNet) -> None:
    model.dropout.forward = lambda x: x  # type: ignore[method-assign]


def dead_depth(model: ConvNet) -> None:
    for module in model.modules():
        if isinstance(module, DropPath):
            module.forward = lambda x: x  # type: ignore[method-assign]
            module.factors = lambda x: None  # type: ignore[method-assign]


def wild_rate(model: ConvNet) -> None:
    next(m for m in model.modules() if isinstance(m, DropPath)).rate = 0.4


def other_dropout(model: ConvNet) -> None:
    model.dropout.p = 0.3


def own_noise(model: ConvNet) -> None:
    model.head.register_forward_hook(lambda module, inputs, output: output + torch.randn_like(output))


@pytest.mark.parametrize("fault", [dead_dropout, dead_depth, wild_rate, other_dropout, own_noise])
def test_a_mask_that_does_not_do_what_was_declared_is_found(fault: Callable[[ConvNet], None]) -> None:
    recipe = RECIPE if fault is not own_noise else changed(dropout=0.0, drop_path=0.0)
    model = network(recipe=recipe)
    fault(model)
    with pytest.raises(RuntimeError, match=r"\(guard G6\)"):
        check_masks(model, PICTURES, recipe)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_is_what_its_name_says(name: str, momentum: float) -> None:
    check_optimizer(changed(optimizer=name, momentum=momentum), network())


def test_the_reference_is_the_definition_by_hand() -> None:
    # RMSProp of TensorFlow, one step on w = 1 with g = 0.5 and without decay: s = 0.9 + 0.1 / 4 = 0.925,
    # w = 1 - 0.02 x 0.5 / sqrt(0.926).
    recipe = changed(optimizer="rmsprop_tf", weight_decay=0.0)
    assert reference_steps(recipe, 1.0, (0.5,)) == pytest.approx(1 - 0.01 / 0.926**0.5)
    # torch's: s = 0.025, w = 1 - 0.02 x 0.5 / (sqrt(0.025) + 0.001).
    recipe = changed(optimizer="rmsprop", weight_decay=0.0)
    assert reference_steps(recipe, 1.0, (0.5,)) == pytest.approx(1 - 0.01 / (0.025**0.5 + 0.001))
    # Nesterov: v = g, step g + 0.9 v.
    recipe = changed(optimizer="sgd", weight_decay=0.0)
    assert reference_steps(recipe, 1.0, (0.5,)) == pytest.approx(1 - 0.02 * 0.5 * 1.9)
    # Adam's first step is one rate, whatever the gradient; decay is decoupled.
    recipe = changed(optimizer="adamw", weight_decay=0.05)
    assert reference_steps(recipe, 1.0, (0.5,)) == pytest.approx(1 - 0.02 * 0.05 - 0.02, rel=1e-6)


def test_momentum_that_is_not_nesterovs_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def plain(recipe: object, module: nn.Module) -> torch.optim.Optimizer:
        optimizer = make_optimizer(changed(optimizer="sgd"), module)
        for group in optimizer.param_groups:
            group["nesterov"] = False
        return optimizer

    monkeypatch.setattr("src.training.liveness.make_optimizer", plain)
    with pytest.raises(RuntimeError, match=r"recipe.optimizer=sgd moves a weight of 1 to .* \(guard G13\)"):
        check_optimizer(changed(optimizer="sgd"), network())
