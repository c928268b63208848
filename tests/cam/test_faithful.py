"""Deletion, insertion and masks on a network whose evidence is known pixel by pixel; controls that learned nothing."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from src.cam.faithful import (
    STEPS,
    blurred,
    gains,
    masked_scores,
    mosaics,
    probabilities,
    randomised,
    tile_labels,
)
from src.cam.maps import class_maps
from src.networks.build import build
from src.networks.table import Network, Stage, Stem


class Output(NamedTuple):
    logits: Tensor
    features: Tensor


class Looker(nn.Module):
    """Says class 0 by how much of the left upper quarter is brighter than a blur is, and class 1 by none of it."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(1, 2)
        with torch.no_grad():
            self.classifier.weight.copy_(torch.tensor([[60.0], [0.0]]))
            self.classifier.bias.copy_(torch.tensor([0.0, 5.0]))

    def forward(self, images: Tensor) -> Output:
        features = torch.zeros_like(images[:, :1])
        half = images.shape[-1] // 2
        features[:, :, :half, :half] = (images[:, :1, :half, :half] - 1.5).relu()
        return Output(self.classifier(features.mean((2, 3))), features)


SIDE = 16


def pictures(count: int = 4) -> tuple[Tensor, Tensor]:
    """A bright spot in the left upper quarter on nothing."""
    images = torch.zeros(count, 3, SIDE, SIDE)
    images[:, :, 2:6, 2:6] = 4.0
    return images, torch.zeros(count, dtype=torch.long)


def small_network() -> nn.Module:
    torch.manual_seed(0)
    stage = Stage("mbconv", 3, 2, 12, 1, expand=2, se_ratio=0.25)
    return build(Network("small", 16, Stem(8, 2), (stage,), 16, "silu"), 4)


