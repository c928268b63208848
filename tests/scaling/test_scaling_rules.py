"""Rules: one formula with exponents as data, five files of one form, and no name that decides anything."""

from __future__ import annotations

import ast
import dataclasses
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from shipped_arms import CONF, NANO, PURE, RULES, SCALING, base, rule

from src.scaling.rules import DEPTH_ONLY, RESOLUTION_ONLY, WIDTH_ONLY, Exponents, Rule
from src.scaling.solve import solve

SRC = CONF.parent / "src"


@st.composite
def exponents(draw: st.DrawFn) -> Exponents:
    parts = draw(st.tuples(*[st.floats(0.0, 1.0)] * 3).filter(lambda values: sum(values) > 0.01))
    total = sum(parts)
    return Exponents(*(part / total for part in parts))


def test_the_five_rules_are_there() -> None:
    assert set(RULES) >= {"base", "depth", "width", "resolution", "compound"}


def test_compound_is_the_papers_equation() -> None:
    alpha, beta, gamma = 1.2, 1.1, 1.15
    growth = math.log(alpha * beta**2 * gamma**2)
    assert math.exp(growth) == pytest.approx(1.92027, abs=1e-5)  # not 2
    e = rule("compound").exponents
    assert e.depth == pytest.approx(math.log(alpha) / growth, abs=1e-8)
    assert e.width == pytest.approx(2 * math.log(beta) / growth, abs=1e-8)
    assert e.resolution == pytest.approx(2 * math.log(gamma) / growth, abs=1e-8)
    asked = rule("compound").factors(alpha * beta**2 * gamma**2)
    assert dataclasses.astuple(asked) == pytest.approx((alpha, beta, gamma), rel=1e-8)


@pytest.mark.parametrize("name", PURE)
def test_pure_rules_ask_for_one_axis_only(name: str) -> None:
    pure = rule(name)
    assert pure.exponents == {r.name: r for r in (DEPTH_ONLY, WIDTH_ONLY, RESOLUTION_ONLY)}[name].exponents
    asked = dataclasses.asdict(pure.factors(4.0))
    assert asked.pop(name) == (4.0 if name == "depth" else 2.0)
    assert set(asked.values()) == {1.0}


def test_the_base_scales_nothing() -> None:
    assert not rule("base").scales
    assert dataclasses.astuple(rule("base").factors(7.0)) == (1.0, 1.0, 1.0)
    assert all(rule(name).scales for name in SCALING)


@given(e=exponents(), cost_factor=st.floats(0.1, 100.0))
def test_the_formula_spends_exactly_the_cost_factor(e: Exponents, cost_factor: float) -> None:
    """MACs grow with d * w^2 * r^2."""
    asked = Rule("any", e).factors(cost_factor)
    assert asked.depth * asked.width**2 * asked.resolution**2 == pytest.approx(cost_factor, rel=1e-9)
    grown = {axis for axis, factor in dataclasses.asdict(asked).items() if factor != 1.0}
    assert grown <= {axis for axis, exponent in dataclasses.asdict(e).items() if exponent > 0.0}


@pytest.mark.parametrize("axis", PURE)
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), float("inf")])
def test_an_exponent_outside_its_range_is_refused_by_key_and_value(axis: str, value: float) -> None:
    values = dict.fromkeys(PURE, 0.0) | {axis: value}
    with pytest.raises(ValueError, match=rf"scaling\.exponents\.{axis}={value:g} must lie in \[0, 1\]"):
        Exponents(**values)


@pytest.mark.parametrize(
    ("values", "total"), [((0.5, 0.5, 0.5), "1.5"), ((0.3, 0.3, 0.3), "0.9"), ((1.0, 1.0, 1.0), "3")]
)
def test_exponents_that_do_not_sum_to_one_are_refused_with_the_fix(values: tuple[float, ...], total: str) -> None:
    with pytest.raises(ValueError, match=rf"sum to {re.escape(total)};.*divide each by {re.escape(total)}"):
        Exponents(*values)


def keys(node: Any, path: str = "") -> Iterator[str]:
    for key, value in node.items():
        yield f"{path}{key}"
        if isinstance(value, dict):
            yield from keys(value, f"{path}{key}.")


