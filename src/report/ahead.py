"""What a study's `extrapolation.json` holds, and how it is told: forecasts of larger budgets, and what came of them.

The file is only ever added to. `src.report.extrapolated` makes forecasts and scores them.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from src.record import CURRENCY_LABELS, METRICS, write_atomically
from src.verdict.extrapolation import Expected
from src.verdict.statistics import ALPHA

EXTRAPOLATION_FILE = "extrapolation.json"
SCORED, WAITING, NOT_SCORED = "scored", "waiting", "not scored"


@dataclass(frozen=True)
class Basis:
    """A run that a forecast rests on, by its folder and by what it was and gave."""

    folder: str
    config_hash: str
    predictions_sha256: str


@dataclass(frozen=True)
class ArmAhead:
    """Forecast of one arm's test accuracy, %.

    name: of its row in the report; arm: of its scaling. budgets: costs of the runs it rests on, x base. shapes: lowest
    and highest that those do not reject (see `src.verdict.extrapolation`).
    """

    name: str
    arm: str
    budgets: tuple[float, ...]
    shapes: tuple[float, float]
    expected: Expected
    rests_on: tuple[Basis, ...]


@dataclass(frozen=True)
class DifferenceAhead:
    """Forecast of one arm's test accuracy less a rival's, pp."""

    name: str
    rival: str
    expected: Expected

    @property
    def claimed(self) -> bool:
        """Whether an order of the two is forecast: the interval of the means leaves out zero."""
        return not self.expected.low <= 0 <= self.expected.high


@dataclass(frozen=True)
class Ahead:
    """What was forecast at once for one network on one data set at one cost.

    written: ISO date and time, UTC. cost: x base, in the study's currency, of which the base costs `base_price`. seeds:
    of which the means are forecast.
    """

    written: str
    code_revision: str
    network: str
    data: str
    currency: str
    base_price: float
    cost: float
    seeds: int
    form: str
    confidence: float
    arms: tuple[ArmAhead, ...]
    differences: tuple[DifferenceAhead, ...]
    notes: tuple[str, ...]

    @property
    def content(self) -> Ahead:
        """The same, whenever and by whatever code it was written."""
        return dataclasses.replace(self, written="", code_revision="")


@dataclass(frozen=True)
class Scored:
    """One forecast beside what came, accuracies in % and their differences in pp.

    cost: that was asked for, x base; at: that runs of that budget have, for which `expected` holds. rival: of a
    difference. state: scored, waiting (its runs have not all finished) or not scored; reason: why. came:
    mean over the `seeds` lowest seeds. error: came - forecast. score: interval score of the mean's interval.
    runs_inside, runs: of single runs in theirs, for an arm. claimed: an order was forecast; right: it came so.
    """

    name: str
    rival: str | None
    network: str
    data: str
    currency: str
    base_price: float
    cost: float
    at: float
    seeds: int
    written: str
    expected: Expected
    claimed: bool
    state: str
    reason: str = ""
    came: float | None = None
    inside: bool | None = None
    error: float | None = None
    score: float | None = None
    runs_inside: int | None = None
    runs: int | None = None
    right: bool | None = None

    @property
    def title(self) -> str:
        """Whose forecast it is."""
        return self.name if self.rival is None else f"{self.name} - {self.rival}"

    @property
    def budget(self) -> str:
        """The cost, with what it was solved to where that differs."""
        moved = "" if abs(self.at - self.cost) < 0.005 * self.cost else f" → {self.at:.3g}x"
        return f"{self.cost:g}x{moved}"

    def __str__(self) -> str:
        """One sentence."""
        unit, sign = ("%", "") if self.rival is None else ("pp", "+")
        e, metric = self.expected, METRICS["test_accuracy"]
        number, low, high = (format(v, f"{sign}.{metric.digits}f") for v in (e.value, e.low, e.high))
        text = (
            f"{self.title} at {self.budget} {CURRENCY_LABELS[self.currency]}: forecast {number} [{low}, {high}] {unit}"
            f" for the mean of {self.seeds} seeds, written {self.written[:16]}"
        )
        if self.state != SCORED:
            return f"{text}; {self.state}: {self.reason}"
        assert self.came is not None and self.error is not None and self.score is not None
        came = format(self.came, f"{sign}.{metric.digits}f")
        text += f"; came {came} {unit}, {'inside' if self.inside else 'outside'}, error {self.error:+.2f} pp"
        text += f", interval score {self.score:.2f}"
        if self.runs is not None:
            text += f"; {self.runs_inside} of {self.runs} single runs inside [{e.run_low:.2f}, {e.run_high:.2f}]"
        if self.claimed:
            text += f"; the order {'came as forecast' if self.right else 'came otherwise'}"
        return text


def read_forecasts(study_folder: Path) -> tuple[Ahead, ...]:
    """All forecasts of a study in the order in which they were written.

    Raises:
        ValueError: the file is damaged.
    """
    path = study_folder / EXTRAPOLATION_FILE
    try:
        entries = json.loads(path.read_text())
        if not isinstance(entries, list):
            raise ValueError("it holds no list")
        return tuple(_ahead(entry) for entry in entries)
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        reason = " ".join(str(error).split())[:100]
        name = f"{study_folder.name}/{EXTRAPOLATION_FILE}"
        raise ValueError(f"{name} is damaged ({reason}); restore it, since it holds what was forecast") from error


def register(study_folder: Path, new: Sequence[Ahead]) -> tuple[Ahead, ...]:
    """Add forecasts to the study's file, each once, and return them as they stand there: what the same runs have
    forecast before keeps its date.

    Raises:
        ValueError: the file is damaged.
    """
    known = list(read_forecasts(study_folder))
    there = {entry.content: entry for entry in reversed(known)}
    added = [entry for entry in new if entry.content not in there]
    if added:
        listed = [dataclasses.asdict(entry) for entry in (*known, *added)]
        write_atomically(study_folder / EXTRAPOLATION_FILE, json.dumps(listed, indent=1, ensure_ascii=False) + "\n")
    return tuple(there.get(entry.content, entry) for entry in new)


def total(found: Sequence[Scored]) -> str:
    """What all scores come to, in one sentence; empty if nothing could be scored."""
    parts = []
    for label, some in (
        ("accuracies", [s for s in found if s.state == SCORED and s.rival is None]),
        ("differences of two arms", [s for s in found if s.state == SCORED and s.rival is not None]),
    ):
        if not some:
            continue
        inside = sum(bool(s.inside) for s in some)
        error = math.fsum(abs(s.error or 0.0) for s in some) / len(some)
        score = math.fsum(s.score or 0.0 for s in some) / len(some)
        parts.append(
            f"{inside} of {len(some)} {label} came inside their {100 * (1 - ALPHA):g} % interval (mean absolute error"
            f" {error:.2f} pp, mean interval score {score:.2f})"
        )
    orders = [s for s in found if s.state == SCORED and s.claimed]
    if orders:
        parts.append(f"{sum(bool(s.right) for s in orders)} of {len(orders)} orders that were forecast came so")
    return "; ".join(parts)


def moment(text: str) -> datetime:
    """An ISO date and time, in UTC where it names no zone.

    Raises:
        ValueError: it is none.
    """
    time = datetime.fromisoformat(text)
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _ahead(entry: Mapping[str, Any]) -> Ahead:
    """One entry of the file.

    Raises:
        ValueError, KeyError, TypeError: it is not what `register` writes.
    """
    moment(entry["written"])
    arms = tuple(
        ArmAhead(
            **{
                **arm,
                "budgets": tuple(map(float, arm["budgets"])),
                "shapes": (float(arm["shapes"][0]), float(arm["shapes"][1])),
                "expected": _expected(arm["expected"]),
                "rests_on": tuple(Basis(**basis) for basis in arm["rests_on"]),
            }
        )
        for arm in entry["arms"]
    )
    known = {arm.name for arm in arms}
    differences = tuple(DifferenceAhead(**{**d, "expected": _expected(d["expected"])}) for d in entry["differences"])
    ahead = Ahead(**{**entry, "arms": arms, "differences": differences, "notes": tuple(entry["notes"])})
    texts = [ahead.network, ahead.data, ahead.code_revision, *ahead.notes]
    texts += [text for arm in arms for text in (arm.name, arm.arm)]
    texts += [text for arm in arms for basis in arm.rests_on for text in dataclasses.astuple(basis)]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("a name is no text")
    if not all(arm.rests_on for arm in arms) or not {n for d in differences for n in (d.name, d.rival)} <= known:
        raise ValueError("an arm rests on no runs, or a difference is of arms that are not forecast")
    if ahead.currency not in CURRENCY_LABELS or type(ahead.seeds) is not int or ahead.seeds < 1:
        raise ValueError(f"currency={ahead.currency!r} or seeds={ahead.seeds!r} is impossible")
    if not (math.isfinite(ahead.cost) and ahead.cost > 0 and math.isfinite(ahead.base_price) and ahead.base_price > 0):
        raise ValueError(f"cost={ahead.cost!r} or base_price={ahead.base_price!r} is impossible")
    return ahead


def _expected(values: Mapping[str, Any]) -> Expected:
    numbers = Expected(**{name: float(value) for name, value in values.items()})
    if not all(map(math.isfinite, dataclasses.astuple(numbers))):
        raise ValueError("a forecast is not finite")
    return numbers
