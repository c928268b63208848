"""The kernel that makes network input of pictures against plain torch, to the bit, and against float64."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader, Dataset

from src.kernels import library, pictures
from src.kernels.pictures import Moves

ROOT = Path(__file__).resolve().parents[2]
# Where there is a library, and it is wrong, the tests fail.
gone = pictures.load() is None and "disagrees" not in pictures.why_not()
pytestmark = pytest.mark.skipif(gone, reason=f"no kernel here: {pictures.why_not()}")
FILL = torch.tensor([9, 8, 7], dtype=torch.uint8)
DTYPES = st.sampled_from([torch.float32, torch.bfloat16])


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """The number of threads that a test sets is its own."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def drawn(count: int, side: int, seed: int = 0) -> Tensor:
    """Noise in the first half of the pictures, black and white in the others."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, side, side, 3), np.uint8)
    images[count // 2 :] = images[count // 2 :] // 128 * 255
    return torch.from_numpy(images)


def lines(resolution: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Scale and offset as of means and standard deviations in [0.01, 1]."""
    mean, std = (0.01 + 0.99 * torch.rand(2, 3, generator=torch.Generator().manual_seed(seed))).unbind(0)
    return (1 / (255 * std)).repeat(resolution), (mean / std).repeat(resolution)


def shifts(count: int, side: int, seed: int = 0) -> Moves:
    """Shifts up to the side, mirrors and rectangles, half of these of height 0."""
    rng = np.random.default_rng([1, seed])
    down, right = rng.integers(1 - side, side, (2, count))
    top, left = rng.integers(0, side, (2, count))
    height = rng.integers(0, side - top + 1) * rng.integers(0, 2, count)
    width = rng.integers(0, side - left + 1)
    flip = torch.from_numpy(rng.random(count) < 0.5)
    return Moves(*map(torch.from_numpy, (down, right)), flip, *map(torch.from_numpy, (top, left, height, width)), FILL)


def moved(images: NDArray[np.uint8], moves: Moves) -> NDArray[np.uint8]:
    """By numpy's padding, picture by picture."""
    side, result = images.shape[1], images.copy()
    for row, picture in enumerate(images):
        down, right, flip, top, left, height, width = (int(field[row]) for field in moves[:7])
        reach = side - 1
        padded = np.pad(picture, ((reach, reach), (reach, reach), (0, 0)), mode="reflect") if reach else picture
        picture = padded[reach + down :, reach + right :][:side, :side]
        result[row] = picture[:, ::-1] if flip else picture
        result[row, top : top + height, left : left + width] = moves.fill.numpy()
    return result


def plain(
    images: Tensor, resolution: int, scale: Tensor, offset: Tensor, dtype: torch.dtype, moves: Moves | None = None
) -> Tensor:
    """By torch's resize, and float32 without a fused product and sum."""
    if moves is not None:
        images = torch.from_numpy(moved(images.numpy(), moves))
    if images.shape[1] != resolution:
        # A picture more, because torch takes one picture of one pixel for another order in memory, and fails.
        planes = torch.cat([images, images[:1]]).permute(0, 3, 1, 2)
        size = (resolution, resolution)
        resized = interpolate(planes, size=size, mode="bilinear", antialias=True, align_corners=False)
        images = resized[:-1].permute(0, 2, 3, 1)
    product = images.reshape(len(images), resolution, -1).numpy().astype(np.float32) * scale.numpy()
    levels = torch.from_numpy(product - offset.numpy()).view(len(images), resolution, resolution, 3)
    return levels.permute(0, 3, 1, 2).to(dtype)


def same(got: Tensor, expected: Tensor) -> bool:
    """The same numbers of the same type, in channels-last order."""
    return got.dtype == expected.dtype and torch.equal(got, expected) and got.permute(0, 2, 3, 1).is_contiguous()


@settings(deadline=None, max_examples=150)
@given(st.integers(1, 40), st.integers(1, 70), st.integers(1, 5), DTYPES, st.booleans(), st.integers(0, 999))
def test_every_bit_is_that_of_plain_torch(
    side: int, resolution: int, count: int, dtype: torch.dtype, moves: bool, seed: int
) -> None:
    images, (scale, offset) = drawn(count, side, seed), lines(resolution, seed)
    asked = shifts(count, side, seed) if moves else None
    got = pictures.network_input(images, resolution, scale, offset, dtype, asked)
    assert same(got, plain(images, resolution, scale, offset, dtype, asked))


@pytest.mark.parametrize("side", [1, 2, 32, 64, 97, 256])
def test_usual_and_extreme_sides(side: int) -> None:
    images = drawn(2, side)
    for resolution in (1, 2, 3, 31, 32, 44, 64, 96, 150, 224, 256, 300):
        scale, offset = lines(resolution)
        got = pictures.network_input(images, resolution, scale, offset)
        assert same(got, plain(images, resolution, scale, offset, torch.float32)), resolution


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
# The last three batches are larger than 32 MiB in float32 and, but for 120 px, in bfloat16: written past the caches.
@pytest.mark.parametrize(
    ("count", "side", "resolution"),
    [(37, 32, 64), (64, 32, 32), (33, 64, 44), (120, 32, 225), (224, 32, 120), (115, 16, 224)],
)
def test_bits_do_not_depend_on_threads(count: int, side: int, resolution: int, dtype: torch.dtype) -> None:
    images, moves, (scale, offset) = drawn(count, side), shifts(count, side), lines(resolution)
    expected = plain(images, resolution, scale, offset, dtype, moves)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        assert same(pictures.network_input(images, resolution, scale, offset, dtype, moves), expected)


