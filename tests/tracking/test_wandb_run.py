"""Real W&B runs, offline and against a loopback server, read back by an independent reader."""

import json
import logging
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wandb
from PIL import Image
from wandb_fake import FakeServer
from wandb_reader import LoggedRun, read, read_all

from src.tracking import wandb_run
from src.tracking.options import TrackingOptions
from src.tracking.wandb_run import Tracker, granted_mode, tracked_run

REFUSED = "http://127.0.0.1:9"
KEY = "0123456789" * 4
OFFLINE = TrackingOptions(mode="offline", tags=["paper"], notes="why")


@pytest.fixture(autouse=True)
def fresh_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No key, a home of its own, no server, and no state of W&B left by another test."""
    for name in [name for name in os.environ if name.startswith("WANDB_")] + ["NETRC"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("WANDB_BASE_URL", REFUSED)
    forget()
    yield
    forget()


def forget() -> None:
    from wandb.sdk.lib import wbauth

    wbauth.unauthenticate_session(update_settings=False)
    wandb.teardown()


def track(folder: Path, name: str = "depth-2x-seed0-1a2b", options: TrackingOptions = OFFLINE, **values: Any) -> Any:
    given = {"study": "study-a", "config": {"scaling": {"rule": "depth"}, "seed": 0}, "job_type": "depth", **values}
    return tracked_run(options, name=name, folder=folder, **given)


def only(folder: Path, seconds: float = 10.0) -> LoggedRun:
    (logged,) = read_all(folder, seconds).values()
    return logged


def test_offline_run_holds_everything(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    study = tmp_path / "study"
    picture = np.tile(np.arange(64, dtype=np.uint8)[:, None, None], (1, 64, 3)) * 3
    with track(study, tags=["depth", "paper"]) as tracker:
        assert (tracker.mode, tracker.url, tracker.problems) == ("offline", None, [])
        for step in (5, 10, 20):
            tracker.log_metrics({"val_accuracy": step / 40, "epoch": step // 10}, step)
        tracker.log_pictures("cam", [picture, 255 - picture], ["cat 0.91 (right)", "dog 0.20"], 20)
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
    assert (stored[0] == picture).all() and stored[1].min() < stored[1].max()
    assert str(files.parent) in tracker.notice
    assert capfd.readouterr() == ("", ""), "nothing is printed beside the logged lines"


@pytest.mark.parametrize("image", [np.random.rand(8, 8, 3), np.zeros((3, 8, 8), np.uint8)])
def test_pictures_that_would_be_black_are_refused(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint8"):
        Tracker(None, "disabled", "").log_pictures("cam", [image], ["x"], 0)


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
        assert tracker.logger is not False, "all ranks hand the same kind of logger to the Trainer"
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


def test_resumed_arm_keeps_its_id(tmp_path: Path) -> None:
    with track(tmp_path) as first:
        first.log_metrics({"loss": 1.0}, 1)
    time.sleep(1.1)  # directories are named by the second
    with track(tmp_path, run_id=first.run_id) as second:
        second.log_metrics({"loss": 0.5}, 2)
    assert second.run_id == first.run_id
    time.sleep(0.5)
    logs = [read(path) for path in sorted((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))]
    assert [log.keys("loss") for log in logs] == [[1.0], [0.5]]


class Broken:
    """A run whose connection is gone."""

    id, url = "gone", None
    settings = wandb.Settings(silent=True)

    def log(self, *args: Any, **kwargs: Any) -> None:
        raise BrokenPipeError("the service is gone")

    finish = log


def test_loss_of_wandb_is_said_once_and_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    tracker = Tracker(Broken(), "offline", "")
    for step in range(5):
        tracker.log_metrics({"loss": 1.0}, step)
    tracker.finish(0)
    lines = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(lines) == len(tracker.problems) == 1 and "BrokenPipeError" in lines[0].message


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


def test_unreachable_server_falls_back_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    begin = time.monotonic()
    with track(tmp_path, options=TrackingOptions(timeout_seconds=1.5)) as tracker:
        assert time.monotonic() - begin < 8
        assert tracker.mode == "offline" and tracker.url is None
        assert len(tracker.problems) == 1 and "cannot be reached" in caplog.text
        tracker.log_metrics({"loss": 1.0}, 1)
    assert only(tmp_path).keys("loss") == [1.0], "and the failed attempt leaves no second run"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    fake = FakeServer()
    monkeypatch.setenv("WANDB_BASE_URL", fake.url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    yield fake
    fake.close()


@pytest.mark.parametrize("failing", [False, True])
def test_online_run_reaches_the_server(tmp_path: Path, server: FakeServer, failing: bool) -> None:
    try:
        with track(tmp_path) as unused:
            assert unused.mode == "offline"
        with track(tmp_path, "online", TrackingOptions(tags=["t"])) as tracker:
            assert (tracker.mode, tracker.problems) == ("online", [])
            assert tracker.url == f"{server.url}/lab/scalestudy/runs/{tracker.run_id}"
            assert tracker.url in tracker.notice
            tracker.log_metrics({"val_accuracy": 0.25}, 3)
            tracker.log_pictures("cam", [np.arange(192, dtype=np.uint8).reshape(8, 8, 3)], ["cat"], 3)
            if failing:
                raise RuntimeError
    except RuntimeError:
        assert failing
    assert server.exit_code == int(failing)
    sent = server.runs[0]
    assert (sent["groupName"], sent["displayName"], sent["jobType"], sent["tags"]) == (
        "study-a",
        "online",
        "depth",
        ["t"],
    )
    assert [row["val_accuracy"] for row in server.rows if "val_accuracy" in row] == [0.25]
    assert any(name.startswith("media/images/cam") for name in server.files)
    assert json.loads(sent["config"])["seed"]["value"] == 0


def test_server_lost_during_training_does_not_hold_the_arm(
    tmp_path: Path, server: FakeServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(wandb_run, "FINISH_SECONDS", 1.0)
    with track(tmp_path, options=TrackingOptions()) as tracker:
        assert tracker.mode == "online"
        server.close()
        for step in range(20):
            tracker.log_metrics({"loss": 1.0 / (step + 1)}, step)
        begin = time.monotonic()
    assert time.monotonic() - begin < 8
    assert len(tracker.problems) == 1 and "wandb sync" in caplog.text
    assert len(only(tmp_path).keys("loss")) == 20


# Processes ------------------------------------------------------------------------------------------------------------

KILLED = """
import sys, time
from pathlib import Path
from src.tracking.options import TrackingOptions
from src.tracking.wandb_run import tracked_run
study = Path(sys.argv[1])
with tracked_run(TrackingOptions(), study="s", name="arm", folder=study, config={"seed": 1}) as tracker:
    for step in range(50):
        tracker.log_metrics({"loss": 1.0 / (step + 1)}, step)
    (study / "ready").write_text(tracker.mode)
    time.sleep(60)
"""


def test_no_prompt_on_a_terminal_and_kill_keeps_the_rows(tmp_path: Path) -> None:
    study = tmp_path / "study"
    ours, theirs = pty.openpty()
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(study)], stdin=theirs, stdout=theirs, stderr=theirs)
    try:
        deadline = time.monotonic() + 90
        while not (study / "ready").exists() and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        assert (study / "ready").exists(), os.read(ours, 4000).decode()
        time.sleep(3)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        os.close(ours)
        os.close(theirs)
    logged = only(study, seconds=0)
    assert (study / "ready").read_text() == "offline"
    assert logged.keys("trainer/global_step") == list(range(50)) and logged.exit_code is None


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
