"""Exact class-activation maps in closed form (Zhou et al. 2016, arXiv:1512.04150, eq. 1-2).

For a network that ends in global average pooling and one linear layer, the map of class k is sum_c weight[k, c] *
feature[c], and its spatial mean plus the bias is the logit of k. Grad-CAM on the same tensor is this map divided by the
number of cells and cut at zero, so no hooks and no backward pass are needed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from src.guards import named

# Allowed gap between "mean of the map + bias" and the logit, relative to the sum of absolute terms. Accelerators may
# multiply float32 matrices in TF32 or bfloat16 (worst product: 2^-7); on a CPU only the order of summation differs.
CPU_TOLERANCE = 1e-5
ACCELERATOR_TOLERANCE = 1e-2


@dataclass(frozen=True)
class CamResult:
    """Signed maps of N pictures, in units of the logit, with what the network said; field names as in `CamFile`."""

    maps_label: NDArray[np.float32]  # (N, h, w), of the ground-truth class
    maps_predicted: NDArray[np.float32]  # (N, h, w), of the predicted class
    labels: NDArray[np.int64]  # (N,)
    predictions: NDArray[np.int64]  # (N,)
    probability_label: NDArray[np.float32]  # (N,), softmax
    probability_predicted: NDArray[np.float32]  # (N,), softmax


def class_activation_maps(features: Tensor, weight: Tensor, classes: Tensor | None = None) -> Tensor:
    """Signed maps: the spatial mean of a map plus the class's bias is the class's logit.

    Args:
        features: (B, C, h, w), the tensor that enters global average pooling.
        weight: (K, C) of the linear head.
        classes: (B,) one class for each picture; None for all K.

    Returns:
        (B, K, h, w), or (B, h, w) for chosen classes.
    """
    if classes is None:
        return torch.einsum("bchw,kc->bkhw", features, weight)
    return torch.einsum("bchw,bc->bhw", features, weight[classes])


def class_maps(model: nn.Module, images: Tensor, labels: Tensor, *, batch_size: int = 32) -> CamResult:
    """Maps of the ground-truth and of the predicted class, in eval mode and without gradients.

    Args:
        model: forward returns a named tuple with `logits` (B, K) and `features` (B, C, h, w), the tensor that enters
            pooling; `model.classifier` is the linear head. Left in the training mode it came in, module by module.
        images: (N, 3, H, W) as the network was trained on them; moved to the model's device and type.
        labels: (N,) integers in [0, K).
        batch_size: pictures for one forward pass.

    Raises:
        ValueError: no pictures, or labels do not fit the pictures or the classes.
        RuntimeError: the network is not global average pooling + linear layer, so that its maps would not be exact;
            or its activations are not finite.
    """
    head = getattr(model, "classifier", None)
    if not isinstance(head, nn.Linear):
        raise RuntimeError(f"exact CAM needs a linear head in `classifier`, but {type(model).__name__} has {head!r}")
    if len(images) == 0 or labels.shape != images.shape[:1]:
        raise ValueError(f"labels of shape {tuple(labels.shape)} do not fit {len(images)} pictures; give one for each")
    labels = labels.long()
    if int(labels.min()) < 0 or int(labels.max()) >= head.out_features:
        raise ValueError(
            f"labels {int(labels.min())}..{int(labels.max())} leave the head's classes 0..{head.out_features - 1}"
        )
    with at_rest(model):
        parts = [
            _batch_maps(model, head, picture.to(head.weight), label.to(head.weight.device))
            for picture, label in zip(images.split(batch_size), labels.split(batch_size), strict=True)
        ]
    columns = [torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True)]
    maps_label, maps_predicted, predictions, probability_label, probability_predicted = columns
    return CamResult(
        maps_label, maps_predicted, labels.cpu().numpy(), predictions, probability_label, probability_predicted
    )


@contextlib.contextmanager
def at_rest(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; the model is left in the training mode it came in, module by module."""
    modes = {module: True for module in model.modules() if module.training}
    if modes:
        model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _batch_maps(model: nn.Module, head: nn.Linear, images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    output = model(images)
    logits, features = getattr(output, "logits", None), getattr(output, "features", None)
    if logits is None or features is None or features.ndim != 4 or features.shape[1] != head.in_features:
        raise RuntimeError(
            f"exact CAM needs a forward that returns logits and features (B, {head.in_features}, h, w), the map that "
            f"enters pooling; {type(model).__name__} returns {type(output).__name__}"
        )
    tolerance = CPU_TOLERANCE if images.device.type == "cpu" else ACCELERATOR_TOLERANCE
    tolerance = max(tolerance, 4 * torch.finfo(logits.dtype).eps)
    logits, features, weight = logits.float(), features.float(), head.weight.float()
    bias = torch.zeros_like(weight[:, 0]) if head.bias is None else head.bias.float()
    if not (torch.isfinite(features).all() and torch.isfinite(logits).all()):
        raise RuntimeError("activation maps cannot be drawn: the network's activations are not finite")
    predictions = logits.argmax(1)
    probabilities = logits.softmax(1)
    classes = torch.stack((labels, predictions))  # (2, B): both maps by one product
    chosen = weight[classes]  # (2, B, C)
    maps = torch.einsum("bchw,nbc->nbhw", features, chosen)
    told, logit = maps.mean((2, 3)) + bias[classes], logits.gather(1, classes.T).T
    # The spatial mean of sum_c |weight| * |feature|, without the map of it.
    terms = torch.einsum("bc,nbc->nb", features.abs().mean((2, 3)), chosen.abs()) + bias[classes].abs()
    gap = (told - logit).abs() / terms.clamp_min(torch.finfo(torch.float32).tiny)
    if bool((gap > tolerance).any()):
        sentence = (
            "exact CAM needs global average pooling followed by one linear layer: mean of the map + bias differs from"
            f" the logit by {float((told - logit).abs().max()):.3g} ({type(model).__name__})"
        )
        raise RuntimeError(named("G12", sentence))
    rows = torch.arange(len(labels), device=labels.device)
    return maps[0], maps[1], predictions, probabilities[rows, labels], probabilities[rows, predictions]
