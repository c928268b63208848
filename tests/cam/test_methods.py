"""Grad-CAM, Grad-CAM++ and LayerCAM of torchcam against their papers' formulas, by automatic differentiation."""

from __future__ import annotations

import importlib.util
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from src.cam.maps import class_maps
from src.cam.methods import explain
from src.cam.options import METHODS, check_cam

there = importlib.util.find_spec("torchcam") is not None
needs_library = pytest.mark.skipif(not there, reason="needs torchcam: python -m pip install -e '.[cam]'")


class Output(NamedTuple):
    logits: Tensor
    features: Tensor


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 7, 3, 2, 1), nn.BatchNorm2d(7), nn.SiLU())
        self.dropout = nn.Dropout(0.5)
        self.classifier = nn.Linear(7, 4)

    def forward(self, images: Tensor) -> Output:
        features = self.stem(images)
        return Output(self.classifier(self.dropout(features.mean((2, 3)))), features)


def setting() -> tuple[Small, Tensor, Tensor]:
    torch.manual_seed(1)
    return Small(), torch.randn(6, 3, 10, 12), torch.tensor([0, 1, 2, 3, 0, 1])


def by_paper(method: str, model: Small, images: Tensor, labels: Tensor) -> np.ndarray:
    """Each formula as printed, on the tensor that enters pooling; cut at zero."""
    model.eval()
    features = model(images).features.detach().requires_grad_()
    score = model.classifier(features.mean((2, 3))).gather(1, labels[:, None]).sum()
    (gradient,) = torch.autograd.grad(score, features)
    features = features.detach()
    if method == "gradcam":  # Selvaraju et al. 2017, eq. 1-2
        weight = gradient.mean((2, 3), keepdim=True)
    elif method == "layercam":  # Jiang et al. 2021, eq. 5-6
        weight = gradient.relu()
    else:  # Chattopadhay et al. 2018, eq. 10 and 19; the exponential score's own factor is the same for all channels
        total = features.sum((2, 3), keepdim=True)
        alpha = gradient**2 / (2 * gradient**2 + total * gradient**3)
        weight = (alpha * gradient.relu()).sum((2, 3), keepdim=True)
    maps: np.ndarray = (weight * features).sum(1).relu().detach().numpy()
    return maps


@needs_library
@pytest.mark.parametrize("method", [method for method in METHODS if method != "exact"])
def test_maps_are_those_of_the_papers(method: str) -> None:
    model, images, labels = setting()
    found = explain(model, images, labels, method=method, batch_size=4)
    exact = class_maps(model, images, labels)
    np.testing.assert_allclose(found.maps_label, by_paper(method, model, images, labels), rtol=1e-4, atol=1e-6)
    predicted = torch.from_numpy(exact.predictions)
    np.testing.assert_allclose(found.maps_predicted, by_paper(method, model, images, predicted), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(found.predictions, exact.predictions)
    np.testing.assert_array_equal(found.probability_label, exact.probability_label)


@needs_library
def test_grad_cam_is_the_exact_map_cut_at_zero_over_the_number_of_cells() -> None:
    model, images, labels = setting()
    found, exact = (explain(model, images, labels, method=m).maps_label for m in ("gradcam", "exact"))
    np.testing.assert_allclose(found, np.maximum(exact, 0) / (5 * 6), rtol=1e-4, atol=1e-6)
    assert exact.min() < 0


@needs_library
def test_torchcam_leaves_nothing_in_the_network() -> None:
    model, images, labels = setting()
    model.train()
    explain(model, images, labels, method="gradcam_pp")
    assert model.training and model.dropout.training
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_exact_method_is_class_maps() -> None:
    model, images, labels = setting()
    np.testing.assert_array_equal(
        explain(model, images, labels).maps_label, class_maps(model, images, labels).maps_label
    )


def test_a_library_that_is_missing_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"cam_method=layercam needs torchcam.*pip install -e '\.\[cam\]'"):
        check_cam("layercam", 0)
    check_cam("exact", 0)


def test_unknown_methods_and_negative_counts_are_refused() -> None:
    with pytest.raises(ValueError, match=r"cam_method='gradcam\+\+'.*gradcam_pp"):
        check_cam("gradcam++", 0)
    with pytest.raises(ValueError, match=r"cam_scores=-1 must not be negative"):
        check_cam("exact", -1)
