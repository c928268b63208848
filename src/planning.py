"""Planning a study: from checked configs to arms that are solved, compared with one another and shown."""

from __future__ import annotations

import dataclasses
import functools
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from src import config
from src.config import Study
from src.data.sources import facts as data_facts
from src.data.splits import DataFacts
from src.guards import named
from src.record import CURRENCY_LABELS, METRICS
from src.report.console import make_console, print_whole
from src.scaling.currency import ACTIVATIONS, MACS, PARAMS, Currency, Measured
from src.scaling.latency import LatencyCache, LatencyPrice
from src.scaling.lattice import Base
from src.scaling.released import check_released
from src.scaling.rules import RESOLUTION_ONLY
from src.scaling.solve import ScaledNetwork, solve, spread
from src.training.hardware import likely_precision, resolve
from src.training.memory import MemoryTerms, memory_terms, predicted_bytes
from src.training.options import HardwareOptions

# A sweep asks for the same data and the same network once for every arm or seed.
_facts = functools.cache(data_facts)
_solve = functools.cache(solve)

LARGEST_SPREAD = 0.01  # realised price of the arms of one budget, largest over smallest minus one
LARGEST_MEASURED_SPREAD = 0.05  # the same for a currency that is read off a clock


@dataclass(frozen=True)
class Arm:
    """One arm, planned: what to train, and the folder its results go to."""

    study: Study
    facts: DataFacts
    scaled: ScaledNetwork
    config_hash: str

    @property
    def name(self) -> str:
        """Readable and unique: rule, budget, seed, and the head of the hash of all that decides the result."""
        return f"{self.scaled.arm}-{self.scaled.budget:g}x-seed{self.study.seed}-{self.config_hash[:8]}"

    @property
    def folder(self) -> Path:
        """Where this arm's files go."""
        return self.study.folder / self.name

    @property
    def epochs(self) -> float:
        """Length of the run, in epochs: the recipe's, or what the arm can afford where training MACs are the budget."""
        budget = self.study.budget
        if budget.currency != "train_macs":
            return float(self.study.recipe.epochs)
        return self.study.recipe.epochs * budget.multiple * self.scaled.base.cost.macs / self.scaled.cost.macs

    @property
    def memory_bytes(self) -> int:
        """Predicted memory of training at the recipe's batch."""
        return round(predicted_bytes(self.scaled.cost, self.study.recipe.batch_size, _memory_terms(self.study)))

    @property
    def warnings(self) -> tuple[str, ...]:
        """What must be said beside this arm's numbers."""
        return (*_above_native([self]), *_pushed_apart(self))


def _above_native(arms: Sequence[Arm]) -> tuple[str, ...]:
    """One sentence on all arms that see more pixels than were stored, with the nearest way out."""
    above = {arm.scaled.arm: arm for arm in arms if arm.scaled.resolution > arm.facts.native_pixels}
    if not above:
        return ()
    some = next(iter(above.values()))
    native, base = some.facts.native_pixels, some.scaled.base.resolution
    largest = (native / base) ** 2
    remedy = (
        f"budgets up to about {largest:.2g} keep it at {native} px or below"
        if largest > 1.1 and all(arm.study.scaling.pure for arm in above.values())
        else f"use pictures with more pixels, or start from network.resolution below {base}"
    )
    sides = ", ".join(f"{name} at {arm.scaled.resolution} px" for name, arm in above.items())
    above_it = "beyond it pixels add computation, not information"
    return (named("G14", f"pictures are stored at {native} px; {above_it}: {sides} ({remedy})"),)


def _pushed_apart(arm: Arm) -> tuple[str, ...]:
    s, asked = arm.scaled, arm.study.scaling.shares
    if asked is None or not s.pushed_apart:
        return ()
    got, wanted = ("/".join(f"{100 * share:.0f}" for share in shares.axes) for shares in (s.shares, asked))
    return (
        f"{s.arm} at {s.budget:g}x spends {got} % of the growth on depth/width/resolution where {wanted} % was asked:"
        f" the lattice of {s.base.network.name} at {s.base.resolution} px has no nearer point",
    )


def _memory_terms(study: Study) -> MemoryTerms:
    return memory_terms(study.recipe, likely_precision(study.hardware))


def plan(study: Study) -> Arm:
    """Solve one arm.

    Raises:
        ValueError: the data cannot be found, the budget cannot be met, or what bears a published name is another thing.
    """
    facts = _facts(study.data)
    scaled = solve_arm(study, with_data=True)
    check_released(study.scaling, scaled)
    return Arm(study, facts, scaled, config.identity(study, facts))


