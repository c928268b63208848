"""Other ways to weigh the features into a map than the exact one, through torchcam (`pip install -e '.[cam]'`).

All of them look at the tensor that enters global average pooling, whose gradient needs nothing but the linear head. So
the library is given the head alone: no hooks stay in the network, and nothing is sent back through it. On such a
network Grad-CAM is the exact map, cut at zero and divided by the number of cells.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from src.cam.maps import CamResult, at_rest, class_maps
from src.cam.options import EXACT, check_cam


def explain(
    model: nn.Module, images: Tensor, labels: Tensor, *, method: str = EXACT, batch_size: int = 32
) -> CamResult:
    """`class_maps` by the chosen method; those of torchcam are never negative, and in its own units.

    Args:
        model, images, labels, batch_size: as in `class_maps`, whose demands every method shares.
        method: one of `src.cam.options.METHODS`.

    Raises:
        ValueError: no such method, or torchcam is not installed; and what `class_maps` raises.
        RuntimeError: what `class_maps` raises.
    """
    check_cam(method, 0)
    exact = class_maps(model, images, labels, batch_size=batch_size)
    if method == EXACT:
        return exact
    head = model.classifier
    assert isinstance(head, nn.Linear)
    tail = _Tail(head)
    predictions = torch.from_numpy(exact.predictions)
    parts: list[list[Tensor]] = [[], []]
    with _extractor(method)(tail, tail.features) as extract:
        for first in range(0, len(images), batch_size):
            rows = slice(first, first + batch_size)
            with at_rest(model):
                features = model(images[rows].to(head.weight)).features.float()
            for maps, classes in zip(parts, (labels, predictions), strict=True):
                scores = tail(features.detach().requires_grad_())
                maps.append(extract(classes[rows].tolist(), scores, normalized=False)[0].detach().cpu())
    maps_label, maps_predicted = (torch.cat(maps).numpy() for maps in parts)
    return CamResult(
        maps_label,
        maps_predicted,
        exact.labels,
        exact.predictions,
        exact.probability_label,
        exact.probability_predicted,
    )


class _Tail(nn.Module):
    """From features (B, C, h, w) to logits (B, K), with a place for a hook."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.features = nn.Identity()
        self.weight = head.weight.detach().float()
        self.bias = None if head.bias is None else head.bias.detach().float()

    def forward(self, features: Tensor) -> Tensor:
        return nn.functional.linear(self.features(features).mean((2, 3)), self.weight, self.bias)


def _extractor(method: str) -> Any:
    from torchcam import methods  # only where it was asked for: it is an extra

    if method != "gradcam_pp":
        return {"gradcam": methods.GradCAM, "layercam": methods.LayerCAM}[method]

    class GradCAMpp(methods.GradCAMpp):
        """torchcam 0.5.0 divides a copy of its coefficients and so leaves them at the squared gradient."""

        def _get_weights(self, class_idx: list[int], scores: Tensor, **options: Any) -> list[Tensor]:
            self._backprop(scores, class_idx, **options)
            (gradient,), (activation,) = self.hook_g, self.hook_a
            # Chattopadhay et al. 2018, eq. 19, shortened by the squared gradient; eq. 10 for the weights.
            share = 1 / (2 + gradient * activation.sum((2, 3), keepdim=True))
            return [(share * torch.relu(gradient)).sum((2, 3))]

    return GradCAMpp
