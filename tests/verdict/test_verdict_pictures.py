"""The interval for new pictures: brute force, its limits, and that it holds the true difference."""

from __future__ import annotations

import time

import numpy as np
import pytest
from simulated import answers
from synthetic_study import arm_records

from src.record import RunRecord
from src.verdict.grammar import Supported
from src.verdict.judge import judge
from src.verdict.pictures import Answers, new_pictures
from src.verdict.statistics import compare


def test_with_endless_pictures_it_is_welchs_interval() -> None:
    random = np.random.default_rng(0)
    rates = [np.array([0.9, 0.902, 0.905, 0.899, 0.903]), np.array([0.88, 0.885, 0.881, 0.879, 0.884])]
    arms = [random.random((5, 100_000)) < rate[:, None] for rate in rates]
    [interval] = new_pictures(arms, [(0, 1)], [0.95], resamples=300)
    welch = compare(*((100 * arm.mean(axis=1)).tolist() for arm in arms)).interval(0.95)
    assert interval == pytest.approx(welch, abs=0.12)


def test_without_noise_of_seeds_it_is_the_bootstrap_of_pictures() -> None:
    """Seeds that agree in every picture: sd = sqrt(var(a - b) / N), the paired error of the sampling of pictures."""
    random = np.random.default_rng(1)
    one = random.random((2, 4000)) < np.array([[0.9], [0.88]])
    arms = [np.repeat(row[None], 3, axis=0) for row in one]
    [(low, high)] = new_pictures(arms, [(0, 1)], [0.95])
    paired = 100 * (one[0].astype(float) - one[1])
    half = 1.96 * paired.std() / np.sqrt(4000)
    assert (low, high) == pytest.approx((paired.mean() - half, paired.mean() + half), abs=0.08)


def test_pictures_made_of_one_original_count_once() -> None:
    random = np.random.default_rng(2)
    originals = np.repeat(random.random((2, 1, 400)) < 0.9, 3, axis=1)
    copies = [np.repeat(arm, 10, axis=1) for arm in originals]
    owner = np.repeat(np.arange(400), 10)
    by_original = new_pictures(list(originals), [(0, 1)], [0.95])[0]
    assert new_pictures(copies, [(0, 1)], [0.95], owner)[0] == pytest.approx(by_original, abs=0.25)
    low, high = new_pictures(copies, [(0, 1)], [0.95])[0]
    assert high - low < 0.4 * (by_original[1] - by_original[0])  # the mistake that clusters prevent


@pytest.mark.parametrize(("seeds", "between"), [(3, 0.02), (3, 0.3), (6, 0.1)])
def test_it_holds_the_true_difference_where_welchs_does_not_claim_to(seeds: int, between: float) -> None:
    random = np.random.default_rng(seeds)
    covered = 0
    for _ in range(150):
        arms, _ = answers(random, seeds, between, pictures=400)
        [(low, high)] = new_pictures(arms, [(0, 1)], [0.95], resamples=300)
        covered += low <= 0 <= high
    assert covered / 150 >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / 150)


def test_five_arms_of_ten_seeds_take_less_than_a_second() -> None:
    random = np.random.default_rng(4)
    arms = [random.random((10, 10_000)) < 0.9 for _ in range(5)]
    new_pictures(arms, [(0, 1)], [0.95], resamples=10)
    began = time.process_time()
    new_pictures(arms, [(0, i) for i in range(1, 5)], [0.95] * 4)
    assert time.process_time() - began < 1.0  # 0.3 s of a core; the rest is for a busy machine


def test_other_numbers_of_pictures_are_refused() -> None:
    with pytest.raises(ValueError, match="3 x 10, 3 x 11"):
        new_pictures([np.ones((3, 10), bool), np.ones((3, 11), bool)], [(0, 1)], [0.95])
    with pytest.raises(ValueError, match="1 x 10"):
        new_pictures([np.ones((3, 10), bool), np.ones((1, 10), bool)], [(0, 1)], [0.95])


def study() -> tuple[list[RunRecord], dict[RunRecord, Answers]]:
    random = np.random.default_rng(5)
    runs, found = [], {}
    values = {"compound": [0.92, 0.922, 0.924], "depth": [0.9, 0.901, 0.899], "width": [0.9, 0.902, 0.901]}
    for run in arm_records(values):
        correct = np.zeros(1000, bool)
        correct[random.permutation(1000)[: round(1000 * run.test_accuracy)]] = True
        runs.append(run)
        found[run] = Answers(correct, "the test split")
    return runs, found


def test_sentences_hold_both_intervals() -> None:
    runs, found = study()
    [sentence] = judge(runs, answers=found).sentences
    assert isinstance(sentence, Supported)
    for comparison in sentence.comparisons:
        assert comparison.new_pictures is not None
        low, high = comparison.new_pictures
        assert low < comparison.low < comparison.high < high
        assert f"; [{low:+.2f}, {high:+.2f}] for new pictures)" in str(comparison)


def test_what_is_missing_costs_its_comparison_only() -> None:
    runs, found = study()
    del found[next(run for run in runs if run.arm == "depth")]
    [sentence] = judge(runs, answers=found).sentences
    assert isinstance(sentence, Supported)
    assert [c.new_pictures is None for c in sentence.comparisons] == [True, False]
    other = {
        run: Answers(answer.correct, "another list" if run.arm == "compound" else answer.pictures)
        for run, answer in study()[1].items()
    }
    [sentence] = judge(runs, answers=other).sentences
    assert all(c.new_pictures is None for c in sentence.comparisons)  # type: ignore[union-attr]
