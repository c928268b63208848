"""Rules: one formula with exponents as data, coefficients, files of two forms, and no name that decides anything."""

from __future__ import annotations

import ast
import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from shipped_arms import (
    B0,
    CONF,
    MISSING,
    NANO,
    PURE,
    RULE_FILES,
    RULES,
    SCALING,
    SHRINKING,
    TABLES,
    base,
    keys_of,
    rule,
)

from src.scaling.rules import AXES, DEPTH_ONLY, RESOLUTION_ONLY, WIDTH_ONLY, Factors, Rule
from src.scaling.rules import PURE as PURE_RULES
from src.scaling.solve import solve

SRC = CONF.parent / "src"
GROWING = {"compound", "compound_uniform", "depth", "dr", "dw", "fast", "resolution", "slow_res", "width", "wr"}


@st.composite
def exponents(draw: st.DrawFn) -> tuple[float, float, float]:
    parts = draw(st.tuples(*[st.floats(0.0, 1.0)] * 3).filter(lambda values: sum(values) > 0.01))
    depth, width, resolution = (part / sum(parts) for part in parts)
    return depth, width, resolution


def test_all_rules_are_there() -> None:
    assert set(SCALING) == GROWING
    assert SHRINKING == ["tiny"]
    assert set(TABLES) == {*(f"b{i}" for i in range(8)), *(f"tinynet_{letter}" for letter in "abcde")}
    assert set(RULE_FILES) == GROWING | {"base", "tiny", "custom", "coefficients", *TABLES}


def test_compound_is_the_papers_equation() -> None:
    alpha, beta, gamma = 1.2, 1.1, 1.15
    growth = math.log(alpha * beta**2 * gamma**2)
    assert math.exp(growth) == pytest.approx(1.92027, abs=1e-5)  # not 2
    expected = math.log(alpha) / growth, 2 * math.log(beta) / growth, 2 * math.log(gamma) / growth
    assert rule("compound").exponents == pytest.approx(expected, abs=1e-8)
    asked = rule("compound").factors(alpha * beta**2 * gamma**2)
    assert asked.axes == pytest.approx((alpha, beta, gamma), rel=1e-8)


@pytest.mark.parametrize(("name", "alpha"), [("compound_uniform", 1 / 3), ("fast", 0.8), ("width", 1.0)])
@pytest.mark.parametrize("s", [0.5, 2.0, 16.0])
def test_rules_of_fast_scaling_are_its_authors_equation(name: str, alpha: float, s: float) -> None:
    """arXiv 2103.06877: d = s^((1-a)/2), w = s^(a/2), r = s^((1-a)/4)."""
    asked = rule(name).factors(s)
    assert asked.axes == pytest.approx((s ** ((1 - alpha) / 2), s ** (alpha / 2), s ** ((1 - alpha) / 4)), rel=1e-8)


def test_slow_resolution_moves_half_of_compounds_resolution_to_depth() -> None:
    depth, width, resolution = rule("compound").exponents
    expected = depth + resolution / 2, width, resolution / 2
    assert rule("slow_res").exponents == pytest.approx(expected, abs=1e-8)


def test_ablations_leave_one_axis_out_and_share_alike() -> None:
    for name, left_out in (("wr", "depth"), ("dr", "width"), ("dw", "resolution")):
        expected = [0.0 if axis == left_out else 0.5 for axis in AXES]
        assert list(rule(name).exponents) == expected


TINYNET = {  # width, depth, pixels: timm 1.0.31, timm/models/efficientnet.py, tinynet_a to tinynet_e; base 224 px
    "a": (1.0, 1.2, 192),
    "b": (0.75, 1.1, 188),
    "c": (0.54, 0.85, 184),
    "d": (0.54, 0.695, 152),
    "e": (0.51, 0.6, 106),
}


def test_tiny_is_fitted_to_the_tinynet_table() -> None:
    """Each axis' log growth against the log growth of d * w^2 * r^2, least squares through the origin."""
    logs = np.log([[d, w**2, (px / 224) ** 2] for w, d, px in TINYNET.values()])
    growth = logs.sum(axis=1)
    slopes = [float(np.linalg.lstsq(growth[:, None], axis, rcond=None)[0][0]) for axis in logs.T]
    assert sum(slopes) == pytest.approx(1.0, abs=1e-12)
    assert rule("tiny").exponents == pytest.approx(slopes, abs=1e-8)
    assert rule("tiny").largest_budget == 1.0
    for letter, row in TINYNET.items():
        table = rule(f"tinynet_{letter}")
        assert (table.width, table.depth, table.pixels) == row


