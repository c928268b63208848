"""How often the verdict errs, and how often it finds what is there: simulated studies through the real path, from
records to sentences. Writes docs/calibration.md.

    python benchmarks/calibration.py [--studies 1000] [--sections "False winners" ...] [--write FILE]

The studies are those of tests/verdict/simulated.py; the default tests repeat the main lines with fewer of them.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from scipy import stats

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "report"), str(ROOT / "tests" / "verdict")]

from simulated import (  # noqa: E402
    ARMS,
    EQUAL,
    FAMILY,
    NOISES,
    UNEQUAL,
    Floats,
    accuracies,
    answers,
    equivalents,
    peeked,
    share,
    winners,
)

from src.verdict.claims import MARGIN, Claim, Family  # noqa: E402
from src.verdict.looks import EXPONENT, FRACTIONS, LEVELS  # noqa: E402
from src.verdict.pictures import new_pictures  # noqa: E402
from src.verdict.standing import DRAWS, true_accuracies  # noqa: E402
from src.verdict.statistics import ALPHA, compare, smallest_detectable, welch_power  # noqa: E402

SIGMAS = (0.1, 0.2, 0.3, 0.5)  # pp: deviation between seeds
SEEDS = (3, 4, 6, 10)
RIVALS = len(FAMILY) - 1
FIVE = Family((Claim("compound", ARMS[1:]),))
COUNTS = {"studies": 1000}
FEWER = 4  # times fewer studies, where each is a posterior or a bootstrap


def rate(count: int, of: int) -> str:
    """A share in percent, with its 95 % Wilson interval."""
    interval = stats.binomtest(count, of).proportion_ci(method="wilson")
    return f"{100 * count / of:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = ["| " + " | ".join(headings) + " |", "|---|" + "---:|" * (len(headings) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def happened(draw: Callable[[], Floats], event: Callable[[Floats], bool]) -> tuple[int, int]:
    """In how many of the studies an event happened, and how many there were."""
    studies = COUNTS["studies"]
    return sum(event(draw()) for _ in range(studies)), studies


def false_winners(random: np.random.Generator) -> str:
    """Five identical arms."""
    rows = []
    for noise in NOISES:
        total = [0, 0]
        for sd in SIGMAS:
            cells = []
            for seeds in SEEDS:
                found, of = happened(lambda: accuracies(random, sd, seeds, noise), lambda v: bool(winners(v)))  # noqa: B023
                total = [total[0] + found, total[1] + of]
                cells.append(rate(found, of))
            rows.append([noise, f"{sd:g}", *cells])
        rows.append([f"**{noise}, all**", "", "", "", "", f"**{rate(*total)}**"])
    for seeds in SEEDS[:1] + SEEDS[-1:]:
        found, of = happened(lambda: accuracies(random, 0.2, seeds), lambda v: bool(winners(v, (FIVE,))))  # noqa: B023
        rows.append([f"equal, four rivals declared, {seeds} seeds", "0.2", "", "", "", rate(found, of)])
    return table(("noise", "sigma, pp", *(f"{n} seeds" for n in SEEDS)), rows)


def planted(random: np.random.Generator) -> str:
    """One rival is worse by an effect that the plan says is found with a known power."""
    rows = []
    for noise in NOISES[:3]:
        for sd in SIGMAS if noise == "equal" else (0.2,):
            for seeds in SEEDS:
                size, part = share(noise, 1)
                effect = smallest_detectable(sd * size, seeds, RIVALS, share=part)
                rows.append(_planted(random, noise, sd, seeds, effect))
    for sd, seeds in ((0.1, 3), (0.2, 4), (0.2, 6), (0.3, 6), (0.3, 10)):
        rows.append(_planted(random, "equal", sd, seeds, 0.5))
    for noise in NOISES[3:]:
        for seeds in SEEDS:
            rows.append(_planted(random, noise, 0.2, seeds, smallest_detectable(0.2, seeds, RIVALS)))
    headings = ("noise", "sigma, pp", "seeds", "effect, pp", "plan, %", "found, %", "found - plan, points")
    return table(headings, rows)


def _planted(random: np.random.Generator, noise: str, sd: float, seeds: int, effect: float) -> list[str]:
    size, part = share(noise, 1)
    plan = welch_power(effect, sd * size, seeds, ALPHA / RIVALS, part)
    found, of = happened(
        lambda: accuracies(random, sd, seeds, noise, (0, -effect, 0, 0, 0)), lambda values: "depth" in winners(values)
    )
    shown = f"{100 * (found / of - plan):+.1f}"
    return [noise, f"{sd:g}", str(seeds), f"{effect:.2f}", f"{100 * plan:.0f}", rate(found, of), shown]


def false_equivalence(random: np.random.Generator) -> str:
    """Rivals at the margin itself, where TOST errs most; and true equivalence for comparison."""
    rows = []
    for sd in (0.05, 0.1, 0.2, 0.5):
        for seeds in SEEDS:
            all_far = happened(
                lambda: accuracies(random, sd, seeds, effects=(0, MARGIN, -MARGIN, MARGIN, 0)),  # noqa: B023
                lambda values: bool(equivalents(values)),
            )
            mixed = happened(
                lambda: accuracies(random, sd, seeds, effects=(0, MARGIN, 0, 0, 0)),  # noqa: B023
                lambda values: "depth" in equivalents(values) or bool(winners(values) - {"depth"}),
            )
            same = happened(
                lambda: accuracies(random, sd, seeds),  # noqa: B023
                lambda values: equivalents(values) == set(FAMILY[1:]),
            )
            rows.append([f"{sd:g}", str(seeds), rate(*all_far), rate(*mixed), rate(*same)])
    headings = (
        "sigma, pp",
        "seeds",
        "any false equivalence, three rivals at the margin, %",
        "any wrong sentence, one rival at the margin and two equal, %",
        "all three said to be equivalent, and they are, %",
    )
    return table(headings, rows)


def peeking(random: np.random.Generator) -> str:
    """A report after every finished seed; is there a winner in any of them?"""
    rows = []
    for noise in NOISES:
        for planned in (4, 5, 6, 8, 10):
            drawn = [accuracies(random, 0.2, planned, noise) for _ in range(COUNTS["studies"])]
            safe = sum(peeked(values) for values in drawn)
            naive = sum(peeked(values, naive=True) for values in drawn)
            rows.append([noise, str(planned), rate(safe, len(drawn)), rate(naive, len(drawn))])
    return table(("noise", "planned seeds", "any false winner, %", "the same without the plan, %"), rows)


def best_arm(random: np.random.Generator) -> str:
    """Said and realised shares of arms being the best of five, in bins of what is said."""
    edges = (0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0001)
    rows = []
    for scales, noise in ((EQUAL, "equal"), (UNEQUAL, "unequal")):
        for seeds in (3, 5, 10):
            for between in (0.3, 1.0, 3.0):
                said, plain, came = [], [], []
                for _ in range(COUNTS["studies"] // FEWER):
                    truth = random.normal(0, between, len(ARMS))
                    values = truth[:, None] + np.array(scales)[:, None] * random.standard_normal((len(ARMS), seeds))
                    wins = true_accuracies(values.tolist(), random).argmax(axis=1)
                    said.append(np.bincount(wins, minlength=len(ARMS)) / DRAWS)
                    error = values.std(axis=1, ddof=1) / np.sqrt(seeds)
                    wins = (values.mean(axis=1) + error * random.standard_t(seeds - 1, (DRAWS, len(ARMS)))).argmax(
                        axis=1
                    )
                    plain.append(np.bincount(wins, minlength=len(ARMS)) / DRAWS)
                    came.append(np.arange(len(ARMS)) == truth.argmax())
                cells = [
                    " ".join(_bin(np.ravel(p), np.ravel(came), low, high) for p in (said, plain))
                    for low, high in itertools.pairwise(edges)
                ]
                rows.append([noise, str(seeds), f"{between:g}", *cells])
    bins = [f"{100 * low:.0f}-{min(100 * high, 100):.0f} %" for low, high in itertools.pairwise(edges)]
    return table(("noise", "seeds", "spread of arms / sigma", *bins), rows)


def _bin(said: Floats, came: Floats, low: float, high: float) -> str:
    inside = (said >= low) & (said < high)
    return f"{100 * said[inside].mean():.0f}:{100 * came[inside].mean():.0f}" if inside.sum() >= 40 else "-"


def pictures(random: np.random.Generator) -> str:
    """Does the interval for new pictures hold the true difference, which is none?"""
    rows = []
    for clustered in (False, True):
        for seeds in (3, 5, 10):
            for between in (0.02, 0.1, 0.3):
                both = alone = 0
                width = []
                runs = COUNTS["studies"] // FEWER
                for _ in range(runs):
                    arms, clusters = answers(random, seeds, between, clustered)
                    [(low, high)] = new_pictures(arms, [(0, 1)], [0.95], clusters, resamples=500)
                    both += low <= 0 <= high
                    width.append(high - low)
                    low, high = compare(*(arm.mean(axis=1).tolist() for arm in arms)).interval(0.95)
                    alone += low <= 0 <= high
                kind = "in 100 clusters" if clustered else "independent"
                rows.append(
                    [kind, str(seeds), f"{between:g}", rate(both, runs), f"{np.mean(width):.2f}", rate(alone, runs)]
                )
    headings = ("pictures", "seeds", "seed noise, logits", "new pictures covers, %", "length, pp", "Welch covers, %")
    return table(headings, rows)


HEAD = f"""\
# How often the verdict errs