def test_all_rule_files_have_one_form_and_are_named_after_their_rule() -> None:
    files = {path.stem: OmegaConf.to_container(OmegaConf.load(path)) for path in (CONF / "scaling").iterdir()}
    forms = {name: tuple(keys(content)) for name, content in files.items()}
    assert set(forms.values()) == {
        ("name", "exponents", "exponents.depth", "exponents.width", "exponents.resolution", "source")
    }
    for name, content in files.items():
        assert isinstance(content, dict) and content["name"] == name and content["source"]


def test_renaming_the_rules_changes_nothing_but_the_name() -> None:
    """Exponents decide, names do not: every rule under the name of another one."""
    start, names = base(*NANO), [*PURE, "compound", "base"]
    for name, alias in zip(names, [*names[1:], names[0]], strict=True):
        original = solve(start, rule(name), 2.0)
        renamed = solve(start, dataclasses.replace(rule(name), name=alias), 2.0)
        assert renamed.arm == alias
        assert dataclasses.replace(renamed, arm=original.arm) == original


ARMS = {"base", "depth", "width", "resolution", "compound"}
LABELS = {"arm", "arms", "rule", "rules", "scaling", "name", "names", "label", "job", "kind"}


def _labels(node: ast.AST) -> bool:
    """Whether an expression reads something called like an arm's name: `rule.name`, `arm`, `study.scaling.name`,
    `job_type`."""
    words = [
        n.id if isinstance(n, ast.Name) else n.attr for n in ast.walk(node) if isinstance(n, ast.Name | ast.Attribute)
    ]
    return any(LABELS & set(word.lower().split("_")) for word in words)


def _arm_names(node: ast.AST) -> bool:
    return any(isinstance(n, ast.Constant) and n.value in ARMS for n in ast.walk(node))


def name_branches(source: str) -> list[int]:
    """Lines on which something called like an arm's name decides by being compared with, or looked up by, an arm's
    name."""
    lines: list[int] = []
    for node in ast.walk(ast.parse(source)):
        pair: list[tuple[ast.AST, ast.AST]] = []
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            pair = [(a, b) for a in sides for b in sides if a is not b]
        elif isinstance(node, ast.Match):
            pair = [(node.subject, case.pattern) for case in node.cases]
        elif isinstance(node, ast.Subscript):
            pair = [(node.slice, node.value)]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            pair = [(argument, node.func.value) for argument in node.args]  # {"depth": ...}.get(rule.name)
            if node.func.attr in {"startswith", "endswith", "removeprefix", "find", "count"}:
                pair += [(node.func.value, argument) for argument in node.args]
        if any(_labels(label) and _arm_names(names) for label, names in pair):
            lines.append(node.lineno)
    return lines


@pytest.mark.parametrize(
    "source",
    [
        "if rule.name == 'depth': pass",
        "x = 1 if 'compound' != scaled.arm else 2",
        "if study.scaling.name in ('depth', 'width'): pass",
        "while arm not in {'base'}: pass",
        "match rule.name:\n    case 'depth' | 'width': pass",
        "f = {'depth': 1, 'width': 2}[scaling_name]",
        "f = {'depth': 1}.get(rule.name, 0)",
        "if rule.name.startswith('compound'): pass",
    ],
)
def test_the_search_finds_a_planted_branch(source: str) -> None:
    assert name_branches(source)


@pytest.mark.parametrize(
    "source",
    [
        "x = network.repeats if 'depth' in axes else base.repeats",
        "x = {axis: getattr(scaled.asked, axis) for axis in ('depth', 'width')}",
        "wanted = {'depth': audit.repeats != base.repeats}\nfaults = [a for a in wanted if wanted[a]]",
        "DEPTH_ONLY = Rule('depth', Exponents(1.0, 0.0, 0.0))",
        "x = METRICS['depth'].format(realised.depth)",
        "if key == 'resolution': pass",
        "for axis, value in zip(('depth', 'width'), values): check(axis, value)",
    ],
)
def test_the_search_leaves_axes_alone(source: str) -> None:
    assert name_branches(source) == []


FILES = sorted(
    [
        *(path for room in ("networks", "scaling", "training") for path in (SRC / room).rglob("*.py")),
        SRC / "study.py",
        SRC / "arm.py",
    ]
)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SRC)))
def test_no_code_branches_on_the_name_of_an_arm(path: Path) -> None:
    assert name_branches(path.read_text()) == []
