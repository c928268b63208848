"""What an audit of a published table may find, and the words that all its sentences share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from src.verdict.printed import GROWING, Arm, Kind


class Certainty(StrEnum):
    """How sure a finding is."""

    CANNOT = "cannot be true"
    UNSUPPORTED = "does not follow"
    UNSTATED = "not stated"


class Severity(StrEnum):
    """What a finding does to the table: a fault or a doubt is an accusation, a note is none."""

    FAULT = "fault"
    DOUBT = "doubt"
    NOTE = "note"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, unsupported or missing.

    guard: code of the guard that would have prevented it. arms: rows concerned, by name. text: one sentence with its
    numbers. derivation: how they were derived. settle: what would settle it.
    """

    guard: str
    severity: Severity
    certainty: Certainty
    arms: tuple[str, ...]
    text: str
    derivation: str
    settle: str

    @property
    def accuses(self) -> bool:
        """Whether the table is accused of something."""
        return self.severity is not Severity.NOTE


def said(arm: Arm) -> str:
    """What is stated of a row's scaling."""
    factors = [
        f"{axis} x{printed.value:g}"
        for axis, printed in (("depth", arm.depth), ("width", arm.width))
        if printed is not None and printed.value != 1.0
    ]
    if arm.kind is Kind.RESOLUTION:
        factors.append("more pixels")
    return ", ".join(factors) or (f"{arm.kind}, factor not stated" if arm.kind in GROWING else "not scaled")


def names_of(arms: Iterable[Arm]) -> tuple[str, ...]:
    return tuple(sorted(arm.name for arm in arms))


def listing(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def verb_s(rows: Sequence[object]) -> str:
    """The ending of a verb."""
    return "s" if len(rows) == 1 else ""


def millions(value: float | None) -> str:
    """Millions with the digits that a reader compares."""
    assert value is not None
    millions = value / 1e6
    return f"{millions:.2f}" if 0.1 <= millions < 1e4 else f"{millions:.4g}"


def span_of(values: Iterable[float]) -> str:
    low, high = min(values), max(values)
    return millions(low) if millions(low) == millions(high) else f"{millions(low)} to {millions(high)}"
