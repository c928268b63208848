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
from src.verdict.claims import Claim, Family
from src.verdict.grammar import Equivalent, NoEvidence, NotAssessable, Sentence, Supported
from src.verdict.judge import judge
from src.verdict.looks import PlannedRun, Progress
from src.verdict.statistics import holm, seeds_needed

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
    found = sentences({"compound": middle, "depth": LOW, "width": HIGH, "resolution": [0.909, 0.911, 0.913]})
    assert [s.outcome for s in found] == ["supported", "contradicted", "no evidence"]
    assert [c.rival for s in found for c in s.comparisons] == ["depth", "width", "resolution"]  # type: ignore[union-attr]
    assert "compound beats depth" in str(found[0]) and "compound trails width" in str(found[1])


def test_no_evidence_says_what_could_have_been_seen() -> None:
    [sentence] = sentences({"compound": [0.90, 0.91, 0.92], "depth": [0.901, 0.911, 0.919]})
    assert isinstance(sentence, NoEvidence)
    comparison = sentence.comparisons[0]
    # One comparison, 3 seeds: 3.505 standard deviations are found at 80 % power (the 0.701 pp of the table at 0.2 pp).
    assert comparison.detectable == pytest.approx(3.505 * np.sqrt((1.0 + 0.8133) / 2), rel=1e-2)
    assert f"{comparison.detectable:.2f} pp or more" in str(sentence)
    resolution = sentence.resolution
    assert resolution is not None and resolution.seeds is not None and resolution.difference == 0.5
    assert resolution.seeds == seeds_needed(0.5, np.sqrt((1.0 + 0.8133) / 2), 1, share=1 / 1.8133)
    more = resolution.seeds - 3
    assert (resolution.more, resolution.hours) == (more, pytest.approx(2 * more * 100 / 3600))  # 100 s a run
    price = f"{resolution.hours:.2g} h"
    words = f"0.5 pp would take {resolution.seeds} seeds per arm, {more} more seeds an arm, about {price}"
    assert words in str(sentence)


def test_a_subject_that_is_compared_twice_is_trained_once() -> None:
    wide = [0.90, 0.91, 0.92]
    [sentence] = sentences({"compound": wide, "depth": [v + 0.001 for v in wide], "width": [v - 0.001 for v in wide]})
    assert isinstance(sentence, NoEvidence) and sentence.resolution is not None
    assert sentence.resolution.hours == pytest.approx(3 * sentence.resolution.more * 100 / 3600)


def test_what_sees_half_a_point_is_planned_for_the_margin() -> None:
    noise = np.array([-0.0025, -0.001, 0, 0.001, 0.0025])
    [sentence] = sentences({"compound": (0.9 + noise).tolist(), "depth": (0.9015 - noise).tolist()})
    assert isinstance(sentence, NoEvidence) and 0.3 < sentence.detectable < 0.5
    assert sentence.resolution is not None and "0.3 pp would take" in str(sentence)


def test_an_effect_beyond_a_thousand_seeds_says_so() -> None:
    [sentence] = sentences({"compound": [0.7, 0.9, 0.8], "depth": [0.9, 0.75, 0.8]})
    assert "0.5 pp would take over 1000 seeds per arm." in str(sentence)


def test_equal_arms_are_equivalent_with_the_interval_of_tost() -> None:
    calm = [0.9, 0.9003, 0.9001, 0.9002]
    [sentence] = sentences({"compound": calm, "depth": calm[::-1], "width": [v + 0.0001 for v in calm]})
    assert isinstance(sentence, Equivalent) and "is within ±0.3 pp of" in str(sentence)
    for comparison in sentence.comparisons:
        assert -0.3 < comparison.low < comparison.high < 0.3 and comparison.p <= 0.05
    # Holm's two steps of TOST at 2.5 and 5 %: intervals of 95 and 90 %.
    assert sorted(c.confidence for c in sentence.comparisons) == pytest.approx([0.9, 0.95])
    shown = 100 * np.array(calm)
    inside = [
        max(
            stats.ttest_ind(shown - 0.3, shown + shift, equal_var=False, alternative="less").pvalue,
            stats.ttest_ind(shown + 0.3, shown + shift, equal_var=False, alternative="greater").pvalue,
        )
        for shift in (0.0, 0.01)
    ]
    by_hand = [2 * inside[0], max(2 * inside[0], inside[1])]
    assert [c.p for c in sentence.comparisons] == pytest.approx(by_hand, rel=1e-6)


