"""Differences of printed accuracies against the noise that equal arms have; selection, chance and pixels."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from scipy import stats

from src.verdict.findings import Certainty, Finding, Severity, listing, names_of
from src.verdict.fit import Reading
from src.verdict.guards import LEAST_SEEDS
from src.verdict.printed import Arm, Kind, Table, dataset_facts, is_selected
from src.verdict.statistics import ALPHA, binomial_se, holm

SEED_SD = (0.1, 0.3)  # pp: annealed runs on CIFAR-10, a planning prior
UNANNEALED_SD = 1.0  # pp: the upper end of short runs
PAIRING = 3.6  # most by which shared test pictures were seen to shrink the standard error of a difference


def native(table: Table, readings: Sequence[Reading]) -> Iterator[Finding]:
    facts = dataset_facts(table)
    above = [r for r in readings if facts and facts[2] and r.px is not None and r.px > facts[2]]
    if facts and above:
        yield Finding(
            "G14",
            Severity.NOTE,
            Certainty.UNSUPPORTED,
            names_of(r.arm for r in above),
            f"{table.dataset} has {facts[2]} px; input sides of {min(r.px or 0 for r in above)} px and more add"
            " computation and no information, so that nothing follows for resolution on data that have more.",
            "Native side of the data set against the printed input sides.",
            "The same arms on data stored at the largest input side or above.",
        )


def selection(table: Table) -> Iterator[Finding]:
    heading = table.headings.get("accuracy", "")
    if is_selected(heading):
        yield Finding(
            "G4",
            Severity.DOUBT,
            Certainty.UNSUPPORTED,
            names_of(arm for arm in table.arms if arm.accuracy is not None),
            f"The column {heading!r} holds the best of several evaluations, which is too high, and by more for a"
            " noisier arm.",
            "The heading says so; the largest of ten equal evaluations with a standard deviation of 0.5 pp lies 0.77 pp"
            " above their mean.",
            "Accuracy of the checkpoint that a validation split chose, on a test split opened once.",
        )


@dataclass(frozen=True)
class _Gap:
    """A difference of accuracy between two arms, in pp, and the range that equal arms would differ within (95 %): with
    the least and the most noise of annealed runs, with that of short ones, and with test pictures alone."""

    a: Arm
    b: Arm
    value: float
    pictures: float
    friendly: float
    strict: float
    short: float

    @property
    def zone(self) -> int:
        """How many of the three noises it leaves behind."""
        return sum(abs(self.value) > bound for bound in (self.friendly, self.strict, self.short))


def _gap(a: Arm, b: Arm, pictures: tuple[int | None, int | None]) -> _Gap:
    assert a.accuracy is not None and b.accuracy is not None
    z = float(stats.norm.isf(ALPHA / 2))
    sampling = 0.0
    for arm, n in zip((a, b), pictures, strict=True):
        if n is not None and arm.accuracy is not None:
            sampling += binomial_se(arm.accuracy.value, n) ** 2
    images = 100 * z * math.sqrt(sampling)
    runs = z * math.sqrt(sum(1 / (arm.seeds or 1) for arm in (a, b)))
    friendly, strict, short = (
        math.hypot(images / shrink, runs * sd)
        for shrink, sd in ((PAIRING, SEED_SD[0]), (1.0, SEED_SD[1]), (1.0, UNANNEALED_SD))
    )
    return _Gap(a, b, 100 * (a.accuracy.value - b.accuracy.value), images, friendly, strict, short)


def noise(table: Table, readings: Sequence[Reading]) -> Iterator[Finding]:
    rows = [r for r in readings if r.arm.accuracy is not None]
    if len(rows) < 2:
        return
    pairs = list(_same_pairs(readings))
    yield from (_accidental(a, b) for a, b in pairs)
    arms = [r.arm for r in rows]
    enough = all(arm.seeds is not None and arm.seeds >= LEAST_SEEDS for arm in arms)
    if enough and all(arm.sd is not None for arm in arms):
        yield from _tested(arms)
    elif enough:
        yield Finding(
            "G10",
            Severity.NOTE,
            Certainty.UNSTATED,
            names_of(arms),
            "Means over seeds are printed without their standard deviation, so that no difference can be tested.",
            f"As printed: {_counts(arms)}.",
            "A column sd, or the accuracy of every run.",
        )
    else:
        yield _one_seed(table, arms, pairs)


def _counts(arms: Sequence[Arm]) -> str:
    """How many seeds the arms have, in words."""
    counts = sorted({arm.seeds for arm in arms if arm.seeds is not None})
    words = [("one seed" if n == 1 else f"{n} seeds") + " an arm" for n in counts]
    return " or ".join(words + ["a number of seeds that is not stated"] * any(arm.seeds is None for arm in arms))


def _tested(arms: Sequence[Arm]) -> Iterator[Finding]:
    """Welch's test of every pair from the printed means and standard deviations; a note where none differs."""
    couples = list(itertools.combinations(arms, 2))
    p = []
    for a, b in couples:
        assert a.accuracy and b.accuracy and a.sd and b.sd
        found = stats.ttest_ind_from_stats(
            a.accuracy.value, max(a.sd.high, 1e-9), a.seeds, b.accuracy.value, max(b.sd.high, 1e-9), b.seeds, False
        )
        p.append(float(found.pvalue))
    open_ = [f"{a.name} and {b.name}" for (a, b), q in zip(couples, holm(p), strict=True) if q > ALPHA]
    if open_:
        yield Finding(
            "G10",
            Severity.NOTE,
            Certainty.UNSUPPORTED,
            names_of(arms),
            f"{len(open_)} of {len(couples)} pairs of arms do not differ by more than seeds do: {'; '.join(open_)}.",
            f"Welch's test on the printed means and standard deviations, Holm over all pairs, {100 * (1 - ALPHA):g} %.",
            "More seeds, if those pairs matter.",
        )


