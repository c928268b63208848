"""From records to sentences: guards first, then the declared families of claims at every budget.

Two kinds of error are held at `ALPHA` for each family at each budget, over all its comparisons and all readings:

- False winners. Holm over the two-sided Welch tests of the family: the chance that any arm is said to beat or to trail
  one that is equally good.
- False equivalence. Holm over the TOST p values of the same comparisons: the chance that any two arms that differ by
  the margin or more are said to be equivalent. Both families get the whole of ALPHA: a comparison cannot be wrong in
  both ways, since arms that are equally good do not differ by the margin. With one comparison the chance of any wrong
  sentence is therefore ALPHA, and never more than the two together. Sharing one ALPHA would make winners harder to find
  in every study, for the sake of a sentence that a winner's comparison never gets.

Where a difference is found it is what is said, also if it is smaller than the margin, which the sentence then adds.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from src.record import METRICS, RunRecord
from src.verdict.cells import Cell, by_budget, group
from src.verdict.claims import DEFAULT, PRIMARY, Claim, Family
from src.verdict.grammar import (
    WORTHWHILE,
    Comparison,
    Contradicted,
    Equivalent,
    Finding,
    Look,
    NoEvidence,
    NotAssessable,
    Place,
    Reading,
    Regime,
    Resolution,
    Sentence,
    Supported,
)
from src.verdict.guards import check
from src.verdict.looks import Progress, Standpoint, standpoint
from src.verdict.pictures import Answers, new_pictures
from src.verdict.statistics import (
    Difference,
    compare,
    holm,
    holm_confidence,
    seeds_needed,
    smallest_detectable,
    spread,
    variance,
)

__all__ = ["PRIMARY", "Claim", "Verdict", "assess", "judge", "regime_of"]

AllAnswers = Mapping[RunRecord, Answers]
_Pair = tuple[Claim, Cell, Cell]  # subject and rival


@dataclass(frozen=True)
class Verdict:
    """All that a study's records allow to be said.

    looks: the readings that this took, which count when the study is read again.
    """

    cells: tuple[Cell, ...]
    findings: tuple[Finding, ...]
    sentences: tuple[Sentence, ...]
    regimes: tuple[Regime, ...]
    looks: tuple[Look, ...] = ()


def judge(
    records: Sequence[RunRecord],
    families: Sequence[Family] = (DEFAULT,),
    progress: Progress = Progress(),  # noqa: B008 (frozen)
    answers: AllAnswers | None = None,
    evidence: Mapping[RunRecord, Sequence[Finding]] = MappingProxyType({}),
) -> Verdict:
    """Judge a study; networks and data sets are judged apart, and the order of `records` does not matter.

    Args:
        families: what the study has declared.
        progress: runs that are still to come, and earlier readings.
        answers: test pictures that the runs classified rightly; those of a run may be missing.
        evidence: what was found in the folders of the runs.

    Raises:
        ValueError: no records.
    """
    if not records:
        raise ValueError("a verdict needs at least one finished run")
    cells = group(records)
    findings: list[Finding] = []
    sentences: list[Sentence] = []
    regimes: list[Regime] = []
    looks: list[Look] = []
    for setting in sorted({(c.first.network, c.first.data) for c in cells}):
        own = [c for c in cells if (c.first.network, c.first.data) == setting]
        found = (*check(own), *_of_cells(own, evidence))
        regime = regime_of(own)
        findings += found
        regimes.append(regime)
        for family in families:
            said, taken, remarks = assess(own, found, family, regime, progress, answers or {})
            sentences += said
            looks += taken
            findings += [remark for remark in remarks if remark not in findings]
    return Verdict(cells, tuple(findings), tuple(sentences), tuple(regimes), tuple(looks))


def _of_cells(cells: Sequence[Cell], evidence: Mapping[RunRecord, Sequence[Finding]]) -> list[Finding]:
    """What was found of single runs, as findings of the rows that they stand in."""
    return [
        dataclasses.replace(finding, budget=cell.budget, arms=(cell.name,))
        for cell in cells
        for record in cell.records
        for finding in evidence.get(record, ())
    ]


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


def assess(
    cells: Sequence[Cell],
    findings: Sequence[Finding],
    family: Family,
    regime: Regime,
    progress: Progress,
    answers: AllAnswers,
) -> tuple[list[Sentence], list[Look], list[Finding]]:
    """Sentences on one family: of each claim at each budget at most one of each outcome. And the readings taken, and
    what must be said of them."""
    budgets = by_budget(cells)
    sentences: list[Sentence] = []
    if not budgets:
        for claim in family.claims:
            reason = Finding("G10", True, "no scaled arm has finished", f"run `scaling={','.join(_arms(claim))}`")
            reading = Reading(declared_after=family.after)
            sentences.append(NotAssessable(None, claim.subject, claim.rivals, (reason,), regime, reading))
    looks: list[Look] = []
    remarks: list[Finding] = []
    for budget, present in budgets.items():
        macs = [METRICS["macs"].transform(cell.first.macs) for cell in present]
        prices = [cell.first.price for cell in present]
        spent = math.fsum(cell.first.price / cell.first.base_price for cell in present) / len(present)
        place = Place(budget, math.fsum(macs) / len(macs), spread(prices), present[0].first.currency, spent)
        coming = {run.arm for run in progress.pending if run.budget == budget}
        pairs, unasked = _pairs(present, family, place, regime, coming)
        sentences += unasked
        if not pairs:
            continue
        finished: dict[str, set[int]] = {}
        for _, *two in pairs:
            for cell in two:
                finished.setdefault(cell.arm, set()).update(cell.seeds)
        setting = (present[0].first.network, present[0].first.data)
        seeds = {arm: sorted(own) for arm, own in finished.items()}
        here = standpoint(family, setting, budget, seeds, progress)
        remarks += [finding for finding in here.findings if not finding.blocking]
        said = _at_budget(place, pairs, findings, family, regime, here, answers)
        sentences += said
        # Where nothing could be tested, no chance was taken.
        if here.look is not None and not all(isinstance(sentence, NotAssessable) for sentence in said):
            looks.append(here.look)
    return sentences, looks, remarks


def _pairs(
    present: Sequence[Cell], family: Family, place: Place, regime: Regime, coming: set[str]
) -> tuple[list[_Pair], list[NotAssessable]]:
    """What the family compares at one budget, and what of it has nothing to compare.

    Args:
        coming: arms with runs at this budget that may still finish.
    """
    pairs: list[_Pair] = []
    unasked: list[NotAssessable] = []
    for claim in family.claims:
        subjects = [cell for cell in present if cell.arm == claim.subject]
        rivals = [cell for arm in claim.rivals for cell in present if cell.arm == arm]
        pairs += [(claim, subjects[0], rival) for rival in rivals if subjects]
        if not subjects or not rivals:
            absent = [arm for arm in _arms(claim) if not any(cell.arm == arm for cell in present)]
            text = f"no finished run of {', '.join(absent)} at this budget, so the primary claim has nothing to compare"
            add = f"add `scaling={','.join(_arms(claim))}` to the command"
            remedy = "the sweep still runs, or goes on by the same command" if coming.issuperset(absent) else add
            reason = Finding("G10", True, text, remedy, place.budget)
            reading = Reading(declared_after=family.after)
            unasked.append(NotAssessable(place, claim.subject, claim.rivals, (reason,), regime, reading))
    return pairs, unasked


def _at_budget(
    place: Place,
    pairs: Sequence[_Pair],
    findings: Sequence[Finding],
    family: Family,
    regime: Regime,
    here: Standpoint,
    answers: AllAnswers,
) -> list[Sentence]:
    reading = Reading(here.look, here.earlier, family.after)
    tested: dict[int, tuple[_Pair, Difference]] = {}
    blocked: dict[tuple[Claim, tuple[Finding, ...]], list[_Pair]] = {}
    for number, (claim, subject, rival) in enumerate(pairs):
        reasons = tuple(f for f in here.findings if f.blocking) or tuple(
            # Several cells of one arm exist only where a condition differs, which G9 has already found blocking.
            f
            for f in findings
            if f.blocking and f.touches(place.budget, {subject.name, rival.name})
        )
        if not reasons:
            read = (claim, _read(subject, here), _read(rival, here))
            try:
                tested[number] = read, compare(*(cell.shown("test_accuracy") for cell in read[1:]))
                continue
            except ValueError as error:
                reasons = (Finding("G10", True, str(error), "run more seeds", place.budget),)
        blocked.setdefault((claim, reasons), []).append((claim, subject, rival))

    level = here.look.level if here.look is not None else 0.0
    outcomes: dict[tuple[type[_Outcome], Claim], list[tuple[_Pair, Difference, Comparison]]] = {}
    for (pair, difference), (kind, comparison) in zip(
        tested.values(), _compared(list(tested.values()), len(pairs), level, answers), strict=True
    ):
        outcomes.setdefault((kind, pair[0]), []).append((pair, difference, comparison))
    sentences: list[Sentence] = []
    for claim in family.claims:
        for kind in (Supported, Equivalent, Contradicted, NoEvidence):
            found = outcomes.get((kind, claim), [])
            if not found:
                continue
            comparisons = tuple(comparison for _, _, comparison in found)
            name = found[0][0][1].name
            if kind is NoEvidence:
                complete = here.look is not None and here.look.complete
                wanted = _resolution(found, claim, len(pairs)) if complete else None
                sentences.append(NoEvidence(place, name, comparisons, regime, claim.margin, reading, wanted))
            else:
                sentences.append(kind(place, name, comparisons, regime, claim.margin, reading))
        for (owner, reasons), stopped in blocked.items():
            if owner == claim:
                names = tuple(rival.name for _, _, rival in stopped)
                sentences.append(NotAssessable(place, stopped[0][1].name, names, reasons, regime, reading))
    return sentences


_Outcome = Supported | Equivalent | Contradicted | NoEvidence


def _read(cell: Cell, here: Standpoint) -> Cell:
    """The cell with the seeds that may be read now."""
    seeds = set(here.seeds[cell.arm])
    return dataclasses.replace(cell, records=tuple(r for r in cell.records if r.seed in seeds))


def _compared(
    tested: Sequence[tuple[_Pair, Difference]], size: int, level: float, answers: AllAnswers
) -> list[tuple[type[_Outcome], Comparison]]:
    """Holm over the whole family of `size`: what cannot be tested still counts, as a comparison that fails."""
    untested = [1.0] * (size - len(tested))
    differ = [difference.p for _, difference in tested] + untested
    alike = [difference.equivalence_p(claim.margin) for (claim, *_), difference in tested] + untested
    p_differ, p_alike = holm(differ), holm(alike)
    found: list[tuple[type[_Outcome], Comparison]] = []
    levels_differ = holm_confidence(differ, level)
    # An interval of 1 - 2a lies inside the margin exactly when TOST holds at level a.
    levels_alike = [2 * confidence - 1 for confidence in holm_confidence(alike, level)]
    for number, ((_, *cells), difference) in enumerate(tested):
        kind: type[_Outcome] = NoEvidence
        if p_differ[number] <= level:
            kind = Supported if difference.value > 0 else Contradicted
        elif p_alike[number] <= level:
            kind = Equivalent
        confidence, p = (
            (levels_alike[number], p_alike[number]) if kind is Equivalent else (levels_differ[number], p_differ[number])
        )
        low, high = difference.interval(confidence)
        sd, share = _noise(difference)
        seeds = (len(difference.a), len(difference.b))
        detectable = smallest_detectable(sd, min(seeds), size, level, share=share)
        comparison = Comparison(cells[1].name, difference.value, low, high, confidence, p, seeds, detectable)
        found.append((kind, comparison))
    intervals = _new_pictures([pair for pair, _ in tested], [c.confidence for _, c in found], answers)
    return [
        (kind, dataclasses.replace(comparison, new_pictures=interval))
        for (kind, comparison), interval in zip(found, intervals, strict=True)
    ]


def _new_pictures(
    pairs: Sequence[_Pair], confidences: Sequence[float], answers: AllAnswers
) -> list[tuple[float, float] | None]:
    """The second interval of each comparison; None where not all runs' answers to the same pictures are there."""
    cells: dict[str, Cell] = {}
    for _, *two in pairs:
        for cell in two:
            cells[cell.name] = cell
    known = {
        name: [answers[record] for record in cell.records]
        for name, cell in cells.items()
        if all(record in answers for record in cell.records)
    }
    lists = sorted({answer.pictures for own in known.values() for answer in own})
    result: list[tuple[float, float] | None] = [None] * len(pairs)
    for pictures in lists:
        shared = [name for name, own in known.items() if all(answer.pictures == pictures for answer in own)]
        numbers = [i for i, (_, a, b) in enumerate(pairs) if a.name in shared and b.name in shared]
        if not numbers:
            continue
        intervals = new_pictures(
            [np.stack([answer.correct for answer in known[name]]) for name in shared],
            [(shared.index(pairs[i][1].name), shared.index(pairs[i][2].name)) for i in numbers],
            [confidences[i] for i in numbers],
            known[shared[0]][0].clusters,
        )
        for i, interval in zip(numbers, intervals, strict=True):
            result[i] = interval
    return result


