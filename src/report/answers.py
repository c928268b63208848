"""Which test pictures each run classified rightly, from its stored predictions."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from src.record import RunRecord
from src.verdict.grammar import Finding
from src.verdict.pictures import Answers

PREDICTIONS_FILE = "predictions.npz"
CLUSTERS = "test_clusters"  # optional: number of the original that each test picture was made of


def read_answers(folders: Mapping[RunRecord, Path]) -> tuple[dict[RunRecord, Answers], list[Finding]]:
    """The answers of every run whose predictions can be read and give the accuracy of its record; and what is odd.

    A run from before clusters were stored gets those of a run on the same data: equal fingerprint and equal labels.
    """
    found: dict[RunRecord, Answers] = {}
    odd: list[Finding] = []
    for record, folder in folders.items():
        if not (folder / PREDICTIONS_FILE).exists():
            continue
        try:
            with np.load(folder / PREDICTIONS_FILE, allow_pickle=False) as stored:
                labels = stored["test_labels"]
                correct = stored["test_logits"].argmax(axis=1) == labels
                clusters = stored[CLUSTERS].astype(np.int64) if CLUSTERS in stored else None
            if clusters is not None and clusters.shape != labels.shape:
                raise ValueError(f"{CLUSTERS} and test_labels differ in length")
        except (OSError, ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile) as error:
            text = f"{folder.name}/{PREDICTIONS_FILE} is unreadable ({str(error).splitlines()[0][:100]})"
            odd.append(Finding("G8", False, text, "its arm has no interval for new pictures", record.budget))
            continue
        if abs(correct.mean() - record.test_accuracy) > 1e-6:
            continue  # `check_evidence` tells of it, and blocks its claims
        digest = hashlib.sha256(np.ascontiguousarray(labels, dtype=np.int64).tobytes())
        found[record] = Answers(correct, digest.hexdigest(), clusters)
    known = {
        (record.data_fingerprint, answers.pictures): answers.clusters
        for record, answers in found.items()
        if answers.clusters is not None
    }
    for record, answers in found.items():
        clusters = answers.clusters
        if clusters is None:
            clusters = known.get((record.data_fingerprint, answers.pictures))
        if clusters is not None:
            pictures = hashlib.sha256(answers.pictures.encode() + clusters.tobytes()).hexdigest()
            found[record] = Answers(answers.correct, pictures, clusters)
    return found, odd
