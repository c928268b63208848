"""Exponential moving average of weights and batch-norm statistics, with the released code's step warm-up."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
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
        self.moved = False  # whether an update after the first, which only copies, was seen to change the average (G6)
        super().__init__(use_buffers=True, multi_avg_fn=self._average)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        # Lightning calls this before it moves the module, and would keep the average on the CPU.
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *rest: Any) -> None:
        before = None if self.moved or self.updates == 0 else self._last_parameter().clone()
        super().on_train_batch_end(trainer, pl_module, *rest)
        self.moved = self.moved or (before is not None and not torch.equal(before, self._last_parameter()))

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "moved": self.moved}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.moved = state_dict["moved"]

    def _last_parameter(self) -> Tensor:
        assert self._average_model is not None
        return list(self._average_model.module.parameters())[-1].detach()

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

    @torch.no_grad()
    def distance(self, module: nn.Module) -> float:
        """Relative L2 distance between the averaged parameters and `module`'s: 0 means that nothing was averaged."""
        assert self._average_model is not None
        apart = norm = 0.0
        for averaged, current in zip(self._average_model.module.parameters(), module.parameters(), strict=True):
            apart += float((averaged - current).square().sum())
            norm += float(current.square().sum())
        return (apart / norm) ** 0.5
