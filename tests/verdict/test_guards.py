"""Every guard finds its own injected fault, blocks what it should, and is silent on an innocent study."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from synthetic_study import BASE_MACS, arm_records, base_records, record

from src.record import RunRecord
from src.verdict.cells import group
from src.verdict.grammar import Finding
from src.verdict.guards import at_chance, check, wanted_seeds

ARMS = ("compound", "depth", "width")
NOISE = [0.900, 0.902, 0.904]


def innocent() -> list[RunRecord]:
    """Three arms with three seeds, and a base."""
    return [*arm_records(dict.fromkeys(ARMS, NOISE)), *base_records(NOISE)]


def spoilt(arm: str, only: int | None = None, **changes: Any) -> list[RunRecord]:
    """The innocent study with some fields of one arm (or one of its runs) changed."""
    return [dataclasses.replace(r, **changes) if r.arm == arm and only in (None, r.seed) else r for r in innocent()]


def found(records: list[RunRecord], guard: str) -> list[Finding]:
    return [f for f in check(group(records)) if f.guard == guard]


def test_an_innocent_study_has_no_findings() -> None:
    assert check(group(innocent())) == ()


@pytest.mark.parametrize(
    ("guard", "changes"),
    [
        ("G1", {"architecture_sha256": "1.31-1.109", "resolution": 36}),
        ("G3", {"macs": int(2 * BASE_MACS * 1.021), "price": 2 * BASE_MACS * 1.021}),
        ("G3", {"currency": "params"}),
        ("G4", {"test_openings": 35}),
        ("G4", {"test_openings": 0}),
        ("G8", {"code_revision": "othercode"}),
        ("G9", {"recipe": "long"}),
        ("G9", {"recipe_hash": "of another learning rate"}),
        ("G9", {"epochs": 35}),
        ("G9", {"data_fingerprint": "other"}),
        ("G10", {"weights_sha256": "same"}),
        ("G10", {"seed": 0}),
        ("G11", {"test_accuracy": 0.1059}),
        ("G15", {"device": "cuda"}),
        ("G15", {"precision": "bf16-mixed"}),
        ("G15", {"torch_version": "2.5.0"}),
    ],
)
def test_a_fault_of_one_arm_blocks_it_by_name(guard: str, changes: dict[str, Any]) -> None:
    blocking = [f for f in found(spoilt("depth", **changes), guard) if f.blocking]
    assert blocking and blocking[0].remedy
    assert any("depth" in f.text for f in blocking)
    assert blocking[0].touches(2.0, {"compound", "depth"})


@pytest.mark.parametrize(
    ("guard", "arm", "changes"),
    [
        ("G3", "depth", {"macs": int(2 * BASE_MACS * 1.015), "price": 2 * BASE_MACS * 1.015}),
        ("G8", "base", {"code_revision": "othercode"}),
        ("G15", "base", {"device": "cuda"}),
        ("G15", "depth", {"threads": 2}),
        ("G15", "depth", {"kernels": "native"}),
        ("G14", "depth", {"resolution": 65}),
        ("note", "depth", {"notes": "bf16 was asked for, float32 was used"}),
    ],
)
def test_a_lesser_fault_only_warns(guard: str, arm: str, changes: dict[str, Any]) -> None:
    findings = found(spoilt(arm, **changes), guard)
    assert findings and not any(f.blocking for f in findings)


def test_a_missing_or_dirty_revision_warns() -> None:
    for revision, words in (("", "do not say"), ("unknown", "do not say"), ("0123abcd4567+89abcdef", "uncommitted")):
        everywhere = [dataclasses.replace(r, code_revision=revision) for r in innocent()]
        [finding] = found(everywhere, "G8")
        assert words in finding.text and not finding.blocking


def test_a_mixture_shared_by_all_arms_warns_but_does_not_confound() -> None:
    mixed = [dataclasses.replace(r, code_revision="new") if r.seed == 2 else r for r in innocent()]
    findings = found(mixed, "G8")
    assert findings and not any(f.blocking for f in findings)


def test_seeds_of_one_arm_must_be_one_network() -> None:
    [finding] = found(spoilt("width", only=1, architecture_sha256="other"), "G1")
    assert finding.blocking and "seeds of width" in finding.text


def test_too_few_seeds_block_with_the_exact_addition() -> None:
    [finding] = found(arm_records({"compound": [0.9], "depth": [0.9]}), "G10")
    assert finding.blocking and "one seed" in finding.text
    assert finding.remedy == "add `seed=0,1,2` to the command"
    assert wanted_seeds([5]) == "seed=0,1,5"
    assert wanted_seeds([0, 1, 2, 3]) == "seed=0,1,2,3"


def test_different_seeds_warn() -> None:
    [finding] = found([*innocent(), record(seed=7, test_accuracy=0.902)], "G10")
    assert not finding.blocking and "different seeds" in finding.text


def test_chance_is_two_binomial_errors_above_guessing() -> None:
    # 1/10 + 2 sqrt(0.09 / 10000) = 0.106
    assert at_chance(record(test_accuracy=0.106))
    assert not at_chance(record(test_accuracy=0.1061))


def test_costs_that_no_network_has_are_mixed_units() -> None:
    for changes, told in (
        ({"macs": 0, "price": 0.0}, "a network of 0 MACs is none"),
        ({"fvcore_total": 2 * BASE_MACS - 1}, "MACs stand beside fvcore's total"),
        ({"price": 4.0 * BASE_MACS}, "stand beside a price of"),
        ({"steps": 10, "train_macs": 6 * BASE_MACS + 1}, "no multiple of three times"),
    ):
        (wrong,) = found(spoilt("depth", only=0, **changes), "G2")
        assert wrong.blocking and told in wrong.text and wrong.arms == ("depth",)


def test_a_note_that_runs_share_stands_once_and_whole() -> None:
    (note,) = [f for f in check(group(spoilt("depth", notes="W&B failed; the arm goes on"))) if f.guard == "note"]
    assert note.text == "depth with seed 0, 1, 2: W&B failed; the arm goes on" and note.arms == ("depth",)
