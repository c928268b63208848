"""Real W&B runs, offline and against a loopback server, read back by an independent reader."""

import io
import json
import logging
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wandb
import yaml
from PIL import Image
from wandb_fake import KEY, FakeRun, FakeServer
from wandb_reader import LoggedRun, read, read_all

from src.tracking.logger import TrackerLogger  # Lightning, whose import no test shall time
from src.tracking.options import TrackingOptions
from src.tracking.wandb_run import Tracker, granted_mode, tracked_run, unsent_parts

pytestmark = pytest.mark.usefixtures("fresh_wandb")

OFFLINE = TrackingOptions(mode="offline", tags=["paper"], notes="why")
SHORT = TrackingOptions(timeout_seconds=1.5)
PICTURE = np.tile(np.arange(64, dtype=np.uint8)[:, None, None], (1, 64, 3)) * 3


def track(folder: Path, name: str = "depth-2x-seed0-1a2b", options: TrackingOptions = OFFLINE, **values: Any) -> Any:
    given = {"study": "study-a", "config": {"scaling": {"rule": "depth"}, "seed": 0}, "job_type": "depth", **values}
    return tracked_run(options, name=name, folder=folder, **given)


def only(folder: Path, seconds: float = 10.0) -> LoggedRun:
    (logged,) = read_all(folder, seconds).values()
    return logged