Written by `python benchmarks/calibration.py`: simulated studies, each made into records and judged as a real study is,
from records to sentences; how many stands above each table. Five arms at one budget; the default family compares the
first with three of them. Shares are in percent, with their 95 % Wilson intervals. *Unequal*: deviations of
{", ".join(f"{s:g}" for s in UNEQUAL)} times sigma; *noisy subject*: the arm that the others are compared with has twice
the deviation of the first rival; *heavy tail*: Student's t with 3 degrees of freedom in one arm, the deviation
unchanged. The random numbers are always the same.
[aa_sweeps.md](aa_sweeps.md) asks real networks the same."""
# Section -> what it says above its table, with the number of simulated studies a number; the table.
SECTIONS: dict[str, tuple[str, Callable[[np.random.Generator], str]]] = {
    "False winners": (
        """\
Five identical arms, {studies:,} studies a number. A study counts if it says of any arm that it beats or trails another;
5 % are allowed.""",
        false_winners,
    ),
    "Planted effects": (
        """\
One of three rivals is worse, by what the plan says is found with 80 % power, or by 0.5 pp; {studies:,} studies a
number. Equal and unequal noise are what the plan computes exactly; for heavy tails it is an approximation.""",
        planted,
    ),
    "Equivalence": (
        f"""\
