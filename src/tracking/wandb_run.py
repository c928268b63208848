"""One W&B run for one arm: started without a prompt, ended with the truth about how the arm ended, never in its way."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from src.choices import check_choice
from src.tracking.options import MODES, TrackingOptions

if TYPE_CHECKING:
    from pytorch_lightning.loggers import Logger

LOG = logging.getLogger(__name__)

STEP_KEY = "trainer/global_step"
# How long the end of an arm may wait for uploads; what is left lies on disk and can be synced.
FINISH_SECONDS = 120.0
# Older spellings that W&B itself still takes in WANDB_MODE.
_SYNONYMS = {"dryrun": "offline", "run": "online"}


class Tracker:
    """What an arm may tell W&B. No method raises because of W&B: the first failure is one loud line, training goes on.

    Attributes:
        mode: "online", "offline" or "disabled": what was granted, not what was asked.
        run_id: W&B's id of the run, "" when disabled.
        url: page of an online run, else None.
        notice: one line for the user: where the run is, or how to sync it.
        problems: what was asked for and not granted, for the notes of the record.
        logger: to hand to Lightning's Trainer; False when disabled.
    """

    def __init__(self, run: Any, mode: str, notice: str, problems: Sequence[str] = ()) -> None:
        self._run = run
        self.mode = mode
        self.notice = notice
        self.problems = list(problems)
        self.run_id: str = run.id if run is not None else ""
        self.url: str | None = run.url if run is not None and mode == "online" else None
        self.logger: Logger | Literal[False] = False
        self._folder = run.settings.sync_dir if run is not None else ""
        self._lost = False

    def set_axis(self) -> None:
        """Make `trainer/global_step` the axis of every chart; plain keys stay in the summary."""
        self._attempt(lambda run: (run.define_metric(STEP_KEY), run.define_metric("*", step_metric=STEP_KEY)))

    def log_metrics(self, metrics: Mapping[str, Any], step: int) -> None:
        """Log one row at an optimizer step; `step` is stored as `trainer/global_step`."""
        # W&B's own step argument drops rows whose step went back, so it is never given.
        self._attempt(lambda run: run.log({**metrics, STEP_KEY: int(step)}))

    def log_pictures(self, key: str, images: Sequence[NDArray[np.uint8]], captions: Sequence[str], step: int) -> None:
        """Log pictures with captions under one key.

        Args:
            images: uint8 (H, W, 3) each.
            captions: one for each picture.

        Raises:
            ValueError: a picture is not uint8 (H, W, 3) (W&B shows floats in [0, 1] as black), or captions do not fit.
        """
        for image in images:
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise ValueError(
                    f"{key}: a picture of {image.dtype} {image.shape} would be logged wrongly; give uint8 (H, W, 3)"
                )
        if len(images) != len(captions):
            raise ValueError(f"{key}: {len(captions)} captions do not fit {len(images)} pictures; give one for each")

        def send(run: Any) -> None:
            import wandb

            pictures = [wandb.Image(image, caption=text) for image, text in zip(images, captions, strict=True)]
            run.log({key: pictures, STEP_KEY: int(step)})

        self._attempt(send)

    def summarise(self, values: Mapping[str, Any]) -> None:
        """Write plain keys into the run's summary, e.g. `best/val_accuracy`; they become columns of the run table."""
        self._attempt(lambda run: run.summary.update(dict(values)))

    def finish(self, exit_code: int) -> None:
        """End the run as finished (0) or failed (anything else). Later calls of any method do nothing."""
        self._attempt(lambda run: run.finish(exit_code=exit_code), "ending the run")
        self._run = None

    def _attempt(self, action: Callable[[Any], object], what: str = "logging") -> None:
        if self._run is None:
            return
        try:
            action(self._run)
        except Exception as error:
            if not self._lost:
                self._lost = True
                line = (
                    f"W&B failed while {what}, the arm goes on ({type(error).__name__}: {_first_line(error)}); "
                    f"what was kept can be uploaded with: wandb sync {self._folder}"
                )
                self.problems.append(line)
                LOG.warning(line)


