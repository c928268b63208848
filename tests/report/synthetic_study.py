"""Study folders made of numbers alone, for the tests of verdicts and reports."""

from __future__ import annotations

import csv
import dataclasses
import json
import typing
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from src.record import RunRecord

# arm -> (depth, width, resolution) at 2x and 4x, as the solver builds them from a 32 px base of 116.3 M MACs
SHAPES = {
    "compound": {2: (1.31, 1.109, 36), 4: (1.62, 1.222, 42)},
    "depth": {2: (1.9, 1.0, 32), 4: (3.7, 1.0, 32)},
    "dwr-fast": {2: (1.0, 1.33, 33), 4: (1.0, 1.753, 34)},
    "resolution": {2: (1.0, 1.0, 44), 4: (1.0, 1.0, 64)},
    "width": {2: (1.0, 1.46, 32), 4: (1.0, 2.065, 32)},
}
BASE_MACS = 116_300_000


def record(**changes: Any) -> RunRecord:
    """A finished, innocent run: seed 0 of the compound arm at 2x, unless changed."""
    innocent: dict[str, Any] = {
        "status": "finished",
        "arm": "compound",
        "budget": 2.0,
        "snapped_budget": 2.0,
        "network": "b0",
        "data": "cifar10",
        "recipe": "short",
        "depth": 1.31,
        "width": 1.109,
        "resolution": 36,
        "base_resolution": 32,
        "native_resolution": 64,
        "macs": 2 * BASE_MACS,
        "base_macs": BASE_MACS,
        "params": 6_100_000,
        "activations": 3_000_000,
        "test_accuracy": 0.9,
        "val_accuracy": 0.91,
        "best_epoch": 9,
        "epochs": 10,
        "test_openings": 1,
        "classes": 10,
        "test_pictures": 10_000,
        "code_revision": "0123abcd",
        "data_fingerprint": "feedfeed",
        "device": "cpu",
        "precision": "32-true",
        "python_version": "3.12.1",
        "torch_version": "2.13.0",
        "lightning_version": "2.6.0",
        "fvcore_version": "0.1.5",
        "threads": 1,
        "seconds": 100.0,
        "images_per_second": 812.0,
    }
    innocent |= changes
    innocent = {"currency": "macs", "price": float(innocent["macs"]), "base_price": float(BASE_MACS)} | innocent
    identity = f"{innocent['arm']}-{innocent['budget']:g}x-seed{innocent.get('seed', 0)}"
    digest = f"{zlib.crc32(identity.encode()):08x}"
    innocent.setdefault("config_hash", digest)
    innocent.setdefault("weights_sha256", "w" + digest)
    innocent.setdefault("architecture_sha256", f"{innocent['depth']}-{innocent['width']}")
    blank = {str: "", int: 0, float: 0.0}
    types = typing.get_type_hints(RunRecord)
    return RunRecord.from_mapping({name: innocent.get(name, blank[kind]) for name, kind in types.items()})


def arm_records(accuracies: dict[str, list[float]], budget: float = 2.0, **changes: Any) -> list[RunRecord]:
    """Records of several arms at one budget, one run for each accuracy (a fraction), seeds from 0."""
    records = []
    for arm, values in accuracies.items():
        depth, width, resolution = SHAPES[arm][int(budget)]
        for seed, value in enumerate(values):
            facts = {"arm": arm, "budget": budget, "snapped_budget": budget, "seed": seed, "test_accuracy": value}
            facts |= {"depth": depth, "width": width, "resolution": resolution, "macs": int(budget * BASE_MACS)}
            records.append(record(**(facts | changes)))
    return records


def base_records(accuracies: list[float], **changes: Any) -> list[RunRecord]:
    """Records of the unscaled network."""
    facts: dict[str, Any] = {"arm": "base", "budget": 1.0, "snapped_budget": 1.0, "depth": 1.0, "width": 1.0}
    facts |= {"resolution": 32, "macs": BASE_MACS}
    return [record(**(facts | {"seed": s, "test_accuracy": a} | changes)) for s, a in enumerate(accuracies)]