def test_offline_run_holds_everything(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    study = tmp_path / "study"
    with track(study, tags=["depth", "paper"]) as tracker:
        assert (tracker.mode, tracker.url, tracker.problems) == ("offline", None, [])
        for step in (5, 10, 20):
            tracker.log_metrics({"val_accuracy": step / 40, "epoch": step // 10}, step)
        tracker.log_pictures("cam", [PICTURE, 255 - PICTURE], ["cat 0.91 (right)", "dog 0.20"], 20)
        tracker.summarise({"best/val_accuracy": 0.5, "macs": 123456789012, "test_accuracy": 0.48})
        run_id = tracker.run_id
        assert "wandb sync" in tracker.notice and "\n" not in tracker.notice
    logged = only(study)
    run = logged.run
    assert (run.run_id, run.project, run.run_group, run.job_type) == (run_id, "scalestudy", "study-a", "depth")
    assert (list(run.tags), run.notes, logged.exit_code) == (["paper", "depth"], "why", 0)
    assert logged.config["scaling"] == {"rule": "depth"} and logged.config["seed"] == 0
    assert logged.keys("trainer/global_step") == [5, 10, 20, 20]
    assert logged.keys("val_accuracy") == [0.125, 0.25, 0.5]
    assert logged.axes["*"] == "trainer/global_step"
    assert logged.summary["best/val_accuracy"] == 0.5 and logged.summary["macs"] == 123456789012
    assert logged.summary["val_accuracy"] == 0.5, "plain keys stay in the summary"
    assert logged.keys("cam/captions") == [["cat 0.91 (right)", "dog 0.20"]]
    files = next((study / "wandb").glob(f"offline-run-*-{run_id}")) / "files"
    stored = [np.asarray(Image.open(files / name)) for name in logged.keys("cam/filenames")[0]]
    assert (stored[0] == PICTURE).all() and stored[1].min() < stored[1].max()
    assert str(files.parent) in tracker.notice
    assert capfd.readouterr() == ("", ""), "nothing is printed beside the logged lines"


@pytest.mark.parametrize("image", [np.random.rand(8, 8, 3), np.zeros((3, 8, 8), np.uint8)])
def test_pictures_that_would_be_black_are_refused(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint8"):
        Tracker(None, "disabled").log_pictures("cam", [image], ["x"], 0)


@pytest.mark.parametrize(
    ("end", "failed"),
    [(None, 0), (SystemExit(0), 0), (SystemExit(3), 1), (RuntimeError("diverged"), 1), (KeyboardInterrupt(), 1)],
)
def test_run_ends_as_the_arm_ended(tmp_path: Path, end: BaseException | None, failed: int) -> None:
    try:
        with track(tmp_path) as tracker:
            tracker.log_metrics({"loss": 1.0}, 1)
            if end is not None:
                raise end
    except BaseException as caught:
        assert caught is end
    assert only(tmp_path).exit_code == failed
    assert only(tmp_path).keys("loss") == [1.0]


def test_runs_of_one_process_are_not_merged(tmp_path: Path) -> None:
    with track(tmp_path, "one") as one:
        one.log_metrics({"loss": 1.0}, 1)
    with pytest.raises(RuntimeError), track(tmp_path, "two") as two:
        two.log_metrics({"loss": 2.0}, 1)
        raise RuntimeError
    # A run of the user's own that is still open must neither be joined nor ended.
    own = wandb.init(mode="offline", dir=tmp_path, name="own", settings=wandb.Settings(silent=True, console="off"))
    with track(tmp_path, "three") as three, track(tmp_path, "four") as four:
        three.log_metrics({"loss": 3.0}, 1)
        four.log_metrics({"loss": 4.0}, 1)
        own.log({"loss": 5.0})
    own.finish()
    logged = read_all(tmp_path)
    losses = {name: (run.keys("loss"), run.exit_code) for name, run in logged.items()}
    assert losses == {
        "one": ([1.0], 0),
        "two": ([2.0], 1),
        "three": ([3.0], 0),
        "four": ([4.0], 0),
        "own": ([5.0], 0),
    }


def test_lightning_logs_through_the_tracker(tmp_path: Path) -> None:
    import pytorch_lightning as lightning
    import torch

    class Line(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(2, 1)
            self.save_hyperparameters({"hidden": 3})

        def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
            loss = self.layer(batch).square().mean()
            self.log("train_loss", loss, on_epoch=True, on_step=False)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    with track(tmp_path) as tracker:
        trainer = lightning.Trainer(
            logger=tracker.logger,
            max_epochs=2,
            accelerator="cpu",
            enable_progress_bar=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        trainer.fit(Line(), torch.utils.data.DataLoader(torch.ones(4, 2), batch_size=1))
        assert trainer.loggers == [tracker.logger] and tracker.logger.version == tracker.run_id
    logged = only(tmp_path)
    assert logged.keys("trainer/global_step") == [3, 7] and logged.keys("epoch") == [0, 1]
    assert len(logged.keys("train_loss")) == 2
    assert "hidden" not in logged.config, "the resolved config is the only source of settings"


def test_other_ranks_make_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pytorch_lightning.utilities.rank_zero import rank_zero_only

    monkeypatch.setattr(rank_zero_only, "rank", 1, raising=False)
    with track(tmp_path) as tracker:
        assert isinstance(tracker.logger, TrackerLogger), "all ranks hand the same kind of logger to the Trainer"
        tracker.log_metrics({"loss": 1.0}, 1)
        tracker.logger.log_metrics({"loss": 1.0}, 1)
        assert tracker.run_id == ""
    assert not (tmp_path / "wandb").exists()


def test_disabled_leaves_nothing(tmp_path: Path) -> None:
    with track(tmp_path, options=TrackingOptions(mode="disabled")) as tracker:
        tracker.log_metrics({"loss": 1.0}, 1)
        tracker.summarise({"macs": 1})
        assert tracker.logger is False and tracker.mode == "disabled"
    assert list(tmp_path.iterdir()) == [tmp_path / "home"]


class Broken:
    """A run whose connection is gone."""

    id, url = "gone", None
    settings = wandb.Settings(silent=True)

    def log(self, *args: Any, **kwargs: Any) -> None:
        raise BrokenPipeError("the service is gone")

    finish = log


def test_loss_of_wandb_is_said_once_and_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    tracker = Tracker(Broken(), "offline")
    for step in range(5):
        tracker.log_metrics({"loss": 1.0}, step)
    tracker.finish(0)
    lines = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(lines) == len(tracker.problems) == 1 and "BrokenPipeError" in lines[0].message
    assert "wandb sync" in lines[0].message


def test_unwritable_folder_disables_loudly(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    with track(tmp_path / "file" / "study") as tracker:
        tracker.log_metrics({"loss": 1.0}, 1)
    assert tracker.mode == "disabled" and tracker.logger is False
    assert len(tracker.problems) == 1 and tracker.problems[0] in caplog.text


# What is granted ------------------------------------------------------------------------------------------------------


def netrc(home: Path, host: str) -> None:
    (home / ".netrc").write_text(f"machine {host}\n  login user\n  password {KEY}\n")
    (home / ".netrc").chmod(0o600)


@pytest.mark.parametrize(
    ("asked", "environment", "key", "granted"),
    [
        ("auto", None, None, "offline"),
        ("auto", None, "variable", "online"),
        ("auto", None, "netrc", "online"),
        ("auto", None, "netrc of another host", "offline"),
        ("auto", "offline", "variable", "offline"),
        ("auto", "disabled", "variable", "disabled"),
        ("auto", "dryrun", "variable", "offline"),
        ("offline", None, "variable", "offline"),
        ("disabled", None, "variable", "disabled"),
        ("online", None, "netrc", "online"),
        ("online", "offline", "variable", "offline"),
        ("disabled", "online", "variable", "online"),
        ("auto", "run", "variable", "online"),
    ],
)
def test_granted_mode(
    asked: str, environment: str | None, key: str | None, granted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if environment:
        monkeypatch.setenv("WANDB_MODE", environment)
    if key == "variable":
        monkeypatch.setenv("WANDB_API_KEY", KEY)
    elif key:
        netrc(tmp_path / "home", "127.0.0.1:9" if key == "netrc" else "example.org")
    mode, problems = granted_mode(TrackingOptions(mode=asked))
    assert mode == granted
    overridden = environment is not None and asked not in ("auto", granted)
    assert len(problems) == overridden, problems


def test_online_without_key_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="wandb login"):
        granted_mode(TrackingOptions(mode="online"))
    with pytest.raises(ValueError, match="WANDB_MODE"):
        monkeypatch.setenv("WANDB_MODE", "offlin")
        granted_mode(TrackingOptions())


def test_malformed_key_is_loud_and_offline(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "too short")
    assert granted_mode(TrackingOptions())[0] == "offline"
    assert "key" in caplog.text and "too short" not in caplog.text


def test_mode_stored_by_wandb_itself_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home" / ".config" / "wandb").mkdir(parents=True)
    (tmp_path / "home" / ".config" / "wandb" / "settings").write_text("[default]\nmode = offline\n")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert granted_mode(TrackingOptions()) == ("offline", [])
    assert granted_mode(TrackingOptions(mode="online")) == ("online", []), "the command line asked for it"


def test_wandb_disabled_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_DISABLED", "true")
    assert granted_mode(TrackingOptions()) == ("disabled", [])
    mode, problems = granted_mode(TrackingOptions(mode="online"))
    assert mode == "disabled" and "WANDB_DISABLED" in problems[0]
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert granted_mode(TrackingOptions())[0] == "offline", "WANDB_MODE is W&B's own and goes first"


@pytest.mark.parametrize("mode", ["shared", "auto", "Offline"])
def test_wandb_mode_that_is_none_of_ours(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", mode)
    with pytest.raises(ValueError, match=r"WANDB_MODE in the environment='\w+' is unknown.*offline"):
        granted_mode(TrackingOptions())


def test_unusable_settings_of_wandb_stop_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "soon")
    with track(tmp_path, options=TrackingOptions()) as tracker:
        tracker.log_metrics({"loss": 1.0}, 1)
    assert tracker.mode == "disabled" and "cannot be used" in caplog.text and "nothing is logged" in caplog.text


# Against a server -----------------------------------------------------------------------------------------------------


def wait_for(condition: Callable[[], object], seconds: float, child: subprocess.Popen[bytes] | None = None) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline and (child is None or child.poll() is None):
        time.sleep(0.05)


def log(tracker: Tracker, steps: range, *, picture: bool = False) -> None:
    for step in steps:
        tracker.log_metrics({"loss": 1.0 / (step + 1)}, step)
    if picture:
        tracker.log_pictures("cam", [PICTURE], ["cat"], steps[-1])


def run_told_command(line: str) -> None:
    """Run the `wandb sync ...` at the end of a line as its reader would."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment, home = {**os.environ, "PATH": path}, os.environ["HOME"]
    command = line[line.index("wandb sync") :]
    subprocess.run(command, shell=True, check=True, capture_output=True, timeout=60, env=environment, cwd=home)


def assert_complete(run: FakeRun, steps: list[int], *, picture: bool = True) -> None:
    assert [row["trainer/global_step"] for row in run.rows if "loss" in row] == steps and run.rewritten == []
    if picture:
        (stored,) = (body for name, body in run.files.items() if name.startswith("media/images/cam"))
        pixels = np.asarray(Image.open(io.BytesIO(stored)))
        assert (pixels == PICTURE).all() and pixels.min() < pixels.max()


def interrupted() -> None:
    """What src/arm.py makes of SIGTERM."""
    previous = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
    finally:
        signal.signal(signal.SIGTERM, previous)


def diverged() -> None:
    raise RuntimeError("diverged")


@pytest.mark.parametrize(("end", "exit_code"), [(None, 0), (diverged, 1), (interrupted, 1)])
def test_online_run_reaches_the_server(
    tmp_path: Path, server: FakeServer, end: Callable[[], None] | None, exit_code: int
) -> None:
    try:
        with track(tmp_path, "online", TrackingOptions(tags=["t"])) as tracker:
            assert (tracker.mode, tracker.problems) == ("online", [])
            assert tracker.url == f"{server.url}/lab/scalestudy/runs/{tracker.run_id}"
            assert tracker.url in tracker.notice
            log(tracker, range(3), picture=True)
            tracker.summarise({"best/val_accuracy": 0.5})
            if end is not None:
                end()
    except (RuntimeError, SystemExit) as caught:
        assert str(caught) in ("diverged", "143")
    run, sent = server.run, server.run.created
    assert run.exit_code == exit_code and list(server.runs) == [tracker.run_id]
    assert (sent["groupName"], sent["displayName"], sent["jobType"]) == ("study-a", "online", "depth")
    assert sent["tags"] == ["t"] and json.loads(sent["config"])["seed"]["value"] == 0
    assert_complete(run, [0, 1, 2])
    assert run.summary["best/val_accuracy"] == 0.5
    assert unsent_parts(tmp_path / "wandb", tracker.run_id) == []


def test_run_that_goes_on_is_one_run(tmp_path: Path, server: FakeServer) -> None:
    with pytest.raises(RuntimeError), track(tmp_path, options=TrackingOptions()) as first:
        log(first, range(10))
        raise RuntimeError
    assert server.run.exit_code == 1
    with track(tmp_path, options=TrackingOptions(), run_id=first.run_id) as second:
        log(second, range(6, 15), picture=True)
    assert (second.run_id, second.mode, second.problems) == (first.run_id, "online", [])
    assert_complete(server.run, [*range(10), *range(6, 15)])
    assert server.run.exit_code == 0 and server.requests["RunResumeStatus"] == 1
    # Lines are drawn over this axis, so epochs that are trained again lie where they belong.
    assert only_axis(server.run) == "trainer/global_step"


def only_axis(run: FakeRun) -> str:
    """The axis of all charts: 1 is a metric's name, 2 its pattern, 5 the number of its axis among the metrics."""
    metrics = yaml.safe_load(run.files["config.yaml"])["_wandb"]["value"]["m"]
    (axis,) = (metric["5"] for metric in metrics if metric.get("2") == "*")
    return str(metrics[axis - 1]["1"])


def test_run_that_goes_on_offline_is_told_whole(tmp_path: Path, server: FakeServer) -> None:
    with track(tmp_path) as first:
        log(first, range(10))
    assert only(tmp_path).exit_code == 0, "all of it is on the disk"
    with track(tmp_path, run_id=first.run_id) as second:
        log(second, range(6, 15), picture=True)
    assert second.run_id == first.run_id and second.notice.count("offline-run-") == 2
    assert server.requests.total() == 0
    run_told_command(second.notice)
    assert_complete(server.run, [*range(10), *range(6, 15)])


@pytest.mark.parametrize("refusal", [(401, ""), pytest.param((403, "file_stream"), marks=pytest.mark.slow)])
def test_interrupted_online_run_goes_on_offline_without_server(
    refusal: tuple[int, str], tmp_path: Path, server: FakeServer
) -> None:
    with pytest.raises(RuntimeError), track(tmp_path, options=SHORT) as first:
        log(first, range(10))
        server.status = 401
        raise RuntimeError
    assert len(first.problems) == 1 and only(tmp_path).exit_code == 1
    server.status, server.refused_path = refusal
    with track(tmp_path, options=SHORT, run_id=first.run_id) as second:
        log(second, range(6, 15), picture=True)
    assert (second.run_id, second.mode) == (first.run_id, "offline")
    assert len(second.problems) == 1 and "could not be uploaded" in second.problems[0]
    server.status = None
    run_told_command(second.notice)
    assert_complete(server.run, [*range(10), *range(6, 15)])
    assert server.run.exit_code == 0


@pytest.mark.parametrize(
    "trouble", ["dead", "refused", "forbidden", pytest.param("failing", marks=pytest.mark.slow), "slow"]
)
def test_trouble_at_the_start_makes_the_run_offline_soon(
    trouble: str, tmp_path: Path, server: FakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.status = {"refused": 401, "forbidden": 403, "failing": 500}.get(trouble)
    if trouble == "dead":
        server.close()
    if trouble == "slow":
        server.delay = 60.0
    begin = time.monotonic()
    options = TrackingOptions(timeout_seconds=60.0) if trouble == "dead" else SHORT  # refused at once, or waited for
    with track(tmp_path, options=options, run_id="kept") as tracker:
        assert time.monotonic() - begin < 20
        assert (tracker.mode, tracker.url, tracker.run_id) == ("offline", None, "kept")
        assert len(tracker.problems) == 1 and caplog.text.count("the run is logged offline") == 1
        log(tracker, range(5), picture=trouble == "refused")
    assert only(tmp_path).exit_code == 0, "and the failed attempt leaves no second run"
    if trouble == "refused":
        server.status = None
        run_told_command(tracker.notice)
        assert_complete(server.run, list(range(5)))
    if trouble == "dead":
        server.open()


@pytest.mark.parametrize("trouble", ["down", pytest.param("failing", marks=pytest.mark.slow)])
def test_server_that_comes_back_gets_every_row_once(trouble: str, tmp_path: Path, server: FakeServer) -> None:
    with track(tmp_path, options=TrackingOptions()) as tracker:
        log(tracker, range(10))
        wait_for(lambda: server.requests["CreateRunFiles"] or len(server.requests) > 2, 0.5)
        if trouble == "down":
            server.close()
        else:
            server.status = 500
        log(tracker, range(10, 30), picture=True)
        back = threading.Timer(0.7, server.open if trouble == "down" else lambda: setattr(server, "status", None))
        back.start()
    back.join()
    assert tracker.problems == []
    assert_complete(server.run, list(range(30)))
    assert server.run.exit_code == 0


@pytest.mark.parametrize("trouble", ["dead", "refused", pytest.param("picture", marks=pytest.mark.slow)])
def test_what_the_server_did_not_take_is_kept_and_told(
    trouble: str, tmp_path: Path, server: FakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    study = tmp_path / "a study"
    with track(study, options=SHORT) as tracker:
        assert tracker.mode == "online"
        log(tracker, range(10))
        if trouble == "dead":
            server.close()
        server.status = 401 if trouble == "refused" else None
        server.refused = ("CreateRunFiles",) if trouble == "picture" else ()
        log(tracker, range(10, 20), picture=True)
        begin = time.monotonic()
    assert time.monotonic() - begin < 20
    assert len(tracker.problems) == caplog.text.count("wandb sync") == 1
    server.status, server.refused = None, ()
    if trouble == "dead":
        server.open()
    run_told_command(tracker.problems[0])
    # W&B appends what is synced to rows that the server has; they lie on the same points of the charts.
    assert_complete(server.run, [*range(20)] * (2 if trouble == "picture" else 1))
    assert server.run.exit_code == 0


def test_slow_server_slows_no_step(tmp_path: Path, server: FakeServer) -> None:
    server.delay = 0.3
    with track(tmp_path, options=TrackingOptions()) as tracker:
        assert tracker.mode == "online"
        log(tracker, range(1))  # the first row starts threads
        begin = time.monotonic()
        log(tracker, range(1, 50))
        assert time.monotonic() - begin < 49 * server.delay / 3, "no row waits for an answer"
    assert_complete(server.run, list(range(50)), picture=False)


@pytest.mark.slow
def test_server_is_away_between_two_uploads(tmp_path: Path, server: FakeServer) -> None:
    """W&B sends rows every 15 s: some before the trouble, some after it."""
    with track(tmp_path, options=TrackingOptions()) as tracker:
        log(tracker, range(10))
        wait_for(lambda: len(server.run.rows) >= 10, 40)
        server.close()
        log(tracker, range(10, 20), picture=True)
        time.sleep(20)
        server.open()
        log(tracker, range(20, 30))
        wait_for(lambda: len(server.run.keys("loss")) >= 30, 40)
        assert len(server.run.keys("loss")) == 30, "they arrive while the arm still trains"
    assert tracker.problems == [] and server.run.exit_code == 0
    assert_complete(server.run, list(range(30)))


def test_hostile_environment(tmp_path: Path, server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "RUN_ID": "everybody",
        "RESUME": "must",
        "DIR": str(tmp_path / "elsewhere"),
        "NAME": "theirs",
        "RUN_GROUP": "theirs",
        "JOB_TYPE": "theirs",
        "TAGS": "theirs",
        "PROJECT": "theirs",
        "SILENT": "false",
        "CONSOLE": "wrap",
        "SYMLINK": "true",
        "REINIT": "return_previous",
        "X_SKIP_TRANSACTION_LOG": "true",
        "ENTITY": "team",
    }.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    for name in ("one", "two"):
        with track(tmp_path / "study", name, TrackingOptions()) as tracker:
            assert (tracker.mode, tracker.problems) == ("online", [])
            log(tracker, range(3))
    with track(tmp_path / "study", "three") as offline:
        log(offline, range(3))
    made = {run.created["displayName"]: run for run in server.runs.values()}
    assert sorted(made) == ["one", "two"] and "everybody" not in server.runs
    for run in made.values():
        assert_complete(run, [0, 1, 2], picture=False)
        assert (run.created["groupName"], run.created["jobType"]) == ("study-a", "depth")
        assert (run.created["project"], run.created["entity"]) == ("scalestudy", "team")
        assert not run.created["tags"]
    assert sorted(read_all(tmp_path / "study")) == ["one", "three", "two"] and not (tmp_path / "elsewhere").exists()
    assert not list((tmp_path / "study" / "wandb").glob("latest*"))


def test_agent_of_a_wandb_sweep_names_the_run(
    tmp_path: Path, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep7")
    monkeypatch.setenv("WANDB_RUN_ID", "trial3")
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    with track(tmp_path, options=TrackingOptions()) as tracker:
        log(tracker, range(3))
    assert tracker.run_id == "trial3" and server.run.created["sweep"] == "sweep7"
    assert server.run.exit_code == 0
    with pytest.raises(ValueError, match=r"WANDB_SWEEP_ID=sweep7 .* 6 arms"):
        granted_mode(TrackingOptions(), arms=6)
    assert granted_mode(TrackingOptions(mode="disabled"), arms=6) == ("disabled", [])


@pytest.mark.parametrize(("mode", "asked"), [("offline", False), ("disabled", False), ("online", True)])
def test_nothing_calls_home_unasked(
    mode: str, asked: bool, tmp_path: Path, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy hears of every request to every host, also of W&B's own service process."""
    monkeypatch.delenv("WANDB_BASE_URL")
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, server.url)
    with track(tmp_path, options=TrackingOptions(mode=mode, timeout_seconds=0.5)) as tracker:
        log(tracker, range(3), picture=True)
    wandb.teardown()
    assert tracker.mode != "online" and (server.requests.total() > 0) == asked, server.requests


# Processes ------------------------------------------------------------------------------------------------------------

KILLED = """
import os, sys, time
from pathlib import Path
from src.tracking.options import TrackingOptions
from src.tracking.wandb_run import tracked_run
study = Path(sys.argv[1])
with tracked_run(TrackingOptions(), study="s", name="alone", folder=study, config={"seed": 1}) as alone:
    for step in range(50):
        alone.log_metrics({"loss": 1.0 / (step + 1)}, step)
    os.environ["WANDB_API_KEY"] = sys.argv[2]
    with tracked_run(TrackingOptions(), study="s", name="online", folder=study, config={"seed": 1}) as online:
        for step in range(10):
            online.log_metrics({"loss": 1.0 / (step + 1)}, step)
        (study / "ready").write_text(f"{alone.mode} {online.mode} {online.run_id}")
        time.sleep(60)
"""


def kept(study: Path) -> list[int]:
    """Rows on disk of every run that has any."""
    logs = [path for path in (study / "wandb").glob("*run-*/run-*.wandb") if path.stat().st_size > 7]
    return sorted(len(read(path).keys("loss")) for path in logs)


def test_no_prompt_on_a_terminal_and_kill_keeps_the_rows(tmp_path: Path, server: FakeServer) -> None:
    study = tmp_path / "study"
    key = os.environ.pop("WANDB_API_KEY")
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(study), key], stdin=theirs, stdout=theirs, stderr=theirs
    )
    try:
        wait_for((study / "ready").exists, 90, child)
        assert (study / "ready").exists(), os.read(ours, 4000).decode()
        wait_for(lambda: kept(study) == [10, 50], 5)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        os.close(ours)
        os.close(theirs)
    first, second, run_id = (study / "ready").read_text().split()
    logged = read_all(study, seconds=0)
    assert (first, second) == ("offline", "online")
    assert logged["alone"].keys("trainer/global_step") == list(range(50)) and logged["alone"].exit_code is None
    # The server was sent next to nothing; an arm that goes on makes up for that, then continues the same run.
    assert server.run.rows == []
    os.environ["WANDB_API_KEY"] = key
    with track(study, "online", TrackingOptions(), run_id=run_id) as tracker:
        assert (tracker.mode, tracker.problems) == ("online", [])
        for step in range(8, 12):
            tracker.log_metrics({"loss": 1.0 / (step + 1)}, step)
    assert server.run.keys("trainer/global_step") == [*range(10), *range(8, 12)] and server.run.rewritten == []
    assert server.run.exit_code == 0 and unsent_parts(study / "wandb", run_id) == []


def test_reader_agrees_with_wandbs_own(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), track(tmp_path) as tracker:
        for step in range(400):
            tracker.log_metrics({"loss": step / 7, "text": "x" * 200}, step)  # beyond one 32 KiB block
        tracker.summarise({"best/val_accuracy": 0.5})
        raise RuntimeError
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    command = [Path(sys.executable).parent / "wandb", "leet", "inspect", "--summary", "--json", folder]
    told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout)
    logged = only(tmp_path)
    assert (told["run_id"], told["name"], told["project"]) == (
        logged.run.run_id,
        logged.run.display_name,
        logged.run.project,
    )
    assert told["state"] == "failed" and told["exit_code"] == logged.exit_code == 1
    assert told["tags"] == list(logged.run.tags)
    assert logged.keys("loss") == [step / 7 for step in range(400)]
    assert told["summary"]["loss"] == logged.summary["loss"]
    assert told["summary"]["best/val_accuracy"] == logged.summary["best/val_accuracy"] == 0.5
