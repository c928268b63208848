"""Means of an epoch and the smoothed loss, held against float64 and torch's own loss."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from src.training.module import Means, smoothed

CPU = torch.device("cpu")


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_every_picture_counts_alike_however_it_is_batched(sizes: list[int], seed: int) -> None:
    drawn = torch.Generator().manual_seed(seed)
    logits = torch.randn(sum(sizes), 4, generator=drawn)
    labels = torch.randint(0, 4, (sum(sizes),), generator=drawn)
    losses = F.cross_entropy(logits, labels, reduction="none")
    means = Means()
    for part in torch.arange(sum(sizes)).split(sizes):
        means.add(logits[part], labels[part], losses[part])
    loss, accuracy = means.values(CPU)
    assert loss == pytest.approx(float(F.cross_entropy(logits.double(), labels)), rel=1e-5)
    assert accuracy == pytest.approx(float((logits.double().argmax(1) == labels).double().mean()), abs=1e-7)


def test_no_pictures_have_no_mean() -> None:
    assert all(math.isnan(value) for value in Means().values(CPU))
    assert Means().over_ranks(CPU).tolist() == [0.0, 0.0, 0.0]


def test_sums_handed_out_are_a_copy() -> None:
    means = Means()
    means.add(torch.tensor([[2.0, 1.0]]), torch.tensor([0]), torch.tensor([0.5]))
    means.over_ranks(CPU).zero_()
    assert means.values(CPU) == (0.5, 1.0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.6])
def test_the_smoothed_loss_and_its_gradient_are_torchs(smoothing: float) -> None:
    logits = torch.randn(7, 5, dtype=torch.float64, requires_grad=True, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 4, 2, 2, 1, 3, 0])
    theirs = F.cross_entropy(logits, labels, label_smoothing=smoothing)
    logs = F.log_softmax(logits, dim=1)
    ours = smoothed(F.nll_loss(logs, labels, reduction="none"), logs, smoothing)
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-12)
    torch.testing.assert_close(torch.autograd.grad(ours, logits)[0], torch.autograd.grad(theirs, logits)[0])
