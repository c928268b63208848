"""Pictures that stay in their files: a compact list of paths, decoding to squares or crops, how many processes decode.

A tree that does not fit in memory is read by DataLoader workers, a whole batch each, in the order that the samplers
give. Squares are bit for bit what the in-memory path stores; random resized crops are made while decoding, straight
from the file. Free of torch, so that facts need none: random numbers come from whoever asks.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from src.data.options import AugmentationOptions
from src.data.splits import ImageData, ImageSplit, Pictures, SealedSplit

ORIENTATION = 0x0112  # EXIF tag
CROP_LOG_ASPECT = math.log(4 / 3)  # of resized crops; Szegedy et al. 2015 (arXiv 1409.4842), section 6
CROP_PADDING = 32  # pixels; tensorflow/tpu, models/official/efficientnet/preprocessing.py
PREFETCHED = 2  # batches that a DataLoader worker holds ready (its default)
SHARED_MEMORY = Path("/dev/shm")  # where workers leave their batches, on Linux


class BrokenPictureError(ValueError):
    """A file that cannot be used as a picture, in one sentence that names it.

    A DataLoader builds a worker's exception anew around the worker's traceback; its last line is the sentence.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence.rstrip().rpartition(f"{type(self).__name__}: ")[2])


class Names:
    """Relative paths as one buffer of bytes and the places where they end.

    A million strings are a million objects, whose reference counts every worker would write to, and so copy, page by
    page; two arrays are never written to.
    """

    def __init__(self, text: NDArray[np.uint8], ends: NDArray[np.int64]) -> None:
        self.text, self.ends = text, ends

    @staticmethod
    def of(names: Iterable[str]) -> Names:
        """Pack strings."""
        encoded = [os.fsencode(name) for name in names]
        ends = np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded)))
        return Names(np.frombuffer(b"".join(encoded), np.uint8), ends)

    @property
    def arrays(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """What it is made of."""
        return self.text, self.ends

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, row: int | np.int64) -> str:
        return os.fsdecode(self.text[self.ends[row - 1] if row else 0 : self.ends[row]].tobytes())

    def __iter__(self) -> Iterator[str]:
        return map(self.__getitem__, range(len(self)))

    def take(self, rows: NDArray[np.int64]) -> Names:
        """Some of them, in that order."""
        whole, starts = self.text.data, np.concatenate([[0], self.ends[:-1]])
        pieces = [whole[start:end] for start, end in zip(starts[rows].tolist(), self.ends[rows].tolist(), strict=True)]
        return Names(np.frombuffer(b"".join(pieces), np.uint8), np.cumsum((self.ends - starts)[rows]))


