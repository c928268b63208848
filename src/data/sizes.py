"""How many pictures each split of a data set has, as far as that is known without a download or a decoded picture."""

from __future__ import annotations

from src.data import cifar, folder
from src.data.options import DataOptions

TINY_IMAGENET = (100_000, 10_000)  # published pictures of train/, and of val/, which is the sealed split here


def split_sizes(options: DataOptions) -> dict[str, int]:
    """Pictures in train, val and test, as `ImageDataModule.sizes` will say; takes no more than directory listings.

    Raises:
        ValueError: they are not known before the pictures are there.
    """
    if options.kind == "clutter":
        made = options.clutter
        return _limited({"train": made.train, "val": made.val, "test": made.test}, options)
    if options.kind in cifar.PUBLISHED and not cifar._is_tree(options):
        published = cifar.PUBLISHED[options.kind]
        train = published.train_records * len(published.formats[0].train)
        return cut(options, train, published.test_records)
    if options.kind == "tiny_imagenet":
        return cut(options, *TINY_IMAGENET)
    if options.kind == "folder" and not options.root:
        raise ValueError(
            f"how many pictures {options.name} has is not known without data.root; give --pictures TRAIN,TEST, the"
            " pictures of train/ and of the sealed split, such as --pictures 1281167,50000"
        )
    return {split: len(rows) for split, rows in folder._plan(options).rows.items()}


def cut(options: DataOptions, train: int, test: int) -> dict[str, int]:
    """Sizes of a data set of `train` pictures, out of which validation is cut, and `test` sealed ones."""
    val = int(options.val_fraction * train)
    return _limited({"train": train - val, "val": val, "test": test}, options)


def _limited(sizes: dict[str, int], options: DataOptions) -> dict[str, int]:
    limits = {"train": options.train_limit, "val": options.val_limit, "test": options.test_limit}
    return {split: min(count, limits[split] or count) for split, count in sizes.items()}
