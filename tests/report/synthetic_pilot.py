"""A pilot study made of numbers alone: records, and predictions of runs that err independently."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.report.synthetic_study import record


def write_runs(folder: Path, accuracies: dict[str, dict[int, float]], pictures: int, stored: bool = True) -> None:
    """A study whose runs answer each picture independently of one another."""
    random = np.random.default_rng(0)
    for arm, seeds in accuracies.items():
        for seed, chance in seeds.items():
            labels = np.arange(pictures) % 10
            right = random.random(pictures) < chance
            logits = np.eye(10)[np.where(right, labels, (labels + 1) % 10)]
            place = folder / f"{arm}-2x-seed{seed}-0000"
            place.mkdir(parents=True)
            (place / "status.json").write_text('{"state": "finished"}')
            facts = {"arm": arm, "seed": seed, "test_accuracy": float(right.mean()), "test_pictures": pictures}
            record(**facts, weights_sha256=f"{arm}{seed}").write(place)
            if stored:
                np.savez(place / "predictions.npz", test_labels=labels, test_logits=logits)
