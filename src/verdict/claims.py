"""What a study claims, said before it runs: plain data, so that the command line need not load statistics for it."""

from __future__ import annotations

import math
from dataclasses import dataclass

MARGIN = 0.3  # pp of test accuracy: what the reference calls equivalent (TOST)


@dataclass(frozen=True)
class Claim:
    """The subject against each rival, at every budget; equivalent means closer than `margin` pp of test accuracy.

    Raises:
        ValueError: it compares nothing, or an arm with itself or twice, or has no margin.
    """

    subject: str
    rivals: tuple[str, ...]
    margin: float = MARGIN

    def __post_init__(self) -> None:
        if not self.subject or not self.rivals or not all(self.rivals):
            raise ValueError(
                f"claims: subject={self.subject!r} and rivals={list(self.rivals)} compare nothing; name arms, as in"
                " {subject: compound, rivals: [depth, width, resolution]}"
            )
        if self.subject in self.rivals or len(set(self.rivals)) < len(self.rivals):
            raise ValueError(
                f"claims: rivals={list(self.rivals)} of subject={self.subject} must be other arms, each named once"
            )
        if not (math.isfinite(self.margin) and self.margin > 0):
            raise ValueError(
                f"claims: margin={self.margin:g} must be a number of percentage points above 0, such as 0.3"
            )

    def __str__(self) -> str:
        return f"{self.subject} against {', '.join(self.rivals)}, margin {self.margin:g} pp"


@dataclass(frozen=True)
class Family:
    """Claims that were declared together: Holm corrects over all their comparisons at one budget.

    after: runs that had finished when the family was declared; 0: it was declared before the study ran.
    """

    claims: tuple[Claim, ...]
    after: int = 0

    def __str__(self) -> str:
        return "; ".join(map(str, self.claims))


PRIMARY = Claim("compound", ("depth", "width", "resolution"))
DEFAULT = Family((PRIMARY,))
