"""What to say when a word is none of the known ones, a size is none, or a command line cannot be read: one sentence."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterable
from typing import NoReturn

FEW = 12  # so many choices are listed in full
_UNITS = {"B": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}


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


def parse_bytes(key: str, text: str) -> int:
    """Bytes in a size such as "4GiB" or "500 MB".

    Raises:
        ValueError: it is not a number with a unit; names the key and the value.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(B|[KMG]i?B)\s*", text, flags=re.IGNORECASE)
    if match is None:
        raise ValueError(f"{key}={text!r} is not a size: write a number and a unit, such as 4GiB or 500MB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


class Parser(argparse.ArgumentParser):
    """Says what is wrong with a command line in one sentence, without a page of usage.

    Raises:
        ValueError: a word is unknown, missing or impossible.
    """

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see --help")
