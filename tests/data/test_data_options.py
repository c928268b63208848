from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from omegaconf import OmegaConf

from src.choices import parse_bytes
from src.data.options import AugmentationOptions, ClutterOptions, DataOptions


def test_schema_is_understood_by_omegaconf_and_validated() -> None:
    schema = OmegaConf.structured(DataOptions)
    for node in (schema, schema.augmentation, schema.clutter):  # frozen dataclasses make read-only nodes
        OmegaConf.set_readonly(node, False)
    user = {
        "name": "mine",
        "kind": "clutter",
        "train_limit": 20,
        "clutter": {"digit_max": 30},
        "augmentation": {"flip": True},
    }
    options = OmegaConf.to_object(OmegaConf.merge(schema, user))
    assert isinstance(options, DataOptions) and isinstance(options.clutter, ClutterOptions)
    assert (options.train_limit, options.clutter.digit_max, options.augmentation.flip) == (20, 30, True)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"kind": "cifar"}, ["data.kind", "'cifar'", "did you mean cifar10"]),
        ({"name": " "}, ["data.name"]),
        ({"kind": "folder"}, ["data.root", "train/"]),
        ({"root": "/x"}, ["data.root='/x'", "clutter"]),
        ({"kind": "folder", "classes": 10}, ["data.root", "data.stored_pixels", "plan"]),
        ({"kind": "folder", "stored_pixels": 64}, ["data.root", "data.classes", "plan"]),
        ({"kind": "folder", "root": "", "classes": 10}, ["data.root", "train/"]),
        ({"kind": "folder", "root": "x", "classes": 1}, ["data.classes=1", "at least 2"]),
        ({"classes": 10}, ["data.classes=10", "folder"]),
        ({"stored_pixels": 64}, ["data.stored_pixels=64", "folder"]),
        ({"val_fraction": 0.0}, ["data.val_fraction=0.0"]),
        ({"val_fraction": 0.6}, ["data.val_fraction=0.6", "0.5"]),
        ({"train_limit": 0}, ["data.train_limit=0", "1"]),
        ({"split_seed": -1}, ["data.split_seed=-1"]),
        ({"workers": -2}, ["data.workers=-2"]),
        ({"memory_limit": "lots"}, ["data.memory_limit='lots'", "4GiB"]),
    ],
)
def test_impossible_values_are_refused_with_key_value_and_fix(values: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        DataOptions(**{"name": "x", "kind": "clutter", **values})
    assert all(word in str(caught.value) for word in words), caught.value


def test_nested_options_are_refused_too() -> None:
    with pytest.raises(ValueError, match=r"digit_max=10 is out of range 20 to 64: nearest is 20"):
        ClutterOptions(digit_min=20, digit_max=10)
    with pytest.raises(ValueError, match=r"data.augmentation.erasing=1.5"):
        AugmentationOptions(erasing=1.5)
    with pytest.raises(ValueError, match=r"data.clutter.test=3"):
        ClutterOptions(test=3)


@pytest.mark.parametrize(("text", "size"), [("4GiB", 2**32), ("500 MB", 500_000_000), ("1.5kib", 1536), ("0B", 0)])
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes("data.memory_limit", text) == size


def test_facts_need_no_torch() -> None:
    code = (
        "import sys; from src.data.options import DataOptions; from src.data import sources;"
        "side = sources.facts(DataOptions('c', 'clutter')).native_pixels;"
        "print(side, 'torch' in sys.modules, 'sklearn' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["64", "False", "False"]
