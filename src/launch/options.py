"""How a sweep is run: the schema of `conf/launcher/*.yaml`."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Optional

ON_FAILURE = ("continue", "stop")
PROGRESS = ("auto", "bar", "lines", "none")
_FEW = 12  # so many choices are listed in full


@dataclass(frozen=True)
class LaunchOptions:
    """Slots, limits and display of a sweep.

    Raises:
        ValueError: a value is out of its range; names the key, the value and the nearest valid choice.
    """

    jobs: int = 1  # arms trained at once; each gets its share of the CPU cores
    gpus_per_job: int = 0  # GPUs of its own for each arm; 0 leaves the visible GPUs as they are
    timeout_minutes: Optional[float] = None  # wall time of one arm; None is no limit
    on_failure: str = "continue"  # after a failed arm: "continue" with the others or "stop" starting new ones
    rerun: bool = False  # train again what is already finished
    progress: str = "auto"  # "bar", "lines" or "none"; "auto" is a bar on a terminal and lines elsewhere

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise ValueError(f"launcher.jobs={self.jobs} should be at least 1, the number of arms trained at once")
        if self.gpus_per_job < 0:
            raise ValueError(f"launcher.gpus_per_job={self.gpus_per_job} should be 0 or a number of GPUs")
        minutes = self.timeout_minutes
        if minutes is not None and not (math.isfinite(minutes) and minutes > 0):
            raise ValueError(f"launcher.timeout_minutes={minutes} should be a positive number of minutes, or null")
        for key, value, choices in (
            ("on_failure", self.on_failure, ON_FAILURE),
            ("progress", self.progress, PROGRESS),
        ):
            if value not in choices:
                raise ValueError(f"launcher.{key}={value} is unknown, {suggestion(value, choices)}")


def suggestion(word: str, choices: Iterable[str]) -> str:
    """The end of a sentence about a misspelt `word`: the nearest choice, and all of them if they are few.

    Returns:
        "did you mean X (one of X, Y)?", "choose one of X, Y", or "" if there are no choices, or many and none near.
    """
    names = sorted(set(choices))
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    listing = ", ".join(names) if len(names) <= _FEW else ""
    if near:
        return f"did you mean {near[0]} (one of {listing})?" if listing else f"did you mean {near[0]}?"
    return f"choose one of {listing}" if listing else ""
