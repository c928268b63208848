"""Whether what lies in a run's folder bears out its record (guards G8 and G11)."""

from __future__ import annotations

import csv
import math
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from src.record import RECORD_FILE, RunRecord, digest_arrays, is_edited
from src.report.answers import PREDICTIONS_FILE
from src.report.figures import HISTORY_FILE
from src.report.study import RUN_NAME
from src.verdict.grammar import Finding

SAME = 1e-6  # accuracies are shares of pictures; two that are further apart are of other predictions
SPLITS = ("val", "test")
PREDICTIONS = tuple(f"{split}_{part}" for split in SPLITS for part in ("labels", "logits"))
_RERUN = "re-run it, or put the files of one run together again"

Evidence = Mapping[RunRecord, tuple[Finding, ...]]


def check_evidence(folders: Mapping[RunRecord, Path]) -> dict[RunRecord, tuple[Finding, ...]]:
    """What contradicts each record in its folder (such a record is no ground for a claim), and what is missing there.

    Records without a name for their predictions are older than these and stand as they are.
    """
    return {
        record: (
            *_sealed(record, folder),
            *_named(record, folder),
            *_predicted(record, folder),
            *_learnt(record, folder),
        )
        for record, folder in folders.items()
    }


def load_predictions(folder: Path) -> dict[str, NDArray[np.generic]]:
    """Labels (N,) and logits (N, K) of `SPLITS`, as far as they are there, by the names under which they are stored.

    Raises:
        ValueError: they cannot be read; names the file.
    """
    path = folder / PREDICTIONS_FILE
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in PREDICTIONS if name in stored}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{folder.name}/{path.name} is unreadable ({str(error).splitlines()[0][:100]})") from error


def _sealed(record: RunRecord, folder: Path) -> Iterator[Finding]:
    if is_edited(folder / RECORD_FILE):
        yield _contradicts(record, f"{folder.name}/{RECORD_FILE} was changed after its run had written it")


def _named(record: RunRecord, folder: Path) -> Iterator[Finding]:
    """Folders are named after what they hold: a file that was moved or rewritten is found by that."""
    name = RUN_NAME.fullmatch(folder.name)
    if name is None or not record.predictions_sha256:
        return
    told = (name["arm"], float(name["budget"]), int(name["seed"]), name["hash"])
    if told != (record.arm, record.budget, record.seed, record.config_hash[: len(name["hash"])]):
        text = (
            f"{folder.name} holds the record of {record.arm} at {record.budget:g}x, seed {record.seed}, config"
            f" {record.config_hash[:8]}"
        )
        yield _contradicts(record, text)


def _predicted(record: RunRecord, folder: Path) -> Iterator[Finding]:
    if not (folder / PREDICTIONS_FILE).exists():
        if record.predictions_sha256:
            text = f"{folder.name} has no {PREDICTIONS_FILE}: its accuracy cannot be recomputed"
            yield Finding("G8", False, text, _RERUN, record.budget, (record.arm,))
        return
    try:
        stored = load_predictions(folder)
    except ValueError:
        return  # `read_answers` tells of it
    for split in SPLITS:
        if not {f"{split}_labels", f"{split}_logits"} <= stored.keys():
            continue
        guesses, said = stored[f"{split}_logits"].argmax(axis=1), getattr(record, f"{split}_accuracy")
        reached = float((guesses == stored[f"{split}_labels"]).mean())
        if abs(reached - said) > SAME:
            text = (
                f"{folder.name}/{PREDICTIONS_FILE} gives {100 * reached:.2f} % of {split} where the record says"
                f" {100 * said:.2f} %"
            )
            yield _contradicts(record, text)
        if split == "test" and record.classes > 1 and (guesses == guesses[0]).all():
            text = f"{folder.name} takes every test picture for class {guesses[0]}"
            yield Finding("G11", True, text, "train longer or mend its recipe first", record.budget, (record.arm,))
    if record.predictions_sha256 and digest_arrays(stored) != record.predictions_sha256:
        yield _contradicts(record, f"{folder.name}/{PREDICTIONS_FILE} is not what its record was made from")


def _learnt(record: RunRecord, folder: Path) -> Iterator[Finding]:
    path = folder / HISTORY_FILE
    if not record.predictions_sha256:
        return
    try:
        with path.open(newline="") as stream:
            accuracies = [float(row["val_accuracy"]) for row in csv.DictReader(stream)]
    except (OSError, ValueError, KeyError, TypeError):
        text = f"{folder.name} has no {HISTORY_FILE} that can be read: its learning curve has no data"
        yield Finding("G8", False, text, _RERUN, record.budget, (record.arm,))
        return
    best = max(accuracies, default=math.nan)
    if len(accuracies) != record.epochs or not abs(best - record.best_val_accuracy) <= SAME:
        text = (
            f"{folder.name}/{HISTORY_FILE} has {len(accuracies)} epochs and {100 * best:.2f} % of validation at best,"
            f" the record {record.epochs} and {100 * record.best_val_accuracy:.2f} %"
        )
        yield _contradicts(record, text)


def _contradicts(record: RunRecord, text: str) -> Finding:
    return Finding("G8", True, text, _RERUN, record.budget, (record.arm,))