def solve_arm(study: Study, *, with_data: bool) -> ScaledNetwork:
    """The network of one arm, with the classes of its data, or of its network's published table.

    Raises:
        ValueError: the data cannot be found, or the budget cannot be met.
    """
    classes = len(_facts(study.data).class_names) if with_data else study.network.classes
    base = Base(study.network, classes)
    return _solve(base, study.scaling, study.budget.network_multiple, _currency(study, base))


def larger_pictures(arm: Arm) -> int:
    """Pixels at which the base would cost what the arms of its study's budget cost: what its maps are controlled with.

    0 for every other arm, and where resolution alone cannot spend the budget or would have to be timed again.
    """
    study = arm.study
    if study.scaling.scales or study.budget.currency == "latency_s":
        return 0
    try:
        return solve_arm(dataclasses.replace(study, scaling=RESOLUTION_ONLY), with_data=True).resolution
    except ValueError:
        return 0


def _currency(study: Study, base: Base) -> Currency | Measured:
    """What the networks of a study are solved in."""
    name = study.budget.currency
    if name == "memory_bytes":
        terms, batch = _memory_terms(study), study.recipe.batch_size
        return Currency(
            name,
            params=terms.bytes_per_parameter,
            saved=batch * terms.bytes_per_saved_element,
            constant=terms.constant_bytes,
        )
    if name == "latency_s":
        return _stopwatch(study.folder, base, study.hardware)
    return {"macs": MACS, "train_macs": MACS, "params": PARAMS, "activations": ACTIVATIONS}[name]


@functools.cache
def _stopwatch(folder: Path, base: Base, options: HardwareOptions) -> Measured:
    """Latencies on this device, kept in the study's folder, so that an arm's own process plans the same network.

    On one CPU thread unless `hardware.threads` says otherwise, as in the paper's Table 4.
    """
    device = {"gpu": "cuda"}.get(resolve(options).accelerator, resolve(options).accelerator)
    console = make_console(stderr=True)
    path, threads = folder / "latency.json", options.threads or 1
    cache = LatencyCache(path, device=device, threads=threads, report=lambda line: console.print(line, style="dim"))
    return Measured("latency_s", LatencyPrice(cache, base.classes, (base.network, base.resolution)))


def plan_all(studies: Sequence[Study]) -> list[Arm]:
    """Solve every arm of a sweep, drop repetitions of the base, and check that arms of one budget cost the same.

    Raises:
        ValueError: an arm cannot be solved, a study mixes currencies, or arms of one budget differ by more than
            `LARGEST_SPREAD`.
    """
    arms = list({arm.folder: arm for arm in map(plan, studies)}.values())
    currencies = sorted({study.budget.currency for study in studies})
    if len(currencies) > 1:
        raise ValueError(
            f"budget.currency={','.join(currencies)}: a study counts in one currency; sweep them one by one"
        )
    for group in budget_groups(arms).values():
        apart, largest = spread(group), LARGEST_MEASURED_SPREAD if currencies == ["latency_s"] else LARGEST_SPREAD
        if apart > largest:
            prices = ", ".join(f"{s.arm} {s.price:,.6g}" for s in group)
            raise ValueError(
                named(
                    "G3",
                    f"budget={group[0].budget:g}: realised {currencies[0]} differ by {apart:.1%} ({prices}); choose"
                    " another budget",
                )
            )
    return arms


def budget_groups(arms: Sequence[Arm]) -> dict[tuple[object, ...], list[ScaledNetwork]]:
    """The distinct networks that were solved to one budget, by study, network, classes and budget."""
    groups: dict[tuple[object, ...], dict[tuple[object, ...], ScaledNetwork]] = {}
    for arm in arms:
        if arm.study.scaling.solved:
            key = (arm.study.study, arm.study.network, arm.scaled.base.classes, arm.study.budget)
            groups.setdefault(key, {})[arm.scaled.arm, arm.scaled.network, arm.scaled.resolution] = arm.scaled
    return {key: list(group.values()) for key, group in groups.items()}


