"""The coefficient search names an optimum where there is one, covers it, and is silent where there is none."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats
from synthetic_search import DESIGN, TOP, Truth, hill, plain, search_records
from synthetic_study import base_records

from src.record import RunRecord
from src.verdict.optimum import Blocked, Flat, LackOfFit, Optimum, Search, TooFew, search
from src.verdict.surface import REFERENCES, Coefficients, Design, Point, Surface, fit, shares_of, terms

SD, SEEDS = 0.3, 3


def points(values: np.ndarray, design: Sequence[Sequence[float]] = DESIGN) -> list[Point]:
    """Points of a design with (points, seeds) accuracies."""
    return [
        Point(str(i), None, tuple(s), tuple(range(len(v))), tuple(v.tolist()), tuple(v.tolist()))  # type: ignore[arg-type]
        for i, (s, v) in enumerate(zip(design, values, strict=True))
    ]


def drawn(truth: Truth, random: np.random.Generator, sd: float = SD) -> Surface:
    means = np.array([truth(np.array(s)) for s in DESIGN])
    return fit(points(means[:, None] + random.normal(0, sd, (len(DESIGN), SEEDS))))


def only(records: Sequence[RunRecord]) -> Search:
    [found] = search(records)
    return found


def test_references_are_the_papers_numbers() -> None:
    # ln 1.2, 2 ln 1.1, 2 ln 1.15 over ln 1.92027, by hand
    assert REFERENCES["compound"] == pytest.approx((0.2794, 0.2922, 0.4284), abs=5e-5)


def test_coefficients_multiply_to_the_budget() -> None:
    c = Coefficients.at(shares_of(1.2, 1.1, 1.15), 1.2 * 1.1**2 * 1.15**2)
    assert (c.alpha, c.beta, c.gamma) == pytest.approx((1.2, 1.1, 1.15))
    at_four = Coefficients.at((0.5, 0.25, 0.25), 4.0)
    assert (at_four.alpha, at_four.beta, at_four.gamma) == pytest.approx((2.0, 2**0.25, 2**0.25))


def test_the_fit_and_its_tests_agree_with_textbook_formulas() -> None:
    random = np.random.default_rng(3)
    values = 90 + random.normal(0, 1, (len(DESIGN), SEEDS))
    surface = fit(points(values))
    x = np.repeat(terms(np.array(DESIGN)), SEEDS, axis=0)
    y = values.ravel()
    b, [rss], *_ = np.linalg.lstsq(x, y)
    assert surface.coefficients == pytest.approx(b)
    pure = sum((row - row.mean()) @ (row - row.mean()) for row in values)
    df, n = len(y) - len(DESIGN), len(y)
    misfit = stats.f.sf((rss - pure) / (len(DESIGN) - 6) / (pure / df), len(DESIGN) - 6, df)
    assert surface.p_lack_of_fit == pytest.approx(misfit)
    total = np.sum((y - y.mean()) ** 2)
    assert surface.r_squared == pytest.approx(1 - rss / total)
    assert surface.adjusted_r_squared == pytest.approx(1 - rss / (n - 6) * (n - 1) / total)
    assert surface.seed_sd == pytest.approx(np.sqrt(pure / df))
    assert surface.sd == pytest.approx(np.sqrt(max(pure / df, (rss - pure) / (len(DESIGN) - 6))))


@given(st.lists(st.floats(-8, 8), min_size=6, max_size=6))
@settings(max_examples=60, deadline=None)
def test_the_maximum_is_inside_the_hull_and_nowhere_exceeded(coefficients: list[float]) -> None:
    design = Design(np.array(DESIGN), np.full(len(DESIGN), SEEDS))
    b = np.array(coefficients)
    surface = Surface(design, b, 1.0, 20, 1.0, 1.0, 0.0, 1.0, 1.0)
    shares, _ = surface.best
    assert bool(design.contains(np.array(shares))) and sum(shares) == pytest.approx(1)
    everywhere, _ = design.grid(30)
    assert float(surface.predict(np.array(shares))) >= surface.predict(everywhere).max() - 1e-9


def test_the_maximum_is_exact() -> None:
    surface = drawn(hill(), np.random.default_rng(1))
    found = optimize.minimize(
        lambda z: -float(surface.predict(np.array([1 - z.sum(), *z]))), [0.3, 0.3], method="Nelder-Mead", tol=1e-12
    )
    shares, where = surface.best
    assert where == "inside" and shares[1:] == pytest.approx(found.x, abs=1e-5)


def test_nothing_is_said_outside_of_the_points() -> None:
    middle = [s for s in DESIGN if max(s) < 0.7]
    middle = [*middle, (0.6, 0.2, 0.2), (0.2, 0.6, 0.2), (0.2, 0.2, 0.6)]
    found = only(search_records(hill((0.95, 0.03, 0.02), 8.0), design=middle))
    assert isinstance(found.answer, Optimum) and found.surface is not None
    assert bool(found.surface.design.contains(np.array(found.answer.shares)))
    assert found.answer.where != "inside" and "beyond it nothing is known" in str(found.answer)
    assert not bool(found.surface.design.contains(np.array([0.95, 0.03, 0.02])))
    assert found.surface.distance(np.array([0.95, 0.03, 0.02])) is None


@pytest.mark.parametrize(
    ("top", "drop"),
    [
        (TOP, 1.0),
        (TOP, 4.0),
        ((0.2, 0.6, 0.2), 2.0),
        ((0.6, 0.4, 0.0), 2.0),
        ((0.0, 0.0, 1.0), 2.0),
        ((0.9, 0.5, -0.4), 2),
    ],
)
def test_the_region_covers_the_true_optimum(top: tuple[float, float, float], drop: float) -> None:
    truth, random = hill(top, drop), np.random.default_rng(11)
    design = Design(np.array(DESIGN), np.full(len(DESIGN), SEEDS))
    exact = np.zeros(6)
    exact[:] = np.linalg.lstsq(terms(design.grid(9)[0]), [truth(s) for s in design.grid(9)[0]])[0]
    best = np.array(Surface(design, exact, 1.0, 22, 1.0, 1.0, 0.0, 1.0, 1.0).best[0])
    critical = {df: design.critical(best, design.draws(df)) for df in (22, 5)}
    runs = 400
    covered = 0
    for _ in range(runs):
        surface = drawn(truth, random)
        covered += surface.may_be_best(best, critical[surface.error_df])
    # 95 % is guaranteed by construction; three standard errors of 400 runs are 3.3 points
    assert covered / runs >= 0.917


@pytest.mark.parametrize("at", [(1.0, 0.0, 0.0), (0.36, 0.0, 0.64), TOP])
def test_the_critical_value_is_exceeded_by_one_flat_surface_in_twenty(at: tuple[float, float, float]) -> None:
    random, runs = np.random.default_rng(21), 6000
    design = Design(np.array(DESIGN), np.full(len(DESIGN), SEEDS))
    x = np.repeat(terms(np.array(DESIGN)), SEEDS, axis=0)
    noise = random.normal(0, 1, (len(x), runs))
    fitted, *_ = np.linalg.lstsq(x, noise)
    between = noise.reshape(len(DESIGN), SEEDS, runs)
    sd = np.sqrt(np.sum((between - between.mean(axis=1, keepdims=True)) ** 2, axis=(0, 1)) / (len(x) - len(DESIGN)))
    # An independent set of rivals: a rectangular lattice of the triangle, and close ones around the place.
    lattice = np.array([(i, j, 20 - i - j) for i in range(21) for j in range(21 - i)]) / 20
    steps = np.array(at) + 1e-4 * np.array(
        [(np.cos(t), np.sin(t), -np.cos(t) - np.sin(t)) for t in np.arange(0, 6.3, 0.2)]
    )
    rivals = np.concatenate([lattice, steps])
    rivals = rivals[(rivals.min(axis=1) >= 0) & (np.linalg.norm(rivals - at, axis=1) > 1e-5)]
    contrast = terms(rivals) - terms(np.array(at))
    errors = np.sqrt(np.diag(contrast @ np.linalg.inv(x.T @ x) @ contrast.T))
    largest = np.max(contrast @ fitted / errors[:, None], axis=0) / sd
    exceeded = np.mean(largest > design.critical(np.array(at), design.draws(len(x) - len(DESIGN))))
    assert exceeded == pytest.approx(0.05, abs=0.017)


def test_the_interval_of_a_distance_covers_the_true_one() -> None:
    truth, random, runs = hill(TOP, 2.0), np.random.default_rng(12), 150
    at = np.array(REFERENCES["compound"])
    true = truth(np.array(TOP)) - truth(at)
    covered = 0
    for _ in range(runs):
        distance = drawn(truth, random).distance(at)
        assert distance is not None and 0 <= distance.low <= distance.value <= distance.high
        covered += distance.low <= true <= distance.high
    assert covered / runs >= 0.89


def test_a_flat_surface_seldom_yields_an_optimum() -> None:
    random, runs = np.random.default_rng(13), 1500
    named = sum(s.p_flat < 0.05 <= s.p_lack_of_fit for s in (drawn(plain, random) for _ in range(runs)))
    assert named / runs <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / runs)


def test_networks_that_stray_from_a_flat_surface_seldom_yield_an_optimum() -> None:
    random, runs = np.random.default_rng(14), 1000
    shape = (len(DESIGN), SEEDS)
    found = [fit(points(90 + random.normal(0, SD, (shape[0], 1)) + random.normal(0, SD, shape))) for _ in range(runs)]
    named = sum(s.p_flat < 0.05 <= s.p_lack_of_fit for s in found)
    assert named / runs <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / runs)


def test_an_optimum_is_named_with_its_interval() -> None:
    found = only(search_records(hill()))
    answer = found.answer
    assert isinstance(answer, Optimum) and answer.where == "inside"
    for low, share, high, true in zip(answer.low, answer.shares, answer.high, TOP, strict=True):
        assert low <= true <= high and low <= share <= high and share == pytest.approx(true, abs=0.1)
    c = answer.coefficients
    assert c.alpha * c.beta**2 * c.gamma**2 == pytest.approx(found.cost_factor) == pytest.approx(2.0)
    text = str(answer)
    for words in ("Optimum at 2x", "joint 95 % intervals", "compound by", "uniform by", "test split played no part"):
        assert words in text
    assert text.endswith("not extrapolated.")


def test_the_true_best_is_never_called_worse_where_it_is_a_reference() -> None:
    answer = only(search_records(hill(REFERENCES["compound"], 3.0))).answer
    assert isinstance(answer, Optimum)
    distances = dict(answer.basis.distances)
    assert distances["compound"] is not None and distances["compound"].low == 0.0


def test_test_accuracy_decides_nothing() -> None:
    records = search_records(hill())
    other = [dataclasses.replace(r, test_accuracy=0.5 + 0.4 * r.share_width) for r in records]
    one, two = only(records).answer, only(other).answer
    assert isinstance(one, Optimum) and isinstance(two, Optimum) and one.shares == two.shares


def test_seeds_alone_are_flat() -> None:
    answer = only(search_records(plain)).answer
    assert isinstance(answer, Flat) and "no optimum can be named" in str(answer)


def test_a_ridge_that_no_quadratic_follows_is_lack_of_fit() -> None:
    spiky = {DESIGN[7]: 93.0, DESIGN[1]: 92.0}
    answer = only(search_records(lambda s: spiky.get(tuple(s.tolist()), 90.0))).answer
    assert isinstance(answer, LackOfFit) and "no optimum can be named" in str(answer)


@pytest.mark.parametrize(
    ("records", "words"),
    [
        (search_records(hill(), design=DESIGN[:6]), "6 different networks have finished and the surface needs 7"),
        (search_records(hill(), seeds=1), "add `seed=0,1,2`"),
        (search_records(hill(), sd=0.0), "no noise to compare against"),
        (search_records(hill(), design=[(i / 9, 1 - i / 9, 0.0) for i in range(10)]), "line"),
    ],
)
def test_too_few_runs_say_what_is_missing(records: list[RunRecord], words: str) -> None:
    answer = only(records).answer
    assert isinstance(answer, TooFew) and words in str(answer) and "no optimum can be named" in str(answer)


def test_two_seeds_at_eleven_points_suffice() -> None:
    assert isinstance(only(search_records(hill(), seeds=2)).answer, Optimum)


@pytest.mark.parametrize("changes", [{"recipe": "long"}, {"macs": 300_000_000, "price": 3e8}, {"device": "cuda"}])
def test_a_guard_that_blocks_a_claim_blocks_the_optimum(changes: dict[str, object]) -> None:
    records = search_records(hill())
    records = [dataclasses.replace(r, **changes) if r.arm == "d1-w0-r0" else r for r in records]
    answer = only(records).answer
    assert isinstance(answer, Blocked) and "d1-w0-r0" in str(answer)


def test_arms_that_built_one_network_are_one_point_and_a_seed_counts_once() -> None:
    records = search_records(hill())
    twins = [dataclasses.replace(r, arm="depth") for r in records if r.arm == "d1-w0-r0"]
    found = only([*records, *twins])
    assert len(found.points) == len(DESIGN)
    [twin] = [p for p in found.points if "=" in p.name]
    assert twin.name == "d1-w0-r0 = depth" and twin.seeds == (0, 1, 2) and len(twin.accuracies) == 3
    plain_answer, twin_answer = only(records).answer, found.answer
    assert isinstance(plain_answer, Optimum) and isinstance(twin_answer, Optimum)
    assert twin_answer.shares == pytest.approx(plain_answer.shares)
    assert any("count as one point" in str(f) for f in found.findings)


def test_the_base_is_no_point_and_alone_is_no_search() -> None:
    records = search_records(hill())
    assert len(only([*records, *base_records([0.8, 0.81])]).points) == len(DESIGN)
    with pytest.raises(ValueError, match="only the base"):
        search(base_records([0.8]))


def test_budgets_are_searched_apart_and_order_does_not_matter() -> None:
    records = [*search_records(hill()), *search_records(plain, budget=4.0, snapped_budget=4.0)]
    found = search(records)
    assert [f.answer.outcome for f in found] == ["optimum", "flat"]
    assert [str(f.answer) for f in search(records[::-1])] == [str(f.answer) for f in found]


def test_shares_that_do_not_sum_to_one_are_refused() -> None:
    records = [dataclasses.replace(r, share_depth=0.9) for r in search_records(hill())]
    with pytest.raises(ValueError, match="not 1"):
        search(records)
