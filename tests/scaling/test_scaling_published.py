"""Published networks through their YAML files, against counts that other projects' code gives.

EfficientNets and the arms of the paper's Table 7: `tests/networks/golden.py`. TinyNets: the modules `tinynet_a` to
`tinynet_e` of timm 1.0.31 (huggingface/pytorch-image-models) at their published input sides and 1,000 classes, built
on the meta device with torch 2.13; parameters as listed, multiply-adds by torch's FlopCounterMode / 2, activations by
hooks on convolutions outside squeeze-and-excitation, repeats and channels read off the modules.
"""

from __future__ import annotations

import runpy
from typing import Any, NamedTuple

import pytest
from shipped_arms import B0, CONF, NANO, SMALL, TABLES, arm, base, rule

from src.scaling.rules import Rule
from src.scaling.solve import ScaledNetwork, solve

GOLDEN = runpy.run_path(str(CONF.parent / "tests" / "networks" / "golden.py"))


class TinyNet(NamedTuple):
    """One network of arXiv 2010.14819 as timm builds it. channels: of the stem, the stages and the head."""

    name: str
    resolution: int
    params: int
    macs: int
    activations: int
    repeats: tuple[int, ...]
    channels: tuple[int, ...]


TINYNETS = (
    TinyNet(
        *("tinynet_a", 192, 6_187_972, 336_867_712, 5_399_424, (1, 2, 2, 4, 4, 5, 1)),
        (32, 16, 24, 40, 80, 112, 192, 320, 1280),
    ),
    TinyNet(
        *("tinynet_b", 188, 3_730_562, 200_709_360, 4_427_648, (1, 2, 2, 3, 3, 4, 1)),
        (32, 16, 24, 32, 64, 88, 144, 240, 1280),
    ),
    TinyNet(
        *("tinynet_c", 184, 2_457_234, 99_536_432, 2_860_832, (1, 2, 2, 3, 3, 3, 1)),
        (32, 8, 16, 24, 40, 64, 104, 176, 1280),
    ),
    TinyNet(
        *("tinynet_d", 152, 2_338_446, 51_580_656, 1_413_264, (1, 1, 1, 2, 2, 3, 1)),
        (32, 8, 16, 24, 40, 64, 104, 176, 1280),
    ),
    TinyNet(
        *("tinynet_e", 106, 2_042_972, 24_356_848, 686_712, (1, 1, 1, 2, 2, 2, 1)),
        (32, 8, 16, 24, 40, 56, 96, 160, 1280),
    ),
)


def counts(scaled: ScaledNetwork) -> tuple[int, int, int]:
    return scaled.resolution, scaled.cost.params, scaled.cost.macs


@pytest.mark.parametrize("row", GOLDEN["RELEASED"], ids=lambda row: row.name)
def test_the_files_of_the_released_family_build_it_to_the_unit(row: Any) -> None:
    scaled = arm(*B0, row.name, 2.0)
    assert counts(scaled) == (row.resolution, row.params, row.macs)
    assert scaled.cost.activations / 1e6 == pytest.approx(row.activations, rel=1e-3)
    assert (scaled.network.blocks, scaled.network.final_side(scaled.resolution)) == (row.blocks, row.final)
    given = rule(row.name)
    assert (given.width, given.depth, given.pixels) == (row.width, row.depth, row.resolution)


@pytest.mark.parametrize("row", GOLDEN["RELEASED"], ids=lambda row: row.name)
def test_the_heads_of_the_files_tell_these_counts(row: Any) -> None:
    head = (CONF / "scaling" / f"{row.name}.yaml").read_text().splitlines()[0]
    assert f"{row.params / 1e6:.3f} M parameters and {row.macs / 1e6:.1f} M MACs" in head


@pytest.mark.parametrize("row", GOLDEN["TABLE_7"], ids=lambda row: row.name)
def test_the_papers_own_comparison_from_its_coefficients(row: Any) -> None:
    factor = {448: 2.0, 291: 1.3}.get(row.resolution, 1.0)
    scaled = solve(base(*B0), Rule(depth=row.depth, width=row.width, resolution=factor), 4.0)
    assert counts(scaled) == (row.resolution, row.params, row.macs)
    assert scaled.cost.activations / 1e6 == pytest.approx(row.activations, rel=1e-3)
    assert scaled.multiple == row.macs / 385_814_752


def test_the_papers_own_comparison_is_not_matched() -> None:
    macs = {row.name: row.macs for row in GOLDEN["TABLE_7"]}
    assert max(macs.values()) / min(macs.values()) - 1 == pytest.approx(0.241, abs=0.001)


@pytest.mark.parametrize("row", TINYNETS, ids=lambda row: row.name)
def test_the_files_of_tinynet_build_it_to_the_unit(row: TinyNet) -> None:
    scaled = arm(*B0, row.name, 2.0)
    assert counts(scaled) == (row.resolution, row.params, row.macs)
    assert scaled.cost.activations == row.activations
    assert (scaled.network.repeats, scaled.network.channels) == (row.repeats, row.channels)


def test_the_smallest_tinynet_has_the_24_million_of_its_papers_abstract() -> None:
    assert round(arm(*B0, "tinynet_e", 2.0).cost.macs / 1e6) == 24


@pytest.mark.parametrize("row", TINYNETS, ids=lambda row: row.name)
def test_tinynet_needs_each_of_its_roundings(row: TinyNet) -> None:
    """Rounding up and narrowing stem and head, as EfficientNet does, builds other networks."""
    given = rule(row.name)
    as_efficientnet = Rule(depth=given.depth, width=given.width, pixels=given.pixels)
    assert solve(base(*B0), as_efficientnet, 2.0).cost.params != row.params


@pytest.mark.parametrize("name", TABLES)
def test_a_published_table_spends_no_budget(name: str) -> None:
    two = arm(*B0, name, 2.0)
    assert two == arm(*B0, name, 0.5) == arm(*B0, name, 1.0)
    assert two.snapped_budget == two.multiple == two.price / two.base_price
    assert two.budget == float(f"{two.multiple:.4g}")
    assert not two.pushed_apart


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("setting", [NANO, SMALL], ids=lambda setting: setting[0])
def test_a_published_table_is_refused_on_another_network(name: str, setting: tuple[str, int, int]) -> None:
    with pytest.raises(ValueError) as refused:
        solve(base(*setting), rule(name), 2.0)
    assert str(refused.value) == (
        f"scaling={name} is a published table of efficientnet_b0, not of {setting[0]}; use network=efficientnet_b0,"
        " or give any network such factors with scaling=coefficients"
    )
    given = rule(name)
    width, depth, factor = given.width, given.depth, (given.pixels or 0) / 224
    for start in (base(*B0), base(*setting)):  # both ways out work, as long as 4x4 cells are left
        if start.network.final_side(int(start.resolution * factor)) >= 4:
            assert solve(start, Rule(depth=depth, width=width, resolution=factor), 2.0).cost.macs > 0


def test_tables_scale_their_network_at_other_pictures_and_classes() -> None:
    """B1 of ten classes: only the classifier changes (1,280 features, 990 classes fewer, with biases)."""
    ten = solve(base("efficientnet_b0", 224, 10), rule("b1"), 2.0)
    assert ten.resolution == 240
    assert ten.cost.params == 7_794_184 - 990 * 1281
    assert ten.cost.macs == 686_802_832 - 990 * 1280
