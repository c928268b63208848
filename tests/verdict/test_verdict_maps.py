"""Sentences on activation maps of made-up studies: what the scores deserve on both grids, and what the controls say."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from scipy import stats
from synthetic_study import arm_records, base_records

from src.cam.score_file import GRIDS, SOURCES, ScoreFile
from src.cam.scores import MEASURES
from src.record import RunRecord
from src.verdict.cells import Cell, group
from src.verdict.grammar import Finding, Regime
from src.verdict.maps import LEAST_PICTURES, MapSentence, judge_maps, map_rows
from src.verdict.statistics import holm

REGIME = Regime("clutter", "64", "nano", "32", "quick", "8")
PICTURES = 60
FAMILY = ("compound", "depth", "width", "resolution")
SEEDS = range(5)
NOISE = [0.00, 0.004, -0.003, 0.002, -0.002]  # of the mean of each seed


def score_file(
    relevance: float,
    common: float | None = None,
    *,
    wrong: tuple[int, ...] = (),
    larger: float | None = None,
    **changes: Any,
) -> ScoreFile:
    """Scores whose means over all pictures are known: maps on their own grid, the common one, and the controls."""
    scores = np.full((len(SOURCES), len(GRIDS), len(MEASURES), PICTURES), np.nan, np.float32)
    place = list(MEASURES).index("relevance")
    spread = np.linspace(-0.2, 0.2, PICTURES)
    scores[0, 0, place] = relevance + spread
    scores[0, 1, place] = (relevance if common is None else common) + spread
    scores[1, :, place] = 0.1 + spread
    scores[2, :, place] = 0.02 + np.random.default_rng(int(1e6 * relevance)).normal(0, 0.02, PICTURES)
    if larger is not None:
        scores[3, :, place] = larger + spread
    labels = np.arange(PICTURES) % 10
    predictions = labels.copy()
    predictions[list(wrong)] += 1
    facts: dict[str, Any] = {
        "identities": np.arange(PICTURES) * 3,
        "labels": labels,
        "predictions": predictions,
        "probability": np.full(PICTURES, 0.9, np.float32),
        "boxes": np.tile(np.array([[2, 2, 9, 9]], np.float32), (PICTURES, 1)),
        "maps": np.ones((PICTURES, 4, 4), np.float32),
        "scores": scores,
        "measures": np.array(list(MEASURES)),
        "common_grid": np.array([4, 4]),
        "resolution": 32,
        "larger": 0 if larger is None else 44,
        "asked": PICTURES,
        "method": "exact",
    }
    return ScoreFile(**(facts | changes))


def study(
    means: dict[str, float], common: dict[str, float] | None = None, seeds: int = 5, **changes: Any
) -> tuple[tuple[Cell, ...], dict[RunRecord, ScoreFile]]:
    """Arms at 2x whose relevance is known, with the same noise of seeds in other orders."""
    records = arm_records({arm: [0.9] * seeds for arm in means})
    files = {}
    for r in records:
        noise = NOISE[(r.seed * 2 + FAMILY.index(r.arm)) % 5]
        on_common = None if common is None else common.get(r.arm, means[r.arm]) + noise
        files[r] = score_file(means[r.arm] + noise, on_common, **changes)
    return group(records), files


def sentences(*arguments: Any, **changes: Any) -> tuple[MapSentence, ...]:
    return judge_maps(*study(*arguments, **changes), REGIME)[0]


def test_better_maps_on_both_grids_are_supported_with_welch_numbers() -> None:
    cells, files = study({"compound": 0.30, "depth": 0.20, "width": 0.21, "resolution": 0.22})
    [sentence], remarks = judge_maps(cells, files, REGIME)
    assert sentence.outcome == "supported" and remarks == ()
    assert [c.rival for c in sentence.comparisons] == ["depth", "width", "resolution"]
    by_seed = {cell.name: [100 * float(files[r].score("relevance").mean()) for r in cell.records] for cell in cells}
    tests = [stats.ttest_ind(by_seed["compound"], by_seed[rival], equal_var=False) for rival in FAMILY[1:]]
    adjusted = holm([test.pvalue for test in tests])
    for comparison, p, rival in zip(sentence.comparisons, adjusted, FAMILY[1:], strict=True):
        assert comparison.p == pytest.approx(p, rel=1e-4)
        gap = np.mean(by_seed["compound"]) - np.mean(by_seed[rival])
        assert comparison.native.difference == pytest.approx(gap) and comparison.common.difference == pytest.approx(gap)
        assert comparison.common.low > 0
    text = str(sentence)
    assert "Supported at 2x" in text and "5 seeds, 60 pictures or more" in text and text.endswith(f"Regime: {REGIME}.")
    assert "lie more on the object than those of depth by +10.0 [" in text


def test_a_gain_that_a_common_grid_takes_away_is_that_of_the_grid() -> None:
    native = {"compound": 0.30, "depth": 0.20, "width": 0.20, "resolution": 0.30}
    [sentence] = sentences(native, dict.fromkeys(FAMILY, 0.2))
    assert sentence.outcome == "no evidence"
    assert "the gain on depth, width is that of a finer grid" in str(sentence)
    assert "could only detect a difference of" in str(sentence)


def test_outcomes_of_one_family_are_told_apart() -> None:
    found = sentences({"compound": 0.25, "depth": 0.20, "width": 0.30, "resolution": 0.25})
    assert [(s.outcome, s.rivals) for s in found] == [
        ("supported", ("depth",)),
        ("contradicted", ("width",)),
        ("no evidence", ("resolution",)),
    ]
    assert "lie less on the object than those of width" in str(found[1])


def test_opposite_signs_on_the_two_grids_are_no_evidence() -> None:
    [sentence] = sentences({"compound": 0.3, "depth": 0.2}, {"compound": 0.2, "depth": 0.3})
    assert sentence.outcome == "no evidence" and sentence.comparisons[0].p == 1.0


def test_only_pictures_that_all_arms_classify_correctly_count() -> None:
    """The wrong pictures of each arm are those with its best scores: counting them alone would change the winner."""
    records = arm_records({"compound": [0.9] * 5, "depth": [0.9] * 5})
    files = {}
    for r in records:
        plain = score_file(0.25 + NOISE[(r.seed + (r.arm == "depth")) % 5], wrong=(0, 1) if r.arm == "depth" else (5,))
        scores = plain.scores.copy()
        if r.arm == "depth":
            scores[0, :, list(MEASURES).index("relevance"), :2] = 9.0
        files[r] = dataclasses.replace(plain, scores=scores)
    [sentence], _ = judge_maps(group(records), files, REGIME)
    assert sentence.outcome == "no evidence" and sentence.pictures == PICTURES - 3
    (row, other) = map_rows(group(records), files)
    assert row.pictures == PICTURES - 3 and other.native["relevance"].mean < 0.3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seeds": 4}, "4 seeds have scored maps in all arms, a sentence on maps needs 5; add `seed=0,1,2,3,4`"),
        ({"wrong": tuple(range(PICTURES - LEAST_PICTURES + 1))}, "all arms classify only 29 scored pictures correctly"),
        ({"scores": np.full((4, 2, len(MEASURES), PICTURES), np.nan, np.float32)}, "the data have no boxes"),
    ],
)
def test_what_cannot_be_assessed_says_why_and_what_to_do(change: dict[str, Any], said: str) -> None:
    [sentence] = sentences({"compound": 0.3, "depth": 0.2}, **change)
    assert sentence.outcome == "not assessable" and sentence.rivals == ("depth",)
    assert said in str(sentence) and "whether compound's activation maps lie more on the object" in str(sentence)


def test_maps_that_random_weights_equal_are_not_assessable() -> None:
    [sentence] = sentences({"compound": 0.3, "depth": 0.02})
    assert "maps of depth lie no more on the object than those of the same network with random weights" in str(sentence)


def test_missing_files_other_methods_and_blocking_guards_are_named() -> None:
    cells, files = study({"compound": 0.3, "depth": 0.2})
    without = {r: f for r, f in files.items() if r.arm != "depth"}
    assert "no scores of the maps of depth" in str(judge_maps(cells, without, REGIME)[0][0])
    mixed = {r: dataclasses.replace(f, method="gradcam") if r.arm == "depth" else f for r, f in files.items()}
    assert "drawn in different ways (exact, gradcam)" in str(judge_maps(cells, mixed, REGIME)[0][0])
    guard = Finding("G3", True, "unequal cost", "solve again", 2.0)
    assert "unequal cost" in str(judge_maps(cells, files, REGIME, [guard])[0][0])
    assert judge_maps(cells, files, REGIME, [dataclasses.replace(guard, blocking=False)])[0][0].outcome == "supported"
    same = {r: score_file(0.3) for r in files}
    assert "no noise to compare with" in str(judge_maps(cells, same, REGIME)[0][0])


def test_a_family_without_subject_or_rival_is_left_to_the_sentence_on_accuracy() -> None:
    assert sentences({"depth": 0.2, "width": 0.2}) == () == sentences({"compound": 0.2})


def test_maps_that_a_bright_middle_equals_are_warned_of() -> None:
    _, remarks = judge_maps(*study({"compound": 0.3, "depth": 0.08}), REGIME)
    [remark] = remarks
    assert not remark.blocking and remark.arms == ("depth",) and "bright middle" in remark.text


def test_larger_pictures_alone_are_told_of_the_base() -> None:
    cells, files = study({"compound": 0.3, "depth": 0.2})
    base = base_records([0.9] * 5)
    files |= {r: score_file(0.20, larger=0.23) for r in base}
    _, remarks = judge_maps((*group(base), *cells), files, REGIME)
    [remark] = remarks
    assert "fed pictures of 44 px, has maps that lie +3.0 pp more on the object" in remark.text


def test_a_coarser_arm_takes_all_to_its_grid() -> None:
    """Where arms know different coarsest grids, stored maps are pooled again; here to cells that are even: chance."""
    cells, files = study({"compound": 0.3, "depth": 0.2})
    coarse = {
        r: dataclasses.replace(f, common_grid=np.array([3, 3])) if r.arm == "depth" else f for r, f in files.items()
    }
    [row, other] = map_rows(cells, coarse)
    assert row.native["relevance"].mean == pytest.approx(0.3, abs=0.01)
    assert row.common["relevance"].mean == pytest.approx(0.0, abs=1e-6)  # of maps of ones
    assert other.common["relevance"].mean == pytest.approx(0.2, abs=0.01)  # as stored, on 3 x 3


def test_rows_hold_every_score_that_is_there() -> None:
    cells, files = study({"compound": 0.3, "depth": 0.2})
    rows = map_rows(cells, files)
    assert [(row.name, row.budget, row.seeds, row.pictures) for row in rows] == [
        ("compound", 2.0, (0, 1, 2, 3, 4), PICTURES),
        ("depth", 2.0, (0, 1, 2, 3, 4), PICTURES),
    ]
    (first, _) = rows
    assert set(first.native) == {"relevance"} and first.native["relevance"].n == 5
    assert first.prior["relevance"].mean == pytest.approx(0.1) and first.larger == {}
    assert first.randomised["relevance"].mean == pytest.approx(0.02, abs=0.01)
    assert map_rows(cells, {}) == ()


def test_equal_maps_are_rarely_told_apart() -> None:
    """With three rivals and no difference at all, at most 5 % of sweeps may say anything."""
    rng = np.random.default_rng(1)
    said = 0
    for _ in range(60):
        records = arm_records({arm: [0.9] * 5 for arm in FAMILY})
        files = {r: score_file(0.3 + rng.normal(0, 0.02)) for r in records}
        said += any(s.outcome != "no evidence" for s in judge_maps(group(records), files, REGIME)[0])
    assert said <= stats.binom.ppf(0.999, 60, 0.05)
