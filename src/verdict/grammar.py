"""The closed grammar: the only sentences that a report may say about arms. Free text cannot state a winner (guard G14).

A sentence has one of five outcomes: supported, equivalent, contradicted, no evidence, not assessable. Differences are
percentage points (pp) of test accuracy. Every sentence names its budget and ends with its regime.
"""

from __future__ import annotations

from dataclasses import dataclass

from src.record import CURRENCY_LABELS


@dataclass(frozen=True)
class Regime:
    """Where a sentence holds, and nowhere else."""

    data: str
    native: str  # stored pixels of the data
    network: str
    base: str  # input pixels of the base network
    recipe: str
    epochs: str

    def __str__(self) -> str:
        return (
            f"{self.network} from {self.base} px on {self.data} ({self.native} px native), {self.epochs} epochs of "
            f"recipe {self.recipe}; not extrapolated"
        )


@dataclass(frozen=True)
class Place:
    """A budget as it was realised."""

    budget: float
    macs: float  # mean over arms, M multiply-adds
    spread: float  # largest over smallest price - 1, in the budget's currency
    currency: str = "macs"
    spent: float = 1.0  # mean price over the base's; differs from `budget` where training is sized apart from networks

    def __str__(self) -> str:
        within = f"arms within {100 * self.spread:.1f} %"
        if self.currency == "macs":
            return f"at {self.budget:g}x ({self.macs:.1f} M MACs, {within})"
        unit = CURRENCY_LABELS[self.currency]
        asked = (
            f"{self.budget:g}x networks and {self.spent:.3g}x" if self.currency == "train_macs" else f"{self.budget:g}x"
        )
        return f"at {asked} {unit} ({within} in {unit}; {self.macs:.1f} M MACs on average)"


@dataclass(frozen=True)
class Finding:
    """A guard that found something; `blocking` findings make the claims that they touch not assessable."""

    guard: str
    blocking: bool
    text: str
    remedy: str
    budget: float | None = None  # None: the whole study
    arms: tuple[str, ...] = ()  # names of cells; empty: all of the budget

    def touches(self, budget: float, arms: set[str]) -> bool:
        """Whether the finding concerns any of these cells at this budget."""
        return self.budget in (None, budget) and (not self.arms or bool(arms & set(self.arms)))

    def __str__(self) -> str:
        where = "" if self.budget is None else f" at {self.budget:g}x"
        return (
            f"{self.guard}{where}: {self.text}; {self.remedy}." if self.remedy else f"{self.guard}{where}: {self.text}."
        )


@dataclass(frozen=True)
class Look:
    """One reading of a family of claims at one budget; all that decides its level is settled before its runs are."""

    family: str
    network: str
    data: str
    budget: float
    seeds: int  # of the arm with the fewest, as read
    planned_seeds: int
    runs: int  # of all arms of the family, as read
    planned_runs: int
    level: float  # chance of a false winner that this reading may take

    @property
    def complete(self) -> bool:
        """Whether all planned runs were read."""
        return self.runs == self.planned_runs


@dataclass(frozen=True)
class Reading:
    """How far a sentence's numbers may be trusted beside the usual: early, after early readings, or declared late."""

    look: Look | None = None  # None: there was nothing to read yet
    earlier: int = 0  # readings before this one that have spent a part of the error
    declared_after: int = 0  # finished runs

    def __str__(self) -> str:
        parts = []
        if self.look is not None and not self.look.complete:
            parts.append(f"after {self.look.seeds} of {self.look.planned_seeds} planned seeds")
        if self.look is not None and (self.earlier or not self.look.complete):
            spent = f" (the rest was spent on {self.earlier} earlier)" if self.look.complete else ""
            parts.append(f"{100 * self.look.level:.2g} % of false winners at this reading{spent}")
        if self.declared_after:
            parts.append(f"declared after {self.declared_after} {_plural('run', self.declared_after)} had finished")
        return "".join(f", {part}" for part in parts)


AT_ONCE = Reading()


@dataclass(frozen=True)
class Comparison:
    """Outcome of one subject against one rival, in pp of test accuracy."""

    rival: str
    difference: float  # subject - rival
    low: float
    high: float
    confidence: float  # of both intervals: the level of this comparison's Holm step
    p: float  # Holm-adjusted, of no difference; in `Equivalent` of one of at least the margin
    seeds: tuple[int, int]
    detectable: float  # smallest true difference found with 80 % power
    new_pictures: tuple[float, float] | None = None  # interval for other seeds and other pictures of the same kind

    def __str__(self) -> str:
        return f"{self.rival} by {self.numbers}"

    @property
    def numbers(self) -> str:
        """The difference with its intervals."""
        pictures = ""
        if self.new_pictures is not None:
            pictures = f"; [{self.new_pictures[0]:+.2f}, {self.new_pictures[1]:+.2f}] for new pictures"
        return (
            f"{self.difference:+.2f} [{self.low:+.2f}, {self.high:+.2f}] pp "
            f"({100 * self.confidence:.1f} % interval, Holm p={self.p:.2g}, {self.seeds[0]} and {self.seeds[1]} seeds"
            f"{pictures})"
        )


