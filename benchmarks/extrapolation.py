"""How often the intervals of a forecast hold what comes: simulated studies, forecast and then run. Writes the end of
docs/extrapolation.md, from the heading below on.

    python benchmarks/extrapolation.py [--studies 500] [--write FILE]

Two arms start from one base with a test accuracy of 80 %. The first doubling of cost gives the one 2 pp and the other
1 pp; what further doublings give is the truth of a row. The forecast sees the seeds of the small budgets and nothing
else; then the larger budget is drawn, with the same number of seeds.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy import special, stats

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from src.verdict.extrapolation import SHAPE_LEVEL, Curve, Expected, Level, expect, expect_difference  # noqa: E402
from src.verdict.statistics import ALPHA  # noqa: E402

HEADING = "## How often the intervals hold"
BASE, GAINS = 80.0, (2.0, 1.0)
SIGMAS = (0.1, 0.3, 1.0)  # pp: deviation between seeds
SEEDS = (3, 6)
BUDGETS = ((1, 2), (1, 2, 4), (1, 2, 4, 8))

Truth = Callable[[float, float], float]  # doublings above the base, pp of the first doubling -> pp above the base


def shaped(shape: float) -> Truth:
    """Every doubling gives `shape` times what the one before gave."""
    return lambda x, gain: gain * (x if shape == 1 else (1 - shape**x) / (1 - shape))


def floorless(x: float, gain: float) -> float:
    """A power law of the error that leads to none at all."""
    error = 100 - BASE
    return error - error * (1 - gain / error) ** x


INSIDE: dict[str, Truth] = {
    "straight in log cost": shaped(1.0),
    "power law without floor": floorless,
    "power law with floor, shape 0.5": shaped(0.5),
    "saturated, shape 0.1": shaped(0.1),
}
OUTSIDE: dict[str, Truth] = {
    "turns round after two doublings": lambda x, gain: gain * (4 * x - x * x) / 3,
    "a bend: nothing after two doublings": lambda x, gain: gain * min(x, 2.0),
    "accelerates, shape 1.3": shaped(1.3),
}
NOISES: dict[str, Callable[[np.random.Generator, float, int], np.ndarray]] = {
    "halves with each doubling": lambda random, x, n: 0.5**x * random.standard_normal(n),
    "doubles with each doubling": lambda random, x, n: 2.0**x * random.standard_normal(n),
    "heavy tails (t, 3 degrees of freedom)": lambda random, x, n: random.standard_t(3, n) / math.sqrt(3),
}


@dataclass
class Tally:
    """What happened in how many studies, and the widths of intervals."""

    counts: Counter[str] = field(default_factory=Counter)
    of: Counter[str] = field(default_factory=Counter)
    widths: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, happened: bool) -> None:
        """Count one event that could have happened."""
        self.of[name] += 1
        self.counts[name] += bool(happened)

    def interval(self, name: str, low: float, high: float, came: float) -> None:
        """Count one interval, and whether it held what came."""
        self.add(name, low <= came <= high)
        self.widths.setdefault(name, []).append(high - low)

    def merge(self, other: Tally) -> None:
        """Add the counts of another."""
        self.counts.update(other.counts)
        self.of.update(other.of)
        for name, widths in other.widths.items():
            self.widths.setdefault(name, []).extend(widths)

    def rate(self, name: str) -> str:
        """A share in percent, with its 95 % Wilson interval."""
        if not self.of[name]:
            return "-"
        interval = stats.binomtest(self.counts[name], self.of[name]).proportion_ci(method="wilson")
        share = 100 * self.counts[name] / self.of[name]
        return f"{share:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"

    def width(self, name: str) -> str:
        """Median width, pp."""
        return f"{np.median(self.widths[name]):.2f}" if name in self.widths else "-"


def straight(curve: Curve, cost: float, seeds: int) -> tuple[float, float]:
    """What is usually done: a straight line through all runs, with its own prediction interval for a mean."""
    runs = [(math.log2(level.cost), value) for level in curve.levels for value in level.values]
    x, y = np.array(runs).T
    fit = stats.linregress(x, y)
    left = y - fit.intercept - fit.slope * x
    variance = left @ left / (len(x) - 2)
    ahead = math.log2(cost)
    error = math.sqrt(variance * (1 / seeds + 1 / len(x) + (ahead - x.mean()) ** 2 / ((x - x.mean()) @ (x - x.mean()))))
    half = special.stdtrit(len(x) - 2, 1 - ALPHA / 2) * error
    value = fit.intercept + fit.slope * ahead
    return value - half, value + half


def study(
    random: np.random.Generator,
    truth: Truth,
    budgets: Sequence[float],
    sigma: float,
    seeds: int,
    noise: Callable[[np.random.Generator, float, int], np.ndarray],
    tally: Tally,
) -> None:
    """Run the small budgets of one study, forecast one and two doublings further, run those, and count."""

    def runs(cost: float, gain: float) -> tuple[float, ...]:
        x = math.log2(cost)
        return tuple((BASE + truth(x, gain) + sigma * noise(random, x, seeds)).tolist())

    base = Level(1.0, runs(1.0, 0.0))
    one, other = (Curve((base, *(Level(b, runs(b, gain)) for b in budgets[1:])), True) for gain in GAINS)
    for further in (1, 2):
        cost = budgets[-1] * 2.0**further
        came = [runs(cost, gain) for gain in GAINS]
        means = [math.fsum(values) / seeds for values in came]
        known: list[Expected | None] = []
        for curve in (one, other):
            try:
                known.append(expect(curve, cost, seeds)[0])
            except ValueError:
                known.append(None)
        tally.add(f"refused {further}", known[0] is None)
        if (first := known[0]) is not None:
            tally.interval(f"mean {further}", first.low, first.high, means[0])
            tally.interval(f"run {further}", first.run_low, first.run_high, came[0][0])
        tally.interval(f"line {further}", *straight(one, cost, seeds), means[0])
        if None not in known:
            found = expect_difference(one, other, cost, seeds)
            tally.interval(f"difference {further}", found.low, found.high, means[0] - means[1])
            claimed = not found.low <= 0 <= found.high
            tally.add(f"claimed {further}", claimed)
            if claimed:
                tally.add(f"wrong {further}", (found.value > 0) != (means[0] > means[1]))


def normal(random: np.random.Generator, x: float, n: int) -> np.ndarray:
    """The noise that is assumed."""
    return random.standard_normal(n)


def simulate(studies: int, truth: Truth, noise: Callable = normal) -> dict[tuple, Tally]:
    """Tallies by budgets, sigma and seeds."""
    found = {}
    random = np.random.default_rng(2026)  # the same numbers in every row
    for budgets in BUDGETS:
        for sigma in SIGMAS:
            for seeds in SEEDS:
                tally = Tally()
                for _ in range(studies):
                    study(random, truth, budgets, sigma, seeds, noise, tally)
                found[budgets, sigma, seeds] = tally
    return found


def pooled(found: dict[tuple, Tally], budgets: Sequence[int]) -> Tally:
    """Over noise and seeds."""
    total = Tally()
    for (own, *_), tally in found.items():
        if own == budgets:
            total.merge(tally)
    return total


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = ["| " + " | ".join(headings) + " |", "|---|---|" + "---:|" * (len(headings) - 2)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def named(budgets: Sequence[int]) -> str:
    """`1, 2, 4`."""
    return ", ".join(map(str, budgets))


def one_doubling(results: dict[str, dict[tuple, Tally]]) -> str:
    """Coverage of the interval of the mean, for every noise and number of seeds."""
    settings = [(sigma, seeds) for sigma in SIGMAS for seeds in SEEDS]
    rows = [
        [truth, named(budgets), *(found[budgets, *setting].rate("mean 1") for setting in settings)]
        for truth, found in results.items()
        for budgets in BUDGETS
    ]
    return table(("truth", "budgets seen", *(f"sigma {s:g} pp, {n} seeds" for s, n in settings)), rows)


def everything(results: dict[str, dict[tuple, Tally]], label: str = "truth") -> str:
    """Coverage of all intervals, over noise and seeds."""
    names = ("mean 1", "mean 2", "run 1", "run 2", "difference 1", "difference 2", "line 1", "refused 1")
    headings = (
        "mean, 1 doubling",
        "mean, 2",
        "single run, 1",
        "single run, 2",
        "difference, 1",
        "difference, 2",
        "straight line alone, 1",
        "refused",
    )
    rows = [
        [truth, named(budgets), *(pooled(found, budgets).rate(name) for name in names)]
        for truth, found in results.items()
        for budgets in BUDGETS
    ]
    return table((label, "budgets seen", *headings), rows)


def orders(results: dict[str, dict[tuple, Tally]]) -> str:
    """How often an order is claimed, and how often the runs then came in another."""
    rows = [
        [truth, named(budgets), *(total.rate(f"{name} {d}") for d in (1, 2) for name in ("claimed", "wrong"))]
        for truth, found in results.items()
        for budgets in BUDGETS
        for total in [pooled(found, budgets)]
    ]
    headings = ("claimed, 1 doubling", "of these wrong", "claimed, 2", "of these wrong")
    return table(("truth", "budgets seen", *headings), rows)


def widths(found: dict[tuple, Tally]) -> str:
    """Median widths for one truth."""
    names = ("mean 1", "mean 2", "difference 1", "difference 2")
    rows = [
        [named(budgets), f"{sigma:g} pp, {seeds}", *(tally.width(name) for name in names)]
        for (budgets, sigma, seeds), tally in found.items()
    ]
    headings = ("mean, 1 doubling", "mean, 2", "difference, 1", "difference, 2")
    return table(("budgets seen", "sigma, seeds", *headings), rows)


def report(studies: int) -> str:
    """The end of the document."""
    inside = {name: simulate(studies, truth) for name, truth in INSIDE.items()}
    outside = {name: simulate(studies, truth) for name, truth in OUTSIDE.items()}
    noises = {name: simulate(studies, INSIDE["power law with floor, shape 0.5"], n) for name, n in NOISES.items()}
    cells = len(SIGMAS) * len(SEEDS)
    return f"""{HEADING}

