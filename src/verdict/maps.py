"""What the scores of activation maps allow to be said of the paper's Fig. 7: a scaled network "focuses on more relevant
regions with more object details" (Tan & Le 2019, sec. 6).

Of that, relevance is tested: the share of a map's positive evidence that lies on the object, beyond the share that the
object takes of the picture, (E - a) / (1 - a), in percentage points (pp). A score counts only pictures that all arms
classify correctly, seed by seed, so that arms are compared on the same pictures and nothing is asked of a map that
explains a class the network did not see. A finer grid scores higher by itself: an arm is better only if it is so on its
own grid and on the grid of the coarsest arm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from src.cam.score_file import ScoreFile
from src.cam.scores import MEASURES, Floats
from src.record import METRICS, RunRecord
from src.verdict.cells import Cell, by_budget
from src.verdict.grammar import Finding, Place, Regime
from src.verdict.statistics import (
    ALPHA,
    Difference,
    Estimate,
    compare,
    estimate,
    holm,
    holm_confidence,
    smallest_detectable,
    spread,
)

RELEVANCE = "relevance"
LEAST_SEEDS = 5
LEAST_PICTURES = 30  # that all arms classify correctly, in every seed
SUBJECT, RIVALS = "compound", ("depth", "width", "resolution")

Files = Mapping[RunRecord, ScoreFile]
_Key = tuple[str, float]  # name and budget of a cell
_Runs = dict[_Key, dict[int, ScoreFile]]  # by seed


@dataclass(frozen=True)
class MapRow:
    """Scores of one arm's maps, each a mean over seeds of means over the pictures that count.

    native, common: of the network's maps. prior, randomised, larger: of the controls (see
    `src.cam.score_file.SOURCES`), on the native grid. A measure that has no score stands in none of them.
    """

    name: str
    budget: float
    seeds: tuple[int, ...]
    pictures: int  # that count, in the seed with the fewest
    native: Mapping[str, Estimate]
    common: Mapping[str, Estimate]
    prior: Mapping[str, Estimate]
    randomised: Mapping[str, Estimate]
    larger: Mapping[str, Estimate]


@dataclass(frozen=True)
class OnGrid:
    """One comparison on one grid, in pp: subject - rival."""

    difference: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.difference:+.1f} [{self.low:+.1f}, {self.high:+.1f}] pp"


@dataclass(frozen=True)
class MapComparison:
    """Relevance of the subject's maps against one rival's."""

    rival: str
    native: OnGrid
    common: OnGrid
    confidence: float  # of both intervals: the level of this comparison's Holm step
    p: float  # Holm-adjusted, of "no difference on the one grid or on the other"
    detectable: float  # smallest true difference found with 80 % power on the common grid, pp
    finer_grid: bool  # better on the own grids, by the same test, but not on the common one

    def __str__(self) -> str:
        return (
            f"{self.rival} by {self.common} on the common grid and {self.native} on their own "
            f"({100 * self.confidence:.1f} % intervals, Holm p={self.p:.2g})"
        )


@dataclass(frozen=True)
class MapSentence:
    """The sentence on the relevance of one arm's maps at one budget, with one of the outcomes of the closed grammar."""

    outcome: str  # supported, contradicted, no evidence, not assessable
    place: Place
    subject: str
    rivals: tuple[str, ...]
    comparisons: tuple[MapComparison, ...]
    reasons: tuple[Finding, ...]  # why it is not assessable
    seeds: int
    pictures: int
    regime: Regime

    def __str__(self) -> str:
        start = f"{self.outcome.capitalize()} {self.place}"
        if self.outcome == "not assessable":
            reasons = " ".join(map(str, self.reasons)).rstrip(".")
            rivals = " or ".join(self.rivals)
            body = f"whether {self.subject}'s activation maps lie more on the object than those of {rivals}. {reasons}"
            return f"{start}: {body}. Regime: {self.regime}."
        listed = "; ".join(map(str, self.comparisons))
        verb = {"supported": "lie more on the object than", "contradicted": "lie less on the object than"}.get(
            self.outcome, "differ in how much they lie on the object from"
        )
        body = f"{self.subject}'s activation maps {verb} those of {listed}"
        body += f"; energy in box beyond chance, {self.seeds} seeds, {self.pictures} pictures or more that all of them"
        body += " classify correctly"
        if self.outcome == "no evidence":
            finer = [c.rival for c in self.comparisons if c.finer_grid]
            if finer:
                body += f"; the gain on {', '.join(finer)} is that of a finer grid: on the common one it is not found"
            detectable = max(c.detectable for c in self.comparisons)
            body += f"; at 80 % power this sweep could only detect a difference of {detectable:.1f} pp or more"
        return f"{start}: {body}. Regime: {self.regime}."


