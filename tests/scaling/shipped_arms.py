"""Networks and rules of `conf/`, read the way a study reads them, and their solutions, each computed once."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from src.config import Study, parse
from src.scaling.rules import Rule
from src.scaling.solve import Base, ScaledNetwork, solve

CONF = Path(__file__).resolve().parents[2] / "conf"
RULES = sorted(path.stem for path in (CONF / "scaling").glob("*.yaml"))
SCALING = [name for name in RULES if name != "base"]
PURE = ["depth", "width", "resolution"]
NANO, SMALL, B0 = ("efficientnet_nano", 32, 10), ("efficientnet_b0_small", 32, 10), ("efficientnet_b0", 224, 1000)


@functools.cache
def study(network: str, scaling: str) -> Study:
    """`network=... scaling=...` on top of the defaults of `conf/config.yaml`."""
    config = OmegaConf.load(CONF / "config.yaml")
    assert isinstance(config, DictConfig)
    groups = {key: choice for entry in config.pop("defaults") if entry != "_self_" for key, choice in entry.items()}
    groups |= {"network": network, "scaling": scaling}
    loaded = {key: OmegaConf.load(CONF / key / f"{choice}.yaml") for key, choice in groups.items() if "/" not in key}
    composed = OmegaConf.merge(config, loaded)
    assert isinstance(composed, DictConfig)
    return parse(composed)


def rule(name: str) -> Rule:
    """The rule `scaling=name`."""
    return study("efficientnet_nano", name).scaling


def base(name: str, resolution: int, classes: int) -> Base:
    """The network `network=name` at another input side."""
    return Base(dataclasses.replace(study(name, "base").network, resolution=resolution), classes)


@functools.cache
def arm(name: str, resolution: int, classes: int, scaling: str, budget: float) -> ScaledNetwork:
    """One solved arm."""
    return solve(base(name, resolution, classes), rule(scaling), budget)