def _all_inside(arms: Sequence[Arm], gaps: Sequence[_Gap], pairs: Sequence[tuple[Reading, Reading]]) -> str:
    """Sentence where no difference leaves the friendliest noise, with the table's own A/A pairs beside it."""
    largest = max(gaps, key=lambda g: abs(g.value))
    text = (
        f"Every difference lies inside noise, the largest of {len(gaps)} too: {_signed(largest)}, with {_counts(arms)};"
        " no order of the arms follows."
    )
    ranked = sorted(((arm.accuracy.value, arm.name) for arm in arms if arm.accuracy is not None), reverse=True)
    (best, first), (second, runner_up) = ranked[:2]
    for a, b in pairs:
        text += (
            f" {first} leads {runner_up} by {100 * (best - second):.2f} pp, while the one network of {a.arm.name} and"
            f" {b.arm.name} differs from itself by {_apart(a.arm, b.arm):.2f} pp."
        )
    return text


def _one_seed(table: Table, arms: Sequence[Arm], pairs: Sequence[tuple[Reading, Reading]]) -> Finding:
    """Differences of arms with too few runs, against the noise that equal arms have."""
    facts = dataset_facts(table)
    pictures = {arm.name: arm.n_test or (facts[1] if facts else None) for arm in arms}
    gaps = [_gap(a, b, (pictures[a.name], pictures[b.name])) for a, b in itertools.combinations(arms, 2)]
    inside, annealed, short, beyond = ([g for g in gaps if g.zone == zone] for zone in range(4))
    sampled = None not in pictures.values()
    if len(inside) == len(gaps):
        certainty, text = Certainty.UNSUPPORTED, _all_inside(arms, gaps, pairs)
    else:
        certainty = Certainty.UNSTATED
        text = (
            f"Not assessable: with {_counts(arms)} the noise of training cannot be estimated, and no difference has a p"
            f" value. Of {len(gaps)} differences {len(inside)} lie inside even the friendliest noise, {len(annealed)}"
            f" inside that of annealed runs, {len(short)} inside that of short or unannealed runs, {len(beyond)}"
            " beyond."
        )
        if beyond:
            listed = "; ".join(map(_signed, sorted(beyond, key=lambda g: -abs(g.value))))
            text += (
                f" The last ({listed}) are more than seeds and test pictures do by themselves, but one run cannot say"
                " whether scaling made them or something that happened to that run."
            )
        if sampled:
            large = sum(abs(g.value) > g.pictures for g in gaps)
            text += (
                f" {large} are larger than sampling of test pictures alone explains; noise of training comes on top."
            )
    ranges = (
        f"Equal arms differ by up to {min(g.friendly for g in gaps):.2f} pp (95 %) under the friendliest assumption"
        f" (seed SD {SEED_SD[0]:g} pp, the same test pictures), {max(g.strict for g in gaps):.2f} pp with seed SD"
        f" {SEED_SD[1]:g} pp, {max(g.short for g in gaps):.2f} pp with the {UNANNEALED_SD:g} pp of short or unannealed"
        " runs."
    )
    if sampled:
        errors = [100 * binomial_se(a.accuracy.value, pictures[a.name] or 1) for a in arms if a.accuracy is not None]
        ranges += (
            f" The binomial standard error of one accuracy is {min(errors):.2f} to {max(errors):.2f} pp; of a"
            f" difference, on other pictures, 95 % are {max(g.pictures for g in gaps):.2f} pp."
        )
    ranges += " The seed SDs are a planning prior, not estimated from this table."
    few = [arm for arm in arms if arm.seeds is None or arm.seeds < LEAST_SEEDS]
    return Finding(
        "G10",
        Severity.DOUBT,
        certainty,
        names_of(few),
        text,
        ranges,
        f"At least {LEAST_SEEDS} seeds in every arm (better 5), all runs printed, and per-picture predictions.",
    )