def judge_maps(
    cells: Sequence[Cell],
    files: Files,
    regime: Regime,
    findings: Sequence[Finding] = (),
    subject: str = SUBJECT,
    rivals: Sequence[str] = RIVALS,
) -> tuple[tuple[MapSentence, ...], tuple[Finding, ...]]:
    """Sentences on the relevance of the subject's maps at every budget, and what the controls found.

    Args:
        cells: of one network on one data set.
        files: of their runs; those of some may be missing.
        regime: of the cells.
        findings: of the study's guards; those that block a comparison of accuracies block one of maps.
        subject, rivals: arms.
    """
    sentences: list[MapSentence] = []
    remarks: list[Finding] = []
    for budget, present in by_budget(cells).items():
        subjects = [cell for cell in present if cell.arm == subject]
        others = [cell for arm in rivals for cell in present if cell.arm == arm]
        if not subjects or not others:
            continue  # the sentence on accuracy says which arms are missing
        first, names = subjects[0], tuple(cell.name for cell in others)
        place, runs = _place(budget, present), _runs([first, *others], files)
        reasons = [f for f in findings if f.blocking and f.touches(budget, {first.name, *names})]
        reasons += _lacking(budget, runs)
        counted = {} if reasons else _counted(runs, RELEVANCE)
        reasons += [] if reasons else _unfit(budget, runs, counted)
        pictures = min((len(rows) for rows in counted.values()), default=0)
        if reasons:
            told = MapSentence("not assessable", place, first.name, names, (), tuple(reasons), 0, pictures, regime)
            sentences.append(told)
            continue
        outcomes: dict[str, list[MapComparison]] = {}
        for comparison in _compared(runs, counted):
            better = "supported" if comparison.common.difference > 0 else "contradicted"
            outcomes.setdefault(better if comparison.p <= ALPHA else "no evidence", []).append(comparison)
        for outcome in ("supported", "contradicted", "no evidence"):
            if outcome in outcomes:
                listed = tuple(outcomes[outcome])
                asked = tuple(comparison.rival for comparison in listed)
                sentences.append(
                    MapSentence(outcome, place, first.name, asked, listed, (), len(counted), pictures, regime)
                )
        remarks += _beside_prior(budget, runs, counted)
    remarks += _fed_larger(cells, files)
    return tuple(sentences), tuple(remarks)


def map_rows(cells: Sequence[Cell], files: Files) -> tuple[MapRow, ...]:
    """Scores of every arm that has files, over the seeds that all of these have and the pictures that all of them
    classify correctly."""
    runs = {key: own for key, own in _runs(cells, files).items() if own}
    counted = {measure: _counted(runs, measure) for measure in MEASURES}

    def column(key: _Key, source: str, grid: str) -> dict[str, Estimate]:
        means = {m: _means(runs, m, rows, source, grid)[key] for m, rows in counted.items()}
        return {m: estimate(values) for m, values in means.items() if values}

    return tuple(
        MapRow(
            name,
            budget,
            tuple(counted[RELEVANCE]),
            min((len(rows) for rows in counted[RELEVANCE].values()), default=0),
            column((name, budget), "map", "native"),
            column((name, budget), "map", "common"),
            column((name, budget), "prior", "native"),
            column((name, budget), "randomised", "native"),
            column((name, budget), "larger", "native"),
        )
        for name, budget in runs
    )


def _runs(cells: Sequence[Cell], files: Files) -> _Runs:
    """The files of each cell by seed; of a seed that stands there twice, the first."""
    return {
        (cell.name, cell.budget): {r.seed: files[r] for r in reversed(cell.records) if r in files} for cell in cells
    }


def _seeds(runs: _Runs) -> list[int]:
    return sorted(set.intersection(*(set(own) for own in runs.values()))) if runs else []


