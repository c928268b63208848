"""The tables of `conf/network`, read the way a study reads them, and random tables that are just as legal."""

from __future__ import annotations

import functools
from pathlib import Path

from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from src.config import parse
from src.networks.table import Network, Norm, Stage, Stem

CONF = Path(__file__).resolve().parents[2] / "conf"
SHIPPED = sorted(path.stem for path in (CONF / "network").glob("*.yaml"))


@functools.cache
def shipped(name: str) -> Network:
    """The stage table `network=name`."""
    config = OmegaConf.load(CONF / "config.yaml")
    assert isinstance(config, DictConfig)
    groups = {key: choice for entry in config.pop("defaults") if entry != "_self_" for key, choice in entry.items()}
    groups["network"] = name
    loaded = {key: OmegaConf.load(CONF / key / f"{choice}.yaml") for key, choice in groups.items() if "/" not in key}
    composed = OmegaConf.merge(config, loaded)
    assert isinstance(composed, DictConfig)
    return parse(composed).network


stages = st.builds(
    Stage,
    block=st.just("mbconv"),
    kernel=st.sampled_from((1, 3, 5, 7)),
    stride=st.integers(1, 3),
    expand=st.integers(1, 4),
    channels=st.integers(1, 12),
    repeats=st.integers(1, 3),
    se_ratio=st.sampled_from((0.0, 0.04, 0.25, 0.5, 1.0)),
)

tables = st.builds(
    Network,
    name=st.just("random"),
    resolution=st.integers(1, 25),
    stem=st.builds(Stem, channels=st.integers(1, 8), stride=st.integers(1, 3), kernel=st.sampled_from((1, 3, 5, 7))),
    stages=st.lists(stages, min_size=1, max_size=3).map(tuple),
    head_channels=st.integers(1, 16),
    activation=st.sampled_from(("silu", "relu")),
    norm=st.just(Norm()),
)
