"""The closed grammar: the only sentences that a report may say about arms. Free text cannot state a winner (guard G14).

Differences are percentage points (pp) of test accuracy. Every sentence names its budget and ends with its regime.
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
class Comparison:
    """Outcome of one subject against one rival, in pp of test accuracy."""

    rival: str
    difference: float  # subject - rival
    low: float
    high: float
    confidence: float  # of [low, high]: the level of this comparison's Holm step
    p: float  # Holm-adjusted
    seeds: tuple[int, int]
    detectable: float  # smallest true difference found with 80 % power
    wanted_seeds: int | None  # seeds per arm that would find WORTHWHILE pp; None: beyond reach

    def __str__(self) -> str:
        return (
            f"{self.rival} by {self.difference:+.2f} [{self.low:+.2f}, {self.high:+.2f}] pp "
            f"({100 * self.confidence:.1f} % interval, Holm p={self.p:.2g}, {self.seeds[0]} and {self.seeds[1]} seeds)"
        )


WORTHWHILE = 0.5  # pp: the difference that "no evidence" is planned against


@dataclass(frozen=True)
class Supported:
    """The subject is better than these rivals."""

    place: Place
    subject: str
    comparisons: tuple[Comparison, ...]
    regime: Regime
    outcome = "supported"

    def __str__(self) -> str:
        return _sentence(f"Supported {self.place}: {self.subject} beats {_listed(self.comparisons)}", self.regime)


@dataclass(frozen=True)
class Contradicted:
    """The subject is worse than these rivals."""

    place: Place
    subject: str
    comparisons: tuple[Comparison, ...]
    regime: Regime
    outcome = "contradicted"

    def __str__(self) -> str:
        return _sentence(f"Contradicted {self.place}: {self.subject} trails {_listed(self.comparisons)}", self.regime)


@dataclass(frozen=True)
class NoEvidence:
    """The sweep could not tell the subject from these rivals; says what it could have seen."""

    place: Place
    subject: str
    comparisons: tuple[Comparison, ...]
    regime: Regime
    outcome = "no evidence"

    def __str__(self) -> str:
        detectable = max(c.detectable for c in self.comparisons)
        body = (
            f"No evidence {self.place}: {self.subject} differs from {_listed(self.comparisons)}, which"
            " seeds alone can do; "
            f"at 80 % power this sweep could only detect a difference of {detectable:.2f} pp or more"
        )
        if detectable > WORTHWHILE:
            wanted = [c.wanted_seeds for c in self.comparisons]
            most = None if None in wanted else max(w for w in wanted if w is not None)
            body += f", and {WORTHWHILE:g} pp would take {'over 1000' if most is None else most} seeds per arm"
        return _sentence(body, self.regime)


@dataclass(frozen=True)
class NotAssessable:
    """The sweep cannot decide; names every guard that stands in the way and what to do."""

    place: Place | None
    subject: str
    rivals: tuple[str, ...]
    reasons: tuple[Finding, ...]
    regime: Regime
    outcome = "not assessable"

    def __str__(self) -> str:
        where = "" if self.place is None else f" {self.place}"
        reasons = " ".join(str(reason) for reason in self.reasons)
        question = f"whether {self.subject} beats {' or '.join(self.rivals)}"
        return _sentence(f"Not assessable{where}: {question}. {reasons.rstrip('.')}", self.regime)


Sentence = Supported | Contradicted | NoEvidence | NotAssessable


def _listed(comparisons: tuple[Comparison, ...]) -> str:
    return "; ".join(str(c) for c in comparisons)


def _sentence(body: str, regime: Regime) -> str:
    return f"{body}. Regime: {regime}."
