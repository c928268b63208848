"""Real A/A sweeps: how often does the verdict name a winner where there is none? Writes docs/aa_sweeps.md.

    python benchmarks/aa_sweeps.py [--sweeps 20] [--seeds 3] [--folder outputs/aa] [--write FILE] [KEY=VALUE ...]

Each sweep trains one network with `sweep x arms` seeds through `python -m src.run`, then deals its runs out, in the
order of their seeds, to pretend arms, and reports on them through the same path as on any study: records and
predictions in folders, `write_report`. Network, data and recipe are the same in every run, so every winner is false.

What is changed in the records: arm and budget; depth, so that the arm is not taken for the base; seeds, counted from
0 in each arm; and the hash of the architecture. Without the last the guard against equal networks (G1) refuses all of
it, as it should: that guard alone is lifted, by giving each pretend arm a hash of its own.

A second run goes on where the first stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import hashlib
import itertools
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from calibration import ROOT, rate, table  # and with it the way to the tests' own helpers
from numpy.typing import NDArray
from scipy import stats
from simulated import Floats, equivalents, winners

from src.record import RunRecord
from src.report.write import write_report
from src.scaling.latency import device_name
from src.verdict.claims import DEFAULT
from src.verdict.design import floor_sd, pooled_sd
from src.verdict.grammar import Comparison, Contradicted, Equivalent, NotAssessable, Supported
from src.verdict.standing import DRAWS, true_accuracies
from src.verdict.statistics import ALPHA, binomial_se, compare, smallest_detectable

ARMS = ("compound", *DEFAULT.claims[0].rivals)
# One thread an arm; nothing that a comparison of accuracies does not need.
PLAIN = ("scaling=base", "launcher=forked", "tracking=none", "hardware=cpu", "hardware.threads=1")
PLAIN += ("cam_pictures=0", "cam_scores=0")
# Short enough for hundreds of runs, about five seconds each; long enough to get half of ten classes right.
SETTING = ("network=efficientnet_nano", "network.resolution=28", "recipe.epochs=4", "recipe.batch_size=32")
SETTING += ("data=clutter", "data.clutter.train=1200", "data.clutter.val=400", "data.clutter.test=2000")
SETTING += ("data.clutter.digit_min=20", "data.clutter.digit_max=40")
REDRAWN = 2000
SEEDS = (3, 4, 6, 10)
SURE = (0.5, 0.8, 0.9, 0.95)
LEADS = (0.13, 0.5, 1.0, 2.0)  # pp; the first is the lead of a published winner, docs/audit.md


@dataclass(frozen=True, eq=False)
class Sweep:
    """One sweep as dealt out; accuracies in pp, (arms, seeds).

    test: of the epoch that validation chose. best, last: highest and last validation accuracy of the run.
    correct: (arms, seeds, N), whether each test picture was classified rightly.
    winners, equivalent: comparisons that said so. probabilities: (arms,) of being best.
    """

    test: Floats
    best: Floats
    last: Floats
    correct: NDArray[np.bool_]
    comparisons: tuple[Comparison, ...]
    winners: int
    equivalent: int
    probabilities: Floats


def train(folder: Path, number: int, runs: int, overrides: Sequence[str]) -> list[Path]:
    """The folders of a sweep's runs, in the order of their seeds, trained where they are not yet.

    Raises:
        subprocess.CalledProcessError: a run failed; `src.run` has said why.
    """
    study = f"sweep-{number:02d}"
    seeds = f"seed=range({number * runs},{(number + 1) * runs})"
    command = [sys.executable, "-m", "src.run", "-m", *PLAIN, *overrides, seeds, f"study={study}", f"outputs={folder}"]
    subprocess.run(command, cwd=ROOT, check=True, stdout=sys.stderr)
    found = sorted((path.parent for path in (folder / study).glob("*/record.json")), key=lambda at: _record(at).seed)
    assert [_record(path).seed for path in found] == list(range(number * runs, (number + 1) * runs))
    return found


def pretend(record: RunRecord, arm: str, seed: int) -> RunRecord:
    """The record under another name: see the top of this file."""
    architecture = hashlib.sha256(f"{arm}: {record.architecture_sha256}".encode()).hexdigest()
    return dataclasses.replace(
        record, arm=arm, seed=seed, budget=2.0, snapped_budget=2.0, depth=2.0, architecture_sha256=architecture
    )


def deal(runs: Sequence[Path], target: Path) -> Sweep:
    """Write the runs as a study of pretend arms into `target`, and report on it.

    Raises:
        ValueError: a guard refuses the study, as where a run is at chance.
    """
    shutil.rmtree(target, ignore_errors=True)
    seeds = len(runs) // len(ARMS)
    correct = []
    for number, source in enumerate(runs):
        record = pretend(_record(source), ARMS[number // seeds], number % seeds)
        place = target / f"{record.arm}-2x-seed{record.seed}-{record.config_hash[:8]}"
        place.mkdir(parents=True)
        for name in ("predictions.npz", "history.csv"):
            shutil.copy(source / name, place)
        (place / "status.json").write_text(json.dumps({"state": "finished"}))
        record.write(place)
        with np.load(source / "predictions.npz", allow_pickle=False) as stored:
            correct.append(stored["test_logits"].argmax(axis=1) == stored["test_labels"])
    report = write_report(target)
    refused = [str(s) for s in report.verdict.sentences if isinstance(s, NotAssessable)]
    if refused:
        raise ValueError(f"{target} cannot be judged: {'; '.join(refused)}")
    said = report.verdict.sentences
    chances = {row.arm: row.best for row in report.standings[0].rows}
    return Sweep(
        *(_dealt([100 * getattr(_record(run), field) for run in runs], seeds) for field in FIELDS),
        correct=np.stack(correct).reshape(len(ARMS), seeds, -1),
        comparisons=tuple(c for sentence in said for c in sentence.comparisons),  # type: ignore[union-attr]
        winners=sum(len(s.comparisons) for s in said if isinstance(s, Supported | Contradicted)),
        equivalent=sum(len(s.comparisons) for s in said if isinstance(s, Equivalent)),
        probabilities=np.array([chances[arm] for arm in ARMS], float),
    )


FIELDS = ("test_accuracy", "best_val_accuracy", "last_val_accuracy")


def _record(folder: Path) -> RunRecord:
    return RunRecord.read(folder / "record.json")


def _dealt(values: Sequence[float], seeds: int) -> Floats:
    return np.array(values).reshape(len(ARMS), seeds)


# --- What is reported


def share(flags: Iterable[bool]) -> str:
    """How many of these hold, in percent, with the 95 % Wilson interval."""
    listed = [bool(flag) for flag in flags]
    return rate(sum(listed), len(listed))


def lead(values: Floats) -> float:
    """Of the highest over the next."""
    second, first = np.sort(values)[-2:]
    return float(first - second)


def unguarded(values: Floats) -> bool:
    """Whether any pair of arms differs by a t test at 5 % that nothing corrects."""
    return any(compare(list(a), list(b)).p <= ALPHA for a, b in itertools.combinations(values, 2))


def by_pictures(correct: NDArray[np.bool_]) -> bool:
    """Whether any two of these networks (networks, N) differ by McNemar's exact test at 5 %, as if seeds made none."""
    for a, b in itertools.combinations(correct, 2):
        only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
        if only_a + only_b and stats.binomtest(only_a, only_a + only_b).pvalue <= ALPHA:
            return True
    return False


