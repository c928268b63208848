"""What to say when a word is none of the known ones: one sentence for every option of every room."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

FEW = 12  # so many choices are listed in full


def suggestion(word: str, choices: Iterable[str], *, least: float = 0.0) -> str:
    """The end of a sentence about a misspelt `word`: the nearest choice, and all of them if they are few.

    Args:
        word: what was written.
        choices: what there is.
        least: similarity in [0, 1] below which no choice is called near.

    Returns:
        "did you mean X (one of X, Y)?", "choose one of X, Y", or "" if there are no choices, or many and none near.
    """
    names = sorted(set(choices))
    near = difflib.get_close_matches(word.lower(), names, n=1, cutoff=least)
    listing = ", ".join(names) if len(names) <= FEW else ""
    if near:
        return f"did you mean {near[0]} (one of {listing})?" if listing else f"did you mean {near[0]}?"
    return f"choose one of {listing}" if listing else ""


def check_choice(key: str, value: str, choices: Iterable[str]) -> None:
    """Refuse a value that is none of `choices`.

    Raises:
        ValueError: names the key, the value, the nearest choice and all of them.
    """
    if value not in choices:
        raise ValueError(f"{key}={value!r} is unknown, {suggestion(value, choices)}")
