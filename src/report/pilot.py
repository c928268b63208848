"""A pilot study's noise between seeds, from its records and its stored predictions."""

from __future__ import annotations

import itertools
from pathlib import Path

from src.record import RunRecord
from src.report.answers import read_answers
from src.report.study import finished, read_study
from src.verdict.cells import group
from src.verdict.design import Noise, floor_sd, pilot_noise


def read_pilot(folder: Path) -> tuple[Noise, tuple[RunRecord, ...], list[str]]:
    """Noise to plan with; the runs it rests on, those of arms that have two seeds or more; what is odd about them.

    A seed that lies in two folders counts once. Predictions that are missing, or of other pictures, give no floor.

    Raises:
        ValueError: the folder is no study, nothing has finished, or no arm has two seeds.
    """
    arms = finished(folder, read_study(folder))
    places = {arm.record: arm.path for arm in arms if arm.record is not None}
    groups, floors = [], []
    used: list[RunRecord] = []
    odd: list[str] = []
    for cell in group(list(places)):
        runs = [next(same) for _, same in itertools.groupby(cell.records, key=lambda record: record.seed)]
        if len(runs) < 2:
            continue
        groups.append([100.0 * run.test_accuracy for run in runs])
        used += runs
        answers, findings = read_answers({run: places[run] for run in runs})
        odd += [finding.text for finding in findings]
        if len(answers) > 1 and len({one.pictures for one in answers.values()}) == 1:
            floors.append(floor_sd([one.correct for one in answers.values()]))
    if not groups:
        raise ValueError(
            f"{folder} has no arm with two finished seeds, and one run says nothing about noise; run a pilot pair, such"
            " as seed=0,1, or state --sigma"
        )
    counts = sorted({len(one) for one in groups})
    seeds = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    noise = pilot_noise(groups, floors, f"pilot {folder}, {len(groups)} arm(s) with {seeds} seeds")
    return noise, tuple(used), odd
