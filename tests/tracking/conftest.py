"""A machine without a W&B account, a server that is not W&B's, and a study to show on it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import pytest
from wandb_fake import KEY, FakeServer

if TYPE_CHECKING:
    from src.report.write import Report

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "report"))  # for its synthetic studies

FONTS = matplotlib.get_cachedir()  # a new home would have matplotlib look at every font again: 10 s
REFUSED = "http://127.0.0.1:9"


@pytest.fixture
def fresh_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No key, a home of its own, no server, and no state of W&B left by another test."""
    for name in [name for name in os.environ if name.startswith("WANDB_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MPLCONFIGDIR", FONTS)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("WANDB_BASE_URL", REFUSED)
    forget()
    yield
    forget()


def forget() -> None:
    """Make W&B start anew: it keeps keys and settings for as long as a process lives."""
    import wandb
    from wandb.sdk.lib import wbauth

    wbauth.unauthenticate_session(update_settings=False)
    wandb.teardown()


@pytest.fixture
def server(fresh_wandb: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    """A server with an account, whose answers W&B's client does not wait long for."""
    fake = FakeServer()
    monkeypatch.setenv("WANDB_BASE_URL", fake.url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    for what in ("FILE_STREAM", "GRAPHQL", "FILE_TRANSFER"):
        monkeypatch.setenv(f"WANDB_X_{what}_RETRY_WAIT_MIN_SECONDS", "0.1")
        monkeypatch.setenv(f"WANDB_X_{what}_RETRY_WAIT_MAX_SECONDS", "0.2")
    yield fake
    fake.release()
    fake.close()


@pytest.fixture(scope="session")
def axes(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """A study of two arms and the base, three seeds each, with all that arms leave; reported once, since that takes
    seconds. What tests put into its folder they remove."""
    from hydra import compose, initialize_config_dir
    from synthetic_study import arm_records, base_records, write_arm

    from src import config
    from src.launch.hydra_launcher import register
    from src.report.write import write_report

    study = tmp_path_factory.mktemp("outputs") / "axes"
    register(lambda configs: [0] * len(configs), ROOT / "sweeps")
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        composed = config.parse(compose("config", overrides=["study=axes", "tracking.timeout_seconds=5"]))
    facts = {"study": "axes", "wandb_id": "0a1b2c3d"}
    scaled = arm_records({"compound": [0.921, 0.924, 0.9225], "depth": [0.901, 0.902, 0.9]}, **facts)
    for run in [*scaled, *base_records([0.89, 0.892, 0.888], **facts)]:
        lacking = (run.arm, run.seed) == ("depth", 2)  # a finding
        config.write(composed, write_arm(study, run, cam=run.seed == 0, history=not lacking) / "config.yaml")
    return write_report(study)
