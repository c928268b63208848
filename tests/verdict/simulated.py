"""Simulated studies, judged as real ones are: records in, sentences out. For the tests and for
`benchmarks/calibration.py`.

Accuracies are in percent. Five arms of one budget: the default family compares the first with the next three.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from synthetic_study import SHAPES, arm_records

from src.record import RunRecord
from src.verdict.claims import DEFAULT, Family
from src.verdict.grammar import Contradicted, Equivalent, Sentence, Supported
from src.verdict.judge import judge
from src.verdict.looks import PlannedRun, Progress

ARMS = ("compound", "depth", "width", "resolution", "dwr-fast")
FAMILY = ARMS[:4]
CENTRE = 80.0
# Standard deviation of each arm, as a multiple of the study's.
EQUAL = (1.0, 1.0, 1.0, 1.0, 1.0)
UNEQUAL = (1.0, 2.0, 0.5, 1.0, 1.5)
UNEQUAL_SUBJECT = (2.0, 1.0, 0.5, 1.0, 1.0)
NOISES = ("equal", "unequal", "noisy subject", "heavy tail", "heavy-tailed subject")
assert set(ARMS) == set(SHAPES)

Floats = NDArray[np.float64]


def accuracies(
    random: np.random.Generator, sd: float, seeds: int, noise: str = "equal", effects: Sequence[float] = (0,) * 5
) -> Floats:
    """(arms, seeds) test accuracies. A heavy tail is Student's t with 3 degrees of freedom, of the same deviation.

    Args:
        effects: of each arm, added to its accuracy.
    """
    scales = {"unequal": UNEQUAL, "noisy subject": UNEQUAL_SUBJECT}.get(noise, EQUAL)
    errors = random.standard_normal((len(ARMS), seeds))
    if "heavy" in noise:
        errors[0 if "subject" in noise else 1] = random.standard_t(3, seeds) / np.sqrt(3)
    values: Floats = CENTRE + np.array(effects, dtype=float)[:, None] + sd * np.array(scales)[:, None] * errors
    return values


def share(noise: str, rival: int) -> tuple[float, float]:
    """Of the subject and a rival: root mean square deviation as a multiple of the study's, and the subject's share."""
    scales = {"unequal": UNEQUAL, "noisy subject": UNEQUAL_SUBJECT}.get(noise, EQUAL)
    a, b = scales[0] ** 2, scales[rival] ** 2
    return float(np.sqrt((a + b) / 2)), a / (a + b)


def records(values: Floats) -> list[RunRecord]:
    """A study of (arms, seeds) accuracies."""
    while len(_TEMPLATES) < values.shape[1]:
        seed = len(_TEMPLATES)
        _TEMPLATES.append([arm_records({arm: [0.5] * (seed + 1)})[seed] for arm in ARMS])
    return [
        dataclasses.replace(_TEMPLATES[seed][arm], test_accuracy=float(values[arm, seed]) / 100)
        for arm in range(len(ARMS))
        for seed in range(values.shape[1])
    ]


_TEMPLATES: list[list[RunRecord]] = []  # a record of each arm, for each seed


def said(sentences: Sequence[Sentence], *kinds: type) -> set[str]:
    """Rivals of which a sentence of these kinds says something."""
    return {c.rival for s in sentences if isinstance(s, kinds) for c in s.comparisons}  # type: ignore[attr-defined]


def winners(values: Floats, families: Sequence[Family] = (DEFAULT,)) -> set[str]:
    """Rivals that the subject is said to beat or to trail."""
    return said(judge(records(values), families).sentences, Supported, Contradicted)


def equivalents(values: Floats) -> set[str]:
    """Rivals that the subject is said to be equivalent to."""
    return said(judge(records(values)).sentences, Equivalent)


def peeked(values: Floats, naive: bool = False) -> bool:
    """Whether any report says that there is a winner, if one is asked for after every finished seed of all arms.

    Args:
        naive: take what has finished for all that was planned, as a report that knew of no plan would.
    """
    planned = values.shape[1]
    runs = records(values)
    taken: dict[object, None] = {}
    for done in range(3, planned + 1):
        finished = [run for run in runs if run.seed < done]
        pending = [PlannedRun(arm, 2.0, seed) for arm in ARMS for seed in range(done, planned)]
        progress = Progress() if naive else Progress(tuple(pending), tuple(taken))  # type: ignore[arg-type]
        verdict = judge(finished, progress=progress)
        taken |= dict.fromkeys(verdict.looks)
        if said(verdict.sentences, Supported, Contradicted):
            return True
    return False


def answers(
    random: np.random.Generator, seeds: int, between: float, clustered: bool = False, pictures: int = 1000
) -> tuple[list[NDArray[np.bool_]], NDArray[np.int64] | None]:
    """Two arms of one distribution on the same pictures, (seeds, pictures) each, and the pictures' clusters.

    What makes a picture hard is common to both arms, and some pictures favour either: other pictures, another
    difference. Clusters of ten pictures have all that in common.

    Args:
        between: deviation of seeds of one arm, in logits.
    """
    units = pictures // 10 if clustered else pictures
    owner = np.arange(pictures) % units
    hard, favour = random.normal(1.3, 1, units)[owner], random.normal(0, 0.5, (2, units))[:, owner]
    arms = [
        hard + favour[arm] + random.normal(0, between, (seeds, 1)) + random.normal(0, 0.5, (seeds, pictures)) > 0
        for arm in range(2)
    ]
    return arms, owner if clustered else None