Margin {MARGIN:g} pp, Holm over TOST; {{studies:,}} studies a number. Rivals that differ by just the margin are the
worst case. The fourth column counts false winners and false equivalence together: each kind is held at 5 %, so both
together at 10 %.""",
        false_equivalence,
    ),
    "Reading while the sweep runs": (
        f"""\
Five identical arms, a report after every finished seed; {{studies:,}} studies a number. Verdicts are read at
{" and ".join(map(str, FRACTIONS))} of the planned seeds, at a level of
{" and ".join(f"{100 * level:.2g} %" for level in LEVELS)}, and at the end (power spending, exponent {EXPONENT}). The
last column is what a report would do that takes what has finished for the whole study.""",
        peeking,
    ),
    "Probability of being best": (
        """\
True accuracies of five arms are drawn from a normal distribution with the given spread; {few:,} studies a row. In every
bin of said probability: said:came true, first as reported, then without the spread between arms in the model (a t
distribution for each arm, nearly what resampling seeds gives). What comes true less often than it says is too bold.""",
        best_arm,
    ),
    "New pictures": (
        """\
Two arms of the same distribution, 1,000 test pictures that favour the arms differently, {few:,} studies a row; does a
95 % interval hold the true difference, for other seeds and other pictures? Welch's interval over seeds, for comparison,
answers another question, about these pictures.

Pictures of one cluster are drawn together, as in a report wherever the data say which pictures were made of one
original. In `data=clutter` they do: its 2,000 test pictures show 437 scans of digits. Between its default networks the
error that pictures add to a difference is 3 to 5 % larger than if all were independent; after two epochs instead of
eight, 13 to 41 %. Fragments of scans, which all pictures share, are no clusters and are left out.""",
        pictures,
    ),
}


def written(path: Path) -> dict[str, str]:
    """The sections of the document as it is."""
    parts = path.read_text().split("\n## ")[1:] if path.exists() else []
    return {part.partition("\n")[0]: part.partition("\n")[2].strip() for part in parts}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=COUNTS["studies"], help="simulated studies a number")
    parser.add_argument("--write", type=Path, default=ROOT / "docs" / "calibration.md", help="where the tables go")
    parser.add_argument(
        "--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="which to simulate again"
    )
    options = parser.parse_args()
    COUNTS["studies"] = options.studies
    for name in options.sections:
        began = time.perf_counter()
        above, simulate = SECTIONS[name]
        text = above.format(studies=options.studies, few=options.studies // FEWER)
        shown = simulate(np.random.default_rng(2026))
        found = written(options.write) | {name: f"{text}\n\n{shown}"}
        body = [f"## {section}\n\n{found[section]}" for section in SECTIONS if section in found]
        options.write.write_text("\n\n".join([HEAD, *body]) + "\n")
        print(f"{name}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