def show_plan(arms: Sequence[Arm], console: Console) -> None:
    """The pre-flight table: what every arm really is, before anything is trained."""
    study = arms[0].study
    published = study.published
    timed = study.budget.currency == "train_macs"
    table = Table(title=f"Study {study.study}: {len(arms)} arms", title_justify="left", box=None, pad_edge=False)
    headings = [
        "arm",
        "budget",
        "seed",
        "depth",
        "width",
        "px",
        "x px",
        "blocks",
        "channels",
        "FLOPs (M MACs)",
        "x base",
    ]
    headings += ["params (M)", "acts (M)", "memory (MiB)"]
    other = arms[0].scaled.currency != "macs"
    headings += [f"x base, {CURRENCY_LABELS[arms[0].scaled.currency]}"] * other
    headings += ["epochs"] * timed + ["printed (G)", "realised / printed"] * bool(published)
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "arm" else "right")
    for group in _but_for_seed(arms):
        arm = group[0]
        s, realised = arm.scaled, arm.scaled.realised
        stages = s.network.channels[1 : 1 + len(s.network.stages)]
        cells = [
            s.arm,
            f"{s.budget:g}x",
            ",".join(str(arm.study.seed) for arm in group),
            METRICS["depth"].format(realised.depth),
            METRICS["width"].format(realised.width),
            str(s.resolution),
            METRICS["depth"].format(realised.resolution),
            str(s.network.blocks),
            f"{min(stages)}-{max(stages)}",
            f"{s.cost.macs / 1e6:.2f}",
            f"{s.cost.macs / s.base.cost.macs:.3f}",
            f"{s.cost.params / 1e6:.3f}",
            f"{s.cost.activations / 1e6:.3f}",
            f"{arm.memory_bytes / 2**20:.0f}",
        ]
        if other:
            cells.append(f"{s.multiple:.3f}")
        if timed:
            cells.append(f"{arm.epochs:.2f}")
        if published:
            printed = published.get(s.arm)
            cells += [f"{printed:g}", f"{s.cost.macs / 1e9 / printed:.3f}"] if printed else ["", ""]
        table.add_row(*cells)
    print_whole(console, table)
    for line in notes(arms):
        wrapped = textwrap.fill(f"note: {line}", console.width, subsequent_indent=" " * 6)
        console.print(wrapped, highlight=False, markup=False)
    console.print()


def notes(arms: Sequence[Arm]) -> list[str]:
    """What must be said beside the plan: how far arms lie apart, where a budget was snapped, warnings."""
    lines = []
    for group in budget_groups(arms).values():
        s = group[0]
        if len(group) > 1:
            unit = CURRENCY_LABELS[s.currency]
            lines.append(
                f"{len(group)} arms at {s.budget:g}x lie within {100 * spread(group):.2f} % of one another in {unit}"
            )
        if abs(s.snapped_budget / s.budget - 1.0) >= 0.005:
            nearest = "the nearest multiple that all axes can realise"
            lines.append(f"budget={s.budget:g} is met at {s.snapped_budget:.3f}x, {nearest}")
        lines += _twins(group)
    given = [arm.scaled for arm in arms if arm.study.scaling.scales and not arm.study.scaling.solved]
    if len({(s.network, s.resolution) for s in given}) > 1 and spread(given) > LARGEST_SPREAD:
        apart = spread(given)
        how = f"by {100 * apart:.0f} %" if apart < 1 else f"by a factor of {1 + apart:.3g}"
        lines.append(f"coefficients cost what they cost: these arms differ {how} and are no comparison at equal cost")
    lines += _above_native(arms)
    return list(dict.fromkeys([*lines, *(line for arm in arms for line in (*_pushed_apart(arm), *_measured(arm)))]))


def _twins(group: Sequence[ScaledNetwork]) -> list[str]:
    """Arms of one budget that are one network: between them there is nothing to find but noise."""
    names: dict[tuple[object, ...], list[str]] = {}
    for s in group:
        names.setdefault((s.network, s.resolution), []).append(s.arm)
    return [
        named(
            "G1", f"{' and '.join(twins)} at {group[0].budget:g}x are one network: differences between them are noise"
        )
        for twins in names.values()
        if len(twins) > 1
    ]


def _measured(arm: Arm) -> tuple[str, ...]:
    """What the clock said of an arm whose budget is in seconds."""
    currency = _currency(arm.study, arm.scaled.base)
    if not isinstance(currency, Measured):
        return ()
    assert isinstance(currency.measure, LatencyPrice)
    found = currency.measure.latency(arm.scaled.network, arm.scaled.resolution)
    return (
        f"{arm.scaled.arm} takes {1e3 * found.seconds:.3g} ms a picture, 95 % interval {1e3 * found.low:.3g} to"
        f" {1e3 * found.high:.3g} ms ({found.repeats} turns, {found.device}, {found.threads} thread(s)); arms may"
        f" differ by {100 * LARGEST_MEASURED_SPREAD:.0f} %",
    )


def _but_for_seed(arms: Sequence[Arm]) -> list[list[Arm]]:
    """Arms that differ in nothing the table shows but the seed, together."""
    groups: dict[tuple[object, ...], list[Arm]] = {}
    for arm in arms:
        s = arm.scaled
        key = (s.arm, s.budget, s.network, s.resolution, s.base.classes, arm.epochs, arm.memory_bytes)
        groups.setdefault(key, []).append(arm)
    return list(groups.values())
