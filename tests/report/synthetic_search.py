"""Coefficient searches made of numbers alone: records whose validation accuracy is a known surface plus noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from synthetic_study import BASE_MACS, record

from src.record import RunRecord

Truth = Callable[[np.ndarray], float]

# Realised shares of the eleven arms of sweeps/coefficient_search.yaml, to two digits.
DESIGN = (
    (1.0, 0.0, 0.0),
    (0.0, 1.0, 0.0),
    (0.0, 0.0, 1.0),
    (0.53, 0.47, 0.0),
    (0.36, 0.0, 0.64),
    (0.0, 0.55, 0.45),
    (0.23, 0.77, 0.0),
    (0.46, 0.14, 0.4),
    (0.28, 0.12, 0.6),
    (0.22, 0.34, 0.44),
    (0.29, 0.29, 0.42),
)
TOP = (0.4, 0.25, 0.35)


def hill(top: Sequence[float] = TOP, drop: float = 2.0, height: float = 90.0) -> Truth:
    """A round hill: `drop` pp lost at a distance of 0.5 from its top."""
    return lambda shares: height - drop * float(np.sum((np.asarray(shares) - np.asarray(top)) ** 2)) / 0.25


def plain(shares: np.ndarray) -> float:
    """No point differs from another."""
    return 90.0


def search_records(
    truth: Truth, sd: float = 0.3, seeds: int = 3, design: Sequence[Sequence[float]] = DESIGN, **changes: Any
) -> list[RunRecord]:
    """Runs of every point of a design; `sd` in pp between seeds. The test accuracy grows with the share of depth."""
    noise = np.random.default_rng(5)
    runs = []
    for number, shares in enumerate(design):
        depth, width, resolution = shares
        facts: dict[str, Any] = {
            "arm": f"d{depth:g}-w{width:g}-r{resolution:g}",
            "depth": 1.5,
            "resolution": 40,
            "currency": "macs",
            "price": 2.0 * BASE_MACS,
            "base_price": float(BASE_MACS),
            "architecture_sha256": f"network {number}",
            **{f"share_{axis}": share for axis, share in zip(("depth", "width", "resolution"), shares, strict=True)},
            **{f"asked_share_{axis}": s for axis, s in zip(("depth", "width", "resolution"), shares, strict=True)},
            "test_accuracy": 0.8 + 0.1 * depth,
        }
        for seed in range(seeds):
            accuracy = (truth(np.array(shares)) + noise.normal(0, sd)) / 100
            runs.append(record(**(facts | {"seed": seed, "val_accuracy": accuracy} | changes)))
    return runs
