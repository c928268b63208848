"""One W&B run for one arm or one comparison: started without a prompt, ended with the truth, never in anybody's way."""

from __future__ import annotations

import json
import logging
import os
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit
from urllib.request import getproxies

import numpy as np
from numpy.typing import NDArray

from src.choices import check_choice
from src.tracking.options import MODES, TrackingOptions

if TYPE_CHECKING:
    from pytorch_lightning.loggers import Logger

LOG = logging.getLogger(__name__)

STEP_KEY = "trainer/global_step"
# Opening a connection needs one round trip; a server that takes longer than this is taken for dead.
CONNECT_SECONDS = 5.0
# Older spellings that W&B itself still takes in WANDB_MODE.
_SYNONYMS = {"dryrun": "offline", "run": "online"}
_YES = ("1", "true", "yes", "on")
# A .wandb file is a log that begins with a header of 7 bytes; `wandb sync` calls one that holds no more an error.
_EMPTY_LOG = 7


@dataclass(frozen=True)
class Sheet:
    """A table as W&B shows it: rows of plain values under the names of their columns."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


class Tracker:
    """What an arm may tell W&B. No method raises because of W&B: the first failure is one loud line, training goes on.

    Attributes:
        mode: "online", "offline" or "disabled": what was granted, not what was asked.
        run_id: W&B's id of the run, "" when disabled.
        url: page of an online run, else None.
        notice: one line for the user: where the run is, or how to sync it with all its parts.
        problems: what was asked for and not granted, for the notes of the record.
        logger: to hand to Lightning's Trainer; False when disabled, or when there is none.
        lost: whether W&B failed, so that not all is logged.
    """

    def __init__(self, run: Any, mode: str, problems: Sequence[str] = (), reassurance: str = "the arm goes on") -> None:
        self._run = run
        self.mode = mode
        self.problems = list(problems)
        self.run_id: str = run.id if run is not None else ""
        self.url: str | None = run.url if run is not None and mode == "online" else None
        self.logger: Logger | Literal[False] = False
        self._folder = Path(run.settings.sync_dir) if run is not None else Path()
        self._reassurance = reassurance
        self.lost = False
        self.notice = ""
        if run is not None:
            self.notice = f"W&B: {run.url}" if mode == "online" else f"W&B offline, upload: {self._upload_command()}"

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

    def log_documents(
        self, tables: Mapping[str, Sheet], pictures: Mapping[str, Path], pages: Mapping[str, Path]
    ) -> None:
        """Log tables, picture files and HTML files by their keys, all of them in one row."""

        def send(run: Any) -> None:
            import wandb

            sheets = {
                key: wandb.Table(columns=list(sheet.columns), data=[list(row) for row in sheet.rows])
                for key, sheet in tables.items()
            }
            images = {key: wandb.Image(str(path)) for key, path in pictures.items()}
            # The page is whole: W&B's own style sheet would only change how it looks.
            html = {key: wandb.Html(path.read_text(encoding="utf-8"), inject=False) for key, path in pages.items()}
            run.log({**sheets, **images, **html})

        self._attempt(send)

    def summarise(self, values: Mapping[str, Any]) -> None:
        """Write plain keys into the run's summary, e.g. `best/val_accuracy`; they become columns of the run table."""
        self._attempt(lambda run: run.summary.update(dict(values)))

    def finish(self, exit_code: int) -> None:
        """End the run as finished (0) or failed (anything else). Later calls of any method do nothing."""
        self._attempt(lambda run: run.finish(exit_code=exit_code), "ending the run")
        if self._run is not None and self.mode == "online":
            for error in _logged_errors(Path(self._run.settings.log_internal)):
                self._lose(f"W&B's log tells of an error ({error})")
        if self._run is not None and self.mode == "online" and not self.lost:
            # W&B's own mark of a part that the server has: `wandb sync` passes it by, and so does the next resume.
            _sent_mark(self._folder, self.run_id).touch()
        self._run = None

    def hear(self, message: str) -> None:
        """Take what W&B itself warns of; it says so when it gives up uploading and goes on without raising."""
        said = " ".join(message.removeprefix("wandb:").split()).removeprefix("WARNING ").removeprefix("ERROR ")
        if "already exists with the same content" in said:  # of a table that is logged again
            return
        self._lose(f"W&B said: {said.partition('. ')[0].rstrip('.')}")

    def _attempt(self, action: Callable[[Any], object], what: str = "logging") -> None:
        if self._run is None:
            return
        try:
            action(self._run)
        except Exception as error:
            self._lose(f"W&B failed while {what} ({type(error).__name__}: {first_line(error)})")

    def _lose(self, cause: str) -> None:
        if not self.lost:
            self.lost = True
            line = f"{cause}; {self._reassurance}, and what was kept can be uploaded after it: {self._upload_command()}"
            self.problems.append(line)
            LOG.warning(line)

    def _upload_command(self) -> str:
        parts = [part for part in unsent_parts(self._folder.parent, self.run_id) if part != self._folder]
        return sync_command([*parts, self._folder])