@pytest.mark.parametrize("name", PURE)
def test_pure_rules_ask_for_one_axis_only(name: str) -> None:
    pure = rule(name)
    assert pure.pure and pure.solved
    assert pure.exponents == {r.name: r for r in (DEPTH_ONLY, WIDTH_ONLY, RESOLUTION_ONLY)}[name].exponents
    asked = dataclasses.asdict(pure.factors(4.0))
    assert asked.pop(name) == (4.0 if name == "depth" else 2.0)
    assert set(asked.values()) == {1.0}


def test_only_the_three_pure_rules_are_pure() -> None:
    assert [r.name for r in PURE_RULES] == PURE == list(AXES)
    assert {name for name in RULES + SHRINKING + TABLES if rule(name).pure} == set(PURE)


def test_the_base_scales_nothing() -> None:
    assert not (rule("base").scales or rule("base").solved or rule("base").pure)
    assert rule("base").factors(7.0).axes == (1.0, 1.0, 1.0)
    assert all(rule(name).scales and rule(name).solved for name in SCALING)


def test_coefficients_are_not_solved_and_ask_for_no_shares() -> None:
    for name in TABLES:
        assert not rule(name).solved and rule(name).scales and rule(name).shares is None
    assert not Rule().scales and not Rule(depth=1.0).solved
    assert Rule(depth=2.0).scales and Rule(pixels=224).scales
    assert rule("compound").shares == Factors(*rule("compound").exponents)


@given(e=exponents(), cost_factor=st.floats(0.1, 100.0))
def test_the_formula_spends_exactly_the_cost_factor(e: tuple[float, float, float], cost_factor: float) -> None:
    """MACs grow with d * w^2 * r^2."""
    asked = Rule("any", e).factors(cost_factor)
    assert asked.depth * asked.width**2 * asked.resolution**2 == pytest.approx(cost_factor, rel=1e-9)
    for factor, exponent in zip(asked.axes, e, strict=True):
        assert factor == 1.0 or exponent > 0.0


@pytest.mark.parametrize("axis", range(3), ids=AXES)
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), float("inf")])
def test_an_exponent_outside_its_range_is_refused_by_key_and_value(axis: int, value: float) -> None:
    values = [0.0, 0.0, 0.0]
    values[axis] = value
    with pytest.raises(ValueError) as refused:
        Rule("x", tuple(values))
    assert str(refused.value) == f"scaling.exponents={values}: {AXES[axis]}'s {value:g} must lie in [0, 1]"


@pytest.mark.parametrize(
    ("values", "total"), [((0.5, 0.5, 0.5), "1.5"), ((0.3, 0.3, 0.3), "0.9"), ((1.0, 1.0, 1.0), "3")]
)
def test_exponents_that_do_not_sum_to_one_are_refused_with_exponents_that_do(
    values: tuple[float, ...], total: str
) -> None:
    with pytest.raises(ValueError, match=rf"sum to {re.escape(total)};.*such as \[[\d.,]+\]") as refused:
        Rule("x", values)
    named = re.search(r"such as \[([\d.,]+)\]", str(refused.value))
    assert named is not None and sum(map(float, named[1].split(","))) == pytest.approx(1.0, abs=1e-3)


@given(values=st.tuples(*[st.sampled_from([k / 20 for k in range(21)])] * 3))
def test_exponents_that_a_refusal_proposes_are_accepted(values: tuple[float, ...]) -> None:
    assume(sum(values) > 0.0 and not math.isclose(sum(values), 1.0))
    with pytest.raises(ValueError) as refused:
        Rule("x", values)
    named = re.search(r"such as \[([\d.e,-]+)\]", str(refused.value))
    assert named is not None
    Rule("x", tuple(map(float, named[1].split(","))))


@pytest.mark.parametrize("values", [(1.0,), (0.5, 0.5), (0.25, 0.25, 0.25, 0.25)])
def test_exponents_are_three(values: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=rf"has {len(values)} numbers; give three, the shares of depth, width and"):
        Rule("x", values)


@pytest.mark.parametrize("extra", [{"depth": 2.0}, {"width": 0.5}, {"resolution": 2.0}, {"pixels": 64}])
def test_exponents_and_coefficients_exclude_each_other(extra: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"scaling=mix is given by exponents; leave .* out, or use scaling=coeff"):
        Rule("mix", (0.5, 0.5, 0.0), **extra)


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_a_coefficient_that_is_no_positive_number_is_refused(axis: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"scaling\.{axis}={value:g} must be a positive multiple"):
        Rule(**{axis: value})  # type: ignore[arg-type]


