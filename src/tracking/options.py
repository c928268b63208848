"""Options of the tracking room."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional

from src.choices import check_choice

MODES = ("auto", "online", "offline", "disabled")


@dataclass(frozen=True)
class TrackingOptions:
    """How runs are logged to W&B (schema of `conf/tracking/*.yaml`).

    Raises:
        ValueError: a value is not among the choices or outside W&B's limits.
    """

    mode: str = "auto"  # auto: online when logged in, else offline; never asks
    project: str = "scalestudy"
    entity: Optional[str] = None
    tags: list[str] = field(default_factory=list)
    notes: str = ""
    timeout_seconds: float = (
        20.0  # for the server at the start (then offline) and for the last uploads at the end (then `wandb sync`)
    )

    def __post_init__(self) -> None:
        check_choice("tracking.mode", self.mode, MODES)
        forbidden = set(self.project) & set("/\\#?%:")
        if not self.project or len(self.project) > 128 or forbidden:
            raise ValueError(
                f"tracking.project={self.project!r} is no W&B project; give 1 to 128 characters without / \\ # ? % :"
            )
        for tag in self.tags:
            if not 1 <= len(tag) <= 64:
                raise ValueError(f"tracking.tags holds {tag!r} of {len(tag)} characters; W&B takes 1 to 64")
        if not self.timeout_seconds > 0:
            raise ValueError(f"tracking.timeout_seconds={self.timeout_seconds} should be above 0, e.g. 20")