def unsent_parts(wandb_folder: Path, run_id: str) -> list[Path]:
    """Directories of one run that the server may not have in full, oldest first; a resumed run has several.

    Args:
        wandb_folder: the `wandb` folder of a study.
    """
    logs = sorted(wandb_folder.glob(f"*run-*-{run_id}*/run-{run_id}.wandb"), key=_start_time)
    parts = [log.parent for log in logs if log.stat().st_size > _EMPTY_LOG]
    return [part for part in parts if not _sent_mark(part, run_id).exists()]


def _sent_mark(part: Path, run_id: str) -> Path:
    return part / f"run-{run_id}.wandb.synced"


def _start_time(log: Path) -> str:
    return log.parent.name.partition("run-")[2]


def sync_command(parts: Sequence[Path]) -> str:
    """The command that uploads the directories of runs; `wandb sync` puts those of one run into order itself."""
    online = any(not part.name.startswith("offline-") for part in parts)
    # Without the option W&B passes by what began online, also where it is named.
    return shlex.join(["wandb", "sync", *["--include-online"] * online, *map(str, parts)])


def _logged_errors(log: Path) -> Iterator[str]:
    """Errors in W&B's own log: a refused picture is told there and nowhere else. Retries that worked are no errors."""
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else ():
        with suppress(json.JSONDecodeError):
            entry = json.loads(line)
            if str(entry.get("level", "")).startswith("ERROR"):
                yield " ".join(str(entry.get("msg", "")).split())


class _Listener:
    """Stands where W&B's messages go when it is told to be silent."""

    def __init__(self, tracker: Tracker) -> None:
        self.warning = self.error = tracker.hear

    def info(self, message: str) -> None:
        """Nothing: W&B's greetings."""

    debug = info


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
    arm: bool = True,
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
        run_id: id of an earlier run of the same arm, to go on with it; None makes a new one. What an earlier part
            could not send is uploaded first; where that fails, the run goes on offline.
        arm: whether an arm trains in the body: in rank zero alone, its charts over steps, logged by Lightning.

    Raises:
        ValueError: as `granted_mode`.
    """
    tracker = _start(options, study, name, folder, config, [*options.tags, *tags], job_type, run_id, arm)
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


def granted_mode(options: TrackingOptions, arms: int = 1) -> tuple[str, list[str]]:
    """What will be tried: "online", "offline" or "disabled", and the loud lines about it. No network, no prompt.

    In this order: WANDB_MODE, WANDB_DISABLED, `options.mode`, a mode stored by `wandb offline`, a stored key.

    Args:
        arms: how many arms this command trains.

    Raises:
        ValueError: online was asked for and no key is stored, WANDB_MODE is not a mode, or a W&B agent gives one
            run to several arms.
    """
    asked, problems = options.mode, []
    environment = os.environ.get("WANDB_MODE", "")
    if environment:
        wanted = _SYNONYMS.get(environment, environment)
        check_choice("WANDB_MODE in the environment", wanted, [mode for mode in MODES if mode != "auto"])
        if asked not in ("auto", wanted):
            problems.append(f"WANDB_MODE={environment} in the environment overrides tracking.mode={asked}")
        asked = wanted
    elif os.environ.get("WANDB_DISABLED", "").lower() in _YES:
        if asked not in ("auto", "disabled"):
            problems.append(f"WANDB_DISABLED in the environment overrides tracking.mode={asked}")
        asked = "disabled"
    agent = os.environ.get("WANDB_SWEEP_ID")
    if agent and arms > 1 and asked != "disabled":
        raise ValueError(
            f"WANDB_SWEEP_ID={agent} makes this one run of a W&B sweep, and {arms} arms would write into it; "
            "give one arm, or unset WANDB_SWEEP_ID and WANDB_RUN_ID"
        )
    if asked in ("offline", "disabled"):
        return asked, problems
    stored, logged_in = stored_login(asked)
    if asked == "auto" and stored in ("offline", "disabled"):
        return stored, problems
    if logged_in:
        return "online", problems
    if asked == "online":
        raise ValueError(
            "tracking.mode=online, but no W&B key is stored; run `wandb login`, set WANDB_API_KEY, or choose 'offline'"
        )
    return "offline", problems


def stored_login(asked: str) -> tuple[str, bool]:
    """The mode in W&B's settings, where `wandb offline` writes it, and whether there is a key."""
    wandb = import_wandb()
    try:
        settings = wandb.setup(settings=wandb.Settings(silent=True)).settings
        mode = settings.mode
        if asked == "online":
            settings.mode = "online"  # W&B looks for no key while its settings say offline
        return _SYNONYMS.get(mode, mode), wandb.login(prompt=False, verify=False)
    except Exception as error:
        LOG.warning(f"the stored W&B key or settings cannot be used: {first_line(error)}")
        return "", False


