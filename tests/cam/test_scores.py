"""Scores of maps against hand arithmetic, brute force on enlarged maps, and what knows nothing of the picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from src.cam import scores
from src.cam.scores import (
    MEASURES,
    adcc,
    area_matched_iou,
    area_under,
    beyond_chance,
    box_area,
    box_scores,
    centre_prior,
    coherency,
    complexity,
    deletion_gain,
    drop,
    energy_in_box,
    enlarge,
    grid_pointing_game,
    insertion_gain,
    pointing_game,
    pool,
)

SIGNED = hnp.arrays(np.float32, (3, 4, 5), elements=st.floats(-8, 8, width=32))


def boxed(*corners: float) -> np.ndarray:
    return np.array([corners], np.float32)


def filled(side: int, box: tuple[int, int, int, int]) -> np.ndarray:
    """A map (1, side, side) that is the box itself."""
    heat = np.full((1, side, side), -1.0)
    heat[0, box[1] : box[3], box[0] : box[2]] = 1.0
    return heat


@st.composite
def whole_boxes(draw: st.DrawFn, side: int) -> tuple[int, int, int, int]:
    left, top = draw(st.integers(0, side - 1)), draw(st.integers(0, side - 1))
    return left, top, draw(st.integers(left + 1, side)), draw(st.integers(top + 1, side))


def test_maps_are_enlarged_as_torch_does() -> None:
    maps = np.random.default_rng(0).normal(size=(3, 4, 5))
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(maps)[:, None], size=(18, 18), mode="bilinear", align_corners=False
    )
    np.testing.assert_allclose(enlarge(maps, 18), expected[:, 0].numpy(), atol=1e-12)
    assert enlarge(np.ones((1, 1, 1)), 3).tolist() == [[[1.0] * 3] * 3]


def test_energy_by_hand() -> None:
    maps = np.array([[[3.0, -5.0], [1.0, 0.0]]])
    # On the grid itself: 3 of 4 lie in the left upper cell, and half of the left lower cell adds 0.5.
    assert energy_in_box(maps, boxed(0, 0, 1, 1), 2) == pytest.approx([0.75])
    assert energy_in_box(maps, boxed(0, 0, 1, 1.5), 2) == pytest.approx([0.875])
    # One cell of 1 at the left of two, four pixels: 1, 0.75, 0.25, 0 along the row, so the left half has 1.75 of 2.
    assert energy_in_box(np.array([[[1.0, 0.0]]]), boxed(0, 0, 2, 4), 4) == pytest.approx([0.875])
    assert box_area(boxed(0, 0, 2, 4), 4) == pytest.approx([0.5])
    assert beyond_chance(np.array([0.875]), np.array([0.5])) == pytest.approx([0.75])


@settings(max_examples=50, deadline=None)
@given(SIGNED, st.integers(5, 20), st.data())
def test_energy_is_the_enlarged_mass_in_the_box(maps: np.ndarray, side: int, data: st.DataObject) -> None:
    left, top, right, bottom = data.draw(whole_boxes(side))
    heat = enlarge(np.maximum(maps, 0), side)
    energy = energy_in_box(maps, np.tile(boxed(left, top, right, bottom), (3, 1)), side)
    for row in range(3):
        if heat[row].sum() == 0:
            assert np.isnan(energy[row])
        else:
            share = heat[row, top:bottom, left:right].sum() / heat[row].sum()
            assert energy[row] == pytest.approx(share, abs=1e-9)


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 24), st.data())
def test_the_box_itself_is_a_perfect_map(side: int, data: st.DataObject) -> None:
    box = data.draw(whole_boxes(side))
    found = box_scores(filled(side, box), boxed(*box), side)
    assert found["energy"] == pytest.approx([1.0]) and found["pointing"] == pytest.approx([1.0])
    assert found["iou"] == pytest.approx([1.0])
    assert found["relevance"] == pytest.approx([1.0]) or box == (0, 0, side, side)


@settings(max_examples=50, deadline=None)
@given(st.floats(0.1, 9.0), st.tuples(*[st.floats(0, 1)] * 4), st.integers(4, 20))
def test_an_even_map_scores_its_chance_level(height: float, corners: tuple[float, ...], side: int) -> None:
    x, y = sorted(corners[:2]), sorted(corners[2:])
    box = boxed(*(side * value for value in (x[0], y[0], x[1], y[1])))
    (area,) = box_area(box, side)
    if not 1e-3 < area < 0.999:
        return
    found = box_scores(np.full((1, 4, 4), height), box, side)
    assert found["energy"] == pytest.approx([area], rel=1e-6) and found["pointing"] == pytest.approx([area], rel=1e-6)
    assert found["relevance"] == pytest.approx([0.0], abs=1e-6)
    if all(float(value).is_integer() for value in box[0]):
        assert found["iou"] == pytest.approx([area / (2 - area)], rel=1e-6)


def test_maps_that_know_nothing_score_their_chance_level_on_average() -> None:
    rng = np.random.default_rng(3)
    count, side = 4000, 24
    box = np.tile(boxed(3, 6, 15, 16), (count, 1))  # a = 120 / 576
    found = box_scores(rng.uniform(-1, 1, (count, side, side)), box, side)
    area = 120 / 576
    for name, chance in (("energy", area), ("relevance", 0.0), ("pointing", area), ("iou", area / (2 - area))):
        values = found[name]
        # An IoU is a curved function of the overlap: its mean lies a little beside that of the expected overlap.
        assert abs(values.mean() - chance) < 4 * values.std() / np.sqrt(count) + 1e-3, name


def test_pointing_by_hand() -> None:
    maps = np.array([[[0.0, 0.0, 0.0], [0.0, 2.0, 0.0], [1.0, 0.0, 0.0]]])
    assert pointing_game(maps, boxed(1, 1, 2, 2), 3).tolist() == [1.0]
    assert pointing_game(maps, boxed(0, 0, 1, 1), 3).tolist() == [0.0]
    assert pointing_game(maps, boxed(0, 0, 1, 1), 3, tolerance=1.0).tolist() == [1.0]
    assert pointing_game(maps, boxed(1, 1, 1.25, 2), 3).tolist() == [0.25]  # a quarter of the brightest pixel
    twins = np.array([[[2.0, -9.0, 2.0]]])
    assert pointing_game(twins, boxed(0, 0, 1, 3), 3).tolist() == [0.5]  # one of two equally bright places


def test_area_matched_iou_by_hand() -> None:
    maps = np.array([[[4.0, 3.0], [2.0, 1.0]]])
    # The box takes two pixels, the right ones; the two brightest are the upper ones: one in common of three.
    assert area_matched_iou(maps, boxed(1, 0, 2, 2), 2) == pytest.approx([1 / 3])
    assert area_matched_iou(maps, boxed(0, 0, 2, 1), 2) == pytest.approx([1.0])
    # Three pixels are equally bright and two are wanted: each counts for two thirds; the box holds one of them.
    tied = np.array([[[3.0, 3.0], [3.0, -1.0]]])
    assert area_matched_iou(tied, boxed(1, 0, 2, 2), 2) == pytest.approx([(2 / 3) / (4 - 2 / 3)])


@settings(max_examples=50, deadline=None)
@given(SIGNED, st.floats(0.25, 40), st.data())
def test_scores_stay_in_their_range_and_do_not_depend_on_the_unit(
    maps: np.ndarray, unit: float, data: st.DataObject
) -> None:
    box = np.tile(boxed(*data.draw(whole_boxes(12))), (3, 1))
    maps = np.where(np.abs(maps) < 1e-3, 0, maps)
    once, again = box_scores(maps, box, 12), box_scores(maps * unit, box, 12)
    for name, values in once.items():
        np.testing.assert_allclose(values, again[name], rtol=1e-5, atol=1e-6, err_msg=name)
        known = values[np.isfinite(values)]
        assert (known <= 1 + 1e-9).all() and (name == "relevance" or (known >= 0).all())


@settings(max_examples=30, deadline=None)
@given(SIGNED, st.data())
def test_scores_are_the_same_in_a_mirror(maps: np.ndarray, data: st.DataObject) -> None:
    left, top, right, bottom = data.draw(whole_boxes(10))
    box, mirrored = (
        np.tile(boxed(*b), (3, 1)) for b in ((left, top, right, bottom), (10 - right, top, 10 - left, bottom))
    )
    for name, values in box_scores(maps, box, 10).items():
        np.testing.assert_allclose(box_scores(maps[:, :, ::-1], mirrored, 10)[name], values, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("maps", [np.full((1, 4, 4), -1.0), np.zeros((1, 4, 4))], ids=["negative", "zero"])
def test_a_map_without_evidence_has_no_score(maps: np.ndarray) -> None:
    found = box_scores(maps, boxed(0, 0, 4, 4), 8) | {"complexity": complexity(maps, 8)}
    found["coherency"] = coherency(maps, np.ones((1, 4, 4)), 8)
    assert all(np.isnan(values).all() for values in found.values())


@pytest.mark.parametrize("box", [(np.nan,) * 4, (3.0, 3.0, 3.0, 5.0)], ids=["missing", "empty"])
def test_a_picture_without_a_box_has_no_score_and_spoils_no_other(box: tuple[float, ...]) -> None:
    maps = np.ones((2, 4, 4))
    found = box_scores(maps, np.array([box, (0, 0, 4, 8)], np.float32), 8)
    assert all(np.isnan(values[0]) and np.isfinite(values[1]) for values in found.values())


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    maps, box = rng.normal(size=(7, 4, 4)), np.tile(boxed(1, 2, 6, 7), (7, 1)) + rng.uniform(0, 1, (7, 1))
    whole = box_scores(maps, box, 8)
    monkeypatch.setattr(scores, "_CHUNK", 3 * 64)
    for name, values in box_scores(maps, box, 8).items():
        np.testing.assert_array_equal(values, whole[name])


def test_grid_pointing_by_hand() -> None:
    maps = np.zeros((2, 4, 4))
    maps[:, :2, 2:] = 3.0  # the right upper tile
    maps[:, 3, 0] = 1.0
    maps[1] = -maps[1]
    maps[1, 0, 0] = 5.0
    share = grid_pointing_game(maps, np.array([1, 0]), 4)  # on the grid itself
    assert share == pytest.approx([12 / 13, 1.0])
    assert sum(grid_pointing_game(maps[:1], np.array([tile]), 4)[0] for tile in range(4)) == pytest.approx(1.0)
    assert grid_pointing_game(np.ones((1, 8, 8)), np.array([2]), 72) == pytest.approx([0.25])


def test_complexity_and_coherency_by_hand() -> None:
    maps = np.array([[[4.0, 2.0], [-7.0, 0.0]]])
    assert complexity(maps, 2) == pytest.approx([6 / 16])
    again = np.array([[[1.0, 5.0], [2.0, -3.0]]])
    expected = stats.pearsonr([4, 2, 0, 0], [1, 5, 2, 0]).statistic
    assert coherency(maps, again, 2) == pytest.approx([expected])
    assert coherency(maps, 3 * maps, 2) == pytest.approx([1.0])
    assert coherency(maps, np.full((1, 2, 2), -1.0), 2).tolist() == [0.0]


def test_drop_and_adcc_by_hand() -> None:
    assert drop(np.array([0.8, 0.5]), np.array([0.6, 0.9])) == pytest.approx([0.25, 0.0])
    terms = (np.array([0.5, -1.0]), np.array([0.4, 0.1]), np.array([0.25, 0.0]))
    assert adcc(*terms) == pytest.approx([stats.hmean([0.75, 0.6, 0.75]), 0.0])
    assert np.isnan(adcc(np.array([np.nan]), np.array([0.5]), np.array([0.5]))).all()


def test_gains_by_hand() -> None:
    ordered, shuffled = np.array([[1.0], [0.2], [0.0]]), np.array([[1.0], [0.6], [0.0]])
    assert area_under(shuffled) == pytest.approx([(0.8 + 0.3) / 2])
    assert deletion_gain(shuffled, ordered) == pytest.approx([0.2])  # 0.55 - 0.35
    assert insertion_gain(shuffled[::-1], 1 - ordered) == pytest.approx([0.65 - 0.55])


def test_the_centre_prior_is_symmetrical_and_falls_off_from_the_middle() -> None:
    prior = centre_prior((5, 7))
    assert prior.shape == (5, 7) and prior.max() == prior[2, 3] == 1.0
    for other in (prior[::-1], prior[:, ::-1]):
        np.testing.assert_allclose(prior, other, rtol=1e-6)
    assert prior[2, 6] == pytest.approx(np.exp(-0.5 * (3 / 7 / 0.25) ** 2))
    quarters = [energy_in_box(prior[None], boxed(x, y, x + 5, y + 5), 10)[0] for x in (0, 5) for y in (0, 5)]
    assert quarters == pytest.approx([0.25] * 4)


def test_pooling_keeps_the_mean_and_hides_a_fine_grid() -> None:
    maps = np.random.default_rng(0).normal(size=(2, 6, 6)).astype(np.float32)
    coarse = pool(maps, (3, 3))
    assert coarse.dtype == np.float32
    np.testing.assert_allclose(coarse, maps.reshape(2, 3, 2, 3, 2).mean((2, 4)), atol=1e-6)
    # A point in the box is all that the fine grid knows; on the coarse one half of it has left.
    fine = np.zeros((1, 4, 4))
    fine[0, 0, 0] = 1.0
    assert energy_in_box(fine, boxed(0, 0, 1, 1), 4) == pytest.approx([1.0])
    assert energy_in_box(pool(fine, (2, 2)), boxed(0, 0, 2, 2), 4)[0] < 0.8


def test_every_measure_says_what_it_is() -> None:
    assert list(MEASURES) == [measure.name for measure in MEASURES.values()]
    assert all(m.label and m.chance and m.source for m in MEASURES.values())