def test_a_true_map_gains_and_a_false_one_loses() -> None:
    images, labels = pictures()
    true = class_maps(Looker(), images, labels).maps_label
    false = np.roll(true, (SIDE // 2, SIDE // 2), (1, 2))
    found = gains(Looker(), images, labels, true, seed=0, batch_size=3)
    wrong = gains(Looker(), images, labels, false, seed=0, batch_size=3)
    assert set(found) == {"deletion_gain", "insertion_gain"} and all(len(values) == 4 for values in found.values())
    assert (found["deletion_gain"] > 0.1).all() and (found["insertion_gain"] > 0.1).all()
    assert all((wrong[name] < found[name]).all() for name in found)


def test_curves_start_and_end_where_they_must_and_follow_the_map() -> None:
    """The whole curve by hand: a map of four strips, deleted strip by strip."""
    images, labels = pictures(1)
    strips = np.array([[[4.0, 3.0, 2.0, 1.0]]])
    seen: list[Tensor] = []

    class Recorder(Looker):
        def forward(self, images: Tensor) -> Output:
            seen.append(images.clone())
            return super().forward(images)

    gains(Recorder(), images, labels, strips, seed=0, batch_size=1)
    inner = STEPS - 1  # of each curve; its ends are the same for all
    assert len(seen) == 2 + 4 * inner
    blur = blurred(images)
    torch.testing.assert_close(seen[0], images)
    torch.testing.assert_close(seen[1], blur)
    quarter = seen[2 + inner + STEPS // 4 - 1]  # 25 % of the pixels: the leftmost four columns
    torch.testing.assert_close(quarter[..., :4], blur[..., :4])
    torch.testing.assert_close(quarter[..., 4:], images[..., 4:])
    quarter = seen[2 + 3 * inner + STEPS // 4 - 1]
    torch.testing.assert_close(quarter[..., :4], images[..., :4])
    torch.testing.assert_close(quarter[..., 4:], blur[..., 4:])


def test_steps_that_are_computed_together_are_the_same() -> None:
    images, labels = pictures(3)
    maps = np.random.default_rng(0).normal(size=(3, 4, 4))
    alone, together = (gains(Looker(), images, labels, maps, seed=0, batch_size=size) for size in (2, 20))
    for name, values in alone.items():
        np.testing.assert_allclose(values, together[name], rtol=1e-6, atol=1e-7)


def test_maps_that_know_nothing_gain_nothing_on_average() -> None:
    images, labels = pictures(300)
    maps = np.random.default_rng(5).normal(size=(300, 4, 4))
    for name, values in gains(Looker(), images, labels, maps, seed=1, batch_size=300).items():
        assert values.std() > 0.01, name
        assert abs(values.mean()) < 4 * values.std() / np.sqrt(300), name


def test_an_even_map_is_deleted_in_no_order_of_rows() -> None:
    """Equal pixels come in random order: by number, the left upper corner would always go first."""
    images, labels = pictures(40)
    found = gains(Looker(), images, labels, np.ones((40, 4, 4)), seed=0, batch_size=40)
    assert all(abs(values.mean()) < 4 * values.std() / np.sqrt(40) for values in found.values())


def test_masking_by_hand() -> None:
    images, labels = pictures(2)
    model = Looker()
    left = np.array([[[1.0, 0.0], [0.0, 0.0]]] * 2)  # bright where the evidence is
    right = np.array([[[-1.0, 2.0], [0.0, 0.0]]] * 2)

    def again(masked: Tensor, classes: Tensor) -> np.ndarray:
        return class_maps(model, masked, classes).maps_label

    def logit(mask: Tensor) -> float:
        """Of class 0 against class 1."""
        return float(60 * (images[0, 0] * mask - 1.5).relu()[: SIDE // 2, : SIDE // 2].sum() / SIDE**2 - 5)

    before = 1 / (1 + np.exp(-logit(torch.ones(SIDE, SIDE))))
    mask = torch.nn.functional.interpolate(torch.tensor(left)[:1, None], size=(SIDE, SIDE), mode="bilinear")[0, 0]
    after = 1 / (1 + np.exp(-logit(mask)))
    kept = masked_scores(model, images, labels, left, explain=again, batch_size=2)
    assert kept["drop"] == pytest.approx([max(0.0, before - after) / before] * 2, abs=1e-5)
    assert kept["complexity"] == pytest.approx([float(mask.mean())] * 2, rel=1e-5)
    assert kept["increase"].tolist() == [0.0, 0.0] and set(kept) >= {"coherency", "adcc"}
    lost = masked_scores(model, images, labels, right, explain=None, batch_size=2)
    assert (lost["drop"] > kept["drop"] + 0.1).all() and "adcc" not in lost
    nothing = masked_scores(model, images, labels, -np.ones((2, 2, 2)), explain=again, batch_size=2)
    assert all(np.isnan(values).all() for values in nothing.values())


def test_probabilities_do_not_depend_on_the_batch_or_leave_a_mode_changed() -> None:
    model = small_network()
    images, labels = torch.randn(5, 3, 16, 16), torch.tensor([0, 1, 2, 3, 0])
    model.train()
    once = probabilities(model, images, labels, batch_size=5)
    np.testing.assert_allclose(probabilities(model, images, labels, batch_size=2), once, rtol=1e-5)
    assert model.training and once.shape == (5,)
    expected = model.eval()(images).logits.softmax(1).detach()
    np.testing.assert_allclose(once, expected[torch.arange(5), labels].numpy(), rtol=1e-5)


def test_the_blur_keeps_an_even_picture_and_takes_detail_away() -> None:
    torch.testing.assert_close(blurred(torch.full((1, 3, 20, 20), 1.7)), torch.full((1, 3, 20, 20), 1.7))
    board = ((torch.arange(32)[:, None] // 2 + torch.arange(32) // 2) % 2 * 2.0 - 1).expand(1, 3, 32, 32)
    assert blurred(board).std() < 0.05 * board.std()
    slope = torch.linspace(-1, 1, 32).expand(1, 3, 32, 32)
    assert blurred(slope).std() > 0.5 * slope.std()


def test_mosaics_hold_four_classes_in_reading_order() -> None:
    images = torch.arange(9.0)[:, None, None, None].expand(9, 3, 2, 2)
    labels = torch.tensor([0, 1, 2, 3, 0, 1, 0, 2, 3])
    made, firsts = mosaics(images, labels)
    assert firsts == [0]  # the second four hold class 0 twice, and one picture is left over
    assert made[0, 0].tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]
    assert tile_labels(labels, firsts).tolist() == [0, 1, 2, 3]
    none, firsts = mosaics(images[:3], labels[:3])
    assert len(none) == 0 and firsts == [] and len(tile_labels(labels, firsts)) == 0


def test_a_randomised_network_has_other_weights_everywhere_and_leaves_the_trained_one_alone() -> None:
    model = small_network()
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=0.5)  # as far from initial weights as training may lead
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = 3 + torch.randn(24, 3, 16, 16)
    state = torch.get_rng_state()
    ignorant = randomised(model, images, seed=0, batch_size=7)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for (name, mine), theirs in zip(ignorant.named_parameters(), model.parameters(), strict=True):
        assert not torch.equal(mine, theirs), name
    assert not any(module.training for module in ignorant.modules())
    with torch.no_grad():
        features = ignorant(images).features
    assert 0.1 < features.std() < 10  # batch norm has taken its statistics from these pictures
    other = randomised(model, images, seed=1, batch_size=7)
    same = randomised(model, images, seed=0, batch_size=7)
    assert torch.equal(same.classifier.weight, ignorant.classifier.weight)  # type: ignore[arg-type]
    assert not torch.equal(other.classifier.weight, ignorant.classifier.weight)  # type: ignore[arg-type]