Written by `python benchmarks/extrapolation.py`: {studies:,} simulated studies for every truth, set of budgets, noise
and number of seeds, the same random numbers each time. Two arms start from a base with {BASE:g} %; the first doubling
gives the one {GAINS[0]:g} pp and the other {GAINS[1]:g} pp, what further doublings give is the truth. The larger budget
is then run with as many seeds. Shares are in percent, with their 95 % Wilson intervals; 95 is aimed at.

### One doubling further, every noise and number of seeds

Does the interval of the mean hold the mean that came? {studies:,} studies a number.

{one_doubling(inside)}

### All intervals

Over the {cells} settings of noise and seeds, {cells * studies:,} studies a number (fewer where forecasts were refused).
*Straight line alone* is the usual prediction interval of a straight line in log cost, which knows of no other shape.
*Refused*: no shape of the family fits the small budgets (at {100 * SHAPE_LEVEL:g} %), so nothing is forecast.

{everything(inside)}

### Where the truth is not in the family

{cells * studies:,} studies a number. Nothing in the small budgets can warn of what happens only beyond them.

{everything(outside)}

### Where noise is not as assumed

Truth with a floor, shape 0.5; sigma is that of the base. {cells * studies:,} studies a number.

{everything(noises, "noise")}

### Orders

An order of two arms is claimed where the interval of their difference leaves out zero. {cells * studies:,} studies a
row; wrong: the means of the runs came in the other order.

{orders(inside | outside)}

### Widths

Median width of the intervals, pp; power law with floor, shape 0.5.

{widths(inside["power law with floor, shape 0.5"])}
"""


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=500, help="simulated studies of every setting")
    parser.add_argument("--write", type=Path, default=ROOT / "docs" / "extrapolation.md", help="where the tables go")
    options = parser.parse_args()
    began = time.perf_counter()
    text = report(options.studies)
    above = options.write.read_text().partition(HEADING)[0] if options.write.exists() else ""
    options.write.write_text(above + text)
    print(f"{options.write}: {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
