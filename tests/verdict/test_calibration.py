"""How often the verdict errs on simulated studies, judged from records to sentences as real ones are. The full table,
with 1,000 studies a number, is docs/calibration.md; here are its main lines with fewer, and with a tolerance of three
standard errors where a rate is compared with what is allowed."""

from __future__ import annotations

import time

import numpy as np
import pytest
from simulated import ARMS, FAMILY, accuracies, equivalents, peeked, records, share, winners

from src.verdict.claims import MARGIN
from src.verdict.judge import judge
from src.verdict.statistics import ALPHA, smallest_detectable, welch_power

ALLOWED = 0.05


def above(allowed: float, of: int) -> float:
    """The rate that chance alone does not reach."""
    return allowed + 3 * float(np.sqrt(allowed * (1 - allowed) / of))


@pytest.mark.parametrize("noise", ["equal", "unequal", "noisy subject", "heavy tail", "heavy-tailed subject"])
def test_false_winners_are_rarer_than_five_percent(noise: str) -> None:
    random = np.random.default_rng(1)
    found = [bool(winners(accuracies(random, 0.2, seeds, noise))) for seeds in (3, 5, 10) for _ in range(80)]
    assert np.mean(found) <= above(ALLOWED, len(found))


@pytest.mark.parametrize("noise", ["equal", "unequal"])
@pytest.mark.parametrize("seeds", [3, 6])
def test_planted_effects_are_found_as_often_as_planned(seeds: int, noise: str) -> None:
    random = np.random.default_rng(2)
    size, part = share(noise, 1)
    effect = smallest_detectable(0.2 * size, seeds, 3, share=part)
    assert welch_power(effect, 0.2 * size, seeds, ALPHA / 3, part) == pytest.approx(0.8, abs=1e-3)
    draws = (accuracies(random, 0.2, seeds, noise, (0, -effect, 0, 0, 0)) for _ in range(300))
    found = np.mean(["depth" in winners(values) for values in draws])
    assert found == pytest.approx(0.8, abs=0.07)  # three standard errors


def test_false_equivalence_is_rarer_than_five_percent() -> None:
    random = np.random.default_rng(3)
    far = (0, MARGIN, -MARGIN, MARGIN, 0)
    found = [bool(equivalents(accuracies(random, sd, 6, effects=far))) for sd in (0.05, 0.1, 0.2) for _ in range(80)]
    assert np.mean(found) <= above(ALLOWED, len(found))
    assert equivalents(accuracies(random, 0.05, 6)) == set(FAMILY[1:])  # and it is not simply never said


@pytest.mark.parametrize(("planned", "naive_errs"), [(4, 0.0), (6, ALLOWED), (10, 0.08)])
def test_a_look_after_every_seed_makes_no_more_winners(planned: int, naive_errs: float) -> None:
    random = np.random.default_rng(planned)
    draws = [accuracies(random, 0.2, planned) for _ in range(120)]
    assert np.mean([peeked(values) for values in draws]) <= above(ALLOWED, len(draws))
    assert np.mean([peeked(values, naive=True) for values in draws]) > naive_errs  # what the plan is known for


def test_a_study_is_judged_in_less_than_50_ms() -> None:
    random = np.random.default_rng(5)
    studies = [records(accuracies(random, 0.2, 10)) for _ in range(20)]
    assert len(studies[0]) == 10 * len(ARMS)
    began = time.process_time()
    for runs in studies:
        judge(runs)
    assert (time.process_time() - began) / len(studies) < 0.05