def triangle(side: int, resolution: int) -> NDArray[np.float64]:
    """The antialiased bilinear resize as a matrix (r, S), by its definition."""
    step = side / resolution
    distance = np.abs((np.arange(resolution)[:, None] + 0.5) * step - (np.arange(side) + 0.5))
    weights = np.maximum(1 - distance / max(step, 1), 0)
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize(("side", "resolution"), [(32, 64), (32, 45), (64, 33), (33, 20), (100, 7)])
def test_levels_are_those_of_float64_to_one(side: int, resolution: int) -> None:
    images, one, none = drawn(4, side), torch.ones(3 * resolution), torch.zeros(3 * resolution)
    got = pictures.network_input(images, resolution, one, none).permute(0, 2, 3, 1).double().numpy()
    matrix = triangle(side, resolution)
    exact = np.einsum("ys,xt,bstc->byxc", matrix, matrix, images.numpy().astype(np.float64))
    assert np.array_equal(got, got.round()) and np.abs(got - exact).max() < 1.01
    assert np.abs(got - exact).mean() < 0.4  # of two roundings, each uniform within half a level: 1/3


def test_rows_of_a_set_are_the_batch() -> None:
    images, rows, (scale, offset) = drawn(50, 16), torch.tensor([7, 7, 0, 49, 13]), lines(24)
    for moves in (None, shifts(5, 16)):
        got = pictures.network_input(images, 24, scale, offset, rows=rows, moves=moves)
        assert same(got, plain(images[rows], 24, scale, offset, torch.float32, moves))
    assert pictures.network_input(images, 24, scale, offset, rows=rows[:0]).shape == (0, 3, 24, 24)


def test_pictures_may_lie_anyhow_in_memory() -> None:
    images, (scale, offset) = drawn(8, 40), lines(30)
    for view in (images[::2, ::2, ::2], images.transpose(1, 2), images[:, 3:20, 5:22], images.flip(3)[:, :9, :9]):
        expected = plain(view.contiguous(), 30, scale, offset, torch.float32)
        assert same(pictures.network_input(view, 30, scale, offset), expected)
        rows = torch.tensor([3, 0, 1, 0, 2, 0])[::2]
        assert same(pictures.network_input(view, 30, scale, offset, rows=rows), expected[rows])
    fields = shifts(16, 40)
    moves = Moves(*(field[::2] for field in fields[:7]), FILL)
    wide = torch.stack([scale, offset], 1)
    got = pictures.network_input(images, 30, *wide.unbind(1), moves=moves)
    assert same(got, plain(images, 30, scale, offset, torch.float32, moves))


def test_bfloat16_of_ties_and_of_what_is_no_number() -> None:
    images = torch.arange(256, dtype=torch.uint8).repeat(3).view(3, 16, 16).permute(1, 2, 0)[None]
    scale = torch.tensor([1 + 2**-8, 2**-126, float("inf")]).repeat(16)  # ties; subnormals; 0 * inf
    got = pictures.network_input(images, 16, scale, torch.zeros(48), torch.bfloat16)
    with np.errstate(invalid="ignore"):
        expected = plain(images, 16, scale, torch.zeros(48), torch.bfloat16)
    assert got.isnan().sum() == 1 and torch.equal(got.nan_to_num(1.0), expected.nan_to_num(1.0))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"images": torch.zeros(2, 8, 9, 3, dtype=torch.uint8)}, ValueError, "square uint8"),
        ({"images": torch.zeros(2, 8, 8, 3)}, ValueError, "float32"),
        ({"dtype": torch.float16}, ValueError, "plain torch"),
        ({"scale": torch.ones(15)}, ValueError, "scale and offset"),
        ({"rows": torch.tensor([0, 1], dtype=torch.int32)}, ValueError, "rows must be"),
        ({"rows": torch.tensor([0, 2])}, IndexError, "outside"),
        ({"rows": torch.tensor([-1, 0])}, IndexError, "outside"),
        ({"down": torch.tensor([0, 8])}, IndexError, "outside"),
        ({"right": torch.tensor([-8, 0])}, IndexError, "outside"),
        ({"left": torch.tensor([5, 0]), "width": torch.tensor([4, 0])}, IndexError, "outside"),
        ({"flip": torch.zeros(2)}, ValueError, "flip must be"),
        ({"top": torch.zeros(3, dtype=torch.int64)}, ValueError, "top must be"),
    ],
)
def test_what_cannot_be_read_is_refused(change: dict[str, Tensor], error: type[Exception], message: str) -> None:
    given = {"images": drawn(2, 8), "scale": torch.ones(18), "offset": torch.zeros(18), "dtype": torch.float32}
    moves = shifts(2, 8)._asdict()
    asked = {name: change.get(name, value) for name, value in (given | moves | {"rows": None}).items()}
    fields = Moves(**{name: asked.pop(name) for name in moves})
    with pytest.raises(error, match=message):
        pictures.network_input(**asked, resolution=6, moves=fields)