def _counted(runs: _Runs, measure: str) -> dict[int, NDArray[np.int64]]:
    """Of each seed that all cells have: identities of the pictures that count, ascending.

    They are those that all arms were asked about, classify correctly (in a mosaic: all its tiles, with confidence),
    and whose maps have a score in all of them.
    """
    grid = _coarsest(runs)
    result = {}
    for seed in _seeds(runs):
        several = [own[seed] for own in runs.values()]
        scores = [[file.score(measure), file.on_grid(measure, grid)] for file in several]
        # A measure that was nowhere scored on the common grid is asked for on the arms' own alone.
        both = all(np.isfinite(common).any() for _, common in scores)
        shared: set[int] | None = None
        for file, (native, common) in zip(several, scores, strict=True):
            fit = file.confident() if measure == "grid_pointing" else file.right()
            fit = fit & np.isfinite(native) & (np.isfinite(common) | (not both))
            own = set(file.identities[fit].tolist())
            shared = own if shared is None else shared & own
        result[seed] = np.array(sorted(shared or ()), np.int64)
    return result


def _means(
    runs: _Runs, measure: str, counted: Mapping[int, NDArray[np.int64]], source: str, grid: str
) -> dict[_Key, list[float]]:
    """Of each cell: the mean over the pictures that count, seed by seed; none where a seed has no score."""
    cells = _coarsest(runs)
    means: dict[_Key, list[float]] = {}
    for key, own in runs.items():
        values: list[float] = []
        for seed, pictures in counted.items():
            file = own[seed]
            on_common = source == "map" and grid == "common"
            scores = file.on_grid(measure, cells) if on_common else file.score(measure, source, grid)
            chosen = _of(file, scores, pictures)
            values += [float(np.mean(chosen[np.isfinite(chosen)]))] if np.isfinite(chosen).any() else []
        means[key] = values
    return means


def _of(file: ScoreFile, scores: Floats, pictures: NDArray[np.int64]) -> Floats:
    """Scores of the pictures with these identities."""
    order = np.argsort(file.identities)
    return scores[order[np.searchsorted(file.identities, pictures, sorter=order)]]


def _coarsest(runs: _Runs) -> tuple[int, int]:
    """Cells of the coarsest common grid that any arm of these knows."""
    grids = [tuple(file.common_grid.tolist()) for own in runs.values() for file in own.values()]
    return (min(g[0] for g in grids), min(g[1] for g in grids)) if grids else (1, 1)


def _lacking(budget: float, runs: _Runs) -> list[Finding]:
    """Why nothing can be compared at all."""
    bare = [name for (name, _), own in runs.items() if not own]
    if bare:
        text = f"no scores of the maps of {', '.join(bare)}"
        return [Finding("G12", True, text, "run with cam_scores=256", budget, tuple(bare))]
    several = [file for own in runs.values() for file in own.values()]
    methods = sorted({file.method for file in several})
    if len(methods) > 1:
        text = f"maps were drawn in different ways ({', '.join(methods)})"
        return [Finding("G12", True, text, "give all arms one cam_method", budget)]
    if not any(np.isfinite(file.score(RELEVANCE)).any() for file in several):
        text = "the data have no boxes, so that nobody knows where the object is"
        return [Finding("G12", True, text, "see the scores that need none: grid pointing game, insertion gain", budget)]
    seeds = _seeds(runs)
    if len(seeds) < LEAST_SEEDS:
        have = "1 seed has" if len(seeds) == 1 else f"{len(seeds)} seeds have"
        text = f"{have} scored maps in all arms, a sentence on maps needs {LEAST_SEEDS}"
        wanted = ",".join(map(str, range(LEAST_SEEDS)))
        return [Finding("G10", True, text, f"add `seed={wanted}` to the command", budget)]
    return []


def _unfit(budget: float, runs: _Runs, counted: Mapping[int, NDArray[np.int64]]) -> list[Finding]:
    """Why maps that are there cannot be compared: too few pictures, no noise, or maps that need no training."""
    fewest = min(len(pictures) for pictures in counted.values())
    if fewest < LEAST_PICTURES:
        text = f"all arms classify only {fewest} scored pictures correctly, a sentence on maps needs {LEAST_PICTURES}"
        return [Finding("G12", True, text, "raise cam_scores, or train longer", budget)]
    learned, ignorant = (_means(runs, RELEVANCE, counted, source, "native") for source in ("map", "randomised"))
    pooled = _means(runs, RELEVANCE, counted, "map", "common")
    subject, *rivals = runs
    for rival in rivals:
        if None in (_difference(means[subject], means[rival]) for means in (learned, pooled)):
            text = (
                f"maps of {subject[0]} and {rival[0]} score the same in all seeds, so there is no noise to compare with"
            )
            return [Finding("G10", True, text, "train the seeds anew", budget, (subject[0], rival[0]))]
    same = []
    for key in runs:
        difference = _difference(learned[key], ignorant[key])
        if difference is None or difference.value <= 0 or difference.p > ALPHA:
            same.append(key[0])
    if not same:
        return []
    text = f"maps of {', '.join(same)} lie no more on the object than those of the same network with random weights"
    return [Finding("G12", True, text, "train longer, or take data with larger objects", budget, tuple(same))]


