from __future__ import annotations

import dataclasses
import math
import multiprocessing
import os
import pickle
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from src.data import sources, streaming, transforms
from src.data.module import ImageDataModule
from src.data.options import AugmentationOptions, DataOptions
from src.data.sampling import EpochBatches, RawBatch
from src.data.streaming import BrokenPictureError, FileCrops, FilePictures, Names, resized_crop

MILLION = 1_000_000


def picture(path: Path, width: int, height: int, seed: int = 0, **save: Any) -> None:
    """A smooth picture, as natural ones mostly are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8))
    coarse.resize((width, height), Image.Resampling.BICUBIC).save(path, **save)


def tree(root: Path, width: int = 50, height: int = 40, count: int = 8) -> DataOptions:
    for split in ("train", "val"):
        for label, name in enumerate("ab"):
            for number in range(count):
                seed = 100 * label + number + 1000 * (split == "val")
                picture(root / split / name / f"{number}.jpg", width, height, seed, quality=95)
    cache = str(root.parent / "cache")
    return DataOptions(
        "x", "folder", root=str(root), cache=cache, val_fraction=0.25, stored_pixels=32, memory_limit="1KiB",
        augmentation=AugmentationOptions(flip=True),
    )  # fmt: skip


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))), st.randoms())
def test_names_are_a_list_of_strings(names: list[str], random: Any) -> None:
    packed = Names.of(names)
    assert list(packed) == names and len(packed) == len(names)
    rows = [random.randrange(len(names)) for _ in range(5)] if names else []
    assert list(packed.take(np.array(rows, np.int64))) == [names[row] for row in rows]


def test_names_that_are_no_utf8_survive() -> None:
    name = os.fsdecode(b"n01/\xff\xfe.JPEG")
    assert Names.of(["a", name])[1] == name


def million() -> FilePictures:
    names = [f"n{number // 1300:08d}/n{number // 1300:08d}_{number}.JPEG" for number in range(MILLION)]
    return FilePictures(Path("/nowhere"), Names.of(names), 32)


def _private(pictures: FilePictures, answers: Any) -> None:
    """Memory that this process alone holds, before and after it has looked at every path; kB."""

    def kilobytes() -> int:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))

    before, total = kilobytes(), 0
    for row in range(0, MILLION, 10):
        total += len(pictures.names[row])
    answers.put((before, kilobytes(), total))


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="only Linux tells a process's private memory")
def test_a_million_paths_cost_a_forked_worker_nothing() -> None:
    pictures = million()
    held = sum(array.nbytes for array in pictures.names.arrays)
    assert held < 50 * MILLION
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    worker = context.Process(target=_private, args=(pictures, answers))
    worker.start()
    before, after, total = answers.get()
    worker.join()
    assert total > 20 * MILLION / 10
    assert after - before < 3_000  # kB, where a list of as many strings would cost more than 60,000


def test_a_million_paths_are_sent_to_a_spawned_worker_as_a_handle() -> None:
    pictures = million()
    for _ in range(2):
        sent = bytes(ForkingPickler.dumps(pictures))
    assert len(sent) < 10_000
    got = pickle.loads(sent)
    assert got.shape == pictures.shape and list(got.names.take(np.array([0, 7, MILLION - 1]))) == [
        pictures.names[row] for row in (0, 7, MILLION - 1)
    ]


def batches(options: DataOptions, workers: int, epoch: int = 1) -> list[Any]:
    module = ImageDataModule(dataclasses.replace(options, workers=workers), 24, 4, 3, seed=5)
    module.setup()
    train = module.train_dataloader()
    train.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
    seen = [module.prepare_batch(batch) for loader in (train, module.val_dataloader()) for batch in loader]
    return [*seen, *(module.prepare_batch(batch) for batch in module.open_test())]


def test_workers_and_memory_change_no_pixel_and_no_order(tmp_path: Path) -> None:
    streamed = tree(tmp_path / "d")
    expected = batches(dataclasses.replace(streamed, memory_limit="1GiB"), 0)
    assert len(expected) == 3 + 2 + 6
    for workers in (0, 1, 2):
        for one, two in zip(batches(streamed, workers), expected, strict=True):
            assert one[0].equal(two[0]) and one[1].equal(two[1])


def test_broken_file_is_one_sentence_with_its_path_from_a_worker_too(tmp_path: Path) -> None:
    options = tree(tmp_path / "d")
    victim = tmp_path / "d" / "val" / "b" / "3.jpg"
    victim.write_bytes(victim.read_bytes()[:300])
    for workers in (0, 1):
        module = ImageDataModule(dataclasses.replace(options, workers=workers), 24, 4, 3, seed=5)
        module.setup()
        with pytest.raises(ValueError) as caught:
            list(module.open_test())
        assert str(caught.value).startswith(f"{victim} cannot be used as a picture (") and "\n" not in str(caught.value)
        assert str(caught.value).endswith("): repair or remove it")


def test_rows_come_back_in_order_from_all_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = tree(tmp_path / "d", count=20)
    monkeypatch.setattr(streaming, "cores", lambda: 4)
    images = sources.load(options).train.images
    rows = np.random.default_rng(0).permutation(30)
    whole = images[rows]
    for place, row in enumerate(rows):
        assert np.array_equal(whole[place], images[np.array([row])][0])


@pytest.mark.parametrize(("width", "height"), [(500, 375), (375, 500), (640, 480), (1024, 300)])
@pytest.mark.parametrize("side", [64, 128, 224])
def test_decoding_at_reduced_size_stays_within_two_levels_on_average(
    tmp_path: Path, width: int, height: int, side: int
) -> None:
    path = tmp_path / "x.jpg"
    picture(path, width, height, quality=92)
    with Image.open(path) as image:
        short = min(width, height)
        left, top = (width - short) / 2, (height - short) / 2
        box = (left, top, left + short, top + short)
        expected = np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR, box=box), np.int16)
    assert np.abs(streaming.decode(path, side) - expected).mean() < 2.0


def gradient(path: Path, width: int, height: int, **save: Any) -> None:
    """Red is the column and green the row, in tenths of a pixel: where a crop lies can be read off its levels."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = np.arange(width) // 4, np.arange(height)[:, None] // 4
    Image.fromarray(pixels).save(path, **save)