WORTHWHILE = 0.5  # pp: the difference that "no evidence" is planned against


@dataclass(frozen=True)
class Resolution:
    """What would find a named difference with 80 % power."""

    difference: float  # pp
    seeds: int | None  # per arm; None: over 1000
    more: int  # of these still to run, per arm
    hours: float  # of all of them one after another, at the seconds that these arms' runs took

    def __str__(self) -> str:
        found = f"{self.difference:g} pp would take {'over 1000' if self.seeds is None else self.seeds} seeds per arm"
        if self.seeds is None:
            return found
        price = f"{self.hours:.2g} h" if self.hours >= 1 else f"{60 * self.hours:.2g} min"
        return f"{found}, {self.more} more {_plural('seed', self.more)} an arm, about {price} on this machine"


@dataclass(frozen=True)
class Supported:
    """The subject is better than these rivals."""

    place: Place
    subject: str
    comparisons: tuple[Comparison, ...]
    regime: Regime
    margin: float
    reading: Reading = AT_ONCE
    outcome = "supported"

    def __str__(self) -> str:
        return _decided(self, "beats")


@dataclass(frozen=True)
class Contradicted:
    """The subject is worse than these rivals."""

    place: Place
    subject: str
    comparisons: tuple[Comparison, ...]
    regime: Regime
    margin: float
    reading: Reading = AT_ONCE
    outcome = "contradicted"

    def __str__(self) -> str:
        return _decided(self, "trails")


@dataclass(frozen=True)
class Equivalent:
    """The subject differs from these rivals by less than the margin, in either direction."""

    place: Place
    subject: str
    comparisons: tuple[Comparison, ...]
    regime: Regime
    margin: float
    reading: Reading = AT_ONCE
    outcome = "equivalent"

    def __str__(self) -> str:
        listed = "; ".join(f"{c.rival}, with a difference of {c.numbers}" for c in self.comparisons)
        body = f"{self.subject} is within ±{self.margin:g} pp of {listed}"
        return _sentence(f"Equivalent {self.place}{self.reading}: {body}", self.regime)


@dataclass(frozen=True)
class NoEvidence:
    """The sweep could not tell the subject from these rivals; says what it could have seen, and what would."""

    place: Place
    subject: str
    comparisons: tuple[Comparison, ...]
    regime: Regime
    margin: float
    reading: Reading = AT_ONCE
    resolution: Resolution | None = None  # None: nothing to add while planned runs are still to come
    outcome = "no evidence"

    def __str__(self) -> str:
        sweep = "this sweep" if self.reading.look is None or self.reading.look.complete else "this reading"
        body = (
            f"No evidence {self.place}{self.reading}: {self.subject} differs from {_listed(self.comparisons)}, which"
            " seeds alone can do; "
            f"at 80 % power {sweep} could only detect a difference of {self.detectable:.2f} pp or more"
        )
        return _sentence(f"{body}, and {self.resolution}" if self.resolution else body, self.regime)

    @property
    def detectable(self) -> float:
        """Smallest true difference that the sweep finds with 80 % power in all of these comparisons, pp."""
        return max(c.detectable for c in self.comparisons)


@dataclass(frozen=True)
class NotAssessable:
    """The sweep cannot decide; names every guard that stands in the way and what to do."""

    place: Place | None
    subject: str
    rivals: tuple[str, ...]
    reasons: tuple[Finding, ...]
    regime: Regime
    reading: Reading = AT_ONCE
    outcome = "not assessable"

    def __str__(self) -> str:
        where = f"{'' if self.place is None else f' {self.place}'}{self.reading}"
        reasons = " ".join(str(reason) for reason in self.reasons)
        question = f"whether {self.subject} beats {' or '.join(self.rivals)}"
        return _sentence(f"Not assessable{where}: {question}. {reasons.rstrip('.')}", self.regime)


Sentence = Supported | Equivalent | Contradicted | NoEvidence | NotAssessable


def _decided(sentence: Supported | Contradicted, verb: str) -> str:
    body = f"{sentence.outcome.capitalize()} {sentence.place}{sentence.reading}: {sentence.subject} {verb}"
    small = [c.rival for c in sentence.comparisons if max(abs(c.low), abs(c.high)) < sentence.margin]
    note = f"; all of it less than the margin of {sentence.margin:g} pp against {', '.join(small)}" if small else ""
    return _sentence(f"{body} {_listed(sentence.comparisons)}{note}", sentence.regime)


def _listed(comparisons: tuple[Comparison, ...]) -> str:
    return "; ".join(str(c) for c in comparisons)


def _plural(word: str, count: int) -> str:
    return word if count == 1 else f"{word}s"


def _sentence(body: str, regime: Regime) -> str:
    return f"{body}. Regime: {regime}."