def _beside_prior(budget: float, runs: _Runs, counted: Mapping[int, NDArray[np.int64]]) -> list[Finding]:
    """Arms that a guess at the middle of the picture equals."""
    learned, prior = (_means(runs, RELEVANCE, counted, source, "native") for source in ("map", "prior"))
    close = [key[0] for key in runs if np.mean(learned[key]) <= np.mean(prior[key])]
    if not close:
        return []
    text = f"maps of {', '.join(close)} lie no more on the object than a bright middle of the picture does"
    return [Finding("G12", False, text, "objects stand in the middle; no map can show much here", budget, tuple(close))]


def _fed_larger(cells: Sequence[Cell], files: Files) -> list[Finding]:
    """What larger pictures alone do for the base's maps."""
    found = []
    for cell in (cell for cell in cells if cell.is_base):
        runs = {
            key: {seed: file for seed, file in own.items() if file.larger} for key, own in _runs([cell], files).items()
        }
        counted = _counted(runs, RELEVANCE)
        for (name, _), pixels in ((key, {f.larger for f in own.values()}) for key, own in runs.items()):
            as_trained, larger = (
                _means(runs, RELEVANCE, counted, source, "common")[(name, cell.budget)] for source in ("map", "larger")
            )
            if not larger:
                continue
            gain = 100 * (float(np.mean(larger)) - float(np.mean(as_trained)))
            text = (
                f"{name} as trained, fed pictures of {'/'.join(map(str, sorted(pixels)))} px, has maps that lie"
                f" {gain:+.1f} pp more on the object on the common grid: so much is resolution without scaling"
            )
            found.append(Finding("G12", False, text, "", None, (name,)))
    return found


def _compared(runs: _Runs, counted: Mapping[int, NDArray[np.int64]]) -> list[MapComparison]:
    """The first cell against each other one; Holm over all of them, of the larger p value of the two grids."""
    subject, *rivals = runs
    native, common = (_means(runs, RELEVANCE, counted, "map", grid) for grid in ("native", "common"))
    pairs = []
    for rival in rivals:
        pair = [_difference(means[subject], means[rival]) for means in (native, common)]
        assert pair[0] is not None and pair[1] is not None  # `_unfit` has seen that there is noise
        pairs.append((pair[0], pair[1]))
    joint = [max(a.p, b.p) if a.value * b.value > 0 else 1.0 for a, b in pairs]
    adjusted, levels = holm(joint), holm_confidence(joint)
    alone = holm([a.p for a, _ in pairs])
    comparisons = []
    for rival, (a, b), p, level, p_alone in zip(rivals, pairs, adjusted, levels, alone, strict=True):
        sd = math.sqrt((float(np.var(b.a, ddof=1)) + float(np.var(b.b, ddof=1))) / 2)
        comparisons.append(
            MapComparison(
                rival=rival[0],
                native=OnGrid(a.value, *a.interval(level)),
                common=OnGrid(b.value, *b.interval(level)),
                confidence=level,
                p=p,
                detectable=smallest_detectable(sd, len(b.a), len(pairs)),
                finer_grid=p > ALPHA and p_alone <= ALPHA and a.value > 0,
            )
        )
    return comparisons


def _difference(a: Sequence[float], b: Sequence[float]) -> Difference | None:
    """In pp; None where there is nothing to compare."""
    try:
        return compare([100 * value for value in a], [100 * value for value in b])
    except ValueError:
        return None


def _place(budget: float, present: Sequence[Cell]) -> Place:
    macs = [METRICS["macs"].transform(cell.first.macs) for cell in present]
    spent = math.fsum(cell.first.price / cell.first.base_price for cell in present) / len(present)
    prices = [cell.first.price for cell in present]
    return Place(budget, math.fsum(macs) / len(macs), spread(prices), present[0].first.currency, spent)