def test_equivalence_is_corrected_for_the_size_of_the_family() -> None:
    """TOST by hand: no difference, error 0.1414 sqrt(2/3) = 0.115, t = 0.3 / 0.115 = 2.6 at 4 degrees: p = 0.030."""
    values = [0.9 - 0.001414, 0.9, 0.9 + 0.001414]
    assert 2 * stats.t.sf(0.3 / (0.1414 * np.sqrt(2 / 3)), 4) > 0.05 > stats.t.sf(0.3 / (0.1414 * np.sqrt(2 / 3)), 4)
    assert [s.outcome for s in sentences(dict.fromkeys(("compound", "depth"), values))] == ["equivalent"]
    assert [s.outcome for s in sentences(dict.fromkeys(("compound", "depth", "width"), values))] == ["no evidence"]


def test_the_margin_is_the_claims() -> None:
    records = arm_records({"compound": [0.9, 0.9003, 0.9001, 0.9002], "depth": [0.9001, 0.9, 0.9004, 0.9]})
    outcomes = [
        judge(records, [Family((Claim("compound", ("depth",), margin),))]).sentences[0].outcome
        for margin in (0.3, 0.02)
    ]
    assert outcomes == ["equivalent", "no evidence"]


def test_a_difference_inside_the_margin_is_still_a_difference_and_says_how_small() -> None:
    low = [0.9, 0.9001, 0.9002, 0.9]
    [sentence] = sentences({"compound": [v + 0.001 for v in low], "depth": low, "width": [v - 0.05 for v in low]})
    assert isinstance(sentence, Supported)
    assert "all of it less than the margin of 0.3 pp against depth." in str(sentence)


def test_holm_corrects_over_all_claims_of_a_family() -> None:
    records = arm_records({"compound": HIGH, "depth": LOW, "width": LOW, "dwr-fast": [0.9, 0.91, 0.92]})
    claims = (Claim("compound", ("depth",)), Claim("dwr-fast", ("width",)))
    together = judge(records, [Family(claims)]).sentences
    apart = judge(records, [Family((claim,)) for claim in claims]).sentences
    raw = stats.ttest_ind(HIGH, LOW, equal_var=False).pvalue
    assert [s.comparisons[0].p for s in (together[0], apart[0])] == pytest.approx([2 * raw, raw])  # type: ignore[union-attr]


def test_a_family_declared_late_is_named() -> None:
    records = arm_records({"compound": HIGH, "depth": LOW})
    [sentence] = judge(records, [Family((Claim("compound", ("depth",)),), after=6)]).sentences
    assert ", declared after 6 runs had finished: compound beats depth" in str(sentence)


def test_an_arm_that_is_still_to_come_is_not_asked_for() -> None:
    records = arm_records({"depth": LOW, "width": LOW})
    coming = Progress(tuple(PlannedRun(arm, 2.0, 0) for arm in ("resolution", "compound")))
    [sentence] = judge(records, progress=coming).sentences
    assert "the sweep still runs" in str(sentence) and "add `scaling" not in str(sentence)


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
    [sentence] = judge(records, [Family((Claim("dwr-fast", ("width",)),))]).sentences
    assert "dwr-fast beats width" in str(sentence)


def test_seeds_without_any_spread_are_no_evidence_of_anything() -> None:
    [sentence] = sentences({"compound": [0.92] * 3, "depth": [0.90] * 3})
    assert isinstance(sentence, NotAssessable) and "no noise" in str(sentence)


def test_every_sentence_ends_with_its_regime() -> None:
    studies = [
        {"compound": HIGH, "depth": LOW},
        {"compound": LOW, "depth": HIGH},
        {"compound": LOW, "depth": [0.9, 0.9011, 0.9019]},
        {"compound": LOW, "depth": [0.89, 0.9011, 0.9119]},
        {"compound": [0.9]},
    ]
    outcomes = set()
    for study in studies:
        [sentence] = sentences(study)
        outcomes.add(sentence.outcome)
        assert str(sentence).endswith(
            "Regime: b0 from 32 px on cifar10 (64 px native), 10 epochs of recipe short; not extrapolated."
        )
    assert outcomes == {"supported", "equivalent", "contradicted", "no evidence", "not assessable"}


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