def _same_pairs(readings: Sequence[Reading]) -> Iterator[tuple[Reading, Reading]]:
    """Rows of two names and one network at one input side: an A/A test, whether meant or not."""
    for a, b in itertools.combinations(readings, 2):
        if a.px is None or a.px != b.px or a.arm.accuracy is None or b.arm.accuracy is None:
            continue
        plain = [r.unscaled or r.arm.kind is Kind.BASE for r in (a, b)]
        if all(plain) and (a.unscaled or b.unscaled):
            yield a, b


def _accidental(a: Reading, b: Reading) -> Finding:
    return Finding(
        "G10",
        Severity.FAULT,
        Certainty.CANNOT,
        names_of((a.arm, b.arm)),
        f"{a.arm.name} and {b.arm.name} are one network at {a.px} px under two names: an A/A test, in which"
        f" {_apart(a.arm, b.arm):.2f} pp are noise and nothing else.",
        "Both have the parameters (or, where none are printed, the cost) of the unscaled network at one input side.",
        "Hashes of the weight shapes of both modules.",
    )


def _apart(a: Arm, b: Arm) -> float:
    assert a.accuracy is not None and b.accuracy is not None
    return 100 * abs(a.accuracy.value - b.accuracy.value)


def _signed(gap: _Gap) -> str:
    return f"{gap.a.name} minus {gap.b.name} {gap.value:+.2f} pp"


def chance(table: Table) -> Iterator[Finding]:
    facts = dataset_facts(table)
    classes = table.classes or (facts[0] if facts else None)
    if classes is None:
        return
    low = []
    for arm in table.arms:
        pictures = arm.n_test or (facts[1] if facts else None)
        if arm.accuracy is None or pictures is None:
            continue
        if arm.accuracy.value <= 1 / classes + 2 * binomial_se(1 / classes, pictures):
            low.append(arm)
    if low:
        yield Finding(
            "G11",
            Severity.DOUBT,
            Certainty.UNSUPPORTED,
            names_of(low),
            f"{listing(names_of(low))} {'is' if len(low) == 1 else 'are'} at chance ({100 / classes:.1f} %): what"
            " failed to train says nothing about scaling.",
            f"One in {classes} classes, plus two binomial standard errors.",
            "Learning curves, and accuracy at the input side of training.",
        )