def test_other_coefficients_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match=r"scaling\.resolution=2 and scaling\.pixels=64 both set the input side"):
        Rule(resolution=2.0, pixels=64)
    with pytest.raises(ValueError, match=r"scaling\.pixels=0 must lie in 1 to 8192"):
        Rule(pixels=0)
    with pytest.raises(ValueError, match=r"scaling\.repeats_rounding='down'"):
        Rule(depth=2.0, repeats_rounding="down")


@pytest.mark.parametrize(
    ("unnamed", "label"),
    [
        (Rule(exponents=(0.2, 0.5, 0.3)), "d0.2-w0.5-r0.3"),
        (Rule(exponents=(1 / 3, 1 / 3, 1 / 3)), "d0.3333-w0.3333-r0.3333"),
        (Rule(exponents=(0.0, 1.0, 0.0)), "d0-w1-r0"),
        (Rule(), "d1x-w1x-r1x"),
        (Rule(depth=4.0), "d4x-w1x-r1x"),
        (Rule(depth=1.4, width=1.2, resolution=1.3), "d1.4x-w1.2x-r1.3x"),
        (Rule(depth=1.1, pixels=240), "d1.1x-w1x-240px"),
        (Rule("mine", depth=4.0), "mine"),
    ],
)
def test_a_rule_without_a_name_is_labelled_by_its_numbers(unnamed: Rule, label: str) -> None:
    assert unnamed.name == label
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", label)  # a folder is called after it


SOLVED_KEYS = ["name", "exponents", "source"]
TABLE_KEYS = ["name", "network", "depth", "width", "pixels"]
TINYNET_KEYS = [*TABLE_KEYS, "repeats_rounding", "keep_stem", "keep_head"]


@pytest.mark.parametrize("name", RULE_FILES)
def test_all_rule_files_have_one_of_a_few_forms_and_cite_a_source(name: str) -> None:
    keys = keys_of("scaling", name)
    text = (CONF / "scaling" / f"{name}.yaml").read_text()
    assert text.startswith("# ") and keys["source"]
    if name == "custom":
        assert list(keys) == SOLVED_KEYS and (keys["name"], keys["exponents"]) == ("", MISSING)
    elif name == "coefficients":
        assert list(keys) == ["name", "depth", "width", "resolution", "pixels", "repeats_rounding", "source"]
        assert keys["name"] == "" and not Rule(**keys).scales
    elif name in TABLES:
        assert list(keys) == [*(TINYNET_KEYS if "tinynet" in name else TABLE_KEYS), "source"]
        assert keys["name"] == name and keys["network"] == B0[0]
        assert "override /network@_global_.network: efficientnet_b0" in text  # the table brings its network along
    else:
        shrinks = ["largest_budget"] if name in SHRINKING else []
        assert list(keys) == ["name", "exponents", *shrinks, "source"]
        assert keys["name"] == name


@pytest.mark.parametrize("name", [name for name in RULE_FILES if name not in {"custom", "coefficients"}])
def test_sources_can_be_followed_up(name: str) -> None:
    assert re.search(r"\d{4}\.\d{5}|^ours: |own stage table", rule(name).source)


def test_renaming_the_rules_changes_nothing_but_the_name() -> None:
    """Numbers decide, names do not: every rule under the name of another one."""
    for setting, names in ((NANO, RULES), (B0, TABLES)):
        for name, alias in zip(names, [*names[1:], names[0]], strict=True):
            original = solve(base(*setting), rule(name), 2.0)
            renamed = solve(base(*setting), dataclasses.replace(rule(name), name=alias), 2.0)
            assert renamed.arm == renamed.rule.name == alias
            assert dataclasses.replace(renamed, arm=original.arm, rule=original.rule) == original


ARMS = set(RULE_FILES)
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
        "if scaled.arm == 'tinynet_a': pass",
        "budget = 0.5 if rule.name in ('tiny', 'fast') else 2.0",
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
        "DEPTH_ONLY = Rule('depth', (1.0, 0.0, 0.0))",
        "x = METRICS['depth'].format(realised.depth)",
        "if key == 'resolution': pass",
        "for axis, value in zip(('depth', 'width'), values): check(axis, value)",
    ],
)
def test_the_search_leaves_axes_alone(source: str) -> None:
    assert name_branches(source) == []


FILES = sorted(SRC.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SRC)))
def test_no_code_branches_on_the_name_of_an_arm(path: Path) -> None:
    assert name_branches(path.read_text()) == []
