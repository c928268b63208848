"""What a study has said and shown of itself: `claims.json`, declared when a sweep starts, and `looks.json`, the
readings that reports have taken. Both are only ever added to.

Loads no statistics, so that a sweep that plans and trains need not wait for them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from src.arm_folder import is_finished
from src.record import write_atomically
from src.verdict.claims import DEFAULT, Claim, Family
from src.verdict.grammar import Look

T = TypeVar("T")
CLAIMS_FILE, LOOKS_FILE = "claims.json", "looks.json"


def declare(study_folder: Path, claims: Sequence[Claim]) -> None:
    """Write the claims of a sweep that is about to start into its study's folder, unless they stand there already: jobs
    of another launcher, which declare again what their sweep has declared, write nothing.

    The number of runs that have finished by then is written beside them, for the report to tell; only the default
    family of a study that has declared no other was settled before any study ran.

    Raises:
        ValueError: the file that is there is damaged.
    """
    study_folder.mkdir(parents=True, exist_ok=True)
    path = study_folder / CLAIMS_FILE

    def add(entries: list[Any]) -> list[Any]:
        known = {claim for family in _families(path, entries) for claim in family.claims}
        new = tuple(claim for claim in dict.fromkeys(claims) if claim not in known)
        if not new:
            return entries
        done = sum(is_finished(path) for path in study_folder.iterdir() if path.is_dir())
        if not entries and new == DEFAULT.claims:
            done = 0
        now = datetime.now(UTC).isoformat(timespec="seconds")
        listed = [dataclasses.asdict(claim) for claim in new]
        return [*entries, {"declared": now, "finished": done, "claims": listed}]

    _update(path, add)


def families(study_folder: Path) -> tuple[Family, ...]:
    """The families that a study has declared, in that order; the default one if it has declared none.

    What was declared when equally many runs had finished is one family, in however many steps.

    Raises:
        ValueError: `claims.json` is damaged.
    """
    path = study_folder / CLAIMS_FILE
    claims: dict[int, tuple[Claim, ...]] = {}
    for family in _families(path, _read(path)):
        claims[family.after] = claims.get(family.after, ()) + family.claims
    return tuple(Family(own, after) for after, own in claims.items()) or (DEFAULT,)


def looks(study_folder: Path) -> tuple[Look, ...]:
    """The readings that reports on a study have taken.

    Raises:
        ValueError: `looks.json` is damaged.
    """
    path = study_folder / LOOKS_FILE
    return tuple(_each(path, lambda entry: Look(**entry), _read(path)))


def remember(study_folder: Path, taken: Sequence[Look]) -> None:
    """Add readings to `looks.json`, each once."""

    def add(entries: list[Any]) -> list[Any]:
        return [*entries, *(entry for entry in map(dataclasses.asdict, taken) if entry not in entries)]

    _update(study_folder / LOOKS_FILE, add)


def _families(path: Path, entries: list[Any]) -> list[Family]:
    def family(entry: Any) -> Family:
        claims = (Claim(c["subject"], tuple(c["rivals"]), float(c["margin"])) for c in entry["claims"])
        return Family(tuple(claims), int(entry["finished"]))

    return _each(path, family, entries)


def _each(path: Path, build: Callable[[Any], T], entries: list[Any]) -> list[T]:
    """Every entry of the file, built.

    Raises:
        ValueError: an entry is not what this module writes.
    """
    try:
        return [build(entry) for entry in entries]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}); restore it, since verdicts depend on what it holds") from error


def _read(path: Path) -> list[Any]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return []
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0][:100]
        raise ValueError(f"{path} cannot be read ({reason}); restore it, since verdicts depend on it") from error
    if not isinstance(content, list):
        raise ValueError(f"{path} holds no list; restore it, since verdicts depend on what it holds")
    return content


def _update(path: Path, change: Callable[[list[Any]], list[Any]]) -> None:
    entries = _read(path)
    changed = change(entries)
    if changed != entries:
        write_atomically(path, json.dumps(changed, indent=1) + "\n")
