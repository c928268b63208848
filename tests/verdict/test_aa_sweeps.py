"""Dealing real runs out to pretend arms: what is changed, and that a real difference would be found."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
from synthetic_study import base_records, write_arm

from src.record import RunRecord
from src.verdict.cells import group
from src.verdict.guards import check

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
import aa_sweeps

CHANGED = {"arm", "budget", "snapped_budget", "depth", "seed", "architecture_sha256"}


def runs(folder: Path, accuracies: list[float]) -> list[Path]:
    """Runs of one network, with predictions that are right as often as their records say."""
    places = []
    for record in base_records(accuracies, best_val_accuracy=0.5, last_val_accuracy=0.4, test_pictures=1000):
        place = write_arm(folder, record)
        random, labels = np.random.default_rng(record.seed), np.arange(1000) % 10
        wrong = random.permutation(1000) >= round(1000 * record.test_accuracy)
        logits = np.eye(10, dtype=np.float32)[(labels + wrong) % 10]
        np.savez(place / "predictions.npz", test_labels=labels, test_logits=logits)
        places.append(place)
    return places


def noise(seed: int) -> list[float]:
    values: list[float] = (np.random.default_rng(seed).normal(500, 10, 12).round() / 1000).tolist()
    return values


def test_only_the_guard_against_equal_networks_is_lifted(tmp_path: Path) -> None:
    found = [RunRecord.read(place / "record.json") for place in runs(tmp_path, noise(0))]
    dealt = [aa_sweeps.pretend(run, aa_sweeps.ARMS[i // 3], i % 3) for i, run in enumerate(found)]
    for old, new in zip(found, dealt, strict=True):
        changed = {f.name for f in dataclasses.fields(old) if getattr(old, f.name) != getattr(new, f.name)}
        assert changed <= CHANGED and {"arm", "architecture_sha256"} <= changed
    assert not [finding for finding in check(group(dealt)) if finding.blocking]
    equal = [dataclasses.replace(run, architecture_sha256="one") for run in dealt]
    assert {finding.guard for finding in check(group(equal)) if finding.blocking} == {"G1"}


def test_equal_arms_have_no_winner_and_a_planted_one_is_found(tmp_path: Path) -> None:
    sweep = aa_sweeps.deal(runs(tmp_path / "a", noise(0)), tmp_path / "dealt")
    assert sweep.winners == 0 and len(sweep.comparisons) == 3
    assert sweep.test.shape == (4, 3) and sweep.correct.mean(axis=2) * 100 == pytest.approx(sweep.test)
    assert all(c.new_pictures is not None for c in sweep.comparisons)
    assert sweep.probabilities.sum() == pytest.approx(1) and (tmp_path / "dealt" / "report.html").exists()
    better = [value + 0.2 * (number < 3) for number, value in enumerate(noise(0))]
    planted = aa_sweeps.deal(runs(tmp_path / "b", better), tmp_path / "dealt")
    assert planted.winners == 3 and planted.probabilities.argmax() == 0 and planted.probabilities[0] > 0.5


def test_a_run_at_chance_stops_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at chance"):
        aa_sweeps.deal(runs(tmp_path / "a", [*noise(0)[:11], 0.1]), tmp_path / "dealt")


def test_the_page_says_what_was_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aa_sweeps, "REDRAWN", 8)
    monkeypatch.setattr(aa_sweeps, "SEEDS", (3,))
    places = [runs(tmp_path / str(number), noise(number)) for number in range(2)]
    sweeps = [aa_sweeps.deal(own, tmp_path / f"dealt-{number}") for number, own in enumerate(places)]
    sweeps[1] = dataclasses.replace(sweeps[1], winners=1)
    records = [RunRecord.read(place / "record.json") for own in places for place in own]
    page = aa_sweeps.document(sweeps, records, ["data=clutter"])
    assert "| sweeps with a false winner | 50.0 [" in page and "| comparisons with a false winner | 16.7 [" in page
    assert "2 sweeps of 4 arms with 3\nseeds" in page and "code 0123abcd" in page
    values = np.concatenate([sweep.test for sweep in sweeps])
    pooled = np.sqrt(values.var(axis=1, ddof=1).mean())
    assert f"| sigma between seeds, pooled over pretend arms, pp | {pooled:.2f} [" in page


def test_naive_rules_by_hand() -> None:
    assert aa_sweeps.lead(np.array([1.0, 4.0, 3.5])) == pytest.approx(0.5)
    same = np.zeros((2, 100), bool)
    assert not aa_sweeps.by_pictures(same)
    same[0, :6] = True  # 6 to 0: p = 2 / 64
    assert aa_sweeps.by_pictures(same)
    same[0, 5] = False  # 5 to 0: p = 2 / 32
    assert not aa_sweeps.by_pictures(same)
