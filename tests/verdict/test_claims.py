"""Claims are checked where they are made."""

from __future__ import annotations

import pytest

from src.verdict.claims import DEFAULT, Claim, Family


@pytest.mark.parametrize(
    ("subject", "rivals", "margin", "words"),
    [
        ("", ("depth",), 0.3, "compare nothing"),
        ("compound", (), 0.3, "compare nothing"),
        ("compound", ("depth", ""), 0.3, "compare nothing"),
        ("compound", ("depth", "compound"), 0.3, "other arms"),
        ("compound", ("depth", "depth"), 0.3, "named once"),
        ("compound", ("depth",), 0.0, "margin=0 "),
        ("compound", ("depth",), -0.1, "margin=-0.1 "),
        ("compound", ("depth",), float("nan"), "margin=nan"),
    ],
)
def test_a_claim_that_compares_nothing_is_refused(
    subject: str, rivals: tuple[str, ...], margin: float, words: str
) -> None:
    with pytest.raises(ValueError, match="claims: ") as refused:
        Claim(subject, rivals, margin)
    assert words in str(refused.value)


def test_families_of_equal_claims_have_one_name_whenever_they_were_declared() -> None:
    assert str(DEFAULT) == "compound against depth, width, resolution, margin 0.3 pp"
    assert str(Family(DEFAULT.claims, after=3)) == str(DEFAULT)
    assert str(Family((Claim("compound", ("depth",), 0.2),))) != str(Family((Claim("compound", ("depth",)),)))