def test_takes_what_the_kernel_can_read() -> None:
    images = drawn(2, 8)
    assert pictures.takes(images, torch.float32) and pictures.takes(images[:, ::2, ::2], torch.bfloat16)
    assert not pictures.takes(images, torch.float16) and not pictures.takes(images[:0], torch.float32)
    assert not pictures.takes(images[:, :7], torch.float32) and not pictures.takes(images.float(), torch.float32)
    assert not pictures.takes(images.to("meta"), torch.float32)


class Kept(Dataset[Tensor]):
    """Makes network input where it is asked for it."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, row: int) -> Tensor:
        return pictures.network_input(drawn(16, 32, row), 64, *lines(64))


def test_a_forked_worker_does_not_wait_for_threads_that_it_has_not() -> None:
    here = [Kept()[row] for row in range(4)]  # on two threads: their pool does not live on in a fork
    there = DataLoader(Kept(), batch_size=None, num_workers=2, timeout=60, multiprocessing_context="fork")
    assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))


def test_the_check_notices_a_wrong_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pictures._disagreement() == ""
    right = pictures.call

    def wrong(name: str, *arguments: object) -> None:
        right(name, *arguments)
        result = arguments[-2]
        assert isinstance(result, Tensor)
        if result.shape[1] == 45 and result.dtype == torch.bfloat16:
            result.view(torch.int16)[-1, -1, -1, -1] ^= 1

    monkeypatch.setattr(pictures, "call", wrong)
    assert pictures._disagreement() == "pictures of 32 px resized to 45, torch.bfloat16"


def with_library(monkeypatch: pytest.MonkeyPatch, cache: Path, *flags: str) -> None:
    """Another library of the same source, compiled into an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    other = library.Library("pictures.c", flags, pictures.LIBRARY.signatures)
    for name, value in (("LIBRARY", other), ("call", other.call), ("why_not", other.why_not)):
        monkeypatch.setattr(pictures, name, value)


@pytest.mark.skipif(" fma " not in Path("/proc/cpuinfo").read_text(), reason="no fused product and sum here")
def test_a_library_that_rounds_once_where_torch_rounds_twice_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with_library(monkeypatch, tmp_path, "-ffp-contract=fast")
    assert pictures.load() is None
    assert pictures.why_not().startswith("it disagrees with torch: pictures of 9 px resized to 21")
    with pytest.raises(ValueError, match="use plain torch"):
        pictures.network_input(drawn(2, 8), 6, *lines(6))


PROGRAM = """
import torch
from src.data import transforms
from src.kernels import pictures
batch = transforms.Unmoved(torch.arange(192, dtype=torch.uint8).view(1, 8, 8, 3))
made = transforms.network_input(batch, torch.zeros(3, dtype=torch.uint8), 5, torch.ones(15), torch.ones(15))
print(pictures.load() is not None, pictures.why_not() or "-", float(made.sum()), sep="|")
"""


def report(**environment: str) -> list[str]:
    """What another process says of the library, and of what it made."""
    variables = {**os.environ, **environment}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env=variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout.strip().split("|")


def test_without_a_compiler_or_by_the_switch_it_is_plain_torch(tmp_path: Path) -> None:
    there, why, total = report()
    assert (there, why) == ("True", "-")
    assert report(PATH=str(tmp_path), XDG_CACHE_HOME=str(tmp_path)) == [
        "False",
        "no C compiler (cc, gcc or clang) on the path",
        total,
    ]
    assert report(SCALESTUDY_NATIVE="0") == ["False", "SCALESTUDY_NATIVE=0", total]


@pytest.mark.slow  # compiles for each
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="instruction sets of x86-64")
@pytest.mark.parametrize("level", ["plain C", "x86-64", "x86-64-v2", "x86-64-v3", "x86-64-v4"])
def test_narrower_processors_compute_the_same(level: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if level == "x86-64-v4" and "avx512bw" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("this processor has no AVX-512")
    flags = ("-U__SSE2__",) if level == "plain C" else (f"-march={level}",)
    monkeypatch.setattr(library, "machine_flags", lambda: flags)
    with_library(monkeypatch, tmp_path, "-ffp-contract=off")
    assert pictures.load() is not None, pictures.why_not()
    for count, side, resolution in ((3, 33, 20), (3, 20, 33), (3, 17, 17), (115, 16, 224), (115, 16, 225)):
        for dtype in (torch.float32, torch.bfloat16):
            images, moves, (scale, offset) = drawn(count, side), shifts(count, side), lines(resolution)
            got = pictures.network_input(images, resolution, scale, offset, dtype, moves)
            assert same(got, plain(images, resolution, scale, offset, dtype, moves)), (side, resolution, dtype)