def _resolution(found: Sequence[tuple[_Pair, Difference, Comparison]], claim: Claim, size: int) -> Resolution | None:
    """Seeds and time that would find a difference worth finding; None where the sweep could have seen the margin."""
    detectable = max(comparison.detectable for _, _, comparison in found)
    wanted = next((effect for effect in (WORTHWHILE, claim.margin) if detectable > effect), None)
    if wanted is None:
        return None
    seeds: int | None = 0
    for _, difference, _ in found:
        sd, share = _noise(difference)
        needed = seeds_needed(wanted, sd, size, share=share)
        seeds = None if seeds is None or needed is None else max(seeds, needed)
    if seeds is None:
        return Resolution(wanted, None, 0, 0.0)
    cells = {cell.name: cell for (_, *two), _, _ in found for cell in two}.values()
    more = {cell.name: max(seeds - len(cell.records), 0) for cell in cells}
    seconds = math.fsum(
        more[cell.name] * math.fsum(record.seconds for record in cell.records) / len(cell.records) for cell in cells
    )
    return Resolution(wanted, seeds, max(more.values()), seconds / 3600)


def _noise(difference: Difference) -> tuple[float, float]:
    """Root mean square of the two arms' standard deviations, and the first one's share of their variance."""
    a, b = variance(difference.a), variance(difference.b)
    return math.sqrt((a + b) / 2), a / (a + b)


def _arms(claim: Claim) -> tuple[str, ...]:
    return (*claim.rivals, claim.subject)