@pytest.mark.parametrize("side", [32, 96, 224, 300])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize(("width", "height"), [(500, 375), (375, 500), (801, 600)])
def test_released_crop_is_the_centre_of_r_over_r_plus_32(
    tmp_path: Path, side: int, suffix: str, width: int, height: int
) -> None:
    path = tmp_path / f"x.{suffix}"
    gradient(path, width, height, **({"quality": 98, "subsampling": 0} if suffix == "jpg" else {}))
    seen = streaming.decode_released(path, side).astype(float)
    assert seen.shape == (side, side, 3)
    kept = int(side / (side + 32) * min(width, height))
    for length, levels in ((width, seen[side // 2, :, 0]), (height, seen[:, side // 2, 1])):
        start = (length - kept + 1) // 2
        centres = start + (np.arange(side) + 0.5) * kept / side - 0.5
        assert np.abs(levels * 4 + 1.5 - centres).mean() < 4  # pixels of the file: one level


def test_released_evaluation_reads_files_at_the_resolution_and_moves_boxes(tmp_path: Path) -> None:
    options = dataclasses.replace(tree(tmp_path / "d", 120, 100), evaluation="released", memory_limit="1GiB")
    lines = [f"{split},{name},{n}.jpg,35,25,84,74" for split in ("train", "val") for name in "ab" for n in range(8)]
    (tmp_path / "d" / "boxes.csv").write_text("\n".join(["split,class,file,x_min,y_min,x_max,y_max", *lines]))
    module = ImageDataModule(options, 64, 4, 5, seed=0)
    module.setup()
    train, val, test = module.data.train.images, module.data.val.images, module.data.test.open()
    assert isinstance(train, np.ndarray) and train.shape == (12, 32, 32, 3)
    assert val.shape == (4, 64, 64, 3) and test.images.shape == (16, 64, 64, 3)
    with Image.open(tmp_path / "d" / "val" / "a" / "0.jpg") as image:
        kept = int(64 / 96 * 100)
        left, top = (120 - kept + 1) // 2, (100 - kept + 1) // 2
        crop = image.crop((left, top, left + kept, top + kept)).resize((64, 64), Image.Resampling.BICUBIC)
    assert np.abs(test.images[np.array([0])][0] - np.asarray(crop, np.int16)).max() <= 1
    # the object is the middle half of the shorter side, and the crop shows the middle two thirds: three quarters of it
    shown = module.cam_batch(2, 0)
    assert shown.images.shape == (2, 3, 64, 64) and shown.boxes is not None
    assert np.allclose(shown.boxes.numpy(), [[8, 8, 56, 56]] * 2, atol=0.01)
    assert np.allclose(test.boxes, [[8, 8, 56, 56]] * 16, atol=0.01)


def test_released_evaluation_does_not_depend_on_memory(tmp_path: Path) -> None:
    options = dataclasses.replace(tree(tmp_path / "d"), evaluation="released")
    one, two = (sources.load(dataclasses.replace(options, memory_limit=limit), 24) for limit in ("1KiB", "1GiB"))
    rows = np.arange(4)
    assert np.array_equal(one.val.images[rows], two.val.images[rows]) and one.fingerprint == two.fingerprint
    whole = sources.load(dataclasses.replace(options, evaluation="whole", memory_limit="1GiB"), 24)
    assert whole.val.images.shape[1] == 32


AREA = (0.08, 1.0)
unit = st.floats(0, 1, exclude_max=True)


def test_a_resized_crop_by_hand() -> None:
    # A quarter of 400 x 300 pixels is 30,000; the middle of the aspects is 1; half of what is left lies above, no left.
    side = math.sqrt(30_000)
    expected = (0, (300 - side) / 2, side, side)
    assert resized_crop(400, 300, (0.25, 0.25), (0.9, 0.5, 0.5, 0.0)) == pytest.approx(expected)
    # All of it has its own aspect; and of a long one no more than a rectangle of 4 to 3 of full height.
    assert resized_crop(400, 300, (1.0, 1.0), (0.3, 0.7, 0.2, 0.9)) == pytest.approx((0, 0, 400, 300))
    assert resized_crop(900, 300, AREA, (1.0, 0.2, 0.6, 0.5)) == pytest.approx((250, 0, 400, 300))
    assert resized_crop(300, 900, (0.9, 1.0), (0.5, 0.2, 0.5, 0.6)) == pytest.approx((0, 250, 300, 400))


@given(st.integers(1, 3000), st.integers(1, 3000), st.tuples(unit, unit, unit, unit), st.tuples(unit, unit))
def test_resized_crops_have_the_share_that_was_drawn_and_permitted_aspects(
    width: int, height: int, numbers: tuple[float, ...], limits: tuple[float, float]
) -> None:
    area = (min(limits) + 1e-3, max(limits) + 1e-3) if max(limits) < 0.999 else AREA
    left, top, wide, high = resized_crop(width, height, area, numbers)
    assert min(left, top) >= 0 and left + wide <= width * (1 + 1e-12) and top + high <= height * (1 + 1e-12)
    assert 3 / 4 - 1e-9 <= wide / high <= 4 / 3 + 1e-9
    most = 4 / 3 * min(height / width, width / height)
    low, high_end = min(area[0], most), min(area[1], most)
    assert wide * high / (width * height) == pytest.approx(low + numbers[0] * (high_end - low), rel=1e-9)


@settings(deadline=None)
@given(st.integers(8, 600), st.integers(0, 10**6))
def test_in_squares_resized_crops_are_those_of_pictures_in_memory(side: int, seed: int) -> None:
    numbers = transforms.crop_numbers(5, seed, 2, 9)
    stored = transforms.draw_crops(5, side, (0.2, 1.0), seed, 2, 9)
    for row, (top, left, height, width) in enumerate(torch.stack(stored, 1).tolist()):
        crop = resized_crop(side, side, (0.2, 1.0), numbers[row].tolist())
        assert np.allclose(crop[2:], (width, height), atol=0.5 + 1e-6)
        assert np.allclose(crop[:2], (left, top), atol=1.5)


@pytest.mark.parametrize("side", [24, 60, 200])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_crop_is_cut_out_of_the_upright_picture_and_decoded_no_larger_than_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, orientation: int, side: int
) -> None:
    exif, path = Image.Exif(), tmp_path / "x.jpg"
    exif[streaming.ORIENTATION] = orientation
    gradient(path, 640, 480, quality=98, subsampling=0, exif=exif)
    with Image.open(path) as file:
        upright = ImageOps.exif_transpose(file).convert("RGB")
    sizes, as_rgb = [], streaming._as_rgb

    def seen(image: Image.Image) -> Image.Image:
        sizes.append(image.size)
        return as_rgb(image)

    monkeypatch.setattr(streaming, "_as_rgb", seen)
    rng = np.random.default_rng(side)
    for mirrored in (False, True):
        numbers = rng.random(4).tolist()
        left, top, wide, high = resized_crop(*upright.size, AREA, numbers)
        box = (left, top, left + wide, top + high)
        expected = np.asarray(upright.resize((side, side), Image.Resampling.BILINEAR, box=box), np.int16)
        got = streaming.decode_crop(path, side, AREA, numbers, mirrored)
        assert np.abs(got - (expected[:, ::-1] if mirrored else expected)).max() <= 2
        part = max(part for part in (1, 2, 4, 8) if part == 1 or min(wide, high) / side >= part)
        assert sizes.pop() == (640 // part, 480 // part)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (3, 2)])
def test_the_smallest_pictures_can_be_cropped(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "x.png"
    Image.new("RGB", size, (9, 8, 7)).save(path)
    for numbers in ((0.0, 0.0, 0.0, 0.0), (0.999, 0.999, 0.999, 0.999)):
        assert (streaming.decode_crop(path, 8, AREA, numbers) == (9, 8, 7)).all()


def test_sizes_of_turned_files_are_those_of_the_decoded_pictures(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[streaming.ORIENTATION] = 6
    for suffix in ("jpg", "png", "tif", "webp"):
        Image.new("RGB", (40, 20)).save(tmp_path / f"x.{suffix}", exif=exif)
        assert streaming.size(tmp_path / f"x.{suffix}") == (20, 40), suffix


def cropping(options: DataOptions, **augmentation: Any) -> DataOptions:
    crops = AugmentationOptions(**{"crop_padding": 0.0, "flip": True, "resized_crop_area": AREA, **augmentation})
    return dataclasses.replace(options, augmentation=crops)


def loaded(options: DataOptions, resolution: int = 24, batch_size: int = 4) -> ImageDataModule:
    module = ImageDataModule(options, resolution, batch_size, 3, seed=5)
    module.setup()
    return module


def raw(module: ImageDataModule, epoch: int = 1, done: int = 0) -> list[RawBatch]:
    train = module.train_dataloader()
    assert isinstance(train.sampler, EpochBatches)
    train.sampler.resume(epoch, done)
    return list(train)


def test_a_training_picture_of_a_file_is_cropped_and_mirrored_once(tmp_path: Path) -> None:
    """Against Pillow on the whole file; what follows then is normalisation alone."""
    module = loaded(cropping(tree(tmp_path / "d")))
    files = module.data.train.images
    assert isinstance(files, FilePictures)
    train = module.train_dataloader()
    (plan, *_), (batch, *_) = list(train.sampler), list(train)
    numbers = transforms.crop_numbers(4, plan.seed, plan.first, plan.whole).tolist()
    flip = transforms.draw(4, 24, module.options.augmentation, plan.seed, plan.first, plan.whole).flip.tolist()
    for place, row in enumerate(plan.rows):
        with Image.open(files.folder / files.names[row]) as image:
            left, top, wide, high = resized_crop(*image.size, AREA, numbers[place])
            box = (left, top, left + wide, top + high)
            picture = image.resize((24, 24), Image.Resampling.BILINEAR, box=box)
            expected = np.asarray(ImageOps.mirror(picture) if flip[place] else picture)
        assert np.array_equal(batch.images[place], expected)
        assert np.abs(files[np.array([row])][0].mean((0, 1)) - expected.mean((0, 1))).max() > 1  # another cut than that
    assert np.array_equal(module.denormalise(module.prepare_batch(batch)[0]), batch.images)


def test_the_rest_of_the_augmentation_follows_and_crops_and_mirrors_no_more(tmp_path: Path) -> None:
    rest: dict[str, Any] = {"policy": "randaugment", "erasing": 0.9, "crop_padding": 0.1}
    module = loaded(cropping(tree(tmp_path / "d"), **rest))
    fill = (module.mean * 255).round().to(torch.uint8)
    for batch in raw(module):
        assert batch.cropped
        expected = transforms.train_pictures(
            batch.images, fill, AugmentationOptions(**rest), batch.seed, batch.first, batch.whole
        )
        assert not torch.equal(expected, batch.images)
        assert np.array_equal(module.denormalise(module.prepare_batch(batch)[0]), expected)


def test_every_picture_of_a_batch_has_its_own_crop_and_mirror(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name in "ab":
            (tmp_path / "d" / split / name).mkdir(parents=True)
            for number in range(16):
                gradient(tmp_path / "d" / split / name / f"{number}.png", 200, 160)
    options = DataOptions(
        "x", "folder", root=str(tmp_path / "d"), cache=str(tmp_path), stored_pixels=32, memory_limit="1KiB"
    )
    module = loaded(cropping(options, resized_crop_area=(0.2, 0.9)), 24, 28)
    (first,), (second,) = raw(module, 0), raw(module, 1)
    assert len({picture.numpy().tobytes() for batch in (first, second) for picture in batch.images}) == 56
    falling = first.images[:, :, 0, 0].float().mean(1) > first.images[:, :, -1, 0].float().mean(1)
    flip = transforms.draw(28, 24, module.options.augmentation, first.seed, first.first, first.whole).flip
    assert torch.equal(falling, flip) and 5 < int(flip.sum()) < 23
    still = loaded(cropping(options, resized_crop_area=(0.2, 0.9), flip=False), 24, 28)
    assert all((batch.images[:, :, 0, 0] <= batch.images[:, :, -1, 0]).all() for batch in raw(still))


def test_crops_are_the_same_in_every_layout_and_where_a_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = cropping(tree(tmp_path / "d"), policy="randaugment", erasing=0.5)

    def seen(workers: int = 0, world: int = 1, parts: int = 1, done: int = 0) -> list[bytes]:
        ranks = []
        for rank in range(world):
            module = loaded(dataclasses.replace(options, workers=workers), batch_size=5)
            module.parts = parts
            monkeypatch.setattr(module, "_rank", lambda rank=rank: (rank, world))
            ranks.append([module.prepare_batch(batch) for batch in raw(module, 2, done)])
        pieces = [piece for step in zip(*ranks, strict=True) for piece in step]
        return [part.tobytes() for images, _ in pieces for part in images.contiguous().numpy()]

    whole = seen()
    assert len(whole) == 10 == len(set(whole))
    assert seen(workers=1) == seen(workers=2) == seen(world=2) == seen(parts=3) == seen(1, 2, 2) == whole
    assert seen(workers=1, done=1) == whole[5:]


def test_crops_are_made_at_the_resolution_but_not_above_the_stored_side(tmp_path: Path) -> None:
    options = cropping(tree(tmp_path / "d", 120, 90))
    modules = [loaded(options, resolution) for resolution in (16, 32, 48)]
    small, stored, large = ([batch.images for batch in raw(module)] for module in modules)
    assert [images[0].shape[1] for images in (small, stored, large)] == [16, 32, 32]
    assert all(map(torch.equal, stored, large))
    for one, two in zip(small, stored, strict=True):  # all arms of a study see the same crops
        assert (transforms.resize(two, 16).int() - one.int()).abs().float().mean() < 8
    (batch, *_) = raw(modules[2])
    assert modules[2].prepare_batch(batch)[0].shape == (4, 3, 48, 48)


def test_evaluation_statistics_and_pictures_in_memory_know_nothing_of_crops_of_files(tmp_path: Path) -> None:
    plain = tree(tmp_path / "d")
    streamed, stored = loaded(cropping(plain)), loaded(dataclasses.replace(cropping(plain), memory_limit="1GiB"))
    assert torch.equal(streamed.mean, stored.mean) and torch.equal(streamed.std, stored.std)
    for one, two in zip(streamed.val_dataloader(), stored.val_dataloader(), strict=True):
        assert torch.equal(one.images, two.images) and not one.cropped
    assert torch.equal(streamed.cam_batch(3, 0).images, stored.cam_batch(3, 0).images)
    (batch, *_), fill = raw(stored), (stored.mean * 255).round().to(torch.uint8)
    assert not batch.cropped and batch.images.ndim == 1
    images = torch.from_numpy(stored.data.train.images[batch.images.numpy()])
    asked = stored.options.augmentation
    expected = transforms.train_pictures(images, fill, asked, batch.seed, batch.first, batch.whole)
    assert torch.equal(stored.prepare_batch(batch)[0], stored.prepare_batch(RawBatch(expected, batch.labels))[0])
    assert streamed.fingerprint != stored.fingerprint  # reports refuse to compare the two
    assert loaded(plain).fingerprint == stored.fingerprint


def test_crops_are_sent_to_a_spawned_worker(tmp_path: Path) -> None:
    crops = loaded(cropping(tree(tmp_path / "d")))._source
    assert crops is not None and isinstance(crops.images, FileCrops)
    rows, numbers = np.array([0, 3]), np.random.default_rng(0).random((2, 4))
    got = pickle.loads(bytes(ForkingPickler.dumps(crops.images)))
    turns = np.array([True, False])
    assert np.array_equal(got.cropped(rows, numbers, turns), crops.images.cropped(rows, numbers, turns))


def test_a_broken_file_is_named_where_it_is_cropped(tmp_path: Path) -> None:
    options = cropping(dataclasses.replace(tree(tmp_path / "d"), workers=1))
    module = loaded(options)
    victim = tmp_path / "d" / "train" / "b" / "3.jpg"
    for file in victim.parent.iterdir():
        file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"train/b/\d.jpg cannot be used as a picture \(.*\): repair or remove it$"):
        raw(module)


def test_worker_count(monkeypatch: pytest.MonkeyPatch) -> None:
    files, stored = FilePictures(Path("/x"), Names.of(["a"]), 512), np.zeros((1, 32, 32, 3), np.uint8)
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    monkeypatch.setattr(streaming.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 2**40}))
    assert streaming.worker_count(None, files, 256) == 6
    assert streaming.worker_count(None, stored, 256) == 0
    assert [streaming.worker_count(asked, files, 256) for asked in (0, 3)] == [0, 3]
    if streaming.SHARED_MEMORY.is_dir():
        # a batch of 256 squares of 512 px is 201 MB, and a worker may have three of them: two fill 1.2 of 2.5 GB
        monkeypatch.setattr(streaming.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 2_500_000_000}))
        assert streaming.worker_count(None, files, 256) == 2
        monkeypatch.setattr(streaming.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 64_000_000}))
        assert streaming.worker_count(None, files, 256) == 1


def test_unused_fields_are_refused() -> None:
    with pytest.raises(ValueError, match=r"data.evaluation='centre' is unknown"):
        DataOptions("x", "folder", root="d", evaluation="centre")
    with pytest.raises(ValueError, match=r"data.evaluation=released needs data.kind=folder, not cifar10"):
        DataOptions("x", "cifar10", evaluation="released")


def test_errors_survive_pickling() -> None:
    error = pickle.loads(pickle.dumps(BrokenPictureError("/a/b.jpg cannot be used")))
    assert str(error) == "/a/b.jpg cannot be used" and isinstance(error, ValueError)