def verdicts(sweeps: Sequence[Sweep]) -> str:
    """What the reports said of all sweeps together."""
    comparisons = [c for sweep in sweeps for c in sweep.comparisons]
    pairs = [compare(list(sweep.test[0]), list(rival)) for sweep in sweeps for rival in sweep.test[1:]]
    rows = [
        ("sweeps with a false winner", share(s.winners > 0 for s in sweeps), "at most 5"),
        ("comparisons with a false winner", rate(sum(s.winners for s in sweeps), len(comparisons)), "at most 5"),
        ("comparisons said to be equivalent (they are)", rate(sum(s.equivalent for s in sweeps), len(comparisons)), ""),
        ("intervals of the report that hold zero", share(c.low <= 0 <= c.high for c in comparisons), "at least 95"),
        ("single 95 % intervals over seeds that hold zero", share(pair.p > ALPHA for pair in pairs), "95"),
        (
            "intervals for new pictures that hold zero",
            share(c.new_pictures[0] <= 0 <= c.new_pictures[1] for c in comparisons if c.new_pictures),
            "at least 95",
        ),
    ]
    return table(("what", "%, of " + f"{len(sweeps)} sweeps or {len(comparisons)} comparisons", "expected, %"), rows)


def each(sweeps: Sequence[Sweep]) -> str:
    """One line a sweep."""
    rows = []
    for number, sweep in enumerate(sweeps):
        means = [f"{arm.mean():.2f} ± {arm.std(ddof=1):.2f}" for arm in sweep.test]
        p = min((c.p for c in sweep.comparisons), default=1.0)
        ahead, largest = lead(sweep.test.mean(axis=1)), sweep.probabilities.max()
        said = (str(sweep.winners), str(sweep.equivalent))
        rows.append([str(number), *means, f"{ahead:.2f}", f"{p:.2g}", *said, f"{largest:.2f}"])
    return table(("sweep", *ARMS, "lead, pp", "smallest Holm p", "winners", "equivalent", "largest P(best)"), rows)


