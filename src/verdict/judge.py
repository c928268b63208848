"""From records to sentences: guards first, then the pre-registered family of claims at every budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from src.record import METRICS, RunRecord
from src.verdict.cells import Cell, by_budget, group
from src.verdict.grammar import (
    WORTHWHILE,
    Comparison,
    Contradicted,
    Finding,
    NoEvidence,
    NotAssessable,
    Place,
    Regime,
    Sentence,
    Supported,
)
from src.verdict.guards import check
from src.verdict.statistics import (
    ALPHA,
    Difference,
    compare,
    holm,
    holm_confidence,
    seeds_needed,
    smallest_detectable,
    spread,
)


@dataclass(frozen=True)
class Claim:
    """One pre-registered family: the subject against each rival, Holm-corrected together at one budget."""

    subject: str
    rivals: tuple[str, ...]


PRIMARY = Claim("compound", ("depth", "width", "resolution"))


@dataclass(frozen=True)
class Verdict:
    """All that a study's records allow to be said."""

    cells: tuple[Cell, ...]
    findings: tuple[Finding, ...]
    sentences: tuple[Sentence, ...]
    regimes: tuple[Regime, ...]


def judge(records: Sequence[RunRecord], claims: Sequence[Claim] = (PRIMARY,)) -> Verdict:
    """Judge a study; networks and data sets are judged apart, and the order of `records` does not matter.

    Raises:
        ValueError: no records.
    """
    if not records:
        raise ValueError("a verdict needs at least one finished run")
    cells = group(records)
    findings: list[Finding] = []
    sentences: list[Sentence] = []
    regimes: list[Regime] = []
    for setting in sorted({(c.first.network, c.first.data) for c in cells}):
        own = [c for c in cells if (c.first.network, c.first.data) == setting]
        found = check(own)
        regime = regime_of(own)
        findings += found
        regimes.append(regime)
        sentences += [sentence for claim in claims for sentence in assess(own, found, claim, regime)]
    return Verdict(cells, tuple(findings), tuple(sentences), tuple(regimes))


def regime_of(cells: Sequence[Cell]) -> Regime:
    """Data, network and recipe of the cells; several values are joined by `/`."""

    def joined(field: str) -> str:
        return "/".join(str(v) for v in sorted({value for cell in cells for value in cell.values(field)}))

    return Regime(
        data=joined("data"),
        native=joined("native_resolution"),
        network=joined("network"),
        base=joined("base_resolution"),
        recipe=joined("recipe"),
        epochs=joined("epochs"),
    )


def assess(cells: Sequence[Cell], findings: Sequence[Finding], claim: Claim, regime: Regime) -> list[Sentence]:
    """Sentences on one family of claims: per budget at most one of each outcome."""
    budgets = by_budget(cells)
    if not budgets:
        reason = Finding("G10", True, "no scaled arm has finished", f"run `scaling={','.join(_arms(claim))}`")
        return [NotAssessable(None, claim.subject, claim.rivals, (reason,), regime)]
    sentences: list[Sentence] = []
    for budget, present in budgets.items():
        macs = [METRICS["macs"].transform(cell.first.macs) for cell in present]
        prices = [cell.first.price for cell in present]
        spent = math.fsum(cell.first.price / cell.first.base_price for cell in present) / len(present)
        place = Place(budget, math.fsum(macs) / len(macs), spread(prices), present[0].first.currency, spent)
        sentences += _at_budget(place, present, findings, claim, regime)
    return sentences


def _at_budget(
    place: Place, present: Sequence[Cell], findings: Sequence[Finding], claim: Claim, regime: Regime
) -> list[Sentence]:
    subjects = [cell for cell in present if cell.arm == claim.subject]
    rivals = [cell for arm in claim.rivals for cell in present if cell.arm == arm]
    if not subjects or not rivals:
        absent = [arm for arm in _arms(claim) if not any(cell.arm == arm for cell in present)]
        text = f"no finished run of {', '.join(absent)} at this budget, so the primary claim has nothing to compare"
        reason = Finding("G10", True, text, f"add `scaling={','.join(_arms(claim))}` to the command", place.budget)
        return [NotAssessable(place, claim.subject, claim.rivals, (reason,), regime)]

    subject = subjects[0]
    blocked: dict[tuple[Finding, ...], list[str]] = {}
    tested: dict[str, Difference] = {}
    for rival in rivals:
        # Several cells of one arm exist only where a condition differs, which G9 has already found blocking.
        touched = {rival.name, *(cell.name for cell in subjects)}
        reasons = tuple(f for f in findings if f.blocking and f.touches(place.budget, touched))
        if not reasons:
            try:
                tested[rival.name] = compare(subject.shown("test_accuracy"), rival.shown("test_accuracy"))
                continue
            except ValueError as error:
                reasons = (Finding("G10", True, str(error), "run more seeds", place.budget),)
        blocked.setdefault(reasons, []).append(rival.name)

    sentences: list[Sentence] = []
    outcomes: dict[type[Supported | Contradicted | NoEvidence], list[Comparison]] = {}
    for comparison in _compared(tested, untested=len(rivals) - len(tested)):
        kind = NoEvidence if comparison.p > ALPHA else Supported if comparison.difference > 0 else Contradicted
        outcomes.setdefault(kind, []).append(comparison)
    for outcome in (Supported, Contradicted, NoEvidence):
        if outcome in outcomes:
            sentences.append(outcome(place, subject.name, tuple(outcomes[outcome]), regime))
    for reasons, names in blocked.items():
        sentences.append(NotAssessable(place, subject.name, tuple(names), reasons, regime))
    return sentences


def _compared(tested: dict[str, Difference], untested: int) -> list[Comparison]:
    """Holm over the whole family: a rival that cannot be tested still counts, as a comparison that fails."""
    size = len(tested) + untested
    p = [difference.p for difference in tested.values()] + [1.0] * untested
    adjusted, confidences = holm(p), holm_confidence(p)
    comparisons = []
    for (rival, difference), p_holm, confidence in zip(tested.items(), adjusted, confidences, strict=False):
        low, high = difference.interval(confidence)
        sd = math.sqrt(math.fsum(_variance(side) for side in (difference.a, difference.b)) / 2)
        seeds = (len(difference.a), len(difference.b))
        comparisons.append(
            Comparison(
                rival=rival,
                difference=difference.value,
                low=low,
                high=high,
                confidence=confidence,
                p=p_holm,
                seeds=seeds,
                detectable=smallest_detectable(sd, min(seeds), size),
                wanted_seeds=seeds_needed(WORTHWHILE, sd, size),
            )
        )
    return comparisons


def _variance(values: Sequence[float]) -> float:
    mean = math.fsum(values) / len(values)
    return math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)


def _arms(claim: Claim) -> tuple[str, ...]:
    return (*claim.rivals, claim.subject)
