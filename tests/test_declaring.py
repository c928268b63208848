"""Claims on their way from the command line into the study's folder, before anything is trained."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from src import config, study
from src.launch.hydra_launcher import register
from src.report.declared import CLAIMS_FILE, families
from src.report.study import pending, read_study
from src.verdict.claims import DEFAULT, PRIMARY, Claim
from src.verdict.looks import PlannedRun

ROOT = Path(__file__).resolve().parents[1]
OWN = "claims=[{subject: fast, rivals: [depth, width]}, {subject: depth, rivals: [width], margin: 0.5}]"


@pytest.fixture(scope="module")
def hydra() -> Iterator[None]:
    """Hydra on the real `conf/`."""
    register(lambda configs: [0] * len(configs), ROOT / "sweeps")
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        yield


def composed(*overrides: str) -> DictConfig:
    return compose("config", overrides=list(overrides))


def test_the_shipped_claims_are_the_default_family(hydra: None) -> None:
    assert config.parse(composed()).claims == DEFAULT.claims


def test_own_claims_come_from_the_command_line_and_survive_the_arms_config(hydra: None, tmp_path: Path) -> None:
    parsed = config.parse(composed(OWN))
    assert parsed.claims == (Claim("fast", ("depth", "width")), Claim("depth", ("width",), 0.5))
    config.write(parsed, tmp_path / "config.yaml")
    assert config.read(tmp_path / "config.yaml") == parsed


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("claims=[]", "is empty"),
        ("claims=[{subject: a, rivals: [b]}, {subject: a, rivals: [c, b]}]", "compares a against b twice"),
        ("claims=[{subject: a, rivals: [a]}]", "must be other arms"),
        ("claims=[{subject: a, rivals: b}]", "should be a list"),
        ("claims=[{subject: a, rivals: [b], margin: -1}]", "margin=-1"),
    ],
)
def test_claims_that_make_no_sense_are_refused(hydra: None, given: str, words: str) -> None:
    with pytest.raises(ValueError, match="claims") as refused:
        config.parse(composed(given))
    assert words in str(refused.value)


def test_claims_do_not_decide_what_an_arm_is(hydra: None, tmp_path: Path) -> None:
    places = [f"outputs={tmp_path}", "dry_run=true"]
    _, (plain, other) = study.plan_configs([composed(*places, "study=a"), composed(*places, "study=b", OWN)])
    assert plain.config_hash == other.config_hash


def test_another_launchers_jobs_are_declared_and_queued_before_the_first_one_starts(
    hydra: None, tmp_path: Path
) -> None:
    arms = [("compound", 0), ("compound", 1), ("depth", 0)]
    configs = [composed(f"outputs={tmp_path}", "study=s", f"scaling={arm}", f"seed={seed}") for arm, seed in arms]
    assert study.preflight(configs) == [0, 1, 2]
    (entry,) = json.loads((tmp_path / "s" / CLAIMS_FILE).read_text())
    assert entry["finished"] == 0 and families(tmp_path / "s") == (DEFAULT,)
    assert pending(read_study(tmp_path / "s")) == tuple(PlannedRun(arm, 2.0, seed) for arm, seed in arms)
    assert study.preflight([composed(f"outputs={tmp_path}", "study=s", "scaling=width", OWN)]) == [0]
    (declared,) = families(tmp_path / "s")  # nothing had finished: one family, and Holm over all of it
    assert declared.claims == (PRIMARY, *config.parse(composed(OWN)).claims) and declared.after == 0


def test_a_dry_run_declares_nothing(hydra: None, tmp_path: Path) -> None:
    assert study.preflight([composed(f"outputs={tmp_path}", "study=s", "dry_run=true")]) == []
    assert not (tmp_path / "s").exists()