def redrawn(values: Floats, random: np.random.Generator) -> str:
    """Sweeps drawn without replacement from all runs."""
    rows = []
    for seeds in SEEDS:
        drawn = [random.permutation(values)[: 5 * seeds].reshape(5, seeds) for _ in range(REDRAWN)]
        leads = np.array([lead(own[:4].mean(axis=1)) for own in drawn])
        rows.append(
            [
                str(seeds),
                share(bool(winners(own)) for own in drawn),
                share(bool(equivalents(own)) for own in drawn),
                share(unguarded(own[:4]) for own in drawn),
                *(f"{100 * np.mean(leads >= size):.0f}" for size in LEADS[1:]),
            ]
        )
    ahead = [f"highest mean leads by {size:g} pp, %" for size in LEADS[1:]]
    return table(("seeds", "any false winner, %", "any equivalence, %", "any t test p < 0.05, %", *ahead), rows)


def best_arm(sweeps: Sequence[Sweep], values: Floats, random: np.random.Generator) -> str:
    """How sure the report was that one of equal arms is the best, and how sure a t distribution for each arm is."""
    largest = np.array([sweep.probabilities.max() for sweep in sweeps])
    rows = [[f"the {len(sweeps)} sweeps", str(sweeps[0].test.shape[1]), "as reported", *_sure(largest)]]
    for seeds in SEEDS:
        said, plain = [], []
        for _ in range(REDRAWN // 4):
            own = random.permutation(values)[: len(ARMS) * seeds].reshape(len(ARMS), seeds)
            error = own.std(axis=1, ddof=1) / np.sqrt(seeds)
            alone = own.mean(axis=1) + error * random.standard_t(seeds - 1, (DRAWS, len(ARMS)))
            for found, drawn in ((said, true_accuracies(own.tolist(), random)), (plain, alone)):
                found.append(np.bincount(drawn.argmax(axis=1), minlength=len(ARMS)).max() / DRAWS)
        rows.append([f"{REDRAWN // 4} redrawn", str(seeds), "as reported", *_sure(np.array(said))])
        rows.append([f"{REDRAWN // 4} redrawn", str(seeds), "t distribution for each arm", *_sure(np.array(plain))])
    reached = [f"{size:g} or more, %" for size in SURE]
    return table(("sweeps", "seeds", "model", "median", "90th percentile", *reached), rows)


def _sure(largest: Floats) -> list[str]:
    shares = [f"{100 * np.mean(largest >= size):.1f}" for size in SURE]
    return [f"{np.median(largest):.2f}", f"{np.quantile(largest, 0.9):.2f}", *shares]


def naive(sweeps: Sequence[Sweep]) -> str:
    """What readers without seeds, or without a test, would have seen in the same runs."""
    seeds = range(sweeps[0].test.shape[1])
    rules = {
        "one run an arm, test split": [s.test[:, i] for s in sweeps for i in seeds],
        "one run an arm, best epoch by the split that is shown": [s.best[:, i] for s in sweeps for i in seeds],
        "one run an arm, last epoch, same split": [s.last[:, i] for s in sweeps for i in seeds],
        f"mean of {len(seeds)} runs, test split, no interval": [s.test.mean(axis=1) for s in sweeps],
    }
    rows = []
    for name, readings in rules.items():
        leads = np.array([lead(values) for values in readings])
        shares = [f"{100 * np.mean(leads >= size):.0f}" for size in LEADS]
        rows.append([name, str(len(leads)), f"{np.median(leads):.2f}", f"{leads.max():.2f}", *shares])
    ahead = [f"{size:g} pp or more, %" for size in LEADS]
    return table(("winner is the highest by", "readings", "median lead, pp", "largest", *ahead), rows)


def tests(sweeps: Sequence[Sweep]) -> str:
    """The share of readings in which a test that knows of no seeds, or of no family, finds a difference."""
    seeds = range(sweeps[0].test.shape[1])
    moved = [s.best[:, i].argmax() != s.last[:, i].argmax() for s in sweeps for i in seeds]
    pictures = [by_pictures(s.correct[:, i]) for s in sweeps for i in seeds]
    rows = [
        ("one run an arm: McNemar's test of the same pictures, any pair p < 0.05", pictures),
        ("t tests over seeds without correction, any pair p < 0.05", [unguarded(s.test) for s in sweeps]),
        ("the winner changes if the last epoch is shown instead of the best", moved),
    ]
    return table(("what", "readings", "%"), [[name, str(len(flags)), share(flags)] for name, flags in rows])


def noise(sweeps: Sequence[Sweep]) -> str:
    """Spread between seeds of one network, and what it is made of."""
    arms = [arm for sweep in sweeps for arm in sweep.test]
    values = np.concatenate(arms)
    answers = [run for sweep in sweeps for run in sweep.correct.reshape(-1, sweep.correct.shape[-1])]
    sd, degrees = pooled_sd([list(arm) for arm in arms])
    low, high = (sd * math.sqrt(degrees / stats.chi2.ppf(q, degrees)) for q in (0.975, 0.025))
    own = [arm.std(ddof=1) for arm in arms]
    floor = floor_sd(answers)
    above = stats.chi2.sf(degrees * (sd / floor) ** 2, degrees)
    seeds, rivals = len(arms[0]), len(ARMS) - 1
    between = stats.f_oneway(*arms).pvalue
    uniform = stats.kstest([stats.f_oneway(*sweep.test).pvalue for sweep in sweeps], "uniform").pvalue
    rows = [
        ("runs, test pictures", f"{len(values)}, {len(answers[0])}"),
        ("test accuracy, mean, %", f"{values.mean():.2f}"),
        ("test accuracy, lowest to highest, %", f"{values.min():.2f} to {values.max():.2f}"),
        ("sigma between seeds, pooled over pretend arms, pp", f"{sd:.2f} [{low:.2f}, {high:.2f}]"),
        (f"sigma of single arms of {seeds} seeds, lowest to highest, pp", f"{min(own):.2f} to {max(own):.2f}"),
        ("sigma that independent errors would give (the floor), pp", f"{floor:.2f}"),
        ("chi-square test that there is no more than that, p", f"{above:.2g}" if above > 1e-16 else "below 1e-16"),
        ("binomial error of one accuracy, pp", f"{100 * binomial_se(values.mean() / 100, len(answers[0])):.2f}"),
        ("Shapiro-Wilk test of all runs, p", f"{stats.shapiro(values).pvalue:.2g}"),
        ("skewness, excess kurtosis", f"{stats.skew(values):+.2f}, {stats.kurtosis(values):+.2f}"),
        (f"F test between the {len(arms)} pretend arms, p", f"{between:.2g}"),
        ("F tests of the sweeps against a uniform distribution (Kolmogorov-Smirnov), p", f"{uniform:.2g}"),
        (f"difference that {seeds} seeds find with 80 % power, pp", f"{smallest_detectable(sd, seeds, rivals):.2f}"),
    ]
    return table(("what", "value"), rows)


def document(sweeps: Sequence[Sweep], records: Sequence[RunRecord], overrides: Sequence[str]) -> str:
    """The whole page."""
    today = datetime.date.today()
    first, seeds = records[0], sweeps[0].test.shape[1]
    values = np.concatenate([sweep.test.ravel() for sweep in sweeps])
    random = np.random.default_rng(2026)
    revisions = ", ".join(sorted({record.code_revision for record in records}))
    minutes = sum(record.seconds for record in records) / 60
    sections = {
        "What the reports said": verdicts(sweeps),
        "Each sweep": "Means and deviations of test accuracy in percent. *Winners* are false.\n\n" + each(sweeps),
        "Sweeps drawn from all runs": f"""\
{REDRAWN:,} sweeps a row, of runs drawn from the {len(values)} without replacement: the noise of real networks, and more
sweeps than could be trained. The last columns are what a reader of means sees.

{redrawn(values, random)}""",
        "Probability of being best": f"""\
The largest of the {len(ARMS)} probabilities; all arms are equally good, so that none should be near 1.

{best_arm(sweeps, values, random)}""",
        "The same runs, read naively": f"""\
Best and last epoch are of the validation split, read as if it were the one to report.

{naive(sweeps)}

{tests(sweeps)}""",
        "Noise": noise(sweeps),
    }
    head = f"""\
# A/A sweeps: winners among equal arms

Written by `python benchmarks/aa_sweeps.py` on {today:%Y-%m-%d}: {len(sweeps)} sweeps of {len(ARMS)} arms with {seeds}
seeds, each a real run of {first.network} at {first.resolution} px on {first.data}: {first.epochs} epochs of
{first.train_pictures:,} pictures, recipe {first.recipe}. All arms are the same network with the same data and recipe;
only seeds differ, so every winner is false. The runs of a sweep are dealt out to pretend arms and reported on like any
study; of the guards only the one against equal networks (G1), which would refuse all of it, is lifted.
[calibration.md](calibration.md) asks the same of simulated numbers.

The runs: `python -m src.run -m {" ".join([*PLAIN, *overrides])}`, code {revisions}; {device_name("cpu")}, one
thread, torch {torch.__version__}, {minutes:.0f} minutes in all. Shares are in percent, with 95 % Wilson intervals."""
    return "\n\n".join([head, *(f"## {title}\n\n{text}" for title, text in sections.items())]) + "\n"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3, help="of each pretend arm")
    parser.add_argument("--folder", type=Path, default=ROOT / "outputs" / "aa", help="where runs and reports go")
    parser.add_argument("--write", type=Path, default=ROOT / "docs" / "aa_sweeps.md", help="where the tables go")
    parser.add_argument("overrides", nargs="*", default=list(SETTING), help="of src.run, instead of ours")
    options = parser.parse_args()
    sweeps, records = [], []
    for number in range(options.sweeps):
        runs = train(options.folder.resolve(), number, len(ARMS) * options.seeds, options.overrides)
        records += [_record(run) for run in runs]
        sweeps.append(deal(runs, options.folder / f"dealt-{number:02d}"))
        print(f"sweep {number}: {sweeps[-1].winners} false winners", file=sys.stderr, flush=True)
    options.write.write_text(document(sweeps, records, options.overrides))


if __name__ == "__main__":
    main()
