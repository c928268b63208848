"""`python -m src.report PATH --verify`: every figure of a written report, recomputed and compared (guards G8 and G14).

What was written is held against what the records give now, to the byte; and each record against what its run left
beside it: predictions, learning curve, checkpoint. Nothing is written.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from src.arm_folder import CHECKPOINTS
from src.guards import named
from src.record import RunRecord
from src.report.evidence import PREDICTIONS, SPLITS, check_evidence, load_predictions
from src.report.figures import HISTORY_FILE
from src.report.study import finished, read_study
from src.report.write import DRAWN_WITH, SUMMARY_JSON, build

CHOSEN = "best.ckpt"  # in the folder of an arm's checkpoints
DRAWN = (".png", ".svg", ".html")  # what shows figures
CURVES = ("train_accuracy", "train_loss", "val_accuracy", "val_loss")
MOST_LINES = 5  # of a file whose differences are shown
WIDTH = 60  # characters of a long line that are shown around its first difference
_NUMBER = re.compile(rb"\d+(?:[.,]\d+)*")


@dataclass(frozen=True)
class Verified:
    """What a verification found.

    figures: numbers in the written files that are what the records give. files: that were compared.
    differences: what is not so, a sentence each. unchecked: what could not be compared, and why.
    """

    runs: int
    files: int
    figures: int
    differences: tuple[str, ...]
    unchecked: tuple[str, ...]


def verify(study_folder: Path) -> Verified:
    """Recompute a written report.

    Raises:
        ValueError: the path is no study folder, no arm has finished, or there is no report in it.
    """
    if not (study_folder / SUMMARY_JSON).is_file():
        raise ValueError(f"{study_folder} has no report; python -m src.report {study_folder} writes it")
    folders = {
        arm.record: arm.path for arm in finished(study_folder, read_study(study_folder)) if arm.record is not None
    }
    differences: list[str] = []
    unmade: dict[str, list[str]] = {}
    for record, findings in check_evidence(folders).items():
        differences += [named(finding.guard, finding.text) for finding in findings if finding.guard == "G8"]
        wrong, missing = _recompute(record, folders[record])
        differences += wrong
        for reason in missing:
            unmade.setdefault(reason, []).append(folders[record].name)
    unchecked = [f"checkpoint of {len(names)} run(s), {names[0]} first: {why}" for why, names in unmade.items()]
    files = figures = 0
    contents = build(study_folder)[1]
    drawn = _drawn_with((study_folder / SUMMARY_JSON).read_bytes())
    drawing = _drawn_with(contents[SUMMARY_JSON] or b"")
    for name, content in contents.items():
        path = study_folder / name
        there = path.read_bytes() if path.is_file() else None
        if name == SUMMARY_JSON and there is not None:
            there = there.replace(drawn, drawing, 1) if drawn else there
        if there == content:
            files += content is not None
            figures += len(_NUMBER.findall(content)) if content is not None and _is_text(name) else 0
        elif content is None:
            differences.append(named("G14", f"{name} shows what no record gives: nothing has such a figure"))
        elif there is None:
            differences.append(named("G14", f"{name} is missing: the report has lost a file"))
        elif drawn != drawing and name.endswith(DRAWN):
            unchecked.append(f"{name}: drawn by {drawn.decode() or 'another program'}, this is {drawing.decode()}")
        else:
            differences += [named("G14", f"{name}{text}") for text in _lines(name, there, content)]
    return Verified(len(folders), files, figures, tuple(differences), tuple(unchecked))


def _recompute(record: RunRecord, folder: Path) -> tuple[list[str], list[str]]:
    """Where a record differs from what its run left, beyond `check_evidence`; and what could not be held against it."""
    wrong: list[tuple[str, float, float]] = []
    missing: list[str] = []
    if not record.predictions_sha256:
        return [named("G8", f"{folder.name}: its record names no predictions")], []
    try:
        stored = load_predictions(folder)
    except ValueError:
        stored = {}
    if stored.keys() >= set(PREDICTIONS):
        for split in SPLITS:
            labels, logits = stored[f"{split}_labels"], stored[f"{split}_logits"]
            wrong.append((f"{split}_loss", getattr(record, f"{split}_loss"), _cross_entropy(labels, logits)))
            wrong.append((f"{split}_pictures", getattr(record, f"{split}_pictures"), len(labels)))
    wrong += _curves(record, folder)
    differences = [
        named("G8", f"{folder.name}: the record says {field}={said:.6g}, its files give {recomputed:.6g}")
        for field, said, recomputed in wrong
        if not np.isclose(said, recomputed, rtol=1e-5, atol=1e-7)
    ]
    checkpoint = folder / CHECKPOINTS / CHOSEN
    if not record.checkpoint_sha256:
        missing.append("its record is older than hashes of checkpoints")
    elif not checkpoint.is_file():
        missing.append("its checkpoint has been removed")
    else:
        with checkpoint.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != record.checkpoint_sha256:
            differences.append(named("G8", f"{folder.name}/{CHECKPOINTS}/{CHOSEN} is not the one that was tested"))
    return differences, missing


def _cross_entropy(labels: NDArray[Any], logits: NDArray[Any]) -> float:
    """Mean over pictures, nats: labels (N,), logits (N, K)."""
    return float(-log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(labels)), labels.astype(int)].mean())


def _curves(record: RunRecord, folder: Path) -> list[tuple[str, float, float]]:
    """What the record says of the learning curves beside what they give; nothing where they cannot be read."""
    try:
        with (folder / HISTORY_FILE).open(newline="") as stream:
            rows = [{name: float(row[name]) for name in CURVES} for row in csv.DictReader(stream)]
    except (OSError, ValueError, KeyError, TypeError):
        return []  # `check_evidence` tells of it
    found = []
    for name in CURVES if rows else ():
        values = [row[name] for row in rows]
        best = max(values) if name.endswith("accuracy") else min(values)
        found.append((f"best_{name}", getattr(record, f"best_{name}"), best))
        found.append((f"last_{name}", getattr(record, f"last_{name}"), values[-1]))
    return found


def _is_text(name: str) -> bool:
    return not name.endswith((".png", ".svg"))


def _drawn_with(summary: bytes) -> bytes:
    """The program that a summary's figures were drawn with, as it stands there; empty where it says none."""
    found = re.search(rb'"' + DRAWN_WITH.encode() + rb'": "([^"]*)"', summary)
    return found[1] if found else b""