class FilePictures:
    """Pictures decoded anew each time they are asked for: by all cores, or by this one alone in a worker process.

    Args:
        folder: where the files are.
        names: their paths below it.
        side: of the squares, pixels.
        released: decode the released evaluation crop for networks of `side` pixels, not the whole centre square.
    """

    def __init__(self, folder: Path, names: Names, side: int, *, released: bool = False) -> None:
        self.folder, self.names, self.released = folder, names, released
        self.shape = (len(names), side, side, 3)
        self._shared: list[Any] | None = None

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        read = decode_released if self.released else decode
        return self._batch(rows, lambda place, path: read(path, self.shape[1]))

    def _batch(self, rows: NDArray[np.int64], read: Callable[[int, str], NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """What `read` makes of each place of a batch and the path of its file."""
        pictures = np.empty((len(rows), *self.shape[1:]), np.uint8)

        def fill(place: int) -> None:
            pictures[place] = read(place, f"{self.folder}{os.sep}{self.names[rows[place]]}")

        if multiprocessing.parent_process() is not None or len(rows) == 1:
            for place in range(len(rows)):
                fill(place)
        else:
            with ThreadPoolExecutor(cores()) as pool:
                for _ in pool.map(fill, range(len(rows))):
                    pass
        return pictures

    def at(self, side: int) -> FilePictures:
        """The same files for another side."""
        return FilePictures(self.folder, self.names, side, released=self.released)

    def __getstate__(self) -> dict[str, Any]:
        """Where workers are not forked (macOS, Python 3.14) they are sent the list: as shared memory, not as copies."""
        import torch

        if self._shared is None:
            self._shared = [torch.from_numpy(array.copy()).share_memory_() for array in self.names.arrays]
        return {**self.__dict__, "names": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, names=Names(*(tensor.numpy() for tensor in state["_shared"])))


class FileCrops(FilePictures):
    """Files of which a training batch shows random resized crops, mirrored or not, made while they are decoded.

    A crop is cut out of the whole picture, not of its centre square, and resized once, from the file to `side`.

    Args:
        files: the pictures.
        side: of the crops, pixels.
        options: their `resized_crop_area` and `flip` are what is done here.
    """

    def __init__(self, files: FilePictures, side: int, options: AugmentationOptions) -> None:
        super().__init__(files.folder, files.names, side)
        self.options = options

    def cropped(
        self, rows: NDArray[np.int64], numbers: NDArray[np.float64], mirrored: NDArray[np.bool_]
    ) -> NDArray[np.uint8]:
        """Crops of some of the pictures, uint8 (B, side, side, 3).

        Args:
            rows: which, int64 (B,).
            numbers: in [0, 1), (B, 4): what `resized_crop` makes a crop of.
            mirrored: which of them are turned left to right, bool (B,).
        """
        draws, turns = numbers.tolist(), mirrored.tolist()  # plain numbers are many times faster one by one
        side, area = self.shape[1], self.options.resized_crop_area
        return self._batch(rows, lambda place, path: decode_crop(path, side, area, draws[place], turns[place]))


def trained_at(split: ImageSplit, options: AugmentationOptions, resolution: int) -> ImageSplit:
    """Let random resized crops of a training split that stays in its files be made by those who read them.

    They are made at a network's resolution, or at the stored side where that is smaller: no crop holds more than the
    stored side promises, and what is done to it costs no more than the network sees. A crop has no box. Other splits
    are returned as they are.

    Args:
        split: of training.
        options: augmentation.
        resolution: side of the network's input, pixels.
    """
    files = split.images
    if not (isinstance(files, FilePictures) and options.resized_crop_area):
        return split
    crops = FileCrops(files, min(resolution, files.shape[1]), options)
    return ImageSplit(crops, split.labels, None, split.identities)


def evaluated_at(data: ImageData, resolution: int) -> ImageData:
    """Give validation and test the released evaluation crop at a network's resolution, where their files are read so.

    The crop is the centre square of resolution / (resolution + 32) of the shorter side; boxes move along. Other data
    are returned as they are.

    Args:
        data: all splits.
        resolution: side of the network's input, pixels.
    """
    if not (isinstance(data.val.images, FilePictures) and data.val.images.released):
        return data
    test = data.test
    return ImageData(
        data.facts,
        data.train,
        _cropped(data.val, resolution),
        SealedSplit(test.size, lambda: _cropped(test.open(), resolution)),
        data.fingerprint,
    )


def _cropped(split: ImageSplit, resolution: int) -> ImageSplit:
    assert isinstance(split.images, FilePictures)
    boxes, side = split.boxes, split.images.shape[1]
    if boxes is not None:
        share = resolution / (resolution + CROP_PADDING)
        moved = np.clip((boxes / side - (1 - share) / 2) / share, 0, 1) * resolution
        moved[(moved[:, 2:] <= moved[:, :2]).any(1)] = np.nan
        boxes = moved.astype(np.float32)
    return ImageSplit(split.images.at(resolution), split.labels, boxes, split.identities)


def worker_count(asked: int | None, images: Pictures, batch: int) -> int:
    """DataLoader processes for a split.

    Args:
        asked: `data.workers`; None: decide. Pictures in memory need none. Files get one for each core that this arm
            has, fewer where the batches that workers hold ready would take more than half of the shared memory.
        images: the split's pictures.
        batch: pictures a batch.
    """
    if asked is not None:
        return asked
    if not isinstance(images, FilePictures):
        return 0
    room = shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else 2**63
    held = (PREFETCHED + 1) * batch * int(np.prod(images.shape[1:]))
    return max(1, min(cores(), room // 2 // held))


def cores() -> int:
    """Cores this process may use: what its sweep gave it, or all."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdigit() and int(given) > 0:
        return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def decode(path: str | Path, side: int) -> NDArray[np.uint8]:
    """One file as an RGB square, uint8 (side, side, 3): the centre square, bilinear with antialiasing.

    A JPEG at least twice as large as needed is decoded at 1/2, 1/4 or 1/8 of its size, never below what is needed. That
    is sharper than the filter: levels move by less than 2 of 255 on average in smooth pictures, by 2 to 7 where all is
    detail (benchmarks/streaming.py).

    Raises:
        BrokenPictureError: the file is broken or holds more than 8 bits a channel; names it.
    """
    with opened(path) as image:
        image.draft(None, (side, side))
        picture = _as_rgb(image)
        if picture.size != (side, side):
            width, height = picture.size
            short = min(width, height)
            left, top = (width - short) / 2, (height - short) / 2
            box = (left, top, left + short, top + short)
            picture = picture.resize((side, side), Image.Resampling.BILINEAR, box=box)
        return np.asarray(picture)


def decode_released(path: str | Path, side: int) -> NDArray[np.uint8]:
    """The released EfficientNets' evaluation crop as an RGB square, uint8 (side, side, 3).

    Of a picture whose shorter side is m, the centre square of floor(m side / (side + 32)) pixels, bicubic (tensorflow/
    tpu, models/official/efficientnet/preprocessing.py, `_decode_and_center_crop`). Pillow's bicubic filter widens with
    the reduction; TensorFlow's does not, so levels differ from theirs where a picture is made smaller.

    Raises:
        BrokenPictureError: as in `decode`.
    """
    with opened(path) as image:
        short = min(image.size)
        kept = max(1, int(side / (side + CROP_PADDING) * short))
        image.draft(None, (-(-image.width * side // kept), -(-image.height * side // kept)))
        picture = _as_rgb(image)
        scale = min(picture.size) / short  # below 1 where the JPEG was decoded smaller
        left, top = ((round(length / scale) - kept + 1) // 2 * scale for length in picture.size)
        box = (left, top, min(left + kept * scale, picture.width), min(top + kept * scale, picture.height))
        if scale == 1:  # cut first, as the released code does: the filter must not see beyond the crop
            picture, box = picture.crop((int(left), int(top), int(left) + kept, int(top) + kept)), (0, 0, kept, kept)
        return np.asarray(picture.resize((side, side), Image.Resampling.BICUBIC, box=box))


def decode_crop(
    path: str | Path, side: int, area: Sequence[float], numbers: Sequence[float], mirrored: bool = False
) -> NDArray[np.uint8]:
    """A resized crop of one file as an RGB square, uint8 (side, side, 3): bilinear with antialiasing.

    A JPEG whose crop is at least twice as large as needed is decoded at 1/2, 1/4 or 1/8 of its size, never so that the
    crop has fewer than `side` pixels either way; see `decode` for what that changes. At the border of the crop the
    filter sees what lies beyond it in the picture.

    Args:
        path: the file.
        side: pixels.
        area, numbers: as in `resized_crop`.
        mirrored: left to right.

    Raises:
        BrokenPictureError: as in `decode`.
    """
    with opened(path) as image:
        width, height = _upright_size(image)
        left, top, wide, high = resized_crop(width, height, area, numbers)
        if min(wide, high) >= 2 * side:
            least = (math.ceil(width * side / wide), math.ceil(height * side / high))
            image.draft(None, least if image.size == (width, height) else least[::-1])
        picture = _as_rgb(image)
        across, down = picture.width / width, picture.height / height  # below 1 where the JPEG was decoded smaller
        right, bottom = min((left + wide) * across, picture.width), min((top + high) * down, picture.height)
        box = (left * across, top * down, right, bottom)
        picture = picture.resize((side, side), Image.Resampling.BILINEAR, box=box)
        return np.asarray(picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else picture)


def resized_crop(
    width: int, height: int, area: Sequence[float], numbers: Sequence[float]
) -> tuple[float, float, float, float]:
    """Left, top, width and height of a resized crop of a picture, in its pixels, not rounded (Szegedy et al. 2015).

    Its share of the picture lies within `area`, uniform, and so does the log of its aspect within 3/4 to 4/3; both are
    uniform over what fits, where torchvision's RandomResizedCrop draws again. A picture so long that no crop of such a
    share and aspect fits gives the largest of such an aspect. In squares it is `transforms.draw_crops`, but for whole
    pixels.

    Args:
        width, height: of the picture, pixels.
        area: smallest and largest share.
        numbers: four in [0, 1): share, aspect, and place from top and left.
    """
    tall = height / width
    most = math.exp(CROP_LOG_ASPECT) * min(tall, 1 / tall)  # of the picture, by any permitted aspect
    smallest, largest = min(area[0], most), min(area[1], most)
    share = smallest + numbers[0] * (largest - smallest)
    # Beyond these aspects (height over width, as logs) a crop of this share would be wider or taller than the picture.
    flattest = max(math.log(tall) + math.log(share), -CROP_LOG_ASPECT)
    tallest = min(math.log(tall) - math.log(share), CROP_LOG_ASPECT)
    aspect = math.exp(flattest + numbers[1] * (tallest - flattest))
    wide = min(width * math.sqrt(share * tall / aspect), width)
    high = min(height * math.sqrt(share * aspect / tall), height)
    return numbers[3] * (width - wide), numbers[2] * (height - high), wide, high


def _as_rgb(image: Image.Image) -> Image.Image:
    """Upright, without transparency (which shows white), in RGB; not copied where it is so already."""
    image.load()
    picture = image if image.getexif().get(ORIENTATION, 1) == 1 else ImageOps.exif_transpose(image)
    if picture.mode.startswith(("I", "F")):
        raise ValueError("it holds more than 8 bits a channel")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def size(path: str | Path) -> tuple[int, int]:
    """Width and height of a file in pixels, as decoded, from the header.

    Raises:
        BrokenPictureError: it has none.
    """
    with opened(path) as image:
        return _upright_size(image)


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of an opened file once it is upright; of TIFFs Pillow tells just these."""
    width, height = image.size
    lies = image.format != "TIFF" and image.getexif().get(ORIENTATION, 1) >= 5
    return (height, width) if lies else (width, height)


@contextlib.contextmanager
def opened(path: str | Path) -> Iterator[Image.Image]:
    """A picture's file, for as long as it is worked on.

    Raises:
        BrokenPictureError: it cannot be opened, or the work on it fails; names it.
    """
    try:
        with Image.open(path) as image:
            yield image
    except Exception as error:  # a damaged file can raise anything
        reason = " ".join(str(error).split())
        raise BrokenPictureError(f"{path} cannot be used as a picture ({reason}): repair or remove it") from error
