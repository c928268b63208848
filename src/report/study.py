"""Reading a study folder: which arms there are, which have finished, and what became of the others."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from src.arm_folder import CONFIG_FILE, FAILED, STATUS_FILE, TIMEOUT, read_status
from src.record import RECORD_FILE, RunRecord
from src.verdict.looks import PlannedRun

_MARKS = (RECORD_FILE, STATUS_FILE, CONFIG_FILE)  # any of them makes a folder an arm's folder
NO_RECORD, BROKEN_RECORD = "no record", "broken record"
_OVER = (FAILED, TIMEOUT, NO_RECORD, BROKEN_RECORD)  # what is not tried again unless somebody asks for it
RUN_NAME = re.compile(
    r"(?P<arm>.+)-(?P<budget>[0-9.e+]+)x-seed(?P<seed>\d+)-(?P<hash>[0-9a-f]+)"
)  # as src/planning.py names it


@dataclass(frozen=True)
class ArmFolder:
    """One run's folder: its record if it finished, otherwise its state and why."""

    path: Path
    state: str
    detail: str
    record: RunRecord | None

    @property
    def name(self) -> str:
        """The folder's name, unique in the study."""
        return self.path.name


def read_study(study_folder: Path) -> tuple[ArmFolder, ...]:
    """All arm folders, by name. Never fails on what is inside one of them.

    Raises:
        ValueError: the path is missing, is not a folder or holds no arm's folder; names the nearest study.
    """
    if not study_folder.exists():
        raise ValueError(f"{study_folder} does not exist{_nearest(study_folder)}")
    if not study_folder.is_dir():
        raise ValueError(f"{study_folder} is a file; give the study's folder{_nearest(study_folder)}")
    arms = tuple(_read_arm(path) for path in _arm_folders(study_folder))
    if arms:
        return arms
    if _is_arm(study_folder):
        raise ValueError(f"{study_folder} is the folder of one arm; give its study's folder, {study_folder.parent}")
    studies = [path.name for path in _children(study_folder) if _arm_folders(path)]
    if studies:
        raise ValueError(f"{study_folder} holds studies, not arms; give one of them: {', '.join(studies[:8])}")
    raise ValueError(f"{study_folder} holds no arm's folder{_nearest(study_folder)}")


def finished(study_folder: Path, arms: tuple[ArmFolder, ...]) -> tuple[ArmFolder, ...]:
    """The arms that have a record.

    Raises:
        ValueError: none has; says what state they are in.
    """
    done = tuple(arm for arm in arms if arm.record is not None)
    if not done:
        states = ", ".join(f"{arm.name}: {arm.state}" for arm in arms[:8])
        more = f" and {len(arms) - 8} more" if len(arms) > 8 else ""
        raise ValueError(
            f"{study_folder} has no finished arm yet ({states}{more}); see console.log in each arm's folder"
        )
    return done


def pending(arms: Sequence[ArmFolder]) -> tuple[PlannedRun, ...]:
    """Runs that are queued, under way or interrupted: planned, and still to come. A deleted folder is no longer
    planned."""
    names = [RUN_NAME.fullmatch(arm.name) for arm in arms if arm.record is None and arm.state not in _OVER]
    return tuple(PlannedRun(name["arm"], float(name["budget"]), int(name["seed"])) for name in names if name)


def _read_arm(path: Path) -> ArmFolder:
    state, error = _status(path)
    if not (path / RECORD_FILE).exists():
        if state == "finished":
            return ArmFolder(path, NO_RECORD, "its process ended without error but left no record.json", None)
        return ArmFolder(path, state, error, None)
    try:
        record = RunRecord.read(path / RECORD_FILE)
    except (ValueError, OSError) as broken:
        return ArmFolder(path, BROKEN_RECORD, str(broken), None)
    detail = (
        "" if state in ("finished", "unknown") else f"its process is {state}, but its record is complete and counts"
    )
    return ArmFolder(path, "finished", detail, record)


def _status(folder: Path) -> tuple[str, str]:
    """State and the last line of the error; `unknown` where the file is absent or unreadable."""
    status = read_status(folder)
    if not status:
        there = (folder / STATUS_FILE).exists()
        return "unknown", "its status.json is unreadable" if there else "it has no status.json"
    lines = str(status.get("error") or "").strip().splitlines()
    return str(status.get("state", "unknown")), lines[-1].strip()[:200] if lines else ""


def _is_arm(path: Path) -> bool:
    return any((path / mark).is_file() for mark in _MARKS)


def _children(path: Path) -> list[Path]:
    try:
        return sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    except OSError:
        return []


def _arm_folders(path: Path) -> list[Path]:
    return [child for child in _children(path) if _is_arm(child)]


def _nearest(path: Path) -> str:
    """`; nearest study: ...`, or nothing where no study lies beside the path."""
    studies = {child.name: child for child in _children(path.parent) if child != path and _arm_folders(child)}
    if not studies:
        return ""
    close = difflib.get_close_matches(path.name, studies, n=1, cutoff=0.0)
    return f"; the nearest study is {studies[close[0]]}"
