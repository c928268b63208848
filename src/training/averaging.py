"""Exponential moving average of weights and batch-norm statistics, with the released code's step warm-up."""

from __future__ import annotations

import torch
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor, nn


class StepAveraging(WeightAveraging):
    """Averages after every optimizer step with decay min(decay, (1 + n) / (10 + n)) at update n.

    The warm-up keeps early averages near the weights (TensorFlow's `ExponentialMovingAverage(num_updates=...)`).
    Validation and checkpoints use the average; Lightning's callback swaps it in and out.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        super().__init__(use_buffers=True, multi_avg_fn=self._average)

    @torch.no_grad()
    def _average(self, averaged: list[Tensor], current: list[Tensor], updates: Tensor) -> None:
        if not averaged[0].is_floating_point():  # batch norm counts its batches in integers
            torch._foreach_copy_(averaged, current)
            return
        n = int(updates)
        weight = 1.0 - min(self.decay, (1 + n) / (10 + n))
        torch._foreach_lerp_(averaged, current, weight)

    @property
    def updates(self) -> int:
        """How often the average was really updated (guard G6)."""
        return 0 if self._average_model is None else int(self._average_model.n_averaged)

    def distance(self, module: nn.Module) -> float:
        """Relative L2 distance between the averaged parameters and `module`'s: 0 means that one of them never moved."""
        assert self._average_model is not None
        apart = norm = 0.0
        for averaged, current in zip(self._average_model.module.parameters(), module.parameters(), strict=True):
            apart += float((averaged - current).square().sum())
            norm += float(current.square().sum())
        return (apart / norm) ** 0.5