def _lines(name: str, there: bytes, content: bytes) -> Iterator[str]:
    """Each line that differs, as far as they are few and text."""
    if not _is_text(name) and not name.endswith(".svg"):
        yield " is not the picture that the records give"
        return
    written, wanted = (text.decode("utf-8", "replace").splitlines() for text in (there, content))
    matcher = difflib.SequenceMatcher(None, written, wanted, autojunk=False)
    shown = 0
    for tag, start, end, first, last in matcher.get_opcodes():
        if tag == "equal":
            continue
        if shown == MOST_LINES:
            yield " differs in more lines than these"
            return
        shown += 1
        said, recomputed = _around("\n".join(written[start:end]), "\n".join(wanted[first:last]))
        yield f", line {start + 1}: says {said!r}, the records give {recomputed!r}"


def _around(one: str, other: str) -> tuple[str, str]:
    """Two texts around the first place in which they differ."""
    same = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    start = max(0, same - WIDTH // 2)
    return one[start : start + WIDTH], other[start : start + WIDTH]


def told(verified: Verified, study_folder: Path) -> str:
    """What to print."""
    lines = [*verified.differences, *(f"not compared: {text}" for text in verified.unchecked)]
    counted = f"{verified.figures:,} figures in {verified.files} files of {study_folder}, from {verified.runs} run(s)"
    if verified.differences:
        lines.append(f"{len(verified.differences)} difference(s); {counted} are what the records give")
    else:
        lines.append(f"verified: {counted}")
    return "\n".join(lines)
