from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from src.data.module import ImageDataModule, _spread
from src.data.options import AugmentationOptions, ClutterOptions, DataOptions
from src.data.sampling import NO_AUGMENTATION, BatchDataset, EpochBatches, OrderedBatches, epoch_lengths

OPTIONS = DataOptions(
    "clutter",
    "clutter",
    clutter=ClutterOptions(train=70, val=30, test=20, canvas=32, digit_min=12, digit_max=20),
    augmentation=AugmentationOptions(flip=True, erasing=0.3),
)


def module(
    resolution: int = 32, seed: int = 0, batch_size: int = 16, options: DataOptions = OPTIONS
) -> ImageDataModule:
    data = ImageDataModule(options, resolution, batch_size, eval_batch_size=8, seed=seed)
    data.prepare_data()
    data.setup()
    return data


def epoch(data: ImageDataModule, number: int) -> str:
    """Hash of every picture and label the model would see in an epoch, in order."""
    loader, total = data.train_dataloader(), hashlib.sha256()
    loader.sampler.set_epoch(number)  # type: ignore[attr-defined]
    for batch in loader:
        images, labels = data.prepare_batch(batch)
        total.update(images.numpy().tobytes() + labels.numpy().tobytes())
    return total.hexdigest()


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(1, 70), st.integers(1, 4), st.integers(1, 3), st.integers(0, 5))
def test_every_layout_cuts_the_same_steps_of_the_same_pictures(
    count: int, size: int, world: int, parts: int, number: int
) -> None:
    if min(count, size) < world * parts:
        with pytest.raises(ValueError, match=r"too few"):
            EpochBatches(count, size, 0, 0, world, parts=parts)
        return
    whole = EpochBatches(count, size, 7)
    ranks = [EpochBatches(count, size, 7, rank, world, parts=parts) for rank in range(world)]
    for batches in (whole, *ranks):
        batches.set_epoch(number)
    cut = [list(rank) for rank in ranks]
    assert len(whole) == max(1, count // size) and {len(plan) for plan in cut} == {len(whole) * parts}
    for step, expected in enumerate(whole):
        pieces = [plan[step * parts + part] for part in range(parts) for plan in cut]
        assert [row for piece in pieces for row in piece.rows] == list(expected.rows)
        assert {piece.seed for piece in pieces} == {expected.seed} and expected.seed >= 0
        sizes = [len(piece.rows) for piece in pieces]
        assert max(sizes) - min(sizes) <= 1 <= min(sizes)
        assert [piece.first for piece in pieces] == [sum(sizes[:n]) for n in range(len(sizes))]
        assert {piece.whole for piece in pieces} == {len(expected.rows)}
    assert len({plan.seed for plan in cut[0]}) == len(whole)


def with_augmentation(**values: Any) -> DataOptions:
    return dataclasses.replace(OPTIONS, augmentation=dataclasses.replace(OPTIONS.augmentation, **values))


MIXTURES: list[dict[str, Any]] = [
    {},
    {"policy": "randaugment", "ops": 3},
    {"policy": "autoaugment_cifar10", "resized_crop_area": (0.2, 1.0)},
    {"policy": "trivialaugment"},
]


@pytest.mark.parametrize("mixture", MIXTURES)
def test_pictures_are_augmented_alike_in_every_layout(mixture: dict[str, Any]) -> None:
    def seen(world: int, parts: int) -> list[bytes]:
        data, found = module(options=with_augmentation(**mixture)), []
        for step in range(2):
            for part in range(parts):
                for rank in range(world):
                    plans = EpochBatches(70, 16, 0, rank, world, parts=parts)
                    split = BatchDataset(data.data.train)
                    batch = split[list(plans)[step * parts + part]]
                    found += [picture.numpy().tobytes() for picture in data.prepare_batch(batch)[0]]
        return found

    assert seen(1, 1) == seen(2, 1) == seen(1, 3) == seen(2, 2)


@pytest.mark.parametrize("done", [0, 1, 5, 8])
def test_a_resumed_epoch_leaves_out_what_was_trained(done: int) -> None:
    whole, resumed = (EpochBatches(70, 16, 3, parts=2) for _ in range(2))
    resumed.resume(4, done)
    assert plans(resumed, 4, len(whole) - done) == plans(whole, 4, 8)[done:] and len(resumed) == len(whole) == 8
    assert plans(resumed, 5, 8) == plans(whole, 5, 8)


@settings(deadline=None)
@given(st.integers(0, 2000), st.integers(1, 300))
def test_a_run_is_cut_into_the_fewest_and_most_even_epochs(steps: int, longest: int) -> None:
    lengths = epoch_lengths(steps, longest)
    assert sum(lengths) == steps and list(lengths) == sorted(lengths, reverse=True)
    assert all(1 <= length <= longest for length in lengths)
    assert not lengths or max(lengths) - min(lengths) <= 1
    assert (len(lengths) - 1) * longest < steps <= len(lengths) * longest or steps == len(lengths) == 0
    assert epoch_lengths(steps * longest, longest) == (longest,) * steps


def test_a_cut_by_hand() -> None:
    assert epoch_lengths(7, 3) == (3, 2, 2) and epoch_lengths(11, 4) == (4, 4, 3) and epoch_lengths(4, 3) == (2, 2)


def plans(batches: EpochBatches, number: int, count: int) -> list[tuple[tuple[int, ...], int]]:
    batches.set_epoch(number)
    found = [(tuple(map(int, plan.rows)), plan.seed) for plan in batches]
    assert len(found) == count
    return found


@settings(deadline=None)
@given(st.integers(2, 60), st.integers(1, 20), st.integers(1, 2), st.integers(1, 40), st.integers(0, 3))
def test_a_cut_epoch_is_the_beginning_of_the_whole_one(
    count: int, size: int, world: int, steps: int, seed: int
) -> None:
    assume(min(count, size) >= world)
    whole = EpochBatches(count, size, seed, world - 1, world)
    lengths = epoch_lengths(steps, whole.whole)
    cut = EpochBatches(count, size, seed, world - 1, world, lengths=lengths)
    for number, length in enumerate(lengths):
        assert plans(cut, number, length) == plans(whole, number, whole.whole)[:length]


def test_order_and_augmentation_seeds_are_those_of_the_first_release() -> None:
    """Spelt out a second time, so that no change of the sampler can change the results of old studies unseen."""
    data = module(seed=3)
    assert data.steps_per_epoch == 4 and data.cut_run(12) == (4, 4, 4)
    for batches in (EpochBatches(70, 16, 3), data.train_dataloader().sampler):
        assert isinstance(batches, EpochBatches)
        for number in range(3):
            order = np.random.default_rng([1, 3, number]).permutation(70)
            for index, (rows, seed) in enumerate(plans(batches, number, 4)):
                state = np.random.SeedSequence([2, 3, number, index, 0]).generate_state(1, np.uint64)
                assert rows == tuple(order[16 * index : 16 * index + 16]) and seed == int(state[0]) // 2


@settings(deadline=None)
@given(st.integers(1, 100), st.integers(1, 30), st.integers(1, 4))
def test_evaluation_sees_every_picture_once(count: int, size: int, world: int) -> None:
    plans = [list(OrderedBatches(count, size, rank, world)) for rank in range(world)]
    assert [row for plan in plans for batch in plan for row in batch.rows] == list(range(count))
    assert all(len(plan) == len(OrderedBatches(count, size, rank, world)) for rank, plan in enumerate(plans))
    assert {batch.seed for plan in plans for batch in plan} == {NO_AUGMENTATION}


@pytest.mark.parametrize("mixture", MIXTURES)
def test_an_epoch_depends_on_seed_and_number_alone(mixture: dict[str, Any]) -> None:
    options = with_augmentation(**mixture)
    data = module(options=options)
    first = [epoch(data, number) for number in range(3)]
    torch.manual_seed(99)
    np.random.seed(99)
    assert epoch(module(options=options), 2) == first[2]  # without epochs 0 and 1 before it
    assert len({*first, epoch(module(seed=1, options=options), 0)}) == 4


def test_every_epoch_has_its_own_order() -> None:
    batches, orders = EpochBatches(60, 20, 0), []
    for number in range(3):
        batches.set_epoch(number)
        orders.append(tuple(row for plan in batches for row in plan.rows))
    assert len({*orders, tuple(range(60))}) == 4


def test_nothing_is_taken_from_the_global_random_state() -> None:
    data = module()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    epoch(data, 0)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("mixture", MIXTURES[:2])
def test_workers_change_nothing(mixture: dict[str, Any]) -> None:
    """Workers copy pictures into batches; without them, batches are rows of the set."""
    options = with_augmentation(**mixture)
    copied, held = module(options=dataclasses.replace(options, workers=1)), module(options=options)
    assert next(iter(copied.train_dataloader())).images.shape == (16, 32, 32, 3)
    assert next(iter(held.train_dataloader())).images.shape == (16,)
    assert epoch(copied, 1) == epoch(held, 1)


class Pretended:
    """What the data module asks of a Trainer, on a device without data."""

    training, global_rank, world_size = False, 0, 1

    def __init__(self) -> None:
        self.strategy = type("Strategy", (), {"root_device": torch.device("meta")})


@pytest.mark.parametrize("workers", [0, 1])
def test_an_accelerator_holds_a_set_that_takes_a_twentieth_of_its_free_memory(
    workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = dataclasses.replace(with_augmentation(policy="randaugment"), workers=workers)
    size = 70 * 32 * 32 * 3
    for free, held in ((20 * size, True), (20 * size - 20, False), (0, False)):
        monkeypatch.setattr("src.data.module._free_memory", lambda device, free=free: free)
        data = module(24, options=options)
        data.trainer = Pretended()  # type: ignore[assignment]
        batch = next(iter(data.train_dataloader()))
        assert batch.images.ndim == (1 if held else 4)
        moved = batch._replace(images=batch.images.to("meta"), labels=batch.labels.to("meta"))
        images, labels = data.on_after_batch_transfer(moved, 0)
        assert images.shape == (16, 3, 24, 24) and images.device.type == labels.device.type == "meta"
        again = data._held
        data.train_dataloader()
        assert data._held is again  # copied once


def test_the_hook_makes_the_asked_type_and_activation_maps_are_float32() -> None:
    data = ImageDataModule(OPTIONS, 24, 16, 8, 0, dtype=torch.bfloat16)
    data.setup()
    raw = next(iter(data.train_dataloader()))
    images, _ = data.on_after_batch_transfer(raw, 0)
    assert images.dtype == torch.bfloat16 and torch.equal(images, data.prepare_batch(raw)[0].bfloat16())
    assert data.cam_batch(4, 0).images.dtype == torch.float32


def test_batches_are_normalised_at_the_arms_resolution_in_training_and_evaluation() -> None:
    for resolution in (24, 32, 40):
        data = module(resolution)
        train = [data.prepare_batch(batch) for batch in data.train_dataloader()]
        val = [data.prepare_batch(batch) for batch in data.val_dataloader()]
        assert len(train) == 4 and [len(labels) for _, labels in val] == [8, 8, 8, 6]
        for images, labels in (*train, *val):
            assert images.shape[1:] == (3, resolution, resolution) and images.dtype == torch.float32
            assert images.is_contiguous(memory_format=torch.channels_last) and labels.dtype == torch.int64
        assert torch.cat([images for images, _ in train]).mean().abs() < 0.15


def test_evaluation_is_resize_and_normalise_and_nothing_else() -> None:
    data = module(32)
    images = torch.cat([data.prepare_batch(batch)[0] for batch in data.val_dataloader()])
    assert np.array_equal(data.denormalise(images), data.data.val.images[np.arange(30)])
    assert data.denormalise(images).dtype == np.uint8


def test_training_pictures_are_augmented_afresh_in_every_epoch() -> None:
    data = module(options=dataclasses.replace(OPTIONS, train_limit=10), batch_size=10)
    stored = {image.tobytes() for image in data.data.train.images[np.arange(10)]}
    loader = data.train_dataloader()
    seen = []
    for number in range(3):
        loader.sampler.set_epoch(number)  # type: ignore[attr-defined]
        (batch,) = loader
        seen += [image.tobytes() for image in data.denormalise(data.prepare_batch(batch)[0])]
    assert len(set(seen)) == 30 and len(stored & set(seen)) <= 3


def test_mean_and_std_are_those_of_the_training_pictures() -> None:
    data = module()
    pixels = data.data.train.images[np.arange(70)].reshape(-1, 3) / 255
    np.testing.assert_allclose(data.mean.numpy(), pixels.mean(0), rtol=1e-5)
    np.testing.assert_allclose(data.std.numpy(), pixels.std(0), rtol=1e-5)


def test_small_sets_are_one_batch() -> None:
    data = module(batch_size=500)
    assert [len(batch.labels) for batch in data.train_dataloader()] == [70]


def test_cam_pictures_are_the_same_for_all_arms_and_seeds() -> None:
    small, large = module(16, seed=0).cam_batch(12, 5), module(48, seed=9).cam_batch(12, 5)
    assert torch.equal(small.identities, large.identities) and torch.equal(small.labels, large.labels)
    assert small.images.shape == (12, 3, 16, 16) and large.images.shape == (12, 3, 48, 48)
    assert small.boxes is not None and large.boxes is not None
    torch.testing.assert_close(small.boxes * 3, large.boxes)
    data = module(32)
    native = data.cam_batch(12, 5)
    rows = [list(data.data.val.identities).index(identity) for identity in native.identities]
    assert np.array_equal(data.denormalise(native.images), data.data.val.images[np.array(rows)])
    assert np.array_equal(native.labels, data.data.val.labels[rows])
    assert not torch.equal(native.identities, data.cam_batch(12, 6).identities)
    with pytest.raises(ValueError, match=r"31 activation-map pictures .* 1 to 30"):
        data.cam_batch(31, 5)


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.integers(0, 3), st.data())
def test_cam_pictures_are_spread_over_the_classes(labels: list[int], seed: int, data: Any) -> None:
    array = np.array(labels, np.int64)
    count = data.draw(st.integers(1, len(labels)))
    rows = _spread(array, count, seed)
    assert len(set(rows)) == count and np.array_equal(rows, _spread(array, len(labels), seed)[:count])
    taken, there = np.bincount(array[rows], minlength=6), np.bincount(array, minlength=6)
    assert all(taken[label] >= min(there[label], taken.max() - 1) for label in range(6))


def test_streamed_and_cached_batches_are_the_same(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in "ab":
            (tmp_path / "d" / split / name).mkdir(parents=True)
            for number in range(12):
                image = np.random.default_rng(number).integers(0, 256, (24, 24, 3), np.uint8)
                Image.fromarray(image).save(tmp_path / "d" / split / name / f"{number}.png")
    seen = []
    for limit, workers in (("1GiB", 0), ("1KiB", 0), ("1KiB", 1)):
        options = DataOptions(
            "x", "folder", root=str(tmp_path / "d"), cache=str(tmp_path / limit), memory_limit=limit, workers=workers,
            val_fraction=0.25, augmentation=OPTIONS.augmentation,
        )  # fmt: skip
        data = module(20, batch_size=6, options=options)
        assert [len(batch.labels) for batch in data.open_test()] == [8, 8, 8]
        assert data.test_clusters is None  # each file is a picture of its own
        seen.append(
            (epoch(data, 3), data.fingerprint, data.mean.tolist(), data.std.tolist(), data.cam_batch(4, 0).images.sum())
        )
    assert seen[0] == seen[1] == seen[2]


def test_values_and_order_of_use_are_checked() -> None:
    with pytest.raises(ValueError, match=r"resolution=0"):
        ImageDataModule(OPTIONS, 0, 1, 1, 0)
    with pytest.raises(RuntimeError, match=r"setup"):
        ImageDataModule(OPTIONS, 32, 1, 1, 0).train_dataloader()


class Classifier(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 10)
        self.seen: list[tuple[str, tuple[int, ...]]] = []
        self.sums: list[float] = []

    def loss(self, batch: tuple[Tensor, Tensor], stage: str) -> Tensor:
        images, labels = batch
        assert images.is_contiguous(memory_format=torch.channels_last)
        self.seen.append((stage, tuple(images.shape)))
        return torch.nn.functional.cross_entropy(self.layer(images.std((2, 3))), labels)

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        self.sums.append(float(batch[0].abs().sum()))
        return self.loss(batch, "train")

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        self.loss(batch, "val")

    def test_step(self, batch: tuple[Tensor, Tensor]) -> None:
        self.loss(batch, "test")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.5)


def trainer(folder: Path, epochs: int) -> pl.Trainer:
    return pl.Trainer(
        default_root_dir=folder, max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, log_every_n_steps=1, num_sanity_val_steps=1,
    )  # fmt: skip


def test_lightning_trains_resumes_bit_identically_and_opens_test_once(tmp_path: Path) -> None:
    def run(folder: Path, epochs: int, resume: Path | None = None) -> tuple[Classifier, ImageDataModule, pl.Trainer]:
        torch.manual_seed(0)
        options = with_augmentation(policy="randaugment", resized_crop_area=(0.5, 1.0))
        model, data, loop = Classifier(), ImageDataModule(options, 20, 16, 8, 3), trainer(folder, epochs)
        loop.fit(model, datamodule=data, ckpt_path=resume)
        return model, data, loop

    whole, data, loop = run(tmp_path / "whole", 4)
    _, _, half = run(tmp_path / "half", 2)
    half.save_checkpoint(tmp_path / "half.ckpt")
    resumed, _, _ = run(tmp_path / "resumed", 4, tmp_path / "half.ckpt")
    assert torch.equal(whole.layer.weight, resumed.layer.weight) and torch.equal(whole.layer.bias, resumed.layer.bias)
    assert {shape for stage, shape in whole.seen if stage == "train"} == {(16, 3, 20, 20)}
    assert whole.seen.count(("train", (16, 3, 20, 20))) == 4 * 4
    assert len(set(whole.sums)) == 16  # Lightning did call set_epoch: no batch of an epoch comes back in another
    assert data.test_openings == 0 and data.test_clusters is None
    loop.test(whole, datamodule=data, verbose=False)
    assert data.test_openings == 1 and data.test_clusters is not None and len(data.test_clusters) == 20
    assert [shape[0] for stage, shape in whole.seen if stage == "test"] == [8, 8, 4]
    with pytest.raises(RuntimeError, match=r"opened before"):
        loop.test(whole, datamodule=data, verbose=False)
