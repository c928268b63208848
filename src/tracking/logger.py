"""Lightning's side of a tracked run. Imports Lightning, hence is imported only when a run is made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.loggers.logger import rank_zero_experiment
from pytorch_lightning.utilities.rank_zero import rank_zero_only

if TYPE_CHECKING:
    from src.tracking.wandb_run import Tracker


class TrackerLogger(Logger):
    """Passes Lightning's metrics to a `Tracker`, which owns the run's start, end and failures.

    Lightning's own WandbLogger starts and joins runs itself (it would join a run that is still open) and lets W&B's
    errors end the training.
    """

    def __init__(self, tracker: Tracker, run: Any, *, name: str, folder: Path) -> None:
        super().__init__()
        self._tracker = tracker
        self._run = run
        self._name = name
        self._folder = folder

    @property
    def name(self) -> str:
        """Name of the run."""
        return self._name

    @property
    def version(self) -> str:
        """W&B's id of the run."""
        return self._tracker.run_id

    @property
    def save_dir(self) -> str:
        """The study's folder."""
        return str(self._folder)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run, for uses that `Tracker` does not cover."""
        return self._run

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Log one row."""
        self._tracker.log_metrics(metrics, 0 if step is None else step)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the resolved config was given at the start and is the only source of settings."""
