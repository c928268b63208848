"""Scores of a briefly trained network on the embedded pictures: what they find, what they cost, how they are kept."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from src.cam.faithful import randomised
from src.cam.maps import class_maps
from src.cam.score_file import GRIDS, SCORES_FILE, SOURCES, ScoreFile, load_scores
from src.cam.score_run import FAITHFUL_SHARE, MOSAIC_SHARE, score_arm, score_network
from src.cam.scores import BOX_MEASURES, MEASURES, box_scores, pool
from src.data.module import CamBatch, ImageDataModule
from src.data.options import ClutterOptions, DataOptions
from src.networks.build import ConvNet, build
from src.networks.table import Network, Stage, Stem

CLUTTER = ClutterOptions(train=900, val=200, test=10, canvas=32, digit_min=14, digit_max=18)
NANO = Network(
    "nano", 32, Stem(12, 2),
    (Stage("mbconv", 3, 2, 16, 1, expand=3, se_ratio=0.25), Stage("mbconv", 3, 2, 32, 1, expand=3, se_ratio=0.25)),
    96, "silu",
)  # fmt: skip


def module(resolution: int = 32) -> ImageDataModule:
    data = ImageDataModule(DataOptions("clutter", "clutter", clutter=CLUTTER), resolution, 60, 100, seed=0)
    data.prepare_data()
    data.setup()
    return data


@pytest.fixture(scope="module")
def data() -> ImageDataModule:
    return module()


@pytest.fixture(scope="module")
def trained(data: ImageDataModule) -> ConvNet:
    """A few seconds of training: some two thirds of the pictures are classified correctly."""
    torch.manual_seed(0)
    network = build(NANO, 10).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for norm in network.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.momentum = 0.1
    steps = 14 * data.steps_per_epoch
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.5e-2, steps)
    network.train()
    for epoch in range(14):
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        for raw in loader:
            images, labels = data.prepare_batch(raw)
            torch.nn.functional.cross_entropy(network(images).logits, labels).backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    return network  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def scored(trained: ConvNet, data: ImageDataModule) -> ScoreFile:
    return score_network(trained, data.cam_batch(200, 0), common=3, seed=0, batch_size=100)


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    values = values[np.isfinite(values)]
    return float(values.mean()), float(values.std() / np.sqrt(len(values)))


def test_a_trained_network_looks_at_the_object_and_one_of_random_weights_hardly(
    trained: ConvNet, data: ImageDataModule, scored: ScoreFile
) -> None:
    mean, error = mean_and_error(scored.score("relevance")[scored.right()])
    assert mean > 5 * error > 0  # energy in box beats chance
    for measure, chance in (("grid_pointing", 0.25), ("deletion_gain", 0.0), ("insertion_gain", 0.0)):
        value, spread = mean_and_error(scored.score(measure)[scored.right()])
        assert value > chance + 2 * spread, measure
    # Zero padding darkens the border of any network's map, and ink excites any filter, so that one of random weights
    # is not quite at chance where objects stand off the border.
    batch = data.cam_batch(200, 0)
    ignorant = []
    for seed in range(6):
        network = randomised(trained, batch.images, seed=seed, batch_size=100)
        maps = class_maps(network, batch.images, batch.labels, batch_size=100).maps_label
        ignorant.append(np.nanmean(box_scores(maps, scored.boxes, 32)["relevance"]))
    assert np.mean(ignorant) < 0.5 * mean and max(ignorant) < mean - 2 * error


def test_what_was_scored_and_what_was_not(scored: ScoreFile) -> None:
    assert scored.maps.shape == (200, 4, 4) and scored.common_grid.tolist() == [3, 3] and scored.resolution == 32
    for measure in BOX_MEASURES:
        for source in ("map", "prior", "randomised"):
            for grid in GRIDS:
                assert np.isfinite(scored.score(measure, source, grid)).mean() > 0.8, (measure, source, grid)
    assert all(np.isnan(scored.score(measure, "larger", grid)).all() for measure in MEASURES for grid in GRIDS)
    faithful = [m for m in MEASURES if m not in (*BOX_MEASURES, "grid_pointing")]
    for measure in faithful:
        for grid in GRIDS:
            values = scored.score(measure, grid=grid)
            assert np.isfinite(values[: 200 // FAITHFUL_SHARE]).mean() > 0.8, measure
            assert np.isnan(values[200 // FAITHFUL_SHARE :]).all()
    assert np.isnan(scored.score("adcc", "prior")).all() and np.isfinite(scored.score("insertion_gain", "prior")).any()
    mosaic = scored.score("grid_pointing")
    assert np.isfinite(mosaic[: 200 // MOSAIC_SHARE // 4 * 4]).mean() > 0.8
    assert np.isnan(mosaic[200 // MOSAIC_SHARE // 4 * 4 :]).all()


def test_stored_scores_are_those_of_the_stored_maps(scored: ScoreFile) -> None:
    for grid, cells in (("native", (4, 4)), ("common", (3, 3))):
        again = box_scores(pool(scored.maps, cells), scored.boxes, scored.resolution)
        for measure in BOX_MEASURES:
            np.testing.assert_allclose(scored.score(measure, grid=grid), again[measure], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(scored.on_grid("energy", (3, 3)), scored.score("energy", grid="common"))
    coarser = box_scores(pool(scored.maps, (2, 2)), scored.boxes, 32)["energy"]
    np.testing.assert_array_equal(scored.on_grid("energy", (2, 2)), coarser)
    assert np.isnan(scored.on_grid("insertion_gain", (2, 2))).all()


def test_scores_do_not_depend_on_batches_and_leave_modes_alone(trained: ConvNet, data: ImageDataModule) -> None:
    batch = data.cam_batch(48, 0)
    trained.train()
    one, other = (score_network(trained, batch, common=4, seed=0, batch_size=size) for size in (48, 7))
    assert trained.training
    np.testing.assert_allclose(one.score("energy"), other.score("energy"), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(one.score("insertion_gain"), other.score("insertion_gain"), atol=5e-3)
    np.testing.assert_array_equal(one.scores[:, 0, :, :][0], one.scores[:, 1, :, :][0])  # the grid is common already


def test_arms_score_the_same_pictures_and_say_how_many(trained: ConvNet, data: ImageDataModule, tmp_path: Path) -> None:
    small = score_arm(trained, data, tmp_path, count=40, seed=0, common=4, batch_size=64)
    assert small.identities.tolist() == data.cam_batch(40, 0).identities.tolist() and small.asked == 40
    other = score_arm(trained, module(48), tmp_path, count=9999, seed=0, common=4, batch_size=64, larger=64)
    assert len(other.identities) == 200 and other.asked == 9999  # validation has no more
    assert other.identities[:40].tolist() == small.identities.tolist()
    assert other.maps.shape[1:] == (6, 6) and other.larger == 64
    assert np.isfinite(other.score("relevance", "larger", "common")).mean() > 0.8
    assert load_scores(tmp_path / SCORES_FILE).larger == 64
    # Boxes move with the pixels: the same share of the picture.
    np.testing.assert_allclose(other.boxes[:40] / 48, small.boxes / 32, rtol=1e-6)


def test_memory_bounds_the_pictures(
    trained: ConvNet, data: ImageDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from src.cam import score_run

    monkeypatch.setattr(score_run, "LARGEST_BYTES", 10 * 12 * 32 * 32)
    few = score_arm(trained, data, tmp_path, count=40, seed=0, common=4, batch_size=64)
    assert len(few.identities) == 10 and few.asked == 40


def test_pictures_without_boxes_have_the_other_scores(trained: ConvNet, data: ImageDataModule) -> None:
    batch = data.cam_batch(64, 0)
    bare = score_network(
        trained, CamBatch(batch.images, batch.labels, None, batch.identities), common=4, seed=0, batch_size=64
    )
    assert np.isnan(bare.boxes).all()
    assert all(np.isnan(bare.score(m, source)).all() for m in BOX_MEASURES for source in SOURCES)
    others = [measure for measure in MEASURES if measure not in BOX_MEASURES]
    assert all(np.isfinite(bare.score(measure, grid=grid)).any() for measure in others for grid in GRIDS)
    assert not any(name.startswith(BOX_MEASURES) for name in bare.summary())


def test_a_file_comes_back_as_it_was_and_a_damaged_one_is_named(scored: ScoreFile, tmp_path: Path) -> None:
    path = scored.save(tmp_path)
    assert path.name == SCORES_FILE and [p.name for p in tmp_path.iterdir()] == [SCORES_FILE]
    again = load_scores(path)
    for field in dataclasses.fields(ScoreFile):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(scored, field.name), err_msg=field.name)
    assert again.summary() == scored.summary()
    assert again.summary()["energy/native"] == pytest.approx(np.nanmean(scored.score("energy")[scored.right()]))
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match=f"{SCORES_FILE} is not a valid score file"):
        load_scores(path)
    with pytest.raises(FileNotFoundError):
        load_scores(tmp_path / "absent.npz")
    with pytest.raises(ValueError, match="predictions of shape"):
        dataclasses.replace(scored, predictions=scored.predictions[:5])
    with pytest.raises(ValueError, match="scores of shape"):
        dataclasses.replace(scored, scores=scored.scores[:, :1])


def test_a_mosaic_counts_only_if_all_its_tiles_are_sure() -> None:
    count = 10
    labels, probability = np.arange(count) % 4, np.full(count, 0.9, np.float32)
    predictions = labels.copy()
    predictions[5], probability[6] = 9, 0.49
    file = ScoreFile(
        np.arange(count), labels, predictions, probability, np.full((count, 4), np.nan, np.float32),
        np.zeros((count, 4, 4), np.float32), np.full((4, 2, len(MEASURES), count), np.nan, np.float32),
        np.array(list(MEASURES)), np.array([4, 4]), 32, 0, count, "exact",
    )  # fmt: skip
    assert file.confident().tolist() == [True] * 4 + [False] * 6
    assert file.summary() == {}
    assert np.isnan(file.score("a measure of tomorrow")).all()


def test_score_files_can_be_read_without_torch() -> None:
    import subprocess
    import sys

    code = "import sys, src.cam.score_file, src.cam.options; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).resolve().parents[2]).returncode == 0
