"""A published name stands for what was published; under another name everything is allowed."""

from __future__ import annotations

import dataclasses
import runpy
from pathlib import Path

import pytest
from shipped_arms import base, rule

from src.networks.table import Norm
from src.scaling.currency import MACS
from src.scaling.lattice import Base
from src.scaling.released import ARMS, BASES, check_released
from src.scaling.rules import Rule
from src.scaling.solve import solve

# Counted by four independent programs; see the file.
GOLDEN = {
    one.name: one
    for one in runpy.run_path(str(Path(__file__).resolve().parents[1] / "networks" / "golden.py"))["RELEASED"]
}
B0 = base("efficientnet_b0", 224, 10)


@pytest.mark.parametrize("name", GOLDEN)
def test_the_table_is_the_published_one_and_shipped_rules_pass(name: str) -> None:
    assert ARMS["efficientnet_b0", name] == (GOLDEN[name].resolution, GOLDEN[name].params)
    check_released(rule(name), solve(B0, rule(name), 2.0, MACS))


def test_the_base_is_b0_at_any_side_and_with_any_classes() -> None:
    assert list(BASES.items()) == [("efficientnet_b0", GOLDEN["b0"].params)]
    for side in (128, 224):
        check_released(rule("compound"), solve(base("efficientnet_b0", side, 10), rule("compound"), 2.0, MACS))


@pytest.mark.parametrize("change", [{"depth": 1.44}, {"width": 1.21}, {"pixels": 296}], ids=str)
def test_other_coefficients_are_no_b2(change: dict[str, float]) -> None:
    other = dataclasses.replace(rule("b2"), **change)
    with pytest.raises(ValueError, match=r"scaling.name=b2 is a published network with .* \(guard G13\)"):
        check_released(other, solve(B0, other, 2.0, MACS))
    named = dataclasses.replace(other, name="b2_changed")
    check_released(named, solve(B0, named, 2.0, MACS))


def test_another_table_is_no_efficientnet_b0() -> None:
    stages = (dataclasses.replace(B0.network.stages[0], channels=24), *B0.network.stages[1:])
    for table in (
        dataclasses.replace(B0.network, stages=stages),
        dataclasses.replace(B0.network, norm=Norm(eps=1e-5, momentum=0.1)),
    ):
        with pytest.raises(ValueError, match=r"network.name=efficientnet_b0 .* \(guard G13\)"):
            check_released(
                Rule("base", (0.0, 0.0, 0.0)), solve(Base(table, 10), Rule("base", (0.0, 0.0, 0.0)), 1.0, MACS)
            )
        mine = dataclasses.replace(table, name="mine")
        check_released(Rule("base", (0.0, 0.0, 0.0)), solve(Base(mine, 10), Rule("base", (0.0, 0.0, 0.0)), 1.0, MACS))
