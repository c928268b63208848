"""The tables of `conf/network`, and random tables that are just as legal."""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from src.networks.table import ACTIVATIONS, BLOCK_FIELDS, Network, Norm, Stage, Stem

CONF = Path(__file__).resolve().parents[2] / "conf"
SHIPPED = sorted(path.stem for path in (CONF / "network").glob("*.yaml"))


def table(text: str) -> Network:
    """The stage table in YAML `text`; `test_networks_file_format` reads the same files as a study does."""
    keys: dict[str, Any] = yaml.safe_load(text)
    keys["stem"], keys["norm"] = Stem(**keys["stem"]), Norm(**keys["norm"])
    keys["stages"] = [Stage(**stage) for stage in keys["stages"]]
    return Network(**keys)


@functools.cache
def shipped(name: str) -> Network:
    """The stage table `network=name`."""
    return table((CONF / "network" / f"{name}.yaml").read_text())


@st.composite
def stages(draw: st.DrawFn, side: int) -> Stage:
    """A stage of any kind that a map of `side` cells may enter."""
    kind = draw(st.sampled_from(sorted(BLOCK_FIELDS)))
    optional: dict[str, Any] = {}
    if kind == "mbconv":
        optional = {"expand": draw(st.integers(1, 4)), "se_ratio": draw(st.sampled_from((0.0, 0.04, 0.25, 0.5, 1.0)))}
    elif kind == "bottleneck":
        optional = {"groups": draw(st.integers(1, 3)), "reduce": draw(st.integers(1, 3))}
    multiple = optional.get("groups", 1) * optional.get("reduce", 1)
    return Stage(
        block=kind,
        kernel=draw(st.sampled_from((1, 3, 5, 7))),
        stride=draw(st.integers(1, min(3, side))),
        channels=multiple * draw(st.integers(1, max(1, 12 // multiple))),
        repeats=draw(st.integers(1, 3)),
        **optional,
    )


@st.composite
def tables(draw: st.DrawFn) -> Network:
    """A small legal table that mixes all kinds of blocks, groups, pooling and missing heads."""
    resolution = draw(st.integers(1, 25))
    stem = Stem(
        channels=draw(st.integers(1, 8)),
        stride=draw(st.integers(1, min(3, resolution))),
        kernel=draw(st.sampled_from((1, 3, 5, 7))),
        pool=1,
    )
    side = -(-resolution // stem.stride)
    stem = dataclasses.replace(stem, pool=draw(st.integers(1, min(3, side))))
    side = -(-side // stem.pool)
    rows: list[Stage] = []
    for _ in range(draw(st.integers(1, 3))):
        rows.append(draw(stages(side)))
        side = -(-side // rows[-1].stride)
    return Network(
        name="random",
        resolution=resolution,
        stem=stem,
        stages=tuple(rows),
        head_channels=draw(st.integers(0, 16)),
        activation=draw(st.sampled_from(ACTIVATIONS)),
        channel_divisor=math.lcm(*(row.channel_multiple for row in rows)) * draw(st.integers(1, 2)),
    )
