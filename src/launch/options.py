"""How a sweep is run: the schema of `conf/launcher/*.yaml`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Optional

from src.choices import check_choice

ON_FAILURE = ("continue", "stop")
PROGRESS = ("auto", "bar", "lines", "none")
STARTS = ("process", "fork")


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
    retry_failed: bool = False  # try again what failed before; what was interrupted goes on without being asked
    rerun: bool = False  # train again what is already finished
    checkpoint_minutes: float = 10.0  # longest time without a checkpoint; there is one after every epoch in any case
    start: str = "process"  # a new interpreter for each arm, or "fork" from this one: quicker, for tests on CPUs
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
            ("start", self.start, STARTS),
        ):
            check_choice(f"launcher.{key}", value, choices)
        if not (math.isfinite(self.checkpoint_minutes) and self.checkpoint_minutes > 0):
            raise ValueError(
                f"launcher.checkpoint_minutes={self.checkpoint_minutes} should be a positive number of minutes"
            )