@contextmanager
def tracked_run(
    options: TrackingOptions,
    *,
    study: str,
    name: str,
    folder: Path,
    config: Mapping[str, Any],
    tags: Sequence[str] = (),
    job_type: str = "",
    run_id: str | None = None,
) -> Iterator[Tracker]:
    """One W&B run around the body; it ends as failed if the body raises (Ctrl-C and non-zero exits included).

    Only rank zero makes a run. A WANDB_MODE in the environment wins over `options.mode`.

    Args:
        study: the runs of a study form one group.
        name: readable name of the run, the arm's folder.
        folder: of the study; files go to `folder/wandb`, one directory for all arms.
        config: resolved plain values.
        tags: added to `options.tags`.
        job_type: the arm's rule, e.g. "compound".
        run_id: id of an earlier run of the same arm, to go on with it; None makes a new one (and so
            does the change to offline when the server cannot be reached).

    Raises:
        ValueError: online was asked for and no key is stored, or WANDB_MODE is not a mode.
    """
    tracker = _start(options, study, name, folder, config, [*options.tags, *tags], job_type, run_id)
    for problem in tracker.problems:
        LOG.warning(problem)
    if tracker.notice:
        LOG.info(tracker.notice)
    exit_code = 1
    try:
        yield tracker
        exit_code = 0
    except SystemExit as leave:
        exit_code = 0 if leave.code in (None, 0) else 1
        raise
    finally:
        tracker.finish(exit_code)


def granted_mode(options: TrackingOptions) -> tuple[str, list[str]]:
    """What will be tried: "online", "offline" or "disabled", and the loud lines about it. No network, no prompt.

    Raises:
        ValueError: online was asked for and no key is stored, or WANDB_MODE is not a mode.
    """
    asked, problems = options.mode, []
    environment = os.environ.get("WANDB_MODE", "")
    if environment:
        wanted = _SYNONYMS.get(environment, environment)
        check_choice("WANDB_MODE in the environment", wanted, MODES)
        if asked not in ("auto", wanted):
            problems.append(f"WANDB_MODE={environment} in the environment overrides tracking.mode={asked}")
        asked = wanted
    if asked in ("offline", "disabled"):
        return asked, problems
    if _logged_in():
        return "online", problems
    if asked == "online":
        raise ValueError(
            "tracking.mode=online, but no W&B key is stored; run `wandb login`, set WANDB_API_KEY, or choose 'offline'"
        )
    return "offline", problems


def _logged_in() -> bool:
    import wandb

    wandb.setup(settings=wandb.Settings(silent=True))
    try:
        return wandb.login(prompt=False, verify=False)
    except wandb.Error as error:
        LOG.warning(f"the stored W&B key cannot be used: {_first_line(error)}")
        return False


def _start(
    options: TrackingOptions,
    study: str,
    name: str,
    folder: Path,
    config: Mapping[str, Any],
    tags: Sequence[str],
    job_type: str,
    run_id: str | None,
) -> Tracker:
    mode, problems = granted_mode(options)
    if mode == "disabled":
        return Tracker(None, "disabled", "", problems)
    import wandb
    from pytorch_lightning.utilities.rank_zero import rank_zero_only

    from src.tracking.logger import TrackerLogger

    run: Any = None
    identity = run_id or secrets.token_hex(4)
    attempts = ["online", "offline"] if mode == "online" else ["offline"]
    for attempt in attempts if getattr(rank_zero_only, "rank", 0) == 0 else []:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            run = wandb.init(
                mode=attempt,  # type: ignore[arg-type]
                project=options.project,
                entity=options.entity,
                group=study,
                name=name,
                job_type=job_type or None,
                tags=list(dict.fromkeys(tags)),
                notes=options.notes or None,
                config=dict(config),
                dir=folder,
                id=identity,
                resume="allow" if identity == run_id else None,
                settings=_settings(options.timeout_seconds),
            )
            mode = attempt
            break
        except Exception as error:
            if attempt == "online":
                problems.append(f"W&B cannot be reached, the run is logged offline: {_first_line(error)}")
                # The attempt's empty directory would be listed and synced as a run of its own.
                for leftover in (folder / "wandb").glob(f"run-*-{identity}"):
                    shutil.rmtree(leftover, ignore_errors=True)
                # W&B's service keeps the id of a failed start occupied.
                identity = secrets.token_hex(4)
            else:
                problems.append(f"W&B cannot start, nothing is logged to it: {_first_line(error)}")
                mode = "disabled"
    if mode == "disabled":
        return Tracker(None, mode, "", problems)
    notice = ""
    if run is not None:
        notice = f"W&B: {run.url}" if mode == "online" else f"W&B offline, upload: wandb sync {run.settings.sync_dir}"
    tracker = Tracker(run, mode, notice, problems)
    tracker.set_axis()
    tracker.logger = TrackerLogger(tracker, run, name=name, folder=folder)
    return tracker


def _settings(timeout_seconds: float) -> Any:
    import wandb

    return wandb.Settings(
        console="off",
        silent=True,
        symlink=False,  # arms that run at once would race for `latest-run`
        save_code=False,
        init_timeout=timeout_seconds,
        finish_timeout=FINISH_SECONDS,
        finish_timeout_raises=True,
        # A run of another owner that is still open in this process must not swallow this one.
        reinit="create_new",
        x_disable_stats=True,
        # The default of 15 s leaves an empty, unsyncable file of a run killed before.
        x_transaction_log_flush_interval=1.0,
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
