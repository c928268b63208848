"""A network, a data set and a recipe so small that a whole run takes a fraction of a second."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.callbacks import Callback

from src.data.module import ImageDataModule
from src.data.options import AugmentationOptions, DataOptions
from src.networks.build import ConvNet, build
from src.networks.table import Network, Norm, Stage, Stem
from src.training import fit as fit_module
from src.training.fit import Fit
from src.training.hardware import Hardware
from src.training.options import Recipe

CPU = Hardware("cpu", "cpu", "32-true", 1)
SIDE = 16
COLOURS = {"blue": (70, 90, 150), "green": (70, 150, 90), "red": (150, 90, 70)}
STAGE = Stage(block="mbconv", kernel=3, stride=2, channels=8, repeats=2, expand=2, se_ratio=0.25)
TABLE = Network("tiny", SIDE, Stem(8, 2), (STAGE,), 16, norm=Norm(momentum=0.1), channel_divisor=4)
RECIPE = Recipe(
    name="tiny",
    epochs=3,
    batch_size=8,
    optimizer="adamw",
    learning_rate=0.02,
    weight_decay=0.05,
    warmup=0.1,
    final_learning_rate=0.01,
    label_smoothing=0.1,
    dropout=0.1,
    drop_path=0.2,
    ema_horizon=0.1,
)


def write_pictures(folder: Path) -> DataOptions:
    """A class-per-folder tree of noisy one-coloured pictures."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 8), ("test", 6)):
        for name, colour in COLOURS.items():
            (folder / "tree" / split / name).mkdir(parents=True)
            for number in range(count):
                noise = rng.normal(np.array(colour), 40, (SIDE, SIDE, 3))
                picture = Image.fromarray(np.clip(noise, 0, 255).astype(np.uint8))
                picture.save(folder / "tree" / split / name / f"{number}.png")
    return colours(folder)


def colours(folder: Path) -> DataOptions:
    """The tree that `write_pictures` left in a folder."""
    return DataOptions(
        "colours",
        "folder",
        root=str(folder / "tree"),
        cache=str(folder / "cache"),
        augmentation=AugmentationOptions(crop_padding=0.1, flip=True),
    )


def network(seed: int = 0, recipe: Recipe = RECIPE, classes: int = len(COLOURS)) -> ConvNet:
    """The tiny table, built from a seed."""
    torch.manual_seed(seed)
    return build(TABLE, classes, dropout=recipe.dropout, drop_path=recipe.drop_path)


def pictures_of(options: DataOptions, recipe: Recipe = RECIPE, seed: int = 0, parts: int = 1) -> ImageDataModule:
    """The data module as an arm makes it."""
    data = ImageDataModule(options, SIDE, recipe.batch_size, 10, seed, parts)
    data.prepare_data()
    data.setup()
    return data


def changed(**values: Any) -> Recipe:
    """The tiny recipe with other values."""
    return dataclasses.replace(RECIPE, **values)


@dataclass
class Run:
    """One run of `fit`, and what it left."""

    fit: Fit
    data: ImageDataModule
    folder: Path
    reports: list[dict[str, Any]] = field(default_factory=list)


def train(
    folder: Path,
    data: ImageDataModule,
    recipe: Recipe = RECIPE,
    *,
    seed: int = 0,
    hardware: Hardware = CPU,
    report: Any = None,
    steps: int | None = None,
    lengths: tuple[int, ...] | None = None,
    **more: Any,
) -> Run:
    """`fit` as `src.arm` calls it, for whole epochs or exactly `steps`; `lengths` are those the schedule is told."""
    folder.mkdir(parents=True, exist_ok=True)
    reports: list[dict[str, Any]] = []

    def keep(**values: Any) -> None:
        reports.append(values)
        if report is not None:
            report(**values)

    pl.seed_everything(seed, verbose=False)
    model = build(TABLE, len(data.facts.class_names), dropout=recipe.dropout, drop_path=recipe.drop_path)
    fitted = fit_module.fit(
        model,
        data,
        recipe=recipe,
        hardware=hardware,
        folder=folder,
        logger=False,
        report=keep,
        lengths=data.cut_run(steps or recipe.epochs * data.steps_per_epoch) if lengths is None else lengths,
        seed=seed,
        **more,
    )
    assert fitted is not None
    return Run(fitted, data, folder, reports)


def watch(
    monkeypatch: pytest.MonkeyPatch, callbacks: Sequence[Callback] = (), **fit_arguments: Any
) -> list[pl.Trainer]:
    """Put `callbacks` before those of `fit`, give its `Trainer.fit` more arguments, and keep the trainers it makes."""
    made: list[pl.Trainer] = []

    class Watched(pl.Trainer):
        def __init__(self, **arguments: Any) -> None:
            super().__init__(**{**arguments, "callbacks": [*callbacks, *(arguments.get("callbacks") or [])]})
            made.append(self)

        def fit(self, *arguments: Any, **keywords: Any) -> None:
            super().fit(*arguments, **keywords, **fit_arguments)

    monkeypatch.setattr(pl, "Trainer", Watched)
    return made


def state_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of all weights and buffers."""
    return copy.deepcopy(dict(module.state_dict()))


def checkpoint(folder: Path, name: str) -> dict[str, Any]:
    """A checkpoint that `fit` wrote."""
    loaded: dict[str, Any] = torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)
    return loaded
