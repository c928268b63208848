"""Verdicts on made-up studies: the outcome that the numbers deserve, no more, and rarely a false win."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from synthetic_study import arm_records, base_records, record

from src.verdict.cells import group, is_base
from src.verdict.grammar import NoEvidence, NotAssessable, Sentence, Supported
from src.verdict.judge import Claim, judge
from src.verdict.statistics import holm

LOW = [0.900, 0.901, 0.902]
HIGH = [0.920, 0.921, 0.9225]
FAMILY = ("compound", "depth", "width", "resolution")


def sentences(accuracies: dict[str, list[float]], **changes: Any) -> tuple[Sentence, ...]:
    return judge(arm_records(accuracies, **changes)).sentences


def test_a_clear_winner_is_supported_with_welch_numbers() -> None:
    [sentence] = sentences({"compound": HIGH, "depth": LOW, "width": LOW, "resolution": LOW})
    assert isinstance(sentence, Supported)
    p = stats.ttest_ind(HIGH, LOW, equal_var=False).pvalue
    for comparison in sentence.comparisons:
        assert comparison.difference == pytest.approx(100 * (np.mean(HIGH) - np.mean(LOW)))
        assert comparison.p == pytest.approx(3 * p)  # three equal p values: Holm's first step for all of them
        assert comparison.low > 0
    assert [c.rival for c in sentence.comparisons] == ["depth", "width", "resolution"]


def test_outcomes_of_one_family_are_told_apart() -> None:
    middle = [0.9105, 0.9100, 0.9116]
    found = sentences({"compound": middle, "depth": LOW, "width": HIGH, "resolution": [0.911, 0.910, 0.912]})
    assert [s.outcome for s in found] == ["supported", "contradicted", "no evidence"]
    assert [c.rival for s in found for c in s.comparisons] == ["depth", "width", "resolution"]  # type: ignore[union-attr]
    assert "compound beats depth" in str(found[0]) and "compound trails width" in str(found[1])


def test_no_evidence_says_what_could_have_been_seen() -> None:
    [sentence] = sentences({"compound": [0.90, 0.91, 0.92], "depth": [0.901, 0.911, 0.919]})
    assert isinstance(sentence, NoEvidence)
    comparison = sentence.comparisons[0]
    # One comparison, 3 seeds: 3.505 standard deviations are found at 80 % power (the 0.701 pp of the table at 0.2 pp).
    assert comparison.detectable == pytest.approx(3.505 * np.sqrt((1.0 + 0.8133) / 2), rel=5e-3)
    assert f"{comparison.detectable:.2f} pp or more" in str(sentence)
    assert f"would take {comparison.wanted_seeds} seeds per arm" in str(sentence)


def test_one_seed_is_not_assessable_and_names_the_way_out() -> None:
    [sentence] = sentences({arm: [0.9 + i / 100] for i, arm in enumerate(FAMILY)})
    assert isinstance(sentence, NotAssessable)
    assert "G10" in str(sentence) and "`seed=0,1,2`" in str(sentence) and "one seed" in str(sentence)


@pytest.mark.parametrize("arms", [("depth", "width"), ("compound",)])
def test_a_family_without_subject_or_rival_is_not_assessable(arms: tuple[str, ...]) -> None:
    [sentence] = sentences(dict.fromkeys(arms, LOW))
    assert isinstance(sentence, NotAssessable)
    assert "`scaling=depth,width,resolution,compound`" in str(sentence)


def test_only_a_base_is_not_assessable() -> None:
    [sentence] = judge(base_records(LOW)).sentences
    assert isinstance(sentence, NotAssessable) and "no scaled arm" in str(sentence)


def test_a_fault_of_one_rival_leaves_the_others_assessable_in_the_full_family() -> None:
    records = arm_records({"compound": HIGH, "depth": LOW, "width": LOW})
    records = [dataclasses.replace(r, test_openings=2) if r.arm == "width" else r for r in records]
    supported, blocked = judge(records).sentences
    assert isinstance(supported, Supported) and isinstance(blocked, NotAssessable)
    assert blocked.rivals == ("width",)
    raw = stats.ttest_ind(HIGH, LOW, equal_var=False).pvalue
    assert supported.comparisons[0].p == pytest.approx(2 * raw)  # width still counts in Holm's family


def test_unequal_cost_blocks_every_claim_of_its_budget_only() -> None:
    records = arm_records({"compound": HIGH, "depth": LOW})
    records = [
        dataclasses.replace(r, macs=int(r.macs * 1.1), price=r.macs * 1.1) if r.arm == "compound" else r
        for r in records
    ]
    outcomes = [s.outcome for s in judge([*records, *arm_records({"compound": HIGH, "depth": LOW}, 4.0)]).sentences]
    assert outcomes == ["not assessable", "supported"]


def test_the_family_is_data() -> None:
    records = arm_records({"dwr-fast": HIGH, "width": LOW})
    [sentence] = judge(records, [Claim("dwr-fast", ("width",))]).sentences
    assert "dwr-fast beats width" in str(sentence)


def test_seeds_without_any_spread_are_no_evidence_of_anything() -> None:
    [sentence] = sentences({"compound": [0.92] * 3, "depth": [0.90] * 3})
    assert isinstance(sentence, NotAssessable) and "no noise" in str(sentence)


def test_every_sentence_ends_with_its_regime() -> None:
    studies = [
        {"compound": HIGH, "depth": LOW},
        {"compound": LOW, "depth": HIGH},
        {"compound": LOW, "depth": [0.9, 0.9011, 0.9019]},
        {"compound": [0.9]},
    ]
    outcomes = set()
    for study in studies:
        [sentence] = sentences(study)
        outcomes.add(sentence.outcome)
        assert str(sentence).endswith(
            "Regime: b0 from 32 px on cifar10 (64 px native), 10 epochs of recipe short; not extrapolated."
        )
    assert outcomes == {"supported", "contradicted", "no evidence", "not assessable"}


def test_data_sets_are_judged_apart_and_never_averaged() -> None:
    records = [
        *arm_records({"compound": HIGH, "depth": LOW}),
        *arm_records({"compound": LOW, "depth": HIGH}, data="cifar100", data_fingerprint="beef"),
    ]
    verdict = judge(records)
    assert [(s.outcome, s.regime.data) for s in verdict.sentences] == [
        ("supported", "cifar10"),
        ("contradicted", "cifar100"),
    ]
    assert len(verdict.cells) == 4 and all(len(cell.records) == 3 for cell in verdict.cells)


def test_recipes_are_never_averaged() -> None:
    cells = group([record(epochs=10), record(epochs=20, seed=1)])
    assert [cell.name for cell in cells] == ["compound epochs=10", "compound epochs=20"]


def test_the_base_is_known_by_its_shape_not_its_name() -> None:
    assert is_base(base_records([0.9], arm="anything", budget=4.0)[0])
    assert not is_base(record(arm="base"))


def test_no_records_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        judge([])


@settings(max_examples=15, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 4))
def test_the_order_of_records_does_not_matter(shuffler: random.Random, seeds: int) -> None:
    records = arm_records({arm: [0.9 + 0.001 * (i + s) for s in range(seeds)] for i, arm in enumerate(FAMILY)})
    shuffled = list(records)
    shuffler.shuffle(shuffled)
    assert judge(shuffled) == judge(records)


def test_false_wins_are_rarer_than_five_percent() -> None:
    """Four identical arms, 2000 studies: at most 5 % claim anything in either direction, within binomial error."""
    noise = np.random.default_rng(7).normal(0.9, 0.002, size=(2000, len(FAMILY), 4))
    p = np.stack([stats.ttest_ind(noise[:, 0], noise[:, i], axis=1, equal_var=False).pvalue for i in (1, 2, 3)], axis=1)
    claims = np.array([min(holm(list(row))) <= 0.05 for row in p])
    assert claims.mean() <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 2000)
    # The sentences are those of these p values: in studies that claim falsely, and in studies that do not.
    for index in [*np.flatnonzero(claims)[:20], *np.flatnonzero(~claims)[:20]]:
        found = sentences({arm: noise[index, i].tolist() for i, arm in enumerate(FAMILY)})
        assert any(s.outcome in ("supported", "contradicted") for s in found) == claims[index]


def test_a_budget_of_training_names_what_networks_and_training_cost() -> None:
    length = {"currency": "train_macs", "base_price": 1e12, "price": 4e12}
    runs = arm_records({"compound": [0.9, 0.91, 0.92], "depth": [0.8, 0.81, 0.82]}, **length)
    texts = [str(sentence) for sentence in judge(runs).sentences]
    assert texts and all("at 2x networks and 4x training MACs (arms within 0.0 % in training MACs;" in t for t in texts)
    shorter = [dataclasses.replace(r, epochs=5) if r.arm == "depth" else r for r in runs]
    assert not any(f.guard == "G9" for f in judge(shorter).findings)  # lengths are what is solved for


def test_one_budget_in_two_currencies_is_no_comparison() -> None:
    runs = arm_records({"compound": [0.9, 0.91, 0.92]}) + arm_records({"depth": [0.8, 0.81, 0.82]}, currency="params")
    assert any("different currencies" in f.text and f.blocking for f in judge(runs).findings)