def import_wandb() -> Any:
    """The library, kept from what it would send and print unasked."""
    # W&B reports its own errors and timings to its server, and when that fails writes lines nobody asked for.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    return wandb


def _start(
    options: TrackingOptions,
    study: str,
    name: str,
    folder: Path,
    config: Mapping[str, Any],
    tags: Sequence[str],
    job_type: str,
    run_id: str | None,
    arm: bool,
) -> Tracker:
    mode, problems = granted_mode(options)
    if mode == "disabled":
        return Tracker(None, "disabled", problems)
    wandb = import_wandb()
    run: Any = None
    if not arm or _is_rank_zero():
        earlier = set((folder / "wandb").glob("*"))
        obstacle = _obstacle(folder, run_id, options.timeout_seconds) if mode == "online" else ""
        if obstacle:
            mode = "offline"
            problems.append(f"{obstacle}, the run is logged offline")
        identity = run_id or secrets.token_hex(4)
        for attempt in ["online", "offline"] if mode == "online" else ["offline"]:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                _own_settings(wandb)
                run = wandb.init(
                    mode=attempt,
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
                if attempt == "offline":
                    problems.append(f"W&B cannot start, nothing is logged to it: {first_line(error)}")
                    return Tracker(None, "disabled", problems)
                problems.append(f"W&B cannot be reached, the run is logged offline: {first_line(error)}")
                # The attempt's empty directory would be listed and synced as a part of the run.
                for leftover in set((folder / "wandb").glob(f"run-*-{identity}*")) - earlier:
                    shutil.rmtree(leftover, ignore_errors=True)
                # W&B's service keeps the id of a failed start occupied; to end it would end another owner's runs too.
                if wandb.setup().most_recent_active_run is None:
                    wandb.teardown()
                else:
                    identity = secrets.token_hex(4)
    tracker = Tracker(run, mode, problems, "the arm goes on" if arm else "the study's own report is whole")
    if run is not None:
        wandb.termsetup(run.settings, _Listener(tracker))
    if arm:
        from src.tracking.logger import TrackerLogger  # and with it Lightning, which takes seconds

        tracker.set_axis()
        tracker.logger = TrackerLogger(tracker, run, name=name, folder=folder)
    return tracker


def _is_rank_zero() -> bool:
    from pytorch_lightning.utilities.rank_zero import rank_zero_only

    return getattr(rank_zero_only, "rank", 0) == 0


def _own_settings(wandb: Any) -> None:
    """Undo what a user's environment may have set and arguments of `wandb.init` cannot unset."""
    settings = wandb.setup(settings=wandb.Settings(silent=True)).settings
    # Every arm would go on with one and the same run.
    settings.resume = settings.resume_from = settings.fork_from = None
    # The log on disk is what can be synced later.
    settings.x_skip_transaction_log = False


def _obstacle(folder: Path, run_id: str | None, seconds: float) -> str:
    """Why a run should not even try to start online, or ""."""
    server = server_url()
    if not answers(server):
        return f"the W&B server {server} cannot be reached"
    parts = unsent_parts(folder / "wandb", run_id) if run_id else []
    if parts:
        # A part that is sent after the run went on would be laid over the rows of the later one.
        command = [sys.executable, "-m", "wandb", "sync", "--include-online", *(str(part.resolve()) for part in parts)]
        there = {**os.environ, "WANDB_DIR": str(folder.resolve())}  # for the log it writes
        with suppress(subprocess.TimeoutExpired):
            told = subprocess.run(command, env=there, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds)
            if b"ERROR" in told.stderr:
                # `wandb sync` marks a part as sent also after an upload that the server refused.
                for part in parts:
                    _sent_mark(part, str(run_id)).unlink(missing_ok=True)
        if run_id and unsent_parts(folder / "wandb", run_id):
            return f"what W&B run {run_id} logged before it was interrupted could not be uploaded"
    return ""


def server_url() -> str:
    """The W&B server that is set, W&B's own if none is."""
    return str(import_wandb().setup().settings.base_url)


def answers(server: str) -> bool:
    """Whether a connection to the server can be opened; not asked where a proxy stands between."""
    address = urlsplit(server)
    if getproxies() or address.hostname is None:
        return True
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((address.hostname, port), CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def _settings(timeout_seconds: float) -> Any:
    import wandb

    return wandb.Settings(
        console="off",
        silent=True,
        symlink=False,  # arms that run at once would race for `latest-run`
        save_code=False,
        init_timeout=timeout_seconds,
        finish_timeout=timeout_seconds,
        finish_timeout_raises=True,
        # A run of another owner that is still open in this process must not swallow this one.
        reinit="create_new",
        x_disable_stats=True,
        # The default of 15 s leaves an empty, unsyncable file of a run killed before.
        x_transaction_log_flush_interval=1.0,
    )


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