def folder_name(run: RunRecord) -> str:
    """As the launcher names folders."""
    return f"{run.arm}-{run.budget:g}x-seed{run.seed}-{run.config_hash}"


def write_arm(study: Path, run: RunRecord, history: bool = True, cam: bool = False) -> Path:
    """One finished arm's folder, with the files that the report looks at."""
    folder = study / folder_name(run)
    folder.mkdir(parents=True)
    write_status(folder, "finished")
    if history:
        best = write_history(folder, run)
        if run.predictions_sha256:  # a record of all that is held against it
            run = dataclasses.replace(run, best_val_accuracy=best)
    if cam:
        write_cam(folder, run)
    run.write(folder)
    return folder


def write_status(folder: Path, state: str, error: str = "") -> None:
    """status.json as the launcher leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "status.json").write_text(
        json.dumps({"state": state, "returncode": 0, "arm": folder.name, "error": error})
    )


def write_history(folder: Path, run: RunRecord) -> float:
    """Curves that end at the record's validation accuracy, with a little noise; returns the best of it."""
    noise = np.random.default_rng(zlib.crc32(folder.name.encode()))
    names = ["epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "learning_rate", "seconds"]
    names.append("images_per_second")
    accuracies = []
    with (folder / "history.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(names)
        for epoch in range(1, run.epochs + 1):
            reached = 1 - np.exp(-4.5 * epoch / run.epochs)
            accuracy = run.val_accuracy * reached / (1 - np.exp(-4.5)) + noise.normal(0, 0.006) * (
                1 - epoch / run.epochs
            )
            accuracies.append(accuracy)
            loss = 2.3 * (1 - run.val_accuracy * reached) + noise.normal(0, 0.015)
            writer.writerow([epoch, loss * 0.85, accuracy, loss, accuracy, 0.01, 5.0, 800.0])
    return float(max(accuracies))


def write_cam(folder: Path, run: RunRecord, indices: list[int] | None = None, count: int = 6) -> None:
    """Pictures of a bright disc on a gradient, with maps that find it more or less well."""
    side, grid = run.resolution, max(2, run.resolution // 8)
    noise = np.random.default_rng(zlib.crc32(f"{run.arm}{run.budget}".encode()))
    classes = np.array(["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"])
    images, maps, boxes = [], [], []
    for row in range(count):
        placed = np.random.default_rng(row)
        cx, cy, radius = [*placed.uniform(0.3, 0.7, 2).tolist(), float(placed.uniform(0.12, 0.24))]
        colour = placed.uniform(90, 255, 3)
        y, x = (np.mgrid[:side, :side] + 0.5) / side
        sky = np.stack([60 + 70 * y, 80 + 60 * x, 120 + 50 * (1 - y)], -1)
        inside = ((x - cx) ** 2 + (y - cy) ** 2 < radius**2)[..., None]
        images.append(np.where(inside, colour, sky).astype(np.uint8))
        gy, gx = (np.mgrid[:grid, :grid] + 0.5) / grid
        peak = 9 * np.exp(-((gx - cx) ** 2 + (gy - cy) ** 2) / (2 * (1.3 * radius) ** 2))
        maps.append(peak - 1.5 + noise.normal(0, 0.7, (grid, grid)))
        boxes.append(
            [side * v for v in (cx - radius, cy - radius, cx + radius, cy + radius)] if row % 2 else [np.nan] * 4
        )
    labels = np.arange(count) % len(classes)
    predictions = np.where(noise.random(count) < 0.75, labels, (labels + 3) % len(classes))
    np.savez_compressed(
        folder / "cam.npz",
        images=np.array(images),
        maps_label=np.array(maps, dtype=np.float32),
        maps_predicted=np.array(maps, dtype=np.float32),
        labels=labels.astype(np.int64),
        predictions=predictions.astype(np.int64),
        probability_label=noise.uniform(0.3, 0.99, count).astype(np.float32),
        probability_predicted=noise.uniform(0.5, 0.99, count).astype(np.float32),
        indices=np.array(indices if indices is not None else range(count), dtype=np.int64),
        boxes=np.array(boxes, dtype=np.float32),
        class_names=classes,
    )
