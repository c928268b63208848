"""Exact class-activation maps against the logits and against Grad-CAM by automatic differentiation."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from src.cam.maps import class_activation_maps, class_maps


class Output(NamedTuple):
    logits: Tensor
    features: Tensor


class Small(nn.Module):
    """Convolution, batch norm, SiLU, average pooling, dropout, linear."""

    def __init__(self, channels: int = 6, classes: int = 4, bias: bool = True, pool: str = "mean") -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 3, 2, 1), nn.BatchNorm2d(channels), nn.SiLU())
        self.dropout = nn.Dropout(0.5)
        self.classifier = nn.Linear(channels, classes, bias=bias)
        self.pool = pool

    def forward(self, images: Tensor) -> Output:
        features = self.stem(images)
        pooled = features.mean((2, 3)) if self.pool == "mean" else features.amax((2, 3))
        return Output(self.classifier(self.dropout(pooled)), features)


def grad_cam(features: Tensor, head: nn.Linear, classes: Tensor) -> Tensor:
    """Selvaraju et al. 2017, eq. 1-2 without the ReLU, by automatic differentiation."""
    features = features.detach().requires_grad_()
    score = head(features.mean((2, 3))).gather(1, classes[:, None]).sum()
    (gradient,) = torch.autograd.grad(score, features)
    return (gradient.mean((2, 3), keepdim=True) * features).sum(1).detach()


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**31), st.integers(1, 4), st.integers(1, 40), st.integers(1, 6), st.integers(1, 6), st.booleans()
)
def test_mean_of_map_plus_bias_is_the_logit(
    seed: int, batch: int, channels: int, height: int, width: int, bias: bool
) -> None:
    torch.manual_seed(seed)
    features = torch.randn(batch, channels, height, width)
    head = nn.Linear(channels, 5, bias=bias)
    maps = class_activation_maps(features, head.weight)
    assert maps.shape == (batch, 5, height, width)
    offset = head.bias if bias else 0.0
    torch.testing.assert_close(maps.mean((2, 3)) + offset, head(features.mean((2, 3))), rtol=1e-4, atol=1e-5)
    chosen = torch.randint(5, (batch,))
    torch.testing.assert_close(class_activation_maps(features, head.weight, chosen), maps[torch.arange(batch), chosen])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 5), st.integers(1, 5))
def test_grad_cam_is_the_exact_map_over_the_number_of_cells(seed: int, height: int, width: int) -> None:
    torch.manual_seed(seed)
    features, head, classes = torch.randn(3, 8, height, width), nn.Linear(8, 4), torch.randint(4, (3,))
    exact = class_activation_maps(features, head.weight, classes)
    torch.testing.assert_close(grad_cam(features, head, classes) * height * width, exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_model_maps_agree_with_its_own_logits(bias: bool) -> None:
    torch.manual_seed(0)
    model = Small(bias=bias).train()
    images, labels = torch.randn(5, 3, 16, 12), torch.tensor([0, 1, 2, 3, 0])
    result = class_maps(model, images, labels, batch_size=2)
    with torch.no_grad():
        logits = model.eval()(images).logits
    probabilities = logits.softmax(1).numpy()
    rows = np.arange(5)
    assert result.maps_label.shape == result.maps_predicted.shape == (5, 8, 6)
    assert result.predictions.tolist() == logits.argmax(1).tolist()
    assert result.labels.tolist() == labels.tolist()
    np.testing.assert_allclose(result.probability_label, probabilities[rows, labels], atol=1e-6)
    np.testing.assert_allclose(result.probability_predicted, probabilities.max(1), atol=1e-6)
    offset = model.classifier.bias.detach().numpy() if bias else np.zeros(4)
    for maps, classes in ((result.maps_label, labels.numpy()), (result.maps_predicted, result.predictions)):
        np.testing.assert_allclose(maps.mean((1, 2)) + offset[classes], logits.numpy()[rows, classes], atol=1e-5)
    assert result.maps_label.min() < 0 < result.maps_label.max(), "signed values are kept"
    assert (result.maps_label[0] == result.maps_predicted[0]).all() == (result.predictions[0] == 0)


def test_training_mode_comes_back_module_by_module_and_nothing_learns() -> None:
    model = Small().train()
    model.stem[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    class_maps(model, torch.randn(4, 3, 8, 8), torch.zeros(4, dtype=torch.long))
    assert model.training and model.dropout.training and not model.stem[1].training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_training_mode_comes_back_after_a_refusal() -> None:
    model = Small(pool="max").train()
    with pytest.raises(RuntimeError, match="exact CAM needs global average pooling"):
        class_maps(model, torch.randn(2, 3, 8, 8), torch.zeros(2, dtype=torch.long))
    assert model.training and model.dropout.training


class Clipped(Small):
    def forward(self, images: Tensor) -> Output:
        features = self.stem(images)
        return Output(self.classifier(features.mean((2, 3))), features.clamp_min(0))


class BeforeActivation(Small):
    """Defect C30: hands out the map before batch norm and SiLU."""

    def forward(self, images: Tensor) -> Output:
        return Output(self.classifier(self.stem(images).mean((2, 3))), self.stem[0](images))


class AlwaysDropping(Small):
    def forward(self, images: Tensor) -> Output:
        features = self.stem(images)
        return Output(self.classifier(nn.functional.dropout(features.mean((2, 3)), 0.5)), features)


class Bare(Small):
    def forward(self, images: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(images).logits


class TwoLayers(Small):
    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 4))  # type: ignore[assignment]


@pytest.mark.parametrize("kind", [Clipped, BeforeActivation, AlwaysDropping, Bare, TwoLayers])
def test_networks_without_exact_maps_are_refused(kind: type[Small]) -> None:
    torch.manual_seed(0)
    with pytest.raises(RuntimeError, match="exact CAM needs"):
        class_maps(kind(), torch.randn(4, 3, 16, 16), torch.zeros(4, dtype=torch.long))


def test_diverged_network_is_named() -> None:
    model = Small()
    nn.init.constant_(model.stem[0].weight, float("nan"))
    with pytest.raises(RuntimeError, match="not finite"):
        class_maps(model, torch.randn(2, 3, 8, 8), torch.zeros(2, dtype=torch.long))


@pytest.mark.parametrize("labels", [[0, 4], [-1, 0], [0]])
def test_labels_that_do_not_fit_are_refused(labels: list[int]) -> None:
    with pytest.raises(ValueError, match="labels"):
        class_maps(Small(), torch.randn(2, 3, 8, 8), torch.tensor(labels))


def test_half_precision_weights_pass_the_identity() -> None:
    torch.manual_seed(0)
    result = class_maps(Small().to(torch.bfloat16), torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 3]))
    assert result.maps_label.dtype == np.float32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_reduced_matrix_precision_passes_the_identity(precision: str) -> None:
    torch.manual_seed(0)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        model = Small(channels=1280, classes=1000).cuda()
        result = class_maps(model, torch.randn(64, 3, 64, 64), torch.randint(1000, (64,)))
        with pytest.raises(RuntimeError, match="exact CAM needs"):
            class_maps(Small(channels=1280, pool="max").cuda(), torch.randn(4, 3, 64, 64), torch.arange(4))
    finally:
        torch.set_float32_matmul_precision(before)
    assert result.maps_label.shape == (64, 32, 32)
